//! Kernel calls that failed: the call, the answer, and its cause.

use std::fmt;

/// An errno of the kernel.
///
/// Exhaustive: a number of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident)*) => {
        #[allow(missing_docs, reason = "each is the kernel's name for it")]
        impl Errno {
            $(pub const $name: Self = Self(libc::$name);)*

            /// The kernel's name for it.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM ENOENT EINTR EIO ENXIO E2BIG EBADF EAGAIN ENOMEM EACCES EFAULT EBUSY EEXIST ENODEV EINVAL EMFILE ENOTTY ENOSPC
    EMSGSIZE EADDRINUSE EOPNOTSUPP EOVERFLOW EBADFD EHWPOISON
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Errno {}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// The cause of a failure, as far as a caller can act on it.
///
/// `Cause::of` is the one table of errnos. A backend whose kernel means something else, or that has no errnos, states
/// the cause itself: [`Failure::caused_by`], [`Failure::refused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The host memory is not mapped in this process, or not with the access that was asked for.
    BadAddress,
    /// No more memory can be locked, or the kernel is out of memory.
    NoMemory,
    /// A number of objects (mappings, windows) is used up.
    NoSlot,
    /// The kernel has no such object.
    NotThere,
    /// The answer cannot be true.
    BadReply,
    /// Any other cause.
    Other,
}

impl Cause {
    /// The cause of an answer, if the backend says nothing else.
    const fn of(answer: Answer) -> Self {
        match answer {
            Answer::Errno(Errno::EFAULT) => Self::BadAddress,
            Answer::Errno(Errno::ENOMEM) => Self::NoMemory,
            Answer::Errno(Errno::ENOSPC) => Self::NoSlot,
            Answer::Errno(Errno::ENOENT) => Self::NotThere,
            Answer::Malformed(_) => Self::BadReply,
            Answer::Errno(_) | Answer::Positive(_) | Answer::Refused(_) => Self::Other,
        }
    }
}

/// The answer to a call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// An error.
    Errno(Errno),
    /// A positive result where only zero means success: sPAPR's MAP and UNMAP answer 1 for bounds they refuse
    /// (linux: arch/powerpc/include/asm/iommu.h, iommu_tce_put_param_check), REGISTER_MEMORY the pages it pinned before
    /// a hole.
    Positive(i32),
    /// Success, and a reply that cannot be true. The words name the fault.
    Malformed(&'static str),
    /// A refusal of a backend without errnos. The words name the reason.
    Refused(&'static str),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errno(errno) => errno.fmt(f),
            Self::Positive(result) => write!(f, "result {result} where 0 means success"),
            Self::Malformed(why) => write!(f, "an impossible reply: {why}"),
            Self::Refused(why) => f.write_str(why),
        }
    }
}

/// A call that failed, with its answer and the cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {answer}")]
pub struct Failure {
    call: &'static str,
    answer: Answer,
    cause: Cause,
    may_have_effect: bool,
}

impl Failure {
    const fn new(call: &'static str, answer: Answer) -> Self {
        Self { call, answer, cause: Cause::of(answer), may_have_effect: false }
    }

    /// An errno.
    pub const fn from_errno(call: &'static str, errno: Errno) -> Self {
        Self::new(call, Answer::Errno(errno))
    }

    /// A positive result where only zero means success.
    pub const fn positive(call: &'static str, result: i32) -> Self {
        Self::new(call, Answer::Positive(result))
    }

    /// A reply that cannot be true; `why` names the fault.
    pub const fn malformed(call: &'static str, why: &'static str) -> Self {
        Self::new(call, Answer::Malformed(why))
    }

    /// A refusal of a backend without errnos; `why` names the reason.
    pub const fn refused(call: &'static str, cause: Cause, why: &'static str) -> Self {
        Self { cause, ..Self::new(call, Answer::Refused(why)) }
    }

    /// The same failure with the cause that the backend knows.
    #[must_use]
    pub const fn caused_by(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }

    /// The same failure of a call that may have had its effect all the same, and whose undo failed as well.
    #[must_use]
    pub const fn not_undone(self) -> Self {
        Self { may_have_effect: true, ..self }
    }

    /// Returns `true` if the call may have had its effect all the same, because its undo failed as well.
    pub const fn may_have_effect(&self) -> bool {
        self.may_have_effect
    }

    /// The name of the call: the kernel's, or the backend's own.
    pub const fn call(&self) -> &'static str {
        self.call
    }

    /// The answer.
    pub const fn answer(&self) -> Answer {
        self.answer
    }

    /// The cause.
    pub const fn cause(&self) -> Cause {
        self.cause
    }

    /// The errno, if the answer is one.
    pub const fn errno(&self) -> Option<Errno> {
        match self.answer {
            Answer::Errno(errno) => Some(errno),
            Answer::Positive(_) | Answer::Malformed(_) | Answer::Refused(_) => None,
        }
    }
}
