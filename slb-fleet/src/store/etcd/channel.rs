//! gRPC calls over HTTP/2, to one member at a time.
//!
//! Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>. A message is a byte that says whether it
//! is compressed, four of length, and its bytes; the outcome is in trailers.

use std::error::Error;
use std::fmt;
use std::io::{self, Read as _};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{HeaderMap, Request};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use slb_control::open_file;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, CertificateError, ClientConfig, RootCertStore};

use super::super::StoreError;

/// The maximum time of a call of one member: three members are asked within the length of a lease.
const PATIENCE: Duration = Duration::from_secs(2);
/// The interval of pings on a connection with calls on it. etcd ends connections that are pinged
/// more often than every 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(6);
/// The longest message that is taken, in bytes: a page of the longest values.
const LONGEST_MESSAGE: usize = 20 << 20;

/// The addresses and credentials of the store.
#[derive(Clone)]
pub struct Access {
    members: Vec<Member>,
    tls: Option<TlsConnector>,
}

/// The reason why there is no access.
#[derive(Debug)]
#[non_exhaustive]
pub enum AccessError {
    /// The addresses of members cannot be read.
    Address(String),
    /// An address has a user's name, and perhaps a password, which is not repeated here.
    User,
    /// A file cannot be read.
    File(String, io::Error),
    /// A file holds no certificate or no key.
    Pem(String),
    /// The certificates do not fit.
    Tls(String),
}

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(got) => write!(
                f,
                "expected http://HOST:PORT or https://HOST:PORT, all of one kind, got {got:?}"
            ),
            Self::User => f.write_str(
                "expected http://HOST:PORT or https://HOST:PORT, got one with a user's name: etcd knows a user by the \
                 certificate",
            ),
            Self::File(path, error) => write!(f, "{path}: cannot be read: {error}"),
            Self::Pem(path) => write!(f, "{path}: expected certificates or a key in PEM"),
            Self::Tls(why) => write!(f, "TLS: {why}"),
        }
    }
}

impl Error for AccessError {}

/// A member of the store.
#[derive(Clone, Debug)]
struct Member {
    host: String,
    port: u16,
}

impl Member {
    fn read(url: &str) -> Option<(bool, Self)> {
        let (scheme, rest) = url.split_once("://")?;
        let is_tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = port.parse().ok().filter(|&port| port != 0)?;
        if host.is_empty() || host.contains(['/', '?', '#', ' ']) {
            return None;
        }
        let host = host.to_owned();
        Some((is_tls, Self { host, port }))
    }
}

/// Files that identify the client, and whom it trusts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Certificates<'p> {
    /// The authority that vouches for the members.
    pub authority: &'p str,
    /// The client's certificate, and those that vouch for it.
    pub certificate: &'p str,
    /// The key of the client's certificate.
    pub key: &'p str,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("members", &self.members)
            .field("tls", &self.tls.is_some())
            .finish()
    }
}

impl Access {
    /// Access to members at `http://HOST:PORT`, or at `https://HOST:PORT` with certificates.
    ///
    /// # Errors
    /// An address is not of that form, or TLS has no certificates.
    pub fn new(
        urls: &[impl AsRef<str>],
        certificates: Option<Certificates<'_>>,
    ) -> Result<Self, AccessError> {
        let mut members = Vec::new();
        let mut kinds = Vec::new();
        for url in urls {
            let url = url.as_ref();
            if url.contains('@') {
                return Err(AccessError::User);
            }
            let (is_tls, member) =
                Member::read(url).ok_or_else(|| AccessError::Address(url.to_owned()))?;
            if kinds.first().is_some_and(|&first| first != is_tls) {
                return Err(AccessError::Address(url.to_owned()));
            }
            kinds.push(is_tls);
            members.push(member);
        }
        let is_tls = *kinds
            .first()
            .ok_or_else(|| AccessError::Address(String::new()))?;
        let tls = match (is_tls, certificates) {
            (false, None) => None,
            (true, Some(files)) => Some(connector(files)?),
            (true, None) => {
                let why = "https needs an authority, a certificate and a key";
                return Err(AccessError::Tls(why.to_owned()));
            }
            (false, Some(_)) => {
                let why = "certificates are for https";
                return Err(AccessError::Tls(why.to_owned()));
            }
        };
        Ok(Self { members, tls })
    }
}

fn connector(files: Certificates<'_>) -> Result<TlsConnector, AccessError> {
    let read = |path: &str| {
        let mut bytes = Vec::new();
        let read = open_file(path).and_then(|mut file| file.read_to_end(&mut bytes));
        read.map_err(|error| AccessError::File(path.into(), error))?;
        Ok(bytes)
    };
    let certificates = |path: &str| {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
        let all = all.map_err(|_| AccessError::Pem(path.to_owned()))?;
        match all.is_empty() {
            true => Err(AccessError::Pem(path.to_owned())),
            false => Ok(all),
        }
    };
    let failed = |error: &dyn fmt::Display| AccessError::Tls(error.to_string());
    let mut roots = RootCertStore::empty();
    for authority in certificates(files.authority)? {
        roots.add(authority).map_err(|error| failed(&error))?;
    }
    let key = PrivateKeyDer::from_pem_slice(&read(files.key)?);
    let key = key.map_err(|_| AccessError::Pem(files.key.to_owned()))?;
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(files.certificate)?, key)
        .map_err(|error| failed(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// One message, after which the request ends, or stays open until its other end goes.
pub(super) struct Outgoing {
    message: Option<Bytes>,
    open: Option<oneshot::Receiver<()>>,
}

impl Outgoing {
    fn new(message: &[u8], open: Option<oneshot::Receiver<()>>) -> Self {
        let mut framed = Vec::with_capacity(5 + message.len());
        framed.push(0); // not compressed
        framed.extend_from_slice(&(message.len() as u32).to_be_bytes()); // at most a transaction's
        framed.extend_from_slice(message);
        let message = Some(framed.into());
        Self { message, open }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(message) = self.message.take() {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        match &mut self.open {
            Some(open) => Pin::new(open).poll(context).map(|_| None),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_none() && self.open.is_none()
    }
}

/// The connection to one of the members.
pub(super) struct Channel {
    access: Access,
    /// True once a member has answered: then it is not the certificates that a connection ends for.
    has_answered: AtomicBool,
    present: Mutex<Present>,
}

/// The member in use, and the connection to it, if there is one.
#[derive(Default)]
struct Present {
    member: usize,
    connection: Option<SendRequest<Outgoing>>,
    /// Counts the connections that were given up.
    given_up: u64,
}

impl Channel {
    pub(super) fn new(access: Access) -> Self {
        Self {
            access,
            has_answered: AtomicBool::new(false),
            present: Mutex::default(),
        }
    }

    /// One message for one message. Each member is asked once, until one answers.
    pub(super) async fn call(
        &self,
        path: &'static str,
        message: &[u8],
    ) -> Result<Vec<u8>, StoreError> {
        let one = |answer: Messages| async move {
            let mut answer = answer;
            let first = answer.next().await?;
            let none = StoreError::Malformed("an answer without a message");
            let first = first.ok_or(none)?;
            // The outcome comes last.
            answer.next().await?;
            Ok(first)
        };
        self.try_members(path, || Outgoing::new(message, None), one)
            .await
    }

    /// One message for many, as long as the other end of `open` is there.
    pub(super) async fn open(
        &self,
        path: &'static str,
        message: &[u8],
        open: oneshot::Receiver<()>,
    ) -> Result<Messages, StoreError> {
        let mut open = Some(open);
        // After the first member, the request ends at once: the caller asks again.
        let outgoing = || Outgoing::new(message, open.take());
        self.try_once(path, outgoing, |answer| async { Ok(answer) })
            .await
    }

    async fn try_members<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        path: &'static str,
        outgoing: impl Fn() -> Outgoing,
        read: impl Fn(Messages) -> F,
    ) -> Result<T, StoreError> {
        let mut result = Err(StoreError::Away(String::new()));
        for _ in 0..self.access.members.len() {
            result = self.try_once(path, &outgoing, &read).await;
            if !matches!(result, Err(StoreError::Away(_))) {
                return result;
            }
        }
        result
    }

    async fn try_once<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        path: &'static str,
        outgoing: impl FnOnce() -> Outgoing,
        read: impl FnOnce(Messages) -> F,
    ) -> Result<T, StoreError> {
        let (given_up, name) = {
            let present = self.present.lock().await;
            let member = &self.access.members[present.member % self.access.members.len()];
            let name = format!("{}:{}", member.host, member.port);
            (present.given_up, name)
        };
        let tried = async {
            let mut connection = self.connection().await?;
            let request = Request::post(format!("http://{name}{path}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                // A member without a leader ends what it cannot serve, instead of letting it wait.
                .header("hasleader", "true")
                .body(outgoing());
            let request = request.map_err(|_| StoreError::Malformed("a member's address"))?;
            let failed = |error: hyper::Error| self.failed(&name, &error);
            connection.ready().await.map_err(failed)?;
            let sent = connection.send_request(request).await;
            let response = sent.map_err(failed)?;
            self.has_answered.store(true, Ordering::Relaxed);
            if !response.status().is_success() {
                let status = response.status();
                return Err(StoreError::Away(format!("{name}: HTTP status {status}")));
            }
            if let Some(error) = outcome(response.headers()) {
                return Err(error);
            }
            let messages = Messages {
                body: response.into_body(),
                buffer: Vec::new(),
            };
            read(messages).await
        };
        let result = match timeout(PATIENCE, tried).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::Away(format!("{name}: no answer"))),
        };
        if let Err(StoreError::Away(why)) = result {
            let mut present = self.present.lock().await;
            if present.given_up == given_up {
                present.given_up += 1;
                present.member = (present.member + 1) % self.access.members.len();
                present.connection = None;
            }
            return Err(StoreError::Away(why));
        }
        result
    }

    async fn connection(&self) -> Result<SendRequest<Outgoing>, StoreError> {
        let mut present = self.present.lock().await;
        if let Some(connection) = &present.connection
            && !connection.is_closed()
        {
            return Ok(connection.clone());
        }
        let member = &self.access.members[present.member % self.access.members.len()];
        let at = |error: &dyn fmt::Display| {
            StoreError::Away(format!("{}:{}: {error}", member.host, member.port))
        };
        let name = format!("{}:{}", member.host, member.port);
        let failed = |error: hyper::Error| self.failed(&name, &error);
        let stream = TcpStream::connect((member.host.as_str(), member.port)).await;
        let stream = stream.map_err(|error| at(&error))?;
        // Small messages wait for nobody.
        let _ = stream.set_nodelay(true);
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(PATIENCE);
        let sender = match &self.access.tls {
            None => {
                let made = builder.handshake(TokioIo::new(stream)).await;
                let (sender, connection) = made.map_err(failed)?;
                tokio::spawn(connection);
                sender
            }
            Some(tls) => {
                let name = ServerName::try_from(member.host.clone());
                let name = name.map_err(|error| at(&error))?;
                let stream = tls.connect(name, stream).await;
                let stream = stream.map_err(|error| match tls_fault(&error) {
                    Some(fault) => at(&fault),
                    None => at(&error),
                })?;
                let made = builder.handshake(TokioIo::new(stream)).await;
                let (sender, connection) = made.map_err(failed)?;
                tokio::spawn(connection);
                sender
            }
        };
        present.connection = Some(sender.clone());
        Ok(sender)
    }
}

impl Channel {
    /// The fault of a connection to a member.
    fn failed(&self, name: &str, error: &hyper::Error) -> StoreError {
        let StoreError::Away(why) = away(error) else {
            return away(error);
        };
        let is_tls = self.access.tls.is_some();
        if let Some(refusal) = refusal(&why).filter(|_| is_tls) {
            return StoreError::Away(format!("{name}: {refusal}"));
        }
        if self.has_answered.load(Ordering::Relaxed) {
            return StoreError::Away(format!("{name}: {why}"));
        }
        // With TLS 1.3, a server refuses a client after the handshake has ended for the client, and HTTP/2 only tells
        // that the connection is gone.
        let hint = match is_tls {
            true => " (perhaps it refuses the certificate of --fleet-cert)",
            false => " (a member that expects TLS has an address that begins with https)",
        };
        StoreError::Away(format!("{name}: {why}{hint}"))
    }
}

/// Returns in words what a TLS alert says of the client's certificate; `None` if it is about something else. `text`
/// names the alert.
///
/// Source: RFC 8446 §6.2.
fn refusal(text: &str) -> Option<String> {
    const ALERTS: [&str; 8] = [
        "AccessDenied",
        "BadCertificate",
        "CertificateExpired",
        "CertificateRequired",
        "CertificateRevoked",
        "CertificateUnknown",
        "DecryptError",
        "UnknownCA",
    ];
    let alert = ALERTS.iter().find(|alert| text.contains(**alert))?;
    Some(match *alert {
        "CertificateExpired" => {
            "it says that the certificate of --fleet-cert has expired".to_owned()
        }
        other => format!("it refuses the certificate of --fleet-cert ({other})"),
    })
}

/// Says in words of the options which certificate is at fault; `None` if it is none.
fn tls_fault(error: &io::Error) -> Option<String> {
    let fault = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match fault {
        rustls::Error::InvalidCertificate(why) => match why {
            // An authority of the same name has another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is of another authority than --fleet-ca".to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is not for this name or address: it has to be a subjectAltName".to_owned()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired, or this machine's clock is wrong".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet, or this machine's clock is wrong".to_owned()
            }
            _ => format!("its certificate is not accepted: {fault}"),
        },
        rustls::Error::AlertReceived(alert) => {
            let alert = format!("{alert:?}");
            refusal(&alert).unwrap_or_else(|| format!("TLS: it ended the connection: {alert}"))
        }
        rustls::Error::InvalidMessage(_) => {
            "it does not speak TLS there: expected an address that begins with http, or another port".to_owned()
        }
        _ => format!("TLS: {fault}"),
    })
}

fn away(error: &hyper::Error) -> StoreError {
    let cause = Error::source(error);
    let cause = cause.map_or_else(String::new, |cause| format!(": {cause}"));
    StoreError::Away(format!("{error}{cause}"))
}

/// The messages of an answer.
pub(super) struct Messages {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Messages {
    /// The next message; `None` if the answer ended well.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            match frame.map_err(|error| away(&error))?.into_data() {
                Ok(data) => self.buffer.extend_from_slice(&data),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return outcome(&trailers).map_or(Ok(None), Err);
                }
            }
        }
    }

    /// A whole message, if there is one. Its length is looked at before its bytes are waited for.
    fn take(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        let Some((head, rest)) = self.buffer.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let [compressed, len @ ..] = *head;
        if compressed != 0 {
            return Err(StoreError::Malformed("a compressed message"));
        }
        let len = u32::from_be_bytes(len) as usize;
        if len > LONGEST_MESSAGE {
            return Err(StoreError::Malformed("a message that is too long"));
        }
        if rest.len() < len {
            return Ok(None);
        }
        let message = rest[..len].to_vec();
        self.buffer.drain(..5 + len);
        Ok(Some(message))
    }
}

/// Returns the error that trailers report, if there is one.
///
/// Source: the status codes at <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>.
fn outcome(headers: &HeaderMap) -> Option<StoreError> {
    let code = headers.get("grpc-status")?.to_str().ok()?;
    let why = headers.get("grpc-message");
    let why = why.and_then(|why| why.to_str().ok()).unwrap_or_default();
    let why = why.to_owned();
    Some(match code {
        "0" => return None,
        "5" if why.contains("lease") => StoreError::LeaseEnded,
        "7" | "16" => StoreError::Denied(why),
        // Canceled, deadline exceeded, resources exhausted, aborted, internal, unavailable.
        "1" | "4" | "8" | "10" | "13" | "14" => StoreError::Away(why),
        "11" if why.contains("compacted") => StoreError::Compacted,
        // Without a user's token or certificate, where the store asks for one.
        "3" if why.contains("user name is empty") => StoreError::Denied(why),
        _ => StoreError::Refused(why),
    })
}
