//! Takes the packets for one address from an interface, and counts them each second. All other packets stay the
//! kernel's, and so do these when the program ends.
//!
//! ```sh
//! sudo target/debug/examples/count eth0 203.0.113.80
//! ```

use std::error::Error;
use std::time::{Duration, Instant};

use slb_core::{Burst, DropReason, PacketIo as _, PortId, Verdict};
use slb_io_afxdp::{
    AfXdp, Interface, Kind, Program, Queue, RING, SMALL_CHUNK, Take, Umem, frames_for,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, address] = &arguments[..] else {
        return Err("expected an interface and an address".into());
    };
    let interface = Interface::find(name)?;
    let queues: Vec<Queue> = (0..interface.queues)
        .map(|queue| Queue {
            port: PortId(0),
            interface: interface.clone(),
            queue,
        })
        .collect();
    let mut umem = Umem::new(frames_for(queues.len(), RING), SMALL_CHUNK)?;
    let mut io = AfXdp::open(&mut umem, &queues, RING)?;

    let mut program = Program::load(interface, Kind::Services)?;
    program.set_addresses([(address.parse()?, Take::All)])?;
    for (queue, socket) in (0..).zip(io.sockets()) {
        program.set_socket(queue, socket)?;
    }
    program.attach()?; // until it is dropped

    let mut burst = Burst::new();
    let (mut packets, mut bytes) = (0_u64, 0);
    let mut since = Instant::now();
    loop {
        if io.receive(&mut burst)? == 0 {
            io.wait(Duration::from_millis(100))?;
        }
        for frame in burst.iter_mut() {
            packets += 1;
            bytes += frame.len();
            frame.set_verdict(Verdict::Drop(DropReason::NoRule));
        }
        io.transmit(&mut burst)?;
        if since.elapsed() >= Duration::from_secs(1) {
            println!("{packets} packets, {bytes} bytes");
            (packets, bytes) = (0, 0);
            since = Instant::now();
        }
    }
}
