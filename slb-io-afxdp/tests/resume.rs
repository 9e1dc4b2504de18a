//! Sockets and memory that one owner leaves and another one goes on with, on veth.
//!
//! ```text
//!   client ── c0 [ this test: two owners, one after the other ]
//! ```
//! Needs root; without, it says so and is skipped.

#[macro_use]
mod world;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use slb_core::{Burst, DropReason, PacketIo, PortId, Verdict};
use slb_io_afxdp::{
    AfXdp, Detached, Interface, Kind, Program, Queue, SMALL_CHUNK, SocketError, Umem, frames_for,
};
use world::{Machine, enter_own_namespace, lacking, run};

const RING: u32 = 256;

/// Takes packets until so many datagrams of the client came, each with its number; sends them back or drops them.
fn take(io: &mut AfXdp<'_>, numbers: &mut Vec<u8>, count: usize) {
    let end = Instant::now() + Duration::from_secs(20);
    let mut burst = Burst::new();
    while numbers.len() < count {
        assert!(Instant::now() < end, "{numbers:?} of {count}");
        if io.receive(&mut burst).unwrap() == 0 {
            io.wait(Duration::from_millis(5)).unwrap();
        }
        for frame in burst.iter_mut() {
            let bytes = frame.bytes();
            let is_own = bytes.get(36..38) == Some(&[0, 9]);
            frame.set_verdict(match is_own {
                true => Verdict::Reply,
                false => Verdict::Drop(DropReason::NoRule),
            });
            let number = frame.bytes().get(42).copied();
            numbers.extend(number.filter(|_| is_own));
        }
        io.transmit(&mut burst).unwrap();
    }
}

fn copy(detached: &Detached) -> Detached {
    let sockets = detached.sockets.iter();
    Detached {
        sockets: sockets.map(|fd| fd.try_clone().unwrap()).collect(),
        ring: detached.ring,
        free: detached.free.clone(),
    }
}

#[test]
#[ignore = "needs root"]
fn the_next_owner_gets_what_came_between_and_no_chunk_is_lost() {
    if let Some(why) = lacking() {
        skip!("{why}");
    }
    enter_own_namespace();
    let client = Machine::behind("c0");
    client.run("ip address add 10.9.0.1/24 dev eth0");
    client.run("ip neighbour add 10.9.0.2 lladdr 02:00:00:00:00:02 dev eth0");
    run("ip link set c0 up");
    let send = |from: u8, to: u8| {
        client.within(move || {
            let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
            for number in from..to {
                socket.send_to(&[number; 20], "10.9.0.2:9").unwrap();
            }
        });
    };
    let queues = [Queue {
        port: PortId(0),
        interface: Interface::find("c0").unwrap(),
        queue: 0,
    }];
    let mut first = Umem::shareable(frames_for(1, RING), SMALL_CHUNK).unwrap();
    let file = first.file().unwrap().try_clone_to_owned().unwrap();
    let mut io = AfXdp::open(&mut first, &queues, RING).unwrap();
    let interface = Interface::find("c0").unwrap();
    let mut program = Program::load(interface, Kind::Everything).unwrap();
    program.set_socket(0, io.sockets().next().unwrap()).unwrap();
    program.attach().unwrap();
    let mut numbers = Vec::new();
    send(0, 50);
    take(&mut io, &mut numbers, 50);
    let total = io.places().total;
    let detached = io.detach();

    // No owner reads; the sockets are open.
    send(50, 150);

    let memory = |file: &std::os::fd::OwnedFd| {
        Umem::from_file(file.try_clone().unwrap(), SMALL_CHUNK).unwrap()
    };
    // Free chunks that are none, are named twice, or are the kernel's are refused.
    let wrong = |change: &dyn Fn(&mut Detached), queues: &[Queue]| {
        let mut detached = copy(&detached);
        change(&mut detached);
        let mut umem = memory(&file);
        let resumed = AfXdp::resume(&mut umem, queues, detached);
        assert!(matches!(resumed, Err(SocketError::HandedOver { .. })));
    };
    wrong(&|detached| detached.free[0] = detached.free[1], &queues);
    wrong(&|detached| detached.free[0] += 1, &queues);
    wrong(&|detached| detached.free[0] = u64::MAX, &queues);
    wrong(
        &|detached| detached.free.extend([0; 2 * RING as usize]),
        &queues,
    );
    wrong(&|detached| detached.ring = 255, &queues);
    wrong(&|_| (), &[]);

    let mut second = memory(&file);
    let mut io = AfXdp::resume(&mut second, &queues, detached).unwrap();
    assert_eq!(io.places().total, total);
    assert_eq!(io.stats().overrun, 0);
    take(&mut io, &mut numbers, 150);
    send(150, 200);
    take(&mut io, &mut numbers, 200);
    assert_eq!(numbers, (0..200).collect::<Vec<u8>>());
    let end = Instant::now() + Duration::from_secs(10);
    let mut burst = Burst::new();
    while io.places().sending > 0 {
        assert!(Instant::now() < end, "{:?}", io.places());
        io.receive(&mut burst).unwrap();
        for frame in burst.iter_mut() {
            frame.set_verdict(Verdict::Drop(DropReason::NoRule));
        }
        io.transmit(&mut burst).unwrap();
    }
    let places = io.places();
    assert_eq!(places.free + places.receiving, places.total, "{places:?}");
}
