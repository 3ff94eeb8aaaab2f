//! The verbs of the contract.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::backend::Backend;
use crate::contract::{
    Attachable, Description, ForListeners, MapBatch, MapRequest, Mapping, MappingModel, PciAddressSpace, Powers,
    Snapshot, Swap, WindowChange, sealed,
};
use crate::door::Failure;
use crate::error::{Error, Kind, Operation, Subject};
use crate::space::Space;
use crate::space::attachments::Attached;
use crate::space::batches::BatchMapper;
use crate::space::deferred::Deferred;
use crate::space::index::Placed;
use crate::space::layout::Slot;
use crate::space::mapper::Mapper;
use crate::space::straight::Straight;
use crate::words::access::Access;
use crate::words::address::{HostAddress, Iova, IovaRange};
use crate::words::memory::HostMemory;

impl<B: Backend> Space<B> {
    /// Maps any memory.
    #[inline(never)]
    fn map_any(&self, request: MapRequest<'_>) -> Result<(), Error> {
        let operation = Operation::Map;
        let placed = self.placed(operation, &request)?;
        let Placed { range, memory, unit, .. } = placed;
        let mut deferred = Deferred::default();
        let gate = self.enter(operation, range)?;
        self.fences.check(operation, range)?;
        let slot = gate.in_force.slot_for(operation, range, memory, unit)?;
        let _in_turn = slot.operations.lock();
        // Once more under the lock: the operation that held it before may have put up a fence.
        self.fences.check(operation, range)?;
        if let Some(live) = slot.live.read().overlap(range) {
            return Err(Error::new(operation, range, Kind::Overlap(live)));
        }
        self.registrations.check_cover(&self.backend, operation, range, memory)?;
        Mapper::of(self, operation).establish(placed, &mut deferred)?;
        slot.record(placed);
        Ok(())
    }

    /// The place of a request's memory, if the request makes sense by itself.
    fn placed<'r>(&self, operation: Operation, request: &MapRequest<'r>) -> Result<Placed<'r>, Error> {
        let (memory, access, unit) = (request.memory(), request.access(), request.unit());
        let range = range_of(operation, request.at(), memory)?;
        self.check_request(operation, range, memory, access)?;
        Ok(Placed { range, memory, access, unit })
    }

    /// Unmaps any range.
    #[inline(never)]
    fn unmap_any(&self, range: IovaRange) -> Result<u64, Error> {
        let operation = Operation::Unmap;
        let mut deferred = Deferred::default();
        let gate = self.enter(operation, range)?;
        let set = &gate.in_force;
        if let Some(slot) = set.slot_at(range.first()).filter(|slot| slot.window.range.covers(range)) {
            let _in_turn = slot.operations.lock();
            self.fences.check(operation, range)?;
            let Some(found) = slot.check_unmap(range)? else { return Ok(0) };
            return Mapper::of(self, operation).unmap_hull(&[slot], range, found, &mut deferred);
        }
        let slots: Vec<&Slot> = set.overlapping(range).collect();
        let _in_turn: Vec<_> = slots.iter().map(|slot| slot.operations.lock()).collect();
        self.fences.check(operation, range)?;
        for slot in &slots {
            slot.check_unmap(range)?;
        }
        self.unmap_windows(&slots, range, &mut deferred)
    }

    /// Unmaps a range of several windows. A kernel that keeps entries unmaps window by window; after a failure the
    /// windows before are mapped again.
    pub(super) fn unmap_windows(
        &self,
        slots: &[&Slot],
        range: IovaRange,
        deferred: &mut Deferred,
    ) -> Result<u64, Error> {
        let mapper = Mapper::of(self, Operation::Unmap);
        if self.keeps == MappingModel::Mappings {
            return mapper.unmap(slots, range, deferred);
        }
        let mut unmapped: Vec<(&Slot, Vec<Mapping>)> = Vec::new();
        let mut bytes = 0;
        for slot in slots {
            let live = slot.mappings(range);
            match mapper.unmap(&[slot], range, deferred) {
                Ok(more) => bytes += more,
                Err(error) => {
                    let mut lost = Vec::new();
                    for (slot, live) in &unmapped {
                        lost.extend(mapper.bring_back(slot, live, deferred));
                    }
                    return Err(error.fencing(lost));
                }
            }
            unmapped.push((slot, live));
        }
        Ok(bytes)
    }
}

/// The range that `memory` takes at `at`.
fn range_of(operation: Operation, at: Iova, memory: &HostMemory) -> Result<IovaRange, Error> {
    let len = memory.len().get();
    let range = IovaRange::with_len(at, len);
    range.map_err(|bad| Error::new(operation, Subject::Bounds(at, len), Kind::BadRange(bad)))
}

impl<B: Backend> sealed::Sealed for Space<B> {}

impl<B: Backend> ForListeners for Space<B> {
    fn fence(&self, range: IovaRange, memory: Option<HostMemory>, cause: Failure) {
        let _gate = self.gate.read();
        let set = self.layout.get();
        // A map that is under way comes before the fence, and a later one finds it.
        let _in_turn: Vec<_> = set.overlapping(range).map(|slot| slot.operations.lock()).collect();
        self.fences.put_up(self.backend.name(), range, cause, memory.into_iter().collect());
    }

    fn mapping_onto(&self, memory: &HostMemory) -> Option<IovaRange> {
        self.layout.get().onto(memory, IovaRange::all())
    }

    fn mapping_onto_in(&self, memory: &HostMemory, range: IovaRange) -> Option<IovaRange> {
        self.layout.get().onto(memory, range)
    }

    fn fence_onto(&self, memory: &HostMemory) -> Option<IovaRange> {
        self.fences.onto(memory, &self.layout.get().windows)
    }

    fn times_forgotten(&self) -> u64 {
        self.times_forgotten.load(Ordering::Acquire)
    }
}

impl<B: Backend> PciAddressSpace for Space<B> {
    fn describe(&self) -> Description {
        let mut description = Description::new(self.backend.name(), self.backend.capabilities());
        description.devices = self.attachments.names();
        description.reserved = self.attachments.reserved();
        description.fences = self.fences.all();
        description
    }

    fn windows(&self) -> Snapshot {
        self.layout.get().snapshot()
    }

    fn map(&self, request: MapRequest<'_>) -> Result<(), Error> {
        match Straight::of(self).map_page(&request) {
            Some(mapped) => mapped,
            None => self.map_any(request),
        }
    }

    fn map_batch(&self, batch: &MapBatch) -> Result<(), Error> {
        BatchMapper::of(self).map_parts(batch)
    }

    fn replace(&self, request: MapRequest<'_>) -> Result<Swap, Error> {
        let operation = Operation::Replace;
        let placed = self.placed(operation, &request)?;
        let Placed { range, memory, unit, .. } = placed;
        let mut deferred = Deferred::default();
        let gate = self.enter(operation, range)?;
        self.fences.check(operation, range)?;
        let slot = gate.in_force.slot_for(operation, range, memory, unit)?;
        let _in_turn = slot.operations.lock();
        self.fences.check(operation, range)?;
        let gap = slot.live.read().gap_in(range);
        if let Some(gap) = gap {
            return Err(Error::new(operation, range, Kind::NotLive(gap)));
        }
        let cut = slot.live.read().cut_by(range);
        if let Some(cut) = cut {
            return Err(Error::new(operation, range, Kind::CutsUnit(cut)));
        }
        self.registrations.check_cover(&self.backend, operation, range, memory)?;
        Mapper::of(self, operation).swap(slot, placed, &mut deferred)
    }

    fn unmap(&self, range: IovaRange) -> Result<u64, Error> {
        match Straight::of(self).unmap_page(range) {
            Some(unmapped) => unmapped,
            None => self.unmap_any(range),
        }
    }

    fn lookup(&self, at: Iova) -> Option<Mapping> {
        self.layout.read().slot_at(at)?.lookup(at)
    }

    fn translate(&self, at: Iova) -> Option<(HostAddress, Access)> {
        self.layout.read().slot_at(at)?.translate(at)
    }

    fn mappings(&self, range: IovaRange) -> Vec<Mapping> {
        self.layout.get().mappings(range)
    }

    fn powers(&self) -> Powers<'_> {
        self.powers_by_calls()
    }

    fn attach(&self, device: Arc<dyn Attachable>) -> Result<WindowChange, Error> {
        let attached = Attached::of(device);
        let mut deferred = Deferred::default();
        let _gate = self.enter_alone(Operation::Attach, attached.subject())?;
        self.attach_alone(&attached, &mut deferred)
    }

    fn detach(&self, device: &Arc<dyn Attachable>) -> Result<WindowChange, Error> {
        let operation = Operation::Detach;
        let name = device.name();
        let mut deferred = Deferred::default();
        let _gate = self.enter_alone(operation, Subject::Device(name.clone()))?;
        let attached = self.attachments.find(operation, device, &name)?;
        self.detach_alone(&attached, &mut deferred)
    }
}
