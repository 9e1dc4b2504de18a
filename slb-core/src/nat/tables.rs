//! What a role that translates is given: its tables, and what it may do besides.

use super::NatTable;
use crate::flow::FlowTable;
use crate::mem::Mem;
use crate::stats::{BackendCounters, RuleCounters, SnatCounters};

/// What a host agent may do besides translating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatOptions {
    /// ICMP errors of its own a second: the long run.
    pub answers_per_second: u32,
    /// And at once.
    pub answers_at_once: u32,
    /// RSTs a second: the long run.
    pub resets_per_second: u32,
    /// And at once.
    pub resets_at_once: u32,
    /// Lowers the maximum segment size that SYNs offer to what fits the fabric in VXLAN.
    pub clamp_mss: bool,
    /// A secret, by which the ports of connections to the outside are chosen so that nobody can
    /// guess them (RFC 6056).
    pub port_secret: [u64; 2],
}

impl Default for NatOptions {
    fn default() -> Self {
        Self {
            answers_per_second: 1000,
            answers_at_once: 100,
            resets_per_second: 10_000,
            resets_at_once: 1000,
            clamp_mss: false,
            port_secret: [0x452a_821e_638d_0137, 0x7be5_466c_f34e_90c6],
        }
    }
}

/// The tables of a host agent.
#[derive(Debug)]
pub struct NatTables<'m> {
    /// Its connections.
    pub connections: NatTable<'m>,
    /// Where the ports of fragmented datagrams are remembered; `None`: later fragments that need
    /// ports are dropped.
    pub fragments: Option<FlowTable<'m>>,
    /// Counters by [`CompiledRule::slot`](crate::service::CompiledRule::slot); rules beyond its end
    /// are not counted.
    pub rules: Mem<'m, RuleCounters>,
    /// Counters by [`BackendId::slot`]; backends beyond its end are not counted.
    pub backends: Mem<'m, BackendCounters>,
    /// SNAT counters by [`BackendId::slot`]; backends beyond its end are not counted.
    pub snat: Mem<'m, SnatCounters>,
    /// How many connections use each SNAT port of the backends here:
    /// [`Snapshot::snat_port_places`] of them; those beyond its end are not counted.
    pub snat_users: Mem<'m, u16>,
}
