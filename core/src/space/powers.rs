//! The powers of a space beside its verbs. Each takes the gate and leaves the work to the part that it is about.

use std::sync::Arc;

use crate::backend::{Backend, EehCalls, RegistrationCalls, SharingCalls};
use crate::contract::dirty::{DirtySink, DirtyTracking, Precision, Synced};
use crate::contract::eeh::{Eeh, PeOperation, PeState};
use crate::contract::kernel_tables::{KernelTables, KernelWriter};
use crate::contract::live_update::{Handover, LiveUpdate, NamedMemory};
use crate::contract::{Mapping, MemoryRegistration, PinSharing, Powers, WindowControl, WindowOffer, WindowRequest};
use crate::door::Failure;
use crate::door::registrations::ProcessRegistrations;
use crate::error::{Error, Kind, Operation, Subject};
use crate::space::deferred::Deferred;
use crate::space::live_update::{AddressCalls, bad_handover, describe, difference, resolve};
use crate::space::tracking::Progress;
use crate::space::windows::WindowMaker;
use crate::space::{Ownership, Space};
use crate::words::address::IovaRange;
use crate::words::memory::HostMemory;
use crate::words::window::Window;

impl<B: Backend> Space<B> {
    /// The powers that the backend's calls make possible.
    pub(super) fn powers_by_calls(&self) -> Powers<'_> {
        let calls = self.backend.calls();
        Powers {
            window_control: calls.windows.map(|_| self as _),
            registration: calls.registration.map(|_| self as _),
            // KVM finds the memory of an entry in the process's registrations.
            kernel_tables: calls.registration.map(|_| self as _),
            eeh: calls.eeh.map(|_| self as _),
            pin_sharing: calls.pin_sharing.map(|_| self as _),
            mapping_budget: calls.mapping_budget,
            dirty_tracking: self,
            live_update: self,
        }
    }
}

impl<B: Backend> WindowControl for Space<B> {
    fn offer(&self) -> Option<WindowOffer> {
        self.backend.calls().windows?.offer()
    }

    fn create_window(&self, request: WindowRequest) -> Result<Window, Error> {
        let maker = WindowMaker::of(self, Operation::CreateWindow, request.range)?;
        let _gate = self.enter_alone(Operation::CreateWindow, request.range)?;
        maker.create(request)
    }

    fn remove_window(&self, range: IovaRange) -> Result<Vec<Mapping>, Error> {
        let maker = WindowMaker::of(self, Operation::RemoveWindow, range)?;
        let mut deferred = Deferred::default();
        let _gate = self.enter_alone(Operation::RemoveWindow, range)?;
        let removed = maker.remove(range, &mut deferred)?;
        for mapping in &removed {
            self.tracking.report_mapping(&mapping.memory, mapping.access, &mut deferred);
        }
        Ok(removed)
    }

    fn table_bytes(&self, request: WindowRequest) -> u64 {
        self.backend.calls().windows.map_or(0, |calls| calls.table_bytes(request))
    }
}

/// The refusal of an operation on memory that a live mapping needs.
fn in_use(operation: Operation, memory: &HostMemory, live: IovaRange) -> Error {
    Error::new(operation, Subject::Memory(memory.clone()), Kind::InUse(live))
}

impl<B: Backend> Space<B> {
    fn registration_calls(&self, operation: Operation, memory: &HostMemory) -> Result<&dyn RegistrationCalls, Error> {
        let none = Kind::Unsupported("this host maps without registration");
        let calls = self.backend.calls().registration;
        calls.ok_or_else(|| Error::new(operation, Subject::Memory(memory.clone()), none))
    }

    fn sharing_calls(&self, operation: Operation, memory: &HostMemory) -> Result<&dyn SharingCalls, Error> {
        let none = Kind::Unsupported("this space shares no pins with others");
        let calls = self.backend.calls().pin_sharing;
        calls.ok_or_else(|| Error::new(operation, Subject::Memory(memory.clone()), none))
    }
}

impl<B: Backend> MemoryRegistration for Space<B> {
    fn register(&self, memory: &HostMemory) -> Result<(), Error> {
        let calls = self.registration_calls(Operation::Register, memory)?;
        // Beside maps: they find the memory once it is registered, and not before.
        let _gate = self.enter(Operation::Register, memory.clone())?;
        self.registrations.register(&self.backend, calls, memory)
    }

    fn unregister(&self, memory: &HostMemory) -> Result<(), Error> {
        let operation = Operation::Unregister;
        let calls = self.registration_calls(operation, memory)?;
        let mut deferred = Deferred::default();
        let _gate = self.enter_alone(operation, memory.clone())?;
        self.registrations.check_has(memory)?;
        let set = self.layout.get();
        if let Some(live) = set.onto(memory, IovaRange::all()) {
            return Err(in_use(operation, memory, live));
        }
        if let Some(fence) = self.fences.onto(memory, &set.windows) {
            return Err(Error::new(operation, Subject::Memory(memory.clone()), Kind::Fenced(fence)));
        }
        self.registrations.unregister(calls, memory, &mut deferred)
    }

    fn registered(&self) -> Vec<HostMemory> {
        self.registrations.all()
    }

    fn runs(&self) -> Option<&ProcessRegistrations> {
        self.backend.calls().registration.map(RegistrationCalls::runs)
    }
}

impl<B: Backend> PinSharing for Space<B> {
    fn share_pins(&self, memory: &HostMemory) -> Result<(), Error> {
        let calls = self.sharing_calls(Operation::SharePins, memory)?;
        let _gate = self.enter_alone(Operation::SharePins, memory.clone())?;
        self.shared_pins.share(&self.backend, calls, memory)
    }

    fn stop_sharing(&self, memory: &HostMemory) -> Result<(), Error> {
        let operation = Operation::StopSharing;
        let calls = self.sharing_calls(operation, memory)?;
        let mut deferred = Deferred::default();
        let _gate = self.enter_alone(operation, memory.clone())?;
        self.shared_pins.check_has(memory)?;
        if let Some(live) = self.layout.get().onto(memory, IovaRange::all()) {
            return Err(in_use(operation, memory, live));
        }
        self.shared_pins.stop(calls, memory, &mut deferred);
        Ok(())
    }

    fn shared(&self) -> Vec<HostMemory> {
        self.shared_pins.all()
    }

    fn sharers(&self, memory: &HostMemory) -> usize {
        self.backend.calls().pin_sharing.map_or(0, |calls| calls.sharers(memory))
    }
}

impl<B: Backend> KernelTables for Space<B> {
    fn hand_to_kernel(&self, window: IovaRange, writer: Arc<dyn KernelWriter>) -> Result<(), Error> {
        let operation = Operation::HandToKernel;
        let mut deferred = Deferred::default();
        let _gate = self.enter_alone(operation, window)?;
        self.layout.get().slot_of(operation, window)?.check_ours(operation, window)?;
        self.fences.check(operation, window)?;
        self.layout.hand_to_kernel(window, writer, &self.attachments.all(), &mut deferred)
    }

    fn reclaim(&self, window: IovaRange) -> Result<(), Error> {
        let mut deferred = Deferred::default();
        let _gate = self.enter_alone(Operation::Reclaim, window)?;
        self.layout.reclaim(window, &self.attachments.all(), self.backend.name(), &self.fences)?;
        // Entries that the kernel cleared meanwhile may have been written before.
        self.tracking.report_memory(&self.registrations.all(), &mut deferred);
        Ok(())
    }

    fn kernel_owned(&self) -> Vec<IovaRange> {
        self.layout.kernel_owned().into_iter().map(|(window, _)| window).collect()
    }
}

impl<B: Backend> Eeh for Space<B> {
    fn is_available(&self) -> bool {
        self.backend.calls().eeh.is_some_and(EehCalls::is_available)
    }

    fn operate(&self, operation: PeOperation) -> Result<(), Error> {
        self.operate_pe(operation)?;
        Ok(())
    }

    fn state(&self) -> Result<PeState, Error> {
        // The states of linux: include/uapi/linux/vfio.h, VFIO_EEH_PE_STATE_*.
        match self.operate_pe(PeOperation::State)? {
            (0, _) => Ok(PeState::Normal),
            (1, _) => Ok(PeState::Reset),
            (2, _) => Ok(PeState::Stopped),
            (4, _) => Ok(PeState::StoppedDma),
            (5, _) => Ok(PeState::Unavailable),
            (_, subject) => {
                let failure = Failure::malformed("VFIO_EEH_PE_OP", "an unknown state");
                Err(Error::from_kernel(Operation::RecoverPe, subject, failure))
            }
        }
    }
}

impl<B: Backend> Space<B> {
    /// Makes a call on the PE of the one group that is attached. Returns the kernel's answer, and the group.
    fn operate_pe(&self, operation: PeOperation) -> Result<(i32, Subject), Error> {
        let _gate = self.gate.read();
        let devices = self.attachments.names();
        let (subject, obstacle) = match devices.as_slice() {
            [] => (Subject::Device("no device".into()), Some(Kind::NotAttached)),
            [only] => (Subject::Device(only.clone()), None),
            [first, ..] => {
                let why = "several groups share the container, and the kernel would answer for one";
                (Subject::Device(first.clone()), Some(Kind::Unsupported(why)))
            }
        };
        if let Some(kind) = obstacle {
            return Err(Error::new(Operation::RecoverPe, subject, kind));
        }
        let Some(calls) = self.backend.calls().eeh.filter(|calls| calls.is_available()) else {
            let why = "this host does not isolate and recover devices (EEH)";
            return Err(Error::new(Operation::RecoverPe, subject, Kind::Unsupported(why)));
        };
        match calls.operate(operation) {
            Ok(answer) => Ok((answer, subject)),
            Err(failure) => Err(Error::from_kernel(Operation::RecoverPe, subject, failure)),
        }
    }
}

impl<B: Backend> DirtyTracking for Space<B> {
    fn start(&self, sink: Arc<dyn DirtySink>) -> Result<Precision, Error> {
        let _gate = self.enter_alone(Operation::TrackDirty, IovaRange::all())?;
        // A clone: a sink that is refused must not be dropped under the locks.
        self.tracking.start(&self.backend, self.attachments.count(), sink.clone())
    }

    /// Asks one question after another, each under the locks of its own, so that the answers can be reported in
    /// between.
    fn sync(&self, range: IovaRange) -> Result<Synced, Error> {
        let operation = Operation::SyncDirty;
        let mut progress = Progress::of(range);
        while let Some(rest) = progress.rest {
            let mut deferred = Deferred::default();
            let _gate = self.enter(operation, range)?;
            let set = self.layout.get();
            let Some(slot) = set.overlapping(rest).next() else { break };
            let _in_turn = slot.operations.lock();
            self.tracking.sync_slot(&self.backend, slot, &mut progress, &mut deferred)?;
        }
        let mut deferred = Deferred::default();
        let _gate = self.enter(operation, range)?;
        if self.layout.kernel_owned().iter().any(|(window, _)| window.overlaps(range)) {
            progress.add(self.tracking.report_memory(&self.registrations.all(), &mut deferred));
        }
        // Devices may still reach memory behind fences, and no kernel logs it.
        progress.add(self.tracking.report_memory(&self.fences.memory(), &mut deferred));
        self.tracking.end_sync(&self.backend, &mut progress, &mut deferred)?;
        match progress.failure {
            Some(failure) => Err(Error::from_kernel(operation, range, failure)),
            None => Ok(Synced { precision: progress.precision, bytes: progress.bytes }),
        }
    }

    fn stop(&self) -> Result<(), Error> {
        let gate = self.enter_alone(Operation::TrackDirty, IovaRange::all())?;
        let stopped = self.tracking.stop(&self.backend);
        // The sink is dropped after the lock.
        drop(gate);
        stopped.map(|_sink| ())
    }
}

#[expect(
    unsafe_code,
    reason = "UNSAFETY: no kernel compares the memory that is adopted with the memory that is pinned"
)]
impl<B: Backend> LiveUpdate for Space<B> {
    fn is_handed_over(&self) -> bool {
        self.gate.read().owner != Ownership::Here
    }

    fn hand_over(&self, memory: &NamedMemory) -> Result<Handover, Error> {
        let operation = Operation::HandOver;
        let mut alone = self.alone();
        let owner = &mut alone.gate.owner;
        match *owner {
            Ownership::Inherited => return Err(Error::new(operation, IovaRange::all(), Kind::HandedOver)),
            Ownership::HandedOver => return describe(self, memory),
            Ownership::Here => {}
        }
        let calls = AddressCalls::of(self, operation)?;
        if let Some(fence) = self.fences.all().first() {
            return Err(Error::new(operation, IovaRange::all(), Kind::Fenced(fence.range)));
        }
        let handover = describe(self, memory)?;
        calls.check_obstacle()?;
        calls.invalidate_all(&self.layout.get()).map_err(|failure| calls.kernel_error(failure))?;
        *owner = Ownership::HandedOver;
        Ok(handover)
    }

    fn take_back(&self) -> Result<(), Error> {
        let operation = Operation::TakeBack;
        let mut alone = self.alone();
        let owner = &mut alone.gate.owner;
        if *owner != Ownership::HandedOver {
            return Err(Error::new(operation, IovaRange::all(), Kind::NotHandedOver));
        }
        let live = self.layout.get().mappings(IovaRange::all());
        AddressCalls::of(self, operation)?.update_all(&live)?;
        *owner = Ownership::Here;
        Ok(())
    }

    unsafe fn adopt(&self, handover: &Handover, memory: &NamedMemory) -> Result<(), Error> {
        let operation = Operation::Adopt;
        let mut deferred = Deferred::default();
        let mut alone = self.alone();
        let owner = &mut alone.gate.owner;
        if *owner == Ownership::Here {
            return Err(Error::new(operation, IovaRange::all(), Kind::NotHandedOver));
        }
        let calls = AddressCalls::of(self, operation)?;
        let mappings = resolve(self, handover, memory)?;
        if *owner == Ownership::HandedOver {
            let live = self.layout.get().mappings(IovaRange::all());
            if let Some(range) = difference(&live, &mappings) {
                let what = "it differs from the mapping there at the hand-over";
                return Err(bad_handover(range, what.into()));
            }
        }
        calls.update_all(&mappings)?;
        self.layout.record_all(mappings, &mut deferred);
        *owner = Ownership::Here;
        Ok(())
    }
}
