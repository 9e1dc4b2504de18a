//! Devices: which there are, which ports they are, and whose packets are taken from them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use serde_json::{Value, json};
use slb_control::{Config, Role};
use slb_core::PortId;
use slb_core::spec::Answers;
use slb_io_afxdp::{
    Interface, InterfaceError, Kind, LARGE_CHUNK, Link, MissingChecksums, Neighbours, Program,
    Queue, Take, Umem, Unserved, bring_up,
};
use slb_io_tun::{Device, Layer};
use tracing::{info, warn};

use super::next_hops::{self, Found};
use super::rights;
use crate::Failure;
use crate::replay::port_named;

/// The queues of one worker, which it opens.
pub(super) enum Queues {
    Tun(Vec<TunQueue>),
    /// With the length of the longest packet, in bytes.
    AfXdp(Vec<Queue>, u32),
}

/// A queue of a TUN or TAP device.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct TunQueue {
    pub(super) port: PortId,
    key: TunKey,
    /// The number of the interface: one that is made again has another.
    index: Option<u32>,
}

/// The identity of a queue from one process to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TunKey {
    name: String,
    layer: Layer,
    has_several: bool,
    /// The number of the queue among those of the device.
    number: u32,
}

impl TunKey {
    /// The key in a list of devices.
    pub(super) fn to_list(&self) -> Value {
        let layer = match self.layer {
            Layer::Ip => "ip",
            Layer::Ethernet => "ethernet",
        };
        json!([self.name, layer, self.has_several, self.number])
    }

    /// The key of a list's item; `None`: the item is no key.
    pub(super) fn from_list(item: &Value) -> Option<Self> {
        let [name, layer, has_several, number] = item.as_array()?.as_slice() else {
            return None;
        };
        Some(Self {
            name: name.as_str()?.to_owned(),
            layer: match layer.as_str()? {
                "ip" => Layer::Ip,
                "ethernet" => Layer::Ethernet,
                _ => return None,
            },
            has_several: has_several.as_bool()?,
            number: u32::try_from(number.as_u64()?).ok()?,
        })
    }
}

impl TunQueue {
    pub(super) fn key(&self) -> TunKey {
        self.key.clone()
    }

    pub(super) fn open(&mut self) -> Result<Device, Failure> {
        let key = &self.key;
        let is_new = matches!(Link::find(&key.name), Err(InterfaceError::Unknown(_)));
        let device = Device::open(&key.name, key.layer, key.has_several);
        let device = device.map_err(|error| {
            Failure::failed(format!("device {:?}: {error}{}", key.name, rights::hint()))
        })?;
        if is_new && let Err(error) = bring_up(&key.name) {
            warn!("device {:?} stays down: {error}", key.name);
        }
        // It may have been made just now.
        self.index = Link::find(&key.name).ok().map(|link| link.index);
        Ok(device)
    }

    /// Goes on with the queue that another process opened, if the file is one of the device.
    pub(super) fn resume(&mut self, file: OwnedFd) -> Option<Device> {
        let device = Device::from_file(file, &self.key.name, self.key.layer);
        let device = device.inspect_err(|error| warn!("device {:?}: {error}", self.key.name));
        self.index = Link::find(&self.key.name).ok().map(|link| link.index);
        device.ok()
    }
}

/// All devices: of one kind, since frames are in the memory of one.
pub(super) enum Plan {
    Tun(Vec<TunName>),
    AfXdp(Vec<Card>),
}

/// `tun:NAME[:QUEUES]` or `tap:NAME[:QUEUES]`.
pub(super) struct TunName {
    port: PortId,
    name: String,
    layer: Layer,
    queues: u32,
    /// As it was when it was last looked at.
    link: Option<Link>,
    is_there: bool,
}

/// `afxdp:NAME[:QUEUES]`.
pub(super) struct Card {
    port: PortId,
    /// True if packets to backends leave by it: a mux's or host's interface to the fabric, or that
    /// of a proxy's backend port.
    leads_to_backends: bool,
    /// As it was when it was last there.
    pub(super) interface: Interface,
    queues: RangeInclusive<u32>,
    is_there: bool,
    /// True if it was gone, or its queues changed: it may have fewer queues than before.
    may_lack_queues: bool,
    /// Bytes of a chunk, as its packets needed when the device was last opened.
    chunk: usize,
}

/// A queue of a device, by the device's place in the plan.
pub(super) type Slot = (usize, u32);

/// A change of a device, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The interface was deleted.
    Gone,
    /// A new interface has the device's name.
    Back,
    /// The interface is down, or has no carrier.
    Down,
    /// The interface is up.
    Up,
    /// The MTU or the MAC address changed.
    Changed,
    /// The number of queues changed.
    Queues,
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

    /// Fails where a port has no device that packets cannot do without, and says which vms have none.
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

    /// The queues of each of so many workers. Without a number a mux has one worker for each queue, other roles
    /// one for all. Queues of one number go to workers in turn, from device to device, so that devices of one
    /// queue are spread, too. Workers of a host agent or a proxy may have none.
    ///
    /// # Errors
    /// A mux has fewer queues than workers.
    pub(super) fn by_worker(
        &self,
        role: Role,
        workers: Option<NonZeroU16>,
    ) -> Result<Vec<Vec<Slot>>, Failure> {
        let all: Vec<Slot> = match self {
            Self::Tun(names) => {
                let of = |(place, name): (usize, &TunName)| {
                    (0..name.queues).map(move |queue| (place, queue))
                };
                names.iter().enumerate().flat_map(of).collect()
            }
            Self::AfXdp(cards) => {
                let of = |(place, card): (usize, &Card)| {
                    card.queues.clone().map(move |queue| (place, queue))
                };
                cards.iter().enumerate().flat_map(of).collect()
            }
        };
        let workers = workers.map(|workers| usize::from(workers.get()));
        let count = match role {
            Role::Mux => workers.unwrap_or(all.len()),
            Role::Host | Role::Proxy => workers.unwrap_or(1),
        };
        if role == Role::Mux && count > all.len() {
            return Err(Failure::usage(format!(
                "--workers {count}: a mux needs a queue for each worker, and its devices have {} queues: expected at most as many workers",
                all.len()
            )));
        }
        let mut by_worker = vec![Vec::new(); count];
        for (index, slot) in all.into_iter().enumerate() {
            let turn = match role {
                Role::Mux => index,
                Role::Host | Role::Proxy => slot.0 + slot.1 as usize,
            };
            by_worker[turn % count].push(slot);
        }
        Ok(by_worker)
    }

    /// The ports of a worker's queues.
    pub(super) fn ports_of(&self, slots: &[Slot]) -> Vec<PortId> {
        let port = |&(place, _): &Slot| match self {
            Self::Tun(names) => names[place].port,
            Self::AfXdp(cards) => cards[place].port,
        };
        slots.iter().map(port).collect()
    }

    /// The longest packet that an interface of AF_XDP carries, in bytes: a worker's memory has room for it, since
    /// packets cross between workers.
    fn longest(&self) -> u32 {
        let Self::AfXdp(cards) = self else { return 0 };
        let mtu = cards.iter().map(|card| card.interface.mtu).max();
        mtu.unwrap_or(1500)
    }

    /// Returns the queues that a worker opens: those of devices that are present.
    pub(super) fn queues(&self, slots: &[Slot]) -> Queues {
        match self {
            Self::Tun(names) => {
                let queue = |&(place, number): &Slot| {
                    let name = names.get(place).filter(|name| name.is_there)?;
                    Some(TunQueue {
                        port: name.port,
                        key: TunKey {
                            name: name.name.clone(),
                            layer: name.layer,
                            has_several: name.queues > 1,
                            number,
                        },
                        index: name.link.map(|link| link.index),
                    })
                };
                Queues::Tun(slots.iter().filter_map(queue).collect())
            }
            Self::AfXdp(cards) => {
                let queue = |&(place, queue): &Slot| {
                    let card = cards.get(place).filter(|card| card.is_there)?;
                    (queue < card.interface.queues || !card.may_lack_queues).then(|| Queue {
                        port: card.port,
                        interface: card.interface.clone(),
                        queue,
                    })
                };
                Queues::AfXdp(slots.iter().filter_map(queue).collect(), self.longest())
            }
        }
    }

    /// Returns the names of queues in logs and reports.
    pub(super) fn names(&self, slots: &[Slot]) -> Vec<String> {
        let name = |&(place, queue): &Slot| match self {
            Self::Tun(names) => format!("port {}", names[place].port.0),
            Self::AfXdp(cards) => format!("{}:{queue}", cards[place].interface.name),
        };
        match slots {
            [] => vec!["no queue".to_owned()],
            _ => slots.iter().map(name).collect(),
        }
    }

    /// The XDP programs, loaded and not yet attached; one for each interface.
    pub(super) fn load_programs(
        &self,
        role: Role,
        unserved: Unserved,
    ) -> Result<Vec<Option<Program>>, Failure> {
        let Self::AfXdp(cards) = self else {
            return Ok(Vec::new());
        };
        rights::expect_all()?;
        rights::raise_locked_memory();
        let load = |card: &Card| card.load_program(role, unserved).map(Some);
        cards.iter().map(load).collect()
    }

    /// Fails where an interface carries packets that no chunk of memory has room for.
    pub(super) fn expect_short_packets(&self) -> Result<(), Failure> {
        let Self::AfXdp(cards) = self else {
            return Ok(());
        };
        let long = cards.iter().map(|card| &card.interface);
        match long
            .into_iter()
            .find(|interface| interface.mtu > LONGEST_PACKET)
        {
            None => Ok(()),
            Some(interface) => Err(Failure::failed(format!(
                "{}: an MTU of {} exceeds AF_XDP's packet memory: expected at most {LONGEST_PACKET} (ip link set {0} mtu {LONGEST_PACKET})",
                interface.name, interface.mtu
            ))),
        }
    }

    /// Warns of queues that have no worker: what comes there is the kernel's.
    pub(super) fn warn_of_queues(&self) {
        let Self::AfXdp(cards) = self else { return };
        for card in cards.iter().filter(|card| card.is_there) {
            let left_out = (0..card.interface.queues).filter(|queue| !card.queues.contains(queue));
            let left_out: Vec<String> = left_out.map(|queue| queue.to_string()).collect();
            if !left_out.is_empty() {
                warn!(
                    interface = card.interface.name,
                    queues = left_out.join(","),
                    "these queues have no worker: their packets go to the kernel and are lost (name them with --io, or reduce the queues: ethtool -L)"
                );
            }
        }
    }

    /// Takes note of the devices as they are now.
    pub(super) fn settle(&mut self) {
        let _ = self.look();
    }

    /// Looks at the devices; gives which ones are not as they were, by their place.
    pub(super) fn look(&mut self) -> Vec<(usize, Turn)> {
        match self {
            Self::Tun(names) => {
                let looked = names.iter_mut().enumerate();
                let turned = looked.filter_map(|(place, name)| Some((place, name.look()?)));
                turned.collect()
            }
            Self::AfXdp(cards) => {
                let looked = cards.iter_mut().enumerate();
                let turned = looked.filter_map(|(place, card)| Some((place, card.look()?)));
                turned.collect()
            }
        }
    }

    /// The interface's name of a device, by its place.
    pub(super) fn name(&self, place: usize) -> &str {
        match self {
            Self::Tun(names) => &names[place].name,
            Self::AfXdp(cards) => &cards[place].interface.name,
        }
    }

    /// An interface that is there, by its place.
    pub(super) fn card(&self, place: usize) -> Option<&Card> {
        match self {
            Self::Tun(_) => None,
            Self::AfXdp(cards) => cards.get(place).filter(|card| card.is_there),
        }
    }

    /// Returns true if an interface has a program attached now.
    pub(super) fn look_for_program(&mut self, place: usize) -> bool {
        let Self::AfXdp(cards) = self else {
            return false;
        };
        let Some(card) = cards.get_mut(place) else {
            return false;
        };
        if let Ok(found) = Interface::find(&card.interface.name) {
            card.interface.program = found.program;
        }
        card.interface.program.is_some()
    }

    /// Returns true if the packets of an interface are longer than the memory that it was opened
    /// with has room for.
    pub(super) fn needs_more_memory(&mut self, place: usize) -> bool {
        let Self::AfXdp(cards) = self else {
            return false;
        };
        let Some(card) = cards.get_mut(place) else {
            return false;
        };
        let chunk = Umem::chunk_for(card.interface.mtu as usize).unwrap_or(LARGE_CHUNK);
        let needs = chunk > card.chunk;
        card.chunk = chunk.max(card.chunk);
        needs
    }

    /// Returns true if all devices are TAP devices, whose frames the kernel bridges.
    pub(super) fn is_bridged(&self) -> bool {
        let Self::Tun(names) = self else {
            return false;
        };
        names.iter().all(|name| name.layer == Layer::Ethernet)
    }

    /// The TUN devices that are there: the kernel routes to and from them.
    pub(super) fn routed_devices(&self) -> Vec<&str> {
        let Self::Tun(names) = self else {
            return Vec::new();
        };
        let routed = names
            .iter()
            .filter(|name| name.layer == Layer::Ip && name.is_there);
        routed.map(|name| name.name.as_str()).collect()
    }

    /// Warns of interfaces that may deliver packets without their checksums. `is_native` has for
    /// each interface true if XDP runs in its driver.
    pub(super) fn warn_of_checksums(&self, is_native: &[bool]) {
        let Self::AfXdp(cards) = self else { return };
        for (card, &is_native) in cards.iter().zip(is_native) {
            let name = &card.interface.name;
            match MissingChecksums::of(name) {
                Ok(Some(MissingChecksums::Peer(peer))) => warn!(
                    "{name}: its peer {peer} has checksum offload on, so packets arrive without checksums and their receivers \
                     drop them (ethtool -K {peer} tx off)"
                ),
                Ok(Some(MissingChecksums::Elsewhere)) => info!(
                    "{name}: its peer is in another namespace, where checksum offload has to be off (ethtool -K PEER tx \
                     off)"
                ),
                Ok(Some(MissingChecksums::Virtio)) if !is_native => warn!(
                    "{name}: virtio passes packets from its host without checksums unless XDP runs in its driver, and their receivers drop them (ethtool -K {name} rx off)"
                ),
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// The TUN devices to the fabric that are there: the kernel routes what comes from hosts and muxes into them.
    pub(super) fn routed_fabric(&self) -> Vec<&str> {
        let Self::Tun(names) = self else {
            return Vec::new();
        };
        let fabric = names
            .iter()
            .filter(|name| name.port == PortId(0) && name.layer == Layer::Ip && name.is_there);
        fabric.map(|name| name.name.as_str()).collect()
    }

    /// The devices that no packets come in by, and why not.
    pub(super) fn troubles(&self) -> Vec<String> {
        let of = |name: &str, is_there: bool, is_up: bool| match (is_there, is_up) {
            (false, _) => Some(format!("{name} is gone")),
            (true, false) => Some(format!("{name} is down")),
            (true, true) => None,
        };
        match self {
            Self::Tun(names) => {
                let of = |name: &TunName| {
                    let is_up = name.link.is_none_or(|link| link.is_up);
                    of(&name.name, name.is_there, is_up)
                };
                names.iter().filter_map(of).collect()
            }
            Self::AfXdp(cards) => {
                let of =
                    |card: &Card| of(&card.interface.name, card.is_there, card.interface.is_up);
                cards.iter().filter_map(of).collect()
            }
        }
    }

    /// Returns the addresses that each XDP program takes, and which of their packets.
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
        let kernels = own_addresses().unwrap_or_default();
        let stay = |address: IpAddr| (address, Take::None);
        let of = |card: &Card| match card.kind(node.role) {
            Kind::Everything => kernels.iter().copied().map(stay).collect(),
            // Packets to the kernel's addresses and the muxes', which ask vms how they are, stay there.
            Kind::Vm => {
                let muxes = node.muxes.iter();
                let stays = kernels.iter().chain(muxes).copied().map(stay);
                // But vms answer both in the name of a VIP where they call one (`--probe-vips`).
                let callers = node.muxes.iter().copied().chain(own.into_iter().flatten());
                let answers = callers.map(|address| (address, Take::Answers));
                let all = stays.chain(answers);
                all.chain(neighbours_at(config, card.port)).collect()
            }
            Kind::Services if node.role == Role::Host => vxlan.clone().collect(),
            Kind::Services => {
                let public = config.frontends.iter();
                let public = public.filter(|frontend| frontend.network.is_none());
                let vips = public.map(|frontend| frontend.address);
                let vips = vips.filter(|vip| !kernels.contains(vip));
                let vips = vips.map(|address| (address, Take::All));
                let terms = config.rules.iter().map(|rule| &rule.terms);
                let mut terms = terms.chain(config.inbound_nat.iter().map(|nat| &nat.terms));
                let is_answered = terms.any(|terms| terms.answers == Answers::ThroughMux);
                vips.chain(vxlan.clone().filter(|_| is_answered)).collect()
            }
        };
        cards.iter().map(of).collect()
    }

    /// The addresses that VIPs are called from, where the kernel is not to choose them. The prober of a host agent has
    /// sources of its own, which the kernel does not have; the agent calls VIPs from its underlay address, if that is
    /// the kernel's, since it takes vms' answers for that.
    pub(super) fn callers(&self, config: &Config) -> Vec<IpAddr> {
        let node = &config.node;
        if node.role != Role::Host {
            return node.probe_sources.clone();
        }
        let own = [node.ipv4.map(IpAddr::from), node.ipv6.map(IpAddr::from)];
        let kernels = own_addresses().unwrap_or_default();
        let own = own.into_iter().flatten();
        own.filter(|address| kernels.contains(address)).collect()
    }

    /// A configuration with what it does not say and the interface to the fabric and the kernel's
    /// tables know.
    pub(super) fn complete(&self, given: &Config, found: Option<&Found>) -> Config {
        let mut config = given.clone();
        if let (Some(interface), Self::AfXdp(cards)) = (self.fabric(), self) {
            config.node.mac.get_or_insert(interface.mac);
            // What is longer than an interface carries would be lost in its driver.
            let is_proxy = config.node.role == Role::Proxy;
            let left_by = cards
                .iter()
                .filter(|card| is_proxy || card.leads_to_backends);
            let mtu = left_by.map(|card| card.interface.mtu).min();
            let most = mtu.unwrap_or(LONGEST_PACKET).min(LONGEST_PACKET) as u16;
            let mtu = config.node.mtu.get_or_insert(most);
            *mtu = most.min(*mtu);
        }
        if let Some(found) = found {
            next_hops::complete(&mut config, found);
        }
        config
    }

    /// The interface to the fabric, or to a proxy's backends, where packets leave by an interface.
    pub(super) fn fabric(&self) -> Option<&Interface> {
        match self {
            Self::Tun(_) => None,
            Self::AfXdp(cards) => {
                let fabric = cards.iter().find(|card| card.leads_to_backends);
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

    /// Loads the XDP program of the interface, which is not attached yet.
    pub(super) fn load_program(&self, role: Role, unserved: Unserved) -> Result<Program, Failure> {
        let program = Program::load_with(self.interface.clone(), self.kind(role), unserved);
        program.map_err(Failure::failed)
    }

    fn look(&mut self) -> Option<Turn> {
        let found = match Interface::find(&self.interface.name) {
            Ok(found) => found,
            // That the kernel cannot be asked says nothing about the interface.
            Err(InterfaceError::Netlink(_)) => return None,
            Err(_) => {
                let was_there = std::mem::replace(&mut self.is_there, false);
                return was_there.then_some(Turn::Gone);
            }
        };
        let old = std::mem::replace(&mut self.interface, found);
        let new = &self.interface;
        let is_another = old.index != new.index;
        if !std::mem::replace(&mut self.is_there, true) || is_another {
            self.may_lack_queues = true;
            return Some(Turn::Back);
        }
        match (old.is_up, new.is_up) {
            (true, false) => Some(Turn::Down),
            (false, true) => Some(Turn::Up),
            _ => {
                if old.queues != new.queues {
                    self.may_lack_queues = true;
                    return Some(Turn::Queues);
                }
                let of = |interface: &Interface| (interface.mtu, interface.mac);
                (of(&old) != of(new)).then_some(Turn::Changed)
            }
        }
    }
}

impl TunName {
    fn look(&mut self) -> Option<Turn> {
        let found = match Link::find(&self.name) {
            Ok(found) => found,
            Err(InterfaceError::Netlink(_)) => return None,
            Err(_) => {
                let was_there = std::mem::replace(&mut self.is_there, false);
                return was_there.then_some(Turn::Gone);
            }
        };
        let old = self.link.replace(found);
        let was_there = std::mem::replace(&mut self.is_there, true);
        let old = old?;
        if !was_there || old.index != found.index {
            return Some(Turn::Back);
        }
        match (old.is_up, found.is_up) {
            (true, false) => Some(Turn::Down),
            (false, true) => Some(Turn::Up),
            _ => (old.mtu != found.mtu).then_some(Turn::Changed),
        }
    }
}

/// The longest IP packet that has room in the largest chunk of AF_XDP's memory, in bytes.
pub(super) const LONGEST_PACKET: u32 = 3818;

/// Addresses that the vm at a port may ask for, since the host agent answers: those of its network.
fn neighbours_at(config: &Config, port: PortId) -> impl Iterator<Item = (IpAddr, Take)> + '_ {
    // The program's map has room for the kernel's besides.
    const MOST: usize = 60_000;
    let mut vms = config.vms().into_iter();
    let vm = vms.find(|vm| vm.port == Some(port));
    let network = vm.and_then(|vm| config.network_of(vm.vni));
    let addresses = network.into_iter().flat_map(|of| config.addresses_of(of));
    let addresses = addresses.take(MOST);
    addresses.map(|address| (address, Take::Neighbour))
}

/// The addresses of this machine, which stay the kernel's in every role; `None` if the kernel does not
/// tell them.
pub(super) fn own_addresses() -> Option<BTreeSet<IpAddr>> {
    let addresses = Neighbours::open().and_then(|tables| tables.own_addresses());
    Some(addresses.ok()?.into_iter().collect())
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
    fn the_longest_packet_fits_the_largest_chunk() {
        let longest = LONGEST_PACKET as usize;
        assert_eq!(Umem::chunk_for(longest), Some(LARGE_CHUNK));
        assert_eq!(Umem::chunk_for(longest + 1), None);
    }

    #[test]
    fn queues_are_a_number_or_a_range() {
        assert_eq!(range("3"), Some(3..=3));
        assert_eq!(range("0-3"), Some(0..=3));
        for bad in ["", "-", "3-0", "0-256", "x", "1-", "1-2-3"] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }
}
