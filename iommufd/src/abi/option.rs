//! Options, and promises about what can be mapped.

use std::mem::offset_of;

use dmaspace_core::door::Request;
use iommufd_bindings as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// iommufd: promise that ranges can always be mapped: [`IoasAllowIovas`].
pub const IOAS_ALLOW_IOVAS: Request = Request::vfio(0x82, "IOMMU_IOAS_ALLOW_IOVAS");
/// iommufd: set an option, or ask for it: [`IommuOption`].
pub const OPTION: Request = Request::vfio(0x87, "IOMMU_OPTION");

const _: () = {
    assert!(IOAS_ALLOW_IOVAS.is(0x3b00 | kernel::IOMMUFD_CMD_IOAS_ALLOW_IOVAS) && IOAS_ALLOW_IOVAS.is(0x3b82));
    assert!(OPTION.is(0x3b00 | kernel::IOMMUFD_CMD_OPTION) && OPTION.is(0x3b87));
};

/// What [`IOAS_ALLOW_IOVAS`] reads. The list takes the place of the one before.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoasAllowIovas {
    /// [`IoasAllowIovas::SIZE`].
    pub size: u32,
    /// Which address space.
    pub ioas_id: u32,
    /// How many [`IovaSpan`](super::IovaSpan)s the array holds.
    pub num_iovas: u32,
    /// Zero.
    pub reserved: u32,
    /// The array of [`IovaSpan`](super::IovaSpan)s: attached, left zero.
    pub allowed_iovas: u64,
}

/// What [`OPTION`] reads and, when asked, fills.
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
    /// Of which address space; zero for an option of all of the iommufd.
    pub object_id: u32,
    /// The value to set; on return the value it has.
    pub val64: u64,
}

/// Who is charged for what is pinned: 0 the user, 1 the process. Of all of the iommufd, and only while there is no object in it.
pub const OPTION_RLIMIT_MODE: u32 = kernel::iommufd_option_IOMMU_OPTION_RLIMIT_MODE;
/// Whether page tables may have entries for huge pages: 0 no, 1 yes.
pub const OPTION_HUGE_PAGES: u32 = kernel::iommufd_option_IOMMU_OPTION_HUGE_PAGES;
/// Set it.
pub const OPTION_OP_SET: u16 = 0;
/// Ask for it.
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
