//! The changes that a write to a table makes for devices, in runs.
//!
//! A host gets one call for each run, so a run goes on for as long as bus and system address do, and the rights and the
//! kind of change stay the same. Entries that are written as they were are no change: no host gets a call for them.

use dmaspace_core::{IovaRange, PageSize, SystemAddress};
use dmaspace_listener::EntryRun;

use crate::entry::Tce;

/// One change for devices. The changes of one hypercall lie apart, in ascending order.
///
/// Exhaustive: a caller must make each change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryChange {
    /// Live entries where there were none.
    Put(EntryRun),
    /// Live entries in the place of live entries.
    Replace(EntryRun),
    /// No entry in a range that had at least one.
    Clear(IovaRange),
}

/// The run of one entry.
pub(crate) fn run_of(range: IovaRange, tce: Tce, page: PageSize) -> EntryRun {
    EntryRun { range, target: tce.target(page), access: tce.access() }
}

/// The change for devices where the entry at `range` was `old` and becomes `new`.
pub(crate) fn change_of(range: IovaRange, old: Tce, new: Tce, page: PageSize) -> Option<EntryChange> {
    let (run, before) = (run_of(range, new, page), run_of(range, old, page));
    match (old.is_live(), new.is_live()) {
        (false, false) => None,
        (false, true) => Some(EntryChange::Put(run)),
        (true, false) => Some(EntryChange::Clear(range)),
        (true, true) if run == before => None,
        (true, true) => Some(EntryChange::Replace(run)),
    }
}

/// The part of `run` in `range`, which lies inside.
pub(crate) fn part_of(run: &EntryRun, range: IovaRange) -> Option<EntryRun> {
    debug_assert!(run.range.covers(range), "{range} is no part of {run:?}");
    Some(EntryRun { range, target: target_of(run, range)?, access: run.access })
}

/// Appends `run` to the last one of `runs`, if it continues that with the same rights, or to the list.
pub(crate) fn push_joined(runs: &mut Vec<EntryRun>, run: EntryRun) {
    match runs.last_mut() {
        Some(last) if is_continued_by(last, &run) => last.range = last.range.hull(run.range),
        _ => runs.push(run),
    }
}

/// Returns true if `next` goes on where `run` ends, with the same rights.
fn is_continued_by(run: &EntryRun, next: &EntryRun) -> bool {
    run.range.touches(next.range) && run.access == next.access && target_of(run, next.range) == Some(next.target)
}

/// The system address at which `range`, which begins inside `run` or right behind it, continues the run.
fn target_of(run: &EntryRun, range: IovaRange) -> Option<SystemAddress> {
    run.target.get().checked_add(run.range.offset_of(range.first())).map(SystemAddress::new)
}

/// The changes of entries that are noted in the order of their bus addresses, without a gap.
#[derive(Debug)]
pub(crate) struct Changes<'a> {
    page: PageSize,
    done: &'a mut Vec<EntryChange>,
    /// The range cleared since the last put, and whether that had a live entry.
    clearing: Option<(IovaRange, bool)>,
}

impl<'a> Changes<'a> {
    pub(crate) fn new(page: PageSize, done: &'a mut Vec<EntryChange>) -> Self {
        Self { page, done, clearing: None }
    }

    /// Notes that the entry at `range` was `old` and becomes `new`.
    pub(crate) fn note(&mut self, range: IovaRange, old: Tce, new: Tce) {
        if !new.is_live() {
            self.clear(range, old.is_live());
        } else if !old.is_live() {
            self.put(range, &[new]);
        } else {
            self.end_clearing();
            let run = run_of(range, new, self.page);
            if run != run_of(range, old, self.page) {
                self.replace(run);
            }
        }
    }

    /// Notes that no entry in `range` has a right any more, and whether one of them had.
    pub(crate) fn clear(&mut self, range: IovaRange, had_live: bool) {
        let (before, clears) = self.clearing.unwrap_or((range, false));
        self.clearing = Some((before.hull(range), clears || had_live));
    }

    /// Notes that the entries in `range`, none of which had a right, become those of `stretch`, which have.
    pub(crate) fn put(&mut self, range: IovaRange, stretch: &[Tce]) {
        self.end_clearing();
        let Some(first) = stretch.first() else { return };
        let run = run_of(range, *first, self.page);
        match self.done.last_mut() {
            Some(EntryChange::Put(last)) if is_continued_by(last, &run) => last.range = last.range.hull(run.range),
            _ => self.done.push(EntryChange::Put(run)),
        }
    }

    pub(crate) fn finish(mut self) {
        self.end_clearing();
    }

    fn replace(&mut self, run: EntryRun) {
        match self.done.last_mut() {
            Some(EntryChange::Replace(last)) if is_continued_by(last, &run) => last.range = last.range.hull(run.range),
            _ => self.done.push(EntryChange::Replace(run)),
        }
    }

    fn end_clearing(&mut self) {
        if let Some((range, true)) = self.clearing.take() {
            self.done.push(EntryChange::Clear(range));
        }
    }
}
