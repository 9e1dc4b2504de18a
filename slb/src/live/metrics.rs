//! Metrics for Prometheus, and the health of the process, over HTTP.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | all counters, as OpenMetrics text |
//! | `/healthz` | 200 while the workers answer; of a controller, while it moves |
//! | `/readyz` | 200 while they do, packets come in by all devices, and each frontend with rules has a backend for new flows; of a controller, while its store answers |
//!
//! While a node waits for its fleet's first generation, it is healthy but not ready, and has no
//! counters.
//!
//! Clients are not trusted: the number of connections is limited, each lasts a few seconds, and has
//! headers of 16 KiB at most. At the limit, the oldest connection of the address that has the most
//! makes room for a new one, so slow clients do not block others.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

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
use slb_control::lasting::Lasting;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{info, warn};

use super::tell::Tell;
use crate::Failure;
use crate::report::metrics::{Family, Histogram};

const MOST_CONNECTIONS: usize = 256;
/// The maximum number of simultaneous answers, each of which needs the workers.
const MOST_AT_ONCE: usize = 8;
/// The maximum number of simultaneous pages of metrics, which take long for many backends. The rest of
/// [`MOST_AT_ONCE`] answers about health.
const MOST_PAGES: usize = 2;
const MOST_HEADERS: usize = 16 << 10;
const PATIENCE: Duration = Duration::from_secs(5);
/// The time that a client has for its request, and for reading the answer, if others wait for a
/// place.
const TIME_TO_ASK: Duration = Duration::from_millis(100);
const TIME_TO_READ: Duration = Duration::from_secs(1);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The address that serves metrics.
pub(crate) struct Endpoint {
    address: SocketAddr,
    /// Gone once a thread answers.
    listener: Option<std::net::TcpListener>,
    source: Arc<Source>,
}

/// The data for answers.
struct Source {
    /// Empty while the process waits for its first configuration.
    told: OnceLock<Arc<dyn Tell>>,
    /// The reason for waiting.
    waits: Mutex<String>,
    /// Permits for pages of metrics.
    pages: Arc<Semaphore>,
}

impl Default for Source {
    fn default() -> Self {
        Self {
            told: OnceLock::new(),
            waits: Mutex::default(),
            pages: Arc::new(Semaphore::new(MOST_PAGES)),
        }
    }
}

impl Endpoint {
    /// Binds to an address; clients wait from now on.
    pub(crate) fn bind(address: SocketAddr) -> Result<Self, Failure> {
        let failed = failed(address);
        let listener = std::net::TcpListener::bind(address).map_err(&failed)?;
        listener.set_nonblocking(true).map_err(&failed)?;
        Ok(Self {
            address,
            listener: Some(listener),
            source: Arc::default(),
        })
    }

    /// Answers that the process is not ready and why, until it [serves](Self::serve).
    pub(super) fn wait(&mut self, why: &str) -> Result<(), Failure> {
        let waits = &self.source.waits;
        why.clone_into(&mut waits.lock().unwrap_or_else(PoisonError::into_inner));
        self.begin()
    }

    /// Answers in a thread of its own, for as long as the process lives.
    pub(crate) fn serve(mut self, told: Arc<impl Tell>) -> Result<(), Failure> {
        let _ = self.source.told.set(told);
        self.begin()
    }

    fn begin(&mut self) -> Result<(), Failure> {
        let Some(listener) = self.listener.take() else {
            return Ok(());
        };
        let (address, source) = (self.address, Arc::clone(&self.source));
        let failed = failed(address);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(MOST_AT_ONCE)
            .build();
        let runtime = runtime.map_err(&failed)?;
        let thread = thread::Builder::new().name("slb metrics".to_owned());
        let started = thread.spawn(move || {
            if let Err(error) = runtime.block_on(accept(listener, source)) {
                warn!("the metrics endpoint failed: {error}");
            }
        });
        started.map_err(&failed)?;
        info!(%address, "serving metrics");
        Ok(())
    }
}

fn failed(address: SocketAddr) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure::failed(format!("--metrics {address}: {error}"))
}

/// A connection that is open.
struct Connection {
    peer: IpAddr,
    since: Instant,
    /// True if its request has arrived.
    has_asked: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Connection {
    /// Returns true if the connection may be closed at the limit. A client that asks at once is
    /// answered by then, unless it does not read.
    fn may_go(&self) -> bool {
        let patience = match self.has_asked.load(Ordering::Relaxed) {
            false => TIME_TO_ASK,
            true => TIME_TO_READ,
        };
        self.since.elapsed() >= patience
    }
}

/// Connections that are open, in the order in which they came.
#[derive(Default)]
struct Connections(VecDeque<Connection>);

impl Connections {
    /// Makes room for another connection: if there are too many, closes the oldest one of the
    /// address with the most, and of these one that has not asked, if there is one. Waits if none
    /// may be closed yet.
    async fn make_room(&mut self) {
        loop {
            self.0.retain(|connection| !connection.task.is_finished());
            if self.0.len() < MOST_CONNECTIONS {
                return;
            }
            let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
            for connection in self.0.iter().filter(|connection| connection.may_go()) {
                *counts.entry(connection.peer).or_default() += 1;
            }
            let most = counts.into_iter().max_by_key(|(_, count)| *count);
            let goes = |connection: &Connection| {
                most.is_some_and(|(peer, _)| peer == connection.peer) && connection.may_go()
            };
            let is_silent = |connection: &Connection| {
                goes(connection) && !connection.has_asked.load(Ordering::Relaxed)
            };
            let at = self.0.iter().position(is_silent);
            let at = at.or_else(|| self.0.iter().position(goes));
            if let Some(connection) = at.and_then(|at| self.0.remove(at)) {
                connection.task.abort();
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The subject of the fault that no connection is accepted.
const ACCEPT: &str = "accept";

async fn accept(listener: std::net::TcpListener, source: Arc<Source>) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = Connections::default();
    let mut lasting = Lasting::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => {
                if lasting.end(ACCEPT).is_some() {
                    info!("metrics: connections are accepted again");
                }
                accepted
            }
            Err(error) => {
                // Too many open files, say: it passes.
                if lasting.is_due(ACCEPT) {
                    warn!("metrics: no connection is accepted: {error}");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        connections.make_room().await;
        let has_asked = Arc::new(AtomicBool::new(false));
        let (source, asks) = (Arc::clone(&source), Arc::clone(&has_asked));
        let task = tokio::spawn(async move {
            let service = service_fn(move |request| {
                asks.store(true, Ordering::Relaxed);
                answer(request, Arc::clone(&source))
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(MOST_HEADERS)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            let _ = timeout(PATIENCE, connection).await;
        });
        connections.0.push_back(Connection {
            peer: peer.ip(),
            since: Instant::now(),
            has_asked,
            task,
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    source: Arc<Source>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    // A client that goes while it waits leaves no work behind.
    let permit = match path == "/metrics" {
        true => Arc::clone(&source.pages).acquire_owned().await.ok(),
        false => None,
    };
    // Workers answer between two bursts, which is waited for.
    let answer = tokio::task::spawn_blocking(move || {
        let answer = respond(&method, &path, &source);
        drop(permit);
        answer
    });
    let answer = answer.await;
    Ok(answer.unwrap_or_else(|_| text(StatusCode::INTERNAL_SERVER_ERROR, "")))
}

/// Answers GET and HEAD alike: the server leaves out the body of an answer to HEAD, and keeps its length
/// (RFC 9110 §9.3.2).
fn respond(method: &Method, path: &str, source: &Source) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "expected GET or HEAD\n");
        // RFC 9110 §15.5.6
        let allowed = hyper::header::HeaderValue::from_static("GET, HEAD");
        refused.headers_mut().insert(hyper::header::ALLOW, allowed);
        return refused;
    }
    let said = |result: Result<(), String>, good: &'static str| match result {
        Ok(()) => text(StatusCode::OK, good),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    };
    let counters = |families: Result<Vec<Family>, String>| {
        let body = families.and_then(|own| encoded(own).map_err(|error| error.to_string()));
        let body = match body {
            Ok(body) => body,
            Err(why) => return text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        };
        let mut answer = text(StatusCode::OK, body);
        let kind = hyper::header::HeaderValue::from_static(OPEN_METRICS);
        answer
            .headers_mut()
            .insert(hyper::header::CONTENT_TYPE, kind);
        answer
    };
    let Some(told) = source.told.get() else {
        let waits = source.waits.lock().unwrap_or_else(PoisonError::into_inner);
        return match path {
            "/metrics" => counters(Ok(Vec::new())),
            "/healthz" => text(StatusCode::OK, "well\n"),
            "/readyz" => text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {}\n", *waits),
            ),
            _ => unknown(),
        };
    };
    match path {
        "/metrics" => counters(told.metrics()),
        "/healthz" => said(told.health(), "well\n"),
        "/readyz" => said(told.readiness(), "ready\n"),
        _ => unknown(),
    }
}

fn unknown() -> Response<Full<Bytes>> {
    text(
        StatusCode::NOT_FOUND,
        "expected /metrics, /healthz or /readyz\n",
    )
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

fn encoded(families: Vec<Family>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(families)));
    let mut out = String::new();
    encode(&mut out, &registry)?;
    Ok(out)
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let is_there =
            |family: &&Family| !family.samples.is_empty() || !family.histograms.is_empty();
        for family in self.0.iter().filter(is_there) {
            let kind = match family.is_counter {
                true => MetricType::Counter,
                false if !family.histograms.is_empty() => MetricType::Histogram,
                false => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for (labels, histogram) in &family.histograms {
                let labels = labels.as_slice();
                let mut sample = metric.encode_family(&labels)?;
                let Histogram {
                    sum,
                    count,
                    buckets,
                } = histogram;
                sample.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)?;
            }
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

#[cfg(test)]
mod tests {
    use std::io::{self, Read as _, Write as _};
    use std::net::TcpStream;
    use std::sync::atomic::AtomicUsize;

    use serde_json::Value;

    use super::*;
    use crate::live::Answer;

    /// A process whose metrics take as long as the test wants.
    #[derive(Default)]
    struct Slow {
        asked: AtomicUsize,
        goes_on: AtomicBool,
    }

    impl Tell for Slow {
        fn status(&self) -> Result<Value, String> {
            Ok(Value::Null)
        }

        fn metrics(&self) -> Result<Vec<Family>, String> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            while !self.goes_on.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(5));
            }
            Ok(Vec::new())
        }

        fn health(&self) -> Result<(), String> {
            Ok(())
        }

        fn readiness(&self) -> Result<(), String> {
            Ok(())
        }

        fn answer(&self, _: &Value, _: &mut Answer<'_>) -> io::Result<()> {
            Ok(())
        }
    }

    fn ask(address: SocketAddr, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it is read");
        stream
    }

    #[test]
    fn health_is_told_while_pages_of_metrics_take_long_and_clients_that_go_leave_no_work() {
        let endpoint = Endpoint::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let listener = endpoint.listener.as_ref().expect("it is not served yet");
        let address = listener.local_addr().expect("it is bound");
        let told = Arc::new(Slow::default());
        endpoint.serve(Arc::clone(&told)).expect("a thread");
        let pages: Vec<_> = (0..40).map(|_| ask(address, "/metrics")).collect();
        let end = Instant::now() + Duration::from_secs(30);
        while told.asked.load(Ordering::Relaxed) < MOST_PAGES {
            assert!(Instant::now() < end, "no page was begun");
            thread::sleep(Duration::from_millis(5));
        }
        for path in ["/healthz", "/readyz"] {
            let mut stream = ask(address, path);
            let patience = Some(Duration::from_secs(10));
            stream.set_read_timeout(patience).expect("a timeout");
            let mut said = String::new();
            stream.read_to_string(&mut said).expect("an answer");
            assert!(said.starts_with("HTTP/1.1 200"), "{path}: {said}");
        }
        drop(pages);
        // Long enough for the server to see that they have gone.
        thread::sleep(Duration::from_millis(500));
        told.goes_on.store(true, Ordering::Relaxed);
        let mut said = String::new();
        let page = ask(address, "/metrics").read_to_string(&mut said);
        assert!(
            page.is_ok() && said.starts_with("HTTP/1.1 200"),
            "{page:?}: {said}"
        );
        let asked = told.asked.load(Ordering::Relaxed);
        assert!(asked <= MOST_PAGES + 1, "{asked} pages were made");
    }
}
