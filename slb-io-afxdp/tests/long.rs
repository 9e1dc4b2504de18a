//! Packets that are longer than a chunk of the memory.
//!
//! Needs root; without, it says so and is skipped.

#[macro_use]
mod world;

use std::time::{Duration, Instant};

use slb_core::{Burst, PacketIo, PortId};
use slb_io_afxdp::{AfXdp, Interface, Kind, Program, Queue, SMALL_CHUNK, Umem, frames_for};
use world::{Machine, enter_own_namespace, lacking, run};

#[test]
#[ignore = "needs root"]
fn packets_longer_than_a_chunk_are_counted_as_such() {
    if let Some(why) = lacking() {
        skip!("{why}");
    }
    enter_own_namespace();
    let client = Machine::behind("c0");
    run("ip link set c0 mtu 3000");
    client.run("ip link set eth0 mtu 3000");
    client.run("ip address add 10.0.0.2/24 dev eth0");
    client.run("ip neighbour replace 10.0.0.1 lladdr 02:00:00:00:00:01 nud permanent dev eth0");

    let interface = Interface::find("c0").unwrap();
    let mut memory = Umem::new(frames_for(1, 64), SMALL_CHUNK).unwrap();
    let queue = Queue {
        port: PortId(0),
        interface: interface.clone(),
        queue: 0,
    };
    let mut io = AfXdp::open(&mut memory, &[queue], 64).unwrap();
    let mut program = Program::load(interface, Kind::Everything).unwrap();
    for socket in io.sockets() {
        program.set_socket(0, socket).unwrap();
    }
    program.attach().unwrap();

    let mut send = |bytes: usize| {
        // Nobody answers: what matters is what was sent.
        client.run(&format!(
            "ping -q -c 3 -i 0.05 -W 1 -M do -s {bytes} 10.0.0.1 || true"
        ));
        let mut burst = Burst::new();
        let end = Instant::now() + Duration::from_millis(300);
        while Instant::now() < end {
            io.receive(&mut burst).unwrap();
            io.transmit(&mut burst).unwrap();
        }
        io.stats()
    };
    let received = send(1500).received;
    assert!(received >= 3, "{received}");
    let before = send(100);
    assert_eq!(before.too_long, 0, "{before:?}");
    let after = send(2500);
    assert_eq!((after.too_long, after.overrun), (3, 0), "{after:?}");
}
