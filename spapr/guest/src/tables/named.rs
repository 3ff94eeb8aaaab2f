//! One table of a guest with its name and the host behind it.

use std::mem;
use std::sync::Arc;

use dmaspace_core::Iova;
use dmaspace_core::sync::{Mutex, Rank, RwLock, RwLockReadGuard, RwLockWriteGuard};
use dmaspace_listener::TranslatedWindow;

use crate::change::change_of;
use crate::entry::Tce;
use crate::host::Host;
use crate::liobn::Liobn;
use crate::refusal::Refusal;
use crate::stretch::Stretch;
use crate::table::{Geometry, TceTable};

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
    /// The table's, which never changes: to be read without a lock.
    pub(crate) geometry: Geometry,
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
    Window(Host),
    /// The table was removed: the guest has it no longer.
    Removed,
}

impl Connection {
    /// Disconnects the window, if there is one.
    pub(crate) fn disconnect(&mut self) -> Option<TranslatedWindow> {
        match self {
            Self::Window(_) => match mem::take(self) {
                Self::Window(host) => Some(host.window),
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
            geometry: table.geometry(),
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

    /// Writes one entry: to the host first and then, if it agreed, to the table.
    pub(crate) fn write_one(&self, at: Iova, tce: Tce) -> Result<(), Refusal> {
        let index = self.geometry.index_of(at)?;
        let connection = self.connection.lock();
        let host = self.host_of(&connection)?;
        let (old, missing) = {
            let table = self.table();
            check_is_ours(&table)?;
            table.look(index)
        };
        if tce == old {
            return Ok(());
        }
        if missing > 0 && tce != Tce::NONE {
            self.table_mut().reserve(missing)?;
        }
        let change = change_of(index, old, tce, self.geometry.page).and_then(|change| self.geometry.change(&change));
        if let (Some(host), Some(change)) = (host, change) {
            if let Err(error) = host.make(&change) {
                // Nothing of one change remains if the host refuses it.
                self.table_mut().settle();
                return Err(error.into());
            }
        }
        self.table_mut().set(index, tce);
        Ok(())
    }

    /// Writes the entries of stretches: to the host first and then, if it agreed, to the table.
    pub(crate) fn write(&self, at: Iova, stretches: &[Stretch]) -> Result<(), Refusal> {
        let first = self.geometry.index_of(at)?;
        let mut connection = self.connection.lock();
        self.host_of(&connection)?;
        let mut unmade = Vec::new();
        let changes = match &mut *connection {
            Connection::Window(host) => &mut host.changes,
            Connection::None | Connection::Removed => &mut unmade,
        };
        let missing = {
            let table = self.table();
            check_is_ours(&table)?;
            table.note(first, stretches.iter().copied(), changes)
        };
        if missing > 0 {
            self.table_mut().reserve(missing)?;
        }
        if let Connection::Window(host) = &mut *connection {
            self.make_noted(host)?;
        }
        self.table_mut().fill(first, stretches.iter().copied());
        Ok(())
    }

    /// The host behind the table, if it has one.
    fn host_of<'a>(&self, connection: &'a Connection) -> Result<Option<&'a Host>, Refusal> {
        match connection {
            Connection::None => Ok(None),
            Connection::Window(host) => Ok(Some(host)),
            Connection::Removed => Err(Refusal::NoSuchTable(self.liobn.get().into())),
        }
    }

    /// Makes the changes on the host that were noted. The table adopts changes that a failure left there.
    fn make_noted(&self, host: &mut Host) -> Result<(), Refusal> {
        let made = host.make_all(&self.geometry, &|range| self.table().live(range));
        made.map_err(|incomplete| {
            let mut table = self.table_mut();
            table.settle();
            for change in &incomplete.remaining {
                table.adopt(change);
            }
            incomplete.error.into()
        })
    }
}

/// Refuses to write a table that the kernel fills: it alone writes that. A table is handed to the kernel only under the
/// lock of its connection.
fn check_is_ours(table: &TceTable) -> Result<(), Refusal> {
    if table.kernel().is_some() { Err(Refusal::LeftToKernel) } else { Ok(()) }
}
