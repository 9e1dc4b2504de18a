//! Real AF_XDP sockets and XDP programs, on veth, with kernels at both ends.
//!
//! ```text
//!   client ── c0 [ this test ] s0 ── server
//! ```
//! Needs root; without, it says so and is skipped.

#[macro_use]
mod world;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use slb_core::wire::checksum::checksum;
use slb_core::wire::ethernet::MacAddress;
use slb_core::{Burst, Frame, PacketIo, PortId, Verdict};
use slb_io_afxdp::{
    AfXdp, CALLER_PORTS, Interface, Kind, Neighbours, Places, Program, Queue, SMALL_CHUNK, Take,
    Umem, bring_up, frames_for, set_peer,
};
use world::{Machine, enter_own_namespace, lacking, run};

const CLIENT: PortId = PortId(0);
const SERVER: PortId = PortId(1);

fn queue(port: PortId, name: &str) -> Queue {
    Queue {
        port,
        interface: Interface::find(name).unwrap(),
        queue: 0,
    }
}

/// Loads and attaches the program of an interface.
fn attach(
    name: &str,
    kind: Kind,
    io: &AfXdp<'_>,
    socket: usize,
    taken: &[(IpAddr, Take)],
) -> Program {
    let mut program = Program::load(Interface::find(name).unwrap(), kind).unwrap();
    program.set_addresses(taken.iter().copied()).unwrap();
    program
        .set_socket(0, io.sockets().nth(socket).unwrap())
        .unwrap();
    program.attach().unwrap();
    assert!(program.is_native(), "veth runs XDP in its driver");
    program
}

/// Moves packets between client and server until told to stop.
fn forward(io: &mut AfXdp<'_>, mut goes_on: impl FnMut() -> bool) {
    let mut burst = Burst::new();
    while goes_on() {
        if io.receive(&mut burst).unwrap() == 0 {
            io.wait(Duration::from_millis(5)).unwrap();
        }
        for frame in burst.iter_mut() {
            let other = if frame.port() == CLIENT {
                SERVER
            } else {
                CLIENT
            };
            frame.set_verdict(Verdict::Forward(other));
        }
        io.transmit(&mut burst).unwrap();
        assert_eq!(io.places().lent, 0, "no frame is out between two bursts");
    }
}

/// Waits for the kernel to have sent everything; all chunks are then where they can be.
fn settle(io: &mut AfXdp<'_>) -> Places {
    let mut burst = Burst::new();
    for _ in 0..200 {
        io.receive(&mut burst).unwrap();
        io.transmit(&mut burst).unwrap();
        if io.places().sending == 0 {
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    io.places()
}

fn assert_none_lost(places: Places) {
    let Places {
        total,
        free,
        receiving,
        sending,
        lent,
    } = places;
    assert_eq!(free + receiving + sending + lent, total, "{places:?}");
    assert_eq!((sending, lent), (0, 0), "{places:?}");
}

/// Bytes that are not all alike.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 1u32;
    let step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(step).take(count).collect()
}

#[test]
#[ignore = "needs root"]
fn everything_crosses_between_two_ports_and_no_chunk_is_lost() {
    if let Some(why) = lacking() {
        skip!("{why}");
    }
    enter_own_namespace();
    let (client, server) = (Machine::behind("c0"), Machine::behind("s0"));
    client.run("ip address add 10.9.0.1/24 dev eth0");
    server.run("ip address add 10.9.0.2/24 dev eth0");
    let mut umem = Umem::new(frames_for(2, 512), SMALL_CHUNK).unwrap();
    let mut io = AfXdp::open(&mut umem, &[queue(CLIENT, "c0"), queue(SERVER, "s0")], 512).unwrap();
    let _programs = [
        attach("c0", Kind::Everything, &io, 0, &[]),
        attach("s0", Kind::Everything, &io, 1, &[]),
    ];

    // ARP, then a TCP connection with 24 MiB each way, checked byte by byte at its ends.
    let data = Arc::new(noise(24 << 20));
    let (there, back) = (Arc::clone(&data), Arc::clone(&data));
    let serving = server.start(move || {
        let listener = TcpListener::bind("10.9.0.2:80").unwrap();
        let (mut stream, from) = listener.accept().unwrap();
        let mut got = vec![0; there.len()];
        stream.read_exact(&mut got).unwrap();
        assert!(got == *there);
        stream.write_all(&there).unwrap();
        from.ip()
    });
    let asking = client.start(move || {
        thread::sleep(Duration::from_millis(100));
        let mut stream = TcpStream::connect("10.9.0.2:80").unwrap();
        stream.write_all(&back).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == *back);
    });
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            asking();
            done.store(1, Ordering::Relaxed);
        });
        let end = Instant::now() + Duration::from_secs(60);
        forward(&mut io, || {
            done.load(Ordering::Relaxed) == 0 && Instant::now() < end
        });
    });
    assert_eq!(serving(), IpAddr::from([10, 9, 0, 1]));
    let places = settle(&mut io);
    assert_none_lost(places);
    let stats = io.stats();
    assert!(stats.received > 2 * (24 << 20) / 1514, "{stats:?}");
    // Whatever still came while all settled was nobody's.
    let out = stats.sent + stats.refused + stats.not_passed;
    assert_eq!(stats.received, out, "{stats:?}");
}

#[test]
#[ignore = "needs root"]
fn more_than_the_rings_hold_is_lost_and_counted_and_no_chunk_is() {
    if let Some(why) = lacking() {
        skip!("{why}");
    }
    enter_own_namespace();
    let (client, server) = (Machine::behind("c0"), Machine::behind("s0"));
    client.run("ip address add 10.9.0.1/24 dev eth0");
    client.run("ip neighbour add 10.9.0.2 lladdr 02:00:00:00:00:02 dev eth0");
    // The memory is less than the rings of both could ask for.
    let mut umem = Umem::new(frames_for(1, 64), SMALL_CHUNK).unwrap();
    let mut io = AfXdp::open(&mut umem, &[queue(CLIENT, "c0"), queue(SERVER, "s0")], 64).unwrap();
    let _program = attach("c0", Kind::Everything, &io, 0, &[]);
    const SENT: u64 = 20_000;
    let sending = client.start(|| {
        let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
        for _ in 0..SENT {
            let _ = socket.send_to(&[7; 100], "10.9.0.2:9");
        }
    });
    let mut burst = Burst::new();
    // Bursts are held back, so that there is more than fits; every other frame is dropped, and of
    // the rest each is sent to one port or to all.
    let mut turn = 0;
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        thread::sleep(Duration::from_micros(300));
        io.receive(&mut burst).unwrap();
        for frame in burst.iter_mut() {
            turn += 1;
            frame.set_verdict(match turn % 4 {
                0 => Verdict::Flood,
                1 => Verdict::Forward(SERVER),
                2 => Verdict::Forward(PortId(7)),
                _ => Verdict::Drop(slb_core::DropReason::NoRule),
            });
        }
        io.transmit(&mut burst).unwrap();
    }
    sending();
    let places = settle(&mut io);
    assert_none_lost(places);
    let stats = io.stats();
    assert!(
        stats.overrun > 0 && stats.sent > 0 && stats.undeliverable > 0,
        "{stats:?}"
    );
    assert!(stats.received + stats.overrun >= SENT, "{stats:?}");
    drop(server);
}

#[test]
#[ignore = "needs root"]
fn what_is_not_the_balancers_stays_with_the_kernel() {
    if let Some(why) = lacking() {
        skip!("{why}");
    }
    enter_own_namespace();
    let client = Machine::behind("c0");
    for (machine_is_far, last) in [(true, 1), (false, 2)] {
        for command in [
            format!("ip address add 10.9.0.{last}/24 dev DEV"),
            format!("ip address add fd09::{last}/64 dev DEV nodad"),
        ] {
            match machine_is_far {
                true => client.run(&command.replace("DEV", "eth0")),
                false => run(&command.replace("DEV", "c0")),
            };
        }
    }
    client.run("ip route add 20.20.20.100 via 10.9.0.2");
    client.run("ip route add 20.20.20.101 via 10.9.0.2");
    client.run("ip route add 2001:db8::100 via fd09::2");
    let mut umem = Umem::new(frames_for(1, 256), SMALL_CHUNK).unwrap();
    let mut io = AfXdp::open(&mut umem, &[queue(CLIENT, "c0")], 256).unwrap();
    let vips: [(IpAddr, Take); 3] = [
        ("20.20.20.100".parse().unwrap(), Take::All),
        ("2001:db8::100".parse().unwrap(), Take::All),
        ("10.9.0.2".parse().unwrap(), Take::Vxlan),
    ];
    let passed = Arc::new(Mutex::new(Vec::<Vec<u8>>::new()));
    struct Passed(Arc<Mutex<Vec<Vec<u8>>>>);
    impl Write for Passed {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    io.pass_to(Passed(Arc::clone(&passed)));
    let mut program = attach("c0", Kind::Services, &io, 0, &vips);

    // Sends a datagram, and says whether it came to user space.
    let comes = |io: &mut AfXdp<'_>, to: &str| {
        let to = to.to_owned();
        client.within(move || {
            let any = if to.starts_with('[') {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            };
            let socket = UdpSocket::bind(any).unwrap();
            socket.send_to(b"hello", to).unwrap();
        });
        let mut burst = Burst::new();
        for _ in 0..20 {
            io.receive(&mut burst).unwrap();
            if !burst.is_empty() {
                break;
            }
            io.wait(Duration::from_millis(10)).unwrap();
        }
        let has_come = burst.iter().any(|frame| frame.bytes().ends_with(b"hello"));
        // Nobody decided anything: they are passed.
        io.transmit(&mut burst).unwrap();
        has_come
    };
    // Neighbours are found, by ARP and neighbour discovery; the kernel answers pings.
    client.run("ping -q -c 2 -i 0.05 -W 2 10.9.0.2");
    client.run("ping -q -c 2 -i 0.05 -W 2 fd09::2");
    assert_eq!(io.stats().received, 0);
    assert!(comes(&mut io, "20.20.20.100:80"));
    assert!(comes(&mut io, "[2001:db8::100]:53"));
    assert!(comes(&mut io, "10.9.0.2:4789"));
    assert!(!comes(&mut io, "10.9.0.2:4790"));
    assert!(!comes(&mut io, "[fd09::2]:4789"));
    assert!(!comes(&mut io, "20.20.20.101:80"));
    assert_eq!((io.stats().passed, io.stats().not_passed), (3, 0));
    assert_eq!(passed.lock().unwrap().len(), 3);

    // The map follows changes.
    let other = [("20.20.20.101".parse().unwrap(), Take::All)];
    program.set_addresses(other).unwrap();
    assert!(!comes(&mut io, "20.20.20.100:80"));
    assert!(!comes(&mut io, "10.9.0.2:4789"));
    assert!(comes(&mut io, "20.20.20.101:80"));
    // Without the program the kernel has all again.
    drop(program);
    assert!(!comes(&mut io, "20.20.20.101:80"));
    assert!(!run("ip link show dev c0").contains("xdp"));
    assert_none_lost(settle(&mut io));
}

/// A UDP datagram of either family behind VLAN tags.
fn tagged_datagram(tags: &[u16], to: IpAddr) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 7]);
    }
    let datagram = [&[0x13, 0x88, 0, 53, 0, 13, 0, 0][..], b"hello"].concat();
    match to {
        IpAddr::V4(to) => {
            let mut header = [0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1]
                .into_iter()
                .chain(to.octets())
                .collect::<Vec<u8>>();
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend([8, 0]);
            frame.extend(header);
        }
        IpAddr::V6(to) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 13, 17, 64]);
            frame.extend("fd09::1".parse::<Ipv6Addr>().unwrap().octets());
            frame.extend(to.octets());
        }
    }
    frame.extend(datagram);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The program looks behind the tags that the parser of replay and pipeline looks behind.
#[test]
#[ignore = "needs root"]
fn frames_for_a_vip_are_taken_behind_tags_of_an_old_qinq() {
    if let Some(why) = lacking() {
        skip!("{why}");
    }
    enter_own_namespace();
    let client = Machine::behind("c0");
    let vips: [(IpAddr, Take); 2] = [
        ("20.20.20.100".parse().unwrap(), Take::All),
        ("2001:db8::100".parse().unwrap(), Take::All),
    ];
    let mut umem = Umem::new(frames_for(1, 256), SMALL_CHUNK).unwrap();
    let mut io = AfXdp::open(&mut umem, &[queue(CLIENT, "c0")], 256).unwrap();
    let _program = attach("c0", Kind::Services, &io, 0, &vips);
    let mut frames = Vec::new();
    for (tags, is_read) in [
        (&[][..], true),
        (&[0x9100], true),
        (&[0x9100, 0x9100], true),
        (&[0x9100, 0x8100], true),
        (&[0x88a8, 0x9100], true),
        (&[0x9100, 0x9100, 0x9100], false),
        (&[0x9300], false),
    ] {
        for (to, is_vip) in [
            (vips[0].0, true),
            (vips[1].0, true),
            ("20.20.20.101".parse().unwrap(), false),
            ("2001:db8::101".parse().unwrap(), false),
        ] {
            frames.push((tagged_datagram(tags, to), is_read && is_vip));
        }
    }
    let expected: Vec<Vec<u8>> = frames
        .iter()
        .filter(|(_, is_taken)| *is_taken)
        .map(|(frame, _)| frame.clone())
        .collect();
    assert_eq!(expected.len(), 10);
    // A kernel's own socket would not write such tags, and an AF_XDP one sends the bytes it is given.
    client.within(move || {
        let mut umem = Umem::new(frames_for(1, 64), SMALL_CHUNK).unwrap();
        let mut io = AfXdp::open(&mut umem, &[queue(CLIENT, "eth0")], 64).unwrap();
        for (bytes, _) in &frames {
            let mut burst: Burst<'_> = Burst::new();
            assert_eq!(io.reserve(&mut burst, 1), 1);
            for frame in burst.iter_mut() {
                frame.push_back(bytes.len()).unwrap().copy_from_slice(bytes);
                frame.set_verdict(Verdict::Forward(CLIENT));
            }
            assert_eq!(io.transmit(&mut burst).unwrap(), 1);
        }
        settle(&mut io);
    });
    let mut got = Vec::new();
    let mut burst = Burst::new();
    for _ in 0..20 {
        io.receive(&mut burst).unwrap();
        got.extend(burst.iter().map(|frame| frame.bytes().to_vec()));
        io.transmit(&mut burst).unwrap();
        io.wait(Duration::from_millis(10)).unwrap();
    }
    assert_eq!(got, expected);
}

#[test]
#[ignore = "needs root"]
fn of_a_vm_all_is_taken_but_what_is_for_its_gateway() {
    if let Some(why) = lacking() {
        skip!("{why}");
    }
    enter_own_namespace();
    let vm = Machine::behind("vm1");
    run("ip address add 10.10.1.1/24 dev vm1");
    vm.run("ip address add 10.10.1.11/24 dev eth0");
    vm.run("ip route add default via 10.10.1.1");
    let mut umem = Umem::new(frames_for(1, 256), SMALL_CHUNK).unwrap();
    let mut io = AfXdp::open(&mut umem, &[queue(SERVER, "vm1")], 256).unwrap();
    let gateway = [("10.10.1.1".parse().unwrap(), Take::None)];
    let _program = attach("vm1", Kind::Vm, &io, 0, &gateway);
    vm.run("ping -q -c 2 -i 0.05 -W 2 10.10.1.1");
    assert_eq!(io.stats().received, 0);
    vm.within(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(b"to many", "10.10.1.255:67").unwrap();
        socket.send_to(b"to all", "255.255.255.255:67").unwrap();
        socket.send_to(b"out", "198.51.100.10:53").unwrap();
    });
    let mut burst = Burst::new();
    let mut texts = Vec::new();
    for _ in 0..20 {
        io.receive(&mut burst).unwrap();
        texts.extend(burst.iter().map(|frame| frame.bytes()[42..].to_vec()));
        io.transmit(&mut burst).unwrap();
        io.wait(Duration::from_millis(10)).unwrap();
    }
    // Which addresses of a network are for all, its mask says, which is not known here.
    assert!(
        texts.contains(&b"out".to_vec()) && !texts.contains(&b"to all".to_vec()),
        "{texts:?}"
    );
}

/// TCP to the ports that VIPs are called from is taken, to an address of the kernel's too, and nothing beside it.
#[test]
#[ignore = "needs root"]
fn of_a_vm_answers_to_calls_of_vips_are_taken_from_the_kernel() {
    if let Some(why) = lacking() {
        skip!("{why}");
    }
    enter_own_namespace();
    let vm = Machine::behind("vm1");
    run("ip address add 10.10.1.1/24 dev vm1");
    run("ip address add fd0a::1/64 dev vm1 nodad");
    vm.run("ip address add 10.10.1.11/24 dev eth0");
    vm.run("ip address add fd0a::11/64 dev eth0 nodad");
    let mut umem = Umem::new(frames_for(1, 256), SMALL_CHUNK).unwrap();
    let mut io = AfXdp::open(&mut umem, &[queue(SERVER, "vm1")], 256).unwrap();
    let own: [IpAddr; 2] = ["10.10.1.1".parse().unwrap(), "fd0a::1".parse().unwrap()];
    let taken = own.map(|address| [(address, Take::None), (address, Take::Answers)]);
    let mut program = attach("vm1", Kind::Vm, &io, 0, taken.as_flattened());
    let (first, last) = (*CALLER_PORTS.start(), *CALLER_PORTS.end());
    // The kernel refuses a connection at once; one that is taken gets no answer.
    let is_refused = |io: &mut AfXdp<'_>, to: IpAddr, port: u16| {
        let refused = vm.within(move || {
            let to = (to, port).into();
            let error = TcpStream::connect_timeout(&to, Duration::from_millis(300)).unwrap_err();
            error.kind() == std::io::ErrorKind::ConnectionRefused
        });
        let mut burst = Burst::new();
        let count = io.receive(&mut burst).unwrap();
        io.transmit(&mut burst).unwrap();
        assert_eq!(refused, count == 0, "{to} {port}");
        refused
    };
    for address in own {
        for (port, is_kernels) in [
            (first - 1, true),
            (first, false),
            (last, false),
            (last + 1, true),
        ] {
            assert_eq!(
                is_refused(&mut io, address, port),
                is_kernels,
                "{address} {port}"
            );
        }
    }
    // UDP stays, and TCP too where that is not asked for.
    let count = io.stats().received;
    vm.within(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"datagram", (own[0], first)).unwrap();
    });
    program
        .set_addresses(own.map(|address| (address, Take::None)))
        .unwrap();
    for address in own {
        assert!(is_refused(&mut io, address, first), "{address}");
    }
    assert_eq!(io.stats().received, count);
}

#[test]
#[ignore = "needs root"]
fn frames_go_round_in_place_and_those_of_others_are_set_aside() {
    if let Some(why) = lacking() {
        skip!("{why}");
    }
    enter_own_namespace();
    let client = Machine::behind("c0");
    client.run("ip address add 10.9.0.1/24 dev eth0");
    client.run("ip neighbour add 10.9.0.2 lladdr 02:00:00:00:00:02 dev eth0");
    let mut umem = Umem::new(frames_for(1, 64), SMALL_CHUNK).unwrap();
    let mut io = AfXdp::open(&mut umem, &[queue(CLIENT, "c0")], 64).unwrap();
    let _program = attach("c0", Kind::Everything, &io, 0, &[]);
    // Echo: ports and addresses change sides, in the frame that came.
    let echo = client.start(|| {
        let socket = UdpSocket::bind("10.9.0.1:5000").unwrap();
        socket.connect("10.9.0.2:5000").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut answers = 0;
        for number in 0..200u32 {
            socket.send(&number.to_be_bytes()).unwrap();
            let mut answer = [0; 8];
            if let Ok(4) = socket.recv(&mut answer) {
                answers += u32::from(answer[..4] == number.to_be_bytes());
            }
        }
        answers
    });
    let mut burst: Burst<'_> = Burst::new();
    let mut in_place = 0;
    let end = Instant::now() + Duration::from_secs(10);
    while in_place < 200 && Instant::now() < end {
        io.receive(&mut burst).unwrap();
        for frame in burst.iter_mut() {
            assert!(frame.headroom() >= slb_core::HEADROOM);
            let bytes = frame.bytes_mut();
            if bytes[12..14] != [8, 0] || bytes[23] != 17 {
                continue;
            }
            let (destination, source) = bytes[..12].split_at_mut(6);
            destination.swap_with_slice(source);
            let (source, destination) = bytes[26..34].split_at_mut(4);
            source.swap_with_slice(destination);
            frame.set_verdict(Verdict::Reply);
            in_place += 1;
        }
        io.transmit(&mut burst).unwrap();
    }
    assert_eq!(echo(), 200);

    // A frame of somebody else's, one cut out of a chunk, and one whose next hop is unknown.
    let before = io.stats();
    let mut other = vec![0; SMALL_CHUNK];
    let mut burst = Burst::new();
    let mut foreign = Frame::new(&mut other, 256, 60).unwrap();
    foreign.set_verdict(Verdict::Forward(CLIENT));
    burst.push(foreign).unwrap();
    io.transmit(&mut burst).unwrap();
    let mut spare: Burst<'_> = Burst::new();
    assert_eq!(io.reserve(&mut spare, 3), 3);
    let (first, _) = spare.pop().unwrap().into_buffer().split_at_mut(1024);
    let mut cut = Frame::new(first, 256, 60).unwrap();
    cut.set_verdict(Verdict::Forward(CLIENT));
    spare.push(cut).unwrap();
    for frame in spare.iter_mut().take(1) {
        frame.push_back(60).unwrap().fill(0);
        frame.set_verdict(Verdict::Forward(CLIENT));
    }
    assert_eq!(io.transmit(&mut spare).unwrap(), 0);
    let after = io.stats();
    assert_eq!(after.foreign - before.foreign, 2);
    assert_eq!(after.unresolved - before.unresolved, 1);
    assert_eq!(io.places().lent, 1, "what was cut up stays out");
}

#[test]
#[ignore = "needs root"]
fn a_queue_has_one_owner_and_a_program_one_interface() {
    if let Some(why) = lacking() {
        skip!("{why}");
    }
    enter_own_namespace();
    let _client = Machine::behind("c0");
    let mut umem = Umem::new(frames_for(1, 64), SMALL_CHUNK).unwrap();
    let io = AfXdp::open(&mut umem, &[queue(CLIENT, "c0")], 64).unwrap();
    let mut second = Umem::new(frames_for(1, 64), SMALL_CHUNK).unwrap();
    let error = AfXdp::open(&mut second, &[queue(CLIENT, "c0")], 64).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("queue 0 of c0 cannot be bound to"),
        "{error}"
    );
    let _program = attach("c0", Kind::Services, &io, 0, &[]);
    let mut other = Program::load(Interface::find("c0").unwrap(), Kind::Services).unwrap();
    let error = other.attach().unwrap_err();
    assert!(error.to_string().contains("attached to c0"), "{error}");
    assert!(!error.is_denied());
    let error = Interface::find("c1").unwrap_err();
    assert_eq!(error.to_string(), "there is no interface \"c1\"");
}

#[test]
#[ignore = "needs root"]
fn next_hops_are_the_kernels_and_followed() {
    if let Some(why) = lacking() {
        skip!("{why}");
    }
    enter_own_namespace();
    let router = Machine::behind("eth1");
    run("ip address add 172.16.0.11/24 dev eth1");
    run("ip address add fd16::11/64 dev eth1 nodad");
    router.run("ip address add 172.16.0.1/24 dev eth0");
    router.run("ip address add fd16::1/64 dev eth0 nodad");
    run("ip route add default via 172.16.0.1");
    run("ip route add default via fd16::1");
    run("ip route add unreachable 10.66.0.0/16");
    let index = Interface::find("eth1").unwrap().index;
    let neighbours = Neighbours::open().unwrap();
    let hop = |to: &str| neighbours.next_hop(to.parse().unwrap()).unwrap();
    let resolves = |to: &str| {
        // Links take a second or two until IPv6 is ready to answer.
        (0..500).find_map(|_| {
            thread::sleep(Duration::from_millis(20));
            hop(to).and_then(|hop| hop.mac)
        })
    };
    for (far, near) in [("198.51.100.10", "172.16.0.1"), ("2001:db8::9", "fd16::1")] {
        let first = hop(far).unwrap();
        assert_eq!(
            (first.address, first.interface),
            (near.parse().unwrap(), index)
        );
        // Nobody has asked; then the kernel does.
        assert_eq!(first.mac, None, "{far}");
        neighbours.ask(&first).unwrap();
        let said = router.run("ip -o link show eth0");
        let said = said
            .split("link/ether ")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap();
        assert_eq!(resolves(far), Some(said.parse().unwrap()));
        assert_eq!(hop(near).unwrap().address, near.parse::<IpAddr>().unwrap());
    }
    assert!(neighbours.has_changed() && !neighbours.has_changed());
    assert_eq!(hop("10.66.1.1"), None);
    // One that somebody said stays as it is, however often it is used.
    run("ip neighbour replace 172.16.0.7 lladdr 02:00:00:00:00:07 dev eth1 nud permanent");
    for _ in 0..3 {
        let fixed = hop("172.16.0.7").unwrap();
        assert_eq!(fixed.mac, Some(MacAddress([2, 0, 0, 0, 0, 7])));
        neighbours.ask(&fixed).unwrap();
    }
    assert!(run("ip neighbour show 172.16.0.7").contains("PERMANENT"));
    // A router that gets another card: what it announces is known at once.
    router.run("ip link set eth0 address 02:00:00:00:00:77");
    router.run("ping -q -c 1 -W 2 172.16.0.11");
    let known = (0..100).any(|_| {
        thread::sleep(Duration::from_millis(20));
        neighbours.has_changed();
        hop("198.51.100.10").unwrap().mac == Some(MacAddress([2, 0, 0, 0, 0, 0x77]))
    });
    assert!(known);
    // A route that goes elsewhere.
    run("ip route replace default via 172.16.0.9");
    assert!(neighbours.has_changed());
    assert_eq!(
        hop("198.51.100.10").unwrap().address,
        IpAddr::from([172, 16, 0, 9])
    );
}

#[test]
#[ignore = "needs root"]
fn an_interface_leads_to_addresses_that_are_not_the_kernels() {
    if let Some(why) = lacking() {
        skip!("{why}");
    }
    enter_own_namespace();
    run("ip tuntap add vips mode tun");
    bring_up("vips").unwrap();
    assert!(run("ip -o link show vips").contains(",UP"));
    for (own, peer, lookup) in [
        ("172.16.0.11", "20.20.20.100", "ip route get 20.20.20.100"),
        (
            "fd00:16::11",
            "2001:db8::100",
            "ip -6 route show 2001:db8::100",
        ),
    ] {
        let (own, peer): (IpAddr, IpAddr) = (own.parse().unwrap(), peer.parse().unwrap());
        for _ in 0..2 {
            set_peer("vips", own, peer, true).unwrap();
            let said = run("ip -o address show vips");
            assert!(said.contains(&format!("{own} peer {peer}")), "{said}");
        }
        assert!(run(lookup).contains("dev vips"), "{}", run(lookup));
        let all = Neighbours::open().unwrap().own_addresses().unwrap();
        assert!(all.contains(&own) && !all.contains(&peer), "{all:?}");
        for _ in 0..2 {
            set_peer("vips", own, peer, false).unwrap();
            assert!(!run("ip -o address show vips").contains("peer"));
        }
    }
    let (own, peer) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    let error = set_peer("none", own, peer, true).unwrap_err();
    assert_eq!(error.to_string(), "there is no interface \"none\"");
}
