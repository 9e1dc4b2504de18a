//! Ids of rules in 16 bits, as connections store them.
//!
//! ```text
//!  0x0000 to 0x3fff   00iiisssssssssss: a slot below 2048, and the low bits of its incarnation
//!  0x4000 to 0xfffe   any slot from 2048 on, less 2048
//!  0xffff             none
//! ```
//!
//! Connections outlive their rule, and another rule may get its slot. The incarnation keeps an old
//! connection off the new rule's counters and probes until the sweep has detached it from its
//! removed rule. Slots from 2048 on are reused only when no unused slot is left.

use crate::snapshot::SLOT_BITS;
use crate::stats::RuleCounters;

const SHORT_BITS: u32 = 11;
const SHORT_SLOTS: u32 = 1 << SHORT_BITS;
const INCARNATION: u32 = 0b111;
/// The first code of a slot without incarnations.
const LONG: u32 = 1 << 14;

/// The first slot without incarnations.
pub(crate) const FIRST_LONG_SLOT: usize = SHORT_SLOTS as usize;
/// The number of slots with codes.
pub(crate) const CODED_SLOTS: usize = (SHORT_SLOTS + u16::MAX as u32 - LONG) as usize;

/// The short form of a rule's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShortRuleId(u16);

impl ShortRuleId {
    /// No rule.
    pub(crate) const NONE: Self = Self(u16::MAX);

    /// Returns the short form of a rule's id; [`NONE`](Self::NONE) if its slot has no code.
    pub(crate) const fn of(id: u32) -> Self {
        let slot = id & ((1 << SLOT_BITS) - 1);
        Self(if slot < SHORT_SLOTS {
            ((id >> SLOT_BITS & INCARNATION) << SHORT_BITS | slot) as u16
        } else if slot < CODED_SLOTS as u32 {
            (slot - SHORT_SLOTS + LONG) as u16
        } else {
            u16::MAX
        })
    }

    /// Returns the number that a connection stores.
    pub(crate) const fn bits(self) -> u16 {
        self.0
    }

    /// Returns the id that has this number.
    #[inline]
    pub(crate) const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Returns the slot of the rule. Another rule may have the slot by now; [`is`](Self::is) checks
    /// that.
    #[inline]
    pub(crate) const fn slot(self) -> usize {
        let code = self.0 as u32;
        (if code < LONG {
            code & (SHORT_SLOTS - 1)
        } else {
            code - LONG + SHORT_SLOTS
        }) as usize
    }

    /// Returns true if this is the short form of `id`, whose slot is the same.
    #[inline]
    pub(crate) const fn is(self, id: u32) -> bool {
        let code = self.0 as u32;
        if code < LONG {
            id >> SLOT_BITS & INCARNATION == code >> SHORT_BITS
        } else {
            self.0 != Self::NONE.0
        }
    }

    /// Returns the rule's counters; `None` if another rule has its slot.
    #[inline]
    pub(crate) fn counters(self, rules: &mut [RuleCounters]) -> Option<&mut RuleCounters> {
        let counters = rules.get_mut(self.slot())?;
        self.is(counters.id).then_some(counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_leads_to_its_slot_and_to_no_later_owner_of_it() {
        const NEXT: u32 = 1 << SLOT_BITS;
        for (slot, is_coded, tells_owners) in [
            (0, true, true),
            (2047, true, true),
            (2048, true, false),
            (51_198, true, false),
            (51_199, false, false),
            (65_535, false, false),
            (65_536, false, false),
            (NEXT - 1, false, false),
        ] {
            for incarnation in [0, 1, 7, 8, 4000] {
                let id = incarnation * NEXT + slot;
                let short = ShortRuleId::of(id);
                assert_eq!(short != ShortRuleId::NONE, is_coded, "{slot}");
                assert_eq!(short.is(id), is_coded, "{slot}");
                if is_coded {
                    assert_eq!(short.slot(), slot as usize);
                    assert_eq!(short.is(id + NEXT), !tells_owners, "{slot} {incarnation}");
                }
            }
        }
    }

    #[test]
    fn no_two_slots_have_one_code() {
        for slot in 0..CODED_SLOTS {
            assert_eq!(ShortRuleId::of(slot as u32).slot(), slot);
        }
    }
}
