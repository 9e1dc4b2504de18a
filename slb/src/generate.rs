//! `slb generate`: reproducible captures for tests, built with etherparse.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::BufWriter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{PacketBuilder, PacketBuilderStep, TcpHeader};
use slb_core::Instant;
use slb_io_pcap::{Format, Writer};

use crate::Failure;
use crate::cli::GenerateOptions;
use crate::output::{Content, create, is_standard};

/// The time of the first session: arbitrary but recent.
const START: u64 = 1_750_000_000_000_000_000;
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
const MUX_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub(crate) fn run(options: &GenerateOptions) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::failed(format!("{}: {error}", options.out.display()))
    };
    let file = create(&[], ("--out", &options.out), Content::Capture)?;
    let mut writer = Writer::new(BufWriter::new(file), Format::of(&options.out))
        .map_err(|error| failed(&error))?;
    let mut count: u64 = 0;
    for (timestamp, packet) in Packets::new(options) {
        writer
            .write(Instant::from_nanos(timestamp), &packet)
            .map_err(|error| failed(&error))?;
        count += 1;
    }
    writer.finish().map_err(|error| failed(&error))?;
    let said = format!("{}: {count} packets", options.out.display());
    if is_standard(&options.out) {
        tell_line!("{said}");
    } else {
        say_line!("{said}")?;
    }
    Ok(())
}

/// All packets, by time. Sessions and packets are made lazily, so the memory depends only on the
/// number of simultaneous sessions.
struct Packets<'o> {
    options: &'o GenerateOptions,
    /// Destinations, with true if they take TCP.
    kinds: Vec<(SocketAddr, bool)>,
    random: Random,
    /// The next session.
    session: u32,
    /// The packets of all sessions that have begun.
    begun: u64,
    open: Vec<Session<'o>>,
    /// Places in `open` of sessions that are over.
    free: Vec<usize>,
    /// The time of each open session's next packet, its number and its session.
    order: BinaryHeap<Reverse<(u64, u64, usize)>>,
}

impl<'o> Packets<'o> {
    fn new(options: &'o GenerateOptions) -> Self {
        let kinds = options.tcp.iter().map(|&vip| (vip, true));
        let kinds = kinds.chain(options.udp.iter().map(|&vip| (vip, false)));
        Self {
            options,
            kinds: kinds.collect(),
            random: Random(options.seed),
            session: 0,
            begun: 0,
            open: Vec::new(),
            free: Vec::new(),
            order: BinaryHeap::new(),
        }
    }

    /// Returns the earliest time of the next session.
    fn next_session(&self) -> u64 {
        START + u64::from(self.session) * 2_000_000
    }

    /// Begins a session with each destination.
    fn begin(&mut self) {
        for place in 0..self.kinds.len() {
            let Some(&(vip, is_tcp)) = self.kinds.get(place) else {
                return;
            };
            let random = &mut self.random;
            let client = client(vip.ip(), random.below(self.options.clients));
            let port = 1024 + random.below(64_000) as u16;
            let start = START + u64::from(self.session) * 2_000_000;
            let at = start + u64::from(random.below(2_000_000));
            let client = SocketAddr::new(client, port);
            let session = Session::new(client, vip, is_tcp, self.options, random);
            if session.left == 0 {
                continue;
            }
            let number = self.begun;
            self.begun += session.left;
            let place = match self.free.pop() {
                Some(place) => {
                    self.open[place] = session;
                    place
                }
                None => {
                    self.open.push(session);
                    self.open.len() - 1
                }
            };
            self.order.push(Reverse((at, number, place)));
        }
        self.session += 1;
    }
}

impl Iterator for Packets<'_> {
    type Item = (u64, Vec<u8>);

    fn next(&mut self) -> Option<Self::Item> {
        // No session that begins later has an earlier packet.
        while self.session < self.options.sessions {
            let first = self.order.peek();
            if first.is_some_and(|Reverse((at, ..))| *at < self.next_session()) {
                break;
            }
            self.begin();
        }
        let Reverse((at, number, place)) = self.order.pop()?;
        let session = self.open.get_mut(place)?;
        let packet = session.packet();
        let pause = 200_000 + u64::from(session.pauses.below(5_000_000));
        session.left -= 1;
        if session.left > 0 {
            self.order.push(Reverse((at + pause, number + 1, place)));
        } else {
            self.free.push(place);
        }
        Some((at, packet))
    }
}

/// The address of a client: from a network for documentation or for benchmarks.
fn client(vip: IpAddr, number: u32) -> IpAddr {
    match vip {
        IpAddr::V4(_) => Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + number).into(),
        IpAddr::V6(_) => {
            let [high, low] = [(number >> 16) as u16, number as u16];
            Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, high, low.wrapping_add(1)).into()
        }
    }
}

/// A session, made packet by packet.
struct Session<'a> {
    client: SocketAddr,
    vip: SocketAddr,
    is_tcp: bool,
    options: &'a GenerateOptions,
    /// Packets that are still to be made.
    left: u64,
    step: u64,
    /// Sequence numbers of the client and of the server.
    ours: u32,
    theirs: u32,
    data: Random,
    pauses: Random,
}

impl<'a> Session<'a> {
    /// Begins a session, and advances `random` past all numbers that the session will draw.
    fn new(
        client: SocketAddr,
        vip: SocketAddr,
        is_tcp: bool,
        options: &'a GenerateOptions,
        random: &mut Random,
    ) -> Self {
        let (packets, size) = (u64::from(options.packets), u64::from(options.size));
        let sides = 1 + u64::from(options.replies);
        // A server's data in a TCP session is drawn even if it is not written.
        let (left, drawn) = match (is_tcp, options.replies) {
            (true, true) => (6 + 2 * packets, 2 * packets * size),
            (true, false) => (4 + packets, 2 * packets * size),
            (false, _) => (sides * packets, sides * packets * size),
        };
        let mut sequence = || if is_tcp { random.next() as u32 } else { 0 };
        let (ours, theirs) = (sequence(), sequence());
        let data = Random(random.0);
        random.skip(drawn);
        let pauses = Random(random.0);
        random.skip(left);
        Self {
            client,
            vip,
            is_tcp,
            options,
            left,
            step: 0,
            ours,
            theirs,
            data,
            pauses,
        }
    }

    /// The next packet.
    fn packet(&mut self) -> Vec<u8> {
        loop {
            let step = self.step;
            self.step += 1;
            if !self.is_tcp {
                let from_client = !self.options.replies || step.is_multiple_of(2);
                let data = self.data.bytes(self.options.size);
                return self.datagram(from_client, &data);
            }
            if let Some(packet) = self.tcp(step) {
                return packet;
            }
        }
    }

    /// Returns the packet of a step: handshake, data or teardown; `None` for a reply that is not
    /// written.
    fn tcp(&mut self, step: u64) -> Option<Vec<u8>> {
        let data_steps = 2 * u64::from(self.options.packets);
        let teardown = 3 + data_steps;
        // Client and server take turns, except in the last packet of the handshake and of the
        // teardown.
        let from_client = match step {
            0 | 2 => true,
            1 => false,
            _ if step < teardown => !step.is_multiple_of(2),
            _ => step != teardown + 1,
        };
        let (sequence, other) = if from_client {
            (self.ours, self.theirs)
        } else {
            (self.theirs, self.ours)
        };
        let is_written = from_client || self.options.replies;
        let is_data = (3..teardown).contains(&step);
        let data = match (is_data, is_written) {
            (true, true) => self.data.bytes(self.options.size),
            (true, false) => {
                self.data.skip(self.options.size.into());
                Vec::new()
            }
            (false, _) => Vec::new(),
        };
        let flags = |tcp: PacketBuilderStep<TcpHeader>| match step {
            0 => tcp.syn(),
            1 => tcp.syn().ack(other),
            _ if is_data => tcp.psh().ack(other),
            _ if step == teardown || step == teardown + 1 => tcp.fin().ack(other),
            _ => tcp.ack(other),
        };
        let packet = is_written.then(|| self.segment(from_client, sequence, flags, &data));
        // SYN and FIN take a sequence number each.
        let taken = match step {
            0 | 1 => 1,
            _ if is_data => u32::from(self.options.size),
            _ if step == teardown || step == teardown + 1 => 1,
            _ => 0,
        };
        let own = if from_client {
            &mut self.ours
        } else {
            &mut self.theirs
        };
        *own = own.wrapping_add(taken);
        packet
    }

    fn ends(&self, from_client: bool) -> (SocketAddr, SocketAddr) {
        if from_client {
            (self.client, self.vip)
        } else {
            (self.vip, self.client)
        }
    }

    fn ip(&self, from_client: bool) -> PacketBuilderStep<etherparse::IpHeaders> {
        let (from, to) = self.ends(from_client);
        let link = if from_client {
            PacketBuilder::ethernet2(CLIENT_MAC, MUX_MAC)
        } else {
            PacketBuilder::ethernet2(MUX_MAC, CLIENT_MAC)
        };
        match (from.ip(), to.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => link.ipv4(a.octets(), b.octets(), 64),
            (a, b) => {
                let octets = |address: IpAddr| match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                    IpAddr::V6(address) => address.octets(),
                };
                link.ipv6(octets(a), octets(b), 64)
            }
        }
    }

    fn segment(
        &self,
        from_client: bool,
        sequence: u32,
        flags: impl Fn(PacketBuilderStep<TcpHeader>) -> PacketBuilderStep<TcpHeader>,
        data: &[u8],
    ) -> Vec<u8> {
        let (from, to) = self.ends(from_client);
        let tcp = self
            .ip(from_client)
            .tcp(from.port(), to.port(), sequence, 65_535);
        let mut packet = Vec::new();
        match flags(tcp).write(&mut packet, data) {
            Ok(()) => packet,
            Err(error) => unreachable!("a segment of at most 1400 bytes fits: {error}"),
        }
    }

    fn datagram(&self, from_client: bool, data: &[u8]) -> Vec<u8> {
        let (from, to) = self.ends(from_client);
        let mut packet = Vec::new();
        match self
            .ip(from_client)
            .udp(from.port(), to.port())
            .write(&mut packet, data)
        {
            Ok(()) => packet,
            Err(error) => unreachable!("a datagram of at most 1400 bytes fits: {error}"),
        }
    }
}

/// The generator SplitMix64, which is the same on every platform.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// Skips `numbers` numbers.
    fn skip(&mut self, numbers: u64) {
        self.0 = self
            .0
            .wrapping_add(numbers.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }

    fn below(&mut self, most: u32) -> u32 {
        (((self.next() >> 32) * u64::from(most)) >> 32) as u32
    }

    fn bytes(&mut self, len: u16) -> Vec<u8> {
        (0..len).map(|_| b'a' + self.below(26) as u8).collect()
    }
}
