//! Addresses and keys of a node and of rules that cannot be meant.

use slb_control::Config;

/// The faults of a configuration in one text.
fn faults(text: &str) -> String {
    match Config::parse("f.toml", text) {
        Ok(_) => String::new(),
        Err(errors) => errors.to_string(),
    }
}

/// A host; the arguments are lines of `[node]` and of the rule, and whether all addresses are IPv6.
fn host(node: &str, rule: &str, is_ipv6: bool) -> String {
    let (vip, dip) = match is_ipv6 {
        true => ("2001:db8::100", "fd00:10::1"),
        false => ("20.20.20.100", "10.0.0.1"),
    };
    format!(
        "[node]\nrole = \"host\"\nunderlay = \"172.16.0.101\"\n{node}\n\
         [[frontend]]\nname = \"v\"\naddress = \"{vip}\"\n\
         [[pool]]\nname = \"p\"\nvni = 5001\nbackends = [\n\
         {{ name = \"b\", address = \"{dip}\", host = \"172.16.0.101\" }},\n]\n\
         [[rule]]\nname = \"r\"\nfrontend = \"v\"\npool = \"p\"\nprotocol = \"tcp\"\n\
         frontend_port = 80\n{rule}\n"
    )
}

#[test]
fn source_nat_is_a_hosts_address_and_no_backends() {
    let own = "expected an address of the balancer's, but";
    let kind = "expected the IPv4 or IPv6 address of a host";
    for (address, is_ipv6, expected) in [
        ("10.9.0.1", false, ""),
        ("224.0.0.1", false, kind),
        ("0.0.0.0", false, kind),
        ("127.0.0.1", false, kind),
        ("10.0.0.1", false, own),
        ("fd00:9::1", true, ""),
        ("ff02::1", true, kind),
        ("::", true, kind),
        ("::1", true, kind),
        ("fd00:10::1", true, own),
    ] {
        let found = faults(&host("", &format!("source_nat = \"{address}\""), is_ipv6));
        assert_eq!(found.is_empty(), expected.is_empty(), "{address}: {found}");
        assert!(found.contains(expected), "{address}: {found}");
        let place = "rule \"r\": source_nat: ";
        assert!(
            found.is_empty() || found.contains(place),
            "{address}: {found}"
        );
    }
}

#[test]
fn lists_of_node_addresses_and_keys_are_checked() {
    let zeros = "0".repeat(32);
    let siphash = |key: &str| format!("hash = \"siphash-1-3\"\nhash_key = \"{key}\"");
    let toeplitz = |key: &str| format!("hash = \"toeplitz\"\nhash_key = \"{key}\"");
    for (node, expected) in [
        ("muxes = [\"172.16.0.11\", \"172.16.0.12\"]", ""),
        (
            "muxes = [\"172.16.0.11\", \"172.16.0.11\"]",
            "f.toml:4: node: muxes: 172.16.0.11 is named twice",
        ),
        ("probe_sources = [\"10.9.9.9\", \"fd09::9\"]", ""),
        (
            "probe_sources = [\"10.9.9.9\", \"10.9.9.8\"]",
            "f.toml:4: node: probe_sources: expected one address of each family at most, got 10.9.9.9 and \
             10.9.9.8",
        ),
        (
            "probe_sources = [\"fd09::9\", \"10.9.9.8\", \"fd09::8\"]",
            "f.toml:4: node: probe_sources: expected one address of each family at most, got fd09::9 and \
             fd09::8",
        ),
        (
            "probe_sources = [\"127.0.0.1\"]",
            "f.toml:4: node: probe_sources: expected the IPv4 or IPv6 address of a host (unicast, not loopback), \
             got \"127.0.0.1\"",
        ),
        (
            "probe_sources = [\"::1\"]",
            "f.toml:4: node: probe_sources: expected the IPv4 or IPv6 address of a host (unicast, not loopback), \
             got \"::1\"",
        ),
        (&siphash(&format!("{}1", &zeros[1..])), ""),
        (
            &siphash(&zeros),
            "f.toml:5: node: hash_key: expected a secret key, got zeros only",
        ),
        (&toeplitz(&format!("1{}", "0".repeat(79))), ""),
        (
            &toeplitz(&"0".repeat(80)),
            "f.toml:5: node: hash_key: expected a secret key, got zeros only",
        ),
    ] {
        assert_eq!(
            faults(&host(node, "", false)).trim_end(),
            expected,
            "{node}"
        );
    }
}

/// A proxy with backends, of one rule.
fn proxy(vip: &str, backends: &str) -> String {
    format!(
        "[node]\nrole = \"proxy\"\n[[frontend]]\nname = \"v\"\naddress = \"{vip}\"\n\
         [[pool]]\nname = \"p\"\nbackends = [\n{backends}\n]\n\
         [[rule]]\nname = \"r\"\nfrontend = \"v\"\npool = \"p\"\nprotocol = \"tcp\"\nfrontend_port = 80\n"
    )
}

#[test]
fn a_proxys_backends_are_told_apart_and_are_no_vip_of_theirs() {
    for (vip, one, other) in [
        ("20.20.20.100", "10.0.0.1", "10.0.0.2"),
        ("2001:db8::100", "fd00:10::1", "fd00:10::2"),
    ] {
        let two = |second: &str, ports: [&str; 2]| {
            let [first_port, second_port] = ports;
            proxy(
                vip,
                &format!(
                    "{{ name = \"a\", address = \"{one}\"{first_port} }},\n\
                     {{ name = \"b\", address = \"{second}\"{second_port} }},"
                ),
            )
        };
        let (p8080, p8081) = (", backend_port = 8080", ", backend_port = 8081");
        let twice = format!(
            "f.toml:10: pool \"p\": backend \"b\": address: backend \"a\" has {one} and the same port already: \
             expected a backend_port of its own, or one backend"
        );
        let served = format!(
            "f.toml:10: pool \"p\": backend \"b\": address: {vip} is the address of frontend \"v\", which it \
             serves"
        );
        for (second, ports, expected) in [
            (other, ["", ""], ""),
            (one, [p8080, p8081], ""),
            (one, ["", ""], &*twice),
            (one, [p8080, p8080], &*twice),
            (vip, ["", ""], &*served),
        ] {
            let text = two(second, ports);
            assert_eq!(faults(&text).trim_end(), expected, "{text}");
        }
    }
}
