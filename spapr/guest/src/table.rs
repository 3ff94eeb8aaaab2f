//! A TCE table: the entries of one DMA window.
//!
//! A window may span terabytes of which the guest uses little, so entries are kept in chunks. A chunk is allocated for
//! its first entry and freed with its last: no cost here grows with the size of the window.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use dmaspace_core::words::address::BadRange;
use dmaspace_core::{Access, Iova, IovaRange, PageSize, SystemAddress};

use dmaspace_listener::EntryRun;

use crate::change::{Changes, EntryChange, change_of, part_of, push_joined, run_of};
use crate::entry::Tce;
use crate::kernel_table::InKernelTable;

#[cfg(test)]
mod tests;

/// The entries of a chunk: 4 KiB of them.
const CHUNK: u64 = NO_ENTRIES.len() as u64;

/// The entries of a chunk that is not there.
const NO_ENTRIES: [Tce; 512] = [Tce::NONE; 512];

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

/// The TCE table of one window.
#[derive(Clone, Debug)]
pub struct TceTable {
    range: IovaRange,
    page: PageSize,
    chunks: BTreeMap<u64, Chunk>,
    /// An empty chunk, for the next first entry: a guest that fills and clears the same place allocates nothing.
    spare: Option<Chunk>,
    /// The kernel's table, which has the entries in place of the chunks.
    kernel: Option<Arc<dyn InKernelTable>>,
}

#[derive(Clone, Debug)]
struct Chunk {
    entries: Box<[Tce]>,
    /// The number of entries other than [`Tce::NONE`].
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
        Ok(Self { range: IovaRange::with_len(first, len)?, page, chunks: BTreeMap::new(), spare: None, kernel: None })
    }

    /// An empty table for the same window.
    pub(crate) fn emptied(&self) -> Self {
        Self { range: self.range, page: self.page, chunks: BTreeMap::new(), spare: None, kernel: None }
    }

    /// Hands the table, which is empty, to the kernel: entries are read there from now on, and the kernel alone writes
    /// them.
    pub(crate) fn hand_to(&mut self, kernel: Arc<dyn InKernelTable>) {
        debug_assert!(self.chunks.is_empty(), "entries that the kernel would not know of");
        self.chunks.clear();
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
        for index in 0..=self.unchecked_index(self.range.last()) {
            self.set(index, kernel.entry(index));
        }
        Some(kernel)
    }

    /// The table's window.
    pub fn range(&self) -> IovaRange {
        self.range
    }

    /// The page size of the entries.
    pub fn page(&self) -> PageSize {
        self.page
    }

    /// The bytes allocated for entries.
    pub fn allocated(&self) -> u64 {
        self.chunks.values().map(|chunk| mem::size_of_val(chunk.entries.as_ref()) as u64).sum()
    }

    /// The entry for the page that `at` lies in.
    ///
    /// # Errors
    /// [`OutsideTable`].
    pub fn get(&self, at: Iova) -> Result<Tce, OutsideTable> {
        let index = self.index_of(at).ok_or(OutsideTable { at, count: 1, window: self.range })?;
        Ok(self.entry(index))
    }

    /// The system address that a device reaches at `at` with `access`, and all rights it has there. Valid up to the end
    /// of the page.
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

    /// Returns an error unless `count` entries from `at` on all lie inside; without entries, unless `at` does.
    pub(crate) fn check(&self, at: Iova, count: u64) -> Result<(), OutsideTable> {
        self.place(at, count)?;
        Ok(())
    }

    /// The changes that writing `entries` from `at` on would make for devices.
    ///
    /// # Errors
    /// [`OutsideTable`] when not all of them lie inside.
    pub fn changes(&self, at: Iova, entries: Entries<'_>) -> Result<Vec<EntryChange>, OutsideTable> {
        let Some((first, last)) = self.place(at, entries.len())? else { return Ok(Vec::new()) };
        let mut changes = Changes::new(self.page);
        match entries {
            Entries::Same(tce, _) if !tce.is_live() => return Ok(self.clear_of(first, last).into_iter().collect()),
            Entries::Same(tce, _) => self.note_all(&mut changes, (first..=last).map(|index| (index, tce))),
            Entries::List(list) if self.kernel.is_some() => {
                self.note_all(&mut changes, (first..=last).zip(list.iter().copied()));
            }
            Entries::List(list) => self.note_list(&mut changes, first, list),
        }
        Ok(changes.finish())
    }

    /// The change that writing one entry at `at` would make for devices.
    ///
    /// # Errors
    /// [`OutsideTable`].
    pub(crate) fn change(&self, at: Iova, tce: Tce) -> Result<Option<EntryChange>, OutsideTable> {
        let old = self.get(at)?;
        let index = self.unchecked_index(at);
        Ok(self.pages(index, index).and_then(|pages| change_of(pages, old, tce, self.page)))
    }

    /// The change that clearing these entries makes, if one of them is live.
    fn clear_of(&self, first: u64, last: u64) -> Option<EntryChange> {
        if self.within(first, last).any(|(_, tce)| tce.is_live()) {
            self.pages(first, last).map(EntryChange::Clear)
        } else {
            None
        }
    }

    /// Writes `entries` from `at` on.
    ///
    /// # Errors
    /// [`OutsideTable`] when not all of them lie inside; nothing is written then.
    pub fn write(&mut self, at: Iova, entries: Entries<'_>) -> Result<(), OutsideTable> {
        let Some((first, last)) = self.place(at, entries.len())? else { return Ok(()) };
        match entries {
            Entries::Same(Tce::NONE, _) => self.wipe(first, last),
            Entries::Same(tce, _) => {
                for index in first..=last {
                    self.set(index, tce);
                }
            }
            Entries::List([tce]) => self.set(first, *tce),
            Entries::List(list) => {
                for (index, part) in by_chunk(first, list) {
                    self.set_in_chunk(index, part);
                }
            }
        }
        Ok(())
    }

    /// The live entries in `range`, ascending, joined to runs. The cost grows with the chunks in use there; where the
    /// kernel has the entries, with the pages of the range.
    pub fn live(&self, range: IovaRange) -> Vec<EntryRun> {
        let mut runs = Vec::new();
        let Some(shared) = self.range.intersection(range) else { return runs };
        let (first, last) = (self.unchecked_index(shared.first()), self.unchecked_index(shared.last()));
        for (index, tce) in self.within(first, last).filter(|(_, tce)| tce.is_live()) {
            if let Some(pages) = self.pages(index, index) {
                push_joined(&mut runs, run_of(pages, tce, self.page));
            }
        }
        runs
    }

    /// Writes the entries that `change` left on the host. The guest's own encoding of them is lost: only address and
    /// rights are known.
    pub(crate) fn adopt(&mut self, change: &EntryChange) {
        let (range, run) = match change {
            EntryChange::Put(run) | EntryChange::Replace(run) => (run.range, Some(run)),
            EntryChange::Clear(range) => (*range, None),
        };
        let Some(shared) = self.range.intersection(range) else { return };
        let (first, last) = (self.unchecked_index(shared.first()), self.unchecked_index(shared.last()));
        let Some(run) = run else { return self.wipe(first, last) };
        for index in first..=last {
            if let Some(part) = self.pages(index, index).and_then(|pages| part_of(run, pages)) {
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

    /// Notes the entries of `list` from `first` on, chunk by chunk.
    fn note_list(&self, changes: &mut Changes, first: u64, list: &[Tce]) {
        for (index, new) in by_chunk(first, list) {
            let Some(pages) = self.pages(index, index) else { return };
            let chunk = self.chunks.get(&(index / CHUNK));
            let old = chunk.map_or(&NO_ENTRIES[..], |chunk| &chunk.entries);
            changes.note_list(pages.first(), old.get(place_in_chunk(index)..).unwrap_or_default(), new);
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

    /// The index of the page of `at`, which lies inside the window.
    fn unchecked_index(&self, at: Iova) -> u64 {
        debug_assert!(self.range.contains(at), "{at} lies outside the window {}", self.range);
        self.range.offset_of(at) >> self.page.shift()
    }

    /// The range of these entries, which lie inside the window.
    fn pages(&self, first: u64, last: u64) -> Option<IovaRange> {
        let start = self.range.first().get().checked_add(first << self.page.shift());
        let len = (last - first + 1) << self.page.shift();
        let pages = start.and_then(|start| IovaRange::with_len(Iova::new(start), len).ok());
        debug_assert!(pages.is_some(), "the entries {first}..={last} lie outside the window {}", self.range);
        pages
    }

    fn entry(&self, index: u64) -> Tce {
        if let Some(kernel) = &self.kernel {
            return kernel.entry(index);
        }
        let chunk = self.chunks.get(&(index / CHUNK));
        chunk.and_then(|chunk| chunk.entries.get(place_in_chunk(index))).copied().unwrap_or(Tce::NONE)
    }

    /// The entries in allocated chunks, or the kernel's, with their indices, ascending.
    fn within(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, Tce)> {
        let chunks = self.chunks.range(first / CHUNK..=last / CHUNK);
        let allocated = chunks.flat_map(|(number, chunk)| (number * CHUNK..).zip(chunk.entries.iter().copied()));
        let in_kernel =
            self.kernel.iter().flat_map(move |kernel| (first..=last).map(|index| (index, kernel.entry(index))));
        allocated.filter(move |(index, _)| (first..=last).contains(index)).chain(in_kernel)
    }

    fn set(&mut self, index: u64, tce: Tce) {
        let number = index / CHUNK;
        if tce == Tce::NONE && !self.chunks.contains_key(&number) {
            return;
        }
        let chunk = self.chunks.entry(number).or_insert_with(|| self.spare.take().unwrap_or_default());
        if let Some(entry) = chunk.entries.get_mut(place_in_chunk(index)) {
            let old = mem::replace(entry, tce);
            chunk.used += u64::from(tce != Tce::NONE);
            chunk.used -= u64::from(old != Tce::NONE);
        }
        if chunk.used == 0 {
            self.spare = self.chunks.remove(&number);
        }
    }

    /// Writes entries that all lie in the chunk of `index`, from there on.
    fn set_in_chunk(&mut self, index: u64, new: &[Tce]) {
        let number = index / CHUNK;
        let coming = used(new);
        if coming == 0 && !self.chunks.contains_key(&number) {
            return;
        }
        let chunk = self.chunks.entry(number).or_insert_with(|| self.spare.take().unwrap_or_default());
        let place = place_in_chunk(index);
        if let Some(entries) = chunk.entries.get_mut(place..place + new.len()) {
            chunk.used = chunk.used + coming - used(entries);
            entries.copy_from_slice(new);
        }
        if chunk.used == 0 {
            self.spare = self.chunks.remove(&number);
        }
    }

    /// Clears these entries.
    fn wipe(&mut self, first: u64, last: u64) {
        let touched: Vec<u64> = self.chunks.range(first / CHUNK..=last / CHUNK).map(|(number, _)| *number).collect();
        for number in touched {
            let (from, to) = (number * CHUNK, number * CHUNK + (CHUNK - 1));
            if first <= from && to <= last {
                if let Some(mut chunk) = self.chunks.remove(&number).filter(|_| self.spare.is_none()) {
                    chunk.empty();
                    self.spare = Some(chunk);
                }
            } else {
                let (from, to) = (first.max(from), last.min(to));
                let none = NO_ENTRIES.get(..=place_in_chunk(to - from)).unwrap_or_default();
                self.set_in_chunk(from, none);
            }
        }
    }
}

impl Chunk {
    fn empty(&mut self) {
        self.entries.fill(Tce::NONE);
        self.used = 0;
    }
}

/// The number of entries other than [`Tce::NONE`].
fn used(entries: &[Tce]) -> u64 {
    entries.iter().map(|tce| u64::from(*tce != Tce::NONE)).sum()
}

/// The parts of a list of entries from `first` on that lie in one chunk each, with the index of the first entry.
fn by_chunk(first: u64, list: &[Tce]) -> impl Iterator<Item = (u64, &[Tce])> {
    let (mut index, mut rest) = (first, list);
    std::iter::from_fn(move || {
        let room = NO_ENTRIES.len() - place_in_chunk(index);
        let (part, behind) = rest.split_at_checked(room).unwrap_or((rest, &[]));
        if part.is_empty() {
            return None;
        }
        let start = index;
        (index, rest) = (start + part.len() as u64, behind);
        Some((start, part))
    })
}

impl Entries<'_> {
    /// The only entry, if it is one.
    pub(crate) fn only(&self) -> Option<Tce> {
        match self {
            Self::List([tce]) | Self::Same(tce, 1) => Some(*tce),
            Self::List(_) | Self::Same(..) => None,
        }
    }

    /// The number of pages.
    fn len(&self) -> u64 {
        match self {
            Self::List(list) => list.len() as u64,
            Self::Same(_, count) => *count,
        }
    }
}

/// The place of an entry in its chunk: below 512, so the cast is exact.
#[allow(clippy::cast_possible_truncation)]
fn place_in_chunk(index: u64) -> usize {
    (index % CHUNK) as usize
}
