//! Sizes of the tables for the vms and peers of a node.

use core::net::IpAddr;

use super::compile::is_local;
use super::{
    Block, CompiledMux, CompiledOutbound, Local, MAX_FORMER, MAX_LOCALS, MAX_MUXES, Nat, Vm,
};
use crate::mem::Counter;
use crate::snapshot::networks::NetworksSize;
use crate::snapshot::probe_map::{ProbeMap, RuleBucket, VipBucket};
use crate::snapshot::registry::{Registry, RegistryEntry};
use crate::snapshot::security::SecuritySize;
use crate::spec::Spec;
use crate::spec::snat::{GRANULES, outbound_frontends};

/// The number of items of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NatSize {
    pub(super) locals: usize,
    pub(super) vms: usize,
    pub(super) local_slots: usize,
    pub(super) blocks: usize,
    pub(super) granules: usize,
    pub(super) outbound: usize,
    pub(super) muxes: usize,
    pub(super) peers: usize,
    pub(super) pools: usize,
    pub(super) inside: usize,
    pub(super) networks: NetworksSize,
    pub(super) security: SecuritySize,
    pub(super) moved: usize,
    pub(super) former: usize,
}

impl NatSize {
    pub(crate) fn of(spec: &Spec<'_>, previous: Option<&Nat<'_>>) -> Self {
        let of_pool = |pool: usize| {
            let backends = spec.pools.get(pool).map_or(&[][..], |pool| pool.backends);
            backends.iter().filter(|b| is_local(spec, b)).count()
        };
        let locals = (0..spec.pools.len()).map(of_pool).sum();
        let backends: usize = spec.pools.iter().map(|pool| pool.backends.len()).sum();
        let frontends = outbound_frontends(spec).count();
        let of_network = spec.vms.iter().filter(|vm| vm.port.is_some()).count();
        let vms = locals + of_network;
        Self {
            locals,
            vms,
            local_slots: Registry::slots_for(locals, previous.map(|p| &p.local_ids)),
            blocks: spec
                .outbound
                .iter()
                .map(|rule| rule.frontends.len() * of_pool(rule.pool))
                .sum(),
            granules: if locals == 0 { 0 } else { frontends * GRANULES },
            outbound: spec.outbound.len(),
            muxes: spec.muxes.len(),
            peers: spec.muxes.len()
                + backends
                + spec.vms.len()
                + if locals == 0 { 0 } else { MAX_FORMER },
            former: if locals == 0 { 0 } else { MAX_FORMER },
            moved: previous.map_or(0, |previous| {
                (backends - locals).min(previous.vm_count + previous.moved_count)
            }),
            pools: spec.pools.len(),
            inside: if vms == 0 { 0 } else { spec.inside.len() },
            networks: NetworksSize::of(spec),
            security: SecuritySize::of(
                spec,
                vm_lists(spec),
                previous.map(|previous| &previous.security),
            ),
        }
    }

    pub(crate) fn count(&self, counter: &mut Counter) -> Option<()> {
        counter.add::<Vm>(self.vms)?;
        counter.add::<Local>(self.locals)?;
        counter.add::<RegistryEntry>(self.local_slots)?;
        counter.add::<u64>(self.local_slots)?;
        for keys in [self.locals, self.vms, self.locals, self.locals, self.pools] {
            counter.add::<RuleBucket>(ProbeMap::<u64, 5>::buckets_for(keys))?;
        }
        for keys in [self.vms, self.peers, self.moved] {
            counter.add::<VipBucket>(ProbeMap::<[u64; 2], 3>::buckets_for(keys))?;
        }
        counter.add::<[u64; 2]>(self.former)?;
        counter.add::<Block>(self.blocks)?;
        counter.add::<u16>(self.granules)?;
        counter.add::<CompiledOutbound>(self.outbound)?;
        counter.add::<CompiledMux>(self.muxes)?;
        counter.add::<[IpAddr; 2]>(self.inside)?;
        self.networks.count(counter)?;
        self.security.count(counter)
    }

    /// Returns the number of items of each kind that has numbers, and its maximum.
    pub(crate) fn limits(&self) -> [(&'static str, usize, usize); 3] {
        [
            ("backends on one host", self.local_slots, MAX_LOCALS),
            ("muxes", self.muxes, MAX_MUXES),
            self.security.limit(),
        ]
    }
}

/// The most access lists that the vms of this node have, each counted for each of its pools and addresses.
fn vm_lists(spec: &Spec<'_>) -> usize {
    if spec.proxy.is_some() || spec.security_lists.is_empty() {
        return 0;
    }
    let of_network = |vni| {
        let network = spec.networks.iter().find(|network| network.vni == vni);
        network.map_or(0, |network| network.security_lists.len())
    };
    let pools = spec.pools.iter().map(|pool| {
        let here = pool.backends.iter().filter(|one| is_local(spec, one));
        let lists = || pool.security_lists.len() + of_network(pool.vni);
        match here.count() {
            0 => 0,
            here => here * lists(),
        }
    });
    let vms = spec.vms.iter().filter(|vm| vm.port.is_some());
    let vms = vms.filter_map(|vm| {
        let network = spec.networks.get(vm.network)?;
        Some(vm.security_lists.len() + network.security_lists.len())
    });
    pools.sum::<usize>() + vms.sum::<usize>()
}
