//! All TCE tables of a guest, and the hosts behind them.

mod named;

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dmaspace_core::sync::{MutexGuard, Rank, RwLock};
use dmaspace_core::words::address::SystemRange;
use dmaspace_core::{Access, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::{EntryError, EntryRun, TranslatedWindow};

use crate::host::Host;
use crate::liobn::Liobn;
use crate::table::{Allowance, Fault, TceTable};
use named::Connection;
pub(crate) use named::{NamedTable, SharedTable};

/// The most memory that the tables of a guest take, unless the VMM says otherwise: 1 GiB, in which a guest can map
/// 7 TiB in pages of 64 KiB, or 450 GiB in pages of 4 KiB.
pub const MOST_BYTES: u64 = 1 << 30;

/// A table already has the LIOBN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another TCE table has LIOBN {0}")]
#[non_exhaustive]
pub struct LiobnInUse(pub Liobn);

/// The reason that a table was not connected. The host's window is as it was, except for ranges that the host's error
/// names as fenced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// There is no table with the LIOBN.
    #[error("there is no TCE table with LIOBN {0}")]
    NoSuchTable(Liobn),
    /// The table has a host.
    #[error("the TCE table with LIOBN {0} is connected already")]
    Connected(Liobn),
    /// The window has other bounds or other pages than the table: the table's, then the window's.
    #[error("the table is for {0} in pages of {1}, the window is {2} in pages of {3}")]
    OtherWindow(IovaRange, PageSize, IovaRange, PageSize),
    /// The host refused the window, or an entry.
    #[error(transparent)]
    Host(#[from] EntryError),
}

/// The TCE tables of a guest, of all its bridges.
///
/// Hypercalls come from any processor, also while tables are added and removed. Hypercalls on one table follow each
/// other; those on different tables wait for each other no longer than a look-up takes. A translation for an emulated
/// device never waits for a host. A processor and a VMM that takes a host away wait for each other no longer than a
/// call takes.
///
/// Entries cost memory of the VMM's, also where there is no host whose limits they meet, and entries without a right
/// as those with one. All tables together take no more than the VMM allows ([`TceTables::with_most_bytes`]); a
/// hypercall that would take more is refused ([`Refusal::NoRoom`](crate::Refusal::NoRoom)).
///
/// Its lock is [`Rank::GuestTables`] in the order of all locks ([`dmaspace_core::sync`]).
#[derive(Debug)]
pub struct TceTables {
    tables: RwLock<BTreeMap<Liobn, Arc<NamedTable>>>,
    next_serial: AtomicU64,
    allowance: Arc<Allowance>,
}

impl Default for TceTables {
    fn default() -> Self {
        Self::with_most_bytes(MOST_BYTES)
    }
}

/// A table that no hypercall writes to, while hosts or windows change.
#[derive(Debug)]
pub(crate) struct QuietTable {
    pub(crate) liobn: Liobn,
    pub(crate) entries: SharedTable,
}

/// The windows that tables are connected to.
pub(crate) type Connections = Vec<(Liobn, TranslatedWindow)>;

impl TceTables {
    /// No tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// No tables, which may take so many bytes for their entries.
    ///
    /// Entries that a kernel put are never lost: those of a table that is reclaimed from it count, but are not refused.
    pub fn with_most_bytes(most: u64) -> Self {
        Self {
            tables: RwLock::new(Rank::GuestTables, BTreeMap::new()),
            next_serial: AtomicU64::default(),
            allowance: Arc::new(Allowance::of(most)),
        }
    }

    /// The bytes that the tables take for their entries.
    pub fn allocated(&self) -> u64 {
        self.allowance.taken()
    }

    /// Adds a table, without a host.
    ///
    /// # Errors
    /// [`LiobnInUse`].
    pub fn add(&self, liobn: Liobn, table: TceTable) -> Result<(), LiobnInUse> {
        self.insert_all(&[&self.named(liobn, table)])
    }

    /// Removes a table. A hypercall that waits for it gets [`Refusal::NoSuchTable`](crate::Refusal::NoSuchTable). The
    /// host's entries stay until the listener's section is removed.
    pub fn remove(&self, liobn: Liobn) -> Option<TceTable> {
        let removed = self.tables.write().remove(&liobn)?;
        *removed.connection.lock() = Connection::Removed;
        let (mut table, kernel) = {
            let mut table = removed.table_mut();
            let kernel = table.reclaim();
            let empty = table.emptied();
            (mem::replace(&mut *table, empty), kernel)
        };
        table.count_on(None);
        // Its drop makes calls, so it comes after the lock.
        drop(kernel);
        Some(table)
    }

    /// Keeps an empty window of the listener in step with a table from now on. The table's entries are put in the
    /// window first, one call for each run.
    ///
    /// # Errors
    /// [`ConnectError`]; entries that were put in the window were cleared again.
    pub fn connect(&self, liobn: Liobn, window: TranslatedWindow) -> Result<(), ConnectError> {
        let named = self.find(liobn).ok_or(ConnectError::NoSuchTable(liobn))?;
        let mut connection = named.connection.lock();
        match *connection {
            Connection::None => {}
            Connection::Window(_) => return Err(ConnectError::Connected(liobn)),
            Connection::Removed => return Err(ConnectError::NoSuchTable(liobn)),
        }
        let (range, page) = (window.range()?, window.page()?);
        let runs = runs_for(&named, range, page)?;
        window.put_many(&runs)?;
        *connection = Connection::Window(Host::new(window));
        Ok(())
    }

    /// Disconnects a table from its window, which keeps its entries: for when the section or its last space is removed
    /// from the listener.
    pub fn disconnect(&self, liobn: Liobn) -> Option<TranslatedWindow> {
        self.find(liobn)?.connection.lock().disconnect()
    }

    /// The system address that an emulated device reaches at `at` with `access`, and all rights it has there. Valid up
    /// to the end of the page. `None` when there is no such table.
    pub fn translate(&self, liobn: Liobn, at: Iova, access: Access) -> Option<Result<(SystemAddress, Access), Fault>> {
        Some(self.find(liobn)?.table().translate(at, access))
    }

    /// The live entries of a table, ascending, joined to runs. `None` when there is no such table.
    pub fn live(&self, liobn: Liobn) -> Option<Vec<EntryRun>> {
        let named = self.find(liobn)?;
        let table = named.table();
        Some(table.live(table.range()))
    }

    /// Returns true if KVM answers the hypercalls on a table itself.
    pub fn is_left_to_kernel(&self, liobn: Liobn) -> bool {
        self.find(liobn).is_some_and(|named| named.table().kernel().is_some())
    }

    /// The table with this name.
    pub(crate) fn find(&self, liobn: Liobn) -> Option<Arc<NamedTable>> {
        self.tables.read().get(&liobn).cloned()
    }

    /// Removes the tables `old` and adds the empty tables `new`, if `change` succeeds, or does nothing. No hypercall
    /// writes to any of them meanwhile. `change` gets the new tables, and returns the windows that they are connected
    /// to.
    pub(crate) fn exchange<T, E: From<LiobnInUse>>(
        &self,
        old: &[Liobn],
        new: Vec<(Liobn, TceTable)>,
        change: impl FnOnce(&[QuietTable]) -> Result<(T, Connections), E>,
    ) -> Result<T, E> {
        let going = self.find_all(old);
        let mut left = lock_all(&going);
        let coming: Vec<_> = new.into_iter().map(|(liobn, table)| self.named(liobn, table)).collect();
        let mut entered = lock_all(&coming);
        // A processor that finds one of them waits until it is known whether the table exists.
        let fresh: Vec<_> = coming.iter().filter(|named| !old.contains(&named.liobn)).collect();
        self.insert_all(&fresh)?;
        let changed = change(&coming.iter().map(|named| quiet(named)).collect::<Vec<_>>());
        let mut tables = self.tables.write();
        match changed {
            Ok((answer, windows)) => {
                tables.retain(|liobn, _| !old.contains(liobn));
                tables.extend(coming.iter().map(|named| (named.liobn, named.clone())));
                connect_all(&coming, &mut entered, windows);
                remove_all(&mut left);
                Ok(answer)
            }
            Err(error) => {
                for named in fresh {
                    tables.remove(&named.liobn);
                }
                remove_all(&mut entered);
                Err(error)
            }
        }
    }

    /// Connects the tables that have no host to the windows that `change` returns. `change` gets the live entries of
    /// those tables, and the tables. No hypercall writes to any of `liobns` meanwhile.
    pub(crate) fn joining<T, E>(
        &self,
        liobns: &[Liobn],
        change: impl FnOnce(&[EntryRun], &[QuietTable]) -> Result<(T, Connections), E>,
    ) -> Result<T, E> {
        let tables = self.find_all(liobns);
        let mut connections = lock_all(&tables);
        let mut apart = Vec::new();
        let mut live = Vec::new();
        for (named, connection) in tables.iter().zip(&connections) {
            if matches!(**connection, Connection::None) {
                apart.push(quiet(named));
                live.extend(named.table().live(IovaRange::all()));
            }
        }
        let (answer, windows) = change(&live, &apart)?;
        connect_all(&tables, &mut connections, windows);
        Ok(answer)
    }

    /// Disconnects tables, if `change` succeeds and returns true. No hypercall writes to any of them meanwhile.
    pub(crate) fn parting<E>(&self, liobns: &[Liobn], change: impl FnOnce() -> Result<bool, E>) -> Result<(), E> {
        let tables = self.find_all(liobns);
        let mut connections = lock_all(&tables);
        if change()? {
            for connection in &mut connections {
                connection.disconnect();
            }
        }
        Ok(())
    }

    /// Clears the live entries of tables that point to system memory in `gone`, if `change` succeeds, and returns them.
    /// No hypercall writes to any of the tables meanwhile, and a host has lost the entries by `change`. A table that is
    /// left to the kernel keeps its entries: `change` is refused while they point there.
    pub(crate) fn clearing<T, E>(
        &self,
        liobns: &[Liobn],
        gone: &[SystemRange],
        change: impl FnOnce() -> Result<T, E>,
    ) -> Result<(T, Vec<EntryRun>), E> {
        let tables = self.find_all(liobns);
        let _connections = lock_all(&tables);
        let answer = change()?;
        let mut cleared = Vec::new();
        for named in &tables {
            let mut table = named.table_mut();
            cleared.extend(table.clear_onto(gone));
        }
        cleared.sort_by_key(|run| run.range);
        Ok((answer, cleared))
    }

    fn named(&self, liobn: Liobn, mut table: TceTable) -> Arc<NamedTable> {
        table.count_on(Some(self.allowance.clone()));
        let serial = self.next_serial.fetch_add(1, Ordering::Relaxed);
        Arc::new(NamedTable::new(liobn, serial, table))
    }

    /// The tables with these names, in the order in which their connections are locked.
    fn find_all(&self, liobns: &[Liobn]) -> Vec<Arc<NamedTable>> {
        let mut found: Vec<_> = liobns.iter().filter_map(|liobn| self.find(*liobn)).collect();
        found.sort_by_key(|named| named.serial);
        found
    }

    /// Inserts tables, all or none.
    fn insert_all(&self, fresh: &[&Arc<NamedTable>]) -> Result<(), LiobnInUse> {
        let mut tables = self.tables.write();
        if let Some(named) = fresh.iter().find(|named| tables.contains_key(&named.liobn)) {
            return Err(LiobnInUse(named.liobn));
        }
        tables.extend(fresh.iter().map(|named| (named.liobn, Arc::clone(named))));
        Ok(())
    }
}

/// The entries to put in an empty window, which must be the table's.
fn runs_for(named: &NamedTable, range: IovaRange, page: PageSize) -> Result<Vec<EntryRun>, ConnectError> {
    let table = named.table();
    if (range, page) != (table.range(), table.page()) {
        return Err(ConnectError::OtherWindow(table.range(), table.page(), range, page));
    }
    Ok(table.live(range))
}

fn quiet(named: &NamedTable) -> QuietTable {
    QuietTable { liobn: named.liobn, entries: named.entries.clone() }
}

/// Locks the connections of tables, which ascend by their serial numbers.
fn lock_all(tables: &[Arc<NamedTable>]) -> Vec<MutexGuard<'_, Connection>> {
    tables.iter().map(|named| named.connection.lock()).collect()
}

/// Connects tables, whose connections are locked in the same order, to `windows`. A table that has a host keeps it.
fn connect_all(
    tables: &[Arc<NamedTable>],
    connections: &mut [MutexGuard<'_, Connection>],
    windows: Vec<(Liobn, TranslatedWindow)>,
) {
    for (liobn, window) in windows {
        let place = tables.iter().position(|named| named.liobn == liobn);
        match place.and_then(|place| connections.get_mut(place)) {
            Some(connection) if matches!(**connection, Connection::None) => {
                **connection = Connection::Window(Host::new(window))
            }
            _ => debug_assert!(false, "a window for LIOBN {liobn}, which needs none"),
        }
    }
}

fn remove_all(connections: &mut [MutexGuard<'_, Connection>]) {
    for connection in connections {
        **connection = Connection::Removed;
    }
}
