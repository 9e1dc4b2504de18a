//! The contents of a file, by this crate and by tshark.

use std::fs;
use std::io::Cursor;
use std::path::PathBuf;
use std::process::Command;

use slb_core::Instant;
use slb_io_pcap::{FRAME_LEN, LinkType, Next, Reader};

/// Contents of a file: packets with their times and the number of missing bytes, and the final error.
#[derive(Debug, Default)]
pub(super) struct All {
    pub(super) packets: Vec<(Instant, Vec<u8>, usize)>,
    pub(super) unknown: Vec<LinkType>,
    pub(super) error: Option<String>,
}

impl All {
    pub(super) fn times(&self) -> Vec<String> {
        self.packets.iter().map(|(at, ..)| at.to_string()).collect()
    }

    pub(super) fn frames(&self) -> Vec<Vec<u8>> {
        self.packets
            .iter()
            .map(|(_, frame, _)| frame.clone())
            .collect()
    }
}

pub(super) fn read_with(bytes: &[u8], fills_cut: bool) -> All {
    let mut all = All::default();
    let mut reader = match Reader::new(Cursor::new(bytes.to_vec())) {
        Ok(reader) => reader,
        Err(error) => {
            all.error = Some(error.to_string());
            return all;
        }
    };
    if fills_cut {
        reader.fill_cut();
    }
    let mut buffer = vec![0xff; FRAME_LEN];
    loop {
        match reader.next(&mut buffer, None) {
            Ok(Next::Packet {
                timestamp,
                len,
                cut,
            }) => all.packets.push((timestamp, buffer[..len].to_vec(), cut)),
            Ok(Next::UnknownLink(link)) => all.unknown.push(link),
            Ok(Next::End) => return all,
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                all.error = Some(error.to_string());
                return all;
            }
        }
    }
}

pub(super) fn read(bytes: &[u8]) -> All {
    read_with(bytes, false)
}

/// Returns tshark's output for a file, a line for each packet; `None` where tshark is not installed.
pub(super) fn tshark(name: &str, bytes: &[u8], fields: &[&str]) -> Option<Vec<String>> {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, bytes).expect("a file");
    let mut command = Command::new("tshark");
    command
        .arg("-r")
        .arg(&path)
        .args(["-T", "fields", "-E", "separator=,"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let Ok(output) = command.output() else {
        let is_required = std::env::var_os("SLB_REQUIRE_ALL").is_some();
        assert!(!is_required, "tshark is not installed");
        eprintln!("SKIPPED: tshark is not installed");
        return None;
    };
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {error}");
    let text = String::from_utf8(output.stdout).expect("text");
    Some(text.lines().map(str::to_owned).collect())
}
