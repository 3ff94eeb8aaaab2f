//! Containers of the type1 driver (linux: include/uapi/linux/vfio.h). Mapping and unmapping are in [`crate::vfio`].

use std::mem::offset_of;

use dmaspace_core::door::Request;
use vfio_bindings::bindings::vfio as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::vfio::{BASE, CapabilityHeader, UnmapDma};

/// Container: fills an [`Info`] and the chain of capabilities behind it.
pub const GET_INFO: Request = Request::vfio(BASE + 12, "VFIO_IOMMU_GET_INFO");
/// Container: starts or stops logging device writes, or reads the log ([`DirtyBitmap`]).
pub const DIRTY_PAGES: Request = Request::vfio(BASE + 17, "VFIO_IOMMU_DIRTY_PAGES");

const _: () = {
    assert!(GET_INFO.is(0x3b70));
    assert!(DIRTY_PAGES.is(0x3b75));
};

/// The reply to [`GET_INFO`].
///
/// With an `argsz` too small for the chain the call succeeds, sets [`INFO_CAPABILITIES`], leaves `cap_offset` zero and
/// writes the size it needs to `argsz` (linux: drivers/vfio/vfio_iommu_type1.c, vfio_iommu_type1_get_info).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Info {
    /// The size of the buffer; on return the size the kernel needs.
    pub argsz: u32,
    /// [`INFO_PAGE_SIZES`], [`INFO_CAPABILITIES`].
    pub flags: u32,
    /// A mask of the page sizes that every device of the container can use; valid with [`INFO_PAGE_SIZES`].
    pub iova_pgsizes: u64,
    /// The offset of the first capability; 0 if there is none.
    pub cap_offset: u32,
    /// Zero.
    pub pad: u32,
}

/// `iova_pgsizes` is valid.
pub const INFO_PAGE_SIZES: u32 = kernel::VFIO_IOMMU_INFO_PGSIZES;
/// There is a chain of capabilities.
pub const INFO_CAPABILITIES: u32 = kernel::VFIO_IOMMU_INFO_CAPS;

/// The capability that lists the ranges that can be mapped: [`IovaRanges`], then its [`IovaSpan`](crate::IovaSpan)s.
/// Absent when only emulated devices are attached, and before Linux 5.4.
pub const CAP_IOVA_RANGE: u16 = 1;
/// The capability of a kernel that can log dirty pages: [`Migration`].
pub const CAP_MIGRATION: u16 = 2;
/// The capability with the number of mappings left: [`DmaAvailable`]. Absent before Linux 5.10.
pub const CAP_DMA_AVAIL: u16 = 3;

const _: () = assert!(CAP_IOVA_RANGE as u32 == kernel::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
const _: () = assert!(CAP_MIGRATION as u32 == kernel::VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION);
const _: () = assert!(CAP_DMA_AVAIL as u32 == kernel::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL);

/// The head of the [`CAP_IOVA_RANGE`] capability.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IovaRanges {
    /// The head that every capability has.
    pub header: CapabilityHeader,
    /// The number of spans that follow.
    pub nr_iovas: u32,
    /// Zero.
    pub reserved: u32,
}

/// The [`CAP_MIGRATION`] capability.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Migration {
    /// The head that every capability has.
    pub header: CapabilityHeader,
    /// Zero.
    pub flags: u32,
    /// Padding: the kernel's struct has a hole here.
    pub hole: u32,
    /// A mask of the pages that the log can be read in: the smallest page of the container only.
    pub pgsize_bitmap: u64,
    /// The largest bitmap that one call fills, in bytes.
    pub max_dirty_bitmap_size: u64,
}

/// The [`CAP_DMA_AVAIL`] capability.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DmaAvailable {
    /// The head that every capability has.
    pub header: CapabilityHeader,
    /// The number of mappings that the container has room for.
    pub avail: u32,
}

/// [`MapDma`](crate::vfio::MapDma): update the address of a mapping whose address was invalidated with [`UNMAP_VADDR`].
/// Must not be combined with access flags: the mapping keeps its access.
pub const MAP_VADDR: u32 = kernel::VFIO_DMA_MAP_FLAG_VADDR;

/// [`UnmapDma`]: the argument is an [`UnmapDirty`]. Valid only while pages are logged, and not together with
/// [`UNMAP_ALL`].
pub const UNMAP_GET_DIRTY: u32 = kernel::VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
/// [`UnmapDma`]: unmap everything; address and size must be zero.
pub const UNMAP_ALL: u32 = kernel::VFIO_DMA_UNMAP_FLAG_ALL;
/// [`UnmapDma`]: unmap nothing, but invalidate the addresses of the mappings. Each of them must have a valid address.
pub const UNMAP_VADDR: u32 = kernel::VFIO_DMA_UNMAP_FLAG_VADDR;

/// A bitmap for the kernel to fill, one bit per page. The kernel sets bits and clears none, so the caller must zero it
/// first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Bitmap {
    /// The page size in bytes.
    pub pgsize: u64,
    /// The size of the bitmap in bytes: a multiple of eight.
    pub size: u64,
    /// The bitmap: attached, left zero.
    pub data: u64,
}

/// The most bytes of a bitmap that the kernel accepts (linux: drivers/vfio/vfio_iommu_type1.c, DIRTY_BITMAP_SIZE_MAX).
pub const LONGEST_BITMAP: u64 = 1 << 28;

/// The argument of [`UNMAP_DMA`](crate::vfio::UNMAP_DMA) with [`UNMAP_GET_DIRTY`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UnmapDirty {
    /// The range to unmap.
    pub unmap: UnmapDma,
    /// One bit per page of the range.
    pub bitmap: Bitmap,
}

/// The argument of [`DIRTY_PAGES`]: the kernel reads all of it with [`DIRTY_GET_BITMAP`], else [`DIRTY_BITMAP_HEAD`]
/// bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DirtyBitmap {
    /// The number of bytes that the kernel may read.
    pub argsz: u32,
    /// One of [`DIRTY_START`], [`DIRTY_STOP`], [`DIRTY_GET_BITMAP`].
    pub flags: u32,
    /// The first bus address.
    pub iova: u64,
    /// The length in bytes.
    pub size: u64,
    /// One bit per page of the range.
    pub bitmap: Bitmap,
}

/// The size of the part of [`DirtyBitmap`] that the kernel reads for every flag.
#[allow(clippy::cast_possible_truncation, reason = "no struct has 4 GiB")]
pub const DIRTY_BITMAP_HEAD: u32 = offset_of!(DirtyBitmap, iova) as u32;
/// Start logging.
pub const DIRTY_START: u32 = kernel::VFIO_IOMMU_DIRTY_PAGES_FLAG_START;
/// Stop logging.
pub const DIRTY_STOP: u32 = kernel::VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP;
/// Read the log, and clear it.
pub const DIRTY_GET_BITMAP: u32 = kernel::VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;

// The kernel has the head and the rest of DirtyBitmap as two structs, one behind the other.
const _: () = {
    assert!(size_of::<kernel::vfio_iommu_type1_dirty_bitmap>() == offset_of!(DirtyBitmap, iova));
    assert!(size_of::<kernel::vfio_iommu_type1_dirty_bitmap_get>() == size_of::<DirtyBitmap>() - 8);
    assert!(offset_of!(kernel::vfio_iommu_type1_dirty_bitmap_get, size) == offset_of!(DirtyBitmap, size) - 8);
    assert!(offset_of!(kernel::vfio_iommu_type1_dirty_bitmap_get, bitmap) == offset_of!(DirtyBitmap, bitmap) - 8);
    assert!(offset_of!(kernel::vfio_iommu_type1_dma_unmap, data) == offset_of!(UnmapDirty, bitmap));
};

laid_out_as!(@size DirtyBitmap);
laid_out_as!(@size UnmapDirty);
laid_out_as!(Bitmap, kernel::vfio_bitmap { pgsize, size, data });
laid_out_as!(Info, kernel::vfio_iommu_type1_info { argsz, flags, iova_pgsizes, cap_offset, pad });
laid_out_as!(IovaRanges, kernel::vfio_iommu_type1_info_cap_iova_range { header, nr_iovas, reserved });
laid_out_as!(
    Migration,
    kernel::vfio_iommu_type1_info_cap_migration { header, flags, pgsize_bitmap, max_dirty_bitmap_size }
);
laid_out_as!(DmaAvailable, kernel::vfio_iommu_type1_info_dma_avail { header, avail });
