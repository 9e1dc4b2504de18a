//! The XDP programs of interfaces, and the addresses whose packets they take.

use std::collections::BTreeSet;
use std::net::IpAddr;

use slb_control::{Config, Role};
use slb_core::PortId;
use slb_core::spec::Answers;
use slb_io_afxdp::{Kind, Neighbours, Program, Take, Unserved};

use super::{Card, Plan};
use crate::Failure;
use crate::live::rights;

impl Plan {
    /// Loads the XDP program of each interface, without attaching it.
    pub(in crate::live) fn load_programs(
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

    /// Returns the addresses that each XDP program takes, and which of their packets.
    pub(in crate::live) fn taken(&self, config: &Config) -> Vec<Vec<(IpAddr, Take)>> {
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
                let vips = config.outside_addresses();
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
    pub(in crate::live) fn load_program(
        &self,
        role: Role,
        unserved: Unserved,
    ) -> Result<Program, Failure> {
        let program = Program::load_with(self.interface.clone(), self.kind(role), unserved);
        program.map_err(Failure::failed)
    }
}

/// Returns the addresses that the vm at a port may ask for, since the host agent answers: those of
/// its network.
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

/// Returns the addresses of this machine, which stay with the kernel in every role; `None` if the
/// kernel does not list them.
pub(in crate::live) fn own_addresses() -> Option<BTreeSet<IpAddr>> {
    let addresses = Neighbours::open().and_then(|tables| tables.own_addresses());
    Some(addresses.ok()?.into_iter().collect())
}
