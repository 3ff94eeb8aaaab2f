//! The ABI of an sPAPR TCE container: numbers, structs, flags (linux: include/uapi/linux/vfio.h).
//!
//! No calls. Sizes and offsets are checked against bindgen's reading of the kernel's header when this is compiled, numbers
//! against the header's x86 literals. Fields that hold an address of this process are left zero and attached (see
//! [`dmaspace_core::door`]).
//!
//! Everything here is asked of a container that was given to the sPAPR driver. The same numbers mean other things elsewhere:
//! [`REGISTER_MEMORY`] is a type1 container's dirty tracking and a device's feature call.

use std::mem::offset_of;

use dmaspace_core::door::Request;
use vfio_bindings::bindings::vfio as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first of VFIO's numbers.
const BASE: u8 = 100;

/// What the first group offers: [`TceInfo`].
pub const TCE_GET_INFO: Request = Request::vfio(BASE + 12, "VFIO_IOMMU_SPAPR_TCE_GET_INFO");
/// Write table entries: [`MapDma`]. A result of 1 is a refusal.
pub const MAP_DMA: Request = Request::vfio(BASE + 13, "VFIO_IOMMU_MAP_DMA");
/// Clear table entries: [`UnmapDma`]. A result of 1 is a refusal.
pub const UNMAP_DMA: Request = Request::vfio(BASE + 14, "VFIO_IOMMU_UNMAP_DMA");
/// v1: charge the window and allow maps; no argument.
pub const ENABLE: Request = Request::vfio(BASE + 15, "VFIO_IOMMU_ENABLE");
/// v1: the opposite; no argument.
pub const DISABLE: Request = Request::vfio(BASE + 16, "VFIO_IOMMU_DISABLE");
/// v2: pin and charge memory: [`RegisterMemory`]. A positive result is a refusal.
pub const REGISTER_MEMORY: Request = Request::vfio(BASE + 17, "VFIO_IOMMU_SPAPR_REGISTER_MEMORY");
/// v2: the opposite, of exactly what was registered: [`RegisterMemory`].
pub const UNREGISTER_MEMORY: Request = Request::vfio(BASE + 18, "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY");
/// v2: create a window: [`TceCreate`].
pub const TCE_CREATE: Request = Request::vfio(BASE + 19, "VFIO_IOMMU_SPAPR_TCE_CREATE");
/// v2: remove the window that holds an address: [`TceRemove`].
pub const TCE_REMOVE: Request = Request::vfio(BASE + 20, "VFIO_IOMMU_SPAPR_TCE_REMOVE");

/// Whether the kernel has an extension, as on every container: [`EXTENSION_EEH`]. A positive result is a yes.
pub const CHECK_EXTENSION: Request = Request::vfio(BASE + 1, "VFIO_CHECK_EXTENSION");
/// The kernel recovers PEs.
pub const EXTENSION_EEH: u64 = kernel::VFIO_EEH as u64;
/// Recover the PE of each group in turn: [`EehPeOp`]. A result is a state, or a refusal.
pub const EEH_PE_OP: Request = Request::vfio(BASE + 21, "VFIO_EEH_PE_OP");

const _: () = {
    assert!(BASE as u32 == kernel::VFIO_BASE);
    assert!(TCE_GET_INFO.is(0x3b70));
    assert!(MAP_DMA.is(0x3b71));
    assert!(UNMAP_DMA.is(0x3b72));
    assert!(ENABLE.is(0x3b73));
    assert!(DISABLE.is(0x3b74));
    assert!(REGISTER_MEMORY.is(0x3b75));
    assert!(UNREGISTER_MEMORY.is(0x3b76));
    assert!(TCE_CREATE.is(0x3b77));
    assert!(TCE_REMOVE.is(0x3b78));
    assert!(EEH_PE_OP.is(0x3b79));
    assert!(CHECK_EXTENSION.is(0x3b65));
};

/// What [`TCE_GET_INFO`] fills. `argsz` is not written back (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_ioctl).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TceInfo {
    /// [`TceInfo::SIZE`].
    pub argsz: u32,
    /// [`INFO_DDW`].
    pub flags: u32,
    /// Where the group's 32-bit window begins, removed or not.
    pub dma32_window_start: u32,
    /// Its bytes. Some kernels misreport 4 GiB and more (linux: arch/powerpc/platforms/pseries/iommu.c).
    pub dma32_window_size: u32,
    /// What windows can be created; valid with [`INFO_DDW`].
    pub ddw: DdwInfo,
}

/// Windows can be created, and [`TceInfo::ddw`] says which.
pub const INFO_DDW: u32 = kernel::VFIO_IOMMU_SPAPR_INFO_DDW;

/// What windows can be created ("dynamic DMA windows").
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DdwInfo {
    /// The pages a window can be made of.
    pub pgsizes: u64,
    /// How many windows there can be. A pseries host that could not ask its firmware says 2^32-1.
    pub max_dynamic_windows_supported: u32,
    /// How many levels a table can have.
    pub levels: u32,
}

/// What [`MAP_DMA`] reads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapDma {
    /// [`MapDma::SIZE`].
    pub argsz: u32,
    /// [`MAP_READ`], [`MAP_WRITE`]: the device's. At least one; powernv turns a lone write into both.
    pub flags: u32,
    /// The memory: attached, left zero.
    pub vaddr: u64,
    /// The first bus address.
    pub iova: u64,
    /// How many bytes.
    pub size: u64,
}

/// The device may read.
pub const MAP_READ: u32 = kernel::VFIO_DMA_MAP_FLAG_READ;
/// The device may write.
pub const MAP_WRITE: u32 = kernel::VFIO_DMA_MAP_FLAG_WRITE;

/// What [`UNMAP_DMA`] reads. Nothing is written back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UnmapDma {
    /// [`UnmapDma::SIZE`].
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// The first bus address.
    pub iova: u64,
    /// How many bytes.
    pub size: u64,
}

/// What [`REGISTER_MEMORY`] and [`UNREGISTER_MEMORY`] read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegisterMemory {
    /// [`RegisterMemory::SIZE`].
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// The memory: attached, left zero.
    pub vaddr: u64,
    /// How many bytes.
    pub size: u64,
}

/// What [`TCE_CREATE`] reads and fills.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TceCreate {
    /// [`TceCreate::SIZE`].
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// The page of the window, as a shift.
    pub page_shift: u32,
    /// Zero.
    pub resv1: u32,
    /// The bytes of the window: a power of two.
    pub window_size: u64,
    /// The levels of its table.
    pub levels: u32,
    /// Zero.
    pub resv2: u32,
    /// On return where the window begins: the platform chooses.
    pub start_addr: u64,
}

/// What [`TCE_REMOVE`] reads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TceRemove {
    /// [`TceRemove::SIZE`].
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// An address of the window: any will do for the kernel, only the first for us.
    pub start_addr: u64,
}

/// Gives a struct its `SIZE`, for `argsz`, and checks size and offsets against the kernel's struct.
macro_rules! laid_out_as {
    ($ours:ident, $kernel:ident { $($field:ident $(as $theirs:ident)?),+ $(,)? }) => {
        impl $ours {
            /// Its size in bytes.
            #[allow(clippy::cast_possible_truncation, reason = "structs of a few bytes")]
            pub const SIZE: u32 = size_of::<Self>() as u32;
        }

        const _: () = {
            assert!(size_of::<$ours>() == size_of::<kernel::$kernel>());
            $(assert!(offset_of!($ours, $field) == laid_out_as!(@offset $kernel, $field $($theirs)?));)+
        };
    };
    (@offset $kernel:ident, $field:ident $theirs:ident) => { offset_of!(kernel::$kernel, $theirs) };
    (@offset $kernel:ident, $field:ident) => { offset_of!(kernel::$kernel, $field) };
}

laid_out_as!(TceInfo, vfio_iommu_spapr_tce_info { argsz, flags, dma32_window_start, dma32_window_size, ddw });
laid_out_as!(DdwInfo, vfio_iommu_spapr_tce_ddw_info { pgsizes, max_dynamic_windows_supported, levels });
laid_out_as!(MapDma, vfio_iommu_type1_dma_map { argsz, flags, vaddr, iova, size });
laid_out_as!(UnmapDma, vfio_iommu_type1_dma_unmap { argsz, flags, iova, size });
laid_out_as!(RegisterMemory, vfio_iommu_spapr_register_memory { argsz, flags, vaddr, size });
laid_out_as!(
    TceCreate,
    vfio_iommu_spapr_tce_create {
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
laid_out_as!(TceRemove, vfio_iommu_spapr_tce_remove { argsz, flags, start_addr });

/// What [`EEH_PE_OP`] reads for all but the injection of errors: the head of the kernel's struct.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EehPeOp {
    /// [`EehPeOp::SIZE`].
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// One of the `EEH_` numbers.
    pub op: u32,
}

impl EehPeOp {
    /// Its size in bytes.
    #[allow(clippy::cast_possible_truncation, reason = "a struct of a few bytes")]
    pub const SIZE: u32 = size_of::<Self>() as u32;
}

const _: () = {
    assert!(offset_of!(EehPeOp, flags) == offset_of!(kernel::vfio_eeh_pe_op, flags));
    assert!(offset_of!(EehPeOp, op) == offset_of!(kernel::vfio_eeh_pe_op, op));
};

/// Stop handling errors.
pub const EEH_DISABLE: u32 = kernel::VFIO_EEH_PE_DISABLE;
/// Handle errors, and thaw.
pub const EEH_ENABLE: u32 = kernel::VFIO_EEH_PE_ENABLE;
/// Let accesses to registers through.
pub const EEH_UNFREEZE_IO: u32 = kernel::VFIO_EEH_PE_UNFREEZE_IO;
/// Let accesses to memory through.
pub const EEH_UNFREEZE_DMA: u32 = kernel::VFIO_EEH_PE_UNFREEZE_DMA;
/// Ask; the result is the state.
pub const EEH_GET_STATE: u32 = kernel::VFIO_EEH_PE_GET_STATE;
/// End a reset.
pub const EEH_RESET_DEACTIVATE: u32 = kernel::VFIO_EEH_PE_RESET_DEACTIVATE;
/// Begin a hot reset.
pub const EEH_RESET_HOT: u32 = kernel::VFIO_EEH_PE_RESET_HOT;
/// Begin a fundamental reset.
pub const EEH_RESET_FUNDAMENTAL: u32 = kernel::VFIO_EEH_PE_RESET_FUNDAMENTAL;
/// Restore what lies between the host and the PE.
pub const EEH_CONFIGURE: u32 = kernel::VFIO_EEH_PE_CONFIGURE;
