//! Which devices there are, which ports they are, and whose packets are taken from them.

use std::net::IpAddr;

use slb_control::{Config, Role};
use slb_core::PortId;
use slb_core::service::Answers;
use slb_io_afxdp::{Interface, Kind, Neighbours, Program, Queue, Take};
use slb_io_tun::{Device, Layer};

use super::next_hops::{self, Found};
use super::{port_named, rights};
use crate::Failure;

/// The queues of one worker.
pub(super) enum Queues {
    Tun(Vec<(PortId, Device)>),
    AfXdp(Vec<Queue>),
}

/// All devices: of one kind, since frames are in the memory of one.
pub(super) enum Plan {
    Tun(Vec<(PortId, TunName)>),
    AfXdp(Vec<Card>),
}

/// `tun:NAME[:QUEUES]` or `tap:NAME[:QUEUES]`.
pub(super) struct TunName {
    name: String,
    layer: Layer,
    queues: u32,
}

/// `afxdp:NAME[:QUEUES]`.
pub(super) struct Card {
    port: PortId,
    interface: Interface,
    queues: std::ops::RangeInclusive<u32>,
}

impl Plan {
    /// Reads what `--io` says.
    pub(super) fn read(config: &Config, texts: &[String]) -> Result<Self, Failure> {
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
            let expected = "expected afxdp:NAME, tun:NAME or tap:NAME, and a colon and queues behind it \
                            where it is to have several";
            let (kind, rest) = device.split_once(':').ok_or_else(|| bad(expected))?;
            let (name, queues) = match rest.split_once(':') {
                Some((name, queues)) => (name, Some(queues)),
                None => (rest, None),
            };
            match kind {
                "tun" | "tap" => {
                    let count = queues.unwrap_or("1").parse().ok();
                    let count = count.filter(|count| (1..=256).contains(count));
                    let layer = if kind == "tun" {
                        Layer::Ip
                    } else {
                        Layer::Ethernet
                    };
                    let name = TunName {
                        name: name.to_owned(),
                        layer,
                        queues: count.ok_or_else(|| bad("expected 1 to 256 queues"))?,
                    };
                    tun.push((port, name));
                }
                "afxdp" => {
                    let interface =
                        Interface::find(name).map_err(|error| bad(&error.to_string()))?;
                    let queues = queues.map_or(Some(0..=interface.queues - 1), range);
                    let queues = queues.ok_or_else(|| bad("expected queues such as 0 or 0-3"))?;
                    cards.push(Card {
                        port,
                        interface,
                        queues,
                    });
                }
                _ => return Err(bad(expected)),
            }
        }
        match (tun.is_empty(), cards.is_empty()) {
            (false, true) => Ok(Self::Tun(tun)),
            (true, _) => Ok(Self::AfXdp(cards)),
            (false, false) => Err(Failure::usage(
                "--io: expected devices of one kind, AF_XDP or TUN, got both",
            )),
        }
    }

    /// Who has which queues.
    pub(super) fn by_worker(&self, role: Role) -> Result<Vec<Queues>, Failure> {
        let mut all = match self {
            Self::Tun(names) => open_all(names)?,
            Self::AfXdp(cards) => cards.iter().flat_map(Card::all).collect(),
        };
        if role != Role::Mux {
            let together = all.into_iter().reduce(Queues::and);
            all = together.into_iter().collect();
        }
        Ok(all)
    }

    /// The XDP programs, loaded and not yet attached.
    pub(super) fn load_programs(&self, role: Role) -> Result<Vec<Program>, Failure> {
        let Self::AfXdp(cards) = self else {
            return Ok(Vec::new());
        };
        rights::expect_all()?;
        rights::raise_locked_memory();
        let load = |card: &Card| {
            let program = Program::load(card.interface.clone(), card.kind(role));
            program.map_err(Failure::failed)
        };
        cards.iter().map(load).collect()
    }

    /// Of which addresses what is taken, for each program.
    pub(super) fn taken(&self, config: &Config) -> Vec<Vec<(IpAddr, Take)>> {
        let Self::AfXdp(cards) = self else {
            return Vec::new();
        };
        let node = &config.node;
        let own = [node.ipv4.map(IpAddr::from), node.ipv6.map(IpAddr::from)];
        let vxlan = own
            .into_iter()
            .flatten()
            .map(|address| (address, Take::Vxlan));
        let of = |card: &Card| match card.kind(node.role) {
            Kind::Everything => Vec::new(),
            // Packets to the kernel's addresses and the muxes', which ask vms how they are, stay there.
            Kind::Vm => {
                let addresses = Neighbours::open().and_then(|tables| tables.own_addresses());
                let own = addresses.unwrap_or_default().into_iter();
                let kernels = own.chain(node.muxes.iter().copied());
                kernels.map(|address| (address, Take::None)).collect()
            }
            Kind::Services if node.role == Role::Host => vxlan.clone().collect(),
            Kind::Services => {
                let vips = config.frontends.iter().map(|frontend| frontend.address);
                let vips = vips.map(|address| (address, Take::All));
                let terms = config.rules.iter().map(|rule| &rule.terms);
                let mut terms = terms.chain(config.inbound_nat.iter().map(|nat| &nat.terms));
                let is_answered = terms.any(|terms| terms.answers == Answers::ThroughMux);
                vips.chain(vxlan.clone().filter(|_| is_answered)).collect()
            }
        };
        cards.iter().map(of).collect()
    }

    /// A configuration with what it does not say and the interface to the fabric and the kernel's
    /// tables know.
    pub(super) fn complete(&self, given: &Config, found: Option<&Found>) -> Config {
        let mut config = given.clone();
        if let Some(interface) = self.fabric() {
            config.node.mac.get_or_insert(interface.mac);
            config
                .node
                .mtu
                .get_or_insert(interface.mtu.min(65_535) as u16);
        }
        if let Some(found) = found {
            next_hops::complete(&mut config, found);
        }
        config
    }

    /// The interface to the fabric, where packets leave by an interface.
    pub(super) fn fabric(&self) -> Option<&Interface> {
        match self {
            Self::Tun(_) => None,
            Self::AfXdp(cards) => {
                let fabric = cards.iter().find(|card| card.port == PortId(0));
                fabric.map(|card| &card.interface)
            }
        }
    }
}

impl Card {
    fn kind(&self, role: Role) -> Kind {
        match role {
            Role::Proxy => Kind::Everything,
            Role::Host if self.port != PortId(0) => Kind::Vm,
            Role::Host | Role::Mux => Kind::Services,
        }
    }

    fn all(&self) -> impl Iterator<Item = Queues> {
        self.queues.clone().map(|queue| {
            Queues::AfXdp(vec![Queue {
                port: self.port,
                interface: self.interface.clone(),
                queue,
            }])
        })
    }
}

impl Queues {
    /// Both as those of one worker.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Tun(mut own), Self::Tun(other)) => {
                own.extend(other);
                Self::Tun(own)
            }
            (Self::AfXdp(mut own), Self::AfXdp(other)) => {
                own.extend(other);
                Self::AfXdp(own)
            }
            (own, _) => own, // a plan has one kind
        }
    }

    /// What logs and reports call them.
    pub(super) fn names(&self) -> Vec<String> {
        match self {
            Self::Tun(devices) => devices
                .iter()
                .map(|(port, _)| format!("port {}", port.0))
                .collect(),
            Self::AfXdp(queues) => {
                let name = |queue: &Queue| format!("{}:{}", queue.interface.name, queue.queue);
                queues.iter().map(name).collect()
            }
        }
    }
}

fn open_all(names: &[(PortId, TunName)]) -> Result<Vec<Queues>, Failure> {
    let mut all = Vec::new();
    for (port, of) in names {
        for _ in 0..of.queues {
            let device = Device::open(&of.name, of.layer, of.queues > 1);
            let device = device.map_err(|error| {
                Failure::failed(format!("device {:?}: {error}{}", of.name, rights::hint()))
            })?;
            all.push(Queues::Tun(vec![(*port, device)]));
        }
    }
    Ok(all)
}

/// `3` or `0-3`.
fn range(text: &str) -> Option<std::ops::RangeInclusive<u32>> {
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
