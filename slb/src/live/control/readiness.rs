//! Readiness: interfaces without packets, stalled workers, and the announcement of VIPs, which
//! depends on both.

use std::time::{Duration, Instant};

use slb_control::probe::Prober;
use tracing::{error, info, warn};

use super::{Control, STILL};
use crate::live::announce::Announcer;
use crate::live::pass::Pass;
use crate::live::status::Shared;
use crate::live::sysctl::tell_apart;
use crate::live::underlay;
use crate::live::worker::Worker;

/// Troubles that end within this time after the start are not logged as errors: an operator routes
/// VIPs and addresses into a device that this process has made.
const SETTLING: Duration = Duration::from_secs(5);

impl Control<'_> {
    /// Records the reasons why packets do not arrive; the node is then not ready, and announces
    /// nothing.
    pub(super) fn look_at_trouble(&mut self, shared: &Shared) {
        let mut trouble = self.plan.troubles(&self.closed);
        let mut underlays =
            underlay::look(&self.plan, &self.given, self.options.announce.as_deref());
        trouble.extend(underlays.troubles);
        if let Some((needed, why)) = self.config.short_mtu() {
            let mtu = self.config.mtu();
            underlays.warnings.push(format!(
                "interfaces carry packets of {mtu} bytes, and longer IPv6 packets are lost, which cannot be made as short: \
                 {why} (ip link set DEVICE mtu {needed})"
            ));
        }
        trouble.extend(self.announcer.as_ref().and_then(Announcer::trouble));
        trouble.extend(self.pass.as_ref().and_then(Pass::trouble));
        trouble.extend(self.settings.iter().cloned());
        // Devices that were just made get their routes and addresses now.
        let is_new = self.begin.elapsed() < SETTLING;
        let why = trouble.join(", ");
        if trouble != self.trouble {
            match trouble.is_empty() {
                true => info!(event = "ready", "ready again"),
                false if is_new => info!(why, event = "not_ready", "not ready yet"),
                false => {}
            }
            self.trouble = trouble;
        }
        if !is_new {
            tell_apart(&self.warned, &underlays.warnings);
            self.warned = underlays.warnings;
            if self.trouble != self.said {
                if !self.trouble.is_empty() {
                    error!(why, event = "not_ready", "not ready");
                }
                self.said.clone_from(&self.trouble);
            }
        }
        let mut all = self.trouble.clone();
        if self.first_round.is_some() {
            all.push("the first probes have not been answered".to_owned());
        }
        let stalled = self.stalled.iter().map(|(&place, &since)| {
            let names = self
                .workers
                .get(place)
                .map(|worker| worker.names.join(", "));
            (names.unwrap_or_default(), since)
        });
        shared.set_trouble(all, stalled.collect());
        self.announce();
    }

    /// Follows the settings of the kernel that TUN devices need.
    pub(super) fn follow_settings(&mut self) {
        let routed = self.pass.as_ref().and_then(Pass::routed);
        self.settings = self.followed.look(&self.plan, &self.config, routed);
    }

    /// Says how long the whole process was stalled, if it was: it was stopped, or had no memory or CPU. `turn` is the
    /// time since the last turn of the loop.
    pub(super) fn heed_stop(&mut self, turn: Duration) {
        if turn < STILL {
            return;
        }
        warn!(
            seconds = turn.as_secs_f64(),
            "this process was stalled: it was stopped, or lacked memory or CPU"
        );
        self.workers.iter_mut().for_each(Worker::forgive);
        // The watchdog may have taken the interface down, which removes addresses.
        if let Some(announcer) = &mut self.announcer {
            announcer.forget();
        }
        self.announce();
    }

    /// Checks that the workers make progress, and reports how long one did not.
    pub(super) fn listen(&mut self, shared: &Shared) {
        let mut is_another = false;
        for (place, worker) in self.workers.iter_mut().enumerate() {
            let silence = worker.silence();
            let worker = worker.names.join(", ");
            match self.stalled.get(&place) {
                None if silence >= STILL => {
                    let seconds = silence.as_secs_f64();
                    error!(worker, seconds, event = "worker_stalled", "worker stalled");
                    self.stalled.insert(place, Instant::now() - silence);
                    is_another = true;
                }
                Some(since) if silence < STILL => {
                    let seconds = since.elapsed().as_secs_f64();
                    info!(
                        worker,
                        seconds,
                        event = "worker_running",
                        "worker running again"
                    );
                    self.stalled.remove(&place);
                    is_another = true;
                }
                _ => {}
            }
        }
        if is_another {
            self.look_at_trouble(shared);
        }
    }

    /// Continues to announce VIPs once the first answers to probes are there.
    pub(super) fn heed_first_round(&mut self, shared: &Shared) {
        let Some(end) = self.first_round else { return };
        let unknown = self.prober.as_ref().map_or(0, Prober::unknown);
        // The answers take effect before anything is announced.
        let is_working = self.work.is_behind();
        if (unknown > 0 || is_working) && Instant::now() < end {
            return;
        }
        if unknown > 0 {
            warn!(
                unknown,
                "not all backends have been probed yet: those are treated as healthy until then"
            );
        }
        self.first_round = None;
        self.look_at_trouble(shared);
    }

    /// Announces the VIPs, if their packets can arrive.
    pub(super) fn announce(&mut self) {
        if let Some(announcer) = &mut self.announcer {
            let may = self.trouble.is_empty() && self.stalled.is_empty();
            match (may, self.first_round) {
                (true, None) => announcer.announce(&self.config),
                // A process that took over keeps the announced VIPs until its first probes are
                // done.
                (true, Some(_)) => {}
                (false, _) => announcer.withdraw(),
            }
        }
    }
}
