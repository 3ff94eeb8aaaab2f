//! VFIO's own ABI: what containers, groups and devices understand, whatever IOMMU is behind them.
//!
//! Numbers, structs and flags, no calls: opening is the façade crate's, answering the soft host's. Sizes and offsets are checked
//! against bindgen's reading of the kernel's header when this is compiled, numbers against the header's x86 literals (linux:
//! include/uapi/linux/vfio.h).
//!
//! A number means something on one kind of descriptor only: [`DEVICE_RESET`] and an sPAPR container's window removal are a few
//! apart, and a container's [`crate::abi::MAP_DMA`] *is* a device's hot reset. Every item says whose it is.

mod export;

use std::mem::offset_of;

use dmaspace_core::door::Request;
use vfio_bindings::bindings::vfio as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use export::{DEVICE_FEATURE, ExportRange, FEATURE_EXPORT};

/// The first of VFIO's numbers.
pub(crate) const BASE: u8 = 100;

/// Container: which [`API_VERSION`] the kernel speaks; the answer is the result.
pub const GET_API_VERSION: Request = Request::vfio(BASE, "VFIO_GET_API_VERSION");
/// Container: whether it has an [`Extension`], which is the argument itself; a positive result is yes.
pub const CHECK_EXTENSION: Request = Request::vfio(BASE + 1, "VFIO_CHECK_EXTENSION");
/// Container: choose the [`IommuType`], which is the argument itself. Needs a group.
pub const SET_IOMMU: Request = Request::vfio(BASE + 2, "VFIO_SET_IOMMU");
/// Group: whether it can be used: [`GroupStatus`].
pub const GROUP_GET_STATUS: Request = Request::vfio(BASE + 3, "VFIO_GROUP_GET_STATUS");
/// Group: join a container: [`SetContainer`].
pub const GROUP_SET_CONTAINER: Request = Request::vfio(BASE + 4, "VFIO_GROUP_SET_CONTAINER");
/// Group: leave the container; no argument.
pub const GROUP_UNSET_CONTAINER: Request = Request::vfio(BASE + 5, "VFIO_GROUP_UNSET_CONTAINER");
/// Group: open the device whose name is the argument, a C string; the result is its descriptor.
pub const GROUP_GET_DEVICE_FD: Request = Request::vfio(BASE + 6, "VFIO_GROUP_GET_DEVICE_FD");
/// Device: what it is: [`DeviceInfo`].
pub const DEVICE_GET_INFO: Request = Request::vfio(BASE + 7, "VFIO_DEVICE_GET_INFO");
/// Device: one of its regions: [`RegionInfo`], then a chain of capabilities.
pub const DEVICE_GET_REGION_INFO: Request = Request::vfio(BASE + 8, "VFIO_DEVICE_GET_REGION_INFO");
/// Device: reset it; no argument.
pub const DEVICE_RESET: Request = Request::vfio(BASE + 11, "VFIO_DEVICE_RESET");

const _: () = {
    assert!(BASE as u32 == kernel::VFIO_BASE);
    assert!(GET_API_VERSION.is(0x3b64));
    assert!(CHECK_EXTENSION.is(0x3b65));
    assert!(SET_IOMMU.is(0x3b66));
    assert!(GROUP_GET_STATUS.is(0x3b67));
    assert!(GROUP_SET_CONTAINER.is(0x3b68));
    assert!(GROUP_UNSET_CONTAINER.is(0x3b69));
    assert!(GROUP_GET_DEVICE_FD.is(0x3b6a));
    assert!(DEVICE_GET_INFO.is(0x3b6b));
    assert!(DEVICE_GET_REGION_INFO.is(0x3b6c));
    assert!(DEVICE_RESET.is(0x3b6f));
};

/// The one answer to [`GET_API_VERSION`] this library understands, and the only one there ever was.
pub const API_VERSION: i32 = 0;

/// Something [`CHECK_EXTENSION`] can be asked about.
///
/// Before [`SET_IOMMU`] the first positive answer of any IOMMU driver counts; an sPAPR module says yes to v2 even where
/// the platform cannot do it (linux: drivers/vfio/container.c, vfio_container_ioctl_check_extension).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extension(pub u64);

impl Extension {
    /// DMA is coherent with the caches (asked of a configured container).
    pub const DMA_CC: Self = Self(kernel::VFIO_DMA_CC_IOMMU as u64);
    /// POWER's error handling.
    pub const EEH: Self = Self(kernel::VFIO_EEH as u64);
    /// One call unmaps everything ([`crate::abi::UNMAP_ALL`]).
    pub const UNMAP_ALL: Self = Self(kernel::VFIO_UNMAP_ALL as u64);
    /// Mappings can be moved to another address in the process.
    pub const UPDATE_VADDR: Self = Self(kernel::VFIO_UPDATE_VADDR as u64);
}

/// An IOMMU driver a container can be given to with [`SET_IOMMU`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IommuType(pub u64);

impl IommuType {
    /// type1, whose unmaps may take more than was asked.
    pub const TYPE1: Self = Self(kernel::VFIO_TYPE1_IOMMU as u64);
    /// POWER, one fixed window.
    pub const SPAPR_TCE: Self = Self(kernel::VFIO_SPAPR_TCE_IOMMU as u64);
    /// type1, whose unmaps take whole mappings only.
    pub const TYPE1_V2: Self = Self(kernel::VFIO_TYPE1v2_IOMMU as u64);
    /// POWER, windows that are created and memory that is registered.
    pub const SPAPR_TCE_V2: Self = Self(kernel::VFIO_SPAPR_TCE_v2_IOMMU as u64);
    /// No IOMMU: no protection either.
    pub const NOIOMMU: Self = Self(kernel::VFIO_NOIOMMU_IOMMU as u64);

    /// The extension that says a kernel has it: types and extensions share their numbers.
    pub const fn extension(self) -> Extension {
        Extension(self.0)
    }
}

/// What [`GROUP_GET_STATUS`] fills.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GroupStatus {
    /// [`GroupStatus::SIZE`].
    pub argsz: u32,
    /// [`GROUP_VIABLE`], [`GROUP_CONTAINER_SET`].
    pub flags: u32,
}

/// Every device of the group is ours or nobody's.
pub const GROUP_VIABLE: u32 = kernel::VFIO_GROUP_FLAGS_VIABLE;
/// The group is in a container.
pub const GROUP_CONTAINER_SET: u32 = kernel::VFIO_GROUP_FLAGS_CONTAINER_SET;

/// What [`GROUP_SET_CONTAINER`] reads: no struct in the kernel's header, a bare descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetContainer {
    /// The container's descriptor: attached, left zero.
    pub container: i32,
}

const _: () = assert!(size_of::<SetContainer>() == 4);

/// What [`DEVICE_GET_INFO`] fills.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceInfo {
    /// The size of the buffer; on return the size the kernel wants.
    pub argsz: u32,
    /// [`DEVICE_HAS_RESET`], [`DEVICE_IS_PCI`], [`DEVICE_HAS_CAPABILITIES`], and others.
    pub flags: u32,
    /// How many regions there are.
    pub num_regions: u32,
    /// How many kinds of interrupt there are.
    pub num_irqs: u32,
    /// Where the chain of capabilities begins; 0: nowhere.
    pub cap_offset: u32,
    /// Zero.
    pub pad: u32,
}

/// [`DEVICE_RESET`] works.
pub const DEVICE_HAS_RESET: u32 = kernel::VFIO_DEVICE_FLAGS_RESET;
/// It is a PCI device.
pub const DEVICE_IS_PCI: u32 = kernel::VFIO_DEVICE_FLAGS_PCI;
/// There is a chain of capabilities.
pub const DEVICE_HAS_CAPABILITIES: u32 = kernel::VFIO_DEVICE_FLAGS_CAPS;

/// What [`DEVICE_GET_REGION_INFO`] fills.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegionInfo {
    /// The size of the buffer; on return the size the kernel wants.
    pub argsz: u32,
    /// [`REGION_READ`], [`REGION_WRITE`], [`REGION_MMAP`], [`REGION_HAS_CAPABILITIES`].
    pub flags: u32,
    /// Which region is asked about: 0 to 5 are BARs, then [`REGION_ROM`], [`REGION_CONFIG`].
    pub index: u32,
    /// Where the chain of capabilities begins; 0: nowhere.
    pub cap_offset: u32,
    /// Its size in bytes; 0: not there.
    pub size: u64,
    /// Where it begins in the device's descriptor.
    pub offset: u64,
}

/// The region can be read.
pub const REGION_READ: u32 = kernel::VFIO_REGION_INFO_FLAG_READ;
/// The region can be written.
pub const REGION_WRITE: u32 = kernel::VFIO_REGION_INFO_FLAG_WRITE;
/// The region can be mapped into the process, perhaps in parts ([`REGION_CAP_SPARSE_MMAP`]).
pub const REGION_MMAP: u32 = kernel::VFIO_REGION_INFO_FLAG_MMAP;
/// There is a chain of capabilities.
pub const REGION_HAS_CAPABILITIES: u32 = kernel::VFIO_REGION_INFO_FLAG_CAPS;

/// The index of a PCI device's expansion ROM.
pub const REGION_ROM: u32 = 6;
/// The index of a PCI device's configuration space.
pub const REGION_CONFIG: u32 = 7;

const _: () = assert!(REGION_ROM == kernel::VFIO_PCI_ROM_REGION_INDEX);
const _: () = assert!(REGION_CONFIG == kernel::VFIO_PCI_CONFIG_REGION_INDEX);

/// The capability of a region only parts of which can be mapped: [`SparseMmap`], then its [`SparseArea`]s.
pub const REGION_CAP_SPARSE_MMAP: u16 = 1;
/// The capability, a bare header, of a region that can be mapped although it holds the MSI-X table.
pub const REGION_CAP_MSIX_MAPPABLE: u16 = 3;

const _: () = assert!(REGION_CAP_SPARSE_MMAP as u32 == kernel::VFIO_REGION_INFO_CAP_SPARSE_MMAP);
const _: () = assert!(REGION_CAP_MSIX_MAPPABLE as u32 == kernel::VFIO_REGION_INFO_CAP_MSIX_MAPPABLE);

/// What every capability of a chain begins with ([`crate::chain`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CapabilityHeader {
    /// Which; the numbers differ between info calls.
    pub id: u16,
    /// Grows when its layout does, which keeps old fields in place.
    pub version: u16,
    /// Where the next one begins, counted from the start of the info struct; 0: nowhere.
    pub next: u32,
}

/// The head of the [`REGION_CAP_SPARSE_MMAP`] capability.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SparseMmap {
    /// As on every capability.
    pub header: CapabilityHeader,
    /// How many areas follow.
    pub nr_areas: u32,
    /// Zero.
    pub reserved: u32,
}

/// A part of a region that can be mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SparseArea {
    /// Where it begins in the region.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// Gives a struct its `SIZE`, for `argsz`, and checks size and offsets against the kernel's struct.
macro_rules! laid_out_as {
    ($ours:ident, $kernel:ident { $($field:ident),+ $(,)? }) => {
        impl $ours {
            /// Its size in bytes.
            #[allow(clippy::cast_possible_truncation, reason = "structs of a few bytes")]
            pub const SIZE: u32 = size_of::<Self>() as u32;
        }

        const _: () = {
            assert!(size_of::<$ours>() == size_of::<kernel::$kernel>());
            $(assert!(offset_of!($ours, $field) == offset_of!(kernel::$kernel, $field));)+
        };
    };
}
pub(crate) use laid_out_as;

laid_out_as!(GroupStatus, vfio_group_status { argsz, flags });
laid_out_as!(DeviceInfo, vfio_device_info { argsz, flags, num_regions, num_irqs, cap_offset, pad });
laid_out_as!(RegionInfo, vfio_region_info { argsz, flags, index, cap_offset, size, offset });
laid_out_as!(CapabilityHeader, vfio_info_cap_header { id, version, next });
laid_out_as!(SparseMmap, vfio_region_info_cap_sparse_mmap { header, nr_areas, reserved });
laid_out_as!(SparseArea, vfio_region_sparse_mmap_area { offset, size });
