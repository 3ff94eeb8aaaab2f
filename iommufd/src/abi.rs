//! The ABI of `/dev/iommu`, and what a VFIO device with a node of its own understands of it (linux: include/uapi/linux/iommufd.h,
//! include/uapi/linux/vfio.h).
//!
//! No calls. Sizes and offsets are checked against bindgen's reading of the kernel's headers when this is compiled, numbers
//! against the headers' x86 literals. Fields that hold an address of this process or a descriptor are left zero and attached (see
//! [`dmaspace_core::door`]).
//!
//! Two families: iommufd's structs begin with their `size` and end where the kernel's knowledge does, VFIO's begin with `argsz`.
//! Ids, lengths and addresses sit in a different order in nearly every struct, and the flag bits for reading and writing are the other
//! way round than VFIO's.

use std::mem::offset_of;

use dmaspace_core::door::Request;
use iommufd_bindings as kernel;
use vfio_bindings::bindings::vfio as vfio_kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// iommufd: destroy an object of any kind: [`Destroy`].
pub const DESTROY: Request = Request::vfio(0x80, "IOMMU_DESTROY");
/// iommufd: make an I/O address space: [`IoasAlloc`].
pub const IOAS_ALLOC: Request = Request::vfio(0x81, "IOMMU_IOAS_ALLOC");
/// iommufd: map what another range has mapped: [`IoasCopy`].
pub const IOAS_COPY: Request = Request::vfio(0x83, "IOMMU_IOAS_COPY");
/// iommufd: which ranges can be mapped: [`IoasIovaRanges`].
pub const IOAS_IOVA_RANGES: Request = Request::vfio(0x84, "IOMMU_IOAS_IOVA_RANGES");
/// iommufd: map memory: [`IoasMap`].
pub const IOAS_MAP: Request = Request::vfio(0x85, "IOMMU_IOAS_MAP");
/// iommufd: unmap whole mappings: [`IoasUnmap`].
pub const IOAS_UNMAP: Request = Request::vfio(0x86, "IOMMU_IOAS_UNMAP");

/// iommufd: make a page table for a device, which shows an address space: [`HwptAlloc`].
pub const HWPT_ALLOC: Request = Request::vfio(0x89, "IOMMU_HWPT_ALLOC");
/// iommufd: what the IOMMU in front of a device can do: [`HwInfo`].
pub const GET_HW_INFO: Request = Request::vfio(0x8a, "IOMMU_GET_HW_INFO");
/// iommufd: begin or end to log what is written through a page table: [`HwptSetDirtyTracking`].
pub const HWPT_SET_DIRTY_TRACKING: Request = Request::vfio(0x8b, "IOMMU_HWPT_SET_DIRTY_TRACKING");
/// iommufd: what was written through a page table: [`HwptGetDirtyBitmap`].
pub const HWPT_GET_DIRTY_BITMAP: Request = Request::vfio(0x8c, "IOMMU_HWPT_GET_DIRTY_BITMAP");

/// The first of VFIO's numbers.
const VFIO_BASE: u8 = 100;

/// Device: give it to an iommufd, for as long as its descriptor is open: [`BindIommufd`].
pub const DEVICE_BIND_IOMMUFD: Request = Request::vfio(VFIO_BASE + 18, "VFIO_DEVICE_BIND_IOMMUFD");
/// Device: attach it to an address space or page table, from another if need be: [`AttachIommufdPt`].
pub const DEVICE_ATTACH_IOMMUFD_PT: Request = Request::vfio(VFIO_BASE + 19, "VFIO_DEVICE_ATTACH_IOMMUFD_PT");
/// Device: detach it: [`DetachIommufdPt`].
pub const DEVICE_DETACH_IOMMUFD_PT: Request = Request::vfio(VFIO_BASE + 20, "VFIO_DEVICE_DETACH_IOMMUFD_PT");

const _: () = {
    assert!(VFIO_BASE as u32 == vfio_kernel::VFIO_BASE);
    assert!(DESTROY.is(0x3b00 | kernel::IOMMUFD_CMD_DESTROY) && DESTROY.is(0x3b80));
    assert!(IOAS_ALLOC.is(0x3b00 | kernel::IOMMUFD_CMD_IOAS_ALLOC) && IOAS_ALLOC.is(0x3b81));
    assert!(IOAS_COPY.is(0x3b00 | kernel::IOMMUFD_CMD_IOAS_COPY) && IOAS_COPY.is(0x3b83));
    assert!(IOAS_IOVA_RANGES.is(0x3b00 | kernel::IOMMUFD_CMD_IOAS_IOVA_RANGES) && IOAS_IOVA_RANGES.is(0x3b84));
    assert!(IOAS_MAP.is(0x3b00 | kernel::IOMMUFD_CMD_IOAS_MAP) && IOAS_MAP.is(0x3b85));
    assert!(IOAS_UNMAP.is(0x3b00 | kernel::IOMMUFD_CMD_IOAS_UNMAP) && IOAS_UNMAP.is(0x3b86));
    assert!(HWPT_ALLOC.is(0x3b00 | kernel::IOMMUFD_CMD_HWPT_ALLOC) && HWPT_ALLOC.is(0x3b89));
    assert!(GET_HW_INFO.is(0x3b00 | kernel::IOMMUFD_CMD_GET_HW_INFO) && GET_HW_INFO.is(0x3b8a));
    let set_dirty_tracking = 0x3b00 | kernel::IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING;
    assert!(HWPT_SET_DIRTY_TRACKING.is(set_dirty_tracking) && HWPT_SET_DIRTY_TRACKING.is(0x3b8b));
    let get_dirty_bitmap = 0x3b00 | kernel::IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP;
    assert!(HWPT_GET_DIRTY_BITMAP.is(get_dirty_bitmap) && HWPT_GET_DIRTY_BITMAP.is(0x3b8c));
    assert!(DEVICE_BIND_IOMMUFD.is(0x3b76));
    assert!(DEVICE_ATTACH_IOMMUFD_PT.is(0x3b77));
    assert!(DEVICE_DETACH_IOMMUFD_PT.is(0x3b78));
};

/// What [`DESTROY`] reads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Destroy {
    /// [`Destroy::SIZE`].
    pub size: u32,
    /// Which object.
    pub id: u32,
}

/// What [`IOAS_ALLOC`] reads and fills.
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

/// What [`IOAS_IOVA_RANGES`] reads and fills. With too small an array it answers `EMSGSIZE` and how many there are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoasIovaRanges {
    /// [`IoasIovaRanges::SIZE`].
    pub size: u32,
    /// Which address space.
    pub ioas_id: u32,
    /// How many [`IovaSpan`]s the array holds; on return how many there are.
    pub num_iovas: u32,
    /// Zero.
    pub reserved: u32,
    /// The array of [`IovaSpan`]s: attached, left zero.
    pub allowed_iovas: u64,
    /// On return what every bus address must be a multiple of: perhaps 1, at most the host's page.
    pub out_iova_alignment: u64,
}

/// A range of bus addresses that can be mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IovaSpan {
    /// The first address.
    pub start: u64,
    /// The last address, which is inside.
    pub last: u64,
}

/// What [`IOAS_MAP`] reads and fills.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoasMap {
    /// [`IoasMap::SIZE`].
    pub size: u32,
    /// [`MAP_FIXED_IOVA`], [`MAP_WRITEABLE`], [`MAP_READABLE`].
    pub flags: u32,
    /// Which address space.
    pub ioas_id: u32,
    /// Zero.
    pub reserved: u32,
    /// The memory: attached, left zero.
    pub user_va: u64,
    /// How many bytes.
    pub length: u64,
    /// The first bus address; without [`MAP_FIXED_IOVA`] the kernel's choice.
    pub iova: u64,
}

/// `iova` is wanted, not a hint.
pub const MAP_FIXED_IOVA: u32 = kernel::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;
/// The device may write.
pub const MAP_WRITEABLE: u32 = kernel::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
/// The device may read.
pub const MAP_READABLE: u32 = kernel::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;

/// What [`IOAS_COPY`] reads and fills.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoasCopy {
    /// [`IoasCopy::SIZE`].
    pub size: u32,
    /// [`MAP_FIXED_IOVA`], [`MAP_WRITEABLE`], [`MAP_READABLE`].
    pub flags: u32,
    /// The address space to map in.
    pub dst_ioas_id: u32,
    /// The address space that has it mapped.
    pub src_ioas_id: u32,
    /// How many bytes.
    pub length: u64,
    /// The first bus address to map at; without [`MAP_FIXED_IOVA`] the kernel's choice.
    pub dst_iova: u64,
    /// The first bus address that is mapped.
    pub src_iova: u64,
}

/// What [`IOAS_UNMAP`] reads and, on success, writes back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoasUnmap {
    /// [`IoasUnmap::SIZE`].
    pub size: u32,
    /// Which address space.
    pub ioas_id: u32,
    /// The first bus address.
    pub iova: u64,
    /// How many bytes; on return how many of them were mapped. 0 and 2^64-1 together mean everything.
    pub length: u64,
}

/// What [`DEVICE_BIND_IOMMUFD`] reads and fills. Kernels that know no tokens take the longer struct too, its end being zero.
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

/// What [`DEVICE_ATTACH_IOMMUFD_PT`] reads and fills.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AttachIommufdPt {
    /// [`AttachIommufdPt::SIZE`].
    pub argsz: u32,
    /// Zero, unless there is a PASID.
    pub flags: u32,
    /// The address space or page table; on return the page table in use.
    pub pt_id: u32,
    /// For which of the device's process address spaces.
    pub pasid: u32,
}

/// What [`DEVICE_DETACH_IOMMUFD_PT`] reads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DetachIommufdPt {
    /// [`DetachIommufdPt::SIZE`].
    pub argsz: u32,
    /// Zero, unless there is a PASID.
    pub flags: u32,
    /// For which of the device's process address spaces.
    pub pasid: u32,
}

/// Gives a struct its `SIZE`, for `size` and `argsz`, and checks size and offsets against the kernel's struct.
macro_rules! laid_out_as {
    ($ours:ident, $header:ident::$kernel:ident { $($field:ident $(as $theirs:ident)?),+ $(,)? }) => {
        impl $ours {
            /// Its size in bytes.
            #[allow(clippy::cast_possible_truncation, reason = "structs of a few bytes")]
            pub const SIZE: u32 = size_of::<Self>() as u32;
        }

        const _: () = {
            assert!(size_of::<$ours>() == size_of::<$header::$kernel>());
            $(assert!(offset_of!($ours, $field) == laid_out_as!(@offset $header::$kernel, $field $($theirs)?));)+
        };
    };
    (@offset $header:ident::$kernel:ident, $field:ident $theirs:ident) => { offset_of!($header::$kernel, $theirs) };
    (@offset $header:ident::$kernel:ident, $field:ident) => { offset_of!($header::$kernel, $field) };
}

mod file;
mod option;
mod page_table;
mod process;

pub use file::{IOAS_MAP_FILE, IoasMapFile};
pub use option::{
    IOAS_ALLOW_IOVAS, IoasAllowIovas, IommuOption, OPTION, OPTION_HUGE_PAGES, OPTION_OP_GET, OPTION_OP_SET,
    OPTION_RLIMIT_MODE,
};
pub use page_table::{
    CAP_DIRTY_TRACKING, DIRTY_TRACKING_ENABLE, GET_DIRTY_BITMAP_NO_CLEAR, HWPT_ALLOC_DIRTY_TRACKING, HwInfo, HwptAlloc,
    HwptGetDirtyBitmap, HwptSetDirtyTracking,
};
pub use process::{IOAS_CHANGE_PROCESS, IoasChangeProcess};

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
laid_out_as!(IovaSpan, kernel::iommu_iova_range { start, last });
laid_out_as!(IoasMap, kernel::iommu_ioas_map { size, flags, ioas_id, reserved as __reserved, user_va, length, iova });
laid_out_as!(IoasCopy, kernel::iommu_ioas_copy { size, flags, dst_ioas_id, src_ioas_id, length, dst_iova, src_iova });
laid_out_as!(IoasUnmap, kernel::iommu_ioas_unmap { size, ioas_id, iova, length });
laid_out_as!(BindIommufd, vfio_kernel::vfio_device_bind_iommufd { argsz, flags, iommufd, out_devid, token_uuid_ptr });
laid_out_as!(AttachIommufdPt, vfio_kernel::vfio_device_attach_iommufd_pt { argsz, flags, pt_id, pasid });
laid_out_as!(DetachIommufdPt, vfio_kernel::vfio_device_detach_iommufd_pt { argsz, flags, pasid });
