//! Decides whether a backend gets new flows of a rule, and whether it keeps its flows.

use super::terms::{CompiledTerms, RuleKind};
use super::{Share, Snapshot};
use crate::nat::rule_id::ShortRuleId;
use crate::packet::Packet;

impl Snapshot<'_> {
    /// Returns true if a backend gets new flows of the rule that the packet matches. The rule may
    /// have led elsewhere when the packet's flow began.
    #[inline(never)]
    pub(crate) fn gets_new_flows(&self, rule: u32, packet: &Packet, backend: u32) -> bool {
        let (Some(terms), Some(rule)) = (self.terms(rule), self.rule(rule)) else {
            return false;
        };
        match terms.kind {
            RuleKind::Balance => self.takes(terms, backend),
            // A single backend, regardless of its health; no hash chooses it.
            RuleKind::Nat | RuleKind::Outbound => {
                let place = self.table_index(rule, packet, 0);
                self.backend_at(rule.first_backend, place) == Some(backend)
            }
        }
    }

    /// Returns true if a backend keeps its flows of a rule, for connectionless protocols: a backend
    /// that is unhealthy for the rule loses them, a draining one keeps them. The backend of an
    /// inbound NAT rule or a SNAT port keeps them regardless of its health.
    #[inline]
    pub(crate) fn keeps_flows(&self, rule: u32, backend: u32) -> bool {
        let is_suspect = self.backend(backend).is_some_and(|found| found.suspect);
        !is_suspect || self.keeps_flows_of(rule, backend)
    }

    /// Returns true if a backend that is unhealthy for some rule keeps the flows of this rule.
    #[cold]
    pub(super) fn keeps_flows_of(&self, rule: u32, backend: u32) -> bool {
        let terms = self.terms(rule);
        let terms = terms.filter(|terms| terms.kind == RuleKind::Balance);
        terms.is_none_or(|terms| match self.share(terms, backend) {
            Some(share) => !share.is_unhealthy,
            None => !self.backend(backend).is_some_and(|found| found.unhealthy),
        })
    }

    /// Returns a backend's share of the new flows of a balancing rule; `None` if it is not in the
    /// rule's pool.
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

    /// Returns true if new flows of a rule may go to a backend: it is in the rule's pool, has a
    /// weight, and is healthy by its own state and the rule's probe. `rule` is an index in
    /// [`Spec::rules`](crate::spec::Spec::rules), `backend` an index in
    /// [`backends`](Self::backends). Returns false if there is no such rule, or if it does not
    /// balance.
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

    /// Returns true if a backend is unhealthy by the probe of a balancing rule, or by its own state
    /// if it is not in the rule's pool.
    pub(crate) fn is_unhealthy_by(&self, terms: &CompiledTerms, backend: u32) -> bool {
        match self.share(terms, backend) {
            Some(share) => share.is_unhealthy,
            None => self.backend(backend).is_some_and(|found| found.unhealthy),
        }
    }
}
