//! Published values: see the `source` of each file in `tests/vectors`.

use serde_json::Value;
use slb_core::hash::{
    Distribution, Hasher, MICROSOFT_KEY, SipHash13, Toeplitz, TupleHasher, siphash13, siphash24,
};
use slb_core::wire::checksum;
use std::net::IpAddr;

macro_rules! vectors {
    ($file:literal) => {
        serde_json::from_str::<Value>(include_str!(concat!("vectors/", $file))).unwrap()
    };
}

fn hex(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

fn bytes(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

#[test]
fn siphash_of_all_published_lengths() {
    let vectors = vectors!("siphash-64.json");
    let key = bytes(vectors["key"].as_str().unwrap());
    let key = [0, 8].map(|i| u64::from_le_bytes(key[i..i + 8].try_into().unwrap()));
    let message: Vec<u8> = (0..64).collect();
    for n in 0..64 {
        assert_eq!(
            siphash24(key, &message[..n]),
            hex(&vectors["siphash24"][n]),
            "2-4, {n} bytes"
        );
        assert_eq!(
            siphash13(key, &message[..n]),
            hex(&vectors["siphash13"][n]),
            "1-3, {n} bytes"
        );
    }
    let first = vectors!("siphash.json");
    for n in 0..4 {
        assert_eq!(siphash24(key, &message[..n]), hex(&first["siphash24"][n]));
    }
}

#[test]
fn siphash_of_a_tuple_is_siphash_of_its_message() {
    let hasher = SipHash13::new(core::array::from_fn(|i| i as u8));
    let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
    let message: Vec<u8> = (0..40).collect();
    let words: [u64; 5] =
        core::array::from_fn(|i| u64::from_le_bytes(message[8 * i..][..8].try_into().unwrap()));
    assert_eq!(hasher.ipv6(&words), siphash13(key, &message));
    assert_eq!(
        hasher.ipv4(&[words[0], words[1]]),
        siphash13(key, &message[..16])
    );
}

/// Microsoft's verification suite for receive-side scaling.
#[test]
fn toeplitz_is_that_of_receive_side_scaling() {
    for (vectors, family) in [
        (vectors!("toeplitz-rss.json"), "ipv4"),
        (vectors!("toeplitz-rss-ipv6.json"), "ipv6"),
    ] {
        assert_eq!(bytes(vectors["key"].as_str().unwrap()), MICROSOFT_KEY);
        let toeplitz = Toeplitz::new(&MICROSOFT_KEY);
        let cases = vectors[family].as_array().unwrap();
        assert!(cases.len() >= 3);
        for case in cases {
            let mut message = Vec::new();
            for field in ["src", "dst"] {
                match case[field].as_str().unwrap().parse().unwrap() {
                    IpAddr::V4(address) => message.extend(address.octets()),
                    IpAddr::V6(address) => message.extend(address.octets()),
                }
            }
            let addresses = message.len();
            for field in ["src_port", "dst_port"] {
                message.extend((case[field].as_u64().unwrap() as u16).to_be_bytes());
            }
            let with_ports = hex(&case["hash_with_ports"]);
            let only_addresses = hex(&case["hash_addresses"]);
            assert_eq!(u64::from(toeplitz.hash(&message)), with_ports);
            assert_eq!(
                u64::from(toeplitz.hash(&message[..addresses])),
                only_addresses
            );

            // And as the dataplane asks for it: a TCP tuple's message, in words.
            let hasher = Hasher::Toeplitz(toeplitz.clone());
            message.extend([6, 0, 0, 0]);
            let five_tuple = of_message(&hasher, &message);
            assert_eq!(five_tuple, with_ports << 32 | with_ports);
            message[addresses..].fill(0);
            assert_eq!(
                of_message(&hasher, &message),
                only_addresses << 32 | only_addresses
            );
        }
    }
}

fn of_message(hasher: &Hasher, message: &[u8]) -> u64 {
    let words: Vec<u64> = message
        .chunks(8)
        .map(|c| u64::from_le_bytes(c.try_into().unwrap()))
        .collect();
    match words[..] {
        [a, b] => hasher.ipv4(&[a, b]),
        [a, b, c, d, e] => hasher.ipv6(&[a, b, c, d, e]),
        _ => panic!("a message has 16 or 40 bytes, not {}", message.len()),
    }
}

#[test]
fn checksums_of_the_rfcs() {
    let vectors = vectors!("checksum.json");
    let example = &vectors["rfc1071"];
    let data = bytes(example["bytes"].as_str().unwrap());
    assert_eq!(
        u64::from(checksum::checksum(&data)),
        hex(&example["checksum"])
    );
    assert_eq!(
        u64::from(checksum::Sum::ZERO.add_bytes(&data).fold()),
        hex(&example["ones_complement_sum"])
    );
    let example = &vectors["rfc1624"];
    let [old, from, to] = ["old_checksum", "old_field", "new_field"].map(|f| hex(&example[f]));
    let updated = checksum::update(old as u16, from as u16, to as u16);
    assert_eq!(u64::from(updated), hex(&example["new_checksum"]));

    let vectors = vectors!("checksum-incremental.json");
    let example = &vectors["rfc1624_section4"];
    let [before, m, new] = ["checksum_before", "m", "m_new"].map(|f| hex(&example[f]) as u16);
    assert_eq!(
        u64::from(checksum::update(before, m, new)),
        hex(&example["equation3"])
    );
    let example = &vectors["ipv4_header_example"];
    let header = bytes(example["header_with_zero_checksum"].as_str().unwrap());
    assert_eq!(
        u64::from(checksum::checksum(&header)),
        hex(&example["checksum"])
    );
    let mut header: [u8; 20] = header.try_into().unwrap();
    header[10..12].copy_from_slice(&(hex(&example["checksum"]) as u16).to_be_bytes());
    slb_core::wire::ipv4::decrement_ttl(&mut header);
    let after = &example["after_ttl_decrement"];
    assert_eq!(u64::from(header[8]), after["ttl"].as_u64().unwrap());
    assert_eq!(
        u64::from(u16::from_be_bytes([header[10], header[11]])),
        hex(&after["checksum"])
    );
}

#[test]
fn the_paper_s_own_tables() {
    // The population itself is tested beside it, on these permutations; here, that the two
    // published files agree.
    let paper = vectors!("maglev-nsdi16.json");
    let all = vectors!("maglev-population.json");
    assert_eq!(paper["lookup_all"], all["tables"][0]["lookup"]);
    assert_eq!(
        paper["lookup_without_backend_1"],
        all["tables"][1]["lookup"]
    );
    assert_eq!(Distribution::default(), Distribution::FiveTuple);
}
