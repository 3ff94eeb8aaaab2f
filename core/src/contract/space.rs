//! The PCI address space itself.

use std::fmt;
use std::sync::Arc;

use crate::contract::{Attachable, Capabilities, MapBatch, MapRequest, Mapping, Powers, Snapshot, Swap, WindowChange};
use crate::door::Failure;
use crate::error::Error;
use crate::words::access::Access;
use crate::words::address::{HostAddress, Iova, IovaRange};
use crate::words::memory::HostMemory;
use crate::words::reserved::Reserved;

/// A range whose state in the kernel is unknown after a failure that could not be undone. It is unusable until the
/// space is dropped. Its memory is kept for ever, since a device might still reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fence {
    /// The range.
    pub range: IovaRange,
    /// The failure that left it in this state.
    pub cause: Failure,
}

/// A space as it is at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Description {
    /// The backend's name: "type1", "type1-on-iommufd", "spapr", "spapr-v1", "iommufd", or that of another crate's
    /// backend.
    pub backend: &'static str,
    /// The properties of the host that a plan depends on.
    pub capabilities: Capabilities,
    /// The names of the attached devices, in the order in which they were attached.
    pub devices: Vec<String>,
    /// The ranges in which an attached device does not reach memory, as far as they are known. No window includes one
    /// of them that [blocks mappings](Reserved::counts), and the windows may exclude more.
    pub reserved: Vec<Reserved>,
    /// The ranges that cannot be used any more.
    pub fences: Vec<Fence>,
}

impl Description {
    pub(crate) fn new(backend: &'static str, capabilities: Capabilities) -> Self {
        Self { backend, capabilities, devices: Vec::new(), reserved: Vec::new(), fences: Vec::new() }
    }
}

/// A PCI address space with DMA windows: the meaning of a device's DMA addresses, in one host IOMMU context (a VFIO
/// container, an IOAS).
///
/// [`Space`](crate::Space) is the one implementation, for any [`Backend`](crate::Backend): it keeps the index and the
/// fences that these promises need, so the trait is sealed. A crate that supports another host implements
/// [`Backend`](crate::Backend).
///
/// Verbs take `&self` and may be called from any thread. After an error everything is as it was before the call, except
/// for ranges that the error reports as fenced.
///
/// Dropping a space releases everything: mappings, windows, registrations, devices, descriptors, locked memory; except
/// for memory behind a fence, which is kept for ever.
pub trait PciAddressSpace: ForListeners + Send + Sync + fmt::Debug {
    /// The space as it is now. Does not wait for a kernel call.
    fn describe(&self) -> Description;

    /// The windows in force.
    fn windows(&self) -> Snapshot;

    /// Maps all of the request's memory at its address.
    ///
    /// The range must lie inside one window; its bounds, and the host address, must be multiples of the window's
    /// granule, and of the unit's page if there is one; no byte of it may be mapped already. A map of n units behaves
    /// as n mappings of one unit.
    ///
    /// # Errors
    /// In this order, all before the kernel is asked: [`Kind::BadRange`], [`Kind::NoAccess`], [`Kind::HostReadOnly`],
    /// [`Kind::Unbacked`], [`Kind::DeviceMemory`], [`Kind::Rounded`], [`Kind::Fenced`], [`Kind::OutsideWindows`],
    /// [`Kind::KernelOwned`], [`Kind::Misaligned`], [`Kind::BadUnit`], [`Kind::Overlap`], and on hosts that require
    /// registration [`Kind::NotRegistered`]. Then the kernel's failure: [`Kind::PinLimit`], [`Kind::BadAddress`],
    /// [`Kind::NoMappingSlot`], [`Kind::Refused`].
    ///
    /// [`Kind::BadRange`]: crate::error::Kind::BadRange
    /// [`Kind::NoAccess`]: crate::error::Kind::NoAccess
    /// [`Kind::HostReadOnly`]: crate::error::Kind::HostReadOnly
    /// [`Kind::Unbacked`]: crate::error::Kind::Unbacked
    /// [`Kind::DeviceMemory`]: crate::error::Kind::DeviceMemory
    /// [`Kind::Rounded`]: crate::error::Kind::Rounded
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
    fn map(&self, request: MapRequest<'_>) -> Result<(), Error>;

    /// Maps all parts of a batch, or none: as one [`PciAddressSpace::map`] for each part, ascending, but every part is
    /// checked before the kernel is asked for the first, and the index is searched and changed once. A failure undoes
    /// the parts before it.
    ///
    /// # Errors
    /// The errors of [`PciAddressSpace::map`], of the first part that has one;
    /// [`Kind::Overlap`](crate::error::Kind::Overlap) also where two parts share a byte.
    fn map_batch(&self, batch: &MapBatch) -> Result<(), Error>;

    /// Replaces the memory behind live units with the request's memory: sPAPR in one call, others by unmapping and
    /// mapping. Returns which.
    ///
    /// # Errors
    /// The errors of [`PciAddressSpace::map`], but the range must be live
    /// ([`Kind::NotLive`](crate::error::Kind::NotLive)) and cut no unit
    /// ([`Kind::CutsUnit`](crate::error::Kind::CutsUnit)).
    fn replace(&self, request: MapRequest<'_>) -> Result<Swap, Error>;

    /// Unmaps the live mappings in `range`, which may have gaps, and returns the number of bytes that were mapped.
    ///
    /// # Errors
    /// [`Kind::CutsUnit`](crate::error::Kind::CutsUnit) when an end of the range lies inside a unit,
    /// [`Kind::KernelOwned`](crate::error::Kind::KernelOwned), [`Kind::Fenced`](crate::error::Kind::Fenced), or the
    /// kernel's failure.
    fn unmap(&self, range: IovaRange) -> Result<u64, Error>;

    /// The live mapping at `at`; in a window whose entries the kernel writes, the entry there. Does not wait for a
    /// kernel call.
    fn lookup(&self, at: Iova) -> Option<Mapping>;

    /// The host address behind `at` and the access that devices have to it, as [`PciAddressSpace::lookup`] finds them.
    /// The memory is not kept: it may be unmapped and freed at any time. Does not wait for a kernel call.
    fn translate(&self, at: Iova) -> Option<(HostAddress, Access)>;

    /// The live mappings that share bytes with `range`, ascending, units that continue each other joined. The cost is
    /// proportional to the number of mappings there.
    fn mappings(&self, range: IovaRange) -> Vec<Mapping>;

    /// Attaches a device (a VFIO group, or a device by its own node) and returns the change of the windows.
    ///
    /// # Errors
    /// [`Kind::WouldStrand`](crate::error::Kind::WouldStrand) when a live mapping no longer fits: the kernel refused
    /// the attach, or the attach was undone. Otherwise the kernel's failure.
    fn attach(&self, device: Arc<dyn Attachable>) -> Result<WindowChange, Error>;

    /// Detaches a device. When the last one leaves a VFIO container, the kernel forgets all mappings, windows and
    /// registrations, and so does the space. An address space of an iommufd keeps them, also one in a container's
    /// place.
    ///
    /// # Errors
    /// [`Kind::NotAttached`](crate::error::Kind::NotAttached), or the kernel's failure (`EBUSY`: the device's
    /// descriptor is still open).
    fn detach(&self, device: &Arc<dyn Attachable>) -> Result<WindowChange, Error>;

    /// The powers that the host has beyond mapping.
    fn powers(&self) -> Powers<'_>;
}

/// The verbs that the listener needs beside the contract, and the seal of [`PciAddressSpace`]: only
/// [`Space`](crate::Space) implements it.
#[doc(hidden)]
pub trait ForListeners: sealed::Sealed {
    /// Fences `range`, in which a listener could not map again what it had unmapped, and keeps `memory` behind the
    /// fence.
    fn fence(&self, range: IovaRange, memory: Option<HostMemory>, cause: Failure);

    /// A live mapping whose memory shares bytes with `memory`. The cost does not grow with single pages of other
    /// owners.
    fn mapping_onto(&self, memory: &HostMemory) -> Option<IovaRange>;

    /// A live mapping in `range` whose memory shares bytes with `memory`.
    fn mapping_onto_in(&self, memory: &HostMemory, range: IovaRange) -> Option<IovaRange>;

    /// A fence behind which a device might still reach bytes of `memory`. The cost is proportional to the number of
    /// fences.
    fn fence_onto(&self, memory: &HostMemory) -> Option<IovaRange>;

    /// The number of times that the kernel has forgotten all mappings, windows and registrations because the last
    /// device left. Makes no call and takes no lock.
    fn times_forgotten(&self) -> u64;
}

pub(crate) mod sealed {
    /// Implemented by [`Space`](crate::Space) alone.
    pub trait Sealed {}
}
