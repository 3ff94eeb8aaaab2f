//! Writing and clearing table entries: the same calls in both versions.

use std::mem::offset_of;

use dmaspace_core::door::{Attached, Attachment, Command, Door, Failure, Handle, Kernel};
use dmaspace_core::{Access, HostMemory, IovaRange};
use zerocopy::IntoBytes;

use crate::abi::{self, MapDma, UnmapDma};

/// Writes the entries of `range`, replacing live ones.
///
/// # Errors
/// What the kernel says. Entries that were to be replaced may be gone then.
pub(crate) fn write(
    door: &dyn Door,
    container: Handle,
    range: IovaRange,
    memory: &HostMemory,
    access: Access,
) -> Result<(), Failure> {
    let mut map = MapDma {
        argsz: MapDma::SIZE,
        flags: map_flags(access),
        vaddr: 0,
        iova: range.first().get(),
        size: memory.len().get(),
    };
    let mut vaddr = [Attachment { offset: offset_of!(MapDma, vaddr), what: Attached::Memory(memory) }];
    door.call(container, Command::with_bytes(abi::MAP_DMA, map.as_mut_bytes()).attaching(&mut vaddr))
}

/// Clears the entries of `range`, live or not.
///
/// # Errors
/// What the kernel says.
pub(crate) fn clear(door: &dyn Door, container: Handle, range: IovaRange) -> Result<(), Failure> {
    // All 2^64 bytes are never asked for: no window is that large.
    let size = range.len().map_or(0, |len| len.get());
    let mut unmap = UnmapDma { argsz: UnmapDma::SIZE, flags: 0, iova: range.first().get(), size };
    door.call(container, Command::with_bytes(abi::UNMAP_DMA, unmap.as_mut_bytes()))
}

fn map_flags(access: Access) -> u32 {
    let read = if access.contains(Access::READ) { abi::MAP_READ } else { 0 };
    let write = if access.contains(Access::WRITE) { abi::MAP_WRITE } else { 0 };
    read | write
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_the_devices() {
        assert_eq!(map_flags(Access::READ), 1);
        assert_eq!(map_flags(Access::WRITE), 2);
        assert_eq!(map_flags(Access::READ_WRITE), 3);
    }
}
