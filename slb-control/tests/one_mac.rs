//! A MAC address of a host and network is one vm's: two that name it are refused, and one vm that serves over both
//! families, in two pools or beside a `[[vm]]` is taken.

use slb_control::Config;

const MAC: &str = "02:00:00:00:00:09";

/// A host agent or a mux whose network has these backends and vms, each with its name, its address and more fields.
/// Each backend has a pool of its own.
fn file(role: &str, backends: &[[&str; 3]], vms: &[[&str; 3]]) -> String {
    let underlay = match role {
        "host" => "[\"172.16.0.101\", \"fd00:16::101\"]",
        _ => "[\"172.16.0.11\", \"fd00:16::11\"]",
    };
    let mut text = format!(
        "[node]\nrole = \"{role}\"\nunderlay = {underlay}\n[[network]]\nname = \"n\"\nvni = 7\n\
         address_spaces = [\"10.0.0.0/8\", \"fd00:10::/32\"]\n"
    );
    for (place, [name, address, more]) in backends.iter().enumerate() {
        text += &format!(
            "[[pool]]\nname = \"p{place}\"\nvni = 7\nbackends = [\
             {{ name = \"{name}\", address = \"{address}\", host = \"172.16.0.101\"{more} }}]\n"
        );
    }
    for [name, address, more] in vms {
        let more = more.replace(", ", "\n");
        text += &format!(
            "[[vm]]\nname = \"{name}\"\nnetwork = \"n\"\naddress = \"{address}\"\nhost = \"172.16.0.101\"{more}\n"
        );
    }
    text
}

#[test]
fn two_vms_of_one_mac_address_are_refused_and_one_is_taken() {
    let mac = format!(", mac = \"{MAC}\"");
    let at_port = format!(", mac = \"{MAC}\", port = 3");
    let (mac, at_port) = (mac.as_str(), at_port.as_str());
    let a = ["a", "10.0.0.1", mac];
    let b = ["b", "10.0.0.2", mac];
    let six = ["six", "fd00:10::6", mac];
    for (backends, vms, expected) in [
        // Two vms.
        (
            &[a, b][..],
            &[][..],
            "pool \"p1\": backend \"b\": its MAC address 02:00:00:00:00:09 is that of backend \"a\" of pool \"p0\"",
        ),
        (
            &[],
            &[a, b],
            "vm \"b\": its MAC address 02:00:00:00:00:09 is that of vm \"a\" on the same host and network",
        ),
        (
            &[a],
            &[b],
            "vm \"b\": its MAC address 02:00:00:00:00:09 is that of backend \"a\" of pool \"p0\"",
        ),
        (
            &[],
            &[["a", "10.0.0.1", at_port], ["b", "10.0.0.2", at_port]],
            "vm \"b\": its MAC address",
        ),
        // The IPv6 side of one is not that of two.
        (
            &[a, six, b],
            &[],
            "pool \"p2\": backend \"b\": its MAC address",
        ),
        (&[a, six], &[b], "vm \"b\": its MAC address"),
        (&[], &[a, six], "vm \"six\": its MAC address"),
        // One vm.
        (&[a, six], &[], ""),
        (&[a], &[six], ""),
        (&[a, a], &[], ""),
        (&[a, ["other", "10.0.0.1", mac]], &[], ""),
        (&[a], &[["a", "10.0.0.2", mac]], ""),
        (
            &[["a", "10.0.0.1", at_port]],
            &[["b", "10.0.0.2", at_port]],
            "",
        ),
        (&[["a", "10.0.0.1", at_port]], &[["a", "10.0.0.2", mac]], ""),
        // Two vms with two.
        (&[a], &[["b", "10.0.0.2", ""]], ""),
    ] {
        for role in ["mux", "host"] {
            let text = file(role, backends, vms);
            match Config::parse("f.toml", &text) {
                Ok(_) => assert_eq!("", expected, "taken:\n{text}"),
                Err(told) => {
                    let told = told.to_string();
                    assert!(
                        !expected.is_empty() && told.contains(expected),
                        "{expected}\n{told}\n{text}"
                    );
                }
            }
        }
    }
}

/// Thousands of vms of one host and MAC address are told of in a moment.
#[test]
fn thousands_of_one_mac_address_are_told_of() {
    let mac = format!(", mac = \"{MAC}\"");
    let names: Vec<[String; 2]> = (0..20_000_u32)
        .map(|n| [format!("v{n}"), format!("10.1.{}.{}", n >> 8, n & 255)])
        .collect();
    let vms: Vec<[&str; 3]> = names
        .iter()
        .map(|[name, address]| [&**name, &**address, &*mac])
        .collect();
    let told = Config::parse("f.toml", &file("mux", &[], &vms)).expect_err("one MAC address");
    assert_eq!(told.to_string().lines().count(), 19_999);
}
