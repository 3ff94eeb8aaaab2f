//! What a backend has to bring: calls, and nothing else.
//!
//! [`crate::Space`] checks and remembers; a [`Backend`] turns one request into one kernel call (or a fixed few) and reports what the
//! kernel said. It keeps no index of mappings and no policy.

use std::fmt;

use crate::contract::eeh::PeOperation;
use crate::contract::{AttachPlace, AttachPoint, Attachable, Capabilities, MappingBudget, WindowOffer, WindowRequest};
use crate::door::registrations::ProcessRegistrations;
use crate::door::{Failure, Lease};
use crate::retry::Undone;
use crate::words::access::Access;
use crate::words::address::IovaRange;
use crate::words::locked::Allowance;
use crate::words::memory::HostMemory;
use crate::words::page::PageSize;
use crate::words::window::{Window, Windows};

/// One host IOMMU context: a VFIO container, an IOAS.
///
/// Calls arrive checked: ranges lie in one window, are aligned to its granule as the host address is, overlap nothing (on a backend
/// that keeps entries they may replace), and memory is backed if the door is real. Dropping a backend closes its handles.
///
/// # Safety
/// A [`crate::Space`] keeps the memory of a mapping until the backend has reported that the mapping is gone. So an implementation must
/// never report as unmapped, unregistered, removed or detached what a device may still reach; it must map the memory that it is given
/// and no other; and [`Backend::forgets_with_the_last_device`] must be false unless the kernel does so.
#[expect(unsafe_code, reason = "UNSAFETY: a space frees memory when a backend says that its mapping is gone")]
pub unsafe trait Backend: Send + Sync + fmt::Debug + 'static {
    /// "type1", "spapr", "spapr-v1", "iommufd".
    fn name(&self) -> &'static str;

    /// What the host can do. Makes no call.
    fn capabilities(&self) -> Capabilities;

    /// What may be locked and what of it is taken, as this backend's kernel counts, where the door can tell. Asked after a call has
    /// failed, for the error.
    fn allowance(&self) -> Option<Allowance> {
        None
    }

    /// The bytes that [`Backend::refresh`] locks for the first device, whatever is mapped later. Asked after a refresh has failed, for the
    /// error.
    fn locked_at_start(&self) -> u64 {
        0
    }

    /// Whether devices reach real memory through it ([`crate::door::Door::is_real`]).
    fn is_real(&self) -> bool;

    /// The place at which devices are attached.
    fn attach_place(&self) -> AttachPlace {
        AttachPlace::ThisBackend
    }

    /// Attaches a device: at [`Backend::attach_place`], for which `point` is, unless the backend has a better place for it.
    ///
    /// # Errors
    /// The failure of the kernel's call; the device is not attached then.
    fn attach(&self, device: &dyn Attachable, point: AttachPoint<'_>) -> Result<(), Failure> {
        device.attach_to(point)
    }

    /// Detaches a device.
    ///
    /// # Errors
    /// The failure of the kernel's call; the device is still attached then.
    fn detach(&self, device: &dyn Attachable, point: AttachPoint<'_>) -> Result<Undone, Failure> {
        device.detach_from(point)
    }

    /// Whether the kernel forgets all mappings when the last device leaves, as containers do.
    fn forgets_with_the_last_device(&self) -> bool {
        false
    }

    /// Asks the host what it offers now. Called after a device came or went; `devices` is how many are attached.
    ///
    /// # Errors
    /// What the kernel said, or a reply that cannot be true.
    fn refresh(&self, devices: usize) -> Result<Windows, Failure>;

    /// One map call: `memory` at `range`, which are of one size.
    ///
    /// # Errors
    /// What the kernel said. On a backend that keeps entries, entries of the range may be gone; elsewhere nothing changed.
    fn map(&self, range: IovaRange, memory: &Lease<'_>, access: Access) -> Result<(), Failure>;

    /// Whether a map of `len` bytes that failed so may have left entries in the IOMMU's tables that belong to no mapping: no unmap finds
    /// them, and no later map replaces them.
    fn may_leave_entries(&self, _len: u64, _failure: &Failure) -> bool {
        false
    }

    /// One unmap call over whole mappings, gaps between them allowed, and how many bytes the kernel says were there (`None` where
    /// it does not say: sPAPR). [`crate::Space`] judges the number.
    ///
    /// # Errors
    /// The kernel's answer, where it does not mean that nothing is mapped there.
    fn unmap(&self, range: IovaRange) -> Result<Undone<Option<u64>>, Failure>;

    /// Returns whether an attach that failed so may have been refused because a range that is reserved for the device overlaps a
    /// live mapping.
    fn may_be_a_collision(&self, _failure: &Failure) -> bool {
        false
    }

    /// The calls that this host has beyond mapping. Makes no call.
    fn calls(&self) -> Calls<'_> {
        Calls::default()
    }
}

/// The calls of a backend beyond mapping. `None` for calls that its host lacks.
#[derive(Clone, Copy, Default)]
#[non_exhaustive]
pub struct Calls<'a> {
    /// Creating and removing windows.
    pub windows: Option<&'a dyn WindowCalls>,
    /// Registering memory before it is mapped.
    pub registration: Option<&'a dyn RegistrationCalls>,
    /// Recovering a device that its host has isolated after an error.
    pub eeh: Option<&'a dyn EehCalls>,
    /// Sharing pins with other spaces of the host.
    pub pin_sharing: Option<&'a dyn SharingCalls>,
    /// Logging what devices write.
    pub dirty: Option<&'a dyn DirtyCalls>,
    /// Moving the addresses of mappings, for a live update.
    pub vaddr: Option<&'a dyn VaddrCalls>,
    /// Asking how many mappings the kernel still accepts.
    pub mapping_budget: Option<&'a dyn MappingBudget>,
}

/// Creating and removing windows.
pub trait WindowCalls: Send + Sync {
    /// What can be created, once the host was asked.
    fn offer(&self) -> Option<WindowOffer>;

    /// Creates a window of the size and page asked for and returns the one granted, wherever that is.
    ///
    /// # Errors
    /// What the kernel said; there is no new window then.
    fn create(&self, request: WindowRequest) -> Result<Window, Failure>;

    /// Removes a window with everything mapped in it.
    ///
    /// # Errors
    /// What the kernel said; it is still there then.
    fn remove(&self, window: Window) -> Result<Undone, Failure>;

    /// The bytes of locked memory the table of such a window takes.
    fn table_bytes(&self, request: WindowRequest) -> u64;
}

/// Registering memory.
pub trait RegistrationCalls: Send + Sync {
    /// Registers all of `memory`.
    ///
    /// # Errors
    /// What the kernel said; nothing is registered then.
    fn register(&self, memory: &Lease<'_>) -> Result<(), Failure>;

    /// Unregisters exactly what was registered.
    ///
    /// # Errors
    /// What the kernel said.
    fn unregister(&self, memory: &Lease<'_>) -> Result<Undone, Failure>;

    /// What the process has registered, through whichever space. [`crate::Space`] keeps it.
    fn runs(&self) -> &ProcessRegistrations;
}

/// Holding memory for all spaces that share what they pin. [`Backend::map`] of memory that is held pins nothing that one of them has
/// pinned already.
pub trait SharingCalls: Send + Sync {
    /// Holds `memory`, which pins nothing by itself. Others may hold any part of it, and the same piece may be held more than once.
    ///
    /// # Errors
    /// What the kernel said; it is not held then.
    fn share_pins(&self, memory: &Lease<'_>) -> Result<(), Failure>;

    /// Lets go of exactly what was held. What is mapped of it stays mapped. A kernel that will not let go is asked again later.
    fn stop_sharing(&self, memory: &HostMemory);

    /// How often all of `memory` is held, this space's own holding included; 0 when a byte of it is not. Makes no call.
    fn sharers(&self, memory: &HostMemory) -> usize;
}

/// Logging what devices write.
pub trait DirtyCalls: Send + Sync {
    /// The page in which the host as it is now (its kernel, all of its devices) logs. `None`: it cannot. Makes no call.
    fn page(&self) -> Option<PageSize>;

    /// Whether logging needs a device: it cannot begin before the first is attached, and ends when the last leaves. A container has no
    /// driver without a group.
    fn needs_a_device(&self) -> bool {
        false
    }

    /// Begins to log, with nothing logged yet. A device that is attached later logs too.
    ///
    /// # Errors
    /// What the kernel said; nothing is logged then.
    fn start(&self) -> Result<(), Failure>;

    /// Ends it.
    ///
    /// # Errors
    /// What the kernel said.
    fn stop(&self) -> Result<(), Failure>;

    /// What a question may be about.
    fn reach(&self) -> DirtyReach;

    /// Reads what was logged in `range` and clears it: bit n of `bitmap` (bit n % 64 of word n / 64) is set when page n from the start of the
    /// range was written. The bitmap is zero before, and has room, with a host page more behind it, where anything may be set.
    ///
    /// # Errors
    /// What the kernel said. What was logged may be lost then.
    fn fetch(&self, range: IovaRange, bitmap: &mut [u64]) -> Result<(), Failure>;

    /// [`Backend::unmap`], with what was logged in the range until then, where one call does both. `None`: none does.
    ///
    /// # Errors
    /// As [`Backend::unmap`]. What was logged may be lost then.
    fn unmap(&self, _range: IovaRange, _bitmap: &mut [u64]) -> Option<Result<Undone<Option<u64>>, Failure>> {
        None
    }
}

/// What a question about written pages may be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyReach {
    /// Whether gaps between mappings are fine. iommufd says nothing of what lies behind one, and does not say that (linux:
    /// drivers/iommu/iommufd/io_pagetable.c, iommu_read_and_clear_dirty).
    pub over_gaps: bool,
    /// Whether a part of a mapping can be asked about.
    pub parts_of_mappings: bool,
    /// The most bytes a bitmap may have.
    pub longest_bitmap: usize,
}

/// Having mappings find their memory in another process, or elsewhere in this one.
pub trait VaddrCalls: Send + Sync {
    /// Why the host as it is now (its kernel, all of its devices, what is mapped) cannot, and what to do. `None`: it can.
    ///
    /// # Errors
    /// What the kernel said.
    fn obstacle(&self) -> Result<Option<&'static str>, Failure>;

    /// Lets go of the addresses of all mappings in `range`, in one call, and how many bytes they have (`None` where nobody says).
    ///
    /// # Errors
    /// What the kernel said; no address is let go of then. It refuses when one was let go of before.
    fn let_go(&self, range: IovaRange) -> Result<Undone<Option<u64>>, Failure>;

    /// Has the mapping that is exactly `range`, and whose address was let go of, find its memory at `memory`, and charges this process.
    ///
    /// # Errors
    /// What the kernel said; nothing changed then.
    fn give(&self, range: IovaRange, memory: &Lease<'_>) -> Result<(), Failure>;
}

/// Recovering the PE of the group that is attached.
pub trait EehCalls: Send + Sync {
    /// Whether the host recovers devices. Asks the kernel once.
    fn is_available(&self) -> bool;

    /// Does one thing to it, and returns what the kernel did: for [`PeOperation::State`] the state's number, else 0.
    ///
    /// # Errors
    /// What the kernel said.
    fn operate(&self, operation: PeOperation) -> Result<i32, Failure>;
}
