//! Addresses that no gateway of a network can have are refused by name.

use slb_control::Config;

fn faults(spaces: &str, gateway: &str) -> Option<String> {
    let text = format!(
        "[node]\nrole = \"host\"\nunderlay = \"172.16.0.101\"\n\
         [[network]]\nname = \"blue\"\nvni = 5001\naddress_spaces = {spaces}\ngateways = \"{gateway}\"\n\
         [[pool]]\nname = \"servers\"\nnetwork = \"blue\"\nbackends = [\n\
         {{ name = \"vm1\", address = \"10.1.0.11\", host = \"172.16.0.101\" }} ]\n\
         [[vm]]\nname = \"client\"\nnetwork = \"blue\"\naddress = [\"10.1.0.21\", \"fd00:1::21\"]\n\
         host = \"172.16.0.101\"\n"
    );
    Config::parse("t.toml", &text)
        .err()
        .map(|errors| errors.to_string())
}

const SPACES: &str =
    "[\"10.1.0.0/24\", \"10.1.4.0/30\", \"10.1.5.0/31\", \"10.1.6.0/32\", \"fd00:1::/64\"]";

#[test]
fn a_gateway_is_neither_the_first_nor_the_last_address_of_a_space() {
    for (gateway, space) in [
        ("10.1.0.0", "10.1.0.0/24"),
        ("10.1.0.255", "10.1.0.0/24"),
        ("10.1.4.0", "10.1.4.0/30"),
        ("10.1.4.3", "10.1.4.0/30"),
    ] {
        let said = faults(SPACES, gateway).expect(gateway);
        let expected = format!(
            "network \"blue\": gateways: expected an address that a router can have, but {gateway} is the first or \
             the last of {space}"
        );
        assert!(said.contains(&expected), "{said}");
    }
    // Others are fine: RFC 3021 has no broadcast in a space of two, and IPv6 has none at all.
    for gateway in [
        "10.1.0.1",
        "10.1.0.254",
        "10.1.4.1",
        "10.1.5.0",
        "10.1.5.1",
        "10.1.6.0",
        "fd00:1::1",
        "fd00:1::ffff:ffff:ffff:ffff",
    ] {
        assert_eq!(faults(SPACES, gateway), None, "{gateway}");
    }
}

#[test]
fn a_gateway_has_no_vms_address() {
    for gateway in ["10.1.0.11", "10.1.0.21", "fd00:1::21"] {
        let said = faults(SPACES, gateway).expect(gateway);
        let expected = format!(
            "network \"blue\": gateways: expected an address that no vm has, got {gateway}"
        );
        assert!(said.contains(&expected), "{said}");
    }
}
