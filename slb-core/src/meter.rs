//! Traffic of each vm of a host agent, by direction and by the other end.
//!
//! Each vm has a row of counters at the number of its port, so a packet finds the row without a
//! look-up. A frame counts at its arrival from a vm and at its departure to a vm: between two vms
//! of a node, once for each.

use core::ops::AddAssign;

use crate::mem::Mem;
use crate::nat::Direction;
use crate::snapshot::Snapshot;
use crate::stats::Count;
use crate::verdict::PortId;

/// Frames of a vm with one kind of other end. Bytes are those at the vm's port, from the Ethernet
/// header on, without VXLAN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames sent to the vm.
    pub to_vm: Count,
    /// Frames from the vm. Dropped ones do not count.
    pub from_vm: Count,
}

/// Traffic of a vm of a host agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmCounters {
    /// Counts at the number of the other end's kind, twice, plus the direction.
    counts: [Count; 4],
    /// The vm: its counters start at zero when its port gets another vm.
    vm: Option<[u64; 2]>,
}

impl VmCounters {
    /// Returns the counters of a direction. `is_inside` is true if the other end is inside.
    #[inline]
    pub(crate) fn of(&mut self, is_inside: bool, direction: Direction) -> &mut Count {
        let place = usize::from(is_inside) << 1 | direction as usize;
        &mut self.counts[place & 3]
    }

    /// Returns the traffic with other vms of its network, private VIPs and addresses that are
    /// [inside](crate::spec::Spec::inside), and frames without an IP packet.
    pub fn network(&self) -> Traffic {
        let [_, _, to_vm, from_vm] = self.counts;
        Traffic { to_vm, from_vm }
    }

    /// Returns the traffic with all other addresses.
    pub fn internet(&self) -> Traffic {
        let [to_vm, from_vm, ..] = self.counts;
        Traffic { to_vm, from_vm }
    }

    /// Returns true if a vm has the row.
    pub(crate) fn is_used(&self) -> bool {
        self.vm.is_some()
    }
}

impl AddAssign for VmCounters {
    fn add_assign(&mut self, other: Self) {
        for (own, other) in self.counts.iter_mut().zip(other.counts) {
            *own += other;
        }
    }
}

/// Counts a frame of `len` bytes that a vm gets or has sent.
#[inline]
pub(crate) fn count(
    rows: &mut [VmCounters],
    port: PortId,
    (is_inside, direction): (bool, Direction),
    len: usize,
) {
    if let Some(row) = rows.get_mut(usize::from(port.0)) {
        row.of(is_inside, direction).add(len);
    }
}

/// Counts a frame from another vm of the node.
#[cold]
#[inline(never)]
pub(crate) fn count_here(rows: &mut [VmCounters], port: PortId, len: usize) {
    count(rows, port, (true, Direction::Inward), len);
}

/// Starts the counters of every port that has got or lost a vm at zero.
pub(crate) fn name(snapshot: &Snapshot<'_>, rows: &mut Mem<'_, VmCounters>) {
    for (port, row) in (0..=u16::MAX).zip(rows.iter_mut()) {
        let vm = snapshot.nat.vm_name(PortId(port));
        if row.vm != vm {
            *row = VmCounters {
                vm,
                ..VmCounters::default()
            };
        }
    }
}
