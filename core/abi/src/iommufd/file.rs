//! Mapping by file.

use dmaspace_core::door::Request;
use iommufd_bindings as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// iommufd: maps a part of a file ([`IoasMapFile`]). Since Linux 6.13.
pub const IOAS_MAP_FILE: Request = Request::vfio(0x8f, "IOMMU_IOAS_MAP_FILE");

const _: () = assert!(super::is_command(IOAS_MAP_FILE, kernel::IOMMUFD_CMD_IOAS_MAP_FILE, 0x3b8f));

/// The argument of and reply to [`IOAS_MAP_FILE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoasMapFile {
    /// [`IoasMapFile::SIZE`].
    pub size: u32,
    /// [`super::MAP_FIXED_IOVA`], [`super::MAP_WRITEABLE`], [`super::MAP_READABLE`].
    pub flags: u32,
    /// The id of the address space.
    pub ioas_id: u32,
    /// The file's descriptor: attached, left zero.
    pub fd: i32,
    /// The offset of the first byte in the file.
    pub start: u64,
    /// The length in bytes.
    pub length: u64,
    /// The first bus address; without [`super::MAP_FIXED_IOVA`] the kernel's choice.
    pub iova: u64,
}

laid_out_as!(IoasMapFile, kernel::iommu_ioas_map_file { size, flags, ioas_id, fd, start, length, iova });
