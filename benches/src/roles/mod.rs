//! The roles whole, in memory: frames as a NIC leaves them, in bursts of 64.
//!
//! A round writes 1024 frames, few enough to stay in a second-level cache, then times the role on
//! them.

mod connections;
pub(crate) mod mux;

use self::connections::Role;
use crate::Options;
use crate::error::Failure;
use crate::machine::Limits;
use crate::report::{Report, short};

pub(crate) fn measure(
    options: &Options,
    report: &mut Report,
    limits: &Limits,
) -> Result<(), Failure> {
    measure_mux(options, report, limits)?;
    report.group("established connections, for each packet");
    let counts: &[u32] = if options.quick {
        &[1, 1_000_000]
    } else {
        &[1, 64_000, 1_000_000, 10_000_000]
    };
    for (who, role) in [("host", Role::Host), ("proxy", Role::Proxy)] {
        for (way, outward) in [("in", false), ("out", true)] {
            for &flows in counts {
                let count = short(flows as usize);
                let name = format!("{who}, {way}, IPv4, 64 B, {count} connections");
                let case = connections::Case {
                    role,
                    outward,
                    frame_len: 64,
                    flows,
                };
                if report.wants(&name) {
                    let limit = limits.mux(case.table_bytes());
                    report.show(&name, case.measure(options.time())?, Some(limit));
                }
            }
        }
    }
    Ok(())
}

fn measure_mux(options: &Options, report: &mut Report, limits: &Limits) -> Result<(), Failure> {
    report.group("the mux with 100 backends, for each packet");
    let counts: &[u32] = if options.quick {
        &[1, 1_000_000]
    } else {
        &[1, 64_000, 1_000_000, 10_000_000, 40_000_000]
    };
    for (mode, pinned) in [("stateless", false), ("flow table", true)] {
        for (family, ipv6, lens) in [
            ("IPv4", false, [64, 512, 1500]),
            ("IPv6", true, [84, 512, 1500]),
        ] {
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
                        report.show(&name, case.established(options.time())?, Some(limit));
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
            report.show(&name, case.opening(options.time())?, Some(limit));
        }
    }
    Ok(())
}
