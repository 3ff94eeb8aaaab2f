//! The errno of an error, for callers whose own interface has errnos: a VMM's `io::Result`, a C interface.

use std::io;

use super::{Error, Kind};
use crate::door::Errno;
use crate::words::address::BadRange;

impl Error {
    /// The errno of the failed call; for a refusal before the kernel was asked, the errno with which kernels refuse the
    /// same ([`Kind::as_errno`]).
    pub fn as_errno(&self) -> Errno {
        self.errno().unwrap_or_else(|| self.kind().as_errno())
    }
}

impl Kind {
    /// The errno with which kernels refuse a request for this reason. Where type1, sPAPR and iommufd differ, it is that
    /// of the kernel that refuses at all, the newest first (linux: drivers/vfio/vfio_iommu_type1.c,
    /// drivers/vfio/vfio_iommu_spapr_tce.c, drivers/iommu/iommufd/io_pagetable.c). `EIO` stands for reasons that no
    /// kernel has.
    pub fn as_errno(&self) -> Errno {
        match self {
            Self::BadRange(BadRange::Overflow) => Errno::EOVERFLOW,
            Self::Overlap(_) | Self::AlreadyShared => Errno::EEXIST,
            Self::NotLive(_) | Self::NotRegistered | Self::NotShared | Self::NoMemory(_) | Self::NoSuchMapping => {
                Errno::ENOENT
            }
            Self::HostReadOnly(_) | Self::Unbacked | Self::DeviceMemory | Self::BadAddress => Errno::EFAULT,
            Self::InUse(_) | Self::KernelOwned(_) | Self::Tracking | Self::HandedOver => Errno::EBUSY,
            Self::NoWindowSlot | Self::NoMappingSlot => Errno::ENOSPC,
            Self::PinLimit(_) => Errno::ENOMEM,
            Self::WouldStrand(..) => Errno::EADDRINUSE,
            Self::Unsupported(_) => Errno::EOPNOTSUPP,
            Self::Fenced(_) | Self::KernelTableDiffers | Self::BadReply | Self::Refused => Errno::EIO,
            Self::BadRange(BadRange::Empty)
            | Self::NoAccess
            | Self::Rounded
            | Self::OutsideWindows(_)
            | Self::Misaligned(_)
            | Self::BadUnit(_)
            | Self::CutsUnit(_)
            | Self::NoSuchWindow
            | Self::BadWindowSize
            | Self::UnsupportedPage(_)
            | Self::AlreadyRegistered
            | Self::GrantedElsewhere(_)
            | Self::NotAttached
            | Self::NotTracking
            | Self::NotHandedOver
            | Self::BadHandover(_) => Errno::EINVAL,
        }
    }
}

/// Has the [kind](io::ErrorKind) of [`Error::as_errno`] and the text of the [`Error`].
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        error.as_errno().with_text_of(error)
    }
}

impl Errno {
    /// An I/O error of the errno's kind whose text and source are those of `error`.
    pub fn with_text_of(self, error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
        io::Error::new(io::Error::from_raw_os_error(self.0).kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::Failure;
    use crate::error::Operation;
    use crate::words::address::{Iova, IovaRange};

    fn page() -> IovaRange {
        IovaRange::with_len(Iova::new(0x1000), 0x1000).expect("a page")
    }

    #[test]
    fn the_errno_of_a_failed_call_counts_more_than_that_of_the_kind() {
        let failure = Failure::from_errno("VFIO_IOMMU_MAP_DMA", Errno::EPERM);
        let failed = Error::from_kernel(Operation::Map, page(), failure);
        assert_eq!(failed.as_errno(), Errno::EPERM);
        let refused = Error::new(Operation::Map, page(), Kind::Overlap(page()));
        assert_eq!((refused.errno(), refused.as_errno()), (None, Errno::EEXIST));
    }

    #[test]
    fn an_io_error_keeps_the_text_and_has_the_kind_of_the_errno() {
        let error = Error::new(Operation::Unmap, page(), Kind::NotLive(page()));
        let text = error.to_string();
        let error = io::Error::from(error);
        assert_eq!((error.kind(), error.to_string()), (io::ErrorKind::NotFound, text));
        let refused = io::Error::from(Error::new(Operation::Map, page(), Kind::Unsupported("windows")));
        assert_eq!(refused.kind(), io::Error::from_raw_os_error(Errno::EOPNOTSUPP.0).kind());
    }
}
