//! `slb controller`: one of several controllers; the elected one rolls out the wanted state.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use slb_control::lasting::Lasting;
use slb_fleet::leader::{Leader, LeaderOptions};
use tracing::{info, warn};

use super::telling::Telling;
use crate::Failure;
use crate::cli::ControllerOptions;
use crate::live::{Endpoint, Place};
use crate::status::CONTROLLER;

/// The maximum time to wait for an event before signals and clocks are checked.
const TICK: Duration = Duration::from_millis(50);
/// The pause after the store did not answer.
const PAUSE: Duration = Duration::from_millis(300);
/// The fault that the store does not answer.
const STORE: &str = "store";

pub(crate) fn run(options: &ControllerOptions) -> Result<(), Failure> {
    let _log = crate::live::log::begin(options.log, options.log_level);
    let store = super::open(&options.store)?;
    let name = options.name.clone().unwrap_or_else(|| {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
        host.map_or_else(|_| CONTROLLER.to_owned(), |name| name.trim().to_owned())
    });
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(Failure::failed)?;
    let begin = Instant::now();
    // Everything that may be missing is opened before the controller may lead.
    let telling = Arc::new(Telling::new(&name, begin));
    let endpoint = options.metrics.map(Endpoint::bind).transpose()?;
    let place = Place::open(options.status.as_deref(), CONTROLLER)?;
    if let Some(endpoint) = endpoint {
        endpoint.serve(Arc::clone(&telling))?;
    }
    let status = place.map(|place| place.serve(Arc::clone(&telling)));
    let mut leader = Leader::new(
        Arc::clone(&store) as Arc<_>,
        LeaderOptions {
            name: name.clone(),
            cluster: options.store.access.cluster.clone(),
            drain: Duration::from_secs(options.drain),
        },
    );
    info!(name, fleet = options.store.fleet.join(","), "running");
    let mut faults = Lasting::default();
    while signals.pending().next().is_none() {
        let turned = leader.turn(begin.elapsed(), TICK);
        let away = telling.note(&leader, turned.as_ref().err());
        match turned {
            Ok(()) => {
                if let Some(away) = away {
                    let seconds = away.as_secs_f64();
                    info!(seconds, "the store answers again");
                }
                faults.end(STORE);
            }
            Err(error) => {
                // Members of a store that is away give reasons in turn.
                if faults.is_due(STORE) {
                    warn!("{error}");
                }
                sleep(PAUSE);
            }
        }
    }
    leader.resign();
    if let Some(status) = status {
        status.end();
    }
    Ok(())
}
