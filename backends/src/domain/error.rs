//! The error of a domain's devices.

use std::fmt;

use dmaspace_core::door::Errno;
use dmaspace_listener::CommitError;

use crate::device::Device;
use crate::open::OpenError;

/// The reason why a device was not added to a domain or not removed from it.
#[derive(Debug)]
#[non_exhaustive]
pub enum DomainError {
    /// The device could not be opened or attached, and nothing changed; or it could not be detached: it is closed then
    /// as far as possible, and listed by [`Domain::left_attached`](crate::Domain::left_attached).
    Open(OpenError),
    /// The guest's memory could not be put in force for the device. The device is closed again, and nothing changed.
    Memory(CommitError),
    /// The device was added or removed, and the spaces could not be brought up to date: see
    /// [`Domain::sync`](crate::Domain::sync).
    Behind(CommitError),
    /// Adding a device failed, and it could not be detached again. It reaches what its space maps, and is listed by
    /// [`Domain::left_attached`](crate::Domain::left_attached).
    NotUndone {
        /// The first failure.
        cause: CommitError,
        /// The failure of the detach.
        undoing: OpenError,
    },
    /// A space without a device was given to a domain.
    NoDevice,
    /// The device is attached to no space of the domain. It is returned as it was.
    NotInDomain(Box<Device>),
    /// The space is none of the domain's.
    NoSuchSpace,
}

impl DomainError {
    /// The errno of the failed call; for a refusal before the kernel was asked, the errno with which kernels refuse the
    /// same.
    pub fn as_errno(&self) -> Errno {
        match self {
            Self::Open(error) => error.as_errno(),
            Self::Memory(error) | Self::Behind(error) | Self::NotUndone { cause: error, .. } => error.as_errno(),
            Self::NoDevice | Self::NotInDomain(_) => Errno::ENODEV,
            Self::NoSuchSpace => Errno::ENOENT,
        }
    }
}

impl fmt::Display for DomainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) => write!(f, "{error}"),
            Self::Memory(error) => write!(f, "the device is not added: {error}"),
            Self::Behind(error) => write!(f, "the spaces are not up to date: {error}"),
            Self::NotUndone { cause, undoing } => {
                write!(f, "the device is not added: {cause}; then it could not be detached: {undoing}")
            }
            Self::NoDevice => write!(f, "the space has no device; attach one first"),
            Self::NotInDomain(device) => write!(f, "{} is attached to no space of this domain", device.name()),
            Self::NoSuchSpace => write!(f, "the space is none of this domain's"),
        }
    }
}

/// [`source`](std::error::Error::source) is `None`: the text contains the cause.
impl std::error::Error for DomainError {}

impl From<OpenError> for DomainError {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

/// Has the [kind](std::io::ErrorKind) of [`DomainError::as_errno`] and the text of the [`DomainError`].
impl From<DomainError> for std::io::Error {
    fn from(error: DomainError) -> Self {
        error.as_errno().with_text_of(error)
    }
}
