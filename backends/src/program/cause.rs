//! Causes: the reasons for which a host does not map a range, and for each what the user can do.
//!
//! A few causes are behind the refusals of a replay and behind the errors of a log. Each has one cure, in the words
//! that a user types: an option of QEMU or an element of libvirt's XML, a parameter of the kernel, a limit.

use std::fmt;

use dmaspace::contract::PciAddressSpace;
use dmaspace::reserved::{Reserved, Why};
use dmaspace::{HostMemory, IovaRange, PageSize};

use crate::program::text::{bytes, in_units};

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
        let above = self.top.filter(|top| range.last().get() > *top);
        let above = above.map(|top| if range.first().get() > top { Cause::AboveTop(top) } else { Cause::PastTop(top) });
        let over = self.reserved.iter().filter(|reserved| reserved.range.overlaps(range));
        above
            .into_iter()
            .chain(over.map(|reserved| Cause::Reserved(Over::of(reserved), reserved.to_string())))
            .collect()
    }

    /// The cause for which the host maps no device's memory at all, if there is one.
    pub(crate) fn of_device_memory(&self) -> Option<Cause> {
        let memory = HostMemory::unbacked(1 << 44, PageSize::K4.bytes().try_into().ok()?)?.device_memory();
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
        let over = |known: Known, over, what: &str| {
            range.overlaps(known.range()).then(|| Self::Reserved(over, format!("{}, {what}", known.range())))
        };
        let bits = u64::BITS - range.last().get().leading_zeros();
        over(HYPERTRANSPORT, Over::Hypertransport, "AMD's HyperTransport hole")
            .or_else(|| (bits > COMMON_BITS).then_some(Self::NeedsBits(bits)))
            .or_else(|| over(INTERRUPTS, Over::Interrupts, "where PCs take interrupts"))
            .or_else(|| over(INTERRUPTS_OF_ARM, Over::Interrupts, "where Arm's IOMMUs deliver interrupts"))
            .or_else(|| (!range.is_aligned_to(PageSize::K4)).then_some(Self::Pages(PageSize::K4)))
    }

    /// The cure, as the user types it.
    pub(crate) fn cure(&self) -> String {
        match self {
            Self::AboveTop(top) => limit_of_bits(u64::BITS - top.leading_zeros()),
            Self::PastTop(top) => {
                let most = in_units(u128::from(*top) + 1);
                format!("give the guest so much less memory that all of it lies below {most}, or take a host with a wider IOMMU")
            }
            Self::NeedsBits(_) => {
                format!("find the IOMMU's width (dmesg: `DMAR: Host address width`, 39 on many desktops), and {}", limit_of_bits(39))
            }
            Self::Reserved(Over::Hypertransport, _) => {
                "let QEMU put RAM above 1 TiB: -machine pc-q35-7.1 or newer with QEMU 7.1 or newer; or give the guest less than 1010 GiB"
                    .to_owned()
            }
            Self::Reserved(Over::Interrupts, _) => {
                "take a machine whose RAM leaves these addresses free: q35 or pc on a PC, virt on an Arm host".to_owned()
            }
            Self::Reserved(Over::Other, _) => {
                "keep the guest's memory and BARs away from it; /sys/kernel/iommu_groups/<n>/reserved_regions has all of them".to_owned()
            }
            Self::Pages(page) => format!("align memory and BARs to {page}: the host has no smaller page"),
            Self::DeviceMemory(_) => {
                "nothing, unless devices have to reach each other's memory: only that is lost; VFIO's own container (type1, no -object \
                 iommufd) maps BARs, and iommufd does once the kernel exports them as dma-bufs"
                    .to_owned()
            }
            Self::Unpinnable => {
                "look for memory that is not there: a balloon, a file that was cut, a hugepage that could not be had".to_owned()
            }
            Self::Mappings { needed, .. } => format!(
                "modprobe vfio_iommu_type1 dma_entry_limit={}; or give the guest hugepages and larger blocks, so that fewer are needed",
                needed.saturating_add(ENTRIES).checked_next_power_of_two().unwrap_or(u64::MAX)
            ),
            Self::MappingsThere => {
                "modprobe vfio_iommu_type1 dma_entry_limit=N with N above 65535; or larger blocks, so that fewer mappings are needed".to_owned()
            }
            Self::LockedMemory { needed, .. } => limit_of_memory(*needed),
            Self::LockedMemoryThere(_) => {
                "raise RLIMIT_MEMLOCK above all of the guest's RAM: ulimit -l, LimitMEMLOCK= in a systemd unit, <memtune><hard_limit> in \
                 libvirt's XML"
                    .to_owned()
            }
            Self::Occupied => "look for two ranges at one address: a BAR that moved, memory that was plugged twice".to_owned(),
            Self::NotMapped => "nothing: it was not mapped".to_owned(),
            Self::Firmware => {
                "update the firmware, or turn off in its setup what uses the device (Intel: RMRR, AMD: IVMD; legacy USB, management, \
                 pre-boot DMA protection); the kernel has no switch for it"
                    .to_owned()
            }
            Self::Interrupts => {
                "turn interrupt remapping on in the firmware; or, if you trust the guest, modprobe vfio_iommu_type1 allow_unsafe_interrupts=1"
                    .to_owned()
            }
            Self::NotViable => "bind every device of the group to vfio-pci (ls /sys/kernel/iommu_groups/<n>/devices)".to_owned(),
            Self::Unaligned => {
                "nothing for a TPM's buffer, which no device reads; other memory has to begin at a multiple of the host's page".to_owned()
            }
            Self::Other(_) => "ask a host like that one: --host FILE".to_owned(),
        }
    }
}

/// The mappings a type1 container takes (linux: drivers/vfio/vfio_iommu_type1.c, dma_entry_limit).
const ENTRIES: u64 = 65535;

const ENOENT: u32 = 2;
const ENOMEM: u32 = 12;
const EFAULT: u32 = 14;
const EBUSY: u32 = 16;
const EEXIST: u32 = 17;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EADDRINUSE: u32 = 98;

/// QEMU: target/i386/host-cpu.c, host-phys-bits-limit; libvirt from 8.7 on, the limit from 9.3 on.
fn limit_of_bits(bits: u32) -> String {
    format!(
        "give the guest's processors no more address bits than the host's IOMMU has: -cpu host,host-phys-bits-limit={bits}, in \
         libvirt's XML <maxphysaddr mode='passthrough' limit='{bits}'/> in <cpu>"
    )
}

fn limit_of_memory(needed: u64) -> String {
    let kib = needed.div_ceil(1 << 10);
    format!(
        "raise RLIMIT_MEMLOCK to {kib} KiB or more, for this guest in total: ulimit -l {kib}, LimitMEMLOCK={needed} in a systemd unit, \
         <memtune><hard_limit unit='KiB'>{kib}</hard_limit></memtune> in libvirt's XML"
    )
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AboveTop(top) => write!(f, "above the host's top address {top:#x}"),
            Self::PastTop(top) => write!(f, "below the host's top address {top:#x} and above it"),
            Self::NeedsBits(bits) => write!(f, "an address of {bits} bits, more than many IOMMUs have"),
            Self::Reserved(_, what) => write!(f, "over {what}"),
            Self::Pages(page) => write!(f, "not made of whole pages of {page}"),
            Self::DeviceMemory(backend) => write!(f, "another device's memory, which {backend} cannot map"),
            Self::Unpinnable => f.write_str("memory that the kernel could not pin"),
            Self::Mappings { needed, left } => {
                write!(f, "{needed} more mappings than there are, and the kernel has {left} left")
            }
            Self::MappingsThere => f.write_str("more mappings than the kernel takes, 65535 by default"),
            Self::LockedMemory { needed, limit } => {
                write!(
                    f,
                    "{} to lock in total, and {} may be locked",
                    bytes((*needed).into()),
                    in_units((*limit).into())
                )
            }
            Self::LockedMemoryThere(0) => f.write_str("more locked memory than RLIMIT_MEMLOCK allows"),
            Self::LockedMemoryThere(limit) => {
                write!(f, "more locked memory than RLIMIT_MEMLOCK allows, which is {} there", bytes((*limit).into()))
            }
            Self::Occupied => f.write_str("a range in which something is mapped already"),
            Self::NotMapped => f.write_str("a range in which nothing is mapped"),
            Self::Firmware => f.write_str("memory of the device that the firmware wants mapped one to one"),
            Self::Interrupts => f.write_str("interrupts that are not remapped"),
            Self::NotViable => f.write_str("a device of the group that is not with vfio-pci"),
            Self::Unaligned => f.write_str(
                "memory whose bus address and place in its region differ within a page, so that QEMU does not map it",
            ),
            Self::Other(errno) => {
                let errno = dmaspace::door::Errno(i32::try_from(*errno).unwrap_or(i32::MAX));
                write!(f, "{errno}, which fits neither the address nor the size")
            }
        }
    }
}
