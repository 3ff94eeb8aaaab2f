//! An unmap whose answer is judged by the number of bytes.

use crate::door::Failure;
use crate::retry::{Undone, until_gone};

/// Unmaps a range in which `bytes` are mapped and no unit is cut, by the call `unmap`. After an error it is unknown
/// what is still mapped.
pub(super) fn unmap_all(
    bytes: u64,
    mut unmap: impl FnMut() -> Result<Undone<Option<u64>>, Failure>,
) -> Result<(), Failure> {
    let mut calls = 0;
    let undone = until_gone(|| {
        calls += 1;
        unmap()
    })?;
    match undone.done().flatten() {
        // A call that failed before may have unmapped a part.
        Some(unmapped) if calls == 1 && unmapped != bytes => {
            Err(Failure::malformed("unmap", "the number of unmapped bytes is not that of the mapped bytes"))
        }
        _ => Ok(()),
    }
}
