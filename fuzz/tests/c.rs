//! The C functions in any order: handles of all kinds and roles, NULL, texts that are none, frames beyond their
//! buffers, and snapshots freed while they are in use. Each says what is wrong, counts what it did, and writes
//! nothing beyond what it was lent.

#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one C program's calls, of which the same is promised"
)]

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};

use bolero::TypeGenerator;
use slb::slb_error::{SLB_ERROR_LINEAGE, SLB_ERROR_ROLE};
use slb::{slb_config, slb_frame, slb_host, slb_mux, slb_proxy, slb_snapshot, slb_stats};
use slb_fuzz::Nearly;

#[derive(Clone, Debug, TypeGenerator)]
enum Call {
    Parse(u8, Vec<u8>),
    Snapshot(u8, bool),
    Make(u8, u8, Options),
    /// Frames, of which one may lie beyond its buffer; and another role that gets them after it.
    Process(u8, Vec<Nearly>, u32, Option<u8>, Option<u8>),
    Advance(u8, u64, u8),
    Install(u8, u8),
    SetBackend(u8, u8, u8),
    Look(u8, u64),
    FreeSnapshot(u8),
    FreeRole(u8),
    FreeConfig(u8),
    /// A handle of another kind.
    Wrong(u8, u8),
}

#[derive(Clone, Debug, TypeGenerator)]
struct Options {
    places: u8,
    answers: u8,
    flows_per_source: u8,
}

const POOL: &str = "[[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
    [[frontend]]\nname = \"web6\"\naddress = \"2001:db8:20::100\"\n\
    [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"p\"\nprotocol = \"tcp\"\nfrontend_port = 80\n\
    [[rule]]\nname = \"dns\"\nfrontend = \"web\"\npool = \"p\"\nprotocol = \"udp\"\nfrontend_port = 53\n\
    [[pool]]\nname = \"p\"\nvni = 1\ntable_size = 13\n\
    backends = [{ name = \"vm\", address = \"10.0.0.1\", host = \"172.16.0.1\", mac = \"02:00:00:00:00:09\" }]\n";
const UNDERLAY: &str = "underlay = \"172.16.0.1\"\nnext_hop = \"02:00:00:00:00:02\"\n";
const PROXY: &str = "[node]\nrole = \"proxy\"\n[[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
    [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"p\"\nprotocol = \"tcp\"\nfrontend_port = 80\n\
    scheduler = \"least-connections\"\n\
    [[pool]]\nname = \"p\"\ntable_size = 13\nbackends = [{ name = \"vm\", address = \"10.0.0.1\" }]\n";

fn text(which: u8, other: &[u8]) -> Vec<u8> {
    match which % 4 {
        0 => format!("[node]\nrole = \"mux\"\n{UNDERLAY}{POOL}").into_bytes(),
        1 => format!("[node]\nrole = \"host\"\n{UNDERLAY}{POOL}").into_bytes(),
        2 => PROXY.as_bytes().to_vec(),
        _ => other.to_vec(),
    }
}

/// A handle of a role, which may be NULL.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    Mux(*mut slb_mux),
    Host(*mut slb_host),
    Proxy(*mut slb_proxy),
}

/// Calls the function of a role, by the role's prefix.
macro_rules! of {
    ($role:expr, $mux:ident $host:ident $proxy:ident ($($argument:expr),*)) => {
        match $role {
            Role::Mux(handle) => slb::$mux(handle $(, $argument)*),
            Role::Host(handle) => slb::$host(handle $(, $argument)*),
            Role::Proxy(handle) => slb::$proxy(handle $(, $argument)*),
        }
    };
}

impl Role {
    fn is_null(self) -> bool {
        match self {
            Self::Mux(handle) => handle.is_null(),
            Self::Host(handle) => handle.is_null(),
            Self::Proxy(handle) => handle.is_null(),
        }
    }
}

/// The objects that a program has made and not freed.
#[derive(Default)]
struct Program {
    configs: Vec<*mut slb_config>,
    snapshots: Vec<*mut slb_snapshot>,
    roles: Vec<Role>,
}

/// Picks one of the objects, or NULL.
fn pick<T>(all: &[*mut T], which: u8) -> *mut T {
    let place = usize::from(which) % (all.len() + 1);
    all.get(place).copied().unwrap_or(null_mut())
}

impl Program {
    /// Makes a program that runs a mux and a host agent.
    fn new() -> Self {
        let mut program = Self::default();
        program.parse(1, &[]);
        program.snapshot(0, false);
        let options = Options {
            places: 64,
            answers: 8,
            flows_per_source: 0,
        };
        program.make(0, 0, &options);
        program.make(1, 0, &options);
        program
    }

    fn role(&self, which: u8) -> Role {
        let place = usize::from(which) % (self.roles.len() + 1);
        let none = Role::Mux(null_mut());
        self.roles.get(place).copied().unwrap_or(none)
    }

    fn call(&mut self, call: &Call) {
        match call {
            Call::Parse(which, other) => self.parse(*which, other),
            Call::Snapshot(which, follows) => self.snapshot(*which, *follows),
            Call::Make(role, snapshot, options) => self.make(*role, *snapshot, options),
            Call::Process(role, packets, now, then, beyond) => {
                self.process(*role, packets, *now, *then, *beyond);
            }
            Call::Advance(role, now, count) => advance(self.role(*role), *now, *count),
            Call::Install(role, snapshot) => self.install(*role, *snapshot),
            Call::SetBackend(which, weight, state) => self.set_backend(*which, *weight, *state),
            Call::Look(role, cursor) => look(self.role(*role), *cursor),
            Call::FreeSnapshot(which) => self.free_snapshot(*which),
            Call::FreeRole(which) => self.free_role(*which),
            Call::FreeConfig(which) => {
                let config = pick(&self.configs, *which);
                // SAFETY: it is one of ours, and not freed.
                assert!(unsafe { slb::slb_config_free(config) } >= 0);
                self.configs.retain(|own| *own != config);
            }
            Call::Wrong(role, snapshot) => self.wrong(*role, *snapshot),
        }
    }

    fn parse(&mut self, which: u8, other: &[u8]) {
        let text = text(which, other);
        let mut faults = [0x5a_u8; 64];
        let mut config = null_mut();
        // SAFETY: both are as long as is said; the last bytes are not lent.
        let result = unsafe {
            slb::slb_config_parse(
                text.as_ptr().cast(),
                text.len(),
                faults.as_mut_ptr().cast(),
                faults.len() - 8,
                &mut config,
            )
        };
        assert_eq!(faults[56..], [0x5a; 8]);
        assert_eq!(result >= 0, !config.is_null());
        assert!(which % 4 == 3 || result >= 0);
        if result >= 0 {
            self.configs.push(config);
        } else {
            assert!(faults[..56].contains(&0), "faults end with a NUL");
        }
    }

    fn snapshot(&mut self, which: u8, follows: bool) {
        let config = pick(&self.configs, which);
        let before = self.snapshots.last().copied().filter(|_| follows);
        let mut snapshot = null_mut();
        // SAFETY: handles are ours, and not freed.
        let result = unsafe {
            slb::slb_config_snapshot(config, before.unwrap_or(null_mut()), &mut snapshot)
        };
        assert_eq!(result >= 0, !snapshot.is_null());
        assert_eq!(result >= 0, !config.is_null());
        if result >= 0 {
            self.snapshots.push(snapshot);
        }
    }

    fn make(&mut self, role: u8, snapshot: u8, wanted: &Options) {
        let snapshot = pick(&self.snapshots, snapshot);
        let places = usize::from(wanted.places);
        let (mut mux_options, mut options) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        let mut made = [Role::Mux(null_mut()); 1];
        // SAFETY: there is room for options, and the handle is ours or NULL.
        let result = unsafe {
            slb::slb_mux_options_init(mux_options.as_mut_ptr());
            slb::slb_nat_options_init(options.as_mut_ptr());
            let (mut mux_options, mut options) = (mux_options.assume_init(), options.assume_init());
            (mux_options.flows, options.connections) = (places, places);
            (mux_options.key, options.key) = ([1, 2], [1, 2]);
            mux_options.answers_per_second = wanted.answers.into();
            options.answers_per_second = wanted.answers.into();
            options.resets_per_second = wanted.answers.into();
            // Buckets for sources take longest to make.
            if wanted.flows_per_source < 8 {
                mux_options.flows_per_source = wanted.flows_per_source.into();
                options.flows_per_source = wanted.flows_per_source.into();
            }
            match role % 3 {
                0 => {
                    let mut mux = null_mut();
                    let result = slb::slb_mux_new(snapshot, &mux_options, &mut mux);
                    made[0] = Role::Mux(mux);
                    result
                }
                1 => {
                    let mut host = null_mut();
                    let result = slb::slb_host_new(snapshot, &options, &mut host);
                    made[0] = Role::Host(host);
                    result
                }
                _ => {
                    let mut proxy = null_mut();
                    let result = slb::slb_proxy_new(snapshot, &options, &mut proxy);
                    made[0] = Role::Proxy(proxy);
                    result
                }
            }
        };
        assert_eq!(result >= 0, !made[0].is_null());
        let is_of_another = result == SLB_ERROR_ROLE as i32;
        assert_eq!(result >= 0 || is_of_another, !snapshot.is_null());
        if result >= 0 {
            self.roles.push(made[0]);
        }
    }

    fn process(
        &mut self,
        role: u8,
        packets: &[Nearly],
        now: u32,
        then: Option<u8>,
        beyond: Option<u8>,
    ) {
        const HEADROOM: usize = slb::SLB_HEADROOM;
        let packets: Vec<Vec<u8>> = packets.iter().map(Nearly::packet).collect();
        let mut memory: Vec<Vec<u8>> = packets
            .iter()
            .map(|packet| [&[0; HEADROOM], &packet[..], &[0xa5; 16]].concat())
            .collect();
        let buffers = memory.iter_mut().zip(&packets);
        let mut frames: Vec<slb_frame> = buffers
            .map(|(buffer, packet)| slb_frame {
                buffer: buffer.as_mut_ptr(),
                capacity: (HEADROOM + packet.len()) as u32,
                offset: HEADROOM as u32,
                length: packet.len() as u32,
                port: 0,
                action: 77,
                reason: 77,
            })
            .collect();
        let wrong = beyond.filter(|_| !frames.is_empty());
        if let Some(place) = wrong {
            let place = usize::from(place) % frames.len();
            frames[place].length += 1;
        }
        for role in [Some(role), then].into_iter().flatten() {
            let role = self.role(role);
            let before = stats(role);
            let places = |frames: &[slb_frame]| -> Vec<_> {
                let of = |frame: &slb_frame| (frame.action, frame.offset, frame.length);
                frames.iter().map(of).collect()
            };
            let were = places(&frames);
            let (first, count) = (frames.as_mut_ptr(), frames.len());
            let now = u64::from(now) << 10;
            // SAFETY: so many frames there are, each with its memory.
            let result = unsafe {
                of!(role, slb_mux_process slb_host_process slb_proxy_process(now, first, count, null_mut()))
            };
            if role.is_null() || wrong.is_some() {
                assert!(result < 0);
                assert_eq!(places(&frames), were);
                assert_eq!(before.received, stats(role).received);
                break;
            }
            assert_eq!(result, count as c_int);
            let after = stats(role);
            assert_eq!(after.received - before.received, count as u64);
            for frame in &mut frames {
                let end = u64::from(frame.offset) + u64::from(frame.length);
                assert!(end <= frame.capacity.into());
                assert!(frame.action <= 4);
                frame.port = 0;
            }
        }
        for (buffer, packet) in memory.iter().zip(&packets) {
            let rest = &buffer[HEADROOM + packet.len()..];
            assert!(rest.iter().all(|&byte| byte == 0xa5));
        }
    }

    fn install(&mut self, role: u8, snapshot: u8) {
        let (role, next) = (self.role(role), pick(&self.snapshots, snapshot));
        let mut before = null_mut();
        // SAFETY: handles are ours, and not freed.
        let result = unsafe {
            of!(role, slb_mux_install slb_host_install slb_proxy_install(next, &mut before))
        };
        let is_refused = result == SLB_ERROR_ROLE as i32 || result == SLB_ERROR_LINEAGE as i32;
        let are_there = !role.is_null() && !next.is_null();
        assert_eq!(result >= 0 || is_refused, are_there);
        assert!(result < 0 || self.snapshots.contains(&before));
    }

    fn set_backend(&self, which: u8, weight: u8, state: u8) {
        let config = pick(&self.configs, which);
        let weight = weight.into();
        for name in [c"vm", c"p/vm", c"", c"none"] {
            // SAFETY: the handle is ours; names end with a NUL.
            let result =
                unsafe { slb::slb_config_set_backend(config, name.as_ptr(), weight, state) };
            assert!(result < 0 || (state < 3 && !config.is_null()));
        }
        // SAFETY: as above.
        let result = unsafe { slb::slb_config_set_backend(config, null(), weight, state) };
        assert!(result < 0);
    }

    fn free_snapshot(&mut self, which: u8) {
        let snapshot = pick(&self.snapshots, which);
        // SAFETY: it is one of ours, and not freed.
        if unsafe { slb::slb_snapshot_free(snapshot) } >= 0 {
            self.snapshots.retain(|own| *own != snapshot);
        }
    }

    fn free_role(&mut self, which: u8) {
        let role = self.role(which);
        // SAFETY: it is one of ours, and not freed.
        let result = unsafe { of!(role, slb_mux_free slb_host_free slb_proxy_free()) };
        assert!(result >= 0);
        self.roles.retain(|own| *own != role);
    }

    fn wrong(&self, role: u8, snapshot: u8) {
        let (role, snapshot) = (self.role(role), pick(&self.snapshots, snapshot));
        let is_null = role.is_null();
        // SAFETY: handles are ours, and not freed, and say of what kind they are.
        unsafe {
            let not_one: *mut slb_mux = snapshot.cast();
            assert!(slb::slb_mux_free(not_one) < 0 || snapshot.is_null());
            let (not_a_snapshot, not_a_mux): (*mut slb_snapshot, *mut slb_mux) = match role {
                Role::Mux(mux) => (mux.cast(), null_mut()),
                Role::Host(host) => (host.cast(), host.cast()),
                Role::Proxy(proxy) => (proxy.cast(), proxy.cast()),
            };
            assert!(slb::slb_snapshot_free(not_a_snapshot) < 0 || is_null);
            assert!(slb::slb_mux_free(not_a_mux) < 0 || not_a_mux.is_null());
            assert_eq!(slb::slb_snapshot_generation(not_a_snapshot), 0);
        }
    }

    /// Objects in use cannot be freed; in the right order all of them can.
    fn end(mut self) {
        while !self.roles.is_empty() {
            self.free_role(0);
        }
        while let Some(snapshot) = self.snapshots.pop() {
            // SAFETY: it is one of ours, and not freed.
            assert!(unsafe { slb::slb_snapshot_free(snapshot) } >= 0);
        }
        while let Some(config) = self.configs.pop() {
            // SAFETY: it is one of ours, and not freed.
            assert!(unsafe { slb::slb_config_free(config) } >= 0);
        }
    }
}

/// Returns the counters of a role, in which each frame is counted once.
fn stats(role: Role) -> slb_stats {
    let mut stats = slb_stats::default();
    // SAFETY: the handle is ours, and not freed.
    let result = unsafe { of!(role, slb_mux_stats slb_host_stats slb_proxy_stats(&mut stats)) };
    assert_eq!(result >= 0, !role.is_null());
    let all = stats.forwarded + stats.replied + stats.passed + stats.dropped;
    assert!(stats.received <= all, "a flood counts for each port");
    assert!(stats.flows_live <= stats.flow_places);
    assert!(stats.connections_live <= stats.connection_places);
    stats
}

fn advance(role: Role, now: u64, count: u8) {
    let mut memory = vec![[0xa5_u8; 160]; usize::from(count % 4)];
    let mut spare: Vec<slb_frame> = memory
        .iter_mut()
        .map(|buffer| slb_frame {
            buffer: buffer.as_mut_ptr(),
            capacity: 144,
            offset: 0,
            length: 0,
            port: 0,
            action: 0,
            reason: 0,
        })
        .collect();
    let (first, count) = (spare.as_mut_ptr(), spare.len());
    // SAFETY: so many frames there are, each with its memory; the handle is ours.
    let result =
        unsafe { of!(role, slb_mux_advance slb_host_advance slb_proxy_advance(now, first, count)) };
    assert_eq!(result >= 0, !role.is_null());
    if result >= 0 {
        let made = spare.iter().filter(|frame| frame.length > 0).count();
        assert_eq!(result, made as c_int);
    }
    assert!(
        memory
            .iter()
            .all(|buffer| buffer[144..].iter().all(|&byte| byte == 0xa5))
    );
}

/// Asks for what is listed, from a cursor of any value.
fn look(role: Role, cursor: u64) {
    let mut cursor = cursor;
    // SAFETY: there is room for as many as is said; the handle is ours.
    unsafe {
        match role {
            Role::Mux(mux) => {
                let mut some: [MaybeUninit<slb::slb_flow>; 8] = [MaybeUninit::uninit(); 8];
                let first = some.as_mut_ptr().cast();
                let result = slb::slb_mux_flows(mux, &mut cursor, first, some.len());
                assert!(mux.is_null() == (result < 0) && result <= 8);
            }
            Role::Host(host) => {
                let mut some: [MaybeUninit<slb::slb_connection>; 8] = [MaybeUninit::uninit(); 8];
                let first = some.as_mut_ptr().cast();
                let result = slb::slb_host_connections(host, &mut cursor, first, some.len());
                assert!(host.is_null() == (result < 0) && result <= 8);
            }
            Role::Proxy(proxy) => {
                let mut some: [MaybeUninit<slb::slb_connection>; 8] = [MaybeUninit::uninit(); 8];
                let first = some.as_mut_ptr().cast();
                let result = slb::slb_proxy_connections(proxy, &mut cursor, first, some.len());
                assert!(proxy.is_null() == (result < 0) && result <= 8);
            }
        }
    }
}

#[test]
fn c_functions_in_any_order() {
    bolero::check!().with_type::<Vec<Call>>().for_each(|calls| {
        let mut program = Program::new();
        for call in calls {
            program.call(call);
        }
        program.end();
    });
}
