//! The straight path: one page that is mapped or unmapped where nothing is unusual.
//!
//! It gives the result of the general path ([`super::verbs`]), which explains the rules, because each of its conditions
//! decides some of them:
//!
//! | condition | decides |
//! |---|---|
//! | this process owns the space, there is no fence, the kernel does not write the window's entries | fences, owners |
//! | the memory is ordinary, some access is asked for | the checks of the request |
//! | the range is one page of the unit, in one window, aligned as the window wants it | bounds, unit, one call |
//! | the page is the table's alone ([`place_of`](super::index::Index::place_of)) | overlap, cut units, hull |
//! | all of the memory is registered, where the backend wants that | the registration |
//! | an unmap is not tracked | the log |
//!
//! Where one of them does not hold nothing was done, and the general path is taken. A failed call goes on in the
//! general path's undo ([`Mapper`]). The test `core/tests/straight.rs` compares the answers, the calls and
//! the index of both paths.

use crate::backend::Backend;
use crate::contract::{MapRequest, Unit};
use crate::door::{Failure, Lease};
use crate::error::{Error, Operation};
use crate::space::deferred::{Deferred, LastOwner};
use crate::space::index::{Placed, len_of};
use crate::space::layout::Slot;
use crate::space::mapper::Mapper;
use crate::space::unmap_all::unmap_all;
use crate::space::{Ownership, Space};
use crate::words::address::IovaRange;
use crate::words::memory::HostMemory;

/// The straight path of a space.
pub(super) struct Straight<'a, B: Backend> {
    space: &'a Space<B>,
}

impl<'a, B: Backend> Straight<'a, B> {
    pub(super) fn of(space: &'a Space<B>) -> Self {
        Self { space }
    }

    /// Maps one page. `None` where a condition does not hold; nothing was done then.
    pub(super) fn map_page(&self, request: &MapRequest<'_>) -> Option<Result<(), Error>> {
        let (memory, access, unit) = (request.memory(), request.access(), request.unit());
        let Unit::Pages(page) = unit else { return None };
        if memory.len().get() != page.bytes() || access.is_empty() || !self.is_ordinary(memory) {
            return None;
        }
        let range = IovaRange::with_len(request.at(), page.bytes()).ok()?;
        // For a failure; dropped after the guards.
        let mut deferred: Option<Deferred> = None;
        let gate = self.space.gate.read();
        let slot = gate.in_force.slot_at(range.first())?;
        let is_taken = gate.owner == Ownership::Here
            && slot.window.range.covers(range)
            && slot.takes_pages(page, range.first(), memory.address().get());
        if !is_taken {
            return None;
        }
        let mut turn = slot.operations.lock();
        if self.space.fences.any() {
            return None;
        }
        let place = slot.live.read().place_of(range).filter(|place| !place.is_live())?;
        if !self.space.registrations.cover_again(&self.space.backend, memory, &mut turn.registered) {
            return None;
        }
        let placed = Placed { range, memory, access, unit };
        if let Err(failure) = self.space.backend.map(range, &Lease::kept_by_space(memory), access) {
            return Some(Err(self.undo_map(placed, failure, &mut deferred)));
        }
        let mut live = slot.live.write();
        if !live.insert_page(place, memory, access) {
            live.insert(placed);
        }
        Some(Ok(()))
    }

    /// Unmaps one page. `None` where a condition does not hold; nothing was done then.
    pub(super) fn unmap_page(&self, range: IovaRange) -> Option<Result<u64, Error>> {
        // Dropped after the guards; the first is for a failure.
        let (mut deferred, mut owner) = (None::<Deferred>, LastOwner::default());
        let gate = self.space.gate.read();
        let slot = gate.in_force.slot_at(range.first())?;
        let is_ours = gate.owner == Ownership::Here && slot.window.range.covers(range) && slot.writer.is_none();
        if !is_ours {
            return None;
        }
        let _in_turn = slot.operations.lock();
        if self.space.fences.any() || self.space.tracking.is_on() {
            return None;
        }
        let place = slot.live.read().place_of(range).filter(|place| place.is_live())?;
        let bytes = range.len()?.get();
        let unmapped = unmap_all(bytes, || self.space.backend.unmap(range));
        if let Err(failure) = unmapped {
            return Some(self.settle_unmap(slot, range, failure, &mut deferred));
        }
        owner.0 = slot.live.write().remove_page(place);
        Some(Ok(bytes))
    }

    /// The error of a map call that failed.
    #[cold]
    #[inline(never)]
    fn undo_map(&self, placed: Placed<'_>, failure: Failure, deferred: &mut Option<Deferred>) -> Error {
        let mapper = Mapper::of(self.space, Operation::Map);
        mapper.undo_one_map(placed, failure, deferred.get_or_insert_default())
    }

    /// The answer after unmap calls that failed.
    #[cold]
    #[inline(never)]
    fn settle_unmap(
        &self,
        slot: &Slot,
        page: IovaRange,
        failure: Failure,
        deferred: &mut Option<Deferred>,
    ) -> Result<u64, Error> {
        let (mapper, bytes) = (Mapper::of(self.space, Operation::Unmap), len_of(page));
        mapper.settle_unmap(&[slot], page, (page, bytes), Err(failure), deferred.get_or_insert_default())
    }

    fn is_ordinary(&self, memory: &HostMemory) -> bool {
        memory.is_ordinary() && !(memory.is_unbacked() && self.space.backend.is_real())
    }
}
