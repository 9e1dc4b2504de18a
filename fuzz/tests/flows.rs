//! Flows over time against a model that a page holds: who was pinned stays while its backend is there, new
//! ones go to who takes some, whatever changes in between.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use bolero::TypeGenerator;
use etherparse::{PacketBuilder, SlicedPacket};
use slb_core::snapshot::Snapshot;
use slb_core::spec::{Backend, BackendState, Echo, Frontend, Pool, Protocol, Rule, Spec, Underlay};
use slb_core::wire::vxlan::Vni;
use slb_core::{DropReason, Frame, HEADROOM, Instant, Key, Mux, Verdict};
use slb_fuzz::VIP;

const BACKENDS: usize = 8;
const IDLE: Duration = Duration::from_secs(600);

#[derive(Clone, Debug, TypeGenerator)]
enum Operation {
    /// A SYN of this client's; where it has a flow, a new connection with the old ports.
    Syn(u8),
    /// A segment of an established connection.
    Ack(u8),
    /// A backend's state and weight.
    Set(u8, u8, u8),
    /// A backend goes, or comes back.
    Toggle(u8),
    Wait(u16),
    /// The clock leaps.
    Leap,
    /// The rule goes from one pool to the other.
    Move,
}

/// The configuration.
struct Configured {
    /// Each backend, if it is there: its state and weight. The first half is one pool, the second another.
    backends: [Option<(BackendState, u32)>; BACKENDS],
    /// The rule's pool.
    pool: usize,
}

impl Configured {
    fn is_there(&self, number: usize) -> bool {
        self.backends[number].is_some()
    }

    /// Returns true if the rule's new flows may go to a backend.
    fn takes(&self, number: usize) -> bool {
        pool_of(number) == self.pool
            && matches!(self.backends[number], Some((BackendState::Up, 1..)))
    }
}

fn pool_of(number: usize) -> usize {
    2 * number / BACKENDS
}

fn snapshot(configured: &Configured, previous: Option<&Snapshot<'_>>) -> Box<Snapshot<'static>> {
    const NAMES: [&str; BACKENDS] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let [one, other] = [0, 1].map(|pool| -> Vec<Backend<'_>> {
        let there = configured.backends.iter().enumerate();
        let there = there.filter_map(|(number, backend)| Some((number, (*backend)?)));
        let of_pool = there.filter(|(number, _)| pool_of(*number) == pool);
        of_pool
            .map(|(number, (state, weight))| Backend {
                name: NAMES[number],
                address: Ipv4Addr::new(10, 10, 1, number as u8).into(),
                host: Ipv4Addr::new(172, 16, 0, number as u8).into(),
                weight,
                state,
                ..Backend::default()
            })
            .collect()
    });
    let pool = |name, backends| Pool {
        name,
        vni: Vni::new(7).expect("small"),
        table_size: 251,
        backends,
        ..Pool::default()
    };
    let spec = Spec {
        underlay: Underlay {
            ipv4: Some(Ipv4Addr::new(172, 16, 0, 200)),
            ..Underlay::default()
        },
        frontends: &[Frontend {
            name: "web",
            address: VIP.into(),
            icmp_echo: Echo::Answer,
        }],
        rules: &[Rule {
            name: "http",
            pool: configured.pool,
            protocol: Protocol::Tcp,
            frontend_port: 80,
            idle_timeout: IDLE,
            ..Rule::default()
        }],
        pools: &[pool("one", &one), pool("other", &other)],
        ..Spec::default()
    };
    Box::new(Snapshot::new(&spec, previous).expect("a good spec"))
}

/// Returns the destination of a packet, by the outer header that etherparse reads; `None` if it is
/// refused.
fn sent(
    mux: &mut Mux<'_, Box<Snapshot<'static>>>,
    now: Instant,
    client: u8,
    syn: bool,
) -> Option<usize> {
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([11, 0, 0, client], VIP, 64)
        .tcp(1000, 80, 1, 1);
    let builder = if syn { builder.syn() } else { builder.ack(1) };
    let mut packet = Vec::new();
    builder.write(&mut packet, b"data").expect("memory");
    let mut buffer = vec![0; HEADROOM];
    buffer.extend(&packet);
    let mut frames = [Frame::new(&mut buffer, HEADROOM, packet.len()).expect("room")];
    mux.process(now, &mut frames);
    match frames[0].verdict() {
        Verdict::Drop(DropReason::NoBackend) => None,
        Verdict::Forward(_) => {
            let outer = SlicedPacket::from_ethernet(frames[0].bytes()).expect("a packet");
            let net = outer.net.expect("IP");
            let host = net.ipv4_ref().expect("IPv4").header().destination();
            Some(host[3].into())
        }
        verdict => panic!("{verdict:?}"),
    }
}

/// The state of a client's flow that the mux is expected to have.
#[derive(Clone, Copy)]
struct Pinned {
    backend: usize,
    last: Instant,
    is_established: bool,
    /// False for a segment that the mux may have sent without pinning the flow.
    is_certain: bool,
}

impl Pinned {
    /// Returns true if the flow may be forgotten: a half-open one after four minutes, others after
    /// their idle timeout. The wheel is a few seconds coarse.
    fn may_be_forgotten(&self, now: Instant) -> bool {
        let least = if self.is_established {
            IDLE
        } else {
            Duration::from_secs(240)
        };
        now.since(self.last) + Duration::from_secs(5) >= least
    }

    /// Returns true if a SYN may be of a new connection. A flow that may have had more than SYNs is quiet after a
    /// tick of 1.07 s, another one after 64 s; both are rounded by a tick.
    fn may_be_over(&self, now: Instant, had_segments: bool) -> bool {
        let least = if had_segments { 1 } else { 62 };
        now.since(self.last) >= Duration::from_secs(least)
    }
}

#[test]
fn flows_stay_and_new_ones_go_to_who_takes_some() {
    bolero::check!()
        .with_type::<Vec<Operation>>()
        .for_each(|operations| {
            let mut configured = Configured {
                backends: [Some((BackendState::Up, 1)); BACKENDS],
                pool: 0,
            };
            let mut mux = Mux::with_capacity(snapshot(&configured, None), 1024, Key::new([1, 2]))
                .expect("its role");
            let mut now = Instant::from_secs(1);
            // A mux's clock starts with the first call: changes before it have no age yet.
            mux.process(now, &mut []);
            let mut pinned: HashMap<u8, Pinned> = HashMap::new();
            // Clients that ever sent more than SYNs.
            let mut had_segments = HashSet::new();
            // The time of the last change of the pool's table.
            let mut changed: Option<Instant> = None;
            for operation in operations {
                match *operation {
                    Operation::Syn(client) | Operation::Ack(client) => {
                        let is_syn = matches!(operation, Operation::Syn(_));
                        let went = sent(&mut mux, now, client, is_syn);
                        let known = pinned.get(&client).copied();
                        let known = known.filter(|pinned| !pinned.may_be_forgotten(now));
                        let stays = known.filter(|pinned| {
                            pinned.is_certain
                                && configured.is_there(pinned.backend)
                                && (!is_syn
                                    || configured.takes(pinned.backend)
                                        && !pinned.may_be_over(now, had_segments.contains(&client)))
                        });
                        match (stays, went) {
                            (Some(pinned), _) => assert_eq!(went, Some(pinned.backend)),
                            // It may have been remembered all the same.
                            (None, Some(to)) => assert!(
                                configured.takes(to)
                                    || (!is_syn
                                        && configured.is_there(to)
                                        && pinned.get(&client).is_some_and(|p| p.backend == to)),
                                "a new flow went to {to}"
                            ),
                            (None, None) => {
                                assert!((0..BACKENDS).all(|number| !configured.takes(number)));
                            }
                        }
                        // A segment of an unknown flow may not be pinned while its slot may be another backend's.
                        let is_unproven = !is_syn
                            && stays.is_none()
                            && changed
                                .is_some_and(|at| now.since(at) < IDLE + Duration::from_secs(60));
                        if !is_syn {
                            had_segments.insert(client);
                        }
                        if let Some(backend) = went {
                            let was = stays.is_some_and(|pinned| pinned.is_established);
                            let pin = Pinned {
                                backend,
                                last: now,
                                is_established: was || !is_syn,
                                is_certain: !is_unproven,
                            };
                            pinned.insert(client, pin);
                        }
                    }
                    Operation::Set(number, state, weight) => {
                        changed = Some(now);
                        let state = match state % 3 {
                            0 => BackendState::Up,
                            1 => BackendState::Down,
                            _ => BackendState::Draining,
                        };
                        let number = usize::from(number) % BACKENDS;
                        if let Some(backend) = &mut configured.backends[number] {
                            *backend = (state, u32::from(weight % 4));
                        }
                        mux.install(snapshot(&configured, Some(mux.snapshot())))
                            .expect("it follows");
                    }
                    Operation::Toggle(number) => {
                        changed = Some(now);
                        let number = usize::from(number) % BACKENDS;
                        // One that comes back is another one.
                        pinned.retain(|_, pinned| pinned.backend != number);
                        let backend = &mut configured.backends[number];
                        *backend = match backend {
                            Some(_) => None,
                            None => Some((BackendState::Up, 1)),
                        };
                        mux.install(snapshot(&configured, Some(mux.snapshot())))
                            .expect("it follows");
                    }
                    Operation::Move => {
                        changed = Some(now);
                        configured.pool = 1 - configured.pool;
                        mux.install(snapshot(&configured, Some(mux.snapshot())))
                            .expect("it follows");
                    }
                    Operation::Wait(millis) => now = now + Duration::from_millis(millis.into()),
                    Operation::Leap => now = now + Duration::from_secs(86_400),
                }
            }
            let stats = mux.stats();
            assert_eq!(stats.received, stats.accounted());
        });
}
