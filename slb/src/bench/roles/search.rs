//! Searches of a mux's table for the flows of one client, as `slb flows --client` makes them in a running mux.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::json;
use slb_core::Instant;
use slb_core::list::{Ends, Filter, Subnet};
use slb_core::mem::Line;
use slb_core::state::Cursor;

use super::mux::{self, Dut};
use super::{counts, short};
use crate::Options;
use crate::error::Failure;
use crate::report::{Effort, Report, Rounds, Sample};

/// The places of one step, as in a running mux.
const STEP: usize = 1536;
/// While packets arrive, one in so many parts of a worker's time is for searches.
const SHARE: f64 = 50.0;
/// A client of the [frames](mux::Frames), and the number of its flows.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const ITS_FLOWS: usize = 16;

pub(super) fn measure(
    options: &Options,
    report: &mut Report,
    memory: &mut [Line],
) -> Result<(), Failure> {
    report.group("a search of a mux's table for one client, for each place");
    for &flows in counts(options).iter().filter(|&&count| count >= 1_000_000) {
        let name = format!("search, IPv4, one client, {} flows", short(flows as usize));
        if !report.wants(&name) {
            continue;
        }
        let case = mux::Case {
            pinned: true,
            flows,
            ..mux::Case::FLOOR
        };
        let (sample, places) = search(&case, options.effort(), memory)?;
        let seconds = sample.least * places as f64 / 1e9;
        let rounded = |value: f64| (value * 100.0).round() / 100.0;
        let whole = json!({
            "s_idle": rounded(seconds),
            "s_busy": rounded(seconds * SHARE),
        });
        report.show_with(&name, sample, None, &whole);
    }
    Ok(())
}

/// Searches a full table in rounds. Returns the time of a place, and the number of places.
fn search(
    case: &mux::Case,
    effort: Effort,
    memory: &mut [Line],
) -> Result<(Sample, usize), Failure> {
    let snapshot = case.snapshot()?;
    let mut mux = case.mux(&snapshot, memory).ok_or_else(Failure::memory)?;
    let mut buffers = vec![0u8; case.stride() * mux::FRAMES];
    let mut frames = mux::Frames::new(*case);
    for _ in 0..case.flows.div_ceil(mux::FRAMES as u32) {
        let mut frames = frames.write(&mut buffers, true);
        mux.process(Instant::from_secs(1), &mut frames);
    }
    let (places, found) = search_once(&mux);
    if found != ITS_FLOWS {
        return Err(Failure::failed(format!("{found} flows were found")));
    }
    let mut rounds = Rounds::new(effort);
    while rounds.go_on() {
        rounds.time(places, &mut || {
            black_box(search_once(&mux));
        });
    }
    Ok((rounds.sample(), places))
}

/// Returns the number of places that a search visits, and of flows that it finds.
fn search_once(mux: &Dut<'_>) -> (usize, usize) {
    let filter = Filter {
        outside: Ends {
            source: Some(Subnet::host(CLIENT)),
            ..Ends::default()
        },
        ..Filter::default()
    };
    let (mut places, mut found) = (0, 0);
    let mut next = Some(Cursor::START);
    while let Some(cursor) = next {
        let listed = mux.list(cursor, STEP, &filter, &mut |_, _| {
            found += 1;
            true
        });
        places += listed.places;
        next = listed.next;
    }
    (places, found)
}
