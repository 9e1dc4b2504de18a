//! The terms of a rule's connections: translation and timeouts.

use core::net::IpAddr;

use super::probe_map::NONE;
use crate::nat::connection::Span;
use crate::spec::{Answers, Scheduler, Terms};

/// The terms of a rule's connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CompiledTerms {
    pub(crate) idle: Span,
    /// The port that the backend serves, in packets' byte order; `None` for the packet's own.
    pub(crate) backend_port: Option<u16>,
    pub(crate) floating_ip: bool,
    pub(crate) reset: bool,
    pub(crate) through_mux: bool,
    /// True if the frontend belongs to a network, through which answers go.
    pub(crate) is_private: bool,
    pub(crate) source_nat: Option<IpAddr>,
    pub(crate) quic: bool,
    /// Index of the rule's pool; meaningless for outbound ports.
    pub(crate) pool: u32,
    /// Index of the first share of the pool that the rule refers to.
    pub(crate) shares: u32,
    /// Index of the past of the pool's table, or [`NONE`].
    pub(crate) past: u32,
    pub(crate) kind: RuleKind,
    pub(crate) scheduler: Scheduler,
}

/// The kind of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RuleKind {
    /// A rule that balances over a pool.
    Balance,
    /// An inbound NAT rule, which leads to one backend.
    Nat,
    /// The rule of SNAT ports, which leads answers to the owner of the port.
    Outbound,
}

impl CompiledTerms {
    pub(crate) const EMPTY: Self = Self {
        idle: Span::from_duration(core::time::Duration::ZERO),
        backend_port: None,
        floating_ip: false,
        reset: false,
        through_mux: false,
        is_private: false,
        source_nat: None,
        quic: false,
        pool: 0,
        shares: 0,
        past: NONE,
        kind: RuleKind::Outbound,
        scheduler: Scheduler::Maglev,
    };

    pub(crate) fn new(
        kind: RuleKind,
        idle: core::time::Duration,
        pool: usize,
        backend_port: Option<u16>,
        terms: &Terms,
    ) -> Self {
        Self {
            idle: Span::from_duration(idle),
            backend_port: backend_port.filter(|_| !terms.floating_ip),
            floating_ip: terms.floating_ip,
            reset: terms.tcp_reset,
            through_mux: terms.answers == Answers::ThroughMux,
            is_private: false,
            source_nat: terms.source_nat,
            quic: terms.quic,
            pool: pool as u32,
            shares: 0,
            past: NONE,
            kind,
            scheduler: Scheduler::Maglev,
        }
    }
}
