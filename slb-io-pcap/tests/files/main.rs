//! Files of every kind that captures come in, as tshark reads them.

use std::fs;
use std::io::{Cursor, Read as _, Write as _};
use std::path::PathBuf;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use slb_core::{Burst, Instant, PacketIo as _, Verdict};
use slb_io_pcap::{Capture, Damage, FRAME_LEN, Format, LinkType, Next, Reader, Writer, memory_for};

/// Contents of a file: packets with their times and the number of missing bytes, and the final error.
#[derive(Debug, Default)]
struct All {
    packets: Vec<(Instant, Vec<u8>, usize)>,
    unknown: Vec<LinkType>,
    error: Option<String>,
}

impl All {
    fn times(&self) -> Vec<String> {
        self.packets.iter().map(|(at, ..)| at.to_string()).collect()
    }

    fn frames(&self) -> Vec<Vec<u8>> {
        self.packets
            .iter()
            .map(|(_, frame, _)| frame.clone())
            .collect()
    }
}

fn read_with(bytes: &[u8], fills_cut: bool) -> All {
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

fn read(bytes: &[u8]) -> All {
    read_with(bytes, false)
}

/// Returns tshark's output for a file, a line for each packet; `None` where tshark is not installed.
fn tshark(name: &str, bytes: &[u8], fields: &[&str]) -> Option<Vec<String>> {
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

/// Numbers in either byte order.
#[derive(Clone, Copy, Debug)]
struct Order {
    is_big: bool,
}

const ORDERS: [Order; 2] = [Order { is_big: false }, Order { is_big: true }];

impl Order {
    fn two(self, number: u16) -> [u8; 2] {
        if self.is_big {
            number.to_be_bytes()
        } else {
            number.to_le_bytes()
        }
    }

    fn four(self, number: u32) -> [u8; 4] {
        if self.is_big {
            number.to_be_bytes()
        } else {
            number.to_le_bytes()
        }
    }

    fn eight(self, number: u64) -> [u8; 8] {
        if self.is_big {
            number.to_be_bytes()
        } else {
            number.to_le_bytes()
        }
    }

    /// A block of pcapng, its body padded.
    fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
        let padded = body.len().next_multiple_of(4);
        let len = self.four(12 + padded as u32);
        let mut block = [&self.four(kind)[..], &len, body].concat();
        block.resize(8 + padded, 0);
        block.extend(len);
        block
    }

    fn section(self) -> Vec<u8> {
        let body = [
            &self.four(0x1a2b_3c4d)[..],
            &self.two(1),
            &self.two(0),
            &[0xff; 8],
        ];
        self.block(0x0a0d_0d0a, &body.concat())
    }

    fn option(self, code: u16, value: &[u8]) -> Vec<u8> {
        let mut option = [&self.two(code)[..], &self.two(value.len() as u16), value].concat();
        option.resize(option.len().next_multiple_of(4), 0);
        option
    }

    fn interface(self, link: u16, snap_len: u32, options: &[u8]) -> Vec<u8> {
        let body = [&self.two(link)[..], &[0; 2], &self.four(snap_len), options];
        self.block(1, &body.concat())
    }

    /// An Enhanced Packet Block, or an obsolete one: they differ in how the interface is said.
    fn packet(self, kind: u32, units: u64, data: &[u8], original: usize) -> Vec<u8> {
        let interface = [0; 4];
        let body = [
            &interface[..],
            &self.four((units >> 32) as u32),
            &self.four(units as u32),
            &self.four(data.len() as u32),
            &self.four(original as u32),
            data,
        ];
        self.block(kind, &body.concat())
    }

    fn pcap(self, magic: u32, link: u32) -> Vec<u8> {
        let header = [&self.four(magic)[..], &self.two(2), &self.two(4), &[0; 8]];
        [&header.concat()[..], &self.four(65_535), &self.four(link)].concat()
    }

    fn record(
        self,
        seconds: u32,
        fraction: u32,
        extra: usize,
        data: &[u8],
        original: usize,
    ) -> Vec<u8> {
        let lengths = [self.four(data.len() as u32), self.four(original as u32)].concat();
        let mut record = [&self.four(seconds)[..], &self.four(fraction), &lengths].concat();
        record.resize(record.len() + extra, 0);
        record.extend(data);
        record
    }
}

/// A UDP datagram over IPv4, of `len` bytes with all headers.
fn datagram(len: usize) -> Vec<u8> {
    let ip_len = (len - 14) as u16;
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    frame.extend(ip_len.to_be_bytes());
    frame.extend([
        0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, 0, 9, 0, 9,
    ]);
    frame.extend((ip_len - 20).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((frame.len()..len).map(|at| at as u8));
    frame
}

#[test]
fn timestamps_of_every_resolution_and_offset() {
    let data = datagram(60);
    for order in ORDERS {
        for (place, (resolution, offset, units, expected)) in [
            (None, None, 1_700_000_000_123_456, "1700000000.123456000"),
            (Some(0), None, 1_700_000_000, "1700000000.000000000"),
            (Some(3), None, 1_700_000_000_123, "1700000000.123000000"),
            (
                Some(9),
                None,
                1_700_000_000_123_456_789,
                "1700000000.123456789",
            ),
            (Some(0x80), None, 1_700_000_000, "1700000000.000000000"),
            (
                Some(0x80 | 10),
                None,
                (1_700_000_000 << 10) + 512,
                "1700000000.500000000",
            ),
            (
                Some(0x80 | 20),
                None,
                (1_700_000_000 << 20) + (1 << 18),
                "1700000000.250000000",
            ),
            (
                Some(0x80 | 32),
                None,
                (1_700_000_000 << 32) + (3 << 30),
                "1700000000.750000000",
            ),
            (None, Some(1000_i64), 1_000_000, "1001.000000000"),
            (
                None,
                Some(-1000),
                1_700_000_000_000_000,
                "1699999000.000000000",
            ),
            (Some(0x80 | 20), Some(86_400), 5 << 20, "86405.000000000"),
            // 2107: in no pcap, but in pcapng.
            (
                Some(9),
                None,
                4_323_459_661_000_000_000,
                "4323459661.000000000",
            ),
        ]
        .into_iter()
        .enumerate()
        {
            let mut options = Vec::new();
            options.extend(resolution.iter().flat_map(|&r: &u8| order.option(9, &[r])));
            options.extend(
                offset
                    .iter()
                    .flat_map(|&o| order.option(14, &order.eight(o.cast_unsigned()))),
            );
            options.extend(order.option(0, &[]));
            let file = [
                order.section(),
                order.interface(1, 0, &options),
                order.packet(6, units, &data, data.len()),
            ];
            let file = file.concat();
            let found = read(&file);
            assert_eq!(found.error, None);
            assert_eq!(
                found.times(),
                [expected],
                "{order:?} {resolution:?} {offset:?}"
            );
            assert_eq!(found.frames(), std::slice::from_ref(&data));
            let name = format!("time-{}-{place}.pcapng", order.is_big);
            if let Some(shown) = tshark(&name, &file, &["frame.time_epoch"]) {
                assert_eq!(
                    shown,
                    [expected],
                    "tshark: {order:?} {resolution:?} {offset:?}"
                );
            }
        }
    }
}

#[test]
fn every_block_that_holds_a_packet_is_read() {
    let data = datagram(77);
    for order in ORDERS {
        let simple = [&order.four(data.len() as u32)[..], &data].concat();
        let file = [
            order.section(),
            order.interface(1, 0, &[]),
            order.packet(6, 1_000_000, &data, data.len()),
            order.packet(2, 2_000_000, &data, data.len()),
            order.block(3, &simple),
            // A block of a kind that is not known, and a section in the other byte order.
            order.block(0x4d4d, &[1; 5]),
            Order {
                is_big: !order.is_big,
            }
            .section(),
            Order {
                is_big: !order.is_big,
            }
            .interface(1, 0, &[]),
            Order {
                is_big: !order.is_big,
            }
            .packet(2, 3_000_000, &data, data.len()),
        ];
        let file = file.concat();
        let found = read(&file);
        assert_eq!(found.error, None, "{order:?}");
        assert_eq!(found.frames(), vec![data.clone(); 4]);
        // A packet without a time has that of the one before it.
        let times = ["1.000000000", "2.000000000", "2.000000000", "3.000000000"];
        assert_eq!(found.times(), times);
        let name = format!("blocks-{}.pcapng", order.is_big);
        if let Some(shown) = tshark(&name, &file, &["frame.len", "frame.cap_len"]) {
            assert_eq!(shown, vec!["77,77"; 4], "{order:?}");
        }
    }
}

#[test]
fn blocks_that_contradict_themselves_are_refused() {
    let order = ORDERS[0];
    let data = datagram(60);
    let start = [order.section(), order.interface(1, 0, &[])].concat();
    let good = order.packet(6, 1, &data, data.len());
    let patched = |at: usize, value: u32| {
        let mut block = good.clone();
        block[at..at + 4].copy_from_slice(&value.to_le_bytes());
        block
    };
    for (block, expected) in [
        (patched(4, 0), "its lengths contradict each other"),
        (patched(4, 8), "its lengths contradict each other"),
        (patched(4, 13), "its lengths contradict each other"),
        (patched(4, 12), "its lengths contradict each other"),
        (
            patched(4, 1 << 30),
            "it announces more bytes than a packet can have",
        ),
        (patched(4, 4096), "the file ends within it"),
        (patched(8, 7), "no interface 7 was described before it"),
        (patched(20, 64), "its lengths contradict each other"),
        (
            patched(good.len() - 4, 60),
            "its lengths contradict each other",
        ),
        (order.block(3, &[]), "its lengths contradict each other"),
        (
            order.block(2, &[0; 16]),
            "its lengths contradict each other",
        ),
        (order.block(1, &[0; 4]), "its lengths contradict each other"),
        (
            order.interface(1, 0, &[9, 0, 200, 0]),
            "its lengths contradict each other",
        ),
        (
            order.block(0x0a0d_0d0a, &[0; 16]),
            "its lengths contradict each other",
        ),
    ] {
        let found = read(&[start.clone(), good.clone(), block].concat());
        assert_eq!(found.packets.len(), 1);
        let error = found.error.expect("an error");
        let at = start.len() + good.len();
        assert_eq!(error, format!("packet 2, at byte {at}: {expected}"));
    }
    let many = order.interface(1, 0, &[]).repeat(65_537);
    let found = read(&[order.section(), many].concat());
    assert!(
        found
            .error
            .is_some_and(|error| error.ends_with("expected at most 65536 interfaces"))
    );
}

#[test]
fn pcap_of_every_kind_in_both_byte_orders() {
    let data = datagram(60);
    for order in ORDERS {
        for (magic, extra, expected) in [
            (0xa1b2_c3d4, 0, "1700000000.000123000"),
            (0xa1b2_3c4d, 0, "1700000000.000000123"),
            (0xa1b2_cd34, 8, "1700000000.000123000"),
        ] {
            let record = order.record(1_700_000_000, 123, extra, &data, data.len());
            let file = [order.pcap(magic, 1), record.repeat(3)].concat();
            let found = read(&file);
            assert_eq!(found.error, None, "{order:?} {magic:x}");
            assert_eq!(found.times(), [expected; 3], "{order:?} {magic:x}");
            assert_eq!(found.frames(), vec![data.clone(); 3]);
            let name = format!("kind-{}-{magic:x}.pcap", order.is_big);
            if let Some(shown) = tshark(&name, &file, &["frame.time_epoch", "frame.len"]) {
                assert_eq!(
                    shown,
                    vec![format!("{expected},60"); 3],
                    "{order:?} {magic:x}"
                );
            }
        }
    }
    for (file, expected) in [
        (
            &b""[..],
            "the file is empty: expected a pcap or pcapng file",
        ),
        (b"slb\n", "expected a pcap or pcapng file"),
        (
            &[0xd4, 0xc3, 0xb2, 0xa1, 2, 0],
            "the file ends within its header",
        ),
        (
            &[0x0a, 0x0d, 0x0d, 0x0a, 28, 0],
            "the file ends within its header",
        ),
    ] {
        assert_eq!(read(file).error.expect("no capture"), expected);
    }
}

#[test]
fn raw_ip_under_all_its_numbers() {
    let order = ORDERS[0];
    let four = datagram(60)[14..].to_vec();
    let mut six = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    six.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1].repeat(2));
    six.extend([0, 9, 0, 9, 0, 8, 0x9b, 0x3a]);
    for link in [12, 14, 101] {
        let records = [
            order.record(1, 0, 0, &four, four.len()),
            order.record(1, 0, 0, &six, six.len()),
            // No IP packet.
            order.record(1, 0, 0, &[0; 40], 40),
        ];
        let file = [order.pcap(0xa1b2_c3d4, link), records.concat()].concat();
        let found = read(&file);
        let made =
            |ether_type: [u8; 2], packet: &[u8]| [&[0; 12], &ether_type[..], packet].concat();
        let expected = [made([0x08, 0x00], &four), made([0x86, 0xdd], &six)];
        assert_eq!(found.frames(), expected, "link type {link}");
        assert_eq!(found.unknown, [LinkType(link as u16)]);
        if let Some(shown) = tshark(&format!("raw-{link}.pcap"), &file, &["ip.dst", "ipv6.dst"]) {
            assert_eq!(
                shown[..2],
                ["192.0.2.2,", ",2001:db8::1"],
                "link type {link}"
            );
        }
    }
}

#[test]
fn link_types_are_called_by_their_names() {
    for (link, name, is_read) in [
        (1, "1 (Ethernet)", true),
        (12, "12 (raw IP)", true),
        (14, "14 (raw IP)", true),
        (105, "105 (IEEE 802.11)", false),
        (127, "127 (IEEE 802.11 radiotap)", false),
        (239, "239 (NFLOG)", false),
        (276, "276 (Linux cooked v2)", true),
        (147, "147 (private use)", false),
        (9999, "9999", false),
    ] {
        let link = LinkType(link);
        assert_eq!((link.to_string().as_str(), link.is_read()), (name, is_read));
        let order = ORDERS[1];
        let record = order.record(1, 0, 0, &[0; 4], 4);
        let file = [order.pcap(0xa1b2_c3d4, u32::from(link.0)), record].concat();
        if link.0 != 1 {
            assert_eq!(read(&file).unknown, [link]);
        }
    }
}

fn capture() -> Vec<u8> {
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
fn an_error_of_the_operating_system_is_named() {
    struct Failing;
    impl std::io::Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the disk is on fire"))
        }
    }
    let error = Reader::new(Failing).expect_err("it cannot be read");
    assert!(matches!(error.damage, Damage::Io(_)));
    assert!(
        error.to_string().ends_with("the disk is on fire"),
        "{error}"
    );
    let later = Cursor::new(capture()[..1000].to_vec()).chain(Failing);
    let mut reader = Reader::new(later).expect("its beginning is good");
    let mut buffer = vec![0; FRAME_LEN];
    let error = loop {
        match reader.next(&mut buffer, None) {
            Ok(next) => assert_ne!(next, Next::End),
            Err(error) => break error,
        }
    };
    assert!(
        error.to_string().ends_with("the disk is on fire"),
        "{error}"
    );
}

#[test]
fn a_time_that_pcap_does_not_have_is_refused_alone() {
    let last = Instant::from_nanos((u64::from(u32::MAX)) * 1_000_000_000 + 999_999_999);
    let beyond = Instant::from_nanos((u64::from(u32::MAX) + 1) * 1_000_000_000);
    let frame = datagram(60);
    for (format, expected) in [(Format::Pcap, 2), (Format::PcapNg, 3)] {
        let mut writer = Writer::new(Vec::new(), format).expect("memory");
        writer.write(last, &frame).expect("a time that both have");
        let is_written = writer.write(beyond, &frame).is_ok();
        assert_eq!(
            (writer.has_time(beyond), is_written),
            (expected == 3, expected == 3)
        );
        writer
            .write(Instant::from_secs(1), &frame)
            .expect("others can be written");
        let file = writer.finish().expect("memory");
        assert_eq!(read(&file).packets.len(), expected, "{format:?}");
        let name = format!("beyond-{expected}.pcap");
        if let Some(shown) = tshark(&name, &file, &["frame.time_epoch"]) {
            assert_eq!(shown, read(&file).times(), "{format:?}");
        }
    }
    // Of a capture it is counted.
    let order = ORDERS[0];
    let options = order.option(9, &[9]);
    let packet = |at: Instant| order.packet(6, at.as_nanos(), &frame, 60);
    let file = [
        order.section(),
        order.interface(1, 0, &options),
        packet(last),
        packet(beyond),
    ];
    let mut memory = vec![0; memory_for(8)];
    let mut sent = Vec::new();
    let reader = Reader::new(Cursor::new(file.concat())).expect("a capture");
    let writer = Writer::new(&mut sent, Format::Pcap).expect("memory");
    let mut capture = Capture::new(reader, &mut memory).write_sent(writer);
    let mut burst = Burst::new();
    while !capture.is_at_end() {
        capture.receive(&mut burst).expect("good");
        burst
            .iter_mut()
            .for_each(|frame| frame.set_verdict(Verdict::Reply));
        capture.transmit(&mut burst).expect("memory");
    }
    let stats = capture.finish().expect("memory");
    assert_eq!((stats.received, stats.without_time), (2, 1));
    assert_eq!(read(&sent).times(), [last.to_string()]);
}

#[test]
fn packets_that_a_snap_length_cut_are_filled_and_written_cut() {
    let whole = datagram(200);
    let cut = &whole[..42];
    for order in ORDERS {
        let simple = [&order.four(200)[..], cut].concat();
        let blocks = [
            order.section(),
            order.interface(1, 42, &[]),
            order.packet(6, 1, cut, 200),
            order.packet(2, 2, cut, 200),
            order.block(3, &simple),
        ];
        let pcap = [order.pcap(0xa1b2_c3d4, 1), order.record(1, 0, 0, cut, 200)];
        for (file, count) in [(blocks.concat(), 3), (pcap.concat(), 1)] {
            let found = read(&file);
            assert_eq!(found.packets.len(), count);
            assert!(
                found
                    .packets
                    .iter()
                    .all(|(_, frame, missing)| frame == cut && *missing == 158)
            );
            let filled = read_with(&file, true);
            let zeros = [cut, &[0; 158]].concat();
            assert!(
                filled
                    .packets
                    .iter()
                    .all(|(_, frame, missing)| *frame == zeros && *missing == 158)
            );
        }
        // What is forwarded ends where it was cut, with what was put in front of it.
        let mut memory = vec![0; memory_for(8)];
        let mut sent = Vec::new();
        let reader = Reader::new(Cursor::new(pcap.concat())).expect("a capture");
        let writer = Writer::new(&mut sent, Format::Pcap).expect("memory");
        let mut capture = Capture::new(reader, &mut memory)
            .write_sent(writer)
            .fill_cut();
        let mut burst = Burst::new();
        capture.receive(&mut burst).expect("good");
        for frame in burst.iter_mut() {
            assert_eq!(frame.len(), 200);
            let front = frame.push_front::<50>().expect("headroom");
            front.fill(7);
            frame.set_verdict(Verdict::Flood);
        }
        capture.transmit(&mut burst).expect("memory");
        assert_eq!(capture.finish().expect("memory").cut, 1);
        let written = read(&sent);
        assert_eq!(written.frames(), [[&[7; 50], cut].concat()]);
        assert_eq!(written.packets[0].2, 158);
        if let Some(shown) = tshark("cut.pcap", &sent, &["frame.len", "frame.cap_len"]) {
            assert_eq!(shown, ["250,92"]);
        }
    }
    // One that claims more than there is room for is left out.
    let order = ORDERS[0];
    let file = [
        order.pcap(0xa1b2_c3d4, 1),
        order.record(1, 0, 0, cut, 1 << 31),
    ]
    .concat();
    let mut reader = Reader::new(Cursor::new(file)).expect("a capture");
    reader.fill_cut();
    let next = reader.next(&mut vec![0; FRAME_LEN], None).expect("good");
    assert_eq!(next, Next::TooLong);
}

/// pcap-parser reads the same where it is right.
#[test]
fn another_reader_agrees() {
    use pcap_parser::traits::PcapNGPacketBlock as _;
    use pcap_parser::{Block, PcapBlockOwned, PcapError, create_reader};
    for format in [Format::Pcap, Format::PcapNg] {
        let mut writer = Writer::new(Vec::new(), format).expect("memory");
        for second in 1..400 {
            let frame = datagram(60 + second as usize);
            writer
                .write(Instant::from_secs(second), &frame)
                .expect("memory");
        }
        let file = writer.finish().expect("memory");
        let mut other = create_reader(65_536, Cursor::new(file.clone())).expect("a capture");
        let mut frames = Vec::new();
        loop {
            match other.next() {
                Ok((len, block)) => {
                    match block {
                        PcapBlockOwned::Legacy(packet) => frames.push(packet.data.to_vec()),
                        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                            frames.push(packet.packet_data().to_vec());
                        }
                        _ => {}
                    }
                    other.consume(len);
                }
                Err(PcapError::Eof) => break,
                Err(PcapError::Incomplete(_)) => other.refill().expect("memory"),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(read(&file).frames() == frames, "{format:?}");
    }
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
