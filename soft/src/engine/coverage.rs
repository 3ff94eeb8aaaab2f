//! Use counts of pages: iommufd pins a page once, however many mappings use it (linux: drivers/iommu/iommufd/pages.c,
//! the interval trees of an iopt_pages).
//!
//! Only the borders between stretches of equal use are kept, so that a million copies of a guest's pages cost a million
//! borders and no scan.

use std::collections::BTreeMap;

/// The use count of every number from 0 on.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    /// The use count from this number up to the next border. Numbers before the first border are unused.
    uses: BTreeMap<u64, u32>,
}

impl Coverage {
    /// Increments the use count of `first..end` and returns how many of these numbers were unused.
    pub(crate) fn add(&mut self, first: u64, end: u64) -> u64 {
        self.change(first, end, 0, |uses| uses.saturating_add(1))
    }

    /// Decrements the use count of `first..end` and returns how many of these numbers are unused now.
    pub(crate) fn remove(&mut self, first: u64, end: u64) -> u64 {
        self.change(first, end, 1, |uses| {
            debug_assert!(uses > 0, "a number that is not used loses a use");
            uses.saturating_sub(1)
        })
    }

    /// The number of unused numbers in `first..end`.
    pub(crate) fn unused(&self, first: u64, end: u64) -> u64 {
        let mut unused = 0;
        let (mut from, mut uses) = (first, self.uses_of(first));
        for (border, next) in self.uses.range(first..end) {
            unused += if uses == 0 { border - from } else { 0 };
            (from, uses) = (*border, *next);
        }
        unused + if uses == 0 { end - from } else { 0 }
    }

    /// The number of used numbers.
    pub(crate) fn used(&self) -> u64 {
        let stretches = self.uses.iter().zip(self.uses.keys().skip(1));
        stretches.filter(|((_, uses), _)| **uses > 0).map(|((from, _), to)| to - from).sum()
    }

    /// Applies `change` to the use counts of `first..end` and returns how many numbers had the count `counted` before.
    fn change(&mut self, first: u64, end: u64, counted: u32, change: fn(u32) -> u32) -> u64 {
        self.border_at(first);
        self.border_at(end);
        let mut found = 0;
        let mut stretches = self.uses.range_mut(first..end).peekable();
        while let Some((from, uses)) = stretches.next() {
            let to = stretches.peek().map_or(end, |(next, _)| **next);
            found += if *uses == counted { to - from } else { 0 };
            *uses = change(*uses);
        }
        self.forget_border(first);
        self.forget_border(end);
        found
    }

    fn uses_of(&self, number: u64) -> u32 {
        self.uses.range(..=number).next_back().map_or(0, |(_, uses)| *uses)
    }

    fn border_at(&mut self, number: u64) {
        let uses = self.uses_of(number);
        self.uses.entry(number).or_insert(uses);
    }

    /// Drops a border between stretches of equal use.
    fn forget_border(&mut self, number: u64) {
        let below = self.uses.range(..number).next_back().map_or(0, |(_, uses)| *uses);
        if self.uses.get(&number) == Some(&below) {
            self.uses.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_counts_the_numbers_with_a_use() {
        let mut coverage = Coverage::default();
        assert_eq!(coverage.used(), 0);
        coverage.add(2, 10);
        coverage.add(5, 15);
        coverage.add(20, 21);
        assert_eq!(coverage.used(), 14);
        coverage.remove(2, 10);
        coverage.remove(5, 15);
        assert_eq!(coverage.used(), 1);
    }

    #[test]
    fn a_number_counts_once_however_often_it_is_used() {
        let mut coverage = Coverage::default();
        assert_eq!(coverage.add(0, 10), 10);
        assert_eq!(coverage.add(5, 15), 5);
        assert_eq!(coverage.unused(0, 20), 5);
        assert_eq!(coverage.remove(0, 10), 5);
        assert_eq!(coverage.remove(5, 15), 10);
        assert!(coverage.uses.is_empty());
    }

    #[test]
    fn nested_uses_leave_no_borders_once_removed() {
        let mut coverage = Coverage::default();
        coverage.add(0, 100);
        for page in 0..100 {
            assert_eq!(coverage.add(page, page + 1), 0);
        }
        assert_eq!(coverage.uses.len(), 2);
        for page in 0..100 {
            assert_eq!(coverage.remove(page, page + 1), 0);
        }
        assert_eq!(coverage.remove(0, 100), 100);
        assert!(coverage.uses.is_empty());
    }

    #[test]
    fn unused_counts_the_hole_between_two_uses() {
        let mut coverage = Coverage::default();
        coverage.add(2, 4);
        coverage.add(6, 8);
        assert_eq!(coverage.unused(0, 10), 6);
        assert_eq!(coverage.unused(3, 7), 2);
        assert_eq!(coverage.add(0, 10), 6);
    }

    proptest::proptest! {
            #[test]
            fn counting_by_borders_is_counting_one_by_one(
                uses in proptest::collection::vec((0usize..48, 1usize..16), 0..if cfg!(miri) { 8 } else { 48 })
            ) {
                let mut coverage = Coverage::default();
                let mut naive = [0u32; 64];
                for (from, len) in &uses {
                    let (first, end) = (*from as u64, (from + len) as u64);
                    let numbers = &mut naive[*from..from + len];
                    let unused = numbers.iter().filter(|uses| **uses == 0).count() as u64;
                    proptest::prop_assert_eq!(coverage.unused(first, end), unused);
                    proptest::prop_assert_eq!(coverage.add(first, end), unused);
                    for uses in &mut *numbers {
    *uses += 1;
    }
                }
                for (from, len) in &uses {
                    let numbers = &mut naive[*from..from + len];
                    for uses in &mut *numbers {
    *uses -= 1;
    }
                    let unused = numbers.iter().filter(|uses| **uses == 0).count() as u64;
                    proptest::prop_assert_eq!(coverage.remove(*from as u64, (from + len) as u64), unused);
                }
                proptest::prop_assert!(coverage.uses.is_empty());
            }
        }
}
