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
use crate::words::address::IovaRange;
use crate::words::memory::HostMemory;

const OPERATION: Operation = Operation::Map;

/// The parts of a batch, each with its memory. One clone of a memory serves all of its parts, one after the other.
struct Parts<'a> {
    batch: &'a MapBatch,
    /// A clone of the memory that the batch has at this place, moved to the current part.
    current: Option<(usize, HostMemory)>,
}

impl<'a> Parts<'a> {
    fn of(batch: &'a MapBatch) -> Self {
        Self { batch, current: None }
    }

    /// The part with its memory.
    fn placed(&mut self, part: &BatchPart) -> Option<Placed<'_>> {
        let whole = self.batch.memory().get(part.memory)?;
        if self.current.as_ref().is_none_or(|(number, _)| *number != part.memory) {
            self.current = Some((part.memory, whole.clone()));
        }
        let (_, memory) = self.current.as_mut()?;
        // A part is as long as a part of memory, so it has a length.
        memory.move_in(whole, part.offset, part.range.len().unwrap_or(NonZeroU64::MAX));
        Some(Placed { range: part.range, memory, access: part.access, unit: self.batch.unit() })
    }
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
        let mut parts = Parts::of(batch);
        let mut checked = None;
        for part in batch.parts() {
            // Alike for all parts of one memory with one access.
            if checked != Some((part.memory, part.access)) {
                let Some(Placed { range, memory, access, .. }) = parts.placed(part) else { continue };
                self.space.check_request(OPERATION, range, memory, access)?;
                checked = Some((part.memory, part.access));
            }
        }
        let gate = self.space.enter(OPERATION, hull)?;
        let set = &gate.in_force;
        let slots: Vec<&Slot> = set.overlapping(hull).collect();
        let _in_turn: Vec<_> = slots.iter().map(|slot| slot.operations.lock()).collect();
        self.check_parts(set, &slots, hull, batch)?;
        let mapper = Mapper::of(self.space, OPERATION);
        for (made, part) in batch.parts().iter().enumerate() {
            let Some(placed) = parts.placed(part) else { continue };
            if let Err(error) = mapper.establish(placed, &mut deferred) {
                return Err(self.undo_parts(set, &slots, batch, made, error, &mut deferred));
            }
        }
        record(set, batch, batch.parts());
        Ok(())
    }

    /// Checks all parts, with the operations of their windows held.
    fn check_parts(&self, set: &WindowSet, slots: &[&Slot], hull: IovaRange, batch: &MapBatch) -> Result<(), Error> {
        let is_empty = slots.iter().all(|slot| slot.live.read().overlap(hull).is_none());
        let is_covered =
            batch.memory().iter().all(|memory| self.space.registrations.cover(&self.space.backend, memory));
        let has_fences = self.space.fences.any();
        let mut before: Option<IovaRange> = None;
        let mut parts = Parts::of(batch);
        for part in batch.parts() {
            let is_apart = before.is_none_or(|before| !before.overlaps(part.range));
            let is_fine = is_empty && is_covered && !has_fences && is_apart && self.fits_one(slots, batch, part);
            if !is_fine {
                self.check_part(set, before, parts.placed(part))?;
            }
            before = Some(part.range);
        }
        Ok(())
    }

    /// Returns `true` if a part lies in the one window of the batch, aligned as the window wants it.
    fn fits_one(&self, slots: &[&Slot], batch: &MapBatch, part: &BatchPart) -> bool {
        let ([slot], Unit::Pages(page)) = (slots, batch.unit()) else { return false };
        let memory = batch.memory().get(part.memory).map_or(0, |memory| memory.address().get());
        slot.window.range.covers(part.range)
            && slot.takes_pages(page, part.range.first(), memory.wrapping_add(part.offset))
            && part.range.is_aligned_to(page)
    }

    /// Checks one part by itself. `before` is the part before.
    fn check_part(&self, set: &WindowSet, before: Option<IovaRange>, placed: Option<Placed<'_>>) -> Result<(), Error> {
        let Some(Placed { range, memory, unit, .. }) = placed else { return Ok(()) };
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
        set: &WindowSet,
        slots: &[&Slot],
        batch: &MapBatch,
        made: usize,
        error: Error,
        deferred: &mut Deferred,
    ) -> Error {
        let parts = batch.parts().get(..made).unwrap_or_default();
        record(set, batch, parts);
        let mut lost = Vec::new();
        for stretch in parts.chunk_by(|part, next| part.range.touches(next.range)).rev() {
            let (Some(first), Some(last)) = (stretch.first(), stretch.last()) else { continue };
            let range = first.range.hull(last.range);
            let touched: Vec<&Slot> = slots.iter().copied().filter(|slot| slot.window.range.overlaps(range)).collect();
            if let Err(error) = self.space.unmap_windows(&touched, range, deferred) {
                lost.extend_from_slice(error.fenced());
            }
        }
        error.fencing(lost)
    }
}

/// Records parts that are mapped: all of those in one window at once.
fn record(set: &WindowSet, batch: &MapBatch, parts: &[BatchPart]) {
    let mut parts = parts;
    let mut placing = Parts::of(batch);
    while let Some(slot) = parts.first().and_then(|part| set.slot_at(part.range.first())) {
        let end = parts.partition_point(|part| slot.window.range.covers(part.range));
        let (inside, rest) = parts.split_at(end);
        debug_assert!(!inside.is_empty(), "a part lies in one window");
        if inside.is_empty() {
            return;
        }
        let mut live = slot.live.write();
        for part in inside {
            if let Some(placed) = placing.placed(part) {
                live.insert(placed);
            }
        }
        parts = rest;
    }
}
