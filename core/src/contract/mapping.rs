//! Mappings: memory that devices find at bus addresses.

use crate::words::access::Access;
use crate::words::address::{BadRange, Iova, IovaRange};
use crate::words::memory::HostMemory;
use crate::words::page::PageSize;

/// The smallest part of a mapping that can be unmapped by itself.
///
/// Exhaustive: the index of a space handles each form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// The mapping is unmapped as a whole, which lets every kernel make it in one call.
    Whole,
    /// Any run of pages of this size may be unmapped later. type1 and iommufd need one call a page for that; sPAPR does
    /// not.
    Pages(PageSize),
}

/// One live mapping, or a run of units that continue each other.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mapping {
    /// The bus addresses.
    pub range: IovaRange,
    /// The memory behind them, byte for byte.
    pub memory: HostMemory,
    /// The access that devices have.
    pub access: Access,
    /// The parts in which it may be unmapped.
    pub unit: Unit,
}

impl Mapping {
    /// A mapping of `memory` at `range`, which are of one size.
    pub fn new(range: IovaRange, memory: HostMemory, access: Access, unit: Unit) -> Self {
        debug_assert_eq!(range.bytes(), u128::from(memory.len().get()), "a mapping is as long as its memory");
        Self { range, memory, access, unit }
    }
}

/// A request to map memory, or to replace the memory behind live units.
#[derive(Clone, Copy, Debug)]
pub struct MapRequest<'a> {
    at: Iova,
    memory: &'a HostMemory,
    access: Access,
    unit: Unit,
}

impl<'a> MapRequest<'a> {
    /// Asks for all of `memory` at `at`, to be unmapped as a whole.
    pub fn new(at: Iova, memory: &'a HostMemory, access: Access) -> Self {
        Self { at, memory, access, unit: Unit::Whole }
    }

    /// The same request, to be unmapped in parts of `unit`.
    #[must_use]
    pub fn with_unit(self, unit: Unit) -> Self {
        Self { unit, ..self }
    }

    /// The first bus address.
    pub fn at(&self) -> Iova {
        self.at
    }

    /// The memory.
    pub fn memory(&self) -> &'a HostMemory {
        self.memory
    }

    /// The access that devices get.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The parts in which it may be unmapped later.
    pub fn unit(&self) -> Unit {
        self.unit
    }
}

/// Requests to map parts of memory at several places, ascending: [`PciAddressSpace::map_batch`] maps all of them or
/// none.
///
/// [`PciAddressSpace::map_batch`]: crate::contract::PciAddressSpace::map_batch
#[derive(Clone, Debug)]
pub struct MapBatch {
    unit: Unit,
    memory: Vec<HostMemory>,
    parts: Vec<BatchPart>,
    /// Set while all parts are of one memory and have one access.
    is_alike: bool,
}

/// One request of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchPart {
    pub(crate) range: IovaRange,
    /// The place of the memory in the batch's list, and the part's first byte in it.
    pub(crate) memory: usize,
    pub(crate) offset: u64,
    pub(crate) access: Access,
}

impl MapBatch {
    /// An empty batch, whose mappings can be unmapped in parts of `unit`.
    pub fn new(unit: Unit) -> Self {
        Self { unit, memory: Vec::new(), parts: Vec::new(), is_alike: true }
    }

    /// Empties the batch for other mappings, and keeps its room.
    pub fn restart(&mut self, unit: Unit) {
        self.unit = unit;
        self.memory.clear();
        self.parts.clear();
        self.is_alike = true;
    }

    /// Sets the memory of which the parts that are added next are.
    pub fn set_memory(&mut self, memory: &HostMemory) {
        self.memory.push(memory.clone());
    }

    /// Asks for the bytes of the memory from `offset` on at `range`. A part that continues the part before on the bus
    /// and in the memory, with the same access, is one with it.
    ///
    /// # Errors
    /// [`BadRange::Empty`] before a memory was set, [`BadRange::Overflow`] when the memory has less bytes. The batch is
    /// as before then.
    #[inline(always)]
    pub fn add(&mut self, range: IovaRange, offset: u64, access: Access) -> Result<(), BadRange> {
        let len = self.memory.last().ok_or(BadRange::Empty)?.len().get();
        let reach = range.last().get() - range.first().get();
        if reach >= len || offset >= len - reach {
            return Err(BadRange::Overflow);
        }
        let part = BatchPart { range, memory: self.memory.len() - 1, offset, access };
        match self.parts.last_mut() {
            Some(last) if last.continues_to(&part) => last.range = last.range.hull(range),
            Some(last) if range.first() >= last.range.first() => {
                self.is_alike &= last.is_like(&part);
                self.parts.push(part);
            }
            _ => self.insert(part),
        }
        Ok(())
    }

    /// Adds the first part, or one that does not follow the others.
    #[inline(never)]
    fn insert(&mut self, part: BatchPart) {
        self.is_alike &= self.parts.last().is_none_or(|last| last.is_like(&part));
        let place = self.parts.partition_point(|known| known.range.first() <= part.range.first());
        self.parts.insert(place, part);
    }

    /// Returns `true` if nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The ranges that are asked for, ascending, those that continue each other in the memory as one.
    pub fn ranges(&self) -> impl DoubleEndedIterator<Item = IovaRange> {
        self.parts.iter().map(|part| part.range)
    }

    /// The smallest range around all parts.
    pub(crate) fn hull(&self) -> Option<IovaRange> {
        // Parts may overlap, until the batch is refused for it.
        self.ranges().reduce(IovaRange::hull)
    }

    pub(crate) fn unit(&self) -> Unit {
        self.unit
    }

    pub(crate) fn memory(&self) -> &[HostMemory] {
        &self.memory
    }

    pub(crate) fn parts(&self) -> &[BatchPart] {
        &self.parts
    }

    /// Some of the batch's parts in stretches of one memory and with one access, each with its memory.
    pub(crate) fn stretches<'b>(
        &'b self,
        parts: &'b [BatchPart],
    ) -> impl Iterator<Item = (&'b HostMemory, &'b [BatchPart])> {
        let mut rest = parts;
        std::iter::from_fn(move || {
            let first = rest.first()?;
            let other = if self.is_alike { None } else { rest.iter().position(|part| !part.is_like(first)) };
            let (stretch, behind) = rest.split_at(other.unwrap_or(rest.len()));
            rest = behind;
            Some((self.memory.get(first.memory)?, stretch))
        })
    }
}

impl BatchPart {
    fn is_like(&self, other: &Self) -> bool {
        self.memory == other.memory && self.access == other.access
    }

    fn continues_to(&self, next: &Self) -> bool {
        // The offset first, since it tells most parts apart.
        let distance = next.range.first().get().wrapping_sub(self.range.first().get());
        next.offset.wrapping_sub(self.offset) == distance && self.range.touches(next.range) && self.is_like(next)
    }
}

/// Tells whether devices could miss a mapping while it was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Swap {
    /// The kernel swapped entry by entry.
    Seamless,
    /// The old memory was unmapped before the new memory was mapped: for a moment devices found nothing.
    WithGap,
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::words::address::HostAddress;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(first), Iova::new(last)).expect("a range of the test")
    }

    fn batch() -> MapBatch {
        let len = NonZeroU64::new(0x4000).expect("not zero");
        let memory = HostMemory::unbacked(HostAddress::new(0x7000_0000), len).expect("no wrap");
        let mut batch = MapBatch::new(Unit::Pages(PageSize::K4));
        batch.set_memory(&memory);
        batch
    }

    #[test]
    fn parts_that_continue_each_other_are_one_and_others_are_in_order() {
        let mut batch = batch();
        batch.add(range(0x5000, 0x5fff), 0, Access::READ).expect("inside");
        batch.add(range(0x6000, 0x6fff), 0x1000, Access::READ).expect("inside");
        batch.add(range(0x7000, 0x7fff), 0x2000, Access::READ_WRITE).expect("inside");
        batch.add(range(0x1000, 0x1fff), 0x3000, Access::READ).expect("inside");
        let ranges: Vec<_> = batch.ranges().collect();
        assert_eq!(ranges, [range(0x1000, 0x1fff), range(0x5000, 0x6fff), range(0x7000, 0x7fff)]);
        assert_eq!(batch.hull(), Some(range(0x1000, 0x7fff)));
    }

    #[test]
    fn stretches_are_of_one_memory_and_have_one_access() {
        let lengths = |batch: &MapBatch| -> Vec<_> {
            let stretches = batch.stretches(batch.parts());
            stretches.map(|(memory, parts)| (memory.address().get(), parts.len())).collect()
        };
        let mut batch = batch();
        assert_eq!(lengths(&batch), []);
        batch.add(range(0x2000, 0x2fff), 0x1000, Access::READ).expect("inside");
        batch.add(range(0x5000, 0x5fff), 0, Access::READ).expect("inside");
        assert_eq!(lengths(&batch), [(0x7000_0000, 2)]);
        batch.add(range(0x1000, 0x1fff), 0, Access::READ_WRITE).expect("inside");
        assert_eq!(lengths(&batch), [(0x7000_0000, 1), (0x7000_0000, 2)]);
        let len = NonZeroU64::new(0x1000).expect("not zero");
        batch.set_memory(&HostMemory::unbacked(HostAddress::new(0x8000_0000), len).expect("no wrap"));
        batch.add(range(0x6000, 0x6fff), 0, Access::READ).expect("inside");
        assert_eq!(lengths(&batch), [(0x7000_0000, 1), (0x7000_0000, 2), (0x8000_0000, 1)]);
        batch.restart(Unit::Whole);
        assert_eq!((lengths(&batch), batch.is_empty(), batch.hull()), (Vec::new(), true, None));
    }

    #[test]
    fn parts_of_no_memory_or_past_its_end_are_refused() {
        let mut none = MapBatch::new(Unit::Whole);
        assert_eq!(none.add(range(0, 0xfff), 0, Access::READ), Err(BadRange::Empty));
        let mut batch = batch();
        assert_eq!(batch.add(range(0, 0xfff), 0x3001, Access::READ), Err(BadRange::Overflow));
        assert_eq!(batch.add(range(0, 0xfff), u64::MAX, Access::READ), Err(BadRange::Overflow));
        assert_eq!(batch.add(IovaRange::all(), 0, Access::READ), Err(BadRange::Overflow));
        assert!(batch.is_empty());
        assert_eq!(batch.add(range(0, 0x3fff), 0, Access::READ), Ok(()));
    }
}
