//! The answers to a client's calls, and the errno of each error.

use dmaspace::door::Errno;
use dmaspace::error::Error;

/// The answer to a call: a result or an errno; `None` if the kernel is to answer the client's call itself.
pub(crate) type Answer = Option<Result<i32, Errno>>;

/// The answer to a call that has no result but zero.
pub(crate) fn answer(outcome: Result<(), Errno>) -> Answer {
    Some(outcome.map(|()| 0))
}

/// The errno of a refusal.
///
/// A map over a live mapping is `EEXIST`, as type1 answers; an sPAPR container never refuses it.
pub(crate) fn errno_of(error: &Error) -> Errno {
    error.as_errno()
}
