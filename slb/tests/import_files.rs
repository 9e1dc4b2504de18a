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
        let expected = "--out mine.toml: is not a configuration made by `slb import`: \
                        expected a new file, or a configuration made by `slb import` to replace";
        assert!(said.contains(expected), "{content:?}: {said}");
        let kept = fs::read_to_string(path("mine.toml")).expect("the file");
        assert_eq!(kept, content);
    }
}

#[test]
fn a_byte_order_mark_before_json_is_ignored() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("inventory.toml"), INVENTORY).expect("written");
    let import = |json: &str| {
        fs::write(path("lb.json"), json).expect("written");
        let arguments = ["lb.json", "--inventory", "inventory.toml"];
        import(folder.path(), &arguments)
    };
    let (plain, marked) = (
        import(LOAD_BALANCER),
        import(&format!("\u{feff}{LOAD_BALANCER}")),
    );
    assert_eq!(marked.status.code(), Some(0), "{}", text(&marked.stderr));
    assert_eq!(text(&marked.stdout), text(&plain.stdout));
    // Lines are counted as without the mark, and a second mark is none.
    let bad = LOAD_BALANCER.replace("10.0.0.9", "10.0.0.900");
    let (plain, marked) = (import(&bad), import(&format!("\u{feff}{bad}")));
    assert!(
        text(&plain.stderr).contains("lb.json:7: "),
        "{}",
        text(&plain.stderr)
    );
    assert_eq!(text(&marked.stderr), text(&plain.stderr));
    let twice = import(&format!("\u{feff}\u{feff}{LOAD_BALANCER}"));
    assert_eq!(twice.status.code(), Some(2), "{}", text(&twice.stdout));
}

#[test]
fn json_without_a_load_balancer_is_a_failure() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("inventory.toml"), INVENTORY).expect("written");
    let never = LOAD_BALANCER.replacen('{', "{ \"condition\": false, ", 1);
    let address = r#"{ "type": "Microsoft.Network/publicIPAddresses", "name": "pip" }"#;
    for resource in [&*never, address] {
        let template = format!("{{ \"resources\": [{resource}] }}");
        fs::write(path("lb.json"), template).expect("written");
        for inventory in [&[][..], &["--inventory", "inventory.toml"]] {
            let arguments = [&["lb.json", "--out", "web.toml"], inventory].concat();
            let made = import(folder.path(), &arguments);
            let said = text(&made.stderr);
            assert_eq!(made.status.code(), Some(1), "{resource}: {said}");
            assert!(
                said.contains("lb.json: no configuration is written"),
                "{said}"
            );
            assert!(!path("web.toml").exists(), "{resource}");
        }
    }
}

#[test]
fn an_error_names_a_backend_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("inventory.toml"), INVENTORY).expect("written");
    let pool = r#""backendAddressPools": [ { "name": "be", "properties": { "loadBalancerBackendAddresses": [
        { "name": "a", "properties": { "ipAddress": "10.0.1.4" } } ] } } ],
        "frontendIPConfigurations""#;
    let json = LOAD_BALANCER.replace("\"frontendIPConfigurations\"", pool);
    fs::write(path("lb.json"), json).expect("written");
    let made = import(folder.path(), &["lb.json", "--inventory", "inventory.toml"]);
    let said = text(&made.stderr);
    let expected = "pool \"be\": backend \"a\": the JSON does not say its host, so the inventory has to: \
                    [[backend]] with id = \"a\" and host";
    assert!(said.contains(expected), "{said}");
}
