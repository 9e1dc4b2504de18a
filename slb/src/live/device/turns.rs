//! Changes of devices, as the kernel reports them.

use std::collections::BTreeMap;

use slb_io_afxdp::{Interface, InterfaceError, LARGE_CHUNK, Link, Umem};

use super::{Card, Plan, TunName};

/// A change of a device, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::live) enum Turn {
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
    /// Records the present state of the devices.
    pub(in crate::live) fn settle(&mut self) {
        let _ = self.look();
    }

    /// Looks at the devices, and returns the changed ones, by index.
    pub(in crate::live) fn look(&mut self) -> Vec<(usize, Turn)> {
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

    /// Returns true if an interface has a program attached now.
    pub(in crate::live) fn look_for_program(&mut self, place: usize) -> bool {
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

    /// Returns true if an interface's packets are longer than the memory that it was opened with.
    pub(in crate::live) fn needs_more_memory(&mut self, place: usize) -> bool {
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

    /// Returns the devices that receive no packets, with the reason. `closed` has the reasons why present devices
    /// cannot be opened, by index.
    pub(in crate::live) fn troubles(&self, closed: &BTreeMap<usize, String>) -> Vec<String> {
        let of = |place: usize, name: &str, is_there: bool, is_up: bool| {
            if !is_there {
                return Some(format!("{name} is gone"));
            }
            if let Some(why) = closed.get(&place) {
                let why = why.strip_prefix("slb: ").unwrap_or(why);
                let why = why
                    .strip_prefix(&*format!("device {name:?}: "))
                    .unwrap_or(why);
                return Some(format!("{name} cannot be opened: {why}"));
            }
            (!is_up).then(|| format!("{name} is down"))
        };
        match self {
            Self::Tun(names) => {
                let of = |(place, name): (usize, &TunName)| {
                    let is_up = name.link.is_none_or(|link| link.is_up);
                    of(place, &name.name, name.is_there, is_up)
                };
                names.iter().enumerate().filter_map(of).collect()
            }
            Self::AfXdp(cards) => {
                let of = |(place, card): (usize, &Card)| {
                    let interface = &card.interface;
                    of(place, &interface.name, card.is_there, interface.is_up)
                };
                cards.iter().enumerate().filter_map(of).collect()
            }
        }
    }
}

impl Card {
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
