//! The roles whole, in memory: frames as a NIC leaves them, in bursts of 64.
//!
//! A round writes 1024 frames, few enough to stay in a second-level cache, then times the role on
//! them.

mod connections;
mod headers;
pub(crate) mod mux;
mod snat;

use slb_core::mem::Line;

use self::connections::Role;
use crate::Options;
use crate::error::Failure;
use crate::machine::Limits;
use crate::report::{Report, short};

pub(crate) fn measure(
    options: &Options,
    report: &mut Report,
    limits: &Limits,
    memory: &mut [Line],
) -> Result<(), Failure> {
    headers::measure(options, report);
    measure_mux(options, report, limits, memory)?;
    snat::measure(options, report, memory)?;
    report.group("established connections, for each packet");
    for (who, role) in [("host", Role::Host), ("proxy", Role::Proxy)] {
        for (family, ipv6, lens) in FAMILIES {
            for (way, outward) in [("in", false), ("out", true)] {
                for frame_len in lens {
                    for &flows in counts(options) {
                        // The longest ones tell what length costs, and IPv6's are twice as large.
                        let most = match (frame_len, ipv6) {
                            (0..100, false) => 40_000_000,
                            (0..100, true) => 10_000_000,
                            _ => 1_000_000,
                        };
                        let count = short(flows as usize);
                        let name =
                            format!("{who}, {way}, {family}, {frame_len} B, {count} connections");
                        let case = connections::Case {
                            role,
                            ipv6,
                            outward,
                            frame_len,
                            flows,
                        };
                        if flows <= most && report.wants(&name) {
                            let limit = limits.mux(case.table_bytes());
                            let sample = case.measure(options.time(), memory)?;
                            report.show(&name, sample, Some(limit));
                        }
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

/// Flows or connections.
fn counts(options: &Options) -> &'static [u32] {
    if options.quick {
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
            for frame_len in lens {
                for &flows in counts {
                    // Of longer ones and of no table, one number of flows tells all.
                    if flows > 1_000_000 && (frame_len > 84 || !pinned) {
                        continue;
                    }
                    let count = short(flows as usize);
                    let name = format!("{mode}, {family}, {frame_len} B, {count} flows");
                    let case = mux::Case {
                        pinned,
                        ipv6,
                        frame_len,
                        flows,
                    };
                    if report.wants(&name) {
                        let limit = limits.mux(case.table_bytes());
                        report.show(
                            &name,
                            case.established(options.time(), memory)?,
                            Some(limit),
                        );
                    }
                }
            }
        }
    }
    for &flows in counts.iter().filter(|&&count| count >= 1_000_000) {
        let count = short(flows as usize);
        let name = format!("new flows, IPv4, 64 B SYN, table of {count}");
        let case = mux::Case {
            pinned: true,
            flows,
            ..mux::Case::FLOOR
        };
        if report.wants(&name) {
            let limit = limits.mux(case.table_bytes());
            report.show(&name, case.opening(options.time(), memory)?, Some(limit));
        }
    }
    Ok(())
}
