//! The complete roles in memory, with frames as from a NIC, in bursts of 64.
//!
//! A round writes 1024 frames, few enough to stay in a second-level cache, then times the role on
//! them.

mod connections;
mod fleet;
mod headers;
pub(crate) mod kind;
pub(crate) mod mux;
mod search;
mod snat;
mod workers;

use slb_core::mem::Line;

use self::connections::Role;
use self::kind::Kind;
use crate::Options;
use crate::error::Failure;
use crate::machine::Limits;
use crate::report::{Report, short};

pub(crate) fn measure(
    options: &Options,
    report: &mut Report,
    limits: &Limits,
    memory: &mut [Line],
    cpus: &[usize],
) -> Result<(), Failure> {
    if !options.instructions {
        headers::measure(options, report);
        snat::measure(options, report, memory)?;
    }
    measure_mux(options, report, limits, memory)?;
    report.group("established connections, for each packet");
    for (who, role) in [("host", Role::Host), ("proxy", Role::Proxy)] {
        for (family, ipv6, lens) in FAMILIES {
            for (way, outward) in [("in", false), ("out", true)] {
                for frame_len in lens_of(options, lens) {
                    for &flows in counts(options) {
                        // The longest frames show the cost of length, and those of IPv6 are twice
                        // as large.
                        let most = match (frame_len, ipv6) {
                            (0..100, false) => 40_000_000,
                            (0..100, true) => 10_000_000,
                            _ => 1_000_000,
                        };
                        let count = short(flows as usize);
                        let name =
                            format!("{who}, {way}, {family}, {frame_len} B, {count} connections");
                        let case = connections::Case {
                            kind: Kind::Tcp,
                            role,
                            ipv6,
                            outward,
                            frame_len,
                            flows,
                        };
                        if flows <= most && report.wants(&name) {
                            let limit = limits.mux(case.table_bytes());
                            let sample = case.measure(options.effort(), memory)?;
                            report.show(&name, sample, Some(limit));
                        }
                    }
                }
            }
        }
    }
    measure_kinds(options, report, memory)?;
    if !options.instructions {
        fleet::measure(options, report, memory)?;
        search::measure(options, report, memory)?;
        workers::measure(options, report, cpus)?;
    }
    Ok(())
}

/// Measures one connection of each kind besides untagged TCP.
fn measure_kinds(
    options: &Options,
    report: &mut Report,
    memory: &mut [Line],
) -> Result<(), Failure> {
    for (who, role, kinds) in [
        ("host", Role::Host, Kind::OF_HOST),
        ("proxy", Role::Proxy, Kind::OF_PROXY),
    ] {
        for (family, ipv6, [frame_len, ..]) in FAMILIES {
            for (way, outward) in [("in", false), ("out", true)] {
                for &kind in kinds {
                    let name =
                        format!("{who}, {way}, {family}, {frame_len} B, 1 connections, {kind}");
                    let case = connections::Case {
                        kind,
                        role,
                        ipv6,
                        outward,
                        frame_len,
                        flows: 1,
                    };
                    if report.wants(&name) {
                        report.show(&name, case.measure(options.effort(), memory)?, None);
                    }
                }
            }
        }
    }
    Ok(())
}

/// The lengths of frames in each family, the shortest first.
const FAMILIES: [(&str, bool, [usize; 3]); 2] = [
    ("IPv4", false, [64, 512, 1500]),
    ("IPv6", true, [84, 512, 1500]),
];

/// Returns the lengths to measure: longer packets take no more instructions.
fn lens_of(options: &Options, lens: [usize; 3]) -> impl Iterator<Item = usize> {
    let count = if options.instructions { 1 } else { lens.len() };
    lens.into_iter().take(count)
}

/// Flows or connections.
fn counts(options: &Options) -> &'static [u32] {
    if options.instructions {
        &[1, 64_000]
    } else if options.quick {
        &[1, 1_000_000]
    } else {
        &[1, 64_000, 1_000_000, 10_000_000, 40_000_000]
    }
}

fn measure_mux(
    options: &Options,
    report: &mut Report,
    limits: &Limits,
    memory: &mut [Line],
) -> Result<(), Failure> {
    report.group("the mux with 100 backends, for each packet");
    let counts = counts(options);
    for (mode, pinned) in [("stateless", false), ("flow table", true)] {
        for (family, ipv6, lens) in FAMILIES {
            for frame_len in lens_of(options, lens) {
                for &flows in counts {
                    // Longer frames, and muxes without a table, need only one number of flows.
                    if flows > 1_000_000 && (frame_len > 84 || !pinned) {
                        continue;
                    }
                    let count = short(flows as usize);
                    let name = format!("{mode}, {family}, {frame_len} B, {count} flows");
                    let case = mux::Case {
                        kind: Kind::Tcp,
                        pinned,
                        ipv6,
                        frame_len,
                        flows,
                        vips: 1,
                    };
                    if report.wants(&name) {
                        let limit = limits.mux(case.table_bytes());
                        report.show(
                            &name,
                            case.established(options.effort(), memory)?,
                            Some(limit),
                        );
                    }
                }
            }
            // Outside of benchmarks, packets for one VIP rarely come in runs.
            for vips in [2, 60] {
                let frame_len = lens[0];
                let name = format!("{mode}, {family}, {frame_len} B, 64 k flows, {vips} VIPs");
                let case = mux::Case {
                    kind: Kind::Tcp,
                    pinned,
                    ipv6,
                    frame_len,
                    flows: 64_000,
                    vips,
                };
                if report.wants(&name) {
                    let limit = limits.mux(case.table_bytes());
                    let sample = case.established(options.effort(), memory)?;
                    report.show(&name, sample, Some(limit));
                }
            }
            for &kind in Kind::OF_MUX {
                let name = format!("{mode}, {family}, {} B, 1 flows, {kind}", lens[0]);
                let case = mux::Case {
                    kind,
                    pinned,
                    ipv6,
                    frame_len: lens[0],
                    flows: 1,
                    vips: 1,
                };
                if report.wants(&name) {
                    report.show(&name, case.established(options.effort(), memory)?, None);
                }
            }
        }
    }
    let least = if options.instructions {
        64_000
    } else {
        1_000_000
    };
    for &flows in counts.iter().filter(|&&count| count >= least) {
        let count = short(flows as usize);
        let name = format!("new flows, IPv4, 64 B SYN, table of {count}");
        let case = mux::Case {
            pinned: true,
            flows,
            ..mux::Case::FLOOR
        };
        if report.wants(&name) {
            let limit = limits.mux(case.table_bytes());
            report.show(&name, case.opening(options.effort(), memory)?, Some(limit));
        }
    }
    Ok(())
}
