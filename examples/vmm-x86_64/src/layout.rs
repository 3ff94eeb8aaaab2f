//! The places of everything in the guest's physical address space, its port space, and its interrupts.

/// The processor's descriptor table.
pub(crate) const DESCRIPTORS: u64 = 0x500;
/// The parameters that the kernel reads (linux: Documentation/arch/x86/zero-page.rst).
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// The page tables for the first GiB: three pages.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// The end of the RAM below the area that PCs reserve.
pub(crate) const LOW_RAM_END: u64 = 0xa_0000;
/// The ACPI tables, in the reserved area, where the kernel searches for them too.
pub(crate) const ACPI: u64 = 0xe_0000;
/// The first byte of the kernel, and of the RAM above the reserved area.
pub(crate) const HIGH_RAM: u64 = 0x10_0000;

/// The first address of device memory. RAM ends below it.
pub(crate) const DEVICES: u64 = 0xc000_0000;
/// The last address that the guest may give to a BAR.
pub(crate) const DEVICES_LAST: u64 = 0xfebf_ffff;
/// The I/O APIC, which KVM emulates.
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
/// The local APIC, which KVM emulates. Devices write their MSIs here: no RAM may be in its place.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel processors (linux: Documentation/virt/kvm/api.rst, KVM_SET_TSS_ADDR).
pub(crate) const KVM_PAGES: u64 = 0xfffb_d000;
/// The memory module that is plugged while the guest runs.
pub(crate) const MODULE: u64 = 0x1_0000_0000;

/// The first port of the serial console.
pub(crate) const SERIAL: u16 = 0x3f8;
/// The last port of the serial console.
pub(crate) const SERIAL_LAST: u16 = 0x3ff;
/// Any write here ends the guest: the sleep and the reset register of ACPI.
pub(crate) const POWER: u16 = 0x600;
/// Reads as 1 when the memory module is plugged.
pub(crate) const MODULE_STATUS: u16 = 0x604;
/// The address register of PCI's configuration mechanism #1.
pub(crate) const CONFIG_ADDRESS: u16 = 0xcf8;
/// The data register of PCI's configuration mechanism #1.
pub(crate) const CONFIG_DATA: u16 = 0xcfc;

/// The interrupt of the serial console.
pub(crate) const SERIAL_IRQ: u32 = 4;
/// The interrupt by which the guest learns that the memory module was plugged.
pub(crate) const MODULE_IRQ: u32 = 5;
/// The number of inputs of the I/O APIC. KVM's further interrupts (GSIs) are messages.
pub(crate) const IO_APIC_INPUTS: u32 = 24;
