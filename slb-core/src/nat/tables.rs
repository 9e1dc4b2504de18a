//! The tables and options of a translating role.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{NatTable, PortTable};
use crate::counters::CounterMemory;
use crate::fragments::FragmentTable;
use crate::key::Key;
use crate::limit::Rates;
use crate::link::Link;
use crate::mem::{Mem, Memory};
use crate::packet::Family;
use crate::snapshot::Snapshot;
use crate::spec::Underlay;
use crate::stats::{BackendCounters, RuleCounters, SecurityCounters, SnatCounters, VmCounters};

/// Options of a host agent or a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatOptions {
    /// Echo replies per second, on average. Zero means none, also for the other rates.
    pub answers_per_second: u32,
    /// Burst of echo replies.
    pub answers_at_once: u32,
    /// "Packet too big" (ICMPv6) and "fragmentation needed" (ICMP) messages per second, on average.
    pub too_big_per_second: u32,
    /// Burst of "packet too big" and "fragmentation needed" messages.
    pub too_big_at_once: u32,
    /// Other ICMP errors per second, on average.
    pub errors_per_second: u32,
    /// Burst of other ICMP errors.
    pub errors_at_once: u32,
    /// RSTs per second, on average.
    pub resets_per_second: u32,
    /// Burst of RSTs.
    pub resets_at_once: u32,
    /// For a host agent: packets per second that match none of its connections and are passed on to
    /// other hosts. Packets above the limit are dropped as [`Astray`](crate::DropReason::Astray).
    /// Zero disables passing on.
    pub passes_per_second: u32,
    /// Burst of packets that are passed on.
    pub passes_at_once: u32,
    /// For a host agent or a proxy: connections per second that it [takes up](crate::Host::take_up)
    /// in the middle. Segments above the limit are dropped without an answer. Zero disables
    /// take-up.
    pub take_ups_per_second: u32,
    /// Burst of connections that are taken up.
    pub take_ups_at_once: u32,
    /// Source address of a host agent's ICMP errors over IPv4. `None` means its underlay address,
    /// or without one the dummy address 192.0.0.8 (RFC 7600 §4.8).
    pub icmp_source_ipv4: Option<Ipv4Addr>,
    /// Source address of a host agent's ICMP errors over IPv6. `None` means its underlay address,
    /// or without one 100::1 of the discard prefix (RFC 6666), which never gets answers.
    pub icmp_source_ipv6: Option<Ipv6Addr>,
    /// True to lower the maximum segment size that SYNs offer to the largest that fits the fabric
    /// in VXLAN.
    pub clamp_mss: bool,
}

impl NatOptions {
    /// Returns the options for each of `workers` workers that share a node's connections: rates and
    /// bursts are divided among the workers and rounded up; the other options stay.
    #[must_use]
    pub fn divided(self, workers: u32) -> Self {
        let part = |whole: u32| whole.div_ceil(workers.max(1));
        Self {
            answers_per_second: part(self.answers_per_second),
            answers_at_once: part(self.answers_at_once),
            too_big_per_second: part(self.too_big_per_second),
            too_big_at_once: part(self.too_big_at_once),
            errors_per_second: part(self.errors_per_second),
            errors_at_once: part(self.errors_at_once),
            resets_per_second: part(self.resets_per_second),
            resets_at_once: part(self.resets_at_once),
            passes_per_second: part(self.passes_per_second),
            passes_at_once: part(self.passes_at_once),
            take_ups_per_second: part(self.take_ups_per_second),
            take_ups_at_once: part(self.take_ups_at_once),
            icmp_source_ipv4: self.icmp_source_ipv4,
            icmp_source_ipv6: self.icmp_source_ipv6,
            clamp_mss: self.clamp_mss,
        }
    }
}

impl Default for NatOptions {
    fn default() -> Self {
        Self {
            answers_per_second: 1000,
            answers_at_once: 100,
            too_big_per_second: 1000,
            too_big_at_once: 100,
            errors_per_second: 1000,
            errors_at_once: 100,
            resets_per_second: 10_000,
            resets_at_once: 1000,
            passes_per_second: 1_000_000,
            passes_at_once: 100_000,
            take_ups_per_second: 100_000,
            take_ups_at_once: 100_000,
            icmp_source_ipv4: None,
            icmp_source_ipv6: None,
            clamp_mss: false,
        }
    }
}

impl NatOptions {
    pub(crate) fn rates(&self) -> Rates {
        Rates {
            echoes: (self.answers_per_second, self.answers_at_once),
            too_big: (self.too_big_per_second, self.too_big_at_once),
            errors: (self.errors_per_second, self.errors_at_once),
            resets: (self.resets_per_second, self.resets_at_once),
            passed: (self.passes_per_second, self.passes_at_once),
            taken_up: (self.take_ups_per_second, self.take_ups_at_once),
        }
    }

    /// Returns the source address of ICMP errors about packets of a family: a router's own address
    /// (RFC 1812 §4.3.2.4), so that traceroute shows it as a hop and not as the packet's
    /// destination.
    pub(crate) fn icmp_source(&self, underlay: &Underlay, family: Family) -> IpAddr {
        match family {
            Family::Ipv4 => {
                let own = self.icmp_source_ipv4.or(underlay.ipv4);
                own.unwrap_or(Ipv4Addr::new(192, 0, 0, 8)).into()
            }
            Family::Ipv6 => {
                let own = self.icmp_source_ipv6.or(underlay.ipv6);
                own.unwrap_or(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1))
                    .into()
            }
        }
    }
}

/// The tables of a host agent or a proxy.
#[derive(Debug)]
pub struct NatTables<'m> {
    /// The connections.
    pub connections: NatTable<'m>,
    /// The table of first fragments and their ports. If `None`, later fragments that need ports are
    /// dropped.
    pub fragments: Option<FragmentTable<'m>>,
    /// Counters of rules by [`CompiledRule::slot`](crate::snapshot::CompiledRule::slot); rules
    /// beyond the end are not counted.
    pub rules: Mem<'m, RuleCounters>,
    /// Counters of backends by [`BackendId::slot`](crate::snapshot::BackendId::slot); backends
    /// beyond the end are not counted.
    pub backends: Mem<'m, BackendCounters>,
    /// SNAT counters of backends by [`BackendId::slot`](crate::snapshot::BackendId::slot); backends
    /// beyond the end are not counted.
    pub snat: Mem<'m, SnatCounters>,
    /// Counters of the rules of access lists, which [`CounterMemory`] has too; rules beyond its end are not counted.
    pub security: Mem<'m, SecurityCounters>,
    /// Traffic of vms by the number of their port, which [`CounterMemory`] has too; vms beyond its end are not counted.
    pub vms: Mem<'m, VmCounters>,
    /// Ports taken by connections whose source is translated.
    pub snat_ports: PortTable<'m>,
    /// For a proxy, the link headers that its connections were opened with.
    pub links: Links<'m>,
}

/// Link headers by connection, one for each place. A connection without one expires without RSTs to
/// its ends.
#[derive(Debug)]
pub struct Links<'m> {
    /// Link headers of IPv4 connections.
    pub ipv4: Mem<'m, Link>,
    /// Link headers of IPv6 connections.
    pub ipv6: Mem<'m, Link>,
}

impl Links<'_> {
    /// Makes empty tables of link headers, for host agents, which know their vms.
    pub fn none() -> Self {
        Self {
            ipv4: Mem::empty(),
            ipv6: Mem::empty(),
        }
    }
}

impl<'m> NatTables<'m> {
    /// Makes tables for up to `connections` connections of each family, with a table of fragments,
    /// and with counters for the snapshot and as many further rules and backends. Returns `None` if
    /// the memory is used up.
    pub fn build(
        snapshot: &Snapshot<'_>,
        connections: usize,
        key: Key,
        memory: &mut impl Memory<'m>,
    ) -> Option<Self> {
        const FRAGMENTS: usize = 4096;
        let ports = snapshot.snat_port_places().max(1 << 17);
        let counters = CounterMemory::build(snapshot, memory)?;
        Some(Self {
            connections: NatTable::build(connections, connections, key, memory)?,
            fragments: Some(FragmentTable::build(FRAGMENTS, key, memory)?),
            rules: counters.rules,
            backends: counters.backends,
            snat: counters.snat,
            security: counters.security,
            vms: counters.vms,
            snat_ports: PortTable::build(ports, connections.saturating_mul(2), key, memory)?,
            links: Links::none(),
        })
    }
}
