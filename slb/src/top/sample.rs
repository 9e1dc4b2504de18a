//! Statuses over time: rates are differences of two of them.

use std::collections::VecDeque;

use serde_json::Value;

use crate::status::{number, text};

/// Seconds that the line of packets goes back.
const KEPT: usize = 240;

#[derive(Debug, Default)]
pub(super) struct Samples {
    now: Value,
    before: Option<Value>,
    /// Packets a second, the newest last.
    pub(super) packets: VecDeque<u64>,
    /// The reason why there is no newer sample.
    pub(super) lost: Option<String>,
}

/// A frontend, all its rules together.
#[derive(Debug, PartialEq)]
pub(super) struct Vip {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) packets: f64,
    pub(super) bytes: f64,
    pub(super) syns: f64,
    pub(super) flows: f64,
}

#[derive(Debug, PartialEq)]
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) weight: f64,
    /// The backend's share of its pool's flows.
    pub(super) share: f64,
    pub(super) packets: f64,
    pub(super) flows: f64,
    pub(super) live: f64,
}

/// Something that was lost, or dropped.
#[derive(Debug, PartialEq)]
pub(super) struct Loss {
    pub(super) name: String,
    pub(super) rate: f64,
    pub(super) total: f64,
}

impl Samples {
    pub(super) fn add(&mut self, status: Value) {
        let old = std::mem::replace(&mut self.now, status);
        self.lost = None;
        // Another process begins anew.
        let is_same = text(&old, "/pid") == text(&self.now, "/pid")
            && number(&old, "/pid") == number(&self.now, "/pid");
        self.before = (is_same && !old.is_null()).then_some(old);
        if self.before.is_some() {
            self.packets
                .push_back(self.rate("/received/packets") as u64);
        }
        if self.packets.len() > KEPT {
            self.packets.pop_front();
        }
    }

    pub(super) fn lose(&mut self, why: String) {
        self.lost = Some(why);
    }

    pub(super) fn now(&self) -> &Value {
        &self.now
    }

    /// The rate at which a number grows; zero if it is not known yet.
    pub(super) fn rate(&self, path: &str) -> f64 {
        let Some(before) = &self.before else {
            return 0.0;
        };
        self.grown(number(&self.now, path), number(before, path))
    }

    fn grown(&self, now: f64, before: f64) -> f64 {
        let began = self.before.as_ref().map(|before| number(before, "/time"));
        let seconds = number(&self.now, "/time") - began.unwrap_or(f64::INFINITY);
        if seconds > 0.0 {
            (now - before).max(0.0) / seconds
        } else {
            0.0
        }
    }

    /// The element of the earlier list that is of the same name: a reload may have moved it.
    fn earlier(&self, list: &str, is_same: impl Fn(&Value) -> bool) -> Option<&Value> {
        let before = self.before.as_ref()?;
        before.get(list)?.as_array()?.iter().find(|e| is_same(e))
    }

    fn list(&self, name: &str) -> &[Value] {
        let list = self.now.get(name).and_then(Value::as_array);
        list.map_or(&[], Vec::as_slice)
    }

    pub(super) fn vips(&self) -> Vec<Vip> {
        let mut vips: Vec<Vip> = Vec::new();
        for rule in self.list("rules") {
            let (name, address) = (text(rule, "/frontend"), text(rule, "/address"));
            let known = ["/kind", "/rule"].map(|path| text(rule, path).to_owned());
            let before = self.earlier("rules", |other| {
                ["/kind", "/rule"].map(|path| text(other, path)) == known
            });
            let rate = |path: &str| match before {
                Some(before) => self.grown(number(rule, path), number(before, path)),
                None => 0.0,
            };
            let place = vips.iter().position(|vip| vip.name == name);
            let place = place.unwrap_or_else(|| {
                vips.push(Vip {
                    name: name.to_owned(),
                    address: address.to_owned(),
                    packets: 0.0,
                    bytes: 0.0,
                    syns: 0.0,
                    flows: 0.0,
                });
                vips.len() - 1
            });
            let vip = &mut vips[place];
            vip.packets += rate("/forwarded/packets");
            vip.bytes += rate("/forwarded/bytes");
            vip.syns += rate("/syns");
            vip.flows += rate("/flows");
        }
        vips
    }

    /// The rules, each for itself, as [`vips`](Self::vips) has them together.
    pub(super) fn rules(&self) -> Vec<Vip> {
        let rules = self.list("rules").iter();
        let of = |rule: &Value| {
            let known = ["/kind", "/rule"].map(|path| text(rule, path).to_owned());
            let before = self.earlier("rules", |other| {
                ["/kind", "/rule"].map(|path| text(other, path)) == known
            });
            let rate = |path: &str| match before {
                Some(before) => self.grown(number(rule, path), number(before, path)),
                None => 0.0,
            };
            let [_, name] = &known;
            Vip {
                name: name.clone(),
                address: text(rule, "/address").to_owned(),
                packets: rate("/forwarded/packets"),
                bytes: rate("/forwarded/bytes"),
                syns: rate("/syns"),
                flows: rate("/flows"),
            }
        };
        rules.map(of).collect()
    }

    /// Counters of the table of flows or connections.
    pub(super) fn flow_events(&self) -> Vec<Loss> {
        let table = match text(&self.now, "/role") {
            "mux" => "flows",
            _ => "connections",
        };
        let counters = self.now.get(table).and_then(Value::as_object);
        let counters = counters.into_iter().flatten();
        let counters = counters.filter(|(name, _)| !["live", "places"].contains(&name.as_str()));
        let of = |(name, count): (&String, &Value)| {
            let total = count.as_f64()?;
            let rate = self.rate(&format!("/{table}/{name}"));
            let name = name.clone();
            Some(Loss { name, rate, total })
        };
        counters.filter_map(of).collect()
    }

    pub(super) fn backends(&self) -> Vec<Backend> {
        let backends = self.list("backends").iter();
        let of = |backend: &Value| {
            let known = ["/pool", "/backend"].map(|path| text(backend, path).to_owned());
            let before = self.earlier("backends", |other| {
                ["/pool", "/backend"].map(|path| text(other, path)) == known
            });
            let rate = |path: &str| match before {
                Some(before) => self.grown(number(backend, path), number(before, path)),
                None => 0.0,
            };
            let [pool, own] = &known;
            Backend {
                name: format!("{pool}/{own}"),
                state: text(backend, "/state").to_owned(),
                weight: number(backend, "/weight"),
                share: number(backend, "/share"),
                packets: rate("/forwarded/packets"),
                flows: rate("/flows"),
                live: number(backend, "/live"),
            }
        };
        backends.map(of).collect()
    }

    /// Drops by reason, and what devices lost; what never happened is not there.
    pub(super) fn losses(&self) -> Vec<Loss> {
        let of = |(prefix, path): (&str, String), name: &str, total: f64| Loss {
            name: format!("{prefix}{name}"),
            rate: self.rate(&path),
            total,
        };
        let reasons = self.now.get("dropped").and_then(Value::as_object);
        let reasons = reasons.into_iter().flatten().map(|(reason, count)| {
            let path = format!("/dropped/{reason}/packets");
            of(("", path), reason, number(count, "/packets"))
        });
        let io = self.now.get("io").and_then(Value::as_object);
        let io = io.into_iter().flatten().filter(|(name, _)| {
            // What is too long is among the reasons.
            let is_a_loss = !["received", "sent", "passed", "too_long"].contains(&name.as_str());
            is_a_loss && !name.starts_with("frames")
        });
        let io = io.map(|(name, count)| {
            let total = count.as_f64().unwrap_or_default();
            of(("I/O: ", format!("/io/{name}")), name, total)
        });
        reasons.chain(io).filter(|loss| loss.total > 0.0).collect()
    }
}
