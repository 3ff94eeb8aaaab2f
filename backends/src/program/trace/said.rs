//! The content of a line of a trace or a log.

use dmaspace::HostAddress;
use dmaspace::{Access, HostMemory, Iova, IovaRange, PageSize};

use super::form::Fields;

/// The content of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// QEMU's listener is told of memory.
    Memory { at: IovaRange, memory: HostMemory },
    /// QEMU's listener is told of a translated window.
    Translated { at: IovaRange, name: String },
    /// QEMU's listener is told of something that devices cannot be given.
    Nothing { at: IovaRange },
    /// QEMU's listener is told that a range goes.
    Gone { at: IovaRange },
    /// The memory that came last is a device's, and QEMU does not map it.
    NotMapped { at: IovaRange, name: String },
    /// A part of a BAR is mapped into QEMU, or exported: `first` to `last` of its region.
    BarArea { name: String, first: u64, last: u64, is_exported: bool },
    /// QEMU's iommufd backend called the kernel to map.
    Map { ioas: Ioas, at: IovaRange, memory: HostMemory, access: Access, errno: u32 },
    /// QEMU's iommufd backend called the kernel to unmap.
    Unmap { ioas: Ioas, at: IovaRange, errno: u32 },
    /// Target memory was registered.
    Target { memory: HostMemory, errno: u32 },
    /// Target memory was unregistered.
    TargetGone { memory: HostMemory, errno: u32 },
    /// The host made a window of these pages.
    Window { first: Iova, page: PageSize },
    /// An error line: a call failed.
    Failed(Failed),
    /// The failure of the line before or after this one was a BAR's.
    OfABar,
    /// An error line that names no range.
    Message(Message),
    /// Nothing that a replay could do.
    Irrelevant,
}

/// An address space of `/dev/iommu`: the descriptor's number in QEMU, and that of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ioas {
    pub(crate) iommufd: u64,
    pub(crate) id: u64,
}

/// A call that failed, in an error line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) call: Call,
    pub(crate) at: IovaRange,
    pub(crate) errno: u32,
    /// The name of the memory region, where the line has it.
    pub(crate) name: Option<String>,
}

/// The calls that fail in error lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Map,
    Unmap,
    Register,
}

/// The error lines that name no range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Message {
    /// The kernel: a limit of so many bytes on locked memory was reached.
    LockedMemory(u64),
    /// The kernel: the firmware wants a device's memory mapped one to one.
    Firmware,
    /// The kernel: interrupts are not remapped.
    Interrupts,
    /// QEMU: another device of the group is with another driver.
    NotViable,
    /// QEMU: memory that it does not map, since its bus address and its place in its region differ within a page.
    Unaligned,
}

/// The range from `first` to `last`.
///
/// # Errors
/// The expected form, in words.
pub(super) fn range(first: u64, last: u64) -> Result<IovaRange, String> {
    IovaRange::new(Iova::new(first), Iova::new(last))
        .map_err(|_| "a last address that does not lie before the first".to_owned())
}

/// The range of a size from `first` on.
///
/// # Errors
/// The expected form, in words.
pub(super) fn span(fields: &Fields<'_>, first: &str, size: &str) -> Result<IovaRange, String> {
    IovaRange::with_len(Iova::new(fields.number(first)?), fields.number(size)?)
        .map_err(|error| format!("a range, but {error}"))
}

/// The memory behind all of a range.
///
/// # Errors
/// The expected form, in words.
pub(super) fn memory_behind(at: IovaRange, address: u64) -> Result<HostMemory, String> {
    let len = at.len().ok_or_else(|| "less than 2^64 bytes of memory".to_owned())?;
    memory_at(address, len.get())
}

/// Memory at a host address.
///
/// # Errors
/// The expected form, in words.
pub(super) fn memory_at(address: u64, size: u64) -> Result<HostMemory, String> {
    let memory = size.try_into().ok().and_then(|size| HostMemory::unbacked(HostAddress::new(address), size));
    memory.ok_or_else(|| "memory that is not empty and ends before 2^64".to_owned())
}
