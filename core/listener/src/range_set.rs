//! A set of ranges, for the populated blocks of a section: disjoint, neighbours joined, so that the cost is
//! proportional to the runs.

use std::collections::BTreeMap;

use dmaspace_core::words::address::{Iova, IovaRange};

/// Ranges that are disjoint and do not touch, by first byte.
#[derive(Clone, Debug, Default)]
pub(super) struct RangeSet {
    runs: BTreeMap<Iova, IovaRange>,
}

impl RangeSet {
    /// Adds all of `range`.
    pub(super) fn insert(&mut self, range: IovaRange) {
        let mut hull = range;
        while let Some(near) = self.joining(hull) {
            self.runs.remove(&near.first());
            hull = hull.hull(near);
        }
        self.runs.insert(hull.first(), hull);
    }

    /// Removes all of `range`.
    pub(super) fn remove(&mut self, range: IovaRange) {
        let cut: Vec<_> = self.touched_by(range).collect();
        for run in cut {
            self.runs.remove(&run.first());
            let (below, above) = run.without(range);
            self.runs.extend([below, above].into_iter().flatten().map(|rest| (rest.first(), rest)));
        }
    }

    /// The parts of `range` in the set, ascending.
    pub(super) fn within(&self, range: IovaRange) -> Vec<IovaRange> {
        self.touched_by(range).filter_map(|run| run.intersection(range)).collect()
    }

    /// The parts of `range` outside the set, ascending.
    pub(super) fn missing_in(&self, range: IovaRange) -> Vec<IovaRange> {
        let mut rest = Some(range);
        let mut out = Vec::new();
        for run in self.touched_by(range) {
            let Some(current) = rest else { break };
            let (below, above) = current.without(run);
            out.extend(below);
            rest = above;
        }
        out.extend(rest);
        out
    }

    /// A run that shares bytes with `range`, or touches it.
    fn joining(&self, range: IovaRange) -> Option<IovaRange> {
        let after = range.end().and_then(|end| self.runs.get(&end).copied());
        let near = self.runs.range(..=range.last()).next_back().map(|(_, run)| *run);
        near.filter(|run| run.overlaps(range) || run.touches(range)).or(after)
    }

    fn touched_by(&self, range: IovaRange) -> impl Iterator<Item = IovaRange> {
        let reaching_in = self.runs.range(..range.first()).next_back().filter(move |(_, run)| run.overlaps(range));
        reaching_in.into_iter().chain(self.runs.range(range.first()..=range.last())).map(|(_, run)| *run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(first), Iova::new(last)).expect("a range of the test")
    }

    fn blocks(ranges: &[(u64, u64)]) -> RangeSet {
        let mut blocks = RangeSet::default();
        for (first, last) in ranges {
            blocks.insert(range(*first, *last));
        }
        blocks
    }

    fn all(blocks: &RangeSet) -> Vec<IovaRange> {
        blocks.within(IovaRange::all())
    }

    #[test]
    fn neighbours_join_in_any_order() {
        assert_eq!(all(&blocks(&[(0x20, 0x2f), (0, 0xf), (0x10, 0x1f)])), [range(0, 0x2f)]);
        assert_eq!(all(&blocks(&[(0, 0xf), (0x20, 0x2f)])), [range(0, 0xf), range(0x20, 0x2f)]);
    }

    #[test]
    fn a_range_that_is_in_already_can_be_added_again() {
        assert_eq!(all(&blocks(&[(0x10, 0x4f), (0x20, 0x2f)])), [range(0x10, 0x4f)]);
        assert_eq!(all(&blocks(&[(0x20, 0x2f), (0x40, 0x4f), (0x10, 0x5f)])), [range(0x10, 0x5f)]);
    }

    #[test]
    fn removing_the_middle_leaves_both_ends() {
        let mut left = blocks(&[(0, 0x4f), (0x60, 0x6f)]);
        left.remove(range(0x10, 0x1f));
        assert_eq!(all(&left), [range(0, 0xf), range(0x20, 0x4f), range(0x60, 0x6f)]);
        left.remove(range(0x8, 0x67));
        assert_eq!(all(&left), [range(0, 0x7), range(0x68, 0x6f)]);
        left.remove(IovaRange::all());
        assert_eq!(all(&left), []);
    }

    #[test]
    fn missing_parts_are_found_before_between_and_after() {
        let some = blocks(&[(0x10, 0x1f), (0x30, 0x3f)]);
        assert_eq!(some.missing_in(range(0, 0x4f)), [range(0, 0xf), range(0x20, 0x2f), range(0x40, 0x4f)]);
        assert_eq!(some.missing_in(range(0x14, 0x1b)), []);
        assert_eq!(some.missing_in(range(0x18, 0x33)), [range(0x20, 0x2f)]);
        assert_eq!(some.within(range(0x18, 0x33)), [range(0x18, 0x1f), range(0x30, 0x33)]);
    }

    #[test]
    fn the_last_byte_of_all_can_come_and_go() {
        let mut top = blocks(&[(u64::MAX - 0xf, u64::MAX)]);
        assert_eq!(top.missing_in(IovaRange::all()), [range(0, u64::MAX - 0x10)]);
        top.remove(range(u64::MAX, u64::MAX));
        assert_eq!(all(&top), [range(u64::MAX - 0xf, u64::MAX - 1)]);
    }
}
