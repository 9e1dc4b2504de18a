//! The compiled form of a [`Spec`](crate::spec::Spec), which packets are looked up in.
//!
//! A snapshot is compiled once and never changes. Health, drain and weights are part of what it is
//! compiled from: a new verdict on a backend makes a new snapshot, which takes effect between two
//! bursts. Backends and rules keep their ids from one generation to the next.
//!
//! ```text
//!  (VIP, protocol, port) -> rule -> Maglev slot -> backend: its outer header, ready to copy
//!                                   flow's id   ->
//! ```

mod addresses;
mod compile;
mod conflicts;
pub(crate) mod faults;
mod lineage;
pub(crate) mod locals;
mod names;
pub(crate) mod networks;
#[expect(
    unsafe_code,
    reason = "lines are lent to a snapshot, and taken back when it is gone"
)]
mod owned;
pub(crate) mod owners;
mod private;
mod probe_map;
pub(crate) mod proxy;
mod registry;
pub(crate) mod terms;

pub(crate) use addresses::words;
pub(crate) use compile::rule_names;
pub(crate) use faults::backend_identity;
pub use lineage::{InstallError, Rejected, RoleError};
pub use names::{BackendKey, RuleKey};
pub use owned::{OwnedSnapshot, Unbuilt};
pub use registry::BackendId;
pub(crate) use registry::SLOT_BITS;

use core::net::IpAddr;

use self::locals::Nat;
use self::networks::Reached;
use self::owners::Past;
use self::private::Private;
use self::probe_map::{NONE, ProbeMap};
use self::registry::Registry;
use self::terms::{CompiledTerms, RuleKind};
use crate::flow::Ticks;
use crate::hash::{Hasher, TupleHasher};
use crate::maglev;
use crate::mem::Mem;
use crate::nat::rule_id::ShortRuleId;
use crate::packet::{EchoMessage, Family, Packet};
use crate::prefetch::prefetch_address;
use crate::spec::snat::GRANULE;
use crate::spec::{Echo, ProbeSource, Underlay};
use crate::time::Instant;
use crate::tunnel::encapsulation::Template;
use crate::verdict::PortId;
use crate::wire::protocol;
use crate::wire::vxlan::Vni;

/// A VIP that has no HA-ports rule.
const NO_RULE: u32 = NONE - 1;

/// Key bytes in the protocol's place, of protocol numbers that are reserved (255) and for
/// experiments (254): not ones that a rule can name.
const HA_PORTS: u8 = 255;
const VIP: u8 = 254;

/// A rule as packets meet it.
#[derive(Clone, Copy, Debug)]
pub struct CompiledRule {
    /// The bits of the message's last word that the distribution mode counts.
    pub(crate) mask: u64,
    /// The pool's Maglev table: where it begins and how long it is.
    table_start: u32,
    table_size: u32,
    /// The pool's first backend.
    pub(crate) first_backend: u32,
    /// The time that its flows stay pinned without a packet.
    pub(crate) idle_timeout: Ticks,
    /// The place of its counters.
    slot: u32,
    ha_ports: bool,
    /// True if the table has a slot for each eight destination ports, in the place of hashes.
    by_port: bool,
}

impl CompiledRule {
    const EMPTY: Self = Self {
        mask: 0,
        table_start: 0,
        table_size: 0,
        first_backend: 0,
        idle_timeout: Ticks(0),
        slot: 0,
        ha_ports: false,
        by_port: false,
    };

    /// The number of slots of its pool's table, if a hash of the whole tuple chooses one of them, as nearly
    /// all rules have it.
    #[inline]
    pub(crate) fn slots_by_five_tuple(&self) -> Option<u32> {
        (self.mask == u64::MAX && !self.by_port).then_some(self.table_size)
    }

    /// The first slot of its pool's table among all tables.
    #[inline]
    pub(crate) fn first_slot(&self) -> usize {
        self.table_start as usize
    }

    /// Returns true if the rule takes packets of all ports, and chooses backends without them.
    pub(crate) fn ignores_ports(&self) -> bool {
        self.ha_ports && self.mask as u32 == 0
    }

    /// The place of its counters: the same in every generation while a rule of its name is there.
    pub fn slot(&self) -> usize {
        self.slot as usize
    }
}

/// A pool's backends as rules choose from them: by their own state and weight alone, or by what a
/// probe says of them too.
#[derive(Clone, Copy, Debug)]
struct CompiledPool {
    identity: u64,
    /// Everything that its table depends on.
    digest: u64,
    table_start: u32,
    table_size: u32,
    first_backend: u32,
    backends: u32,
    /// Index of their first share.
    shares: u32,
    /// Index of the past of its table, or [`NONE`].
    past: u32,
}

/// A backend's share of the new flows of rules that go by one probe, or by none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// The share relative to the others; zero: no share.
    pub(crate) weight: u32,
    pub(crate) is_unhealthy: bool,
}

impl Share {
    const EMPTY: Self = Self {
        weight: 0,
        is_unhealthy: false,
    };
}

/// A backend as packets meet it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct CompiledBackend {
    pub(crate) template: Template,
    /// The longest packet that can be encapsulated for it.
    pub(crate) inner_mtu: u32,
    /// The same where its template [is common](Template::is_common), and zero where not.
    pub(crate) common_mtu: u32,
    id: u32,
    /// The place of its counters.
    counters: u32,
    pool: u32,
    member: u32,
    eligible: bool,
    /// True if its own state makes it unhealthy.
    unhealthy: bool,
    /// True if its own state or any probe speaks against it: while false, rules need not look
    /// further.
    suspect: bool,
}

const _: () = assert!(size_of::<CompiledBackend>() == 128);

impl CompiledBackend {
    const EMPTY: Self = Self {
        template: Template::EMPTY,
        inner_mtu: 0,
        common_mtu: 0,
        id: NONE,
        counters: 0,
        pool: 0,
        member: 0,
        eligible: false,
        unhealthy: false,
        suspect: false,
    };

    /// Id of the backend.
    #[inline]
    pub fn id(&self) -> BackendId {
        BackendId::from_value(self.id)
    }

    /// The place of its counters: [`BackendId::slot`].
    #[inline]
    pub(crate) fn counters(&self) -> usize {
        self.counters as usize
    }

    /// Index of the backend's pool in [`Spec::pools`](crate::spec::Spec::pools).
    pub fn pool(&self) -> usize {
        self.pool as usize
    }

    /// Index of the backend in its pool.
    pub fn member(&self) -> usize {
        self.member as usize
    }

    /// Returns true if new flows may go to the backend by its own state and weight, before any
    /// probe is considered: see [`Snapshot::serves`] for a rule's probe.
    #[inline]
    pub fn is_eligible(&self) -> bool {
        self.eligible
    }

    /// Returns true if its own state or any probe speaks against the backend.
    #[inline]
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect
    }
}

/// The match of a packet's destination with the rules of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleMatch {
    /// This rule takes it: a place in [`Spec::rules`](crate::spec::Spec::rules).
    Rule(u32),
    /// The packet is for a VIP, but no rule takes it.
    NoRule,
    /// The packet is not for a VIP.
    NotVip,
}

/// The compiled configuration of one generation.
#[derive(Debug)]
pub struct Snapshot<'m> {
    generation: u64,
    /// The time of compilation, by the clock of the specification.
    now: Instant,
    pub(crate) hasher: Hasher,
    underlay: Underlay,
    probe_source: ProbeSource,
    rule_keys: ProbeMap<'m, u64, 5>,
    ipv6_vips: ProbeMap<'m, [u64; 2], 3>,
    echo: Mem<'m, Echo>,
    rules: Mem<'m, CompiledRule>,
    terms: Mem<'m, CompiledTerms>,
    pools: Mem<'m, CompiledPool>,
    /// The same by the results of probes, in the order of [`Spec::health`](crate::spec::Spec::health).
    probed: Mem<'m, CompiledPool>,
    /// The shares of all pools, then of all probe results.
    shares: Mem<'m, Share>,
    backends: Mem<'m, CompiledBackend>,
    /// Hashes of the backends' names: see [`names`].
    names: Mem<'m, u64>,
    table: Mem<'m, u16>,
    /// Former owners of the slots of pools that have a backend here.
    past: Mem<'m, Past>,
    /// Generations since each slot of the pools' tables went to another backend: see [`owners`]. Empty at
    /// host agents and proxies.
    ages: Mem<'m, u8>,
    backend_ids: Registry<'m>,
    rule_ids: Registry<'m>,
    private: Private<'m>,
    pub(crate) nat: Nat<'m>,
}

impl Snapshot<'_> {
    /// Returns the id of an address in rule keys; `None` unless it is an IPv6 VIP.
    fn vip_of(&self, address: IpAddr) -> Option<u64> {
        match address {
            IpAddr::V4(address) => Some(ipv4_vip(u32::from_le_bytes(address.octets()))),
            IpAddr::V6(address) => self
                .ipv6_vips
                .get(ipv6_words(address.octets()))
                .map(ipv6_vip),
        }
    }

    #[inline]
    fn vip(&self, packet: &Packet) -> Option<u64> {
        match packet.shape.family {
            Family::Ipv4 => Some(ipv4_vip((packet.addresses[0] >> 32) as u32)),
            Family::Ipv6 => {
                let [_, _, low, high] = packet.addresses;
                self.ipv6_vip([low, high])
            }
        }
    }

    /// Matches a packet's destination address, protocol and port with the rules of this node.
    pub(crate) fn classify(&self, packet: &Packet) -> RuleMatch {
        self.classify_for(packet, self.vip(packet))
    }

    /// The same of a packet to or from the vm at a port of this node, in whose network the destination may be
    /// a private VIP.
    pub(crate) fn classify_at(&self, packet: &Packet, zone: PortId) -> RuleMatch {
        self.classify_for(packet, self.vip_at(packet, zone))
    }

    /// The same where the id of the destination is known.
    pub(crate) fn classify_for(&self, packet: &Packet, vip: Option<u64>) -> RuleMatch {
        let Some(vip) = vip else {
            return RuleMatch::NotVip;
        };
        if packet.has_ports() {
            return self.classify_ports(vip, packet.protocol, packet.raw_destination_port());
        }
        // An answer to a vm's own request is for a SNAT port.
        if packet.is_icmp()
            && packet.shape.echo != EchoMessage::Reply
            && let Some(rule) = self.echo_rule_for(packet, vip)
        {
            return RuleMatch::Rule(rule);
        }
        self.classify_protocol(vip, packet.protocol)
    }

    /// The id in rule keys of a packet's destination, as the vm at a port of this node uses it.
    #[inline]
    pub(crate) fn vip_at(&self, packet: &Packet, zone: PortId) -> Option<u64> {
        if !self.private.is_empty()
            && let Some(vip) = self.private_vip_at(packet.tuple().destination, zone)
        {
            return Some(vip);
        }
        self.vip(packet)
    }

    #[cold]
    fn private_vip_at(&self, address: IpAddr, zone: PortId) -> Option<u64> {
        let vm = self.nat.vm_by_port(zone)?;
        self.private_vip(address, vm.vni)
    }

    /// The id in rule keys of a private VIP of a network; `None` where the network has no such VIP.
    pub(crate) fn private_vip(&self, address: IpAddr, vni: Vni) -> Option<u64> {
        self.private.find(address, vni).map(private_vip)
    }

    /// Returns true if any frontend belongs to a network.
    #[inline]
    pub(crate) fn has_private_vips(&self) -> bool {
        !self.private.is_empty()
    }

    /// Returns true if an address is a private VIP of the network of the vm at a port of this node.
    pub(crate) fn is_private_at(&self, address: IpAddr, zone: PortId) -> bool {
        !self.private.is_empty() && self.private_vip_at(address, zone).is_some()
    }

    /// Returns true if an address is a vm's of the network of the vm at a port of this node.
    pub(crate) fn is_in_network(&self, address: IpAddr, zone: PortId) -> bool {
        let vm = self.nat.vm_by_port(zone);
        vm.is_some_and(|vm| self.nat.networks.neighbour(address, vm.vni).is_some())
    }

    /// The outer header towards the host of another vm of the network of the vm at a port; `None` where there
    /// is none of the address, or the vm is on this node.
    pub(crate) fn way_in_network(&self, zone: PortId, address: IpAddr) -> Option<&Template> {
        let vm = self.nat.vm_by_port(zone)?;
        let neighbour = self.nat.networks.neighbour(address, vm.vni)?;
        if neighbour.port.is_some() {
            return None;
        }
        match self.nat.networks.way_to(neighbour)? {
            Reached::Template(template) => Some(template),
            Reached::Backend(index) => Some(&self.backend(index)?.template),
        }
    }

    /// Matches a destination with the rules of this node: the id of its address, its protocol and
    /// port.
    #[inline]
    pub(crate) fn classify_ports(&self, vip: u64, protocol: u8, raw_port: u16) -> RuleMatch {
        match self.rule_keys.get(rule_key(vip, protocol, raw_port)) {
            Some(rule) => RuleMatch::Rule(rule),
            None => self.classify_protocol(vip, protocol),
        }
    }

    /// The same where no rule has the port.
    #[inline(never)]
    fn classify_protocol(&self, vip: u64, protocol: u8) -> RuleMatch {
        match self.ha_ports(vip) {
            RuleMatch::NoRule => self.outbound(vip, protocol),
            found => found,
        }
    }

    /// Returns the id of an IPv4 address in rule keys.
    #[inline]
    pub(crate) fn ipv4_vip(&self, raw_address: u32) -> u64 {
        ipv4_vip(raw_address)
    }

    /// Returns the id of an IPv6 address in rule keys; `None` if it is no VIP.
    #[inline]
    pub(crate) fn ipv6_vip(&self, address: [u64; 2]) -> Option<u64> {
        self.ipv6_vips.get(address).map(ipv6_vip)
    }

    /// Each TCP frontend port: its rule, address and port, as packets have it; without a port, all ports of
    /// the address. In no order.
    ///
    /// # Cost
    /// In proportion to the frontends' ports.
    pub(crate) fn tcp_frontends(&self) -> impl Iterator<Item = (u32, IpAddr, Option<u16>)> + '_ {
        self.rule_keys.iter().filter_map(|(key, rule)| {
            let [a, b, c, d, port_low, port_high, protocol, family] = key.to_le_bytes();
            let port = u16::from_le_bytes([port_low, port_high]);
            let port = match (protocol, port) {
                (protocol::TCP, 1..) => Some(port),
                (HA_PORTS, _) if rule != NO_RULE => None,
                _ => return None,
            };
            let number = u32::from_le_bytes([a, b, c, d]);
            let vip = match family {
                0 => IpAddr::from([a, b, c, d]),
                PRIVATE => self.private.of(number as usize)?.0,
                _ => self.ipv6_vips.iter().find_map(|([low, high], vip)| {
                    let bits = u128::from(high) << 64 | u128::from(low);
                    (vip == number).then(|| IpAddr::from(bits.to_le_bytes()))
                })?,
            };
            Some((rule, vip, port))
        })
    }

    /// The rule of a VIP's SNAT ports.
    fn outbound(&self, vip: u64, protocol: u8) -> RuleMatch {
        let rule = self.rule_keys.get(rule_key(vip, protocol, 0));
        rule.map_or(RuleMatch::NoRule, RuleMatch::Rule)
    }

    /// Matches an ICMP echo reply, with an identifier that may be a SNAT port.
    pub(crate) fn classify_echo_reply(&self, packet: &Packet) -> RuleMatch {
        self.classify_echo_reply_for(packet, self.vip(packet))
    }

    /// The same where the id of the destination is known.
    pub(crate) fn classify_echo_reply_for(&self, packet: &Packet, vip: Option<u64>) -> RuleMatch {
        let Some(vip) = vip else {
            return RuleMatch::NotVip;
        };
        match self.ha_ports(vip) {
            RuleMatch::NoRule => self.outbound(vip, packet.protocol),
            found => found,
        }
    }

    /// The same for a packet whose ports are not known, or count for nothing.
    pub(crate) fn classify_without_ports(&self, packet: &Packet) -> RuleMatch {
        self.vip(packet)
            .map_or(RuleMatch::NotVip, |vip| self.ha_ports(vip))
    }

    /// The HA-ports rule of a VIP, by its id.
    pub(crate) fn ha_ports(&self, vip: u64) -> RuleMatch {
        match self.rule_keys.get(rule_key(vip, HA_PORTS, 0)) {
            None => RuleMatch::NotVip,
            Some(NO_RULE) => RuleMatch::NoRule,
            Some(rule) => RuleMatch::Rule(rule),
        }
    }

    /// The rule that takes echo requests for the VIP that the packet is for.
    pub(crate) fn echo_rule(&self, packet: &Packet) -> Option<u32> {
        self.echo_rule_for(packet, self.vip(packet)?)
    }

    /// The same where the id of the VIP is known.
    pub(crate) fn echo_rule_for(&self, packet: &Packet, vip: u64) -> Option<u32> {
        self.rule_keys.get(rule_key(vip, packet.protocol, ECHO))
    }

    /// Returns the treatment of echo requests for the VIP that the packet is for.
    pub(crate) fn echo(&self, packet: &Packet) -> Option<Echo> {
        self.echo_for(self.vip(packet)?)
    }

    /// The same where the id of the VIP is known.
    pub(crate) fn echo_for(&self, vip: u64) -> Option<Echo> {
        let frontend = self.rule_keys.get(rule_key(vip, VIP, 0))?;
        self.echo.get(frontend as usize).copied()
    }

    /// Returns true if an address is a public VIP.
    pub(crate) fn is_vip(&self, address: IpAddr) -> bool {
        self.frontend_at(address).is_some()
    }

    /// Returns true if an address is a VIP for the vm at a port: a public VIP that is the address of a vm or a
    /// gateway in that vm's network serves other networks only, and a private VIP serves its own one only.
    pub(crate) fn is_vip_at(&self, zone: PortId, address: IpAddr) -> bool {
        self.is_vip(address) && !self.nat.is_taken_at(zone, address)
            || self.is_private_at(address, zone)
    }

    /// The index of the public frontend that has an address.
    #[inline]
    fn frontend_at(&self, address: IpAddr) -> Option<usize> {
        let found = self
            .rule_keys
            .get(rule_key(self.vip_of(address)?, VIP, 0))?;
        Some(found as usize)
    }

    /// Places that users of SNAT ports are counted in: see
    /// [`PortTable::new`](crate::nat::PortTable::new).
    pub fn snat_port_places(&self) -> usize {
        self.nat.port_places()
    }

    /// Every rule, in the order of their places.
    pub(crate) fn rules(&self) -> &[CompiledRule] {
        &self.rules
    }

    /// The id of the rule that has a slot: another owner of the slot has another id.
    pub(crate) fn rule_id(&self, slot: usize) -> u32 {
        self.rule_ids.id(slot).get()
    }

    /// Returns the short id of a rule.
    pub(crate) fn short_rule_id(&self, rule: &CompiledRule) -> ShortRuleId {
        ShortRuleId::of(self.rule_id(rule.slot()))
    }

    /// Returns true if a rule exists, false if it has been removed, whichever rule has its slot now.
    pub(crate) fn has_rule(&self, rule: ShortRuleId) -> bool {
        self.index_of_rule(rule).is_some()
    }

    /// Returns the index of a rule; `None` if the rule has been removed.
    fn index_of_rule(&self, rule: ShortRuleId) -> Option<u32> {
        let slot = rule.slot();
        let index = self.rule_ids.owner(slot)?;
        rule.is(self.rule_id(slot)).then_some(index)
    }

    /// Returns the identity of a rule, which follows from its name; `None` if the rule has been removed.
    pub(crate) fn short_rule_identity(&self, rule: ShortRuleId) -> Option<u64> {
        self.index_of_rule(rule)?;
        self.rule_identity(rule.slot())
    }

    /// The identity of the rule that has a slot.
    pub(crate) fn rule_identity(&self, slot: usize) -> Option<u64> {
        self.rule_ids.identity_of(slot)
    }

    /// Returns the short id of the rule of an identity; `None` if there is no such rule.
    pub(crate) fn rule_of_identity(&self, identity: u64) -> Option<ShortRuleId> {
        let slot = self.rule_by_identity(identity)?;
        Some(ShortRuleId::of(self.rule_id(slot)))
    }

    /// The slot of the rule of an identity.
    pub(crate) fn rule_by_identity(&self, identity: u64) -> Option<usize> {
        self.rule_ids.slot_of(identity)
    }

    /// The identity of a backend, which follows from its pool, name and address.
    pub(crate) fn backend_identity(&self, id: BackendId) -> Option<u64> {
        self.backend_ids.index(id)?;
        self.backend_ids.identity_of(id.slot())
    }

    /// The id of the backend of an identity.
    pub(crate) fn backend_by_identity(&self, identity: u64) -> Option<BackendId> {
        let slot = self.backend_ids.slot_of(identity)?;
        Some(self.backend_ids.id(slot))
    }

    /// A rule by its place in [`Spec::rules`](crate::spec::Spec::rules).
    #[inline]
    pub fn rule(&self, index: u32) -> Option<&CompiledRule> {
        self.rules.get(index as usize)
    }

    /// A backend by its place among all backends, pool by pool.
    #[inline]
    pub fn backend(&self, index: u32) -> Option<&CompiledBackend> {
        self.backends.get(index as usize)
    }

    /// All backends, pool by pool.
    pub fn backends(&self) -> &[CompiledBackend] {
        &self.backends
    }

    /// Owner of each slot of a rule's Maglev table; `None` for a slot without one. Empty where there is no such
    /// rule.
    pub fn slots(&self, rule: u32) -> impl Iterator<Item = Option<BackendId>> + '_ {
        let rule = self.rule(rule);
        let slots = rule.map(|rule| {
            let first = rule.first_slot();
            (first..first + rule.table_size as usize).map(|slot| (rule.first_backend, slot))
        });
        let whose = |(first, slot)| {
            let backend = self.backend(self.backend_at(first, slot)?);
            backend.map(CompiledBackend::id)
        };
        slots.into_iter().flatten().map(whose)
    }

    /// The place of the backend that has an id; `None` where it is gone.
    #[inline]
    pub fn backend_index(&self, id: BackendId) -> Option<u32> {
        self.backend_ids.index(id)
    }

    /// The backend that has an id, and its place; `None` where it is gone.
    #[inline]
    pub(crate) fn backend_of(&self, id: BackendId) -> Option<(u32, &CompiledBackend)> {
        // No backend has the place of one that is gone.
        let index = self.backend_ids.last_index(id)?;
        Some((index, self.backend(index)?))
    }

    /// Returns the terms of a rule's connections.
    pub(crate) fn terms(&self, index: u32) -> Option<&CompiledTerms> {
        self.terms.get(index as usize)
    }

    /// The slot of a packet, whose hash this is, in the rule's table.
    #[inline]
    pub(crate) fn table_index(&self, rule: &CompiledRule, packet: &Packet, hash: u64) -> usize {
        self.table_index_of(rule, packet.raw_destination_port(), hash)
    }

    /// The slot in the rule's table of a packet for a port, whose bytes are read little-endian.
    #[inline]
    pub(crate) fn table_index_of(&self, rule: &CompiledRule, raw_port: u16, hash: u64) -> usize {
        let slot = if rule.by_port {
            usize::from(raw_port.swap_bytes()) / GRANULE as usize
        } else {
            maglev::slot(hash, rule.table_size)
        };
        rule.table_start as usize + slot
    }

    /// Returns the index of the backend in a slot of the rule's table; `None` if no backend may take
    /// the flow.
    #[inline]
    pub(crate) fn backend_at(&self, first_backend: u32, table_index: usize) -> Option<u32> {
        let member = *self.table.get(table_index)?;
        (member != maglev::EMPTY).then(|| first_backend + u32::from(member))
    }

    /// The backend of a Maglev slot of the rule's table, and its place among all.
    #[inline]
    pub(crate) fn backend_in(
        &self,
        first_backend: u32,
        table_index: usize,
    ) -> Option<(u32, &CompiledBackend)> {
        let index = self.backend_at(first_backend, table_index)?;
        Some((index, self.backend(index)?))
    }

    /// The slot of a packet in the table of a balancing rule, and what is remembered of the slot.
    pub(crate) fn slot_of(&self, rule: u32, packet: &Packet) -> Option<Slot> {
        let (compiled, terms) = (self.rule(rule)?, self.terms(rule)?);
        let packet = &packet.as_balanced();
        let hash = self.hash(packet, compiled.mask);
        let place = self.table_index(compiled, packet, hash);
        let slot = place - compiled.first_slot();
        let past = match terms.past {
            NONE => None,
            start => self.past.get(start as usize + slot),
        };
        Some(Slot {
            owner: self.backend_at(compiled.first_backend, place),
            first_backend: compiled.first_backend,
            past: past.copied().unwrap_or(Past::NONE),
        })
    }

    /// Generations since a slot of all tables went from one backend to another; `None` where none is known
    /// of.
    pub(crate) fn age_of(&self, table_index: usize) -> Option<u8> {
        let age = self.ages.get(table_index).copied();
        age.filter(|&age| age != owners::OLD)
    }

    /// Returns true if a local that is not here any more is configured all the same: its vm is at another host.
    #[cold]
    pub(crate) fn has_moved(&self, local: u16) -> bool {
        let identity = self.nat.identity_of_former(local);
        identity.is_some_and(|identity| self.backend_by_identity(identity).is_some())
    }

    /// Present owner of a slot of a balancing rule's table, then the former ones, the newest first; each once.
    /// Only host agents remember former owners, and only of pools that have a backend here. Empty where
    /// there is no such rule or slot.
    pub fn owners(&self, rule: u32, slot: usize) -> impl Iterator<Item = BackendId> + '_ {
        let terms = self.terms(rule).filter(|t| t.kind == RuleKind::Balance);
        let rule = terms.and_then(|_| self.rule(rule));
        let rule = rule.filter(|rule| slot < rule.table_size as usize);
        let all = rule.zip(terms).into_iter().flat_map(move |(rule, terms)| {
            let owner = self.backend_at(rule.first_backend, rule.first_slot() + slot);
            let past = match terms.past {
                NONE => None,
                start => self.past.get(start as usize + slot),
            };
            let former = past.into_iter().flat_map(Past::former);
            let former = former.map(|member| rule.first_backend + u32::from(member));
            owner.into_iter().chain(former)
        });
        all.filter_map(|index| Some(self.backend(index)?.id()))
    }

    /// Returns true if the packet is for a port of a backend's block, under the rule of a VIP's SNAT ports.
    pub(crate) fn is_port_of_block(&self, rule: u32, packet: &Packet) -> bool {
        let owner = self.rule(rule).and_then(|rule| {
            let place = self.table_index(rule, packet, 0);
            self.backend_at(rule.first_backend, place)
        });
        owner.is_some()
    }

    /// Returns true if a backend gets new flows of a rule that takes this packet: the rule may have
    /// led elsewhere when the packet's flow began.
    #[inline(never)]
    pub(crate) fn gets_new_flows(&self, rule: u32, packet: &Packet, backend: u32) -> bool {
        let (Some(terms), Some(rule)) = (self.terms(rule), self.rule(rule)) else {
            return false;
        };
        match terms.kind {
            RuleKind::Balance => self.takes(terms, backend),
            // One only, whatever its health; no hash chooses it.
            RuleKind::Nat | RuleKind::Outbound => {
                let place = self.table_index(rule, packet, 0);
                self.backend_at(rule.first_backend, place) == Some(backend)
            }
        }
    }

    /// Returns true if a backend keeps its flows of a rule, for protocols without connections: a
    /// backend that is unhealthy for the rule loses them to others, a draining one does not. The
    /// one backend of an inbound NAT rule or a SNAT port keeps them whatever its health.
    #[inline]
    pub(crate) fn keeps_flows(&self, rule: u32, backend: u32) -> bool {
        let is_suspect = self.backend(backend).is_some_and(|found| found.suspect);
        !is_suspect || self.keeps_flows_of(rule, backend)
    }

    /// The same for a backend that is unhealthy for some rule.
    #[cold]
    fn keeps_flows_of(&self, rule: u32, backend: u32) -> bool {
        let terms = self.terms(rule);
        let terms = terms.filter(|terms| terms.kind == RuleKind::Balance);
        terms.is_none_or(|terms| match self.share(terms, backend) {
            Some(share) => !share.is_unhealthy,
            None => !self.backend(backend).is_some_and(|found| found.unhealthy),
        })
    }

    /// A backend's share of the new flows of a balancing rule; `None` where it is not of the rule's
    /// pool.
    pub(crate) fn share(&self, terms: &CompiledTerms, backend: u32) -> Option<&Share> {
        let members = self.backends_of(terms.pool);
        let place = backend.checked_sub(members.start)?;
        if backend >= members.end {
            return None;
        }
        self.shares.get((terms.shares + place) as usize)
    }

    /// Returns true if a balancing rule gives new flows to a backend.
    pub(crate) fn takes(&self, terms: &CompiledTerms, backend: u32) -> bool {
        self.share(terms, backend)
            .is_some_and(|share| share.weight != 0)
    }

    /// Returns true if new flows of a rule may go to a backend: it is of the rule's pool, has a
    /// weight, and neither its own state nor the rule's probe speaks against it. Indexes are those
    /// of [`Spec::rules`](crate::spec::Spec::rules) and of [`backends`](Self::backends). Returns
    /// false if there is no such rule, or it does not balance.
    pub fn serves(&self, rule: u32, backend: u32) -> bool {
        let terms = self.terms(rule);
        terms.is_some_and(|terms| terms.kind == RuleKind::Balance && self.takes(terms, backend))
    }

    /// Returns true if a backend is unhealthy for the connections of a rule: by the rule's probe, or by
    /// the backend's own state if the rule has no probe, is gone or leads elsewhere now.
    #[cold]
    pub(crate) fn is_unhealthy(&self, rule: ShortRuleId, backend: u32) -> bool {
        let rule = self.index_of_rule(rule);
        let terms = rule.and_then(|rule| self.terms(rule));
        let terms = terms.filter(|terms| terms.kind == RuleKind::Balance);
        match terms {
            Some(terms) => self.is_unhealthy_by(terms, backend),
            None => self.backend(backend).is_some_and(|found| found.unhealthy),
        }
    }

    /// Returns true if a backend is unhealthy by the probe of a balancing rule, or by its own state if the rule
    /// leads elsewhere.
    pub(crate) fn is_unhealthy_by(&self, terms: &CompiledTerms, backend: u32) -> bool {
        match self.share(terms, backend) {
            Some(share) => share.is_unhealthy,
            None => self.backend(backend).is_some_and(|found| found.unhealthy),
        }
    }

    /// The Maglev tables of all pools, one behind the other.
    #[inline]
    pub(crate) fn all_slots(&self) -> &[u16] {
        &self.table
    }

    /// The backends from a pool's first one on, as many as its slots can name: [`maglev::EMPTY`] names none.
    #[inline]
    pub(crate) fn backends_from(&self, first: u32) -> &[CompiledBackend] {
        let backends = self.backends.get(first as usize..).unwrap_or_default();
        let count = backends.len().min(maglev::EMPTY.into());
        backends.get(..count).unwrap_or_default()
    }

    /// Starts loading a Maglev slot.
    #[inline]
    pub(crate) fn prefetch_slot(&self, table_index: usize) {
        let slot = self.table.as_ptr().wrapping_add(table_index);
        prefetch_address(slot.cast());
    }

    /// The hash of a packet's tuple, of the parts that `mask` leaves.
    #[inline]
    pub(crate) fn hash(&self, packet: &Packet, mask: u64) -> u64 {
        let rest = packet.ports_and_protocol() & mask;
        match packet.shape.family {
            Family::Ipv4 => self.hasher.ipv4(&[packet.addresses[0], rest]),
            Family::Ipv6 => {
                let [a, b, c, d] = packet.addresses;
                self.hasher.ipv6(&[a, b, c, d, rest])
            }
        }
    }

    /// The Maglev table of a pool, by its place in [`Spec::pools`](crate::spec::Spec::pools), for rules
    /// without a probe: places in the pool's backends, or [`maglev::EMPTY`].
    pub fn pool_table(&self, pool: usize) -> Option<&[u16]> {
        self.table.get(self.pools.get(pool)?.table())
    }

    /// The places of a pool's backends among all.
    pub(crate) fn backends_of(&self, pool: u32) -> core::ops::Range<u32> {
        match self.pools.get(pool as usize) {
            Some(pool) => pool.first_backend..pool.first_backend + pool.backends,
            None => 0..0,
        }
    }

    /// The number of this snapshot: one more than its predecessor's.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// This node's place on the fabric.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// Returns the source addresses of a host agent's own probes.
    pub fn probe_source(&self) -> &ProbeSource {
        &self.probe_source
    }

    /// Returns true if several workers can share the connections of this configuration: no rule shows servers
    /// one address for all clients ([`source_nat`](crate::spec::Terms::source_nat)). See
    /// [`steer`](crate::steer).
    ///
    /// # Cost
    /// In proportion to the rules.
    pub fn spreads(&self) -> bool {
        self.terms.iter().all(|terms| terms.source_nat.is_none())
    }

    /// Returns the hasher of flows.
    pub fn hasher(&self) -> &Hasher {
        &self.hasher
    }

    /// Places that counters of backends need: [`BackendId::slot`] stays below.
    pub fn backend_slots(&self) -> usize {
        self.backend_ids.used()
    }

    /// Places that counters of rules need: [`CompiledRule::slot`] stays below.
    pub fn rule_slots(&self) -> usize {
        self.rule_ids.used()
    }
}

/// A slot of a balancing rule's table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// Index of its present owner among all backends; `None` if the slot is empty.
    pub(crate) owner: Option<u32>,
    first_backend: u32,
    pub(crate) past: Past,
}

impl Slot {
    /// The present owner, then the former ones, the newest first: places among all backends.
    pub(crate) fn owners(&self) -> impl Iterator<Item = u32> + Clone + '_ {
        let former = self.past.former();
        let former = former.map(|member| self.first_backend + u32::from(member));
        self.owner.into_iter().chain(former)
    }
}

impl CompiledPool {
    const EMPTY: Self = Self {
        identity: 0,
        digest: 0,
        table_start: 0,
        table_size: 0,
        first_backend: 0,
        backends: 0,
        shares: 0,
        past: NONE,
    };

    /// Returns true if another pool is this one in a later generation, with a table of as many
    /// slots.
    fn is_continued_by(&self, other: &Self) -> bool {
        self.identity == other.identity && self.table_size == other.table_size
    }

    /// The slots of its past; of no meaning without one.
    fn past(&self) -> core::ops::Range<usize> {
        let start = self.past as usize;
        start..start.saturating_add(self.table_size as usize)
    }

    fn table(&self) -> core::ops::Range<usize> {
        let start = self.table_start as usize;
        start..start + self.table_size as usize
    }
}

/// Stands for an ICMP rule's port: a value that SNAT's keys do not have.
const ECHO: u16 = 1;

/// The number of ICMP in an address's family.
const fn icmp_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => protocol::ICMP,
        IpAddr::V6(_) => protocol::ICMPV6,
    }
}

#[inline]
const fn rule_key(vip: u64, protocol: u8, raw_port: u16) -> u64 {
    vip | (raw_port as u64) << 32 | (protocol as u64) << 48
}

#[inline]
const fn ipv4_vip(raw_address: u32) -> u64 {
    raw_address as u64
}

#[inline]
const fn ipv6_vip(number: u32) -> u64 {
    number as u64 | 1 << 56
}

/// The byte in the family's place of rule keys of private VIPs.
const PRIVATE: u8 = 2;

/// The id of a private frontend in rule keys.
const fn private_vip(frontend: u32) -> u64 {
    frontend as u64 | (PRIVATE as u64) << 56
}

fn ipv6_words(octets: [u8; 16]) -> [u64; 2] {
    let bits = u128::from_le_bytes(octets);
    [bits as u64, (bits >> 64) as u64]
}
