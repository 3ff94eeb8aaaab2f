//! Writing and clearing table entries: the same calls in both versions.

use dmaspace_abi::vfio;
use dmaspace_core::door::{Failure, Lease, OwnedHandle};
use dmaspace_core::{Access, IovaRange};

/// Writes the entries of `range`, replacing live ones.
///
/// # Errors
/// The kernel's failure. Entries that would have been replaced may be cleared then.
#[inline]
pub(crate) fn write(
    container: &OwnedHandle,
    range: IovaRange,
    memory: &Lease<'_>,
    access: Access,
) -> Result<(), Failure> {
    vfio::map(container, range.first(), memory, access)
}

/// Clears the entries of `range`, live or not.
///
/// # Errors
/// The kernel's failure.
#[inline]
pub(crate) fn clear(container: &OwnedHandle, range: IovaRange) -> Result<(), Failure> {
    let len = range.len();
    debug_assert!(len.is_some(), "no window spans 2^64 bytes");
    vfio::unmap(container, range.first(), len.map_or(0, |len| len.get())).map(|_| ())
}
