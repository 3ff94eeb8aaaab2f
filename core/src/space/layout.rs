//! The windows in force, and the index of each.

use std::sync::Arc;

use crate::contract::kernel_tables::KernelWriter;
use crate::contract::{Mapping, Snapshot, Unit, WindowChange};
use crate::error::{Error, Kind, Operation};
use crate::space::blocks::Covered;
use crate::space::deferred::Deferred;
use crate::space::index::{Index, Placed};
use crate::sync::{Mutex, Rank, RwLock, RwLockReadGuard};
use crate::words::access::Access;
use crate::words::address::{HostAddress, Iova, IovaRange};
use crate::words::memory::HostMemory;
use crate::words::page::PageSize;
use crate::words::window::{Window, Windows};

/// The windows of a space. They change only under the space's gate, held exclusively; a reader takes the set that is
/// in force and needs no lock to use it.
///
/// Its lock is [`Rank::Layout`] in the order of all locks ([`crate::sync`]).
#[derive(Debug)]
pub(super) struct Layout {
    in_force: RwLock<Arc<WindowSet>>,
}

/// Windows that are in force together.
#[derive(Debug)]
pub(super) struct WindowSet {
    pub(super) generation: u64,
    pub(super) windows: Arc<Windows>,
    /// One for each of `windows`, in their order.
    pub(super) slots: Vec<Arc<Slot>>,
}

/// A window and its live mappings.
///
/// Its locks are [`Rank::Operations`] (key: the window's first byte) and [`Rank::Live`] in the order of all locks
/// ([`crate::sync`]).
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) window: Window,
    /// Held by each change of the window, during its kernel calls: changes of one window follow each other, and
    /// windows do not wait for one another.
    pub(super) operations: Mutex<Turn>,
    /// Never held during a kernel call, so a look-up never waits for one. Empty while the kernel writes the window's
    /// entries.
    pub(super) live: RwLock<Index>,
    /// The writer of the window's entries while the kernel owns the window.
    pub(super) writer: Option<Arc<dyn KernelWriter>>,
}

/// The facts that one change of a window leaves for the next.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// Memory that was found registered.
    pub(super) registered: Covered,
}

impl Layout {
    pub(super) fn new(windows: Windows) -> Self {
        Self { in_force: RwLock::new(Rank::Layout, Arc::new(WindowSet::empty(0, windows))) }
    }

    /// The windows in force, for a moment: no kernel call is made until the result is dropped.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Arc<WindowSet>> {
        self.in_force.read()
    }

    /// The windows in force.
    pub(super) fn get(&self) -> Arc<WindowSet> {
        self.in_force.read().clone()
    }

    /// Puts the windows that the host offers now into force, with the live mappings. Windows that a live mapping does
    /// not fit into are not put into force: the mapping is still in the kernel, and the space must not forget it.
    pub(super) fn adopt(&self, backend: &str, windows: Windows) -> WindowChange {
        let before = self.get();
        if *before.windows != windows {
            if let Some(stranded) = before.stranded_by(&windows) {
                log::error!(
                    "{backend}: the host's windows leave out {stranded}, which is mapped: the old ones are kept"
                );
            } else {
                self.set(before.moved_to(windows));
            }
        }
        WindowChange { before: before.snapshot(), after: self.get().snapshot() }
    }

    /// Adds a window that was created.
    pub(super) fn add(&self, window: Window) {
        let mut slots = self.get().slots.clone();
        slots.push(Arc::new(Slot::new(window)));
        self.put(slots);
    }

    /// Removes the window at `range`.
    pub(super) fn remove(&self, range: IovaRange) {
        let mut slots = self.get().slots.clone();
        slots.retain(|slot| slot.window.range != range);
        self.put(slots);
    }

    fn put(&self, mut slots: Vec<Arc<Slot>>) {
        slots.sort_by_key(|slot| slot.window.range);
        let windows = Windows::new(slots.iter().map(|slot| slot.window).collect());
        debug_assert!(windows.is_ok(), "windows overlap that were checked before the kernel was asked");
        let Ok(windows) = windows else { return };
        let generation = self.get().generation + 1;
        self.set(WindowSet { generation, windows: Arc::new(windows), slots });
    }

    fn set(&self, next: WindowSet) {
        let before = std::mem::replace(&mut *self.in_force.write(), Arc::new(next));
        // Not under the lock.
        drop(before);
    }

    /// Puts `slot` in the place of the one with its window. The windows stay as they are.
    pub(super) fn replace(&self, slot: Slot) {
        let set = self.get();
        let fresh = Arc::new(slot);
        let mut slots = set.slots.clone();
        for place in slots.iter_mut().filter(|known| known.window == fresh.window) {
            *place = fresh.clone();
        }
        self.set(WindowSet { generation: set.generation, windows: set.windows.clone(), slots });
    }

    /// Replaces all live mappings by `mappings`, which fit the windows. The windows stay as they are.
    pub(super) fn record_all(&self, mappings: Vec<Mapping>, deferred: &mut Deferred) {
        let set = self.get();
        let fresh = WindowSet::empty(set.generation, Windows::clone(&set.windows));
        fresh.record_all(mappings);
        for mapping in set.mappings(IovaRange::all()) {
            deferred.release(mapping.memory);
        }
        self.set(fresh);
    }

    /// Forgets all live mappings, which the kernel has forgotten. No window is the kernel's any more.
    pub(super) fn forget(&self, deferred: &mut Deferred) {
        for slot in &self.get().slots {
            slot.live.write().remove(IovaRange::all(), deferred);
            if slot.writer.is_some() {
                self.replace(Slot::new(slot.window));
            }
        }
    }
}

impl WindowSet {
    fn empty(generation: u64, windows: Windows) -> Self {
        let slots = windows.iter().map(|window| Arc::new(Slot::new(*window))).collect();
        Self { generation, windows: Arc::new(windows), slots }
    }

    /// The live mappings in other windows, which they fit. A window that stays keeps its slot. The old set stays as
    /// it is, for readers that have taken it.
    fn moved_to(&self, windows: Windows) -> Self {
        let mut next = Self::empty(self.generation + 1, windows);
        for slot in &mut next.slots {
            if let Some(same) = self.slots.iter().find(|known| known.window == slot.window) {
                *slot = same.clone();
            }
        }
        let moving = self.slots.iter().filter(|slot| !next.slots.iter().any(|kept| Arc::ptr_eq(kept, slot)));
        let mappings = moving.flat_map(|slot| slot.mappings(slot.window.range)).collect();
        next.record_all(mappings);
        next
    }

    fn record_all(&self, mappings: Vec<Mapping>) {
        for mapping in &mappings {
            let slot = self.slot_at(mapping.range.first());
            debug_assert!(slot.is_some(), "{} fits no window", mapping.range);
            if let Some(slot) = slot {
                slot.record(Placed::of(mapping));
            }
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot { generation: self.generation, windows: self.windows.clone() }
    }

    /// The slot of the window around `at`.
    pub(super) fn slot_at(&self, at: Iova) -> Option<&Arc<Slot>> {
        // Hosts have one to three windows.
        if let [only] = self.slots.as_slice() {
            return if only.window.range.contains(at) { Some(only) } else { None };
        }
        let after = self.slots.partition_point(|slot| slot.window.range.first() <= at);
        self.slots.get(after.checked_sub(1)?).filter(|slot| slot.window.range.contains(at))
    }

    /// The slots of the windows that share bytes with `range`, ascending.
    pub(super) fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = &Slot> {
        self.slots.iter().map(AsRef::as_ref).filter(move |slot| slot.window.range.overlaps(range))
    }

    /// The slot whose window holds all of `range`, with bounds, host address and unit as the window wants them.
    pub(super) fn slot_for(
        &self,
        operation: Operation,
        range: IovaRange,
        memory: &HostMemory,
        unit: Unit,
    ) -> Result<&Arc<Slot>, Error> {
        let Some(slot) = self.slot_at(range.first()).filter(|slot| slot.window.range.covers(range)) else {
            return Err(Error::new(operation, range, Kind::OutsideWindows(self.windows.top())));
        };
        slot.check_ours(operation, range)?;
        let granule = slot.window.granule();
        if !range.is_aligned_to(granule) || !granule.divides(memory.address().get()) {
            return Err(Error::new(operation, range, Kind::Misaligned(granule)));
        }
        match unit {
            Unit::Pages(page) if page < granule || !range.is_aligned_to(page) => {
                Err(Error::new(operation, range, Kind::BadUnit(page)))
            }
            Unit::Pages(_) | Unit::Whole => Ok(slot),
        }
    }

    /// The slot of the window that is exactly `range`.
    pub(super) fn slot_of(&self, operation: Operation, range: IovaRange) -> Result<Arc<Slot>, Error> {
        let slot = self.slots.iter().find(|slot| slot.window.range == range);
        slot.cloned().ok_or_else(|| Error::new(operation, range, Kind::NoSuchWindow))
    }

    /// The live mappings in `range`, ascending, clipped to it.
    pub(super) fn mappings(&self, range: IovaRange) -> Vec<Mapping> {
        let mut all = Vec::new();
        for slot in self.overlapping(range) {
            let mut live = slot.mappings(range);
            if all.is_empty() {
                all = live;
            } else {
                all.append(&mut live);
            }
        }
        all
    }

    /// The first live mapping that shares bytes with `range`, in windows whose entries the space writes.
    pub(super) fn overlap(&self, range: IovaRange) -> Option<IovaRange> {
        self.slots.iter().find_map(|slot| slot.live.read().overlap(range))
    }

    /// A live mapping in `range` whose memory shares bytes with `memory`.
    pub(super) fn onto(&self, memory: &HostMemory, range: IovaRange) -> Option<IovaRange> {
        self.overlapping(range).find_map(|slot| slot.onto(memory, range))
    }

    /// The first live mapping that `windows` could not hold.
    pub(super) fn stranded_by(&self, windows: &Windows) -> Option<IovaRange> {
        let live = self.slots.iter().flat_map(|slot| slot.mappings(slot.window.range));
        live.map(|mapping| mapping.range).find(|range| {
            let window = windows.covering(*range);
            !window.is_some_and(|window| range.is_aligned_to(window.granule()))
        })
    }

    /// The bytes that are mapped.
    pub(super) fn mapped_bytes(&self) -> u64 {
        let hulls = self.slots.iter().filter_map(|slot| slot.live.read().hull(slot.window.range));
        hulls.fold(0, |sum, (_, bytes)| bytes.saturating_add(sum))
    }
}

impl Slot {
    pub(super) fn new(window: Window) -> Self {
        let key = window.range.first().get();
        Self {
            window,
            operations: Mutex::keyed(Rank::Operations, key, Turn::default()),
            live: RwLock::new(Rank::Live, Index::new(window.range.first(), window.granule())),
            writer: None,
        }
    }

    pub(super) fn record(&self, placed: Placed<'_>) {
        self.live.write().insert(placed);
    }

    /// Records a mapping in the place of those in its range, at once: a look-up finds the old ones or the new one. A
    /// commit on another thread plans by what it finds.
    pub(super) fn record_over(&self, placed: Placed<'_>, deferred: &mut Deferred) {
        let mut live = self.live.write();
        live.remove(placed.range, deferred);
        live.insert(placed);
    }

    /// The live mappings in `range`, ascending, clipped to it.
    pub(super) fn mappings(&self, range: IovaRange) -> Vec<Mapping> {
        let Some(writer) = &self.writer else {
            let live = self.live.read();
            return if range.covers(self.window.range) { live.all() } else { live.within(range).collect() };
        };
        let Some(shared) = self.window.range.intersection(range) else { return Vec::new() };
        writer.mappings(shared).into_iter().filter_map(|mapping| clipped(mapping, range)).collect()
    }

    /// The live mapping at `at`; in a window that the kernel owns, the entry there.
    pub(super) fn lookup(&self, at: Iova) -> Option<Mapping> {
        if self.writer.is_none() { self.live.read().at(at) } else { self.entry_at(at) }
    }

    /// The entry at `at` of a window that the kernel owns.
    #[inline(never)]
    fn entry_at(&self, at: Iova) -> Option<Mapping> {
        let page = self.window.granule();
        let entry = IovaRange::with_len(Iova::new(page.round_down(at.get())), page.bytes()).ok()?;
        self.mappings(entry).pop()
    }

    /// The host address behind `at`, and the access to it.
    pub(super) fn translate(&self, at: Iova) -> Option<(HostAddress, Access)> {
        if self.writer.is_none() {
            return self.live.read().translate(at);
        }
        let entry = self.entry_at(at)?;
        let address = entry.memory.address().get().checked_add(entry.range.offset_of(at))?;
        Some((HostAddress::new(address), entry.access))
    }

    fn onto(&self, memory: &HostMemory, range: IovaRange) -> Option<IovaRange> {
        let Some(writer) = &self.writer else { return self.live.read().onto(memory, range) };
        let shared = self.window.range.intersection(range)?;
        let found = writer.mappings(shared).into_iter().find(|mapping| mapping.memory.overlaps(memory));
        found.map(|mapping| mapping.range)
    }

    /// Refuses an operation on a range of a window that the kernel owns.
    pub(super) fn check_ours(&self, operation: Operation, range: IovaRange) -> Result<(), Error> {
        if self.writer.is_some() && self.window.range.overlaps(range) {
            return Err(Error::new(operation, range, Kind::KernelOwned(self.window.range)));
        }
        Ok(())
    }

    /// Returns `true` if the space writes the window's entries, and pages of `page` at `first` and at `memory` are as
    /// the window wants them.
    #[inline(always)]
    pub(super) fn takes_pages(&self, page: PageSize, first: Iova, memory: u64) -> bool {
        let mask = self.window.page_sizes.mask();
        let granule = mask & mask.wrapping_neg();
        let unaligned = (first.get() | memory) & (granule - 1);
        self.writer.is_none() && page.bytes() >= granule && unaligned == 0 && page.divides(first.get())
    }

    /// Refuses to unmap a range that cuts a unit, or that the kernel owns. Returns the smallest range that holds all
    /// live mappings there, and the number of their bytes.
    pub(super) fn check_unmap(&self, range: IovaRange) -> Result<Option<(IovaRange, u64)>, Error> {
        let live = self.live.read();
        if let Some(unit) = live.cut_by(range) {
            return Err(Error::new(Operation::Unmap, range, Kind::CutsUnit(unit)));
        }
        self.check_ours(Operation::Unmap, range)?;
        Ok(live.hull(range))
    }
}

fn clipped(mapping: Mapping, range: IovaRange) -> Option<Mapping> {
    let shared = mapping.range.intersection(range)?;
    let memory = mapping.memory.slice(mapping.range.offset_of(shared.first()), shared.len()?.get())?;
    Some(Mapping { range: shared, memory, ..mapping })
}

/// The smallest range that holds all live mappings in `range` of these windows, and the number of their bytes.
pub(super) fn hull_over(slots: &[&Slot], range: IovaRange) -> Option<(IovaRange, u64)> {
    let hulls = slots.iter().filter_map(|slot| slot.live.read().hull(range));
    hulls.reduce(|(hull, bytes), (next, more)| (hull.hull(next), bytes.saturating_add(more)))
}
