//! Several address spaces over one guest that pin its memory once.
//!
//! A guest whose devices have address spaces of their own (one behind the translation of its vIOMMU, another beside it)
//! would have its memory pinned and charged once for each space. Address spaces of one `/dev/iommu` can share pins:
//! open the [`Pool`] first, then the spaces in it, and let one listener serve them, or several. The reports of commits
//! say how much was shared ([`dmaspace_listener::SpaceReport::shared`]).

use std::path::Path;
use std::sync::Arc;

use dmaspace_core::Space;
use dmaspace_core::door::HandleKind;
use dmaspace_iommufd::{Ioas, Pool};

use crate::choose::{BackendKind, OpenRequest};
use crate::facts::IOMMUFD_NODE;
use crate::open::{Host, OpenError, OpenSpace, Opened, open_node};
use crate::options::OpenOptions;

impl Host {
    /// Opens `/dev/iommu` for spaces that share their pins.
    ///
    /// # Errors
    /// [`OpenError::Node`], [`OpenError::Refused`].
    pub fn open_pool(&self) -> Result<Arc<Pool>, OpenError> {
        let handle = open_node(self.door(), Path::new(IOMMUFD_NODE), HandleKind::Iommufd)?;
        let pool = Pool::new(self.options().iommufd(handle)?);
        pool.map_err(|failure| OpenError::refused(IOMMUFD_NODE, failure))
    }

    /// Opens a space for the devices of `request` in a pool that this host's door opened, and attaches them. The
    /// backend is iommufd, even if the request names another.
    ///
    /// # Errors
    /// As [`Host::open`].
    pub fn open_in(&self, pool: &Arc<Pool>, request: &OpenRequest) -> Result<Opened, OpenError> {
        let choice = self.choose(&request.clone().with_backend(BackendKind::Iommufd));
        if choice.chosen.is_none() {
            return Err(OpenError::NoBackend(choice));
        }
        self.fill(self.open_space_in(pool)?, &request.devices, choice)
    }

    /// Opens a space without a device in a pool.
    ///
    /// # Errors
    /// [`OpenError::Refused`].
    pub fn open_space_in(&self, pool: &Arc<Pool>) -> Result<OpenSpace, OpenError> {
        Ok(self.share_registry(OpenSpace::in_pool(pool.clone(), self.options())?))
    }
}

impl OpenSpace {
    /// Makes a space in a pool.
    ///
    /// # Errors
    /// [`OpenError::Refused`].
    pub fn sharing(pool: Arc<Pool>) -> Result<Self, OpenError> {
        Self::in_pool(pool, &OpenOptions::default())
    }

    fn in_pool(pool: Arc<Pool>, options: &OpenOptions) -> Result<Self, OpenError> {
        let door = pool.iommufd().door().clone();
        let handle = pool.iommufd().handle();
        let ioas = options.prepare(Ioas::sharing(pool))?;
        Ok(Self::at(door, BackendKind::Iommufd, Arc::new(Space::new(ioas)?), handle))
    }
}
