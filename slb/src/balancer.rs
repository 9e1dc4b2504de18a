//! The balancer of a configuration, in any role.

use std::sync::Arc;

use slb_control::{Config, HugePages, Role};
#[cfg(feature = "live")]
use slb_core::MuxOptions;
#[cfg(feature = "live")]
use slb_core::counters::CounterMemory;
#[cfg(feature = "live")]
use slb_core::list::{Entry, Filter, Listed};
#[cfg(feature = "live")]
use slb_core::mem::Mem;
#[cfg(feature = "live")]
use slb_core::nat::NatOptions;
use slb_core::nat::NatTable;
use slb_core::observe::Observe;
#[cfg(feature = "live")]
use slb_core::snapshot::Rejected;
use slb_core::snapshot::{BackendId, RoleError, Snapshot};
#[cfg(feature = "live")]
use slb_core::state::{Age, Cursor, Exported, Imported, StateError};
use slb_core::stats::{BackendCounters, RuleCounters, SecurityCounters, SnatCounters, VmCounters};
#[cfg(feature = "live")]
use slb_core::steer::Share;
use slb_core::{
    Burst, Dataplane, FragmentRoom, Frame, Host, Instant, Key, Mux, PortId, Proxy, SourceLimiter,
    Stats,
};

use crate::Failure;

type Shared = Arc<Snapshot<'static>>;

/// The tables' key of a replay. It is not secret, so that each replay gives the same result.
const KEY: Key = Key::new([0x736c_6220_7265_706c, 0x6179_2066_6c6f_7773]);

/// A mux, a host agent or a proxy, and the ports of its frames.
pub(crate) struct Balancer {
    role: Running,
    current: Shared,
    /// The vms of a host agent, with the port and MAC address of each.
    vms: Vec<(PortId, [u8; 6])>,
}

/// Rates and other terms of a configuration that a running balancer takes over.
#[cfg(feature = "live")]
pub(crate) struct Limits {
    mux: MuxOptions,
    nat: NatOptions,
    sources: SourceLimiter<'static>,
}

#[cfg(feature = "live")]
impl Limits {
    /// Returns the limits of each worker that shares the connections of a configuration. The key is
    /// for the limit of each source, which belongs to one worker.
    pub(crate) fn of(config: &Config, key: Key, workers: u32) -> Result<Self, Failure> {
        let memory = &mut HugePages;
        let none = || Failure::failed("there is not enough memory for flows_per_source");
        let sources = match config.source_limit(key, memory) {
            Some(limiter) => limiter.ok_or_else(none)?,
            None => SourceLimiter::new(Mem::empty(), 0, 1, key),
        };
        Ok(Self {
            mux: config.mux_options(),
            nat: config.nat_options().divided(workers),
            sources,
        })
    }
}

#[expect(
    clippy::large_enum_variant,
    reason = "a worker has one, which stays where it is"
)]
enum Running {
    Mux(Mux<'static, Shared>),
    Host(Host<'static, Shared>),
    Proxy(Proxy<'static, Shared>),
}

impl Running {
    fn with_fragment_room(self, room: FragmentRoom<'static>) -> Self {
        match self {
            Self::Mux(mux) => Self::Mux(mux.with_fragment_room(room)),
            Self::Host(host) => Self::Host(host.with_fragment_room(room)),
            Self::Proxy(proxy) => Self::Proxy(proxy.with_fragment_room(room)),
        }
    }

    fn with_source_limit(self, limiter: SourceLimiter<'static>) -> Self {
        match self {
            Self::Mux(mux) => Self::Mux(mux.with_source_limit(limiter)),
            Self::Host(host) => Self::Host(host.with_source_limit(limiter)),
            Self::Proxy(proxy) => Self::Proxy(proxy.with_source_limit(limiter)),
        }
    }
}

macro_rules! on {
    ($balancer:expr, $role:ident => $call:expr) => {
        match $balancer {
            Running::Mux($role) => $call,
            Running::Host($role) => $call,
            Running::Proxy($role) => $call,
        }
    };
}

impl Balancer {
    pub(crate) fn new(config: &Config) -> Result<Self, Failure> {
        let snapshot = config.snapshot(None).map_err(Failure::usage)?;
        Self::with_snapshot(config, snapshot, KEY)
    }

    /// Makes a balancer with a snapshot of the configuration, and with tables that use the given
    /// key.
    pub(crate) fn with_snapshot(
        config: &Config,
        snapshot: Shared,
        key: Key,
    ) -> Result<Self, Failure> {
        let current = Arc::clone(&snapshot);
        let memory = &mut HugePages;
        let none = || Failure::failed("there is not enough memory for the tables");
        let refused = |error| match error {
            RoleError::Memory => none(),
            error => Failure::failed(error.to_string()),
        };
        let role = match config.node.role {
            Role::Mux => {
                let mux = Mux::build(snapshot, config.node.flows, key, memory).map_err(refused)?;
                Running::Mux(mux.with_options(config.mux_options()))
            }
            Role::Host => {
                let connections = config.node.connections;
                let host = Host::build(snapshot, connections, key, memory).map_err(refused)?;
                Running::Host(host.with_options(config.nat_options()))
            }
            Role::Proxy => {
                let connections = config.node.connections;
                let proxy = Proxy::build(snapshot, connections, key, memory).map_err(refused)?;
                Running::Proxy(proxy.with_options(config.nat_options()))
            }
        };
        let limiter = config.source_limit(key, memory);
        let role = match limiter
            .map(|limiter| limiter.ok_or_else(none))
            .transpose()?
        {
            Some(limiter) => role.with_source_limit(limiter),
            None => role,
        };
        let room = config.fragment_room(key, memory);
        let role = match room.map(|room| room.ok_or_else(none)).transpose()? {
            Some(room) => role.with_fragment_room(room),
            None => role,
        };
        let flows = config.direct_flows(key, memory);
        let flows = flows.map(|flows| flows.ok_or_else(none)).transpose()?;
        let role = match (role, flows) {
            (Running::Host(host), Some(flows)) => Running::Host(host.with_direct_flows(flows)),
            (role, _) => role,
        };
        let vms = config.vms().into_iter();
        let vms = vms.filter_map(|vm| Some((vm.port?, vm.mac.0))).collect();
        Ok(Self { role, current, vms })
    }

    /// Sets the limits of one of `workers` workers that share the connections of a host agent or a
    /// proxy.
    #[cfg(feature = "live")]
    pub(crate) fn divide_limits(&mut self, config: &Config, workers: u32) {
        let options = config.nat_options().divided(workers);
        match &mut self.role {
            Running::Mux(_) => {}
            Running::Host(host) => host.set_options(options),
            Running::Proxy(proxy) => proxy.set_options(options),
        }
    }

    /// Returns the installed snapshot.
    pub(crate) fn shared_snapshot(&self) -> Shared {
        Arc::clone(&self.current)
    }

    /// Installs another snapshot, and returns the old one.
    #[cfg(feature = "live")]
    pub(crate) fn install(&mut self, snapshot: Shared) -> Result<Shared, Rejected<Shared>> {
        let next = Arc::clone(&snapshot);
        let old = on!(&mut self.role, role => role.install(snapshot))?;
        self.current = next;
        Ok(old)
    }

    /// Moves the counters into larger memory, and returns the old memory.
    #[cfg(feature = "live")]
    pub(crate) fn replace_counters(
        &mut self,
        counters: CounterMemory<'static>,
    ) -> CounterMemory<'static> {
        on!(&mut self.role, role => role.replace_counters(counters))
    }

    /// Installs limits, and returns them with the old limiter, which the caller frees.
    #[cfg(feature = "live")]
    pub(crate) fn set_limits(&mut self, limits: Limits) -> Limits {
        let Limits { mux, nat, sources } = limits;
        match &mut self.role {
            Running::Mux(role) => role.set_options(mux),
            Running::Host(role) => role.set_options(nat),
            Running::Proxy(role) => role.set_options(nat),
        }
        let sources = on!(&mut self.role, role => role.replace_source_limit(sources));
        Limits { mux, nat, sources }
    }

    /// Sets the port of a frame, which a capture lacks: a frame with a vm's MAC address as its
    /// source comes from that vm, and any other from the fabric.
    pub(crate) fn set_port(&self, frame: &mut Frame<'_>) {
        if matches!(self.role, Running::Proxy(_)) {
            return; // each capture belongs to one port
        }
        let source = frame.bytes().get(6..12);
        let vm = self.vms.iter().find(|(_, mac)| source == Some(mac));
        let fabric = self.snapshot().underlay().port;
        frame.set_port(vm.map_or(fabric, |&(port, _)| port));
    }

    /// Returns the port of the vm with a MAC address.
    pub(crate) fn port_of(&self, mac: [u8; 6]) -> Option<PortId> {
        let vm = self.vms.iter().find(|&&(_, other)| other == mac);
        vm.map(|&(port, _)| port)
    }

    pub(crate) fn process(
        &mut self,
        now: Instant,
        frames: &mut [Frame<'_>],
        seen: &mut impl Observe,
    ) {
        on!(&mut self.role, role => role.process_observed(now, frames, seen));
    }

    /// Lists flows or connections; see [`slb_core::list`].
    #[cfg(feature = "live")]
    pub(crate) fn list(
        &self,
        from: Cursor,
        most: usize,
        filter: &Filter<'_>,
        each: &mut dyn FnMut(Cursor, &Entry) -> bool,
    ) -> Listed {
        on!(&self.role, role => role.list(from, most, filter, each))
    }

    /// Writes connections or flows as records; see [`slb_core::state`].
    #[cfg(feature = "live")]
    pub(crate) fn export(&self, from: Cursor, into: &mut [u8]) -> Exported {
        on!(&self.role, role => role.export(from, into))
    }

    /// Exports the connections of one vm of a host agent, named by one of its backends. Exports nothing if the
    /// vm is not here.
    #[cfg(feature = "live")]
    pub(crate) fn export_vm(&self, vm: &str, from: Cursor, into: &mut [u8]) -> Exported {
        let exported = match &self.role {
            Running::Host(host) => host.export_vm(vm, from, into),
            _ => None,
        };
        exported.unwrap_or(Exported {
            len: 0,
            records: 0,
            next: None,
        })
    }

    /// Takes over connections or flows from another process.
    #[cfg(feature = "live")]
    pub(crate) fn import(
        &mut self,
        now: Instant,
        age: Age,
        records: &[u8],
    ) -> Result<Imported, StateError> {
        on!(&mut self.role, role => role.import(now, age, records))
    }

    /// Takes over the connections of one worker. Flows of a mux have no owner, so all are taken
    /// over.
    #[cfg(feature = "live")]
    pub(crate) fn import_share(
        &mut self,
        now: Instant,
        age: Age,
        records: &[u8],
        share: Share<'_>,
    ) -> Result<Imported, StateError> {
        match &mut self.role {
            Running::Mux(mux) => mux.import(now, age, records),
            Running::Host(host) => host.import_share(now, age, records, share),
            Running::Proxy(proxy) => proxy.import_share(now, age, records, share),
        }
    }

    /// Makes a host agent or a proxy take up connections that began before now. A mux needs no
    /// take-up.
    #[cfg(feature = "live")]
    pub(crate) fn take_up(&mut self, now: Instant) {
        match &mut self.role {
            Running::Mux(_) => {}
            Running::Host(host) => host.take_up(now),
            Running::Proxy(proxy) => proxy.take_up(now),
        }
    }

    pub(crate) fn advance(&mut self, now: Instant, spare: &mut Burst<'_>) {
        on!(&mut self.role, role => Dataplane::advance(role, now, spare));
    }

    pub(crate) fn stats(&self) -> Stats {
        on!(&self.role, role => role.stats())
    }

    pub(crate) fn snapshot(&self) -> &Snapshot<'static> {
        on!(&self.role, role => role.snapshot())
    }

    pub(crate) fn rule_counters(&self, rule: u32) -> Option<RuleCounters> {
        on!(&self.role, role => role.rule_counters(rule as usize))
    }

    /// Counters of all rules of an access list; `None` where there is no such list, or no vm with any.
    pub(crate) fn security_counters(&self, list: usize) -> Option<Vec<SecurityCounters>> {
        let Running::Host(host) = &self.role else {
            return None;
        };
        let rules = host.snapshot().security_rules(list)?;
        let counters = (0..rules).map(|rule| host.security_counters(list, rule));
        Some(counters.map(Option::unwrap_or_default).collect())
    }

    /// Traffic of the vm at a port; `None` if there is none, or if the role has no vms.
    pub(crate) fn vm_counters(&self, port: u16) -> Option<VmCounters> {
        match &self.role {
            Running::Host(host) => host.vm_counters(PortId(port)),
            Running::Mux(_) | Running::Proxy(_) => None,
        }
    }

    pub(crate) fn backend_counters(&self, id: BackendId) -> Option<BackendCounters> {
        on!(&self.role, role => role.backend_counters(id))
    }

    /// Returns true if the role is a mux that pins flows.
    pub(crate) fn is_pinned(&self) -> bool {
        matches!(&self.role, Running::Mux(mux) if mux.flows().is_some())
    }

    /// The connections of a host agent or a proxy.
    pub(crate) fn connections(&self) -> Option<&NatTable<'static>> {
        match &self.role {
            Running::Mux(_) => None,
            Running::Host(host) => Some(host.connections()),
            Running::Proxy(proxy) => Some(proxy.connections()),
        }
    }

    /// A backend's SNAT ports; `None` if it has none here.
    pub(crate) fn snat_counters(&self, id: BackendId) -> Option<SnatCounters> {
        let Running::Host(host) = &self.role else {
            return None;
        };
        let counters = host.snat_counters(id)?;
        (counters.ports > 0).then_some(counters)
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use slb_core::HEADROOM;

    use super::*;

    const HOST: &str = include_str!("../../examples/host.toml");
    const PROXY: &str = include_str!("../../examples/proxy.toml");

    /// The port that the source of each of 40 connections is translated to. They come in at `port`,
    /// from one address, and from client ports on from 40 000.
    fn ports(
        config: &str,
        key: Key,
        port: PortId,
        (source, destination): ([u8; 4], [u8; 4]),
    ) -> Vec<u16> {
        let config = Config::parse("test.toml", config).expect("a good configuration");
        let snapshot = config.snapshot(None).expect("a good configuration");
        let mut balancer = Balancer::with_snapshot(&config, snapshot, key).expect("enough memory");
        let mac = match config.node.role {
            Role::Host => balancer.vms[0].1,
            _ => [2, 0, 0, 0, 0, 9],
        };
        let now = Instant::from_secs(1);
        let one = |client: u16| {
            let mut buffer = vec![0; 512];
            let mut packet = Vec::new();
            PacketBuilder::ethernet2(mac, [2, 0, 0, 0, 0, 1])
                .ipv4(source, destination, 64)
                .tcp(client, 80, 1, 1000)
                .syn()
                .write(&mut packet, &[])
                .expect("a packet");
            buffer[HEADROOM..][..packet.len()].copy_from_slice(&packet);
            let mut frame = Frame::new(&mut buffer, HEADROOM, packet.len()).expect("it fits");
            frame.set_port(port);
            balancer.process(now, core::slice::from_mut(&mut frame), &mut ());
            assert!(
                matches!(frame.verdict(), slb_core::Verdict::Forward(_)),
                "{:?}",
                frame.verdict()
            );
            // Behind Ethernet and IPv4.
            u16::from_be_bytes([frame.bytes()[34], frame.bytes()[35]])
        };
        (40_000..40_040).map(one).collect()
    }

    /// The program's own balancer, with the options of the configuration in place.
    #[test]
    fn snat_ports_are_the_keys() {
        let source_nat = PROXY.replacen("tcp_reset = true", "source_nat = \"10.0.0.9\"", 1);
        assert_ne!(source_nat, PROXY);
        let at_host = ([10, 10, 1, 11], [198, 51, 100, 7]);
        let at_proxy = ([1, 2, 3, 4], [20, 20, 20, 100]);
        for (config, port, way) in [
            (HOST, PortId(1), at_host),
            (source_nat.as_str(), PortId(0), at_proxy),
        ] {
            let of = |words| ports(config, Key::new(words), port, way);
            let one = of([1, 2]);
            assert_eq!(one, of([1, 2]));
            for other in [[1, 3], [2, 2], [2, 1]] {
                let other = of(other);
                let same = one.iter().zip(&other).filter(|(a, b)| a == b).count();
                assert!(same < 4, "{same} of 40 ports are the same");
            }
        }
    }
}
