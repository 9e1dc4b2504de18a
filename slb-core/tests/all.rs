//! The tests of this crate as one program, which compiles in a fraction of the time that one program for each file
//! takes. `cargo test -p slb-core --test all nat::` runs those of one file.
//!
//! The files `vectors.rs` and `soak.rs` are programs of their own: the first runs on other machines too, and the second
//! counts what is allocated.

mod common;
mod passing;
mod snat_world;
mod translated;
mod trio;

mod addresses;
mod backend_state;
#[path = "choices/main.rs"]
mod choices;
mod client_side;
mod clocks;
mod conflicts;
mod connections;
mod counters;
mod examples;
mod fleet;
mod fleet_any;
mod fleet_flood;
mod flood;
mod flood_again;
mod flood_nat;
mod flow_table;
mod flows_move;
mod follows;
mod fragmented_syn;
#[path = "fragments/main.rs"]
mod fragments;
mod hairpin;
#[path = "health/main.rs"]
mod health;
mod icmp;
mod icmp_kinds;
mod icmp_of_no_flow;
mod inside;
mod lengths;
mod lineage;
mod list;
mod maglev;
mod martians;
mod metering;
mod mux;
mod mux_flows;
mod names;
#[path = "nat/main.rs"]
mod nat;
mod native;
#[path = "networks/main.rs"]
mod networks;
mod no_rule;
mod outer_ports;
mod over;
mod owned_snapshot;
mod pass_on;
mod pinning;
mod port_zero;
#[path = "private/main.rs"]
mod private;
mod probe_source;
mod proxy;
mod proxy_next_hops;
#[path = "proxy_world/main.rs"]
mod proxy_world;
#[path = "public/main.rs"]
mod public;
mod quic;
mod rates;
mod refused_take_up;
mod removed_rules;
mod seats;
#[path = "security/main.rs"]
mod security;
mod services;
mod snat;
mod spec;
mod spec_faults;
mod stable_names;
mod state;
#[path = "state_world/main.rs"]
mod state_world;
mod steer;
mod tagged;
mod take_up;
mod take_up_frontends;
mod take_up_proxy;
mod trail;
mod unproven_pins;
mod used_ports;
mod via;
mod vm_moves;
mod ways;
#[path = "world/main.rs"]
mod world;

/// Files that are not named here would not run.
#[test]
fn every_file_of_tests_is_part_of_a_program() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let own = std::fs::read_to_string(folder.join("all.rs")).unwrap();
    let manifest = std::fs::read_to_string(folder.join("../Cargo.toml")).unwrap();
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let is_test = path.extension().is_some_and(|extension| extension == "rs")
            || path.join("main.rs").exists();
        if is_test {
            let is_module = own.lines().any(|line| line == format!("mod {name};"));
            let is_program = manifest.contains(&format!("path = \"tests/{name}.rs\""));
            assert!(
                is_module || is_program,
                "{name} is in neither all.rs nor Cargo.toml"
            );
            count += 1;
        }
    }
    assert!(count > 50, "{count} files");
}
