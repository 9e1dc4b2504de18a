//! Files of every kind that captures come in, as tshark reads them.

mod blocks;
mod packed;
mod pcapng;
mod reading;

use blocks::{ORDERS, datagram};
use packed::capture;
use reading::{read, read_with, tshark};
use std::io::{Cursor, Read as _};

use slb_core::{Burst, Instant, PacketIo as _, Verdict};
use slb_io_pcap::{Capture, Damage, FRAME_LEN, Format, LinkType, Next, Reader, Writer, memory_for};

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
