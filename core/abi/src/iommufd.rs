//! `/dev/iommu` (linux: include/uapi/linux/iommufd.h): address spaces here, the rest in private modules, re-exported.
//!
//! Beware: ids, lengths and addresses have a different order in nearly every struct, and the flag bits for reading and
//! writing are swapped, compared with VFIO's.

mod file;
mod option;
mod page_table;
mod process;

use dmaspace_core::Access;
use dmaspace_core::door::Request;
use iommufd_bindings as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use file::{IOAS_MAP_FILE, IoasMapFile};
pub use option::{
    IOAS_ALLOW_IOVAS, IoasAllowIovas, IommuOption, OPTION, OPTION_HUGE_PAGES, OPTION_OP_GET, OPTION_OP_SET,
    OPTION_RLIMIT_MODE,
};
pub use page_table::{
    CAP_DIRTY_TRACKING, DIRTY_TRACKING_ENABLE, GET_DIRTY_BITMAP_NO_CLEAR, GET_HW_INFO, HWPT_ALLOC,
    HWPT_ALLOC_DIRTY_TRACKING, HWPT_GET_DIRTY_BITMAP, HWPT_SET_DIRTY_TRACKING, HwInfo, HwptAlloc, HwptGetDirtyBitmap,
    HwptSetDirtyTracking,
};
pub use process::{IOAS_CHANGE_PROCESS, IoasChangeProcess};

/// iommufd: destroys an object of any kind ([`Destroy`]).
pub const DESTROY: Request = Request::vfio(0x80, "IOMMU_DESTROY");
/// iommufd: creates an I/O address space ([`IoasAlloc`]).
pub const IOAS_ALLOC: Request = Request::vfio(0x81, "IOMMU_IOAS_ALLOC");
/// iommufd: maps memory that another range has mapped already, sharing its pins ([`IoasCopy`]).
pub const IOAS_COPY: Request = Request::vfio(0x83, "IOMMU_IOAS_COPY");
/// iommufd: lists the ranges that can be mapped ([`IoasIovaRanges`]).
pub const IOAS_IOVA_RANGES: Request = Request::vfio(0x84, "IOMMU_IOAS_IOVA_RANGES");
/// iommufd: maps memory ([`IoasMap`]).
pub const IOAS_MAP: Request = Request::vfio(0x85, "IOMMU_IOAS_MAP");
/// iommufd: unmaps whole mappings ([`IoasUnmap`]).
pub const IOAS_UNMAP: Request = Request::vfio(0x86, "IOMMU_IOAS_UNMAP");

/// Returns whether a request has the number of an iommufd command, by the header's enumeration and by its literal.
#[allow(dead_code, reason = "Rust 1.85 does not count the uses in constants without a name")]
const fn is_command(request: Request, command: u32, on_x86_64: u32) -> bool {
    request.is(0x3b00 | command) && request.is(on_x86_64)
}

const _: () = {
    assert!(is_command(DESTROY, kernel::IOMMUFD_CMD_DESTROY, 0x3b80));
    assert!(is_command(IOAS_ALLOC, kernel::IOMMUFD_CMD_IOAS_ALLOC, 0x3b81));
    assert!(is_command(IOAS_COPY, kernel::IOMMUFD_CMD_IOAS_COPY, 0x3b83));
    assert!(is_command(IOAS_IOVA_RANGES, kernel::IOMMUFD_CMD_IOAS_IOVA_RANGES, 0x3b84));
    assert!(is_command(IOAS_MAP, kernel::IOMMUFD_CMD_IOAS_MAP, 0x3b85));
    assert!(is_command(IOAS_UNMAP, kernel::IOMMUFD_CMD_IOAS_UNMAP, 0x3b86));
};

/// The argument of [`DESTROY`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Destroy {
    /// [`Destroy::SIZE`].
    pub size: u32,
    /// The id of the object.
    pub id: u32,
}

/// The argument of and reply to [`IOAS_ALLOC`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoasAlloc {
    /// [`IoasAlloc::SIZE`].
    pub size: u32,
    /// Zero.
    pub flags: u32,
    /// On return the id of the new address space.
    pub out_ioas_id: u32,
}

/// The argument of and reply to [`IOAS_IOVA_RANGES`]. With too small an array the kernel answers `EMSGSIZE` and the
/// number of ranges.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoasIovaRanges {
    /// [`IoasIovaRanges::SIZE`].
    pub size: u32,
    /// The id of the address space.
    pub ioas_id: u32,
    /// The number of [`IovaSpan`](crate::IovaSpan)s that the array has room for; on return the number of ranges.
    pub num_iovas: u32,
    /// Zero.
    pub reserved: u32,
    /// The array of [`IovaSpan`](crate::IovaSpan)s: attached, left zero.
    pub allowed_iovas: u64,
    /// On return the alignment of every bus address: at least 1, at most the host's page.
    pub out_iova_alignment: u64,
}

/// The argument of and reply to [`IOAS_MAP`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoasMap {
    /// [`IoasMap::SIZE`].
    pub size: u32,
    /// [`MAP_FIXED_IOVA`], [`MAP_WRITEABLE`], [`MAP_READABLE`].
    pub flags: u32,
    /// The id of the address space.
    pub ioas_id: u32,
    /// Zero.
    pub reserved: u32,
    /// The memory: attached, left zero.
    pub user_va: u64,
    /// The length in bytes.
    pub length: u64,
    /// The first bus address; without [`MAP_FIXED_IOVA`] the kernel's choice.
    pub iova: u64,
}

/// `iova` must be used; it is no hint.
pub const MAP_FIXED_IOVA: u32 = kernel::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;
/// The device may write.
pub const MAP_WRITEABLE: u32 = kernel::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
/// The device may read.
pub const MAP_READABLE: u32 = kernel::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;

/// The flags of an [`IoasMap`], [`IoasMapFile`] or [`IoasCopy`] at a fixed address that give devices this access.
pub fn fixed_map_flags(access: Access) -> u32 {
    let read = if access.contains(Access::READ) { MAP_READABLE } else { 0 };
    let write = if access.contains(Access::WRITE) { MAP_WRITEABLE } else { 0 };
    MAP_FIXED_IOVA | read | write
}

/// The argument of and reply to [`IOAS_COPY`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoasCopy {
    /// [`IoasCopy::SIZE`].
    pub size: u32,
    /// [`MAP_FIXED_IOVA`], [`MAP_WRITEABLE`], [`MAP_READABLE`].
    pub flags: u32,
    /// The id of the address space to map in.
    pub dst_ioas_id: u32,
    /// The id of the address space that has the memory mapped.
    pub src_ioas_id: u32,
    /// The length in bytes.
    pub length: u64,
    /// The first bus address to map at; without [`MAP_FIXED_IOVA`] the kernel's choice.
    pub dst_iova: u64,
    /// The first bus address that has the memory mapped.
    pub src_iova: u64,
}

/// The argument of [`IOAS_UNMAP`], written back on success.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoasUnmap {
    /// [`IoasUnmap::SIZE`].
    pub size: u32,
    /// The id of the address space.
    pub ioas_id: u32,
    /// The first bus address.
    pub iova: u64,
    /// The length in bytes; on return the number of bytes that were mapped. An `iova` of 0 with a length of 2^64-1
    /// means everything.
    pub length: u64,
}

laid_out_as!(Destroy, kernel::iommu_destroy { size, id });
laid_out_as!(IoasAlloc, kernel::iommu_ioas_alloc { size, flags, out_ioas_id });
laid_out_as!(
    IoasIovaRanges,
    kernel::iommu_ioas_iova_ranges {
        size,
        ioas_id,
        num_iovas,
        reserved as __reserved,
        allowed_iovas,
        out_iova_alignment,
    }
);
laid_out_as!(IoasMap, kernel::iommu_ioas_map { size, flags, ioas_id, reserved as __reserved, user_va, length, iova });
laid_out_as!(IoasCopy, kernel::iommu_ioas_copy { size, flags, dst_ioas_id, src_ioas_id, length, dst_iova, src_iova });
laid_out_as!(IoasUnmap, kernel::iommu_ioas_unmap { size, ioas_id, iova, length });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_is_the_access_of_the_device_and_the_address_is_fixed() {
        assert_eq!(fixed_map_flags(Access::READ), 0b101);
        assert_eq!(fixed_map_flags(Access::WRITE), 0b011);
        assert_eq!(fixed_map_flags(Access::READ_WRITE), 0b111);
    }
}
