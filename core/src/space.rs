//! [`Space`]: the contract, kept for any backend.
//!
//! A space has the only index of its mappings. Every request is checked against it before the kernel is asked,
//! because the kernels check different things: sPAPR's looks at the first page of a range only and overwrites
//! silently (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_ioctl), iommufd's unmap of a range that cuts a
//! mapping removes the mappings before it.
//!
//! # Parts
//! Each part is a type with a lock and a file of its own:
//!
//! ```text
//!  Space ─┬─ Layout ── WindowSet ── Slot ── Index     windows, and the live mappings of each
//!         ├─ Fences                                   ranges in an unknown state, with the memory behind them
//!         ├─ Registrations, SharedPins ── Blocks      memory that is registered, memory whose pins are shared
//!         ├─ Attachments                              devices, with their names and reserved ranges
//!         ├─ Tracking ── Outbox                       the dirty log, and reports on their way to the sink
//!         └─ backend                                  the kernel calls
//!  Mapper, WindowMaker, AddressCalls                  the calls of one operation, with their undo
//!  Deferred                                           code of the caller that waits until the locks are released
//! ```
//!
//! # Locks
//! The order of all locks is in [`crate::sync`]. The gate is shared by map, replace, unmap, sync and register, and
//! exclusive for every other change of windows, registrations, devices or ownership: a map and an unregistration never
//! meet (linux: tce_iommu_build_v2 would stop half-way and return 0). Changes of one window follow each other, as
//! registrations do, and wait for no call of another. A fence is checked
//! under the lock that orders it against the change that puts it up. Look-ups, and the names and reserved ranges of
//! devices, never wait for a kernel call.

mod attachments;
mod batches;
mod blocks;
mod deferred;
mod fences;
mod index;
mod kernel_tables;
mod layout;
mod live_update;
mod mapper;
mod powers;
mod questions;
mod radix;
mod registrations;
mod reports;
mod shared_pins;
mod straight;
mod tracking;
mod unmap_all;
mod verbs;
mod windows;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::Backend;
use crate::contract::{AttachPoint, Attachable, MappingModel, WindowChange};
use crate::door::Failure;
use crate::error::{Error, Kind, Operation, Subject};
use crate::retry::{until_gone, with_retries};
use crate::sync::{Rank, RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::words::access::Access;
use crate::words::address::IovaRange;
use crate::words::locked::PinLimit;
use crate::words::memory::HostMemory;
use crate::words::window::Windows;
use attachments::{Attached, Attachments};
use deferred::Deferred;
use fences::Fences;
use layout::{Layout, Slot, WindowSet, hull_over};
use mapper::Mapper;
use registrations::Registrations;
use shared_pins::SharedPins;
use tracking::Tracking;
use unmap_all::unmap_all;

/// A PCI address space on a backend `B`.
///
/// Its lock is [`Rank::Gate`] in the order of all locks ([`crate::sync`]).
#[derive(Debug)]
pub struct Space<B: Backend> {
    gate: RwLock<Gate>,
    layout: Layout,
    registrations: Registrations,
    shared_pins: SharedPins,
    tracking: Tracking,
    attachments: Attachments,
    /// The number of times that the kernel has forgotten everything with the last device.
    times_forgotten: AtomicU64,
    /// The form in which the kernel keeps mappings, asked for once.
    keeps: MappingModel,
    /// After everything that may still be mapped: its drop keeps memory for ever.
    fences: Fences,
    /// Last: its handles are closed after everything above is dropped.
    backend: B,
}

/// The facts that every verb needs, under the gate.
#[derive(Debug)]
struct Gate {
    owner: Ownership,
    /// The windows in force, as [`Layout`] has them: they do not change while the gate is held.
    in_force: Arc<WindowSet>,
}

/// The gate, held exclusively. When it opens, verbs find the windows that are in force then.
struct Alone<'a> {
    gate: RwLockWriteGuard<'a, Gate>,
    layout: &'a Layout,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.gate.in_force = self.layout.get();
    }
}

/// The process that owns a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ownership {
    /// This process.
    Here,
    /// The process that adopts the space. The index is frozen as of the hand-over.
    HandedOver,
    /// This process, once it has adopted the space. Nothing is known of the mappings before.
    Inherited,
}

impl<B: Backend> Space<B> {
    /// A space without a device. Fixed windows are known once the first device is attached; iommufd's are known at
    /// once.
    ///
    /// # Errors
    /// The kernel's answer when it was asked for its windows.
    pub fn new(backend: B) -> Result<Self, Error> {
        let windows = backend.refresh(0).map_err(|failure| {
            refused(&backend, Operation::Attach, Subject::Device("no device yet".into()), failure, 0)
        })?;
        Ok(Self::with_parts(Ownership::Here, backend, Vec::new(), windows))
    }

    /// A space of descriptors that another process has handed over: its mappings are unknown, and nothing can be
    /// changed, before it has adopted the description
    /// ([`LiveUpdate::adopt`](crate::contract::live_update::LiveUpdate::adopt)). `devices` are attached already.
    ///
    /// # Errors
    /// The kernel's answer when it was asked for its windows. Nothing is detached or unmapped then.
    pub fn inherited(backend: B, devices: Vec<Arc<dyn Attachable>>) -> Result<Self, Error> {
        let windows = backend.refresh(devices.len()).map_err(|failure| {
            let name = devices.first().map_or_else(|| "no device".into(), |device| device.name());
            Error::from_kernel(Operation::Adopt, Subject::Device(name), failure)
        })?;
        Ok(Self::with_parts(Ownership::Inherited, backend, devices, windows))
    }

    fn with_parts(owner: Ownership, backend: B, devices: Vec<Arc<dyn Attachable>>, windows: Windows) -> Self {
        let layout = Layout::new(windows);
        Self {
            gate: RwLock::new(Rank::Gate, Gate { owner, in_force: layout.get() }),
            layout,
            registrations: Registrations::new(),
            shared_pins: SharedPins::new(),
            tracking: Tracking::new(),
            attachments: Attachments::new(devices),
            times_forgotten: AtomicU64::new(0),
            keeps: backend.capabilities().keeps,
            fences: Fences::new(),
            backend,
        }
    }

    /// The backend, for tests that compare a space with its kernel. It grants nothing: a backend maps only memory
    /// that has a lease, and attaches only at an attach point.
    #[doc(hidden)]
    pub fn backend_ref(&self) -> &B {
        &self.backend
    }

    /// The right to attach devices to the backend.
    fn attach_point(&self) -> AttachPoint<'_> {
        AttachPoint::of_space(self.backend.attach_place())
    }

    /// Takes the gate beside other operations, for an operation on a space that this process owns.
    fn enter(&self, operation: Operation, subject: impl Into<Subject>) -> Result<RwLockReadGuard<'_, Gate>, Error> {
        let gate = self.gate.read();
        debug_assert!(Arc::ptr_eq(&gate.in_force, &self.layout.get()), "the windows changed without the gate");
        if gate.owner == Ownership::Here { Ok(gate) } else { Err(Error::new(operation, subject, Kind::HandedOver)) }
    }

    /// Takes the gate exclusively, for an operation on a space that this process owns.
    fn enter_alone(&self, operation: Operation, subject: impl Into<Subject>) -> Result<Alone<'_>, Error> {
        self.wait_for_calls();
        let alone = self.alone();
        if alone.gate.owner == Ownership::Here {
            Ok(alone)
        } else {
            Err(Error::new(operation, subject, Kind::HandedOver))
        }
    }

    /// Takes the gate exclusively, whoever owns the space.
    fn alone(&self) -> Alone<'_> {
        Alone { gate: self.gate.write(), layout: &self.layout }
    }

    /// Waits for the calls that are under way. An operation that then waits for the gate waits for no call, but for
    /// one that begins at this moment: while it stands at the gate, the verbs of all windows stand behind it.
    fn wait_for_calls(&self) {
        for slot in &self.layout.get().slots {
            drop(slot.operations.lock());
        }
        self.registrations.wait_for_call();
    }

    /// The checks of a map that need no lock.
    fn check_request(
        &self,
        operation: Operation,
        range: IovaRange,
        memory: &HostMemory,
        access: Access,
    ) -> Result<(), Error> {
        let kind = if access.is_empty() {
            Kind::NoAccess
        } else if let Some(needed) = self.unfit_access(memory, access) {
            Kind::HostReadOnly(needed)
        } else if memory.is_unbacked() && self.backend.is_real() {
            Kind::Unbacked
        } else if memory.is_device_memory() && !self.backend.capabilities().reaches(memory) {
            Kind::DeviceMemory
        } else if memory.is_rounded() {
            Kind::Rounded
        } else {
            return Ok(());
        };
        Err(Error::new(operation, range, kind))
    }

    /// The access that the host needs to memory that this process may only read, if that is more than it has.
    fn unfit_access(&self, memory: &HostMemory, access: Access) -> Option<Access> {
        if !memory.is_host_read_only() {
            return None;
        }
        let needed = if self.backend.capabilities().maps_host_read_only { access } else { Access::READ_WRITE };
        if needed.contains(Access::WRITE) { Some(needed) } else { None }
    }

    /// The bytes that attaching one more device locks: iommufd pins everything that was mapped before the first
    /// device (linux: drivers/iommu/iommufd/io_pagetable.c, iopt_table_add_domain), and later devices find it pinned.
    /// `None` where another space may have pinned some of it.
    fn locked_by_attaching(&self) -> Option<u64> {
        if self.attachments.count() > 0 {
            return Some(0);
        }
        if self.shared_pins.any_is_shared(&self.backend) {
            return None;
        }
        Some(self.layout.get().mapped_bytes())
    }

    /// Adds the live mapping and the reserved range that collide to the refusal of a device that does not reach all
    /// that is mapped.
    fn name_collision(&self, attached: &Attached, error: Error) -> Error {
        if !error.failure().is_some_and(|failure| self.backend.may_be_a_collision(&failure)) {
            return error;
        }
        let set = self.layout.get();
        for reserved in &attached.reserved {
            if let Some(live) = set.overlap(reserved.range) {
                return error.with_kind(Kind::WouldStrand(live, Some(Box::new(reserved.clone()))));
            }
        }
        error
    }

    /// Attaches a device. The gate is held exclusively.
    fn attach_alone(&self, attached: &Attached, deferred: &mut Deferred) -> Result<WindowChange, Error> {
        if let Err(failure) = self.backend.attach(&*attached.device, self.attach_point()) {
            let wanted = self.locked_by_attaching();
            let error = refused(&self.backend, Operation::Attach, attached.subject(), failure, wanted);
            let error = self.name_collision(attached, error);
            // The failed call may have attached the device, and detached it again.
            let fenced = match failure.may_have_effect() {
                true => self.undo_attach(attached, deferred),
                false => self.refill_tables(Operation::Attach, deferred),
            };
            return Err(error.fencing(fenced));
        }
        match self.fit_in(attached) {
            Ok(windows) => {
                self.note_attached(attached);
                Ok(self.layout.adopt(self.backend.name(), windows))
            }
            Err(error) => Err(error.fencing(self.undo_attach(attached, deferred))),
        }
    }

    /// Reads the windows that the host offers with a device that was just attached, and checks that all live mappings
    /// fit in.
    fn fit_in(&self, attached: &Attached) -> Result<Windows, Error> {
        let operation = Operation::Attach;
        let windows = self.backend.refresh(self.attachments.count() + 1).map_err(|failure| {
            refused(&self.backend, operation, attached.subject(), failure, self.backend.locked_at_start())
        })?;
        if let Some(stranded) = self.layout.get().stranded_by(&windows) {
            let over = attached.reserved.iter().find(|reserved| reserved.range.overlaps(stranded));
            let kind = Kind::WouldStrand(stranded, over.cloned().map(Box::new));
            return Err(Error::new(operation, attached.subject(), kind));
        }
        let joined = self.layout.join_writers(&*attached.device);
        joined.map_err(|failure| Error::from_kernel(operation, attached.subject(), failure))?;
        Ok(windows)
    }

    fn note_attached(&self, attached: &Attached) {
        self.attachments.add(attached.clone());
        if self.attachments.count() == 1 {
            self.tracking.log_again(&self.backend);
        }
    }

    /// Detaches a device after a failed attach. Returns the ranges that could not be mapped again for the devices
    /// that stay; they are fenced.
    ///
    /// A device that stays attached whatever is tried is one of the space's devices: it can be detached later, and
    /// while it is there the space does not take another device for the last one.
    fn undo_attach(&self, attached: &Attached, deferred: &mut Deferred) -> Vec<IovaRange> {
        let (backend, name) = (self.backend.name(), &attached.name);
        if let Err(failure) = until_gone(|| self.backend.detach(&*attached.device, self.attach_point())) {
            log::error!("{backend}: {name} stays attached after a failed attach: {failure}");
            self.note_attached(attached);
            return Vec::new();
        }
        self.tracking.report_all(&self.layout.get(), deferred);
        if let Err(failure) = with_retries(|| self.backend.refresh(self.attachments.count())) {
            log::error!("{backend}: the windows could not be read again: {failure}");
        }
        self.refill_tables(Operation::Attach, deferred)
    }

    /// Detaches a device of the list. The gate is held exclusively.
    fn detach_alone(&self, attached: &Attached, deferred: &mut Deferred) -> Result<WindowChange, Error> {
        let (operation, backend) = (Operation::Detach, self.backend.name());
        let device = &attached.device;
        // Before the device is detached: a writer of a table that is gone would keep the memory.
        let left = self.layout.leave_writers(&**device, backend, &self.fences);
        left.map_err(|failure| Error::from_kernel(operation, attached.subject(), failure))?;
        if let Err(failure) = until_gone(|| self.backend.detach(&**device, self.attach_point())) {
            self.layout.rejoin_writers(&**device, backend, &self.fences);
            return Err(Error::from_kernel(operation, attached.subject(), failure));
        }
        if let Some(detached) = self.attachments.remove(device) {
            deferred.release_device(detached);
        }
        self.tracking.report_all(&self.layout.get(), deferred);
        if self.attachments.count() == 0 && self.backend.forgets_with_the_last_device() {
            self.layout.end_idle_writers();
            self.layout.forget(deferred);
            self.registrations.forget(&self.backend, deferred);
            self.times_forgotten.fetch_add(1, Ordering::Release);
        }
        let change = self.adopt_windows_left();
        let lost = self.refill_tables(operation, deferred);
        let cause = self.fences.all().into_iter().find(|fence| lost.contains(&fence.range)).map(|fence| fence.cause);
        match cause {
            Some(cause) => Err(Error::from_kernel(operation, attached.subject(), cause).fencing(lost)),
            None => Ok(change),
        }
    }

    /// Puts the windows into force that the host offers after a device has left. Windows only grow then, so the old
    /// ones will do where the kernel does not answer.
    fn adopt_windows_left(&self) -> WindowChange {
        let backend = self.backend.name();
        match with_retries(|| self.backend.refresh(self.attachments.count())) {
            Ok(windows) => self.layout.adopt(backend, windows),
            Err(failure) => {
                log::warn!("{backend}: the windows could not be read again: {failure}");
                let snapshot = self.layout.get().snapshot();
                WindowChange { before: snapshot.clone(), after: snapshot }
            }
        }
    }

    /// Enters all live mappings again. The kernel clears the tables of a container when one of several groups leaves
    /// it (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_release_ownership). Returns the ranges that could
    /// not be entered; they are fenced.
    fn refill_tables(&self, operation: Operation, deferred: &mut Deferred) -> Vec<IovaRange> {
        if self.attachments.count() == 0 || self.keeps == MappingModel::Mappings {
            return Vec::new();
        }
        let mapper = Mapper::of(self, operation);
        let mut all_lost = Vec::new();
        for slot in &self.layout.get().slots {
            let lost = mapper.bring_back(slot, &slot.mappings(slot.window.range), deferred);
            self.layout.note_refilled(slot, &lost);
            all_lost.extend(lost);
        }
        all_lost
    }

    /// Releases everything, for a space that is dropped. Memory that cannot be unmapped is kept for ever.
    fn empty(&self) {
        let mut deferred = Deferred::default();
        let devices = self.attachments.all();
        self.layout.end_writers(&devices);
        let all_empty = self.empty_windows(&mut deferred);
        // Under live entries the kernel would unregister the memory and keep its pins; it releases them with the
        // container.
        if all_empty {
            self.registrations.end(&self.backend, &mut deferred);
        }
        self.registrations.forget(&self.backend, &mut deferred);
        self.shared_pins.end(&self.backend, &mut deferred);
        for attached in self.attachments.take_all() {
            if let Err(failure) = until_gone(|| self.backend.detach(&*attached.device, self.attach_point())) {
                log::warn!("{}: {} could not be detached: {failure}", self.backend.name(), attached.name);
            }
            deferred.release_device(attached);
        }
        self.tracking.report_all(&self.layout.get(), &mut deferred);
    }

    /// Removes windows that were created with everything in them, and empties fixed windows: in one call, or in one
    /// call each where a fence may lie in between. Returns whether all of them are empty.
    fn empty_windows(&self, deferred: &mut Deferred) -> bool {
        let set = self.layout.get();
        let slots: Vec<&Slot> = set.slots.iter().map(AsRef::as_ref).collect();
        let at_once = self.keeps == MappingModel::Mappings && self.fences.is_empty();
        let mut all_empty = true;
        for some in slots.chunks(if at_once { slots.len().max(1) } else { 1 }) {
            let Err(failure) = self.empty_slots(some) else { continue };
            log::error!("{}: windows could not be emptied: {failure}; their memory is kept", self.backend.name());
            for mapping in some.iter().flat_map(|slot| slot.mappings(slot.window.range)) {
                self.tracking.report_mapping(&mapping.memory, mapping.access, deferred);
                std::mem::forget(mapping.memory);
            }
            all_empty = false;
        }
        all_empty
    }

    fn empty_slots(&self, slots: &[&Slot]) -> Result<(), Failure> {
        let Some(calls) = self.backend.calls().windows else {
            let Some((hull, bytes)) = hull_over(slots, IovaRange::all()) else { return Ok(()) };
            return unmap_all(bytes, || self.backend.unmap(hull));
        };
        for slot in slots {
            until_gone(|| calls.remove(slot.window))?;
        }
        Ok(())
    }
}

impl<B: Backend> Drop for Space<B> {
    /// Releases everything. The successor empties a space that was handed over. Its memory is kept for ever, as
    /// memory behind a fence is: devices reach it until the successor unmaps it, which may be later, or in this
    /// process. A file outlives this process's mapping of it, and so does a device's own memory: both are released.
    fn drop(&mut self) {
        if self.gate.get_mut().owner == Ownership::Here {
            self.empty();
            return;
        }
        for mapping in self.layout.get().mappings(IovaRange::all()) {
            let memory = mapping.memory;
            if !memory.is_device_memory() && memory.file().is_none() {
                std::mem::forget(memory);
            }
        }
    }
}

/// A kernel's refusal of an operation that would have locked `wanted` bytes. The limit is asked for only where memory
/// was short.
fn refused(
    backend: &impl Backend,
    operation: Operation,
    subject: impl Into<Subject>,
    failure: Failure,
    wanted: impl Into<Option<u64>>,
) -> Error {
    let error = Error::from_kernel(operation, subject, failure);
    if !matches!(error.kind(), Kind::PinLimit(_)) {
        return error;
    }
    error.with_kind(Kind::PinLimit(PinLimit { wanted: wanted.into(), allowance: backend.allowance() }))
}
