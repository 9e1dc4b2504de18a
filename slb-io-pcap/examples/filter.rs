//! Copies the packets of one address from a capture to another file: pcap or pcapng in, also compressed, pcapng out.
//!
//! ```sh
//! cargo run -p slb-io-pcap --example filter -- examples/sample.pcap 20.20.20.100 out.pcapng
//! ```

use std::error::Error;
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;

use slb_core::packet::{Packet, Parsed};
use slb_core::{Burst, PacketIo as _, Verdict};
use slb_io_pcap::{Capture, Format, Reader, Writer, memory_for};

/// Returns the number of packets that were copied, and of all.
pub(crate) fn filter(
    input: &Path,
    address: IpAddr,
    output: &Path,
) -> Result<(u64, u64), Box<dyn Error>> {
    let mut memory = vec![0; memory_for(64)];
    let reader = Reader::new(File::open(input)?)?;
    let writer = Writer::new(File::create(output)?, Format::PcapNg)?;
    let mut io = Capture::new(reader, &mut memory).write_sent(writer);

    let (mut copied, mut all) = (0, 0);
    let mut burst = Burst::new();
    while !io.is_at_end() {
        io.receive(&mut burst)?;
        for frame in burst.iter_mut() {
            all += 1;
            let is_wanted = match Packet::parse(frame.bytes()) {
                Parsed::Ip(packet) => {
                    let tuple = packet.tuple();
                    [tuple.source, tuple.destination].contains(&address)
                }
                Parsed::Other | Parsed::Bad(_) => false,
            };
            if is_wanted {
                copied += 1;
                frame.set_verdict(Verdict::Forward(frame.port()));
            }
        }
        io.transmit(&mut burst)?; // the others stay at `Verdict::Pass`, which is not written
    }
    io.finish()?;
    Ok((copied, all))
}

#[allow(dead_code, reason = "a test calls `filter`")]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, address, output] = &arguments[..] else {
        return Err("expected a capture, an address, and the name of the new file".into());
    };
    let (copied, all) = filter(input.as_ref(), address.parse()?, output.as_ref())?;
    println!("{copied} of {all} packets");
    Ok(())
}
