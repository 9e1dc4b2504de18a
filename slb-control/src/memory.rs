//! Memory for large tables, on huge pages if the kernel provides them, so that a random flow costs
//! no TLB miss in addition to its cache miss.

use memmap2::{Advice, MmapMut};
use slb_core::mem::{Arena, Boxes, Line, Mem, Memory};

/// A separate mapping for each large table, never unmapped, and boxes for the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct HugePages;

/// The minimum size of a table for a separate mapping.
const LARGE: usize = 2 << 20;

impl Memory<'static> for HugePages {
    fn take<T: Copy>(&mut self, count: usize, fill: T) -> Option<Mem<'static, T>> {
        let bytes = count.checked_mul(size_of::<T>())?;
        if bytes < LARGE {
            return Boxes.take(count, fill);
        }
        let map = MmapMut::map_anon(bytes.next_multiple_of(LARGE)).ok()?;
        // Without huge pages, the mapping is still usable.
        let _: std::io::Result<()> = map.advise(Advice::HugePage);
        let bytes = &mut Box::leak(Box::new(map))[..];
        Arena::new(Line::from_leaked(bytes)).take(count, fill)
    }
}
