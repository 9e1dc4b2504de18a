//! The kernel with nftables, which translates the traffic of a scenario.

use std::path::Path;

use super::scenario::{KERNEL_CLIENT, KERNEL_VM, ROUTER, Received, Scenario, Side, VM, frame};
use crate::common::router::{Leg, Router};

/// Sends the traffic through the kernel; `None` if no namespace can be made. Waits for `expected`
/// packets.
pub(super) fn kernels(
    scenario: &Scenario,
    tag: &str,
    expected: usize,
    directory: &Path,
) -> Option<Received> {
    let outside = Leg {
        own: KERNEL_CLIENT,
        addresses: ["192.0.2.2/24", "fd00:1::2/64"],
        neighbour: ROUTER,
        neighbours: ["192.0.2.1", "fd00:1::1"],
    };
    let vm = Leg {
        own: KERNEL_VM,
        addresses: ["10.10.1.254/24", "fd00:10::254/64"],
        neighbour: VM,
        neighbours: ["10.10.1.1", "fd00:10::1"],
    };
    let mut router = Router::new(tag, &outside, &vm)?;
    router.load(&scenario.nft(), directory);
    for setting in ["checksum=0", "tcp_be_liberal=1", "tcp_loose=0"] {
        router.run(&format!("sysctl -qw net.netfilter.nf_conntrack_{setting}"));
    }
    let traffic = scenario.traffic.iter();
    let frames = traffic.map(|(side, packet)| match side {
        Side::Client => frame(ROUTER, KERNEL_CLIENT, packet),
        Side::Vm => frame(VM, KERNEL_VM, packet),
    });
    let [client, vm] = router.forward(frames, expected, directory);
    Some(Received { client, vm })
}
