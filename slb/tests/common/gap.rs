//! The time for which a service is away, by packets on the wire: a client asks by a datagram each millisecond, and
//! the longest time between two answers is the gap.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use slb_core::wire::ethernet::Ethernet;

use super::inside::inside;
use super::read;
use super::world::{Process, World};

pub const PORT: u16 = 7;
/// The time between two questions.
const PAUSE: Duration = Duration::from_millis(1);
/// Bytes of a socket's buffer: a thread that gets no CPU for a second loses nothing.
const BUFFER: usize = 8 << 20;

/// A server that answers each datagram by the same, until it is dropped.
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub fn start(world: &World, machine: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&stop);
        let thread = inside(world, machine, move || {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
            let patience = Some(Duration::from_millis(100));
            socket.set_read_timeout(patience).unwrap();
            set_socket_recv_buffer_size_force(&socket, BUFFER).unwrap();
            let mut datagram = [0; 64];
            while !ends.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut datagram) {
                    let _ = socket.send_to(&datagram[..len], from);
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The datagrams that a client sent and got.
#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    sent: AtomicUsize,
    got: AtomicUsize,
}

/// The longest time that the client waits for the last answers.
const LAST: Duration = Duration::from_secs(5);

/// A client that asks all the time, and a record of the packets.
pub struct Stream {
    counts: Arc<Counts>,
    asks: JoinHandle<()>,
    tcpdump: Process,
    file: PathBuf,
}

impl Stream {
    /// Begins to ask a VIP over IPv4; packets on an interface of a machine are recorded. Returns once answers come.
    pub fn begin(world: &World, client: &str, vip: &str, at: (&str, &str)) -> Self {
        let (machine, interface) = at;
        let file = world.path(&format!("gap-{machine}-{interface}.pcap"));
        let _ = std::fs::remove_file(&file);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &world.space(machine)]);
        command.args(["tcpdump", "-U", "-n", "-B", "8192", "-i", interface, "-w"]);
        command
            .arg(&file)
            .arg(format!("udp port {PORT} and host {vip}"));
        let tcpdump = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let tcpdump = Process(tcpdump.unwrap());
        let end = Instant::now() + Duration::from_secs(10);
        while !file.metadata().is_ok_and(|file| file.len() >= 24) {
            assert!(Instant::now() < end, "tcpdump does not listen");
            sleep(Duration::from_millis(20));
        }
        let counts = Arc::new(Counts::default());
        let own = Arc::clone(&counts);
        let to = SocketAddr::new(vip.parse::<IpAddr>().unwrap(), PORT);
        let asks = inside(world, client, move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            set_socket_recv_buffer_size_force(&socket, BUFFER).unwrap();
            socket.connect(to).unwrap();
            socket.set_nonblocking(true).unwrap();
            let mut datagram = [0; 64];
            let mut hear = || {
                // An error is about a datagram before.
                while socket.recv(&mut datagram).is_ok() {
                    own.got.fetch_add(1, Ordering::Relaxed);
                }
            };
            while !own.stop.load(Ordering::Relaxed) {
                if socket.send(b"gap").is_ok() {
                    own.sent.fetch_add(1, Ordering::Relaxed);
                }
                sleep(PAUSE);
                hear();
            }
            let end = Instant::now() + LAST;
            let all = own.sent.load(Ordering::Relaxed);
            while own.got.load(Ordering::Relaxed) < all && Instant::now() < end {
                sleep(PAUSE);
                hear();
            }
        });
        let stream = Self {
            counts,
            asks,
            tcpdump,
            file,
        };
        stream.wait_for(200);
        stream
    }

    /// Waits until so many more answers have come.
    pub fn wait_for(&self, more: usize) {
        let got = || self.counts.got.load(Ordering::Relaxed);
        let (begin, end) = (got(), Instant::now() + Duration::from_secs(30));
        while got() < begin + more {
            assert!(Instant::now() < end, "{} of {more} answers", got() - begin);
            sleep(Duration::from_millis(10));
        }
    }

    /// Ends it, and returns the time for which no answer came.
    pub fn end(self) -> Gap {
        self.counts.stop.store(true, Ordering::Relaxed);
        self.asks.join().unwrap();
        // Half a second without a packet more: tcpdump has written all.
        let mut len = 0;
        while std::mem::replace(&mut len, self.file.metadata().unwrap().len()) < len {
            sleep(Duration::from_millis(500));
        }
        self.tcpdump.signal("INT");
        let mut tcpdump = self.tcpdump;
        tcpdump.0.wait().unwrap();
        let (mut questions, mut answers) = (Vec::new(), Vec::new());
        for (time, frame) in read(&self.file) {
            let link = Ethernet::parse(&frame).unwrap();
            let ip = link.payload();
            let udp = &ip[usize::from(ip[0] & 15) * 4..];
            let from = u16::from_be_bytes([udp[0], udp[1]]);
            let times = if from == PORT {
                &mut answers
            } else {
                &mut questions
            };
            times.push(Duration::from_nanos(time.as_nanos()));
        }
        let longest = |times: &[Duration]| {
            let pauses = times.windows(2).map(|two| two[1].saturating_sub(two[0]));
            pauses.max().unwrap_or_default()
        };
        Gap {
            without_service: longest(&answers),
            without_questions: longest(&questions),
            questions: self.counts.sent.load(Ordering::Relaxed),
            answers: self.counts.got.load(Ordering::Relaxed),
        }
    }
}

/// The result of a record.
pub struct Gap {
    /// The longest time between two answers.
    pub without_service: Duration,
    /// The longest time between two questions: no answer could have come sooner.
    pub without_questions: Duration,
    /// Datagrams that the client sent and got.
    pub questions: usize,
    pub answers: usize,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} ms without service; {} of {} datagrams answered, {:.1} ms between two of them at most",
            self.without_service.as_secs_f64() * 1e3,
            self.answers,
            self.questions,
            self.without_questions.as_secs_f64() * 1e3
        )
    }
}
