//! Errors of using a device.

use std::fmt;

use dmaspace_abi::device::REGION_CONFIG;
use dmaspace_core::door::{Errno, Failure};

/// A failed action on a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{device}: {action}: {problem}")]
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

/// An action on a device. A number is the region's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Ask for the size and the kind of a region.
    Describe(u32),
    /// Read from a region.
    Read(u32),
    /// Write to a region.
    Write(u32),
    /// Map a part of a region.
    Map(u32),
    /// Export a part of a region.
    Export(u32),
    /// Reset the device.
    Reset,
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

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Describe(index) => write!(f, "describe {}", RegionName(*index)),
            Self::Read(index) => write!(f, "read {}", RegionName(*index)),
            Self::Write(index) => write!(f, "write {}", RegionName(*index)),
            Self::Map(index) => write!(f, "map {}", RegionName(*index)),
            Self::Export(index) => write!(f, "export {}", RegionName(*index)),
            Self::Reset => f.write_str("reset"),
        }
    }
}

/// The usual name of a region.
struct RegionName(u32);

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bar @ 0..=5 => write!(f, "BAR {bar}"),
            REGION_CONFIG => f.write_str("configuration space"),
            other => write!(f, "region {other}"),
        }
    }
}
