//! Ranges of values, each with its first and its last one.

/// Sorts ranges and joins overlapping ones. Returns the number of remaining ranges, which are at
/// the beginning, ascending and disjoint.
///
/// # Cost
/// Like sorting.
pub(crate) fn join<T: Ord + Copy>(ranges: &mut [[T; 2]]) -> usize {
    ranges.sort_unstable();
    let mut count: usize = 0;
    for index in 0..ranges.len() {
        let [first, last] = ranges[index];
        match count.checked_sub(1).map(|before| &mut ranges[before]) {
            Some([_, end]) if *end >= first => *end = last.max(*end),
            _ => {
                ranges[count] = [first, last];
                count += 1;
            }
        }
    }
    count
}

/// Returns true if a value is in one of the ranges, which are [joined](join).
///
/// # Cost
/// A binary search.
pub(crate) fn have<T: Ord>(ranges: &[[T; 2]], value: &T) -> bool {
    let next = ranges.partition_point(|[first, _]| first <= value);
    let range = next.checked_sub(1).and_then(|at| ranges.get(at));
    range.is_some_and(|[_, last]| value <= last)
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use core::cell::Cell;
    use core::cmp::Ordering;

    std::thread_local! {
        static COMPARED: Cell<u64> = const { Cell::new(0) };
    }

    /// A number whose comparisons are counted.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Counted(u32);

    impl Ord for Counted {
        fn cmp(&self, other: &Self) -> Ordering {
            COMPARED.with(|count| count.set(count.get() + 1));
            self.0.cmp(&other.0)
        }
    }

    impl PartialOrd for Counted {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    fn compared<T>(f: impl FnOnce() -> T) -> (T, u64) {
        COMPARED.with(|count| count.set(0));
        let result = f();
        (result, COMPARED.with(Cell::get))
    }

    #[test]
    fn ranges_that_touch_or_hold_each_other_are_joined() {
        let mut ranges = [[7, 9], [1, 3], [2, 2], [3, 4], [6, 6], [20, 30], [21, 22]];
        let count = join(&mut ranges);
        assert_eq!(ranges[..count], [[1, 4], [6, 6], [7, 9], [20, 30]]);
        for value in 0..40 {
            let expected = matches!(value, 1..=4 | 6..=9 | 20..=30);
            assert_eq!(have(&ranges[..count], &value), expected, "{value}");
        }
        assert_eq!(join::<u8>(&mut []), 0);
        assert!(!have::<u8>(&[], &1));
    }

    #[test]
    fn twenty_thousand_ranges_take_a_few_steps_each() {
        let count = if cfg!(miri) { 200u32 } else { 20_000 };
        let spread = |n: u32| n * 7919 % count;
        let mut ranges: Vec<_> = (0..count)
            .map(|n| [Counted(spread(n) * 10), Counted(spread(n) * 10 + 5)])
            .collect();
        let (joined, steps) = compared(|| join(&mut ranges));
        assert!(steps < u64::from(count) * 64, "{steps} comparisons to join");
        let ranges = &ranges[..joined];
        for value in [0, 5, 6, count * 5, count * 10 - 1, count * 20] {
            let (_, steps) = compared(|| have(ranges, &Counted(value)));
            assert!(steps <= 17, "{steps} comparisons to find {value}");
        }
    }
}
