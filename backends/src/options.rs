//! Options for opening a space. Only iommufd offers these choices; the other backends refuse an option that they cannot
//! follow.

use std::sync::Arc;

use dmaspace_core::IovaRange;
use dmaspace_core::door::{Failure, OwnedHandle};
use dmaspace_core::words::locked::AccountingMode;
use dmaspace_iommufd::{Ioas, Iommufd};

use crate::choose::BackendKind;
use crate::facts::IOMMUFD_NODE;
use crate::open::OpenError;

/// Options for opening a space. The default leaves every choice to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    accounting: Option<AccountingMode>,
    huge_pages: bool,
    required_iovas: Vec<IovaRange>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { accounting: None, huge_pages: true, required_iovas: Vec::new() }
    }
}

impl OpenOptions {
    /// Options that leave every choice to the kernel.
    pub fn new() -> Self {
        Self::default()
    }

    /// Charges pinned memory to the user or to the process.
    ///
    /// iommufd charges the user by default. Charging the process needs CAP_SYS_RESOURCE. The other backends always
    /// charge the process.
    #[must_use]
    pub fn with_accounting(mut self, accounting: AccountingMode) -> Self {
        self.accounting = Some(accounting);
        self
    }

    /// Allows (the default) or forbids huge pages in the IOMMU's page tables.
    #[must_use]
    pub fn with_huge_pages(mut self, allowed: bool) -> Self {
        self.huge_pages = allowed;
        self
    }

    /// Requires that all of `range` can be mapped for as long as the space exists. The kernel then refuses to attach a
    /// device that does not reach all of it.
    ///
    /// Required ranges must not overlap, and each must be longer than one byte.
    #[must_use]
    pub fn with_required_iovas(mut self, range: IovaRange) -> Self {
        self.required_iovas.push(range);
        self
    }

    /// Checks that `backend` can follow these options.
    ///
    /// # Errors
    /// [`OpenError::NoChoice`] for an option that the backend cannot follow. An option that asks for the backend's only
    /// behaviour is accepted.
    pub(crate) fn check(&self, backend: BackendKind) -> Result<(), OpenError> {
        match self.conflict_with(backend) {
            Some(why) => Err(OpenError::NoChoice { backend, why }),
            None => Ok(()),
        }
    }

    /// The behaviour of `backend` that contradicts these options.
    fn conflict_with(&self, backend: BackendKind) -> Option<&'static str> {
        match backend {
            BackendKind::Iommufd => None,
            _ if self.accounting == Some(AccountingMode::User) => Some("always charges the process"),
            _ if !self.required_iovas.is_empty() => Some("cannot guarantee ranges"),
            _ if self.huge_pages => None,
            BackendKind::Type1 => {
                Some("has one setting of huge pages for all containers; load vfio_iommu_type1 with disable_hugepages=1")
            }
            BackendKind::Type1OnIommufd => Some("always uses huge pages"),
            BackendKind::Spapr => Some("uses the page size each window is created with"),
            BackendKind::SpaprV1 | BackendKind::Other(_) => None,
        }
    }

    /// Takes ownership of a `/dev/iommu` that was just opened, and sets its accounting mode.
    pub(crate) fn iommufd(&self, handle: OwnedHandle) -> Result<Arc<Iommufd>, OpenError> {
        let iommufd = Iommufd::new(handle);
        if let Some(accounting) = self.accounting {
            set_accounting(&iommufd, accounting).map_err(|failure| OpenError::refused(IOMMUFD_NODE, failure))?;
        }
        Ok(iommufd)
    }

    /// Applies the options of an address space to one that is new and empty.
    pub(crate) fn prepare(&self, ioas: Result<Ioas, Failure>) -> Result<Ioas, OpenError> {
        self.apply(ioas).map_err(|failure| OpenError::refused(IOMMUFD_NODE, failure))
    }

    fn apply(&self, allocated: Result<Ioas, Failure>) -> Result<Ioas, Failure> {
        let ioas = allocated?;
        if !self.huge_pages {
            ioas.allow_huge_pages(false)?;
        }
        if !self.required_iovas.is_empty() {
            ioas.promise(&self.required_iovas)?;
        }
        Ok(ioas)
    }
}

/// Sets the accounting mode, unless it is the current one: setting it takes a capability, reading it takes none.
fn set_accounting(iommufd: &Iommufd, accounting: AccountingMode) -> Result<(), Failure> {
    if accounting == AccountingMode::User && iommufd.payer()? == AccountingMode::User {
        return Ok(());
    }
    iommufd.charge(accounting)
}
