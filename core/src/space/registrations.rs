//! Memory that is registered before it is mapped.

use std::collections::BTreeMap;

use crate::backend::{Backend, RegistrationCalls};
use crate::contract::{MemoryRegistration, PciAddressSpace};
use crate::door::Failure;
use crate::door::Lease;
use crate::door::registrations::ProcessRegistrations;
use crate::error::{Error, Kind, Operation, Subject};
use crate::retry::{ATTEMPTS, Undone, until_gone};
use crate::space::{Space, read, write};
use crate::words::access::Access;
use crate::words::address::IovaRange;
use crate::words::memory::HostMemory;

impl<B: Backend> Space<B> {
    fn calls_for_registration(
        &self,
        operation: Operation,
        memory: &HostMemory,
    ) -> Result<&dyn RegistrationCalls, Error> {
        let none = Kind::Unsupported("this host maps without registration");
        let none = || Error::new(operation, Subject::Memory(memory.clone()), none);
        self.backend.registration_calls().ok_or_else(none)
    }

    /// What memory must be like to be handed over in one block, beside the blocks there are.
    pub(super) fn check_block(
        &self,
        memory: &HostMemory,
        known: &BTreeMap<u64, HostMemory>,
        already: Kind,
    ) -> Result<(), Kind> {
        let page = self.backend.powers().host_page;
        let below = known.range(..=memory.last()).next_back();
        if memory.is_unbacked() && self.backend.is_real() {
            Err(Kind::Unbacked)
        } else if memory.is_device_memory() {
            Err(Kind::DeviceMemory)
        } else if !page.divides(memory.address()) || !page.divides(memory.len().get()) {
            Err(Kind::Misaligned(page))
        } else if below.is_some_and(|(_, below)| below.last() >= memory.address()) {
            Err(already)
        } else {
            Ok(())
        }
    }

    pub(super) fn check_registered(
        &self,
        operation: Operation,
        range: IovaRange,
        memory: &HostMemory,
    ) -> Result<(), Error> {
        if self.backend.registration_calls().is_none() {
            return Ok(());
        }
        // Neighbouring registrations serve one map: the kernel looks each entry up by itself (linux: tce_iommu_build_v2).
        let registered = read(&self.registered);
        let mut next = memory.address();
        while next <= memory.last() {
            let holding = registered.range(..=next).next_back().filter(|(_, known)| known.last() >= next);
            let Some((_, known)) = holding else { return Err(Error::new(operation, range, Kind::NotRegistered)) };
            let Some(after) = known.last().checked_add(1) else { break };
            next = after;
        }
        Ok(())
    }

    /// Forgets what is registered, all of which the kernel lets go of by itself.
    pub(super) fn forget_registrations(&self) {
        let registered = std::mem::take(&mut *write(&self.registered));
        if let Some(calls) = self.backend.registration_calls() {
            registered.values().for_each(|memory| calls.runs().forget(memory));
        }
    }

    /// The fence in a window that is there whose memory shares bytes with `memory`: entries behind it may still point there.
    pub(super) fn fence_leaning_on(&self, memory: &HostMemory) -> Option<IovaRange> {
        let windows = self.layout().windows.clone();
        let leans = |held: &HostMemory| held.address() <= memory.last() && memory.address() <= held.last();
        let fenced = read(&self.fenced);
        let mut fences =
            fenced.iter().filter(|fenced| fenced.memory.iter().any(leans)).map(|fenced| fenced.fence.range);
        fences.find(|fence| windows.overlapping(*fence).next().is_some())
    }
}

impl<B: Backend> MemoryRegistration for Space<B> {
    fn register(&self, memory: &HostMemory) -> Result<(), Error> {
        let operation = Operation::Register;
        let fail = |kind| Error::new(operation, Subject::Memory(memory.clone()), kind);
        let calls = self.calls_for_registration(operation, memory)?;
        let _gate = self.enter_alone(operation, memory.clone())?;
        self.check_block(memory, &read(&self.registered), Kind::AlreadyRegistered).map_err(fail)?;
        if memory.is_host_read_only() {
            return Err(fail(Kind::HostReadOnly(Access::READ_WRITE)));
        }
        let entered = calls.runs().enter(memory, || register_surely(calls, memory));
        entered
            .map_err(|_| fail(Kind::AlreadyRegistered))?
            .map_err(|failure| self.refused(operation, memory.clone(), failure, memory.len().get()))?;
        write(&self.registered).insert(memory.address(), memory.clone());
        Ok(())
    }

    fn unregister(&self, memory: &HostMemory) -> Result<(), Error> {
        let operation = Operation::Unregister;
        let fail = |kind| Error::new(operation, Subject::Memory(memory.clone()), kind);
        let calls = self.calls_for_registration(operation, memory)?;
        let _gate = self.enter_alone(operation, memory.clone())?;
        if read(&self.registered).get(&memory.address()) != Some(memory) {
            return Err(fail(Kind::NotRegistered));
        }
        if let Some(live) = self.mapping_onto(memory) {
            return Err(fail(Kind::InUse(live)));
        }
        if let Some(fence) = self.fence_leaning_on(memory) {
            return Err(fail(Kind::Fenced(fence)));
        }
        calls
            .runs()
            .leave(memory, || until_gone(|| calls.unregister(&Lease::kept_by_space(memory))))
            .map_err(|failure| Error::from_kernel(operation, Subject::Memory(memory.clone()), failure))?;
        write(&self.registered).remove(&memory.address());
        Ok(())
    }

    fn registered(&self) -> Vec<HostMemory> {
        read(&self.registered).values().cloned().collect()
    }

    fn runs(&self) -> Option<&ProcessRegistrations> {
        self.backend.registration_calls().map(RegistrationCalls::runs)
    }
}

/// Registers memory. What a failed call registered all the same, or one that failed before it, would stay pinned: it is taken back, and if
/// there was something the call is made again.
fn register_surely(calls: &dyn RegistrationCalls, memory: &HostMemory) -> Result<(), Failure> {
    let mut result = Ok(());
    for _ in 0..ATTEMPTS {
        result = calls.register(&Lease::kept_by_space(memory));
        if result.is_ok()
            || !matches!(until_gone(|| calls.unregister(&Lease::kept_by_space(memory))), Ok(Undone::Done(())))
        {
            break;
        }
    }
    result
}
