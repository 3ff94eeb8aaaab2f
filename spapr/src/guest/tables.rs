//! All TCE tables of a guest, and the hosts behind them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use dmaspace_core::listener::{EntryError, TranslatedWindow};
use dmaspace_core::{Access, Iova, IovaRange, PageSize, SystemAddress};

use super::change::{Change, Run};
use super::host::carry;
use super::refusal::Refusal;
use super::table::{Entries, Fault, TceTable};

/// A logical I/O bus number: what a guest calls a table by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Liobn(u32);

impl Liobn {
    /// Wraps a raw number.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The raw number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Liobn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Liobn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Liobn({:#x})", self.0)
    }
}

/// A table has this LIOBN already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("LIOBN {0} is in use")]
pub struct LiobnInUse(pub Liobn);

/// Why a table was not connected. The host's window is as it was, except for ranges that the host's error names as fenced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// There is no table.
    #[error("there is no TCE table with LIOBN {0}")]
    NoSuchTable(Liobn),
    /// It has a host.
    #[error("the TCE table with LIOBN {0} is connected already")]
    Connected(Liobn),
    /// The window lies elsewhere, or has other pages: the table's and its own.
    #[error("the table is for {0} in pages of {1}, the window is {2} in pages of {3}")]
    OtherWindow(IovaRange, PageSize, IovaRange, PageSize),
    /// The host refused the window, or an entry.
    #[error(transparent)]
    Host(#[from] EntryError),
}

/// The TCE tables of a guest.
///
/// Hypercalls take `&self` and come from any processor. Those on one table follow each other, those on different ones do not wait; a
/// translation for an emulated device never waits for a host.
#[derive(Debug, Default)]
pub struct TceTables {
    slots: BTreeMap<Liobn, Slot>,
}

/// A table and its host, in the order they are locked.
#[derive(Debug)]
pub(super) struct Slot {
    /// Held while a hypercall writes.
    host: Mutex<Option<TranslatedWindow>>,
    /// Written in one go, after the host agreed.
    table: RwLock<TceTable>,
}

impl TceTables {
    /// No tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a table, without a host.
    ///
    /// # Errors
    /// [`LiobnInUse`].
    pub fn add(&mut self, liobn: Liobn, table: TceTable) -> Result<(), LiobnInUse> {
        if self.slots.contains_key(&liobn) {
            return Err(LiobnInUse(liobn));
        }
        self.slots.insert(liobn, Slot { host: Mutex::default(), table: RwLock::new(table) });
        Ok(())
    }

    /// Takes a table away. Its host's entries go when the listener's section is removed.
    pub fn remove(&mut self, liobn: Liobn) -> Option<TceTable> {
        let slot = self.slots.remove(&liobn)?;
        Some(slot.table.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps an empty window of the listener's in step with a table from now on, beginning with what is in it: one call for each run.
    ///
    /// # Errors
    /// [`ConnectError`]; what was put in the window was cleared again.
    pub fn connect(&self, liobn: Liobn, window: TranslatedWindow) -> Result<(), ConnectError> {
        let slot = self.slots.get(&liobn).ok_or(ConnectError::NoSuchTable(liobn))?;
        let mut host = slot.host();
        if host.is_some() {
            return Err(ConnectError::Connected(liobn));
        }
        let table = slot.table();
        let (range, page) = (window.range()?, window.page()?);
        if (range, page) != (table.range(), table.page()) {
            return Err(ConnectError::OtherWindow(table.range(), table.page(), range, page));
        }
        let puts: Vec<_> = table.live(range).into_iter().map(Change::Put).collect();
        carry(&window, &table, &puts).map_err(|stuck| stuck.error)?;
        *host = Some(window);
        Ok(())
    }

    /// Leaves the window alone from now on, which keeps its entries: for when the listener gives up the section, or its last space.
    pub fn disconnect(&self, liobn: Liobn) -> Option<TranslatedWindow> {
        self.slots.get(&liobn)?.host().take()
    }

    /// Where an emulated device that wants `access` to `at` gets to, and everything it may do there. Good up to the end of the page.
    /// `None` when there is no such table.
    pub fn translate(&self, liobn: Liobn, at: Iova, access: Access) -> Option<Result<(SystemAddress, Access), Fault>> {
        Some(self.slots.get(&liobn)?.table().translate(at, access))
    }

    /// The live entries of a table, ascending, joined to runs.
    pub fn live(&self, liobn: Liobn) -> Option<Vec<Run>> {
        let table = self.slots.get(&liobn)?.table();
        Some(table.live(table.range()))
    }

    /// The table that a guest's argument means.
    pub(super) fn slot(&self, liobn: u64) -> Result<&Slot, Refusal> {
        let slot = u32::try_from(liobn).ok().and_then(|liobn| self.slots.get(&Liobn::new(liobn)));
        slot.ok_or(Refusal::NoSuchTable(liobn))
    }
}

impl Slot {
    // Both are changed in single steps: right even after a panic elsewhere.
    fn host(&self) -> MutexGuard<'_, Option<TranslatedWindow>> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn table(&self) -> RwLockReadGuard<'_, TceTable> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, TceTable> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes entries: to the host first, then, if it agreed, to the table.
    pub(super) fn write(&self, at: Iova, entries: Entries<'_>) -> Result<(), Refusal> {
        let host = self.host();
        if let Some(window) = host.as_ref() {
            let table = self.table();
            let changes = table.changes(at, entries)?;
            let carried = carry(window, &table, &changes);
            drop(table);
            if let Err(stuck) = carried {
                let mut table = self.table_mut();
                stuck.stays.iter().for_each(|change| table.take_over(change));
                return Err(stuck.error.into());
            }
        }
        Ok(self.table_mut().write(at, entries)?)
    }
}
