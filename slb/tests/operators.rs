//! Mistakes of operators, and the program's messages about them. No root, no network.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn slb(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_slb"))
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap()
}

/// A directory with a configuration and a capture in it.
struct Desk {
    directory: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (from, to) in [("web.toml", "web.toml"), ("sample.pcap", "in.pcap")] {
            fs::copy(
                root().join("examples").join(from),
                directory.path().join(to),
            )
            .unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Replays the capture; gives the exit status and what was said.
    fn replay(&self, more: &[&str]) -> (Option<i32>, String) {
        let (config, input) = (self.path("web.toml"), self.path("in.pcap"));
        let mut arguments = vec!["replay", "-c", &config, "--in", &input];
        arguments.extend(more);
        let output = slb(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    }
}

#[test]
fn no_output_replaces_a_file_that_is_read_by_whatever_name() {
    let desk = Desk::new();
    symlink(desk.path("in.pcap"), desk.path("link")).unwrap();
    fs::hard_link(desk.path("in.pcap"), desk.path("hard")).unwrap();
    symlink(desk.path("web.toml"), desk.path("config")).unwrap();
    let before = (desk.read("in.pcap"), desk.read("web.toml"));
    let dotted = desk.path("./in.pcap");
    for name in ["in.pcap", "link", "hard", "web.toml", "config"] {
        for option in ["--out", "--passed"] {
            let (status, said) = desk.replay(&[option, &desk.path(name)]);
            assert_eq!(status, Some(2), "{option} {name}: {said}");
            assert!(said.contains("is the same file as"), "{said}");
            assert!(said.contains("which is read"), "{said}");
        }
    }
    let (status, said) = desk.replay(&["--out", &dotted]);
    assert_eq!(status, Some(2), "{said}");
    assert!(before == (desk.read("in.pcap"), desk.read("web.toml")));
}

#[test]
fn two_outputs_are_two_files() {
    let desk = Desk::new();
    let out = desk.path("out.pcap");
    let (status, said) = desk.replay(&["--out", &out, "--passed", &out]);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("is the same file as --out"), "{said}");
    // What was there before is there still, whichever of the two is at fault.
    assert_eq!(desk.replay(&["--out", &out]).0, Some(0));
    let before = desk.read("out.pcap");
    let (status, _) = desk.replay(&["--out", &out, "--passed", &desk.path("in.pcap")]);
    assert_eq!(status, Some(2));
    assert!(before == desk.read("out.pcap"));
    // Devices can be several.
    let null = ["--out", "/dev/null", "--passed", "/dev/null"];
    assert_eq!(desk.replay(&null).0, Some(0));
}

#[test]
fn a_capture_replaces_a_capture_and_nothing_else() {
    let desk = Desk::new();
    fs::write(desk.path("notes"), "not to be lost").unwrap();
    let generate = |name: &str| slb(&["generate", "--out", &desk.path(name), "--sessions", "1"]);
    for name in ["notes", "web.toml"] {
        let before = desk.read(name);
        let made = generate(name);
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        assert_eq!(made.status.code(), Some(2), "{said}");
        assert!(said.contains("is not a capture"), "{said}");
        let (status, said) = desk.replay(&["--out", &desk.path(name)]);
        assert_eq!(status, Some(2), "{said}");
        assert!(before == desk.read(name));
    }
    fs::write(desk.path("empty"), "").unwrap();
    for name in ["new.pcap", "new.pcap", "new.pcapng", "new.pcapng", "empty"] {
        assert!(generate(name).status.success(), "{name}");
    }
    // A shorter one leaves nothing of a longer one.
    let short = desk.read("new.pcap");
    fs::copy(desk.path("in.pcap"), desk.path("new.pcap")).unwrap();
    assert!(short.len() < desk.read("new.pcap").len());
    assert!(generate("new.pcap").status.success());
    assert!(short == desk.read("new.pcap"));
}

#[test]
fn an_import_does_not_replace_what_it_reads() {
    let desk = Desk::new();
    let probe = r#"{ "name": "p", "properties": { "protocol": "Tcp", "port": 80, "intervalInSeconds": 5 } }"#;
    fs::write(desk.path("probe.json"), probe).unwrap();
    fs::write(desk.path("inventory.toml"), "vni = 7\n").unwrap();
    let (json, inventory) = (desk.path("probe.json"), desk.path("inventory.toml"));
    symlink(&json, desk.path("link")).unwrap();
    fs::hard_link(&inventory, desk.path("hard")).unwrap();
    let import = |out: &str| {
        let out = desk.path(out);
        slb(&["import", &json, "--inventory", &inventory, "--out", &out])
    };
    for out in ["probe.json", "link", "inventory.toml", "hard"] {
        let made = import(out);
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        assert_eq!(made.status.code(), Some(2), "{out}: {said}");
        assert!(said.contains("which is read"), "{said}");
    }
    assert_eq!(desk.read("probe.json"), probe.as_bytes());
    assert_eq!(desk.read("inventory.toml"), b"vni = 7\n");
    // What it made before is made again.
    for _ in 0..2 {
        assert!(import("new.toml").status.success());
    }
    let made = String::from_utf8(desk.read("new.toml")).unwrap();
    assert_eq!(made.matches("[[probe]]").count(), 1, "{made}");
}

/// Runs a mux whose device cannot be opened, so that it ends by itself; gives what it said.
fn start_with_status(desk: &Desk, status: &str) -> String {
    let config = desk.path("web.toml");
    let device = "tun:no/device";
    let arguments = ["mux", "-c", &config, "--io", device, "--status", status];
    let output = slb(&arguments);
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_status_socket_replaces_nothing_but_a_stale_socket() {
    let desk = Desk::new();
    fs::create_dir(desk.path("directory")).unwrap();
    symlink(desk.path("in.pcap"), desk.path("link")).unwrap();
    let before = (desk.read("in.pcap"), desk.read("web.toml"));
    for name in ["in.pcap", "web.toml", "directory", "link"] {
        let said = start_with_status(&desk, &desk.path(name));
        assert!(said.contains(&desk.path(name)), "{said}");
        assert!(said.contains("a file that is no socket"), "{said}");
    }
    assert!(before == (desk.read("in.pcap"), desk.read("web.toml")));
    assert!(fs::symlink_metadata(desk.path("link")).is_ok());
    assert!(fs::metadata(desk.path("directory")).is_ok());

    // One that answers is a running process's; its owner keeps it.
    let live = desk.path("live.sock");
    let listener = UnixListener::bind(&live).unwrap();
    let said = start_with_status(&desk, &live);
    assert!(said.contains("a running process answers there"), "{said}");
    UnixStream::connect(&live).unwrap();
    // One that nobody listens at any more is in nobody's way, and the program cleans up behind itself.
    drop(listener);
    assert!(fs::symlink_metadata(&live).is_ok());
    let said = start_with_status(&desk, &live);
    assert!(said.contains("is no name of a device"), "{said}");
    assert!(fs::symlink_metadata(&live).is_err());
    let mut left = fs::read_dir(desk.directory.path()).unwrap().flatten();
    assert!(!left.any(|entry| entry.file_name().to_string_lossy().starts_with(".slb")));
}

#[test]
fn metrics_are_bound_before_anything_else_is_done() {
    let desk = Desk::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = desk.path("web.toml");
    let socket = desk.path("status.sock");
    let output = slb(&[
        "mux",
        "-c",
        &config,
        "--io",
        "tun:no/device",
        "--metrics",
        &address,
        "--status",
        &socket,
    ]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("--metrics {address}")), "{said}");
}
