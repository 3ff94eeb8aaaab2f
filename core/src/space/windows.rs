//! Creating and removing windows.

use std::collections::BTreeSet;

use crate::backend::{Backend, WindowCalls};
use crate::contract::{Mapping, WindowOffer, WindowRequest};
use crate::error::{Error, Kind, Operation};
use crate::retry::{ATTEMPTS, Undone, until_gone};
use crate::space::deferred::Deferred;
use crate::space::fences::Fences;
use crate::space::layout::Layout;
use crate::space::{Space, refused};
use crate::words::address::{Iova, IovaRange};
use crate::words::locked::PinLimit;
use crate::words::page::PageSizes;
use crate::words::window::Window;

/// The parts of a space that a change of its windows needs. The gate is held exclusively.
pub(super) struct WindowMaker<'a, B> {
    backend: &'a B,
    calls: &'a dyn WindowCalls,
    layout: &'a Layout,
    fences: &'a Fences,
}

/// The outcome of removing windows that a failed creation may have left.
#[derive(Debug, Default)]
struct Swept {
    removed: Vec<Iova>,
    fenced: Vec<IovaRange>,
}

impl<'a, B: Backend> WindowMaker<'a, B> {
    pub(super) fn of(space: &'a Space<B>, operation: Operation, range: IovaRange) -> Result<Self, Error> {
        let Space { backend, layout, fences, .. } = space;
        let Some(calls) = backend.calls().windows else {
            return Err(Error::new(operation, range, Kind::Unsupported("this host's windows are fixed")));
        };
        Ok(Self { backend, calls, layout, fences })
    }

    /// Creates a window exactly where the request has it.
    pub(super) fn create(&self, request: WindowRequest) -> Result<Window, Error> {
        let offer = self.check(request)?;
        let mut places: BTreeSet<_> = offer.places.iter().map(|place| place.first).collect();
        places.insert(request.range.first());
        let mut attempts = ATTEMPTS;
        loop {
            attempts -= 1;
            let (error, misplaced) = match self.calls.create(request) {
                Ok(granted) if granted.range == request.range => {
                    self.layout.add(granted);
                    return Ok(granted);
                }
                Ok(granted) => {
                    let first = granted.range.first();
                    (self.refusal(request, Kind::GrantedElsewhere(first)), Some(first))
                }
                Err(failure) => {
                    let wanted = self.calls.table_bytes(request);
                    (refused(self.backend, Operation::CreateWindow, request.range, failure, wanted), None)
                }
            };
            let swept = self.sweep(request, places.iter().copied().chain(misplaced));
            // Where a window had been left, the next one may be created in its place.
            let found_another = swept.removed.iter().any(|first| Some(*first) != misplaced);
            if attempts == 0 || !swept.fenced.is_empty() || !found_another {
                return Err(error.fencing(swept.fenced));
            }
        }
    }

    fn refusal(&self, request: WindowRequest, kind: Kind) -> Error {
        Error::new(Operation::CreateWindow, request.range, kind)
    }

    /// Checks a request before the kernel is asked.
    fn check(&self, request: WindowRequest) -> Result<WindowOffer, Error> {
        let range = request.range;
        let Some(offer) = self.calls.offer() else {
            return Err(self.refusal(request, Kind::Unsupported("no device is attached yet")));
        };
        if !offer.page_sizes.contains(request.page) {
            return Err(self.refusal(request, Kind::UnsupportedPage(offer.page_sizes)));
        }
        if !range.len().is_some_and(|len| len.is_power_of_two()) || !range.is_aligned_to(request.page) {
            return Err(self.refusal(request, Kind::BadWindowSize));
        }
        if let Some(window) = self.layout.get().windows.overlapping(range).next() {
            return Err(self.refusal(request, Kind::Overlap(window.range)));
        }
        self.fences.check(Operation::CreateWindow, range)?;
        self.check_table(request)?;
        Ok(offer)
    }

    /// Refuses a table that does not fit the limit on locked memory: some attempts that fail are charged for good
    /// (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_create_table).
    fn check_table(&self, request: WindowRequest) -> Result<(), Error> {
        let wanted = self.calls.table_bytes(request);
        let allowance = self.backend.allowance();
        if allowance.is_none_or(|allowance| allowance.admits(wanted)) {
            return Ok(());
        }
        Err(self.refusal(request, Kind::PinLimit(PinLimit { wanted: Some(wanted), allowance })))
    }

    /// Removes the windows that a failed creation may have left at these places. Where a window is known none was
    /// left, and a removal would hit the known one.
    fn sweep(&self, request: WindowRequest, places: impl Iterator<Item = Iova>) -> Swept {
        let known = self.layout.get().windows.clone();
        let len = request.range.len().map_or(0, std::num::NonZeroU64::get);
        let mut swept = Swept::default();
        for first in places.filter(|first| known.containing(*first).is_none()) {
            // A window that wraps around is at none of these places.
            let Ok(range) = IovaRange::with_len(first, len) else { continue };
            let window = Window { range, page_sizes: PageSizes::only(request.page) };
            match until_gone(|| self.calls.remove(window)) {
                Ok(Undone::Done(())) => swept.removed.push(first),
                Ok(Undone::WasNotThere) => {}
                Err(failure) => {
                    self.fences.put_up(self.backend.name(), range, failure, Vec::new());
                    swept.fenced.push(range);
                }
            }
        }
        swept
    }

    /// Removes the window at `range`, and returns the mappings it had.
    pub(super) fn remove(&self, range: IovaRange, deferred: &mut Deferred) -> Result<Vec<Mapping>, Error> {
        let operation = Operation::RemoveWindow;
        let slot = self.layout.get().slot_of(operation, range)?;
        slot.check_ours(operation, range)?;
        let live = slot.mappings(range);
        if let Err(failure) = until_gone(|| self.calls.remove(slot.window)) {
            // The removal can be tried again: the entries are in doubt, the window is known.
            let memory = live.into_iter().map(|mapping| mapping.memory).collect();
            self.fences.put_up(self.backend.name(), range, failure, memory);
            slot.live.write().remove(range, deferred);
            return Err(Error::from_kernel(operation, range, failure).fencing([range]));
        }
        self.layout.remove(range);
        slot.live.write().remove(range, deferred);
        Ok(live)
    }
}
