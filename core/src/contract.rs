//! The contract: what a PCI address space with DMA windows is, whatever host is behind it.
//!
//! The kernels disagree on what a map over a live mapping does, whether part of a mapping can be unmapped, and which part of a range
//! is checked. [`PciAddressSpace`] gives one answer each; [`crate::Space`] keeps it for every [`crate::Backend`], and one suite
//! of tests holds every backend to it.

mod attachable;
pub mod dirty;
pub mod eeh;
pub mod kernel_tables;
pub mod live_update;

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

pub use attachable::{AttachPlace, AttachPoint, Attachable};

use crate::contract::dirty::DirtyTracking;
use crate::contract::eeh::Eeh;
use crate::contract::kernel_tables::KernelTables;
use crate::contract::live_update::LiveUpdate;
use crate::door::Failure;
use crate::door::registrations::ProcessRegistrations;
use crate::error::Error;
use crate::words::access::Access;
use crate::words::address::{Iova, IovaRange};
use crate::words::memory::HostMemory;
use crate::words::page::{PageSize, PageSizes};
use crate::words::reserved::Reserved;
use crate::words::window::{Window, Windows};

/// The smallest part of a mapping that can be unmapped by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// The mapping is only ever unmapped as a whole, which lets every kernel make it in one call.
    Whole,
    /// Any run of pages of this size may be unmapped later. type1 and iommufd need one call a page for that; sPAPR does not.
    Pages(PageSize),
}

/// One live mapping, or a run of units that continue each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where on the bus.
    pub range: IovaRange,
    /// What is behind it, byte for byte.
    pub memory: HostMemory,
    /// What devices may do.
    pub access: Access,
    /// How it may be unmapped.
    pub unit: Unit,
}

/// Whether devices could miss the mapping while it was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Swap {
    /// The kernel swapped entry by entry.
    Seamless,
    /// It was unmapped and mapped again: for a moment devices found nothing.
    WithGap,
}

/// What a host can do, as far as planning has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// What the kernel keeps: whole mappings or table entries.
    pub keeps: MappingModel,
    /// Whether another device's mmapped BAR can be mapped by its address.
    pub maps_device_memory: bool,
    /// Whether memory that knows its file ([`HostMemory::file`]) is mapped by that, as far as is known: a kernel that turns out not to is
    /// given addresses from then on. A BAR that its device exported can be mapped so.
    pub maps_files: bool,
    /// Whether memory that this process may only read can be mapped for reading: sPAPR pins for writing always.
    pub maps_host_read_only: bool,
    /// The page the host's memory is made of.
    pub host_page: PageSize,
    /// Whether what is mapped can be handed over to another process.
    pub hands_over: LiveUpdateSupport,
}

/// Whether what is mapped can be handed over to another process, as far as a backend knows without a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LiveUpdateSupport {
    /// Where the kernel and the devices are up to it: it is asked when it is due ([`LiveUpdate::hand_over`]).
    WhereTheKernelCan,
    /// Never: why, and what to do.
    Never(&'static str),
}

impl Capabilities {
    /// Whether such memory can be mapped, if it is another device's.
    pub fn reaches(&self, memory: &HostMemory) -> bool {
        !memory.is_device_memory() || self.maps_device_memory || (self.maps_files && memory.file().is_some())
    }
}

/// What a kernel keeps of a map call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MappingModel {
    /// The mapping as a whole: only whole mappings can be unmapped, and a map over a live one is refused (type1, iommufd).
    Mappings,
    /// One table entry a page: any page can be unmapped, and a map over a live entry replaces it (sPAPR).
    PageEntries,
}

/// The windows at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Grows with every change of the windows.
    pub generation: u64,
    /// The windows.
    pub windows: Arc<Windows>,
}

/// A range whose state in the kernel is unknown after a failure that could not be undone. It is unusable, and its memory is held,
/// until the space is dropped; the memory even longer, since a device might still reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The range.
    pub range: IovaRange,
    /// What left it in this state.
    pub cause: Failure,
}

/// A PCI address space with DMA windows: what a device's DMA addresses mean, on one host IOMMU context (a VFIO container, an IOAS).
///
/// Verbs take `&self` and may be called from any thread. After an error everything is as it was before the call, except
/// for ranges the error names as fenced.
///
/// Dropping a space releases everything: mappings, windows, registrations, devices, descriptors, locked memory; except for memory
/// behind a fence, which is held for ever, since a device might still reach it.
pub trait PciAddressSpace: Send + Sync + fmt::Debug {
    /// The backend's name: "type1", "spapr", "spapr-v1", "iommufd".
    fn backend(&self) -> &'static str;

    /// What the host can do.
    fn powers(&self) -> Capabilities;

    /// How many mappings the kernel still takes, where it counts them (type1: `dma_avail`). Asked anew each time.
    fn mappings_left(&self) -> Option<u64>;

    /// The windows in force.
    fn windows(&self) -> Snapshot;

    /// The names of the devices attached, in the order they came.
    fn devices(&self) -> Vec<String>;

    /// Where the devices attached do not reach memory, and why, as far as whoever attached them knows. The windows leave all of it out,
    /// and perhaps more.
    fn reserved(&self) -> Vec<Reserved> {
        Vec::new()
    }

    /// The ranges that cannot be used any more.
    fn fences(&self) -> Vec<Fence>;

    /// Puts up a fence where whoever uses the space could not bring something back, and holds `memory` behind it.
    fn fence(&self, range: IovaRange, memory: Option<HostMemory>, cause: Failure);

    /// Maps all of `memory` at `at`.
    ///
    /// The range must lie inside one window; its bounds, and the host address, must be multiples of the window's granule, and of the
    /// unit's page where one is given; no byte of it may be mapped already. A map of n units behaves as n mappings of one unit.
    ///
    /// # Errors
    /// In this order, all before the kernel is asked: [`Kind::BadRange`], [`Kind::NoAccess`], [`Kind::HostReadOnly`],
    /// [`Kind::Unbacked`], [`Kind::DeviceMemory`], [`Kind::Fenced`], [`Kind::OutsideWindows`], [`Kind::KernelOwned`], [`Kind::Misaligned`],
    /// [`Kind::BadUnit`], [`Kind::Overlap`], and on hosts that want registration [`Kind::NotRegistered`]. Then what the kernel says:
    /// [`Kind::PinLimit`], [`Kind::BadAddress`], [`Kind::NoMappingSlot`], [`Kind::Refused`].
    ///
    /// [`Kind::BadRange`]: crate::error::Kind::BadRange
    /// [`Kind::NoAccess`]: crate::error::Kind::NoAccess
    /// [`Kind::HostReadOnly`]: crate::error::Kind::HostReadOnly
    /// [`Kind::Unbacked`]: crate::error::Kind::Unbacked
    /// [`Kind::DeviceMemory`]: crate::error::Kind::DeviceMemory
    /// [`Kind::Fenced`]: crate::error::Kind::Fenced
    /// [`Kind::OutsideWindows`]: crate::error::Kind::OutsideWindows
    /// [`Kind::KernelOwned`]: crate::error::Kind::KernelOwned
    /// [`Kind::Misaligned`]: crate::error::Kind::Misaligned
    /// [`Kind::BadUnit`]: crate::error::Kind::BadUnit
    /// [`Kind::Overlap`]: crate::error::Kind::Overlap
    /// [`Kind::NotRegistered`]: crate::error::Kind::NotRegistered
    /// [`Kind::PinLimit`]: crate::error::Kind::PinLimit
    /// [`Kind::BadAddress`]: crate::error::Kind::BadAddress
    /// [`Kind::NoMappingSlot`]: crate::error::Kind::NoMappingSlot
    /// [`Kind::Refused`]: crate::error::Kind::Refused
    fn map(&self, at: Iova, memory: &HostMemory, access: Access, unit: Unit) -> Result<(), Error>;

    /// Swaps the memory behind live units, in units of `page`: sPAPR in one call, others by unmapping and mapping, and says which.
    ///
    /// # Errors
    /// As [`PciAddressSpace::map`], but the range must be live ([`Kind::NotLive`](crate::error::Kind::NotLive)) and cut no unit
    /// ([`Kind::CutsUnit`](crate::error::Kind::CutsUnit)).
    fn replace(&self, at: Iova, memory: &HostMemory, access: Access, page: PageSize) -> Result<Swap, Error>;

    /// Unmaps whatever lives in `range`, gaps or not, and returns how many bytes that was.
    ///
    /// # Errors
    /// [`Kind::CutsUnit`](crate::error::Kind::CutsUnit) when an end of the range lies inside a unit,
    /// [`Kind::KernelOwned`](crate::error::Kind::KernelOwned), [`Kind::Fenced`](crate::error::Kind::Fenced), or what the kernel says.
    fn unmap(&self, range: IovaRange) -> Result<u64, Error>;

    /// The live mapping at `at`; in a window that somebody else fills, the entry there. Never waits for a kernel call.
    fn lookup(&self, at: Iova) -> Option<Mapping>;

    /// The live mappings that share bytes with `range`, ascending, units that continue each other joined. Cost proportional to what
    /// is live there.
    fn mappings(&self, range: IovaRange) -> Vec<Mapping>;

    /// A live mapping whose memory shares bytes with `memory`. Cost proportional to what is live.
    fn mapping_onto(&self, memory: &HostMemory) -> Option<IovaRange>;

    /// A fence behind which a device might still reach bytes of `memory`. Cost proportional to the fences there are.
    fn fence_onto(&self, memory: &HostMemory) -> Option<IovaRange>;

    /// How often the kernel has forgotten all mappings, windows and registrations because the last device left. Makes no call and
    /// takes no lock.
    fn times_forgotten(&self) -> u64;

    /// Creating and removing windows, where the host can.
    fn window_control(&self) -> Option<&dyn WindowControl> {
        None
    }

    /// Registering memory, where the host wants that before it maps.
    fn registration(&self) -> Option<&dyn MemoryRegistration> {
        None
    }

    /// Leaving windows to the kernel, where it can fill them by itself.
    fn kernel_tables(&self) -> Option<&dyn KernelTables> {
        None
    }

    /// Recovering a device that its host has isolated after an error, where hosts do that (POWER).
    fn eeh(&self) -> Option<&dyn Eeh> {
        None
    }

    /// Holding memory, where spaces of one host can share what they pin of it.
    fn sharing(&self) -> Option<&dyn PinSharing> {
        None
    }

    /// Telling what devices write: every host can, some only by telling everything they may.
    fn dirty_tracking(&self) -> &dyn DirtyTracking;

    /// Handing what is mapped over to another process while devices go on. Hosts that cannot refuse, and say why ([`Capabilities::hands_over`]).
    fn handover(&self) -> &dyn LiveUpdate;

    /// Attaches a device (a VFIO group, or a device by its own node) and says how that changed the windows.
    ///
    /// # Errors
    /// [`Kind::WouldStrand`](crate::error::Kind::WouldStrand) when a live mapping no longer fits: the kernel refused the attach, or it was
    /// undone. Else what the kernel says.
    fn attach(&self, device: Arc<dyn Attachable>) -> Result<WindowChange, Error>;

    /// Detaches a device. When the last one leaves a VFIO container, the kernel forgets all mappings, windows and registrations,
    /// and so does the space. An address space of an iommufd keeps them, also one that is in a container's place.
    ///
    /// # Errors
    /// [`Kind::NotAttached`](crate::error::Kind::NotAttached), or what the kernel says (`EBUSY`: its descriptor is still open).
    fn detach(&self, device: &Arc<dyn Attachable>) -> Result<WindowChange, Error>;
}

/// How windows changed when a device came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowChange {
    /// As they were.
    pub before: Snapshot,
    /// As they are. The same generation when nothing changed.
    pub after: Snapshot,
}

/// What windows a host can create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowOffer {
    /// The pages a window can be made of.
    pub page_sizes: PageSizes,
    /// How many windows there can be at once.
    pub slots: usize,
    /// Where the platform puts windows, as far as it is known, ascending. It may do otherwise: the grant is checked.
    pub places: Vec<WindowPlace>,
}

/// Where a platform puts windows, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowPlace {
    /// Where they begin.
    pub first: Iova,
    /// How long they can be, where there is a limit. A place that has one is the default window's of a platform's firmware, which is created
    /// before any other or not at all (linux: arch/powerpc/platforms/pseries/iommu.c, spapr_tce_create_table).
    pub longest: Option<NonZeroU64>,
    /// The pages they can be made of.
    pub page_sizes: PageSizes,
}

impl WindowPlace {
    /// Whether a window of `len` bytes can be had here.
    pub fn holds(&self, len: u64) -> bool {
        self.longest.is_none_or(|longest| len <= longest.get())
    }
}

/// A window somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowRequest {
    /// Where it must lie; its size must be a power of two.
    pub range: IovaRange,
    /// The page it is made of.
    pub page: PageSize,
}

/// Creating and removing windows: sPAPR v2's power.
pub trait WindowControl: Send + Sync {
    /// What can be created. `None` before the first device is attached.
    fn offer(&self) -> Option<WindowOffer>;

    /// Creates a window and returns what was granted. A window granted elsewhere than asked is removed again and is an error.
    ///
    /// # Errors
    /// [`Kind::BadWindowSize`](crate::error::Kind::BadWindowSize), [`Kind::UnsupportedPage`](crate::error::Kind::UnsupportedPage),
    /// [`Kind::Overlap`](crate::error::Kind::Overlap) with another window, [`Kind::Fenced`](crate::error::Kind::Fenced); then
    /// [`Kind::NoWindowSlot`](crate::error::Kind::NoWindowSlot), [`Kind::PinLimit`](crate::error::Kind::PinLimit),
    /// [`Kind::GrantedElsewhere`](crate::error::Kind::GrantedElsewhere).
    fn create_window(&self, request: WindowRequest) -> Result<Window, Error>;

    /// Removes the window that is exactly `range`, with everything mapped in it, and returns what was mapped, so that a journal can
    /// bring it back.
    ///
    /// # Errors
    /// [`Kind::NoSuchWindow`](crate::error::Kind::NoSuchWindow): an address inside would do for the kernel, and remove the wrong
    /// window (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_remove_window); not for us.
    /// [`Kind::KernelOwned`](crate::error::Kind::KernelOwned): it is to be taken back first, or whoever fills it would fill a table that is gone.
    fn remove_window(&self, range: IovaRange) -> Result<Vec<Mapping>, Error>;

    /// The bytes of locked memory the table of such a window takes.
    fn table_bytes(&self, request: WindowRequest) -> u64;
}

/// Registering memory: what sPAPR v2 wants before it maps.
pub trait MemoryRegistration: Send + Sync {
    /// Registers `memory`: pins and charges all of it.
    ///
    /// # Errors
    /// Before the kernel is asked: [`Kind::Unbacked`](crate::error::Kind::Unbacked),
    /// [`Kind::DeviceMemory`](crate::error::Kind::DeviceMemory), [`Kind::HostReadOnly`](crate::error::Kind::HostReadOnly),
    /// [`Kind::Misaligned`](crate::error::Kind::Misaligned) to the host's page,
    /// [`Kind::AlreadyRegistered`](crate::error::Kind::AlreadyRegistered) by this space in whole or in part, or by another space of the
    /// process as part of something else ([`MemoryRegistration::runs`]). Then
    /// [`Kind::PinLimit`](crate::error::Kind::PinLimit), [`Kind::BadAddress`](crate::error::Kind::BadAddress).
    fn register(&self, memory: &HostMemory) -> Result<(), Error>;

    /// Unregisters exactly what was registered.
    ///
    /// # Errors
    /// [`Kind::InUse`](crate::error::Kind::InUse) when a live mapping leans on it: the kernel would say yes and leak the pins (linux:
    /// drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_unregister_pages).
    /// [`Kind::NotRegistered`](crate::error::Kind::NotRegistered) when it is not exactly one registration.
    fn unregister(&self, memory: &HostMemory) -> Result<(), Error>;

    /// What is registered, ascending by host address.
    fn registered(&self) -> Vec<HostMemory>;

    /// What the process has registered, through this space or others. What overlaps one of these runs can only be registered by
    /// registering exactly that, which pins and charges nothing more. `None` where there is nothing of that kind.
    fn runs(&self) -> Option<&ProcessRegistrations>;
}

/// Holding memory, so that spaces of one host share what they pin of it: iommufd.
///
/// Nothing has to be held before it is mapped. Of what is held when it is mapped, each page is pinned and charged once, however many of
/// the spaces map it; of what is not, once for each mapping. Holding pins nothing.
///
/// A page stays pinned while one of the spaces maps it, and whoever maps it again gets that page. So before a page is dropped (discarded,
/// ballooned) it must be unmapped in all of them: a listener does that for those it serves, and for no other.
pub trait PinSharing: Send + Sync {
    /// Holds `memory`. What is mapped of it already stays pinned by itself.
    ///
    /// # Errors
    /// Before the kernel is asked: [`Kind::Unbacked`](crate::error::Kind::Unbacked),
    /// [`Kind::DeviceMemory`](crate::error::Kind::DeviceMemory), [`Kind::Misaligned`](crate::error::Kind::Misaligned) to the host's
    /// page, [`Kind::AlreadyShared`](crate::error::Kind::AlreadyShared) by this space, in whole or in part. Then what the kernel says.
    fn share_pins(&self, memory: &HostMemory) -> Result<(), Error>;

    /// Lets go of exactly what was held.
    ///
    /// # Errors
    /// [`Kind::InUse`](crate::error::Kind::InUse) when a live mapping of this space leans on it: it would stay, but nobody could share it
    /// any more. [`Kind::NotShared`](crate::error::Kind::NotShared) when it is not exactly what was held at once.
    fn stop_sharing(&self, memory: &HostMemory) -> Result<(), Error>;

    /// What this space holds, ascending by host address.
    fn shared(&self) -> Vec<HostMemory>;

    /// How many of the spaces that share hold all of `memory`: 0 when a map of it would pin it anew, 1 when it would be the first, more
    /// when others may have pinned it already.
    fn sharers(&self, memory: &HostMemory) -> usize;
}
