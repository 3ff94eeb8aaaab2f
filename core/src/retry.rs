//! Retries for calls that undo something: a single error is not enough to give up an undo.

use crate::door::{Errno, Failure};

/// The number of answers it takes to believe that there was nothing to undo. One answer proves nothing, since
/// look-ups inside the kernel fail for other reasons too.
const ABSENCES: usize = 3;

/// The number of times a call is made before its failure is final: enough to hear [`Undone::WasNotThere`] often
/// enough to believe it beside two other failures.
pub const ATTEMPTS: usize = ABSENCES + 2;

/// The outcome of a call that undoes something: an unmap, an unregistration, a detach, a removal. A backend decides
/// which of its kernel's answers mean that nothing was there; [`crate::Space`] interprets no errno.
///
/// Exhaustive: there is no third outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undone<T = ()> {
    /// The call did its work.
    Done(T),
    /// There was nothing to undo, or nothing any more.
    WasNotThere,
}

impl<T> Undone<T> {
    /// The outcome of a call whose kernel answers with one of the `absent` errnos where there is nothing to undo.
    ///
    /// # Errors
    /// Every other failure of the call.
    #[inline]
    pub fn unless_absent(result: Result<T, Failure>, absent: &[Errno]) -> Result<Self, Failure> {
        match result {
            Ok(done) => Ok(Self::Done(done)),
            Err(failure) => Self::if_absent(failure, absent),
        }
    }

    #[cold]
    fn if_absent(failure: Failure, absent: &[Errno]) -> Result<Self, Failure> {
        if failure.errno().is_some_and(|errno| absent.contains(&errno)) { Ok(Self::WasNotThere) } else { Err(failure) }
    }

    /// The result of the call, or `None` where there was nothing to undo.
    pub fn done(self) -> Option<T> {
        match self {
            Self::Done(done) => Some(done),
            Self::WasNotThere => None,
        }
    }
}

/// Makes a call up to [`ATTEMPTS`] times, until it succeeds.
///
/// # Errors
/// The first failure.
pub fn with_retries<T>(mut call: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let first = match call() {
        Ok(done) => return Ok(done),
        Err(first) => first,
    };
    log::debug!("{first}; the call is repeated");
    for _ in 1..ATTEMPTS {
        if let Ok(done) = call() {
            return Ok(done);
        }
    }
    Err(first)
}

/// Makes a call that undoes something up to [`ATTEMPTS`] times, until it succeeds or has said often enough that there
/// is nothing to undo.
///
/// # Errors
/// The first failure. It is unknown then whether the undo took place. A call that said [`Undone::WasNotThere`] too
/// rarely to be believed, between failures, fails with the first of these.
pub fn until_gone<T>(mut call: impl FnMut() -> Result<Undone<T>, Failure>) -> Result<Undone<T>, Failure> {
    let mut absences = 0;
    let mut first_failure = None;
    for _ in 0..ATTEMPTS {
        match call() {
            Ok(Undone::Done(done)) => return Ok(Undone::Done(done)),
            Ok(Undone::WasNotThere) => absences += 1,
            Err(failure) => {
                log::debug!("{failure}; the call is repeated");
                first_failure.get_or_insert(failure);
            }
        }
        if absences == ABSENCES {
            break;
        }
    }
    match first_failure {
        Some(failure) if absences < ABSENCES => Err(failure),
        _ => Ok(Undone::WasNotThere),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(errno: Errno) -> Failure {
        Failure::from_errno("UNDO", errno)
    }

    /// Plays the answers one after another, and says how many were asked for.
    fn played(answers: &[Result<Undone, Failure>]) -> (Result<Undone, Failure>, usize) {
        let mut asked = 0;
        let outcome = until_gone(|| {
            asked += 1;
            answers[asked - 1]
        });
        (outcome, asked)
    }

    #[test]
    fn an_absence_is_believed_at_the_third_answer() {
        assert_eq!(played(&[Ok(Undone::WasNotThere); 3]), (Ok(Undone::WasNotThere), 3));
    }

    #[test]
    fn an_undo_after_a_false_absence_is_done() {
        assert_eq!(played(&[Ok(Undone::WasNotThere), Ok(Undone::Done(()))]), (Ok(Undone::Done(())), 2));
    }

    #[test]
    fn two_failures_beside_three_absences_are_no_failure() {
        let absent = Ok(Undone::WasNotThere);
        let answers = [Err(failed(Errno::EIO)), absent, Err(failed(Errno::EINTR)), absent, absent];
        assert_eq!(played(&answers), (absent, 5));
    }

    #[test]
    fn the_first_of_many_failures_is_returned() {
        let (busy, absent) = (Err(failed(Errno::EBUSY)), Ok(Undone::WasNotThere));
        assert_eq!(played(&[busy; 5]), (busy, 5));
        assert_eq!(played(&[absent, absent, Err(failed(Errno::EIO)), busy, busy]), (Err(failed(Errno::EIO)), 5));
    }

    #[test]
    fn only_the_named_errnos_mean_absence() {
        let absent = [Errno::EINVAL, Errno::ENODEV];
        assert_eq!(Undone::unless_absent(Ok(7), &absent), Ok(Undone::Done(7)));
        assert_eq!(Undone::<()>::unless_absent(Err(failed(Errno::ENODEV)), &absent), Ok(Undone::WasNotThere));
        assert_eq!(Undone::<()>::unless_absent(Err(failed(Errno::EBUSY)), &absent), Err(failed(Errno::EBUSY)));
    }
}
