//! The ABI of a type1 container: numbers, structs, flags (linux: include/uapi/linux/vfio.h).
//!
//! All of it is checked when this is compiled, as [`crate::vfio`] says. Fields that hold an address of this process are left zero
//! and attached (see [`dmaspace_core::door`]).

use std::mem::offset_of;

use dmaspace_core::door::Request;
use vfio_bindings::bindings::vfio as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::vfio::{BASE, CapabilityHeader, laid_out_as};

/// Container: what it offers: [`Info`], then a chain of capabilities.
pub const GET_INFO: Request = Request::vfio(BASE + 12, "VFIO_IOMMU_GET_INFO");
/// Container: map memory: [`MapDma`].
pub const MAP_DMA: Request = Request::vfio(BASE + 13, "VFIO_IOMMU_MAP_DMA");
/// Container: unmap whole mappings: [`UnmapDma`].
pub const UNMAP_DMA: Request = Request::vfio(BASE + 14, "VFIO_IOMMU_UNMAP_DMA");
/// Container: begin or end to log what devices write, or ask: [`DirtyBitmap`].
pub const DIRTY_PAGES: Request = Request::vfio(BASE + 17, "VFIO_IOMMU_DIRTY_PAGES");

const _: () = {
    assert!(GET_INFO.is(0x3b70));
    assert!(MAP_DMA.is(0x3b71));
    assert!(UNMAP_DMA.is(0x3b72));
    assert!(DIRTY_PAGES.is(0x3b75));
};

/// What [`GET_INFO`] fills.
///
/// With an `argsz` too small for the chain the call succeeds, sets [`INFO_CAPABILITIES`], leaves `cap_offset` zero and
/// writes the size it wants to `argsz` (linux: drivers/vfio/vfio_iommu_type1.c, vfio_iommu_type1_get_info).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Info {
    /// The size of the buffer; on return the size the kernel wants.
    pub argsz: u32,
    /// [`INFO_PAGE_SIZES`], [`INFO_CAPABILITIES`].
    pub flags: u32,
    /// The pages all devices of the container can use; valid with [`INFO_PAGE_SIZES`].
    pub iova_pgsizes: u64,
    /// Where the chain of capabilities begins; 0: nowhere.
    pub cap_offset: u32,
    /// Zero.
    pub pad: u32,
}

/// `iova_pgsizes` is valid.
pub const INFO_PAGE_SIZES: u32 = kernel::VFIO_IOMMU_INFO_PGSIZES;
/// There is a chain of capabilities.
pub const INFO_CAPABILITIES: u32 = kernel::VFIO_IOMMU_INFO_CAPS;

/// The capability with the ranges that can be mapped: [`IovaRanges`], then its [`IovaSpan`]s. Absent when only
/// emulated devices are attached, and before Linux 5.4.
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
    /// As on every capability.
    pub header: CapabilityHeader,
    /// How many spans follow.
    pub nr_iovas: u32,
    /// Zero.
    pub reserved: u32,
}

/// A range of bus addresses that can be mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IovaSpan {
    /// The first address.
    pub start: u64,
    /// The last address, which is inside.
    pub end: u64,
}

/// The [`CAP_MIGRATION`] capability.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Migration {
    /// As on every capability.
    pub header: CapabilityHeader,
    /// Zero.
    pub flags: u32,
    /// The kernel's struct has a hole here.
    pub hole: u32,
    /// The pages dirt can be asked for in: the smallest of the container only.
    pub pgsize_bitmap: u64,
    /// The largest bitmap one call fills, in bytes.
    pub max_dirty_bitmap_size: u64,
}

/// The [`CAP_DMA_AVAIL`] capability.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DmaAvailable {
    /// As on every capability.
    pub header: CapabilityHeader,
    /// How many mappings the container still takes.
    pub avail: u32,
}

/// What [`MAP_DMA`] reads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapDma {
    /// [`MapDma::SIZE`].
    pub argsz: u32,
    /// [`MAP_READ`], [`MAP_WRITE`]: the device's; or [`MAP_VADDR`].
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
/// The mapping is there, and its address was let go of with [`UNMAP_VADDR`]: this is where its memory is from now on. Not together with
/// rights, which stay.
pub const MAP_VADDR: u32 = kernel::VFIO_DMA_MAP_FLAG_VADDR;

/// What [`UNMAP_DMA`] reads and, on success, writes back. A bitmap may follow, for dirty tracking.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UnmapDma {
    /// [`UnmapDma::SIZE`].
    pub argsz: u32,
    /// [`UNMAP_ALL`], [`UNMAP_VADDR`], both, or zero.
    pub flags: u32,
    /// The first bus address.
    pub iova: u64,
    /// How many bytes; on return how many of them were mapped.
    pub size: u64,
}

/// The struct is an [`UnmapDirty`]; only while pages are logged, and not together with [`UNMAP_ALL`].
pub const UNMAP_GET_DIRTY: u32 = kernel::VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
/// Unmap everything; address and size must be zero then.
pub const UNMAP_ALL: u32 = kernel::VFIO_DMA_UNMAP_FLAG_ALL;
/// Unmap nothing: let go of the addresses only. All of the mappings must have one.
pub const UNMAP_VADDR: u32 = kernel::VFIO_DMA_UNMAP_FLAG_VADDR;

/// A bitmap for the kernel to fill, one bit a page. The kernel sets bits and clears none: it is zero before.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Bitmap {
    /// The page, in bytes.
    pub pgsize: u64,
    /// The bitmap's bytes: a multiple of eight.
    pub size: u64,
    /// The bitmap: attached, left zero.
    pub data: u64,
}

/// What [`UNMAP_DMA`] reads with [`UNMAP_GET_DIRTY`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UnmapDirty {
    /// The range.
    pub unmap: UnmapDma,
    /// One bit a page of it.
    pub bitmap: Bitmap,
}

/// What [`DIRTY_PAGES`] reads: up to [`DIRTY_BITMAP_HEAD`] bytes, or all of it with [`DIRTY_GET_BITMAP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DirtyBitmap {
    /// The bytes that are read.
    pub argsz: u32,
    /// One of [`DIRTY_START`], [`DIRTY_STOP`], [`DIRTY_GET_BITMAP`].
    pub flags: u32,
    /// The first bus address.
    pub iova: u64,
    /// How many bytes.
    pub size: u64,
    /// One bit a page of them.
    pub bitmap: Bitmap,
}

/// The part of [`DirtyBitmap`] that is always read.
#[allow(clippy::cast_possible_truncation, reason = "a struct of a few bytes")]
pub const DIRTY_BITMAP_HEAD: u32 = offset_of!(DirtyBitmap, iova) as u32;
/// Begin to log.
pub const DIRTY_START: u32 = kernel::VFIO_IOMMU_DIRTY_PAGES_FLAG_START;
/// End it.
pub const DIRTY_STOP: u32 = kernel::VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP;
/// Read what was logged, and clear it.
pub const DIRTY_GET_BITMAP: u32 = kernel::VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;

// The kernel has the head and the rest as two structs, one behind the other.
const _: () = {
    assert!(size_of::<kernel::vfio_iommu_type1_dirty_bitmap>() == offset_of!(DirtyBitmap, iova));
    assert!(size_of::<kernel::vfio_iommu_type1_dirty_bitmap_get>() == size_of::<DirtyBitmap>() - 8);
    assert!(offset_of!(kernel::vfio_iommu_type1_dirty_bitmap_get, size) == offset_of!(DirtyBitmap, size) - 8);
    assert!(offset_of!(kernel::vfio_iommu_type1_dirty_bitmap_get, bitmap) == offset_of!(DirtyBitmap, bitmap) - 8);
    assert!(offset_of!(kernel::vfio_iommu_type1_dma_unmap, data) == offset_of!(UnmapDirty, bitmap));
};

impl DirtyBitmap {
    /// Its size in bytes.
    #[allow(clippy::cast_possible_truncation, reason = "a struct of a few bytes")]
    pub const SIZE: u32 = size_of::<Self>() as u32;
}

impl UnmapDirty {
    /// Its size in bytes.
    #[allow(clippy::cast_possible_truncation, reason = "a struct of a few bytes")]
    pub const SIZE: u32 = size_of::<Self>() as u32;
}

laid_out_as!(Bitmap, vfio_bitmap { pgsize, size, data });
laid_out_as!(Info, vfio_iommu_type1_info { argsz, flags, iova_pgsizes, cap_offset, pad });
laid_out_as!(IovaRanges, vfio_iommu_type1_info_cap_iova_range { header, nr_iovas, reserved });
laid_out_as!(IovaSpan, vfio_iova_range { start, end });
laid_out_as!(Migration, vfio_iommu_type1_info_cap_migration { header, flags, pgsize_bitmap, max_dirty_bitmap_size });
laid_out_as!(DmaAvailable, vfio_iommu_type1_info_dma_avail { header, avail });
laid_out_as!(MapDma, vfio_iommu_type1_dma_map { argsz, flags, vaddr, iova, size });
laid_out_as!(UnmapDma, vfio_iommu_type1_dma_unmap { argsz, flags, iova, size });
