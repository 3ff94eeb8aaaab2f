//! Containers of the sPAPR TCE driver, POWER's (linux: include/uapi/linux/vfio.h). Writing and clearing entries are the
//! maps and unmaps of [`crate::vfio`].
//!
//! Numbers mean other things elsewhere: [`REGISTER_MEMORY`] is type1's [`DIRTY_PAGES`](crate::type1::DIRTY_PAGES).

use dmaspace_core::door::Request;
use vfio_bindings::bindings::vfio as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::vfio::BASE;

/// Container: fills a [`TceInfo`], as its first group reports it.
pub const TCE_GET_INFO: Request = Request::vfio(BASE + 12, "VFIO_IOMMU_SPAPR_TCE_GET_INFO");
/// v1: charges the window and allows maps; no argument.
pub const ENABLE: Request = Request::vfio(BASE + 15, "VFIO_IOMMU_ENABLE");
/// v1: undoes [`ENABLE`]; no argument.
pub const DISABLE: Request = Request::vfio(BASE + 16, "VFIO_IOMMU_DISABLE");
/// v2: pins and charges memory ([`RegisterMemory`]). A positive result is a refusal.
pub const REGISTER_MEMORY: Request = Request::vfio(BASE + 17, "VFIO_IOMMU_SPAPR_REGISTER_MEMORY");
/// v2: undoes a [`REGISTER_MEMORY`] of exactly the same memory ([`RegisterMemory`]).
pub const UNREGISTER_MEMORY: Request = Request::vfio(BASE + 18, "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY");
/// v2: creates a window ([`TceCreate`]).
pub const TCE_CREATE: Request = Request::vfio(BASE + 19, "VFIO_IOMMU_SPAPR_TCE_CREATE");
/// v2: removes the window that contains an address ([`TceRemove`]).
pub const TCE_REMOVE: Request = Request::vfio(BASE + 20, "VFIO_IOMMU_SPAPR_TCE_REMOVE");
/// Container: operates on the PE of each group in turn ([`EehPeOp`]). The result is a state, or a refusal.
pub const EEH_PE_OP: Request = Request::vfio(BASE + 21, "VFIO_EEH_PE_OP");

const _: () = {
    assert!(TCE_GET_INFO.is(0x3b70));
    assert!(ENABLE.is(0x3b73));
    assert!(DISABLE.is(0x3b74));
    assert!(REGISTER_MEMORY.is(0x3b75));
    assert!(UNREGISTER_MEMORY.is(0x3b76));
    assert!(TCE_CREATE.is(0x3b77));
    assert!(TCE_REMOVE.is(0x3b78));
    assert!(EEH_PE_OP.is(0x3b79));
};

/// The reply to [`TCE_GET_INFO`]. The kernel does not write `argsz` back (linux: drivers/vfio/vfio_iommu_spapr_tce.c,
/// tce_iommu_ioctl).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TceInfo {
    /// [`TceInfo::SIZE`].
    pub argsz: u32,
    /// [`INFO_DDW`].
    pub flags: u32,
    /// The first address of the group's 32-bit window, even after that window was removed.
    pub dma32_window_start: u32,
    /// The length of that window in bytes. Some kernels misreport 4 GiB and more (linux:
    /// arch/powerpc/platforms/pseries/iommu.c).
    pub dma32_window_size: u32,
    /// The windows that can be created; valid with [`INFO_DDW`].
    pub ddw: DdwInfo,
}

/// Windows can be created, as [`TceInfo::ddw`] describes.
pub const INFO_DDW: u32 = kernel::VFIO_IOMMU_SPAPR_INFO_DDW;

/// The windows that can be created ("dynamic DMA windows").
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DdwInfo {
    /// A mask of the page sizes that a window can have.
    pub pgsizes: u64,
    /// The number of windows at once. A pseries host that could not ask its firmware reports 2^32-1.
    pub max_dynamic_windows_supported: u32,
    /// The most levels that a table can have.
    pub levels: u32,
}

/// The argument of [`REGISTER_MEMORY`] and [`UNREGISTER_MEMORY`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegisterMemory {
    /// [`RegisterMemory::SIZE`].
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// The memory: attached, left zero.
    pub vaddr: u64,
    /// The length in bytes.
    pub size: u64,
}

/// The argument of and reply to [`TCE_CREATE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TceCreate {
    /// [`TceCreate::SIZE`].
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// The page size of the window, as a shift.
    pub page_shift: u32,
    /// Zero.
    pub resv1: u32,
    /// The length of the window in bytes: a power of two.
    pub window_size: u64,
    /// The number of levels of its table.
    pub levels: u32,
    /// Zero.
    pub resv2: u32,
    /// On return the first address of the window, which the platform chooses.
    pub start_addr: u64,
}

/// The argument of [`TCE_REMOVE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TceRemove {
    /// [`TceRemove::SIZE`].
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// An address in the window. The kernel accepts any; this library passes the first.
    pub start_addr: u64,
}

laid_out_as!(TceInfo, kernel::vfio_iommu_spapr_tce_info { argsz, flags, dma32_window_start, dma32_window_size, ddw });
laid_out_as!(DdwInfo, kernel::vfio_iommu_spapr_tce_ddw_info { pgsizes, max_dynamic_windows_supported, levels });
laid_out_as!(RegisterMemory, kernel::vfio_iommu_spapr_register_memory { argsz, flags, vaddr, size });
laid_out_as!(
    TceCreate,
    kernel::vfio_iommu_spapr_tce_create {
        argsz,
        flags,
        page_shift,
        resv1 as __resv1,
        window_size,
        levels,
        resv2 as __resv2,
        start_addr,
    }
);
laid_out_as!(TceRemove, kernel::vfio_iommu_spapr_tce_remove { argsz, flags, start_addr });

/// The argument of [`EEH_PE_OP`] for every operation but the injection of errors: the head of the kernel's struct.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EehPeOp {
    /// [`EehPeOp::SIZE`].
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// One of the `EEH_` operations.
    pub op: u32,
}

laid_out_as!(@size EehPeOp);

const _: () = {
    laid_out_as!(@offset EehPeOp, kernel::vfio_eeh_pe_op, argsz);
    laid_out_as!(@offset EehPeOp, kernel::vfio_eeh_pe_op, flags);
    laid_out_as!(@offset EehPeOp, kernel::vfio_eeh_pe_op, op);
};

/// Stop handling errors of the PE.
pub const EEH_DISABLE: u32 = kernel::VFIO_EEH_PE_DISABLE;
/// Handle errors of the PE, and thaw it.
pub const EEH_ENABLE: u32 = kernel::VFIO_EEH_PE_ENABLE;
/// Allow accesses to the PE's registers again.
pub const EEH_UNFREEZE_IO: u32 = kernel::VFIO_EEH_PE_UNFREEZE_IO;
/// Allow the PE's accesses to memory again.
pub const EEH_UNFREEZE_DMA: u32 = kernel::VFIO_EEH_PE_UNFREEZE_DMA;
/// Return the PE's state as the result.
pub const EEH_GET_STATE: u32 = kernel::VFIO_EEH_PE_GET_STATE;
/// End a reset.
pub const EEH_RESET_DEACTIVATE: u32 = kernel::VFIO_EEH_PE_RESET_DEACTIVATE;
/// Begin a hot reset.
pub const EEH_RESET_HOT: u32 = kernel::VFIO_EEH_PE_RESET_HOT;
/// Begin a fundamental reset.
pub const EEH_RESET_FUNDAMENTAL: u32 = kernel::VFIO_EEH_PE_RESET_FUNDAMENTAL;
/// Configure the bridges of the PE again.
pub const EEH_CONFIGURE: u32 = kernel::VFIO_EEH_PE_CONFIGURE;
