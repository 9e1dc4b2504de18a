//! What another configuration would change, without putting it in place.

use std::fmt;

use slb_core::hash::TupleHasher;
use slb_core::spec::{BackendState, SpecError};

use crate::config::{Backend, Config, Node};

/// Two configurations, one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Diff {
    /// What is there, of whatever kind, and is not in the other.
    pub added: Vec<String>,
    /// What is gone.
    pub removed: Vec<String>,
    /// What is in both, and not the same.
    pub changed: Vec<String>,
    /// For each rule in both, what becomes of flows.
    pub rules: Vec<RuleDiff>,
    /// What takes effect with a restart only.
    pub restart: Vec<&'static str>,
}

/// What becomes of a rule's flows.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleDiff {
    /// Its name.
    pub rule: String,
    /// The share of its Maglev table that has another backend: of flows that are not pinned, so many
    /// go elsewhere.
    pub changed: f64,
    /// Of that, the share whose backend takes no flows any more: the rest moves to make room for others.
    pub bereft: f64,
}

impl Diff {
    /// What `new` would change in the place of `old`.
    ///
    /// # Errors
    /// One of them cannot be compiled.
    pub fn between(old: &Config, new: &Config) -> Result<Self, SpecError> {
        let before = old.snapshot(None)?;
        let after = new.snapshot(Some(&before))?;
        let mut diff = Self::default();
        diff.compare_parts(old, new);
        for (place, rule) in new.rules.iter().enumerate() {
            let Some(old_place) = old.rules.iter().position(|other| other.name == rule.name) else {
                continue;
            };
            let takes_flows = |id| {
                let backend = after.backend_index(id);
                backend.is_some_and(|backend| after.serves(place as u32, backend))
            };
            let (mut total, mut changed, mut bereft) = (0u32, 0u32, 0u32);
            let old_slots = before.slots(old_place as u32);
            for (old, new) in old_slots.zip(after.slots(place as u32)) {
                total += 1;
                changed += u32::from(old != new);
                bereft += u32::from(old != new && old.is_some_and(|old| !takes_flows(old)));
            }
            let share = |count: u32| f64::from(count) / f64::from(total.max(1));
            diff.rules.push(RuleDiff {
                rule: rule.name.clone(),
                changed: share(changed),
                bereft: share(bereft),
            });
        }
        Ok(diff)
    }

    /// Whether there is no difference.
    pub fn is_empty(&self) -> bool {
        let parts = [&self.added, &self.removed, &self.changed];
        parts.iter().all(|part| part.is_empty()) && self.restart.is_empty()
    }

    fn compare_parts(&mut self, old: &Config, new: &Config) {
        type Parts = fn(&Config) -> Vec<Part>;
        let kinds: [(&str, Parts); 8] = [
            ("port", ports),
            ("frontend", frontends),
            ("rule", rules),
            ("inbound NAT", nats),
            ("outbound rule", outbounds),
            ("probe", probes),
            ("pool", pools),
            ("backend", backends),
        ];
        for (kind, parts) in kinds {
            self.compare(kind, &parts(old), &parts(new));
        }
        if old.ports.source_rewrites != new.ports.source_rewrites {
            self.changed.push("source_rewrite".to_owned());
        }
        let (was, is) = (&old.node, &new.node);
        let place = |node: &Node| {
            let link = (node.mac, node.next_hop, node.mtu, node.hop_limit);
            format!("{:?}", (node.ipv4, node.ipv6, link, node.udp_checksum))
        };
        // Keys are not to be shown; what they make of a tuple tells them apart.
        let hash = |node: &Node| {
            let of = |word: u64| node.hasher.ipv4(&[word, !word]);
            (node.hasher.name(), [1, 2, 3].map(of))
        };
        for (field, same) in [
            ("underlay", place(was) == place(is)),
            (
                "hash",
                was.hash_seed == is.hash_seed && hash(was) == hash(is),
            ),
            ("muxes", was.muxes == is.muxes),
            ("inside", was.inside == is.inside),
            ("probe_sources", was.probe_sources == is.probe_sources),
            ("probing", was.probing == is.probing),
            (
                "withdraw_when_down",
                was.withdraw_when_down == is.withdraw_when_down,
            ),
        ] {
            if !same {
                self.changed.push(format!("node: {field}"));
            }
        }
        for (field, same) in [
            ("role", was.role == is.role),
            ("flows", was.flows == is.flows),
            ("connections", was.connections == is.connections),
            (
                "answers_per_second",
                was.answers_per_second == is.answers_per_second,
            ),
            (
                "waiting_fragments",
                was.waiting_fragments == is.waiting_fragments,
            ),
            (
                "too_big_per_second",
                was.too_big_per_second == is.too_big_per_second,
            ),
            (
                "errors_per_second",
                was.errors_per_second == is.errors_per_second,
            ),
            (
                "icmp_source",
                was.icmp_source_ipv4 == is.icmp_source_ipv4
                    && was.icmp_source_ipv6 == is.icmp_source_ipv6,
            ),
            (
                "flows_per_source",
                was.flows_per_source == is.flows_per_source
                    && was.flows_per_source_at_once == is.flows_per_source_at_once,
            ),
            (
                "resets_per_second",
                was.resets_per_second == is.resets_per_second,
            ),
            ("clamp_mss", was.clamp_mss == is.clamp_mss),
        ] {
            if !same {
                self.restart.push(field);
            }
        }
    }

    fn compare(&mut self, kind: &str, old: &[Part], new: &[Part]) {
        for (name, is) in new {
            match old.iter().find(|(other, _)| other == name) {
                None => self.added.push(format!("{kind} {name:?}")),
                Some((_, was)) if was != is => self.changed.push(format!("{kind} {name:?}")),
                Some(_) => {}
            }
        }
        let gone = old
            .iter()
            .filter(|(name, _)| !new.iter().any(|(other, _)| other == name));
        self.removed
            .extend(gone.map(|(name, _)| format!("{kind} {name:?}")));
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return writeln!(f, "no difference");
        }
        for (sign, parts) in [
            ("+", &self.added),
            ("-", &self.removed),
            ("~", &self.changed),
        ] {
            for part in parts {
                writeln!(f, "{sign} {part}")?;
            }
        }
        for field in &self.restart {
            writeln!(f, "! node: {field} takes effect after a restart")?;
        }
        let mut moves = self
            .rules
            .iter()
            .filter(|rule| rule.changed > 0.0)
            .peekable();
        if moves.peek().is_some() {
            writeln!(
                f,
                "share of each rule's table that gets another backend; pinned flows stay with theirs:"
            )?;
        }
        for rule in moves {
            let (changed, bereft) = (100.0 * rule.changed, 100.0 * rule.bereft);
            let rest = changed - bereft;
            writeln!(
                f,
                "  rule {:?}: {changed:.2} %: {bereft:.2} since theirs takes no flows any more, {rest:.2} to share evenly",
                rule.rule
            )?;
        }
        Ok(())
    }
}

/// A name, and all else as text.
type Part = (String, String);

fn parts<T>(all: &[T], part: impl Fn(&T) -> (&String, String)) -> Vec<Part> {
    let own = all.iter().map(part);
    own.map(|(name, rest)| (name.clone(), rest)).collect()
}

fn frontends(config: &Config) -> Vec<Part> {
    parts(&config.frontends, |frontend| {
        let how = (frontend.address, frontend.icmp_echo);
        (&frontend.name, format!("{how:?}"))
    })
}

fn ports(config: &Config) -> Vec<Part> {
    parts(&config.ports.all, |port| {
        let how = (port.kind, port.mode, port.address);
        (&port.name, format!("{how:?}"))
    })
}

fn rules(config: &Config) -> Vec<Part> {
    let name = |frontend: usize| &config.frontends[frontend].name;
    parts(&config.rules, |rule| {
        let (pool, probe) = (
            &config.pools[rule.pool].name,
            rule.probe.map(|probe| &config.probes[probe].name),
        );
        let ports = (rule.protocol, rule.frontend_port, rule.backend_port);
        let how = (
            rule.distribution,
            rule.scheduler,
            rule.idle_timeout,
            rule.terms,
        );
        (
            &rule.name,
            format!("{:?}", (name(rule.frontend), pool, probe, ports, how)),
        )
    })
}

fn nats(config: &Config) -> Vec<Part> {
    parts(&config.inbound_nat, |nat| {
        let (frontend, pool) = (
            &config.frontends[nat.frontend].name,
            &config.pools[nat.pool].name,
        );
        let how = (
            nat.target,
            nat.protocol,
            nat.backend_port,
            nat.idle_timeout,
            nat.terms,
        );
        (&nat.name, format!("{:?}", (frontend, pool, how)))
    })
}

fn outbounds(config: &Config) -> Vec<Part> {
    parts(&config.outbound, |rule| {
        let frontends: Vec<_> = rule
            .frontends
            .iter()
            .map(|&place| &config.frontends[place].name)
            .collect();
        let pool = &config.pools[rule.pool].name;
        let how = (
            rule.protocol,
            rule.allocated_outbound_ports,
            rule.idle_timeout,
            rule.tcp_reset,
        );
        (&rule.name, format!("{:?}", (frontends, pool, how)))
    })
}

fn probes(config: &Config) -> Vec<Part> {
    parts(&config.probes, |probe| {
        let times = (probe.interval, probe.timeout, probe.threshold);
        let what = (
            &probe.path,
            &probe.host,
            probe.verify_certificate,
            probe.no_healthy_backends,
        );
        (
            &probe.name,
            format!("{:?}", (probe.protocol, probe.port, times, what)),
        )
    })
}

fn pools(config: &Config) -> Vec<Part> {
    parts(&config.pools, |pool| {
        let how = (pool.vni, pool.table_size, pool.slow_start, pool.passive);
        (&pool.name, format!("{how:?}"))
    })
}

fn backends(config: &Config) -> Vec<Part> {
    let pools = config.pools.iter();
    let all = pools.flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)));
    let part = |(pool, backend): (&crate::config::Pool, &Backend)| {
        let state = match backend.state {
            BackendState::Healthy => 0,
            BackendState::Unhealthy => 1,
            BackendState::Draining => 2,
        };
        let how = (
            backend.weight,
            state,
            backend.instance,
            backend.port,
            backend.backend_port,
        );
        let place = (backend.address, backend.host, backend.mac, backend.next_hop);
        (
            format!("{}/{}", pool.name, backend.name),
            format!("{:?}", (place, how)),
        )
    };
    all.map(part).collect()
}
