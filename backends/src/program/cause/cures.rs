//! The cure of each cause, in the words that a user types.

use dmaspace::PageSize;

use crate::program::units::in_units;

/// The mappings a type1 container takes (linux: drivers/vfio/vfio_iommu_type1.c, dma_entry_limit).
const ENTRIES: u64 = 65535;

pub(super) const HYPERTRANSPORT: &str = "let QEMU put RAM above 1 TiB: -machine pc-q35-7.1 or newer with QEMU 7.1 or \
                                         newer; or give the guest less than 1010 GiB";
pub(super) const INTERRUPT_RANGE: &str =
    "take a machine whose RAM leaves these addresses free: q35 or pc on a PC, virt on an Arm host";
pub(super) const RESERVED: &str =
    "keep the guest's memory and BARs away from it; /sys/kernel/iommu_groups/<n>/reserved_regions has all of them";
pub(super) const DEVICE_MEMORY: &str = "nothing, unless devices have to reach each other's memory: only that is lost; \
                                        VFIO's own container (type1, no -object iommufd) maps BARs, and iommufd does \
                                        once the kernel exports them as dma-bufs";
pub(super) const UNPINNABLE: &str =
    "look for memory that is not there: a balloon, a file that was cut, a hugepage that could not be had";
pub(super) const MAPPINGS: &str = "modprobe vfio_iommu_type1 dma_entry_limit=N with N above 65535; or larger blocks, \
                                   so that fewer mappings are needed";
pub(super) const LOCKED_MEMORY: &str = "raise RLIMIT_MEMLOCK above all of the guest's RAM: ulimit -l, LimitMEMLOCK= in \
                                        a systemd unit, <memtune><hard_limit> in libvirt's XML";
pub(super) const OCCUPIED: &str = "look for two ranges at one address: a BAR that moved, memory that was plugged twice";
pub(super) const NOT_MAPPED: &str = "nothing: it was not mapped";
pub(super) const FIRMWARE: &str = "update the firmware, or turn off in its setup what uses the device (Intel: RMRR, \
                                   AMD: IVMD; legacy USB, management, pre-boot DMA protection); the kernel has no \
                                   switch for it";
pub(super) const INTERRUPTS: &str = "turn interrupt remapping on in the firmware; or, if you trust the guest, modprobe \
                                     vfio_iommu_type1 allow_unsafe_interrupts=1";
pub(super) const NOT_VIABLE: &str =
    "bind every device of the group to vfio-pci (ls /sys/kernel/iommu_groups/<n>/devices)";
pub(super) const UNALIGNED: &str =
    "nothing for a TPM's buffer, which no device reads; other memory has to begin at a multiple of the host's page";
pub(super) const OTHER: &str = "ask a host like that one: --host FILE";

/// QEMU: target/i386/host-cpu.c, host-phys-bits-limit; libvirt from 8.7 on, the limit from 9.3 on.
pub(super) fn limit_of_bits(bits: u32) -> String {
    format!(
        "give the guest's processors no more address bits than the host's IOMMU has: -cpu \
         host,host-phys-bits-limit={bits}, in libvirt's XML <maxphysaddr mode='passthrough' limit='{bits}'/> in <cpu>; \
         a driver that chooses addresses itself: below {}",
        in_units(1_u128.checked_shl(bits).unwrap_or_default())
    )
}

pub(super) fn memory_below(top: u64) -> String {
    let most = in_units(u128::from(top) + 1);
    format!("give the guest so much less memory that all of it lies below {most}, or take a host with a wider IOMMU")
}

pub(super) fn width_of_iommu() -> String {
    let limit = limit_of_bits(39);
    format!("find the IOMMU's width (dmesg: `DMAR: Host address width`, 39 on many desktops), and {limit}")
}

pub(super) fn alignment_to(page: PageSize) -> String {
    format!("align memory and BARs to {page}: the host has no smaller page")
}

pub(super) fn limit_of_mappings(needed: u64) -> String {
    let limit = needed.saturating_add(ENTRIES).checked_next_power_of_two().unwrap_or(u64::MAX);
    format!(
        "modprobe vfio_iommu_type1 dma_entry_limit={limit}; or give the guest hugepages and larger blocks, so that \
         fewer are needed"
    )
}

pub(super) fn limit_of_memory(needed: u64) -> String {
    let kib = needed.div_ceil(1 << 10);
    format!(
        "raise RLIMIT_MEMLOCK to {kib} KiB or more, for this guest in total: ulimit -l {kib}, LimitMEMLOCK={needed} in \
         a systemd unit, <memtune><hard_limit unit='KiB'>{kib}</hard_limit></memtune> in libvirt's XML"
    )
}
