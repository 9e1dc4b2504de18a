//! The device by which packets that came by AF_XDP go on to the kernel.
//!
//! The program makes it, and keeps it: one that is deleted is made again, and the workers write to the new one.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock};

use slb_control::Role;
use slb_io_afxdp::{InterfaceError, Link, bring_up};
use slb_io_tun::{Device, Layer};
use tracing::{error, info, warn};

use super::device::Plan;
use super::sysctl;
use crate::Failure;
use crate::cli::LiveOptions;

/// The device as workers have it: another one takes its place where it is made again.
#[derive(Debug)]
pub(super) struct Passing(RwLock<Arc<Device>>);

impl Passing {
    /// Writes a frame; returns an error where the device does not take it.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.device().send(frame)
    }

    fn device(&self) -> Arc<Device> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, device: Device) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(device);
    }
}

pub(super) struct Pass {
    name: String,
    role: Role,
    device: Arc<Passing>,
    state: State,
}

/// The device, as it was when it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The device is up, and has this index.
    Up(u32),
    /// The device was taken down.
    Down(u32),
    /// The device was deleted, and is not made again yet. `is_said`: the reason was logged.
    Gone { is_said: bool },
}

impl Pass {
    /// Opens the device. A host agent and a proxy have one unless they are told otherwise: a host agent's vms also talk
    /// to their neighbours. `left` is that of an earlier process.
    pub(super) fn open(
        options: &LiveOptions,
        role: Role,
        plan: &Plan,
        left: Option<(String, OwnedFd)>,
    ) -> Result<Option<Self>, Failure> {
        let usual = (role != Role::Mux).then(|| "slb-pass".to_owned());
        let name = match (&options.pass, plan) {
            (Some(name), Plan::AfXdp(_)) => Some(name.clone()),
            (None, Plan::AfXdp(_)) => usual,
            (_, Plan::Tun(_)) => None,
        };
        let Some(name) = name.filter(|name| name != "none") else {
            return Ok(None);
        };
        // An earlier process has prepared the one that it leaves open.
        if let Some((_, file)) = left.filter(|(left, _)| *left == name)
            && let Ok(device) = Device::from_file(file, &name, Layer::Ip)
            && let Ok(link) = Link::find(&name)
        {
            return Ok(Some(Self::new(name, role, device, link)));
        }
        match open(&name, role) {
            // One that nobody routes through serves all the same.
            Err(failure) if role == Role::Proxy && options.pass.is_none() => {
                warn!(
                    "packets that are to be routed between the proxy's interfaces are lost: {failure}"
                );
                Ok(None)
            }
            Err(failure) => Err(failure),
            Ok((device, link)) => Ok(Some(Self::new(name, role, device, link))),
        }
    }

    fn new(name: String, role: Role, device: Device, link: Link) -> Self {
        Self {
            name,
            role,
            device: Arc::new(Passing(RwLock::new(Arc::new(device)))),
            state: state_of(link),
        }
    }

    /// Returns the device for workers.
    pub(super) fn device(&self) -> Arc<Passing> {
        Arc::clone(&self.device)
    }

    /// Returns the name of the device whose packets the kernel routes, if they are routed.
    pub(super) fn routed(&self) -> Option<&str> {
        let is_there = !matches!(self.state, State::Gone { .. });
        (is_there && self.role == Role::Proxy).then_some(&*self.name)
    }

    /// Returns the device for a process that takes over, with its name.
    pub(super) fn file(&self) -> Option<(String, OwnedFd)> {
        let file = self.device.device().as_fd().try_clone_to_owned().ok()?;
        Some((self.name.clone(), file))
    }

    /// Returns the reason why packets for the kernel are lost, if they are.
    pub(super) fn trouble(&self) -> Option<String> {
        let name = &self.name;
        match self.state {
            State::Up(_) => None,
            State::Down(_) => Some(format!(
                "{name} is down, so packets for the kernel are lost"
            )),
            State::Gone { .. } => Some(format!(
                "{name} was removed, so packets for the kernel are lost"
            )),
        }
    }

    /// Looks at the device, and makes it again where it is gone. Returns true if [`trouble`](Self::trouble) may have
    /// changed.
    pub(super) fn look(&mut self) -> bool {
        let found = match Link::find(&self.name) {
            Ok(link) => Some(link),
            // That the kernel cannot be asked says nothing about the device.
            Err(InterfaceError::Netlink(_)) => return false,
            Err(_) => None,
        };
        let name = &self.name;
        let state = match (self.state, found) {
            (State::Up(index) | State::Down(index), Some(link)) if link.index == index => {
                state_of(link)
            }
            (old, _) => {
                let is_said = match old {
                    State::Gone { is_said } => is_said,
                    _ => {
                        error!(
                            "{name} was deleted, and packets for the kernel are lost: creating it again"
                        );
                        false
                    }
                };
                match open(name, self.role) {
                    Ok((device, link)) => {
                        info!(
                            "{name} is there again; addresses and routes that were added to it are gone"
                        );
                        self.device.replace(device);
                        state_of(link)
                    }
                    Err(failure) => {
                        if !is_said {
                            error!("{failure}, will retry");
                        }
                        State::Gone { is_said: true }
                    }
                }
            }
        };
        match (self.state, state) {
            (State::Up(_), State::Down(_)) => error!(
                "{name} was taken down: packets for the kernel are lost until it is up (ip link set {name} up)"
            ),
            (State::Down(_), State::Up(_)) => info!("{name} is up again"),
            _ => {}
        }
        std::mem::replace(&mut self.state, state) != state
    }
}

fn state_of(link: Link) -> State {
    match link.is_up {
        true => State::Up(link.index),
        false => State::Down(link.index),
    }
}

fn open(name: &str, role: Role) -> Result<(Device, Link), Failure> {
    let failed = |error: &dyn Display| Failure::failed(format!("--pass {name}: {error}"));
    let device = Device::open(name, Layer::Ip, false).map_err(|error| failed(&error))?;
    bring_up(name).map_err(|error| failed(&error))?;
    if role == Role::Proxy {
        sysctl::prepare_routed(name)?;
    }
    let link = Link::find(name).map_err(|error| failed(&error))?;
    Ok((device, link))
}
