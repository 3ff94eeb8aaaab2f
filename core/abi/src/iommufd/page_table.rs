//! Page tables that are allocated by request, and their dirty logs.

use dmaspace_core::door::Request;
use iommufd_bindings as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// iommufd: allocates a page table for a device, which maps an address space ([`HwptAlloc`]).
pub const HWPT_ALLOC: Request = Request::vfio(0x89, "IOMMU_HWPT_ALLOC");
/// iommufd: describes the IOMMU in front of a device ([`HwInfo`]).
pub const GET_HW_INFO: Request = Request::vfio(0x8a, "IOMMU_GET_HW_INFO");
/// iommufd: starts or stops logging writes through a page table ([`HwptSetDirtyTracking`]).
pub const HWPT_SET_DIRTY_TRACKING: Request = Request::vfio(0x8b, "IOMMU_HWPT_SET_DIRTY_TRACKING");
/// iommufd: reads the log of writes through a page table ([`HwptGetDirtyBitmap`]).
pub const HWPT_GET_DIRTY_BITMAP: Request = Request::vfio(0x8c, "IOMMU_HWPT_GET_DIRTY_BITMAP");

const _: () = {
    use super::is_command;
    assert!(is_command(HWPT_ALLOC, kernel::IOMMUFD_CMD_HWPT_ALLOC, 0x3b89));
    assert!(is_command(GET_HW_INFO, kernel::IOMMUFD_CMD_GET_HW_INFO, 0x3b8a));
    assert!(is_command(HWPT_SET_DIRTY_TRACKING, kernel::IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING, 0x3b8b));
    assert!(is_command(HWPT_GET_DIRTY_BITMAP, kernel::IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP, 0x3b8c));
};

/// The argument of and reply to [`HWPT_ALLOC`]. Page tables that the kernel manages carry no data for the IOMMU's
/// driver.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HwptAlloc {
    /// [`HwptAlloc::SIZE`].
    pub size: u32,
    /// [`HWPT_ALLOC_DIRTY_TRACKING`].
    pub flags: u32,
    /// The id of the device it is made for; others may be compatible with it too.
    pub dev_id: u32,
    /// The id of the address space it maps.
    pub pt_id: u32,
    /// On return the id of the new page table.
    pub out_hwpt_id: u32,
    /// Zero.
    pub reserved: u32,
    /// Zero: the kernel manages the page table.
    pub data_type: u32,
    /// The length of the driver's data: zero.
    pub data_len: u32,
    /// The address of a driver's data: zero.
    pub data_uptr: u64,
    /// The id of the queue for page faults: zero, no queue.
    pub fault_id: u32,
    /// Zero.
    pub reserved2: u32,
}

/// The page table can log writes. A device whose IOMMU cannot log is refused by it.
pub const HWPT_ALLOC_DIRTY_TRACKING: u32 = kernel::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING;

/// The argument of and reply to [`GET_HW_INFO`]. Kernels without capabilities accept the longer struct and leave its
/// tail zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HwInfo {
    /// [`HwInfo::SIZE`].
    pub size: u32,
    /// Zero.
    pub flags: u32,
    /// The id of the device.
    pub dev_id: u32,
    /// The room for the driver's data in bytes; on return the length of that data.
    pub data_len: u32,
    /// The address of that room: zero for none.
    pub data_uptr: u64,
    /// On return the kind of the driver's data.
    pub out_data_type: u32,
    /// On return the number of bits of a PASID.
    pub out_max_pasid_log2: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// On return the capabilities of the IOMMU: [`CAP_DIRTY_TRACKING`] and more.
    pub out_capabilities: u64,
}

/// The IOMMU can log the device's writes.
pub const CAP_DIRTY_TRACKING: u64 = kernel::iommufd_hw_capabilities_IOMMU_HW_CAP_DIRTY_TRACKING as u64;

/// The argument of [`HWPT_SET_DIRTY_TRACKING`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HwptSetDirtyTracking {
    /// [`HwptSetDirtyTracking::SIZE`].
    pub size: u32,
    /// [`DIRTY_TRACKING_ENABLE`] to start with an empty log; zero to stop.
    pub flags: u32,
    /// The id of the page table.
    pub hwpt_id: u32,
    /// Zero.
    pub reserved: u32,
}

/// Start logging.
pub const DIRTY_TRACKING_ENABLE: u32 = kernel::iommufd_hwpt_set_dirty_tracking_flags_IOMMU_HWPT_DIRTY_TRACKING_ENABLE;

/// The argument of [`HWPT_GET_DIRTY_BITMAP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HwptGetDirtyBitmap {
    /// [`HwptGetDirtyBitmap::SIZE`].
    pub size: u32,
    /// The id of the page table.
    pub hwpt_id: u32,
    /// Zero, or [`GET_DIRTY_BITMAP_NO_CLEAR`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// The first bus address, that of bit 0.
    pub iova: u64,
    /// The length in bytes.
    pub length: u64,
    /// The page size in bytes, one bit each: a multiple of the address space's alignment, and a divisor of `iova` and
    /// `length`.
    pub page_size: u64,
    /// The bitmap, in 64-bit words: attached, left zero. The kernel adds bits and clears none.
    pub data: u64,
}

/// Read the log without clearing it.
pub const GET_DIRTY_BITMAP_NO_CLEAR: u32 =
    kernel::iommufd_hwpt_get_dirty_bitmap_flags_IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR;

laid_out_as!(
    HwptAlloc,
    kernel::iommu_hwpt_alloc {
        size,
        flags,
        dev_id,
        pt_id,
        out_hwpt_id,
        reserved as __reserved,
        data_type,
        data_len,
        data_uptr,
        fault_id,
        reserved2 as __reserved2,
    }
);
laid_out_as!(
    HwInfo,
    kernel::iommu_hw_info {
        size,
        flags,
        dev_id,
        data_len,
        data_uptr,
        out_data_type as __bindgen_anon_1,
        out_max_pasid_log2,
        reserved as __reserved,
        out_capabilities,
    }
);
laid_out_as!(
    HwptSetDirtyTracking,
    kernel::iommu_hwpt_set_dirty_tracking { size, flags, hwpt_id, reserved as __reserved }
);
laid_out_as!(
    HwptGetDirtyBitmap,
    kernel::iommu_hwpt_get_dirty_bitmap {
        size,
        hwpt_id,
        flags,
        reserved as __reserved,
        iova,
        length,
        page_size,
        data,
    }
);
