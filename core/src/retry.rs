//! Asking a kernel again, and believing it: for calls that take back, where a no is no way out.

use crate::door::{Errno, Failure};

/// How often a kernel has to say that nothing is there to be believed: an errno by itself is no proof, since look-ups inside the kernel
/// fail for other reasons too.
const ABSENCES: usize = 3;

/// How often the kernel is asked before its no is taken for one: enough to be told the truth so often beside two other failures.
pub const ATTEMPTS: usize = ABSENCES + 2;

/// Asks again when the kernel says no, [`ATTEMPTS`] times in all.
///
/// # Errors
/// The first there was.
pub fn with_retries<T>(mut call: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    call().or_else(|first| {
        log::debug!("{first}; asking again");
        (1..ATTEMPTS).find_map(|_| call().ok()).ok_or(first)
    })
}

/// Has something taken away. `absent` is how the kernel says that there is nothing, or nothing any more. `None`: so it was.
///
/// # Errors
/// The first there was. Nobody knows then whether it is still there.
pub fn until_gone<T>(absent: Errno, mut call: impl FnMut() -> Result<T, Failure>) -> Result<Option<T>, Failure> {
    let mut absences = 0;
    with_retries(|| {
        call().map(Some).or_else(|failure| {
            absences += usize::from(failure.errno() == Some(absent));
            if absences < ABSENCES { Err(failure) } else { Ok(None) }
        })
    })
}
