//! Mapping and unmapping, with numbers and structs that type1 and sPAPR containers share. Their results differ.

use dmaspace_core::Access;
use dmaspace_core::door::Request;
use vfio_bindings::bindings::vfio as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::BASE;

/// Container: maps memory ([`MapDma`]). On sPAPR it writes table entries, and a result of 1 is a refusal.
pub const MAP_DMA: Request = Request::vfio(BASE + 13, "VFIO_IOMMU_MAP_DMA");
/// Container: unmaps ([`UnmapDma`]): whole mappings on type1, table entries on sPAPR, where a result of 1 is a refusal.
pub const UNMAP_DMA: Request = Request::vfio(BASE + 14, "VFIO_IOMMU_UNMAP_DMA");

const _: () = {
    assert!(MAP_DMA.is(0x3b71));
    assert!(UNMAP_DMA.is(0x3b72));
};

/// The argument of [`MAP_DMA`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapDma {
    /// [`MapDma::SIZE`].
    pub argsz: u32,
    /// [`MAP_READ`], [`MAP_WRITE`], at least one of them; powernv turns a lone write into both. On type1 also
    /// [`crate::type1::MAP_VADDR`], alone.
    pub flags: u32,
    /// The memory: attached, left zero.
    pub vaddr: u64,
    /// The first bus address.
    pub iova: u64,
    /// The length in bytes.
    pub size: u64,
}

/// The device may read.
pub const MAP_READ: u32 = kernel::VFIO_DMA_MAP_FLAG_READ;
/// The device may write.
pub const MAP_WRITE: u32 = kernel::VFIO_DMA_MAP_FLAG_WRITE;

/// The flags of a [`MapDma`] that give devices this access.
pub fn map_flags(access: Access) -> u32 {
    let read = if access.contains(Access::READ) { MAP_READ } else { 0 };
    let write = if access.contains(Access::WRITE) { MAP_WRITE } else { 0 };
    read | write
}

/// The argument of [`UNMAP_DMA`]. On success type1 writes it back, sPAPR does not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UnmapDma {
    /// [`UnmapDma::SIZE`].
    pub argsz: u32,
    /// Zero on sPAPR; on type1 [`crate::type1::UNMAP_ALL`] and its neighbours.
    pub flags: u32,
    /// The first bus address.
    pub iova: u64,
    /// The length in bytes; type1 returns how many bytes were mapped.
    pub size: u64,
}

laid_out_as!(MapDma, kernel::vfio_iommu_type1_dma_map { argsz, flags, vaddr, iova, size });
laid_out_as!(UnmapDma, kernel::vfio_iommu_type1_dma_unmap { argsz, flags, iova, size });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_is_the_access_of_the_device() {
        assert_eq!(map_flags(Access::READ), 1);
        assert_eq!(map_flags(Access::WRITE), 2);
        assert_eq!(map_flags(Access::READ_WRITE), 3);
    }
}
