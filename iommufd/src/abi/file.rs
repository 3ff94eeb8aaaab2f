//! Mapping by file.

use std::mem::offset_of;

use dmaspace_core::door::Request;
use iommufd_bindings as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// iommufd: map a part of a file: [`IoasMapFile`]. Linux 6.12 does not know it.
pub const IOAS_MAP_FILE: Request = Request::vfio(0x8f, "IOMMU_IOAS_MAP_FILE");

const _: () = assert!(IOAS_MAP_FILE.is(0x3b00 | kernel::IOMMUFD_CMD_IOAS_MAP_FILE) && IOAS_MAP_FILE.is(0x3b8f));

/// What [`IOAS_MAP_FILE`] reads and fills. Its flags are those of [`super::IoasMap`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoasMapFile {
    /// [`IoasMapFile::SIZE`].
    pub size: u32,
    /// [`super::MAP_FIXED_IOVA`], [`super::MAP_WRITEABLE`], [`super::MAP_READABLE`].
    pub flags: u32,
    /// Which address space.
    pub ioas_id: u32,
    /// The file's descriptor: attached, left zero.
    pub fd: i32,
    /// The first byte of the file.
    pub start: u64,
    /// How many bytes.
    pub length: u64,
    /// The first bus address; without [`super::MAP_FIXED_IOVA`] the kernel's choice.
    pub iova: u64,
}

laid_out_as!(IoasMapFile, kernel::iommu_ioas_map_file { size, flags, ioas_id, fd, start, length, iova });
