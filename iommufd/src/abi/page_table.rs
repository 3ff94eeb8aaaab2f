//! Page tables that are made by hand, and what they log.

use std::mem::offset_of;

use iommufd_bindings as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What [`HWPT_ALLOC`](super::HWPT_ALLOC) reads and fills. Page tables that the kernel manages have no data of a driver's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HwptAlloc {
    /// [`HwptAlloc::SIZE`].
    pub size: u32,
    /// [`HWPT_ALLOC_DIRTY_TRACKING`].
    pub flags: u32,
    /// The device it is made for: others may fit it too.
    pub dev_id: u32,
    /// The address space it shows.
    pub pt_id: u32,
    /// On return the id of the new page table.
    pub out_hwpt_id: u32,
    /// Zero.
    pub reserved: u32,
    /// Zero: the kernel manages it.
    pub data_type: u32,
    /// The bytes of a driver's data: zero.
    pub data_len: u32,
    /// The address of a driver's data: zero.
    pub data_uptr: u64,
    /// Who handles page faults: zero, nobody.
    pub fault_id: u32,
    /// Zero.
    pub reserved2: u32,
}

/// The page table logs what is written, and no device can be attached to it whose IOMMU does not.
pub const HWPT_ALLOC_DIRTY_TRACKING: u32 = kernel::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING;

/// What [`GET_HW_INFO`](super::GET_HW_INFO) reads and fills. Kernels that know no capabilities take the longer struct too and leave its
/// end zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HwInfo {
    /// [`HwInfo::SIZE`].
    pub size: u32,
    /// Zero.
    pub flags: u32,
    /// Which device.
    pub dev_id: u32,
    /// How many bytes of the driver's data there is room for; on return how many there are.
    pub data_len: u32,
    /// Where the driver's data goes: zero, where there is no room.
    pub data_uptr: u64,
    /// On return the kind of the driver's data.
    pub out_data_type: u32,
    /// On return how many address spaces a device can tell apart, as a power of two.
    pub out_max_pasid_log2: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// On return what the IOMMU can do: [`CAP_DIRTY_TRACKING`] and more.
    pub out_capabilities: u64,
}

/// The IOMMU can log what the device writes.
pub const CAP_DIRTY_TRACKING: u64 = kernel::iommufd_hw_capabilities_IOMMU_HW_CAP_DIRTY_TRACKING as u64;

/// What [`HWPT_SET_DIRTY_TRACKING`](super::HWPT_SET_DIRTY_TRACKING) reads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HwptSetDirtyTracking {
    /// [`HwptSetDirtyTracking::SIZE`].
    pub size: u32,
    /// [`DIRTY_TRACKING_ENABLE`] to begin, with nothing logged yet; zero to end.
    pub flags: u32,
    /// Which page table.
    pub hwpt_id: u32,
    /// Zero.
    pub reserved: u32,
}

/// Begin to log.
pub const DIRTY_TRACKING_ENABLE: u32 = kernel::iommufd_hwpt_set_dirty_tracking_flags_IOMMU_HWPT_DIRTY_TRACKING_ENABLE;

/// What [`HWPT_GET_DIRTY_BITMAP`](super::HWPT_GET_DIRTY_BITMAP) reads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HwptGetDirtyBitmap {
    /// [`HwptGetDirtyBitmap::SIZE`].
    pub size: u32,
    /// Which page table.
    pub hwpt_id: u32,
    /// Zero, or [`GET_DIRTY_BITMAP_NO_CLEAR`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// The first bus address, which bit 0 stands for.
    pub iova: u64,
    /// How many bytes.
    pub length: u64,
    /// How many bytes a bit stands for: a multiple of the address space's alignment, and a divisor of the two above.
    pub page_size: u64,
    /// The bitmap, in 64-bit words: attached, left zero. Bits are added to those that are set.
    pub data: u64,
}

/// What was logged stays logged.
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
laid_out_as!(HwptSetDirtyTracking, kernel::iommu_hwpt_set_dirty_tracking { size, flags, hwpt_id, reserved as __reserved });
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
