//! Ranges of bus addresses in the kernel's replies.

use iommufd_bindings as iommufd_header;
use vfio_bindings::bindings::vfio as vfio_header;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A range of bus addresses that can be mapped. VFIO and iommufd have one layout for it, under two names.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IovaSpan {
    /// The first address.
    pub start: u64,
    /// The last address, which is inside.
    pub last: u64,
}

laid_out_as!(IovaSpan, vfio_header::vfio_iova_range { start, last as end });

const _: () = {
    assert!(size_of::<IovaSpan>() == size_of::<iommufd_header::iommu_iova_range>());
    laid_out_as!(@offset IovaSpan, iommufd_header::iommu_iova_range, start);
    laid_out_as!(@offset IovaSpan, iommufd_header::iommu_iova_range, last);
};
