//! Forwarders that send each frame back to where it came from, and do nothing else: what the sockets
//! cost without a balancer.

use std::error::Error;
use std::time::Duration;

use slb_core::{Burst, PacketIo, PortId, Verdict};
use slb_io_afxdp::{AfXdp, Interface, Kind, Program, Queue, RING, SMALL_CHUNK, Umem, frames_for};
use xdp::slab::{HeapSlab, Slab};

fn swap_macs(frame: &mut [u8]) {
    if let Some(macs) = frame.first_chunk_mut::<12>() {
        let (destination, source) = macs.split_at_mut(6);
        destination.swap_with_slice(source);
    }
}

/// Forwards with this project's sockets.
pub(crate) fn own(name: &str, busy: bool) -> Result<(), Box<dyn Error>> {
    let interface = Interface::find(name)?;
    let queue = Queue {
        port: PortId(0),
        interface: interface.clone(),
        queue: 0,
    };
    let mut umem = Umem::new(frames_for(1, RING), SMALL_CHUNK)?;
    let mut io = AfXdp::open(&mut umem, &[queue], RING)?;
    let mut program = Program::load(interface, Kind::Everything)?;
    for socket in io.sockets() {
        program.set_socket(0, socket)?;
    }
    program.attach()?;
    let mut burst = Burst::new();
    let mut idle = 0;
    loop {
        if io.receive(&mut burst)? == 0 {
            idle += 1;
            if idle > 64 && !busy {
                io.wait(Duration::from_millis(20))?;
            }
            continue;
        }
        idle = 0;
        for frame in burst.iter_mut() {
            swap_macs(frame.bytes_mut());
            frame.set_verdict(Verdict::Reply);
        }
        io.transmit(&mut burst)?;
    }
}

/// Forwards with the crate xdp.
pub(crate) fn crate_xdp(name: &str) -> Result<(), Box<dyn Error>> {
    let interface = Interface::find(name)?;
    let config = xdp::umem::UmemCfgBuilder {
        frame_size: xdp::umem::FrameSize::TwoK,
        frame_count: frames_for(1, RING) as u32,
        ..Default::default()
    };
    let mut umem = xdp::Umem::map(config.build()?)?;
    let mut builder = xdp::socket::XdpSocketBuilder::new()?;
    let rings = xdp::RingConfigBuilder {
        rx_count: RING,
        tx_count: RING,
        fill_count: RING,
        completion_count: RING,
    };
    let (rings, flags) = builder.build_wakable_rings(&umem, rings.build()?)?;
    let index = xdp::nic::NicIndex::new(interface.index);
    let socket = builder.bind(index, 0, flags)?;
    let (mut fill, mut completion) = (rings.fill_ring, rings.completion_ring);
    let mut rx = rings.rx_ring.ok_or("no rx ring")?;
    let mut tx = rings.tx_ring.ok_or("no tx ring")?;
    let mut program = Program::load(interface, Kind::Everything)?;
    // SAFETY: the socket owns its descriptor, and lives as long as this function.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(socket.raw_fd()) };
    program.set_socket(0, borrowed)?;
    program.attach()?;
    let mut packets = HeapSlab::with_capacity(64);
    // SAFETY: the memory outlives the socket: both live as long as this function, in this order.
    unsafe { fill.enqueue(&mut umem, RING as usize, true) }?;
    let mut idle = 0;
    loop {
        // SAFETY: no packet outlives the memory.
        let count = unsafe { rx.recv(&umem, &mut packets) };
        if count == 0 {
            idle += 1;
            if idle > 64 {
                socket.poll_read(xdp::socket::PollTimeout::new(Some(Duration::from_millis(
                    20,
                ))))?;
            }
        } else {
            idle = 0;
        }
        for _ in 0..count {
            if let Some(mut packet) = packets.pop_back() {
                swap_macs(&mut packet);
                packets.push_front(packet);
            }
        }
        // SAFETY: as above.
        let sent = unsafe { tx.send(&mut packets, true) };
        // A part of them is sent in one call; the next goes on.
        if let Err(error) = sent
            && error.kind() != std::io::ErrorKind::WouldBlock
        {
            return Err(error.into());
        }
        while let Some(packet) = packets.pop_back() {
            umem.free_packet(packet);
        }
        completion.dequeue(&mut umem, 64);
        // SAFETY: as above.
        unsafe { fill.enqueue(&mut umem, count.max(1), true) }?;
    }
}
