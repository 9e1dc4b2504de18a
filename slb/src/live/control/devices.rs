//! Changes of devices: removed devices are closed, and new ones opened.

use std::collections::BTreeSet;

use slb_control::Role;
use slb_io_afxdp::Unserved;
use tracing::{error, info, warn};

use super::{Control, shares};
use crate::Failure;
use crate::live::device::Turn;
use crate::live::{start_program, sysctl};

impl Control<'_> {
    /// Follows the devices: closes removed ones, and opens those that are back.
    pub(super) fn follow_devices(&mut self) {
        let mut is_another = false;
        for (place, turn) in self.plan.look() {
            is_another = true;
            let device = self.plan.name(place).to_owned();
            match turn {
                Turn::Gone => error!(
                    device,
                    "interface removed: no packets are received until an interface of this name is back"
                ),
                Turn::Back => info!(device, "back: reopening it"),
                Turn::Down => {
                    error!(
                        device,
                        "interface down or without carrier: no packets are received"
                    );
                }
                Turn::Up => info!(device, "up again"),
                Turn::Changed => info!(device, "MTU or MAC address changed"),
                Turn::Queues => info!(device, "queues changed: reopening it"),
            }
            match turn {
                Turn::Gone | Turn::Back => drop(self.to_reopen.insert(place)),
                Turn::Queues => {
                    self.plan.warn_of_queues();
                    self.to_reopen.insert(place);
                }
                Turn::Changed => {
                    // Longer packets may need larger chunks of memory, and a proxy's I/O depends on
                    // its MAC addresses.
                    let is_proxy = self.config.node.role == Role::Proxy;
                    if self.plan.needs_more_memory(place) || is_proxy {
                        self.to_reopen.insert(place);
                        // Packets also cross to workers without a queue of this interface.
                        if shares(self.config.node.role, self.workers.len()) > 1 {
                            self.to_reopen
                                .extend(self.slots.iter().flatten().map(|slot| slot.0));
                        }
                    }
                }
                Turn::Down | Turn::Up => {}
            }
        }
        is_another |= !self.to_reopen.is_empty();
        self.reopen();
        self.attach_again();
        self.next_hops.set_fabric(&self.plan);
        self.work.wants_compile |= is_another;
    }

    /// Reopens the devices that are marked, and closes those that are gone.
    fn reopen(&mut self) {
        let places = std::mem::take(&mut self.to_reopen);
        if places.is_empty() {
            return;
        }
        self.closed.retain(|place, _| !places.contains(place));
        let mut touched = BTreeSet::new();
        for (worker, slots) in self.workers.iter_mut().zip(&self.slots) {
            if !slots.iter().any(|(place, _)| places.contains(place)) {
                continue;
            }
            touched.extend(slots.iter().map(|&(place, _)| place));
            let device = worker.names.join(", ");
            let subject = format!("open {device}");
            match worker.reopen(self.plan.queues(slots)) {
                Ok(()) => {
                    if let Some(lasted) = self.lasting.end(&subject) {
                        let seconds = lasted.as_secs_f64();
                        info!(device, seconds, "opened again");
                    }
                }
                Err(failure) => {
                    if self.lasting.is_due(&subject) {
                        error!(device, "cannot be opened, will retry: {failure}");
                    }
                    self.to_reopen.extend(&places);
                    let own = slots.iter().map(|&(place, _)| place);
                    let own = own.filter(|place| places.contains(place));
                    self.closed
                        .extend(own.map(|place| (place, failure.to_string())));
                }
            }
        }
        // What cannot be set is reported with the settings that are followed.
        let _ = sysctl::prepare(&self.plan, &self.config);
        for place in touched {
            // A program belongs to one interface; programs of interfaces with only new sockets stay
            // attached.
            if places.contains(&place)
                && let Some(program) = self.programs.get_mut(place)
            {
                *program = None;
            }
            self.start_or_retry(place);
        }
    }

    /// Has the packets of an interface come to the workers' sockets, or tries that again later.
    fn start_or_retry(&mut self, place: usize) {
        let device = self.plan.name(place).to_owned();
        let subject = format!("receive from {device}");
        match self.start_again(place) {
            Ok(()) => drop(self.lasting.end(&subject)),
            Err(failure) => {
                if self.lasting.is_due(&subject) {
                    error!(device, "no packets are received, will retry: {failure}");
                }
                self.to_reopen.insert(place);
                self.closed.insert(place, failure.to_string());
            }
        }
    }

    /// Directs the packets of a present interface to the workers' sockets.
    fn start_again(&mut self, place: usize) -> Result<(), Failure> {
        let role = self.config.node.role;
        let (Some(card), Some(program)) = (self.plan.card(place), self.programs.get_mut(place))
        else {
            return Ok(());
        };
        if let Some(program) = program {
            let name = program.interface().name.clone();
            for worker in &self.workers {
                for (queue, socket) in worker.sockets_of(&name) {
                    let set = program.set_socket(queue, socket);
                    set.map_err(Failure::failed)?;
                }
            }
            return Ok(());
        }
        let unserved = self
            .pins
            .as_ref()
            .map_or(Unserved::Pass, |_| Unserved::Drop);
        let mut new = card.load_program(role, unserved)?;
        let none = Vec::new();
        let taken = self.taken.get(place).unwrap_or(&none);
        let pins = self.pins.as_ref();
        start_program(&mut new, &self.workers, taken, pins).map_err(Failure::failed)?;
        *program = Some(new);
        info!(device = self.plan.name(place), "receiving packets");
        Ok(())
    }

    /// Attaches programs again that were detached from their interfaces by others.
    fn attach_again(&mut self) {
        for place in 0..self.programs.len() {
            let is_taken = self
                .plan
                .card(place)
                .is_some_and(|card| card.interface.program.is_none());
            if !is_taken || self.programs[place].is_none() {
                continue;
            }
            let device = self.plan.name(place).to_owned();
            // The program may have been attached since the check.
            if self.plan.look_for_program(place) {
                continue;
            }
            warn!(device, "the XDP program was detached: attaching it again");
            self.programs[place] = None;
            self.start_or_retry(place);
        }
    }
}
