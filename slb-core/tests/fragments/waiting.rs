//! Fragments that wait for the first one of their datagram.

use std::net::IpAddr;
use std::time::Duration;

use crate::trio::{
    Ends, FAMILIES, Family, From, NOW, Role, Shared, TCP, UDP, assert_summed, fragment, fragments,
    framed, host, inner, mux, packet, proxy, reassembled, tcp, udp,
};
use slb_core::mem::Boxes;
use slb_core::spec::Echo;
use slb_core::{
    Burst, DropReason, FragmentRoom, FragmentSlot, Frame, HEADROOM, Host, Instant, Key, Mux, Proxy,
    Verdict,
};

use super::{HELD, MISSING, SYN, data, datagrams, hop};

/// Room for fragments that wait.
fn room(slots: usize) -> FragmentRoom<'static> {
    FragmentRoom::build(slots, Key::new([8, 9]), &mut Boxes).unwrap()
}

/// A role that can be given a room.
trait Roomy: Role + Sized {
    fn with_room(self, slots: usize) -> Self;
}

impl Roomy for Mux<'static, Shared> {
    fn with_room(self, slots: usize) -> Self {
        self.with_fragment_room(room(slots))
    }
}

impl Roomy for Host<'static, Shared> {
    fn with_room(self, slots: usize) -> Self {
        self.with_fragment_room(room(slots))
    }
}

impl Roomy for Proxy<'static, Shared> {
    fn with_room(self, slots: usize) -> Self {
        self.with_fragment_room(room(slots))
    }
}

/// Packets that a role sends by itself now, in `frames` spare frames of `len` bytes.
fn released(role: &mut impl Role, now: Instant, frames: usize, len: usize) -> Vec<Vec<u8>> {
    let mut memory = vec![vec![0xa5; len]; frames];
    let mut spare = Burst::new();
    for buffer in &mut memory {
        let headroom = len.min(64);
        spare
            .push(Frame::new(buffer, headroom, 0).unwrap())
            .unwrap();
    }
    role.advance(now, &mut spare);
    let stats = role.stats();
    assert_eq!(stats.received, stats.accounted(), "each frame counts once");
    let made = spare.iter().filter(|frame| !frame.is_empty());
    made.map(|frame| {
        assert!(
            matches!(frame.verdict(), Verdict::Forward(_)),
            "{:?}",
            frame.verdict()
        );
        inner(frame.bytes())
    })
    .collect()
}

/// Sends fragments in an order, and returns what of them comes out at once and later.
fn send<R: Role>(role: &mut R, from: From, parts: &[Vec<u8>], order: &[usize]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut has_first = false;
    for &place in order {
        let (verdict, packet) = role.give(NOW, from, &parts[place]);
        has_first |= place == 0;
        if has_first {
            assert!(matches!(verdict, Verdict::Forward(_)), "{verdict:?}");
            out.push(packet);
        } else {
            assert_eq!(verdict, HELD);
        }
        out.extend(released(role, NOW, 4, 4096));
    }
    while let more = released(role, NOW, 4, 4096)
        && !more.is_empty()
    {
        out.extend(more);
    }
    let stats = role.stats();
    assert_eq!(stats.waiting().packets, 0);
    assert_eq!(stats.dropped[DropReason::FragmentHeld], stats.released);
    out
}

/// Every order of three fragments, and the reversed one of many: all of them arrive.
fn all_orders<R: Role>(build: impl Fn() -> R, family: Family, expected: (IpAddr, IpAddr)) {
    let orders: [&[usize]; 6] = [
        &[0, 1, 2],
        &[0, 2, 1],
        &[1, 0, 2],
        &[1, 2, 0],
        &[2, 0, 1],
        &[2, 1, 0],
    ];
    for (there, next, payload, (protocol, start)) in datagrams(family) {
        for order in orders {
            let mut role = build();
            if protocol == TCP {
                let syn = packet(there, TCP, &tcp(there, (5000, 80), SYN, b""));
                role.pass(NOW, From::Outside, &syn);
            }
            let parts = fragments(there, next, &payload, 800, 7);
            let out = send(&mut role, From::Outside, &parts, order);
            let (ends, got) = reassembled(&out);
            assert_eq!(ends, expected, "{order:?}");
            assert_summed(ends, protocol, &got[start..]);
            let forwarded = role.stats().forwarded.packets;
            assert_eq!(forwarded, 3 + u64::from(protocol == TCP));
        }
    }
    // A datagram as long as they get, the last fragment first.
    let there = (family.client(), family.vip());
    let payload = udp(there, (5000, 53), &data(30 * 1440 - 8));
    let parts = fragments(there, UDP, &payload, 1440, 8);
    let order: Vec<_> = (0..parts.len()).rev().collect();
    let mut role = build();
    let out = send(&mut role, From::Outside, &parts, &order);
    let (ends, got) = reassembled(&out);
    assert_eq!(ends, expected);
    assert_summed(ends, UDP, &got);
}

#[test]
fn later_fragments_wait_for_their_first() {
    for family in FAMILIES {
        let mux = || mux(Echo::Forward).with_room(64);
        all_orders(mux, family, (family.client(), family.vip()));
        let inside = (family.client(), family.dip());
        all_orders(|| host().with_room(64), family, inside);
        all_orders(|| proxy().with_room(64), family, inside);
    }
}

/// Gives a role two fragments behind VLAN tags, and returns the frames that leave, the first
/// fragment's before the later one's.
fn tagged(role: &mut impl Role, [first, later]: [&[u8]; 2], is_reversed: bool) -> [Vec<u8>; 2] {
    fn give<R: Role>(role: &mut R, frame: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; HEADROOM];
        buffer.extend(frame);
        let mut frame = Frame::new(&mut buffer, HEADROOM, frame.len()).unwrap();
        frame.set_port(R::port(From::Outside));
        role.process(NOW, std::slice::from_mut(&mut frame));
        match frame.verdict() {
            Verdict::Forward(_) => frame.bytes().to_vec(),
            verdict => {
                assert_eq!(verdict, HELD);
                Vec::new()
            }
        }
    }
    if !is_reversed {
        return [give(role, first), give(role, later)];
    }
    assert!(give(role, later).is_empty());
    let first = give(role, first);
    let mut memory = [0; 4096];
    let mut spare = Burst::new();
    spare
        .push(Frame::new(&mut memory, HEADROOM, 0).unwrap())
        .unwrap();
    role.advance(NOW, &mut spare);
    let later = spare.iter().next().unwrap().bytes().to_vec();
    [first, later]
}

#[test]
fn tagged_fragments_that_waited_leave_as_if_they_had_not() {
    let tags: [&[u8]; 3] = [&[], &[0x81, 0, 0, 5], &[0x88, 0xa8, 0, 9, 0x81, 0, 0xa0, 5]];
    for family in FAMILIES {
        for tags in tags {
            let there = (family.client(), family.vip());
            let payload = udp(there, (5000, 53), &data(1500));
            let mut parts = fragments(there, UDP, &payload, 800, 7);
            for part in &mut parts {
                *part = framed(part);
                part.splice(12..12, tags.iter().copied());
            }
            let parts = [&parts[0][..], &parts[1]];
            let in_order = tagged(&mut mux(Echo::Forward), parts, false);
            let mut with_room = mux(Echo::Forward).with_room(64);
            assert_eq!(tagged(&mut with_room, parts, true), in_order);

            let in_order = tagged(&mut proxy(), parts, false);
            assert_eq!(tagged(&mut proxy().with_room(64), parts, true), in_order);
            for frame in in_order {
                assert_eq!(frame[12..12 + tags.len()], *tags);
            }
        }
    }
}

#[test]
fn a_server_s_later_fragments_wait_too() {
    for family in FAMILIES {
        let there = (family.client(), family.vip());
        let back = (family.dip(), family.client());
        let request = packet(there, UDP, &udp(there, (5000, 53), b"?"));
        let answer = udp(back, (53, 5000), &data(2000));
        let parts = fragments(back, UDP, &answer, 800, 3);
        let mut host = host().with_room(64);
        let mut proxy = proxy().with_room(64);
        host.pass(NOW, From::Outside, &request);
        proxy.pass(NOW, From::Outside, &request);
        let expected = (family.vip(), family.client());
        for out in [
            send(&mut host, From::Inside, &parts, &[2, 1, 0]),
            send(&mut proxy, From::Inside, &parts, &[2, 1, 0]),
        ] {
            let (ends, got) = reassembled(&out);
            assert_eq!(ends, expected);
            assert_summed(ends, UDP, &got);
        }
    }
}

/// Two fragments of a datagram, the later one first.
fn pair(ends: Ends, identification: u32) -> [Vec<u8>; 2] {
    let payload = udp(ends, (5000, 53), &data(1000));
    let parts = fragments(ends, UDP, &payload, 800, identification);
    [parts[1].clone(), parts[0].clone()]
}

#[test]
fn a_fragment_waits_two_seconds_and_is_dropped_by_name() {
    for family in FAMILIES {
        let mut mux = mux(Echo::Forward).with_room(64);
        let [later, first] = pair((family.client(), family.vip()), 1);
        assert_eq!(mux.give(NOW, From::Outside, &later).0, HELD);
        let waited = NOW + Duration::from_secs(2);
        assert_eq!(released(&mut mux, waited, 4, 4096), [[0; 0]; 0]);
        assert_eq!(mux.stats().waiting().packets, 1);
        let late = waited + Duration::from_millis(1);
        assert_eq!(released(&mut mux, late, 4, 4096), [[0; 0]; 0]);
        let stats = mux.stats();
        assert_eq!(stats.waiting().packets, 0);
        assert_eq!(stats.dropped[DropReason::FragmentWithoutFirst].packets, 1);
        mux.pass(late, From::Outside, &first);
        assert_eq!(released(&mut mux, late, 4, 4096), [[0; 0]; 0]);
    }
}

#[test]
fn without_a_room_or_too_long_for_it_a_later_fragment_is_dropped() {
    let family = FAMILIES[0];
    let [later, _] = pair((family.client(), family.vip()), 1);
    assert_eq!(
        mux(Echo::Forward).give(NOW, From::Outside, &later).0,
        MISSING
    );
    let mut none = mux(Echo::Forward).with_room(0);
    assert_eq!(none.give(NOW, From::Outside, &later).0, MISSING);
    let there = (family.client(), family.vip());
    let mut mux = mux(Echo::Forward).with_room(64);
    let long = FragmentSlot::LONGEST - 14 - 20;
    for (len, expected) in [(long, HELD), (long + 1, MISSING)] {
        let part = fragment(there, UDP, &vec![0; len], (800, false), 2);
        assert_eq!(mux.give(NOW, From::Outside, &part).0, expected);
    }
}

#[test]
fn fragments_wait_until_there_is_a_frame_that_holds_them() {
    let family = FAMILIES[1];
    let mut mux = mux(Echo::Forward).with_room(64);
    let [later, first] = pair((family.client(), family.vip()), 1);
    mux.give(NOW, From::Outside, &later);
    mux.pass(NOW, From::Outside, &first);
    assert_eq!(released(&mut mux, NOW, 0, 4096), [[0; 0]; 0]);
    assert_eq!(released(&mut mux, NOW, 3, 200), [[0; 0]; 0]);
    assert_eq!(released(&mut mux, NOW, 1, 4096), [hop(&later)]);
}

/// A flood of later fragments from one source leaves those of others alone, in the same slots too.
#[test]
fn one_source_s_flood_pushes_out_its_own() {
    for family in FAMILIES {
        let mut mux = mux(Echo::Forward).with_room(64);
        let flooder = family.router();
        let pairs: Vec<_> = (0..16)
            .map(|n| pair((family.client(), family.vip()), n))
            .collect();
        for [later, _] in &pairs {
            assert_eq!(mux.give(NOW, From::Outside, later).0, HELD);
        }
        for n in 0..10_000 {
            let [later, _] = pair((flooder, family.vip()), 100 + n);
            assert_eq!(mux.give(NOW, From::Outside, &later).0, HELD);
        }
        let lost = mux.stats().dropped[DropReason::FragmentWithoutFirst];
        assert_eq!(
            lost.packets,
            10_000 - 32,
            "half of the slots are the flooder's"
        );
        for [later, first] in &pairs {
            mux.pass(NOW, From::Outside, first);
            assert_eq!(released(&mut mux, NOW, 4, 4096), [hop(later)]);
        }
    }
}

/// A flood from everywhere: what came last stays, and memory is bounded.
/// Gives a role a packet.
type Give<'a> = &'a mut dyn FnMut(&[u8]) -> Verdict;

/// Anyone can send first fragments, too: those of one source leave half of the table to others.
#[test]
fn one_source_s_first_fragments_push_out_its_own() {
    for family in FAMILIES {
        let (mut mux, mut host, mut proxy) = (mux(Echo::Forward), host(), proxy());
        let there = (family.client(), family.vip());
        let datagram = udp(there, (5000, 53), &data(1500));
        let [first, later] = fragments(there, UDP, &datagram, 800, 7)
            .try_into()
            .expect("two parts");
        let flooder: IpAddr = match family.is_ipv6 {
            true => "2001:db8:bad::1".parse().unwrap(),
            false => "198.51.100.66".parse().unwrap(),
        };
        let other = (flooder, family.vip());
        let tail = udp(other, (6000, 53), &data(1500));
        let roles: [Give<'_>; 3] = [
            &mut |part| mux.give(NOW, From::Outside, part).0,
            &mut |part| host.give(NOW, From::Outside, part).0,
            &mut |part| proxy.give(NOW, From::Outside, part).0,
        ];
        for give in roles {
            assert!(matches!(give(&first), Verdict::Forward(_)));
            for identification in 0..20_000 {
                give(&fragment(
                    other,
                    UDP,
                    &tail[..16],
                    (0, true),
                    identification,
                ));
            }
            assert!(matches!(give(&later), Verdict::Forward(_)), "{family:?}");
        }
    }
}

#[test]
fn a_flood_from_everywhere_pushes_out_the_oldest() {
    let family = FAMILIES[0];
    let mut mux = mux(Echo::Forward).with_room(64);
    let [later, first] = pair((family.client(), family.vip()), 1);
    for n in 0..2000u32 {
        let now = NOW + Duration::from_micros(n.into());
        let source = std::net::Ipv4Addr::from(0x1400_0000 + n * 7);
        let [flood, _] = pair((source.into(), family.vip()), n);
        assert_eq!(mux.give(now, From::Outside, &flood).0, HELD);
        if n == 1950 {
            assert_eq!(mux.give(now, From::Outside, &later).0, HELD);
        }
    }
    assert_eq!(mux.stats().waiting().packets, 64);
    let now = NOW + Duration::from_millis(3);
    mux.pass(now, From::Outside, &first);
    assert_eq!(released(&mut mux, now, 4, 4096), [hop(&later)]);
}
