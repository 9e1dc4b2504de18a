//! The results of a run, as text and as JSON.

#[cfg(feature = "live")]
pub(crate) mod metrics;
pub(crate) mod rules;
mod security;
#[cfg(feature = "live")]
pub(crate) mod totals;
mod vms;
pub(crate) mod zones;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use slb_control::Config;
use slb_control::config::Standing;
use slb_core::nat::{ConnectionState, NatTable};
use slb_core::snapshot::{CompiledBackend, Snapshot};
use slb_core::stats::{
    BackendCounters, Count, RuleCounters, SecurityCounters, SnatCounters, VmCounters,
};
use slb_core::{DropReason, Stats};
use slb_io_pcap::{CaptureStats, LinkType};

use self::rules::RuleLine;
use self::security::SecurityLine;
use self::vms::VmLine;
use self::zones::ZoneLine;
use crate::balancer::Balancer;

/// A backend's share of what was forwarded.
struct Share {
    pool: String,
    backend: String,
    seat: String,
    weight: u32,
    /// Share of the pool's flows by weight.
    expected: f64,
    standing: Standing,
    /// State of the backend, leaving aside the operator's word.
    observed: Standing,
    /// The rules whose probe it fails.
    fails: Vec<String>,
    forwarded: Count,
    flows: u64,
    /// Connections that it has now.
    live: u64,
    accepted: u64,
    failures: u64,
    snat: Option<SnatCounters>,
    zone: Option<String>,
}

/// The counters of a balancer, in a form that can be added up over its queues.
#[derive(Clone)]
pub(crate) struct Tally {
    snapshot: Arc<Snapshot<'static>>,
    stats: Stats,
    rules: Vec<RuleCounters>,
    backends: Vec<BackendCounters>,
    snat: Vec<Option<SnatCounters>>,
    /// Counters of the rules of each access list.
    security: Vec<Vec<SecurityCounters>>,
    /// Traffic of the vm at each port.
    vms: Vec<VmCounters>,
    is_pinned: bool,
    /// Connections in each state, for a host or a proxy.
    states: Option<[u64; ConnectionState::ALL.len()]>,
}

impl Tally {
    pub(crate) fn of(balancer: &Balancer) -> Self {
        let snapshot = balancer.shared_snapshot();
        let ids = snapshot.backends().iter().map(CompiledBackend::id);
        let counters = |id| balancer.backend_counters(id).unwrap_or_default();
        Self {
            stats: balancer.stats(),
            rules: (0..)
                .take_while(|&rule| snapshot.rule(rule).is_some())
                .map(|rule| balancer.rule_counters(rule).unwrap_or_default())
                .collect(),
            backends: ids.clone().map(counters).collect(),
            snat: ids.map(|id| balancer.snat_counters(id)).collect(),
            security: (0..)
                .map_while(|list| balancer.security_counters(list))
                .collect(),
            vms: vms::counted(balancer),
            is_pinned: balancer.is_pinned(),
            states: balancer.connections().map(NatTable::states),
            snapshot,
        }
    }

    /// Counts packets that a device dropped unseen.
    #[cfg(feature = "live")]
    pub(crate) fn count_unseen(&mut self, reason: DropReason, packets: u64) {
        self.stats.count_unseen(reason, packets);
    }

    /// Adds what another balancer counted. What rules and backends did is added where both have the
    /// same snapshot: else their places are not the same.
    #[cfg(feature = "live")]
    pub(crate) fn add(&mut self, other: &Self) {
        self.stats += other.stats;
        if let (Some(own), Some(states)) = (&mut self.states, other.states) {
            own.iter_mut()
                .zip(states)
                .for_each(|(own, count)| *own += count);
        }
        if self.snapshot.generation() != other.snapshot.generation() {
            return;
        }
        let rules = self.rules.iter_mut().zip(&other.rules);
        rules.for_each(|(own, &rule)| *own += rule);
        let backends = self.backends.iter_mut().zip(&other.backends);
        backends.for_each(|(own, &backend)| *own += backend);
        let lists = self.security.iter_mut().zip(&other.security);
        let rules = lists.flat_map(|(own, list)| own.iter_mut().zip(list));
        rules.for_each(|(own, &rule)| *own += rule);
        let vms = self.vms.iter_mut().zip(&other.vms);
        vms.for_each(|(own, &vm)| *own += vm);
        for (own, snat) in self.snat.iter_mut().zip(&other.snat) {
            if let (Some(own), &Some(snat)) = (own, snat) {
                // Workers have the same ports, and none knows of those that others use towards other destinations: a
                // port that several use counts for each, up to all.
                let ports = own.ports.max(snat.ports);
                *own += snat;
                own.ports = ports;
                own.used = own.used.min(ports);
            }
        }
    }

    /// Returns the counters of each backend, by the indexes of pool and backend in the
    /// configuration.
    #[cfg(feature = "live")]
    pub(crate) fn by_backend(&self) -> impl Iterator<Item = ((usize, usize), BackendCounters)> {
        let backends = self.snapshot.backends().iter().zip(&self.backends);
        backends.map(|(backend, &counters)| ((backend.pool(), backend.member()), counters))
    }

    /// Generation of the configuration that ran.
    #[cfg(feature = "live")]
    pub(crate) fn generation(&self) -> u64 {
        self.snapshot.generation()
    }
}

pub(crate) struct Report<'a> {
    tally: Tally,
    rules: Vec<RuleLine>,
    security: Vec<SecurityLine>,
    vms: Vec<VmLine>,
    /// Name and address of each frontend.
    frontends: Vec<(String, IpAddr)>,
    capture: &'a CaptureStats,
    /// True if packets that a snap length cut were taken by their headers.
    fills_cut: bool,
    shares: Vec<Share>,
    /// The totals of each pool's backends.
    pools: HashMap<String, PoolTotal>,
    /// The zones of each pool that has any.
    zones: Vec<ZoneLine>,
    elapsed: Duration,
}

/// The total of a pool's backends.
#[derive(Clone, Copy, Default)]
struct PoolTotal {
    flows: u64,
    packets: u64,
}

impl<'a> Report<'a> {
    /// `config` is the one that the tally's snapshot was made of.
    pub(crate) fn new(
        config: &Config,
        tally: Tally,
        capture: &'a CaptureStats,
        elapsed: Duration,
    ) -> Self {
        let snapshot = &tally.snapshot;
        let mut shares = Vec::new();
        let standings: Vec<Vec<Standing>> = (0..config.pools.len())
            .map(|pool| {
                let members = 0..config.pools[pool].backends.len();
                members
                    .map(|member| config.standing(pool, member))
                    .collect()
            })
            .collect();
        let totals: Vec<u64> = config
            .pools
            .iter()
            .zip(&standings)
            .map(|(pool, standings)| {
                let taking = pool
                    .backends
                    .iter()
                    .zip(standings)
                    .filter(|(_, s)| s.takes_flows());
                taking.map(|(backend, _)| u64::from(backend.weight)).sum()
            })
            .collect();
        let counted = tally.backends.iter().zip(&tally.snat);
        for (compiled, (counters, &snat)) in snapshot.backends().iter().zip(counted) {
            let of_pool = config.pools.get(compiled.pool());
            let Some((pool, backend)) =
                of_pool.and_then(|pool| Some((pool, pool.backends.get(compiled.member())?)))
            else {
                continue;
            };
            let standing = standings[compiled.pool()][compiled.member()];
            let total = totals[compiled.pool()];
            let weight = if standing.takes_flows() {
                backend.weight
            } else {
                0
            };
            let rules = config.rules.iter();
            let fails = rules.filter(|rule| {
                rule.pool == compiled.pool() && config.fails(rule, compiled.member())
            });
            shares.push(Share {
                pool: pool.name.clone(),
                backend: backend.name.clone(),
                standing,
                observed: config.observed(compiled.pool(), compiled.member()),
                fails: fails.map(|rule| rule.name.clone()).collect(),
                seat: backend.seat().to_owned(),
                weight,
                expected: if total == 0 {
                    0.0
                } else {
                    f64::from(weight) / total as f64
                },
                forwarded: counters.forwarded,
                flows: counters.flows,
                live: counters.live,
                accepted: counters.accepted,
                failures: counters.failures,
                snat,
                zone: backend.zone.clone(),
            });
        }
        let mut pools: HashMap<String, PoolTotal> = HashMap::new();
        for share in &shares {
            let total = match pools.get_mut(&share.pool) {
                Some(total) => total,
                None => pools.entry(share.pool.clone()).or_default(),
            };
            total.flows += share.flows;
            total.packets += share.forwarded.packets;
        }
        let rules = rules::lines(config, &tally.rules);
        let security = security::lines(config, &tally.security);
        let frontends = config.frontends.iter();
        Self {
            rules,
            security,
            vms: vms::lines(config, &tally.vms),
            frontends: frontends.map(|f| (f.name.clone(), f.address)).collect(),
            tally,
            capture,
            fills_cut: false,
            zones: zones::lines(config, &shares),
            shares,
            pools,
            elapsed,
        }
    }

    /// Says of packets that a snap length cut that they were taken by their headers.
    pub(crate) fn fill_cut(mut self, fills_cut: bool) -> Self {
        self.fills_cut = fills_cut;
        self
    }

    /// True if packets were read and none was for a VIP.
    pub(crate) fn is_for_no_vip(&self) -> bool {
        let stats = &self.tally.stats;
        let of_vips = [
            stats.forwarded,
            stats.replied,
            stats.dropped[DropReason::NoRule],
        ];
        stats.passed.packets > 0 && of_vips.iter().all(|count| count.packets == 0)
    }

    /// Packets a second.
    fn rate(&self) -> f64 {
        self.tally.stats.received.packets as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    pub(crate) fn text(&self) -> String {
        let stats = &self.tally.stats;
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
            let count = lost_for(stats, reason);
            if count.packets > 0 {
                line(&format!("    {reason}"), count);
            }
        }
        let header = format!("{:<28} {:>12} {:>15}\n", "", "packets", "bytes");
        let body = text.split_once('\n').map_or("", |(_, body)| body);
        let mut text = header + body;
        for (link, count) in &self.capture.unknown_link {
            let _ = writeln!(text, "left out: {}", left_out_for_link(*link, *count));
        }
        if self.capture.cut > 0 {
            let count = self.capture.cut;
            let how = if self.fills_cut {
                "processed by their headers, with zeros for the missing bytes"
            } else {
                "dropped if the missing bytes are needed; --cut processes them by their headers"
            };
            let count = counted(count, "packet");
            let _ = writeln!(text, "cut by a snap length: {count}, {how}");
        }
        if self.capture.without_time > 0 {
            let count = self.capture.without_time;
            let count = counted(count, "packet");
            let _ = writeln!(
                text,
                "not written: {count} after 2106-02-07, the last time that pcap can hold; use pcapng"
            );
        }
        if self.capture.unknown_time > 0 {
            let count = self.capture.unknown_time;
            let count = counted(count, "packet");
            let _ = writeln!(
                text,
                "left out: {count} whose time is before 1970 or after 2554-07-21"
            );
        }
        if self.capture.too_long > 0 {
            let count = counted(self.capture.too_long, "packet");
            let _ = writeln!(text, "left out: {count} too long");
        }
        let _ = writeln!(text);
        let flows = stats.flows;
        if let Some(states) = self.tally.states {
            let connections = stats.connections;
            let _ = writeln!(
                text,
                "connections: {} made, {} expired, {} removed, {} of them evicted, {} refused, {} live; {}",
                connections.made,
                connections.expired,
                connections.removed,
                connections.evicted,
                connections.refused,
                connections.live,
                counted(stats.syns, "SYN")
            );
            let live: Vec<String> = ConnectionState::ALL
                .iter()
                .zip(states)
                .filter(|&(_, count)| count > 0)
                .map(|(state, count)| format!("{count} {}", state.name()))
                .collect();
            if !live.is_empty() {
                let _ = writeln!(text, "live: {}", live.join(", "));
            }
            let _ = writeln!(
                text,
                "resets: {} sent, {} suppressed",
                stats.resets, stats.resets_suppressed
            );
            if stats.passed_on + stats.passed_back > 0 {
                let _ = writeln!(
                    text,
                    "packets of other hosts' connections: {} passed on, {} passed back",
                    stats.passed_on, stats.passed_back
                );
            }
            if stats.taken_up > 0 {
                let _ = writeln!(
                    text,
                    "connections from before the start: {} taken up in the middle",
                    stats.taken_up
                );
            }
        } else if self.tally.is_pinned {
            let _ = writeln!(
                text,
                "flows: {} made, {} expired, {} evicted, {} refused, {} live; {}",
                flows.made,
                flows.expired,
                flows.evicted,
                flows.refused,
                flows.live,
                counted(stats.syns, "SYN")
            );
        } else {
            let _ = writeln!(
                text,
                "flows: none are pinned (stateless); {}",
                counted(stats.syns, "SYN")
            );
        }
        let (public_in, public_out) = (stats.public_in.packets, stats.public_out.packets);
        if public_in + public_out > 0 {
            let _ = writeln!(
                text,
                "public addresses of vms: {public_in} packets in, {public_out} out"
            );
        }
        let _ = writeln!(
            text,
            "rate: {:.2} M packets/s, including reading and writing",
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
                if self.counts_flows() {
                    share.flows.to_string()
                } else {
                    "-".to_owned()
                },
                100.0 * self.share(share),
                100.0 * share.expected
            );
        }
        for share in &self.shares {
            if let Some(snat) = share.snat {
                let _ = writeln!(
                    text,
                    "SNAT of {}/{}: {} of {} ports in use, {} connections, {} found no port",
                    share.pool,
                    share.backend,
                    snat.used,
                    snat.ports,
                    snat.connections,
                    snat.exhausted
                );
            }
        }
        for line in self
            .security
            .iter()
            .filter(|line| line.counters.judged.packets > 0)
        {
            let _ = writeln!(
                text,
                "access list {:?}: {} rule {:?} ({}) decided about {}",
                line.list,
                line.direction,
                line.rule,
                line.access.name(),
                counted(line.counters.judged.packets, "packet")
            );
        }
        text
    }

    /// Returns true if flows are known, and not only packets.
    fn counts_flows(&self) -> bool {
        self.tally.is_pinned || self.tally.states.is_some()
    }

    /// The backend's share of the pool's flows; of its packets where no flows are pinned.
    fn share(&self, share: &Share) -> f64 {
        let total = self.pools.get(&share.pool).copied().unwrap_or_default();
        let (own, all) = match self.counts_flows() {
            true => (share.flows, total.flows),
            false => (share.forwarded.packets, total.packets),
        };
        if all == 0 {
            0.0
        } else {
            own as f64 / all as f64
        }
    }

    pub(crate) fn json(&self) -> Value {
        let dropped: serde_json::Map<String, Value> = DropReason::ALL
            .iter()
            .map(|&reason| {
                (
                    reason.name().to_owned(),
                    count(lost_for(&self.tally.stats, reason)),
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
                    "state": share.standing.name(),
                    "health": share.observed.name(),
                    "fails": share.fails,
                    "seat": share.seat,
                    "weight": share.weight,
                    "forwarded": count(share.forwarded),
                    "flows": share.flows,
                    "live": share.live,
                    "accepted": share.accepted,
                    "failures": share.failures,
                    "share": self.share(share),
                    "share_by_weight": share.expected,
                    "zone": share.zone,
                    "snat": share.snat.map(|snat| json!({
                        "ports": snat.ports, "used": snat.used,
                        "connections": snat.connections, "exhausted": snat.exhausted,
                    })),
                })
            })
            .collect();
        let rules: Vec<Value> = self
            .rules
            .iter()
            .map(|rule| {
                let counters = rule.counters;
                let (frontend, address) = &self.frontends[rule.frontend];
                json!({
                    "kind": rule.kind, "rule": rule.name, "frontend": frontend, "address": address,
                    "forwarded": count(counters.forwarded),
                    "syns": counters.syns, "flows": counters.flows,
                })
            })
            .collect();
        let security: Vec<Value> = self
            .security
            .iter()
            .map(|line| {
                json!({
                    "list": line.list, "rule": line.rule, "direction": line.direction,
                    "access": line.access.name(), "priority": line.priority,
                    "judged": count(line.counters.judged),
                })
            })
            .collect();
        let flows = self.tally.stats.flows;
        let connections = self.tally.stats.connections;
        let states: serde_json::Map<String, Value> = ConnectionState::ALL
            .iter()
            .zip(self.tally.states.unwrap_or_default())
            .map(|(state, count)| (state.name().to_owned(), count.into()))
            .collect();
        json!({
            "connections": {
                "made": connections.made, "expired": connections.expired,
                "removed": connections.removed, "refused": connections.refused,
                "evicted": connections.evicted, "unanswered": connections.unanswered,
                "live": connections.live, "places": connections.places, "states": states,
            },
            "resets": self.tally.stats.resets,
            "resets_suppressed": self.tally.stats.resets_suppressed,
            "passed_on": self.tally.stats.passed_on,
            "passed_back": self.tally.stats.passed_back,
            "taken_up": self.tally.stats.taken_up,
            "public_in": count(self.tally.stats.public_in),
            "public_out": count(self.tally.stats.public_out),
            "received": count(self.tally.stats.received),
            "forwarded": count(self.tally.stats.forwarded),
            "replied": count(self.tally.stats.replied),
            "passed": count(self.tally.stats.passed),
            "dropped_total": count(self.tally.stats.dropped_total()),
            "released": count(self.tally.stats.released),
            "dropped": dropped,
            "left_out": self.capture.left_out(),
            "left_out_too_long": self.capture.too_long,
            "left_out_unknown_time": self.capture.unknown_time,
            "left_out_link_types": self.capture.unknown_link.iter().map(|(link, count)| json!({
                "link_type": link.0, "name": link.name(), "packets": count, "is_read": link.is_read(),
            })).collect::<Vec<Value>>(),
            "cut": self.capture.cut,
            "cut_filled": self.fills_cut,
            "not_written_without_time": self.capture.without_time,
            "syns": self.tally.stats.syns,
            "icmp_errors": self.tally.stats.icmp_errors,
            "flows": {
                "made": flows.made, "expired": flows.expired, "evicted": flows.evicted,
                "refused": flows.refused, "live": flows.live, "places": flows.places,
            },
            "rules": rules,
            "security_rules": security,
            "vms": self.vms.iter().map(VmLine::json).collect::<Vec<Value>>(),
            "backends": backends,
            "zones": self.zones.iter().map(ZoneLine::json).collect::<Vec<Value>>(),
            "packets_per_second": self.rate(),
        })
    }
}

/// A count as JSON.
fn count(count: Count) -> Value {
    json!({ "packets": count.packets, "bytes": count.bytes })
}

/// Frames dropped for a reason. Of fragments that wait, those that have not gone on.
fn lost_for(stats: &Stats, reason: DropReason) -> Count {
    match reason {
        DropReason::FragmentHeld => stats.waiting(),
        _ => stats.dropped[reason],
    }
}

/// A number of things, each of which has this name.
pub(crate) fn counted(count: u64, one: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {one}s"),
    }
}

/// The packets that were left out for their link type, and why.
pub(crate) fn left_out_for_link(link: LinkType, count: u64) -> String {
    let why = match (link.is_read(), count) {
        (true, 1) => "which holds no IP packet",
        (true, _) => "which hold no IP packet",
        (false, _) => "which is not supported",
    };
    format!("{} of link type {link}, {why}", counted(count, "packet"))
}
