//! Containers of every driver, and groups (linux: include/uapi/linux/vfio.h).

mod dma;

use dmaspace_core::door::Request;
use vfio_bindings::bindings::vfio as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use dma::{
    MAP_DMA, MAP_READ, MAP_WRITE, MapDma, UNMAP_DMA, UnmapDma, map, map_flags, map_with_flags, unmap, unmap_with_flags,
};

/// The first of VFIO's request numbers.
pub(crate) const BASE: u8 = 100;

/// Container: returns the [`API_VERSION`] of the kernel as the result.
pub const GET_API_VERSION: Request = Request::vfio(BASE, "VFIO_GET_API_VERSION");
/// Container: checks an [`Extension`], which is the argument itself; a positive result means that the kernel has it.
pub const CHECK_EXTENSION: Request = Request::vfio(BASE + 1, "VFIO_CHECK_EXTENSION");
/// Container: chooses the [`IommuType`], which is the argument itself. Needs a group in the container.
pub const SET_IOMMU: Request = Request::vfio(BASE + 2, "VFIO_SET_IOMMU");
/// Group: fills a [`GroupStatus`].
pub const GROUP_GET_STATUS: Request = Request::vfio(BASE + 3, "VFIO_GROUP_GET_STATUS");
/// Group: joins the container named by a [`SetContainer`].
pub const GROUP_SET_CONTAINER: Request = Request::vfio(BASE + 4, "VFIO_GROUP_SET_CONTAINER");
/// Group: leaves its container; no argument.
pub const GROUP_UNSET_CONTAINER: Request = Request::vfio(BASE + 5, "VFIO_GROUP_UNSET_CONTAINER");
/// Group: opens the device whose name is the argument, a C string; the result is the device's descriptor.
pub const GROUP_GET_DEVICE_FD: Request = Request::vfio(BASE + 6, "VFIO_GROUP_GET_DEVICE_FD");

const _: () = {
    assert!(BASE as u32 == kernel::VFIO_BASE);
    assert!(GET_API_VERSION.is(0x3b64));
    assert!(CHECK_EXTENSION.is(0x3b65));
    assert!(SET_IOMMU.is(0x3b66));
    assert!(GROUP_GET_STATUS.is(0x3b67));
    assert!(GROUP_SET_CONTAINER.is(0x3b68));
    assert!(GROUP_UNSET_CONTAINER.is(0x3b69));
    assert!(GROUP_GET_DEVICE_FD.is(0x3b6a));
};

/// The only answer to [`GET_API_VERSION`] that any kernel has given, and the only one this library accepts.
pub const API_VERSION: i32 = 0;

/// A property of the kernel that [`CHECK_EXTENSION`] reports.
///
/// Before [`SET_IOMMU`] the first positive answer of any IOMMU driver counts; an sPAPR module claims v2 even where the
/// platform lacks it (linux: drivers/vfio/container.c, vfio_container_ioctl_check_extension).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extension(pub u64);

impl Extension {
    /// DMA is coherent with the caches (asked of a configured container).
    pub const DMA_CC: Self = Self(kernel::VFIO_DMA_CC_IOMMU as u64);
    /// The kernel recovers PEs (POWER's error handling).
    pub const EEH: Self = Self(kernel::VFIO_EEH as u64);
    /// One call unmaps everything ([`crate::type1::UNMAP_ALL`]).
    pub const UNMAP_ALL: Self = Self(kernel::VFIO_UNMAP_ALL as u64);
    /// The addresses of mappings can be updated, for a live update of the process ([`crate::type1::MAP_VADDR`]).
    pub const UPDATE_VADDR: Self = Self(kernel::VFIO_UPDATE_VADDR as u64);
}

/// An IOMMU driver that [`SET_IOMMU`] gives a container to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IommuType(pub u64);

impl IommuType {
    /// type1, whose unmaps may remove more than was asked.
    pub const TYPE1: Self = Self(kernel::VFIO_TYPE1_IOMMU as u64);
    /// sPAPR TCE version 1 (POWER): one fixed window.
    pub const SPAPR_TCE: Self = Self(kernel::VFIO_SPAPR_TCE_IOMMU as u64);
    /// type1 version 2, whose unmaps remove whole mappings only.
    pub const TYPE1_V2: Self = Self(kernel::VFIO_TYPE1v2_IOMMU as u64);
    /// sPAPR TCE version 2 (POWER): windows are created, memory is registered.
    pub const SPAPR_TCE_V2: Self = Self(kernel::VFIO_SPAPR_TCE_v2_IOMMU as u64);

    /// The extension that reports the driver: types and extensions share their numbers.
    pub const fn extension(self) -> Extension {
        Extension(self.0)
    }
}

/// The reply to [`GROUP_GET_STATUS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GroupStatus {
    /// [`GroupStatus::SIZE`].
    pub argsz: u32,
    /// [`GROUP_VIABLE`], [`GROUP_CONTAINER_SET`].
    pub flags: u32,
}

/// Every device of the group is bound to VFIO or to no driver.
pub const GROUP_VIABLE: u32 = kernel::VFIO_GROUP_FLAGS_VIABLE;
/// The group is in a container.
pub const GROUP_CONTAINER_SET: u32 = kernel::VFIO_GROUP_FLAGS_CONTAINER_SET;

/// The argument of [`GROUP_SET_CONTAINER`]. The kernel's header has no struct for it: the argument is a bare
/// descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SetContainer {
    /// The container's descriptor: attached, left zero.
    pub container: i32,
}

const _: () = assert!(size_of::<SetContainer>() == 4);

/// The head of every capability in a chain that an info call appends to its struct.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CapabilityHeader {
    /// The kind of capability; the numbers differ between info calls.
    pub id: u16,
    /// Incremented when the layout grows; old fields stay in place.
    pub version: u16,
    /// The offset of the next capability, counted from the start of the info struct; 0 ends the chain.
    pub next: u32,
}

laid_out_as!(GroupStatus, kernel::vfio_group_status { argsz, flags });
laid_out_as!(CapabilityHeader, kernel::vfio_info_cap_header { id, version, next });
