//! The age of each slot's last change: generations since the slot last got another backend.
//!
//! Ages are bytes, and zero means that no change is known, so memory of zeros is a table that never
//! changed.

/// No change is known.
pub(super) const NEVER: u8 = 0;
/// The slot changed in the present generation.
pub(super) const NEW: u8 = 1;

/// Returns the age one generation later, if the slot does not change.
#[inline]
pub(super) const fn aged(age: u8) -> u8 {
    age.saturating_add((age != NEVER) as u8)
}

/// Returns the age of the later one of two changes.
#[inline]
pub(super) fn later(one: u8, other: u8) -> u8 {
    let order = |age: u8| age.wrapping_sub(1); // no change comes last
    order(one).min(order(other)).wrapping_add(1)
}

/// Returns the generations since the change, at most 254; `None` if no change is known.
#[inline]
pub(super) const fn generations(age: u8) -> Option<u8> {
    age.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_count_generations_up_to_254() {
        assert_eq!(generations(NEVER), None);
        assert_eq!(generations(aged(NEVER)), None);
        let mut age = NEW;
        for passed in 0..300u16 {
            assert_eq!(generations(age), Some(passed.min(254) as u8));
            age = aged(age);
        }
    }

    #[test]
    fn the_later_change_is_the_younger_one() {
        for one in 0..=u8::MAX {
            for other in 0..=u8::MAX {
                let known = [one, other].into_iter().filter_map(generations).min();
                assert_eq!(generations(later(one, other)), known, "{one} {other}");
            }
        }
    }
}
