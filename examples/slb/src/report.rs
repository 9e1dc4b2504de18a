//! What a run came to, for people and for programs.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use slb_control::Config;
use slb_core::service::Snapshot;
use slb_core::stats::Count;
use slb_core::{DropReason, Mux, Stats};
use slb_io_pcap::CaptureStats;

/// A backend's share of what was forwarded.
struct Share {
    pool: String,
    backend: String,
    weight: u32,
    /// Its share by weight, of the pool's flows.
    expected: f64,
    forwarded: Count,
    flows: u64,
}

pub(crate) struct Report<'a> {
    stats: Stats,
    capture: &'a CaptureStats,
    shares: Vec<Share>,
    elapsed: Duration,
    is_pinned: bool,
}

impl<'a> Report<'a> {
    pub(crate) fn new<'s, S: std::ops::Deref<Target = Snapshot<'s>>>(
        config: &Config,
        mux: &Mux<'_, S>,
        capture: &'a CaptureStats,
        elapsed: Duration,
    ) -> Self {
        let snapshot = mux.snapshot();
        let mut shares = Vec::new();
        for compiled in snapshot.backends() {
            let pool = &config.pools[compiled.pool()];
            let backend = &pool.backends[compiled.member()];
            let total: u64 = pool
                .backends
                .iter()
                .zip(
                    snapshot
                        .backends()
                        .iter()
                        .filter(|b| b.pool() == compiled.pool()),
                )
                .filter(|(_, compiled)| compiled.is_eligible())
                .map(|(backend, _)| u64::from(backend.weight))
                .sum();
            let weight = if compiled.is_eligible() {
                backend.weight
            } else {
                0
            };
            let counters = mux.backend_counters(compiled.id());
            shares.push(Share {
                pool: pool.name.clone(),
                backend: backend.name.clone(),
                weight,
                expected: if total == 0 {
                    0.0
                } else {
                    f64::from(weight) / total as f64
                },
                forwarded: counters
                    .map(|counters| counters.forwarded)
                    .unwrap_or_default(),
                flows: counters.map_or(0, |counters| counters.flows),
            });
        }
        let is_pinned = mux.flows().is_some();
        Self {
            stats: mux.stats(),
            capture,
            shares,
            elapsed,
            is_pinned,
        }
    }

    /// Packets a second.
    fn rate(&self) -> f64 {
        self.stats.received.packets as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn of_pool(&self, pool: &str, value: impl Fn(&Share) -> u64) -> u64 {
        self.shares
            .iter()
            .filter(|share| share.pool == pool)
            .map(value)
            .sum()
    }

    pub(crate) fn text(&self) -> String {
        let stats = &self.stats;
        let mut text = String::new();
        let mut line = |name: &str, count: Count| {
            let _ = writeln!(text, "{name:<28} {:>12} {:>15}", count.packets, count.bytes);
        };
        line("                     packets", Count::default());
        line("in", stats.received);
        line("  forwarded", stats.forwarded);
        line("  replied", stats.replied);
        line("  passed", stats.passed);
        line("  dropped", stats.dropped_total());
        for &reason in DropReason::ALL {
            let count = stats.dropped_for(reason);
            if count.packets > 0 {
                line(&format!("    {reason}"), count);
            }
        }
        let header = format!("{:<28} {:>12} {:>15}\n", "", "packets", "bytes");
        let body = text.split_once('\n').map_or("", |(_, body)| body);
        let mut text = header + body;
        for (link, count) in &self.capture.unknown_link {
            let _ = writeln!(text, "left out: {count} packets of link type {}", link.0);
        }
        if self.capture.too_long > 0 {
            let _ = writeln!(text, "left out: {} packets too long", self.capture.too_long);
        }
        let _ = writeln!(text);
        let flows = stats.flows;
        if self.is_pinned {
            let _ = writeln!(
                text,
                "flows: {} made, {} expired, {} evicted, {} refused, {} live; {} SYNs",
                flows.made, flows.expired, flows.evicted, flows.refused, flows.live, stats.syns
            );
        } else {
            let _ = writeln!(
                text,
                "flows: none are pinned (stateless); {} SYNs",
                stats.syns
            );
        }
        let _ = writeln!(
            text,
            "rate: {:.2} M packets/s, reading and writing included",
            self.rate() / 1e6
        );
        let _ = writeln!(text);
        let _ = writeln!(
            text,
            "{:<20} {:<20} {:>7} {:>10} {:>9} {:>9} {:>9}",
            "pool", "backend", "weight", "packets", "flows", "share", "by weight"
        );
        for share in &self.shares {
            let _ = writeln!(
                text,
                "{:<20} {:<20} {:>7} {:>10} {:>9} {:>8.2}% {:>8.2}%",
                share.pool,
                share.backend,
                share.weight,
                share.forwarded.packets,
                if self.is_pinned {
                    share.flows.to_string()
                } else {
                    "-".to_owned()
                },
                100.0 * self.share(share),
                100.0 * share.expected
            );
        }
        text
    }

    /// The backend's share of the pool's flows; of its packets where no flows are pinned.
    fn share(&self, share: &Share) -> f64 {
        let value = |s: &Share| {
            if self.is_pinned {
                s.flows
            } else {
                s.forwarded.packets
            }
        };
        let total = self.of_pool(&share.pool, value);
        if total == 0 {
            0.0
        } else {
            value(share) as f64 / total as f64
        }
    }

    pub(crate) fn json(&self) -> Value {
        let count = |count: Count| json!({ "packets": count.packets, "bytes": count.bytes });
        let dropped: serde_json::Map<String, Value> = DropReason::ALL
            .iter()
            .map(|&reason| {
                (
                    reason.name().to_owned(),
                    count(self.stats.dropped_for(reason)),
                )
            })
            .collect();
        let backends: Vec<Value> = self
            .shares
            .iter()
            .map(|share| {
                json!({
                    "pool": share.pool,
                    "backend": share.backend,
                    "weight": share.weight,
                    "forwarded": count(share.forwarded),
                    "flows": share.flows,
                    "share": self.share(share),
                    "share_by_weight": share.expected,
                })
            })
            .collect();
        let flows = self.stats.flows;
        json!({
            "received": count(self.stats.received),
            "forwarded": count(self.stats.forwarded),
            "replied": count(self.stats.replied),
            "passed": count(self.stats.passed),
            "dropped_total": count(self.stats.dropped_total()),
            "dropped": dropped,
            "left_out": self.capture.unknown_link.values().sum::<u64>() + self.capture.too_long,
            "syns": self.stats.syns,
            "icmp_errors": self.stats.icmp_errors,
            "flows": {
                "made": flows.made, "expired": flows.expired, "evicted": flows.evicted,
                "refused": flows.refused, "live": flows.live, "places": flows.places,
            },
            "backends": backends,
            "packets_per_second": self.rate(),
        })
    }
}
