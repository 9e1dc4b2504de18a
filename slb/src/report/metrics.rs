//! A report as metrics, by Prometheus' conventions: base units, `_total` behind what only grows, and
//! labels whose values are those of the configuration, so there are no more of them than it names.

use slb_core::DropReason;
use slb_core::nat::ConnectionState;
use slb_core::stats::Count;

use super::Report;
use super::rules::RuleLine;
use super::security::SecurityLine;
use super::zones::ZoneLine;

/// A metric, with a value for each set of labels.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) is_counter: bool,
    pub(crate) samples: Vec<Sample>,
    /// Histograms in the place of samples.
    pub(crate) histograms: Vec<(Labels, Histogram)>,
}

/// Numbers by their size.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    pub(crate) sum: f64,
    pub(crate) count: u64,
    /// Upper bounds, and the numbers above the bound before and up to this one; the last is infinite.
    pub(crate) buckets: Vec<(f64, u64)>,
}

/// Names of labels, and their values.
pub(crate) type Labels = Vec<(&'static str, String)>;

/// Labels, and the value that they have.
pub(crate) type Sample = (Labels, f64);

impl Family {
    /// A value that only grows; `_total` is appended to its name.
    pub(crate) fn counter(name: &'static str, help: &'static str, samples: Vec<Sample>) -> Self {
        Self {
            name,
            help,
            is_counter: true,
            samples,
            histograms: Vec::new(),
        }
    }

    /// Numbers that are counted by their size.
    pub(crate) fn histogram(
        name: &'static str,
        help: &'static str,
        histograms: Vec<(Labels, Histogram)>,
    ) -> Self {
        Self {
            histograms,
            ..Self::gauge(name, help, Vec::new())
        }
    }

    /// A value that goes up and down.
    pub(crate) fn gauge(name: &'static str, help: &'static str, samples: Vec<Sample>) -> Self {
        Self {
            is_counter: false,
            ..Self::counter(name, help, samples)
        }
    }
}

/// A value without labels.
pub(crate) fn one(value: u64) -> Vec<Sample> {
    vec![(Vec::new(), value as f64)]
}

/// A value for each direction, seen from vms.
fn by_way(inward: u64, outward: u64) -> Vec<Sample> {
    [("in", inward), ("out", outward)]
        .map(|(way, value)| (vec![("direction", way.to_owned())], value as f64))
        .to_vec()
}

impl Report<'_> {
    /// Returns the counters of the dataplane.
    pub(crate) fn families(&self) -> Vec<Family> {
        let mut families = self.of_packets();
        families.extend(self.of_rules());
        families.extend(self.of_security());
        families.extend(self.of_vms());
        families.extend(self.of_backends());
        families.extend(self.of_zones());
        families.extend(self.of_tables());
        families
    }

    fn of_packets(&self) -> Vec<Family> {
        let stats = &self.tally.stats;
        // A counter that only grows: fragments that waited are in it, and in `slb_released_packets`.
        let mut dropped_total = stats.dropped_total();
        dropped_total += stats.released;
        let verdicts = [
            ("forwarded", stats.forwarded),
            ("replied", stats.replied),
            ("passed", stats.passed),
            ("dropped", dropped_total),
        ];
        let by_verdict = |of: fn(Count) -> u64| {
            let samples = verdicts.iter();
            let sample = |&(verdict, count): &(&str, Count)| {
                (vec![("verdict", verdict.to_owned())], of(count) as f64)
            };
            samples.map(sample).collect()
        };
        let dropped = DropReason::ALL.iter().map(|&reason| {
            let packets = stats.dropped[reason].packets;
            (vec![("reason", reason.name().to_owned())], packets as f64)
        });
        vec![
            Family::counter(
                "slb_packets",
                "Frames, by their verdict",
                by_verdict(|count| count.packets),
            ),
            Family::counter(
                "slb_bytes",
                "Bytes of received frames, by their verdict",
                by_verdict(|count| count.bytes),
            ),
            Family::counter(
                "slb_dropped_packets",
                "Frames dropped, by reason",
                dropped.collect(),
            ),
            Family::counter(
                "slb_released_packets",
                "Fragments dropped as fragment_held that waited, and had another outcome in the end",
                vec![(Vec::new(), stats.released.packets as f64)],
            ),
            Family::counter(
                "slb_syns",
                "TCP segments that ask for a connection",
                one(stats.syns),
            ),
            Family::counter(
                "slb_icmp_errors",
                "ICMP errors forwarded to the sender of the packet that they quote",
                one(stats.icmp_errors),
            ),
            Family::counter("slb_resets", "RSTs that it made", one(stats.resets)),
            Family::counter(
                "slb_passed_on",
                "Packets of none of its connections that it passed on to another host",
                one(stats.passed_on),
            ),
            Family::counter(
                "slb_passed_back",
                "Packets that no host knew, passed on to the host that begins their flow",
                one(stats.passed_back),
            ),
            Family::counter(
                "slb_taken_up",
                "Connections from before the start that were taken up in the middle",
                one(stats.taken_up),
            ),
            Family::counter(
                "slb_public_packets",
                "Frames for public addresses of vms, and frames that left with one",
                by_way(stats.public_in.packets, stats.public_out.packets),
            ),
            Family::counter(
                "slb_public_bytes",
                "Their bytes",
                by_way(stats.public_in.bytes, stats.public_out.bytes),
            ),
        ]
    }

    fn of_rules(&self) -> Vec<Family> {
        let of = |value: fn(&slb_core::stats::RuleCounters) -> u64| -> Vec<Sample> {
            let sample = |rule: &RuleLine| {
                let labels = vec![("kind", rule.kind.to_owned()), ("rule", rule.name.clone())];
                (labels, value(&rule.counters) as f64)
            };
            self.rules.iter().map(sample).collect()
        };
        vec![
            Family::counter(
                "slb_rule_packets",
                "Frames that a rule forwarded",
                of(|rule| rule.forwarded.packets),
            ),
            Family::counter(
                "slb_rule_bytes",
                "Their bytes",
                of(|rule| rule.forwarded.bytes),
            ),
            Family::counter(
                "slb_rule_syns",
                "TCP segments that ask a rule for a connection",
                of(|rule| rule.syns),
            ),
            Family::counter("slb_rule_flows", "Flows of a rule", of(|rule| rule.flows)),
        ]
    }

    fn of_security(&self) -> Vec<Family> {
        let of = |value: fn(Count) -> u64| -> Vec<Sample> {
            let sample = |line: &SecurityLine| {
                let labels = vec![
                    ("list", line.list.clone()),
                    ("rule", line.rule.clone()),
                    ("direction", line.direction.to_owned()),
                    ("access", line.access.name().to_owned()),
                ];
                (labels, value(line.counters.judged) as f64)
            };
            self.security.iter().map(sample).collect()
        };
        vec![
            Family::counter(
                "slb_security_rule_packets",
                "Frames that a rule of an access list decided about",
                of(|count| count.packets),
            ),
            Family::counter(
                "slb_security_rule_bytes",
                "Their bytes",
                of(|count| count.bytes),
            ),
        ]
    }

    fn of_vms(&self) -> [Family; 2] {
        let of = |value: fn(Count) -> u64| -> Vec<Sample> {
            let mut samples = Vec::new();
            for line in &self.vms {
                for (scope, traffic) in line.traffic() {
                    for (direction, count) in [("in", traffic.to_vm), ("out", traffic.from_vm)] {
                        let labels = vec![
                            ("vm", line.vm.clone()),
                            ("network", line.network.clone().unwrap_or_default()),
                            ("port", line.port.to_string()),
                            ("scope", scope.to_owned()),
                            ("direction", direction.to_owned()),
                        ];
                        samples.push((labels, value(count) as f64));
                    }
                }
            }
            samples
        };
        [
            Family::counter(
                "slb_vm_packets",
                "Frames to and from a vm, inside or with the Internet",
                of(|count| count.packets),
            ),
            Family::counter(
                "slb_vm_bytes",
                "Their bytes at the vm's port",
                of(|count| count.bytes),
            ),
        ]
    }

    fn of_backends(&self) -> Vec<Family> {
        let of = |value: &dyn Fn(&super::Share) -> Option<u64>| -> Vec<Sample> {
            let sample = |share: &super::Share| {
                let labels = vec![
                    ("pool", share.pool.clone()),
                    ("backend", share.backend.clone()),
                ];
                Some((labels, value(share)? as f64))
            };
            self.shares.iter().filter_map(sample).collect()
        };
        let failing = self.shares.iter().flat_map(|share| {
            share.fails.iter().map(|rule| {
                let labels = vec![
                    ("rule", rule.clone()),
                    ("pool", share.pool.clone()),
                    ("backend", share.backend.clone()),
                ];
                (labels, 1.0)
            })
        });
        let mut ports = Vec::new();
        for (kind, value) in [
            (
                "allocated",
                (|snat| snat.ports) as fn(slb_core::stats::SnatCounters) -> u64,
            ),
            ("used", |snat| snat.used),
        ] {
            for (mut labels, value) in of(&|share| share.snat.map(value)) {
                labels.push(("kind", kind.to_owned()));
                ports.push((labels, value));
            }
        }
        vec![
            Family::gauge(
                "slb_backend_up",
                "1 if a backend takes new flows of a rule, by its probes and the configuration",
                of(&|share| Some(share.standing.takes_flows().into())),
            ),
            Family::gauge(
                "slb_rule_backend_failing",
                "1 for each rule whose probe a backend fails",
                failing.collect(),
            ),
            Family::gauge(
                "slb_backend_weight",
                "Its share of new flows",
                of(&|share| Some(share.weight.into())),
            ),
            Family::counter(
                "slb_backend_packets",
                "Frames forwarded to a backend",
                of(&|share| Some(share.forwarded.packets)),
            ),
            Family::counter(
                "slb_backend_bytes",
                "Their bytes",
                of(&|share| Some(share.forwarded.bytes)),
            ),
            Family::counter(
                "slb_backend_flows",
                "Flows of a backend",
                of(&|share| Some(share.flows)),
            ),
            Family::gauge(
                "slb_backend_connections",
                "Connections that it has now; missing at a mux",
                of(&|share| self.tally.states.map(|_| share.live)),
            ),
            Family::counter(
                "slb_backend_accepted",
                "Connections that it took up",
                of(&|share| Some(share.accepted)),
            ),
            Family::counter(
                "slb_backend_failures",
                "Retransmitted SYNs to it, and refusals",
                of(&|share| Some(share.failures)),
            ),
            Family::gauge("slb_snat_ports", "SNAT ports of a backend", ports),
            Family::gauge(
                "slb_snat_connections",
                "Its outbound connections now",
                of(&|share| share.snat.map(|snat| snat.connections)),
            ),
            Family::counter(
                "slb_snat_exhausted",
                "Outbound connections that found no port",
                of(&|share| share.snat.map(|snat| snat.exhausted)),
            ),
        ]
    }

    /// The zones of pools that have any. Backends without a zone have an empty label.
    fn of_zones(&self) -> [Family; 3] {
        let of = |value: fn(&ZoneLine) -> f64| -> Vec<Sample> {
            let sample = |line: &ZoneLine| {
                let zone = line.zone.clone().unwrap_or_default();
                let labels = vec![("pool", line.pool.clone()), ("zone", zone)];
                (labels, value(line))
            };
            self.zones.iter().map(sample).collect()
        };
        [
            Family::gauge(
                "slb_zone_backends",
                "Backends of a pool in a zone",
                of(|line| line.backends as f64),
            ),
            Family::gauge(
                "slb_zone_backends_up",
                "Backends of a pool in a zone that take new flows",
                of(|line| line.serving as f64),
            ),
            Family::gauge(
                "slb_zone_share",
                "Share of a pool's new flows that its backends in a zone get by weight, 0 to 1",
                of(|line| line.expected),
            ),
        ]
    }

    fn of_tables(&self) -> Vec<Family> {
        let stats = &self.tally.stats;
        let kinds = |kinds: &[(&str, u64)]| -> Vec<Sample> {
            let sample =
                |&(kind, value): &(&str, u64)| (vec![("kind", kind.to_owned())], value as f64);
            kinds.iter().map(sample).collect()
        };
        let Some(states) = self.tally.states else {
            let flows = stats.flows;
            return vec![
                Family::gauge("slb_flows", "Flows that are pinned now", one(flows.live)),
                Family::gauge("slb_flow_places", "Places for flows", one(flows.places)),
                Family::counter(
                    "slb_flow_events",
                    "What became of flows",
                    kinds(&[
                        ("made", flows.made),
                        ("expired", flows.expired),
                        ("evicted", flows.evicted),
                        ("refused", flows.refused),
                    ]),
                ),
            ];
        };
        let connections = stats.connections;
        let by_state = ConnectionState::ALL
            .iter()
            .zip(states)
            .map(|(state, count)| (vec![("state", state.name().to_owned())], count as f64));
        vec![
            Family::gauge(
                "slb_connections",
                "Connections now, by state",
                by_state.collect(),
            ),
            Family::gauge(
                "slb_connection_places",
                "Places for connections",
                one(connections.places),
            ),
            Family::counter(
                "slb_connection_events",
                "What became of connections",
                kinds(&[
                    ("made", connections.made),
                    ("expired", connections.expired),
                    ("removed", connections.removed - connections.evicted),
                    ("evicted", connections.evicted),
                    ("refused", connections.refused),
                ]),
            ),
        ]
    }
}
