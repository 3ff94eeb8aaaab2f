//! Handing translated windows to the kernel, and reclaiming them.

use std::sync::Arc;

use dmaspace_core::contract::PciAddressSpace;
use dmaspace_core::contract::kernel_tables::{KernelTables, KernelWriter};
use dmaspace_core::error::{Error, Kind, Operation};
use dmaspace_core::words::address::IovaRange;

use super::entry::EntryError;
use super::kernel_owned::{KernelEntries, KernelOwned};
use super::shared::{Paused, Shared};

impl Shared {
    /// Returns whether the kernel owns the window in one of the spaces now.
    pub(crate) fn is_kernel_owned(&self) -> bool {
        self.kernel().is_some()
            && self.spaces().iter().any(|space| owning_tables(space.as_ref(), self.range()).is_some())
    }
}

impl Paused<'_> {
    /// Hands the window to the kernel, in all spaces or in none.
    pub(super) fn hand_to_kernel(&self, entries: Arc<dyn KernelEntries>) -> Result<(), EntryError> {
        let spaces = self.spaces().clone();
        if spaces.is_empty() {
            return Err(EntryError::NoSuchWindow);
        }
        let kernel = KernelOwned::new(entries, self.page(), self.settled.clone());
        for space in &spaces {
            if let Err(error) = hand_over(space.as_ref(), self.range(), &kernel) {
                self.end(&kernel, &spaces);
                return Err(error.into());
            }
        }
        self.set_kernel(Some(kernel));
        Ok(())
    }

    /// Hands the window of a space that has all entries to the kernel, if the kernel owns it in the others.
    pub(crate) fn hand_over_joining(&self, space: &dyn PciAddressSpace) -> Result<(), Error> {
        match self.kernel() {
            Some(kernel) if self.is_kernel_owned() => hand_over(space, self.range(), &kernel),
            _ => Ok(()),
        }
    }

    /// Hands the window of a space that lost its last device, and has all entries again, to the kernel as in the
    /// others. If that fails, the window is reclaimed from the kernel everywhere.
    pub(crate) fn hand_over_returning(&self, space: &dyn PciAddressSpace) {
        if let Err(error) = self.hand_over_joining(space) {
            log::warn!("{error}");
            self.reclaim_everywhere();
        }
    }

    /// Reclaims the window in these spaces; everywhere, if no other space serves it.
    pub(crate) fn reclaim(&self, spaces: &[Arc<dyn PciAddressSpace>]) -> Result<(), Error> {
        let Some(kernel) = self.kernel() else {
            self.set_kernel(None);
            return Ok(());
        };
        let is_last = self.spaces().iter().all(|space| spaces.iter().any(|other| Arc::ptr_eq(space, other)));
        if is_last {
            self.end(&kernel, spaces);
            return Ok(());
        }
        for space in spaces {
            if let Some(tables) = owning_tables(space.as_ref(), self.range()) {
                tables.reclaim(self.range())?;
            }
        }
        Ok(())
    }

    /// Reclaims the window everywhere. Errors are logged: the spaces fence ranges in doubt themselves.
    pub(crate) fn reclaim_everywhere(&self) {
        let spaces = self.spaces().clone();
        if let Some(kernel) = self.kernel() {
            self.end(&kernel, &spaces);
        }
        self.set_kernel(None);
    }

    /// Reclaims the window in a space that did not join after all.
    pub(crate) fn reclaim_in(&self, space: &dyn PciAddressSpace) {
        if let Some(tables) = owning_tables(space, self.range()) {
            if let Err(error) = tables.reclaim(self.range()) {
                log::error!("{error}");
            }
        }
    }

    /// Ends the kernel's ownership, and reclaims the window in the spaces that handed it to the kernel.
    fn end(&self, kernel: &KernelOwned, spaces: &[Arc<dyn PciAddressSpace>]) {
        kernel.ends();
        for space in spaces {
            self.reclaim_in(space.as_ref());
        }
        self.set_kernel(None);
    }
}

fn hand_over(space: &dyn PciAddressSpace, window: IovaRange, kernel: &Arc<KernelOwned>) -> Result<(), Error> {
    let none = Kind::Unsupported("this host's windows cannot be handed to the kernel");
    let tables = space.powers().kernel_tables.ok_or_else(|| Error::new(Operation::HandToKernel, window, none))?;
    tables.hand_to_kernel(window, kernel.clone())
}

/// The power to reclaim `window`, if the kernel owns it in this space.
fn owning_tables(space: &dyn PciAddressSpace, window: IovaRange) -> Option<&dyn KernelTables> {
    space.powers().kernel_tables.filter(|tables| tables.kernel_owned().contains(&window))
}
