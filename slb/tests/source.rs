//! Promises of the sources about themselves: each `unsafe` is listed with its reason, nothing reads
//! in the host's byte order, and crates without `unsafe` forbid it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All sources of a folder's crates.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let crates = fs::read_dir(root()).expect("the project");
    let examples = fs::read_dir(root().join("examples")).expect("examples");
    for folder in crates.chain(examples).flatten() {
        collect(&folder.path().join("src"), &mut found);
    }
    found
}

fn collect(folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let own = path.strip_prefix(root()).expect("inside").display();
            found.insert(own.to_string(), fs::read_to_string(&path).expect("text"));
        }
    }
}

/// A line without its comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn count_unsafe(text: &str) -> usize {
    let in_line = |line: &str| {
        let uses = code(line).split("unsafe").skip(1);
        uses.filter(|rest| {
            let rest = rest.trim_start();
            ["{", "fn ", "impl", "extern "]
                .iter()
                .any(|what| rest.starts_with(what))
        })
        .count()
    };
    text.lines().map(in_line).sum()
}

#[test]
fn every_unsafe_is_listed() {
    let list = fs::read_to_string(root().join("docs/unsafe.md")).expect("docs/unsafe.md");
    let mut listed = BTreeMap::new();
    for line in list.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let [_, file, count, reason, _] = cells.as_slice()
            && let Ok(count) = count.parse::<usize>()
        {
            assert!(reason.len() > 2, "{line}");
            listed.insert(file.trim_matches('`').to_owned(), count);
        }
    }
    let counted = sources()
        .into_iter()
        .map(|(file, text)| (file, count_unsafe(&text)));
    let counted: BTreeMap<String, usize> = counted.filter(|(_, count)| *count > 0).collect();
    assert!(counted.len() > 20);
    assert_eq!(counted, listed);
}

#[test]
fn where_nothing_is_unsafe_it_is_forbidden() {
    let sources = sources();
    let roots = sources.keys().filter(|file| {
        let is_binary = file.contains("/src/bin/") || file.ends_with("/main.rs");
        file.ends_with("/src/lib.rs") || is_binary
    });
    for file in roots {
        let folder = Path::new(file)
            .parent()
            .expect("a folder")
            .display()
            .to_string();
        let inside = sources
            .iter()
            .filter(|(other, _)| other.starts_with(&folder));
        let is_safe = inside.map(|(_, text)| count_unsafe(text)).sum::<usize>() == 0;
        let forbids = sources[file].contains("#![forbid(unsafe_code)]");
        assert!(!is_safe || forbids, "{file} should forbid unsafe code");
    }
}

/// The dataplane computes the same on every machine. `usize` is as wide as the machine, so no hash
/// or packet contains one.
#[test]
fn the_dataplane_reads_nothing_in_the_hosts_order() {
    let native = [
        "_ne_bytes",
        "transmute",
        "target_endian",
        "read_unaligned",
        "align_to(",
    ];
    for (file, text) in sources() {
        if !file.starts_with("slb-core/") && !file.starts_with("slb-io-pcap/") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let found = native.iter().find(|word| code(line).contains(**word));
            assert_eq!(found, None, "{file}:{}", number + 1);
        }
    }
}
