//! Causes: the reasons for which a host does not map a range, and for each the user's cure.
//!
//! A few causes are behind the refusals of a replay and behind the errors of a log. Each has one cure, in the words
//! that a user types: an option of QEMU or an element of libvirt's XML, a parameter of the kernel, a limit.

mod cures;

use dmaspace::HostAddress;
use std::fmt;

use dmaspace::contract::PciAddressSpace;
use dmaspace::reserved::{Reserved, Why};
use dmaspace::{HostMemory, IovaRange, PageSize};

use crate::program::explain::Code;
use crate::program::units::{bytes, in_units};

/// A reason for which a host does not map something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// It lies above the last address that the IOMMU translates.
    AboveTop(u64),
    /// It begins below that address and ends above it.
    PastTop(u64),
    /// It needs so many address bits, which the IOMMU there may not have.
    NeedsBits(u32),
    /// It lies over a reserved range, in words.
    Reserved(Over, String),
    /// It is not made of whole pages.
    Pages(PageSize),
    /// It is another device's memory, which this backend cannot map.
    DeviceMemory(&'static str),
    /// The kernel could not pin the memory.
    Unpinnable,
    /// More mappings are needed than the kernel takes.
    Mappings {
        /// So many more are needed.
        needed: u64,
        /// So many are left.
        left: u64,
    },
    /// The kernel takes no more mappings, and the log does not say how many are needed.
    MappingsThere,
    /// More memory is to be locked than may be.
    LockedMemory {
        /// So many bytes in total.
        needed: u64,
        /// So many may be.
        limit: u64,
    },
    /// The limit on locked memory was reached there; 0 where the log does not say which limit.
    LockedMemoryThere(u64),
    /// Something is mapped there already.
    Occupied,
    /// Nothing is mapped there, or a mapping would be cut.
    NotMapped,
    /// The firmware wants memory of the device mapped one to one.
    Firmware,
    /// Interrupts are not remapped.
    Interrupts,
    /// A device of the group is with another driver.
    NotViable,
    /// Its bus address and its place in its region differ within a page.
    Unaligned,
    /// An error that fits neither the address nor the size.
    Other(u32),
}

/// The kinds of reserved ranges that have different cures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Over {
    /// Writes there are interrupts.
    Interrupts,
    /// AMD's hole below 1 TiB.
    Hypertransport,
    /// Something else.
    Other,
}

/// A host, as far as it decides what can be mapped where.
pub(crate) struct HostView<'a> {
    space: &'a dyn PciAddressSpace,
    reserved: Vec<Reserved>,
    top: Option<u64>,
}

impl<'a> HostView<'a> {
    /// The host behind a space.
    pub(crate) fn of(space: &'a dyn PciAddressSpace) -> Self {
        let mut reserved = space.describe().reserved;
        reserved.retain(Reserved::counts);
        // Devices often share one; the first is as good as any.
        reserved.sort_by_key(|reserved| reserved.range);
        reserved.dedup_by_key(|reserved| reserved.range);
        let top = space.windows().windows.top().map(dmaspace::Iova::get);
        Self { space, reserved, top }
    }

    /// Everything about the addresses of a range that keeps the host from mapping it. Nothing where it would.
    pub(crate) fn of_addresses(&self, range: IovaRange) -> Vec<Cause> {
        let windows = self.space.windows().windows;
        if let Some(window) = windows.covering(range) {
            let has_page = range.trimmed_to(window.granule()).is_some();
            return if has_page { Vec::new() } else { vec![Cause::Pages(window.granule())] };
        }
        let top = self.top.filter(|top| range.last().get() > *top);
        let above = top.map(|top| if range.first().get() > top { Cause::AboveTop(top) } else { Cause::PastTop(top) });
        let over = self.reserved.iter().filter(|reserved| reserved.range.overlaps(range));
        above
            .into_iter()
            .chain(over.map(|reserved| Cause::Reserved(Over::of(reserved), reserved.to_string())))
            .collect()
    }

    /// The cause for which the host maps no device's memory at all, if there is one.
    pub(crate) fn of_device_memory(&self) -> Option<Cause> {
        let memory =
            HostMemory::unbacked(HostAddress::new(1 << 44), PageSize::K4.bytes().try_into().ok()?)?.device_memory();
        (!self.space.describe().capabilities.reaches(&memory))
            .then(|| Cause::DeviceMemory(self.space.describe().backend))
    }
}

impl Over {
    fn of(reserved: &Reserved) -> Self {
        match reserved.why {
            Why::Msi => Self::Interrupts,
            Why::Hardware if reserved.range.overlaps(HYPERTRANSPORT.range()) => Self::Hypertransport,
            _ => Self::Other,
        }
    }
}

/// A range of addresses that is known by where it is.
struct Known(u64, u64);

/// AMD's hole (linux: drivers/iommu/amd/amd_iommu_types.h, HT_RANGE_START).
const HYPERTRANSPORT: Known = Known(0xfd_0000_0000, 0xff_ffff_ffff);
/// The range where PCs take interrupts (linux: drivers/iommu/intel/iommu.c, IOAPIC_RANGE_START).
const INTERRUPTS: Known = Known(0xfee0_0000, 0xfeef_ffff);
/// The range where Arm's IOMMUs deliver interrupts (linux: drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c, MSI_IOVA_BASE).
const INTERRUPTS_OF_ARM: Known = Known(0x800_0000, 0x80f_ffff);

impl Known {
    fn range(&self) -> IovaRange {
        let [first, last] = [self.0, self.1].map(dmaspace::Iova::new);
        IovaRange::new(first, last).unwrap_or_else(|_| IovaRange::all())
    }

    /// The cause for which `range` is not mapped, if it lies over this one.
    fn under(&self, range: IovaRange, over: Over, what: &str) -> Option<Cause> {
        range.overlaps(self.range()).then(|| Cause::Reserved(over, format!("{}, {what}", self.range())))
    }
}

impl Cause {
    /// The causes that fit an error of a map call, its address and its size, when the host asked has nothing against
    /// the address.
    pub(crate) fn of_error(errno: u32, range: IovaRange, is_device: bool, backend: &'static str) -> Self {
        match errno {
            EFAULT if is_device => Self::DeviceMemory(backend),
            EFAULT => Self::Unpinnable,
            ENOMEM => Self::LockedMemoryThere(0),
            EEXIST | EBUSY => Self::Occupied,
            ENOSPC => Self::MappingsThere,
            EINVAL | ENOENT | EADDRINUSE => Self::of_address_there(range).unwrap_or(Self::Other(errno)),
            other => Self::Other(other),
        }
    }

    /// The objection that IOMMUs commonly have to an address, for a log that does not tell the IOMMU.
    fn of_address_there(range: IovaRange) -> Option<Self> {
        /// Desktop IOMMUs have 39 bits.
        const COMMON_BITS: u32 = 39;
        let bits = u64::BITS - range.last().get().leading_zeros();
        HYPERTRANSPORT
            .under(range, Over::Hypertransport, "AMD's HyperTransport hole")
            .or_else(|| (bits > COMMON_BITS).then_some(Self::NeedsBits(bits)))
            .or_else(|| INTERRUPTS.under(range, Over::Interrupts, "where PCs take interrupts"))
            .or_else(|| INTERRUPTS_OF_ARM.under(range, Over::Interrupts, "where Arm's IOMMUs deliver interrupts"))
            .or_else(|| (!range.is_aligned_to(PageSize::K4)).then_some(Self::Pages(PageSize::K4)))
    }

    /// Its code, which has a page.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::AboveTop(_) | Self::PastTop(_) | Self::NeedsBits(_) => Code::AboveIommuWidth,
            Self::Reserved(Over::Interrupts, _) => Code::InterruptRange,
            Self::Reserved(Over::Hypertransport, _) => Code::HypertransportHole,
            Self::Reserved(Over::Other, _) => Code::ReservedRange,
            Self::Pages(_) => Code::PageAlignment,
            Self::DeviceMemory(_) => Code::BarPeerToPeer,
            Self::Unpinnable => Code::Unpinnable,
            Self::Mappings { .. } | Self::MappingsThere => Code::MappingLimit,
            Self::LockedMemory { .. } | Self::LockedMemoryThere(_) => Code::LockedMemory,
            Self::Occupied => Code::Occupied,
            Self::NotMapped => Code::NotMapped,
            Self::Firmware => Code::FirmwareRegion,
            Self::Interrupts => Code::UnsafeInterrupts,
            Self::NotViable => Code::GroupShared,
            Self::Unaligned => Code::Unaligned,
            Self::Other(_) => Code::UnknownError,
        }
    }

    /// The cure, as the user types it.
    pub(crate) fn cure(&self) -> String {
        let cure = match self {
            Self::AboveTop(top) => return cures::limit_of_bits(u64::BITS - top.leading_zeros()),
            Self::PastTop(top) => return cures::memory_below(*top),
            Self::NeedsBits(_) => return cures::width_of_iommu(),
            Self::Pages(page) => return cures::alignment_to(*page),
            Self::Mappings { needed, .. } => return cures::limit_of_mappings(*needed),
            Self::LockedMemory { needed, .. } => return cures::limit_of_memory(*needed),
            Self::Reserved(Over::Hypertransport, _) => cures::HYPERTRANSPORT,
            Self::Reserved(Over::Interrupts, _) => cures::INTERRUPT_RANGE,
            Self::Reserved(Over::Other, _) => cures::RESERVED,
            Self::DeviceMemory(_) => cures::DEVICE_MEMORY,
            Self::Unpinnable => cures::UNPINNABLE,
            Self::MappingsThere => cures::MAPPINGS,
            Self::LockedMemoryThere(_) => cures::LOCKED_MEMORY,
            Self::Occupied => cures::OCCUPIED,
            Self::NotMapped => cures::NOT_MAPPED,
            Self::Firmware => cures::FIRMWARE,
            Self::Interrupts => cures::INTERRUPTS,
            Self::NotViable => cures::NOT_VIABLE,
            Self::Unaligned => cures::UNALIGNED,
            Self::Other(_) => cures::OTHER,
        };
        cure.to_owned()
    }
}

const ENOENT: u32 = 2;
const ENOMEM: u32 = 12;
const EFAULT: u32 = 14;
const EBUSY: u32 = 16;
const EEXIST: u32 = 17;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EADDRINUSE: u32 = 98;

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Self::AboveTop(top) => return write!(f, "above the host's top address {top:#x}"),
            Self::PastTop(top) => return write!(f, "below the host's top address {top:#x} and above it"),
            Self::NeedsBits(bits) => return write!(f, "an address of {bits} bits, more than many IOMMUs have"),
            Self::Reserved(_, what) => return write!(f, "over {what}"),
            Self::Pages(page) => return write!(f, "not made of whole pages of {page}"),
            Self::DeviceMemory(backend) => return write!(f, "another device's memory, which {backend} cannot map"),
            Self::Mappings { needed, left } => return write_mappings(f, *needed, *left),
            Self::LockedMemory { needed, limit } => return write_locked(f, *needed, *limit),
            Self::LockedMemoryThere(limit) if *limit != 0 => return write_locked_there(f, *limit),
            Self::Other(errno) => return write_errno(f, *errno),
            Self::Unpinnable => "memory that the kernel could not pin",
            Self::MappingsThere => "more mappings than the kernel takes, 65535 by default",
            Self::LockedMemoryThere(_) => "more locked memory than RLIMIT_MEMLOCK allows",
            Self::Occupied => "a range in which something is mapped already",
            Self::NotMapped => "a range in which nothing is mapped",
            Self::Firmware => "memory of the device that the firmware wants mapped one to one",
            Self::Interrupts => "interrupts that are not remapped",
            Self::NotViable => "a device of the group that is not with vfio-pci",
            Self::Unaligned => UNALIGNED,
        };
        f.write_str(words)
    }
}

const UNALIGNED: &str =
    "memory whose bus address and place in its region differ within a page, so that QEMU does not map it";

fn write_mappings(f: &mut fmt::Formatter<'_>, needed: u64, left: u64) -> fmt::Result {
    write!(f, "{needed} more mappings than there are, and the kernel has {left} left")
}

fn write_locked(f: &mut fmt::Formatter<'_>, needed: u64, limit: u64) -> fmt::Result {
    write!(f, "{} to lock in total, and {} may be locked", bytes(needed.into()), in_units(limit.into()))
}

fn write_locked_there(f: &mut fmt::Formatter<'_>, limit: u64) -> fmt::Result {
    write!(f, "more locked memory than RLIMIT_MEMLOCK allows, which is {} there", bytes(limit.into()))
}

fn write_errno(f: &mut fmt::Formatter<'_>, errno: u32) -> fmt::Result {
    let errno = dmaspace::door::Errno(i32::try_from(errno).unwrap_or(i32::MAX));
    write!(f, "{errno}, which fits neither the address nor the size")
}
