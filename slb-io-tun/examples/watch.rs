//! Shows the packets that are routed into a TUN device, one line each.
//!
//! ```sh
//! sudo target/debug/examples/watch slb0 &
//! sudo ip link set slb0 up
//! sudo ip route add 203.0.113.80 dev slb0
//! ping -c 1 203.0.113.80
//! ```

use std::error::Error;
use std::time::Duration;

use slb_core::packet::{Packet, Parsed};
use slb_core::{Burst, DropReason, PacketIo as _, PortId, Verdict};
use slb_io_tun::{Device, Layer, Tun, memory_for};

fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "slb0".to_owned());
    let device = Device::open(&name, Layer::Ip, false)?; // takes CAP_NET_ADMIN
    let mut memory = vec![0; memory_for(64)];
    let mut io = Tun::new(vec![(PortId(0), device)], &mut memory);
    let mut burst = Burst::new();
    loop {
        if io.receive(&mut burst)? == 0 {
            io.wait(Duration::from_secs(1))?;
        }
        for frame in burst.iter_mut() {
            match Packet::parse(frame.bytes()) {
                Parsed::Ip(packet) => println!("{packet}"),
                Parsed::Other => {}
                Parsed::Bad(why) => println!("a packet that cannot be read: {why}"),
            }
            frame.set_verdict(Verdict::Drop(DropReason::NoRule));
        }
        io.transmit(&mut burst)?;
    }
}
