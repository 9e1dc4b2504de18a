//! Networks of vms, and vms that are no backends.

use core::ffi::c_int;

use slb_core::PortId;
use slb_core::spec::{Network, NetworkVm, Prefix};
use slb_core::wire::vxlan::Vni;

use super::fault::Fault;
use super::{Parts, change, slb_builder};
use crate::error::Error;
use crate::memory::{array_of, shared};
use crate::spec::{slb_address, slb_network, slb_vm};

/// Adds a network, whose vms host agents connect. Returns its index.
///
/// # Safety
/// `builder` is a builder, and `network` points to a network with as many prefixes and gateways as it
/// says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_network(
    builder: *mut slb_builder,
    network: *const slb_network,
) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: guaranteed by the caller.
        let given = unsafe { shared(network) }?;
        // SAFETY: as above.
        let name = unsafe { parts.named(given.name) }?;
        let vni = Vni::new(given.vni);
        let vni = vni.ok_or(Fault::expected("vni", "at most 16777215", given.vni))?;
        // SAFETY: as above.
        let prefixes = unsafe { list(given.prefixes, given.prefix_count) };
        let prefixes = prefixes.map_err(|error| Fault::from(error).of("prefixes"))?;
        // SAFETY: as above.
        let gateways = unsafe { list(given.gateways, given.gateway_count) };
        let gateways = gateways.map_err(|error| Fault::from(error).of("gateways"))?;
        for prefix in prefixes {
            let address = prefix.address.required("prefixes")?;
            let (most, expected) = match address.is_ipv4() {
                true => (32, "at most 32 bits"),
                false => (128, "at most 128 bits"),
            };
            if prefix.length > most {
                return Err(Fault::expected("prefixes", expected, prefix.length));
            }
        }
        check(gateways, "gateways")?;
        if parts.networks.room() == 0 {
            return Err(parts.networks.full());
        }
        if prefixes.len() > parts.network_prefixes.room() {
            return Err(parts.network_prefixes.full());
        }
        if gateways.len() > parts.network_gateways.room() {
            return Err(parts.network_gateways.full());
        }
        let first = (parts.network_prefixes.len, parts.network_gateways.len);
        for prefix in prefixes {
            parts.network_prefixes.push(Prefix {
                address: prefix.address.required("prefixes")?,
                len: prefix.length,
            })?;
        }
        for gateway in gateways {
            parts.network_gateways.push(gateway.required("gateways")?)?;
        }
        let network = Network {
            name,
            vni,
            ..Network::default()
        };
        let ends = (parts.network_prefixes.len, parts.network_gateways.len);
        let of = ((first.0, ends.0), (first.1, ends.1));
        parts.networks.push((network, of.0, of.1))
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "network", add) }
}

/// Makes a frontend private to a network, both given by their indexes: only vms of the network reach it, and the host
/// agent of the calling vm chooses the backend. Its address has to be in the network's address spaces, and its rules
/// have to lead to pools of the network. Returns 0.
///
/// # Safety
/// `builder` is a builder.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_private_frontend(
    builder: *mut slb_builder,
    network: usize,
    frontend: usize,
) -> c_int {
    let add = |parts: &mut Parts| {
        for (field, index, count) in [
            ("network", network, parts.networks.len),
            ("frontend", frontend, parts.frontends.len),
        ] {
            if index >= count {
                return Err(Fault::index(field, index, count));
            }
        }
        if parts.private_frontends.all().contains(&frontend) {
            return Err(Fault::unfit("frontend", "one that is not private yet"));
        }
        let place = parts
            .private
            .all()
            .partition_point(|(of, _)| *of <= network);
        parts.private.insert(place, (network, frontend))?;
        parts.private_frontends.insert(place, frontend)?;
        Ok(0)
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "private frontend", add) }
}

/// Adds a vm of a network that is no backend, or further addresses of one that is. Returns its
/// index.
///
/// # Safety
/// `builder` is a builder, and `vm` points to a vm with as many addresses as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slb_builder_vm(builder: *mut slb_builder, vm: *const slb_vm) -> c_int {
    let add = |parts: &mut Parts| {
        // SAFETY: guaranteed by the caller.
        let given = unsafe { shared(vm) }?;
        // SAFETY: as above.
        let name = unsafe { parts.named(given.name) }?;
        // SAFETY: as above.
        let addresses = unsafe { list(given.addresses, given.address_count) };
        let addresses = addresses.map_err(|error| Fault::from(error).of("addresses"))?;
        check(addresses, "addresses")?;
        let port = match given.port {
            ..=0 => None,
            port => {
                let expected = || Fault::expected("port", "at most 65535", port);
                Some(PortId(u16::try_from(port).map_err(|_| expected())?))
            }
        };
        let vm = NetworkVm {
            name,
            network: given.network,
            addresses: &[],
            host: given.host.required("host")?,
            mac: given.mac.optional(),
            next_hop: given.next_hop.optional(),
            port,
            security_lists: &[],
        };
        if parts.vms.room() == 0 {
            return Err(parts.vms.full());
        }
        if addresses.len() > parts.vm_addresses.room() {
            return Err(parts.vm_addresses.full());
        }
        let first = parts.vm_addresses.len;
        for address in addresses {
            parts.vm_addresses.push(address.required("addresses")?)?;
        }
        parts.vms.push((vm, first, first + addresses.len()))
    };
    // SAFETY: guaranteed by the caller.
    unsafe { change(builder, "vm", add) }
}

/// Reads a caller's list; an empty list may be NULL.
///
/// # Safety
/// As for [`array_of`], where `count` is not 0.
unsafe fn list<'a, T>(pointer: *const T, count: usize) -> Result<&'a [T], Error> {
    match count {
        0 => Ok(&[]),
        // SAFETY: guaranteed by the caller.
        _ => unsafe { array_of(pointer, count) },
    }
}

/// Returns an error if any of several addresses is none.
fn check(addresses: &[slb_address], field: &'static str) -> Result<(), Fault> {
    addresses
        .iter()
        .try_for_each(|address| address.required(field).map(drop))
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use crate::builder::slb_builder_frontend;
    use crate::builder::{Builder, slb_builder_new, slb_capacity};
    use crate::builder::{slb_builder_free, slb_builder_underlay};
    use crate::error::slb_error::SLB_ERROR_RANGE;
    use crate::spec::{slb_frontend, slb_mac, slb_prefix, slb_underlay};

    #[test]
    fn networks_are_as_they_were_given() {
        let capacity = slb_capacity {
            frontends: 3,
            networks: 2,
            network_prefixes: 2,
            network_gateways: 1,
            vms: 2,
            vm_addresses: 3,
            ..slb_capacity::default()
        };
        let address = |text: &str| slb_address::of(text.parse().expect("an address"));
        let prefix = |text, length| slb_prefix {
            address: address(text),
            length,
        };
        let (blue, red) = (prefix("10.1.0.0", 16), prefix("10.1.0.0", 24));
        let gateway = address("10.1.0.1");
        let mut network = slb_network {
            name: c"blue".as_ptr(),
            prefixes: &raw const blue,
            prefix_count: 1,
            gateways: &raw const gateway,
            gateway_count: 1,
            vni: 5001,
        };
        let addresses = [address("10.1.0.11"), address("10.1.0.12")];
        let mut vm = slb_vm {
            name: c"a".as_ptr(),
            network: 0,
            addresses: addresses.as_ptr(),
            address_count: 2,
            host: address("172.16.0.101"),
            mac: slb_mac::default(),
            port: 3,
            next_hop: slb_mac::default(),
        };
        let underlay = slb_underlay {
            ipv4: address("172.16.0.101"),
            ..slb_underlay::default()
        };
        let mut builder = core::ptr::null_mut();
        // SAFETY: all pointers are to what they say.
        unsafe {
            assert_eq!(slb_builder_new(&raw const capacity, &raw mut builder), 0);
            assert_eq!(slb_builder_underlay(builder, &raw const underlay), 0);
            assert_eq!(slb_builder_network(builder, &raw const network), 0);
            (network.name, network.vni) = (c"red".as_ptr(), 5002);
            (network.prefixes, network.gateway_count) = (&raw const red, 0);
            assert_eq!(slb_builder_network(builder, &raw const network), 1);
            assert_eq!(slb_builder_vm(builder, &raw const vm), 0);
            (vm.network, vm.address_count, vm.port) = (1, 1, 0);
            assert_eq!(slb_builder_vm(builder, &raw const vm), 1);
            for (place, name, vip) in [
                (0, c"blue", "10.1.0.100"),
                (1, c"public", "203.0.113.1"),
                (2, c"red", "10.1.0.100"),
            ] {
                let frontend = slb_frontend {
                    name: name.as_ptr(),
                    address: address(vip),
                    icmp_echo: 0,
                };
                assert_eq!(slb_builder_frontend(builder, &raw const frontend), place);
            }
            // In whatever order they come.
            assert_eq!(slb_builder_private_frontend(builder, 1, 2), 0);
            assert_eq!(slb_builder_private_frontend(builder, 0, 0), 0);
            for (network, frontend) in [(2, 1), (0, 3), (0, 2)] {
                let refused = slb_builder_private_frontend(builder, network, frontend);
                assert_eq!(refused, SLB_ERROR_RANGE as c_int);
            }
            let given = Builder::of(builder).expect("a builder").with_spec(|spec| {
                assert_eq!(spec.networks[0].frontends, [0]);
                assert_eq!(spec.networks[1].frontends, [2]);
                assert_eq!(spec.faults().next(), None);
                let networks = spec.networks.iter();
                let networks: Vec<_> = networks
                    .map(|of| (of.name, of.vni.get(), of.prefixes[0].len, of.gateways.len()))
                    .collect();
                assert_eq!(networks, [("blue", 5001, 16, 1), ("red", 5002, 24, 0)]);
                let vms = spec.vms.iter();
                let vms: Vec<_> = vms
                    .map(|vm| (vm.network, vm.addresses.len(), vm.port))
                    .collect();
                assert_eq!(vms, [(0, 2, Some(PortId(3))), (1, 1, None)]);
            });
            given.expect("a spec");
            assert_eq!(slb_builder_free(builder), 0);
        }
    }
}
