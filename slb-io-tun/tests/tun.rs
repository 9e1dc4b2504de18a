//! Real TUN and TAP devices, with the kernel's own stack behind them.
//!
//! Needs root; without, it says so and is skipped.

#[macro_use]
#[path = "../../slb-io-afxdp/tests/world/mod.rs"]
#[allow(dead_code, reason = "the cables are for others")]
mod world;

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use slb_core::{Burst, DropReason, PacketIo, PortId, Verdict};
use slb_io_tun::{Device, Layer, Tun, memory_for};
use world::{enter_own_namespace, lacking, run};

const FRAMES: usize = 200;

/// Sends datagrams to 10.9.0.2 from so many sockets, and says how many came back as they were.
fn ask(sockets: usize, each: u32) -> thread::JoinHandle<u32> {
    let sockets: Vec<UdpSocket> = (0..sockets)
        .map(|_| {
            let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
            socket.connect("10.9.0.2:7").unwrap();
            let patience = Some(Duration::from_secs(2));
            socket.set_read_timeout(patience).unwrap();
            socket
        })
        .collect();
    thread::spawn(move || {
        let mut answers = 0;
        for number in 0..each {
            // Several at once: a batch has more than one.
            for socket in &sockets {
                socket.send(&number.to_be_bytes()).unwrap();
            }
            for socket in &sockets {
                let mut answer = [0; 8];
                if socket.recv(&mut answer).is_ok_and(|len| len == 4) {
                    answers += u32::from(answer[..4] == number.to_be_bytes());
                }
            }
        }
        answers
    })
}

/// Sends IPv4 packets back to where they came from, until somebody is done.
fn echo(ios: &mut [Tun<'_>], done: &thread::JoinHandle<u32>) {
    let mut burst = Burst::new();
    let end = Instant::now() + Duration::from_secs(30);
    while !done.is_finished() && Instant::now() < end {
        for io in &mut *ios {
            if io.receive(&mut burst).unwrap() == 0 {
                io.wait(Duration::from_millis(1)).unwrap();
            }
            for frame in burst.iter_mut() {
                let bytes = frame.bytes_mut();
                if bytes[12..14] != [8, 0] || bytes[23] != 17 {
                    frame.set_verdict(Verdict::Drop(DropReason::NoRule));
                    continue;
                }
                let (destination, source) = bytes[..12].split_at_mut(6);
                destination.swap_with_slice(source);
                let (source, destination) = bytes[26..34].split_at_mut(4);
                source.swap_with_slice(destination);
                let (source, destination) = bytes[34..38].split_at_mut(2);
                source.swap_with_slice(destination);
                frame.set_verdict(Verdict::Reply);
            }
            io.transmit(&mut burst).unwrap();
        }
    }
}

/// Opens a device whose name another one may still have: the kernel closes the files of a ring, and with
/// them the device, some time after the ring.
fn open_once_free(name: &str, layer: Layer) -> Device {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match Device::open(name, layer, false) {
            Ok(device) => return device,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs root"]
fn datagrams_come_and_go_one_by_one_and_in_batches() {
    if let Some(why) = lacking() {
        skip!("{why}");
    }
    enter_own_namespace();
    for layer in [Layer::Ip, Layer::Ethernet] {
        for batched in [true, false] {
            let device = open_once_free("t0", layer);
            run("ip address add 10.9.0.1/24 dev t0");
            run("ip link set t0 up");
            if layer == Layer::Ethernet {
                run("ip neighbour add 10.9.0.2 lladdr 02:00:00:00:00:02 dev t0");
            }
            let mut memory = vec![0; memory_for(FRAMES)];
            let ports = vec![(PortId(3), device)];
            let io = match batched {
                true => Tun::new(ports, &mut memory),
                false => Tun::unbatched(ports, &mut memory),
            };
            assert_eq!(io.is_batched(), batched);
            let mut ios = [io];
            let done = ask(20, 50);
            echo(&mut ios, &done);
            assert_eq!(done.join().unwrap(), 1000, "{layer:?}, batched: {batched}");
            let stats = ios[0].stats();
            assert_eq!(
                (stats.sent, stats.refused, stats.foreign),
                (1000, 0, 0),
                "{stats:?}"
            );
            // All buffers are back.
            let (mut spare, mut count) = (Burst::new(), 0);
            let mut kept = Vec::new();
            while ios[0].reserve(&mut spare, 64) > 0 {
                count += spare.len();
                kept.extend(spare.drain());
            }
            assert_eq!(count, FRAMES);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn flows_are_spread_over_the_queues_of_a_device() {
    if let Some(why) = lacking() {
        skip!("{why}");
    }
    enter_own_namespace();
    let queues = [0; 2].map(|_| Device::open("t0", Layer::Ip, true).unwrap());
    run("ip address add 10.9.0.1/24 dev t0");
    run("ip link set t0 up");
    // A device that is not made so has one queue only.
    let other = Device::open("t1", Layer::Ip, false).unwrap();
    assert!(Device::open("t1", Layer::Ip, true).is_err());
    drop(other);
    let mut memory = [0; 2].map(|_| vec![0; memory_for(FRAMES)]);
    let mut memory = memory.iter_mut();
    let mut ios = queues.map(|queue| Tun::new(vec![(PortId(0), queue)], memory.next().unwrap()));
    let done = ask(32, 20);
    echo(&mut ios, &done);
    assert_eq!(done.join().unwrap(), 640);
    let received = ios.each_ref().map(|io| io.stats().received);
    assert!(received.iter().all(|&count| count >= 100), "{received:?}");
}

#[test]
#[ignore = "needs root"]
fn a_frame_is_flooded_to_all_devices_but_its_own() {
    if let Some(why) = lacking() {
        skip!("{why}");
    }
    enter_own_namespace();
    let names = ["t0", "t1", "t2", "t3"];
    for batched in [true, false] {
        let devices = names.map(|name| Device::open(name, Layer::Ethernet, false).unwrap());
        for name in names {
            run(&format!("ip link set {name} up"));
        }
        let mut memory = vec![0; memory_for(FRAMES)];
        let ports = (0..).map(PortId).zip(devices).collect();
        let mut io = match batched {
            true => Tun::new(ports, &mut memory),
            false => Tun::unbatched(ports, &mut memory),
        };
        let mut burst = Burst::new();
        assert_eq!(io.reserve(&mut burst, 50), 50);
        for frame in burst.iter_mut() {
            frame.push_back(60).unwrap().fill(0);
            frame.set_port(PortId(1));
            frame.set_verdict(Verdict::Flood);
        }
        assert_eq!(io.transmit(&mut burst).unwrap(), 150);
        assert_eq!(io.stats().sent, 150);
        for (name, got) in names.into_iter().zip([50, 0, 50, 50]) {
            let text = run(&format!("ip -s -o link show {name}"));
            let counted = text.split("mcast").nth(1).unwrap();
            let packets: u64 = counted.split_whitespace().nth(2).unwrap().parse().unwrap();
            assert_eq!(packets, got, "{name}: {text}");
        }
    }
}
