//! Errors of opening and attaching.

use std::fmt;
use std::path::PathBuf;

use dmaspace_abi::vfio::API_VERSION;
use dmaspace_core::Error;
use dmaspace_core::door::{Errno, Failure};

use crate::backend_kind::BackendKind;
use crate::choose::Choice;
use crate::facts::{CONTAINER_NODE, FactsError};
use crate::open::advice::{attach_advice, call_advice, node_advice};

/// A failure to open or attach. Everything that had been opened for it is closed again, unless the error says
/// otherwise.
///
/// The text contains the cause and, where there is a remedy, the advice ([`OpenError::advice`]); there is no
/// [`source`](std::error::Error::source) to print as well.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// The facts of the host could not be read.
    Facts(FactsError),
    /// No backend fits the request. The choice holds the obstacles and their remedies.
    NoBackend(Choice),
    /// The backend cannot follow an option.
    NoChoice {
        /// The backend.
        backend: BackendKind,
        /// The behaviour that contradicts the option.
        why: &'static str,
    },
    /// The backend is implemented by another crate, which opens its spaces and devices itself.
    ForeignBackend {
        /// The name of the backend.
        name: &'static str,
    },
    /// The device has no node through which the backend could open it: it is not bound to a VFIO driver, it is behind
    /// no IOMMU, or the facts are older than the device.
    NoNode {
        /// The device.
        device: String,
        /// The backend.
        backend: BackendKind,
    },
    /// A node could not be opened.
    Node {
        /// The node.
        path: PathBuf,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The kernel speaks another version of VFIO.
    Version(i32),
    /// A driver of the host uses the DMA of a device of the group.
    NotViable {
        /// The group.
        group: String,
    },
    /// The group is in no container, so nothing was handed over with it.
    NotInherited {
        /// The group.
        group: String,
    },
    /// The registry refused a group or device.
    Registry {
        /// The group or device.
        subject: String,
        /// The registry's answer.
        errno: Errno,
    },
    /// The kernel refused a call.
    Refused {
        /// The object of the call.
        subject: String,
        /// The kernel's answer.
        failure: Failure,
    },
    /// A device or group could not be attached or detached.
    Attach {
        /// The space's error.
        error: Error,
    },
    /// Opening failed, and the group that had been attached for it could not be detached again without loss. The group
    /// stays attached until the space is dropped, unless `undoing` names a loss.
    NotUndone {
        /// The first failure.
        cause: Box<OpenError>,
        /// The space's error from the detach.
        undoing: Error,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Facts(error) => write!(f, "{error}")?,
            Self::NoBackend(choice) => write!(f, "{choice}")?,
            Self::NoChoice { backend, why } => write!(f, "{backend} {why}")?,
            Self::ForeignBackend { name } => write!(f, "{name} is a backend of another crate")?,
            Self::NoNode { device, backend } => write!(f, "{device} has no node that {backend} could open")?,
            Self::Node { path, errno } => write!(f, "open {}: {errno}", path.display())?,
            Self::Version(found) => {
                write!(f, "{CONTAINER_NODE} speaks version {found} of VFIO, and this library {API_VERSION}")?;
            }
            Self::NotViable { group } => {
                write!(f, "{group} is not viable: a driver of the host uses one of its devices")?
            }
            Self::NotInherited { group } => write!(f, "{group} is in no container")?,
            Self::Registry { subject, errno } => write!(f, "{subject} could not be registered: {errno}")?,
            Self::Refused { subject, failure } => write!(f, "{subject}: {failure}")?,
            Self::Attach { error } => write!(f, "{error}")?,
            Self::NotUndone { cause, undoing } => {
                return write!(f, "{cause}; then its group could not be detached: {undoing}");
            }
        }
        match self.advice() {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

/// [`source`](std::error::Error::source) is `None`: the text contains the cause.
impl std::error::Error for OpenError {}

impl OpenError {
    pub(crate) fn refused(subject: impl Into<String>, failure: Failure) -> Self {
        Self::Refused { subject: subject.into(), failure }
    }

    /// The errno of the kernel or of the registry, if one of them refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Node { errno, .. } | Self::Registry { errno, .. } => Some(*errno),
            Self::Refused { failure, .. } => failure.errno(),
            Self::Attach { error } => error.errno(),
            Self::NotUndone { cause, .. } => cause.errno(),
            _ => None,
        }
    }

    /// The errno of the kernel or of the registry; for a refusal before they were asked, the errno with which the
    /// kernel refuses the same (linux: drivers/vfio/group.c, vfio_group_ioctl_set_container; drivers/vfio/container.c,
    /// vfio_ioctl_set_iommu).
    pub fn as_errno(&self) -> Errno {
        match self {
            Self::Node { errno, .. } | Self::Registry { errno, .. } => *errno,
            Self::Refused { failure, .. } => failure.errno().unwrap_or(Errno::EIO),
            Self::Attach { error } => error.as_errno(),
            Self::NotUndone { cause, .. } => cause.as_errno(),
            Self::NotViable { .. } => Errno::EPERM,
            Self::NotInherited { .. } | Self::Version(_) | Self::NoChoice { .. } => Errno::EINVAL,
            Self::NoBackend(_) | Self::NoNode { .. } | Self::ForeignBackend { .. } => Errno::ENODEV,
            Self::Facts(_) => Errno::EIO,
        }
    }

    /// The likely remedy, if there is a usual one. The text of the error ends with it.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Facts(_) => Some("mount /proc and /sys, readable for this process"),
            Self::NoChoice { .. } => Some("leave the option out, or ask for iommufd"),
            Self::ForeignBackend { .. } => {
                Some("open it with that crate, and pass the space and its devices to OpenSpace::around and attach")
            }
            Self::NoNode { .. } => Some("bind it to its VFIO driver, and read the facts of the host after that"),
            Self::Node { errno, .. } => node_advice(*errno),
            Self::Version(_) => Some("use a kernel and a version of this library that agree"),
            Self::NotViable { .. } => Some("bind all devices of the group to vfio-pci"),
            Self::NotInherited { .. } => Some("pass on the descriptor of the process that has it in a container"),
            Self::Refused { failure, .. } => call_advice(failure),
            Self::Attach { error } => attach_advice(error),
            Self::NotUndone { cause, .. } => cause.advice(),
            // The choice has a remedy for each obstacle; only the registry's owner knows why it refused.
            Self::NoBackend(_) | Self::Registry { .. } => None,
        }
    }
}

impl From<FactsError> for OpenError {
    fn from(error: FactsError) -> Self {
        Self::Facts(error)
    }
}

impl From<Error> for OpenError {
    fn from(error: Error) -> Self {
        Self::Attach { error }
    }
}

/// Has the [kind](std::io::ErrorKind) of [`OpenError::as_errno`] and the text of the [`OpenError`].
impl From<OpenError> for std::io::Error {
    fn from(error: OpenError) -> Self {
        error.as_errno().with_text_of(error)
    }
}
