//! How spaces are opened, where a backend leaves a choice: today only iommufd does.

use std::sync::Arc;

use dmaspace_core::IovaRange;
use dmaspace_core::door::{Door, Failure, Handle};
use dmaspace_core::words::locked::AccountingMode;
use dmaspace_iommufd::{Ioas, Iommufd};

use crate::choose::BackendKind;
use crate::facts::IOMMUFD_NODE;
use crate::open::OpenError;

/// What whoever opens asks for. The default asks for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    payer: Option<AccountingMode>,
    huge_pages: bool,
    promised: Vec<IovaRange>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { payer: None, huge_pages: true, promised: Vec::new() }
    }
}

impl OpenOptions {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Has `payer` charged for what is pinned. iommufd charges the user unless it is asked to charge the process, which takes
    /// CAP_SYS_RESOURCE; the others always charge the process.
    #[must_use]
    pub fn charging(mut self, payer: AccountingMode) -> Self {
        self.payer = Some(payer);
        self
    }

    /// Forbids huge pages in the IOMMU's tables.
    #[must_use]
    pub fn without_huge_pages(mut self) -> Self {
        self.huge_pages = false;
        self
    }

    /// Has the kernel promise that `range` can always be mapped: a device that does not reach all of it is refused when it is attached, now
    /// and later. Ranges must not share a byte, and must be longer than one.
    #[must_use]
    pub fn promising(mut self, range: IovaRange) -> Self {
        self.promised.push(range);
        self
    }

    /// Whether a backend that leaves no choice does what is asked for anyway.
    ///
    /// # Errors
    /// [`OpenError::NoChoice`].
    pub(crate) fn check(&self, backend: BackendKind) -> Result<(), OpenError> {
        let no_choice = |why| Err(OpenError::NoChoice { backend, why });
        match backend {
            BackendKind::Iommufd => Ok(()),
            _ if self.payer == Some(AccountingMode::User) => no_choice("charges the process, always"),
            _ if !self.promised.is_empty() => no_choice("makes no promises about its windows"),
            BackendKind::Type1 if !self.huge_pages => {
                no_choice("has huge pages for all or for nobody; load vfio_iommu_type1 with disable_hugepages=1")
            }
            BackendKind::Type1OnIommufd if !self.huge_pages => no_choice("has huge pages for all"),
            BackendKind::Spapr if !self.huge_pages => no_choice("has the pages each window is created with"),
            BackendKind::Type1 | BackendKind::Type1OnIommufd | BackendKind::Spapr | BackendKind::SpaprV1 => Ok(()),
        }
    }

    /// Takes over an open `/dev/iommu` in which nothing is yet.
    pub(crate) fn iommufd(&self, door: Arc<dyn Door>, handle: Handle) -> Result<Arc<Iommufd>, OpenError> {
        let iommufd = Iommufd::new(door, handle);
        let charged = self.payer.map_or(Ok(()), |payer| charge(&iommufd, payer));
        charged.map(|()| iommufd).map_err(|failure| OpenError::refused(IOMMUFD_NODE, failure))
    }

    /// Prepares an address space in which nothing is yet.
    pub(crate) fn prepare(&self, ioas: Result<Ioas, Failure>) -> Result<Ioas, OpenError> {
        let prepared = ioas.and_then(|ioas| {
            if !self.huge_pages {
                ioas.allow_huge_pages(false)?;
            }
            if !self.promised.is_empty() {
                ioas.promise(&self.promised)?;
            }
            Ok(ioas)
        });
        prepared.map_err(|failure| OpenError::refused(IOMMUFD_NODE, failure))
    }
}

/// Who is charged already need not be asked for, which takes no capability.
fn charge(iommufd: &Iommufd, payer: AccountingMode) -> Result<(), Failure> {
    if payer == AccountingMode::User && iommufd.payer()? == AccountingMode::User {
        Ok(())
    } else {
        iommufd.charge(payer)
    }
}
