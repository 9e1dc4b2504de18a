//! Previous owners of the slots of each table, and the number of generations since each changed.

use crate::maglev::{self, Member, Turn};
use crate::snapshot::ages;
use crate::snapshot::owners::Step;
use crate::snapshot::probe_map::NONE;
use crate::snapshot::registry::Registry;
use crate::snapshot::{CompiledPool, Snapshot};
use crate::spec::{Spec, SpecError};

impl Snapshot<'_> {
    /// Records the former owners of the slots of each table: those that the previous snapshot
    /// remembers, and its own owners; without a previous snapshot, those in the spec. A mux records
    /// only the age of each slot's last change.
    pub(super) fn compile_pasts(
        &mut self,
        spec: &Spec<'_>,
        previous: Option<&Snapshot<'_>>,
        turns: &mut [Turn],
    ) -> Result<(), SpecError> {
        for index in 0..spec.pools.len() {
            let compiled = self.pools[index];
            let same = |other: &&CompiledPool| other.is_continued_by(&compiled);
            let before = previous.and_then(|previous| {
                let here = previous.pools.get(index).filter(same);
                let before = here.or_else(|| previous.pools.iter().find(same))?;
                Some((previous, before))
            });
            self.compile_past(spec, index, &compiled, before, turns)?;
            self.pools[index].has_ages = self.compile_ages(&compiled, before);
        }
        for (index, health) in spec.health.iter().enumerate() {
            let compiled = self.probed[index];
            // Probes have no names, so the order identifies them: a pool's first probe continues
            // the first one of the previous snapshot, and so on.
            let earlier = spec.health.iter().take(index);
            let number = earlier.filter(|other| other.pool == health.pool).count();
            let before = previous.and_then(|previous| {
                let same = |other: &&CompiledPool| other.is_continued_by(&compiled);
                let mut probed = previous.probed.iter().filter(same);
                let before = probed.nth(number);
                let before = before.or_else(|| previous.pools.iter().find(same))?;
                Some((previous, before))
            });
            self.compile_past(spec, health.pool, &compiled, before, turns)?;
            self.probed[index].has_ages = self.compile_ages(&compiled, before);
        }
        self.share_ages(spec);
        Ok(())
    }

    /// Notes for all rules that share a table if its slots have ages.
    fn share_ages(&mut self, spec: &Spec<'_>) {
        let Self { pools, probed, .. } = self;
        for (index, health) in spec.health.iter().enumerate() {
            let (before, rest) = probed.split_at_mut(index);
            let [compiled, ..] = rest else { return };
            let start = compiled.table_start;
            let own = pools.get_mut(health.pool).into_iter();
            let mut sharing = own.chain(before).filter(|of| of.table_start == start);
            if let Some(first) = sharing.next() {
                first.has_ages |= compiled.has_ages;
                compiled.has_ages = first.has_ages;
            }
        }
        for (index, health) in spec.health.iter().enumerate() {
            let (before, rest) = probed.split_at_mut(index);
            let [compiled, ..] = rest else { return };
            let start = compiled.table_start;
            let mut sharing = pools.get(health.pool).into_iter().chain(&*before);
            if let Some(first) = sharing.find(|of| of.table_start == start) {
                compiled.has_ages = first.has_ages;
            }
        }
    }

    /// Records how many generations ago each slot of a table changed its backend, and returns true
    /// if it did for any. Rules with different probes may share a table: for each slot, the latest
    /// change counts.
    fn compile_ages(
        &mut self,
        compiled: &CompiledPool,
        before: Option<(&Snapshot<'_>, &CompiledPool)>,
    ) -> bool {
        let (Some((previous, before)), Some(all)) = (before, self.ages.get_mut(compiled.table()))
        else {
            return false;
        };
        let (Some(owners), Some(old_ages), Some(old_owners)) = (
            self.table.get(compiled.table()),
            previous.ages.get(before.table()),
            previous.table.get(before.table()),
        ) else {
            return false;
        };
        if before.has_ages {
            for (age, &old) in all.iter_mut().zip(old_ages) {
                *age = ages::later(*age, ages::aged(old));
            }
        }
        let backend_ids = &self.backend_ids;
        let renumbered = |member: u16| renumbered(previous, before, backend_ids, compiled, member);
        let is_same = before.digest == compiled.digest
            && (0..before.backends as u16).all(|member| renumbered(member) == Some(member));
        if is_same {
            return before.has_ages;
        }
        for ((age, &owner), &old) in all.iter_mut().zip(owners).zip(old_owners) {
            if old != maglev::EMPTY && renumbered(old) != Some(owner) {
                *age = ages::NEW;
            }
        }
        true
    }

    fn compile_past(
        &mut self,
        spec: &Spec<'_>,
        index: usize,
        compiled: &CompiledPool,
        before: Option<(&Snapshot<'_>, &CompiledPool)>,
        turns: &mut [Turn],
    ) -> Result<(), SpecError> {
        if compiled.past == NONE {
            return Ok(());
        }
        if before.is_none_or(|(_, before)| before.past == NONE) {
            self.compile_given_past(spec, index, compiled, turns)?;
        }
        let Self {
            table,
            past,
            backend_ids,
            ..
        } = self;
        let Some((previous, before)) = before else {
            return Ok(());
        };
        let (Some(old_owners), Some(owners), Some(past)) = (
            previous.table.get(before.table()),
            table.get(compiled.table()),
            past.get_mut(compiled.past()),
        ) else {
            return Ok(());
        };
        let renumbered = |member: u16| renumbered(previous, before, backend_ids, compiled, member);
        let step = Step::new(previous.now, spec.now);
        let remembered = previous
            .past
            .get(before.past())
            .filter(|_| before.past != NONE);
        for (slot, (past, &owner)) in past.iter_mut().zip(owners).enumerate() {
            let old_owner = old_owners.get(slot).copied().and_then(renumbered);
            let old = match remembered.and_then(|all| all.get(slot)) {
                Some(old) => old.next(renumbered, (old_owner, owner), step),
                None => past.next(Some, (old_owner, owner), step),
            };
            *past = old;
        }
        Ok(())
    }

    /// Records the former owners of the slots of a pool's table, by the past weights in the spec.
    /// Uses the table itself as scratch space, and restores it in the end.
    fn compile_given_past(
        &mut self,
        spec: &Spec<'_>,
        index: usize,
        compiled: &CompiledPool,
        turns: &mut [Turn],
    ) -> Result<(), SpecError> {
        let pool = &spec.pools[index];
        if pool.past.is_empty() {
            return Ok(());
        }
        let Self {
            table,
            past,
            shares,
            ..
        } = self;
        let (Some(table), Some(past)) = (
            table.get_mut(compiled.table()),
            past.get_mut(compiled.past()),
        ) else {
            return Ok(());
        };
        let failed = |error| SpecError::Table { pool: index, error };
        let mut build = |weight: &dyn Fn(usize) -> u32, table: &mut [u16]| {
            let member = |place: usize| Member {
                name: pool.backends[place].seat(),
                weight: weight(place),
            };
            maglev::build_with(pool.backends.len(), member, spec.hash_seed, table, turns)
                .map_err(failed)
        };
        for weights in pool.past {
            build(&|place| weights[place], table)?;
            for (past, &owner) in past.iter_mut().zip(&*table) {
                past.note(owner);
            }
        }
        let start = compiled.shares as usize;
        build(&|place| shares[start + place].weight, table)?;
        for (past, &owner) in past.iter_mut().zip(&*table) {
            past.settle(owner);
            if !past.is_empty() {
                past.make_young();
            }
        }
        Ok(())
    }
}

/// Returns the index in its pool of a backend that had another index in the previous snapshot;
/// `None` if it is no longer in the pool.
fn renumbered(
    previous: &Snapshot<'_>,
    before: &CompiledPool,
    backend_ids: &Registry<'_>,
    compiled: &CompiledPool,
    member: u16,
) -> Option<u16> {
    let old = previous.backend(before.first_backend + u32::from(member))?;
    let place = backend_ids.index(old.id())?;
    let member = place.checked_sub(compiled.first_backend)?;
    (member < compiled.backends).then_some(member as u16)
}

#[cfg(all(test, feature = "alloc"))]
mod tests;
