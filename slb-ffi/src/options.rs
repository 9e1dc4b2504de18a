//! Options of the roles.

use slb_core::mem::Memory;
use slb_core::nat::{DirectFlows, NatOptions};
use slb_core::{FragmentRoom, Key, MuxOptions, SourceLimiter};

/// Options of a mux. `slb_mux_options_init` sets the defaults.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_mux_options {
    /// Capacity of the flow table for each address family; 0: no table, so that Maglev alone picks
    /// backends.
    pub flows: usize,
    /// Echo replies per second; 0: none.
    pub answers_per_second: u32,
    /// Burst of echo replies.
    pub answers_at_once: u32,
    /// New flows per second of one source (an IPv4 address, or a /64 of IPv6); 0: no limit.
    pub flows_per_source: u32,
    /// Burst of new flows of one source.
    pub flows_per_source_at_once: u32,
    /// Secret key of the tables: 128 random bits that only this process knows. All zeros are
    /// refused with `SLB_ERROR_KEY`.
    pub key: [u64; 2],
    /// ICMP "fragmentation needed" and ICMPv6 "packet too big" per second; 0: none.
    pub too_big_per_second: u32,
    /// Burst of "fragmentation needed" and "packet too big".
    pub too_big_at_once: u32,
    /// Other ICMP errors per second; 0: none.
    pub errors_per_second: u32,
    /// Burst of other ICMP errors.
    pub errors_at_once: u32,
    /// RSTs per second; 0: none.
    pub resets_per_second: u32,
    /// Burst of RSTs.
    pub resets_at_once: u32,
    /// Later fragments that can wait for their first one, at 2 KiB each, rounded up to a multiple
    /// of 64; 0: none. `_advance` returns them in its spare frames when the first one has arrived.
    pub waiting_fragments: u32,
}

/// Options of a host agent or a proxy. `slb_nat_options_init` sets the defaults.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_nat_options {
    /// Capacity of the connection table for each address family.
    pub connections: usize,
    /// Echo replies per second; 0: none.
    pub answers_per_second: u32,
    /// Burst of echo replies.
    pub answers_at_once: u32,
    /// RSTs per second; 0: none.
    pub resets_per_second: u32,
    /// Burst of RSTs.
    pub resets_at_once: u32,
    /// New flows per second of one source (an IPv4 address, or a /64 of IPv6); 0: no limit.
    pub flows_per_source: u32,
    /// Burst of new flows of one source.
    pub flows_per_source_at_once: u32,
    /// Not 0: lowers the maximum segment size in SYNs to what fits VXLAN. For a host agent.
    pub clamp_mss: u8,
    /// Secret key of the tables and of the choice of SNAT ports: 128 random bits that only this
    /// process knows. All zeros are refused with `SLB_ERROR_KEY`.
    pub key: [u64; 2],
    /// ICMP "fragmentation needed" and ICMPv6 "packet too big" per second; 0: none.
    pub too_big_per_second: u32,
    /// Burst of "fragmentation needed" and "packet too big".
    pub too_big_at_once: u32,
    /// Other ICMP errors per second; 0: none.
    pub errors_per_second: u32,
    /// Burst of other ICMP errors.
    pub errors_at_once: u32,
    /// Source address of a host agent's ICMP errors over IPv4; all zeros: its underlay address.
    pub icmp_source_ipv4: [u8; 4],
    /// Source address of a host agent's ICMP errors over IPv6; all zeros: its underlay address.
    pub icmp_source_ipv6: [u8; 16],
    /// Later fragments that can wait for their first one, at 2 KiB each, rounded up to a multiple
    /// of 64; 0: none. `_advance` returns them in its spare frames when the first one has arrived.
    pub waiting_fragments: u32,
    /// For a host agent: packets per second that match none of its connections and are passed on to
    /// other hosts; 0: none.
    pub passes_per_second: u32,
    /// Burst of packets passed on.
    pub passes_at_once: u32,
    /// For a host agent or a proxy: connections per second that it takes up in their middle after
    /// `slb_host_take_up` or `slb_proxy_take_up`; 0: none.
    pub take_ups_per_second: u32,
    /// Burst of connections taken up.
    pub take_ups_at_once: u32,
    /// For a host agent: flows without connections that it remembers for vms with access lists, at 96 bytes each;
    /// 0: none, so that the answers of such flows need rules of their own.
    pub direct_flows: u32,
}

impl slb_mux_options {
    pub(crate) fn fragment_room(
        &self,
        memory: &mut impl Memory<'static>,
    ) -> Option<Option<FragmentRoom<'static>>> {
        fragment_room(self.waiting_fragments, Key::new(self.key), memory)
    }

    pub(crate) fn source_limit(
        &self,
        memory: &mut impl Memory<'static>,
    ) -> Option<Option<SourceLimiter<'static>>> {
        let (rate, at_once) = (self.flows_per_source, self.flows_per_source_at_once);
        source_limit(rate, at_once, Key::new(self.key), memory)
    }

    pub(crate) fn options(&self) -> MuxOptions {
        MuxOptions {
            answers_per_second: self.answers_per_second,
            answers_at_once: self.answers_at_once,
            too_big_per_second: self.too_big_per_second,
            too_big_at_once: self.too_big_at_once,
            errors_per_second: self.errors_per_second,
            errors_at_once: self.errors_at_once,
            resets_per_second: self.resets_per_second,
            resets_at_once: self.resets_at_once,
        }
    }
}

impl slb_nat_options {
    pub(crate) fn fragment_room(
        &self,
        memory: &mut impl Memory<'static>,
    ) -> Option<Option<FragmentRoom<'static>>> {
        fragment_room(self.waiting_fragments, Key::new(self.key), memory)
    }

    pub(crate) fn direct_flows(
        &self,
        memory: &mut impl Memory<'static>,
    ) -> Option<Option<DirectFlows<'static>>> {
        let flows = self.direct_flows as usize;
        match flows {
            0 => Some(None),
            flows => DirectFlows::build(flows, Key::new(self.key), memory).map(Some),
        }
    }

    pub(crate) fn source_limit(
        &self,
        memory: &mut impl Memory<'static>,
    ) -> Option<Option<SourceLimiter<'static>>> {
        let (rate, at_once) = (self.flows_per_source, self.flows_per_source_at_once);
        source_limit(rate, at_once, Key::new(self.key), memory)
    }

    pub(crate) fn options(&self) -> NatOptions {
        let (ipv4, ipv6) = (self.icmp_source_ipv4, self.icmp_source_ipv6);
        NatOptions {
            answers_per_second: self.answers_per_second,
            answers_at_once: self.answers_at_once,
            too_big_per_second: self.too_big_per_second,
            too_big_at_once: self.too_big_at_once,
            errors_per_second: self.errors_per_second,
            errors_at_once: self.errors_at_once,
            icmp_source_ipv4: (ipv4 != [0; 4]).then_some(ipv4.into()),
            icmp_source_ipv6: (ipv6 != [0; 16]).then_some(ipv6.into()),
            resets_per_second: self.resets_per_second,
            resets_at_once: self.resets_at_once,
            passes_per_second: self.passes_per_second,
            passes_at_once: self.passes_at_once,
            take_ups_per_second: self.take_ups_per_second,
            take_ups_at_once: self.take_ups_at_once,
            clamp_mss: self.clamp_mss != 0,
        }
    }
}

/// The default number of later fragments that can wait: 128 KiB, which fits small machines.
const WAITING_FRAGMENTS: u32 = 64;

/// Makes the room for later fragments; returns `None` if the memory is used up.
fn fragment_room(
    slots: u32,
    key: Key,
    memory: &mut impl Memory<'static>,
) -> Option<Option<FragmentRoom<'static>>> {
    if slots == 0 {
        return Some(None);
    }
    FragmentRoom::build(slots as usize, key, memory).map(Some)
}

/// Makes the limit on each source's new flows, if it is set; returns `None` if the memory is used
/// up.
fn source_limit(
    rate: u32,
    at_once: u32,
    key: Key,
    memory: &mut impl Memory<'static>,
) -> Option<Option<SourceLimiter<'static>>> {
    if rate == 0 {
        return Some(None);
    }
    SourceLimiter::build(SourceLimiter::BUCKETS, rate, at_once, key, memory).map(Some)
}

/// Sets the defaults: a million flows, 1000 answers of each kind and 10000 RSTs per second, 64
/// waiting fragments, no limit for sources, and a key of zeros, which the caller has to replace by
/// a secret one. NULL is ignored.
///
/// # Safety
/// `options` points to memory for the options.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_mux_options_init(options: *mut slb_mux_options) {
    let usual = MuxOptions::default();
    let usual = slb_mux_options {
        flows: 1 << 20,
        answers_per_second: usual.answers_per_second,
        answers_at_once: usual.answers_at_once,
        flows_per_source: 0,
        flows_per_source_at_once: 100,
        key: [0; 2],
        too_big_per_second: usual.too_big_per_second,
        too_big_at_once: usual.too_big_at_once,
        errors_per_second: usual.errors_per_second,
        errors_at_once: usual.errors_at_once,
        resets_per_second: usual.resets_per_second,
        resets_at_once: usual.resets_at_once,
        waiting_fragments: WAITING_FRAGMENTS,
    };
    // SAFETY: guaranteed by the caller.
    let _ = unsafe { crate::memory::put(options, usual) };
}

/// Sets the defaults: 262144 connections, 1000 answers of each kind, 10000 RSTs and a million
/// packets passed on per second, 64 waiting fragments, no limit for sources, and a key of zeros,
/// which the caller has to replace by a secret one. NULL is ignored.
///
/// # Safety
/// `options` points to memory for the options.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_nat_options_init(options: *mut slb_nat_options) {
    let usual = NatOptions::default();
    let usual = slb_nat_options {
        connections: 1 << 18,
        answers_per_second: usual.answers_per_second,
        answers_at_once: usual.answers_at_once,
        resets_per_second: usual.resets_per_second,
        resets_at_once: usual.resets_at_once,
        flows_per_source: 0,
        flows_per_source_at_once: 100,
        clamp_mss: usual.clamp_mss.into(),
        key: [0; 2],
        too_big_per_second: usual.too_big_per_second,
        too_big_at_once: usual.too_big_at_once,
        errors_per_second: usual.errors_per_second,
        errors_at_once: usual.errors_at_once,
        icmp_source_ipv4: [0; 4],
        icmp_source_ipv6: [0; 16],
        waiting_fragments: WAITING_FRAGMENTS,
        passes_per_second: usual.passes_per_second,
        passes_at_once: usual.passes_at_once,
        take_ups_per_second: usual.take_ups_per_second,
        take_ups_at_once: usual.take_ups_at_once,
        direct_flows: 0,
    };
    // SAFETY: guaranteed by the caller.
    let _ = unsafe { crate::memory::put(options, usual) };
}
