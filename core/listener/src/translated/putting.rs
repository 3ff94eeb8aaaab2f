//! Putting entries, and the fallback for hosts whose pages prove too large for the memory behind them.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dmaspace_core::contract::{MapBatch, MapRequest, PciAddressSpace, Unit};
use dmaspace_core::error::Error;

use super::entry::{EntryError, EntryRun};
use super::shared::{Open, Paused, Shared};
use crate::apply::create_again_empty;
use crate::journal::{Done, Journal};
use crate::page_size_fallback::SmallerPages;

/// Runs that were not put: the reason, the space that refused them, and the number of windows created again when they
/// were tried.
struct Refused {
    error: EntryError,
    by: Option<Arc<dyn PciAddressSpace>>,
    made_again: usize,
}

impl Refused {
    fn by(space: &Arc<dyn PciAddressSpace>, error: Error, made_again: usize) -> Box<Self> {
        Box::new(Self { error: error.into(), by: Some(space.clone()), made_again })
    }
}

impl From<EntryError> for Box<Refused> {
    fn from(error: EntryError) -> Self {
        Self::new(Refused { error, by: None, made_again: 0 })
    }
}

/// The windows that were created again, with the journals that restore them.
type Remade = Vec<(Arc<dyn PciAddressSpace>, Journal)>;

/// The runs up to which the room of their batch is kept: as many as the longest list of a guest has.
const KEPT: usize = 512;

thread_local! {
    /// The room for the maps of a list, one for each processor of the guest that has put one.
    static BATCH: Cell<Option<MapBatch>> = const { Cell::new(None) };
}

impl Shared {
    /// Puts one run.
    #[inline(always)]
    pub(super) fn put_run(&self, run: EntryRun) -> Result<(), EntryError> {
        self.check(run.range, run.target)?;
        let spaces = self.open()?;
        let put = if let [space] = &*spaces { self.map_in_one(space, &run) } else { None };
        match put {
            Some(Ok(())) => Ok(()),
            Some(Err(refused)) => {
                drop(spaces);
                self.put_after(refused, &[run], &mut Vec::new())
            }
            None => self.put_with_batch(spaces, &[run]),
        }
    }

    /// Puts all of `runs` or none, in windows of smaller pages where that helps.
    pub(super) fn put_runs(&self, runs: &[EntryRun]) -> Result<(), EntryError> {
        for run in runs {
            self.check(run.range, run.target)?;
        }
        self.put_with_batch(self.open()?, runs)
    }

    #[inline(never)]
    fn put_with_batch(&self, spaces: Open<'_>, runs: &[EntryRun]) -> Result<(), EntryError> {
        let mut spent = Vec::new();
        let put = self.put_on(&spaces, runs, &mut spent);
        // Before `spent`: a step that is undone may hold the last owner of memory, which is dropped after the locks.
        drop(spaces);
        put.or_else(|refused| self.put_after(refused, runs, &mut spent))
    }

    /// Maps a run in one space, if it lies in one piece of target memory. That needs neither a list nor a journal: a
    /// map that fails leaves nothing.
    #[inline(always)]
    fn map_in_one(&self, space: &Arc<dyn PciAddressSpace>, run: &EntryRun) -> Option<Result<(), Box<Refused>>> {
        let made_again = self.made_again.load(Ordering::Relaxed);
        let memory = self.resolve_in_one(run.target, run.len())?;
        let request = MapRequest::new(run.range.first(), &memory, run.access).with_unit(Unit::Pages(self.page()));
        Some(space.map(request).map_err(|error| Refused::by(space, error, made_again)))
    }

    fn put_on(
        &self,
        spaces: &[Arc<dyn PciAddressSpace>],
        runs: &[EntryRun],
        spent: &mut Vec<Journal>,
    ) -> Result<(), Box<Refused>> {
        if let ([space], [run]) = (spaces, runs) {
            if let Some(put) = self.map_in_one(space, run) {
                return put;
            }
        }
        let unit = Unit::Pages(self.page());
        // A thread that ends has no room.
        let room = BATCH.try_with(Cell::take).ok().flatten();
        let mut batch = room.unwrap_or_else(|| MapBatch::new(unit));
        batch.restart(unit);
        let put = self.map_batch(spaces, runs, &mut batch, spent);
        if runs.len() <= KEPT {
            batch.restart(unit);
            let _ = BATCH.try_with(|room| room.set(Some(batch)));
        }
        put
    }

    /// Puts runs on every space, by way of a batch.
    fn map_batch(
        &self,
        spaces: &[Arc<dyn PciAddressSpace>],
        runs: &[EntryRun],
        batch: &mut MapBatch,
        spent: &mut Vec<Journal>,
    ) -> Result<(), Box<Refused>> {
        let made_again = self.made_again.load(Ordering::Relaxed);
        self.add_to(batch, runs)?;
        if let [space] = spaces {
            return space.map_batch(batch).map_err(|error| Refused::by(space, error, made_again));
        }
        let mut last = None;
        let put = self.on_every_space(spaces, spent, |space, journal| {
            last = Some(space);
            space.map_batch(batch)?;
            for range in batch.ranges() {
                journal.enter(Done::Mapped(range));
            }
            Ok(())
        });
        put.map_err(|error| Box::new(Refused { error, by: last.cloned(), made_again }))
    }

    /// Puts runs that were refused in windows of smaller pages, if that may help.
    #[cold]
    #[inline(never)]
    fn put_after(&self, refused: Box<Refused>, runs: &[EntryRun], spent: &mut Vec<Journal>) -> Result<(), EntryError> {
        if self.may_fit_after_all(&refused) {
            self.pause().put_in_smaller_pages(runs, *refused, spent)
        } else {
            Err(refused.error)
        }
    }

    /// Returns whether the page size of the space that refused runs may be the reason, or was the reason and is
    /// smaller now.
    fn may_fit_after_all(&self, refused: &Refused) -> bool {
        let Refused { error: EntryError::Space(error), by: Some(space), made_again } = refused else { return false };
        self.made_again.load(Ordering::Relaxed) != *made_again
            || SmallerPages::after(error, space.as_ref(), self.range()).is_some()
    }
}

impl Paused<'_> {
    /// Puts runs after the empty windows of spaces that refuse them were created again.
    fn put_in_smaller_pages(
        &self,
        runs: &[EntryRun],
        mut refused: Refused,
        spent: &mut Vec<Journal>,
    ) -> Result<(), EntryError> {
        let mut remade = Remade::new();
        let result = loop {
            // Another processor may have been refused, too, and have created the window again already.
            if self.made_again.load(Ordering::Relaxed) == refused.made_again {
                if let Err(error) = self.make_again(refused, &mut remade) {
                    break Err(restore(&remade, error));
                }
            }
            match self.put_on(&self.spaces(), runs, spent) {
                Ok(()) => break Ok(()),
                Err(next) => refused = *next,
            }
        };
        spent.extend(remade.into_iter().map(|(_, journal)| journal));
        result
    }

    /// Creates the window of the space that refused runs again, with smaller pages.
    ///
    /// # Errors
    /// The refusal where smaller pages cannot help, or the space's error.
    fn make_again(&self, refused: Refused, remade: &mut Remade) -> Result<(), EntryError> {
        let Refused { error: EntryError::Space(error), by: Some(space), .. } = refused else {
            return Err(refused.error);
        };
        let Some(smaller) = SmallerPages::after(&error, space.as_ref(), self.range()) else { return Err(error.into()) };
        if !space.mappings(self.range()).is_empty() || !smaller.has_room(space.as_ref()) {
            return Err(EntryError::PagesTooLarge(error, smaller.from()));
        }
        log::warn!("{}: {error}; trying {smaller}", space.describe().backend);
        let mut journal = Journal::of(space.as_ref());
        let created = create_again_empty(smaller, space.as_ref(), &mut journal);
        remade.push((space, journal));
        self.made_again.fetch_add(1, Ordering::Relaxed);
        Ok(created?)
    }
}

/// Restores windows after `error`. No window can be created around a fence: there everything stays as it is.
fn restore(remade: &Remade, error: EntryError) -> EntryError {
    if matches!(&error, EntryError::Space(error) if !error.fenced().is_empty()) {
        return error;
    }
    let mut fenced = Vec::new();
    for (space, journal) in remade.iter().rev() {
        fenced.extend(journal.undo(space.as_ref()));
    }
    error.fencing(fenced)
}
