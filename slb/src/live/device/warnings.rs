//! Devices that lose packets as they are set up.

use slb_io_afxdp::MissingChecksums;
use tracing::{info, warn};

use super::{LONGEST_PACKET, Plan};
use crate::Failure;

impl Plan {
    /// Fails if an interface's MTU exceeds the largest chunk of memory.
    pub(in crate::live) fn expect_short_packets(&self) -> Result<(), Failure> {
        let Self::AfXdp(cards) = self else {
            return Ok(());
        };
        let long = cards.iter().map(|card| &card.interface);
        match long
            .into_iter()
            .find(|interface| interface.mtu > LONGEST_PACKET)
        {
            None => Ok(()),
            Some(interface) => Err(Failure::failed(format!(
                "{}: an MTU of {} exceeds AF_XDP's packet memory: expected at most {LONGEST_PACKET} (ip link set {0} mtu {LONGEST_PACKET})",
                interface.name, interface.mtu
            ))),
        }
    }

    /// Warns of queues without a worker, whose packets go to the kernel.
    pub(in crate::live) fn warn_of_queues(&self) {
        let Self::AfXdp(cards) = self else { return };
        for card in cards.iter().filter(|card| card.is_there) {
            let left_out = (0..card.interface.queues).filter(|queue| !card.queues.contains(queue));
            let left_out: Vec<String> = left_out.map(|queue| queue.to_string()).collect();
            if !left_out.is_empty() {
                warn!(
                    interface = card.interface.name,
                    queues = left_out.join(","),
                    "these queues have no worker: their packets go to the kernel and are lost (name them with --io, or reduce the queues: ethtool -L)"
                );
            }
        }
    }

    /// Warns of interfaces that may deliver packets without their checksums. `is_native` has for
    /// each interface true if XDP runs in its driver.
    pub(in crate::live) fn warn_of_checksums(&self, is_native: &[bool]) {
        let Self::AfXdp(cards) = self else { return };
        for (card, &is_native) in cards.iter().zip(is_native) {
            let name = &card.interface.name;
            match MissingChecksums::of(name) {
                Ok(Some(MissingChecksums::Peer(peer))) => warn!(
                    "{name}: its peer {peer} has checksum offload on, so packets arrive without checksums and their receivers \
                     drop them (ethtool -K {peer} tx off)"
                ),
                Ok(Some(MissingChecksums::Elsewhere)) => info!(
                    "{name}: its peer is in another namespace, where checksum offload has to be off (ethtool -K PEER tx \
                     off)"
                ),
                Ok(Some(MissingChecksums::Virtio)) if !is_native => warn!(
                    "{name}: virtio passes packets from its host without checksums unless XDP runs in its driver, and their receivers drop them (ethtool -K {name} rx off)"
                ),
                Ok(_) | Err(_) => {}
            }
        }
    }
}
