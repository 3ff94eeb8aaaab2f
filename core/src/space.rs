//! [`Space`]: the contract, kept for any backend.
//!
//! Here lives the only index of what is mapped. Every request is checked against it before the kernel is asked, because the kernels
//! check different things: sPAPR's looks at the first page of a range only and overwrites silently (linux:
//! drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_ioctl), iommufd's unmap of a range that cuts a mapping removes those before it.
//!
//! # Locks
//! In this order: the gate, then one window's `operations`, then its `live` index, for moments only.
//! - The gate is shared by map, replace and unmap, and exclusive for what changes windows, registrations or devices: a map and an
//!   unregistration never meet (linux: tce_iommu_build_v2 would stop half-way and return 0).
//! - `operations` makes the changes of one window follow each other; windows do not wait for one another.
//! - `live` is never held during a kernel call, so [`PciAddressSpace::lookup`] never waits for one.
//! - Dirty tracking begins and ends behind the gate; its bitmap is locked between `operations` and `live`.
//!
//! # After a failure
//! A call that failed may have done its work all the same, or a part of it. What was to come is taken away again, whether it is there or
//! not; what was to go is asked for until the kernel says yes, or that nothing is there. What cannot be brought back, and what nobody
//! can vouch for, is fenced.

mod devices;
mod dirty;
mod eeh;
mod handover;
mod index;
mod kernel_tables;
mod ones;
mod registrations;
mod sharing;
mod windows;

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::backend::Backend;
use crate::contract::dirty::DirtyTracking;
use crate::contract::eeh::Eeh;
use crate::contract::kernel_tables::{KernelTables, KernelWriter};
use crate::contract::live_update::LiveUpdate;
use crate::contract::{
    AttachPoint, Attachable, Capabilities, Fence, Mapping, MappingModel, MemoryRegistration, PciAddressSpace,
    PinSharing, Snapshot, Swap, Unit, WindowChange, WindowControl,
};
use crate::door::{Failure, Lease};
use crate::error::{Error, Kind, Operation, Subject};
use crate::retry::{Undone, until_gone, with_retries};
use crate::words::access::Access;
use crate::words::address::{Iova, IovaRange};
use crate::words::locked::PinLimit;
use crate::words::memory::HostMemory;
use crate::words::page::PageSize;
use crate::words::reserved::Reserved;
use crate::words::window::{Window, Windows};
use dirty::Tracking;
use index::Index;

/// A PCI address space on a backend `B`.
#[derive(Debug)]
pub struct Space<B: Backend> {
    gate: RwLock<Ownership>,
    layout: RwLock<Arc<Layout>>,
    registered: RwLock<BTreeMap<u64, HostMemory>>,
    held: RwLock<BTreeMap<u64, HostMemory>>,
    fenced: RwLock<Vec<Fenced>>,
    devices: Mutex<Vec<Arc<dyn Attachable>>>,
    tracking: RwLock<Option<Tracking>>,
    /// Last, so that everything above is gone when it closes its handles.
    backend: B,
}

/// Whose space it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ownership {
    /// This process's.
    Here,
    /// Whoever's adopts it. What lives is what lived when it was handed over.
    HandedOver,
    /// This process's as soon as it adopts it. What lives is not known before.
    Inherited,
}

/// The windows in force and what lives in each.
#[derive(Debug)]
struct Layout {
    generation: u64,
    windows: Arc<Windows>,
    /// One for each of `windows`, in their order.
    slots: Vec<Arc<Slot>>,
}

#[derive(Debug)]
struct Slot {
    window: Window,
    operations: Mutex<()>,
    /// Empty while somebody else fills the window.
    live: RwLock<Index>,
    filler: Option<Arc<dyn KernelWriter>>,
}

/// A fence and the memory a device might still reach behind it.
#[derive(Debug)]
struct Fenced {
    fence: Fence,
    memory: Vec<HostMemory>,
}

impl<B: Backend> Space<B> {
    /// A space without a device. Fixed windows show when the first is attached (iommufd's already now).
    ///
    /// # Errors
    /// What the kernel said when it was asked for its windows.
    pub fn new(backend: B) -> Result<Self, Error> {
        let subject = || Subject::Device("no device yet".into());
        let windows = backend.refresh(0);
        let windows = windows.map_err(|failure| refused(&backend, Operation::Attach, subject(), failure, 0))?;
        Ok(Self::standing_so(Ownership::Here, backend, Vec::new(), windows))
    }

    fn standing_so(standing: Ownership, backend: B, devices: Vec<Arc<dyn Attachable>>, windows: Windows) -> Self {
        Self {
            gate: RwLock::new(standing),
            layout: RwLock::new(Arc::new(Layout::new(0, windows, Vec::new()))),
            registered: RwLock::default(),
            held: RwLock::default(),
            fenced: RwLock::default(),
            devices: Mutex::new(devices),
            tracking: RwLock::default(),
            backend,
        }
    }

    /// The backend, for tests that compare a space with its kernel. It grants nothing: a backend maps only what has a lease, and attaches only
    /// at an attach point.
    #[doc(hidden)]
    pub fn backend_ref(&self) -> &B {
        &self.backend
    }

    /// The right to attach devices to the backend.
    fn attach_point(&self) -> AttachPoint<'_> {
        AttachPoint::of_space(self.backend.attach_place())
    }

    /// Through the gate, beside others, for an operation on a space that is ours.
    fn enter(
        &self,
        operation: Operation,
        subject: impl Into<Subject>,
    ) -> Result<RwLockReadGuard<'_, Ownership>, Error> {
        let gate = read(&self.gate);
        if *gate == Ownership::Here { Ok(gate) } else { Err(Error::new(operation, subject, Kind::HandedOver)) }
    }

    /// The same, alone.
    fn enter_alone(
        &self,
        operation: Operation,
        subject: impl Into<Subject>,
    ) -> Result<RwLockWriteGuard<'_, Ownership>, Error> {
        let gate = write(&self.gate);
        if *gate == Ownership::Here { Ok(gate) } else { Err(Error::new(operation, subject, Kind::HandedOver)) }
    }

    fn layout(&self) -> Arc<Layout> {
        read(&self.layout).clone()
    }

    /// A kernel's refusal of something that would have locked `wanted` bytes.
    fn refused(
        &self,
        operation: Operation,
        subject: impl Into<Subject>,
        failure: Failure,
        wanted: impl Into<Option<u64>>,
    ) -> Error {
        refused(&self.backend, operation, subject, failure, wanted)
    }

    /// What mapping `memory` locks. Entries lock nothing: the memory behind them was locked when it was registered, or all that a window
    /// could show was when the window came; and another device's memory is no memory of the kernel's (linux:
    /// drivers/vfio/vfio_iommu_type1.c, is_invalid_reserved_pfn). `None`: others hold it too, and may have pinned it.
    fn locked_by_mapping(&self, memory: &HostMemory) -> Option<u64> {
        let locks = self.keeps() == MappingModel::Mappings && !memory.is_device_memory();
        let locked = if locks { memory.len().get() } else { 0 };
        (!self.is_shared(memory)).then_some(locked)
    }

    fn keeps(&self) -> MappingModel {
        self.backend.powers().keeps
    }

    /// The checks of a map that no lock is needed for.
    fn check_request(
        &self,
        operation: Operation,
        range: IovaRange,
        memory: &HostMemory,
        access: Access,
    ) -> Result<(), Error> {
        let powers = self.backend.powers();
        let needed = if powers.maps_host_read_only { access } else { Access::READ_WRITE };
        let kind = if access.is_empty() {
            Kind::NoAccess
        } else if memory.is_host_read_only() && needed.contains(Access::WRITE) {
            Kind::HostReadOnly(needed)
        } else if memory.is_unbacked() && self.backend.is_real() {
            Kind::Unbacked
        } else if !powers.reaches(memory) {
            Kind::DeviceMemory
        } else if let Some(fence) = self.fence_over(range) {
            Kind::Fenced(fence)
        } else {
            return Ok(());
        };
        Err(Error::new(operation, range, kind))
    }

    fn fence_over(&self, range: IovaRange) -> Option<IovaRange> {
        read(&self.fenced).iter().map(|fenced| fenced.fence.range).find(|fence| fence.overlaps(range))
    }

    fn put_up_fence(&self, range: IovaRange, cause: Failure, memory: Vec<HostMemory>) {
        log::error!("{}: {range} is fenced: its state is unknown after {cause}", self.backend.name());
        write(&self.fenced).push(Fenced { fence: Fence { range, cause }, memory });
    }

    /// The slot whose window holds all of `range`, properly aligned.
    fn slot_for(
        &self,
        operation: Operation,
        range: IovaRange,
        memory: &HostMemory,
        unit: Unit,
    ) -> Result<Arc<Slot>, Error> {
        let fail = |kind| Error::new(operation, range, kind);
        let layout = self.layout();
        let slot = layout.slot_at(range.first()).filter(|slot| slot.window.range.covers(range));
        let slot = slot.ok_or_else(|| fail(Kind::OutsideWindows(layout.windows.top())))?;
        slot.check_ours(operation, range)?;
        let granule = slot.window.granule();
        if !range.is_aligned_to(granule) || !granule.divides(memory.address()) {
            return Err(fail(Kind::Misaligned(granule)));
        }
        match unit {
            Unit::Pages(page) if page < granule || !range.is_aligned_to(page) => Err(fail(Kind::BadUnit(page))),
            _ => Ok(slot.clone()),
        }
    }

    /// Makes the kernel calls of a mapping. After an error nothing of it is left, or what is left is fenced.
    fn establish(&self, operation: Operation, mapping: &Mapping) -> Result<(), Error> {
        self.try_to_establish(operation, mapping).inspect_err(|_| self.tell_mapping(mapping))
    }

    fn try_to_establish(&self, operation: Operation, mapping: &Mapping) -> Result<(), Error> {
        let Mapping { range, memory, access, unit } = mapping;
        let Some(page) = self.call_size(*unit) else {
            return self.backend.map(*range, &Lease::kept_by_space(memory), *access).map_err(|failure| {
                let fenced = self.scrub(*range, *range, memory, failure);
                self.refused(operation, *range, failure, self.locked_by_mapping(memory)).fencing(fenced)
            });
        };
        for (n, part) in pages(*range, page).enumerate() {
            let Some(piece) = memory.slice(n as u64 * page.bytes(), page.bytes()) else { break };
            if let Err(failure) = self.backend.map(part, &Lease::kept_by_space(&piece), *access) {
                let made = range.first().get()..=part.last().get();
                let made = IovaRange::new(Iova::new(*made.start()), Iova::new(*made.end())).unwrap_or(part);
                let fenced = self.scrub(made, part, memory, failure);
                return Err(self.refused(operation, *range, failure, self.locked_by_mapping(memory)).fencing(fenced));
            }
        }
        Ok(())
    }

    /// The size of each map call, or `None` for one call over everything.
    fn call_size(&self, unit: Unit) -> Option<PageSize> {
        match (self.keeps(), unit) {
            (MappingModel::Mappings, Unit::Pages(page)) => Some(page),
            (MappingModel::PageEntries, _) | (MappingModel::Mappings, Unit::Whole) => None,
        }
    }

    /// Unmaps whatever map calls as far as `made` left there, the last of which, for `failed`, failed with `cause`. Returns what is
    /// fenced with its memory because it may still be there.
    fn scrub(&self, made: IovaRange, failed: IovaRange, memory: &HostMemory, cause: Failure) -> Option<IovaRange> {
        let (range, cause) = match until_gone(|| self.backend.unmap(made)) {
            Err(failure) => (made, failure),
            Ok(gone) => {
                let everything = gone.done().flatten().is_some_and(|gone| u128::from(gone) == made.bytes());
                if everything || !self.may_have_left_entries(failed, &cause) {
                    return None;
                }
                (failed, cause)
            }
        };
        self.put_up_fence(range, cause, vec![memory.clone()]);
        Some(range)
    }

    fn may_have_left_entries(&self, failed: IovaRange, cause: &Failure) -> bool {
        self.backend.may_leave_entries(failed.len().map_or(u64::MAX, NonZeroU64::get), cause)
    }

    /// Unmaps everything of a range where `bytes` live and no unit is cut, by a call that does. After an error nobody knows what lives
    /// there.
    fn dissolve(bytes: u64, mut unmap: impl FnMut() -> Result<Undone<Option<u64>>, Failure>) -> Result<(), Failure> {
        let mut asked = 0;
        let gone = until_gone(|| {
            asked += 1;
            unmap()
        });
        match gone?.done().flatten() {
            // A call that failed before may have taken a part.
            Some(gone) if asked == 1 && gone != bytes => {
                Err(Failure::malformed("unmap", "another number of bytes was unmapped than lived there"))
            }
            _ => Ok(()),
        }
    }

    /// [`Space::dissolve_telling`], and the index follows. One call, whatever lies between the windows. An unmap that fails leaves a range
    /// nobody can vouch for: it is fenced.
    fn unmap_in(&self, operation: Operation, slots: &[&Slot], range: IovaRange) -> Result<u64, Error> {
        let Some((hull, bytes)) = hull_over(slots, range) else { return Ok(0) };
        if let Err(failure) = self.dissolve_telling(slots, hull, bytes) {
            let memory = |slot: &&Slot| read(&slot.live).within(hull).map(|mapping| mapping.memory).collect::<Vec<_>>();
            let memory = slots.iter().flat_map(memory).collect();
            slots.iter().for_each(|slot| write(&slot.live).remove(hull));
            self.put_up_fence(hull, failure, memory);
            return Err(Error::from_kernel(operation, range, failure).fencing([hull]));
        }
        slots.iter().for_each(|slot| write(&slot.live).remove(hull));
        Ok(bytes)
    }

    /// Maps `mappings` again after they were lost, and fences those that cannot be.
    fn bring_back(&self, operation: Operation, slot: &Slot, mappings: &[Mapping]) -> Vec<IovaRange> {
        let mut lost = Vec::new();
        for mapping in mappings {
            write(&slot.live).remove(mapping.range);
            let again =
                |error: Error| if error.fenced.is_empty() { self.establish(operation, mapping) } else { Err(error) };
            match self.establish(operation, mapping).or_else(again) {
                Ok(()) => slot.record(mapping.clone()),
                Err(error) => {
                    // Unmapped, yet not as it was: nobody may take the place for something else unawares.
                    if let Some(cause) = error.failure {
                        self.put_up_fence(mapping.range, cause, vec![mapping.memory.clone()]);
                    }
                    lost.push(mapping.range);
                }
            }
        }
        lost
    }

    /// Puts `new` where live units are.
    fn swap(&self, slot: &Slot, new: &Mapping) -> Result<Swap, Error> {
        let operation = Operation::Replace;
        let old: Vec<_> = read(&slot.live).within(new.range).collect();
        let swap = match self.keeps() {
            MappingModel::PageEntries => Swap::Seamless,
            MappingModel::Mappings => {
                self.unmap_in(operation, &[slot], new.range)?;
                Swap::WithGap
            }
        };
        // On a kernel that keeps entries a failed call may have eaten old ones: `establish` clears the rest, and all come back.
        if let Err(error) = self.establish(operation, new) {
            write(&slot.live).remove(new.range);
            if let (false, Some(cause)) = (error.fenced.is_empty(), error.failure) {
                // What is not in doubt is gone, and nothing can come back beside the doubt.
                self.put_up_fence(new.range, cause, old.into_iter().map(|mapping| mapping.memory).collect());
                return Err(Error { fenced: vec![new.range], ..error });
            }
            return Err(error.fencing(self.bring_back(operation, slot, &old)));
        }
        if swap == Swap::Seamless {
            old.iter().for_each(|mapping| self.tell_mapping(mapping));
        }
        write(&slot.live).remove(new.range);
        slot.record(new.clone());
        Ok(swap)
    }
}

impl<B: Backend> PciAddressSpace for Space<B> {
    fn backend(&self) -> &'static str {
        self.backend.name()
    }

    fn powers(&self) -> Capabilities {
        self.backend.powers()
    }

    fn mappings_left(&self) -> Option<u64> {
        self.backend.mappings_left()
    }

    fn windows(&self) -> Snapshot {
        self.layout().snapshot()
    }

    fn devices(&self) -> Vec<String> {
        lock(&self.devices).iter().map(|device| device.name()).collect()
    }

    fn reserved(&self) -> Vec<Reserved> {
        lock(&self.devices).iter().flat_map(|device| device.reserved()).collect()
    }

    fn fences(&self) -> Vec<Fence> {
        read(&self.fenced).iter().map(|fenced| fenced.fence.clone()).collect()
    }

    fn fence(&self, range: IovaRange, memory: Option<HostMemory>, cause: Failure) {
        self.put_up_fence(range, cause, memory.into_iter().collect());
    }

    fn map(&self, at: Iova, memory: &HostMemory, access: Access, unit: Unit) -> Result<(), Error> {
        let len = memory.len().get();
        let range = IovaRange::with_len(at, len)
            .map_err(|bad| Error::new(Operation::Map, Subject::Bounds(at, len), Kind::BadRange(bad)))?;
        self.check_request(Operation::Map, range, memory, access)?;
        let _gate = self.enter(Operation::Map, range)?;
        let slot = self.slot_for(Operation::Map, range, memory, unit)?;
        let _one_by_one = lock(&slot.operations);
        if let Some(live) = read(&slot.live).overlap(range) {
            return Err(Error::new(Operation::Map, range, Kind::Overlap(live)));
        }
        self.check_registered(Operation::Map, range, memory)?;
        let mapping = Mapping { range, memory: memory.clone(), access, unit };
        self.establish(Operation::Map, &mapping)?;
        slot.record(mapping);
        Ok(())
    }

    fn replace(&self, at: Iova, memory: &HostMemory, access: Access, page: PageSize) -> Result<Swap, Error> {
        let (operation, unit, len) = (Operation::Replace, Unit::Pages(page), memory.len().get());
        let range = IovaRange::with_len(at, len)
            .map_err(|bad| Error::new(operation, Subject::Bounds(at, len), Kind::BadRange(bad)))?;
        self.check_request(operation, range, memory, access)?;
        let _gate = self.enter(operation, range)?;
        let slot = self.slot_for(operation, range, memory, unit)?;
        let _one_by_one = lock(&slot.operations);
        let (cut, gap) = {
            let live = read(&slot.live);
            (live.cut_by(range), live.gap_in(range))
        };
        if let Some(kind) = gap.map(Kind::NotLive).or(cut.map(Kind::CutsUnit)) {
            return Err(Error::new(operation, range, kind));
        }
        self.check_registered(operation, range, memory)?;
        self.swap(&slot, &Mapping { range, memory: memory.clone(), access, unit })
    }

    fn unmap(&self, range: IovaRange) -> Result<u64, Error> {
        if let Some(fence) = self.fence_over(range) {
            return Err(Error::new(Operation::Unmap, range, Kind::Fenced(fence)));
        }
        let _gate = self.enter(Operation::Unmap, range)?;
        let layout = self.layout();
        let cut = |slot: &Slot| match read(&slot.live).cut_by(range) {
            Some(unit) => Err(Error::new(Operation::Unmap, range, Kind::CutsUnit(unit))),
            None => slot.check_ours(Operation::Unmap, range),
        };
        if let Some(slot) = layout.slot_at(range.first()).filter(|slot| slot.window.range.covers(range)) {
            let _one_by_one = lock(&slot.operations);
            cut(slot)?;
            return self.unmap_in(Operation::Unmap, &[slot], range);
        }
        let slots: Vec<&Slot> = layout.slots.iter().map(AsRef::as_ref).collect();
        let slots: Vec<_> = slots.into_iter().filter(|slot| slot.window.range.overlaps(range)).collect();
        let _one_by_one: Vec<_> = slots.iter().map(|slot| lock(&slot.operations)).collect();
        slots.iter().try_for_each(|slot| cut(slot))?;
        if self.keeps() == MappingModel::Mappings {
            return self.unmap_in(Operation::Unmap, &slots, range);
        }
        let mut gone: Vec<(&Slot, Vec<Mapping>)> = Vec::new();
        let mut bytes = 0;
        for slot in slots {
            let live = read(&slot.live).within(range).collect();
            match self.unmap_in(Operation::Unmap, &[slot], range) {
                Ok(more) => bytes += more,
                Err(error) => {
                    let lost = gone.iter().flat_map(|(slot, live)| self.bring_back(Operation::Unmap, slot, live));
                    return Err(error.fencing(lost.collect::<Vec<_>>()));
                }
            }
            gone.push((slot, live));
        }
        Ok(bytes)
    }

    fn lookup(&self, at: Iova) -> Option<Mapping> {
        let layout = self.layout();
        let slot = layout.slot_at(at)?;
        if slot.filler.is_none() {
            return read(&slot.live).at(at);
        }
        let page = slot.window.granule();
        let page = IovaRange::with_len(Iova::new(page.round_down(at.get())), page.bytes()).ok()?;
        slot.mappings(page).pop()
    }

    fn mappings(&self, range: IovaRange) -> Vec<Mapping> {
        let layout = self.layout();
        let slots = layout.slots.iter().filter(|slot| slot.window.range.overlaps(range));
        slots.flat_map(|slot| slot.mappings(range)).collect()
    }

    fn mapping_onto(&self, memory: &HostMemory) -> Option<IovaRange> {
        self.layout().slots.iter().find_map(|slot| slot.leaning_on(memory))
    }

    fn fence_onto(&self, memory: &HostMemory) -> Option<IovaRange> {
        self.fence_leaning_on(memory)
    }

    fn window_control(&self) -> Option<&dyn WindowControl> {
        self.backend.window_calls().map(|_| self as _)
    }

    fn registration(&self) -> Option<&dyn MemoryRegistration> {
        self.backend.registration_calls().map(|_| self as _)
    }

    fn kernel_tables(&self) -> Option<&dyn KernelTables> {
        // Whoever fills has to find the memory by itself: what is registered can be found.
        self.backend.registration_calls().map(|_| self as _)
    }

    fn eeh(&self) -> Option<&dyn Eeh> {
        self.backend.eeh_calls().map(|_| self as _)
    }

    fn sharing(&self) -> Option<&dyn PinSharing> {
        self.backend.sharing_calls().map(|_| self as _)
    }

    fn dirty_tracking(&self) -> &dyn DirtyTracking {
        self
    }

    fn handover(&self) -> &dyn LiveUpdate {
        self
    }

    fn attach(&self, device: Arc<dyn Attachable>) -> Result<WindowChange, Error> {
        let subject = || Subject::Device(device.name());
        let _gate = self.enter_alone(Operation::Attach, subject())?;
        let mut devices = lock(&self.devices);
        let fail = |failure, wanted: Option<u64>| self.refused(Operation::Attach, subject(), failure, wanted);
        // It may have been attached, and let go of again.
        let attached = self.backend.attach(&*device, self.attach_point());
        let attached = attached.map_err(|failure| {
            let error = fail(failure, self.locked_by_attaching(devices.len()));
            self.naming_collision(&*device, error)
        });
        attached.map_err(|error| error.fencing(self.refill_tables(Operation::Attach, devices.len())))?;
        let refreshed = self.backend.refresh(devices.len() + 1);
        let refreshed = refreshed.map_err(|failure| fail(failure, Some(self.backend.locked_at_start())));
        let fitting = refreshed.and_then(|windows| match self.stranded_by(&windows) {
            Some(stranded) => {
                let over = device.reserved().into_iter().find(|reserved| reserved.range.overlaps(stranded));
                Err(Error::new(Operation::Attach, subject(), Kind::WouldStrand(stranded, over.map(Box::new))))
            }
            None => Ok(windows),
        });
        let filled = fitting.and_then(|windows| match self.join_fillers(&*device) {
            Ok(()) => Ok(windows),
            Err(failure) => Err(fail(failure, None)),
        });
        let windows = filled.map_err(|error| error.fencing(self.undo_attach(&device, devices.len())))?;
        devices.push(device);
        if devices.len() == 1 {
            self.log_again();
        }
        Ok(self.adopt_windows(windows))
    }

    fn detach(&self, device: &Arc<dyn Attachable>) -> Result<WindowChange, Error> {
        let subject = || Subject::Device(device.name());
        let _gate = self.enter_alone(Operation::Detach, subject())?;
        let mut devices = lock(&self.devices);
        let fail = |failure| Error::from_kernel(Operation::Detach, subject(), failure);
        let place = devices.iter().position(|attached| Arc::ptr_eq(attached, device));
        let place = place.ok_or_else(|| Error::new(Operation::Detach, subject(), Kind::NotAttached))?;
        // While it is there: what fills a table that is gone would hold on to the memory.
        self.leave_fillers(&**device).map_err(fail)?;
        if let Err(failure) = until_gone(|| self.backend.detach(&**device, self.attach_point())) {
            self.join_fillers_again(&**device);
            return Err(fail(failure));
        }
        devices.remove(place);
        self.tell_all();
        if devices.is_empty() && self.backend.forgets_with_the_last_device() {
            self.end_fillers();
            self.forget_everything();
        }
        // Windows only grow when a device leaves: those there were will do.
        let windows = with_retries(|| self.backend.refresh(devices.len())).unwrap_or_else(|failure| {
            log::warn!("{}: the windows could not be read again: {failure}", self.backend.name());
            self.layout().windows.as_ref().clone()
        });
        let change = self.adopt_windows(windows);
        let lost = self.refill_tables(Operation::Detach, devices.len());
        let cause = self.fences().into_iter().find(|fence| lost.contains(&fence.range)).map(|fence| fence.cause);
        match cause {
            Some(cause) => Err(fail(cause).fencing(lost)),
            None => Ok(change),
        }
    }
}

impl Layout {
    /// Windows with `live` in them, which must fit.
    fn new(generation: u64, windows: Windows, live: Vec<Mapping>) -> Self {
        let slots: Vec<_> = windows.iter().map(|window| Arc::new(Slot::new(*window))).collect();
        let layout = Self { generation, windows: Arc::new(windows), slots };
        for mapping in live {
            if let Some(slot) = layout.slot_at(mapping.range.first()) {
                slot.record(mapping);
            }
        }
        layout
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot { generation: self.generation, windows: self.windows.clone() }
    }

    fn slot_at(&self, at: Iova) -> Option<&Arc<Slot>> {
        let after = self.slots.partition_point(|slot| slot.window.range.first() <= at);
        self.slots.get(after.checked_sub(1)?).filter(|slot| slot.window.range.contains(at))
    }
}

impl Slot {
    fn new(window: Window) -> Self {
        Self { window, operations: Mutex::default(), live: RwLock::default(), filler: None }
    }

    fn record(&self, mapping: Mapping) {
        write(&self.live).insert(mapping);
    }
}

impl<B: Backend> Drop for Space<B> {
    /// The successor empties a space that was handed over. Its memory is kept for ever, as memory behind a fence is: devices reach it until
    /// the successor unmaps it, which may be later, or in this process.
    fn drop(&mut self) {
        if *read(&self.gate) == Ownership::Here {
            self.empty();
        } else {
            for mapping in self.mappings(IovaRange::all()) {
                std::mem::forget(mapping.memory);
            }
        }
        for fenced in write(&self.fenced).drain(..) {
            fenced.memory.into_iter().for_each(std::mem::forget);
        }
    }
}

impl<B: Backend> Space<B> {
    /// Windows that were created go with everything in them, fixed ones are emptied in one call, or one each where a fence may lie in
    /// between. What cannot be unmapped keeps its memory for ever.
    fn empty(&self) {
        self.leave_fillers_for_good();
        let layout = self.layout();
        let slots: Vec<&Slot> = layout.slots.iter().map(AsRef::as_ref).collect();
        let at_once = self.keeps() == MappingModel::Mappings && read(&self.fenced).is_empty();
        let mut in_doubt = false;
        for slots in slots.chunks(if at_once { slots.len().max(1) } else { 1 }) {
            let emptied = match self.backend.window_calls() {
                Some(calls) => {
                    let remove = |slot: &&Slot| until_gone(|| calls.remove(slot.window)).map(drop);
                    slots.iter().try_for_each(remove)
                }
                None => match hull_over(slots, IovaRange::all()) {
                    Some((hull, bytes)) => Self::dissolve(bytes, || self.backend.unmap(hull)),
                    None => Ok(()),
                },
            };
            if let Err(failure) = emptied {
                log::error!("{}: emptying windows failed: {failure}; their memory is kept", self.backend.name());
                for mapping in slots.iter().flat_map(|slot| slot.mappings(slot.window.range)) {
                    self.tell_mapping(&mapping);
                    std::mem::forget(mapping.memory);
                }
                in_doubt = true;
            }
        }
        // Under live entries the kernel would say yes and keep the pins; it lets go of them itself when the container goes.
        if let Some(calls) = self.backend.registration_calls().filter(|_| !in_doubt) {
            for memory in std::mem::take(&mut *write(&self.registered)).into_values() {
                let left =
                    calls.runs().leave(&memory, || until_gone(|| calls.unregister(&Lease::kept_by_space(&memory))));
                if let Err(failure) = left {
                    calls.runs().forget(&memory);
                    log::error!("{}: {memory} could not be unregistered: {failure}; it is kept", self.backend.name());
                    std::mem::forget(memory);
                }
            }
        }
        self.forget_registrations();
        self.let_go_of_everything();
        for device in lock(&self.devices).drain(..).rev() {
            if let Err(failure) = until_gone(|| self.backend.detach(&*device, self.attach_point())) {
                log::warn!("{}: {} could not be detached: {failure}", self.backend.name(), device.name());
            }
        }
        self.tell_all();
    }
}

/// The smallest range that holds what lives in `range` of these windows, and how many bytes that is.
fn hull_over(slots: &[&Slot], range: IovaRange) -> Option<(IovaRange, u64)> {
    let hulls = slots.iter().filter_map(|slot| read(&slot.live).hull(range));
    hulls.reduce(|(hull, bytes), (next, more)| (hull.hull(next), bytes.saturating_add(more)))
}

/// A kernel's refusal of something that would have locked `wanted` bytes. Only where memory was short is asked how much may be locked.
fn refused(
    backend: &impl Backend,
    operation: Operation,
    subject: impl Into<Subject>,
    failure: Failure,
    wanted: impl Into<Option<u64>>,
) -> Error {
    let mut error = Error::from_kernel(operation, subject, failure);
    if let Kind::PinLimit(limit) = &mut error.kind {
        *limit = PinLimit { wanted: wanted.into(), allowance: backend.allowance() };
    }
    error
}

/// The pages of an aligned range, ascending.
fn pages(range: IovaRange, page: PageSize) -> impl Iterator<Item = IovaRange> {
    let count = range.bytes() >> page.shift();
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    (0..count).map_while(move |n| {
        let first = range.first().get().checked_add(n << page.shift())?;
        IovaRange::with_len(Iova::new(first), page.bytes()).ok()
    })
}

// A panic in another thread is no reason to lose track of what devices can reach: data under these locks is changed in single steps.

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
