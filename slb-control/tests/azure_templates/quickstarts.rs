//! Templates of the quickstart gallery, in short.

use std::fs;
use std::path::Path;

use slb_control::Config;
use slb_control::azure::Inventory;

use super::{import_one, instances, inventory, machines};

/// A quickstart's name, its inventory, and the expected numbers of frontends, backends, rules, NAT rules and
/// pools, and outbound rules; or the expected error, which has one line.
type Quickstart<'q> = (&'q str, String, Result<[usize; 5], &'q str>);

fn public(ids: &[&str]) -> String {
    let entry = |(place, id): (usize, &&str)| {
        let address = if id.ends_with('6') {
            format!("2001:db8::{}", place + 1)
        } else {
            format!("40.50.60.{}", place + 70)
        };
        format!("[[public_ip]]\nid = \"{id}\"\naddress = \"{address}\"\n")
    };
    ids.iter().enumerate().map(entry).collect()
}

fn quickstarts() -> Vec<Quickstart<'static>> {
    include!("../quickstart/expected.rs")
}

#[test]
fn quickstart_templates_import_or_name_what_is_missing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quickstart");
    let all = quickstarts();
    let files = fs::read_dir(&folder)
        .expect("the folder")
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.strip_suffix(".json").map(str::to_owned)
        });
    let mut files: Vec<String> = files.collect();
    files.sort();
    let mut names: Vec<&str> = all.iter().map(|(name, ..)| *name).collect();
    names.sort_unstable();
    assert_eq!(files, names, "each file has its line");
    assert!(all.len() >= 20);
    let mut wrong = Vec::new();
    for (name, more, expected) in all {
        let text = fs::read_to_string(folder.join(format!("{name}.json"))).expect("readable");
        let found = comes_to(&text, &inventory(&more));
        let is_right = match (&found, expected) {
            (Ok(found), Ok(expected)) => *found == expected,
            (Err(said), Err(expected)) => said.lines().count() == 1 && said.contains(expected),
            _ => false,
        };
        if !is_right {
            wrong.push(format!("{name}: expected {expected:?}, got {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Frontends, backends, rules, NAT rules and pools, outbound rules; or what is said instead.
fn comes_to(text: &str, inventory: &Inventory) -> Result<[usize; 5], String> {
    let imported = import_one(text, inventory).map_err(|errors| errors.to_string())?;
    if let Some(missing) = imported.missing {
        return Err(missing.to_string());
    }
    let config = Config::parse("imported", &imported.toml).map_err(|errors| errors.to_string())?;
    config.snapshot(None).map_err(|error| error.to_string())?;
    Ok([
        config.frontends.len(),
        config.pools.iter().map(|pool| pool.backends.len()).sum(),
        config.rules.len(),
        config.inbound_nat.len(),
        config.outbound.len(),
    ])
}
