//! Windows whose entries the kernel writes: in-kernel TCE tables of KVM, which answers a guest's hypercalls itself.
//!
//! Entries are not reported as they are written; they are read where the kernel shows them. So a space that hands a
//! window to a [`KernelWriter`] keeps no index of it, refuses to map and unmap there, and asks the writer for its live
//! mappings.

use std::fmt;
use std::sync::Arc;

use crate::contract::{Attachable, Mapping};
use crate::door::Failure;
use crate::error::Error;
use crate::words::address::IovaRange;

/// The part of a VMM that has the kernel write a window's entries.
///
/// Called from any thread, while locks of the space are held: an implementation must not call the space.
///
/// # Safety
/// A space frees the memory behind a window when the writer has left or ended. So an implementation must return success
/// from [`KernelWriter::leaves`], and return from [`KernelWriter::ends`], only when the kernel puts no further entries
/// into the window for the device, and [`KernelWriter::mappings`] must return each entry that is there.
#[expect(unsafe_code, reason = "UNSAFETY: a space frees memory that a kernel writer does not show")]
pub unsafe trait KernelWriter: Send + Sync + fmt::Debug {
    /// The live entries in `range`: ascending, entries that continue each other joined. Makes no call.
    fn mappings(&self, range: IovaRange) -> Vec<Mapping>;

    /// Has the kernel write the window's entries for this device too, from now on.
    ///
    /// # Errors
    /// The failure of the kernel's call; it does not write for the device then.
    fn joins(&self, device: &dyn Attachable) -> Result<(), Failure>;

    /// Ends the kernel's writing for this device.
    ///
    /// # Errors
    /// The failure of the kernel's call; it still writes for the device then.
    fn leaves(&self, device: &dyn Attachable) -> Result<(), Failure>;

    /// Ends the kernel's writing, for all devices. The entries stay, and stay visible.
    fn ends(&self);

    /// Ends the kernel's writing if there is no device left that it writes for.
    fn ends_if_idle(&self);
}

/// Handing windows to the kernel: a power of hosts whose tables a kernel can write by itself, sPAPR v2.
pub trait KernelTables: Send + Sync {
    /// Hands the window that is exactly `window` to the kernel, for every attached device and for devices that are
    /// attached later. Its live mappings must be the entries that `writer` returns; a new window has none.
    ///
    /// After an error the kernel may still know the writer, if it cannot leave without another writer of the same
    /// devices: the caller then ends it, or reclaims the other windows, too.
    ///
    /// # Errors
    /// [`Kind::NoSuchWindow`](crate::error::Kind::NoSuchWindow),
    /// [`Kind::KernelOwned`](crate::error::Kind::KernelOwned), [`Kind::Fenced`](crate::error::Kind::Fenced),
    /// [`Kind::KernelTableDiffers`](crate::error::Kind::KernelTableDiffers), or the kernel's failure.
    fn hand_to_kernel(&self, window: IovaRange, writer: Arc<dyn KernelWriter>) -> Result<(), Error>;

    /// Reclaims a window: the kernel's entries are its live mappings from now on. The writer leaves the devices; the
    /// caller decides whether it ends, and must see to it that no entry is put meanwhile.
    ///
    /// # Errors
    /// [`Kind::NoSuchWindow`](crate::error::Kind::NoSuchWindow) when the window was not handed to the kernel, or the
    /// kernel's failure.
    fn reclaim(&self, window: IovaRange) -> Result<(), Error>;

    /// The windows that were handed to the kernel, ascending.
    fn kernel_owned(&self) -> Vec<IovaRange>;
}
