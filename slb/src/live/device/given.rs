//! The devices that `--io` names.

use std::ops::RangeInclusive;

use slb_control::{Config, Role};
use slb_core::PortId;
use slb_io_afxdp::{Interface, LARGE_CHUNK, Umem};
use slb_io_tun::Layer;
use tracing::warn;

use super::{Card, Plan, TunName};
use crate::Failure;
use crate::replay::port_named;

impl Plan {
    /// Reads the values of `--io`.
    pub(in crate::live) fn read(config: &Config, texts: &[String]) -> Result<Self, Failure> {
        let (mut tun, mut cards) = (Vec::new(), Vec::new());
        for text in texts {
            let bad = |why: &str| Failure::usage(format!("--io {text:?}: {why}"));
            let (port, device) = match text.split_once('=') {
                None => (PortId(0), text.as_str()),
                Some((name, device)) => {
                    let port = port_named(config, name);
                    (port.ok_or_else(|| bad("there is no such port"))?, device)
                }
            };
            let expected = "expected afxdp:NAME, tun:NAME or tap:NAME, with a colon and queues for several queues";
            let (kind, rest) = device.split_once(':').ok_or_else(|| bad(expected))?;
            let (name, queues) = match rest.split_once(':') {
                Some((name, queues)) => (name, Some(queues)),
                None => (rest, None),
            };
            let twice =
                || bad("is an interface that another --io names: expected one --io for each");
            match kind {
                "tun" | "tap" => {
                    if tun.iter().any(|other: &TunName| other.name == name) {
                        return Err(twice());
                    }
                    let count = queues.unwrap_or("1").parse().ok();
                    let count = count.filter(|count| (1..=256).contains(count));
                    let layer = if kind == "tun" {
                        Layer::Ip
                    } else {
                        Layer::Ethernet
                    };
                    tun.push(TunName {
                        port,
                        name: name.to_owned(),
                        layer,
                        queues: count.ok_or_else(|| bad("expected 1 to 256 queues"))?,
                        link: None,
                        is_there: true,
                    });
                }
                "afxdp" => {
                    let interface =
                        Interface::find(name).map_err(|error| bad(&error.to_string()))?;
                    // By its number, since an interface may have several names.
                    let index = interface.index;
                    if cards
                        .iter()
                        .any(|other: &Card| other.interface.index == index)
                    {
                        return Err(twice());
                    }
                    let queues = queues.map_or(Some(0..=interface.queues - 1), range);
                    let queues = queues.ok_or_else(|| bad("expected queues such as 0 or 0-3"))?;
                    cards.push(Card {
                        port,
                        leads_to_backends: port == config.backend_port(),
                        chunk: Umem::chunk_for(interface.mtu as usize).unwrap_or(LARGE_CHUNK),
                        interface,
                        queues,
                        is_there: true,
                        may_lack_queues: false,
                    });
                }
                _ => return Err(bad(expected)),
            }
        }
        let plan = match (tun.is_empty(), cards.is_empty()) {
            (false, true) => Self::Tun(tun),
            (true, _) => Self::AfXdp(cards),
            (false, false) => {
                return Err(Failure::usage(
                    "--io: expected devices of one kind, AF_XDP or TUN, got both",
                ));
            }
        };
        plan.expect_ports(config)?;
        Ok(plan)
    }

    /// Fails if a port that must have a device has none, and warns of vms without one.
    fn expect_ports(&self, config: &Config) -> Result<(), Failure> {
        let has = |port: PortId| self.ports().any(|own| own == port);
        if config.node.role == Role::Proxy {
            let ports = (0..).map(PortId).zip(&config.ports.all);
            let missing: Vec<String> = ports
                .filter(|(port, _)| !has(*port))
                .map(|(_, port)| format!("{:?}", port.name))
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            let missing = missing.join(", ");
            return Err(Failure::usage(format!(
                "--io: no device for port {missing}: expected --io PORT=DEVICE for each"
            )));
        }
        if !has(PortId(0)) {
            return Err(Failure::usage(
                "--io: no device for port 0, the fabric's: expected --io DEVICE without a port",
            ));
        }
        for vm in config.vms() {
            if let Some(port) = vm.port.filter(|port| !has(*port)) {
                warn!(
                    vm = vm.name,
                    port = port.0,
                    "no device for this vm's port: packets for it are lost (--io {}=DEVICE)",
                    vm.name
                );
            }
        }
        Ok(())
    }

    fn ports(&self) -> impl Iterator<Item = PortId> {
        let (tun, cards) = match self {
            Self::Tun(names) => (names.as_slice(), [].as_slice()),
            Self::AfXdp(cards) => ([].as_slice(), cards.as_slice()),
        };
        let tun = tun.iter().map(|name| name.port);
        tun.chain(cards.iter().map(|card| card.port))
    }
}

/// `3` or `0-3`.
fn range(text: &str) -> Option<RangeInclusive<u32>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && last < 256).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_a_number_or_a_range() {
        assert_eq!(range("3"), Some(3..=3));
        assert_eq!(range("0-3"), Some(0..=3));
        for bad in ["", "-", "3-0", "0-256", "x", "1-", "1-2-3"] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }
}
