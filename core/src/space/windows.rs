//! Windows that are created and removed.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::sync::Arc;

use crate::backend::{Backend, WindowCalls};
use crate::contract::{Mapping, WindowControl, WindowOffer, WindowRequest};
use crate::error::{Error, Kind, Operation};
use crate::retry::{ATTEMPTS, Undone, until_gone};
use crate::space::{Layout, Slot, Space, write};
use crate::words::address::{Iova, IovaRange};
use crate::words::locked::PinLimit;
use crate::words::page::PageSizes;
use crate::words::window::{Window, Windows};

/// What became of windows that a failed creation may have left.
#[derive(Debug, Default)]
struct Swept {
    removed: Vec<Iova>,
    /// Fenced.
    in_doubt: Vec<IovaRange>,
}

impl<B: Backend> Space<B> {
    fn calls_for_windows(&self, operation: Operation, range: IovaRange) -> Result<&dyn WindowCalls, Error> {
        let none = || Error::new(operation, range, Kind::Unsupported("this host's windows are fixed"));
        self.backend.window_calls().ok_or_else(none)
    }

    /// A table that does not fit is not asked for: some attempts that fail are charged for good (linux:
    /// drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_create_table).
    fn check_table(&self, operation: Operation, request: WindowRequest, calls: &dyn WindowCalls) -> Result<(), Error> {
        let (wanted, allowance) = (calls.table_bytes(request), self.backend.allowance());
        if allowance.is_none_or(|allowance| allowance.admits(wanted)) {
            return Ok(());
        }
        Err(Error::new(operation, request.range, Kind::PinLimit(PinLimit { wanted: Some(wanted), allowance })))
    }

    /// Removes what a failed creation may have left at these places. Where a window is known nothing was left, and removing would hit
    /// the known one.
    fn sweep_windows(&self, calls: &dyn WindowCalls, request: WindowRequest, places: BTreeSet<Iova>) -> Swept {
        let (known, len) = (self.layout().windows.clone(), request.range.len().map_or(0, NonZeroU64::get));
        let mut swept = Swept::default();
        for at in places.into_iter().filter(|at| known.containing(*at).is_none()) {
            let Ok(range) = IovaRange::with_len(at, len) else { continue };
            match until_gone(|| calls.remove(Window { range, page_sizes: PageSizes::only(request.page) })) {
                Ok(Undone::Done(())) => swept.removed.push(at),
                Ok(Undone::WasNotThere) => {}
                Err(failure) => {
                    self.put_up_fence(range, failure, Vec::new());
                    swept.in_doubt.push(range);
                }
            }
        }
        swept
    }

    /// Puts `window` into force, or takes the window at `window.range` out. The gate is held exclusively.
    fn change_windows(&self, change: impl FnOnce(&mut Vec<Arc<Slot>>)) {
        let layout = self.layout();
        let mut slots = layout.slots.clone();
        change(&mut slots);
        slots.sort_by_key(|slot| slot.window.range);
        // Checked before the kernel was asked, so they are disjoint.
        let windows = Windows::new(slots.iter().map(|slot| slot.window).collect()).unwrap_or_default();
        *write(&self.layout) =
            Arc::new(Layout { generation: layout.generation + 1, windows: Arc::new(windows), slots });
    }
}

impl<B: Backend> WindowControl for Space<B> {
    fn offer(&self) -> Option<WindowOffer> {
        self.backend.window_calls()?.offer()
    }

    fn create_window(&self, request: WindowRequest) -> Result<Window, Error> {
        let (operation, range) = (Operation::CreateWindow, request.range);
        let fail = |kind| Error::new(operation, range, kind);
        let calls = self.calls_for_windows(operation, range)?;
        let _gate = self.enter_alone(operation, range)?;
        let offer = calls.offer().ok_or_else(|| fail(Kind::Unsupported("no device is attached yet")))?;
        let layout = self.layout();
        if !offer.page_sizes.contains(request.page) {
            return Err(fail(Kind::UnsupportedPage(offer.page_sizes)));
        }
        if !range.len().is_some_and(|len| len.is_power_of_two()) || !range.is_aligned_to(request.page) {
            return Err(fail(Kind::BadWindowSize));
        }
        if let Some(window) = layout.windows.overlapping(range).next() {
            return Err(fail(Kind::Overlap(window.range)));
        }
        if let Some(fence) = self.fence_over(range) {
            return Err(fail(Kind::Fenced(fence)));
        }
        self.check_table(operation, request, calls)?;
        let places: Vec<_> = offer.places.iter().map(|place| place.first).chain([range.first()]).collect();
        let mut attempts = ATTEMPTS;
        loop {
            attempts -= 1;
            let (error, at) = match calls.create(request) {
                Ok(granted) if granted.range == range => {
                    self.change_windows(|slots| slots.push(Arc::new(Slot::new(granted))));
                    return Ok(granted);
                }
                Ok(granted) => (fail(Kind::GrantedElsewhere(granted.range.first())), Some(granted.range.first())),
                Err(failure) => (self.refused(operation, range, failure, calls.table_bytes(request)), None),
            };
            let swept = self.sweep_windows(calls, request, places.iter().copied().chain(at).collect());
            // Where a window had been left the next one may come to lie better.
            if attempts == 0 || !swept.in_doubt.is_empty() || swept.removed.iter().all(|first| Some(*first) == at) {
                return Err(error.fencing(swept.in_doubt));
            }
        }
    }

    fn remove_window(&self, range: IovaRange) -> Result<Vec<Mapping>, Error> {
        let operation = Operation::RemoveWindow;
        let calls = self.calls_for_windows(operation, range)?;
        let _gate = self.enter_alone(operation, range)?;
        let layout = self.layout();
        let slot = layout.slots.iter().find(|slot| slot.window.range == range);
        let slot = slot.ok_or_else(|| Error::new(operation, range, Kind::NoSuchWindow))?;
        slot.check_ours(operation, range)?;
        if let Err(failure) = until_gone(|| calls.remove(slot.window)) {
            // It can be tried again: what it is about is in doubt, not what to do about it.
            self.put_up_fence(range, failure, write(&slot.live).drain().map(|mapping| mapping.memory).collect());
            return Err(Error::from_kernel(operation, range, failure).fencing([range]));
        }
        self.change_windows(|slots| slots.retain(|slot| slot.window.range != range));
        let gone: Vec<_> = write(&slot.live).drain().collect();
        gone.iter().for_each(|mapping| self.tell_mapping(mapping));
        Ok(gone)
    }

    fn table_bytes(&self, request: WindowRequest) -> u64 {
        self.backend.window_calls().map_or(0, |calls| calls.table_bytes(request))
    }
}
