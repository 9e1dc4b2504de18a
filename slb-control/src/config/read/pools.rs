//! Reading of pools and their backends.

use std::net::Ipv4Addr;
use std::time::Duration;

use slb_core::health::{Condition, PassivePolicy};
use slb_core::maglev;
use slb_core::spec::BackendState;
use slb_core::wire::vxlan::Vni;

use super::{AllNames, read_all};
use crate::config::addresses::Kind;
use crate::config::zones::read_zone;
use crate::config::{Backend, Pool, addresses, networks, security};
use crate::document::{Section, resembling};

/// Entries of a pool's `past`: a host remembers seven former owners of a slot.
const MOST_PAST: usize = 32;

pub(super) fn read_pool(
    section: Section<'_>,
    is_proxy: bool,
    names: &AllNames,
    vnis: &[Option<u32>],
) -> Option<Pool> {
    let name = section.name("name");
    let vni = if is_proxy {
        networks::refuse_in_proxy(&section);
        let vni = section.integer("vni", 0..=Vni::MAX.get().into(), 0); // nothing is encapsulated
        vni.and_then(|(vni, _)| Vni::new(vni as u32))
    } else {
        networks::vni_of_pool(&section, &names.networks, vnis)
    };
    let sizes = 3..=maglev::MAX_SIZE.into();
    let size = section.integer("table_size", sizes, maglev::DEFAULT_SIZE.into());
    if let Some((size, span)) = &size
        && !maglev::is_valid_size(*size as u32)
    {
        let next = (*size..)
            .find(|&size| maglev::is_valid_size(size as u32))
            .unwrap_or(3);
        let message = format!("expected a prime, got {size}; the next one is {next}");
        section.fault(span, "table_size", message);
    }
    let seconds = Duration::from_secs;
    let hour = seconds(1)..=seconds(3600);
    let slow_start = section.duration("slow_start", hour.clone(), seconds(1));
    let slow_start = section.has("slow_start").then_some(slow_start);
    let usual = PassivePolicy::default();
    let threshold = section.number("passive_failures", 0..=1_000_000, 0) as u32;
    let passive = PassivePolicy {
        threshold,
        window: section.duration("passive_window", seconds(1)..=seconds(300), usual.window),
        retry: section.duration("passive_retry", hour, usual.retry),
    };
    let backends = read_all(&section, "backends", |section| {
        read_backend(section, is_proxy)
    });
    let security_lists = security::read_lists(&section, &names.security_lists);
    let past = read_past(&section, backends.as_deref().unwrap_or_default());
    let span = section.span().clone();
    section.finish();
    Some(Pool {
        name: name?.0,
        vni: vni?,
        table_size: size?.0 as u32,
        slow_start,
        passive: (threshold > 0).then_some(passive),
        backends: backends?,
        past,
        security_lists: security_lists?,
        span,
    })
}

/// Reads earlier weights of backends. A backend that is not named had none.
fn read_past(section: &Section<'_>, backends: &[Backend]) -> Vec<Vec<u32>> {
    let entries = section.sections("past");
    if let Some(first) = entries.get(MOST_PAST) {
        let message = format!(
            "expected {MOST_PAST} entries at most, got {}",
            entries.len()
        );
        section.fault(first.span(), "past", message);
    }
    let entry = |entry: &Section<'_>| {
        let mut weights = vec![0; backends.len()];
        for (name, weight, span) in entry.numbers(0..=1_000_000) {
            let place = backends.iter().position(|backend| backend.name == name);
            match place.and_then(|place| weights.get_mut(place)) {
                Some(known) => *known = weight as u32,
                None => {
                    let names = backends.iter().map(|backend| &*backend.name);
                    let message = match resembling(name, names) {
                        Some(known) => format!("no such backend; did you mean {known:?}?"),
                        None => "no backend of the pool has this name".to_owned(),
                    };
                    entry.fault(&span, name, message);
                }
            }
        }
        weights
    };
    entries.iter().map(entry).collect()
}

fn read_backend(section: Section<'_>, is_proxy: bool) -> Option<Backend> {
    let name = section.name("name");
    let address = addresses::required(&section, "address", Kind::Host);
    let host = if is_proxy {
        let host = addresses::optional(&section, "host", Kind::Host);
        Some(host.map_or(Ipv4Addr::UNSPECIFIED.into(), |(host, _)| host))
    } else {
        addresses::required(&section, "host", Kind::Host).map(|(host, _)| host)
    };
    let mac = addresses::mac(&section, "mac");
    let next_hop = addresses::mac(&section, "next_hop");
    let weight = section.number("weight", 0..=1_000_000, 1) as u32;
    let states = [BackendState::Up, BackendState::Draining, BackendState::Down];
    let state = section.renamed_choice(
        "state",
        &states.map(|state| (state.name(), state)),
        &[
            ("healthy", BackendState::Up),
            ("unhealthy", BackendState::Down),
        ],
        BackendState::Up,
    );
    let seat = section.has("seat").then(|| section.name("seat"));
    let instance = section
        .has("instance")
        .then(|| section.number("instance", 0..=65_535, 0));
    let port = section
        .has("port")
        .then(|| section.number("port", 1..=65_534, 1));
    let backend_port = section
        .has("backend_port")
        .then(|| section.number("backend_port", 1..=65_535, 1));
    let zone = read_zone(&section);
    let span = section.span().clone();
    section.finish();
    Some(Backend {
        name: name?.0,
        address: address?.0,
        host: host?,
        mac,
        next_hop,
        weight,
        state,
        seat: seat.flatten().map(|(seat, _)| seat),
        condition: Condition::Healthy,
        instance: instance.map(|instance| instance as u32),
        port: port.map(|port| port as u16),
        backend_port: backend_port.map(|port| port as u16),
        zone,
        span,
    })
}
