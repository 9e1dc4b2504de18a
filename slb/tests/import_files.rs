//! Files that `slb import` reads and replaces.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const LOAD_BALANCER: &str = r#"{
  "type": "Microsoft.Network/loadBalancers",
  "name": "lb",
  "sku": { "name": "Standard" },
  "properties": {
    "frontendIPConfigurations": [
      { "name": "fe", "properties": { "privateIPAddress": "10.0.0.9" } }
    ]
  }
}"#;

const INVENTORY: &str = "vni = 5001\n[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\n";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Imports `lb.json` of a folder.
fn import(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slb"));
    command.current_dir(folder).arg("import").args(arguments);
    command.output().expect("it runs")
}

#[test]
fn import_replaces_imported_configurations_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("lb.json"), LOAD_BALANCER).expect("written");
    fs::write(path("inventory.toml"), INVENTORY).expect("written");
    let import = |out: &str| {
        let arguments = ["lb.json", "--inventory", "inventory.toml", "--out", out];
        import(folder.path(), &arguments)
    };
    fs::write(path("empty.toml"), "").expect("written");
    for out in ["web.toml", "web.toml", "empty.toml"] {
        let made = import(out);
        assert_eq!(made.status.code(), Some(0), "{out}: {}", text(&made.stderr));
        let own = fs::read_to_string(path(out)).expect("a configuration");
        assert!(own.contains("[[frontend]]"), "{out}: {own}");
    }
    for content in [
        "[node]\nrole = \"mux\"\n",
        "# Made by hand.\n",
        "x",
        "\u{feff}\n",
    ] {
        fs::write(path("mine.toml"), content).expect("written");
        let refused = import("mine.toml");
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{content:?}: {said}");
        let expected = "--out mine.toml: is a file that holds no configuration made by `slb import`: \
                        expected a new file, or a configuration made by `slb import` to replace";
        assert!(said.contains(expected), "{content:?}: {said}");
        let kept = fs::read_to_string(path("mine.toml")).expect("the file");
        assert_eq!(kept, content);
    }
}
