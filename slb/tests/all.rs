//! The tests of this crate as one program, which compiles in a fraction of the time that one program for each file
//! takes. `cargo test -p slb --test all cli::` runs those of one file.

#[macro_use]
mod common;

mod access_lists;
mod announce;
#[cfg(feature = "live")]
mod ansible;
mod asking;
#[cfg(feature = "azure")]
mod azure;
mod c;
mod captures;
mod cases;
mod changes;
mod cli;
mod command_line;
mod contributing;
#[cfg(feature = "live")]
mod controller;
mod counters;
mod device_ports;
#[cfg(feature = "live")]
mod devices;
#[cfg(feature = "live")]
mod events;
mod explaining;
mod faults;
mod file_types;
#[cfg(feature = "live")]
mod fleet;
#[cfg(feature = "live")]
mod fleet_commands;
mod fleet_files;
#[cfg(feature = "live")]
mod fleet_store;
#[cfg(feature = "live")]
mod fleet_zones;
#[cfg(feature = "live")]
mod fragments;
#[cfg(feature = "live")]
mod handover;
mod import_files;
#[cfg(feature = "azure")]
mod import_networks;
#[cfg(feature = "azure")]
mod import_templates;
mod init;
#[cfg(feature = "live")]
mod ipv6_fabric;
mod kernel_settings;
#[cfg(feature = "live")]
mod lab;
mod large_files;
#[cfg(feature = "live")]
mod live;
#[cfg(feature = "live")]
mod look;
mod manual;
#[cfg(feature = "live")]
mod metrics;
#[path = "nat/main.rs"]
mod nat;
mod networks;
mod networks_explained;
mod operations;
#[cfg(feature = "live")]
mod operations_nodes;
#[cfg(all(feature = "top", feature = "azure"))]
mod operators;
mod outcomes;
#[cfg(feature = "live")]
mod package;
mod printing;
mod private_vips;
mod proxy_subnet;
#[cfg(feature = "live")]
mod public_live;
mod queues;
mod reloads;
mod replay_files;
mod report_page;
mod report_pictures;
#[cfg(feature = "live")]
mod resets;
#[cfg(feature = "live")]
mod restart;
mod scarce;
#[cfg(feature = "live")]
mod schema;
mod security_explained;
#[cfg(feature = "live")]
mod security_live;
mod source;
#[cfg(feature = "live")]
mod spoofed;
#[cfg(feature = "live")]
mod stacks;
#[cfg(feature = "live")]
mod storms;
#[cfg(feature = "live")]
mod systemd;
#[cfg(feature = "live")]
mod tun_follows;
#[cfg(feature = "live")]
mod tutorial;
#[cfg(feature = "live")]
mod unread_log;
mod vip_probes;
#[cfg(feature = "live")]
mod vm_moves;
mod vxlan;
#[cfg(feature = "live")]
mod workers;
#[cfg(feature = "live")]
mod zones;
mod zones_shown;
