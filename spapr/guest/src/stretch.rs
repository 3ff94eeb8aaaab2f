//! The entries that one hypercall writes to consecutive pages, cut into stretches: the form in which they are checked,
//! compared with a table, and written.

use dmaspace_core::PageSize;

use crate::entry::Tce;

/// The entries of a leaf of a table.
pub(crate) const LEAF: u64 = u64::BITS as u64;

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
pub(crate) fn cut<E: Copy + Into<Tce>>(entries: &[E], page: PageSize) -> impl Iterator<Item = Stretch> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let (first, behind) = rest.split_first()?;
        let first = (*first).into();
        let more = continuing(first, behind, page);
        rest = behind.get(more..).unwrap_or_default();
        Some(Stretch { first, count: more as u64 + 1 })
    })
}

/// The number of entries at the beginning of `behind` that continue a stretch of `first`.
fn continuing<E: Copy + Into<Tce>>(first: Tce, behind: &[E], page: PageSize) -> usize {
    const AT_ONCE: usize = 4;
    let step = Stretch::one(first).step(page);
    let mut expected = first.get().wrapping_add(step);
    let continues = |entry: &E, expected: u64| (*entry).into().get() == expected;
    if !behind.first().is_some_and(|next| continues(next, expected)) {
        return 0;
    }
    // Up to the top of system memory.
    let most = if step == 0 { u64::MAX } else { (u64::MAX - first.get()) >> page.shift() };
    let behind = usize::try_from(most).ok().and_then(|most| behind.get(..most)).unwrap_or(behind);
    let mut count = 0;
    for several in behind.chunks_exact(AT_ONCE) {
        let mut differing = 0;
        for (n, entry) in (0..).zip(several) {
            differing |= (*entry).into().get() ^ expected.wrapping_add(step.wrapping_mul(n));
        }
        if differing != 0 {
            break;
        }
        expected = expected.wrapping_add(step.wrapping_mul(AT_ONCE as u64));
        count += AT_ONCE;
    }
    for entry in behind.iter().skip(count) {
        if !continues(entry, expected) {
            break;
        }
        expected = expected.wrapping_add(step);
        count += 1;
    }
    count
}

/// Consecutive stretches, cut where a leaf ends, with the index of the first entry of each part. Stretches of
/// [`Tce::NONE`] are not cut: they may be long, and need no leaf.
pub(crate) struct Parts<I> {
    stretches: I,
    index: u64,
    rest: Stretch,
    page: PageSize,
}

impl<I: Iterator<Item = Stretch>> Parts<I> {
    /// The parts of `stretches` from `first` on.
    pub(crate) fn of(first: u64, stretches: I, page: PageSize) -> Self {
        Self { stretches, index: first, rest: Stretch { first: Tce::NONE, count: 0 }, page }
    }
}

impl<I: Iterator<Item = Stretch>> Iterator for Parts<I> {
    type Item = (u64, Stretch);

    fn next(&mut self) -> Option<(u64, Stretch)> {
        let whole = if self.rest.count == 0 { self.stretches.next()? } else { self.rest };
        let index = self.index;
        let room = LEAF - index % LEAF;
        if whole.count <= room || whole.first == Tce::NONE {
            self.rest.count = 0;
            self.index += whole.count;
            return Some((index, whole));
        }
        self.rest = whole.part(room, whole.count - room, self.page);
        self.index += room;
        Some((index, Stretch { count: room, ..whole }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretches(raw: &[u64]) -> Vec<(u64, u64)> {
        let entries: Vec<_> = raw.iter().copied().map(Tce::new).collect();
        cut(&entries, PageSize::K4).map(|stretch| (stretch.first.get(), stretch.count)).collect()
    }

    #[test]
    fn entries_with_rights_continue_each_other_page_by_page_and_others_are_equal() {
        assert_eq!(stretches(&[]), []);
        assert_eq!(stretches(&[0x1003, 0x2003, 0x3003, 0x3003, 0x4001]), [(0x1003, 3), (0x3003, 1), (0x4001, 1)]);
        assert_eq!(
            stretches(&[0, 0, 0x1000, 0x1000, 0x2000, 3, 0]),
            [(0, 2), (0x1000, 2), (0x2000, 1), (3, 1), (0, 1)]
        );
    }

    #[test]
    fn a_long_stretch_ends_at_any_entry_and_at_the_top_of_system_memory() {
        for len in 1..20 {
            let begin = u64::MAX - 0xffc - ((len - 1) << 12);
            let raw: Vec<_> = (0..20).map(|n| begin.wrapping_add(n << 12)).collect();
            assert_eq!(stretches(&raw), [(begin, len), (3, 20 - len)]);
            let mut raw: Vec<_> = (0..20).map(|n| 0x5003 + (n << 12)).collect();
            raw[usize::try_from(len).expect("small")] += 1 << 40;
            assert_eq!(stretches(&raw)[0], (0x5003, len));
        }
    }

    #[test]
    fn parts_end_with_their_leaves_but_those_of_nothing_do_not() {
        let stretches =
            [(0x5003, 100), (0, 1000), (0x7000, 70)].map(|(raw, count)| Stretch { first: Tce::new(raw), count });
        let parts: Vec<_> = Parts::of(60, stretches.into_iter(), PageSize::K4).collect();
        let parts: Vec<_> = parts.iter().map(|(index, part)| (*index, part.first.get(), part.count)).collect();
        let live = [(60, 0x5003, 4), (64, 0x9003, 64), (128, 0x4_9003, 32)];
        let rest = [(160, 0, 1000), (1160, 0x7000, 56), (1216, 0x7000, 14)];
        assert_eq!(parts, [live, rest].concat());
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
