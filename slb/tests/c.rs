//! The C program of `examples/c` and `slb replay` give the same bytes on every capture.

use crate::common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{captures, configuration_text, has, read};

#[test]
fn the_c_mux_and_replay_give_the_same_bytes() {
    let Some(captures) = captures() else {
        skip!("the shared captures are not there")
    };
    for tool in ["make", "cc"] {
        if !has(tool) {
            skip!("{tool} is not installed");
        }
    }
    if !Path::new("/usr/include/pcap/pcap.h").exists() {
        skip!("libpcap's header is not installed");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let make = Command::new("make")
        .args(["install", "PROFILE=release"])
        .arg(format!("PREFIX={}", directory.path().display()))
        .current_dir(root.join("slb-ffi"))
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .unwrap();
    assert!(make.status.success(), "{make:?}");
    let cc = Command::new("cc")
        .args(["-std=c99", "-O2", "-D_GNU_SOURCE"])
        .arg(root.join("examples/c/mux.c"))
        .arg(format!("-I{}", path("include").display()))
        .arg(format!("-L{}", path("lib").display()))
        .arg(format!("-Wl,-rpath,{}", path("lib").display()))
        .args(["-lslb", "-lpcap", "-o"])
        .arg(path("mux"))
        .output()
        .unwrap();
    assert!(cc.status.success(), "{cc:?}");

    let (mut same, mut refused, mut forwarded) = (0, Vec::new(), 0);
    for capture in &captures {
        let name = capture.file_name().unwrap().to_str().unwrap();
        let text = configuration_text(&read(capture), "172.16.0.101", "02:00:00:00:00:02", 1600);
        fs::write(path("mux.toml"), text).unwrap();
        let ours = Command::new(env!("CARGO_BIN_EXE_slb"))
            .arg("replay")
            .arg("--config")
            .arg(path("mux.toml"))
            .arg("--in")
            .arg(capture)
            .arg("--out")
            .arg(path("ours.pcap"))
            .output()
            .unwrap();
        let theirs = Command::new(path("mux"))
            .arg(path("mux.toml"))
            .arg(capture)
            .arg(path("theirs.pcap"))
            .output()
            .unwrap();
        if !theirs.status.success() && ours.status.success() {
            // libpcap cannot read it: of several link types or snap lengths, or of none.
            refused.push(name);
            continue;
        }
        let (a, b) = (
            fs::read(path("ours.pcap")).unwrap(),
            fs::read(path("theirs.pcap")).unwrap(),
        );
        assert!(
            a == b,
            "{name}: {} and {} bytes; {ours:?} {theirs:?}",
            a.len(),
            b.len()
        );
        forwarded += read(&path("ours.pcap")).len();
        same += 1;
    }
    println!("{same} captures are the same, {forwarded} packets; libpcap cannot read {refused:?}");
    assert!(
        same >= 60 && forwarded > 1000,
        "{same}, {forwarded}, {refused:?}"
    );
}
