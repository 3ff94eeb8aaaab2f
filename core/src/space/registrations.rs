//! Memory that is registered before it is mapped (preregistration, POWER).

use crate::backend::{Backend, RegistrationCalls};
use crate::door::{Failure, Lease};
use crate::error::{Error, Kind, Operation, Subject};
use crate::retry::{ATTEMPTS, Undone, until_gone};
use crate::space::blocks::{Blocks, Covered};
use crate::space::deferred::Deferred;
use crate::space::refused;
use crate::sync::{Mutex, Rank};
use crate::words::access::Access;
use crate::words::address::IovaRange;
use crate::words::memory::HostMemory;

/// The registrations of a space. The process-wide list beside them is the door's
/// ([`ProcessRegistrations`](crate::door::registrations::ProcessRegistrations)).
///
/// Its locks are [`Rank::Registering`] and [`Rank::Registered`] in the order of all locks ([`crate::sync`]).
#[derive(Debug)]
pub(super) struct Registrations {
    /// Held while memory is registered, which takes as long as its pages are many.
    in_turn: Mutex<()>,
    blocks: Blocks,
}

impl Registrations {
    pub(super) fn new() -> Self {
        Self { in_turn: Mutex::new(Rank::Registering, ()), blocks: Blocks::new(Rank::Registered) }
    }

    pub(super) fn all(&self) -> Vec<HostMemory> {
        self.blocks.all()
    }

    /// Waits for the registration that is under way.
    pub(super) fn wait_for_call(&self) {
        drop(self.in_turn.lock());
    }

    /// Registers `memory`. The gate is held.
    pub(super) fn register(
        &self,
        backend: &impl Backend,
        calls: &dyn RegistrationCalls,
        memory: &HostMemory,
    ) -> Result<(), Error> {
        let _in_turn = self.in_turn.lock();
        let refusal = |kind| Error::new(Operation::Register, Subject::Memory(memory.clone()), kind);
        self.blocks.check_fits(backend, memory, Kind::AlreadyRegistered).map_err(refusal)?;
        if memory.is_host_read_only() {
            return Err(refusal(Kind::HostReadOnly(Access::READ_WRITE)));
        }
        let Ok(called) = calls.runs().enter(memory, || register_surely(calls, memory)) else {
            return Err(refusal(Kind::AlreadyRegistered));
        };
        let wanted = memory.len().get();
        called.map_err(|failure| refused(backend, Operation::Register, memory.clone(), failure, wanted))?;
        self.blocks.add(memory);
        Ok(())
    }

    /// Checks that `memory` is exactly one registration.
    pub(super) fn check_has(&self, memory: &HostMemory) -> Result<(), Error> {
        if self.blocks.has(memory) {
            return Ok(());
        }
        Err(Error::new(Operation::Unregister, Subject::Memory(memory.clone()), Kind::NotRegistered))
    }

    /// Unregisters `memory`, which is one registration that nothing is mapped of. The gate is held exclusively.
    pub(super) fn unregister(
        &self,
        calls: &dyn RegistrationCalls,
        memory: &HostMemory,
        deferred: &mut Deferred,
    ) -> Result<(), Error> {
        let left = calls.runs().leave(memory, || until_gone(|| unregister(calls, memory)));
        left.map_err(|failure| Error::from_kernel(Operation::Unregister, Subject::Memory(memory.clone()), failure))?;
        if let Some(memory) = self.blocks.remove(memory) {
            deferred.release(memory);
        }
        Ok(())
    }

    /// Checks that a map of `memory` at `range` finds all of it registered, where the backend wants that. Adjacent
    /// registrations serve one map: the kernel looks each entry up by itself (linux:
    /// drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_build_v2).
    pub(super) fn check_cover(
        &self,
        backend: &impl Backend,
        operation: Operation,
        range: IovaRange,
        memory: &HostMemory,
    ) -> Result<(), Error> {
        if self.cover(backend, memory) {
            return Ok(());
        }
        Err(Error::new(operation, range, Kind::NotRegistered))
    }

    /// Returns whether all of `memory` is registered, or the backend wants no registration.
    pub(super) fn cover(&self, backend: &impl Backend, memory: &HostMemory) -> bool {
        backend.calls().registration.is_none() || self.blocks.cover(memory)
    }

    /// [`Registrations::cover`], with a note of the last change of the same window.
    #[inline(always)]
    pub(super) fn cover_again(&self, backend: &impl Backend, memory: &HostMemory, known: &mut Covered) -> bool {
        backend.calls().registration.is_none() || self.blocks.cover_again(memory, known)
    }

    /// Forgets all registrations, which the kernel has ended by itself.
    pub(super) fn forget(&self, backend: &impl Backend, deferred: &mut Deferred) {
        for memory in self.blocks.take_all() {
            if let Some(calls) = backend.calls().registration {
                calls.runs().forget(&memory);
            }
            deferred.release(memory);
        }
    }

    /// Unregisters everything, for a space that is dropped. Memory that the kernel does not unregister is kept for
    /// ever.
    pub(super) fn end(&self, backend: &impl Backend, deferred: &mut Deferred) {
        let Some(calls) = backend.calls().registration else { return };
        for memory in self.blocks.take_all() {
            let left = calls.runs().leave(&memory, || until_gone(|| unregister(calls, &memory)));
            let Err(failure) = left else {
                deferred.release(memory);
                continue;
            };
            calls.runs().forget(&memory);
            log::error!("{}: {memory} could not be unregistered: {failure}; it is kept", backend.name());
            std::mem::forget(memory);
        }
    }
}

/// Registers memory. A call that failed may have registered it all the same, and it would stay pinned: it is
/// unregistered again, and if it was registered the call is repeated.
fn register_surely(calls: &dyn RegistrationCalls, memory: &HostMemory) -> Result<(), Failure> {
    let mut result = Ok(());
    for _ in 0..ATTEMPTS {
        result = calls.register(&Lease::kept_by_space(memory));
        if result.is_ok() || !matches!(until_gone(|| unregister(calls, memory)), Ok(Undone::Done(()))) {
            break;
        }
    }
    result
}

fn unregister(calls: &dyn RegistrationCalls, memory: &HostMemory) -> Result<Undone, Failure> {
    calls.unregister(&Lease::kept_by_space(memory))
}
