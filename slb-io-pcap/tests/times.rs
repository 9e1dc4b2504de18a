//! Times of pcapng packets are right to the nanosecond, or their packets are left out.

use std::fs;
use std::io::Cursor;
use std::path::PathBuf;
use std::process::Command;

use slb_core::{Burst, Instant, PacketIo as _};
use slb_io_pcap::{Capture, FRAME_LEN, Format, Next, Reader, Writer, memory_for};

const SECOND: u64 = 1_000_000_000;

/// A little-endian block of pcapng; the body is whole words.
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let len = (12 + body.len() as u32).to_le_bytes();
    [&kind.to_le_bytes()[..], &len, body, &len].concat()
}

/// A capture of one interface, with a packet for each of the times, in units.
fn capture(resolution: u8, offset: i64, times: &[u64]) -> Vec<u8> {
    let mut file = block(
        0x0a0d_0d0a,
        &[
            &0x1a2b_3c4d_u32.to_le_bytes()[..],
            &[1, 0, 0, 0],
            &[0xff; 8],
        ]
        .concat(),
    );
    let options = [
        &[9, 0, 1, 0, resolution, 0, 0, 0, 14, 0, 8, 0][..],
        &offset.to_le_bytes(),
        &[0; 4],
    ]
    .concat();
    file.extend(block(
        1,
        &[&[1, 0, 0, 0, 0, 0, 4, 0][..], &options].concat(),
    ));
    for units in times {
        let body = [
            &[0; 4][..],
            &((units >> 32) as u32).to_le_bytes(),
            &(*units as u32).to_le_bytes(),
            &60_u32.to_le_bytes(),
            &60_u32.to_le_bytes(),
            &[0; 60],
        ];
        file.extend(block(6, &body.concat()));
    }
    file
}

/// The time of each packet; `None` of one that is left out.
fn read(file: &[u8]) -> Vec<Option<Instant>> {
    let mut reader = Reader::new(Cursor::new(file.to_vec())).expect("a capture");
    let mut buffer = vec![0; FRAME_LEN];
    let mut times = Vec::new();
    loop {
        match reader.next(&mut buffer, None).expect("good") {
            Next::Packet { timestamp, .. } => times.push(Some(timestamp)),
            Next::UnknownTime => times.push(None),
            Next::End => {
                assert_eq!(reader.packets(), times.len() as u64);
                return times;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The times that tshark prints; `None` where it is not installed.
fn tshark(name: &str, file: &[u8]) -> Option<Vec<String>> {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, file).expect("a file");
    let mut command = Command::new("tshark");
    command.arg("-r").arg(&path);
    command.args(["-T", "fields", "-e", "frame.time_epoch"]);
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

/// Times as tshark prints them, without zeros at the end.
fn plain(text: &str) -> String {
    let trimmed = text.trim_end_matches('0').trim_end_matches('.');
    trimmed.to_owned()
}

#[test]
fn times_are_those_that_tshark_shows() {
    let binary = |bits: u8| 0x80 | bits;
    // tshark 4.0 is wrong about finer decimal resolutions, and rounds fine binary ones.
    let all: [(u8, i64, &[u64]); 8] = [
        (0, 0, &[0, 1_700_000_000, 4_294_967_296]),
        (3, 0, &[1_700_000_000_123]),
        (6, 0, &[1_700_000_000_123_456]),
        (9, 0, &[1_700_000_000_123_456_789, u64::MAX]),
        (binary(0), 0, &[1_700_000_000]),
        (binary(10), 0, &[1_700_000_000 << 10 | 513]),
        // An offset in front of 1970, and packets behind.
        (6, -86_400, &[86_400_000_000, 86_401_500_000]),
        (9, 1 << 33, &[SECOND / 2]),
    ];
    for (resolution, offset, times) in all {
        let file = capture(resolution, offset, times);
        let name = format!("{resolution:#x}-{offset}.pcapng");
        let Some(expected) = tshark(&name, &file) else {
            return;
        };
        let ours = read(&file).into_iter().map(|time| {
            let time = time.expect("it has one");
            plain(&time.to_string())
        });
        let expected: Vec<String> = expected.iter().map(|text| plain(text)).collect();
        assert_eq!(ours.collect::<Vec<_>>(), expected, "{name}");
    }
}

#[test]
fn fine_resolutions_are_right_to_the_nanosecond() {
    let nanos = |resolution, times: &[u64]| {
        let times = read(&capture(resolution, 0, times)).into_iter();
        let nanos = times.map(|time| time.expect("it has one").as_nanos());
        nanos.collect::<Vec<_>>()
    };
    assert_eq!(nanos(12, &[123_456_789_012, 999]), [123_456_789, 0]);
    assert_eq!(nanos(15, &[123_456_789_012_345]), [123_456_789]);
    assert_eq!(
        nanos(18, &[123_456_789_012_345_678, u64::MAX]),
        [123_456_789, 18_446_744_073]
    );
    assert_eq!(nanos(19, &[u64::MAX]), [1_844_674_407]);
    assert_eq!(nanos(0x80 | 32, &[3 << 30]), [3 * SECOND / 4]);
    assert_eq!(
        nanos(0x80 | 63, &[1 << 62, 1 << 63, u64::MAX]),
        [SECOND / 2, SECOND, 2 * SECOND - 1]
    );
    // 10^-20: 10^11 units are a nanosecond.
    assert_eq!(
        nanos(20, &[99_999_999_999, 100_000_000_000, u64::MAX]),
        [0, 1, 184_467_440]
    );
    assert_eq!(nanos(28, &[u64::MAX]), [1]);
    assert_eq!(nanos(29, &[u64::MAX]), [0]);
    assert_eq!(nanos(127, &[u64::MAX]), [0]);
    assert_eq!(nanos(0x80 | 64, &[u64::MAX]), [SECOND - 1]);
    assert_eq!(nanos(0x80 | 94, &[u64::MAX]), [0]);
    assert_eq!(nanos(0xff, &[u64::MAX]), [0]);
}

#[test]
fn packets_of_times_that_there_are_none_of_are_left_out_and_counted() {
    let last = Instant::from_nanos(u64::MAX);
    let seconds = u64::MAX / SECOND;
    for (resolution, offset, times, expected) in [
        // The last second that is known, and the next one.
        (
            0,
            0,
            vec![seconds, seconds + 1, u64::MAX],
            vec![Some(Instant::from_nanos(seconds * SECOND)), None, None],
        ),
        (9, 0, vec![u64::MAX], vec![Some(last)]),
        (
            9,
            1,
            vec![u64::MAX, u64::MAX - SECOND],
            vec![None, Some(last)],
        ),
        (9, i64::MAX, vec![0], vec![None]),
        (9, i64::MIN, vec![u64::MAX], vec![None]),
        // A nanosecond before 1970, and 1970.
        (
            9,
            -1,
            vec![SECOND - 1, SECOND],
            vec![None, Some(Instant::ZERO)],
        ),
        (0x80, -1, vec![0, 1], vec![None, Some(Instant::ZERO)]),
    ] {
        let file = capture(resolution, offset, &times);
        assert_eq!(read(&file), expected, "{resolution} {offset}");
        let mut memory = vec![0; memory_for(4)];
        let reader = Reader::new(Cursor::new(file)).expect("a capture");
        let writer = Writer::new(Vec::new(), Format::PcapNg).expect("memory");
        let mut io = Capture::new(reader, &mut memory).write_passed(writer);
        let mut burst = Burst::new();
        while !io.is_at_end() {
            io.receive(&mut burst).expect("good");
            io.transmit(&mut burst).expect("memory");
        }
        let left_out = expected.iter().filter(|time| time.is_none()).count() as u64;
        let stats = io.stats();
        assert_eq!((stats.unknown_time, stats.left_out()), (left_out, left_out));
        assert_eq!(stats.received, expected.len() as u64 - left_out);
    }
}

/// Frames written at the last possible times are read by tshark.
#[test]
fn the_last_times_are_written_as_they_are() {
    let times = [
        Instant::from_nanos(u64::MAX),
        Instant::from_nanos(u64::MAX - 1),
        Instant::from_secs(1 << 33),
    ];
    let mut writer = Writer::new(Vec::new(), Format::PcapNg).expect("memory");
    for time in times {
        writer.write(time, &[0; 60]).expect("it has the time");
    }
    let file = writer.finish().expect("memory");
    assert_eq!(read(&file), times.map(Some));
    if let Some(shown) = tshark("last.pcapng", &file) {
        assert_eq!(shown, times.map(|time| time.to_string()));
    }
}
