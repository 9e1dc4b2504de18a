//! The id of a rule in the 16 bits that a connection has for it.
//!
//! ```text
//!  0x0000 to 0x3fff   00iiisssssssssss: a slot below 2048, and the low bits of its incarnation
//!  0x4000 to 0xfffe   any slot from 2048 on, less 2048
//!  0xffff             none
//! ```
//!
//! Connections outlive their rule, and another rule may get its slot. By the incarnation the new rule's
//! counters and probes are told from the old one's until the sweep has seen all connections, and taken
//! those of removed rules from their slots. Slots from 2048 on are [given again](crate::snapshot) only
//! when none is left that no rule ever had.

use crate::snapshot::SLOT_BITS;
use crate::stats::RuleCounters;

const SHORT_BITS: u32 = 11;
const SHORT_SLOTS: u32 = 1 << SHORT_BITS;
const INCARNATION: u32 = 0b111;
/// The first code of a slot without incarnations.
const LONG: u32 = 1 << 14;

/// Slots of rules from here on have no incarnations.
pub(crate) const FIRST_LONG_SLOT: usize = SHORT_SLOTS as usize;
/// Slots that there are codes for.
pub(crate) const CODED_SLOTS: usize = (SHORT_SLOTS + u16::MAX as u32 - LONG) as usize;

/// A rule's id, shortened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShortRuleId(u16);

impl ShortRuleId {
    /// No rule.
    pub(crate) const NONE: Self = Self(u16::MAX);

    /// The short id of a rule; [`NONE`](Self::NONE) where there is no code for its slot.
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

    /// The number that a connection keeps.
    pub(crate) const fn bits(self) -> u16 {
        self.0
    }

    /// The id of such a number.
    #[inline]
    pub(crate) const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The slot of the rule, which may be another one's by now. Of [`NONE`](Self::NONE), none that
    /// [`is`](Self::is) any rule's.
    #[inline]
    pub(crate) const fn slot(self) -> usize {
        let code = self.0 as u32;
        (if code < LONG {
            code & (SHORT_SLOTS - 1)
        } else {
            code - LONG + SHORT_SLOTS
        }) as usize
    }

    /// Whether the rule is the one that has this id, of those that had its slot.
    #[inline]
    pub(crate) const fn is(self, id: u32) -> bool {
        let code = self.0 as u32;
        if code < LONG {
            id >> SLOT_BITS & INCARNATION == code >> SHORT_BITS
        } else {
            self.0 != Self::NONE.0
        }
    }

    /// The rule's counters, unless its slot is another one's.
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
