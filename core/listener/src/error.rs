//! The error of a commit, of an attach and of a detach.

use std::fmt;

use dmaspace_core::door::Errno;
use dmaspace_core::error::Error;
use dmaspace_core::words::address::IovaRange;

use crate::report::{Report, SpaceReport};
use crate::translated::EntryError;
use crate::update::BadUpdate;

/// The reason why a commit or an attach did not happen. Everything is as before, except for ranges named as fenced, and
/// except for spaces whose device came or left meanwhile: the next commit brings those up to date.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The update contradicts itself or the view. No host was asked.
    #[error(transparent)]
    Update(#[from] BadUpdate),
    /// A host cannot provide a required section. No call was made; the report names the section, and the fate of all
    /// others.
    #[error("{}", .0.spaces.iter().find_map(SpaceReport::refusal).unwrap_or_default())]
    Refused(Report),
    /// Entries of a translated window still point to target memory that would go.
    #[error("{target} would go, but the entries at {entries} still point to it; clear them first")]
    StillMapped {
        /// The target memory, in words.
        target: String,
        /// Live entries.
        entries: IovaRange,
    },
    /// A step failed, and all steps before it were undone.
    #[error("{error}{}", Fenced(.fenced))]
    Step {
        /// The error of the step.
        error: Error,
        /// Ranges that could not be restored.
        fenced: Vec<IovaRange>,
    },
    /// Entries that were to be put lie in no translated window, or point to no target memory. No call was made.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The space is not served by this listener.
    #[error("the space is not attached to this listener")]
    NotAttached,
}

impl CommitError {
    /// The errno of the failed call; for a refusal before the kernel was asked, the errno with which kernels refuse the
    /// same ([`Error::as_errno`]): `EINVAL` for a section that a host cannot provide, `EEXIST` for an update with an
    /// overlap, `EBUSY` for target memory that is in use.
    pub fn as_errno(&self) -> Errno {
        match self {
            Self::Update(BadUpdate::NotThere(_)) => Errno::ENOENT,
            Self::Update(BadUpdate::Overlap(..) | BadUpdate::SharesMemory(..)) => Errno::EEXIST,
            Self::Update(BadUpdate::Cut(..)) | Self::Refused(_) | Self::NotAttached => Errno::EINVAL,
            Self::StillMapped { .. } => Errno::EBUSY,
            Self::Step { error, .. } => error.as_errno(),
            Self::Entry(error) => error.as_errno(),
        }
    }
}

/// Has the [kind](std::io::ErrorKind) of [`CommitError::as_errno`] and the text of the [`CommitError`].
impl From<CommitError> for std::io::Error {
    fn from(error: CommitError) -> Self {
        error.as_errno().with_text_of(error)
    }
}

/// The words for fenced ranges: the first few, and the number of the rest.
struct Fenced<'a>(&'a [IovaRange]);

impl fmt::Display for Fenced<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 8;
        for range in self.0.iter().take(MOST) {
            write!(f, "; {range} could not be brought back and is fenced")?;
        }
        match self.0.len().saturating_sub(MOST) {
            0 => Ok(()),
            more => write!(f, "; and so are {more} more ranges"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use dmaspace_core::words::address::BadRange;

    use super::*;

    #[test]
    fn each_error_is_an_io_error_with_the_kind_of_its_errno_and_its_own_text() {
        let overlap = || CommitError::from(BadUpdate::Overlap("a".to_owned(), "b".to_owned()));
        let text = overlap().to_string();
        let error = io::Error::from(overlap());
        assert_eq!((error.kind(), error.to_string()), (io::ErrorKind::AlreadyExists, text));
        let entry = EntryError::from(BadRange::Overflow);
        assert_eq!((entry.as_errno(), CommitError::from(entry).as_errno()), (Errno::EOVERFLOW, Errno::EOVERFLOW));
        assert_eq!(io::Error::from(EntryError::NoSuchWindow).raw_os_error(), None, "the text is not the kernel's");
    }
}
