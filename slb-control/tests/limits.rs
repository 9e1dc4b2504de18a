//! Limits on the size of a configuration.

use std::fmt::Write as _;

use slb_control::Config;
use slb_control::config::{MOST_BACKENDS, MOST_RULES, MOST_SLOTS};

/// A mux with pools of so many backends each, whose tables have `table_size` slots.
fn configuration(pools: &[usize], table_size: u32) -> String {
    let mut text = "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n\
                    [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
                    [[probe]]\nname = \"tcp\"\nprotocol = \"tcp\"\nport = 80\n\
                    [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"p0\"\nprobe = \"tcp\"\n\
                    protocol = \"tcp\"\nfrontend_port = 80\n"
        .to_owned();
    let mut number = 0;
    for (place, &count) in pools.iter().enumerate() {
        let _ = write!(
            text,
            "[[pool]]\nname = \"p{place}\"\nvni = 5001\ntable_size = {table_size}\nbackends = [\n"
        );
        for _ in 0..count {
            number += 1;
            let _ = writeln!(
                text,
                "{{ name = \"b{number}\", address = \"10.{}.{}.{}\", host = \"172.16.0.9\" }},",
                number >> 16,
                number >> 8 & 255,
                number & 255
            );
        }
        text += "]\n";
    }
    text
}

fn errors(text: &str) -> String {
    Config::parse("large.toml", text).unwrap_err().to_string()
}

#[test]
fn more_backends_than_can_be_are_refused_at_the_pool_that_has_them() {
    let half = MOST_BACKENDS / 2;
    assert!(Config::parse("large.toml", &configuration(&[half, half], 65_537)).is_ok());
    assert_eq!(
        errors(&configuration(&[half, half, 1, 2], 65_537)),
        format!(
            "large.toml:{}: pool \"p2\": expected at most 65536 backends in all pools together, got 65539",
            // Seventeen lines, two whole pools, and the third one begins.
            18 + 2 * (half + 6)
        )
    );
}

#[test]
fn tables_that_are_larger_than_memory_are_refused() {
    // The first pool has a table for its probe too.
    let size = 16_777_213;
    let most = (MOST_SLOTS / u64::from(size)) as usize;
    assert!(Config::parse("large.toml", &configuration(&vec![1; most - 1], size)).is_ok());
    let said = errors(&configuration(&vec![1; most], size));
    let slots = u64::from(size) * (most as u64 + 1);
    assert!(
        said.contains(&format!(
            "pool \"p{}\": table_size: expected tables of at most 268435456 slots in all pools together, one for a \
             pool and one for each probe that its rules go by, got {slots}: ",
            most - 1
        )),
        "{said}"
    );
}

#[test]
fn more_rules_or_frontends_than_are_compared_in_time_are_refused() {
    let with = |frontends: usize, rules: usize| {
        let mut text =
            "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n[[pool]]\nname = \"p\"\n\
                        vni = 1\n"
                .to_owned();
        for n in 0..frontends {
            let (low, high) = (n & 255, n >> 8);
            let _ = writeln!(
                text,
                "[[frontend]]\nname = \"f{n}\"\naddress = \"20.0.{high}.{low}\""
            );
        }
        for n in 0..rules {
            let _ = writeln!(
                text,
                "[[rule]]\nname = \"r{n}\"\nfrontend = \"f{}\"\npool = \"p\"\nprotocol = \"tcp\"\n\
                 frontend_port = {}",
                n % frontends,
                n / frontends + 1
            );
        }
        text
    };
    assert!(Config::parse("large.toml", &with(MOST_RULES, MOST_RULES)).is_ok());
    assert!(
        errors(&with(MOST_RULES + 1, 1))
            .ends_with(": frontend: expected at most 16384 frontends, got 16385")
    );
    assert!(
        errors(&with(1, MOST_RULES + 1))
            .ends_with(": rule: expected at most 16384 rules of all kinds together, got 16385")
    );
}

/// The hosts of the dataplane have so many backends; a configuration of more says so.
#[test]
fn more_vms_than_a_host_can_have_are_refused_with_their_number() {
    let mut text = "[node]\nrole = \"host\"\nunderlay = \"172.16.0.101\"\n\
                    [[pool]]\nname = \"p\"\nvni = 5001\ntable_size = 1000003\nbackends = [\n"
        .to_owned();
    for n in 1..=4000 {
        let _ = writeln!(
            text,
            "{{ name = \"b{n}\", address = \"10.0.{}.{}\", host = \"172.16.0.101\" }},",
            n >> 8,
            n & 255
        );
    }
    text += "]\n";
    assert_eq!(
        errors(&text),
        "large.toml:1: expected at most 2047 backends on one host, got 4000"
    );
}
