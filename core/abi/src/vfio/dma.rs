//! Mapping and unmapping, with numbers, structs and calls that type1 and sPAPR containers share. Their results differ.

use std::mem::offset_of;

use dmaspace_core::door::{
    Attached, Attachment, Command, DirectMap, DirectUnmap, Failure, Lease, OwnedHandle, Request,
};
use dmaspace_core::{Access, Iova};
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

/// Maps all of `memory` from `at` on, in a container.
///
/// # Errors
/// The kernel's failure.
#[inline]
pub fn map(container: &OwnedHandle, at: Iova, memory: &Lease<'_>, access: Access) -> Result<(), Failure> {
    let map = DirectMap { ioas: None, at, memory, access };
    match container.map_directly(MAP_DMA.name, &map) {
        Some(mapped) => mapped,
        None => map_with_flags(container, map_flags(access), at, memory),
    }
}

/// Makes a [`MAP_DMA`] with these flags.
///
/// # Errors
/// The kernel's failure.
#[cold]
pub fn map_with_flags(container: &OwnedHandle, flags: u32, at: Iova, memory: &Lease<'_>) -> Result<(), Failure> {
    let mut map = MapDma { argsz: MapDma::SIZE, flags, vaddr: 0, iova: at.get(), size: memory.len().get() };
    let mut vaddr = [Attachment { offset: offset_of!(MapDma, vaddr), what: Attached::Memory(memory) }];
    container.call(Command::with_bytes(MAP_DMA, map.as_mut_bytes()).attaching(&mut vaddr))
}

/// Unmaps `length` bytes from `first` on, in a container. Returns the length that a type1 driver reports;
/// sPAPR's reports none, and `length` is returned.
///
/// # Errors
/// The kernel's failure.
#[inline]
pub fn unmap(container: &OwnedHandle, first: Iova, length: u64) -> Result<u64, Failure> {
    let mut direct = DirectUnmap { ioas: None, first, length };
    match container.unmap_directly(UNMAP_DMA.name, &mut direct) {
        Some(Ok(())) => Ok(direct.length),
        Some(Err(failure)) => Err(failure),
        None => unmap_with_flags(container, 0, first, length),
    }
}

/// Makes an [`UNMAP_DMA`] with these flags, and returns the length that the kernel leaves in the struct.
///
/// # Errors
/// The kernel's failure.
#[cold]
pub fn unmap_with_flags(container: &OwnedHandle, flags: u32, first: Iova, length: u64) -> Result<u64, Failure> {
    let mut unmap = UnmapDma { argsz: UnmapDma::SIZE, flags, iova: first.get(), size: length };
    container.call(Command::with_bytes(UNMAP_DMA, unmap.as_mut_bytes()))?;
    Ok(unmap.size)
}

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
