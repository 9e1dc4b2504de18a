//! Messages of commands that ask a balancer or a fleet for the impossible. No root, no network.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use serde_json::Value;

/// The exit status of a command, and what it said.
fn said(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_slb"))
        .args(arguments)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_socket_that_no_balancer_answers_at_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (missing, file) = (folder.path().join("missing"), folder.path().join("file"));
    let stale = folder.path().join("stale");
    fs::write(&file, "root:x:0:0").unwrap();
    drop(UnixListener::bind(&stale).unwrap());
    let out = text(&folder.path().join("out.pcapng"));
    for (path, expected) in [
        (
            &missing,
            "there is no such file: expected the socket of a running balancer",
        ),
        (
            &file,
            "is no socket: expected the socket of a running balancer",
        ),
        (
            &stale,
            "the process that made this socket has ended: expected the socket of a running balancer",
        ),
    ] {
        let path = text(path);
        for command in [
            &["status", "--once"][..],
            &["flows"],
            &["drops"],
            &["config"],
            &["capture", "--out", &out],
        ] {
            let (status, said) = said(&[command, &["--socket", &path]].concat());
            assert_eq!(status, Some(1), "{said}");
            assert!(said.contains(&format!("{path}: {expected}")), "{said}");
        }
    }
    assert!(
        !Path::new(&out).exists(),
        "a capture that did not begin leaves no file"
    );
    assert_eq!(fs::read(&file).unwrap(), b"root:x:0:0");
}

/// A node runs one capture at a time, so a command that cannot write its output must not start one.
#[test]
fn a_capture_that_cannot_be_written_is_not_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sock");
    let listener = UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let notes = folder.path().join("notes");
    fs::write(&notes, "not to be lost").unwrap();
    for (out, expected) in [
        (
            folder.path().join("no/such/directory"),
            "No such file or directory",
        ),
        (folder.path().to_owned(), "Is a directory"),
        (notes.clone(), "is not a capture"),
    ] {
        let (status, said) = said(&["capture", "--socket", &text(&socket), "--out", &text(&out)]);
        assert!(matches!(status, Some(1 | 2)), "{said}");
        assert!(said.contains(expected), "{said}");
        let error = listener.accept().map(|_| ()).unwrap_err();
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::WouldBlock,
            "it asked all the same"
        );
    }
    assert_eq!(fs::read(&notes).unwrap(), b"not to be lost");
}

#[test]
fn a_capture_that_is_refused_leaves_files_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = thread::spawn(move || {
        for _ in 0..2 {
            let (mut client, _) = listener.accept().unwrap();
            let _ = client.read(&mut [0; 1000]).unwrap();
            client
                .write_all(b"{\"error\":\"another capture is running\"}\n")
                .unwrap();
        }
    });
    let (new, old) = (
        folder.path().join("new.pcapng"),
        folder.path().join("old.pcapng"),
    );
    let before = [0x0a, 0x0d, 0x0d, 0x0a, 1, 2, 3, 4];
    fs::write(&old, before).unwrap();
    for out in [&new, &old] {
        let (status, said) = said(&["capture", "--socket", &text(&socket), "--out", &text(out)]);
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains("another capture is running"), "{said}");
    }
    server.join().unwrap();
    assert!(!new.exists());
    assert_eq!(fs::read(&old).unwrap(), before);
}

#[test]
fn names_are_not_empty_and_kinds_of_sections_are_known() {
    const FLEET: [&str; 2] = ["--fleet", "http://127.0.0.1:1"];
    for (arguments, expected) in [
        (&["fleet", "forget", ""][..], "expected a name"),
        (&["fleet", "forget", " "], "expected a name"),
        (&["controller", "--name", ""], "expected a name"),
        (&["controller", "--cluster", ""], "expected a name"),
        (&["get", ""], "expected a name"),
        (&["get", "pool", ""], "expected a name"),
        (&["delete", "pool", ""], "expected a name"),
        (
            &["get", "nope"],
            "expected a kind of section (fleet, frontend, ",
        ),
        (
            &["get", "backend"],
            "expected a kind of section (fleet, frontend, ",
        ),
        (
            &["delete", "nope", "name"],
            "expected a kind of section (fleet, frontend, ",
        ),
    ] {
        let (status, said) = said(&[arguments, &FLEET].concat());
        assert_eq!(status, Some(2), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    // One that is known is asked for.
    for arguments in [
        &["get", "pool"][..],
        &["get", "fleet"],
        &["delete", "backend", "webs/one"],
    ] {
        let (status, said) = said(&[arguments, &FLEET].concat());
        assert_eq!(status, Some(1), "{arguments:?}: {said}");
        assert!(said.contains("127.0.0.1:1"), "{arguments:?}: {said}");
    }
}

#[test]
fn verdicts_and_reasons_are_completed_and_others_are_refused() {
    let (_, script) = said(&["completions", "bash"]);
    for values in ["-W \"forward flood reply pass drop\"", " no_rule "] {
        assert!(script.contains(values), "{values}");
    }
    for arguments in [
        &["drops", "--reason", "bad_luck"][..],
        &["capture", "--out", "-", "--reason", "bad_luck"],
        &["capture", "--out", "-", "--verdict", "guilty"],
    ] {
        let (status, said) = said(arguments);
        assert_eq!(status, Some(2), "{said}");
        let known = if said.contains("guilty") {
            "forward, flood, "
        } else {
            "no_rule, "
        };
        assert!(said.contains(known), "{said}");
    }
}

/// The watchdog's lines are events as the page lists them, in the format that its process logs in.
#[test]
fn the_watchdogs_lines_are_events() {
    let mut watchdog = Command::new(env!("CARGO_BIN_EXE_slb"))
        .args(["watchdog", "--announce", "no-such-if", "--log", "json"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watchdog.stderr.take().unwrap()).lines();
    let mut next = |event: &str, level: &str| loop {
        let line = lines.next().unwrap().unwrap();
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
        if line["event"] == event {
            assert_eq!(line["level"], level, "{line}");
            assert_eq!(line["interface"], "no-such-if", "{line}");
            assert!(line["seconds"].as_f64().unwrap() >= 3.0, "{line}");
            return;
        }
        // That interface cannot be changed.
        assert!(
            line["message"].as_str().unwrap().contains("no-such-if"),
            "{line}"
        );
    };
    next("watchdog_interface_down", "ERROR");
    let mut pipe = watchdog.stdin.take().unwrap();
    pipe.write_all(b".").unwrap();
    next("watchdog_interface_up", "INFO");
    drop(pipe);
    assert!(watchdog.wait().unwrap().success());
}
