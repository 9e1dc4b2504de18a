//! Shares and availability of pools by zone.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use slb_control::Config;

use super::Share;

/// The backends of a pool in one zone.
pub(crate) struct ZoneLine {
    pub(crate) pool: String,
    /// Name of the zone; `None`: of the backends without one.
    pub(crate) zone: Option<String>,
    pub(crate) backends: usize,
    /// Backends that take new flows.
    pub(crate) serving: usize,
    /// Share of the pool's new flows, by weight.
    pub(crate) expected: f64,
    flows: u64,
    packets: u64,
}

/// The zones of pools whose backends have any.
pub(super) fn lines(config: &Config, shares: &[Share]) -> Vec<ZoneLine> {
    let mut counted: BTreeMap<(&str, Option<&str>), (u64, u64)> = BTreeMap::new();
    for share in shares {
        let key = (share.pool.as_str(), share.zone.as_deref());
        let (flows, packets) = counted.entry(key).or_default();
        *flows += share.flows;
        *packets += share.forwarded.packets;
    }
    let mut lines = Vec::new();
    for (place, pool) in config.pools.iter().enumerate() {
        for own in config.zone_shares(place) {
            let counted = counted.get(&(pool.name.as_str(), own.zone));
            let (flows, packets) = counted.copied().unwrap_or_default();
            lines.push(ZoneLine {
                pool: pool.name.clone(),
                zone: own.zone.map(str::to_owned),
                backends: own.backends,
                serving: own.serving,
                expected: own.share,
                flows,
                packets,
            });
        }
    }
    lines
}

impl ZoneLine {
    pub(super) fn json(&self) -> Value {
        json!({
            "pool": self.pool,
            "zone": self.zone,
            "backends": self.backends,
            "serving": self.serving,
            "available": self.serving > 0,
            "share_by_weight": self.expected,
            "flows": self.flows,
            "packets": self.packets,
        })
    }
}
