//! Configurations in TOML, in the format of the program.

use std::ffi::{c_char, c_int};

use slb_control::{Config, Role};

use crate::error::slb_error::*;
use crate::error::{Error, guard};
use crate::handle::Kind;
use crate::memory::{array, array_of, exclusive, put, text};
use crate::options::{slb_mux_options, slb_nat_options};
use crate::snapshot::{build_allocated, handle, slb_snapshot};
use crate::spec::condition;

/// A configuration that was read from TOML: see docs/configuration.md.
#[derive(Debug)]
pub struct slb_config {
    _opaque: (),
}

// The kind is the first field: it is checked before the others may be read.
#[repr(C)]
struct ConfigHandle {
    kind: Kind,
    config: Config,
}

/// The role that a configuration is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum slb_role {
    /// A mux.
    SLB_MUX = 0,
    /// A host agent.
    SLB_HOST = 1,
    /// A proxy.
    SLB_PROXY = 2,
}

/// # Safety
/// `config` is NULL, misaligned, or a handle that is not used elsewhere.
unsafe fn of<'a>(config: *mut slb_config) -> Result<&'a mut Config, Error> {
    // SAFETY: guaranteed by the caller.
    let handle: &mut ConfigHandle = unsafe { exclusive(config.cast()) }?;
    if handle.kind == Kind::CONFIG {
        Ok(&mut handle.config)
    } else {
        Err(SLB_ERROR_HANDLE)
    }
}

/// Reads a configuration of `length` bytes. Returns `SLB_ERROR_CONFIGURATION` if it has faults, and
/// writes them to `faults`, one per line, cut to `faults_length` bytes with the terminating zero;
/// `faults` may be NULL.
///
/// # Safety
/// `toml` has `length` bytes, and `faults` room for `faults_length`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_config_parse(
    toml: *const c_char,
    length: usize,
    faults: *mut c_char,
    faults_length: usize,
    out: *mut *mut slb_config,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        let bytes: &[u8] = unsafe {
            put(out, std::ptr::null_mut())?;
            array_of(toml.cast(), length)?
        };
        let told = if faults.is_null() {
            &mut []
        } else {
            // SAFETY: guaranteed by the caller.
            unsafe { array::<u8>(faults.cast(), faults_length) }?
        };
        if let Some(first) = told.first_mut() {
            *first = 0;
        }
        let text = std::str::from_utf8(bytes).map_err(|_| SLB_ERROR_RANGE)?;
        match Config::parse("configuration", text) {
            Ok(config) => {
                let kind = Kind::CONFIG;
                let handle = Box::into_raw(Box::new(ConfigHandle { kind, config }));
                // SAFETY: `out` was good before.
                unsafe { put(out, handle.cast()) }?;
                Ok(0)
            }
            Err(errors) => {
                let text = errors.to_string();
                if let Some(room) = told.len().checked_sub(1) {
                    let len = text.floor_char_boundary(room.min(text.len()));
                    told[..len].copy_from_slice(&text.as_bytes()[..len]);
                    told[len] = 0;
                }
                Err(SLB_ERROR_CONFIGURATION)
            }
        }
    })
}

/// Frees a configuration. Snapshots made from it stay valid. NULL is no error.
///
/// # Safety
/// `config` is a configuration, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_config_free(config: *mut slb_config) -> c_int {
    guard(|| {
        if config.is_null() {
            return Ok(0);
        }
        // SAFETY: guaranteed by the caller.
        unsafe { of(config) }?;
        let place: *mut ConfigHandle = config.cast();
        // SAFETY: the handle was made from a box. Its kind is read again only to detect that the
        // handle was freed.
        unsafe {
            (*place).kind = Kind::FREED;
            drop(Box::from_raw(place));
        }
        Ok(0)
    })
}

/// Returns the role that a configuration is for: a value of enum slb_role.
///
/// # Safety
/// `config` is a configuration.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_config_role(config: *mut slb_config) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        let role = match unsafe { of(config) }?.node.role {
            Role::Mux => slb_role::SLB_MUX,
            Role::Host => slb_role::SLB_HOST,
            Role::Proxy => slb_role::SLB_PROXY,
        };
        Ok(role as usize)
    })
}

/// Sets the options of a mux from a configuration, except the key.
///
/// # Safety
/// `config` is a configuration, and `options` were initialised.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_config_mux_options(
    config: *mut slb_config,
    options: *mut slb_mux_options,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        let (config, options) = unsafe { (of(config)?, exclusive(options)?) };
        let said = config.mux_options();
        options.flows = config.node.flows;
        options.answers_per_second = said.answers_per_second;
        options.answers_at_once = said.answers_at_once;
        options.too_big_per_second = said.too_big_per_second;
        options.too_big_at_once = said.too_big_at_once;
        options.errors_per_second = said.errors_per_second;
        options.errors_at_once = said.errors_at_once;
        options.resets_per_second = said.resets_per_second;
        options.resets_at_once = said.resets_at_once;
        options.waiting_fragments =
            u32::try_from(config.node.waiting_fragments).unwrap_or(u32::MAX);
        options.flows_per_source = config.node.flows_per_source;
        options.flows_per_source_at_once = config.node.flows_per_source_at_once;
        Ok(0)
    })
}

/// Sets the options of a host agent or a proxy from a configuration, except the key.
///
/// # Safety
/// `config` is a configuration, and `options` were initialised.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_config_nat_options(
    config: *mut slb_config,
    options: *mut slb_nat_options,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        let (config, options) = unsafe { (of(config)?, exclusive(options)?) };
        let said = config.nat_options();
        options.connections = config.node.connections;
        options.answers_per_second = said.answers_per_second;
        options.answers_at_once = said.answers_at_once;
        options.too_big_per_second = said.too_big_per_second;
        options.too_big_at_once = said.too_big_at_once;
        options.errors_per_second = said.errors_per_second;
        options.errors_at_once = said.errors_at_once;
        let (ipv4, ipv6) = (said.icmp_source_ipv4, said.icmp_source_ipv6);
        options.icmp_source_ipv4 = ipv4.map_or([0; 4], |address| address.octets());
        options.icmp_source_ipv6 = ipv6.map_or([0; 16], |address| address.octets());
        options.waiting_fragments =
            u32::try_from(config.node.waiting_fragments).unwrap_or(u32::MAX);
        options.flows_per_source = config.node.flows_per_source;
        options.flows_per_source_at_once = config.node.flows_per_source_at_once;
        options.resets_per_second = said.resets_per_second;
        options.resets_at_once = said.resets_at_once;
        options.clamp_mss = said.clamp_mss.into();
        options.passes_per_second = said.passes_per_second;
        options.passes_at_once = said.passes_at_once;
        options.take_ups_per_second = said.take_ups_per_second;
        options.take_ups_at_once = said.take_ups_at_once;
        options.direct_flows = match config.security_lists.is_empty() {
            true => 0,
            false => u32::try_from(config.node.direct_flows).unwrap_or(u32::MAX),
        };
        Ok(0)
    })
}

/// Changes the weight and the administrative state of a backend for all rules, for example to drain
/// it; 0 in `weight` keeps the weight. `backend` is its name, or POOL/NAME. It takes effect with
/// the next snapshot. For a probe's result, see `slb_config_set_health`.
///
/// # Safety
/// `config` is a configuration, and `backend` ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_config_set_backend(
    config: *mut slb_config,
    backend: *const c_char,
    weight: u32,
    state: u8,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        let (config, name) = unsafe { (of(config)?, text(backend)?) };
        let state = crate::spec::state(state)?;
        let backend = config.backend_mut(name).ok_or(SLB_ERROR_RANGE)?;
        backend.state = state;
        if weight != 0 {
            backend.weight = weight;
        }
        Ok(0)
    })
}

/// Sets the observed health of a backend for all rules: with 0 in `healthy` it fails, and gets no
/// new flows. `backend` is its name, or POOL/NAME. It takes effect with the next snapshot. For a
/// probe's result, see `slb_config_set_health`.
///
/// # Safety
/// `config` is a configuration, and `backend` ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_config_set_condition(
    config: *mut slb_config,
    backend: *const c_char,
    healthy: u8,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        let (config, name) = unsafe { (of(config)?, text(backend)?) };
        let backend = config.backend_mut(name).ok_or(SLB_ERROR_RANGE)?;
        backend.condition = condition(healthy);
        Ok(0)
    })
}

/// Sets the result of a rule's probe for a backend of the rule's pool, both given by name: with 0
/// in `healthy` the probe fails. The result applies to all rules of the pool with this probe. The
/// change takes effect with the next snapshot.
///
/// # Safety
/// `config` is a configuration, and both names end with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_config_set_health(
    config: *mut slb_config,
    rule: *const c_char,
    backend: *const c_char,
    healthy: u8,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        let (config, rule, name) = unsafe { (of(config)?, text(rule)?, text(backend)?) };
        let rule = config.rules.iter().find(|other| other.name == rule);
        let rule = rule.ok_or(SLB_ERROR_RANGE)?;
        let (pool, probe) = (rule.pool, rule.probe.ok_or(SLB_ERROR_RANGE)?);
        let mut backends = config.pools[pool].backends.iter();
        let place = backends.position(|other| other.name == name);
        let place = place.ok_or(SLB_ERROR_RANGE)?;
        let mut found = config.health.of(pool, probe, place);
        found.condition = condition(healthy);
        config.health.set(pool, probe, place, found);
        Ok(0)
    })
}

/// Compiles a configuration. `previous`, which may be NULL, is the predecessor of the new snapshot:
/// backends and rules keep their counters and flows.
///
/// # Safety
/// Both handles are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_config_snapshot(
    config: *mut slb_config,
    previous: *const slb_snapshot,
    out: *mut *mut slb_snapshot,
) -> c_int {
    guard(|| {
        // SAFETY: guaranteed by the caller.
        unsafe {
            put(out, std::ptr::null_mut())?;
            let config = of(config)?;
            let previous = match previous.is_null() {
                true => None,
                false => Some(&handle(previous)?.snapshot),
            };
            let snapshot = config.with_spec(|spec| build_allocated(spec, previous))?;
            put(out, snapshot)?;
        }
        Ok(0)
    })
}
