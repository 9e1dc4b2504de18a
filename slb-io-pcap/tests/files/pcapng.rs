//! Blocks of pcapng, in every form that holds a packet.

use super::blocks::{ORDERS, Order, datagram};
use super::reading::{read, tshark};

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
