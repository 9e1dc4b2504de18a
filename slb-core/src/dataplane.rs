//! The trait of all roles, for loops that run any of them.

use core::ops::Deref;

use crate::frame::{Burst, Frame};
use crate::host::Host;
use crate::mux::Mux;
use crate::observe::Observe;
use crate::proxy::Proxy;
use crate::snapshot::{BackendKey, RuleKey, Snapshot};
use crate::stats::{BackendCounters, RuleCounters, Stats};
use crate::time::Instant;

/// A role: mux, host agent or proxy.
pub trait Dataplane<'s> {
    /// Sets the verdict of each of `frames`, and rewrites those to be sent in place.
    fn process(&mut self, now: Instant, frames: &mut [Frame<'_>]) {
        self.process_observed(now, frames, &mut ());
    }

    /// Does the same as [`process`](Self::process), and shows every step to an observer.
    fn process_observed(&mut self, now: Instant, frames: &mut [Frame<'_>], seen: &mut impl Observe);

    /// Does timed work: ends what has expired, and releases fragments that waited. Empty frames of
    /// `spare` become packets that the role generates, with their verdicts; the others stay empty.
    fn advance(&mut self, now: Instant, spare: &mut Burst<'_>);

    /// Returns the counters since the dataplane was made.
    fn stats(&self) -> Stats;

    /// Returns the installed snapshot.
    fn snapshot(&self) -> &Snapshot<'s>;

    /// Returns the counters of a rule, by its name or its index in
    /// [`Spec::rules`](crate::spec::Spec::rules); `None` if there is no such rule, or no memory for
    /// its counters.
    fn rule_counters(&self, rule: impl RuleKey) -> Option<RuleCounters>;

    /// Returns the counters of a backend, by its id, or by its pool's name and its own:
    /// `"pool/backend"` or `("pool", "backend")`. `None` if there is no such backend, or no memory
    /// for its counters.
    fn backend_counters(&self, backend: impl BackendKey) -> Option<BackendCounters>;
}

macro_rules! delegate {
    ($role:ident, $advance:expr) => {
        impl<'s, S: Deref<Target = Snapshot<'s>>> Dataplane<'s> for $role<'_, S> {
            fn process_observed(
                &mut self,
                now: Instant,
                frames: &mut [Frame<'_>],
                seen: &mut impl Observe,
            ) {
                $role::process_observed(self, now, frames, seen);
            }

            fn advance(&mut self, now: Instant, spare: &mut Burst<'_>) {
                $advance(self, now, spare);
            }

            fn stats(&self) -> Stats {
                $role::stats(self)
            }

            fn snapshot(&self) -> &Snapshot<'s> {
                $role::snapshot(self)
            }

            fn rule_counters(&self, rule: impl RuleKey) -> Option<RuleCounters> {
                $role::rule_counters(self, rule)
            }

            fn backend_counters(&self, backend: impl BackendKey) -> Option<BackendCounters> {
                $role::backend_counters(self, backend)
            }
        }
    };
}

delegate!(Mux, Self::release);
delegate!(Host, Self::advance);
delegate!(Proxy, Self::advance);
