//! The units of packaging/systemd: systemd finds no fault in them, and the program takes their command lines. Tests of
//! processes under them are in `package.rs`, `handover.rs` and `devices.rs`.

use crate::common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::sh;

const ROLES: [&str; 3] = ["mux", "host", "proxy"];

fn unit(role: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../packaging/systemd")
        .join(format!("slb-{role}.service"))
}

fn read(role: &str) -> String {
    fs::read_to_string(unit(role)).unwrap()
}

/// Returns the output of systemd-analyze for a unit, with this program in the place of an installed
/// one.
fn verify(name: &str, text: &str) -> String {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join(name);
    let text = text.replace("/usr/bin/slb", env!("CARGO_BIN_EXE_slb"));
    fs::write(&file, text).unwrap();
    let output = Command::new("systemd-analyze")
        .args(["--man=no", "verify"])
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.success() {
        true => said,
        false => format!("{}: {said}", output.status),
    }
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    if !sh("command -v systemd-analyze") {
        skip!("systemd-analyze is not installed");
    }
    for role in ROLES {
        let text = read(role);
        assert_eq!(verify(&format!("slb-{role}.service"), &text), "", "{role}");
        // It would have.
        let wrong = text.replace("WatchdogSec=10", "WatchdogSec=often");
        assert!(verify(&format!("slb-{role}.service"), &wrong).contains("often"));
        let wrong = text.replace("/usr/bin/slb check", "/usr/local/bin/slib check");
        assert!(verify(&format!("slb-{role}.service"), &wrong).contains("slib"));
    }
}

/// The lines of a key.
fn all_of(text: &str, key: &str) -> Vec<String> {
    let key = format!("{key}=");
    let lines = text.lines().filter_map(|line| line.strip_prefix(&*key));
    lines.map(str::to_owned).collect()
}

#[test]
fn the_program_takes_the_command_lines_of_the_units() {
    for role in ROLES {
        let text = read(role);
        let [command] = &all_of(&text, "ExecStart")[..] else {
            panic!("{role}: one command");
        };
        let command = command.replace(
            &format!("/etc/slb/{role}.toml"),
            &format!("/nowhere/{role}.toml"),
        );
        let defaults = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../packaging/deb/default")
            .join(format!("slb-{role}"));
        let defaults = fs::read_to_string(defaults).unwrap();
        let options = defaults.split('"').nth(1).unwrap();
        let command = command.replace("$OPTIONS", options);
        assert!(!command.contains('$'), "{role}: {command}");
        let state = tempfile::tempdir().unwrap();
        let command = command.replace("/var/lib/slb", &state.path().display().to_string());
        let mut words = command.split_whitespace();
        assert_eq!(words.next(), Some("/usr/bin/slb"));
        let run = |words: &[&str]| {
            let output = Command::new(env!("CARGO_BIN_EXE_slb"))
                .args(words)
                .output()
                .unwrap();
            assert!(!output.status.success());
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        let words: Vec<&str> = words.collect();
        // The one thing that is wrong is that there is no configuration.
        let said = run(&words);
        assert!(said.contains(&format!("/nowhere/{role}.toml")), "{said}");
        let wrong = [&words[..], &["--statte", "x"]].concat();
        assert!(run(&wrong).contains("--statte"));
    }
}

/// An upgrade rests on this: the process that takes over is of the same service, and finds the state.
#[test]
fn the_units_let_a_process_take_over() {
    for role in ROLES {
        let text = read(role);
        let is = |key: &str, value: &str| assert_eq!(all_of(&text, key), [value], "{role}: {key}");
        is("Type", "notify");
        is("ExecReload", "/bin/kill -HUP $MAINPID");
        is("StateDirectory", "slb");
        is("StateDirectoryMode", "0700");
        is("Restart", "always");
        let [command] = &all_of(&text, "ExecStart")[..] else {
            panic!("{role}: one command");
        };
        assert!(command.contains(" --state /var/lib/slb "), "{command}");
    }
}
