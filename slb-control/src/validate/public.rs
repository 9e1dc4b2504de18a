//! Faults of public addresses, with their lines.

use slb_core::spec::{PublicAddressFault, SpecError};

use crate::config::{Config, MOST_RULES, PublicAddress};
use crate::document::{Faults, Span};

/// Reports more public addresses than can be compiled in a few seconds; returns true if there are.
pub(super) fn are_too_many(config: &Config, faults: &Faults<'_>) -> bool {
    let first = config.public_addresses.get(MOST_RULES);
    if let Some(public) = first {
        let count = config.public_addresses.len();
        let message = format!("expected at most {MOST_RULES} public addresses, got {count}");
        faults.add(&public.span, "public_address", message);
    }
    first.is_some()
}

/// Returns the name of an entry, for messages.
pub(super) fn place(public: &PublicAddress) -> String {
    format!("public_address {}", public.address)
}

/// Returns the line, the item and the message of a fault; `None` for any other fault.
pub(super) fn told(config: &Config, error: &SpecError) -> Option<(Span, String, String)> {
    let SpecError::PublicAddress { index, fault } = *error else {
        return None;
    };
    let entry = |index: usize| config.public_addresses.get(index);
    let public = entry(index)?;
    let (address, vm) = (public.address, public.vm);
    let (field, message) = match fault {
        PublicAddressFault::AtProxy => {
            let message = "is for roles \"mux\" and \"host\": a proxy has no vms";
            ("", message.to_owned())
        }
        PublicAddressFault::Families => (
            ": vm",
            format!("expected an address of the family of {address}, got {vm}"),
        ),
        PublicAddressFault::NoVm => {
            let network = config.network_of(public.vni);
            let network = network.map_or_else(
                || format!("VNI {}", public.vni),
                |network| format!("network {:?}", network.name),
            );
            (
                ": vm",
                format!("expected the address of a vm in {network}, got {vm}"),
            )
        }
        PublicAddressFault::Taken { .. } => (
            "",
            format!("expected an address of its own, but {address} is listed already"),
        ),
        PublicAddressFault::VmTaken { first } => {
            let first = entry(first)?.address;
            (
                ": vm",
                format!("{vm} has the public address {first} already"),
            )
        }
        PublicAddressFault::Frontend { frontend } => {
            let frontend = &config.frontends.get(frontend)?.name;
            let message =
                format!("expected an address of its own, but frontend {frontend:?} has {address}");
            (": address", message)
        }
        PublicAddressFault::InNetwork => {
            let message =
                format!("expected an address outside of the vm's own network, got {address}");
            (": address", message)
        }
        // The field reports it.
        _ => return None,
    };
    let place = format!("{}{field}", place(public));
    Some((public.span.clone(), place, message))
}
