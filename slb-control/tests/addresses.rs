//! Addresses that no host can have, and machines that two things claim.

use slb_control::Config;

/// The faults of a configuration, a line each, without the file's name.
fn faults(text: &str) -> Vec<String> {
    match Config::parse("f.toml", text) {
        Ok(_) => Vec::new(),
        Err(errors) => errors
            .to_string()
            .lines()
            .map(|line| line.trim_start_matches("f.toml:").to_owned())
            .collect(),
    }
}

/// A mux with one rule; the arguments are lines of `[node]`, the frontend's address and the backends.
fn mux(node: &str, vip: &str, backends: &str) -> String {
    format!(
        "[node]\nrole = \"mux\"\n{node}\n[[frontend]]\nname = \"v\"\naddress = \"{vip}\"\n\
         [[pool]]\nname = \"p\"\nvni = 5001\nbackends = [\n{backends}\n]\n\
         [[rule]]\nname = \"r\"\nfrontend = \"v\"\npool = \"p\"\nprotocol = \"tcp\"\nfrontend_port = 80\n"
    )
}

const NODE: &str = "underlay = [\"172.16.0.11\", \"fd00:16::11\"]";
const VIP: &str = "20.20.20.100";
const BACKEND: &str = "{ name = \"b\", address = \"10.0.0.1\", host = \"172.16.0.101\" }";

#[track_caller]
fn refused(text: &str, line: usize, words: &[&str]) {
    let faults = faults(text);
    let found = faults.iter().any(|fault| {
        fault.starts_with(&format!("{line}: ")) && words.iter().all(|word| fault.contains(word))
    });
    assert!(
        found,
        "no fault on line {line} with {words:?}:\n{}\nin\n{text}",
        faults.join("\n")
    );
}

#[track_caller]
fn taken(text: &str) {
    assert_eq!(faults(text), Vec::<String>::new(), "in\n{text}");
}

const NO_HOST: [&str; 14] = [
    "0.0.0.0",
    "0.1.2.3",
    "127.0.0.1",
    "127.255.0.9",
    "169.254.1.1",
    "224.0.0.1",
    "239.1.2.3",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "ff02::1",
    "::ffff:10.0.0.1",
];

#[test]
fn addresses_that_no_host_can_have_are_refused_line_by_line() {
    taken(&mux(NODE, VIP, BACKEND));
    for address in NO_HOST {
        let quoted = format!("\"{address}\"");
        refused(
            &mux(&format!("underlay = {quoted}"), VIP, BACKEND),
            3,
            &["underlay", &quoted],
        );
        refused(
            &mux(&format!("{NODE}\nmuxes = [{quoted}]"), VIP, BACKEND),
            4,
            &["muxes", &quoted],
        );
        refused(
            &mux(NODE, address, BACKEND),
            6,
            &["frontend", "address", &quoted],
        );
        let backend = format!("{{ name = \"b\", address = {quoted}, host = \"172.16.0.101\" }}");
        refused(
            &mux(NODE, VIP, &backend),
            11,
            &["backend", "address", &quoted],
        );
        let backend = format!("{{ name = \"b\", address = \"10.0.0.1\", host = {quoted} }}");
        refused(&mux(NODE, VIP, &backend), 11, &["backend", "host", &quoted]);
    }
}

#[test]
fn mac_addresses_of_groups_and_of_no_station_are_refused() {
    for address in [
        "ff:ff:ff:ff:ff:ff",
        "01:00:5e:00:00:01",
        "33:33:00:00:00:01",
        "00:00:00:00:00:00",
    ] {
        for field in ["mac", "next_hop"] {
            refused(
                &mux(&format!("{NODE}\n{field} = \"{address}\""), VIP, BACKEND),
                4,
                &[field, address],
            );
            let backend = format!(
                "{{ name = \"b\", address = \"10.0.0.1\", host = \"172.16.0.101\", {field} = \"{address}\" }}"
            );
            refused(&mux(NODE, VIP, &backend), 11, &["backend", field, address]);
        }
    }
}

#[test]
fn a_vip_that_is_a_machine_of_the_fabric_is_refused() {
    refused(
        &mux(NODE, "172.16.0.11", BACKEND),
        4,
        &["frontend \"v\": address", "this node"],
    );
    refused(
        &mux(NODE, "172.16.0.101", BACKEND),
        4,
        &["frontend \"v\": address", "the host of backend \"b\""],
    );
    let with_mux = format!("{NODE}\nmuxes = [\"172.16.0.12\"]");
    refused(
        &mux(&with_mux, "172.16.0.12", BACKEND),
        5,
        &["frontend \"v\": address", "a mux"],
    );
    let ipv6 = "{ name = \"b\", address = \"fd00:10::1\", host = \"fd00:16::101\" }";
    refused(
        &mux(NODE, "fd00:16::11", ipv6),
        4,
        &["frontend \"v\": address", "this node"],
    );
    refused(
        &mux(NODE, "fd00:16::101", ipv6),
        4,
        &["frontend \"v\": address", "the host of backend \"b\""],
    );
}

/// Both roles look at MAC addresses: a mux would send to the wrong vm, a host would deliver to it.
fn roles(backends: &str, vip: &str) -> [String; 2] {
    let mux = mux(NODE, vip, backends);
    let host = mux
        .replace("role = \"mux\"", "role = \"host\"")
        .replace(NODE, "underlay = [\"172.16.0.101\", \"fd00:16::101\"]");
    [mux, host]
}

#[test]
fn derived_mac_addresses_that_collide_are_refused() {
    let collide = "{ name = \"s1\", address = \"fc00:a::1\", host = \"172.16.0.101\" },\n\
                   { name = \"s2\", address = \"fc00:b::1\", host = \"172.16.0.101\" }";
    let elsewhere = collide.replacen("172.16.0.101", "172.16.0.102", 1);
    let said = collide.replace("fc00:b::1\"", "fc00:b::1\", mac = \"02:00:00:00:00:02\"");
    for text in roles(collide, "fc00:1::1") {
        refused(
            &text,
            12,
            &[
                "backend \"s2\"",
                "0a:58:00:00:00:01",
                "backend \"s1\"",
                "write a mac",
            ],
        );
    }
    taken(&roles(&elsewhere, "fc00:1::1")[0]);
    for text in roles(&said, "fc00:1::1") {
        taken(&text);
    }
}

#[test]
fn two_vms_with_one_mac_address_are_refused() {
    let mac = "mac = \"02:00:00:00:00:01\"";
    let two = format!(
        "{{ name = \"a\", address = \"10.0.0.1\", host = \"172.16.0.101\", {mac} }},\n\
         {{ name = \"b\", address = \"10.0.0.2\", host = \"172.16.0.101\", {mac} }}"
    );
    for text in roles(&two, VIP) {
        refused(
            &text,
            12,
            &[
                "backend \"b\"",
                "02:00:00:00:00:01",
                "backend \"a\"",
                "two vms need two",
            ],
        );
    }
    let one = two.replace(&format!("{mac} }}"), &format!("{mac}, port = 4 }}"));
    for text in roles(&one, VIP) {
        taken(&text);
    }
    let split = one.replacen("port = 4", "port = 3", 1);
    for text in roles(&split, VIP) {
        refused(
            &text,
            12,
            &[
                "backend \"b\"",
                "is one vm with backend \"a\"",
                "port 3",
                "port 4",
            ],
        );
    }
}

#[test]
fn a_vm_that_serves_over_both_families_or_in_two_pools_is_at_one_port() {
    let text = "[node]\nrole = \"host\"\nunderlay = [\"172.16.0.101\", \"fd00:16::101\"]\n\
        [[pool]]\nname = \"web\"\nvni = 5001\nbackends = [\n\
        { name = \"vm1\", address = \"10.0.0.1\", host = \"172.16.0.101\", mac = \"02:00:00:00:00:01\" },\n\
        { name = \"vm2\", address = \"10.0.0.2\", host = \"172.16.0.101\", mac = \"02:00:00:00:00:02\" }]\n\
        [[pool]]\nname = \"web6\"\nvni = 5001\nbackends = [\n\
        { name = \"vm1\", address = \"fd00:10::1\", host = \"fd00:16::101\", mac = \"02:00:00:00:00:01\" }]\n\
        [[pool]]\nname = \"api\"\nvni = 5001\nbackends = [\n\
        { name = \"api2\", address = \"10.0.0.2\", host = \"172.16.0.101\", mac = \"02:00:00:00:00:02\", port = 9 }]\n";
    let config = Config::parse("f.toml", text).unwrap();
    let vms: Vec<_> = config
        .vms()
        .into_iter()
        .map(|vm| (vm.name, vm.port.unwrap().0, vm.addresses.len()))
        .collect();
    assert_eq!(vms, [("vm1".to_owned(), 1, 2), ("vm2".to_owned(), 9, 1)]);
    config.with_spec(|spec| {
        let ports = |pool: usize| -> Vec<_> {
            spec.pools[pool]
                .backends
                .iter()
                .map(|backend| backend.port.unwrap().0)
                .collect()
        };
        assert_eq!(
            (ports(0), ports(1), ports(2)),
            (vec![1, 9], vec![1], vec![9])
        );
    });
    assert!(config.warnings().is_empty(), "{:?}", config.warnings());
    // In another network it is another vm, which is seldom what was meant.
    let apart = text.replacen(
        "name = \"web6\"\nvni = 5001",
        "name = \"web6\"\nvni = 5002",
        1,
    );
    let warnings = Config::parse("f.toml", &apart).unwrap().warnings();
    assert_eq!(
        warnings,
        [
            "vm \"vm1\" of VNI 5001 and vm \"vm1\" of VNI 5002 have one MAC address, 02:00:00:00:00:01, but are two vms, \
          at ports 1 and 2: give both pools one vni if it is one vm"
        ]
    );
}

#[test]
fn ipv6_through_vxlan_that_carries_less_than_1280_is_refused() {
    let with =
        |mtu: u32, backend: &str| mux(&format!("{NODE}\nmtu = {mtu}"), "fd00:20::1", backend);
    let over_ipv4 = "{ name = \"b\", address = \"fd00:10::1\", host = \"172.16.0.101\" }";
    let over_ipv6 = "{ name = \"b\", address = \"fd00:10::1\", host = \"fd00:16::101\" }";
    refused(
        &with(1329, over_ipv4),
        12,
        &["backend \"b\"", "mtu of 1330 or more", "got 1329", "1280"],
    );
    taken(&with(1330, over_ipv4));
    refused(
        &with(1349, over_ipv6),
        12,
        &["backend \"b\"", "mtu of 1350 or more", "got 1349"],
    );
    taken(&with(1350, over_ipv6));
    taken(&mux(&format!("{NODE}\nmtu = 600"), VIP, BACKEND));
}

#[test]
fn a_weight_that_gives_no_slot_is_refused() {
    let with = |size: u32, weight: u32| {
        mux(
            NODE,
            VIP,
            &format!(
                "{{ name = \"a\", address = \"10.0.0.1\", host = \"172.16.0.101\", weight = {weight} }},\n\
                 {{ name = \"b\", address = \"10.0.0.2\", host = \"172.16.0.102\" }}"
            ),
        )
        .replace("vni = 5001", &format!("vni = 5001\ntable_size = {size}"))
    };
    refused(
        &with(101, 1000),
        13,
        &[
            "backend \"b\": weight",
            "weight 1 of 1001",
            "101",
            "1001 or more",
        ],
    );
    taken(&with(1009, 1000));
    taken(&with(101, 100));
    taken(&with(101, 0));
}
