//! The status as families of metrics.

use std::sync::Arc;
use std::time::Duration;

use slb_core::state::Refusal;
use slb_io_pcap::CaptureStats;

use super::Shared;
use crate::live::state::StateStatus;
use crate::live::worker::Counted;
use crate::live::{log, measured};
use crate::report::Report;
use crate::report::metrics::{Family, one};

impl Shared {
    /// Returns the counters and states of the document as metrics.
    pub(in crate::live) fn families(&self) -> Option<Vec<Family>> {
        let (counted, state) = self.count_in_place()?;
        let total = counted.into_iter().reduce(Counted::and)?;
        let config = Arc::clone(&state.config);
        let (kept, fleet) = (state.kept.clone(), state.fleet.clone());
        drop(state);
        let config = &*config;
        let sample = |&(kind, value): &(&str, u64)| (vec![("kind", kind.to_owned())], value as f64);
        let (frames, packets): (Vec<_>, Vec<_>) = total
            .io
            .iter()
            .partition(|(name, _)| name.starts_with("frames"));
        let frames = frames
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix("frames_")?, *value)));
        let frames: Vec<(&str, u64)> = frames.collect();
        let work = [(
            "slb_bursts",
            "Bursts with at least one frame",
            total.work.bursts,
        )];
        let generation = total.tally.generation();
        let none = CaptureStats::default();
        let report = Report::new(config, total.tally, &none, self.begin.elapsed());
        let mut families = report.families();
        families.extend([
            Family::counter(
                "slb_io_packets",
                "Frames, by their fate at the devices",
                packets.iter().map(sample).collect(),
            ),
            Family::gauge(
                "slb_io_frames",
                "Frames of memory, by their holder",
                frames.iter().map(sample).collect(),
            ),
            Family::counter(
                "slb_busy_seconds",
                "Time that all workers spent on bursts with at least one frame",
                vec![(Vec::new(), total.work.busy.as_secs_f64())],
            ),
            Family::gauge(
                "slb_configuration_generation",
                "Number of installed configurations, also by health",
                one(generation),
            ),
            Family::gauge(
                "slb_uptime_seconds",
                "Time since the start",
                one(self.begin.elapsed().as_secs()),
            ),
            Family::gauge(
                "slb_workers",
                "Threads that move packets",
                one(self.workers.len() as u64),
            ),
            Family::counter(
                "slb_log_lines_lost",
                "Lines of the log that are lost: standard error was not read, or could not be written",
                one(log::lost()),
            ),
            measured::of_rules(config),
        ]);
        families.extend(measured::of_process(config.node.role.name(), self.started));
        if let Some(probes) = &self.probes {
            families.push(Family::gauge(
                "slb_late_probes",
                "Probed backends whose last or waiting probe is late by more than half of its interval",
                one(probes.late().late as u64),
            ));
            families.extend(measured::of_probes(config, probes));
        }
        if let Some(vips) = &self.vips {
            families.extend(measured::of_vips(vips));
        }
        if let Some(kept) = &kept {
            families.extend(kept_families(kept));
        }
        if let Some(fleet) = &fleet {
            let away = fleet.away.map_or(0.0, |away| away.as_secs_f64());
            families.extend([
                Family::gauge("slb_fleet_generation", "The generation of the fleet that packets are served by", one(fleet.live)),
                Family::gauge("slb_fleet_refused", "1 if the node refuses the fleet's latest generation", one(u64::from(fleet.refused.is_some()))),
                Family::gauge("slb_fleet_store_away_seconds", "Time since the fleet's store last answered", vec![(Vec::new(), away)]),
                Family::gauge("slb_fleet_autonomous", "1 if backends that fail here are taken out, since the fleet's store is unreachable", one(u64::from(fleet.is_autonomous()))),
            ]);
        }
        families.extend(work.map(|(name, help, value)| Family::counter(name, help, one(value))));
        Some(families)
    }
}

/// Returns the status of kept state as metrics.
fn kept_families(kept: &StateStatus) -> Vec<Family> {
    let refused = Refusal::ALL.iter().map(|&why| {
        let count = kept.imported.refused(why) as f64;
        (vec![("reason", why.name().to_owned())], count)
    });
    let mut families = vec![
        Family::gauge(
            "slb_state_imported",
            "Connections or flows taken over from an earlier process",
            one(kept.imported.taken),
        ),
        Family::gauge(
            "slb_state_refused",
            "Records of an earlier process that were refused",
            refused.collect(),
        ),
    ];
    if let Some((begin, took, bytes)) = kept.checkpoint {
        let seconds = |time: Duration| vec![(Vec::new(), time.as_secs_f64())];
        families.extend([
            Family::gauge(
                "slb_state_checkpoint_age_seconds",
                "Time since the last checkpoint began",
                seconds(begin.elapsed()),
            ),
            Family::gauge(
                "slb_state_checkpoint_seconds",
                "Time that the last checkpoint took",
                seconds(took),
            ),
            Family::gauge(
                "slb_state_checkpoint_bytes",
                "Bytes of the last checkpoint",
                one(bytes),
            ),
        ]);
    }
    families
}
