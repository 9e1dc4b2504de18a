//! Commands whose output or messages have nowhere to go: a full disk, or a reader that is gone. None panics, and
//! each that could not print says so. No root.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

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

/// The destination of standard output, or of standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    /// To the test.
    Here,
    /// To a disk that is full.
    Full,
    /// To a pipe whose reader is gone.
    Nobody,
}

impl To {
    fn stdio(self) -> Stdio {
        match self {
            Self::Here => Stdio::piped(),
            Self::Full => File::options()
                .write(true)
                .open("/dev/full")
                .unwrap()
                .into(),
            Self::Nobody => {
                let (reader, writer) = std::io::pipe().unwrap();
                drop(reader);
                writer.into()
            }
        }
    }
}

fn slb(arguments: &[&str], (out, err): (To, To)) -> Output {
    Command::new(env!("CARGO_BIN_EXE_slb"))
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::null())
        .stdout(out.stdio())
        .stderr(err.stdio())
        .output()
        .unwrap()
}

/// A balancer that answers every question at its socket with one item and the end, and with a status.
fn fake_balancer(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            thread::spawn(move || {
                let mut asked = [0; 4096];
                let len = client.read(&mut asked).unwrap_or(0);
                let asked: serde_json::Value =
                    serde_json::from_slice(&asked[..len]).unwrap_or_default();
                let answer: &[u8] = match asked["ask"].as_str() {
                    Some("status") | None => b"{\"role\":\"mux\",\"version\":\"0\"}\n",
                    Some("config") => b"{\"role\":\"mux\",\"text\":\"[node]\\n\",\"generation\":1}\n{\"end\":{}}\n",
                    Some("explain") => b"{\"text\":\"  parsed\\n\"}\n{\"end\":{}}\n",
                    Some("drops") => {
                        b"{\"reason\":\"no_rule\",\"age\":1,\"length\":60,\"port\":\"0\",\"bytes\":\"00\"}\n{\"end\":{}}\n"
                    }
                    Some("capture") => b"{\"bytes\":4}\n\x0a\x0d\x0d\x0a{\"end\":{\"packets\":0,\"bytes\":4,\"lost\":0,\"above_rate\":0,\"seconds\":1}}\n",
                    Some(_) => b"{\"protocol\":\"tcp\",\"client\":\"192.0.2.1\"}\n{\"end\":{\"entries\":1,\"is_whole\":true}}\n",
                };
                let _ = client.write_all(answer);
            });
        }
    });
}

/// Commands that print something to standard output, whatever becomes of it.
fn printing([socket, capture, generated, azure, inventory]: [&str; 5]) -> Vec<Vec<&str>> {
    const WEB: &str = "examples/web.toml";
    const SAMPLE: &str = "examples/sample.pcap";
    let tuple = ["tcp", "1.2.3.4:50000", "20.20.20.100:80"];
    let mut all: Vec<Vec<&str>> = vec![
        vec!["--help"],
        vec!["--version"],
        vec!["help", "replay"],
        vec!["completions", "bash"],
        vec!["schema"],
        vec!["check", WEB],
        vec!["check", "examples/host.toml", "--ports"],
        vec!["diff", WEB, "examples/host.toml"],
        vec!["replay", WEB, "--in", SAMPLE],
        vec!["replay", WEB, "--in", SAMPLE, "--report", "json"],
        vec!["explain", WEB, "--in", SAMPLE, "--packet", "4"],
        vec!["generate", "--out", generated, "--sessions", "1"],
        vec!["import", azure, "--inventory", inventory],
        vec!["status", "--socket", socket, "--once"],
        vec!["status", "--socket", socket, "--format", "json"],
        vec!["flows", "--socket", socket],
        vec!["flows", "--socket", socket, "--json"],
        vec!["flows", "--socket", socket, "--count"],
        vec!["connections", "--socket", socket],
        vec!["snat", "--socket", socket],
        vec!["drops", "--socket", socket],
        vec!["drops", "--socket", socket, "--json"],
        vec!["config", "--socket", socket],
        vec!["config", "--socket", socket, "--json"],
        vec!["capture", "--socket", socket, "--out", capture],
        vec!["capture", "--socket", socket, "--out", "-"],
        vec!["bench", "--instructions", "no line of this name"],
    ];
    all.push([&["explain", WEB][..], &tuple].concat());
    all.push([&["explain", "--live", "--socket", socket][..], &tuple].concat());
    all
}

/// The commands that `slb --help` lists.
fn listed() -> Vec<String> {
    let help = slb(&["--help"], (To::Here, To::Here)).stdout;
    let help = String::from_utf8(help).unwrap();
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .collect()
}

#[test]
fn no_command_panics_where_its_output_goes_nowhere() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).display().to_string();
    let (socket, capture, generated) = (path("slb.sock"), path("c.pcapng"), path("g.pcap"));
    fake_balancer(Path::new(&socket));
    let (azure, inventory) = (path("lb.json"), path("inventory.toml"));
    fs::write(&azure, LOAD_BALANCER).unwrap();
    fs::write(&inventory, INVENTORY).unwrap();
    let mut commands = printing([&socket, &capture, &generated, &azure, &inventory]);
    let names = listed();
    assert!(names.len() > 20, "{names:?}");
    let names = names.iter().filter(|name| *name != "help");
    let helps: Vec<[&str; 2]> = names.map(|name| [name.as_str(), "--help"]).collect();
    commands.extend(helps.iter().map(|help| help.to_vec()));
    for command in &commands {
        let printed = slb(command, (To::Here, To::Here));
        let is_silent = printed.stdout.is_empty();
        assert!(
            !is_silent || command.contains(&"bench"),
            "{command:?}: {printed:?}"
        );
        for out in [To::Full, To::Nobody] {
            let output = slb(command, (out, To::Here));
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!said.contains("panicked"), "{command:?} {out:?}: {said}");
            if is_silent {
                continue;
            }
            let status = output.status.code();
            match out {
                To::Full => {
                    assert_eq!(status, Some(1), "{command:?}: {said}");
                    assert!(
                        said.contains("No space left on device"),
                        "{command:?}: {said}"
                    );
                }
                // By the signal, or as if by it; in silence but for what is no result.
                _ => {
                    assert!(
                        matches!(status, None | Some(141)),
                        "{command:?}: {status:?}: {said}"
                    );
                    assert!(!said.contains("Broken pipe"), "{command:?}: {said}");
                }
            }
        }
    }
}

#[test]
fn no_command_panics_where_its_messages_go_nowhere() {
    let commands: [(&[&str], i32); 16] = [
        (&["check", "no such file"], 2),
        (&["diff", "no such file", "examples/web.toml"], 2),
        (&["replay", "examples/web.toml", "--in", "no such file"], 1),
        (&["explain", "examples/web.toml"], 2),
        (&["import", "no such file"], 2),
        (&["generate", "--out", "/no/such/folder/g.pcap"], 1),
        (&["status", "--socket", "/no/such/socket"], 1),
        (&["flows", "--socket", "/no/such/socket"], 1),
        (&["capture", "--socket", "/no/such/socket", "--out", "-"], 1),
        (&["probe", "no such file"], 2),
        (&["get", "--fleet", "http://127.0.0.1:1"], 1),
        (&["fleet", "status", "--fleet", "http://127.0.0.1:1"], 1),
        (
            &[
                "state",
                "import",
                "--state",
                "/no/such/folder",
                "no such file",
            ],
            1,
        ),
        (&["mux", "no such file", "--io", "tun:none"], 2),
        (
            &[
                "mux",
                "examples/web.toml",
                "--io",
                "tun:no/device",
                "--socket",
                "/dev/null",
            ],
            1,
        ),
        (&["no such command"], 2),
    ];
    for (command, status) in commands {
        for err in [To::Full, To::Nobody] {
            let code = slb(command, (To::Here, err)).status.code();
            // A command that only prints ends by the signal where its reader is gone.
            let is_signal = err == To::Nobody && code.is_none();
            assert!(
                is_signal || code == Some(status),
                "{command:?} {err:?}: {code:?}"
            );
        }
    }
}

/// `println!` and its like panic where they cannot write.
#[test]
fn the_program_prints_by_its_own_macros() {
    fn check(folder: &Path, seen: &mut usize) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                check(&path, seen);
                continue;
            }
            *seen += 1;
            let text = fs::read_to_string(&path).unwrap();
            let own = text.split("#[cfg(test)]").next().unwrap_or_default();
            for line in own.lines() {
                let code = line.split("//").next().unwrap_or_default();
                let panics = ["println!", "print!"]
                    .iter()
                    .any(|name| code.contains(name));
                assert!(
                    !panics,
                    "{}: {line}: expected say! or tell!",
                    path.display()
                );
            }
        }
    }
    let mut seen = 0;
    check(&root().join("slb/src"), &mut seen);
    assert!(seen > 50);
}

#[test]
fn workers_are_counted_from_one() {
    for count in ["0", "65536", "-1", "two"] {
        let count = format!("--workers={count}");
        let command = ["mux", "examples/web.toml", "--io", "tun:none", &count];
        let output = slb(&command, (To::Here, To::Here));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2));
        assert!(said.contains("expected a number from 1 to 65535"), "{said}");
    }
}

#[test]
fn bad_values_are_told_what_was_expected() {
    for (command, expected) in [
        (&["flows", "--limit", "x"][..], "expected a whole number"),
        (&["flows", "--limit="], "expected a whole number"),
        (
            &["flows", "--limit=99999999999999999999"],
            "expected a smaller number",
        ),
        (
            &["generate", "--out", "g.pcap", "--tcp", "1.2.3.4"],
            "expected ADDRESS:PORT",
        ),
        (
            &["generate", "--out", "g.pcap", "--size", "x"],
            "expected a whole number",
        ),
        (
            &["capture", "--out", "c.pcapng", "--seconds", "soon"],
            "expected a number",
        ),
        (
            &["mux", "w.toml", "--io", "tun:t", "--metrics", "9100"],
            "expected ADDRESS:PORT",
        ),
        (
            &["mux", "w.toml", "--io", "tun:t", "--cpus", "1024"],
            "expected a CPU from 0 to 1023",
        ),
        (
            &["mux", "w.toml", "--io", "tun:t", "--cpus", "0,x"],
            "expected a CPU from 0 to 1023",
        ),
        (
            &[
                "explain",
                "examples/web.toml",
                "sctp",
                "1.2.3.4:9",
                "20.20.20.100:80",
            ],
            "expected tcp, udp or icmp, got \"sctp\"",
        ),
    ] {
        let output = slb(command, (To::Here, To::Here));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
        assert!(said.contains(expected), "{command:?}: {said}");
    }
}

/// Runs a command that reads a file at standard input.
fn fed(arguments: &[&str], file: &str) -> Output {
    let input = File::open(root().join(file)).unwrap();
    Command::new(env!("CARGO_BIN_EXE_slb"))
        .args(arguments)
        .current_dir(root())
        .stdin(input)
        .output()
        .unwrap()
}

#[test]
fn configurations_come_by_standard_input() {
    let web = "examples/web.toml";
    for (command, expected) in [
        (&["check", "-"][..], "standard input: OK"),
        (&["check", "--config", "-"], "standard input: OK"),
        (&["diff", web, "-"], "no difference"),
        (&["diff", "-", web], "no difference"),
        (
            &["replay", "-", "--in", "examples/sample.pcap"],
            "forwarded",
        ),
        (
            &["explain", "-", "tcp", "1.2.3.4:50000", "20.20.20.100:80"],
            "verdict",
        ),
    ] {
        let output = fed(command, web);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command:?}: {output:?}");
        assert!(said.contains(expected), "{command:?}: {said}");
    }
    let output = fed(&["mux", "-", "--io", "tun:no/device"], web);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("expected a configuration file"), "{said}");
    let output = fed(&["check", "-"], "examples/sample.pcap");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said.starts_with("standard input:1: expected text in UTF-8, got byte 0xb2"),
        "{said}"
    );
    let output = fed(&["diff", "-", "-"], web);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("got - twice"), "{said}");
}

#[test]
fn what_has_no_end_is_refused() {
    let store = ["--fleet", "http://127.0.0.1:1"];
    for command in [
        vec!["check", "/dev/zero"],
        vec!["import", "/dev/zero"],
        vec!["import", "-"],
        vec!["import", "--inventory", "/dev/zero", "examples/web.toml"],
        [&["apply", "--file", "/dev/zero"][..], &store].concat(),
        [&["apply", "--file", "-"][..], &store].concat(),
    ] {
        let output = fed(&command, "/dev/zero");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
        // A device is refused by its type, standard input by its length.
        let expected = match command.contains(&"/dev/zero") {
            true => "expected a regular file, got a character device",
            false => "expected a file of at most",
        };
        assert!(said.contains(expected), "{command:?}: {said}");
    }
}

#[test]
fn a_state_is_read_no_further_than_it_goes() {
    let place = tempfile::tempdir().unwrap();
    let state = place.path().display().to_string();
    for (file, input, why) in [
        (
            "/dev/zero",
            "/dev/null",
            "expected a regular file, got a character device",
        ),
        ("-", "/dev/zero", "it is not a state file of slb"),
        ("-", "/dev/null", "expected 72 bytes or more, got 0"),
        (
            "examples/web.toml",
            "/dev/null",
            "it is not a state file of slb",
        ),
    ] {
        let output = fed(&["state", "import", "--state", &state, file], input);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{file}: {said}");
        assert!(said.contains(why), "{file}: {said}");
    }
    let command = [
        "state", "export", "--state", &state, "--vm", "p/vm", "--out", "-",
    ];
    let output = slb(&command, (To::Here, To::Here));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(said.contains("no host agent runs with --state"), "{said}");
    assert!(!root().join("-").exists(), "it is no name of a file");
}

#[test]
fn a_capture_says_its_format_where_its_name_says_another() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).display().to_string();
    let socket = path("slb.sock");
    fake_balancer(Path::new(&socket));
    for (name, is_other) in [
        ("c.pcap", true),
        ("c", true),
        ("c.pcapng", false),
        ("c.ntar", true),
    ] {
        let out = path(name);
        let command = ["capture", "--socket", &socket, "--out", &out];
        let output = slb(&command, (To::Here, To::Here));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(
            said.contains("; it is in pcapng, whatever its name says"),
            is_other,
            "{said}"
        );
    }
}
