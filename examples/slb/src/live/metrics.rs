//! Metrics for Prometheus, and whether the process is well, over HTTP.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | all counters, as OpenMetrics text |
//! | `/healthz` | 200 while the workers answer |
//! | `/readyz` | 200 while they do, and each frontend with rules has a backend for new flows |
//!
//! Whoever asks is not trusted: there are so many connections at once and no more, each lasts a few
//! seconds, and has headers of 16 KiB.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{info, warn};

use super::status::Shared;
use crate::Failure;
use crate::report::metrics::Family;

const MOST_CONNECTIONS: usize = 16;
const MOST_HEADERS: usize = 16 << 10;
const PATIENCE: Duration = Duration::from_secs(5);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers at an address, in a thread of its own, for as long as the process lives.
pub(super) fn serve(address: SocketAddr, shared: Arc<Shared>) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("--metrics {address}: {error}"));
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(failed)?;
    let thread = thread::Builder::new().name("slb metrics".to_owned());
    let started = thread.spawn(move || {
        if let Err(error) = runtime.block_on(accept(listener, shared)) {
            warn!("no metrics any more: {error}");
        }
    });
    started.map_err(failed)?;
    info!(%address, "metrics");
    Ok(())
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        // The others wait in the kernel's queue.
        let place = Arc::clone(&places).acquire_owned().await;
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, say: it passes.
                warn!("metrics: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&shared)));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(MOST_HEADERS)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            let _ = timeout(PATIENCE, connection).await;
            drop(place);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    // Workers answer between two bursts, which is waited for.
    let answer = tokio::task::spawn_blocking(move || respond(&method, &path, &shared)).await;
    Ok(answer.unwrap_or_else(|_| text(StatusCode::INTERNAL_SERVER_ERROR, "")))
}

fn respond(method: &Method, path: &str, shared: &Shared) -> Response<Full<Bytes>> {
    if method != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "expected GET\n");
    }
    let stuck = || {
        text(
            StatusCode::SERVICE_UNAVAILABLE,
            "a worker does not answer\n",
        )
    };
    match path {
        "/metrics" => match shared.families().and_then(encoded) {
            Some(body) => {
                let mut answer = text(StatusCode::OK, body);
                let kind = hyper::header::HeaderValue::from_static(OPEN_METRICS);
                answer
                    .headers_mut()
                    .insert(hyper::header::CONTENT_TYPE, kind);
                answer
            }
            None => stuck(),
        },
        "/healthz" if shared.families().is_none() => stuck(),
        "/healthz" => text(StatusCode::OK, "well\n"),
        "/readyz" if shared.families().is_none() => stuck(),
        "/readyz" => match shared.unavailable() {
            down if down.is_empty() => text(StatusCode::OK, "ready\n"),
            down => {
                let said = format!("no backend takes new flows of: {}\n", down.join(", "));
                text(StatusCode::SERVICE_UNAVAILABLE, said)
            }
        },
        _ => text(
            StatusCode::NOT_FOUND,
            "expected /metrics, /healthz or /readyz\n",
        ),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

fn encoded(families: Vec<Family>) -> Option<String> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(families)));
    let mut out = String::new();
    encode(&mut out, &registry).ok()?;
    Some(out)
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for family in self.0.iter().filter(|family| !family.samples.is_empty()) {
            let kind = match family.is_counter {
                true => MetricType::Counter,
                false => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for (labels, value) in &family.samples {
                let labels = labels.as_slice();
                let mut sample = metric.encode_family(&labels)?;
                match family.is_counter {
                    true => sample.encode_counter::<NoLabelSet, f64, u64>(value, None)?,
                    false => sample.encode_gauge(value)?,
                }
            }
        }
        Ok(())
    }
}
