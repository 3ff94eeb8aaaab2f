//! The live mappings of one window: the only record there is of them.
//!
//! Mappings are kept as runs: a `Whole` unit is a run by itself; units of pages that continue each other on the bus
//! and in the host are one run. A guest that maps all of its memory page by page costs as much as one that maps it at
//! once.
//!
//! Invariants: runs are disjoint, none is empty, and two runs of pages that could be one run are one.

use std::collections::BTreeMap;

use crate::contract::{Mapping, Unit};
use crate::space::deferred::Deferred;
use crate::words::access::Access;
use crate::words::address::{Iova, IovaRange};
use crate::words::memory::HostMemory;
use crate::words::page::PageSize;

/// The live mappings of one window, by first byte.
#[derive(Debug, Default)]
pub(super) struct Index {
    runs: BTreeMap<Iova, Run>,
}

/// The part of a run that lies in a range.
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
    range: IovaRange,
    memory: HostMemory,
    access: Access,
    unit: Unit,
}

impl Index {
    pub(super) fn new() -> Self {
        Self { runs: BTreeMap::new() }
    }

    /// Adds a mapping. The caller checked that its range is free.
    pub(super) fn insert(&mut self, mapping: Mapping) {
        debug_assert!(self.overlap(mapping.range).is_none(), "{} is mapped twice", mapping.range);
        let Mapping { range, memory, access, unit } = mapping;
        let mut run = Run { range, memory, access, unit };
        if let Some(joined) = self.run_ending_before(range.first()).and_then(|below| below.joined(&run)) {
            self.runs.remove(&joined.range.first());
            run = joined;
        }
        let above = run.range.end().and_then(|end| self.runs.get(&end));
        if let Some((border, joined)) = above.and_then(|above| Some((above.range.first(), run.joined(above)?))) {
            self.runs.remove(&border);
            run = joined;
        }
        self.runs.insert(run.range.first(), run);
    }

    /// Removes everything in `range`, which cuts no unit. The memory is dropped later, with `deferred`.
    pub(super) fn remove(&mut self, range: IovaRange, deferred: &mut Deferred) {
        while let Some(run) = self.take_one_touching(range) {
            let (below, above) = run.range.without(range);
            for rest in [below, above].into_iter().flatten() {
                if let Some(part) = run.part(rest) {
                    self.runs.insert(rest.first(), part);
                }
            }
            deferred.release(run.memory);
        }
    }

    /// Removes everything, and returns it.
    pub(super) fn drain(&mut self) -> Vec<Mapping> {
        std::mem::take(&mut self.runs).into_values().map(Run::into_mapping).collect()
    }

    /// The live mapping at `at`, with everything that continues it.
    pub(super) fn at(&self, at: Iova) -> Option<Mapping> {
        let (_, run) = self.runs.range(..=at).next_back()?;
        if run.range.contains(at) { Some(run.clone().into_mapping()) } else { None }
    }

    /// The live mappings in `range`, ascending, clipped to it.
    pub(super) fn within(&self, range: IovaRange) -> impl Iterator<Item = Mapping> {
        self.touching(range).filter_map(move |run| {
            let shared = run.range.intersection(range)?;
            run.part(shared).map(Run::into_mapping)
        })
    }

    /// The parts of runs that lie in `range`, ascending, without a copy of their memory.
    pub(super) fn parts(&self, range: IovaRange) -> impl Iterator<Item = Part<'_>> {
        self.touching(range).filter_map(move |run| {
            let shared = run.range.intersection(range)?;
            let offset = run.range.offset_of(shared.first());
            let Run { range, memory, access, unit } = run;
            Some(Part { range: shared, run: *range, memory, offset, access: *access, unit: *unit })
        })
    }

    /// The smallest range that holds all live mappings of `range`, and the number of their bytes. `None` when there
    /// are none.
    pub(super) fn hull(&self, range: IovaRange) -> Option<(IovaRange, u64)> {
        let mut sum: Option<(IovaRange, u64)> = None;
        for shared in self.touching(range).filter_map(|run| run.range.intersection(range)) {
            let (hull, bytes) = sum.unwrap_or((shared, 0));
            sum = Some((hull.hull(shared), bytes.saturating_add(len_of(shared))));
        }
        sum
    }

    /// The first live run that shares bytes with `range`.
    pub(super) fn overlap(&self, range: IovaRange) -> Option<IovaRange> {
        self.touching(range).next().map(|run| run.range)
    }

    /// The unit that one end of `range` would cut.
    pub(super) fn cut_by(&self, range: IovaRange) -> Option<IovaRange> {
        self.cut_before(range.first()).or_else(|| self.cut_before(range.end()?))
    }

    fn cut_before(&self, border: Iova) -> Option<IovaRange> {
        let (_, run) = self.runs.range(..border).next_back()?;
        run.unit_cut_before(border)
    }

    /// The first part of `range` that is not mapped.
    pub(super) fn gap_in(&self, range: IovaRange) -> Option<IovaRange> {
        let mut rest = range;
        for run in self.touching(range) {
            let (below, above) = rest.without(run.range);
            if below.is_some() {
                return below;
            }
            rest = above?;
        }
        Some(rest)
    }

    /// The first live run whose memory shares bytes with `memory`.
    pub(super) fn onto(&self, memory: &HostMemory) -> Option<IovaRange> {
        self.runs.values().find(|run| run.memory.overlaps(memory)).map(|run| run.range)
    }

    fn run_ending_before(&self, first: Iova) -> Option<&Run> {
        let (_, run) = self.runs.range(..first).next_back()?;
        if run.range.end() == Some(first) { Some(run) } else { None }
    }

    fn take_one_touching(&mut self, range: IovaRange) -> Option<Run> {
        let first = self.touching(range).next()?.range.first();
        self.runs.remove(&first)
    }

    fn touching(&self, range: IovaRange) -> impl Iterator<Item = &Run> {
        let reaching_in = self.runs.range(..range.first()).next_back().filter(|(_, run)| run.range.overlaps(range));
        reaching_in.into_iter().chain(self.runs.range(range.first()..=range.last())).map(|(_, run)| run)
    }
}

/// The length of a range; 2^64 - 1 for all 2^64 bytes.
pub(super) fn len_of(range: IovaRange) -> u64 {
    range.len().map_or(u64::MAX, std::num::NonZeroU64::get)
}

impl Run {
    fn into_mapping(self) -> Mapping {
        let Self { range, memory, access, unit } = self;
        Mapping { range, memory, access, unit }
    }

    /// The part of the run at `part`, which lies in it.
    fn part(&self, part: IovaRange) -> Option<Self> {
        let memory = match part.len() {
            Some(len) => self.memory.slice(self.range.offset_of(part.first()), len.get()),
            None => Some(self.memory.clone()),
        };
        debug_assert!(memory.is_some(), "{part} is no part of {}", self.range);
        Some(Self { range: part, memory: memory?, access: self.access, unit: self.unit })
    }

    /// The run and the one right above it as one, if they are alike and their memory is adjacent.
    fn joined(&self, next: &Self) -> Option<Self> {
        if self.access != next.access || self.unit != next.unit || self.unit == Unit::Whole {
            return None;
        }
        let memory = self.memory.joined_with(&next.memory)?;
        Some(Self { range: self.range.hull(next.range), memory, access: self.access, unit: self.unit })
    }

    /// The unit of this run that has `border` strictly inside.
    fn unit_cut_before(&self, border: Iova) -> Option<IovaRange> {
        if border > self.range.last() {
            return None;
        }
        match self.unit {
            Unit::Whole => Some(self.range),
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
        for mapping in mappings {
            index.insert(mapping);
        }
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
    fn whole_units_and_pages_that_do_not_continue_stay_apart() {
        let whole = index([mapping(0, 1, 0x7000_0000, Unit::Whole), mapping(0x1000, 1, 0x7000_1000, Unit::Whole)]);
        assert_eq!(whole.within(IovaRange::all()).count(), 2);
        let others = index([mapping(0, 1, 0x7000_0000, K4), mapping(0x1000, 1, 0x7000_2000, K4)]);
        assert_eq!(others.within(IovaRange::all()).count(), 2);
    }

    #[test]
    fn removing_the_middle_leaves_both_ends_with_their_memory() {
        let mut index = index([mapping(0x1000, 4, 0x7000_0000, K4)]);
        index.remove(range(0x2000, 0x2fff), &mut Deferred::default());
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
    fn the_hull_counts_only_live_bytes() {
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
    fn the_last_page_of_all_can_be_added_and_removed() {
        let top = u64::MAX - 0xfff;
        let mut index = index([mapping(top, 1, 0x7000_0000, K4)]);
        assert_eq!(index.at(Iova::new(u64::MAX)), Some(mapping(top, 1, 0x7000_0000, K4)));
        index.remove(range(top, u64::MAX), &mut Deferred::default());
        assert_eq!(index.hull(IovaRange::all()), None);
    }
}
