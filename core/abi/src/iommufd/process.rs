//! Moving an iommufd to another process.

use dmaspace_core::door::Request;
use iommufd_bindings as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// iommufd: charges the calling process for everything that is mapped ([`IoasChangeProcess`]). Linux 6.12 lacks it.
pub const IOAS_CHANGE_PROCESS: Request = Request::vfio(0x92, "IOMMU_IOAS_CHANGE_PROCESS");

const _: () = assert!(super::is_command(IOAS_CHANGE_PROCESS, kernel::IOMMUFD_CMD_IOAS_CHANGE_PROCESS, 0x3b92));

/// The argument of [`IOAS_CHANGE_PROCESS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoasChangeProcess {
    /// [`IoasChangeProcess::SIZE`].
    pub size: u32,
    /// Zero.
    pub reserved: u32,
}

impl IoasChangeProcess {
    /// A size that is too short (`EINVAL`), for which the kernel does nothing: the errno tells whether the kernel knows
    /// the request.
    pub const HALF: u32 = Self::SIZE / 2;
}

laid_out_as!(IoasChangeProcess, kernel::iommu_ioas_change_process { size, reserved as __reserved });
