//! A host agent's probes of its own vms: their packets, between the prober and the vms' ports.

use slb_control::probe::WorkerEnd;
use slb_core::wire::ethernet::{self, EtherType, Ethernet};
use slb_core::wire::ipv4::Ipv4;
use slb_core::wire::ipv6::Ipv6;
use slb_core::{Burst, DropReason, Frame, PacketIo, Verdict};

use crate::balancer::Balancer;

/// Packets that are sent at once at most: the other frames are for the packets of clients.
const AT_ONCE: usize = 16;

/// Takes the packets that the prober has for vms, into frames to be sent.
pub(super) fn take<'m>(
    probes: &WorkerEnd,
    balancer: &Balancer,
    io: &mut impl PacketIo<'m>,
    frames: &mut Burst<'m>,
) {
    let source = balancer.snapshot().underlay().mac;
    for _ in 0..AT_ONCE {
        let is_one = probes.take(|port, destination, packet| {
            let place = frames.len();
            io.reserve(frames, 1);
            // Without a frame it is lost, and sent again.
            if let Some(frame) = frames.get_mut(place) {
                let link = ethernet::Header {
                    destination,
                    source,
                    ether_type: match packet.first().map(|first| first >> 4) {
                        Some(4) => EtherType::IPV4,
                        _ => EtherType::IPV6,
                    },
                };
                if fill(frame, &link, packet).is_some() {
                    frame.set_verdict(Verdict::Forward(port));
                }
            }
        });
        if !is_one {
            break;
        }
    }
}

/// Puts an IP packet into an empty frame.
fn fill(frame: &mut Frame<'_>, link: &ethernet::Header, packet: &[u8]) -> Option<()> {
    let bytes = frame.push_back(ethernet::HEADER_LEN + packet.len())?;
    let (header, rest) = bytes.split_first_chunk_mut()?;
    link.emit(header);
    rest.copy_from_slice(packet);
    Some(())
}

/// Takes what vms sent to the probes' source out of what would be the kernel's.
pub(super) fn collect(probes: &WorkerEnd, balancer: &Balancer, burst: &mut Burst<'_>) {
    let snapshot = balancer.snapshot();
    let fabric = snapshot.underlay().port;
    for frame in burst.iter_mut() {
        if frame.verdict() != Verdict::Pass || frame.port() == fabric {
            continue;
        }
        let Some(packet) = for_prober(frame, balancer) else {
            continue;
        };
        probes.give(frame.port(), packet);
        // It has arrived: nobody else gets it.
        frame.set_verdict(Verdict::Drop(DropReason::NoConnection));
    }
}

/// The IP packet of a frame, where it is for the probes' source.
fn for_prober<'f>(frame: &'f Frame<'_>, balancer: &Balancer) -> Option<&'f [u8]> {
    let link = Ethernet::parse(frame.bytes()).ok()?;
    let packet = link.payload();
    let destination = match link.ether_type() {
        EtherType::IPV4 => Ipv4::parse(packet).ok()?.destination().into(),
        EtherType::IPV6 => Ipv6::parse(packet).ok()?.destination().into(),
        _ => return None,
    };
    let source = balancer.snapshot().probe_source();
    source.is(destination).then_some(packet)
}
