//! Backends, and their observed health.

use core::ffi::{c_char, c_int};

use slb_core::PortId;
use slb_core::spec::{Backend, BackendHealth};

use super::fault::Fault;
use super::{ANY, Parts, change, slb_builder, string};
use crate::memory::shared;
use crate::spec::{condition, slb_backend, state};

/// Adds a backend to a pool. Returns its index in the pool.
///
/// # Safety
/// `builder` is a builder, and `backend` points to a backend.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_backend(
    builder: *mut slb_builder,
    pool: usize,
    backend: *const slb_backend,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: guaranteed by the caller.
        let given = unsafe { shared(backend) }?;
        // SAFETY: as above.
        let name = unsafe { parts.named(given.name) }?;
        let port = match given.port {
            ..=0 => None,
            port => {
                let expected = || Fault::expected("port", "at most 65535", port);
                Some(PortId(u16::try_from(port).map_err(|_| expected())?))
            }
        };
        let added = Backend {
            name,
            address: given.address.required("address")?,
            host: given.host.optional("host")?.unwrap_or(ANY),
            mac: given.mac.optional(),
            next_hop: given.next_hop.optional(),
            weight: given.weight.max(1),
            state: state(given.state)?,
            condition: condition(u8::from(given.unhealthy == 0)),
            seat: None,
            instance: u32::try_from(given.instance)
                .ok()
                .filter(|&given| given != 0),
            port,
            backend_port: (given.backend_port != 0).then_some(given.backend_port),
        };
        let (first, count) = parts.backends_of(pool)?;
        let of_pool = |&set: &usize| set == pool;
        let sets = parts.health.all().iter().copied().filter(of_pool).count();
        if parts.backends.room() == 0 {
            return Err(parts.backends.full());
        }
        if sets > parts.health_results.room() {
            return Err(parts.health_results.full());
        }
        // Start with the last set, since an insertion does not move the sets before it.
        for set in (0..parts.health.len).rev() {
            if parts.health.all().get(set).is_some_and(of_pool) {
                let (first, count) = parts.results_of(set)?;
                let healthy = BackendHealth::default();
                parts.health_results.insert(first + count, healthy)?;
            }
        }
        parts.backends.insert(first + count, added)?;
        if let Some(pool) = parts.pools.places.get_mut(pool) {
            pool.backends += 1;
        }
        Ok(count)
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "backend", add) }
}

/// Changes the weight and the administrative state of a backend for all rules, for example to drain
/// it; 0 in `weight` keeps the weight. The change takes effect with the next snapshot. For a
/// probe's result, see `slb_builder_set_health`.
///
/// # Safety
/// `builder` is a builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_set_backend(
    builder: *mut slb_builder,
    pool: usize,
    backend: usize,
    weight: u32,
    state: u8,
) -> c_int {
    let set = |parts: &mut Parts| {
        let known = crate::spec::state(state)?;
        let backend = parts.backend(pool, backend)?;
        backend.state = known;
        if weight != 0 {
            backend.weight = weight;
        }
        Ok(0)
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "backend", set) }
}

/// Sets a backend's seat: it gets the slots of the pool's Maglev table that follow from the seat,
/// instead of those that follow from its name. A backend with the seat of the one that it replaces
/// gets that one's slots, and no other slot moves. Of several backends with one seat, all but one
/// have to drain. NULL resets the seat to the backend's name.
///
/// # Safety
/// `builder` is a builder, and `seat` is NULL, or a string that stays as long as the builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_seat(
    builder: *mut slb_builder,
    pool: usize,
    backend: usize,
    seat: *const c_char,
) -> c_int {
    let set = |parts: &mut Parts| {
        let seat = match seat.is_null() {
            true => None,
            // SAFETY: guaranteed by the caller.
            false => Some(unsafe { string(seat) }.map_err(|fault| fault.of("seat"))?),
        };
        parts.backend(pool, backend)?.seat = seat;
        Ok(0)
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "backend", set) }
}

/// Sets the time of the next snapshot, in nanoseconds of a clock that continues from snapshot to
/// snapshot. A host agent derives from it how long a backend had its slots of the Maglev table, and
/// passes packets on to the former owners that have the most connections. Without a call, all
/// snapshots count equally.
///
/// # Safety
/// `builder` is a builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_now(builder: *mut slb_builder, now: u64) -> c_int {
    let set = |parts: &mut Parts| {
        parts.now = slb_core::Instant::from_nanos(now);
        Ok(0)
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "now", set) }
}

/// Sets the observed health of a backend for all rules: with 0 in `healthy` it fails, and gets no
/// new flows. The change takes effect with the next snapshot. For a probe's result, see
/// `slb_builder_set_health`.
///
/// # Safety
/// `builder` is a builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_set_condition(
    builder: *mut slb_builder,
    pool: usize,
    backend: usize,
    healthy: u8,
) -> c_int {
    let set = |parts: &mut Parts| {
        parts.backend(pool, backend)?.condition = condition(healthy);
        Ok(0)
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "backend", set) }
}

/// Adds a set of probe results for the backends of a pool, all of them healthy: one set for each
/// probe that rules of the pool use. Returns its index.
///
/// # Safety
/// `builder` is a builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_health(builder: *mut slb_builder, pool: usize) -> c_int {
    let add = |parts: &mut Parts| {
        let (_, count) = parts.backends_of(pool)?;
        let results = &mut parts.health_results;
        if parts.health.room() == 0 {
            return Err(parts.health.full());
        }
        if results.room() < count {
            return Err(results.full());
        }
        for _ in 0..count {
            results.push(BackendHealth::default())?;
        }
        parts.health.push(pool)
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "health", add) }
}

/// Assigns a set of probe results of the rule's pool to a rule. Without a set, the rule uses only
/// the state of backends.
///
/// # Safety
/// `builder` is a builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_rule_health(
    builder: *mut slb_builder,
    rule: usize,
    health: usize,
) -> c_int {
    let set = |parts: &mut Parts| {
        let sets = parts.health.all();
        let pool = sets.get(health);
        let pool = *pool.ok_or(Fault::index("health", health, sets.len()))?;
        let len = parts.rules.len;
        let found = parts.rules.places.get_mut(..len);
        let found = found.and_then(|rules| rules.get_mut(rule));
        let found = found.ok_or(Fault::index("rule", rule, len))?;
        if found.pool != pool {
            return Err(Fault::unfit("health", "results of the rule's pool"));
        }
        found.health = Some(health);
        Ok(0)
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "rule", set) }
}

/// Sets the result of a probe for a backend, given by its index in the pool: with 0 in `healthy`
/// the probe fails, and rules with this set give it no new flows. `weight` is the backend's for
/// these rules; negative: its own. It takes effect with the next snapshot.
///
/// # Safety
/// `builder` is a builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_set_health(
    builder: *mut slb_builder,
    health: usize,
    backend: usize,
    healthy: u8,
    weight: i64,
) -> c_int {
    let set = |parts: &mut Parts| {
        let (first, count) = parts.results_of(health)?;
        let weight = match weight {
            ..0 => None,
            given => {
                let expected = || Fault::expected("weight", "at most 4294967295", given);
                Some(u32::try_from(given).map_err(|_| expected())?)
            }
        };
        let place = parts.health_results.places.get_mut(first..first + count);
        let place = place.and_then(|all| all.get_mut(backend));
        let place = place.ok_or(Fault::index("backend", backend, count))?;
        *place = BackendHealth {
            condition: condition(healthy),
            weight,
        };
        Ok(0)
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "health", set) }
}
