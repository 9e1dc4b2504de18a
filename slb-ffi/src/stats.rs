//! Counters.

use core::ffi::{CStr, c_char};

use slb_core::stats::{BackendCounters, RuleCounters};
use slb_core::{DropReason, Stats};

/// Length of `dropped_for` in `slb_stats`, with room for further reasons, so that they do not
/// change the layout.
pub const SLB_DROP_REASONS: usize = 64;

const _: () = assert!(DropReason::COUNT < SLB_DROP_REASONS);

/// Counters of a mux, host agent or proxy. Every frame received is in exactly one of forwarded,
/// replied, passed and dropped.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct slb_stats {
    /// Frames received.
    pub received: u64,
    /// Bytes of the frames received.
    pub received_bytes: u64,
    /// Frames to send out of a port.
    pub forwarded: u64,
    /// Bytes of the frames forwarded, in their length on arrival.
    pub forwarded_bytes: u64,
    /// Frames that became an answer.
    pub replied: u64,
    /// Frames passed: not for the balancer.
    pub passed: u64,
    /// Frames dropped.
    pub dropped: u64,
    /// Frames dropped, by the number of the reason: see `slb_drop_reason`. Index 0 is not used.
    pub dropped_for: [u64; SLB_DROP_REASONS],
    /// TCP segments that match a rule and request a connection.
    pub syns: u64,
    /// ICMP errors that match a rule by the flow that they quote.
    pub icmp_errors: u64,
    /// For a mux: flows pinned.
    pub flows_made: u64,
    /// Expired.
    pub flows_expired: u64,
    /// Half-open and closing flows evicted to make room.
    pub flows_evicted: u64,
    /// Flows refused because the table was full.
    pub flows_refused: u64,
    /// Flows in the table now.
    pub flows_live: u64,
    /// Places in the table.
    pub flow_places: u64,
    /// For a host agent or a proxy: connections made.
    pub connections_made: u64,
    /// Expired.
    pub connections_expired: u64,
    /// Removed for other reasons.
    pub connections_removed: u64,
    /// Connections refused because the table was full.
    pub connections_refused: u64,
    /// Connections in the table now.
    pub connections_live: u64,
    /// Places in the table.
    pub connection_places: u64,
    /// RSTs sent.
    pub resets: u64,
    /// RSTs that were not sent, because of the limit or for lack of spare frames.
    pub resets_suppressed: u64,
    /// For a host agent or a proxy: removed connections that made room for new ones.
    pub connections_evicted: u64,
    /// Unanswered connections among those in the table.
    pub connections_unanswered: u64,
    /// Fragments that have finished waiting for their first one. Each counts twice: in
    /// `dropped_for` as "fragment_held", and with its final outcome. `dropped` includes those that
    /// still wait.
    pub fragments_released: u64,
    /// For a host agent: packets without a connection that it passed on to another host.
    pub passed_on: u64,
    /// For a host agent: packets that no host knew, passed on to the host that begins their flow.
    pub passed_back: u64,
    /// For a mux: flows taken over from records, which are not counted as made.
    pub flows_imported: u64,
    /// For a host agent or a proxy: connections taken over from records, which are not counted as
    /// made.
    pub connections_imported: u64,
    /// For a host agent or a proxy: connections taken up in the middle.
    pub taken_up: u64,
    /// Frames for public addresses of vms.
    pub public_in: u64,
    /// For a host agent: frames of vms that left with a public address.
    pub public_out: u64,
}

impl Default for slb_stats {
    fn default() -> Self {
        Self::of(&Stats::default())
    }
}

impl slb_stats {
    pub(crate) fn of(stats: &Stats) -> Self {
        let mut dropped_for = [0; SLB_DROP_REASONS];
        let reasons = dropped_for.iter_mut().skip(1); // 0 is none
        for (to, (_, count)) in reasons.zip(stats.dropped.iter()) {
            *to = count.packets;
        }
        let (flows, connections) = (stats.flows, stats.connections);
        Self {
            received: stats.received.packets,
            received_bytes: stats.received.bytes,
            forwarded: stats.forwarded.packets,
            forwarded_bytes: stats.forwarded.bytes,
            replied: stats.replied.packets,
            passed: stats.passed.packets,
            dropped: stats.dropped_total().packets,
            dropped_for,
            syns: stats.syns,
            icmp_errors: stats.icmp_errors,
            flows_made: flows.made,
            flows_expired: flows.expired,
            flows_evicted: flows.evicted,
            flows_refused: flows.refused,
            flows_live: flows.live,
            flow_places: flows.places,
            connections_made: connections.made,
            connections_expired: connections.expired,
            connections_removed: connections.removed,
            connections_refused: connections.refused,
            connections_live: connections.live,
            connection_places: connections.places,
            resets: stats.resets,
            resets_suppressed: stats.resets_suppressed,
            connections_evicted: connections.evicted,
            connections_unanswered: connections.unanswered,
            fragments_released: stats.released.packets,
            passed_on: stats.passed_on,
            passed_back: stats.passed_back,
            flows_imported: flows.imported,
            connections_imported: connections.imported,
            taken_up: stats.taken_up,
            public_in: stats.public_in.packets,
            public_out: stats.public_out.packets,
        }
    }
}

/// Counters of a rule.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct slb_rule_stats {
    /// Frames to send out of a port.
    pub forwarded: u64,
    /// Bytes of the frames forwarded, in their length on arrival.
    pub forwarded_bytes: u64,
    /// TCP segments that request a connection.
    pub syns: u64,
    /// Flows pinned, or connections made.
    pub flows: u64,
}

impl slb_rule_stats {
    pub(crate) fn of(counters: &RuleCounters) -> Self {
        Self {
            forwarded: counters.forwarded.packets,
            forwarded_bytes: counters.forwarded.bytes,
            syns: counters.syns,
            flows: counters.flows,
        }
    }
}

/// Counters of a backend.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct slb_backend_stats {
    /// Frames to send out of a port.
    pub forwarded: u64,
    /// Bytes of the frames forwarded, in their length on arrival.
    pub forwarded_bytes: u64,
    /// Flows pinned to the backend, or connections made.
    pub flows: u64,
    /// Live connections of the backend; 0 for a mux.
    pub live: u64,
}

impl slb_backend_stats {
    pub(crate) fn of(counters: &BackendCounters) -> Self {
        Self {
            forwarded: counters.forwarded.packets,
            forwarded_bytes: counters.forwarded.bytes,
            flows: counters.flows,
            live: counters.live,
        }
    }
}

/// Returns the name of a drop reason, such as "no_rule"; "none" for 0, and "unknown" for a number
/// without a reason. The text is never NULL and must not be freed. Numbers are stable within a
/// version.
#[unsafe(no_mangle)]
pub extern "C" fn slb_drop_reason(reason: u8) -> *const c_char {
    let text = match usize::from(reason).checked_sub(1) {
        None => c"none",
        Some(index) => C_NAMES.get(index).copied().unwrap_or(c"unknown"),
    };
    text.as_ptr()
}

/// The reasons' names with C's terminating zero; a test compares them with the dataplane's.
const C_NAMES: [&CStr; DropReason::COUNT] = [
    c"truncated",
    c"malformed",
    c"no_rule",
    c"no_backend",
    c"fragment_without_first",
    c"icmp_unmatched",
    c"hop_limit",
    c"packet_too_big",
    c"echo_ignored",
    c"no_headroom",
    c"unknown_peer",
    c"unknown_vm",
    c"outer_checksum",
    c"congestion",
    c"no_connection",
    c"table_full",
    c"tuple_taken",
    c"no_outbound_rule",
    c"snat_exhausted",
    c"spoofed_source",
    c"martian",
    c"source_limit",
    c"source_route",
    c"icmp_redirect",
    c"icmp_checksum",
    c"bad_checksum",
    c"tiny_fragment",
    c"fragment_held",
    c"hairpin",
    c"astray",
    c"no_neighbour",
    c"too_long",
    c"denied",
    c"inside_source",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_name_in_c() {
        for (name, reason) in C_NAMES.iter().zip(DropReason::ALL) {
            assert_eq!(name.to_str(), Ok(reason.name()));
        }
    }
}
