//! The translation of one IOMMU context: bus address to host memory and access, in runs.
//!
//! Invariants: runs share no byte; a run's memory is exactly as long as its range. The dialects know the origin of a
//! run and whether it may be cut: type1 and iommufd insert and remove whole runs, sPAPR writes and clears any part.
//!
//! A map that failed half way can leave entries in the hardware that no list knows ([`Table::leave_behind`]). Devices
//! reach those first, whatever is mapped there later, until an unmap covers them.

use std::collections::BTreeMap;

use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize};

/// Adjacent bus addresses, and the memory behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The bus addresses.
    pub(crate) range: IovaRange,
    /// The memory behind them, byte for byte.
    pub(crate) memory: HostMemory,
    /// The access of devices.
    pub(crate) access: Access,
    /// The origin of the memory, in the dialect's numbering (a registration, an iommufd's pages).
    pub(crate) source: u64,
}

impl Run {
    /// A run of all of `memory` at `at`; `None` if it does not fit below 2^64.
    pub(crate) fn new(at: Iova, memory: HostMemory, access: Access, source: u64) -> Option<Self> {
        let range = IovaRange::with_len(at, memory.len().get()).ok()?;
        Some(Self { range, memory, access, source })
    }

    /// The length in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.memory.len().get()
    }

    /// The part that lies in `range`.
    fn part(&self, range: IovaRange) -> Option<Self> {
        let range = self.range.intersection(range)?;
        let memory = self.memory.slice(self.range.offset_of(range.first()), range.len()?.get())?;
        Some(Self { range, memory, access: self.access, source: self.source })
    }

    /// The parts below and above `range`.
    fn without(&self, range: IovaRange) -> Vec<Self> {
        let (below, above) = self.range.without(range);
        [below, above].into_iter().flatten().filter_map(|rest| self.part(rest)).collect()
    }

    /// This run and `next` as one; `None` unless `next` continues this run.
    fn joined_with(&self, next: &Self) -> Option<Self> {
        let alike = self.access == next.access && self.source == next.source && self.range.touches(next.range);
        let memory = if alike { self.memory.joined_with(&next.memory)? } else { return None };
        Some(Self { range: self.range.hull(next.range), memory, access: self.access, source: self.source })
    }
}

/// A translation.
#[derive(Debug, Default)]
pub(crate) struct Table {
    runs: BTreeMap<Iova, Run>,
    left_behind: Vec<Run>,
}

impl Table {
    /// The run that contains `at`.
    pub(crate) fn at(&self, at: Iova) -> Option<&Run> {
        let (_, run) = self.runs.range(..=at).next_back()?;
        run.range.contains(at).then_some(run)
    }

    /// The run that a device reaches at `at`.
    pub(crate) fn reached_at(&self, at: Iova) -> Option<&Run> {
        self.left_behind.iter().find(|run| run.range.contains(at)).or_else(|| self.at(at))
    }

    /// The runs that share bytes with `range`, ascending.
    pub(crate) fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = &Run> {
        let first = self.at(range.first()).map_or(range.first(), |run| run.range.first());
        self.runs.range(first..=range.last()).map(|(_, run)| run)
    }

    /// Returns whether any run shares bytes with `range`.
    pub(crate) fn overlaps(&self, range: IovaRange) -> bool {
        self.overlapping(range).next().is_some()
    }

    /// All runs, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Run> {
        self.runs.values()
    }

    /// All runs that a device reaches: those that were left behind, and then the others, ascending.
    pub(crate) fn iter_with_left_behind(&self) -> impl Iterator<Item = &Run> {
        self.left_behind.iter().chain(self.runs.values())
    }

    /// The number of runs.
    pub(crate) fn len(&self) -> usize {
        self.runs.len()
    }

    /// The number of bytes that are translated.
    pub(crate) fn bytes(&self) -> u64 {
        self.runs.values().fold(0, |bytes, run| bytes.saturating_add(run.bytes()))
    }

    /// Adds a run, which must overlap no other, and keeps it apart from its neighbours.
    pub(crate) fn insert(&mut self, run: Run) {
        self.runs.insert(run.range.first(), run);
    }

    /// Leaves the first half of a run, in whole pages of `granule`, in the hardware only. A run of one page leaves
    /// nothing.
    pub(crate) fn leave_behind(&mut self, run: &Run, granule: PageSize) {
        let half = IovaRange::with_len(run.range.first(), granule.round_down(run.bytes() / 2)).ok();
        self.left_behind.extend(half.and_then(|half| run.part(half)));
    }

    /// Removes the whole run that begins at `first`.
    pub(crate) fn remove(&mut self, first: Iova) -> Option<Run> {
        self.runs.remove(&first)
    }

    /// Removes the entries that were left behind in `range`.
    pub(crate) fn sweep(&mut self, range: IovaRange) -> Vec<Run> {
        let left_behind = std::mem::take(&mut self.left_behind);
        self.left_behind = left_behind.iter().flat_map(|run| run.without(range)).collect();
        left_behind.iter().filter_map(|run| run.part(range)).collect()
    }

    /// Removes every byte of `range` that is translated, cutting runs at both ends.
    pub(crate) fn carve(&mut self, range: IovaRange) -> Vec<Run> {
        let firsts: Vec<_> = self.overlapping(range).map(|run| run.range.first()).collect();
        let touched = firsts.into_iter().filter_map(|first| self.runs.remove(&first)).collect::<Vec<_>>();
        for run in &touched {
            for rest in run.without(range) {
                self.insert(rest);
            }
        }
        touched.iter().filter_map(|run| run.part(range)).collect()
    }

    /// Writes a run over existing ones, joins it with its neighbours, and returns the parts that were replaced.
    pub(crate) fn put(&mut self, run: Run) -> Vec<Run> {
        let replaced = self.carve(run.range);
        let below = self.runs.range(..run.range.first()).next_back().and_then(|(_, below)| below.joined_with(&run));
        let mut joined = below.unwrap_or(run);
        if let Some(end) = joined.range.end() {
            if let Some(with_above) = self.runs.get(&end).and_then(|above| joined.joined_with(above)) {
                self.runs.remove(&end);
                joined = with_above;
            }
        }
        self.insert(joined);
        replaced
    }

    /// Removes every run.
    pub(crate) fn drain(&mut self) -> Vec<Run> {
        std::mem::take(&mut self.runs).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use dmaspace_core::HostAddress;
    use std::num::NonZeroU64;

    use proptest::prelude::any;

    use super::*;

    fn run(at: u64, host: u64, len: u64) -> Run {
        let memory =
            HostMemory::unbacked(HostAddress::new(host), NonZeroU64::new(len).expect("not empty")).expect("no wrap");
        Run::new(Iova::new(at), memory, Access::READ_WRITE, 0).expect("no wrap")
    }

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(first), Iova::new(last)).expect("a range of the test")
    }

    /// The host address that a device reaches.
    fn reached(table: &Table, at: u64) -> Option<u64> {
        table.reached_at(Iova::new(at)).map(|run| run.memory.address().get())
    }

    fn spans(table: &Table) -> Vec<(u64, u64, u64)> {
        table.iter().map(|run| (run.range.first().get(), run.range.last().get(), run.memory.address().get())).collect()
    }

    #[test]
    fn carve_cuts_a_run_at_both_ends_and_keeps_the_rest() {
        let mut table = Table::default();
        table.insert(run(0x1000, 0x10_1000, 0x4000));
        let carved = table.carve(range(0x2000, 0x3fff));
        assert_eq!(carved, [run(0x2000, 0x10_2000, 0x2000)]);
        assert_eq!(spans(&table), [(0x1000, 0x1fff, 0x10_1000), (0x4000, 0x4fff, 0x10_4000)]);
        assert_eq!(table.at(Iova::new(0x2000)), None);
    }

    #[test]
    fn carve_over_runs_and_gaps_removes_every_run() {
        let mut table = Table::default();
        table.insert(run(0, 0x10_0000, 0x1000));
        table.insert(run(0x8000, 0x20_0000, 0x1000));
        assert_eq!(table.carve(range(0, u64::MAX)).len(), 2);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn put_joins_a_run_with_contiguous_neighbours_on_both_sides() {
        let mut table = Table::default();
        assert_eq!(table.put(run(0x1000, 0x10_1000, 0x1000)), []);
        assert_eq!(table.put(run(0x3000, 0x10_3000, 0x1000)), []);
        assert_eq!(table.put(run(0x2000, 0x10_2000, 0x1000)), []);
        assert_eq!(spans(&table), [(0x1000, 0x3fff, 0x10_1000)]);
    }

    #[test]
    fn put_over_a_run_returns_the_replaced_part() {
        let mut table = Table::default();
        table.put(run(0x1000, 0x10_1000, 0x3000));
        assert_eq!(table.put(run(0x2000, 0x90_0000, 0x1000)), [run(0x2000, 0x10_2000, 0x1000)]);
        assert_eq!(spans(&table).len(), 3);
    }

    #[test]
    fn runs_adjacent_on_the_bus_but_not_in_memory_are_not_joined() {
        let mut table = Table::default();
        table.put(run(0x1000, 0x10_1000, 0x1000));
        table.put(run(0x2000, 0x90_0000, 0x1000));
        assert_eq!(table.len(), 2);
        assert_eq!(table.bytes(), 0x2000);
    }

    #[test]
    fn entries_left_behind_are_reached_first_until_they_are_swept() {
        let mut table = Table::default();
        table.leave_behind(&run(0x1000, 0x90_0000, 0x4000), PageSize::K4);
        table.insert(run(0x1000, 0x10_0000, 0x1000));
        assert_eq!(reached(&table, 0x1000), Some(0x90_0000));
        assert_eq!(table.at(Iova::new(0x2000)), None);
        assert_eq!(table.sweep(range(0x1000, 0x1fff)), [run(0x1000, 0x90_0000, 0x1000)]);
        assert_eq!(reached(&table, 0x1000), Some(0x10_0000));
        assert_eq!(reached(&table, 0x2000), Some(0x90_1000));
        assert_eq!(reached(&table, 0x3000), None);
    }

    #[test]
    fn the_last_page_below_2_to_the_64_can_be_translated() {
        let mut table = Table::default();
        table.put(run(u64::MAX - 0xfff, 0x10_0000, 0x1000));
        assert!(table.overlaps(range(u64::MAX, u64::MAX)));
        assert_eq!(table.carve(range(u64::MAX - 0xfff, u64::MAX)).len(), 1);
    }

    /// Pages of a naive table: page number to host page number, and rights.
    type Naive = BTreeMap<u64, (u64, Access)>;

    fn pages_of(table: &Table) -> Naive {
        let mut pages = Naive::new();
        for run in table.iter() {
            let (first, host) = (run.range.first().get() >> 12, run.memory.address().get() >> 12);
            pages.extend((0..run.bytes() >> 12).map(|n| (first + n, (host + n, run.access))));
        }
        pages
    }

    proptest::proptest! {
        #[test]
        fn put_and_carve_agree_with_a_page_by_page_table(
            steps in proptest::collection::vec(
                (0u64..64, 1u64..16, 0u64..64, any::<bool>(), any::<bool>()),
                0..if cfg!(miri) { 8 } else { 64 }
            )
        ) {
            let mut table = Table::default();
            let mut naive = Naive::new();
            for (at, pages, host, puts, writes) in steps {
                let access = if writes { Access::READ_WRITE } else { Access::READ };
                let removed = if puts {
                    let run = Run { access, ..run(at << 12, (host + 1) << 12, pages << 12) };
                    table.put(run)
                } else {
                    table.carve(range(at << 12, ((at + pages) << 12) - 1))
                };
                let before: u64 = (at..at + pages).filter(|page| naive.remove(page).is_some()).map(|_| 0x1000).sum();
                proptest::prop_assert_eq!(removed.iter().map(Run::bytes).sum::<u64>(), before);
                if puts {
                    naive.extend((0..pages).map(|n| (at + n, (host + 1 + n, access))));
                }
                proptest::prop_assert_eq!(&pages_of(&table), &naive);
            }
        }
    }
}
