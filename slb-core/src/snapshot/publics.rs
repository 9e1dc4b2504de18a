//! Compiled public addresses of vms: found by the public address, and by the vm's own one.

use core::net::IpAddr;

use super::addresses::words;
use super::probe_map::{ProbeMap, RuleBucket, VipBucket};
use crate::mem::{Counter, Mem, Memory};
use crate::spec::PublicAddress;
use crate::wire::vxlan::Vni;

/// A public address and its vm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Public {
    pub(crate) address: IpAddr,
    /// The vm's own address.
    pub(crate) vm: IpAddr,
    pub(crate) vni: Vni,
    /// The vm's place among all neighbours.
    pub(super) neighbour: u32,
}

/// All public addresses.
#[derive(Debug)]
pub(crate) struct Publics<'m> {
    all: Mem<'m, Public>,
    by_address: ProbeMap<'m, [u64; 2], 3>,
    /// Public addresses by the number of the vm's own address and its network.
    by_seat: ProbeMap<'m, u64, 5>,
}

impl<'m> Publics<'m> {
    pub(super) fn count(publics: usize, counter: &mut Counter) -> Option<()> {
        counter.add::<Public>(publics)?;
        counter.add::<VipBucket>(ProbeMap::<[u64; 2], 3>::buckets_for(publics))?;
        counter.add::<RuleBucket>(ProbeMap::<u64, 5>::buckets_for(publics))
    }

    /// Allocates the tables; returns `None` if the memory is used up.
    pub(super) fn new(publics: usize, memory: &mut impl Memory<'m>) -> Option<Self> {
        let PublicAddress { address, vni, vm } = PublicAddress::default();
        let none = Public {
            address,
            vm,
            vni,
            neighbour: 0,
        };
        let by_address = ProbeMap::<[u64; 2], 3>::buckets_for(publics);
        let by_seat = ProbeMap::<u64, 5>::buckets_for(publics);
        Some(Self {
            all: memory.take(publics, none)?,
            by_address: ProbeMap::new(memory.take(by_address, VipBucket::EMPTY)?),
            by_seat: ProbeMap::new(memory.take(by_seat, RuleBucket::EMPTY)?),
        })
    }

    /// Records a public address. An error is the index of an earlier one: `Ok` where it has the
    /// same public address, `Err` where it has the same own one.
    pub(super) fn insert(
        &mut self,
        index: u32,
        public: Public,
        seat: u64,
    ) -> Result<(), Result<u32, u32>> {
        let address = words(public.address);
        self.by_address.insert(address, index).map_err(Ok)?;
        self.by_seat.insert(seat, index).map_err(Err)?;
        self.all[index as usize] = public;
        Ok(())
    }

    /// Returns true if there are no public addresses.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Returns the entry of a public address.
    pub(crate) fn at(&self, address: IpAddr) -> Option<&Public> {
        if self.is_empty() {
            return None;
        }
        self.all.get(self.by_address.get(words(address))? as usize)
    }

    /// Returns the entry of a vm's own address, by its number and network.
    pub(super) fn of_seat(&self, seat: u64) -> Option<&Public> {
        self.all.get(self.by_seat.get(seat)? as usize)
    }
}
