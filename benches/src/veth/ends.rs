//! The sender, and the receiver that counts.

use std::error::Error;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use slb_core::{Burst, PacketIo, PortId, Verdict};
use slb_io_afxdp::{AfXdp, Interface, Kind, Program, Queue, RING, SMALL_CHUNK, Umem, frames_for};

use crate::Target;

/// Without the frame check sequence, which veth has none of.
const FRAME: usize = 60;
/// Different source ports: flows.
const FLOWS: u16 = 1024;

fn template(target: &Target, interface: &Interface) -> Vec<u8> {
    let payload = [0; FRAME - 42];
    let builder = PacketBuilder::ethernet2(interface.mac.0, target.mac.0)
        .ipv4([10, 1, 0, 2], target.address.octets(), 64)
        .udp(0, 9);
    let mut frame = Vec::new();
    // Into a vector nothing fails; a checksum of zero is none, so ports can be changed.
    let _ = builder.write(&mut frame, &payload);
    frame[40..42].fill(0);
    frame
}

fn queue(interface: &Interface) -> Queue {
    Queue {
        port: PortId(0),
        interface: interface.clone(),
        queue: 0,
    }
}

pub(crate) fn send(target: &Target, how_long: Duration) -> Result<(), Box<dyn Error>> {
    let interface = Interface::find(&target.interface)?;
    let template = template(target, &interface);
    let mut umem = Umem::new(frames_for(1, RING), SMALL_CHUNK)?;
    let mut io = AfXdp::open(&mut umem, &[queue(&interface)], RING)?;
    let mut burst = Burst::new();
    let (begin, mut flow) = (Instant::now(), 0u16);
    while begin.elapsed() < how_long {
        // Takes back what went.
        io.receive(&mut burst)?;
        io.reserve(&mut burst, 64);
        for frame in burst.iter_mut() {
            if let Some(bytes) = frame.push_back(FRAME) {
                bytes.copy_from_slice(&template);
                flow = (flow + 1) % FLOWS;
                bytes[34..36].copy_from_slice(&(1024 + flow).to_be_bytes());
            }
            frame.set_verdict(Verdict::Forward(PortId(0)));
        }
        io.transmit(&mut burst)?;
    }
    println!(
        "{:.0}",
        io.stats().sent as f64 / begin.elapsed().as_secs_f64()
    );
    Ok(())
}

pub(crate) fn latency(target: &Target, how_long: Duration) -> Result<(), Box<dyn Error>> {
    let interface = Interface::find(&target.interface)?;
    let mut template = template(target, &interface);
    let mut umem = Umem::new(frames_for(1, RING), SMALL_CHUNK)?;
    let mut io = AfXdp::open(&mut umem, &[queue(&interface)], RING)?;
    let mut program = Program::load(interface, Kind::Everything)?;
    for socket in io.sockets() {
        program.set_socket(0, socket)?;
    }
    program.attach()?;
    let mut burst = Burst::new();
    let (begin, mut number) = (Instant::now(), 0u64);
    let (mut took, mut lost) = (Vec::new(), 0);
    while begin.elapsed() < how_long {
        number += 1;
        template[FRAME - 8..].copy_from_slice(&number.to_be_bytes());
        let flow = 1024 + (number as u16) % FLOWS;
        template[34..36].copy_from_slice(&flow.to_be_bytes());
        io.reserve(&mut burst, 1);
        for frame in burst.iter_mut() {
            if let Some(bytes) = frame.push_back(FRAME) {
                bytes.copy_from_slice(&template);
            }
            frame.set_verdict(Verdict::Forward(PortId(0)));
        }
        let sent = Instant::now();
        io.transmit(&mut burst)?;
        let mut back = None;
        while back.is_none() && sent.elapsed() < Duration::from_millis(100) {
            io.receive(&mut burst)?;
            let at = Instant::now();
            // In VXLAN or not, it ends as it did.
            if burst
                .iter()
                .any(|frame| frame.bytes().ends_with(&number.to_be_bytes()))
            {
                back = Some(at - sent);
            }
            for frame in burst.iter_mut() {
                frame.set_verdict(Verdict::Drop(slb_core::DropReason::NoRule));
            }
            io.transmit(&mut burst)?;
        }
        match back {
            Some(back) => took.push(back),
            None => lost += 1,
        }
        std::thread::sleep(Duration::from_millis(1).saturating_sub(sent.elapsed()));
    }
    took.sort_unstable();
    let at = |of_1000: usize| {
        let place = (took.len() * of_1000 / 1000).min(took.len().saturating_sub(1));
        took.get(place)
            .map_or(f64::NAN, |took| took.as_secs_f64() * 1e6)
    };
    println!("{:.1} {:.1} {:.1} {lost}", at(500), at(990), at(999));
    Ok(())
}
