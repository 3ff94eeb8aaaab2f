//! Options, and ranges that must stay mappable.

use dmaspace_core::door::Request;
use iommufd_bindings as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// iommufd: requires that ranges can always be mapped ([`IoasAllowIovas`]).
pub const IOAS_ALLOW_IOVAS: Request = Request::vfio(0x82, "IOMMU_IOAS_ALLOW_IOVAS");
/// iommufd: sets or gets an option ([`IommuOption`]).
pub const OPTION: Request = Request::vfio(0x87, "IOMMU_OPTION");

const _: () = {
    assert!(super::is_command(IOAS_ALLOW_IOVAS, kernel::IOMMUFD_CMD_IOAS_ALLOW_IOVAS, 0x3b82));
    assert!(super::is_command(OPTION, kernel::IOMMUFD_CMD_OPTION, 0x3b87));
};

/// The argument of [`IOAS_ALLOW_IOVAS`]. The list replaces the previous one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoasAllowIovas {
    /// [`IoasAllowIovas::SIZE`].
    pub size: u32,
    /// The id of the address space.
    pub ioas_id: u32,
    /// The number of [`IovaSpan`](crate::IovaSpan)s in the array.
    pub num_iovas: u32,
    /// Zero.
    pub reserved: u32,
    /// The array of [`IovaSpan`](crate::IovaSpan)s: attached, left zero.
    pub allowed_iovas: u64,
}

/// The argument of [`OPTION`], and the reply to a get.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IommuOption {
    /// [`IommuOption::SIZE`].
    pub size: u32,
    /// [`OPTION_RLIMIT_MODE`], [`OPTION_HUGE_PAGES`].
    pub option_id: u32,
    /// [`OPTION_OP_SET`], [`OPTION_OP_GET`].
    pub op: u16,
    /// Zero.
    pub reserved: u16,
    /// The id of the address space; zero for an option of the whole iommufd.
    pub object_id: u32,
    /// The value to set; on return the current value.
    pub val64: u64,
}

/// The account that pinned memory is charged to: 0 the user's, 1 the process's. Of the whole iommufd; can be set only
/// while the iommufd has no object.
pub const OPTION_RLIMIT_MODE: u32 = kernel::iommufd_option_IOMMU_OPTION_RLIMIT_MODE;
/// Entries for huge pages in page tables: 0 forbids them, 1 allows them.
pub const OPTION_HUGE_PAGES: u32 = kernel::iommufd_option_IOMMU_OPTION_HUGE_PAGES;
/// Set the option.
pub const OPTION_OP_SET: u16 = 0;
/// Get the option.
pub const OPTION_OP_GET: u16 = 1;

const _: () = {
    assert!(OPTION_OP_SET as u32 == kernel::iommufd_option_ops_IOMMU_OPTION_OP_SET);
    assert!(OPTION_OP_GET as u32 == kernel::iommufd_option_ops_IOMMU_OPTION_OP_GET);
};

laid_out_as!(
    IoasAllowIovas,
    kernel::iommu_ioas_allow_iovas { size, ioas_id, num_iovas, reserved as __reserved, allowed_iovas }
);
laid_out_as!(IommuOption, kernel::iommu_option { size, option_id, op, reserved as __reserved, object_id, val64 });
