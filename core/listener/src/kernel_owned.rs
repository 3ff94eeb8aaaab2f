//! Translated windows that the kernel fills: what it put there, as the spaces understand it.

use std::fmt;
use std::sync::{Arc, PoisonError};

use crate::translated::{EntryError, EntryRun, Shared, Targets, TranslatedWindow, resolve};
use dmaspace_core::contract::kernel_tables::{KernelTables, KernelWriter};
use dmaspace_core::contract::{Attachable, Mapping, PciAddressSpace, Unit};
use dmaspace_core::door::Failure;
use dmaspace_core::error::{Error, Kind, Operation};
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::page::PageSize;

/// Where the entries of a window are to be seen that the kernel fills.
///
/// Called from any thread, while locks of the listener and its spaces are held: it calls nothing of theirs.
///
/// # Safety
/// A listener shows a space what the kernel has entered ([`KernelWriter::mappings`]), and the space frees memory that is not shown. So an
/// implementation must keep the promises of [`KernelWriter`], and [`KernelEntries::runs`] must show each live entry.
#[expect(unsafe_code, reason = "UNSAFETY: a space frees memory that is not shown")]
pub unsafe trait KernelEntries: Send + Sync + fmt::Debug {
    /// The live entries in `range`, ascending, joined to runs. Asks no kernel.
    fn runs(&self, range: IovaRange) -> Vec<EntryRun>;

    /// Has the kernel fill the window for a group, too ([`KernelWriter::joins`]).
    ///
    /// # Errors
    /// What the kernel said; it does not then.
    fn joins(&self, group: &dyn Attachable) -> Result<(), Failure>;

    /// Has the kernel fill no window for a group any more ([`KernelWriter::leaves`]).
    ///
    /// # Errors
    /// What the kernel said; it still does then.
    fn leaves(&self, group: &dyn Attachable) -> Result<(), Failure>;

    /// Has the kernel fill the window no more. What it put stays to be seen, and is the guest's.
    fn ends(&self);

    /// The same, if it fills it for no group any more.
    fn ends_if_idle(&self);
}

/// Entries of the kernel's, and the memory they point to.
#[derive(Debug)]
pub(super) struct KernelOwned {
    entries: Arc<dyn KernelEntries>,
    page: PageSize,
    /// As they were after the last commit: memory that is about to go is still behind entries that are there.
    settled: Targets,
}

// SAFETY: passed on from `KernelEntries`, which promises as much. An entry that points to no target is to memory that the kernel has not registered:
// it refuses such an entry.
#[expect(unsafe_code, reason = "UNSAFETY: passed on from a trait that promises as much")]
unsafe impl KernelWriter for KernelOwned {
    fn mappings(&self, range: IovaRange) -> Vec<Mapping> {
        let targets = self.settled.read().unwrap_or_else(PoisonError::into_inner);
        let unit = Unit::Pages(self.page);
        let mut mappings = Vec::new();
        for run in self.entries.runs(range) {
            // What the kernel puts is registered, hence a target: nothing is missed.
            let memory = resolve(&targets, run.target, run.range.len().map_or(0, |len| len.get()));
            let mut next = Some(run.range.first());
            for memory in memory.unwrap_or_default() {
                let piece = next.and_then(|first| IovaRange::with_len(first, memory.len().get()).ok());
                let Some(range) = piece else { break };
                next = range.end();
                mappings.push(Mapping { range, memory, access: run.access, unit });
            }
        }
        mappings
    }

    fn joins(&self, device: &dyn Attachable) -> Result<(), Failure> {
        self.entries.joins(device)
    }

    fn leaves(&self, device: &dyn Attachable) -> Result<(), Failure> {
        self.entries.leaves(device)
    }

    fn ends(&self) {
        self.entries.ends();
    }

    fn ends_if_idle(&self) {
        self.entries.ends_if_idle();
    }
}

fn tables_of(space: &dyn PciAddressSpace, window: IovaRange) -> Result<&dyn KernelTables, Error> {
    let none = Kind::Unsupported("this host's windows cannot be handed to the kernel");
    space.powers().kernel_tables.ok_or_else(|| Error::new(Operation::HandToKernel, window, none))
}

impl TranslatedWindow {
    /// Leaves the window, empty as it is, to the kernel: from now on only the guest's own hypercalls put entries there, and every verb
    /// here but [`TranslatedWindow::lookup`] is refused. Spaces that join later get what is in it, and their groups are told to the
    /// kernel.
    ///
    /// It lasts until the window goes, its space loses its last device, or a commit or detach that concerns it fails. No processor of the
    /// guest puts entries while a space joins: what the kernel puts meanwhile refuses the space.
    ///
    /// # Errors
    /// [`EntryError::NoSuchWindow`]; [`EntryError::Space`]: a space that cannot have its windows filled, entries that are there already,
    /// what the kernel says. Nothing changed then.
    pub fn hand_to_kernel(&self, entries: Arc<dyn KernelEntries>) -> Result<(), EntryError> {
        let shared = self.shared()?;
        let held = shared.hold();
        let spaces = shared.spaces().clone();
        if spaces.is_empty() {
            return Err(EntryError::NoSuchWindow);
        }
        let settled = shared.settled();
        let filled = Arc::new(KernelOwned { entries, page: shared.page(), settled });
        let filled_all = spaces.iter().try_for_each(|space| {
            tables_of(space.as_ref(), shared.range())?.hand_to_kernel(shared.range(), filled.clone())
        });
        if let Err(error) = filled_all {
            end(&shared, filled.as_ref(), &spaces);
            return Err(error.into());
        }
        held.note_kernel_owned(Some(filled));
        Ok(())
    }
}

impl Shared {
    /// Whether the kernel fills it now: it ends by itself when a space loses its last device.
    pub(super) fn is_kernel_owned(&self) -> bool {
        let is_kernel_owned = |space: &Arc<dyn PciAddressSpace>| {
            space.powers().kernel_tables.is_some_and(|tables| tables.kernel_owned().contains(&self.range()))
        };
        self.kernel_owned().is_some() && self.spaces().iter().any(is_kernel_owned)
    }

    /// A space that has got all entries is filled as the others are.
    pub(super) fn hand_over_joining(&self, space: &dyn PciAddressSpace) -> Result<(), Error> {
        match self.kernel_owned().filter(|_| self.is_kernel_owned()) {
            Some(filled) => tables_of(space, self.range())?.hand_to_kernel(self.range(), filled),
            None => Ok(()),
        }
    }

    /// A space that lost its last device beside others, and has got what they have again, is filled as they are; if it cannot be, none is.
    pub(super) fn hand_over_returning(&self, space: &dyn PciAddressSpace) {
        if let Err(error) = self.hand_over_joining(space) {
            log::warn!("{error}");
            self.reclaim_everywhere();
        }
    }

    /// The window is ours again, in these spaces, and in all if nobody else is served. No verb begins meanwhile.
    pub(super) fn reclaim(&self, spaces: &[Arc<dyn PciAddressSpace>]) -> Result<(), Error> {
        let Some(filled) = self.kernel_owned() else { return Ok(()) };
        let is_last = self.spaces().iter().all(|space| spaces.iter().any(|other| Arc::ptr_eq(space, other)));
        if is_last {
            end(self, filled.as_ref(), spaces);
            self.note_kernel_owned(None);
            return Ok(());
        }
        spaces.iter().try_for_each(|space| match space.powers().kernel_tables {
            Some(tables) if tables.kernel_owned().contains(&self.range()) => tables.reclaim(self.range()),
            _ => Ok(()),
        })
    }

    /// A space that did not join after all.
    pub(super) fn give_up(&self, space: &Arc<dyn PciAddressSpace>) {
        if let Some(tables) =
            space.powers().kernel_tables.filter(|tables| tables.kernel_owned().contains(&self.range()))
        {
            if let Err(error) = tables.reclaim(self.range()) {
                log::error!("{error}");
            }
        }
    }

    /// The window is ours again, everywhere.
    pub(super) fn reclaim_everywhere(&self) {
        let spaces = self.spaces().clone();
        // Whose end is nobody's failure.
        let _ = self.reclaim(&spaces);
    }
}

/// Ends the filling of a window, and takes it back wherever it is.
fn end(shared: &Shared, filled: &KernelOwned, spaces: &[Arc<dyn PciAddressSpace>]) {
    filled.ends();
    for tables in spaces.iter().filter_map(|space| space.powers().kernel_tables) {
        if tables.kernel_owned().contains(&shared.range()) {
            if let Err(error) = tables.reclaim(shared.range()) {
                log::error!("{error}");
            }
        }
    }
}
