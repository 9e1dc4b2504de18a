//! The vms of this node, their SNAT ports, and the node's peers.

mod compile;
mod size;

use core::net::IpAddr;

use self::compile::compress;
pub(super) use self::compile::owner;
pub(crate) use self::size::NatSize;
use super::networks::Networks;
use super::probe_map::{NONE, ProbeMap, RuleBucket, VipBucket};
use super::proxy::{CompiledProxy, next_hops_of};
use super::registry::{Registry, RegistryEntry};
use super::security::{Security, VmLists};
use super::terms::CompiledTerms;
use crate::mem::{Mem, Memory};
use crate::nat::connection::{Policy, Span};
use crate::spec::snat::GRANULE;
use crate::spec::{Protocol, Spec, ranges};
use crate::tunnel::encapsulation::Template;
use crate::verdict::PortId;
use crate::wire::ethernet::MacAddress;
use crate::wire::vxlan::Vni;

/// Stands for an unknown sender.
pub(crate) const NO_SENDER: u32 = NONE;
/// Senders from this number on are hosts, those below are muxes.
const FIRST_HOST: u32 = 1 << 16;
/// The first number of a host from which vms have moved here, and which is no longer configured.
const FIRST_FORMER: u32 = 1 << 31;
/// The maximum number of such hosts; the last ones are kept.
const MAX_FORMER: usize = 8;

/// The maximum number of muxes.
const MAX_MUXES: usize = 254;
/// Numbers of muxes are less than `Policy::NETWORK`, which means no mux.
const _: () = assert!(MAX_MUXES <= Policy::NETWORK as usize);
const LOCAL_BITS: u32 = 11;
/// The maximum number of locals. The last number stays free: an id is never [`UNNUMBERED`].
const MAX_LOCALS: usize = (1 << LOCAL_BITS) - 1;
pub(crate) const UNNUMBERED: u16 = u16::MAX;

/// A vm on this node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vm {
    pub(crate) port: PortId,
    pub(crate) mac: MacAddress,
    pub(crate) vni: Vni,
    /// Access lists of the vm.
    pub(crate) lists: VmLists,
    /// The first of the vm's backends, if any.
    first: u32,
}

/// A backend whose vm is on this node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local {
    /// Index of the backend among all backends.
    pub(crate) backend: u32,
    /// Index of the backend's counters.
    pub(crate) counters: u32,
    /// Id that is stable across generations, and never reused.
    pub(crate) id: u16,
    pub(crate) address: IpAddr,
    /// The port of this node for the backend's vm; unused at a proxy.
    pub(crate) zone: PortId,
    /// The port that the backend serves instead of the rule's, in packets' byte order.
    pub(crate) port: Option<u16>,
    /// True if the backend is unhealthy for some rule.
    pub(crate) suspect: bool,
    /// The next backend of the same vm.
    next: u32,
    /// Port blocks of the vm.
    blocks: (u32, u32),
}

/// The ports of one frontend that a backend may use for outbound connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// The frontend's address.
    pub(crate) address: IpAddr,
    /// The rule that answers to these ports match.
    pub(crate) rule: u32,
    /// The outbound rule that assigned the ports.
    pub(crate) outbound: u32,
    granules: (u32, u32),
}

/// The terms of an outbound rule's connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CompiledOutbound {
    pub(crate) idle: Span,
    pub(crate) reset: bool,
    pub(crate) protocol: Protocol,
}

/// A mux through which answers may go back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CompiledMux {
    pub(crate) template: Template,
    pub(crate) address: [u64; 2],
    /// True if a host agent has the same address.
    pub(crate) is_host: bool,
}

/// The vms, ports and peers of this node.
#[derive(Debug)]
pub(crate) struct Nat<'m> {
    vms: Mem<'m, Vm>,
    vm_count: usize,
    locals: Mem<'m, Local>,
    local_ids: Registry<'m>,
    blocks: Mem<'m, Block>,
    granules: Mem<'m, u16>,
    outbound: Mem<'m, CompiledOutbound>,
    muxes: Mem<'m, CompiledMux>,
    vm_by_mac: ProbeMap<'m, [u64; 2], 3>,
    vm_by_port: ProbeMap<'m, u64, 5>,
    local_by_pool: ProbeMap<'m, u64, 5>,
    peers: ProbeMap<'m, [u64; 2], 3>,
    vnis: ProbeMap<'m, u64, 5>,
    /// The owners of addresses by network.
    pub(crate) networks: Networks<'m>,
    /// The access lists of vms.
    pub(crate) security: Security<'m>,
    /// Vms that have moved from this node to another host: for each, the index of one of its
    /// backends among all backends.
    moved: ProbeMap<'m, [u64; 2], 3>,
    moved_count: usize,
    /// Former hosts of vms that have moved here, the newest first. A former host that the configuration no longer
    /// names still passes packets on.
    former_hosts: Mem<'m, [u64; 2]>,
    former_count: usize,
    local_by_backend: ProbeMap<'m, u64, 5>,
    /// The ranges of inside addresses, ascending and disjoint.
    inside: Mem<'m, [IpAddr; 2]>,
    inside_count: usize,
    /// For a proxy, its ports.
    pub(crate) proxy: Option<CompiledProxy<'m>>,
}

impl<'m> Nat<'m> {
    /// Allocates the tables; returns `None` if the memory is used up.
    pub(crate) fn new(
        size: &NatSize,
        spec: &Spec<'_>,
        generation: u64,
        previous: Option<&Nat<'_>>,
        memory: &mut impl Memory<'m>,
    ) -> Option<Self> {
        const NO_ADDRESS: IpAddr = IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED);
        let vm = Vm {
            port: PortId(0),
            mac: MacAddress([0; 6]),
            vni: Vni::default(),
            lists: VmLists::NONE,
            first: NONE,
        };
        let local = Local {
            backend: 0,
            counters: 0,
            id: 0,
            address: NO_ADDRESS,
            zone: PortId(0),
            port: None,
            suspect: false,
            next: NONE,
            blocks: (0, 0),
        };
        let block = Block {
            address: NO_ADDRESS,
            rule: 0,
            outbound: 0,
            granules: (0, 0),
        };
        let outbound = CompiledOutbound {
            idle: CompiledTerms::EMPTY.idle,
            reset: false,
            protocol: Protocol::All,
        };
        let mux = CompiledMux {
            template: Template::EMPTY,
            address: [0; 2],
            is_host: false,
        };
        let mut map = |keys| {
            let buckets = ProbeMap::<u64, 5>::buckets_for(keys);
            memory.take(buckets, RuleBucket::EMPTY)
        };
        let ids = map(size.locals)?;
        let (vm_by_port, local_by_pool, local_by_backend) =
            (map(size.vms)?, map(size.locals)?, map(size.locals)?);
        let vnis = map(size.pools)?;
        let mut map = |keys| {
            let buckets = ProbeMap::<[u64; 2], 3>::buckets_for(keys);
            memory.take(buckets, VipBucket::EMPTY)
        };
        let (vm_by_mac, peers) = (map(size.vms)?, map(size.peers)?);
        let moved = map(size.moved)?;
        let entries = memory.take(size.local_slots, RegistryEntry::EMPTY)?;
        let identities = memory.take(size.local_slots, 0)?;
        let proxy = previous.and_then(|previous| previous.proxy.as_ref());
        let known_lists = previous.map(|previous| &previous.security);
        let previous = previous.map(|previous| &previous.local_ids);
        Some(Self {
            vms: memory.take(size.vms, vm)?,
            vm_count: 0,
            locals: memory.take(size.locals, local)?,
            local_ids: Registry::continue_from(previous, generation, entries, ids, identities),
            blocks: memory.take(size.blocks, block)?,
            granules: memory.take(size.granules, 0)?,
            outbound: memory.take(size.outbound, outbound)?,
            muxes: memory.take(size.muxes, mux)?,
            vm_by_mac: ProbeMap::new(vm_by_mac),
            vm_by_port: ProbeMap::new(vm_by_port),
            local_by_pool: ProbeMap::new(local_by_pool),
            peers: ProbeMap::new(peers),
            vnis: ProbeMap::new(vnis),
            networks: Networks::new(&size.networks, memory)?,
            security: Security::new(&size.security, generation, known_lists, memory)?,
            moved: ProbeMap::new(moved),
            moved_count: 0,
            former_hosts: memory.take(size.former, [0; 2])?,
            former_count: 0,
            local_by_backend: ProbeMap::new(local_by_backend),
            inside: memory.take(size.inside, [NO_ADDRESS; 2])?,
            inside_count: 0,
            proxy: match &spec.proxy {
                Some(ports) => Some(CompiledProxy::new(
                    ports,
                    next_hops_of(spec),
                    proxy,
                    memory,
                )?),
                None => None,
            },
        })
    }

    /// Makes the node accept packets of a host from which vms have moved here, although it is no
    /// longer configured.
    pub(crate) fn add_former_host(&mut self, host: [u64; 2]) {
        let number = FIRST_FORMER + self.former_count as u32;
        if let Some(place) = self.former_hosts.get_mut(self.former_count)
            && self.peers.insert(host, number).is_ok()
        {
            *place = host;
            self.former_count += 1;
        }
    }

    /// Yields hosts from which vms have moved here, and which are no longer configured, the newest
    /// first.
    pub(crate) fn former_hosts(&self) -> impl Iterator<Item = [u64; 2]> + '_ {
        self.former_hosts.iter().copied().take(self.former_count)
    }

    /// Returns the address of a host that is no longer configured, by its number.
    pub(crate) fn former_host(&self, sender: u32) -> Option<[u64; 2]> {
        let place = sender.checked_sub(FIRST_FORMER)?;
        self.former_hosts().nth(place as usize)
    }

    /// Returns true if the ids of vms in `old` still mean the same here.
    pub(crate) fn follows(&self, old: &Nat<'_>) -> bool {
        self.local_ids.follows(&old.local_ids) && self.security.follows(&old.security)
    }

    /// Returns the vm at a port of this node.
    #[inline]
    pub(crate) fn vm_by_port(&self, port: PortId) -> Option<&Vm> {
        self.vms.get(self.vm_by_port.get(port.0.into())? as usize)
    }

    /// Returns the largest number of a vm's port, plus one; zero without vms.
    pub(crate) fn vm_slots(&self) -> usize {
        let vms = self.vms.iter().take(self.vm_count);
        vms.map(|vm| usize::from(vm.port.0) + 1).max().unwrap_or(0)
    }

    /// Returns the identity of the vm at a port: its MAC address and network.
    pub(crate) fn vm_name(&self, port: PortId) -> Option<[u64; 2]> {
        self.vm_by_port(port).map(|vm| mac_key(vm.mac, vm.vni))
    }

    /// Returns the vm with a MAC address in a network.
    #[inline]
    pub(crate) fn vm_by_mac(&self, mac: MacAddress, vni: Vni) -> Option<&Vm> {
        self.vms
            .get(self.vm_by_mac.get(mac_key(mac, vni))? as usize)
    }

    /// Returns the index of a backend of a vm that has moved from this node to another host.
    pub(crate) fn moved(&self, mac: MacAddress, vni: Vni) -> Option<u32> {
        self.moved.get(mac_key(mac, vni))
    }

    /// Returns the identity of a local that has left this node.
    pub(crate) fn identity_of_former(&self, id: u16) -> Option<u64> {
        let slot = usize::from(id) & MAX_LOCALS;
        let is_same = compress(self.local_ids.id(slot).get()) == id;
        self.local_ids.last_identity_of(slot).filter(|_| is_same)
    }

    /// Returns a pool's backend at the vm of a port.
    pub(crate) fn local_of_pool(&self, pool: u32, port: PortId) -> Option<&Local> {
        let local = self.local_by_pool.get(pool_key(pool, port))?;
        self.locals.get(local as usize)
    }

    /// Returns a local by its backend's index among all backends.
    pub(crate) fn local_of(&self, backend: u32) -> Option<&Local> {
        let local = self.local_by_backend.get(backend.into())?;
        self.locals.get(local as usize)
    }

    /// For a proxy, returns the address that backends see instead of a client's, if there is one.
    pub(crate) fn rewritten(&self, client: IpAddr) -> Option<IpAddr> {
        self.proxy.as_ref()?.rewritten(client)
    }

    /// Returns true if the addresses of some clients are rewritten.
    #[inline]
    pub(crate) fn rewrites_sources(&self) -> bool {
        self.proxy
            .as_ref()
            .is_some_and(CompiledProxy::rewrites_sources)
    }

    /// Returns the local of an id; `None` if it is gone.
    #[inline]
    pub(crate) fn local(&self, id: u16) -> Option<&Local> {
        let slot = usize::from(id) & MAX_LOCALS;
        let index = self.local_ids.owner(slot)?;
        self.locals
            .get(index as usize)
            .filter(|local| local.id == id)
    }

    /// For a proxy, returns the MAC address for a backend's packets, by the backend's id. The outer
    /// `None` means that the backend is gone; the inner one that link headers stay.
    pub(crate) fn next_hop_of(&self, id: u16) -> Option<Option<MacAddress>> {
        self.local(id)?;
        let index = self.local_ids.owner(usize::from(id) & MAX_LOCALS)?;
        Some(self.proxy.as_ref()?.next_hop(index as usize))
    }

    /// Returns the identity of a local, by its id; `None` if it is gone.
    pub(crate) fn identity_of(&self, id: u16) -> Option<u64> {
        self.local(id)?;
        self.local_ids.identity_of(usize::from(id) & MAX_LOCALS)
    }

    /// Returns the local of an identity; `None` if there is none.
    pub(crate) fn local_by_identity(&self, identity: u64) -> Option<&Local> {
        let slot = self.local_ids.slot_of(identity)?;
        self.locals.get(self.local_ids.owner(slot)? as usize)
    }

    /// Returns the address of a mux by its number, as two words.
    pub(crate) fn mux_address(&self, number: usize) -> Option<[u64; 2]> {
        self.muxes.get(number).map(|mux| mux.address)
    }

    /// Yields the backends of a vm.
    pub(crate) fn locals_of(&self, vm: &Vm) -> impl Iterator<Item = &Local> + Clone + '_ {
        let mut next = vm.first;
        core::iter::from_fn(move || {
            let local = self.locals.get(next as usize)?;
            next = local.next;
            Some(local)
        })
    }

    /// Returns all backends whose vm is on this node.
    pub(crate) fn locals(&self) -> &[Local] {
        &self.locals
    }

    /// Returns the blocks of ports that a local may use for outbound connections.
    pub(crate) fn blocks_of(&self, local: &Local) -> &[Block] {
        let (first, end) = local.blocks;
        self.blocks
            .get(first as usize..end as usize)
            .unwrap_or_default()
    }

    /// Returns the granules of a block.
    pub(crate) fn granules_of(&self, block: &Block) -> &[u16] {
        let (first, end) = block.granules;
        self.granules
            .get(first as usize..end as usize)
            .unwrap_or_default()
    }

    /// Returns the index of a block's first granule among all.
    pub(crate) fn first_granule(&self, block: &Block) -> usize {
        block.granules.0 as usize
    }

    /// Returns true if every port has the same owner in both, so that users need not be recounted.
    pub(crate) fn has_ports_as(&self, other: &Nat<'_>) -> bool {
        if self.granules.is_empty() && other.granules.is_empty() {
            return true; // no vm has any
        }
        let local = |local: &Local| (local.id, local.counters, local.blocks);
        let block = |block: &Block| (block.address, block.granules);
        self.granules[..] == other.granules[..]
            && self
                .locals
                .iter()
                .map(local)
                .eq(other.locals.iter().map(local))
            && self
                .blocks
                .iter()
                .map(block)
                .eq(other.blocks.iter().map(block))
    }

    /// Returns the number of counters for users of ports.
    pub(crate) fn port_places(&self) -> usize {
        self.granules.len() * GRANULE as usize
    }

    /// Returns true if an address is inside: vms reach and answer it with their own addresses. The
    /// lookup is a binary search among the ranges.
    pub(crate) fn is_inside(&self, address: IpAddr) -> bool {
        let inside = self.inside.get(..self.inside_count).unwrap_or_default();
        ranges::have(inside, &address)
    }

    /// Returns true if a VIP is the address of a vm or gateway in the network of the vm at a port.
    #[inline]
    pub(crate) fn is_taken_at(&self, zone: PortId, address: IpAddr) -> bool {
        self.networks.have_vips() && self.is_taken_in_network(zone, address)
    }

    #[cold]
    #[inline(never)]
    fn is_taken_in_network(&self, zone: PortId, address: IpAddr) -> bool {
        let vm = self.vm_by_port(zone);
        vm.is_some_and(|vm| self.networks.is_taken(vm.vni, address))
    }

    /// Returns true if a vm of this network has the address.
    pub(crate) fn is_neighbour(&self, address: IpAddr, vni: Vni) -> bool {
        self.networks.neighbour(address, vni).is_some()
    }

    /// Returns the port of the vm of this node that has an address in a network.
    pub(crate) fn port_of_neighbour(&self, address: IpAddr, vni: Vni) -> Option<PortId> {
        self.networks.neighbour(address, vni)?.port
    }

    /// Returns true if an address is a backend's; for proxies.
    pub(crate) fn is_backend(&self, address: IpAddr) -> bool {
        self.is_neighbour(address, Vni::default())
    }

    /// Returns an outbound rule, by its index in [`Spec::outbound`].
    pub(crate) fn outbound(&self, index: u32) -> Option<&CompiledOutbound> {
        self.outbound.get(index as usize)
    }

    /// Returns true if the node accepts packets from a peer: any host, and the configured muxes, or
    /// any address if no mux is configured.
    pub(crate) fn is_peer(&self, address: [u64; 2]) -> bool {
        self.peers.get(address).is_some()
    }

    /// Returns the number of the sender at an address: the number of a mux; for a host that is no
    /// mux, [`FIRST_HOST`] plus the index of its first backend; for a host from which vms have
    /// moved here, [`FIRST_FORMER`] plus its index among these; else [`NO_SENDER`].
    pub(crate) fn sender_at(&self, address: [u64; 2]) -> u32 {
        self.peers.get(address).unwrap_or(NO_SENDER)
    }

    /// Returns the number of the mux at an address.
    pub(crate) fn mux_at(&self, address: [u64; 2]) -> Option<usize> {
        let sender = self.sender_at(address);
        self.is_mux(sender).then_some(sender as usize)
    }

    /// Returns true if the sender with this number is a mux.
    pub(crate) fn is_mux(&self, sender: u32) -> bool {
        (sender as usize) < self.muxes.len()
    }

    /// Returns the index of the first backend of a sender that is a host and not a mux.
    pub(crate) fn backend_of_sender(&self, sender: u32) -> Option<u32> {
        sender
            .checked_sub(FIRST_HOST)
            .filter(|_| sender < FIRST_FORMER)
    }

    /// Returns the number of one of the muxes, which the hash determines; `None` if there are no
    /// muxes.
    pub(crate) fn any_mux(&self, hash: u64) -> Option<u8> {
        let place = ((hash >> 32) * self.muxes.len() as u64) >> 32;
        (!self.muxes.is_empty()).then_some(place as u8)
    }

    /// Returns a mux by its number.
    pub(crate) fn mux(&self, number: usize) -> Option<&CompiledMux> {
        self.muxes.get(number)
    }

    /// Returns true if a pool is in this network.
    pub(crate) fn has_vni(&self, vni: Vni) -> bool {
        self.vnis.get(vni.get().into()).is_some()
    }

    /// Returns true if muxes are configured, so that no other sender counts as a mux.
    pub(crate) fn has_muxes(&self) -> bool {
        !self.muxes.is_empty()
    }
}

/// Returns true if a pool's table has a past: the node is the host agent of one of its backends.
pub(crate) fn has_past(spec: &Spec<'_>, pool: usize) -> bool {
    let backends = spec.pools.get(pool).map_or(&[][..], |pool| pool.backends);
    spec.proxy.is_none() && backends.iter().any(|backend| backend.port.is_some())
}

/// Returns true if the snapshot is for a mux, which records when slots changed.
pub(crate) fn has_ages(spec: &Spec<'_>) -> bool {
    let mut pools = 0..spec.pools.len();
    spec.proxy.is_none() && !pools.any(|pool| has_past(spec, pool))
}

fn mac_key(mac: MacAddress, vni: Vni) -> [u64; 2] {
    let [a, b, c, d, e, f] = mac.0;
    [
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0]),
        vni.get().into(),
    ]
}

fn pool_key(pool: u32, port: PortId) -> u64 {
    u64::from(pool) << 16 | u64::from(port.0)
}
