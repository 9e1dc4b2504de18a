//! Allocation of SNAT ports to backends.
//!
//! Ports are allocated eight at a time ("granules"). Their owners follow from the spec alone, so
//! every node knows them without asking another. On each frontend, ports that a rule uses are
//! excluded, and the rest is allocated in the order of outbound rules and instances.

use super::{NatTarget, Outbound, Spec, SpecError};

/// The number of ports in a granule.
pub(crate) const GRANULE: u32 = 8;
/// The number of granules of a frontend, used or not.
pub(crate) const GRANULES: usize = 65_536 / GRANULE as usize;
/// The first granule that may be allocated: port 1024 (RFC 6056 §3.2).
const FIRST_GRANULE: usize = 1024 / GRANULE as usize;

/// The owner index of a free granule.
pub(crate) const UNOWNED: u16 = u16::MAX;
/// During allocation, the owner index of a granule that a rule uses.
const USED: u16 = u16::MAX - 1;
/// The maximum number of backends that can own granules.
pub(crate) const MAX_OWNERS: usize = USED as usize;

/// Returns true if an outbound rule uses a frontend.
pub(crate) fn is_outbound(spec: &Spec<'_>, frontend: usize) -> bool {
    spec.outbound
        .iter()
        .any(|rule| rule.frontends.contains(&frontend))
}

/// Yields the frontends that outbound rules use, in ascending order.
#[cfg(feature = "alloc")]
pub(crate) fn outbound_frontends(spec: &Spec<'_>) -> impl Iterator<Item = usize> + Clone + use<> {
    let used = spec.outbound.iter().flat_map(|rule| rule.frontends);
    let used = used.filter(|&&frontend| frontend < spec.frontends.len());
    let mut used: alloc::vec::Vec<usize> = used.copied().collect();
    used.sort_unstable();
    used.dedup();
    used.into_iter()
}

/// Yields the frontends that outbound rules use, in ascending order.
#[cfg(not(feature = "alloc"))]
pub(crate) fn outbound_frontends<'s>(
    spec: &'s Spec<'_>,
) -> impl Iterator<Item = usize> + Clone + 's {
    (0..spec.frontends.len()).filter(|&frontend| is_outbound(spec, frontend))
}

impl Spec<'_> {
    /// Yields a [`SpecError::OutOfPorts`] for each frontend with too few ports for its outbound
    /// rules, whereas building a snapshot stops at the first one. Invalid indexes have no ports.
    pub fn frontends_out_of_ports(&self) -> impl Iterator<Item = SpecError> {
        let outbound = outbound_frontends(self);
        outbound.filter_map(|frontend| deal(self, frontend, &mut [UNOWNED; GRANULES]).err())
    }

    /// Calls `each` with each backend's range of SNAT ports on a frontend, in ascending order: the
    /// pool's index, the backend's index in the pool, the first port and the last port. A backend
    /// may have several ranges.
    ///
    /// # Errors
    /// [`SpecError::OutOfPorts`]: the frontend has too few.
    pub fn outbound_ports(
        &self,
        frontend: usize,
        mut each: impl FnMut(usize, usize, u16, u16),
    ) -> Result<(), SpecError> {
        const PORTS: usize = GRANULE as usize;
        if !is_outbound(self, frontend) {
            return Ok(());
        }
        let mut owners = [UNOWNED; GRANULES];
        deal(self, frontend, &mut owners)?;
        let mut first = 0;
        for run in owners.chunk_by(|one, next| one == next) {
            let end = first + run.len() * PORTS;
            let owner = run.first().filter(|&&owner| owner != UNOWNED);
            if let Some((pool, member)) = owner.and_then(|&owner| self.member(owner.into())) {
                each(pool, member, first as u16, (end - 1) as u16);
            }
            first = end;
        }
        Ok(())
    }

    /// Returns the pool of a backend and the index in the pool, by the index among all backends.
    fn member(&self, mut backend: usize) -> Option<(usize, usize)> {
        for (index, pool) in self.pools.iter().enumerate() {
            match backend.checked_sub(pool.backends.len()) {
                None => return Some((index, backend)),
                Some(rest) => backend = rest,
            }
        }
        None
    }
}

/// Returns the instance number of a pool's backend.
pub(crate) fn instance(spec: &Spec<'_>, pool: usize, backend: usize) -> u32 {
    #[cfg(all(test, feature = "alloc"))]
    tests::STEPS.set(tests::STEPS.get() + 1);
    let given = spec
        .pools
        .get(pool)
        .and_then(|p| p.backends.get(backend)?.instance);
    given.unwrap_or(backend as u32)
}

/// Yields the backends of a pool by instance number, in ascending order; of several with one
/// number, the first.
#[cfg(feature = "alloc")]
fn by_instance(spec: &Spec<'_>, pool: usize) -> impl Iterator<Item = (u32, usize)> + use<> {
    let count = spec.pools.get(pool).map_or(0, |pool| pool.backends.len());
    let all = (0..count).map(|backend| (instance(spec, pool, backend), backend));
    let mut all: alloc::vec::Vec<_> = all.collect();
    all.sort_unstable();
    all.dedup_by_key(|&mut (number, _)| number);
    all.into_iter()
}

/// Yields the backends of a pool by instance number, in ascending order; of several with one
/// number, the first.
#[cfg(not(feature = "alloc"))]
fn by_instance<'s>(spec: &'s Spec<'_>, pool: usize) -> impl Iterator<Item = (u32, usize)> + 's {
    core::iter::successors(next_instance(spec, pool, None), move |&last| {
        next_instance(spec, pool, Some(last))
    })
}

/// Returns the backend of a pool with the lowest instance number above that of `last`, and the
/// number.
///
/// # Cost
/// Constant if numbers ascend without gaps, as default numbers do; else proportional to the
/// backends.
#[cfg(not(feature = "alloc"))]
fn next_instance(spec: &Spec<'_>, pool: usize, last: Option<(u32, usize)>) -> Option<(u32, usize)> {
    let count = spec.pools.get(pool).map_or(0, |pool| pool.backends.len());
    if let Some((number, backend)) = last
        && backend + 1 < count
        && Some(instance(spec, pool, backend + 1)) == number.checked_add(1)
    {
        return Some((number + 1, backend + 1));
    }
    let all = (0..count).map(|backend| (instance(spec, pool, backend), backend));
    all.filter(|&(number, _)| last.is_none_or(|(before, _)| number > before))
        .min()
}

/// Returns the number of instances of a pool: one more than the highest number.
fn instances(spec: &Spec<'_>, pool: usize) -> u32 {
    let count = spec.pools.get(pool).map_or(0, |pool| pool.backends.len());
    (0..count)
        .map(|b| instance(spec, pool, b).saturating_add(1))
        .max()
        .unwrap_or(0)
}

/// Allocates a frontend's granules: `owners[g]` becomes the index, among all backends, of the owner
/// of the ports 8 g to 8 g + 7, or [`UNOWNED`].
pub(crate) fn deal(spec: &Spec<'_>, frontend: usize, owners: &mut [u16]) -> Result<(), SpecError> {
    owners.fill(USED);
    if let Some(free) = owners.get_mut(FIRST_GRANULE..) {
        free.fill(UNOWNED);
    }
    let mut uses = |port: u16| {
        if let Some(owner) = owners.get_mut(usize::from(port) / GRANULE as usize) {
            *owner = USED;
        }
    };
    let rules = spec.rules.iter().filter(|rule| rule.frontend == frontend);
    rules.for_each(|rule| uses(rule.frontend_port));
    for nat in spec
        .inbound_nat
        .iter()
        .filter(|nat| nat.frontend == frontend)
    {
        match nat.target {
            NatTarget::Backend { port, .. } => uses(port),
            // The whole range, so that the pool can grow into it.
            NatTarget::Pool { first, last } => (first..=last).for_each(&mut uses),
        }
    }
    let free = owners.iter().filter(|&&owner| owner == UNOWNED).count() as u32;
    let rules = || {
        let all = spec.outbound.iter().enumerate();
        all.filter(|(_, rule)| rule.frontends.contains(&frontend))
    };
    let claimed = |rule: &Outbound<'_>| claims(rule, frontend, instances(spec, rule.pool));
    let fixed = rules()
        .map(|(_, rule)| claimed(rule))
        .fold(0, u64::saturating_add);
    let out_of_ports = |rule| SpecError::OutOfPorts {
        rule,
        frontend,
        needed: u32::try_from(fixed.saturating_mul(GRANULE.into())).unwrap_or(u32::MAX),
        available: free * GRANULE,
    };
    let shared = rules().filter(|(_, rule)| rule.allocated_outbound_ports.is_none());
    let sharers = shared.map(|(_, rule)| instances(spec, rule.pool));
    let sharers = sharers.fold(0, u32::saturating_add);
    let left = u32::try_from(fixed)
        .ok()
        .and_then(|fixed| free.checked_sub(fixed));
    let left = left.ok_or_else(|| {
        let last = rules().next_back().map_or(0, |(index, _)| index);
        out_of_ports(last)
    })?;
    let share = left.checked_div(sharers).unwrap_or(0);
    let mut granules = owners.iter_mut().filter(|owner| **owner == UNOWNED);
    for (index, rule) in rules() {
        if rule.allocated_outbound_ports.is_none() && share == 0 && instances(spec, rule.pool) != 0
        {
            return Err(out_of_ports(index));
        }
        if rule.allocated_outbound_ports.is_some() && claimed(rule) == 0 {
            continue;
        }
        let before: usize = spec
            .pools
            .iter()
            .take(rule.pool)
            .map(|pool| pool.backends.len())
            .sum();
        let mut present = by_instance(spec, rule.pool).peekable();
        for number in 0..instances(spec, rule.pool) {
            let owner = present.next_if(|&(present, _)| present == number);
            let owner = owner.map_or(UNOWNED, |(_, backend)| (before + backend) as u16);
            let count = match rule.allocated_outbound_ports {
                Some(_) => claim(rule, frontend, number),
                None => share,
            };
            // A missing instance keeps its granules for later.
            for place in granules.by_ref().take(count as usize) {
                *place = if owner == UNOWNED { USED } else { owner };
            }
        }
    }
    for owner in owners.iter_mut().filter(|owner| **owner == USED) {
        *owner = UNOWNED;
    }
    Ok(())
}

/// Returns the granules of `frontend` that an outbound rule of a fixed size gives to an instance:
/// an even part of its ports, and the remainder from one frontend after the other.
fn claim(rule: &Outbound<'_>, frontend: usize, instance: u32) -> u32 {
    let Some(ports) = rule.allocated_outbound_ports else {
        return 0;
    };
    let frontends = rule.frontends.len() as u32;
    let place = rule.frontends.iter().position(|&other| other == frontend);
    let (Some(place), Some(rest)) = (place, (ports / GRANULE).checked_rem(frontends)) else {
        return 0;
    };
    let first = (u64::from(instance) * u64::from(rest) % u64::from(frontends)) as u32;
    let turn = (place as u32 + frontends - first) % frontends;
    ports / GRANULE / frontends + u32::from(turn < rest)
}

/// Returns the granules of `frontend` that an outbound rule of a fixed size gives to the first
/// `instances` of its pool.
fn claims(rule: &Outbound<'_>, frontend: usize, instances: u32) -> u64 {
    // The claims of instances repeat with the number of the rule's frontends as the period.
    let period = u32::try_from(rule.frontends.len().max(1)).unwrap_or(u32::MAX);
    let first = |count| (0..count).map(|i| u64::from(claim(rule, frontend, i)));
    let cycles = u64::from(instances / period);
    let cycle: u64 = if cycles == 0 { 0 } else { first(period).sum() };
    let rest: u64 = first(instances % period).sum();
    cycles.saturating_mul(cycle).saturating_add(rest)
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use core::cell::Cell;
    use std::thread_local;
    use std::vec::Vec;

    use super::*;
    use crate::spec::{Backend, Frontend, Pool};

    thread_local! {
        /// The number of requests for an instance number.
        pub(super) static STEPS: Cell<usize> = const { Cell::new(0) };
    }

    /// Numbers with gaps are sorted once, not looked for one by one.
    #[test]
    fn ports_are_dealt_to_numbers_with_gaps_in_time_of_the_backends() {
        let deal_to = |count: u32| {
            let backend = |number| Backend {
                instance: Some(number * 2),
                ..Backend::default()
            };
            let backends: Vec<Backend<'_>> = (0..count).rev().map(backend).collect();
            let spec = Spec {
                frontends: &[Frontend::default()],
                pools: &[Pool {
                    backends: &backends,
                    ..Pool::default()
                }],
                outbound: &[Outbound {
                    frontends: &[0],
                    allocated_outbound_ports: Some(8),
                    ..Outbound::default()
                }],
                ..Spec::default()
            };
            STEPS.set(0);
            let mut owners = [UNOWNED; GRANULES];
            deal(&spec, 0, &mut owners).expect("there are ports for all");
            // The lowest number, which stands last, has the first ports.
            assert_eq!(owners[FIRST_GRANULE], (count - 1) as u16);
            assert_eq!(
                owners[FIRST_GRANULE + 1],
                UNOWNED,
                "the next ports are no backend's"
            );
            STEPS.get()
        };
        let count = if cfg!(miri) { 20 } else { 400 };
        let (few, many) = (deal_to(count), deal_to(10 * count));
        assert!(
            many <= 12 * few,
            "{few} of {count}, {many} of ten times as many"
        );
        assert!(many <= 10 * 4000, "{many}");
    }

    #[test]
    fn frontends_of_outbound_rules_are_found_in_one_round() {
        const COUNT: usize = if cfg!(miri) { 200 } else { 20_000 };
        let frontends = std::vec![Frontend::default(); COUNT];
        let used: Vec<[usize; 2]> = (0..COUNT).map(|n| [n / 2 * 2, COUNT + n]).collect();
        let rule = |frontends| Outbound {
            frontends,
            ..Outbound::default()
        };
        let outbound: Vec<Outbound<'_>> = used.iter().rev().map(|used| rule(used)).collect();
        let spec = Spec {
            frontends: &frontends,
            outbound: &outbound,
            ..Spec::default()
        };
        let found: Vec<usize> = outbound_frontends(&spec).collect();
        let expected: Vec<usize> = (0..COUNT).step_by(2).collect();
        assert_eq!(found, expected);
        assert!((0..100).all(|n| is_outbound(&spec, n) == (n % 2 == 0)));
    }
}
