//! VFIO devices (linux: include/uapi/linux/vfio.h): regions, interrupts, reset, features, export of BARs, and attaching
//! to an iommufd.

mod feature;
mod irq;
mod reset;

use std::mem::offset_of;

use dmaspace_core::door::Request;
use vfio_bindings::bindings::vfio as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use feature::{
    FEATURE_GET, FEATURE_LOGGING_REPORT, FEATURE_LOGGING_START, FEATURE_LOGGING_STOP, FEATURE_MASK,
    FEATURE_MIG_DATA_SIZE, FEATURE_MIG_STATE, FEATURE_MIGRATION, FEATURE_PROBE, FEATURE_SET, FEATURE_VF_TOKEN,
    FeatureHead, FeatureLoggingReport, FeatureLoggingStart, FeatureMigDataSize, FeatureMigState, FeatureMigration,
    FeatureToken, LoggingRange, MIG_GET_PRECOPY_INFO, MIGRATION_P2P, MIGRATION_PRE_COPY, MIGRATION_STOP_COPY,
    PrecopyInfo, STATE_ERROR, STATE_PRE_COPY, STATE_PRE_COPY_P2P, STATE_RESUMING, STATE_RUNNING, STATE_RUNNING_P2P,
    STATE_STOP, STATE_STOP_COPY,
};
pub use irq::{
    DEVICE_GET_IRQ_INFO, DEVICE_SET_IRQS, IRQ_ACTIONS, IRQ_AUTOMASKED, IRQ_DATA_BOOL, IRQ_DATA_EVENTFD, IRQ_DATA_NONE,
    IRQ_DATA_TYPES, IRQ_ERROR, IRQ_EVENTFD, IRQ_INTX, IRQ_MASK, IRQ_MASKABLE, IRQ_MSI, IRQ_MSIX, IRQ_NORESIZE,
    IRQ_REQUEST, IRQ_TRIGGER, IRQ_UNMASK, IrqInfo, IrqSet, PCI_IRQS,
};
pub use reset::{
    DEV_ID_NOT_OWNED, DEV_ID_OWNED, DEVICE_GET_PCI_HOT_RESET_INFO, DEVICE_PCI_HOT_RESET, DependentDevice,
    HOT_RESET_DEV_ID, HOT_RESET_DEV_ID_OWNED, HotReset, HotResetInfo,
};

use crate::vfio::{BASE, CapabilityHeader};

/// Device: fills a [`DeviceInfo`].
pub const DEVICE_GET_INFO: Request = Request::vfio(BASE + 7, "VFIO_DEVICE_GET_INFO");
/// Device: fills a [`RegionInfo`] and the chain of capabilities behind it.
pub const DEVICE_GET_REGION_INFO: Request = Request::vfio(BASE + 8, "VFIO_DEVICE_GET_REGION_INFO");
/// Device: resets it; no argument.
pub const DEVICE_RESET: Request = Request::vfio(BASE + 11, "VFIO_DEVICE_RESET");
/// Device: reads or sets one of its features: [`ExportRange`], and the structs that begin with [`FeatureHead`].
pub const DEVICE_FEATURE: Request = Request::vfio(BASE + 17, "VFIO_DEVICE_FEATURE");
/// Device: binds it to an iommufd, for as long as the device's descriptor is open ([`BindIommufd`]).
pub const DEVICE_BIND_IOMMUFD: Request = Request::vfio(BASE + 18, "VFIO_DEVICE_BIND_IOMMUFD");
/// Device: attaches it to an address space or page table, detaching it from another one first ([`AttachIommufdPt`]).
pub const DEVICE_ATTACH_IOMMUFD_PT: Request = Request::vfio(BASE + 19, "VFIO_DEVICE_ATTACH_IOMMUFD_PT");
/// Device: detaches it ([`DetachIommufdPt`]).
pub const DEVICE_DETACH_IOMMUFD_PT: Request = Request::vfio(BASE + 20, "VFIO_DEVICE_DETACH_IOMMUFD_PT");

const _: () = {
    assert!(DEVICE_GET_INFO.is(0x3b6b));
    assert!(DEVICE_GET_REGION_INFO.is(0x3b6c));
    assert!(DEVICE_RESET.is(0x3b6f));
    assert!(DEVICE_FEATURE.is(0x3b75));
    assert!(DEVICE_BIND_IOMMUFD.is(0x3b76));
    assert!(DEVICE_ATTACH_IOMMUFD_PT.is(0x3b77));
    assert!(DEVICE_DETACH_IOMMUFD_PT.is(0x3b78));
};

/// The reply to [`DEVICE_GET_INFO`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceInfo {
    /// The size of the buffer; on return the size the kernel needs.
    pub argsz: u32,
    /// [`DEVICE_HAS_RESET`], [`DEVICE_HAS_CAPABILITIES`], and the kind of the device: [`DEVICE_IS_PCI`],
    /// [`DEVICE_IS_PLATFORM`], [`DEVICE_IS_AMBA`], [`DEVICE_IS_CCW`], [`DEVICE_IS_AP`], [`DEVICE_IS_FSL_MC`],
    /// [`DEVICE_IS_CDX`].
    pub flags: u32,
    /// The number of regions.
    pub num_regions: u32,
    /// The number of kinds of interrupt.
    pub num_irqs: u32,
    /// The offset of the first capability; 0 if there is none.
    pub cap_offset: u32,
    /// Zero.
    pub pad: u32,
}

/// [`DEVICE_RESET`] works.
pub const DEVICE_HAS_RESET: u32 = kernel::VFIO_DEVICE_FLAGS_RESET;
/// The device is a PCI device.
pub const DEVICE_IS_PCI: u32 = kernel::VFIO_DEVICE_FLAGS_PCI;
/// The device is a platform device.
pub const DEVICE_IS_PLATFORM: u32 = kernel::VFIO_DEVICE_FLAGS_PLATFORM;
/// The device is on an AMBA bus (Arm).
pub const DEVICE_IS_AMBA: u32 = kernel::VFIO_DEVICE_FLAGS_AMBA;
/// The device is a channel I/O device (s390).
pub const DEVICE_IS_CCW: u32 = kernel::VFIO_DEVICE_FLAGS_CCW;
/// The device is an adjunct processor (s390).
pub const DEVICE_IS_AP: u32 = kernel::VFIO_DEVICE_FLAGS_AP;
/// The device is on a Freescale management complex bus.
pub const DEVICE_IS_FSL_MC: u32 = kernel::VFIO_DEVICE_FLAGS_FSL_MC;
/// The device is on a CDX bus (AMD).
pub const DEVICE_IS_CDX: u32 = kernel::VFIO_DEVICE_FLAGS_CDX;
/// There is a chain of capabilities.
pub const DEVICE_HAS_CAPABILITIES: u32 = kernel::VFIO_DEVICE_FLAGS_CAPS;

/// The capability of a device with the atomic operations that its root port completes: [`AtomicCompletion`].
pub const DEVICE_CAP_ATOMIC_COMPLETION: u16 = 5;

const _: () = assert!(DEVICE_CAP_ATOMIC_COMPLETION as u32 == kernel::VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP);

/// The [`DEVICE_CAP_ATOMIC_COMPLETION`] capability.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AtomicCompletion {
    /// The head that every capability has.
    pub header: CapabilityHeader,
    /// 1: of 32 bits, 2: of 64 bits, 4: of 128 bits.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// The argument of and reply to [`DEVICE_GET_REGION_INFO`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegionInfo {
    /// The size of the buffer; on return the size the kernel needs.
    pub argsz: u32,
    /// [`REGION_READ`], [`REGION_WRITE`], [`REGION_MMAP`], [`REGION_HAS_CAPABILITIES`].
    pub flags: u32,
    /// The region: 0 to 5 are BARs, 6 is the expansion ROM, then [`REGION_CONFIG`].
    pub index: u32,
    /// The offset of the first capability; 0 if there is none.
    pub cap_offset: u32,
    /// The size of the region in bytes; 0 if the device lacks it.
    pub size: u64,
    /// The region's offset in the device's descriptor.
    pub offset: u64,
}

/// The region can be read.
pub const REGION_READ: u32 = kernel::VFIO_REGION_INFO_FLAG_READ;
/// The region can be written.
pub const REGION_WRITE: u32 = kernel::VFIO_REGION_INFO_FLAG_WRITE;
/// The region can be mapped into the process, perhaps only parts of it ([`REGION_CAP_SPARSE_MMAP`]).
pub const REGION_MMAP: u32 = kernel::VFIO_REGION_INFO_FLAG_MMAP;
/// There is a chain of capabilities.
pub const REGION_HAS_CAPABILITIES: u32 = kernel::VFIO_REGION_INFO_FLAG_CAPS;

/// The index of a PCI device's expansion ROM.
pub const REGION_ROM: u32 = 6;
/// The index of a PCI device's configuration space.
pub const REGION_CONFIG: u32 = 7;
/// The index of the legacy VGA ranges, which only graphics cards have.
pub const REGION_VGA: u32 = 8;
/// The number of regions that every PCI device has. Regions of a device's own have higher indices.
pub const PCI_REGIONS: u32 = 9;

const _: () = {
    assert!(REGION_ROM == kernel::VFIO_PCI_ROM_REGION_INDEX);
    assert!(REGION_CONFIG == kernel::VFIO_PCI_CONFIG_REGION_INDEX);
    assert!(REGION_VGA == kernel::VFIO_PCI_VGA_REGION_INDEX);
    assert!(PCI_REGIONS == kernel::VFIO_PCI_NUM_REGIONS);
};

/// The capability of a region only parts of which can be mapped: [`SparseMmap`], then its [`SparseArea`]s.
pub const REGION_CAP_SPARSE_MMAP: u16 = 1;

const _: () = assert!(REGION_CAP_SPARSE_MMAP as u32 == kernel::VFIO_REGION_INFO_CAP_SPARSE_MMAP);

/// The capability of a region of a device's own: [`RegionType`].
pub const REGION_CAP_TYPE: u16 = 2;
/// The capability of a BAR whose MSI-X table can be mapped into the process. It has a header only.
pub const REGION_CAP_MSIX_MAPPABLE: u16 = 3;
/// The capability of a region of NVLink2 memory: [`Nvlink2Ssatgt`].
pub const REGION_CAP_NVLINK2_SSATGT: u16 = 4;
/// The capability of a region of an NVLink2 bridge: [`Nvlink2LinkSpeed`].
pub const REGION_CAP_NVLINK2_LINK_SPEED: u16 = 5;

const _: () = {
    assert!(REGION_CAP_TYPE as u32 == kernel::VFIO_REGION_INFO_CAP_TYPE);
    assert!(REGION_CAP_MSIX_MAPPABLE as u32 == kernel::VFIO_REGION_INFO_CAP_MSIX_MAPPABLE);
    assert!(REGION_CAP_NVLINK2_SSATGT as u32 == kernel::VFIO_REGION_INFO_CAP_NVLINK2_SSATGT);
    assert!(REGION_CAP_NVLINK2_LINK_SPEED as u32 == kernel::VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD);
};

/// The [`REGION_CAP_TYPE`] capability.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegionType {
    /// The head that every capability has.
    pub header: CapabilityHeader,
    /// The type, or a bit and a PCI vendor.
    pub kind: u32,
    /// The subtype, which the type or the vendor defines.
    pub subtype: u32,
}

/// The [`REGION_CAP_NVLINK2_SSATGT`] capability.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nvlink2Ssatgt {
    /// The head that every capability has.
    pub header: CapabilityHeader,
    /// The address of the memory as the processor's NVLink knows it.
    pub tgt: u64,
}

/// The [`REGION_CAP_NVLINK2_LINK_SPEED`] capability.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nvlink2LinkSpeed {
    /// The head that every capability has.
    pub header: CapabilityHeader,
    /// The speed of the link.
    pub link_speed: u32,
    /// Zero.
    pub pad: u32,
}

/// The head of the [`REGION_CAP_SPARSE_MMAP`] capability.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SparseMmap {
    /// The head that every capability has.
    pub header: CapabilityHeader,
    /// The number of areas that follow.
    pub nr_areas: u32,
    /// Zero.
    pub reserved: u32,
}

/// A part of a region that can be mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SparseArea {
    /// The area's offset in the region.
    pub offset: u64,
    /// The area's size in bytes.
    pub size: u64,
}

/// The flags of an [`ExportRange`]: the result of [`DEVICE_FEATURE`] is a new descriptor, a dma-buf (since Linux 6.19).
pub const FEATURE_EXPORT: u32 = kernel::VFIO_DEVICE_FEATURE_GET | kernel::VFIO_DEVICE_FEATURE_DMA_BUF;

const _: () = assert!(FEATURE_EXPORT == 0x1_000b);

/// The argument of [`DEVICE_FEATURE`] that exports a part of a BAR: a header, the feature's own struct, and one range,
/// because iommufd accepts no more (linux: drivers/vfio/pci/vfio_pci_dmabuf.c, vfio_pci_dma_buf_iommufd_map).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExportRange {
    /// [`ExportRange::SIZE`].
    pub argsz: u32,
    /// [`FEATURE_EXPORT`].
    pub flags: u32,
    /// The index of the BAR.
    pub region_index: u32,
    /// The flags of the new descriptor, as for open(2).
    pub open_flags: u32,
    /// Zero.
    pub reserved: u32,
    /// The number of ranges that follow: 1.
    pub nr_ranges: u32,
    /// The range's offset in the BAR: a multiple of the host's page.
    pub offset: u64,
    /// The range's length in bytes: whole pages.
    pub length: u64,
}

laid_out_as!(@size ExportRange);

// The kernel has three structs, one behind the other.
const _: () = {
    const HEAD: usize = size_of::<kernel::vfio_device_feature>();
    const RANGE: usize = HEAD + offset_of!(kernel::vfio_device_feature_dma_buf, dma_ranges);
    assert!(HEAD == offset_of!(kernel::vfio_device_feature, data));
    assert!(offset_of!(ExportRange, argsz) == offset_of!(kernel::vfio_device_feature, argsz));
    assert!(offset_of!(ExportRange, flags) == offset_of!(kernel::vfio_device_feature, flags));
    assert!(
        offset_of!(ExportRange, region_index) == HEAD + offset_of!(kernel::vfio_device_feature_dma_buf, region_index)
    );
    assert!(offset_of!(ExportRange, open_flags) == HEAD + offset_of!(kernel::vfio_device_feature_dma_buf, open_flags));
    assert!(offset_of!(ExportRange, reserved) == HEAD + offset_of!(kernel::vfio_device_feature_dma_buf, flags));
    assert!(offset_of!(ExportRange, nr_ranges) == HEAD + offset_of!(kernel::vfio_device_feature_dma_buf, nr_ranges));
    assert!(offset_of!(ExportRange, offset) == RANGE + offset_of!(kernel::vfio_region_dma_range, offset));
    assert!(offset_of!(ExportRange, length) == RANGE + offset_of!(kernel::vfio_region_dma_range, length));
    assert!(size_of::<ExportRange>() == RANGE + size_of::<kernel::vfio_region_dma_range>());
};

/// The argument of and reply to [`DEVICE_BIND_IOMMUFD`]. Kernels without tokens accept the longer struct while its tail
/// is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BindIommufd {
    /// [`BindIommufd::SIZE`].
    pub argsz: u32,
    /// Zero, or [`BIND_TOKEN`].
    pub flags: u32,
    /// The iommufd's descriptor: attached, left zero.
    pub iommufd: i32,
    /// On return the device's id in the iommufd.
    pub out_devid: u32,
    /// The address of a virtual function's token: attached, left zero.
    pub token_uuid_ptr: u64,
}

/// There is a token. Kernels that know no tokens here answer `EINVAL`.
pub const BIND_TOKEN: u32 = kernel::VFIO_DEVICE_BIND_FLAG_TOKEN;

/// The argument of and reply to [`DEVICE_ATTACH_IOMMUFD_PT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AttachIommufdPt {
    /// [`AttachIommufdPt::SIZE`].
    pub argsz: u32,
    /// Zero, unless there is a PASID.
    pub flags: u32,
    /// The id of the address space or page table; on return the id of the page table in use.
    pub pt_id: u32,
    /// The process address space of the device that is attached.
    pub pasid: u32,
}

/// The argument of [`DEVICE_DETACH_IOMMUFD_PT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DetachIommufdPt {
    /// [`DetachIommufdPt::SIZE`].
    pub argsz: u32,
    /// Zero, unless there is a PASID.
    pub flags: u32,
    /// The process address space of the device that is detached.
    pub pasid: u32,
}

laid_out_as!(DeviceInfo, kernel::vfio_device_info { argsz, flags, num_regions, num_irqs, cap_offset, pad });
laid_out_as!(RegionInfo, kernel::vfio_region_info { argsz, flags, index, cap_offset, size, offset });
laid_out_as!(AtomicCompletion, kernel::vfio_device_info_cap_pci_atomic_comp { header, flags, reserved });
laid_out_as!(RegionType, kernel::vfio_region_info_cap_type { header, kind as type_, subtype });
laid_out_as!(Nvlink2Ssatgt, kernel::vfio_region_info_cap_nvlink2_ssatgt { header, tgt });
laid_out_as!(Nvlink2LinkSpeed, kernel::vfio_region_info_cap_nvlink2_lnkspd { header, link_speed, pad as __pad });
laid_out_as!(SparseMmap, kernel::vfio_region_info_cap_sparse_mmap { header, nr_areas, reserved });
laid_out_as!(SparseArea, kernel::vfio_region_sparse_mmap_area { offset, size });
laid_out_as!(BindIommufd, kernel::vfio_device_bind_iommufd { argsz, flags, iommufd, out_devid, token_uuid_ptr });
laid_out_as!(AttachIommufdPt, kernel::vfio_device_attach_iommufd_pt { argsz, flags, pt_id, pasid });
laid_out_as!(DetachIommufdPt, kernel::vfio_device_detach_iommufd_pt { argsz, flags, pasid });
