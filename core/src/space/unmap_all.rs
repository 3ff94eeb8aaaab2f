//! An unmap whose answer is judged by the number of bytes.

use crate::door::Failure;
use crate::retry::{Undone, until_gone};

/// Unmaps a range in which `bytes` are mapped and no unit is cut, by the call `unmap`. After an error it is unknown
/// what is still mapped.
#[inline]
pub(super) fn unmap_all(
    bytes: u64,
    mut unmap: impl FnMut() -> Result<Undone<Option<u64>>, Failure>,
) -> Result<(), Failure> {
    match unmap() {
        Ok(Undone::Done(unmapped)) if unmapped.is_none_or(|unmapped| unmapped == bytes) => Ok(()),
        first => insist(bytes, first, unmap),
    }
}

/// Repeats the call after a `first` answer that leaves a doubt.
#[cold]
fn insist(
    bytes: u64,
    first: Result<Undone<Option<u64>>, Failure>,
    mut unmap: impl FnMut() -> Result<Undone<Option<u64>>, Failure>,
) -> Result<(), Failure> {
    let (mut first, mut calls) = (Some(first), 0);
    let undone = until_gone(|| {
        calls += 1;
        first.take().unwrap_or_else(&mut unmap)
    })?;
    match undone.done().flatten() {
        // A call that failed before may have unmapped a part.
        Some(unmapped) if calls == 1 && unmapped != bytes => {
            Err(Failure::malformed("unmap", "the number of unmapped bytes is not that of the mapped bytes"))
        }
        _ => Ok(()),
    }
}
