//! Reloads: the time to compile a snapshot from the previous one if one backend of many has failed
//! or is back.

use std::hint::black_box;
use std::net::Ipv4Addr;

use slb_core::health::Condition;
use slb_core::snapshot::Snapshot;
use slb_core::spec::{
    Backend, BackendHealth, Frontend, Pool, PoolHealth, Protocol, Rule, Spec, SpecError, Underlay,
};

use crate::Options;
use crate::error::Failure;
use crate::report::{Report, Sample};

/// Numbers of pools, and of the backends of each.
const SIZES: [(u32, u32); 4] = [(60, 1000), (600, 60), (1000, 60), (1000, 1000)];
/// The size above which snapshots take more memory than a short run may.
const LARGE: u32 = 36_000;

pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<(), Failure> {
    report.group("one backend fails or is back, for each snapshot");
    for (pools, backends) in SIZES {
        let name = format!("flap, {pools} pools of {backends} backends");
        let is_large = pools > 60 && pools * backends > LARGE;
        if report.wants(&name) && !(options.quick && is_large) {
            let sample = flaps(options, pools, backends).map_err(Failure::failed)?;
            report.show(&name, sample, None);
        }
    }
    Ok(())
}

/// Compiles snapshots of pools with a probed rule each. From one to the next, the result of one
/// probe changes.
fn flaps(options: &Options, pools: u32, count: u32) -> Result<Sample, SpecError> {
    let named = |what: &str, count: u32| (0..count).map(|i| format!("{what}{i}")).collect();
    let names: [Vec<String>; 4] = [
        named("vm", count),
        named("pool", pools),
        named("web", pools),
        named("http", pools),
    ];
    let [backend_names, pool_names, frontend_names, rule_names] = &names;
    let address = |net: u8, number: u32| {
        let [_, a, b, c] = number.to_be_bytes();
        Ipv4Addr::new(net, a, b, c).into()
    };
    let backends: Vec<Vec<Backend<'_>>> = (0..pools)
        .map(|pool| {
            let all = (0..count).zip(backend_names);
            all.map(|(number, name)| Backend {
                name,
                address: address(10, pool * count + number),
                host: address(172, number % 250 + 1),
                ..Backend::default()
            })
            .collect()
        })
        .collect();
    let all: Vec<Pool<'_>> = backends
        .iter()
        .zip(pool_names)
        .map(|(backends, name)| Pool {
            name,
            backends,
            ..Pool::default()
        })
        .collect();
    let frontends: Vec<Frontend<'_>> = (0..)
        .zip(frontend_names)
        .map(|(number, name)| Frontend {
            name,
            address: address(20, number + 1),
            ..Frontend::default()
        })
        .collect();
    let rules: Vec<Rule<'_>> = rule_names
        .iter()
        .enumerate()
        .map(|(number, name)| Rule {
            name,
            frontend: number,
            pool: number,
            health: Some(number),
            protocol: Protocol::Tcp,
            frontend_port: 80,
            ..Rule::default()
        })
        .collect();
    let passing = vec![BackendHealth::default(); count as usize];
    let mut failing = passing.clone();
    if let Some(one) = failing.last_mut() {
        one.condition = Condition::Unhealthy;
    }
    let compile = |has_failed: bool, previous: Option<&Snapshot<'_>>| {
        let health: Vec<PoolHealth<'_>> = (0..all.len())
            .map(|pool| PoolHealth {
                pool,
                backends: match has_failed && pool == all.len() / 2 {
                    true => &failing,
                    false => &passing,
                },
            })
            .collect();
        let spec = Spec {
            underlay: Underlay {
                ipv4: Some(Ipv4Addr::new(172, 31, 0, 1)),
                ..Underlay::default()
            },
            frontends: &frontends,
            pools: &all,
            rules: &rules,
            health: &health,
            ..Spec::default()
        };
        Snapshot::new(&spec, previous)
    };
    let mut snapshot = compile(false, None)?;
    let mut has_failed = false;
    let mut result = Ok(());
    let sample = Sample::measure(options.time(), 1, || {
        has_failed = !has_failed;
        match compile(has_failed, Some(&snapshot)) {
            Ok(next) => snapshot = black_box(next),
            Err(error) => result = Err(error),
        }
    });
    result.map(|()| sample)
}
