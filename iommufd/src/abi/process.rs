//! Moving to another process.

use std::mem::offset_of;

use dmaspace_core::door::Request;
use iommufd_bindings as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// iommufd: have the caller charged for all that is mapped: [`IoasChangeProcess`]. Linux 6.12 does not know it.
pub const IOAS_CHANGE_PROCESS: Request = Request::vfio(0x92, "IOMMU_IOAS_CHANGE_PROCESS");

const _: () =
    assert!(IOAS_CHANGE_PROCESS.is(0x3b00 | kernel::IOMMUFD_CMD_IOAS_CHANGE_PROCESS) && IOAS_CHANGE_PROCESS.is(0x3b92));

/// What [`IOAS_CHANGE_PROCESS`] reads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoasChangeProcess {
    /// [`IoasChangeProcess::SIZE`].
    pub size: u32,
    /// Zero.
    pub reserved: u32,
}

impl IoasChangeProcess {
    /// Half of its size: too short for anything to be done (`EINVAL`), so that the answer says whether the kernel knows it.
    pub const HALF: u32 = Self::SIZE / 2;
}

laid_out_as!(IoasChangeProcess, kernel::iommu_ioas_change_process { size, reserved as __reserved });
