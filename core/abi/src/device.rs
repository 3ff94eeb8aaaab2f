//! VFIO devices (linux: include/uapi/linux/vfio.h): regions and reset, export of BARs, and attaching to an iommufd.

use std::mem::offset_of;

use dmaspace_core::door::Request;
use vfio_bindings::bindings::vfio as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::vfio::{BASE, CapabilityHeader};

/// Device: fills a [`DeviceInfo`].
pub const DEVICE_GET_INFO: Request = Request::vfio(BASE + 7, "VFIO_DEVICE_GET_INFO");
/// Device: fills a [`RegionInfo`] and the chain of capabilities behind it.
pub const DEVICE_GET_REGION_INFO: Request = Request::vfio(BASE + 8, "VFIO_DEVICE_GET_REGION_INFO");
/// Device: resets it; no argument.
pub const DEVICE_RESET: Request = Request::vfio(BASE + 11, "VFIO_DEVICE_RESET");
/// Device: reads or sets one of its features; used here for [`ExportRange`] alone.
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
    /// [`DEVICE_HAS_RESET`], [`DEVICE_IS_PCI`], and flags that are not used here.
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

/// The index of a PCI device's configuration space.
pub const REGION_CONFIG: u32 = 7;

const _: () = assert!(REGION_CONFIG == kernel::VFIO_PCI_CONFIG_REGION_INDEX);

/// The capability of a region only parts of which can be mapped: [`SparseMmap`], then its [`SparseArea`]s.
pub const REGION_CAP_SPARSE_MMAP: u16 = 1;

const _: () = assert!(REGION_CAP_SPARSE_MMAP as u32 == kernel::VFIO_REGION_INFO_CAP_SPARSE_MMAP);

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
    /// Zero, unless there is a token.
    pub flags: u32,
    /// The iommufd's descriptor: attached, left zero.
    pub iommufd: i32,
    /// On return the device's id in the iommufd.
    pub out_devid: u32,
    /// The address of a virtual function's token.
    pub token_uuid_ptr: u64,
}

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
laid_out_as!(SparseMmap, kernel::vfio_region_info_cap_sparse_mmap { header, nr_areas, reserved });
laid_out_as!(SparseArea, kernel::vfio_region_sparse_mmap_area { offset, size });
laid_out_as!(BindIommufd, kernel::vfio_device_bind_iommufd { argsz, flags, iommufd, out_devid, token_uuid_ptr });
laid_out_as!(AttachIommufdPt, kernel::vfio_device_attach_iommufd_pt { argsz, flags, pt_id, pasid });
laid_out_as!(DetachIommufdPt, kernel::vfio_device_detach_iommufd_pt { argsz, flags, pasid });
