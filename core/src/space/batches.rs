//! Mapping many parts at once.

use std::num::NonZeroU64;

use crate::backend::Backend;
use crate::contract::{BatchPart, MapBatch, Unit};
use crate::error::{Error, Kind, Operation};
use crate::space::Space;
use crate::space::deferred::Deferred;
use crate::space::index::Placed;
use crate::space::layout::{Slot, WindowSet};
use crate::space::mapper::Mapper;
use crate::words::address::{Iova, IovaRange};
use crate::words::memory::HostMemory;
use crate::words::page::PageSize;
use crate::words::window::Window;

const OPERATION: Operation = Operation::Map;

/// The windows of a batch, whose operations are held.
struct Place<'a> {
    set: &'a WindowSet,
    /// The one that has all of the batch, if one has.
    only: Option<&'a Slot>,
    hull: IovaRange,
}

/// The mapping of batches in a space.
pub(super) struct BatchMapper<'a, B: Backend> {
    space: &'a Space<B>,
}

impl<'a, B: Backend> BatchMapper<'a, B> {
    pub(super) fn of(space: &'a Space<B>) -> Self {
        Self { space }
    }

    /// Maps all parts of a batch, or none.
    pub(super) fn map_parts(&self, batch: &MapBatch) -> Result<(), Error> {
        let Some(hull) = batch.hull() else { return Ok(()) };
        let mut deferred = Deferred::default();
        // Checked once for all parts of one memory with one access.
        for (memory, parts) in batch.stretches(batch.parts()) {
            let Some(first) = parts.first() else { continue };
            self.space.check_request(OPERATION, first.range, memory, first.access)?;
        }
        let gate = self.space.enter(OPERATION, hull)?;
        let set = &*gate.in_force;
        match set.slot_at(hull.first()).filter(|slot| slot.window.range.covers(hull)) {
            Some(slot) => {
                let _in_turn = slot.operations.lock();
                self.map_in(&Place { set, only: Some(slot), hull }, batch, &mut deferred)
            }
            None => {
                let _in_turn: Vec<_> = set.overlapping(hull).map(|slot| slot.operations.lock()).collect();
                self.map_in(&Place { set, only: None, hull }, batch, &mut deferred)
            }
        }
    }

    fn map_in(&self, place: &Place<'_>, batch: &MapBatch, deferred: &mut Deferred) -> Result<(), Error> {
        self.check_parts(place, batch)?;
        let mapper = Mapper::of(self.space, OPERATION);
        let mut made = 0;
        for (whole, parts) in batch.stretches(batch.parts()) {
            // One clone serves all of them, one after the other.
            let mut memory = whole.clone();
            for part in parts {
                let placed = placed(batch, part, whole, &mut memory);
                if let Err(error) = mapper.establish(placed, deferred) {
                    return Err(self.undo_parts(place, batch, made, error, deferred));
                }
                made += 1;
            }
        }
        record(place.set, batch, batch.parts());
        Ok(())
    }

    /// Checks all parts.
    fn check_parts(&self, place: &Place<'_>, batch: &MapBatch) -> Result<(), Error> {
        let fitting = self.fitting(place, batch);
        let mut before: Option<IovaRange> = None;
        for (whole, parts) in batch.stretches(batch.parts()) {
            let mut memory = None;
            for part in parts {
                let is_apart = before.is_none_or(|before| before.last() < part.range.first());
                let address = whole.address().get().wrapping_add(part.offset);
                if !is_apart || !fitting.as_ref().is_some_and(|fitting| fitting.takes(part.range, address)) {
                    let memory = memory.get_or_insert_with(|| whole.clone());
                    self.check_part(place.set, before, placed(batch, part, whole, memory))?;
                }
                before = Some(part.range);
            }
        }
        Ok(())
    }

    /// The condition under which a part of the batch needs no check by itself: everything is in one window that has
    /// nothing there, registered, and not near a fence.
    fn fitting(&self, place: &Place<'_>, batch: &MapBatch) -> Option<Fitting> {
        let (Some(slot), Unit::Pages(page)) = (place.only, batch.unit()) else { return None };
        let is_covered = |memory| self.space.registrations.cover(&self.space.backend, memory);
        let is_free = !self.space.fences.any()
            && slot.takes_pages(page, Iova::new(0), 0)
            && slot.live.read().overlap(place.hull).is_none()
            && batch.memory().iter().all(is_covered);
        if is_free { Some(Fitting { window: slot.window, page }) } else { None }
    }

    /// Checks one part by itself. `before` is the part before.
    fn check_part(&self, set: &WindowSet, before: Option<IovaRange>, placed: Placed<'_>) -> Result<(), Error> {
        let Placed { range, memory, unit, .. } = placed;
        self.space.fences.check(OPERATION, range)?;
        let slot = set.slot_for(OPERATION, range, memory, unit)?;
        let live = slot.live.read().overlap(range);
        if let Some(there) = live.or(before.filter(|before| before.overlaps(range))) {
            return Err(Error::new(OPERATION, range, Kind::Overlap(there)));
        }
        self.space.registrations.check_cover(&self.space.backend, OPERATION, range, memory)
    }

    /// Unmaps the first `made` parts after the next has failed with `error`: those that touch each other in one call.
    fn undo_parts(
        &self,
        place: &Place<'_>,
        batch: &MapBatch,
        made: usize,
        error: Error,
        deferred: &mut Deferred,
    ) -> Error {
        let parts = batch.parts().get(..made).unwrap_or_default();
        record(place.set, batch, parts);
        let mut lost = Vec::new();
        for stretch in parts.chunk_by(|part, next| part.range.touches(next.range)).rev() {
            let (Some(first), Some(last)) = (stretch.first(), stretch.last()) else { continue };
            let range = first.range.hull(last.range);
            let touched: Vec<&Slot> = place.set.overlapping(range).collect();
            if let Err(error) = self.space.unmap_windows(&touched, range, deferred) {
                lost.extend_from_slice(error.fenced());
            }
        }
        error.fencing(lost)
    }
}

/// A window that takes pages of a batch.
struct Fitting {
    window: Window,
    page: PageSize,
}

impl Fitting {
    /// Returns `true` if the window takes pages at `range`, with memory at `address`.
    fn takes(&self, range: IovaRange, address: u64) -> bool {
        self.window.range.covers(range) && range.is_aligned_to(self.page) && self.window.granule().divides(address)
    }
}

/// A part with `memory`, which is a clone of `whole` and is moved to it.
fn placed<'m>(batch: &MapBatch, part: &BatchPart, whole: &HostMemory, memory: &'m mut HostMemory) -> Placed<'m> {
    // A part is as long as a part of memory, so it has a length.
    memory.move_in(whole, part.offset, part.range.len().unwrap_or(NonZeroU64::MAX));
    Placed { range: part.range, memory, access: part.access, unit: batch.unit() }
}

/// Records parts that are mapped: all of those in one window at once.
fn record(set: &WindowSet, batch: &MapBatch, parts: &[BatchPart]) {
    let mut parts = parts;
    while let Some(slot) = parts.first().and_then(|part| set.slot_at(part.range.first())) {
        let end = parts.partition_point(|part| slot.window.range.covers(part.range));
        let (inside, rest) = parts.split_at(end);
        debug_assert!(!inside.is_empty(), "a part lies in one window");
        if inside.is_empty() {
            return;
        }
        let mut live = slot.live.write();
        for (memory, parts) in batch.stretches(inside) {
            if let Some(first) = parts.first() {
                live.insert_parts(memory, first.access, batch.unit(), parts);
            }
        }
        parts = rest;
    }
}
