//! Translated windows: entries that the guest puts and clears, from any of its processors.
//!
//! [`TranslatedWindow`] is the handle for any thread. The state behind it ([`shared`]) is owned by the listener;
//! [`putting`] adds the fallback to smaller pages, [`kernel_tables`] hands windows to the kernel.

mod entry;
mod kernel_owned;
mod kernel_tables;
mod putting;
mod shared;
mod stranded;

use std::sync::{Arc, Weak};

use dmaspace_core::contract::{Mapping, Swap};
use dmaspace_core::words::access::Access;
use dmaspace_core::words::address::{Iova, IovaRange, SystemAddress};
use dmaspace_core::words::page::PageSize;

pub(crate) use entry::Targets;
pub use entry::{EntryError, EntryRun};
pub use kernel_owned::KernelEntries;
pub(crate) use shared::{Paused, Shared, Spaces};
pub(crate) use stranded::joined;

/// A translated section in force. Cheap to clone; holds the window weakly: once the section is removed, every verb
/// answers
/// [`EntryError::NoSuchWindow`].
#[derive(Clone, Debug)]
pub struct TranslatedWindow {
    shared: Weak<Shared>,
}

impl TranslatedWindow {
    pub(crate) fn of(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::downgrade(shared) }
    }

    fn shared(&self) -> Result<Arc<Shared>, EntryError> {
        self.shared.upgrade().ok_or(EntryError::NoSuchWindow)
    }

    /// The bus addresses of the window.
    ///
    /// # Errors
    /// [`EntryError::NoSuchWindow`].
    pub fn range(&self) -> Result<IovaRange, EntryError> {
        Ok(self.shared()?.range())
    }

    /// The page of the window's entries.
    ///
    /// # Errors
    /// [`EntryError::NoSuchWindow`].
    pub fn page(&self) -> Result<PageSize, EntryError> {
        Ok(self.shared()?.page())
    }

    /// Puts one entry: devices reach `target` at `at`.
    ///
    /// # Errors
    /// Any [`EntryError`]; nothing changed then. A live entry is an overlap: use [`TranslatedWindow::replace`].
    pub fn put(&self, at: Iova, target: SystemAddress, access: Access) -> Result<(), EntryError> {
        let shared = self.shared()?;
        let range = IovaRange::with_len(at, shared.page().bytes())?;
        shared.put_run(EntryRun { range, target, access })
    }

    /// Puts entries for `len` bytes that continue each other on the bus and in system memory: one kernel call where the
    /// kernel can later clear parts of it. A host's window that has no entry yet, and whose pages prove larger than the
    /// memory's, is created again with smaller pages.
    ///
    /// # Errors
    /// Any [`EntryError`]; nothing changed then, except for ranges named as fenced.
    pub fn put_run(&self, at: Iova, target: SystemAddress, len: u64, access: Access) -> Result<(), EntryError> {
        let shared = self.shared()?;
        let range = IovaRange::with_len(at, len)?;
        shared.put_run(EntryRun { range, target, access })
    }

    /// Puts the entries of several runs, or none of them, in one pass through each space. Runs that continue each other
    /// on the bus and in system memory are one; a host that can clear parts of a map gets one call for each.
    ///
    /// # Errors
    /// Any [`EntryError`], of the first run that has one; nothing changed then, except for ranges named as fenced.
    pub fn put_many(&self, runs: &[EntryRun]) -> Result<(), EntryError> {
        self.shared()?.put_runs(runs)
    }

    /// Swaps live entries for others, and returns whether devices could miss them meanwhile.
    ///
    /// # Errors
    /// Any [`EntryError`]; nothing changed then, except for ranges named as fenced.
    pub fn replace(&self, at: Iova, target: SystemAddress, len: u64, access: Access) -> Result<Swap, EntryError> {
        self.shared()?.replace(at, target, len, access)
    }

    /// Clears all live entries in a range, with one kernel call, and returns the number of bytes that were mapped.
    ///
    /// # Errors
    /// Any [`EntryError`]; nothing changed then, except for ranges named as fenced.
    pub fn clear(&self, range: IovaRange) -> Result<u64, EntryError> {
        self.shared()?.clear(range)
    }

    /// The entry at `at`, with the entries that continue it. Never waits for a kernel call.
    ///
    /// # Errors
    /// [`EntryError::NoSuchWindow`].
    pub fn lookup(&self, at: Iova) -> Result<Option<Mapping>, EntryError> {
        let shared = self.shared()?;
        let spaces = shared.spaces();
        if spaces.is_empty() {
            return Err(EntryError::NoSuchWindow);
        }
        if !shared.range().contains(at) {
            return Ok(None);
        }
        Ok(spaces.iter().find_map(|space| space.lookup(at)))
    }

    /// Hands the window, empty as it is, to the kernel: from now on only the guest's own hypercalls put entries there,
    /// and every verb here but [`TranslatedWindow::lookup`] is refused. Spaces that are attached later get the window's
    /// entries, and their groups are made known to the kernel.
    ///
    /// The kernel owns the window until the section is removed, its space loses its last device, or a commit or detach
    /// that concerns the window fails. The guest's processors must put no entries while a space is attached: an entry
    /// that the kernel puts meanwhile refuses the space.
    ///
    /// # Errors
    /// [`EntryError::NoSuchWindow`]; [`EntryError::Space`] for a space that cannot hand windows to the kernel, for
    /// entries that are there already, or with the kernel's failure. Nothing changed then.
    pub fn hand_to_kernel(&self, entries: Arc<dyn KernelEntries>) -> Result<(), EntryError> {
        self.shared()?.pause().hand_to_kernel(entries)
    }
}
