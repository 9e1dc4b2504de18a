//! The parts of a packet's way, each beside what others do with the same packets and flows.

mod ffi;
mod hash;
mod parse;
mod table;

use slb_bench::{Failure, Limits, Options, Report};
use slb_core::mem::Line;

pub(crate) fn measure(
    options: &Options,
    report: &mut Report,
    limits: &Limits,
    memory: &mut [Line],
) -> Result<(), Failure> {
    parse::measure(options, report);
    hash::measure(options, report);
    table::measure(options, report, limits, memory)?;
    ffi::measure(options, report, limits)
}
