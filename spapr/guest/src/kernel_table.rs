//! The two traits that KVM implements for tables that it fills itself ([`crate::in_kernel`]).

use std::fmt;
use std::sync::Arc;

use dmaspace_core::door::{Failure, Handle};
use dmaspace_core::{IovaRange, PageSize};

use crate::entry::Tce;
use crate::liobn::Liobn;

/// Creates in-kernel TCE tables: KVM, for one virtual machine.
///
/// # Safety
/// Each table that it creates must keep the promises of [`InKernelTable`].
#[expect(unsafe_code, reason = "UNSAFETY: a space frees memory that no table shows")]
pub unsafe trait InKernelTables: Send + Sync + fmt::Debug {
    /// Creates an empty table for `window` in entries of `page`, by the guest's name for it. The table is linked to no
    /// group.
    ///
    /// # Errors
    /// KVM's failure; there is no table then.
    fn create(&self, liobn: Liobn, window: IovaRange, page: PageSize) -> Result<Arc<dyn InKernelTable>, Failure>;
}

/// A table that the kernel fills, for as long as the value lives. Its drop unlinks it from all groups.
///
/// # Safety
/// A space frees memory that no entry of the table points to. So [`InKernelTable::entry`] must show each entry as the
/// kernel has it, and the success of [`InKernelTable::unlink`] must mean that the kernel enters nothing for the group
/// any more.
#[expect(unsafe_code, reason = "UNSAFETY: a space frees memory that no table shows")]
pub unsafe trait InKernelTable: Send + Sync + fmt::Debug {
    /// The entry for the `index`-th page of the window, as the guest wrote it; [`Tce::NONE`] behind the last one.
    ///
    /// Called under the lock of a guest's table: it must make no call to a kernel and must call nothing of this crate.
    fn entry(&self, index: u64) -> Tce;

    /// Has the kernel fill the group's table of the same window, too, from now on. Entries that exist already are not
    /// entered there.
    ///
    /// # Errors
    /// KVM's failure: `EINVAL` when the group's container has no such window. The group is not linked then.
    fn link(&self, group: Handle) -> Result<(), Failure>;

    /// Has KVM forget the group before it leaves its container: none of the virtual machine's tables is linked to it
    /// from then on. A group that is not linked stays so.
    ///
    /// # Errors
    /// KVM's failure; the group's links are unchanged then.
    fn unlink(&self, group: Handle) -> Result<(), Failure>;
}
