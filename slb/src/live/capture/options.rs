//! The options of a capture: which packets it takes, and when it ends.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;
use slb_core::list::Subnet;
use slb_core::observe::Step;
use slb_core::packet::Tuple;
use slb_core::{DropReason, Verdict};

use crate::live::request::{end, protocol_number, several, text};

/// Bytes of a packet that are kept unless it is said.
const SNAPLEN: u64 = 256;

/// Addresses that one end of a packet is to have, and its port.
type End = (Option<Subnet>, Option<u16>);

/// Selects the packets to capture.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    /// Each is an end of the packet, under one of its names.
    pub(super) ends: Vec<End>,
    pub(super) protocol: Option<u8>,
    pub(super) verdicts: Vec<&'static str>,
    pub(super) reasons: Vec<DropReason>,
}

impl Filter {
    pub(super) fn takes(
        &self,
        verdict: Verdict,
        mut steps: impl Iterator<Item = Step> + Clone,
    ) -> bool {
        let is_its = match verdict {
            Verdict::Drop(reason) => self.reasons.is_empty() || self.reasons.contains(&reason),
            _ => self.reasons.is_empty(),
        };
        let is_wanted = self.verdicts.is_empty() || self.verdicts.contains(&verdict_name(verdict));
        if !is_its || !is_wanted {
            return false;
        }
        let is_any = self.ends.is_empty() && self.protocol.is_none();
        is_any || steps.any(|step| tuple_of(&step).is_some_and(|tuple| self.is_of(&tuple)))
    }

    fn is_of(&self, tuple: &Tuple) -> bool {
        let is_at = |end: &End, address: IpAddr, port: u16| {
            end.0.is_none_or(|subnet| subnet.contains(address))
                && end.1.is_none_or(|wanted| wanted == port)
        };
        let is_end = |end: &End| {
            is_at(end, tuple.source, tuple.source_port)
                || is_at(end, tuple.destination, tuple.destination_port)
        };
        self.protocol.is_none_or(|wanted| wanted == tuple.protocol) && self.ends.iter().all(is_end)
    }
}

fn tuple_of(step: &Step) -> Option<Tuple> {
    match *step {
        Step::Parsed(packet) => Some(packet.tuple()),
        Step::FragmentPorts(tuple) | Step::QuotedFlow(tuple) | Step::Translated(tuple) => {
            Some(tuple)
        }
        _ => None,
    }
}

/// The names of verdicts.
pub(crate) const VERDICTS: [&str; 5] = ["forward", "flood", "reply", "pass", "drop"];

const fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forward(_) => VERDICTS[0],
        Verdict::Flood => VERDICTS[1],
        Verdict::Reply => VERDICTS[2],
        Verdict::Pass => VERDICTS[3],
        Verdict::Drop(_) => VERDICTS[4],
    }
}

/// The options of a capture.
pub(super) struct Options {
    pub(super) filter: Filter,
    pub(super) snaplen: usize,
    pub(super) sample: u64,
    pub(super) rate: Option<f64>,
    pub(super) seconds: Option<Duration>,
    pub(super) bytes: u64,
    pub(super) packets: u64,
}

pub(super) fn options(asked: &Value) -> Result<Options, String> {
    let mut filter = Filter::default();
    let mut options = Options {
        filter: Filter::default(),
        snaplen: SNAPLEN as usize,
        sample: 1,
        rate: None,
        seconds: None,
        bytes: u64::MAX,
        packets: u64::MAX,
    };
    let number = |key: &str, value: &Value, most: u64| {
        let number = value.as_u64().filter(|number| (1..=most).contains(number));
        number.ok_or_else(|| format!("{key}: expected a number from 1 to {most}, got {value}"))
    };
    for (key, value) in asked.as_object().into_iter().flatten() {
        match key.as_str() {
            "ask" => {}
            "end" => {
                for one in several(asked, key)? {
                    filter.ends.push(end(one)?);
                }
            }
            "protocol" => {
                let name = text(asked, key)?.unwrap_or_default();
                filter.protocol = Some(protocol_number(name)?);
            }
            "verdict" => {
                for one in several(asked, key)? {
                    let known = VERDICTS.into_iter().find(|name| *name == one);
                    filter.verdicts.push(known.ok_or_else(|| {
                        let all = VERDICTS.join(", ");
                        format!("expected a verdict of {all}, got {one:?}")
                    })?);
                }
            }
            "reason" => {
                for one in several(asked, key)? {
                    let known = DropReason::ALL.iter().find(|reason| reason.name() == one);
                    filter.reasons.push(*known.ok_or_else(|| {
                        let all: Vec<&str> = DropReason::ALL.iter().map(|r| r.name()).collect();
                        format!("expected a reason of {}, got {one:?}", all.join(", "))
                    })?);
                }
            }
            "snaplen" => options.snaplen = number(key, value, 1 << 16)? as usize,
            "sample" => options.sample = number(key, value, 1 << 32)?,
            "limit_rate" => options.rate = Some(number(key, value, 1 << 32)? as f64),
            "seconds" => {
                let seconds = value
                    .as_f64()
                    .filter(|seconds| (0.001..=1e9).contains(seconds));
                let seconds = seconds
                    .ok_or_else(|| format!("seconds: expected a number above zero, got {value}"))?;
                options.seconds = Some(Duration::from_secs_f64(seconds));
            }
            "size" => options.bytes = number(key, value, 1 << 50)?,
            "packets" => options.packets = number(key, value, 1 << 50)?,
            other => return Err(format!("a capture has no option {other:?}")),
        }
    }
    options.filter = filter;
    Ok(options)
}
