//! The entries that one hypercall writes to consecutive pages, cut into stretches: the form in which they are checked,
//! compared with a table, and written.

use dmaspace_core::PageSize;

use crate::entry::Tce;

/// Entries for consecutive pages: with rights, and then each maps the page behind that of the one before; or without a
/// right, and then all are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) first: Tce,
    /// The number of entries, at least one.
    pub(crate) count: u64,
}

impl Stretch {
    /// A stretch of one entry.
    pub(crate) const fn one(tce: Tce) -> Self {
        Self { first: tce, count: 1 }
    }

    /// The distance of its entries, as the guest encodes them.
    pub(crate) fn step(self, page: PageSize) -> u64 {
        if self.first.is_live() { page.bytes() } else { 0 }
    }

    /// The entry that would continue it.
    pub(crate) fn next(self, page: PageSize) -> Option<Tce> {
        self.first.get().checked_add(self.count.checked_mul(self.step(page))?).map(Tce::new)
    }

    /// The part of it without the first `skipped` entries, of `count` entries.
    pub(crate) fn part(self, skipped: u64, count: u64, page: PageSize) -> Self {
        debug_assert!(skipped + count <= self.count, "{count} entries behind {skipped} of {self:?}");
        Self { first: Tce::new(self.first.get().wrapping_add(skipped * self.step(page))), count }
    }

    /// Its entries.
    pub(crate) fn entries(self, page: PageSize) -> impl Iterator<Item = Tce> {
        let step = self.step(page);
        (0..self.count).map(move |n| Tce::new(self.first.get().wrapping_add(n * step)))
    }
}

/// Cuts consecutive entries of a table of `page` into stretches.
pub(crate) fn cut(entries: impl IntoIterator<Item = Tce>, page: PageSize) -> impl Iterator<Item = Stretch> {
    let mut entries = entries.into_iter();
    let mut next = entries.next();
    std::iter::from_fn(move || {
        let first = next?;
        let step = Stretch::one(first).step(page);
        let mut count = 1;
        let mut expected = first.get().checked_add(step);
        loop {
            next = entries.next();
            if next.map(Tce::get) != expected || next.is_none() {
                return Some(Stretch { first, count });
            }
            count += 1;
            expected = expected.and_then(|expected| expected.checked_add(step));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretches(raw: &[u64]) -> Vec<(u64, u64)> {
        let cut = cut(raw.iter().copied().map(Tce::new), PageSize::K4);
        cut.map(|stretch| (stretch.first.get(), stretch.count)).collect()
    }

    #[test]
    fn entries_with_rights_continue_each_other_page_by_page_and_others_are_equal() {
        assert_eq!(stretches(&[]), []);
        assert_eq!(stretches(&[0x1003, 0x2003, 0x3003, 0x3003, 0x4001]), [(0x1003, 3), (0x3003, 1), (0x4001, 1)]);
        assert_eq!(
            stretches(&[0, 0, 0x1000, 0x1000, 0x2000, 3, 0]),
            [(0, 2), (0x1000, 2), (0x2000, 1), (3, 1), (0, 1)]
        );
        assert_eq!(stretches(&[u64::MAX - 0xffc, 3]), [(u64::MAX - 0xffc, 1), (3, 1)]);
    }

    #[test]
    fn a_part_has_the_entries_of_the_whole() {
        let page = PageSize::K4;
        for whole in [0x5003, 0x5000].map(|raw| Stretch { first: Tce::new(raw), count: 9 }) {
            let entries: Vec<_> = whole.entries(page).collect();
            assert_eq!(whole.part(3, 4, page).entries(page).collect::<Vec<_>>(), entries[3..7]);
            assert_eq!(whole.part(0, 8, page).next(page), Some(entries[8]));
        }
    }
}
