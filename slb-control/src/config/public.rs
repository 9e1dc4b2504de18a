//! Public addresses of single vms.

use std::collections::HashMap;
use std::net::IpAddr;

use slb_core::spec;
use slb_core::wire::vxlan::Vni;

use super::addresses::{self, Kind};
use super::{Config, Network, Pool};
use crate::document::{Section, Span};
use crate::validate::Names;

/// `[[public_address]]`: 1:1 NAT of a public address to one vm.
#[derive(Clone, Debug)]
pub struct PublicAddress {
    /// The public address.
    pub address: IpAddr,
    /// The vm's own address.
    pub vm: IpAddr,
    /// VXLAN network identifier of the vm's network or pool.
    pub vni: Vni,
    pub(crate) span: Span,
}

impl PublicAddress {
    pub(super) fn spec(&self) -> spec::PublicAddress {
        spec::PublicAddress {
            address: self.address,
            vni: self.vni,
            vm: self.vm,
        }
    }
}

impl Config {
    /// Yields the addresses that muxes take packets for: those of public frontends, and public
    /// addresses of vms.
    pub fn outside_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let frontends = self.frontends.iter();
        let public = frontends.filter(|frontend| frontend.network.is_none());
        let vips = public.map(|frontend| frontend.address);
        let publics = self.public_addresses.iter();
        vips.chain(publics.map(|public| public.address))
    }
}

/// The VNIs of backends by their addresses: the first one, and another one where there are several.
pub(super) struct BackendVnis(HashMap<IpAddr, (Vni, Option<Vni>)>);

impl BackendVnis {
    pub(super) fn of(pools: &[Pool]) -> Self {
        let mut all = HashMap::new();
        for pool in pools {
            for backend in &pool.backends {
                let (first, other) = all.entry(backend.address).or_insert((pool.vni, None));
                if *first != pool.vni {
                    other.get_or_insert(pool.vni);
                }
            }
        }
        Self(all)
    }
}

/// Reads a public address. Without `network`, its vm is a backend with an address of its own.
pub(super) fn read_public<'a>(
    section: Section<'_>,
    names: &Names,
    networks: Option<&[Network]>,
    backends: impl FnOnce() -> Option<&'a BackendVnis>,
) -> Option<PublicAddress> {
    let address = addresses::required(&section, "address", Kind::Host);
    let vm = addresses::required(&section, "vm", Kind::Host);
    let vni = match section.has("network") {
        true => {
            let place = super::read::refer(&section, "network", names);
            place.and_then(|place| Some(networks?.get(place)?.vni))
        }
        false => vm
            .as_ref()
            .and_then(|(vm, span)| vni_of_backend(&section, (*vm, span), backends()?)),
    };
    let span = section.span().clone();
    section.finish();
    Some(PublicAddress {
        address: address?.0,
        vm: vm?.0,
        vni: vni?,
        span,
    })
}

/// Returns the VNI of the backend with an address.
fn vni_of_backend(
    section: &Section<'_>,
    (vm, span): (IpAddr, &Span),
    backends: &BackendVnis,
) -> Option<Vni> {
    let Some(&(first, other)) = backends.0.get(&vm) else {
        let message = format!(
            "expected the address of a backend, got {vm}: with a network, the address of any of its vms"
        );
        section.fault(span, "vm", message);
        return None;
    };
    if let Some(other) = other {
        let message = format!(
            "{vm} is a backend's address in VNI {first} and in VNI {other}: expected a network to say which"
        );
        section.fault(span, "vm", message);
        return None;
    }
    Some(first)
}
