//! The tests of this crate as one program, which compiles in a fraction of the time that one program for each file
//! takes. `cargo test -p slb-control --test all config::` runs those of one file.

mod address_conflicts;
mod addresses;
#[cfg(feature = "azure")]
mod azure;
#[cfg(feature = "azure")]
mod azure_arguments;
#[cfg(feature = "azure")]
mod azure_functions;
#[cfg(feature = "azure")]
mod azure_networks;
mod azure_places;
#[cfg(feature = "azure")]
mod azure_stand_ins;
#[cfg(feature = "azure")]
mod azure_templates;
mod config;
mod diff;
mod every_address;
mod fleet;
mod gateways;
mod health;
mod impossible;
mod inside;
mod limits;
mod losses;
mod messages;
mod network_faults;
mod networks;
mod one_mac;
mod past;
#[cfg(feature = "probe")]
mod private_frontends;
#[cfg(feature = "probe")]
mod probe;
mod probe_sources;
#[cfg(feature = "probe")]
mod prober;
mod public_addresses;
mod quic;
mod scale;
mod seats;
mod security;
#[cfg(feature = "probe")]
mod vms;
mod zones;
