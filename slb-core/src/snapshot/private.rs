//! Private frontends: VIPs that belong to a network. Two networks may have the same VIP.
//!
//! Rule keys have the index of a private frontend instead of a public frontend's address. Packets
//! from outside of the network are never looked up here.

use core::net::IpAddr;

use super::addresses::words;
use super::probe_map::{ProbeMap, RuleBucket, VipBucket};
use crate::mem::{Counter, Mem, Memory};
use crate::spec::Spec;
use crate::wire::vxlan::Vni;

/// All private frontends.
#[derive(Debug)]
pub(crate) struct Private<'m> {
    /// The number of an address, whatever networks it is in.
    addresses: ProbeMap<'m, [u64; 2], 3>,
    /// The frontend at the number of an address in a network.
    places: ProbeMap<'m, u64, 5>,
    /// Address and network of each frontend; `None` for a public one. Empty if all are public.
    all: Mem<'m, Option<(IpAddr, Vni)>>,
}

/// The number of private frontends, and the number of all frontends if any is private.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PrivateSize {
    private: usize,
    all: usize,
}

impl PrivateSize {
    pub(super) fn of(spec: &Spec<'_>) -> Self {
        let private = spec.private_frontends().count();
        let all = if private == 0 {
            0
        } else {
            spec.frontends.len()
        };
        Self { private, all }
    }

    pub(super) fn count(&self, counter: &mut Counter) -> Option<()> {
        counter.add::<VipBucket>(ProbeMap::<[u64; 2], 3>::buckets_for(self.private))?;
        counter.add::<RuleBucket>(ProbeMap::<u64, 5>::buckets_for(self.private))?;
        counter.add::<Option<(IpAddr, Vni)>>(self.all)
    }
}

impl<'m> Private<'m> {
    /// Allocates the tables; returns `None` if the memory is used up.
    pub(super) fn new(size: &PrivateSize, memory: &mut impl Memory<'m>) -> Option<Self> {
        let addresses = ProbeMap::<[u64; 2], 3>::buckets_for(size.private);
        let places = ProbeMap::<u64, 5>::buckets_for(size.private);
        Some(Self {
            addresses: ProbeMap::new(memory.take(addresses, VipBucket::EMPTY)?),
            places: ProbeMap::new(memory.take(places, RuleBucket::EMPTY)?),
            all: memory.take(size.all, None)?,
        })
    }

    /// Records a frontend.
    ///
    /// # Errors
    /// Another frontend has the address in this network; the error is its index, or the given index
    /// if the frontend is already known.
    pub(super) fn insert(
        &mut self,
        frontend: usize,
        address: IpAddr,
        vni: Vni,
    ) -> Result<(), usize> {
        let place = self.all.get_mut(frontend).ok_or(frontend)?;
        if place.is_some() {
            return Err(frontend);
        }
        *place = Some((address, vni));
        let number = match self.addresses.insert(words(address), frontend as u32) {
            Ok(()) => frontend as u32,
            Err(known) => known,
        };
        let known = self.places.insert(key(number, vni), frontend as u32);
        known.map_err(|first| first as usize)
    }

    /// Returns the frontend with an address in a network.
    pub(super) fn find(&self, address: IpAddr, vni: Vni) -> Option<u32> {
        let number = self.addresses.get(words(address))?;
        self.places.get(key(number, vni))
    }

    /// Returns the address and network of a frontend; `None` for a public one.
    pub(super) fn of(&self, frontend: usize) -> Option<(IpAddr, Vni)> {
        self.all.get(frontend).copied().flatten()
    }

    /// Returns true if all frontends are public.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

/// Returns the key of an address, by its number, in a network.
fn key(number: u32, vni: Vni) -> u64 {
    u64::from(number) << 32 | u64::from(vni.get())
}
