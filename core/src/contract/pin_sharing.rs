//! Sharing pins: spaces of one host pin each page once.

use crate::error::Error;
use crate::words::memory::HostMemory;

/// Sharing the pins of memory with other spaces of one iommufd.
///
/// Memory need not be shared before it is mapped. Pages of shared memory are pinned and charged once, however many of
/// the spaces map them; other pages once per mapping. Sharing by itself pins nothing.
///
/// A page stays pinned while one of the spaces maps it, and a later map finds the same page. So a page must be unmapped
/// in all of the spaces before it is discarded (by a balloon, for example). A listener does that for the spaces that it
/// serves, and for no other.
pub trait PinSharing: Send + Sync {
    /// Shares the pins of `memory`. Live mappings of it keep their own pins.
    ///
    /// # Errors
    /// Before the kernel is asked: [`Kind::Unbacked`](crate::error::Kind::Unbacked),
    /// [`Kind::DeviceMemory`](crate::error::Kind::DeviceMemory), [`Kind::Misaligned`](crate::error::Kind::Misaligned)
    /// to the host's page, [`Kind::AlreadyShared`](crate::error::Kind::AlreadyShared) by this space, in whole or in
    /// part. Then the kernel's failure.
    fn share_pins(&self, memory: &HostMemory) -> Result<(), Error>;

    /// Stops sharing exactly the memory of one [`PinSharing::share_pins`].
    ///
    /// # Errors
    /// [`Kind::InUse`](crate::error::Kind::InUse) when a live mapping of this space depends on it: the mapping would
    /// stay, and no space could share its pins any more. [`Kind::NotShared`](crate::error::Kind::NotShared) when it is
    /// not exactly the memory of one call.
    fn stop_sharing(&self, memory: &HostMemory) -> Result<(), Error>;

    /// The memory whose pins this space shares, ascending by host address.
    fn shared(&self) -> Vec<HostMemory>;

    /// The number of spaces that share all of `memory`: 0 when a map would pin it anew, 1 when this space would be the
    /// first, more when other spaces may have pinned it already.
    fn sharers(&self, memory: &HostMemory) -> usize;
}
