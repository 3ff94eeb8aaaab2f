//! Windows of a host: the snapshot of them, and the power to create and remove them.

use std::num::NonZeroU64;
use std::sync::Arc;

use crate::contract::Mapping;
use crate::error::Error;
use crate::words::address::{Iova, IovaRange};
use crate::words::page::{PageSize, PageSizes};
use crate::words::window::{Window, Windows};

/// The windows at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// A number that grows with every change of the windows.
    pub generation: u64,
    /// The windows.
    pub windows: Arc<Windows>,
}

/// The change of the windows when a device was attached or detached.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WindowChange {
    /// The windows before.
    pub before: Snapshot,
    /// The windows after: of the same generation if nothing changed.
    pub after: Snapshot,
}

/// The windows that a host can create.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WindowOffer {
    /// The page sizes that a window can have.
    pub page_sizes: PageSizes,
    /// The number of windows that there can be at once.
    pub slots: usize,
    /// The places of the platform's windows, as far as they are known, ascending. The platform may choose another
    /// place: the grant is checked.
    pub places: Vec<WindowPlace>,
}

impl WindowOffer {
    /// An offer of `slots` windows at once.
    pub fn new(page_sizes: PageSizes, slots: usize, places: Vec<WindowPlace>) -> Self {
        Self { page_sizes, slots, places }
    }
}

/// A place at which a platform creates windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WindowPlace {
    /// The first address of a window there.
    pub first: Iova,
    /// The greatest length of a window there, if there is a limit. A place with a limit is that of the default window
    /// of a platform's firmware, which is created before any other or not at all (linux:
    /// arch/powerpc/platforms/pseries/iommu.c, spapr_tce_create_table).
    pub longest: Option<NonZeroU64>,
    /// The page sizes that a window there can have.
    pub page_sizes: PageSizes,
}

impl WindowPlace {
    /// A place without a limit on the length.
    pub fn new(first: Iova, page_sizes: PageSizes) -> Self {
        Self { first, longest: None, page_sizes }
    }

    /// The same place, for windows of at most `longest` bytes.
    #[must_use]
    pub fn with_longest(self, longest: NonZeroU64) -> Self {
        Self { longest: Some(longest), ..self }
    }

    /// Returns `true` if a window of `len` bytes fits here.
    pub fn holds(&self, len: u64) -> bool {
        self.longest.is_none_or(|longest| len <= longest.get())
    }
}

/// A request for a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WindowRequest {
    /// The range that it must have; its size must be a power of two.
    pub range: IovaRange,
    /// The page size that it must have.
    pub page: PageSize,
}

impl WindowRequest {
    /// A request for a window that is exactly `range`, made of pages of this size.
    pub const fn new(range: IovaRange, page: PageSize) -> Self {
        Self { range, page }
    }
}

/// Creating and removing windows: a power of sPAPR v2.
pub trait WindowControl: Send + Sync {
    /// The windows that can be created. `None` before the first device is attached.
    fn offer(&self) -> Option<WindowOffer>;

    /// Creates a window and returns the window that the kernel granted. A window granted at another place is removed
    /// again and is an error.
    ///
    /// # Errors
    /// [`Kind::BadWindowSize`](crate::error::Kind::BadWindowSize),
    /// [`Kind::UnsupportedPage`](crate::error::Kind::UnsupportedPage), [`Kind::Overlap`](crate::error::Kind::Overlap)
    /// with another window, [`Kind::Fenced`](crate::error::Kind::Fenced); then
    /// [`Kind::NoWindowSlot`](crate::error::Kind::NoWindowSlot), [`Kind::PinLimit`](crate::error::Kind::PinLimit),
    /// [`Kind::GrantedElsewhere`](crate::error::Kind::GrantedElsewhere).
    fn create_window(&self, request: WindowRequest) -> Result<Window, Error>;

    /// Removes the window that is exactly `range`, with its mappings, and returns the mappings, so that a journal can
    /// map them again.
    ///
    /// # Errors
    /// [`Kind::NoSuchWindow`](crate::error::Kind::NoSuchWindow) if no window begins and ends there. The kernel would
    /// accept any address inside a window (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_remove_window), and
    /// remove the wrong one. [`Kind::KernelOwned`](crate::error::Kind::KernelOwned) if the kernel writes its entries:
    /// reclaim it first, since the kernel would go on to write into a table that is gone.
    fn remove_window(&self, range: IovaRange) -> Result<Vec<Mapping>, Error>;

    /// The bytes of locked memory that the table of such a window takes.
    fn table_bytes(&self, request: WindowRequest) -> u64;
}
