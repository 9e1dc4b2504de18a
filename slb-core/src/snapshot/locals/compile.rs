//! Compilation of the vms and peers of a node.

use super::{
    Block, CompiledMux, CompiledOutbound, FIRST_HOST, LOCAL_BITS, Local, MAX_LOCALS, Nat,
    UNNUMBERED, Vm, mac_key, pool_key,
};
use crate::nat::connection::Span;
use crate::snapshot::addresses::{address_bytes, raw_port, words};
use crate::snapshot::probe_map::NONE;
use crate::snapshot::registry::{AlreadyRegistered, SLOT_BITS, identity};
use crate::snapshot::security::VmLists;
use crate::spec::{Backend, Spec, SpecError, derived_mac, ranges};
use crate::tunnel::encapsulation::Template;
use crate::verdict::PortId;
use crate::wire::ethernet::MacAddress;
use crate::wire::vxlan::Vni;

impl Nat<'_> {
    /// Collects the vms of this node and the peers that may send to it. `facts` returns a backend's
    /// counter slot, and true if it is unhealthy for some rule.
    pub(crate) fn compile(
        &mut self,
        spec: &Spec<'_>,
        previous: Option<&Nat<'_>>,
        facts: impl Fn(u32) -> (u32, bool),
    ) -> Result<(), SpecError> {
        self.compile_locals(spec, previous, facts)?;
        self.compile_vms(spec)?;
        if let Some(previous) = previous.filter(|_| spec.proxy.is_none()) {
            self.compile_moved(spec, previous);
        }
        self.networks.compile(spec)?;
        let known_lists = previous.map(|previous| &previous.security);
        self.security.compile(spec, known_lists)?;
        self.compile_inside(spec)?;
        for (place, rule) in self.outbound.iter_mut().zip(spec.outbound) {
            *place = CompiledOutbound {
                idle: Span::from_duration(rule.idle_timeout),
                reset: rule.tcp_reset,
                protocol: rule.protocol,
            };
        }
        for (index, &address) in spec.muxes.iter().enumerate() {
            let next_hop = spec.underlay.next_hop;
            let mac = derived_mac(address);
            let template = Template::new(&spec.underlay, address, next_hop, mac, Vni::default());
            let no_address = SpecError::NoUnderlayAddressForMux { mux: index };
            let address = words(address);
            self.muxes[index] = CompiledMux {
                template: template.ok_or(no_address)?,
                address,
                is_host: false,
            };
            let _ = self.peers.insert(address, index as u32);
        }
        for pool in spec.pools {
            let _ = self.vnis.insert(pool.vni.get().into(), 0);
        }
        // Vms that are no backends have numbers after the backends'.
        let backends = spec.pools.iter().flat_map(|pool| pool.backends);
        let hosts = backends.map(|backend| backend.host);
        let hosts = hosts.chain(spec.vms.iter().map(|vm| vm.host));
        for (index, host) in (0..).zip(hosts) {
            let known = self.peers.insert(words(host), FIRST_HOST + index);
            let mux = known
                .err()
                .and_then(|known| self.muxes.get_mut(known as usize));
            if let Some(mux) = mux {
                mux.is_host = true;
            }
        }
        Ok(())
    }

    /// Records the vms of networks at ports of this node.
    fn compile_vms(&mut self, spec: &Spec<'_>) -> Result<(), SpecError> {
        if spec.proxy.is_some() {
            return Ok(()); // it has no vms of its own
        }
        for (index, vm) in spec.vms.iter().enumerate() {
            let network = spec.networks.get(vm.network);
            let (Some(port), Some(network)) = (vm.port, network) else {
                continue;
            };
            let at = self.vm_at(port, vm.mac(), network.vni);
            let at = at.map_err(|_| SpecError::VmPortConflict { vm: index, port })?;
            self.add_lists(at, network.security_lists);
            self.add_lists(at, vm.security_lists);
        }
        Ok(())
    }

    /// Records the vms that have moved from this node to other hosts.
    fn compile_moved(&mut self, spec: &Spec<'_>, previous: &Nat<'_>) {
        if previous.vm_count + previous.moved_count == 0 {
            return;
        }
        let pools = spec.pools.iter();
        let all = pools.flat_map(|pool| pool.backends.iter().map(move |one| (pool, one)));
        for (index, (pool, backend)) in (0..).zip(all) {
            if is_local(spec, backend) {
                continue;
            }
            let mac = backend.mac.unwrap_or(derived_mac(backend.address));
            let key = mac_key(mac, pool.vni);
            let was_here = previous.vm_by_mac.get(key).or(previous.moved.get(key));
            if was_here.is_some() && self.vm_by_mac.get(key).is_none() {
                self.moved_count += usize::from(self.moved.insert(key, index).is_ok());
            }
        }
    }

    /// Records the inside addresses.
    fn compile_inside(&mut self, spec: &Spec<'_>) -> Result<(), SpecError> {
        for (index, prefix) in spec.inside.iter().enumerate() {
            let range = prefix.range().ok_or(SpecError::InsidePrefix { index })?;
            if let Some(place) = self.inside.get_mut(index) {
                *place = range;
            }
        }
        // `IpAddr` orders all of IPv4 before IPv6.
        self.inside_count = ranges::join(&mut self.inside);
        Ok(())
    }

    fn compile_locals(
        &mut self,
        spec: &Spec<'_>,
        previous: Option<&Nat<'_>>,
        facts: impl Fn(u32) -> (u32, bool),
    ) -> Result<(), SpecError> {
        let previous = previous.map(|previous| &previous.local_ids);
        let (mut backend_index, mut count) = (0, 0);
        for (pool_index, pool) in spec.pools.iter().enumerate() {
            for backend in pool.backends {
                let index = backend_index;
                backend_index += 1;
                if !is_local(spec, backend) {
                    continue;
                }
                let local = count as u32;
                let next = match backend.port.filter(|_| spec.proxy.is_none()) {
                    Some(port) => {
                        let mac = backend.mac.unwrap_or(derived_mac(backend.address));
                        let vm = self.vm_at(port, mac, pool.vni);
                        let vm = vm.map_err(|known| self.conflict(known, port, index))?;
                        if !spec.security_lists.is_empty() {
                            let mut networks = spec.networks.iter();
                            let network = networks.find(|network| network.vni == pool.vni);
                            self.add_lists(vm, network.map_or(&[], |of| of.security_lists));
                            self.add_lists(vm, pool.security_lists);
                        }
                        // A vm that is twice in a pool gets the rules of its first name.
                        let _ = self
                            .local_by_pool
                            .insert(pool_key(pool_index as u32, port), local);
                        core::mem::replace(&mut self.vms[vm].first, local)
                    }
                    None => NONE,
                };
                let _ = self.local_by_backend.insert(index.into(), local);
                let (counters, suspect) = facts(index);
                self.locals[count] = Local {
                    backend: index,
                    counters,
                    suspect,
                    id: UNNUMBERED,
                    address: backend.address,
                    zone: backend.port.unwrap_or_default(),
                    port: backend.backend_port.map(raw_port),
                    next,
                    blocks: (0, 0),
                };
                if let Some(proxy) = &mut self.proxy {
                    proxy.set_next_hop(count, backend.next_hop);
                }
                count += 1;
            }
        }
        let identity = |local: &Local| {
            let (pool, backend) = owner(spec, local.backend as usize);
            let (pool, backend) = (&spec.pools[pool], &spec.pools[pool].backends[backend]);
            let address = address_bytes(backend.address);
            identity([pool.name.as_bytes(), backend.name.as_bytes(), &address])
        };
        let duplicate = |AlreadyRegistered(first): AlreadyRegistered, second: usize| {
            SpecError::DuplicateBackend {
                first: first as usize,
                second,
            }
        };
        for index in 0..count {
            let name = identity(&self.locals[index]);
            let kept = self.local_ids.keep(previous, name, index as u32);
            if let Some(slot) = kept.map_err(|already| duplicate(already, index))? {
                self.locals[index].id = compress(self.local_ids.id(slot).get());
            }
        }
        for index in 0..count {
            if self.locals[index].id == UNNUMBERED {
                let name = identity(&self.locals[index]);
                let added = self.local_ids.add(name, index as u32);
                let slot = added.map_err(|already| duplicate(already, index))?;
                self.locals[index].id = compress(self.local_ids.id(slot).get());
            }
        }
        Ok(())
    }

    /// Returns the index of the vm at a port, after adding it if necessary. The error is the index
    /// of another vm with the port or the MAC address.
    fn vm_at(&mut self, port: PortId, mac: MacAddress, vni: Vni) -> Result<usize, u32> {
        let index = self.vm_count as u32;
        match self.vm_by_port.insert(port.0.into(), index) {
            Err(known) => {
                let vm = self.vms[known as usize];
                let is_same = vm.mac == mac && vm.vni == vni;
                is_same.then_some(known as usize).ok_or(known)
            }
            Ok(()) => {
                self.vm_by_mac.insert(mac_key(mac, vni), index)?;
                self.vms[self.vm_count] = Vm {
                    port,
                    mac,
                    vni,
                    lists: VmLists::NONE,
                    first: NONE,
                };
                self.vm_count += 1;
                Ok(index as usize)
            }
        }
    }

    /// Adds access lists to those of a vm.
    fn add_lists(&mut self, vm: usize, lists: &[usize]) {
        if let Some(vm) = self.vms.get_mut(vm) {
            let all = lists.iter();
            all.for_each(|list| self.security.add_to(&mut vm.lists, *list));
        }
    }

    /// Returns the fault of a backend that shares a vm's port or MAC address without being that vm.
    fn conflict(&self, vm: u32, port: PortId, backend: u32) -> SpecError {
        let mut first = 0;
        let mut next = self.vms.get(vm as usize).map_or(NONE, |vm| vm.first);
        while let Some(local) = self.locals.get(next as usize) {
            (first, next) = (local.backend, local.next);
        }
        SpecError::PortConflict {
            first: first as usize,
            second: backend as usize,
            port,
        }
    }

    /// Records the ports of the locals. `owners` yields the index, the compiled rule and the
    /// granules' owners of each frontend that outbound rules use, in the order of their indexes.
    pub(crate) fn compile_blocks<'t>(
        &mut self,
        spec: &Spec<'_>,
        owners: impl Iterator<Item = (usize, u32, &'t [u16])>,
    ) {
        // Room for the blocks of each local. Some stay free, since blocks of one frontend by
        // several rules are joined.
        let mut block_count = 0;
        for local in self.locals.iter_mut() {
            let (pool, _) = owner(spec, local.backend as usize);
            let rules = spec.outbound.iter().filter(|rule| rule.pool == pool);
            local.blocks = (block_count, block_count);
            block_count += rules.map(|rule| rule.frontends.len() as u32).sum::<u32>();
        }
        // The outer loop is over frontends and the inner loop over locals: the reverse order would
        // cost the product of locals, frontends and rules.
        let mut granule_count = 0;
        for (frontend, rule, owners) in owners {
            let address = spec.frontends[frontend].address;
            let rules = spec.outbound.iter().enumerate();
            let rules = rules.filter(|(_, outbound)| outbound.frontends.contains(&frontend));
            for (outbound, of) in rules {
                let pools = spec.pools.iter().take(of.pool);
                let first = pools.map(|pool| pool.backends.len() as u32).sum::<u32>();
                let end = first + spec.pools[of.pool].backends.len() as u32;
                // Locals are sorted by their backends.
                let start = self.locals.partition_point(|local| local.backend < first);
                let of_pool = self.locals.iter_mut().skip(start);
                for local in of_pool.take_while(|local| local.backend < end) {
                    let place = local.blocks.1 as usize;
                    let blocks = &self.blocks[local.blocks.0 as usize..place];
                    // The first rule of a frontend and a pool counts.
                    if blocks.last().is_some_and(|last| last.address == address) {
                        continue;
                    }
                    let first = granule_count;
                    for (granule, &owner) in owners.iter().enumerate() {
                        if u32::from(owner) == local.backend {
                            self.granules[granule_count] = granule as u16;
                            granule_count += 1;
                        }
                    }
                    self.blocks[place] = Block {
                        address,
                        rule,
                        outbound: outbound as u32,
                        granules: (first as u32, granule_count as u32),
                    };
                    local.blocks.1 += 1;
                }
            }
        }
    }
}

/// Returns true if a backend is reached from this node without the fabric.
pub(super) fn is_local(spec: &Spec<'_>, backend: &Backend<'_>) -> bool {
    spec.proxy.is_some() || backend.port.is_some()
}

/// Compresses an id of 32 bits into 16.
pub(super) const fn compress(id: u32) -> u16 {
    let slot = id as u16 & MAX_LOCALS as u16;
    slot | ((id >> SLOT_BITS) as u16) << LOCAL_BITS
}

/// Returns the pool of a backend and the index in the pool, by the index among all backends.
pub(in crate::snapshot) fn owner(spec: &Spec<'_>, mut backend: usize) -> (usize, usize) {
    for (index, pool) in spec.pools.iter().enumerate() {
        match backend.checked_sub(pool.backends.len()) {
            None => return (index, backend),
            Some(rest) => backend = rest,
        }
    }
    (0, 0)
}
