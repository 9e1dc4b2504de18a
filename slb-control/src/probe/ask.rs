//! A single probe, and the evaluation of its answer.

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

/// The reason why a probe failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum ProbeFailure {
    /// There was no answer in time.
    Timeout(Duration),
    /// The connection failed.
    Connect(io::Error),
    /// The server does not speak TLS, or its certificate is not trusted.
    Tls(io::Error),
    /// The answer is not HTTP, or too long.
    Http(hyper::Error),
    /// The server answered with a status other than 200.
    Status(StatusCode),
    /// This node could not send the probe, for example because of too many open files, or for lack
    /// of an address or memory. This proves nothing about the backend.
    Own(io::Error),
}

impl ProbeFailure {
    /// Returns true if this node could not send the probe, so that the backend's health is unknown.
    pub fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }

    /// Makes the failure of a connection, caused by this node or by the backend.
    fn of_connecting(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) if OWN_ERRORS.contains(&number) => Self::Own(error),
            _ => Self::Connect(error),
        }
    }
}

const EADDRINUSE: i32 = 98;

/// Errors of a connection that this node causes: errno(3) of Linux. EPERM comes from a packet
/// filter.
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

/// Sends single probes to backends. Cheap to clone.
#[derive(Clone)]
pub struct Asker {
    /// The source addresses, one of each family.
    sources: Vec<IpAddr>,
    /// The interface for connections; `None` for the kernel's routes.
    device: Option<String>,
    /// The source ports of connections; `None` for the kernel's choice.
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

    /// Sends probes by an interface, regardless of the kernel's routes.
    pub(super) fn by_device(self, device: Option<&str>) -> Self {
        let device = device.map(str::to_owned);
        Self { device, ..self }
    }

    /// Sends probes from some ports in turn.
    pub(super) fn by_ports(self, ports: RangeInclusive<u16>) -> Self {
        let ports = Some(Arc::new(Ports::new(ports)));
        Self { ports, ..self }
    }

    /// Makes an asker that probes a host agent's vms through their ports.
    pub(super) fn through(vms: Vms) -> Self {
        Self {
            vms: Some(vms),
            ..Self::new(&[])
        }
    }

    /// Sends one probe. Call it within a tokio runtime.
    ///
    /// # Errors
    /// The reason why the probe failed.
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
            // The connection ends with a RST, so that no end keeps a TIME-WAIT state.
            let _: io::Result<()> = stream.set_zero_linger();
        }
        self.speak(stream, target).await
    }

    /// Sends the probe's request over the connection, and evaluates the answer.
    async fn speak<S>(&self, stream: S, target: &Target) -> Result<(), ProbeFailure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let probe = &target.probe;
        match probe.protocol {
            ProbeProtocol::Tcp => Ok(()), // the handshake suffices
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

/// Source ports of connections, used in turn.
struct Ports {
    all: RangeInclusive<u16>,
    turn: AtomicU32,
}

impl Ports {
    /// The maximum number of ports in use that are skipped for one connection.
    const MOST_IN_USE: u32 = 64;

    /// Starts with a random port, so that a restarted process uses other ports.
    fn new(all: RangeInclusive<u16>) -> Self {
        let turn = AtomicU32::new(RandomState::new().hash_one(0) as u32);
        Self { all, turn }
    }

    /// Binds a socket to an address and the next unused port.
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

/// Requests the path, and checks the status.
async fn get<S>(stream: S, target: &Target) -> Result<(), ProbeFailure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let probe = &target.probe;
    let mut host = probe.host.clone().unwrap_or_else(|| match target.address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    });
    // The `Host` header includes the port unless it is the scheme's default (RFC 9110 §7.2, §4.2).
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
    // The configuration's validation has checked the path and the host.
    let Ok(request) = request else {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "no path or host of HTTP");
        return Err(ProbeFailure::Connect(error));
    };
    let connection = http1::Builder::new()
        .max_buf_size(MOST_HEADERS)
        // The shortest header takes four bytes, so the buffer's size is the actual limit.
        .max_headers(MOST_HEADERS / 4)
        .handshake(TokioIo::new(stream));
    let (mut sender, connection) = connection.await.map_err(ProbeFailure::Http)?;
    let mut answer = pin!(sender.send_request(request));
    let mut connection = pin!(connection);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // The connection may end in any way; an earlier answer is still valid.
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
