//! Captures that other programs wrote, damaged ones, and our own read back.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use slb_core::{Burst, Instant, PacketIo, Verdict};
use slb_io_pcap::{Capture, Damage, Format, Next, ReadError, Reader, Writer, memory_for};

/// The captures of other projects, where they are there: they are not part of this one.
fn shared(name: &str) -> Option<PathBuf> {
    beside("captures", name)
}

/// A file of a folder that lies beside this project.
fn beside(folder: &str, name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared")
        .join(folder)
        .join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is not there", path.display());
    None
}

type Packets = Vec<(Instant, Vec<u8>)>;

/// Packets, the error that ended them, and how many were left out.
fn read_all(bytes: Vec<u8>) -> (Packets, Option<ReadError>, u64) {
    let mut left_out = 0;
    let mut packets = Vec::new();
    let mut reader = match Reader::new(Cursor::new(bytes)) {
        Ok(reader) => reader,
        Err(error) => return (packets, Some(error), left_out),
    };
    let mut buffer = vec![0; slb_io_pcap::FRAME_LEN];
    loop {
        match reader.next(&mut buffer, None) {
            Ok(Next::Packet { timestamp, len, .. }) => {
                packets.push((timestamp, buffer[..len].to_vec()));
            }
            Ok(Next::End) => return (packets, None, left_out),
            Ok(_) => left_out += 1,
            Err(error) => return (packets, Some(error), left_out),
        }
    }
}

/// Every capture of the manifest, with the number of packets that it lists.
#[test]
fn every_shared_capture_is_read_to_its_end() {
    let Some(manifest) = shared("MANIFEST.md") else {
        return;
    };
    let text = std::fs::read_to_string(&manifest).unwrap();
    let mut read = 0;
    for line in text
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains(".pcap"))
    {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let bytes = std::fs::read(manifest.with_file_name(cells[0])).unwrap();
        let (packets, error, left_out) = read_all(bytes);
        let total = packets.len() as u64 + left_out;
        match cells[2]
            .rsplit(' ')
            .next()
            .and_then(|count| count.parse::<u64>().ok())
        {
            Some(expected) => {
                assert_eq!(total, expected, "{}", cells[0]);
                assert!(error.is_none(), "{}: {}", cells[0], error.unwrap());
            }
            // Its second section has version 2.0: the first is not lost.
            None => {
                assert_eq!((cells[0], total), ("be-test901.pcapng", 1));
                let error = error.unwrap();
                assert!(
                    matches!(error.damage, Damage::Version { major: 2, minor: 0 }),
                    "{error}"
                );
                assert_eq!(error.packet, 2);
            }
        }
        let unknown = ["nflog-http.pcap", "retry.pcap"].contains(&cells[0]);
        assert_eq!(left_out > 0, unknown, "{}: {left_out} left out", cells[0]);
        read += 1;
    }
    assert!(read > 60, "{read} captures read");
}

#[test]
fn timestamps_are_those_that_tshark_shows() {
    const CASES: &str = "cases/capture-files";
    for (folder, name, count) in [
        ("captures", "nanosecs-big-endian.pcap", None),
        ("captures", "tcp-handshake-nano.pcap", None),
        ("captures", "big-endian-udp-nfs.pcap", None),
        ("captures", "be-test001.pcapng", None),
        // An offset, a resolution of a power of two, and an obsolete Packet Block.
        (CASES, "be-tsoffset.pcapng", Some(6)),
        (CASES, "pcapng-binary-tsresol.pcapng", Some(1)),
        (CASES, "pcapng-packet-block.pcapng", Some(1)),
    ] {
        let Some(path) = beside(folder, name) else {
            return;
        };
        let tshark = std::process::Command::new("tshark")
            .args([
                "-r",
                path.to_str().unwrap(),
                "-T",
                "fields",
                "-e",
                "frame.time_epoch",
            ])
            .output();
        let Ok(output) = tshark else {
            assert!(
                std::env::var_os("SLB_REQUIRE_ALL").is_none(),
                "tshark is not installed"
            );
            eprintln!("SKIPPED: tshark is not installed");
            return;
        };
        let expected: Vec<String> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect();
        let (packets, ..) = read_all(std::fs::read(path).unwrap());
        let ours: Vec<String> = packets.iter().map(|(at, _)| at.to_string()).collect();
        assert_eq!(ours, expected, "{name}");
        assert!(count.is_none_or(|count| count == ours.len()), "{name}");
    }
}

fn frames() -> Vec<(Instant, Vec<u8>)> {
    (0..200u64)
        .map(|i| {
            let at = Instant::from_nanos(1_700_000_000_123_456_789 + i * 1_000_001);
            (at, (0..60 + i % 900).map(|j| (i + j) as u8).collect())
        })
        .collect()
}

fn written(format: Format) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), format).unwrap();
    for (timestamp, frame) in frames() {
        writer.write(timestamp, &frame).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn what_is_written_reads_back_the_same() {
    for format in [Format::Pcap, Format::PcapNg] {
        let (packets, error, left_out) = read_all(written(format));
        assert!(error.is_none() && left_out == 0);
        assert_eq!(packets, frames(), "{format:?}");
    }
}

/// Cut anywhere, all whole packets before the cut are read, and the error says where it is.
#[test]
fn a_truncated_file_loses_only_what_is_cut() {
    for format in [Format::Pcap, Format::PcapNg] {
        let whole = written(format);
        for cut in (0..4000).chain([whole.len() - 1]) {
            let (packets, error, _) = read_all(whole[..cut].to_vec());
            assert_eq!(packets, frames()[..packets.len()]);
            if let Some(error) = error {
                assert_eq!(error.packet, packets.len() as u64 + 1);
                assert!(
                    error.offset <= cut as u64,
                    "{format:?} cut at {cut}: {error}"
                );
            } else {
                // The cut is between two packets, and the file is a good one.
                assert!(read_all(whole[..cut + 1].to_vec()).1.is_some() || cut + 1 == whole.len());
            }
        }
    }
}

#[test]
fn arbitrary_bytes_never_panic() {
    let (pcap, pcapng) = (written(Format::Pcap), written(Format::PcapNg));
    bolero::check!()
        .with_type::<(bool, Vec<(u16, u8)>, Vec<u8>)>()
        .for_each(|(ng, changes, tail)| {
            let mut bytes = if *ng {
                pcapng[..3000].to_vec()
            } else {
                pcap[..3000].to_vec()
            };
            for &(at, value) in changes {
                let at = usize::from(at) % bytes.len();
                bytes[at] = value;
            }
            bytes.extend(tail);
            read_all(bytes);
            read_all(tail.clone());
        });
}

#[test]
fn a_record_of_absurd_length_is_refused_and_costs_no_memory() {
    let mut bytes = written(Format::Pcap);
    bytes[24 + 8..24 + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    let (packets, error, _) = read_all(bytes);
    assert!(packets.is_empty());
    let error = error.unwrap();
    assert_eq!((error.packet, error.offset), (1, 24));
}

/// A burst is of one moment, frames come back to where they came from, and none is lost.
#[test]
fn a_capture_is_a_port() {
    let bytes = written(Format::Pcap);
    let mut memory = vec![0; memory_for(70)];
    let (mut sent, mut passed) = (Vec::new(), Vec::new());
    let mut capture = Capture::new(Reader::new(Cursor::new(bytes)).unwrap(), &mut memory)
        .write_sent(Writer::new(&mut sent, Format::Pcap).unwrap())
        .write_passed(Writer::new(&mut passed, Format::PcapNg).unwrap());
    let mut burst = Burst::new();
    let mut count = 0;
    while !capture.is_at_end() {
        let received = capture.receive(&mut burst).unwrap();
        assert!(
            received <= 1,
            "packets a millisecond apart are not of one burst"
        );
        for frame in burst.iter_mut() {
            assert_eq!(frames()[count].0, capture.now());
            let verdict = if count % 2 == 0 {
                Verdict::Reply
            } else {
                Verdict::Pass
            };
            frame.set_verdict(verdict);
            count += 1;
        }
        let mut spare = Burst::new();
        assert_eq!(capture.reserve(&mut spare, 3), 3);
        capture.transmit(&mut spare).unwrap();
        capture.transmit(&mut burst).unwrap();
    }
    let stats = capture.finish().unwrap();
    assert_eq!(
        (stats.received, stats.written, stats.foreign),
        (200, 100, 0)
    );
    let even = frames().into_iter().step_by(2).collect::<Vec<_>>();
    assert_eq!(read_all(sent).0, even);
    let odd = frames().into_iter().skip(1).step_by(2).collect::<Vec<_>>();
    assert_eq!(read_all(passed).0, odd);
}

#[test]
fn a_damaged_capture_gives_its_good_packets_first() {
    let mut bytes = written(Format::Pcap);
    bytes.truncate(5000);
    let mut memory = vec![0; memory_for(64)];
    let mut capture: Capture<'_, Vec<u8>> = Capture::new(
        Reader::new(Cursor::new(bytes.clone())).unwrap(),
        &mut memory,
    );
    let mut burst = Burst::new();
    let mut packets = 0;
    let error = loop {
        match capture.receive(&mut burst) {
            Ok(count) => packets += count,
            Err(error) => break error,
        }
        capture.transmit(&mut burst).unwrap();
    };
    assert!(capture.is_at_end());
    assert_eq!(packets, read_all(bytes).0.len());
    assert!(
        error
            .to_string()
            .starts_with(&format!("packet {}, at byte ", packets + 1))
    );
}
