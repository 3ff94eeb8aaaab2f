//! One table of a guest with its name and the host behind it.

use std::mem;
use std::sync::Arc;

use dmaspace_core::Iova;
use dmaspace_core::sync::{Mutex, Rank, RwLock, RwLockReadGuard, RwLockWriteGuard};
use dmaspace_listener::TranslatedWindow;

use crate::change::EntryChange;
use crate::entry::Tce;
use crate::host::{make, make_all};
use crate::liobn::Liobn;
use crate::refusal::Refusal;
use crate::table::{Entries, TceTable};

/// A table's entries. The listener and its spaces look into those of a table that the kernel fills.
pub(crate) type SharedTable = Arc<RwLock<TceTable>>;

/// A table with its name and its connection to a host.
///
/// Its locks are [`Rank::GuestConnection`] and [`Rank::GuestTable`] in the order of all locks
/// ([`dmaspace_core::sync`]).
#[derive(Debug)]
pub(crate) struct NamedTable {
    pub(crate) liobn: Liobn,
    /// The place of the connection among those of its rank: connections are locked in ascending order of it.
    pub(crate) serial: u64,
    /// Locked while a hypercall writes, and while the table's host is exchanged.
    pub(crate) connection: Mutex<Connection>,
    /// Written in one go, after the host agreed.
    pub(crate) entries: SharedTable,
}

/// The host behind a table.
#[derive(Debug, Default)]
pub(crate) enum Connection {
    /// There is no host: devices are emulated.
    #[default]
    None,
    /// A window of the listener's.
    Window(TranslatedWindow),
    /// The table was removed: the guest has it no longer.
    Removed,
}

impl Connection {
    /// Disconnects the window, if there is one.
    pub(crate) fn disconnect(&mut self) -> Option<TranslatedWindow> {
        match self {
            Self::Window(_) => match mem::take(self) {
                Self::Window(window) => Some(window),
                Self::None | Self::Removed => None,
            },
            Self::None | Self::Removed => None,
        }
    }
}

impl NamedTable {
    pub(crate) fn new(liobn: Liobn, serial: u64, table: TceTable) -> Self {
        Self {
            liobn,
            serial,
            connection: Mutex::keyed(Rank::GuestConnection, serial, Connection::None),
            entries: Arc::new(RwLock::new(Rank::GuestTable, table)),
        }
    }

    pub(crate) fn table(&self) -> RwLockReadGuard<'_, TceTable> {
        self.entries.read()
    }

    pub(crate) fn table_mut(&self) -> RwLockWriteGuard<'_, TceTable> {
        self.entries.write()
    }

    /// Writes entries: to the host first and then, if it agreed, to the table.
    pub(crate) fn write(&self, at: Iova, entries: Entries<'_>) -> Result<(), Refusal> {
        let connection = self.connection.lock();
        match &*connection {
            Connection::None => {}
            Connection::Window(window) => self.write_to_host(window, at, entries)?,
            Connection::Removed => return Err(Refusal::NoSuchTable(self.liobn.get().into())),
        }
        Ok(self.table_mut().write(at, entries)?)
    }

    /// Makes the changes on the host. The table adopts changes that a failure left there.
    fn write_to_host(&self, window: &TranslatedWindow, at: Iova, entries: Entries<'_>) -> Result<(), Refusal> {
        if let Some(tce) = entries.only() {
            // Nothing of one change remains if the host refuses it.
            let change = self.unlocked_change(at, tce)?;
            return Ok(change.map_or(Ok(()), |change| make(window, &change))?);
        }
        let changes = self.changes(at, entries)?;
        let made = make_all(window, &changes, &|range| self.table().live(range));
        made.map_err(|incomplete| {
            let mut table = self.table_mut();
            for change in &incomplete.remaining {
                table.adopt(change);
            }
            incomplete.error.into()
        })
    }

    /// The change that writing one entry would make, as [`NamedTable::changes`] says.
    fn unlocked_change(&self, at: Iova, tce: Tce) -> Result<Option<EntryChange>, Refusal> {
        let table = self.table();
        if table.kernel().is_some() {
            return Err(Refusal::LeftToKernel);
        }
        Ok(table.change(at, tce)?)
    }

    /// The changes that writing entries would make for devices. The kernel alone writes a table that it fills. A table
    /// is handed to the kernel only under the lock of its connection, which the caller holds.
    fn changes(&self, at: Iova, entries: Entries<'_>) -> Result<Vec<EntryChange>, Refusal> {
        let table = self.table();
        if table.kernel().is_some() {
            return Err(Refusal::LeftToKernel);
        }
        Ok(table.changes(at, entries)?)
    }
}
