//! The traffic that a host agent counts for its vms, beside what goes in and comes out of it.

use slb_core::snapshot::Snapshot;
use slb_core::stats::Count;
use slb_core::{Host, Instant, PortId, Verdict};

use super::through;

type TestHost = Host<'static, Box<Snapshot<'static>>>;

/// Frames to each vm and from it, by its port.
fn ways(host: &TestHost) -> Vec<[Count; 2]> {
    let ports = 0..host.snapshot().vm_slots() as u16;
    let rows = ports.map(|port| host.vm_counters(PortId(port)).unwrap_or_default());
    let sum = |mut one: Count, other| {
        one += other;
        one
    };
    rows.map(|row| {
        [
            sum(row.network().to_vm, row.internet().to_vm),
            sum(row.network().from_vm, row.internet().from_vm),
        ]
    })
    .collect()
}

/// Gives one frame that came by a port to a host agent; returns its verdict, and its bytes afterwards. Asserts that the
/// frame counts once for the vm that sent it, unless it is dropped, and once for the vm that gets it, with the bytes at
/// their ports.
pub fn metered(
    host: &mut TestHost,
    now: Instant,
    port: PortId,
    frame: &[u8],
) -> (Verdict, Vec<u8>) {
    let mut expected = ways(host);
    let (verdict, got) = through(port, frame, |frames| host.process(now, frames));
    let is_vm = |port| host.vm_counters(port).is_some();
    if is_vm(port) && !matches!(verdict, Verdict::Drop(_)) {
        expected[usize::from(port.0)][1].add(frame.len());
    }
    match verdict {
        Verdict::Forward(to) if is_vm(to) => expected[usize::from(to.0)][0].add(got.len()),
        Verdict::Reply if is_vm(port) => expected[usize::from(port.0)][0].add(got.len()),
        _ => {}
    }
    assert_eq!(
        ways(host),
        expected,
        "{verdict:?} by {port:?}: {frame:02x?}"
    );
    (verdict, got)
}
