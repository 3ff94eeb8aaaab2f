//! Memory that is held, so that spaces of one host share what they pin of it.

use crate::backend::{Backend, SharingCalls};
use crate::contract::{PciAddressSpace, PinSharing};
use crate::door::Lease;
use crate::error::{Error, Kind, Operation, Subject};
use crate::space::{Space, read, write};
use crate::words::memory::HostMemory;

impl<B: Backend> Space<B> {
    fn calls_for_sharing(&self, operation: Operation, memory: &HostMemory) -> Result<&dyn SharingCalls, Error> {
        let none = Kind::Unsupported("this space shares no pins with others");
        let none = || Error::new(operation, Subject::Memory(memory.clone()), none);
        self.backend.sharing_calls().ok_or_else(none)
    }

    /// Whether others hold `memory` too: what mapping it pins depends on what they have mapped of it.
    pub(super) fn is_shared(&self, memory: &HostMemory) -> bool {
        self.backend.sharing_calls().is_some_and(|calls| calls.sharers(memory) > 1)
    }

    /// Lets go of everything, for good.
    pub(super) fn let_go_of_everything(&self) {
        let Some(calls) = self.backend.sharing_calls() else { return };
        std::mem::take(&mut *write(&self.held)).values().for_each(|memory| calls.stop_sharing(memory));
    }
}

impl<B: Backend> PinSharing for Space<B> {
    fn share_pins(&self, memory: &HostMemory) -> Result<(), Error> {
        let operation = Operation::SharePins;
        let fail = |kind| Error::new(operation, Subject::Memory(memory.clone()), kind);
        let calls = self.calls_for_sharing(operation, memory)?;
        let _gate = self.enter_alone(operation, memory.clone())?;
        self.check_block(memory, &read(&self.held), Kind::AlreadyShared).map_err(fail)?;
        let pinned = calls.share_pins(&Lease::kept_by_space(memory));
        pinned.map_err(|failure| Error::from_kernel(operation, memory.clone(), failure))?;
        write(&self.held).insert(memory.address(), memory.clone());
        Ok(())
    }

    fn stop_sharing(&self, memory: &HostMemory) -> Result<(), Error> {
        let operation = Operation::StopSharing;
        let fail = |kind| Error::new(operation, Subject::Memory(memory.clone()), kind);
        let calls = self.calls_for_sharing(operation, memory)?;
        let _gate = self.enter_alone(operation, memory.clone())?;
        if read(&self.held).get(&memory.address()) != Some(memory) {
            return Err(fail(Kind::NotShared));
        }
        if let Some(live) = self.mapping_onto(memory) {
            return Err(fail(Kind::InUse(live)));
        }
        calls.stop_sharing(memory);
        write(&self.held).remove(&memory.address());
        Ok(())
    }

    fn shared(&self) -> Vec<HostMemory> {
        read(&self.held).values().cloned().collect()
    }

    fn sharers(&self, memory: &HostMemory) -> usize {
        self.backend.sharing_calls().map_or(0, |calls| calls.sharers(memory))
    }
}
