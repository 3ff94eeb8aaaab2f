//! A TCE table: the entries of one DMA window.
//!
//! A window may span terabytes of which the guest uses little, so entries are kept in a tree whose nodes are allocated
//! for their first entry and freed with their last (`sparse`): no cost here grows with the size of the window. The
//! memory of all nodes is counted (`account`).
//!
//! A host's address space keeps an entry, too, where there is a host: the host address and the rights, but not the
//! guest's address, its encoding, nor entries without a right, all of which the guest may read back. So both keep 8
//! bytes for an entry, and neither can serve for the other.

mod account;
mod sparse;

use std::sync::Arc;

use dmaspace_core::words::address::{BadRange, SystemRange};
use dmaspace_core::{Access, Iova, IovaRange, PageSize, SystemAddress};

use dmaspace_listener::EntryRun;

use crate::change::{Change, ChangeKind, Changes, EntryChange, part_of, push_joined, run_of};
use crate::entry::Tce;
use crate::kernel_table::InKernelTable;
use crate::stretch::{LEAF, Parts, Stretch, cut};
use account::Account;
pub(crate) use account::{Allowance, NoRoom};
use sparse::{Leaf, NODE, Sparse};

#[cfg(test)]
mod tests;

/// The page sizes of tables, as powers of two: KVM's (linux: arch/powerpc/kvm/book3s_64_vio.c,
/// kvm_vm_ioctl_create_spapr_tce).
const PAGE_SHIFTS: std::ops::RangeInclusive<u32> = 12..=34;

/// Bounds of a window for which there can be no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadTable {
    /// Pages are 4 KiB to 16 GiB.
    #[error("a TCE table cannot have pages of {0}: 4K to 16G are possible")]
    Page(PageSize),
    /// The window begins inside a page.
    #[error("the window's first byte {0} is no multiple of its {1} pages")]
    Misaligned(Iova, PageSize),
    /// No entries, or an end past 2^64-1.
    #[error(transparent)]
    BadRange(#[from] BadRange),
}

/// Entries that do not all lie inside the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{count} entries at {at} do not lie inside the window {window}")]
#[non_exhaustive]
pub struct OutsideTable {
    /// The bus address of the first.
    pub at: Iova,
    /// The number of entries.
    pub count: u64,
    /// The window of the table.
    pub window: IovaRange,
}

/// The reason that a device cannot use a bus address. A POWER host would freeze the device's PE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The address lies outside the window.
    #[error("{0} lies outside the window {1}")]
    OutsideWindow(Iova, IovaRange),
    /// The address has no live entry.
    #[error("nothing is mapped at {0}")]
    NotMapped(Iova),
    /// The entry allows other accesses only.
    #[error("the entry at {0} allows {1} only")]
    NotAllowed(Iova, Access),
}

/// Entries to write to consecutive pages.
///
/// Exhaustive: the hypercalls know two forms.
#[derive(Clone, Copy, Debug)]
pub enum Entries<'a> {
    /// One entry for each page.
    List(&'a [Tce]),
    /// One entry, and the number of pages that get it. The cost of [`Tce::NONE`] grows with the entries it clears, that
    /// of any other entry with the pages.
    Same(Tce, u64),
}

/// The place of a table on the bus: that of its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) range: IovaRange,
    pub(crate) page: PageSize,
}

/// The TCE table of one window.
#[derive(Clone, Debug)]
pub struct TceTable {
    geometry: Geometry,
    entries: Sparse,
    account: Account,
    /// The kernel's table, which has the entries in place of `entries`.
    kernel: Option<Arc<dyn InKernelTable>>,
}

impl TceTable {
    /// An empty table of `entries` entries, one for each `page` from `first` on.
    ///
    /// # Errors
    /// [`BadTable`], as its variants say.
    pub fn new(first: Iova, page: PageSize, entries: u64) -> Result<Self, BadTable> {
        if !PAGE_SHIFTS.contains(&page.shift()) {
            return Err(BadTable::Page(page));
        }
        if !page.divides(first.get()) {
            return Err(BadTable::Misaligned(first, page));
        }
        let len = entries.checked_mul(page.bytes()).ok_or(BadRange::Overflow)?;
        Ok(Self::of(Geometry { range: IovaRange::with_len(first, len)?, page }, Account::default()))
    }

    fn of(geometry: Geometry, account: Account) -> Self {
        Self { geometry, entries: Sparse::up_to(geometry.last_index()), account, kernel: None }
    }

    /// An empty table for the same window, on the same allowance.
    pub(crate) fn emptied(&self) -> Self {
        Self::of(self.geometry, self.account.another())
    }

    /// Hands the table, which is empty, to the kernel: entries are read there from now on, and the kernel alone writes
    /// them.
    pub(crate) fn hand_to(&mut self, kernel: Arc<dyn InKernelTable>) {
        debug_assert!(self.entries.nodes() == 0, "entries that the kernel would not know of");
        self.clear(0, self.geometry.last_index());
        self.kernel = Some(kernel);
    }

    /// The kernel's table, if it has the entries.
    pub(crate) fn kernel(&self) -> Option<&Arc<dyn InKernelTable>> {
        self.kernel.as_ref()
    }

    /// Copies the kernel's entries. Returns the kernel's table, whose drop makes calls: the caller drops it without the
    /// lock of this one.
    #[must_use = "the kernel's table is dropped without the lock of this one"]
    pub(crate) fn reclaim(&mut self) -> Option<Arc<dyn InKernelTable>> {
        let kernel = self.kernel.take()?;
        for (index, tce) in entries_of(kernel.as_ref(), 0, self.geometry.last_index()) {
            self.entries.set(index, tce);
        }
        self.settle();
        Some(kernel)
    }

    /// Has `allowance` count the memory of the entries from now on.
    pub(crate) fn count_on(&mut self, allowance: Option<Arc<Allowance>>) {
        self.account = Account::on(allowance);
        self.settle();
    }

    /// Counts the memory that a write of entries takes, before it is made, beside that of the entries that are there.
    ///
    /// # Errors
    /// [`NoRoom`] if that would be more than the allowance.
    pub(crate) fn reserve(&mut self, nodes: u64) -> Result<(), NoRoom> {
        self.account.reserve(nodes * NODE)
    }

    /// Counts the memory of the entries that are there, and none beside it.
    pub(crate) fn settle(&mut self) {
        self.account.settle(self.entries.nodes() * NODE);
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The table's window.
    pub fn range(&self) -> IovaRange {
        self.geometry.range
    }

    /// The page size of the entries.
    pub fn page(&self) -> PageSize {
        self.geometry.page
    }

    /// The bytes allocated for entries.
    pub fn allocated(&self) -> u64 {
        self.entries.nodes() * NODE
    }

    /// The entry for the page that `at` lies in.
    ///
    /// # Errors
    /// [`OutsideTable`].
    pub fn get(&self, at: Iova) -> Result<Tce, OutsideTable> {
        Ok(self.entry(self.geometry.index_of(at)?))
    }

    /// The system address that a device reaches at `at` with `access`, and all rights it has there. Valid up to the end
    /// of the page.
    ///
    /// # Errors
    /// [`Fault`], as its variants say.
    pub fn translate(&self, at: Iova, access: Access) -> Result<(SystemAddress, Access), Fault> {
        let tce = self.get(at).map_err(|_| Fault::OutsideWindow(at, self.range()))?;
        if !tce.is_live() {
            return Err(Fault::NotMapped(at));
        }
        if !tce.access().contains(access) {
            return Err(Fault::NotAllowed(at, tce.access()));
        }
        // The page divides its address, so nothing carries.
        let page = self.page();
        let offset = at.get() - page.round_down(at.get());
        Ok((SystemAddress::new(tce.target(page).get() | offset), tce.access()))
    }

    /// The changes that writing `entries` from `at` on would make for devices.
    ///
    /// # Errors
    /// [`OutsideTable`] when not all of them lie inside.
    pub fn changes(&self, at: Iova, entries: Entries<'_>) -> Result<Vec<EntryChange>, OutsideTable> {
        let Some((first, _)) = self.geometry.place(at, entries.len())? else { return Ok(Vec::new()) };
        let mut changes = Vec::new();
        self.note(first, entries.stretches(self.page()), &mut changes);
        Ok(changes.iter().filter_map(|change| self.geometry.change(change)).collect())
    }

    /// Puts the changes that writing entries from `first` on would make for devices into `changes`. Returns the most
    /// nodes that it would add. All entries lie inside.
    pub(crate) fn note(
        &self,
        first: u64,
        stretches: impl IntoIterator<Item = Stretch>,
        changes: &mut Vec<Change>,
    ) -> u64 {
        changes.clear();
        let page = self.page();
        let mut changes = Changes::new(page, changes);
        let mut known = Known { number: u64::MAX, leaf: None };
        let mut all_missing = 0;
        for (index, part) in Parts::of(first, stretches.into_iter(), page) {
            if part.first != Tce::NONE && known.number != index / LEAF {
                let leaf = self.entries.leaf(index);
                all_missing += leaf.err().unwrap_or(0);
                known = Known { number: index / LEAF, leaf: leaf.ok() };
            }
            if !part.first.is_live() {
                let last = index + (part.count - 1);
                changes.clear(index, last, self.has_live(index, last));
            } else if self.kernel.is_none() && !known.leaf.is_some_and(|leaf| leaf.has_live(index, part.count)) {
                changes.put(index, part);
            } else {
                for (index, tce) in (index..).zip(part.entries(page)) {
                    changes.note(index, self.entry(index), tce);
                }
            }
        }
        changes.finish();
        all_missing
    }

    /// The entry at `index`, and the number of nodes that another one in its place would add.
    pub(crate) fn look(&self, index: u64) -> (Tce, u64) {
        self.entries.leaf(index).map_or_else(|missing| (Tce::NONE, missing), |leaf| (leaf.get(index), 0))
    }

    /// Returns true if one of these entries is live.
    fn has_live(&self, first: u64, last: u64) -> bool {
        match &self.kernel {
            Some(kernel) => entries_of(kernel.as_ref(), first, last).any(|(_, tce)| tce.is_live()),
            None => self.entries.has_live(first, last),
        }
    }

    /// Writes `entries` from `at` on.
    ///
    /// # Errors
    /// [`OutsideTable`] when not all of them lie inside; nothing is written then.
    pub fn write(&mut self, at: Iova, entries: Entries<'_>) -> Result<(), OutsideTable> {
        if let Some((first, _)) = self.geometry.place(at, entries.len())? {
            self.fill(first, entries.stretches(self.page()));
        }
        Ok(())
    }

    /// Writes the entry at `index`, which lies inside.
    pub(crate) fn set(&mut self, index: u64, tce: Tce) {
        self.entries.set(index, tce);
        self.settle();
    }

    /// Writes entries from `first` on, all of which lie inside.
    pub(crate) fn fill(&mut self, first: u64, stretches: impl IntoIterator<Item = Stretch>) {
        self.entries.write(Parts::of(first, stretches.into_iter(), self.geometry.page), self.geometry.page);
        self.settle();
    }

    /// The live entries in `range`, ascending, joined to runs. The cost grows with the chunks in use there. Where the
    /// kernel has the entries, all pages of the range are searched ([`InKernelTable::next_entry`]).
    pub fn live(&self, range: IovaRange) -> Vec<EntryRun> {
        let mut runs = Vec::new();
        let Some(shared) = self.range().intersection(range) else { return runs };
        let (first, last) =
            (self.geometry.unchecked_index(shared.first()), self.geometry.unchecked_index(shared.last()));
        for (index, tce) in self.live_within(first, last) {
            if let Some(pages) = self.geometry.pages(index, index) {
                push_joined(&mut runs, run_of(pages, tce, self.page()));
            }
        }
        runs
    }

    /// Clears the live entries that point to system memory in `gone`, and returns them. A kernel's entries stay.
    pub(crate) fn clear_onto(&mut self, gone: &[SystemRange]) -> Vec<EntryRun> {
        if self.kernel.is_some() {
            return Vec::new();
        }
        let mut cleared = Vec::new();
        let (geometry, page) = (self.geometry, self.page());
        for run in self.live(self.range()) {
            for index in geometry.unchecked_index(run.range.first())..=geometry.unchecked_index(run.range.last()) {
                let Some(entry) = geometry.pages(index, index).and_then(|pages| part_of(&run, pages)) else { continue };
                let target = SystemRange::with_len(entry.target, page.bytes());
                if target.is_ok_and(|target| gone.iter().any(|gone| gone.overlaps(target))) {
                    self.clear(index, index);
                    push_joined(&mut cleared, entry);
                }
            }
        }
        cleared
    }

    /// The live entries, or the kernel's, with their indices, ascending.
    fn live_within(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, Tce)> {
        let in_kernel = self.kernel.iter().flat_map(move |kernel| entries_of(kernel.as_ref(), first, last));
        self.entries.live(first, last).chain(in_kernel.filter(|(_, tce)| tce.is_live()))
    }

    /// Writes the entries that `change` left on the host. The guest's own encoding of them is lost: only address and
    /// rights are known.
    pub(crate) fn adopt(&mut self, change: &EntryChange) {
        let (range, run) = match change {
            EntryChange::Put(run) | EntryChange::Replace(run) => (run.range, Some(run)),
            EntryChange::Clear(range) => (*range, None),
        };
        let Some(shared) = self.range().intersection(range) else { return };
        let (first, last) =
            (self.geometry.unchecked_index(shared.first()), self.geometry.unchecked_index(shared.last()));
        let Some(run) = run else { return self.clear(first, last) };
        let Some(part) = part_of(run, shared) else { return };
        self.fill(first, [Stretch { first: Tce::to(part.target, part.access), count: last - first + 1 }]);
    }

    fn entry(&self, index: u64) -> Tce {
        self.kernel.as_ref().map_or_else(|| self.entries.get(index), |kernel| kernel.entry(index))
    }

    /// Clears these entries.
    fn clear(&mut self, first: u64, last: u64) {
        self.entries.clear(first, last);
        self.settle();
    }
}

/// The kernel's entries from `first` to `last`, ascending, with their indices.
fn entries_of(kernel: &dyn InKernelTable, first: u64, last: u64) -> impl Iterator<Item = (u64, Tce)> {
    let mut from = Some(first);
    std::iter::from_fn(move || {
        let found = kernel.next_entry(from.filter(|from| *from <= last)?, last);
        from = found.and_then(|(index, _)| index.checked_add(1));
        found
    })
}

impl Geometry {
    /// Returns an error unless `count` entries from `at` on all lie inside; without entries, unless `at` does.
    pub(crate) fn check(&self, at: Iova, count: u64) -> Result<(), OutsideTable> {
        self.place(at, count)?;
        Ok(())
    }

    /// The first and the last index of `count` entries from `at` on; `None` for none.
    fn place(&self, at: Iova, count: u64) -> Result<Option<(u64, u64)>, OutsideTable> {
        let outside = OutsideTable { at, count, window: self.range };
        let first = self.index_of(at).map_err(|_| outside)?;
        let Some(more) = count.checked_sub(1) else { return Ok(None) };
        let last = first.checked_add(more).filter(|last| *last <= self.last_index());
        last.map(|last| Some((first, last))).ok_or(outside)
    }

    /// The index of the page of `at`.
    pub(crate) fn index_of(&self, at: Iova) -> Result<u64, OutsideTable> {
        if self.range.contains(at) {
            Ok(self.unchecked_index(at))
        } else {
            Err(OutsideTable { at, count: 1, window: self.range })
        }
    }

    /// The index of the page of `at`, which lies inside the window.
    fn unchecked_index(&self, at: Iova) -> u64 {
        debug_assert!(self.range.contains(at), "{at} lies outside the window {}", self.range);
        self.range.offset_of(at) >> self.page.shift()
    }

    fn last_index(&self) -> u64 {
        self.unchecked_index(self.range.last())
    }

    /// The change in terms of the bus.
    pub(crate) fn change(&self, change: &Change) -> Option<EntryChange> {
        let run = self.run(change)?;
        Some(match change.kind {
            ChangeKind::Put => EntryChange::Put(run),
            ChangeKind::Replace => EntryChange::Replace(run),
            ChangeKind::Clear => EntryChange::Clear(run.range),
        })
    }

    /// The run of a change's entries.
    pub(crate) fn run(&self, Change { first, stretch, .. }: &Change) -> Option<EntryRun> {
        Some(run_of(self.pages(*first, first + (stretch.count - 1))?, stretch.first, self.page))
    }

    /// The range of these entries, which lie inside the window.
    pub(crate) fn pages(&self, first: u64, last: u64) -> Option<IovaRange> {
        let start = self.range.first().get().checked_add(first << self.page.shift());
        let len = (last - first + 1) << self.page.shift();
        let pages = start.and_then(|start| IovaRange::with_len(Iova::new(start), len).ok());
        debug_assert!(pages.is_some(), "the entries {first}..={last} lie outside the window {}", self.range);
        pages
    }
}

/// A leaf that was looked up.
struct Known<'a> {
    /// The number of leaves before it.
    number: u64,
    leaf: Option<&'a Leaf>,
}

impl Entries<'_> {
    /// The number of pages.
    fn len(&self) -> u64 {
        match self {
            Self::List(list) => list.len() as u64,
            Self::Same(_, count) => *count,
        }
    }

    /// The entries for a table of `page`, in stretches.
    fn stretches(&self, page: PageSize) -> impl Iterator<Item = Stretch> {
        let (list, same) = match *self {
            Self::List(list) => (list, None),
            Self::Same(tce, count) => (&[][..], Some((tce, count))),
        };
        cut(list, page).chain(same.into_iter().flat_map(|(tce, count)| same_entries(tce, count)))
    }
}

/// The stretches of equal entries. Those with rights do not continue each other.
pub(crate) fn same_entries(tce: Tce, count: u64) -> impl Iterator<Item = Stretch> {
    let (stretches, each) = if tce.is_live() { (count, 1) } else { (count.min(1), count) };
    (0..stretches).map(move |_| Stretch { first: tce, count: each })
}
