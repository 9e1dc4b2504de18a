//! Pools: the shares, the Maglev table and the header templates of their backends.

use crate::hash::siphash13;
use crate::health::Condition;
use crate::maglev::{self, MaglevError, Member, Turn};
use crate::snapshot::faults::backend_identity;
use crate::snapshot::locals::has_past;
use crate::snapshot::names::backend_name;
use crate::snapshot::probe_map::NONE;
use crate::snapshot::registry::{AlreadyRegistered, identity};
use crate::snapshot::{CompiledBackend, CompiledPool, Share, Snapshot};
use crate::spec::{BackendHealth, Pool, Spec, SpecError, derived_mac};
use crate::tunnel::encapsulation::Template;

impl Snapshot<'_> {
    pub(super) fn compile_pools(
        &mut self,
        spec: &Spec<'_>,
        previous: Option<&Snapshot<'_>>,
        turns: &mut [Turn],
    ) -> Result<(), SpecError> {
        let mut next = CompiledPool::EMPTY;
        let mut past = 0;
        let mut place_of_past = |pool: usize| {
            if !has_past(spec, pool) {
                return NONE;
            }
            let place = past;
            past += spec.pools[pool].table_size;
            place
        };
        for (index, pool) in spec.pools.iter().enumerate() {
            next.past = place_of_past(index);
            next.identity = identity([pool.name.as_bytes(), &[], &[]]);
            next.table_size = pool.table_size;
            next.backends = pool.backends.len() as u32;
            self.compile_pool(spec, index, None, &mut next, previous, turns)?;
            self.pools[index] = next;
            next.table_start += next.table_size;
            next.first_backend += next.backends;
            next.shares += next.backends;
        }
        let (mut table_start, mut shares) = (next.table_start, next.shares);
        for (index, health) in spec.health.iter().enumerate() {
            let mut probed = CompiledPool {
                table_start,
                shares,
                past: place_of_past(health.pool),
                ..self.pools[health.pool]
            };
            let found = Some((index, health.backends));
            self.compile_pool(spec, health.pool, found, &mut probed, previous, turns)?;
            self.probed[index] = probed;
            table_start += probed.table_size;
            shares += probed.backends;
        }
        Ok(())
    }

    /// Compiles the shares and the table of a pool's backends; with the results of a probe and
    /// their index in the spec, by these too.
    fn compile_pool(
        &mut self,
        spec: &Spec<'_>,
        index: usize,
        probed: Option<(usize, &[BackendHealth])>,
        compiled: &mut CompiledPool,
        previous: Option<&Snapshot<'_>>,
        turns: &mut [Turn],
    ) -> Result<(), SpecError> {
        let pool = &spec.pools[index];
        let start = compiled.shares as usize;
        let mut digest = siphash13([spec.hash_seed, pool.table_size.into()], &[]);
        for (place, backend) in pool.backends.iter().enumerate() {
            let found = probed.map_or(BackendHealth::default(), |(_, all)| all[place]);
            let is_unhealthy = backend.is_unhealthy() || found.condition == Condition::Unhealthy;
            let weight = if is_unhealthy || !backend.is_seated() {
                0
            } else {
                found.weight.unwrap_or(backend.weight)
            };
            self.shares[start + place] = Share {
                weight,
                is_unhealthy,
            };
            digest = siphash13([digest, weight.into()], backend.seat().as_bytes());
        }
        compiled.digest = digest;
        if probed.is_none() {
            compiled.names = digest_of_names(pool);
            let before = previous.and_then(|previous| previous.pools.get(index));
            if before.is_none_or(|before| before.names != compiled.names) {
                check_names(index, pool, turns)?;
            }
        }
        let Self {
            pools,
            probed: others,
            shares,
            table,
            ..
        } = self;
        if let Some((number, _)) = probed {
            // If no backend fails, all rules of a pool share one table and its cache lines.
            let same = |other: &&CompiledPool| other.digest == digest;
            let of_pool = |other: &&CompiledPool| other.first_backend == compiled.first_backend;
            let before = others.iter().take(number).filter(of_pool);
            if let Some(same) = pools.get(index).into_iter().chain(before).find(same) {
                compiled.table_start = same.table_start;
                return Ok(());
            }
        }
        let table = &mut table[compiled.table()];
        if let Some(same) = previous.and_then(|previous| previous.table_of(compiled, index)) {
            table.copy_from_slice(same);
            return Ok(());
        }
        let member = |place: usize| Member {
            name: pool.backends[place].seat(),
            weight: shares[start + place].weight,
        };
        maglev::build_with(pool.backends.len(), member, spec.hash_seed, table, turns)
            .map_err(|error| SpecError::Table { pool: index, error })
    }

    /// Returns the table of an earlier pool with the same input as `pool`.
    fn table_of(&self, pool: &CompiledPool, index: usize) -> Option<&[u16]> {
        let same = |candidate: &&CompiledPool| {
            candidate.identity == pool.identity
                && candidate.digest == pool.digest
                && candidate.table_size == pool.table_size
        };
        let here = self.pools.get(index).filter(same);
        let found = here.or_else(|| self.pools.iter().chain(&*self.probed).find(same))?;
        self.table.get(found.table())
    }

    pub(super) fn compile_backends(
        &mut self,
        spec: &Spec<'_>,
        previous: Option<&Snapshot<'_>>,
    ) -> Result<(), SpecError> {
        let previous = previous.map(|previous| &previous.backend_ids);
        let all = || {
            let pools = spec.pools.iter().enumerate();
            let all = pools.flat_map(|(pool, of)| {
                let members = of.backends.iter().enumerate();
                members.map(move |(member, backend)| (pool, member, of, backend))
            });
            all.enumerate()
        };
        let duplicate = |AlreadyRegistered(first), second: usize| SpecError::DuplicateBackend {
            first: first as usize,
            second,
        };
        for (index, (pool, member, of, backend)) in all() {
            let identity = backend_identity(of, backend);
            let next_hop = backend.next_hop.unwrap_or(spec.underlay.next_hop);
            let mac = backend.mac.unwrap_or(derived_mac(backend.address));
            let vni = of.vni;
            let template = if spec.proxy.is_some() {
                Template::EMPTY // nothing is encapsulated
            } else {
                let template = Template::new(&spec.underlay, backend.host, next_hop, mac, vni);
                template.ok_or(SpecError::NoUnderlayAddress {
                    pool,
                    backend: member,
                })?
            };
            self.names[index] = backend_name(of.name, backend.name);
            let slot = self
                .backend_ids
                .keep(previous, identity, index as u32)
                .map_err(|already| duplicate(already, index))?;
            let inner_mtu = template.inner_mtu(spec.underlay.mtu);
            self.backends[index] = CompiledBackend {
                template,
                inner_mtu,
                common_mtu: if template.is_common() { inner_mtu } else { 0 },
                id: slot.map_or(NONE, |slot| self.backend_ids.id(slot).get()),
                counters: slot.unwrap_or_default() as u32,
                pool: pool as u32,
                member: member as u32,
                eligible: backend.is_eligible(),
                unhealthy: backend.is_unhealthy(),
                suspect: backend.is_unhealthy(),
            };
        }
        for pool in self.probed.iter() {
            let (first, start) = (pool.first_backend as usize, pool.shares as usize);
            for place in 0..pool.backends as usize {
                self.backends[first + place].suspect |= self.shares[start + place].is_unhealthy;
            }
        }
        // Most backends are known.
        for (index, (.., of, backend)) in all() {
            if self.backends[index].id == NONE {
                let identity = backend_identity(of, backend);
                let slot = self
                    .backend_ids
                    .add(identity, index as u32)
                    .map_err(|already| duplicate(already, index))?;
                self.backends[index].id = self.backend_ids.id(slot).get();
                self.backends[index].counters = slot as u32;
            }
        }
        Ok(())
    }
}

/// Returns a digest of the names and seats of a pool's backends, and of who is seated.
fn digest_of_names(pool: &Pool<'_>) -> u64 {
    pool.backends.iter().fold(0, |digest, backend| {
        let kind = u64::from(backend.is_seated()) << 1 | u64::from(backend.seat.is_some());
        let digest = siphash13([digest, kind], backend.name.as_bytes());
        let seat = backend.seat.map(str::as_bytes);
        seat.map_or(digest, |seat| siphash13([digest, kind], seat))
    })
}

/// Returns an error if two backends of a pool have the same name or the same seat.
fn check_names(index: usize, pool: &Pool<'_>, turns: &mut [Turn]) -> Result<(), SpecError> {
    let count = pool.backends.len();
    let name = |place: usize| Some(pool.backends[place].name);
    if let Some((_, member)) = maglev::duplicate_name(count, name, turns) {
        let error = MaglevError::DuplicateName { member };
        return Err(SpecError::Table { pool: index, error });
    }
    let seat = |place: usize| {
        let backend = &pool.backends[place];
        backend.is_seated().then(|| backend.seat())
    };
    match maglev::duplicate_name(count, seat, turns) {
        None => Ok(()),
        Some((first, second)) => Err(SpecError::SeatTaken {
            pool: index,
            first,
            second,
        }),
    }
}
