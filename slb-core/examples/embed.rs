//! A mux in a program of your own: packets in a ring in memory, a configuration written by hand, health
//! from outside, and two reloads that move no established connection.
//!
//! ```sh
//! cargo run -p slb-core --example embed
//! ```

use std::collections::VecDeque;
use std::convert::Infallible;
use std::error::Error;
use std::net::Ipv4Addr;

use slb_core::health::Condition;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{Backend, BackendState, Frontend, Pool, Rule, Spec, SpecError, Underlay};
use slb_core::wire::checksum::Sum;
use slb_core::wire::vxlan::Vni;
use slb_core::{Burst, Dataplane, Frame, HEADROOM, Instant, Key, Mux, PacketIo, Verdict};

const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
const CLIENTS: u16 = 1000;

/// The packets of a NIC queue, in memory. A real one moves descriptors in the same three functions.
struct Ring<'m> {
    empty: Vec<&'m mut [u8]>,
    arrived: VecDeque<Frame<'m>>,
    sent: u64,
    lost: u64,
}

impl<'m> PacketIo<'m> for Ring<'m> {
    type Error = Infallible;

    fn receive(&mut self, burst: &mut Burst<'m>) -> Result<usize, Infallible> {
        let before = burst.len();
        while !burst.is_full()
            && let Some(frame) = self.arrived.pop_front()
        {
            let _ = burst.push(frame); // there is room
        }
        Ok(burst.len() - before)
    }

    fn transmit(&mut self, burst: &mut Burst<'m>) -> Result<usize, Infallible> {
        let before = self.sent;
        for frame in burst.drain() {
            match frame.verdict() {
                Verdict::Forward(_) | Verdict::Reply | Verdict::Flood => self.sent += 1,
                Verdict::Pass if frame.is_empty() => {} // one of `reserve` that was not used
                Verdict::Pass | Verdict::Drop(_) => self.lost += 1,
            }
            self.empty.push(frame.into_buffer());
        }
        Ok((self.sent - before) as usize)
    }

    fn reserve(&mut self, spare: &mut Burst<'m>, n: usize) -> usize {
        let mut count = 0;
        while count < n
            && !spare.is_full()
            && let Some(buffer) = self.empty.pop()
        {
            let frame = Frame::new(buffer, HEADROOM, 0).unwrap_or(Frame::EMPTY);
            let _ = spare.push(frame); // there is room
            count += 1;
        }
        count
    }
}

impl Ring<'_> {
    /// Lets a segment arrive from a client, whose number is its port.
    fn arrive(&mut self, client: u16, flags: u8) {
        let packet = segment(client, flags);
        if let Some(buffer) = self.empty.pop() {
            buffer[HEADROOM..HEADROOM + packet.len()].copy_from_slice(&packet);
            self.arrived
                .extend(Frame::new(buffer, HEADROOM, packet.len()));
        }
    }
}

/// The state of a server: the operator's setting, and the result of your prober.
#[derive(Clone, Copy)]
struct Server {
    name: &'static str,
    number: u8,
    state: BackendState,
    condition: Condition,
}

/// Compiles the configuration. All that a reload needs is the snapshot in place.
fn compile(
    servers: &[Server],
    previous: Option<&Snapshot<'_>>,
) -> Result<Box<Snapshot<'static>>, SpecError> {
    let backends: Vec<Backend<'_>> = servers
        .iter()
        .map(|server| Backend {
            name: server.name,
            address: Ipv4Addr::new(10, 0, 0, server.number).into(),
            host: Ipv4Addr::new(172, 16, 1, server.number).into(),
            state: server.state,
            condition: server.condition,
            ..Backend::default()
        })
        .collect();
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(Ipv4Addr::new(172, 16, 0, 11)),
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "web",
            address: VIP.into(),
            ..Frontend::default()
        }],
        pools: &[Pool {
            name: "servers",
            vni: Vni::new(5001).unwrap_or_default(),
            backends: &backends,
            ..Pool::default()
        }],
        rules: &[Rule {
            name: "http",
            frontend_port: 80,
            backend_port: 8080,
            ..Rule::default()
        }],
        ..Spec::default()
    };
    Snapshot::new(&spec, previous).map(Box::new)
}

/// Processes all that has arrived, and does what is due.
fn run<'m, 's>(ring: &mut Ring<'m>, role: &mut impl Dataplane<'s>, now: Instant) {
    let (mut burst, mut spare) = (Burst::new(), Burst::new());
    loop {
        let Ok(count) = ring.receive(&mut burst);
        role.process(now, &mut burst);
        let Ok(_) = ring.transmit(&mut burst);
        ring.reserve(&mut spare, 8);
        role.advance(now, &mut spare);
        let Ok(_) = ring.transmit(&mut spare);
        if count == 0 {
            return;
        }
    }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let server = |name, number| Server {
        name,
        number,
        state: BackendState::Up,
        condition: Condition::Healthy,
    };
    let mut servers = vec![server("vm1", 1), server("vm2", 2)];
    let key = Key::new([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]); // yours: random, and secret
    let mut mux = Mux::with_capacity(compile(&servers, None)?, 1 << 16, key)?;

    let mut memory = vec![0; 4096 * 512];
    let mut ring = Ring {
        empty: memory.chunks_exact_mut(512).collect(),
        arrived: VecDeque::new(),
        sent: 0,
        lost: 0,
    };
    for client in 0..CLIENTS {
        ring.arrive(client, SYN);
        ring.arrive(client, ACK);
    }
    run(&mut ring, &mut mux, Instant::from_secs(1));
    let first = mux.backend_counters("servers/vm1").unwrap_or_default();
    println!("vm1 has {} of {CLIENTS} connections", first.flows);

    // The prober finds that vm1 fails, and a server is added: new connections go to vm2 and vm3.
    servers[0].condition = Condition::Unhealthy;
    servers.push(server("vm3", 3));
    mux.install(compile(&servers, Some(mux.snapshot()))?)?;
    for client in 0..CLIENTS {
        ring.arrive(client, ACK); // of the connections that there are
        ring.arrive(CLIENTS + client, SYN);
    }
    run(&mut ring, &mut mux, Instant::from_secs(2));
    let again = mux.backend_counters("servers/vm1").unwrap_or_default();
    let third = mux.backend_counters("servers/vm3").unwrap_or_default();
    println!(
        "vm1 keeps {}, vm3 has {} new ones",
        again.flows, third.flows
    );

    // It recovers, and the operator drains vm2.
    servers[0].condition = Condition::Healthy;
    servers[1].state = BackendState::Draining;
    mux.install(compile(&servers, Some(mux.snapshot()))?)?;
    for client in 0..CLIENTS {
        ring.arrive(client, ACK);
    }
    run(&mut ring, &mut mux, Instant::from_secs(3));

    let (stats, rule) = (mux.stats(), mux.rule_counters("http").unwrap_or_default());
    println!(
        "{} packets, {} SYNs; {} sent, {} lost",
        stats.received.packets, rule.syns, ring.sent, ring.lost
    );
    for (reason, count) in stats.dropped.iter().filter(|(_, count)| count.packets > 0) {
        println!("{} dropped: {}", count.packets, reason.description());
    }
    // Each packet of vm1's connections went to vm1 all the time, and none was lost.
    let of_vm1 = mux.backend_counters("servers/vm1").unwrap_or_default();
    let is_right = first.flows > 400
        && (again.flows, third.flows > 400) == (first.flows, true)
        && of_vm1.forwarded.packets == 4 * first.flows
        && (ring.sent, ring.lost) == (5 * u64::from(CLIENTS), 0);
    if !is_right {
        return Err(format!("{stats:?}").into());
    }
    Ok(())
}

const SYN: u8 = 2;
const ACK: u8 = 16;

/// A TCP segment from a client's port to the VIP, as a frame.
fn segment(client: u16, flags: u8) -> [u8; 54] {
    let mut packet = [
        2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00, // Ethernet
        0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 198, 51, 100, 1, 0, 0, 0, 0, // IPv4
        0, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0, 0xff, 0xff, 0, 0, 0, 0, // TCP
    ];
    packet[30..34].copy_from_slice(&VIP.octets());
    let checksum = Sum::ZERO.add_bytes(&packet[14..34]).checksum();
    packet[24..26].copy_from_slice(&checksum.to_be_bytes());
    packet[34..36].copy_from_slice(&client.to_be_bytes());
    packet[47] = flags;
    packet
}
