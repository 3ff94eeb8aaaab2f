//! A TCE table: the entries of one DMA window.
//!
//! A window may span terabytes of which the guest uses little, so entries are kept in chunks that come with the first entry and go with
//! the last: nothing here costs what the window's size is.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use dmaspace_core::words::address::BadRange;
use dmaspace_core::{Access, Iova, IovaRange, PageSize, SystemAddress};

use super::change::{Change, Changes, Run};
use super::entry::Tce;
use super::kernel::KernelTable;

#[cfg(test)]
mod tests;

/// The entries of a chunk: 4 KiB of them.
const CHUNK: u64 = 512;

/// The pages a table can have, as powers of two: KVM's (linux: arch/powerpc/kvm/book3s_64_vio.c, kvm_vm_ioctl_create_spapr_tce).
const PAGE_SHIFTS: std::ops::RangeInclusive<u32> = 12..=34;

/// A window's bounds that make no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTable {
    /// Pages are 4 KiB to 16 GiB.
    #[error("a TCE table has no pages of {0}")]
    Page(PageSize),
    /// The window begins inside a page.
    #[error("{0} is no multiple of the window's {1} pages")]
    Misaligned(Iova, PageSize),
    /// No entries, or an end past 2^64-1.
    #[error(transparent)]
    BadRange(#[from] BadRange),
}

/// Entries that do not lie inside the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{count} entries at {at} do not lie inside the window {window}")]
pub struct OutsideTable {
    /// The bus address of the first.
    pub at: Iova,
    /// How many.
    pub count: u64,
    /// The window of the table.
    pub window: IovaRange,
}

/// Why a device cannot use a bus address. A real PE would be frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It lies outside the window.
    #[error("{0} lies outside the window {1}")]
    OutsideWindow(Iova, IovaRange),
    /// There is no entry.
    #[error("nothing is mapped at {0}")]
    NotMapped(Iova),
    /// The entry allows something else.
    #[error("{0} is {1}")]
    NotAllowed(Iova, Access),
}

/// Entries to write, at consecutive pages.
#[derive(Clone, Copy, Debug)]
pub enum Entries<'a> {
    /// These.
    List(&'a [Tce]),
    /// That one, so many times. [`Tce::NONE`] costs what is cleared, anything else what is written.
    Same(Tce, u64),
}

/// The TCE table of one window.
#[derive(Clone, Debug)]
pub struct TceTable {
    range: IovaRange,
    page: PageSize,
    chunks: BTreeMap<u64, Chunk>,
    /// Who has the entries in place of the chunks.
    kernel: Option<Arc<dyn KernelTable>>,
}

#[derive(Clone, Debug)]
struct Chunk {
    entries: Box<[Tce]>,
    /// How many of them are not [`Tce::NONE`].
    used: u64,
}

impl Default for Chunk {
    fn default() -> Self {
        Self { entries: (0..CHUNK).map(|_| Tce::NONE).collect(), used: 0 }
    }
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
        Ok(Self { range: IovaRange::with_len(first, len)?, page, chunks: BTreeMap::new(), kernel: None })
    }

    /// An empty table for the same window.
    pub(super) fn emptied(&self) -> Self {
        Self { range: self.range, page: self.page, chunks: BTreeMap::new(), kernel: None }
    }

    /// Leaves the table, which is empty, to the kernel: entries are read there from now on, and nobody else writes any.
    pub(super) fn leave_to(&mut self, kernel: Arc<dyn KernelTable>) {
        self.chunks.clear();
        self.kernel = Some(kernel);
    }

    /// The kernel's table, where it has the entries.
    pub(super) fn kernel(&self) -> Option<&Arc<dyn KernelTable>> {
        self.kernel.as_ref()
    }

    /// Copies the kernel's entries. Returns the kernel's table, whose drop makes calls: the caller drops it without the lock of this one.
    #[must_use = "the kernel's table is dropped without the lock of this one"]
    pub(super) fn take_back(&mut self) -> Option<Arc<dyn KernelTable>> {
        let kernel = self.kernel.take()?;
        for index in 0..=self.unchecked_index(self.range.last()) {
            self.set(index, kernel.entry(index));
        }
        Some(kernel)
    }

    /// Its window.
    pub fn range(&self) -> IovaRange {
        self.range
    }

    /// The page of an entry.
    pub fn page(&self) -> PageSize {
        self.page
    }

    /// The bytes that entries take now.
    pub fn allocated(&self) -> u64 {
        let bytes = self.chunks.values().map(|chunk| mem::size_of_val(chunk.entries.as_ref()) as u64);
        bytes.sum()
    }

    /// The entry for the page that `at` lies in.
    ///
    /// # Errors
    /// [`OutsideTable`].
    pub fn get(&self, at: Iova) -> Result<Tce, OutsideTable> {
        let index = self.index_of(at).ok_or(OutsideTable { at, count: 1, window: self.range })?;
        Ok(self.entry(index))
    }

    /// Where a device that wants `access` to `at` gets to, and everything it may do there. Good up to the end of the page.
    ///
    /// # Errors
    /// [`Fault`], as its variants say.
    pub fn translate(&self, at: Iova, access: Access) -> Result<(SystemAddress, Access), Fault> {
        let tce = self.get(at).map_err(|_| Fault::OutsideWindow(at, self.range))?;
        if !tce.is_live() {
            return Err(Fault::NotMapped(at));
        }
        if !tce.access().contains(access) {
            return Err(Fault::NotAllowed(at, tce.access()));
        }
        // The page divides its address, so nothing carries.
        let offset = at.get() - self.page.round_down(at.get());
        Ok((SystemAddress::new(tce.target(self.page).get() | offset), tce.access()))
    }

    /// Whether all of `count` entries from `at` on lie inside; with none, whether `at` does.
    pub(super) fn check(&self, at: Iova, count: u64) -> Result<(), OutsideTable> {
        self.place(at, count).map(drop)
    }

    /// What writing `entries` from `at` on would change for devices.
    ///
    /// # Errors
    /// [`OutsideTable`] when not all of them lie inside.
    pub fn changes(&self, at: Iova, entries: Entries<'_>) -> Result<Vec<Change>, OutsideTable> {
        let Some((first, last)) = self.place(at, entries.len())? else { return Ok(Vec::new()) };
        let mut changes = Changes::new(self.page);
        match entries {
            Entries::Same(tce, _) if !tce.is_live() => {
                let clears = self.within(first, last).any(|(_, tce)| tce.is_live());
                return Ok(self.pages(first, last).filter(|_| clears).map(Change::Clear).into_iter().collect());
            }
            Entries::Same(tce, _) => self.note_all(&mut changes, (first..=last).map(|index| (index, tce))),
            Entries::List(list) => self.note_all(&mut changes, (first..=last).zip(list.iter().copied())),
        }
        Ok(changes.finish())
    }

    /// Writes `entries` from `at` on.
    ///
    /// # Errors
    /// [`OutsideTable`] when not all of them lie inside; nothing is written then.
    pub fn write(&mut self, at: Iova, entries: Entries<'_>) -> Result<(), OutsideTable> {
        let Some((first, last)) = self.place(at, entries.len())? else { return Ok(()) };
        match entries {
            Entries::Same(Tce::NONE, _) => self.wipe(first, last),
            Entries::Same(tce, _) => (first..=last).for_each(|index| self.set(index, tce)),
            Entries::List(list) => (first..).zip(list).for_each(|(index, tce)| self.set(index, *tce)),
        }
        Ok(())
    }

    /// The live entries in `range`, ascending, joined to runs. Cost proportional to the chunks in use there; where the kernel has the entries,
    /// to what could be.
    pub fn live(&self, range: IovaRange) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let Some(shared) = self.range.intersection(range) else { return runs };
        let (first, last) = (self.unchecked_index(shared.first()), self.unchecked_index(shared.last()));
        for (index, tce) in self.within(first, last).filter(|(_, tce)| tce.is_live()) {
            let Some(pages) = self.pages(index, index) else { continue };
            let run = Run::of(pages, tce, self.page);
            match runs.last_mut() {
                Some(before) if before.is_continued_by(&run) => before.range = before.range.hull(run.range),
                _ => runs.push(run),
            }
        }
        runs
    }

    /// Writes what `change` says, without its history.
    pub(super) fn take_over(&mut self, change: &Change) {
        let (range, run) = match change {
            Change::Put(run) | Change::Replace(run) => (run.range, Some(run)),
            Change::Clear(range) => (*range, None),
        };
        let Some(shared) = self.range.intersection(range) else { return };
        let (first, last) = (self.unchecked_index(shared.first()), self.unchecked_index(shared.last()));
        let Some(run) = run else { return self.wipe(first, last) };
        for index in first..=last {
            if let Some(part) = self.pages(index, index).and_then(|pages| run.part(pages)) {
                self.set(index, Tce::to(part.target, part.access));
            }
        }
    }

    fn note_all(&self, changes: &mut Changes, entries: impl Iterator<Item = (u64, Tce)>) {
        for (index, tce) in entries {
            if let Some(pages) = self.pages(index, index) {
                changes.note(pages, self.entry(index), tce);
            }
        }
    }

    /// The first and the last index of `count` entries from `at` on; `None` for none.
    fn place(&self, at: Iova, count: u64) -> Result<Option<(u64, u64)>, OutsideTable> {
        let outside = OutsideTable { at, count, window: self.range };
        let first = self.index_of(at).ok_or(outside)?;
        let Some(more) = count.checked_sub(1) else { return Ok(None) };
        let last = first.checked_add(more).filter(|last| *last <= self.unchecked_index(self.range.last()));
        last.map(|last| Some((first, last))).ok_or(outside)
    }

    fn index_of(&self, at: Iova) -> Option<u64> {
        self.range.contains(at).then(|| self.unchecked_index(at))
    }

    /// The index of the page that `at`, which lies inside, lies in.
    fn unchecked_index(&self, at: Iova) -> u64 {
        self.range.offset_of(at) >> self.page.shift()
    }

    /// Where these entries, which lie inside, are on the bus.
    fn pages(&self, first: u64, last: u64) -> Option<IovaRange> {
        let start = self.range.first().get().checked_add(first << self.page.shift())?;
        IovaRange::with_len(Iova::new(start), (last - first + 1) << self.page.shift()).ok()
    }

    fn entry(&self, index: u64) -> Tce {
        if let Some(kernel) = &self.kernel {
            return kernel.entry(index);
        }
        let entry = self.chunks.get(&(index / CHUNK)).and_then(|chunk| chunk.entries.get(slot(index)));
        entry.copied().unwrap_or_default()
    }

    /// The entries there are chunks for, or all that the kernel has, with their indices, ascending.
    fn within(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, Tce)> {
        let chunks = self.chunks.range(first / CHUNK..=last / CHUNK);
        let all = chunks.flat_map(|(number, chunk)| (number * CHUNK..).zip(chunk.entries.iter().copied()));
        let kernel =
            self.kernel.iter().flat_map(move |kernel| (first..=last).map(|index| (index, kernel.entry(index))));
        all.filter(move |(index, _)| (first..=last).contains(index)).chain(kernel)
    }

    fn set(&mut self, index: u64, tce: Tce) {
        let number = index / CHUNK;
        if tce == Tce::NONE && !self.chunks.contains_key(&number) {
            return;
        }
        let chunk = self.chunks.entry(number).or_default();
        if let Some(entry) = chunk.entries.get_mut(slot(index)) {
            let old = mem::replace(entry, tce);
            chunk.used += u64::from(tce != Tce::NONE);
            chunk.used -= u64::from(old != Tce::NONE);
        }
        if chunk.used == 0 {
            self.chunks.remove(&number);
        }
    }

    /// Clears these entries.
    fn wipe(&mut self, first: u64, last: u64) {
        let touched: Vec<u64> = self.chunks.range(first / CHUNK..=last / CHUNK).map(|(number, _)| *number).collect();
        for number in touched {
            let (from, to) = (number * CHUNK, number * CHUNK + (CHUNK - 1));
            if first <= from && to <= last {
                self.chunks.remove(&number);
            } else {
                (first.max(from)..=last.min(to)).for_each(|index| self.set(index, Tce::NONE));
            }
        }
    }
}

impl Entries<'_> {
    /// How many there are.
    fn len(&self) -> u64 {
        match self {
            Self::List(list) => list.len() as u64,
            Self::Same(_, count) => *count,
        }
    }
}

/// Where in its chunk an entry is: below 512, so the cast is exact.
#[allow(clippy::cast_possible_truncation)]
fn slot(index: u64) -> usize {
    (index % CHUNK) as usize
}
