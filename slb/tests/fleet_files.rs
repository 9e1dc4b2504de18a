//! Files that `slb apply` takes or refuses before it asks a store. No root.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The exit status and the errors of `slb apply` of a file, at a store that is not there.
fn apply(directory: &Path, name: &str, text: &str, more: &[&str]) -> (Option<i32>, String) {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_slb"))
        .args(["apply", "--fleet", "http://127.0.0.1:1", "-f"])
        .arg(&path)
        .args(more)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), errors)
}

#[test]
fn a_file_without_sections_removes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    for text in ["", "# empty\n", "[fleet]\nhash_seed = 3\n"] {
        let (status, errors) = apply(directory.path(), "web.toml", text, &[]);
        assert_eq!(status, Some(2), "{errors}");
        assert!(errors.contains("expected sections such as"), "{errors}");
    }
    let (status, errors) = apply(directory.path(), "none.json", "[]", &[]);
    assert_eq!(status, Some(2), "{errors}");
    assert!(
        errors.contains("expected a load balancer, got none"),
        "{errors}"
    );
}

#[test]
fn azures_json_needs_no_node() {
    let directory = tempfile::tempdir().unwrap();
    let json = r#"{
      "type": "Microsoft.Network/loadBalancers", "name": "lb", "properties": {
        "frontendIPConfigurations": [{ "name": "fe", "properties": { "privateIPAddress": "10.0.0.4" } }],
        "backendAddressPools": [{ "name": "web", "properties": { "loadBalancerBackendAddresses": [
          { "name": "vm1", "properties": { "ipAddress": "10.0.1.1" } }] } }],
        "loadBalancingRules": [{ "name": "http", "properties": {
          "frontendIPConfiguration": { "id": "lb/frontendIPConfigurations/fe" },
          "backendAddressPool": { "id": "lb/backendAddressPools/web" },
          "protocol": "Tcp", "frontendPort": 80, "backendPort": 80 } }] } }"#;
    let inventory = directory.path().join("inventory.toml");
    let text = "vni = 5001\n[[backend]]\naddress = \"10.0.1.1\"\nhost = \"172.16.0.101\"\n";
    fs::write(&inventory, text).unwrap();
    let inventory = inventory.display().to_string();
    let more = ["--inventory", &inventory];
    let (status, errors) = apply(directory.path(), "lb.json", json, &more);
    // The file is good: only the store is missing.
    assert_eq!(status, Some(1), "{errors}");
    assert!(errors.contains("127.0.0.1:1"), "{errors}");
}
