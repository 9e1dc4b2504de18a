//! The queues of devices: which worker has which, and what opens them.

use std::io::ErrorKind;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;

use serde_json::{Value, json};
use slb_control::Role;
use slb_core::PortId;
use slb_io_afxdp::{InterfaceError, Link, Queue, bring_up};
use slb_io_tun::{Device, Layer, OpenError};
use tracing::warn;

use super::{Card, Plan, TunName};
use crate::Failure;
use crate::live::rights;

/// The queues of one worker, which it opens.
pub(in crate::live) enum Queues {
    Tun(Vec<TunQueue>),
    /// AF_XDP queues, and the length of the longest packet in bytes.
    AfXdp(Vec<Queue>, u32),
}

/// A queue of a TUN or TAP device.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::live) struct TunQueue {
    pub(in crate::live) port: PortId,
    key: TunKey,
    /// The interface index, which changes if the interface is created again.
    index: Option<u32>,
}

/// The identity of a queue from one process to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::live) struct TunKey {
    name: String,
    layer: Layer,
    has_several: bool,
    /// The index of the queue among those of the device.
    number: u32,
}

impl TunKey {
    /// Returns the key as an item of a list of devices.
    pub(in crate::live) fn to_list(&self) -> Value {
        let layer = match self.layer {
            Layer::Ip => "ip",
            Layer::Ethernet => "ethernet",
        };
        json!([self.name, layer, self.has_several, self.number])
    }

    /// Reads the key from an item of a list; `None` if the item is no key.
    pub(in crate::live) fn from_list(item: &Value) -> Option<Self> {
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

impl TunKey {
    /// Returns the reason why the device cannot be opened, and what to do.
    fn refused(&self, error: &OpenError) -> String {
        let name = &self.name;
        let kind = match error {
            OpenError::Attach(error) => Some(error.kind()),
            _ => None,
        };
        let why = match kind {
            Some(ErrorKind::ResourceBusy) => format!(
                "another process has it open: stop that process (grep -lw {name} /proc/[0-9]*/fdinfo/* names it)"
            ),
            Some(ErrorKind::InvalidInput) => {
                let layer = match self.layer {
                    Layer::Ip => "TUN",
                    Layer::Ethernet => "TAP",
                };
                let queues = match self.has_several {
                    true => "several queues (multi_queue)",
                    false => "one queue",
                };
                format!(
                    "it is of another kind: expected a {layer} device with {queues} (see ip -d link show {name}; \
                     after ip link del {name} it is made anew)"
                )
            }
            _ => format!("{error}{}", rights::hint()),
        };
        format!("device {name:?}: {why}")
    }
}

impl TunQueue {
    pub(in crate::live) fn key(&self) -> TunKey {
        self.key.clone()
    }

    pub(in crate::live) fn open(&mut self) -> Result<Device, Failure> {
        let key = &self.key;
        let is_new = matches!(Link::find(&key.name), Err(InterfaceError::Unknown(_)));
        let device = Device::open(&key.name, key.layer, key.has_several);
        let device = device.map_err(|error| Failure::failed(key.refused(&error)))?;
        if is_new && let Err(error) = bring_up(&key.name) {
            warn!("device {:?} stays down: {error}", key.name);
        }
        // It may have been made just now.
        self.index = Link::find(&key.name).ok().map(|link| link.index);
        Ok(device)
    }

    /// Takes over a queue that another process opened, if the file is one of the device.
    pub(in crate::live) fn resume(&mut self, file: OwnedFd) -> Option<Device> {
        let device = Device::from_file(file, &self.key.name, self.key.layer);
        let device = device.inspect_err(|error| warn!("device {:?}: {error}", self.key.name));
        self.index = Link::find(&self.key.name).ok().map(|link| link.index);
        device.ok()
    }
}

/// A queue of a device: the device's index in the plan, and the queue.
pub(in crate::live) type Slot = (usize, u32);

impl Plan {
    /// Returns the queues of each of `workers` workers. By default a mux has one worker for each
    /// queue, and other roles have one for all. Queues with equal numbers go to workers in turn,
    /// from device to device, so that devices with one queue are spread, too. Workers of a host
    /// agent or a proxy may have none.
    ///
    /// # Errors
    /// A mux has fewer queues than workers.
    pub(in crate::live) fn by_worker(
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

    /// Returns the ports of a worker's queues.
    pub(in crate::live) fn ports_of(&self, slots: &[Slot]) -> Vec<PortId> {
        let port = |&(place, _): &Slot| match self {
            Self::Tun(names) => names[place].port,
            Self::AfXdp(cards) => cards[place].port,
        };
        slots.iter().map(port).collect()
    }

    /// Returns the length in bytes of the longest packet that an AF_XDP interface carries. A
    /// worker's memory has room for it, since packets cross between workers.
    fn longest(&self) -> u32 {
        let Self::AfXdp(cards) = self else { return 0 };
        let mtu = cards.iter().map(|card| card.interface.mtu).max();
        mtu.unwrap_or(1500)
    }

    /// Returns the queues that a worker opens: those of devices that are present.
    pub(in crate::live) fn queues(&self, slots: &[Slot]) -> Queues {
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
    pub(in crate::live) fn names(&self, slots: &[Slot]) -> Vec<String> {
        let name = |&(place, queue): &Slot| match self {
            Self::Tun(names) => format!("port {}", names[place].port.0),
            Self::AfXdp(cards) => format!("{}:{queue}", cards[place].interface.name),
        };
        match slots {
            [] => vec!["no queue".to_owned()],
            _ => slots.iter().map(name).collect(),
        }
    }
}
