//! A machine at the edge of the world: smoltcp's TCP, UDP and ICMP, and what runs on it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{self, State};
use smoltcp::socket::udp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr, IpEndpoint};

/// Packets on their way in and out of a stack.
#[derive(Default)]
struct Wire {
    inbox: VecDeque<Vec<u8>>,
    outbox: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);
struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl phy::Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let packet = self.inbox.pop_front()?;
        Some((Received(packet), Sending(&mut self.outbox)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip; // checksums: all computed, all verified
        capabilities.max_transmission_unit = 1400;
        capabilities
    }
}

/// The outcome of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    UnderWay,
    /// All that was sent came back, and both sides closed.
    Finished,
    /// The connection ended early, or returned other data than it was sent.
    Broken,
}

struct Client {
    socket: SocketHandle,
    to_send: usize,
    sent: usize,
    received: usize,
    seed: u8,
    /// Stays open when all is done.
    lingers: bool,
    outcome: Outcome,
}

/// A client's questions to one server, a datagram each, and its answers: one after the other.
struct Talk {
    socket: SocketHandle,
    to: IpEndpoint,
    is_quic: bool,
    /// Questions to ask, and those that were answered.
    wanted: u8,
    answered: u8,
    /// When the present question was asked last, in milliseconds.
    asked: Option<i64>,
    /// The server that answered first.
    home: Option<u8>,
    outcome: Outcome,
}

impl Talk {
    /// The first bytes of a question: of QUIC a long header of type Initial until the first answer, then a
    /// short one (RFC 9000 §17).
    fn question(&self) -> Vec<u8> {
        let mut question = match (self.is_quic, self.home) {
            (true, None) => vec![0xc0, 0, 0, 0, 1],
            (true, Some(_)) => vec![0x40, 0, 0, 0, 0],
            (false, _) => vec![0; 5],
        };
        question.push(self.answered);
        question
    }
}

/// A server of datagrams: it answers with its number, and over QUIC resets what it knows nothing of.
struct Answerer {
    socket: SocketHandle,
    number: u8,
    is_quic: bool,
    known: HashSet<IpEndpoint>,
}

/// Stands for a server's number in a reset.
const RESET: u8 = 0xff;
/// A question that is not answered is asked again after so many milliseconds.
const AGAIN: i64 = 200;

/// Returns the byte that a client sends, and gets back, at a place.
fn payload(seed: u8, place: usize) -> u8 {
    (place as u8).wrapping_mul(31) ^ (place >> 8) as u8 ^ seed
}

pub struct Stack {
    interface: Interface,
    wire: Wire,
    sockets: SocketSet<'static>,
    clients: Vec<Client>,
    talks: Vec<Talk>,
    answerers: Vec<Answerer>,
    /// Ports that are served, and sockets that wait there.
    listening: Vec<(u16, SocketHandle)>,
    serving: Vec<SocketHandle>,
    /// The peers that the server served, as it saw them.
    pub peers: HashMap<SocketAddr, u32>,
    /// The server's addresses that peers asked for.
    pub asked: HashMap<SocketAddr, u32>,
    first_port: u16,
    next_port: u16,
}

const SERVERS_AT_ONCE: usize = 16;

impl Stack {
    pub fn new(addresses: &[IpAddr], seed: u64) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|list| {
            for &address in addresses {
                let bits = if address.is_ipv4() { 32 } else { 128 };
                list.push(IpCidr::new(address.into(), bits)).unwrap();
            }
        });
        for &address in addresses {
            let _ = match address {
                IpAddr::V4(address) => interface.routes_mut().add_default_ipv4_route(address),
                IpAddr::V6(address) => interface.routes_mut().add_default_ipv6_route(address),
            };
        }
        let first_port = 20_000 + (seed % 10_000) as u16;
        Self {
            interface,
            wire,
            sockets: SocketSet::new(Vec::new()),
            clients: Vec::new(),
            talks: Vec::new(),
            answerers: Vec::new(),
            listening: Vec::new(),
            serving: Vec::new(),
            peers: HashMap::new(),
            asked: HashMap::new(),
            first_port,
            next_port: first_port,
        }
    }

    fn socket() -> tcp::Socket<'static> {
        let buffer = || tcp::SocketBuffer::new(vec![0; 8192]);
        tcp::Socket::new(buffer(), buffer())
    }

    /// Echoes what comes to a port.
    pub fn serve(&mut self, port: u16) {
        for _ in 0..SERVERS_AT_ONCE {
            let mut socket = Self::socket();
            socket.listen(port).unwrap();
            let handle = self.sockets.add(socket);
            self.listening.push((port, handle));
        }
    }

    /// Opens a connection, sends so many bytes, and expects them back.
    pub fn connect(&mut self, to: SocketAddr, bytes: usize, lingers: bool) -> usize {
        let mut socket = Self::socket();
        self.next_port = if self.next_port >= 60_000 {
            20_000
        } else {
            self.next_port + 1
        };
        let remote = IpEndpoint::new(to.ip().into(), to.port());
        socket
            .connect(self.interface.context(), remote, self.next_port)
            .unwrap();
        let client = Client {
            socket: self.sockets.add(socket),
            to_send: bytes,
            sent: 0,
            received: 0,
            seed: self.next_port as u8,
            lingers,
            outcome: Outcome::UnderWay,
        };
        self.clients.push(client);
        self.clients.len() - 1
    }

    /// Forgets all connections that it opened; the next ones have the same ports.
    pub fn use_ports_again(&mut self) {
        for client in self.clients.drain(..) {
            self.sockets.remove(client.socket);
        }
        self.next_port = self.first_port;
    }

    fn datagram_socket(&mut self, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 4096]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    /// Answers datagrams at a port, under a number.
    pub fn answer(&mut self, port: u16, number: u8, is_quic: bool) {
        let socket = self.datagram_socket(port);
        self.answerers.push(Answerer {
            socket,
            number,
            is_quic,
            known: HashSet::new(),
        });
    }

    /// Asks one question by datagram, and more when it is told to.
    pub fn talk(&mut self, to: SocketAddr, is_quic: bool) {
        self.next_port += 1;
        let socket = self.datagram_socket(self.next_port);
        self.talks.push(Talk {
            socket,
            to: IpEndpoint::new(to.ip().into(), to.port()),
            is_quic,
            wanted: 1,
            answered: 0,
            asked: None,
            home: None,
            outcome: Outcome::UnderWay,
        });
    }

    pub fn outcome(&self, client: usize) -> Outcome {
        self.clients[client].outcome
    }

    pub fn state(&self, client: usize) -> State {
        self.sockets
            .get::<tcp::Socket<'_>>(self.clients[client].socket)
            .state()
    }

    pub fn outcomes(&self) -> impl Iterator<Item = Outcome> + '_ {
        let talks = self.talks.iter().map(|talk| match talk.outcome {
            // One that has asked all may be told to ask more.
            Outcome::UnderWay if talk.answered == talk.wanted => Outcome::Finished,
            outcome => outcome,
        });
        let clients = self.clients.iter().map(|client| client.outcome);
        clients.chain(talks)
    }

    /// Returns true if a client got back all that it sent.
    pub fn has_all(&self, client: usize) -> bool {
        self.clients[client].received == self.clients[client].to_send
    }

    /// Has a client send more.
    pub fn send_more(&mut self, client: usize, bytes: usize) {
        self.clients[client].to_send += bytes;
    }

    /// Has all clients send so many bytes more, and stay.
    pub fn all_send_more(&mut self, bytes: usize) {
        for client in &mut self.clients {
            client.to_send += bytes;
        }
        self.ask_more(1);
    }

    /// Has all that talk ask so many questions more.
    pub fn ask_more(&mut self, questions: u8) {
        for talk in &mut self.talks {
            talk.wanted += questions;
        }
    }

    /// Has all clients send so many bytes more, and close when they have them back.
    pub fn finish_with(&mut self, bytes: usize) {
        let under_way = self.clients.iter_mut();
        for client in under_way.filter(|client| client.outcome == Outcome::UnderWay) {
            client.to_send += bytes;
            client.lingers = false;
        }
    }

    /// Connections that are open, seen from the side that serves.
    pub fn served_now(&self) -> usize {
        let open = |handle: &&SocketHandle| {
            self.sockets.get::<tcp::Socket<'_>>(**handle).state() == State::Established
        };
        self.serving.iter().filter(open).count()
    }

    pub fn deliver(&mut self, packet: Vec<u8>) {
        if !self.is_repeated_syn(&packet) {
            self.wire.inbox.push_back(packet);
        }
    }

    /// A SYN that was doubled on its way could open a second socket for the same connection:
    /// smoltcp's sockets do not know of each other.
    fn is_repeated_syn(&self, packet: &[u8]) -> bool {
        let Ok(sliced) = etherparse::SlicedPacket::from_ip(packet) else {
            return false;
        };
        let (Some(net), Some(etherparse::TransportSlice::Tcp(tcp))) =
            (&sliced.net, &sliced.transport)
        else {
            return false;
        };
        let source = match net {
            etherparse::NetSlice::Ipv4(ip) => ip.header().source_addr().into(),
            etherparse::NetSlice::Ipv6(ip) => ip.header().source_addr().into(),
            _ => return false,
        };
        let remote = IpEndpoint::new(IpAddr::into(source), tcp.source_port());
        let waiting = self.listening.iter().map(|&(_, handle)| handle);
        tcp.syn()
            && !tcp.ack()
            && waiting.chain(self.serving.iter().copied()).any(|handle| {
                let socket = self.sockets.get::<tcp::Socket<'_>>(handle);
                socket.remote_endpoint() == Some(remote)
                    && socket.local_endpoint().map(|e| e.port) == Some(tcp.destination_port())
            })
    }

    /// Lets the stack and what runs on it do what they do; returns the packets that they sent.
    pub fn run(&mut self, millis: i64) -> Vec<Vec<u8>> {
        let now = Instant::from_millis(millis);
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        self.run_servers();
        self.run_clients();
        self.run_answerers();
        self.run_talks(millis);
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        std::mem::take(&mut self.wire.outbox)
    }

    fn run_servers(&mut self) {
        for place in 0..self.listening.len() {
            let (port, handle) = self.listening[place];
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
            if socket.state() == State::Listen {
                continue;
            }
            if socket.state() == State::SynReceived {
                continue; // may fall back to listening
            }
            let place_of =
                |endpoint: IpEndpoint| SocketAddr::new(endpoint.addr.into(), endpoint.port);
            if let (Some(remote), Some(local)) = (socket.remote_endpoint(), socket.local_endpoint())
            {
                *self.peers.entry(place_of(remote)).or_default() += 1;
                *self.asked.entry(place_of(local)).or_default() += 1;
            }
            self.serving.push(handle);
            let mut next = Self::socket();
            next.listen(port).unwrap();
            self.listening[place].1 = self.sockets.add(next);
        }
        let sockets = &mut self.sockets;
        self.serving.retain(|&handle| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            let room = socket.send_capacity() - socket.send_queue();
            if room > 0 && socket.can_recv() {
                let echo = socket.recv(|data| {
                    let count = data.len().min(room);
                    (count, data[..count].to_vec())
                });
                socket.send_slice(&echo.unwrap()).unwrap();
            }
            if !socket.may_recv() && socket.may_send() {
                socket.close();
            }
            let done = !socket.is_open();
            if done {
                sockets.remove(handle);
            }
            !done
        });
    }

    fn run_clients(&mut self) {
        for client in &mut self.clients {
            if client.outcome != Outcome::UnderWay {
                continue;
            }
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(client.socket);
            while socket.can_send() && client.sent < client.to_send {
                let count = (client.to_send - client.sent).min(1000);
                let data: Vec<u8> = (client.sent..client.sent + count)
                    .map(|place| payload(client.seed, place))
                    .collect();
                client.sent += socket.send_slice(&data).unwrap();
            }
            while socket.can_recv() {
                let (start, seed) = (client.received, client.seed);
                let (count, good) = socket
                    .recv(|data| {
                        let expected = (start..).map(|place| payload(seed, place));
                        let good = data.iter().copied().zip(expected).all(|(a, b)| a == b);
                        (data.len(), (data.len(), good))
                    })
                    .unwrap();
                client.received += count;
                if !good {
                    client.outcome = Outcome::Broken;
                }
            }
            let all = client.received == client.to_send;
            if all && !client.lingers && socket.may_send() {
                socket.close();
            }
            match socket.state() {
                State::TimeWait if all => {
                    client.outcome = Outcome::Finished;
                    socket.abort();
                }
                State::Closed => {
                    client.outcome = if all && !client.lingers {
                        Outcome::Finished
                    } else {
                        Outcome::Broken
                    };
                }
                _ => {}
            }
        }
    }

    fn run_answerers(&mut self) {
        for answerer in &mut self.answerers {
            let socket = self.sockets.get_mut::<udp::Socket<'_>>(answerer.socket);
            while let Ok((question, from)) = socket.recv() {
                let &[first, _, _, _, _, number] = question else {
                    panic!("a question of {} bytes", question.len());
                };
                if first == 0xc0 {
                    answerer.known.insert(from.endpoint);
                }
                let is_known = !answerer.is_quic || answerer.known.contains(&from.endpoint);
                let own = if is_known { answerer.number } else { RESET };
                socket.send_slice(&[own, number], from.endpoint).unwrap();
            }
        }
    }

    fn run_talks(&mut self, now: i64) {
        for talk in &mut self.talks {
            let socket = self.sockets.get_mut::<udp::Socket<'_>>(talk.socket);
            while let Ok((answer, _)) = socket.recv() {
                let &[server, number] = answer else {
                    panic!("an answer of {} bytes", answer.len());
                };
                // Whoever answers late, or twice, has to be the one that answered first.
                let home = *talk.home.get_or_insert(server);
                if server == RESET || server != home {
                    talk.outcome = Outcome::Broken;
                }
                if number == talk.answered {
                    (talk.answered, talk.asked) = (talk.answered + 1, None);
                }
            }
            let is_due = talk.asked.is_none_or(|asked| now - asked >= AGAIN);
            if talk.outcome == Outcome::UnderWay && talk.answered < talk.wanted && is_due {
                socket.send_slice(&talk.question(), talk.to).unwrap();
                talk.asked = Some(now);
            }
        }
    }
}
