//! All TCE tables of a guest, and the hosts behind them.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use dmaspace_core::{Access, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::{EntryError, TranslatedWindow};

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

/// The TCE tables of a guest, of all its bridges.
///
/// Hypercalls come from any processor, and tables come and go meanwhile. Hypercalls on one table follow each other, those on different
/// ones wait for each other no longer than a look-up takes; a translation for an emulated device never waits for a host.
#[derive(Debug, Default)]
pub struct TceTables {
    /// Locked for a moment: nothing is waited for under it.
    slots: RwLock<BTreeMap<Liobn, Arc<Slot>>>,
}

/// A table and its host, in the order they are locked.
#[derive(Debug)]
pub(super) struct Slot {
    liobn: Liobn,
    /// Held while a hypercall writes.
    behind: Mutex<Behind>,
    /// Written in one go, after the host agreed.
    table: SharedTable,
}

/// A table that others look at, too.
pub(super) type SharedTable = Arc<RwLock<TceTable>>;

/// What is behind a table.
#[derive(Debug, Default)]
enum Behind {
    /// No host: devices are emulated.
    #[default]
    Nothing,
    /// A window of the listener's.
    Window(TranslatedWindow),
    /// Not even the guest: the table was taken away.
    Gone,
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
    pub fn add(&self, liobn: Liobn, table: TceTable) -> Result<(), LiobnInUse> {
        self.reserve(&[&Arc::new(Slot::new(liobn, table))])
    }

    /// Takes a table away. A hypercall that still waits for it finds none. The host's entries go when the listener's section is removed.
    pub fn remove(&self, liobn: Liobn) -> Option<TceTable> {
        let slot = self.slots_mut().remove(&liobn)?;
        *slot.behind() = Behind::Gone;
        let (table, _kernel) = {
            let mut table = slot.table_mut();
            let kernel = table.take_back();
            let empty = table.emptied();
            (mem::replace(&mut *table, empty), kernel)
        };
        Some(table)
    }

    /// MappingModel an empty window of the listener's in step with a table from now on, beginning with what is in it: one call for each run.
    ///
    /// # Errors
    /// [`ConnectError`]; what was put in the window was cleared again.
    pub fn connect(&self, liobn: Liobn, window: TranslatedWindow) -> Result<(), ConnectError> {
        let slot = self.find(liobn).ok_or(ConnectError::NoSuchTable(liobn))?;
        let mut behind = slot.behind();
        match *behind {
            Behind::Nothing => {}
            Behind::Window(_) => return Err(ConnectError::Connected(liobn)),
            Behind::Gone => return Err(ConnectError::NoSuchTable(liobn)),
        }
        let (range, page) = (window.range()?, window.page()?);
        let puts: Vec<_> = {
            let table = slot.table();
            if (range, page) != (table.range(), table.page()) {
                return Err(ConnectError::OtherWindow(table.range(), table.page(), range, page));
            }
            table.live(range).into_iter().map(Change::Put).collect()
        };
        carry(&window, |range| slot.table().live(range), &puts).map_err(|stuck| stuck.error)?;
        *behind = Behind::Window(window);
        Ok(())
    }

    /// Leaves the window alone from now on, which keeps its entries: for when the listener gives up the section, or its last space.
    pub fn disconnect(&self, liobn: Liobn) -> Option<TranslatedWindow> {
        self.find(liobn)?.behind().take()
    }

    /// Where an emulated device that wants `access` to `at` gets to, and everything it may do there. Good up to the end of the page.
    /// `None` when there is no such table.
    pub fn translate(&self, liobn: Liobn, at: Iova, access: Access) -> Option<Result<(SystemAddress, Access), Fault>> {
        Some(self.find(liobn)?.table().translate(at, access))
    }

    /// The live entries of a table, ascending, joined to runs.
    pub fn live(&self, liobn: Liobn) -> Option<Vec<Run>> {
        let slot = self.find(liobn)?;
        let table = slot.table();
        Some(table.live(table.range()))
    }

    /// Whether the kernel answers the hypercalls on a table by itself.
    pub fn is_left_to_kernel(&self, liobn: Liobn) -> bool {
        self.find(liobn).is_some_and(|slot| slot.table().kernel().is_some())
    }

    /// The table that a guest's argument means.
    pub(super) fn slot(&self, liobn: u64) -> Result<Arc<Slot>, Refusal> {
        let slot = u32::try_from(liobn).ok().and_then(|liobn| self.find(Liobn::new(liobn)));
        slot.ok_or(Refusal::NoSuchTable(liobn))
    }

    /// Takes the tables `old` away and puts empty ones in, `new`, all or none: `change` decides. No hypercall writes to any of them while
    /// it goes on. It is told the new ones, and answers with the window behind each, where there is one.
    pub(super) fn exchange<T, E: From<LiobnInUse>>(
        &self,
        old: &[Liobn],
        new: Vec<(Liobn, TceTable)>,
        change: impl FnOnce(&[SharedTable]) -> Result<(T, Vec<Option<TranslatedWindow>>), E>,
    ) -> Result<T, E> {
        let new: Vec<_> = new.into_iter().map(|(liobn, table)| Arc::new(Slot::new(liobn, table))).collect();
        // Nobody knows them yet, so nobody holds them.
        let coming: Vec<_> = new.iter().map(|slot| slot.behind()).collect();
        let fresh: Vec<_> = new.iter().filter(|slot| !old.contains(&slot.liobn)).collect();
        self.reserve(&fresh)?;
        let going: Vec<_> = old.iter().filter_map(|liobn| self.find(*liobn)).collect();
        let held: Vec<_> = going.iter().map(|slot| slot.behind()).collect();
        let tables: Vec<_> = new.iter().map(|slot| slot.table.clone()).collect();
        let changed = change(&tables);
        let mut slots = self.slots_mut();
        let (gone, answer) = match changed {
            Ok((answer, windows)) => {
                old.iter().for_each(|liobn| drop(slots.remove(liobn)));
                slots.extend(new.iter().map(|slot| (slot.liobn, slot.clone())));
                let behind = windows.into_iter().map(|window| window.map_or(Behind::Nothing, Behind::Window));
                coming.into_iter().zip(behind).for_each(|(mut place, behind)| *place = behind);
                (held, Ok(answer))
            }
            Err(error) => {
                fresh.iter().for_each(|slot| drop(slots.remove(&slot.liobn)));
                (coming, Err(error))
            }
        };
        gone.into_iter().for_each(|mut behind| *behind = Behind::Gone);
        answer
    }

    /// Puts slots in, all or none.
    fn reserve(&self, fresh: &[&Arc<Slot>]) -> Result<(), LiobnInUse> {
        let mut slots = self.slots_mut();
        let taken = |slot: &&&Arc<Slot>| slots.contains_key(&slot.liobn);
        if let Some(slot) = fresh.iter().find(taken) {
            return Err(LiobnInUse(slot.liobn));
        }
        slots.extend(fresh.iter().map(|slot| (slot.liobn, Arc::clone(slot))));
        Ok(())
    }

    /// Gives tables that have no host the windows that `change` answers with, one for each table. It is told what is in those tables, and
    /// all tables, with whether they have a host; no hypercall writes to any of them while it goes on.
    pub(super) fn joining<T, E>(
        &self,
        liobns: &[Liobn],
        change: impl FnOnce(&[Run], &[(SharedTable, bool)]) -> Result<(T, Vec<Option<TranslatedWindow>>), E>,
    ) -> Result<T, E> {
        let slots: Vec<_> = liobns.iter().filter_map(|liobn| self.find(*liobn)).collect();
        let mut held: Vec<_> = slots.iter().map(|slot| slot.behind()).collect();
        let apart = slots.iter().zip(&held).filter(|(_, behind)| matches!(***behind, Behind::Nothing));
        let live: Vec<_> = apart.flat_map(|(slot, _)| slot.table().live(IovaRange::all())).collect();
        let has_host = |behind: &Behind| !matches!(behind, Behind::Nothing);
        let tables: Vec<_> =
            slots.iter().zip(&held).map(|(slot, behind)| (slot.table.clone(), has_host(behind))).collect();
        let (answer, windows) = change(&live, &tables)?;
        for (behind, window) in held.iter_mut().zip(windows) {
            if let (Behind::Nothing, Some(window)) = (&**behind, window) {
                **behind = Behind::Window(window);
            }
        }
        Ok(answer)
    }

    /// Takes the hosts from tables, if `change` succeeds and says so. No hypercall writes to any of them while it goes on.
    pub(super) fn parting<E>(&self, liobns: &[Liobn], change: impl FnOnce() -> Result<bool, E>) -> Result<(), E> {
        let slots: Vec<_> = liobns.iter().filter_map(|liobn| self.find(*liobn)).collect();
        let mut held: Vec<_> = slots.iter().map(|slot| slot.behind()).collect();
        if change()? {
            held.iter_mut().for_each(|behind| drop(behind.take()));
        }
        Ok(())
    }

    fn find(&self, liobn: Liobn) -> Option<Arc<Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).get(&liobn).cloned()
    }

    // Changed in single steps: right even after a panic elsewhere. So are the two of a slot.
    fn slots_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<Liobn, Arc<Slot>>> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Behind {
    /// The window, which is left alone from now on.
    fn take(&mut self) -> Option<TranslatedWindow> {
        match mem::take(self) {
            Self::Window(window) => Some(window),
            Self::Nothing => None,
            Self::Gone => {
                *self = Self::Gone;
                None
            }
        }
    }
}

impl Slot {
    fn new(liobn: Liobn, table: TceTable) -> Self {
        Self { liobn, behind: Mutex::default(), table: Arc::new(RwLock::new(table)) }
    }

    fn behind(&self) -> MutexGuard<'_, Behind> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn table(&self) -> RwLockReadGuard<'_, TceTable> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, TceTable> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes entries: to the host first, then, if it agreed, to the table.
    pub(super) fn write(&self, at: Iova, entries: Entries<'_>) -> Result<(), Refusal> {
        let behind = self.behind();
        let window = match &*behind {
            Behind::Nothing => None,
            Behind::Window(window) => Some(window),
            Behind::Gone => return Err(Refusal::NoSuchTable(self.liobn.get().into())),
        };
        if let Some(window) = window {
            let changes = self.changes(at, entries)?;
            if let Err(stuck) = carry(window, |range| self.table().live(range), &changes) {
                let mut table = self.table_mut();
                stuck.stays.iter().for_each(|change| table.take_over(change));
                return Err(stuck.error.into());
            }
        }
        Ok(self.table_mut().write(at, entries)?)
    }

    /// What writing entries would change for devices. A table that the kernel fills is written by the kernel alone; nothing but a change of
    /// hosts, which the connection's lock keeps out, hands a table to the kernel.
    fn changes(&self, at: Iova, entries: Entries<'_>) -> Result<Vec<Change>, Refusal> {
        let table = self.table();
        if table.kernel().is_some() {
            return Err(Refusal::LeftToKernel);
        }
        Ok(table.changes(at, entries)?)
    }
}
