//! Captures that gzip or zstd packed.

use std::fs;
use std::io::{Cursor, Write as _};
use std::path::PathBuf;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use slb_core::Instant;
use slb_io_pcap::{FRAME_LEN, Format, Next, Reader, Writer};

use super::blocks::{ORDERS, datagram};
use super::reading::read;

pub(super) fn capture() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), Format::Pcap).expect("memory");
    for second in 1..400 {
        let frame = datagram(60 + second as usize);
        writer
            .write(Instant::from_secs(second), &frame)
            .expect("memory");
    }
    writer.finish().expect("memory")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

#[test]
fn packed_captures_are_read_as_they_are() {
    let plain = capture();
    let expected = read(&plain).frames();
    assert_eq!(expected.len(), 399);
    let (first, second) = plain.split_at(10_000);
    // Of zstd: four bytes of a user's own, between two frames.
    let skippable = [0x53, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    for (name, packed) in [
        ("gzip", gzip(&plain)),
        ("gzip, two members", [gzip(first), gzip(second)].concat()),
        ("zstd", zstd(&plain)),
        ("zstd, two frames", [zstd(first), zstd(second)].concat()),
        (
            "zstd, a skippable frame first",
            [&skippable[..], &zstd(&plain)].concat(),
        ),
        (
            "zstd, one between",
            [&zstd(first)[..], &skippable, &zstd(second)].concat(),
        ),
    ] {
        let found = read(&packed);
        assert_eq!(found.error, None, "{name}");
        assert!(found.frames() == expected, "{name}");
    }
    // By the tools that people have.
    for tool in ["gzip", "zstd"] {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("plain-{tool}.pcap"));
        fs::write(&path, &plain).expect("a file");
        let Ok(output) = Command::new(tool).arg("-c").arg(&path).output() else {
            assert!(
                std::env::var_os("SLB_REQUIRE_ALL").is_none(),
                "{tool} is not installed"
            );
            eprintln!("SKIPPED: {tool} is not installed");
            continue;
        };
        assert!(read(&output.stdout).frames() == expected, "{tool}");
    }
}

#[test]
fn packed_captures_that_are_damaged_end_with_an_error() {
    let plain = capture();
    for packed in [gzip(&plain), zstd(&plain)] {
        for cut in [packed.len() / 2, packed.len() - 1] {
            let found = read(&packed[..cut]);
            assert!(
                found.error.is_some() || found.packets.len() == 399,
                "cut at {cut}"
            );
            let frames = found.frames();
            assert!(read(&plain).frames().starts_with(&frames));
        }
        for at in (4..packed.len()).step_by(packed.len() / 150) {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x10;
            let _ = read(&damaged); // ends, and does not panic
        }
    }
    // Frames of zstd by hand (RFC 8878 §3.1.1): a descriptor, what it announces, and the header of a block.
    for (header, expected) in [
        (&[0x20, 5, 7, 0, 0][..], "a frame is damaged"), // a block of the reserved type
        (
            &[0x21, 9, 5, 1, 0, 0],
            "a frame needs dictionary 9, and dictionaries are not supported",
        ),
        (
            &[0x00, 0xff, 1, 0, 0, 0, 0, 0, 0],
            "bytes of memory, which is more than any should",
        ),
    ] {
        let file = [&[0x28, 0xb5, 0x2f, 0xfd], header].concat();
        let error = read(&file).error.expect("it is damaged");
        assert!(error.contains(": zstd: a frame "), "{error}");
        assert!(error.ends_with(expected), "{header:?}: {error}");
    }
    let mut wrong = gzip(&plain);
    let crc = wrong.len() - 8;
    wrong[crc] ^= 1;
    let error = read(&wrong).error.expect("the checksum is wrong");
    assert!(error.contains("packet "), "{error}");
}

#[test]
fn the_offset_is_of_the_file_as_it_is() {
    let packed = gzip(&capture());
    let mut reader = Reader::new(Cursor::new(packed.clone())).expect("a capture");
    let mut buffer = vec![0; FRAME_LEN];
    while reader.next(&mut buffer, None).expect("good") != Next::End {}
    assert_eq!(reader.offset(), packed.len() as u64);
}

#[test]
fn a_capture_that_unpacks_to_hundreds_of_times_its_size_is_streamed() {
    let order = ORDERS[0];
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed
        .write_all(&order.pcap(0xa1b2_c3d4, 1))
        .expect("memory");
    let record = order.record(1, 0, 0, &[0; 200_000], 200_000);
    for _ in 0..300 {
        packed.write_all(&record).expect("memory");
    }
    let packed = packed.finish().expect("memory");
    assert!(packed.len() * 500 < 300 * record.len());
    let mut reader = Reader::new(Cursor::new(packed)).expect("a capture");
    let mut buffer = vec![0; FRAME_LEN];
    while reader.next(&mut buffer, None).expect("good") != (Next::End {}) {}
    assert_eq!(reader.packets(), 300);
}
