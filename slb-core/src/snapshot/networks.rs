//! Compiled networks: the owner of an address, and the way to its vm.

use core::net::IpAddr;

use super::addresses::words;
use super::probe_map::{NONE, ProbeMap, RuleBucket, VipBucket};
use super::publics::{Public, Publics};
use crate::mem::{Counter, Mem, Memory};
use crate::spec::network::Seat;
use crate::spec::{Prefix, PublicAddressFault, Spec, SpecError, ranges};
use crate::tunnel::encapsulation::Template;
use crate::verdict::PortId;
use crate::wire::ethernet::MacAddress;
use crate::wire::vxlan::Vni;

/// A vm of a network, by one of its addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neighbour {
    pub(crate) mac: MacAddress,
    /// The port of this node for the vm; `None` if the vm runs on another host.
    pub(crate) port: Option<PortId>,
    /// The underlay address of the host that the vm runs on.
    pub(crate) host: IpAddr,
    way: Way,
}

/// The location of the outer header for a neighbour.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// The header of a backend, by its index among all backends.
    Backend(u32),
    /// A header among those of vms that are no backends.
    Vm(u32),
}

/// The way to a neighbour on another node.
pub(crate) enum Reached<'n> {
    /// The header of a backend, by its index among all backends.
    Backend(u32),
    /// This outer header.
    Template(&'n Template),
}

/// A network of vms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CompiledNetwork {
    spaces: (u32, u32),
    gateways: (u32, u32),
}

/// All networks, and the owners of the addresses in them.
#[derive(Debug)]
pub(crate) struct Networks<'m> {
    /// The number of an address, regardless of its networks.
    addresses: ProbeMap<'m, [u64; 2], 3>,
    /// The neighbour at the number of an address in a network.
    places: ProbeMap<'m, u64, 5>,
    neighbours: Mem<'m, Neighbour>,
    templates: Mem<'m, Template>,
    by_vni: ProbeMap<'m, u64, 5>,
    all: Mem<'m, CompiledNetwork>,
    /// The address spaces of each network: ascending, disjoint ranges.
    spaces: Mem<'m, [IpAddr; 2]>,
    /// The gateways of each network, ascending.
    gateways: Mem<'m, IpAddr>,
    /// True if an address in some network is also a VIP.
    has_vips: bool,
    /// Public addresses of vms.
    pub(crate) publics: Publics<'m>,
}

/// The number of items of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NetworksSize {
    seats: usize,
    vms: usize,
    networks: usize,
    spaces: usize,
    gateways: usize,
    publics: usize,
}

impl NetworksSize {
    pub(super) fn of(spec: &Spec<'_>) -> Self {
        let of_networks =
            |count: fn(&crate::spec::Network<'_>) -> usize| spec.networks.iter().map(count).sum();
        let backends: usize = spec.pools.iter().map(|pool| pool.backends.len()).sum();
        Self {
            seats: backends + spec.vm_seats().count(),
            vms: spec.vms.len(),
            networks: spec.networks.len(),
            spaces: of_networks(|network| network.prefixes.len()),
            gateways: of_networks(|network| network.gateways.len()),
            publics: spec.public_addresses.len(),
        }
    }

    pub(super) fn count(&self, counter: &mut Counter) -> Option<()> {
        counter.add::<VipBucket>(ProbeMap::<[u64; 2], 3>::buckets_for(self.seats))?;
        for keys in [self.seats, self.networks] {
            counter.add::<RuleBucket>(ProbeMap::<u64, 5>::buckets_for(keys))?;
        }
        counter.add::<Neighbour>(self.seats)?;
        counter.add::<Template>(self.vms)?;
        counter.add::<CompiledNetwork>(self.networks)?;
        counter.add::<[IpAddr; 2]>(self.spaces)?;
        counter.add::<IpAddr>(self.gateways)?;
        Publics::count(self.publics, counter)
    }
}

impl<'m> Networks<'m> {
    /// Allocates the tables; returns `None` if the memory is used up.
    pub(super) fn new(size: &NetworksSize, memory: &mut impl Memory<'m>) -> Option<Self> {
        const NO_ADDRESS: IpAddr = IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED);
        let neighbour = Neighbour {
            mac: MacAddress([0; 6]),
            port: None,
            host: NO_ADDRESS,
            way: Way::Backend(NONE),
        };
        let network = CompiledNetwork {
            spaces: (0, 0),
            gateways: (0, 0),
        };
        let buckets = ProbeMap::<[u64; 2], 3>::buckets_for(size.seats);
        let addresses = memory.take(buckets, VipBucket::EMPTY)?;
        let mut map = |keys| {
            let buckets = ProbeMap::<u64, 5>::buckets_for(keys);
            memory.take(buckets, RuleBucket::EMPTY)
        };
        let (places, by_vni) = (map(size.seats)?, map(size.networks)?);
        Some(Self {
            addresses: ProbeMap::new(addresses),
            places: ProbeMap::new(places),
            neighbours: memory.take(size.seats, neighbour)?,
            templates: memory.take(size.vms, Template::EMPTY)?,
            by_vni: ProbeMap::new(by_vni),
            all: memory.take(size.networks, network)?,
            spaces: memory.take(size.spaces, [NO_ADDRESS; 2])?,
            gateways: memory.take(size.gateways, NO_ADDRESS)?,
            has_vips: false,
            publics: Publics::new(size.publics, memory)?,
        })
    }

    /// Records all networks and the addresses of their vms.
    pub(super) fn compile(&mut self, spec: &Spec<'_>) -> Result<(), SpecError> {
        let (mut spaces, mut gateways) = (0, 0);
        for (index, network) in spec.networks.iter().enumerate() {
            let known = self.by_vni.insert(network.vni.get().into(), index as u32);
            known.map_err(|first| SpecError::DuplicateNetwork {
                first: first as usize,
                second: index,
            })?;
            let first = (spaces, gateways);
            for range in network.prefixes.iter().filter_map(Prefix::range) {
                self.spaces[spaces] = range;
                spaces += 1;
            }
            spaces = first.0 + ranges::join(&mut self.spaces[first.0..spaces]);
            for &gateway in network.gateways {
                self.gateways[gateways] = gateway;
                gateways += 1;
            }
            self.gateways[first.1..gateways].sort_unstable();
            self.all[index] = CompiledNetwork {
                spaces: (first.0 as u32, spaces as u32),
                gateways: (first.1 as u32, gateways as u32),
            };
        }
        for (index, vm) in spec.vms.iter().enumerate() {
            let (underlay, vni) = (&spec.underlay, spec.networks.get(vm.network));
            let vni = vni.map(|network| network.vni).unwrap_or_default();
            let next_hop = vm.next_hop.unwrap_or(underlay.next_hop);
            let template = Template::new(underlay, vm.host, next_hop, vm.mac(), vni);
            let no_address = SpecError::NoUnderlayAddressForVm { vm: index };
            self.templates[index] = template.ok_or(no_address)?;
        }
        for (network, of) in spec.networks.iter().enumerate() {
            let all = self.all[network];
            let mut gateways = of.gateways.iter().copied();
            if let Some(address) = gateways.find(|&gateway| !self.has(&all, gateway)) {
                return Err(SpecError::OutsideNetwork { network, address });
            }
        }
        let seats = spec.vm_seats().map(|(_, seat)| seat);
        for seat in spec.backend_seats().chain(seats) {
            let Some(network) = self.by_vni.get(seat.vni.get().into()) else {
                continue;
            };
            let (network, address) = (network as usize, seat.address);
            if !self.has(&self.all[network], address) {
                return Err(SpecError::OutsideNetwork { network, address });
            }
        }
        let is_proxy = spec.proxy.is_some();
        let mut place = 0;
        for (index, mut seat) in (0..).zip(spec.backend_seats()) {
            if is_proxy {
                seat.vni = Vni::default(); // it has no networks
            }
            self.seat(spec, &mut place, &seat, Way::Backend(index))?;
        }
        for (vm, seat) in spec.vm_seats() {
            self.seat(spec, &mut place, &seat, Way::Vm(vm as u32))?;
        }
        self.compile_publics(spec)
    }

    /// Records the public addresses of vms.
    fn compile_publics(&mut self, spec: &Spec<'_>) -> Result<(), SpecError> {
        for (index, public) in spec.public_addresses.iter().enumerate() {
            let (vni, own) = (public.vni, public.vm);
            let seat = self.addresses.get(words(own));
            let seat = seat.map(|number| place_key(number, vni));
            let found = seat.and_then(|seat| Some((seat, self.places.get(seat)?)));
            let no_vm = PublicAddressFault::NoVm.of(index);
            let (seat, neighbour) = found.ok_or(no_vm)?;
            let network = self.of(vni);
            let is_inside = network.is_some_and(|network| self.has(network, public.address))
                || self.neighbour(public.address, vni).is_some();
            if is_inside {
                return Err(PublicAddressFault::InNetwork.of(index));
            }
            let compiled = Public {
                address: public.address,
                vm: own,
                vni,
                neighbour,
            };
            let inserted = self.publics.insert(index as u32, compiled, seat);
            inserted.map_err(|first| {
                let fault = match first {
                    Ok(first) => PublicAddressFault::Taken {
                        first: first as usize,
                    },
                    Err(first) => PublicAddressFault::VmTaken {
                        first: first as usize,
                    },
                };
                fault.of(index)
            })?;
        }
        Ok(())
    }

    /// Returns the public address of a vm's own address in a network.
    pub(crate) fn public_of(&self, own: IpAddr, vni: Vni) -> Option<&Public> {
        if self.publics.is_empty() {
            return None;
        }
        let number = self.addresses.get(words(own))?;
        self.publics.of_seat(place_key(number, vni))
    }

    /// Returns the vm of a public address.
    pub(crate) fn neighbour_of(&self, public: &Public) -> Option<&Neighbour> {
        self.neighbours.get(public.neighbour as usize)
    }

    /// Records the owner of an address in a network. If the address has an owner already, it has to
    /// be the same vm.
    fn seat(
        &mut self,
        spec: &Spec<'_>,
        place: &mut u32,
        seat: &Seat,
        way: Way,
    ) -> Result<(), SpecError> {
        let number = match self.addresses.insert(words(seat.address), *place) {
            Ok(()) => *place,
            Err(known) => known,
        };
        let new = Neighbour {
            mac: seat.mac,
            port: seat.port.filter(|_| spec.proxy.is_none()),
            host: seat.host,
            way,
        };
        self.neighbours[*place as usize] = new;
        let known = self.places.insert(place_key(number, seat.vni), *place);
        *place += 1;
        let Err(known) = known else { return Ok(()) };
        let network = self.by_vni.get(seat.vni.get().into());
        let Some(network) = network.filter(|_| spec.proxy.is_none()) else {
            return Ok(());
        };
        let known = &self.neighbours[known as usize];
        let vm = |of: &Neighbour| (of.mac, of.port, of.host);
        match vm(known) == vm(&new) {
            true => Ok(()),
            false => Err(SpecError::AddressTaken {
                network: network as usize,
                address: seat.address,
            }),
        }
    }

    /// Returns the vm with an address in a network.
    pub(crate) fn neighbour(&self, address: IpAddr, vni: Vni) -> Option<&Neighbour> {
        let number = self.addresses.get(words(address))?;
        let place = self.places.get(place_key(number, vni))?;
        self.neighbours.get(place as usize)
    }

    /// Returns the way to a neighbour on another node.
    pub(crate) fn way_to(&self, neighbour: &Neighbour) -> Option<Reached<'_>> {
        match neighbour.way {
            Way::Backend(index) => Some(Reached::Backend(index)),
            Way::Vm(index) => self.templates.get(index as usize).map(Reached::Template),
        }
    }

    /// Returns the network with a VNI; `None` if there is none.
    pub(crate) fn of(&self, vni: Vni) -> Option<&CompiledNetwork> {
        self.all.get(self.by_vni.get(vni.get().into())? as usize)
    }

    /// Returns true if an address is in one of a network's address spaces: a binary search among them.
    pub(crate) fn has(&self, network: &CompiledNetwork, address: IpAddr) -> bool {
        let (first, end) = network.spaces;
        let spaces = self.spaces.get(first as usize..end as usize);
        ranges::have(spaces.unwrap_or_default(), &address)
    }

    /// Returns true if an address is a gateway of a network: a binary search among them.
    pub(crate) fn is_gateway(&self, network: &CompiledNetwork, address: IpAddr) -> bool {
        let (first, end) = network.gateways;
        let gateways = self.gateways.get(first as usize..end as usize);
        let gateways = gateways.unwrap_or_default();
        gateways.binary_search(&address).is_ok()
    }

    /// Returns true if an address in some network is also a VIP.
    #[inline]
    pub(crate) fn have_vips(&self) -> bool {
        self.has_vips
    }

    /// Returns true if a vm or a gateway of a network has an address.
    pub(crate) fn is_taken(&self, vni: Vni, address: IpAddr) -> bool {
        self.neighbour(address, vni).is_some()
            || self.of(vni).is_some_and(|of| self.is_gateway(of, address))
    }

    /// Returns the first backend or vm of a network with an address: `Ok` with the backend's index
    /// among all backends, or `Err` with the vm's index.
    pub(super) fn holder(&self, address: IpAddr, vni: Vni) -> Option<Result<u32, u32>> {
        self.of(vni)?;
        Some(match self.neighbour(address, vni)?.way {
            Way::Backend(index) => Ok(index),
            Way::Vm(index) => Err(index),
        })
    }

    /// Records whether an address in some network is a VIP.
    pub(super) fn set_have_vips(&mut self, any: bool) {
        self.has_vips = any;
    }
}

/// Returns the key of an address, by its number, in a network.
fn place_key(number: u32, vni: Vni) -> u64 {
    u64::from(number) << 32 | u64::from(vni.get())
}
