//! Memory whose pins several spaces of one host share.

use crate::backend::{Backend, SharingCalls};
use crate::door::Lease;
use crate::error::{Error, Kind, Operation, Subject};
use crate::space::blocks::Blocks;
use crate::space::deferred::Deferred;
use crate::sync::Rank;
use crate::words::memory::HostMemory;

/// The memory whose pins a space shares. Its lock is [`Rank::SharedPins`] in the order of all locks
/// ([`crate::sync`]).
#[derive(Debug)]
pub(super) struct SharedPins {
    blocks: Blocks,
}

impl SharedPins {
    pub(super) fn new() -> Self {
        Self { blocks: Blocks::new(Rank::SharedPins) }
    }

    pub(super) fn all(&self) -> Vec<HostMemory> {
        self.blocks.all()
    }

    /// Shares the pins of `memory`. The gate is held exclusively.
    pub(super) fn share(
        &self,
        backend: &impl Backend,
        calls: &dyn SharingCalls,
        memory: &HostMemory,
    ) -> Result<(), Error> {
        let operation = Operation::SharePins;
        let fits = self.blocks.check_fits(backend, memory, Kind::AlreadyShared);
        fits.map_err(|kind| Error::new(operation, Subject::Memory(memory.clone()), kind))?;
        let shared = calls.share_pins(&Lease::kept_by_space(memory));
        shared.map_err(|failure| Error::from_kernel(operation, Subject::Memory(memory.clone()), failure))?;
        self.blocks.add(memory);
        Ok(())
    }

    /// Checks that `memory` is exactly one block whose pins are shared.
    pub(super) fn check_has(&self, memory: &HostMemory) -> Result<(), Error> {
        if self.blocks.has(memory) {
            return Ok(());
        }
        Err(Error::new(Operation::StopSharing, Subject::Memory(memory.clone()), Kind::NotShared))
    }

    /// Stops sharing the pins of `memory`. The gate is held exclusively.
    pub(super) fn stop(&self, calls: &dyn SharingCalls, memory: &HostMemory, deferred: &mut Deferred) {
        calls.stop_sharing(memory);
        if let Some(memory) = self.blocks.remove(memory) {
            deferred.release(memory);
        }
    }

    /// Stops sharing everything, for a space that is dropped.
    pub(super) fn end(&self, backend: &impl Backend, deferred: &mut Deferred) {
        let Some(calls) = backend.calls().pin_sharing else { return };
        for memory in self.blocks.take_all() {
            calls.stop_sharing(&memory);
            deferred.release(memory);
        }
    }

    /// Returns whether another space shares some of the memory too.
    pub(super) fn any_is_shared(&self, backend: &impl Backend) -> bool {
        self.blocks.all().iter().any(|memory| is_shared(backend, memory))
    }
}

/// Returns whether another space shares the pins of `memory` too: the pins that a map makes then depend on the
/// mappings of that space.
pub(super) fn is_shared(backend: &impl Backend, memory: &HostMemory) -> bool {
    backend.calls().pin_sharing.is_some_and(|calls| calls.sharers(memory) > 1)
}
