//! Writing and clearing table entries: the same calls in both versions.

use std::mem::offset_of;

use dmaspace_abi::vfio::{self, MapDma, UnmapDma};
use dmaspace_core::door::{Attached, Attachment, Command, Failure, Lease, OwnedHandle};
use dmaspace_core::{Access, IovaRange};
use zerocopy::IntoBytes;

/// Writes the entries of `range`, replacing live ones.
///
/// # Errors
/// The kernel's failure. Entries that would have been replaced may be cleared then.
pub(crate) fn write(
    container: &OwnedHandle,
    range: IovaRange,
    memory: &Lease<'_>,
    access: Access,
) -> Result<(), Failure> {
    let mut map = MapDma {
        argsz: MapDma::SIZE,
        flags: vfio::map_flags(access),
        vaddr: 0,
        iova: range.first().get(),
        size: memory.len().get(),
    };
    let mut vaddr = [Attachment { offset: offset_of!(MapDma, vaddr), what: Attached::Memory(memory) }];
    container.call(Command::with_bytes(vfio::MAP_DMA, map.as_mut_bytes()).attaching(&mut vaddr))
}

/// Clears the entries of `range`, live or not.
///
/// # Errors
/// The kernel's failure.
pub(crate) fn clear(container: &OwnedHandle, range: IovaRange) -> Result<(), Failure> {
    let len = range.len();
    debug_assert!(len.is_some(), "no window spans 2^64 bytes");
    let size = len.map_or(0, |len| len.get());
    let mut unmap = UnmapDma { argsz: UnmapDma::SIZE, flags: 0, iova: range.first().get(), size };
    container.call(Command::with_bytes(vfio::UNMAP_DMA, unmap.as_mut_bytes()))
}
