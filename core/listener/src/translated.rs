//! Translated windows: entries that the guest puts and clears, from any of its processors.

mod putting;

use dmaspace_core::contract::MapRequest;
use std::ops::Deref;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use crate::apply::Journal;
use crate::kernel_owned::KernelOwned;
use crate::plan::rest_of;
use crate::section::TargetMemory;
use crate::update::Pieces;
use dmaspace_core::contract::{Mapping, PciAddressSpace, Swap, Unit};
use dmaspace_core::error::Error;
use dmaspace_core::words::access::Access;
use dmaspace_core::words::address::{Iova, IovaRange, SystemAddress, SystemRange};
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;
use putting::Wanted;

/// What entries can point to, shared by the listener and its windows.
pub(super) type Targets = Arc<RwLock<Pieces<SystemAddress, TargetMemory>>>;

/// Why an entry was not put or cleared. The answer for the guest; the host is as it was, except for ranges that [`EntryError::Space`]
/// names as fenced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The window was removed.
    #[error("the window is gone")]
    NoSuchWindow,
    /// The range does not lie inside the window.
    #[error("{0} does not lie inside the window {1}")]
    OutsideWindow(IovaRange, IovaRange),
    /// The bounds are no range.
    #[error(transparent)]
    BadRange(#[from] dmaspace_core::words::address::BadRange),
    /// Bus address, target or length are no multiples of the window's page.
    #[error("not a multiple of the window's {0} pages")]
    Misaligned(PageSize),
    /// The guest named system memory that is no RAM.
    #[error("there is no RAM at {0}")]
    NotRam(SystemAddress),
    /// A host said no.
    #[error(transparent)]
    Space(#[from] Error),
    /// A host said no to an entry of a window whose pages are larger than its own: the memory is made of smaller ones, it seems. A window
    /// without an entry is made again with the host's pages; this one could not be.
    #[error(
        "{0}; the host's window is of {1} pages, which may be larger than the memory's, and cannot be made again as it is"
    )]
    PagesTooLarge(Error, PageSize),
}

/// Entries that continue each other on the bus and in system memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRun {
    /// Where on the bus.
    pub range: IovaRange,
    /// Where the first byte of it is in system memory.
    pub target: SystemAddress,
    /// What devices may do.
    pub access: Access,
}

/// A translated section in force. Cheap to clone; holds the window weakly: once the section is removed, every verb answers
/// [`EntryError::NoSuchWindow`].
#[derive(Clone, Debug)]
pub struct TranslatedWindow {
    shared: Weak<Shared>,
}

/// The section itself, owned by the listener.
#[derive(Debug)]
pub(super) struct Shared {
    range: IovaRange,
    page: PageSize,
    targets: Targets,
    /// Shared by verbs under way, exclusive for what lets none begin. Lookups do not ask.
    gate: RwLock<()>,
    /// Changed behind the gate, and for a moment only.
    spaces: RwLock<Vec<Arc<dyn PciAddressSpace>>>,
    /// Makes verbs follow each other where several spaces have to see them in one order.
    in_order: Mutex<()>,
    /// How often a host's window was made again for smaller pages.
    made_again: AtomicUsize,
    /// What entries of the kernel's point to.
    settled: Targets,
    /// The kernel, where it fills the window. Changed behind the gate.
    kernel_owned: RwLock<Option<Arc<KernelOwned>>>,
}

impl Shared {
    pub(super) fn new(
        range: IovaRange,
        page: PageSize,
        targets: Targets,
        settled: Targets,
        spaces: Vec<Arc<dyn PciAddressSpace>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            range,
            page,
            targets,
            gate: RwLock::default(),
            spaces: RwLock::new(spaces),
            in_order: Mutex::default(),
            made_again: AtomicUsize::default(),
            settled,
            kernel_owned: RwLock::default(),
        })
    }

    pub(super) fn handle(self: &Arc<Self>) -> TranslatedWindow {
        TranslatedWindow { shared: Arc::downgrade(self) }
    }

    pub(super) fn range(&self) -> IovaRange {
        self.range
    }

    pub(super) fn page(&self) -> PageSize {
        self.page
    }

    /// Waits for verbs under way, and lets none begin until the result is dropped.
    pub(super) fn hold(&self) -> Held<'_> {
        Held { shared: self, _gate: self.gate.write().unwrap_or_else(PoisonError::into_inner) }
    }

    pub(super) fn settled(&self) -> Targets {
        self.settled.clone()
    }

    pub(super) fn kernel_owned(&self) -> Option<Arc<KernelOwned>> {
        self.kernel_owned.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn note_kernel_owned(&self, kernel_owned: Option<Arc<KernelOwned>>) {
        *self.kernel_owned.write().unwrap_or_else(PoisonError::into_inner) = kernel_owned;
    }

    pub(super) fn spaces(&self) -> RwLockReadGuard<'_, Vec<Arc<dyn PciAddressSpace>>> {
        self.spaces.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the guest has put so far: what any space has that did not lose its last device, and none has anything else.
    pub(super) fn entries(&self) -> Vec<Mapping> {
        let spaces = self.spaces();
        let all = spaces.iter().map(|space| space.mappings(self.range));
        all.max_by_key(|entries| entries.iter().map(|entry| entry.range.bytes()).sum::<u128>()).unwrap_or_default()
    }

    /// The entries that `space` lost with its last device, as far as another one has them.
    pub(super) fn lacked_by(&self, space: &dyn PciAddressSpace) -> Vec<Mapping> {
        let live: Vec<_> = space.mappings(self.range).into_iter().map(|entry| entry.range).collect();
        let part = |entry: &Mapping, range: IovaRange| {
            let memory = entry.memory.slice(entry.range.offset_of(range.first()), range.len()?.get())?;
            Some(Mapping { range, memory, ..entry.clone() })
        };
        let lacked = |entry: &Mapping| {
            rest_of(entry.range, &live).into_iter().filter_map(|range| part(entry, range)).collect::<Vec<_>>()
        };
        self.entries().iter().flat_map(lacked).collect()
    }

    /// What entries mean for a space.
    pub(super) fn mappings_of(&self, run: &EntryRun) -> Result<Vec<Mapping>, EntryError> {
        let len = run.range.len().map_or(0, |len| len.get());
        self.checked(run.range.first(), len, run.target.get())?;
        let mut next = run.range.first().get();
        let mut mappings = Vec::new();
        for memory in self.resolve(run.target, len)? {
            let range = IovaRange::with_len(Iova::new(next), memory.len().get())?;
            next = range.last().get().wrapping_add(1);
            mappings.push(Mapping { range, memory, access: run.access, unit: Unit::Pages(self.page) });
        }
        Ok(mappings)
    }

    fn checked(&self, at: Iova, len: u64, target: u64) -> Result<IovaRange, EntryError> {
        let range = IovaRange::with_len(at, len)?;
        if !self.range.covers(range) {
            return Err(EntryError::OutsideWindow(range, self.range));
        }
        if !range.is_aligned_to(self.page) || !self.page.divides(target) {
            return Err(EntryError::Misaligned(self.page));
        }
        Ok(range)
    }

    /// The host memory behind a range of system memory, in as few pieces as there are.
    fn resolve(&self, target: SystemAddress, len: u64) -> Result<Vec<HostMemory>, EntryError> {
        resolve(&self.targets.read().unwrap_or_else(PoisonError::into_inner), target, len)
    }
}

/// The host memory behind a range of system memory, in as few pieces as there are.
pub(super) fn resolve(
    targets: &Pieces<SystemAddress, TargetMemory>,
    target: SystemAddress,
    len: u64,
) -> Result<Vec<HostMemory>, EntryError> {
    let range = SystemRange::with_len(target, len)?;
    let mut pieces = Vec::with_capacity(1);
    let mut next = Some(range.first());
    for piece in targets.within(range) {
        let shared = piece.range().intersection(range).ok_or(EntryError::NotRam(target))?;
        if next != Some(shared.first()) {
            break;
        }
        let offset = piece.range().offset_of(shared.first());
        pieces.extend(shared.len().and_then(|len| piece.memory().slice(offset, len.get())));
        next = shared.end();
        if shared.last() == range.last() {
            return Ok(pieces);
        }
    }
    Err(EntryError::NotRam(next.unwrap_or(target)))
}

impl Drop for Shared {
    /// Nobody would see any more what the kernel puts.
    fn drop(&mut self) {
        self.reclaim_everywhere();
    }
}

impl TranslatedWindow {
    pub(super) fn shared(&self) -> Result<Arc<Shared>, EntryError> {
        self.shared.upgrade().ok_or(EntryError::NoSuchWindow)
    }

    /// Where the window lies on the bus.
    ///
    /// # Errors
    /// [`EntryError::NoSuchWindow`].
    pub fn range(&self) -> Result<IovaRange, EntryError> {
        Ok(self.shared()?.range)
    }

    /// The page of its entries.
    ///
    /// # Errors
    /// [`EntryError::NoSuchWindow`].
    pub fn page(&self) -> Result<PageSize, EntryError> {
        Ok(self.shared()?.page)
    }

    /// Puts one entry: devices reach `target` at `at`.
    ///
    /// # Errors
    /// Any [`EntryError`]; nothing changed then. An entry that is live already is an overlap: use
    /// [`TranslatedWindow::replace`].
    pub fn put(&self, at: Iova, target: SystemAddress, access: Access) -> Result<(), EntryError> {
        let len = self.page()?.bytes();
        self.put_run(at, target, len, access)
    }

    /// Puts the entries of `len` bytes that continue each other on the bus and in system memory: one kernel call where the kernel can
    /// later clear parts of it. A host's window that has no entry yet, and whose pages prove larger than those of the memory, is made again
    /// with smaller ones.
    ///
    /// # Errors
    /// Any [`EntryError`]; nothing changed then, but for what is named as fenced.
    pub fn put_run(&self, at: Iova, target: SystemAddress, len: u64, access: Access) -> Result<(), EntryError> {
        self.shared()?.put_run(Wanted { at, target, len, access })
    }

    /// Swaps live entries for others, and says whether devices could miss them meanwhile.
    ///
    /// # Errors
    /// Any [`EntryError`]; nothing changed then, but for what is named as fenced.
    pub fn replace(&self, at: Iova, target: SystemAddress, len: u64, access: Access) -> Result<Swap, EntryError> {
        let shared = self.shared()?;
        shared.checked(at, len, target.get())?;
        let spaces = shared.open()?;
        let memory = shared.resolve(target, len)?;
        let mut swap = Swap::Seamless;
        shared.on_every_space(&spaces, |space, journal| {
            let mut next = at.get();
            for piece in &memory {
                let place = IovaRange::with_len(Iova::new(next), piece.len().get())?;
                // Only where there is something after it that can fail.
                let old = if spaces.len() + memory.len() > 2 { space.mappings(place) } else { Vec::new() };
                if space.replace(MapRequest::new(place.first(), piece, access).with_unit(Unit::Pages(shared.page)))?
                    == Swap::WithGap
                {
                    swap = Swap::WithGap;
                }
                journal.note_replaced(old, shared.page);
                next = place.last().get().wrapping_add(1);
            }
            Ok(())
        })?;
        Ok(swap)
    }

    /// Clears whatever entries live in a range: one kernel call, however many they are. Returns how many bytes were mapped.
    ///
    /// # Errors
    /// Any [`EntryError`]; nothing changed then, but for what is named as fenced.
    pub fn clear(&self, range: IovaRange) -> Result<u64, EntryError> {
        let shared = self.shared()?;
        let page = shared.page;
        if !shared.range.covers(range) {
            return Err(EntryError::OutsideWindow(range, shared.range));
        }
        if !range.is_aligned_to(page) {
            return Err(EntryError::Misaligned(page));
        }
        let spaces = shared.open()?;
        let mut bytes = 0;
        shared.on_every_space(&spaces, |space, journal| {
            let old = if spaces.len() > 1 { space.mappings(range) } else { Vec::new() };
            // One whose device has just come back may lack some.
            bytes = bytes.max(space.unmap(range)?);
            journal.note_unmapped(old);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// The entry at `at`, with those that continue it. Never waits for a kernel call.
    ///
    /// # Errors
    /// [`EntryError::NoSuchWindow`].
    pub fn lookup(&self, at: Iova) -> Result<Option<Mapping>, EntryError> {
        let shared = self.shared()?;
        let spaces = shared.spaces();
        if spaces.is_empty() {
            return Err(EntryError::NoSuchWindow);
        }
        let here = || spaces.iter().find_map(|space| space.lookup(at));
        Ok(if shared.range.contains(at) { here() } else { None })
    }
}

/// A window in which no verb begins.
pub(super) struct Held<'a> {
    shared: &'a Shared,
    _gate: RwLockWriteGuard<'a, ()>,
}

impl Held<'_> {
    /// Has the kernel fill the window from now on, or no longer.
    pub(super) fn note_kernel_owned(&self, kernel_owned: Option<Arc<KernelOwned>>) {
        self.shared.note_kernel_owned(kernel_owned);
    }

    /// Serves `spaces` from now on. None: the window is gone.
    pub(super) fn serve(&self, spaces: Vec<Arc<dyn PciAddressSpace>>) {
        *self.shared.spaces.write().unwrap_or_else(PoisonError::into_inner) = spaces;
    }
}

/// The spaces a verb works on. The window does not go, and the spaces do not change, while this is held.
struct Open<'a> {
    _gate: RwLockReadGuard<'a, ()>,
    spaces: RwLockReadGuard<'a, Vec<Arc<dyn PciAddressSpace>>>,
}

impl Deref for Open<'_> {
    type Target = [Arc<dyn PciAddressSpace>];

    fn deref(&self) -> &Self::Target {
        &self.spaces
    }
}

impl Shared {
    fn open(&self) -> Result<Open<'_>, EntryError> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let spaces = self.spaces();
        if spaces.is_empty() { Err(EntryError::NoSuchWindow) } else { Ok(Open { _gate: gate, spaces }) }
    }

    /// Does the same to every space, or to none: `work` tells what it did. What cannot be taken back is fenced, and named. One that has lost
    /// its last device is passed over as long as others have not: it gets all of it when it is brought in step.
    fn on_every_space<'a>(
        &self,
        spaces: &'a [Arc<dyn PciAddressSpace>],
        mut work: impl FnMut(&'a Arc<dyn PciAddressSpace>, &mut Journal) -> Result<(), EntryError>,
    ) -> Result<(), EntryError> {
        let lock = || self.in_order.lock().unwrap_or_else(PoisonError::into_inner);
        let _in_order = (spaces.len() > 1).then(lock);
        let is_lost = |space: &Arc<dyn PciAddressSpace>| spaces.len() > 1 && space.windows().windows.is_empty();
        let are_all_lost = spaces.iter().all(is_lost);
        let mut journals = Vec::with_capacity(spaces.len());
        for space in spaces.iter().filter(|space| are_all_lost || !is_lost(space)) {
            let mut journal = Journal::default();
            let result = work(space, &mut journal);
            journals.push((space, journal));
            if let Err(error) = result {
                let undone = journals.into_iter().rev().flat_map(|(space, journal)| journal.undo(space.as_ref()));
                let fenced: Vec<_> = undone.collect();
                return Err(match error {
                    EntryError::Space(error) => error.fencing(fenced).into(),
                    other => other,
                });
            }
        }
        Ok(())
    }
}
