//! The kernel calls that map and unmap, with their undo.
//!
//! A call that failed may have done its work all the same, or a part of it. A failed map is unmapped in any case. A
//! failed unmap is retried until it succeeds or the kernel reports nothing mapped. A range that cannot be brought
//! back to a known state is fenced.

use crate::backend::Backend;
use crate::contract::{Mapping, MappingModel, Swap, Unit};
use crate::door::{Failure, Lease};
use crate::error::{Error, Operation};
use crate::retry::until_gone;
use crate::space::deferred::Deferred;
use crate::space::fences::Fences;
use crate::space::index::{Placed, len_of};
use crate::space::layout::{Slot, hull_over};
use crate::space::shared_pins::is_shared;
use crate::space::tracking::Tracking;
use crate::space::{Space, refused};
use crate::words::address::{Iova, IovaRange};
use crate::words::memory::HostMemory;
use crate::words::page::PageSize;

/// The parts of a space that a change of mappings needs, for one operation. The caller holds the `operations` of each
/// slot that it names, or the gate exclusively.
pub(super) struct Mapper<'a, B> {
    backend: &'a B,
    keeps: MappingModel,
    fences: &'a Fences,
    tracking: &'a Tracking,
    operation: Operation,
}

impl<'a, B: Backend> Mapper<'a, B> {
    pub(super) fn of(space: &'a Space<B>, operation: Operation) -> Self {
        let Space { backend, keeps, fences, tracking, .. } = space;
        Self { backend, keeps: *keeps, fences, tracking, operation }
    }

    /// Makes the map calls of a mapping. After an error nothing of it is mapped, or its range is fenced.
    #[inline]
    pub(super) fn establish(&self, wanted: Placed<'_>, deferred: &mut Deferred) -> Result<(), Error> {
        let Placed { range, memory, access, unit } = wanted;
        match call_size(self.keeps, unit) {
            // One unit is one call everywhere.
            Some(page) if page.bytes() != memory.len().get() => self.establish_units(wanted, page, deferred),
            _ => {
                let mapped = self.backend.map(range, &Lease::kept_by_space(memory), access);
                mapped.map_err(|failure| self.undo_one_map(wanted, failure, deferred))
            }
        }
    }

    /// Makes a map call for each unit of a mapping.
    #[inline(never)]
    fn establish_units(&self, wanted: Placed<'_>, page: PageSize, deferred: &mut Deferred) -> Result<(), Error> {
        let established = self.map_units(wanted, page);
        if established.is_err() {
            // It may have been mapped for a moment.
            self.tracking.report_mapping(wanted.memory, wanted.access, deferred);
        }
        established
    }

    fn map_units(&self, wanted: Placed<'_>, page: PageSize) -> Result<(), Error> {
        let Placed { range, memory, access, .. } = wanted;
        let mut made = None;
        for (part, piece) in units(range, memory, page) {
            let so_far = made.map_or(part, |made: IovaRange| made.hull(part));
            let mapped = self.backend.map(part, &Lease::kept_by_space(&piece), access);
            mapped.map_err(|failure| self.undo_map(wanted, so_far, part, failure))?;
            made = Some(so_far);
        }
        debug_assert_eq!(made, Some(range), "the map calls left out a part");
        Ok(())
    }

    /// The error of the one map call of `wanted`, which failed.
    #[cold]
    pub(super) fn undo_one_map(&self, wanted: Placed<'_>, failure: Failure, deferred: &mut Deferred) -> Error {
        let error = self.undo_map(wanted, wanted.range, wanted.range, failure);
        // It may have been mapped for a moment.
        self.tracking.report_mapping(wanted.memory, wanted.access, deferred);
        error
    }

    /// Unmaps everything that the map calls over `made` left, the last of which, over `part`, failed. Returns the
    /// error of the map.
    fn undo_map(&self, placed: Placed<'_>, made: IovaRange, part: IovaRange, failure: Failure) -> Error {
        let fenced = self.scrub(made, part, placed.memory, failure);
        let wanted = locked_by_mapping(self.backend, placed.memory);
        refused(self.backend, self.operation, placed.range, failure, wanted).fencing(fenced)
    }

    /// Unmaps the range `made`. Returns the range that is fenced with `memory`, because some of it may still be
    /// mapped.
    fn scrub(&self, made: IovaRange, part: IovaRange, memory: &HostMemory, cause: Failure) -> Option<IovaRange> {
        let (range, cause) = match until_gone(|| self.backend.unmap(made)) {
            Err(failure) => (made, failure),
            Ok(undone) => {
                let unmapped = undone.done().flatten();
                let everything = unmapped.is_some_and(|bytes| u128::from(bytes) == made.bytes());
                if everything || !self.backend.may_leave_entries(len_of(part), &cause) {
                    return None;
                }
                (part, cause)
            }
        };
        self.fence(range, cause, vec![memory.clone()]);
        Some(range)
    }

    /// Unmaps all live mappings in `range` of these windows by one call, and removes them from the index. Returns the
    /// number of their bytes. An unmap that fails leaves the range in an unknown state: it is fenced.
    pub(super) fn unmap(&self, slots: &[&Slot], range: IovaRange, deferred: &mut Deferred) -> Result<u64, Error> {
        match hull_over(slots, range) {
            Some(found) => self.unmap_hull(slots, range, found, deferred),
            None => Ok(0),
        }
    }

    /// Unmaps the live mappings of `range`, which `hull` holds and which have so many `bytes`, as
    /// [`Mapper::unmap`] does.
    pub(super) fn unmap_hull(
        &self,
        slots: &[&Slot],
        range: IovaRange,
        (hull, bytes): (IovaRange, u64),
        deferred: &mut Deferred,
    ) -> Result<u64, Error> {
        let unmapped = self.tracking.unmap(self.backend, slots, hull, bytes, deferred);
        self.settle_unmap(slots, range, (hull, bytes), unmapped, deferred)
    }

    /// Removes the mappings of `hull` from the index after the calls that unmapped them, which may have failed.
    pub(super) fn settle_unmap(
        &self,
        slots: &[&Slot],
        range: IovaRange,
        (hull, bytes): (IovaRange, u64),
        unmapped: Result<(), Failure>,
        deferred: &mut Deferred,
    ) -> Result<u64, Error> {
        if let Err(failure) = unmapped {
            let live = slots.iter().flat_map(|slot| slot.mappings(hull));
            self.fence(hull, failure, live.map(|mapping| mapping.memory).collect());
        }
        for slot in slots {
            slot.live.write().remove(hull, deferred);
        }
        match unmapped {
            Ok(()) => Ok(bytes),
            Err(failure) => Err(Error::from_kernel(self.operation, range, failure).fencing([hull])),
        }
    }

    /// Maps `mappings` again after the kernel lost them. Those that are in the index stay there meanwhile. Returns the
    /// ranges of the mappings that could not be, which are fenced.
    pub(super) fn bring_back(&self, slot: &Slot, mappings: &[Mapping], deferred: &mut Deferred) -> Vec<IovaRange> {
        let mut lost = Vec::new();
        for mapping in mappings {
            match self.establish_twice(mapping, deferred) {
                Ok(()) => slot.record_over(Placed::of(mapping), deferred),
                Err(error) => {
                    // It is not mapped. Without a fence the range could be used for something else unawares.
                    debug_assert!(error.failure().is_some(), "a map call failed without a failure");
                    if let Some(cause) = error.failure() {
                        self.fence(mapping.range, cause, vec![mapping.memory.clone()]);
                    }
                    slot.live.write().remove(mapping.range, deferred);
                    lost.push(mapping.range);
                }
            }
        }
        lost
    }

    /// Makes the map calls of a mapping, and once more after a failure that left no doubt.
    fn establish_twice(&self, mapping: &Mapping, deferred: &mut Deferred) -> Result<(), Error> {
        match self.establish(Placed::of(mapping), deferred) {
            Err(error) if error.fenced().is_empty() => self.establish(Placed::of(mapping), deferred),
            result => result,
        }
    }

    /// Maps `new` in the place of live units.
    pub(super) fn swap(&self, slot: &Slot, new: Placed<'_>, deferred: &mut Deferred) -> Result<Swap, Error> {
        let old = slot.mappings(new.range);
        let swap = match self.keeps {
            MappingModel::PageEntries => Swap::Seamless,
            MappingModel::Mappings => {
                self.unmap(&[slot], new.range, deferred)?;
                Swap::WithGap
            }
        };
        let established = self.establish(new, deferred);
        if swap == Swap::Seamless {
            for mapping in &old {
                self.tracking.report_mapping(&mapping.memory, mapping.access, deferred);
            }
        }
        if let Err(error) = established {
            return Err(self.undo_swap(slot, new.range, &old, error, deferred));
        }
        slot.record_over(new, deferred);
        Ok(swap)
    }

    /// Brings old mappings back after a failed swap. A kernel that keeps entries may have lost some of them, so all
    /// are mapped again.
    fn undo_swap(
        &self,
        slot: &Slot,
        range: IovaRange,
        old: &[Mapping],
        error: Error,
        deferred: &mut Deferred,
    ) -> Error {
        match error.failure() {
            // Nothing can be brought back beside a range in doubt.
            Some(cause) if !error.fenced().is_empty() => {
                self.fence(range, cause, old.iter().map(|mapping| mapping.memory.clone()).collect());
                slot.live.write().remove(range, deferred);
                error.fencing_only(vec![range])
            }
            _ => error.fencing(self.bring_back(slot, old, deferred)),
        }
    }

    fn fence(&self, range: IovaRange, cause: Failure, memory: Vec<HostMemory>) {
        self.fences.put_up(self.backend.name(), range, cause, memory);
    }
}

/// The size of each map call, or `None` for one call over everything.
pub(super) fn call_size(keeps: MappingModel, unit: Unit) -> Option<PageSize> {
    match (keeps, unit) {
        (MappingModel::Mappings, Unit::Pages(page)) => Some(page),
        (MappingModel::PageEntries, _) | (MappingModel::Mappings, Unit::Whole) => None,
    }
}

/// The bytes that mapping `memory` locks. `None` where another space may have pinned the memory.
///
/// Table entries lock nothing: the memory behind them was locked when it was registered, or all that a window could
/// show when it was created. Another device's memory is not the kernel's to lock (linux:
/// drivers/vfio/vfio_iommu_type1.c, is_invalid_reserved_pfn).
pub(super) fn locked_by_mapping(backend: &impl Backend, memory: &HostMemory) -> Option<u64> {
    if is_shared(backend, memory) {
        return None;
    }
    let locks = backend.capabilities().keeps == MappingModel::Mappings && !memory.is_device_memory();
    Some(if locks { memory.len().get() } else { 0 })
}

/// The units of a mapping, ascending: the range of each and its memory.
pub(super) fn units(
    range: IovaRange,
    memory: &HostMemory,
    page: PageSize,
) -> impl Iterator<Item = (IovaRange, HostMemory)> {
    debug_assert_eq!(range.bytes(), u128::from(memory.len().get()), "{range} and {memory} differ in length");
    let count = u64::try_from(range.bytes() >> page.shift()).unwrap_or(u64::MAX);
    (0..count).map_while(move |n| {
        let offset = n << page.shift();
        let first = range.first().get().checked_add(offset)?;
        let part = IovaRange::with_len(Iova::new(first), page.bytes()).ok()?;
        Some((part, memory.slice(offset, page.bytes())?))
    })
}
