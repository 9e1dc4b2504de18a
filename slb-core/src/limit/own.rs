//! Limits on the packets that a role sends itself.

use crate::time::Instant;

/// The kinds of packets that a role sends itself, and of other work that strangers can cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    /// An echo reply.
    Echo,
    /// "Packet too big", or "fragmentation needed".
    TooBig,
    /// Any other ICMP error.
    Error,
    /// A RST.
    Reset,
    /// A packet of another host's connection, passed on.
    Passed,
    /// A connection taken up in the middle, or a segment that goes back to a host which may take its connection up.
    TakenUp,
}

/// Limits on the packets that a role sends itself. Each kind has its own limit, so a flood of pings
/// suppresses neither path-MTU discovery nor RSTs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    now: Instant,
    echoes: Limiter,
    too_big: Limiter,
    errors: Limiter,
    resets: Limiter,
    passed: Limiter,
    taken_up: Limiter,
}

impl Limits {
    /// Makes limits with an average rate and a burst for each kind.
    pub(crate) fn new(rates: &Rates) -> Self {
        let limiter = |(rate, burst)| Limiter::new(rate, burst);
        Self {
            now: Instant::ZERO,
            echoes: limiter(rates.echoes),
            too_big: limiter(rates.too_big),
            errors: limiter(rates.errors),
            resets: limiter(rates.resets),
            passed: limiter(rates.passed),
            taken_up: limiter(rates.taken_up),
        }
    }

    /// Changes the limits of the kinds whose rates differ; the other kinds keep their tokens.
    pub(crate) fn set_rates(&mut self, rates: &Rates) {
        let new = Self::new(rates);
        for (own, new) in [
            (&mut self.echoes, new.echoes),
            (&mut self.too_big, new.too_big),
            (&mut self.errors, new.errors),
            (&mut self.resets, new.resets),
            (&mut self.passed, new.passed),
            (&mut self.taken_up, new.taken_up),
        ] {
            if (own.cost, own.most) != (new.cost, new.most) {
                *own = new;
            }
        }
    }

    /// Returns true if the limits allow any packet to be passed on to other hosts.
    pub(crate) fn pass_on(&self) -> bool {
        self.passed.most != 0
    }

    /// Returns true if connections are taken up at all.
    pub(crate) fn take_up(&self) -> bool {
        self.taken_up.most != 0
    }

    /// Sets the time.
    #[inline]
    pub(crate) fn advance(&mut self, now: Instant) {
        self.now = now;
    }

    /// Takes a token for a packet of a kind, if there is one.
    #[cold]
    pub(crate) fn allow(&mut self, kind: Own) -> bool {
        let limiter = match kind {
            Own::Echo => &mut self.echoes,
            Own::TooBig => &mut self.too_big,
            Own::Error => &mut self.errors,
            Own::Reset => &mut self.resets,
            Own::Passed => &mut self.passed,
            Own::TakenUp => &mut self.taken_up,
        };
        limiter.advance(self.now);
        limiter.allow()
    }
}

/// Rates of [`Limits`]: sustained packets per second, and burst size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    pub(crate) echoes: (u32, u32),
    pub(crate) too_big: (u32, u32),
    pub(crate) errors: (u32, u32),
    pub(crate) resets: (u32, u32),
    pub(crate) passed: (u32, u32),
    pub(crate) taken_up: (u32, u32),
}

/// A token bucket that counts nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Limiter {
    credit: u64,
    most: u64,
    cost: u64,
    last: Option<Instant>,
}

impl Limiter {
    /// Makes a bucket for `rate` packets a second on average, with bursts of `burst`; for none if
    /// `rate` is zero.
    fn new(rate: u32, burst: u32) -> Self {
        let cost = if rate == 0 {
            u64::MAX
        } else {
            // The smallest interval is one nanosecond: an interval of zero, at a high rate, would
            // mean no packets.
            (1_000_000_000 / u64::from(rate)).max(1)
        };
        let most = if rate == 0 {
            0
        } else {
            cost.saturating_mul(burst.into())
        };
        Self {
            credit: most,
            most,
            cost,
            last: None,
        }
    }

    /// Adds the tokens for the time since the last call.
    fn advance(&mut self, now: Instant) {
        let earned = self
            .last
            .map_or(0, |last| now.as_nanos().saturating_sub(last.as_nanos()));
        self.credit = self.credit.saturating_add(earned).min(self.most);
        self.last = self.last.max(Some(now));
    }

    /// Takes a token, if there is one.
    fn allow(&mut self) -> bool {
        match self.credit.checked_sub(self.cost) {
            Some(rest) => {
                self.credit = rest;
                true
            }
            None => false,
        }
    }
}
