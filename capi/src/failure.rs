//! Errors as a negative errno and a sentence, which the thread keeps until its next error.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use dmaspace::door::Errno;

thread_local! {
    static SENTENCE: RefCell<CString> = RefCell::default();
}

/// The errno and the sentence of a call that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) errno: Errno,
    pub(crate) sentence: String,
}

impl Failed {
    pub(crate) fn new(errno: Errno, sentence: impl Into<String>) -> Self {
        Self { errno, sentence: sentence.into() }
    }

    /// A failure for an argument that no call can take.
    pub(crate) fn argument(sentence: impl Into<String>) -> Self {
        Self::new(Errno::EINVAL, sentence)
    }
}

macro_rules! from_errors {
    ($($error:ty)*) => {
        $(impl From<$error> for Failed {
            fn from(error: $error) -> Self {
                Self::new(error.as_errno(), error.to_string())
            }
        })*
    };
}

from_errors! {
    dmaspace::Error dmaspace::CommitError dmaspace::OpenError dmaspace::domain::DomainError
    dmaspace::listener::EntryError dmaspace::listener::BlockError
}

impl From<dmaspace::address::BadRange> for Failed {
    fn from(error: dmaspace::address::BadRange) -> Self {
        Self::argument(error.to_string())
    }
}

/// Runs the work of an export, and returns zero or the negative errno. A panic is `-EIO`.
pub(crate) fn answer(work: impl FnOnce() -> Result<(), Failed>) -> c_int {
    let failed = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => return 0,
        Ok(Err(failed)) => failed,
        Err(_) => Failed::new(Errno::EIO, "libdmaspace has a fault: the call ended early"),
    };
    let errno = if failed.errno.0 > 0 { failed.errno.0 } else { Errno::EIO.0 };
    keep(failed.sentence);
    -errno
}

/// Keeps the sentence for [`sentence`]. Bytes of zero, which end a C string, are dropped.
fn keep(mut sentence: String) {
    sentence.retain(|letter| letter != '\0');
    let kept = CString::new(sentence).unwrap_or_default();
    let old = SENTENCE.try_with(|place| place.replace(kept));
    drop(old);
}

/// The sentence about the last error of this thread, which stays where it is until the next error.
pub(crate) fn sentence() -> *const c_char {
    SENTENCE.try_with(|place| place.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// The version of the library.
pub(crate) const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => c"",
};
