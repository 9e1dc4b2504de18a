//! Wrong files and what is said of them: what was expected, what came, and where. Each fault is told once.

use slb_control::Config;

fn told(bytes: &[u8]) -> String {
    match Config::from_reader("f.toml", bytes) {
        Ok(_) => String::new(),
        Err(errors) => errors.to_string(),
    }
}

#[test]
fn files_that_are_no_text_are_told_so() {
    let utf16: Vec<u8> = "[node]".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (bytes, expected) in [
        (
            [&[0xff, 0xfe], &*utf16].concat(),
            "f.toml:1: expected text in UTF-8, got UTF-16: save the file as UTF-8",
        ),
        (
            utf16,
            "f.toml:1: expected text, got a NUL byte: is it another file, or in UTF-16?",
        ),
        (
            b"a = 1\n[no\xffde]".to_vec(),
            "f.toml:1: expected text in UTF-8, got byte 0xff at byte 9, which is none",
        ),
        (
            b"a = 1\n\0".to_vec(),
            "f.toml:2: expected text, got a NUL byte: is it another file, or in UTF-16?",
        ),
        (
            b"[node]\nrole = \"mux\"\nrole = \"mux\"\n[node]\n".to_vec(),
            "f.toml:3: duplicate key \"role\"\nf.toml:4: duplicate key \"node\"",
        ),
    ] {
        assert_eq!(told(&bytes), expected);
    }
    let good = "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n";
    for text in [
        good.to_owned(),
        format!("\u{feff}{good}"),
        good.replace('\n', "\r\n"),
    ] {
        assert_eq!(told(text.as_bytes()), "");
    }
}

#[test]
fn values_of_wrong_types_are_shown_and_told_once() {
    let node =
        |lines: &str| format!("[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n{lines}\n");
    for (text, expected) in [
        (
            node("mtu = \"big\""),
            "node: mtu: expected 576 to 65535, got \"big\"",
        ),
        (
            node("mtu = 1.5"),
            "node: mtu: expected 576 to 65535, got 1.5",
        ),
        (
            node("mtu = nan"),
            "node: mtu: expected 576 to 65535, got nan",
        ),
        (
            node("mtu = [1]"),
            "node: mtu: expected 576 to 65535, got a list",
        ),
        (
            node("mtu = {}"),
            "node: mtu: expected 576 to 65535, got a table",
        ),
        (
            node("mtu = true"),
            "node: mtu: expected 576 to 65535, got true",
        ),
        (
            node("mtu = 2020-01-01"),
            "node: mtu: expected 576 to 65535, got 2020-01-01",
        ),
        (
            node("mtu = 99999999999999999999"),
            "node: mtu: expected 576 to 65535, got 99999999999999999999",
        ),
        // A key is secret.
        (
            node("hash = \"toeplitz\"\nhash_key = 123456"),
            "node: hash_key: expected a string, got integer",
        ),
        (
            node("probing = 1"),
            "node: probing: expected true or false, got 1",
        ),
        (node("muxes = 7"), "node: muxes: expected a string, got 7"),
        (
            node("[[pool]]\nname = \"p\"\nvni = 1\nbackends = [7]"),
            "pool \"p\": backends: expected a table, got 7",
        ),
        (
            node("[frontend]\nname = \"p\""),
            "frontend: expected a list of tables, got a table",
        ),
        (node("pool = 7"), "unknown field \"pool\""),
    ] {
        let told = told(text.as_bytes());
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.contains(expected), "{expected}\n{told}");
    }
}

/// A file may be all faults, as many as fit: the first ones are told, and the number of the others.
#[test]
fn faults_beyond_those_that_are_kept_are_counted() {
    let node = "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n";
    let fields: String = (0..200_000).map(|n| format!("x{n} = 1\n")).collect();
    let rewrites = "[[source_rewrite]]\nfrom = \"10.0.0.1\"\nto = \"10.0.0.2\"\n".repeat(100_000);
    let proxy = "[node]\nrole = \"proxy\"\n";
    for (text, expected) in [
        (node.to_owned() + &fields, "there are 134464 more faults"),
        (
            proxy.to_owned() + &rewrites,
            "source_rewrite: expected at most 16384 source_rewrites, got 100000",
        ),
        ("[node]\n".repeat(100_000), "duplicate key \"node\""),
    ] {
        let told = told(text.as_bytes());
        let last = told.lines().last().unwrap_or_default();
        assert!(last.contains(expected), "{last}");
        assert!(told.lines().count() <= 65_537);
    }
}
