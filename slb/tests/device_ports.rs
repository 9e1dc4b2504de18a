//! `--io` has to name a device for each port that packets need. No root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Starts a role with devices; gives its exit status and its log. No device of this name can be opened, so
/// that it ends by itself.
fn start(role: &str, config: &str, ports: &[&str]) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_slb"));
    command.args([role, config, "--status"]);
    command.arg(directory.path().join("s"));
    for (number, port) in ports.iter().enumerate() {
        command.args(["--io", &format!("{port}tun:no/device{number}")]);
    }
    let output = command.current_dir(root()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text)
}

/// Two vms in one pool.
const HOST: &str = "examples/host.toml";
const WEB: &str = "examples/web.toml";
const PROXY: &str = "examples/proxy.toml";

#[test]
fn the_fabrics_port_needs_a_device() {
    for (role, config, ports) in [("mux", WEB, &["1="][..]), ("host", HOST, &["vm1=", "vm2="])] {
        let (status, text) = start(role, config, ports);
        assert_eq!(status, Some(2), "{text}");
        assert!(
            text.contains(
                "--io: no device for port 0, the fabric's: expected --io DEVICE without a port"
            ),
            "{text}"
        );
    }
}

#[test]
fn a_local_vm_without_a_device_is_named() {
    let warned = |ports: &[&str]| {
        let (status, text) = start("host", HOST, ports);
        assert_eq!(status, Some(1), "{text}");
        assert!(text.contains("is no name of a device"), "{text}");
        let lines = text.lines();
        let of = lines.filter(|line| line.contains("no device for this vm's port"));
        of.map(str::to_owned).collect::<Vec<_>>()
    };
    let both = warned(&[""]);
    assert_eq!(both.len(), 2, "{both:?}");
    for (line, vm) in both.iter().zip(["vm1", "vm2"]) {
        assert!(
            line.contains(" WARN ") && line.contains(&format!("--io {vm}=DEVICE")),
            "{line}"
        );
    }
    let one = warned(&["", "vm1="]);
    assert_eq!(one.len(), 1, "{one:?}");
    assert!(one[0].contains("vm=\"vm2\" port=2"), "{one:?}");
    assert!(warned(&["", "vm1=", "2="]).is_empty());

    // A vm of another host needs none here.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("far.toml");
    let text = fs::read_to_string(root().join(HOST)).unwrap();
    let far = text.replacen(
        "\"10.10.1.12\", host = \"172.16.0.101\"",
        "\"10.10.1.12\", host = \"172.16.0.102\"",
        1,
    );
    assert_ne!(far, text);
    fs::write(&path, far).unwrap();
    let (_, text) = start("host", path.to_str().unwrap(), &["", "vm1="]);
    assert!(!text.contains("no device for this vm's port"), "{text}");
}

#[test]
fn each_port_of_a_proxy_needs_a_device() {
    let (status, text) = start("proxy", PROXY, &["frontend="]);
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("no device for port \"backend\""), "{text}");
    let (status, text) = start("proxy", PROXY, &["frontend=", "backend="]);
    assert_eq!(status, Some(1), "{text}");
    // A port that is none is named before.
    let (status, text) = start("proxy", PROXY, &["frontend=", "backed="]);
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("there is no such port"), "{text}");
}

#[test]
fn one_interface_is_one_device() {
    for kind in ["tun:no/device", "tap:no/device", "afxdp:lo", "afxdp:lo:0"] {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_slb"));
        command.args(["proxy", PROXY, "--status"]);
        command.arg(directory.path().join("s"));
        command.args(["--io", &format!("frontend={kind}")]);
        command.args(["--io", &format!("backend={kind}")]);
        let output = command.current_dir(root()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{kind}: {text}");
        let expected = format!(
            "--io \"backend={kind}\": is an interface that another --io names: expected one --io for each"
        );
        assert!(text.contains(&expected), "{kind}: {text}");
    }
}
