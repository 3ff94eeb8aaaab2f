//! Map and unmap calls as the kernel's structs: each field is of the call's own type, so nothing is left to judge but
//! the kind of the descriptor and whether the memory is there.

use std::ffi::c_void;
use std::os::fd::AsRawFd as _;
use std::ptr;

use dmaspace_abi::iommufd::{IOAS_MAP, IOAS_UNMAP, IoasMap, IoasUnmap, fixed_map_flags};
use dmaspace_abi::vfio::{MAP_DMA, MapDma, UNMAP_DMA, UnmapDma, map_flags};
use dmaspace_core::door::{DirectMap, DirectUnmap, Errno, HandleKind, OwnedHandle};

use super::ioctl;

/// Makes a map call. `None` for a handle without a descriptor or of a kind without such a call.
pub(super) fn map(on: &OwnedHandle, map: &DirectMap<'_>) -> Option<Result<i32, Errno>> {
    let descriptor = on.descriptor_held()?.as_raw_fd();
    if !takes(on.kind(), map.ioas) {
        return None;
    }
    if map.memory.is_unbacked() {
        return Some(Err(Errno::EFAULT));
    }
    Some(match map.ioas {
        None => ioctl(descriptor, MAP_DMA.number, argument(&mut dma_map(map))),
        Some(ioas) => ioctl(descriptor, IOAS_MAP.number, argument(&mut ioas_map(map, ioas))),
    })
}

/// Makes an unmap call, as [`map`] makes a map call.
pub(super) fn unmap(on: &OwnedHandle, unmap: &mut DirectUnmap) -> Option<Result<i32, Errno>> {
    let descriptor = on.descriptor_held()?.as_raw_fd();
    if !takes(on.kind(), unmap.ioas) {
        return None;
    }
    let DirectUnmap { ioas, first, length } = *unmap;
    let (result, length) = match ioas {
        None => {
            let mut dma = UnmapDma { argsz: UnmapDma::SIZE, flags: 0, iova: first.get(), size: length };
            (ioctl(descriptor, UNMAP_DMA.number, argument(&mut dma)), dma.size)
        }
        Some(ioas) => {
            let mut unmap = IoasUnmap { size: IoasUnmap::SIZE, ioas_id: ioas, iova: first.get(), length };
            (ioctl(descriptor, IOAS_UNMAP.number, argument(&mut unmap)), unmap.length)
        }
    };
    unmap.length = length;
    Some(result)
}

/// Returns `true` if the kernel has these calls on handles of `kind`. An iommufd takes those of a container too.
fn takes(kind: HandleKind, ioas: Option<u32>) -> bool {
    kind == HandleKind::Iommufd || (kind == HandleKind::Container && ioas.is_none())
}

fn dma_map(map: &DirectMap<'_>) -> MapDma {
    MapDma {
        argsz: MapDma::SIZE,
        flags: map_flags(map.access),
        vaddr: map.memory.address().get(),
        iova: map.at.get(),
        size: map.memory.len().get(),
    }
}

fn ioas_map(map: &DirectMap<'_>, ioas_id: u32) -> IoasMap {
    IoasMap {
        size: IoasMap::SIZE,
        flags: fixed_map_flags(map.access),
        ioas_id,
        reserved: 0,
        user_va: map.memory.address().get(),
        length: map.memory.len().get(),
        iova: map.at.get(),
    }
}

fn argument<T>(of: &mut T) -> *mut c_void {
    ptr::from_mut(of).cast()
}

#[cfg(test)]
mod tests;
