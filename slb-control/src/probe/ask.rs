//! A single probe, and the verdict on its answer.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::vms::{VmStream, Vms};
use super::{Target, tls};
use crate::config::ProbeProtocol;

/// Limit on the headers of an answer, in bytes.
const MOST_HEADERS: usize = 16 << 10;

/// Why an answer is none, or not a good one.
#[derive(Debug)]
#[non_exhaustive]
pub enum ProbeFailure {
    /// Nothing came in time.
    Timeout(Duration),
    /// There is no connection to be had.
    Connect(io::Error),
    /// The server does not speak TLS, or its certificate is not trusted.
    Tls(io::Error),
    /// The answer is no HTTP, or too long.
    Http(hyper::Error),
    /// The server answered by HTTP, and not 200.
    Status(StatusCode),
    /// This node could not ask: too many files are open, an address or memory is missing. Says nothing about
    /// the backend.
    Own(io::Error),
}

impl ProbeFailure {
    /// Returns true if this node could not send the probe, so that the backend's health is unknown.
    pub fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }

    /// No connection, by the fault of the node or of the backend.
    fn of_connecting(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) if OWN_ERRORS.contains(&number) => Self::Own(error),
            _ => Self::Connect(error),
        }
    }
}

const EADDRINUSE: i32 = 98;

/// Errors of a connection that are this node's own: errno(3) of Linux. EPERM is a packet filter's here.
const OWN_ERRORS: [i32; 10] = [
    1,  // EPERM
    12, // ENOMEM
    23, // ENFILE
    24, // EMFILE
    93, // EPROTONOSUPPORT
    97, // EAFNOSUPPORT
    EADDRINUSE, 99,  // EADDRNOTAVAIL
    100, // ENETDOWN
    105, // ENOBUFS
];

impl fmt::Display for ProbeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout(after) => write!(f, "no answer within {after:?}"),
            Self::Connect(error) => write!(f, "no connection: {error}"),
            Self::Tls(error) => write!(f, "no TLS: {error}"),
            Self::Http(error) => write!(f, "no HTTP: {error}"),
            Self::Status(status) => write!(f, "expected 200, got {status}"),
            Self::Own(error) => write!(f, "this node cannot probe: {error}"),
        }
    }
}

impl std::error::Error for ProbeFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect(error) | Self::Tls(error) | Self::Own(error) => Some(error),
            Self::Http(error) => Some(error),
            Self::Timeout(_) | Self::Status(_) => None,
        }
    }
}

/// Asks backends. Cheap to clone.
#[derive(Clone)]
pub struct Asker {
    /// The addresses to ask from, one of each family.
    sources: Vec<IpAddr>,
    /// The interface that connections go out by; `None`: as the kernel routes them.
    device: Option<String>,
    /// The ports that connections come from; `None`: as the kernel chooses them.
    ports: Option<Arc<Ports>>,
    /// The way to the vms of a host agent; other roles have none.
    vms: Option<Vms>,
    checked: TlsConnector,
    unchecked: TlsConnector,
}

impl Asker {
    /// Makes an asker that probes from one of `sources` of the target's family, or else from the
    /// address that the kernel chooses.
    pub fn new(sources: &[IpAddr]) -> Self {
        Self {
            sources: sources.to_vec(),
            device: None,
            ports: None,
            vms: None,
            checked: TlsConnector::from(Arc::new(tls::checked())),
            unchecked: TlsConnector::from(Arc::new(tls::unchecked())),
        }
    }

    /// Sends probes by an interface, whatever the kernel's routes choose.
    pub(super) fn by_device(self, device: Option<&str>) -> Self {
        let device = device.map(str::to_owned);
        Self { device, ..self }
    }

    /// Sends probes from some ports, each in its turn.
    pub(super) fn by_ports(self, ports: RangeInclusive<u16>) -> Self {
        let ports = Some(Arc::new(Ports::new(ports)));
        Self { ports, ..self }
    }

    /// Asks as a host agent does, which has a way to its vms of its own.
    pub(super) fn through(vms: Vms) -> Self {
        Self {
            vms: Some(vms),
            ..Self::new(&[])
        }
    }

    /// Asks once. To be called within a tokio runtime.
    ///
    /// # Errors
    /// It is not well, and why.
    pub async fn ask(&self, target: &Target) -> Result<(), ProbeFailure> {
        let most = target.probe.timeout;
        let answer = timeout(most, self.converse(target)).await;
        answer.unwrap_or(Err(ProbeFailure::Timeout(most)))
    }

    async fn converse(&self, target: &Target) -> Result<(), ProbeFailure> {
        let to = SocketAddr::new(target.address, target.probe.port);
        if let (Some(vm), Some(vms)) = (target.vm, &self.vms) {
            let stream: io::Result<VmStream> = vms.connect(vm, to).await;
            return self
                .speak(stream.map_err(ProbeFailure::Connect)?, target)
                .await;
        }
        let stream = self.connect(target).await;
        let stream = stream.map_err(ProbeFailure::of_connecting)?;
        if target.probe.protocol == ProbeProtocol::Tcp {
            // It ends with a RST: no TIME-WAIT is kept for it at either end.
            let _: io::Result<()> = stream.set_zero_linger();
        }
        self.speak(stream, target).await
    }

    /// Sends the probe's request over the connection, and judges the answer.
    async fn speak<S>(&self, stream: S, target: &Target) -> Result<(), ProbeFailure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let probe = &target.probe;
        match probe.protocol {
            ProbeProtocol::Tcp => Ok(()), // the handshake is all
            ProbeProtocol::Http => get(stream, target).await,
            ProbeProtocol::Https => {
                let connector = match probe.verify_certificate {
                    true => &self.checked,
                    false => &self.unchecked,
                };
                let name = match &probe.host {
                    Some(host) => ServerName::try_from(host.clone()),
                    None => Ok(ServerName::from(target.address)),
                };
                let name = name.map_err(|error| ProbeFailure::Tls(io::Error::other(error)))?;
                let stream = connector.connect(name, stream).await;
                get(stream.map_err(ProbeFailure::Tls)?, target).await
            }
        }
    }

    async fn connect(&self, target: &Target) -> io::Result<TcpStream> {
        let socket = match target.address {
            IpAddr::V4(_) => TcpSocket::new_v4()?,
            IpAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(device) = &self.device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        let is_ipv4 = target.address.is_ipv4();
        let mut sources = self.sources.iter();
        let source = sources.find(|source| source.is_ipv4() == is_ipv4);
        match (&self.ports, source) {
            (Some(ports), source) => {
                let any: IpAddr = match is_ipv4 {
                    true => Ipv4Addr::UNSPECIFIED.into(),
                    false => Ipv6Addr::UNSPECIFIED.into(),
                };
                ports.bind(&socket, *source.unwrap_or(&any))?;
            }
            (None, Some(&source)) => socket.bind(SocketAddr::new(source, 0))?,
            (None, None) => {}
        }
        socket
            .connect(SocketAddr::new(target.address, target.probe.port))
            .await
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker")
            .field("sources", &self.sources)
            .finish_non_exhaustive()
    }
}

/// Ports that connections come from, each in its turn.
struct Ports {
    all: RangeInclusive<u16>,
    turn: AtomicU32,
}

impl Ports {
    /// Ports that are in use by others, and passed over for one connection.
    const MOST_IN_USE: u32 = 64;

    /// The first turn is any port's, so that a process that was started again calls from others.
    fn new(all: RangeInclusive<u16>) -> Self {
        let turn = AtomicU32::new(RandomState::new().hash_one(0) as u32);
        Self { all, turn }
    }

    /// Binds a socket to an address and the next port that nobody uses.
    fn bind(&self, socket: &TcpSocket, address: IpAddr) -> io::Result<()> {
        let count = u32::from(self.all.end() - self.all.start()) + 1;
        for _ in 0..Self::MOST_IN_USE {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % count;
            let port = self.all.start() + turn as u16; // turn is below the number of ports
            match socket.bind(SocketAddr::new(address, port)) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                bound => return bound,
            }
        }
        Err(io::Error::from_raw_os_error(EADDRINUSE))
    }
}

/// Asks for the path, and looks at the status.
async fn get<S>(stream: S, target: &Target) -> Result<(), ProbeFailure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let probe = &target.probe;
    let mut host = probe.host.clone().unwrap_or_else(|| match target.address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    });
    // A port that is not the scheme's own is part of it (RFC 9110 §7.2, §4.2).
    let usual = match probe.protocol {
        ProbeProtocol::Https => 443,
        ProbeProtocol::Http | ProbeProtocol::Tcp => 80,
    };
    if probe.port != usual {
        host += &format!(":{}", probe.port);
    }
    let request = Request::get(probe.path.as_str())
        .header("host", host)
        .header("user-agent", concat!("slb/", env!("CARGO_PKG_VERSION")))
        .header("connection", "close")
        .body(Empty::<Bytes>::new());
    // The configuration was checked: what can be wrong with a path or a host, it says.
    let Ok(request) = request else {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "no path or host of HTTP");
        return Err(ProbeFailure::Connect(error));
    };
    let connection = http1::Builder::new()
        .max_buf_size(MOST_HEADERS)
        // The shortest takes four bytes: what the buffer holds is what bounds them.
        .max_headers(MOST_HEADERS / 4)
        .handshake(TokioIo::new(stream));
    let (mut sender, connection) = connection.await.map_err(ProbeFailure::Http)?;
    let mut answer = pin!(sender.send_request(request));
    let mut connection = pin!(connection);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // However it ended: what came before is an answer.
        _ = &mut connection => answer.await,
    };
    match answer.map_err(ProbeFailure::Http)?.status() {
        StatusCode::OK => Ok(()),
        status => Err(ProbeFailure::Status(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_node_lacks_is_its_own_failure_and_no_backends() {
        // EMFILE, ENFILE, ENOMEM, EAFNOSUPPORT, EADDRNOTAVAIL, EADDRINUSE, ENOBUFS (errno(3)).
        for number in [24, 23, 12, 97, 99, 98, 105] {
            let failure = ProbeFailure::of_connecting(io::Error::from_raw_os_error(number));
            assert!(failure.is_own(), "{failure}");
        }
        // ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, ECONNRESET.
        for number in [111, 110, 113, 104] {
            let failure = ProbeFailure::of_connecting(io::Error::from_raw_os_error(number));
            assert!(!failure.is_own(), "{failure}");
        }
    }

    #[test]
    fn connections_come_from_the_ports_in_their_turn() {
        let bind = |ports: &Ports| {
            let socket = TcpSocket::new_v4().expect("a socket");
            ports.bind(&socket, Ipv4Addr::LOCALHOST.into())?;
            let port = socket.local_addr().expect("it is bound").port();
            Ok::<_, io::Error>((socket, port))
        };
        let ports = Ports::new(crate::probe::CALLER_PORTS);
        let all: Vec<_> = (0..20)
            .map(|_| bind(&ports).expect("one is free"))
            .collect();
        let mut seen: Vec<u16> = all.iter().map(|(_, port)| *port).collect();
        assert!(
            seen.iter()
                .all(|port| crate::probe::CALLER_PORTS.contains(port))
        );
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 20);
        // Where all are in use, that is the node's own failure.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let taken = taken.local_addr().expect("it is bound").port();
        let error = bind(&Ports::new(taken..=taken))
            .map(|_| ())
            .expect_err("it is in use");
        assert!(ProbeFailure::of_connecting(error).is_own());
    }
}
