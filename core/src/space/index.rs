//! What lives in one window: the only record there is of what was mapped.
//!
//! Kept as runs: a `Whole` unit is a run by itself, units of pages that continue each other on the bus and in the host are one. A
//! guest that maps all of its memory page by page costs as much as one that maps it at once.
//!
//! Invariants: runs are disjoint, none is empty, and two runs of pages that could be one are one.

use std::collections::BTreeMap;

use crate::contract::{Mapping, Unit};
use crate::words::access::Access;
use crate::words::address::{Iova, IovaRange};
use crate::words::memory::HostMemory;
use crate::words::page::PageSize;

/// The live mappings of one window, by first byte.
#[derive(Debug, Default)]
pub(super) struct Index {
    runs: BTreeMap<Iova, Run>,
}

/// The part of a run that lies in a range, as it stands in the index.
pub(super) struct Part<'a> {
    /// The part.
    pub(super) range: IovaRange,
    /// The whole run.
    pub(super) run: IovaRange,
    /// The run's memory, of which the part begins at `offset`.
    pub(super) memory: &'a HostMemory,
    pub(super) offset: u64,
    pub(super) access: Access,
    pub(super) unit: Unit,
}

#[derive(Clone, Debug)]
struct Run {
    last: Iova,
    memory: HostMemory,
    access: Access,
    unit: Unit,
}

impl Index {
    /// Puts a mapping in. The caller checked that its range is free.
    pub(super) fn insert(&mut self, mapping: Mapping) {
        let Mapping { range, memory, access, unit } = mapping;
        let mut first = range.first();
        let mut run = Run { last: range.last(), memory, access, unit };
        if let Some((below, joined)) = self.run_ending_before(first).and_then(|(at, low)| Some((at, low.joined(&run)?)))
        {
            self.runs.remove(&below);
            (first, run) = (below, joined);
        }
        let above = run.last.get().checked_add(1).map(Iova::new);
        if let Some((above, joined)) = above.and_then(|at| Some((at, run.joined(self.runs.get(&at)?)?))) {
            self.runs.remove(&above);
            run = joined;
        }
        self.runs.insert(first, run);
    }

    /// Takes out everything in `range`, which cuts no unit.
    pub(super) fn remove(&mut self, range: IovaRange) {
        while let Some((at, run)) = self.take_one_touching(range) {
            let (below, above) = run.range(at).without(range);
            for rest in [below, above].into_iter().flatten() {
                if let Some(part) = run.part(at, rest) {
                    self.runs.insert(rest.first(), part);
                }
            }
        }
    }

    /// Takes out everything there is.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Mapping> + use<> {
        std::mem::take(&mut self.runs).into_iter().map(|(at, run)| run.into_mapping(at))
    }

    /// The live mapping at `at`, with everything that continues it.
    pub(super) fn at(&self, at: Iova) -> Option<Mapping> {
        let (&first, run) = self.runs.range(..=at).next_back()?;
        run.range(first).contains(at).then(|| run.clone().into_mapping(first))
    }

    /// What lives in `range`, ascending, clipped to it.
    pub(super) fn within(&self, range: IovaRange) -> impl Iterator<Item = Mapping> {
        self.touching(range).filter_map(move |(&at, run)| {
            let shared = run.range(at).intersection(range)?;
            run.part(at, shared).map(|part| part.into_mapping(shared.first()))
        })
    }

    /// The same without a copy of anything.
    pub(super) fn parts(&self, range: IovaRange) -> impl Iterator<Item = Part<'_>> {
        self.touching(range).filter_map(move |(&at, run)| {
            let whole = run.range(at);
            let shared = whole.intersection(range)?;
            let (memory, offset) = (&run.memory, shared.first().get() - at.get());
            Some(Part { range: shared, run: whole, memory, offset, access: run.access, unit: run.unit })
        })
    }

    /// The smallest range that holds what lives in `range`, and how many bytes that is. `None` when nothing does.
    pub(super) fn hull(&self, range: IovaRange) -> Option<(IovaRange, u64)> {
        let mut shared = self.touching(range).filter_map(|(&at, run)| run.range(at).intersection(range));
        let first = shared.next()?;
        let bytes = |part: IovaRange| part.len().map_or(u64::MAX, std::num::NonZeroU64::get);
        Some(shared.fold((first, bytes(first)), |(hull, sum), part| (hull.hull(part), sum.saturating_add(bytes(part)))))
    }

    /// The first live range that shares bytes with `range`.
    pub(super) fn overlap(&self, range: IovaRange) -> Option<IovaRange> {
        self.touching(range).next().map(|(&at, run)| run.range(at))
    }

    /// The unit that one end of `range` would cut.
    pub(super) fn cut_by(&self, range: IovaRange) -> Option<IovaRange> {
        let cut_before = |border: Iova| {
            let (&at, run) = self.runs.range(..border).next_back()?;
            run.unit_cut_before(at, border)
        };
        cut_before(range.first()).or_else(|| cut_before(range.end()?))
    }

    /// The first part of `range` where nothing lives.
    pub(super) fn gap_in(&self, range: IovaRange) -> Option<IovaRange> {
        let mut rest = range;
        for (&at, run) in self.touching(range) {
            let (below, above) = rest.without(run.range(at));
            if below.is_some() {
                return below;
            }
            rest = above?;
        }
        Some(rest)
    }

    /// The first live range whose memory shares bytes with `memory`.
    pub(super) fn leaning_on(&self, memory: &HostMemory) -> Option<IovaRange> {
        let leans = |run: &Run| run.memory.address() <= memory.last() && memory.address() <= run.memory.last();
        self.runs.iter().find(|(_, run)| leans(run)).map(|(&at, run)| run.range(at))
    }

    fn run_ending_before(&self, first: Iova) -> Option<(Iova, &Run)> {
        let (&at, run) = self.runs.range(..first).next_back()?;
        (run.last.get().checked_add(1) == Some(first.get())).then_some((at, run))
    }

    fn take_one_touching(&mut self, range: IovaRange) -> Option<(Iova, Run)> {
        let at = *self.touching(range).next()?.0;
        self.runs.remove_entry(&at)
    }

    fn touching(&self, range: IovaRange) -> impl Iterator<Item = (&Iova, &Run)> {
        let reaching_in = self.runs.range(..range.first()).next_back().filter(|(_, run)| run.last >= range.first());
        reaching_in.into_iter().chain(self.runs.range(range.first()..=range.last()))
    }
}

impl Run {
    fn range(&self, at: Iova) -> IovaRange {
        // ProcessRegistrations are never empty, so the hull of the two ends is the run.
        let end = |address| IovaRange::new(address, address);
        match (end(at), end(self.last)) {
            (Ok(first), Ok(last)) => first.hull(last),
            _ => IovaRange::all(),
        }
    }

    fn into_mapping(self, at: Iova) -> Mapping {
        let range = self.range(at);
        Mapping { range, memory: self.memory, access: self.access, unit: self.unit }
    }

    fn part(&self, at: Iova, part: IovaRange) -> Option<Self> {
        let memory = match part.len() {
            Some(len) => self.memory.slice(part.first().get() - at.get(), len.get())?,
            None => self.memory.clone(),
        };
        Some(Self { last: part.last(), memory, access: self.access, unit: self.unit })
    }

    fn joined(&self, next: &Self) -> Option<Self> {
        let alike = self.access == next.access && self.unit == next.unit && self.unit != Unit::Whole;
        let memory = alike.then(|| self.memory.joined_with(&next.memory))??;
        Some(Self { last: next.last, memory, access: self.access, unit: self.unit })
    }

    /// The unit of this run that has `border` strictly inside.
    fn unit_cut_before(&self, at: Iova, border: Iova) -> Option<IovaRange> {
        if border > self.last {
            return None;
        }
        match self.unit {
            Unit::Whole => Some(self.range(at)),
            Unit::Pages(page) => page_around(page, border),
        }
    }
}

/// The page with `border` strictly inside; `None` on the border of two pages.
fn page_around(page: PageSize, border: Iova) -> Option<IovaRange> {
    if page.divides(border.get()) {
        return None;
    }
    IovaRange::with_len(Iova::new(page.round_down(border.get())), page.bytes()).ok()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    const K4: Unit = Unit::Pages(PageSize::K4);

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(first), Iova::new(last)).expect("a range of the test")
    }

    fn mapping(first: u64, pages: u64, host: u64, unit: Unit) -> Mapping {
        let len = NonZeroU64::new(pages * 0x1000).expect("not empty");
        let memory = HostMemory::unbacked(host, len).expect("no wrap");
        let range = IovaRange::with_len(Iova::new(first), len.get()).expect("a range of the test");
        Mapping { range, memory, access: Access::READ_WRITE, unit }
    }

    fn index(mappings: impl IntoIterator<Item = Mapping>) -> Index {
        let mut index = Index::default();
        mappings.into_iter().for_each(|mapping| index.insert(mapping));
        index
    }

    #[test]
    fn pages_that_continue_each_other_are_one_run_in_any_order() {
        let index = index([
            mapping(0x2000, 1, 0x7002_0000, K4),
            mapping(0x0000, 1, 0x7000_0000 + 0x1_e000, K4),
            mapping(0x1000, 1, 0x7000_0000 + 0x1_f000, K4),
        ]);
        assert_eq!(index.within(IovaRange::all()).collect::<Vec<_>>(), [mapping(0, 3, 0x7001_e000, K4)]);
    }

    #[test]
    fn whole_units_and_strangers_stay_apart() {
        let whole = index([mapping(0, 1, 0x7000_0000, Unit::Whole), mapping(0x1000, 1, 0x7000_1000, Unit::Whole)]);
        assert_eq!(whole.within(IovaRange::all()).count(), 2);
        let strangers = index([mapping(0, 1, 0x7000_0000, K4), mapping(0x1000, 1, 0x7000_2000, K4)]);
        assert_eq!(strangers.within(IovaRange::all()).count(), 2);
    }

    #[test]
    fn removing_the_middle_leaves_both_ends_with_their_memory() {
        let mut index = index([mapping(0x1000, 4, 0x7000_0000, K4)]);
        index.remove(range(0x2000, 0x2fff));
        let left: Vec<_> = index.within(IovaRange::all()).collect();
        assert_eq!(left, [mapping(0x1000, 1, 0x7000_0000, K4), mapping(0x3000, 2, 0x7000_2000, K4)]);
    }

    #[test]
    fn ends_inside_a_unit_cut_it() {
        let index = index([mapping(0x1000, 4, 0x7000_0000, Unit::Whole), mapping(0x1_0000, 4, 0x7010_0000, K4)]);
        assert_eq!(index.cut_by(range(0x2000, 0xffff)), Some(range(0x1000, 0x4fff)));
        assert_eq!(index.cut_by(range(0, 0x1fff)), Some(range(0x1000, 0x4fff)));
        assert_eq!(index.cut_by(range(0x1000, 0x4fff)), None);
        assert_eq!(index.cut_by(range(0, u64::MAX)), None);
        assert_eq!(index.cut_by(range(0x1_1000, 0x1_1fff)), None);
        assert_eq!(index.cut_by(range(0x1_1800, 0x1_1fff)), Some(range(0x1_1000, 0x1_1fff)));
    }

    #[test]
    fn the_hull_counts_only_what_lives() {
        let index = index([mapping(0x1000, 1, 0x7000_0000, K4), mapping(0x5000, 2, 0x7010_0000, K4)]);
        assert_eq!(index.hull(range(0, 0x5fff)), Some((range(0x1000, 0x5fff), 0x2000)));
        assert_eq!(index.hull(range(0x2000, 0x4fff)), None);
    }

    #[test]
    fn gaps_are_found_before_between_and_after() {
        let index = index([mapping(0x1000, 1, 0x7000_0000, K4), mapping(0x3000, 1, 0x7010_0000, K4)]);
        assert_eq!(index.gap_in(range(0, 0x1fff)), Some(range(0, 0xfff)));
        assert_eq!(index.gap_in(range(0x1000, 0x3fff)), Some(range(0x2000, 0x2fff)));
        assert_eq!(index.gap_in(range(0x3000, 0x4fff)), Some(range(0x4000, 0x4fff)));
        assert_eq!(index.gap_in(range(0x3000, 0x3fff)), None);
    }

    #[test]
    fn the_last_page_of_all_can_come_and_go() {
        let top = u64::MAX - 0xfff;
        let mut index = index([mapping(top, 1, 0x7000_0000, K4)]);
        assert_eq!(index.at(Iova::new(u64::MAX)), Some(mapping(top, 1, 0x7000_0000, K4)));
        index.remove(range(top, u64::MAX));
        assert_eq!(index.hull(IovaRange::all()), None);
    }
}
