//! Writing and clearing table entries: the same calls in both versions.

use std::mem::offset_of;

use dmaspace_abi::vfio::{self, MapDma, UnmapDma};
use dmaspace_core::door::{Attached, Attachment, Command, Failure, Lease, OwnedHandle};
use dmaspace_core::{Access, IovaRange};
use zerocopy::IntoBytes;

/// Writes the entries of `range`, replacing live ones.
///
/// # Errors
/// What the kernel says. Entries that were to be replaced may be gone then.
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
/// What the kernel says.
pub(crate) fn clear(container: &OwnedHandle, range: IovaRange) -> Result<(), Failure> {
    // All 2^64 bytes are never asked for: no window is that large.
    let size = range.len().map_or(0, |len| len.get());
    let mut unmap = UnmapDma { argsz: UnmapDma::SIZE, flags: 0, iova: range.first().get(), size };
    container.call(Command::with_bytes(vfio::UNMAP_DMA, unmap.as_mut_bytes()))
}
