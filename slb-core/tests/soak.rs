//! A day in seconds, since the clock is an input: connections come and go while both tables are full,
//! configurations change, backends flap. At its end memory is what it was, counters add up, and nothing has
//! become slower (`cargo test -p slb-core --test soak -- --nocapture` prints it).

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant as Clock};

use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, BackendState, Echo, Frontend, Pool, Protocol, Rule, Spec, Terms, Underlay, derived_mac,
};
use slb_core::wire::checksum::checksum;
use slb_core::wire::vxlan::Vni;
use slb_core::{Burst, Frame, HEADROOM, Host, Instant, Key, Mux, PortId, Stats, Verdict};

/// Counts what is allocated now.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is the system's; beside it a number is counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller promises it.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller promises it.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const HOURS: u64 = 24;
/// New connections a second: a few more than the tables have places for.
const RATE: u32 = 23;
const PLACES: usize = 7 * 1024;
const VIP: (Ipv4Addr, u16) = (Ipv4Addr::new(20, 20, 20, 100), 80);
const HOST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 101);
const MUX: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);
const BACKENDS: u8 = 10;

type Shared = Box<Snapshot<'static>>;

/// The configuration of a moment: which backend is ill, and whether the last one is there.
fn snapshot(ill: u8, has_last: bool, previous: &Snapshot<'_>) -> Shared {
    let of = previous.underlay().ipv4.expect("both have one");
    build(of, ill, has_last, Some(previous))
}

fn build(of: Ipv4Addr, ill: u8, has_last: bool, previous: Option<&Snapshot<'_>>) -> Shared {
    const NAMES: [&str; BACKENDS as usize] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let count = BACKENDS - u8::from(!has_last);
    let backends: Vec<Backend<'_>> = (1..=count)
        .map(|number| Backend {
            name: NAMES[usize::from(number) - 1],
            address: vm(number).0.into(),
            host: HOST.into(),
            port: Some(PortId(number.into())),
            state: match number == ill {
                true => BackendState::Down,
                false => BackendState::Up,
            },
            ..Backend::default()
        })
        .collect();
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(of),
            mtu: 1600,
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "web",
            address: VIP.0.into(),
            icmp_echo: Echo::Answer,
        }],
        rules: &[Rule {
            name: "http",
            protocol: Protocol::Tcp,
            frontend_port: VIP.1,
            backend_port: 8080,
            terms: Terms {
                tcp_reset: true,
                ..Terms::default()
            },
            ..Rule::default()
        }],
        pools: &[Pool {
            name: "vms",
            vni: Vni::new(5001).expect("small"),
            table_size: 1009,
            backends: &backends,
            ..Pool::default()
        }],
        ..Spec::default()
    };
    Box::new(Snapshot::new(&spec, previous).expect("a good spec"))
}

fn vm(number: u8) -> (Ipv4Addr, u16) {
    (Ipv4Addr::new(10, 10, 1, number), 8080)
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;

struct World {
    mux: Mux<'static, Shared>,
    host: Host<'static, Shared>,
    now: Instant,
    buffer: Vec<u8>,
    spare: Vec<Vec<u8>>,
    packets: u64,
}

impl World {
    fn new() -> Self {
        let first = |of| build(of, 0, true, None);
        Self {
            mux: Mux::with_capacity(first(MUX), PLACES, Key::new([1, 2])).expect("its role"),
            host: Host::with_capacity(first(HOST), PLACES, Key::new([3, 4])).expect("its role"),
            now: Instant::from_secs(1),
            buffer: vec![0; HEADROOM + 64],
            spare: vec![vec![0; HEADROOM + 128]; 8],
            packets: 0,
        }
    }

    /// Writes a segment into the buffer, and sends it on its way; the port that it leaves by.
    fn send(
        &mut self,
        at: PortId,
        from: (Ipv4Addr, u16),
        to: (Ipv4Addr, u16),
        what: (u8, u32, u32),
    ) -> Option<PortId> {
        let (flags, sequence, acknowledgement) = what;
        let packet = &mut self.buffer[HEADROOM..HEADROOM + 54];
        packet[..34].copy_from_slice(&[
            2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, // Ethernet
            0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ]);
        if at != PortId(0) {
            packet[6..12].copy_from_slice(&derived_mac(from.0.into()).0);
        }
        packet[26..30].copy_from_slice(&from.0.octets());
        packet[30..34].copy_from_slice(&to.0.octets());
        let sum = checksum(&packet[14..34]);
        packet[24..26].copy_from_slice(&sum.to_be_bytes());
        packet[34..36].copy_from_slice(&from.1.to_be_bytes());
        packet[36..38].copy_from_slice(&to.1.to_be_bytes());
        packet[38..42].copy_from_slice(&sequence.to_be_bytes());
        packet[42..46].copy_from_slice(&acknowledgement.to_be_bytes());
        packet[46..54].copy_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        self.packets += 1;
        let mut frames = [Frame::new(&mut self.buffer, HEADROOM, 54)?];
        if at == PortId(0) {
            self.mux.process(self.now, &mut frames);
            if !matches!(frames[0].verdict(), Verdict::Forward(_)) {
                return None;
            }
        }
        frames[0].set_port(at);
        self.host.process(self.now, &mut frames);
        match frames[0].verdict() {
            Verdict::Forward(port) => Some(port),
            _ => None,
        }
    }

    /// A connection of a client's: all of them open, one in four closes, and the rest are left to their
    /// timeouts. Says whether it came about.
    fn connect(&mut self, number: u32) -> bool {
        let client = (
            Ipv4Addr::from_bits(0x0b00_0000 + number / 50_000),
            1024 + (number % 50_000) as u16,
        );
        let fabric = PortId(0);
        let Some(home) = self.send(fabric, client, VIP, (SYN, 100, 0)) else {
            return false;
        };
        let server = vm(home.0 as u8);
        let answer = self.send(home, server, client, (SYN | ACK, 500, 101));
        assert_eq!(answer, Some(fabric), "the answer to connection {number}");
        assert_eq!(self.send(fabric, client, VIP, (ACK, 101, 501)), Some(home));
        if number.is_multiple_of(4) {
            assert_eq!(
                self.send(fabric, client, VIP, (FIN | ACK, 101, 501)),
                Some(home)
            );
            let last = self.send(home, server, client, (FIN | ACK, 501, 102));
            assert_eq!(last, Some(fabric));
        }
        true
    }

    fn advance(&mut self) {
        let mut spare = Burst::new();
        for buffer in &mut self.spare {
            let _ = spare.push(Frame::new(buffer, HEADROOM, 0).expect("room"));
        }
        self.mux.advance(self.now);
        self.host.advance(self.now, &mut spare);
    }

    fn install(&mut self, ill: u8, has_last: bool) {
        let next = snapshot(ill, has_last, self.mux.snapshot());
        self.mux.install(next).expect("it follows");
        let next = snapshot(ill, has_last, self.host.snapshot());
        self.host.install(next).expect("it follows");
    }

    fn check(&self) {
        for stats in [self.mux.stats(), self.host.stats()] {
            assert_eq!(stats.received, stats.accounted());
        }
        let flows = self.mux.stats().flows;
        assert_eq!(
            flows.made,
            flows.live + flows.expired + flows.evicted,
            "{flows:?}"
        );
        let Stats { connections, .. } = self.host.stats();
        let over = connections.expired + connections.removed;
        assert_eq!(connections.made, connections.live + over, "{connections:?}");
    }
}

#[test]
fn a_day_of_churn_reloads_and_flaps() {
    let mut world = World::new();
    let (mut number, mut opened) = (0, 0u64);
    let mut live_after_an_hour = 0;
    let (mut first, mut last) = (0.0, 0.0);
    for hour in 0..HOURS {
        let (begin, before) = (Clock::now(), world.packets);
        for second in 0..3600 {
            for _ in 0..RATE {
                world.now = world.now + Duration::from_secs(1) / RATE;
                opened += u64::from(world.connect(number));
                number += 1;
            }
            for _ in 0..4 {
                world.advance();
            }
            // A backend flaps each minute; one comes or goes each ten.
            if second % 60 == 0 {
                let minute = second / 60;
                let ill = if minute % 2 == 0 {
                    0
                } else {
                    1 + (minute % 9) as u8
                };
                world.install(ill, minute / 10 % 2 == 0);
            }
        }
        world.check();
        let nanos = begin.elapsed().as_nanos() as f64 / (world.packets - before) as f64;
        let live = LIVE.load(Ordering::Relaxed);
        if hour == 0 {
            (first, live_after_an_hour) = (nanos, live);
        }
        last = nanos;
        assert_eq!(
            live, live_after_an_hour,
            "bytes allocated after hour {hour}"
        );
    }
    let (flows, connections) = (world.mux.stats().flows, world.host.stats().connections);
    println!(
        "{opened} connections, {} packets, {} reloads; {first:.0} ns a packet in the first hour, {last:.0} in the \
         last; {} flows and {} connections live at the end",
        world.packets,
        HOURS * 60,
        flows.live,
        connections.live,
    );
    // The tables were full: some were refused, most were not.
    assert!(
        flows.refused + flows.evicted + connections.refused > 0,
        "{flows:?} {connections:?}"
    );
    assert!(opened > u64::from(number) * 9 / 10, "{opened} of {number}");
}
