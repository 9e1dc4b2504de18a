//! Packed captures that end where they should not, that others stand behind, or that were appended to each other: what
//! is whole is read, and the rest is told. gzip and zstd packed them where they are installed.

use std::io::{Cursor, Write as _};
use std::process::{Command, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use slb_io_pcap::{Damage, FRAME_LEN, Next, Reader};

/// A pcap file of so many packets, whose first bytes are their numbers.
fn capture(count: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(0xa1b2_c3d4_u32.to_le_bytes());
    bytes.extend([2, 0, 4, 0]);
    bytes.extend([0; 8]);
    bytes.extend(65_535_u32.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    for number in 0..count {
        bytes.extend(u32::from(number).to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(60_u32.to_le_bytes());
        bytes.extend(60_u32.to_le_bytes());
        bytes.extend([number; 60]);
    }
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

/// Packs with a program; `None` where it is not installed.
fn packed_by(program: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut child = Command::new(program)
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(bytes).expect("the program reads");
    drop(input);
    let output = child.wait_with_output().expect("the program ends");
    assert!(output.status.success(), "{program}");
    Some(output.stdout)
}

/// The first bytes of all packets, and the fault at the end.
fn read(bytes: &[u8]) -> (Vec<u8>, Option<(Damage, String)>) {
    let told = |error: slb_io_pcap::ReadError| (error.to_string(), error.damage);
    let mut reader = match Reader::new(Cursor::new(bytes.to_vec())) {
        Ok(reader) => reader,
        Err(error) => {
            let (text, damage) = told(error);
            return (Vec::new(), Some((damage, text)));
        }
    };
    let (mut buffer, mut packets) = (vec![0; FRAME_LEN], Vec::new());
    loop {
        match reader.next(&mut buffer, None) {
            Ok(Next::Packet { len, .. }) => {
                assert_eq!(len, 60);
                packets.push(buffer[0]);
            }
            Ok(Next::End) => return (packets, None),
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                let (text, damage) = told(error);
                return (packets, Some((damage, text)));
            }
        }
    }
}

type Pack = fn(&[u8]) -> Vec<u8>;
const PACKINGS: [(&str, Pack); 2] = [("gzip", gzip), ("zstd", zstd)];

#[test]
fn bytes_behind_packed_data_are_told_and_all_packets_read() {
    for (name, pack) in PACKINGS {
        let packed = pack(&capture(3));
        for behind in [
            &b"x"[..],
            b"abc",
            b"garbage that is longer than a header",
            &[0, 0, 7],
        ] {
            let (packets, fault) = read(&[&packed, behind].concat());
            assert_eq!(packets, [0, 1, 2], "{name} {behind:?}");
            let (damage, text) = fault.unwrap_or_else(|| panic!("{name} {behind:?} is not told"));
            assert!(
                matches!(damage, Damage::Behind { packing, at } if packing == name && at == packed.len() as u64),
                "{name} {behind:?}: {damage:?}"
            );
            assert_eq!(
                text,
                format!(
                    "after packet 3: expected {name} data up to the end of the file, got other bytes from byte {} \
                     on, which are left out",
                    packed.len()
                )
            );
        }
        // Tapes and disks fill blocks up.
        for zeros in [1, 3, 512, 100_000] {
            let (packets, fault) = read(&[&*packed, &vec![0; zeros]].concat());
            assert_eq!(packets, [0, 1, 2]);
            assert!(fault.is_none(), "{name} {zeros}: {fault:?}");
        }
    }
}

/// Wherever packed data is cut off, all packets before are read, and the cut is told: also where the last packet is
/// whole.
#[test]
fn packed_data_that_ends_too_early_is_told_wherever_it_ends() {
    for (name, pack) in PACKINGS {
        let whole = pack(&capture(3));
        let two = [
            pack(&capture(3)),
            pack(&capture(0)[24..]),
            pack(&capture(2)[24..]),
        ]
        .concat();
        let mut ends = 0;
        for len in 4..two.len() {
            let (packets, fault) = read(&two[..len]);
            let is_end = len == whole.len() || len == whole.len() + pack(&[]).len();
            ends += usize::from(is_end);
            match fault {
                None => assert!(is_end, "{name}: the cut at byte {len} is not told"),
                Some((damage, text)) => assert!(
                    !is_end && matches!(damage, Damage::Cut { packing } if packing == name),
                    "{name}, byte {len}: {text}"
                ),
            }
            assert!(
                [0, 1, 2, 0, 1].starts_with(&packets),
                "{name}, byte {len}: {packets:?}"
            );
            if len >= whole.len() {
                assert!(packets.len() >= 3, "{name}, byte {len}: {packets:?}");
            }
        }
        assert_eq!(ends, 2);
    }
}

#[test]
fn captures_appended_to_each_other_are_read_one_behind_the_other() {
    let (one, two) = (capture(3), capture(2));
    let all = [0, 1, 2, 0, 1];
    assert_eq!(read(&[&*one, &*two].concat()).0, all);
    for (name, pack) in PACKINGS {
        let members = [pack(&one), pack(&two)].concat();
        let split = [
            pack(&one[..50]),
            pack(&one[50..]),
            pack(&[]),
            pack(&two[..10]),
            pack(&two[10..]),
        ];
        for bytes in [members, pack(&[&*one, &*two].concat()), split.concat()] {
            let (packets, fault) = read(&bytes);
            assert_eq!(packets, all, "{name}");
            assert!(fault.is_none(), "{name}: {fault:?}");
        }
    }
}

#[test]
fn what_gzip_and_zstd_pack_ends_alike() {
    for program in ["gzip", "zstd"] {
        let Some(packed) = packed_by(program, &capture(3)) else {
            let is_required = std::env::var_os("SLB_REQUIRE_ALL").is_some();
            assert!(!is_required, "{program} is not installed");
            println!("SKIPPED: {program} is not installed");
            continue;
        };
        assert!(matches!(read(&packed), (packets, None) if packets == [0, 1, 2]));
        let (packets, fault) = read(&packed[..packed.len() - 1]);
        assert!(
            matches!(fault, Some((Damage::Cut { .. }, _))),
            "{program}: {fault:?}"
        );
        assert!([0, 1, 2].starts_with(&packets));
        let (packets, fault) = read(&[&packed, &b"more"[..]].concat());
        assert_eq!(packets, [0, 1, 2]);
        assert!(
            matches!(fault, Some((Damage::Behind { .. }, _))),
            "{program}: {fault:?}"
        );
    }
}
