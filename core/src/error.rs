//! Errors of the contract: the operation, its subject, the kind of error, the failed call, and advice.

mod as_errno;

use std::fmt;

use crate::door::{Cause, Errno, Failure};
use crate::words::access::Access;
use crate::words::address::{BadRange, Iova, IovaRange};
use crate::words::locked::PinLimit;
use crate::words::memory::HostMemory;
use crate::words::page::{PageSize, PageSizes};
use crate::words::reserved::Reserved;

/// The operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Map memory.
    Map,
    /// Swap the memory behind live units.
    Replace,
    /// Unmap a range.
    Unmap,
    /// Create a window.
    CreateWindow,
    /// Remove a window.
    RemoveWindow,
    /// Register memory.
    Register,
    /// Unregister memory.
    Unregister,
    /// Share the pins of memory with other spaces.
    SharePins,
    /// Stop sharing the pins of memory.
    StopSharing,
    /// Attach a device.
    Attach,
    /// Detach a device.
    Detach,
    /// Recover a device's PE.
    RecoverPe,
    /// Begin or end dirty tracking.
    TrackDirty,
    /// Sync dirty pages.
    SyncDirty,
    /// Hand mappings over to another process.
    HandOver,
    /// End a hand-over without a successor.
    TakeBack,
    /// Adopt the mappings of another process.
    Adopt,
    /// Hand the entries of a window to the kernel.
    HandToKernel,
    /// Take a window back from the kernel.
    Reclaim,
    /// An operation of a power that has none of its own here, by its verb: a power is declared without this list.
    OfPower(&'static str),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Map => "map",
            Self::Replace => "replace",
            Self::Unmap => "unmap",
            Self::CreateWindow => "create window",
            Self::RemoveWindow => "remove window",
            Self::Register => "register",
            Self::Unregister => "unregister",
            Self::SharePins => "share the pins of",
            Self::StopSharing => "stop sharing the pins of",
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::RecoverPe => "recover the PE of",
            Self::TrackDirty => "track dirty pages of",
            Self::SyncDirty => "sync dirty pages of",
            Self::HandOver => "hand over",
            Self::TakeBack => "take back",
            Self::Adopt => "adopt",
            Self::HandToKernel => "hand to the kernel",
            Self::Reclaim => "reclaim from the kernel",
            Self::OfPower(verb) => verb,
        })
    }
}

/// The object of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subject {
    /// Bus addresses.
    Range(IovaRange),
    /// Host memory.
    Memory(HostMemory),
    /// A device or group, by name.
    Device(String),
    /// Bounds that are no range: first byte and length.
    Bounds(Iova, u64),
}

impl From<IovaRange> for Subject {
    fn from(range: IovaRange) -> Self {
        Self::Range(range)
    }
}

impl From<HostMemory> for Subject {
    fn from(memory: HostMemory) -> Self {
        Self::Memory(memory)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(range) => range.fmt(f),
            Self::Memory(memory) => memory.fmt(f),
            Self::Device(name) => f.write_str(name),
            Self::Bounds(first, len) => write!(f, "{len:#x} bytes at {first}"),
        }
    }
}

/// The kind of an error, to branch on. All kinds down to [`Kind::KernelOwned`] are found before the kernel is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The bounds are no range.
    BadRange(BadRange),
    /// Neither read nor write was asked for.
    NoAccess,
    /// Write access was asked for, to memory that this process itself may only read.
    HostReadOnly(Access),
    /// There is no memory behind the address, and real devices behind the door.
    Unbacked,
    /// The memory is another device's, and this backend cannot map that.
    DeviceMemory,
    /// The memory was rounded to whole pages ([`HostMemory::widened_to`]): it can be registered, but not mapped.
    Rounded,
    /// The range does not lie inside one window; here is the highest address of any, if there is one.
    OutsideWindows(Option<Iova>),
    /// Bounds or host address are not multiples of the granule.
    Misaligned(PageSize),
    /// The unit is not a page the window can be mapped in, or not larger than its granule.
    BadUnit(PageSize),
    /// The range shares bytes with this live mapping.
    Overlap(IovaRange),
    /// The range cuts this unit.
    CutsUnit(IovaRange),
    /// These bytes are not mapped.
    NotLive(IovaRange),
    /// The range touches this fence.
    Fenced(IovaRange),
    /// No window begins and ends there.
    NoSuchWindow,
    /// A window's size must be a power of two.
    BadWindowSize,
    /// The host has no such page size; it has these.
    UnsupportedPage(PageSizes),
    /// The backend has no such power (window control on fixed windows, …).
    Unsupported(&'static str),
    /// A live mapping leans on the memory or window.
    InUse(IovaRange),
    /// The memory is registered already, in whole or in part.
    AlreadyRegistered,
    /// The memory is not registered, or not all of it.
    NotRegistered,
    /// The pins of the memory are shared already, in whole or in part.
    AlreadyShared,
    /// The pins of the memory are not shared, or not as one piece.
    NotShared,
    /// The kernel writes the entries of this window.
    KernelOwned(IovaRange),
    /// The kernel's table and the index disagree.
    KernelTableDiffers,
    /// The kernel granted the window elsewhere; it was removed again.
    GrantedElsewhere(Iova),
    /// All window slots are taken.
    NoWindowSlot,
    /// The kernel's number of mappings is used up.
    NoMappingSlot,
    /// The limit on locked memory was reached, or the kernel itself is out of memory: the numbers tell, where they are
    /// known.
    PinLimit(PinLimit),
    /// The host memory is not there, or not as the access wants it.
    BadAddress,
    /// With the device, this live mapping would lie outside the windows, over a reserved range of the device if one is
    /// known. The device is not attached.
    WouldStrand(IovaRange, Option<Box<Reserved>>),
    /// The device is not attached here.
    NotAttached,
    /// Dirty pages are tracked already.
    Tracking,
    /// Dirty pages are not tracked.
    NotTracking,
    /// The space is handed over, or inherited and not adopted yet.
    HandedOver,
    /// The space is not handed over.
    NotHandedOver,
    /// Memory has no name, or no memory of the name fits; the text names it and the fault.
    NoMemory(String),
    /// The description is not of this space; the text names the difference.
    BadHandover(String),
    /// The kernel has no such mapping, or it was not handed over.
    NoSuchMapping,
    /// The kernel's reply cannot be true.
    BadReply,
    /// The kernel refused for a reason of its own.
    Refused,
}

impl Kind {
    /// The meaning of a failed call for `operation`.
    pub fn of(operation: Operation, failure: &Failure) -> Self {
        match (failure.cause(), operation) {
            (Cause::BadReply, _) => Self::BadReply,
            // These operations pin no memory of the caller's, and pass no address of it.
            (
                _,
                Operation::TrackDirty
                | Operation::SyncDirty
                | Operation::RecoverPe
                | Operation::HandToKernel
                | Operation::Reclaim,
            ) => Self::Refused,
            (Cause::BadAddress, _) => Self::BadAddress,
            // The other operations lock nothing.
            (
                Cause::NoMemory,
                Operation::Map
                | Operation::Replace
                | Operation::CreateWindow
                | Operation::Register
                | Operation::Attach
                | Operation::Adopt
                | Operation::TakeBack,
            ) => Self::PinLimit(PinLimit::default()),
            (Cause::NoSlot, Operation::CreateWindow) => Self::NoWindowSlot,
            (Cause::NoSlot, Operation::Map | Operation::Replace) => Self::NoMappingSlot,
            (Cause::NotThere, Operation::Adopt | Operation::TakeBack) => Self::NoSuchMapping,
            (Cause::NoMemory | Cause::NoSlot | Cause::NotThere | Cause::Other, _) => Self::Refused,
        }
    }

    /// The remedy, if there is one in general.
    fn advice(&self) -> Option<&'static str> {
        Some(match self {
            Self::HostReadOnly(_) => "ask for read access only; on sPAPR, have the memory writable",
            Self::Unbacked => "back the guest's memory, or use the soft host",
            Self::Overlap(_) => "unmap it first, or replace it",
            Self::CutsUnit(_) => "cover the unit, or map it in smaller units",
            Self::InUse(_) | Self::WouldStrand(..) => "unmap it first",
            Self::Fenced(_) => "the fence stays until the space is dropped",
            Self::NotRegistered => "register the memory first",
            Self::NotTracking => "begin to track first",
            Self::HandedOver => "adopt it, or take it back",
            Self::NotHandedOver => "hand it over first",
            Self::NoMemory(_) => "give the memory of each name as it was, from the same file",
            Self::NoWindowSlot => "remove a window first",
            Self::NoMappingSlot => "map larger sections, or raise vfio_iommu_type1's dma_entry_limit",
            Self::PinLimit(limit) => limit.advice(),
            Self::BadAddress => "check that the memory is mapped in this process, writable where devices write",
            _ => return None,
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRange(bad) => bad.fmt(f),
            Self::NoAccess => f.write_str("neither read nor write access was asked for"),
            Self::HostReadOnly(access) => write!(f, "{access} access to memory that this process may only read"),
            Self::Unbacked => f.write_str("there is no memory behind the host address"),
            Self::DeviceMemory => f.write_str("this backend cannot map another device's memory"),
            Self::Rounded => {
                f.write_str("the memory was rounded to whole pages, and its owner vouches for a part only")
            }
            Self::OutsideWindows(None) => f.write_str("the host offers no window yet"),
            Self::OutsideWindows(Some(top)) => write!(f, "not inside one window of the host, whose last byte is {top}"),
            Self::Misaligned(granule) => write!(f, "bounds or host address are no multiples of {granule}"),
            Self::BadUnit(page) => write!(f, "{page} is no unit this range can be mapped in"),
            Self::Overlap(live) => write!(f, "{live} is mapped there"),
            Self::CutsUnit(unit) => write!(f, "it would cut the unit {unit}"),
            Self::NotLive(hole) => write!(f, "{hole} is not mapped"),
            Self::Fenced(fence) => write!(f, "{fence} is fenced after an earlier failure"),
            Self::NoSuchWindow => f.write_str("there is no such window"),
            Self::BadWindowSize => f.write_str("the size of a window must be a power of two"),
            Self::UnsupportedPage(sizes) => write!(f, "the host's pages are {sizes}"),
            Self::Unsupported(what) => f.write_str(what),
            Self::InUse(live) => write!(f, "{live} is still mapped"),
            Self::AlreadyRegistered => f.write_str("the memory is already registered, in whole or in part"),
            Self::NotRegistered => f.write_str("the memory is not registered, or not all of it"),
            Self::AlreadyShared => f.write_str("the pins of the memory are already shared, in whole or in part"),
            Self::NotShared => f.write_str("the pins of the memory are not shared as one piece"),
            Self::KernelOwned(window) => write!(f, "the kernel owns the entries of the window {window}"),
            Self::KernelTableDiffers => f.write_str("the kernel's table and the live mappings differ"),
            Self::GrantedElsewhere(at) => write!(f, "the host put the window at {at}; it was removed again"),
            Self::NoWindowSlot => f.write_str("the host has no window slot left"),
            Self::NoMappingSlot => f.write_str("the kernel's number of mappings is used up"),
            Self::PinLimit(limit) => limit.fmt(f),
            Self::BadAddress => f.write_str("the host memory cannot be pinned"),
            Self::WouldStrand(live, None) => {
                write!(f, "the live mapping {live} would lie outside the windows; nothing changed")
            }
            Self::WouldStrand(live, Some(reserved)) => {
                write!(f, "the live mapping {live} would lie over {reserved}; nothing changed")
            }
            Self::NotAttached => f.write_str("the device is not attached to this space"),
            Self::Tracking => f.write_str("dirty pages are tracked already"),
            Self::NotTracking => f.write_str("dirty pages are not tracked"),
            Self::HandedOver => f.write_str("the space is handed over"),
            Self::NotHandedOver => f.write_str("the space is not handed over"),
            Self::NoMemory(what) => f.write_str(what),
            Self::BadHandover(what) => write!(f, "the description is not of this space: {what}"),
            Self::NoSuchMapping => f.write_str("the kernel has no such mapping, or it was not handed over"),
            Self::BadReply => f.write_str("the kernel's reply cannot be true"),
            Self::Refused => f.write_str("the kernel refused"),
        }
    }
}

/// An operation of the contract that failed. Unless [`Error::fenced`] returns ranges, everything is as it was before
/// it.
///
/// The text has all of it: the operation, its subject, the kind, the failed call, advice, and the fences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(Box<Parts>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Parts {
    operation: Operation,
    subject: Subject,
    kind: Kind,
    failure: Option<Failure>,
    fenced: Vec<IovaRange>,
}

impl Error {
    /// A refusal before the kernel is asked, for the listener: no other crate makes one.
    #[doc(hidden)]
    pub fn new(operation: Operation, subject: impl Into<Subject>, kind: Kind) -> Self {
        Self(Box::new(Parts { operation, subject: subject.into(), kind, failure: None, fenced: Vec::new() }))
    }

    /// A failed call of the backend.
    pub(crate) fn from_kernel(operation: Operation, subject: impl Into<Subject>, failure: Failure) -> Self {
        let mut error = Self::new(operation, subject, Kind::of(operation, &failure));
        error.0.failure = Some(failure);
        error
    }

    /// Replaces the kind, for a caller that knows more about the failure.
    #[must_use]
    pub(crate) fn with_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Adds ranges that were fenced, for the listener, which undoes several operations.
    #[doc(hidden)]
    #[must_use]
    pub fn fencing(mut self, fenced: impl IntoIterator<Item = IovaRange>) -> Self {
        self.0.fenced.extend(fenced);
        self
    }

    /// Replaces the ranges that were fenced.
    #[must_use]
    pub(crate) fn fencing_only(mut self, fenced: Vec<IovaRange>) -> Self {
        self.0.fenced = fenced;
        self
    }

    /// The operation.
    pub fn operation(&self) -> Operation {
        self.0.operation
    }

    /// The object of the operation.
    pub fn subject(&self) -> &Subject {
        &self.0.subject
    }

    /// The kind of the error, to branch on.
    pub fn kind(&self) -> &Kind {
        &self.0.kind
    }

    /// The failed call, if a call was made.
    pub fn failure(&self) -> Option<Failure> {
        self.0.failure
    }

    /// The ranges whose state is unknown since the failure: they are unusable, and their memory is kept, until the
    /// space is dropped.
    pub fn fenced(&self) -> &[IovaRange] {
        &self.0.fenced
    }

    /// The kernel's errno, if there is one. [`Error::as_errno`] has one for every error.
    pub fn errno(&self) -> Option<Errno> {
        self.0.failure.and_then(|failure| failure.errno())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.0.operation, self.0.subject, self.0.kind)?;
        if let Some(failure) = &self.0.failure {
            write!(f, " ({failure})")?;
        }
        if let Some(advice) = self.0.kind.advice() {
            write!(f, "; {advice}")?;
        }
        for fence in &self.0.fenced {
            write!(f, "; {fence} is fenced from now on")?;
        }
        Ok(())
    }
}

/// Without a source: the text includes the failed call, and a report of the chain would print it twice.
impl std::error::Error for Error {}

/// Compares by value, so that `error.kind() == Kind::NotRegistered` can be written.
impl PartialEq<Kind> for &Kind {
    fn eq(&self, other: &Kind) -> bool {
        **self == *other
    }
}
