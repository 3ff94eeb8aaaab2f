//! Errors of using a device.

use std::fmt;

use dmaspace_core::door::{Errno, Failure};

use crate::device::action::Action;
use crate::device::advice;

/// A failed action on a device. The text ends with the advice, where there is a usual remedy ([`DeviceError::advice`]).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{device}: {action}: {problem}{}", Advice(self.advice()))]
#[non_exhaustive]
pub struct DeviceError {
    /// The name of the device.
    pub device: String,
    /// The action that failed.
    pub action: Action,
    /// The cause.
    pub problem: DeviceProblem,
}

impl DeviceError {
    pub(super) fn new(device: &str, action: Action, problem: impl Into<DeviceProblem>) -> Self {
        Self { device: device.to_owned(), action, problem: problem.into() }
    }

    /// The likely remedy, if there is a usual one.
    pub fn advice(&self) -> Option<&'static str> {
        advice::advice(self.action, self.errno()?)
    }

    /// The errno that the kernel answered with, if it did.
    pub fn errno(&self) -> Option<Errno> {
        match &self.problem {
            DeviceProblem::Refused(failure) => failure.errno(),
            DeviceProblem::Failed(errno) => Some(*errno),
            DeviceProblem::Outside { .. } | DeviceProblem::Short(_) => None,
        }
    }

    /// The errno that the kernel answered with; `EINVAL` for bytes outside the region, as vfio_pci_rw answers (linux:
    /// drivers/vfio/pci/vfio_pci_core.c), and `EIO` without an errno.
    pub fn as_errno(&self) -> Errno {
        match self.problem {
            DeviceProblem::Outside { .. } => Errno::EINVAL,
            _ => self.errno().unwrap_or(Errno::EIO),
        }
    }
}

/// Has the [kind](std::io::ErrorKind) of [`DeviceError::as_errno`] and the text of the [`DeviceError`].
impl From<DeviceError> for std::io::Error {
    fn from(error: DeviceError) -> Self {
        error.as_errno().with_text_of(error)
    }
}

/// The cause of a failed action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceProblem {
    /// The kernel refused a call.
    #[error("{0}")]
    Refused(Failure),
    /// The kernel refused a read, a write or a mapping.
    #[error("{0}")]
    Failed(Errno),
    /// The bytes do not all lie in the region.
    #[error("{len} bytes at {offset:#x} do not lie inside its {size:#x}")]
    Outside {
        /// The offset of the first byte.
        offset: u64,
        /// The number of bytes.
        len: u64,
        /// The size of the region.
        size: u64,
    },
    /// Fewer bytes were transferred than requested.
    #[error("only {0} bytes were transferred")]
    Short(usize),
}

impl From<Failure> for DeviceProblem {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure)
    }
}

impl From<Errno> for DeviceProblem {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

/// The end of an error's text.
struct Advice(Option<&'static str>);

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}
