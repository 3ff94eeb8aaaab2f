//! The state behind a translated window: the spaces that serve it, and the locks that order changes.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use dmaspace_core::contract::{MapBatch, MapRequest, Mapping, PciAddressSpace, Swap, Unit};
use dmaspace_core::sync::{Mutex, Rank, RwLock, RwLockReadGuard, RwLockWriteGuard};
use dmaspace_core::words::access::Access;
use dmaspace_core::words::address::{Iova, IovaRange, SystemAddress};
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;

use super::entry::{EntryError, EntryRun, Targets, add_to, placed, resolve, resolve_in_one};
use super::kernel_owned::KernelOwned;
use crate::journal::{Done, Journal};
use crate::plan::rest_of;

/// A list of spaces.
pub(crate) type Spaces = Vec<Arc<dyn PciAddressSpace>>;

/// A translated section in force, owned by the listener.
///
/// Its locks, in the order in which they are taken ([`dmaspace_core::sync`]): `gate` ([`Rank::TranslatedGate`]; of
/// several windows, the lower one first), `spaces` ([`Rank::TranslatedSpaces`]), `in_order`
/// ([`Rank::TranslatedOrder`]), `kernel` ([`Rank::KernelOwned`]), `targets` ([`Rank::Targets`]).
#[derive(Debug)]
pub(crate) struct Shared {
    range: IovaRange,
    page: PageSize,
    targets: Targets,
    /// The target memory as of the last commit, used to resolve entries in kernel-owned windows.
    pub(super) settled: Targets,
    /// Shared by verbs under way; exclusive while no verb may begin. It has the spaces that verbs work on. Lookups do
    /// not take it.
    gate: RwLock<Spaces>,
    /// The spaces in force, for lookups. Changed behind the exclusive gate, and for a moment only; the gate has them
    /// when it opens.
    spaces: RwLock<Spaces>,
    /// Gives several spaces the verbs in one order.
    in_order: Mutex<()>,
    /// The number of times a host's window was created again for smaller pages.
    pub(super) made_again: AtomicUsize,
    /// The kernel's entries, while it owns the window. Changed behind the exclusive gate.
    kernel: RwLock<Option<Arc<KernelOwned>>>,
}

impl Shared {
    pub(crate) fn new(
        range: IovaRange,
        page: PageSize,
        targets: Targets,
        settled: Targets,
        spaces: Spaces,
    ) -> Arc<Self> {
        Arc::new(Self {
            range,
            page,
            targets,
            settled,
            gate: RwLock::keyed(Rank::TranslatedGate, range.first().get(), spaces.clone()),
            spaces: RwLock::new(Rank::TranslatedSpaces, spaces),
            in_order: Mutex::new(Rank::TranslatedOrder, ()),
            made_again: AtomicUsize::default(),
            kernel: RwLock::new(Rank::KernelOwned, None),
        })
    }

    pub(crate) fn range(&self) -> IovaRange {
        self.range
    }

    pub(crate) fn page(&self) -> PageSize {
        self.page
    }

    /// Waits for verbs under way, and lets none begin until the result is dropped.
    pub(crate) fn pause(&self) -> Paused<'_> {
        Paused { window: self, gate: self.gate.write() }
    }

    /// Returns the spaces a verb works on. The window stays, and its spaces do not change, until the result is dropped.
    pub(super) fn open(&self) -> Result<Open<'_>, EntryError> {
        let spaces = self.gate.read();
        if spaces.is_empty() { Err(EntryError::NoSuchWindow) } else { Ok(Open { spaces }) }
    }

    pub(super) fn spaces(&self) -> RwLockReadGuard<'_, Spaces> {
        self.spaces.read()
    }

    /// The kernel's entries, if the window was handed to the kernel and the kernel still fills it.
    pub(super) fn kernel(&self) -> Option<Arc<KernelOwned>> {
        self.kernel.read().clone().filter(|kernel| !kernel.has_ended())
    }

    /// The entries in force: those of the space that has most of them. A space may lack some after it lost its last
    /// device, and no space has others.
    pub(crate) fn entries(&self) -> Vec<Mapping> {
        let spaces = self.spaces.read();
        let all = spaces.iter().map(|space| space.mappings(self.range));
        all.max_by_key(|entries| entries.iter().map(|entry| entry.range.bytes()).sum::<u128>()).unwrap_or_default()
    }

    /// Entries in force that point to bytes of `memory`, in any of the spaces.
    pub(crate) fn entries_onto(&self, memory: &HostMemory) -> Option<IovaRange> {
        self.spaces.read().iter().find_map(|space| space.mapping_onto_in(memory, self.range))
    }

    /// The entries that `space` lost with its last device, as far as another space has them.
    pub(crate) fn lacked_by(&self, space: &dyn PciAddressSpace) -> Vec<Mapping> {
        let live: Vec<_> = space.mappings(self.range).into_iter().map(|entry| entry.range).collect();
        let mut lacked = Vec::new();
        for entry in self.entries() {
            for range in rest_of(entry.range, &live) {
                lacked.extend(part_of(&entry, range));
            }
        }
        lacked
    }

    /// The mappings that make `run` in a space.
    pub(crate) fn mappings_of(&self, run: &EntryRun) -> Result<Vec<Mapping>, EntryError> {
        self.check(run.range, run.target)?;
        Ok(placed(run.range.first(), self.resolve(run.target, run.len())?, run.access, self.page))
    }

    /// Checks that a run of entries lies in the window, in whole pages.
    pub(super) fn check(&self, range: IovaRange, target: SystemAddress) -> Result<(), EntryError> {
        self.check_range(range)?;
        if self.page.divides(target.get()) { Ok(()) } else { Err(EntryError::Misaligned(self.page)) }
    }

    fn check_range(&self, range: IovaRange) -> Result<(), EntryError> {
        if !self.range.covers(range) {
            return Err(EntryError::OutsideWindow(range, self.range));
        }
        if range.is_aligned_to(self.page) { Ok(()) } else { Err(EntryError::Misaligned(self.page)) }
    }

    /// The host memory behind a range of system memory, in as few pieces as possible.
    pub(super) fn resolve(&self, target: SystemAddress, len: u64) -> Result<Vec<HostMemory>, EntryError> {
        resolve(&self.targets.read(), target, len)
    }

    /// The host memory behind a range of system memory, if it is one piece.
    #[inline(always)]
    pub(super) fn resolve_in_one(&self, target: SystemAddress, len: u64) -> Option<HostMemory> {
        resolve_in_one(&self.targets.read(), target, len)
    }

    /// Adds the maps that put `runs` to a batch.
    pub(super) fn add_to(&self, batch: &mut MapBatch, runs: &[EntryRun]) -> Result<(), EntryError> {
        add_to(batch, &self.targets.read(), runs)
    }

    /// Swaps live entries for others, in every space or in none.
    pub(super) fn replace(
        &self,
        at: Iova,
        target: SystemAddress,
        len: u64,
        access: Access,
    ) -> Result<Swap, EntryError> {
        // Dropped after the locks: old memory may lose its last owner.
        let mut spent = Vec::new();
        self.check(IovaRange::with_len(at, len)?, target)?;
        let spaces = self.open()?;
        if let [space] = &*spaces {
            if let Some(memory) = self.resolve_in_one(target, len) {
                let request = MapRequest::new(at, &memory, access).with_unit(Unit::Pages(self.page));
                return Ok(space.replace(request)?);
            }
        }
        let pieces = placed(at, self.resolve(target, len)?, access, self.page);
        // Old entries are wanted only where a later step can fail.
        let can_be_undone = spaces.len() + pieces.len() > 2;
        let mut swap = Swap::Seamless;
        self.on_every_space(&spaces, &mut spent, |space, journal| {
            for Mapping { range, memory, .. } in &pieces {
                let old = if can_be_undone { space.mappings(*range) } else { Vec::new() };
                let request = MapRequest::new(range.first(), memory, access).with_unit(Unit::Pages(self.page));
                if space.replace(request)? == Swap::WithGap {
                    swap = Swap::WithGap;
                }
                journal.enter(Done::Replaced(old, self.page));
            }
            Ok(())
        })?;
        Ok(swap)
    }

    /// Clears the entries that live in a range, in every space or in none.
    pub(super) fn clear(&self, range: IovaRange) -> Result<u64, EntryError> {
        self.check_range(range)?;
        let spaces = self.open()?;
        match &*spaces {
            [space] => Ok(space.unmap(range)?),
            _ => self.clear_on_all(spaces, range),
        }
    }

    #[inline(never)]
    fn clear_on_all(&self, spaces: Open<'_>, range: IovaRange) -> Result<u64, EntryError> {
        let mut spent = Vec::new();
        let cleared = self.clear_on(&spaces, range, &mut spent);
        // Before `spent`: old memory may lose its last owner, which is dropped after the locks.
        drop(spaces);
        cleared
    }

    fn clear_on(
        &self,
        spaces: &[Arc<dyn PciAddressSpace>],
        range: IovaRange,
        spent: &mut Vec<Journal>,
    ) -> Result<u64, EntryError> {
        let mut bytes = 0;
        self.on_every_space(spaces, spent, |space, journal| {
            let old = if spaces.len() > 1 { space.mappings(range) } else { Vec::new() };
            // A space whose device has just come back may lack some entries.
            bytes = bytes.max(space.unmap(range)?);
            journal.enter(Done::Unmapped(old));
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Does `work` on every space, or on none. An undo that fails leaves fences, which the error names. A space that
    /// has lost its last device is passed over as long as another one has a device: it gets all entries when it is
    /// brought up to date. The journals end up in `spent`.
    pub(super) fn on_every_space<'a>(
        &self,
        spaces: &'a [Arc<dyn PciAddressSpace>],
        spent: &mut Vec<Journal>,
        mut work: impl FnMut(&'a Arc<dyn PciAddressSpace>, &mut Journal) -> Result<(), EntryError>,
    ) -> Result<(), EntryError> {
        let _in_order = if spaces.len() > 1 { Some(self.in_order.lock()) } else { None };
        let mut done: Vec<(&Arc<dyn PciAddressSpace>, Journal)> = Vec::new();
        let mut result = Ok(());
        for space in in_use(spaces) {
            let mut journal = Journal::of(space.as_ref());
            result = work(space, &mut journal);
            done.push((space, journal));
            if result.is_err() {
                break;
            }
        }
        if let Err(error) = result {
            let mut fenced = Vec::new();
            for (space, journal) in done.iter().rev() {
                fenced.extend(journal.undo(space.as_ref()));
            }
            result = Err(error.fencing(fenced));
        }
        spent.extend(done.into_iter().map(|(_, journal)| journal));
        result
    }
}

impl EntryError {
    /// This error, naming further ranges as fenced.
    pub(super) fn fencing(self, fenced: Vec<IovaRange>) -> Self {
        match self {
            Self::Space(error) => Self::Space(error.fencing(fenced)),
            Self::PagesTooLarge(error, page) => Self::PagesTooLarge(error.fencing(fenced), page),
            other => {
                debug_assert!(fenced.is_empty(), "only a space's error follows a step that has to be undone");
                other
            }
        }
    }
}

/// The spaces that verbs work on: those with a window, or all of them when none has one.
fn in_use(spaces: &[Arc<dyn PciAddressSpace>]) -> Vec<&Arc<dyn PciAddressSpace>> {
    if let [only] = spaces {
        return vec![only];
    }
    let with_window: Vec<_> = spaces.iter().filter(|space| !space.windows().windows.is_empty()).collect();
    if with_window.is_empty() { spaces.iter().collect() } else { with_window }
}

/// The part of an entry in `range`.
fn part_of(entry: &Mapping, range: IovaRange) -> Option<Mapping> {
    let memory = entry.memory.slice(entry.range.offset_of(range.first()), range.len()?.get())?;
    Some(Mapping::new(range, memory, entry.access, entry.unit))
}

/// A window in which no verb begins until this is dropped.
pub(crate) struct Paused<'a> {
    pub(super) window: &'a Shared,
    gate: RwLockWriteGuard<'a, Spaces>,
}

impl Paused<'_> {
    /// Sets the kernel's entries, or notes that the kernel no longer owns the window.
    pub(super) fn set_kernel(&self, kernel: Option<Arc<KernelOwned>>) {
        *self.window.kernel.write() = kernel;
    }

    /// Has `spaces` serve the window from now on. An empty list means that the window is gone.
    pub(crate) fn serve(&self, spaces: Spaces) {
        *self.window.spaces.write() = spaces;
    }
}

impl Drop for Paused<'_> {
    /// When the gate opens, verbs find the spaces that serve the window then.
    fn drop(&mut self) {
        let serving = self.window.spaces.read();
        let is_known = self.gate.len() == serving.len()
            && self.gate.iter().zip(&*serving).all(|(known, space)| Arc::ptr_eq(known, space));
        if !is_known {
            self.gate.clone_from(&serving);
        }
    }
}

impl Deref for Paused<'_> {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        self.window
    }
}

/// The spaces a verb works on, which stay as they are until this is dropped.
pub(super) struct Open<'a> {
    spaces: RwLockReadGuard<'a, Spaces>,
}

impl Deref for Open<'_> {
    type Target = [Arc<dyn PciAddressSpace>];

    fn deref(&self) -> &Self::Target {
        &self.spaces
    }
}
