//! The calls of a host, which a backend implements.
//!
//! A [`crate::Space`] checks requests and keeps the index. A [`Backend`] turns one request into one kernel call (or a
//! fixed few) and returns the kernel's answer. It keeps no index of mappings and decides nothing.

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
/// Calls arrive checked: ranges lie in one window, are aligned to its granule as the host address is, overlap nothing
/// (on a backend that keeps entries they may replace), and memory is backed if the door is real. Dropping a backend
/// closes its handles.
///
/// # Safety
/// A [`crate::Space`] keeps the memory of a mapping until the backend has reported that the mapping is gone. So an
/// implementation must never report as unmapped, unregistered, removed or detached what a device may still reach; it
/// must map the memory that it is given and no other; and [`Backend::forgets_with_the_last_device`] must be false
/// unless the kernel does so.
#[expect(unsafe_code, reason = "UNSAFETY: a space frees memory when a backend says that its mapping is gone")]
pub unsafe trait Backend: Send + Sync + fmt::Debug + 'static {
    /// The name of the backend, for errors and logs: "type1", "spapr", "spapr-v1", "iommufd".
    fn name(&self) -> &'static str;

    /// The properties of the host that a plan depends on. Makes no call.
    fn capabilities(&self) -> Capabilities;

    /// The limit on locked memory and the bytes that are taken, in this backend's account, where the door can read
    /// them. Called after a call has failed, for the error.
    fn allowance(&self) -> Option<Allowance> {
        None
    }

    /// The number of bytes that [`Backend::refresh`] locks for the first device, before anything is mapped. Called
    /// after a refresh has failed, for the error.
    fn locked_at_start(&self) -> u64 {
        0
    }

    /// Returns `true` if devices reach real memory through it ([`crate::door::Door::is_real`]).
    fn is_real(&self) -> bool;

    /// The place at which devices are attached.
    fn attach_place(&self) -> AttachPlace {
        AttachPlace::ThisBackend
    }

    /// Attaches a device: at [`Backend::attach_place`], for which `point` is, unless the backend has a better place for
    /// it.
    ///
    /// # Errors
    /// The failure of the kernel's call; the device is not attached then, unless the failure
    /// [may have an effect](Failure::may_have_effect).
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

    /// Returns `true` if the kernel forgets all mappings when the last device leaves, as containers do.
    fn forgets_with_the_last_device(&self) -> bool {
        false
    }

    /// Reads the host's windows. Called after a device was attached or detached; `devices` is the number of attached
    /// devices.
    ///
    /// # Errors
    /// The failure of the kernel's call, or a reply that cannot be true.
    fn refresh(&self, devices: usize) -> Result<Windows, Failure>;

    /// Makes one map call: `memory` at `range`, which are of one size.
    ///
    /// # Errors
    /// The failure of the kernel's call. On a backend that keeps entries, entries of the range may be gone; elsewhere
    /// nothing changed.
    fn map(&self, range: IovaRange, memory: &Lease<'_>, access: Access) -> Result<(), Failure>;

    /// Returns `true` if a map of `len` bytes with this failure may have left entries in the IOMMU's tables that belong
    /// to no mapping: no unmap finds them, and no later map replaces them.
    fn may_leave_entries(&self, _len: u64, _failure: &Failure) -> bool {
        false
    }

    /// One unmap call over whole mappings, gaps between them allowed, and how many bytes the kernel says were there
    /// (`None` where it does not say: sPAPR). [`crate::Space`] judges the number.
    ///
    /// # Errors
    /// The kernel's answer, where it does not mean that nothing is mapped there.
    fn unmap(&self, range: IovaRange) -> Result<Undone<Option<u64>>, Failure>;

    /// Returns whether an attach that failed so may have been refused because a range that is reserved for the device
    /// overlaps a live mapping.
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
    /// The windows that can be created, once the host has reported them.
    fn offer(&self) -> Option<WindowOffer>;

    /// Creates a window of the requested size and page, and returns the window that the kernel granted, wherever it is.
    ///
    /// # Errors
    /// The failure of the kernel's call; there is no new window then.
    fn create(&self, request: WindowRequest) -> Result<Window, Failure>;

    /// Removes a window with everything mapped in it.
    ///
    /// # Errors
    /// What the kernel said; it is still there then.
    fn remove(&self, window: Window) -> Result<Undone, Failure>;

    /// The bytes of locked memory that the table of such a window takes.
    fn table_bytes(&self, request: WindowRequest) -> u64;
}

/// Registering memory.
pub trait RegistrationCalls: Send + Sync {
    /// Registers all of `memory`.
    ///
    /// # Errors
    /// The failure of the kernel's call; nothing is registered then.
    fn register(&self, memory: &Lease<'_>) -> Result<(), Failure>;

    /// Unregisters exactly one registration.
    ///
    /// # Errors
    /// The failure of the kernel's call.
    fn unregister(&self, memory: &Lease<'_>) -> Result<Undone, Failure>;

    /// The registrations of the process, made through any space. [`crate::Space`] keeps the list.
    fn runs(&self) -> &ProcessRegistrations;
}

/// Sharing pins with other spaces. A [`Backend::map`] of shared memory pins no page that one of the spaces has pinned
/// already.
pub trait SharingCalls: Send + Sync {
    /// Shares the pins of `memory`, which pins nothing by itself. Other spaces may share any part of it, and one piece
    /// may be shared more than once.
    ///
    /// # Errors
    /// The failure of the kernel's call; the memory is not shared then.
    fn share_pins(&self, memory: &Lease<'_>) -> Result<(), Failure>;

    /// Stops sharing exactly the memory of one call. Its live mappings stay. A kernel that refuses is called again
    /// later.
    fn stop_sharing(&self, memory: &HostMemory);

    /// The number of times that all of `memory` is shared, this space included; 0 when a byte of it is not. Makes no
    /// call.
    fn sharers(&self, memory: &HostMemory) -> usize;
}

/// Logging the memory that devices write.
pub trait DirtyCalls: Send + Sync {
    /// The page size in which the host logs, as it is now (its kernel, all of its devices). `None` if it cannot log.
    /// Makes no call.
    fn page(&self) -> Option<PageSize>;

    /// Returns `true` if logging needs a device: it cannot begin before the first is attached, and ends when the last
    /// leaves. A container has no driver without a group.
    fn needs_a_device(&self) -> bool {
        false
    }

    /// Starts the log, with nothing logged yet. A device that is attached later logs too.
    ///
    /// # Errors
    /// The failure of the kernel's call; nothing is logged then.
    fn start(&self) -> Result<(), Failure>;

    /// Stops the log.
    ///
    /// # Errors
    /// The failure of the kernel's call.
    fn stop(&self) -> Result<(), Failure>;

    /// The ranges that one query may cover.
    fn reach(&self) -> DirtyReach;

    /// Reads the log of `range` and clears it: bit n of `bitmap` (bit n % 64 of word n / 64) is set when page n from
    /// the start of the range was written. The bitmap must be zeroed and one host page longer than the range needs; the
    /// kernel may set bits in that tail.
    ///
    /// # Errors
    /// The failure of the kernel's call. The log may be lost then.
    fn fetch(&self, range: IovaRange, bitmap: &mut [u64]) -> Result<(), Failure>;

    /// [`Backend::unmap`] with the log of the range until then, where one call does both. `None` where none does.
    ///
    /// # Errors
    /// The errors of [`Backend::unmap`]. The log may be lost then.
    fn unmap(&self, _range: IovaRange, _bitmap: &mut [u64]) -> Option<Result<Undone<Option<u64>>, Failure>> {
        None
    }
}

/// The ranges that one query of the log may cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirtyReach {
    /// `true` if a query may cover gaps between mappings. iommufd reports nothing behind a gap, and no error (linux:
    /// drivers/iommu/iommufd/io_pagetable.c, iommu_read_and_clear_dirty).
    pub over_gaps: bool,
    /// `true` if a query may cover a part of a mapping.
    pub parts_of_mappings: bool,
    /// The greatest number of bytes that a bitmap may have.
    pub longest_bitmap: usize,
}

impl DirtyReach {
    /// Queries over whole mappings without gaps, with bitmaps of at most this many bytes.
    pub const fn of_whole_mappings(longest_bitmap: usize) -> Self {
        Self { over_gaps: false, parts_of_mappings: false, longest_bitmap }
    }

    /// The same queries, also over gaps between mappings.
    #[must_use]
    pub const fn with_gaps(self) -> Self {
        Self { over_gaps: true, ..self }
    }

    /// The same queries, also over parts of mappings.
    #[must_use]
    pub const fn with_parts_of_mappings(self) -> Self {
        Self { parts_of_mappings: true, ..self }
    }
}

/// Moving the addresses of mappings to another process, or to another place in this one.
pub trait VaddrCalls: Send + Sync {
    /// The reason for which the host as it is now (its kernel, all of its devices, its mappings) cannot move addresses,
    /// and the remedy. `None` if it can.
    ///
    /// # Errors
    /// The failure of the kernel's call.
    fn obstacle(&self) -> Result<Option<&'static str>, Failure>;

    /// Invalidates the addresses of all mappings in `range`, in one call, and returns the number of their bytes (`None`
    /// where the kernel does not report it).
    ///
    /// # Errors
    /// The failure of the kernel's call; no address is invalidated then. The kernel refuses if an address is invalid
    /// already.
    fn invalidate(&self, range: IovaRange) -> Result<Undone<Option<u64>>, Failure>;

    /// Sets the address of the mapping that is exactly `range`, and whose address is invalid, to `memory`, and charges
    /// this process.
    ///
    /// # Errors
    /// The failure of the kernel's call; nothing changed then.
    fn update(&self, range: IovaRange, memory: &Lease<'_>) -> Result<(), Failure>;
}

/// Recovering the PE of the one attached group.
pub trait EehCalls: Send + Sync {
    /// Returns `true` if the host recovers devices. Asks the kernel once.
    fn is_available(&self) -> bool;

    /// Performs one operation, and returns the kernel's result: the number of the state for [`PeOperation::State`],
    /// otherwise 0.
    ///
    /// # Errors
    /// The failure of the kernel's call.
    fn operate(&self, operation: PeOperation) -> Result<i32, Failure>;
}
