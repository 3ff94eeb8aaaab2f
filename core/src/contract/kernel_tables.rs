//! Windows that somebody else fills: KVM, which answers a guest's hypercalls inside the kernel.
//!
//! What is written there is not told to anybody: it is read where the kernel shows it. So a space that leaves a window to a [`KernelWriter`]
//! keeps no index of it, refuses to map and unmap there, and asks the filler what lives there.

use std::fmt;
use std::sync::Arc;

use crate::contract::{Attachable, Mapping};
use crate::door::Failure;
use crate::error::Error;
use crate::words::address::IovaRange;

/// Who fills a window in place of whoever uses the space.
///
/// Called from any thread, while locks of the space are held: it calls nothing of the space.
///
/// # Safety
/// A space frees the memory behind a window when it is told that the writer has left or ended. So an implementation must return success
/// from [`KernelWriter::leaves`], and return from [`KernelWriter::ends`], only when the kernel puts no further entries into the window for the
/// device, and [`KernelWriter::mappings`] must show each entry that is there.
#[expect(unsafe_code, reason = "UNSAFETY: a space frees memory that a kernel writer does not show")]
pub unsafe trait KernelWriter: Send + Sync + fmt::Debug {
    /// What it has put in `range` so far: ascending, what continues each other joined. Asks no kernel.
    fn mappings(&self, range: IovaRange) -> Vec<Mapping>;

    /// Fills the window for this device too, from now on.
    ///
    /// # Errors
    /// What the kernel said; it does not then.
    fn joins(&self, device: &dyn Attachable) -> Result<(), Failure>;

    /// Fills no window for this device any more.
    ///
    /// # Errors
    /// What the kernel said; it still does then.
    fn leaves(&self, device: &dyn Attachable) -> Result<(), Failure>;

    /// Fills nothing any more, for any device. What it put stays where it is, and stays to be seen.
    fn ends(&self);

    /// The same, if it fills for no device any more.
    fn ends_if_idle(&self);
}

/// Leaving windows to somebody else: a power of hosts whose tables a kernel can fill by itself, sPAPR v2.
pub trait KernelTables: Send + Sync {
    /// Leaves the window that is exactly `window` to `filler`: for every device attached, and for those that come later. What lives there
    /// must be what the filler has put, which for a new window is nothing.
    ///
    /// After an error the filler may still be known to the kernel, where it cannot leave without another that fills for the same devices:
    /// whoever brought it ends it, or takes those windows back, too.
    ///
    /// # Errors
    /// [`Kind::NoSuchWindow`](crate::error::Kind::NoSuchWindow), [`Kind::KernelOwned`](crate::error::Kind::KernelOwned),
    /// [`Kind::Fenced`](crate::error::Kind::Fenced), [`Kind::KernelTableDiffers`](crate::error::Kind::KernelTableDiffers), or what the kernel says.
    fn hand_to_kernel(&self, window: IovaRange, filler: Arc<dyn KernelWriter>) -> Result<(), Error>;

    /// Takes a window back: what the filler put there is what lives there now. The filler leaves the devices; whether it ends is up to
    /// whoever brought it, who sees to it that nothing is put meanwhile.
    ///
    /// # Errors
    /// [`Kind::NoSuchWindow`](crate::error::Kind::NoSuchWindow) when it is not one that was left to somebody, or what the kernel says.
    fn reclaim(&self, window: IovaRange) -> Result<(), Error>;

    /// The windows that were left to somebody, ascending.
    fn kernel_owned(&self) -> Vec<IovaRange>;
}
