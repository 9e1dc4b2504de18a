//! Files that are larger than any configuration, and what goes on while one is read.

#[macro_use]
mod common;

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::world::{World, lacking};

#[test]
fn a_file_that_is_too_large_is_refused_without_being_read_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.toml");
    // Sparse: a terabyte.
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let checked = Command::new("timeout")
        .args(["60", env!("CARGO_BIN_EXE_slb"), "check"])
        .arg(&path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert_eq!(checked.status.code(), Some(2), "{said}");
    assert!(
        said.ends_with(":1: expected a file of at most 67108864 bytes, got more\n"),
        "{said}"
    );
}

/// A mux with so many backends, in pools of a thousand.
fn configuration(backends: usize) -> String {
    let mut text = "[node]\nrole = \"mux\"\nunderlay = \"172.16.0.11\"\nflows = 1000\n\
                    [[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n\
                    [[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"p0\"\n\
                    protocol = \"tcp\"\nfrontend_port = 80\n"
        .to_owned();
    for first in (0..backends).step_by(1000) {
        let _ = writeln!(
            text,
            "[[pool]]\nname = \"p{}\"\nvni = 5001\nbackends = [",
            first / 1000
        );
        for n in first..backends.min(first + 1000) {
            let _ = writeln!(
                text,
                "{{ name = \"b{n}\", address = \"10.{}.{}.{}\", host = \"192.0.2.9\" }},",
                n >> 16,
                n >> 8 & 255,
                n & 255
            );
        }
        text += "]\n";
    }
    text
}

#[test]
#[ignore = "needs root"]
fn signals_are_heeded_while_a_large_file_is_read() {
    if let Some(why) = lacking(&[]) {
        skip!("{why}");
    }
    let world = World::new("lf", &["m"]);
    let path = |name: &str| world.path(name).display().to_string();
    fs::write(world.path("m.toml"), configuration(1)).unwrap();
    let slb = env!("CARGO_BIN_EXE_slb");
    let mux = world.start(
        "m",
        &format!(
            "{slb} mux {} --io tun:slb0 --status {} 2>>{}",
            path("m.toml"),
            path("m.sock"),
            path("m.log")
        ),
    );
    let log = || fs::read_to_string(world.path("m.log")).unwrap_or_default();
    let end = Instant::now() + Duration::from_secs(10);
    while !log().contains("running") {
        assert!(Instant::now() < end, "{}", log());
        sleep(Duration::from_millis(20));
    }
    let large = configuration(200_000);
    fs::write(world.path("m.new"), large).unwrap();
    fs::rename(world.path("m.new"), world.path("m.toml")).unwrap();
    mux.signal("HUP");
    sleep(Duration::from_millis(200));
    let begin = Instant::now();
    mux.signal("TERM");
    assert!(mux.finish().contains("flows:"));
    // To read it takes several times as long: it was not in place.
    assert!(
        begin.elapsed() < Duration::from_millis(1500),
        "{:?}",
        begin.elapsed()
    );
    assert!(!log().contains("configuration in place"), "{}", log());
}
