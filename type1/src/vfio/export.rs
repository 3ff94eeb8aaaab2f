//! A device's BARs as files of their own (dma-bufs), since Linux 6.19.

use std::mem::offset_of;

use dmaspace_core::door::Request;
use vfio_bindings::bindings::vfio as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::BASE;

/// Device: ask or set one of its features; here [`ExportRange`] alone.
pub const DEVICE_FEATURE: Request = Request::vfio(BASE + 17, "VFIO_DEVICE_FEATURE");

/// What [`ExportRange`] asks of [`DEVICE_FEATURE`]: a new descriptor, which is the result.
pub const FEATURE_EXPORT: u32 = kernel::VFIO_DEVICE_FEATURE_GET | kernel::VFIO_DEVICE_FEATURE_DMA_BUF;

/// What [`DEVICE_FEATURE`] reads to export a part of a BAR: a header, the feature's own struct, and the one range that iommufd takes
/// (linux: drivers/vfio/pci/vfio_pci_dmabuf.c, vfio_pci_dma_buf_iommufd_map).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExportRange {
    /// [`ExportRange::SIZE`].
    pub argsz: u32,
    /// [`FEATURE_EXPORT`].
    pub flags: u32,
    /// Which BAR.
    pub region_index: u32,
    /// How the file is opened, as open(2) is told.
    pub open_flags: u32,
    /// Zero.
    pub reserved: u32,
    /// How many ranges follow: 1.
    pub nr_ranges: u32,
    /// Where the range begins in the BAR: at a page of the host.
    pub offset: u64,
    /// How many bytes: whole pages.
    pub length: u64,
}

impl ExportRange {
    /// Its size in bytes.
    #[allow(clippy::cast_possible_truncation, reason = "a struct of a few bytes")]
    pub const SIZE: u32 = size_of::<Self>() as u32;
}

const _: () = {
    const HEAD: usize = size_of::<kernel::vfio_device_feature>();
    const RANGE: usize = HEAD + offset_of!(kernel::vfio_device_feature_dma_buf, dma_ranges);
    assert!(DEVICE_FEATURE.is(0x3b75) && FEATURE_EXPORT == 0x1_000b);
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
