//! The changes that a write to a table makes for devices, in runs.
//!
//! A host gets one call for each run, so a run goes on for as long as bus and system address do, and the rights and the
//! kind of change stay the same. Entries that are written as they were are no change: no host gets a call for them.

use dmaspace_core::{IovaRange, PageSize, SystemAddress};
use dmaspace_listener::EntryRun;

use crate::entry::Tce;
use crate::stretch::Stretch;

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

/// A change in terms of a table: by index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) first: u64,
    pub(crate) kind: ChangeKind,
    /// The entries from then on; of a clear, the number of them.
    pub(crate) stretch: Stretch,
}

/// The kinds of an [`EntryChange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Put,
    Replace,
    Clear,
}

impl Change {
    fn end(&self) -> u64 {
        self.first + self.stretch.count
    }
}

/// The change for devices where the entry at `index` of a table of `page` was `old` and becomes `new`.
pub(crate) fn change_of(index: u64, old: Tce, new: Tce, page: PageSize) -> Option<Change> {
    let kind = match (old.is_live(), new.is_live()) {
        (false, false) => return None,
        (false, true) => ChangeKind::Put,
        (true, false) => ChangeKind::Clear,
        (true, true) if is_alike(old, new, page) => return None,
        (true, true) => ChangeKind::Replace,
    };
    Some(Change { first: index, kind, stretch: Stretch::one(new) })
}

/// Returns true if devices find the same memory by both entries, with the same rights.
fn is_alike(one: Tce, other: Tce, page: PageSize) -> bool {
    (one.target(page), one.access()) == (other.target(page), other.access())
}

/// The run of one entry, or of a stretch.
pub(crate) fn run_of(range: IovaRange, first: Tce, page: PageSize) -> EntryRun {
    EntryRun { range, target: first.target(page), access: first.access() }
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

/// The changes of entries that are noted in the order of their indices, without a gap.
#[derive(Debug)]
pub(crate) struct Changes<'a> {
    page: PageSize,
    done: &'a mut Vec<Change>,
    /// The entries cleared since the last put, the first and the last, and whether one of them was live.
    clearing: Option<(u64, u64, bool)>,
}

impl<'a> Changes<'a> {
    pub(crate) fn new(page: PageSize, done: &'a mut Vec<Change>) -> Self {
        Self { page, done, clearing: None }
    }

    /// Notes that the entry at `index` was `old` and becomes `new`, which has a right.
    pub(crate) fn note(&mut self, index: u64, old: Tce, new: Tce) {
        if !old.is_live() {
            self.put(index, Stretch::one(new));
        } else if is_alike(old, new, self.page) {
            self.end_clearing();
        } else {
            self.add(Change { first: index, kind: ChangeKind::Replace, stretch: Stretch::one(new) });
        }
    }

    /// Notes that no entry from `first` to `last` has a right any more, and whether one of them had.
    pub(crate) fn clear(&mut self, first: u64, last: u64, had_live: bool) {
        let (start, _, clears) = self.clearing.unwrap_or((first, last, false));
        self.clearing = Some((start, last, clears || had_live));
    }

    /// Notes that the entries from `first` on, none of which had a right, become those of `stretch`, which have.
    pub(crate) fn put(&mut self, first: u64, stretch: Stretch) {
        self.add(Change { first, kind: ChangeKind::Put, stretch });
    }

    pub(crate) fn finish(mut self) {
        self.end_clearing();
    }

    /// Adds a change of live entries to the last one, if it continues that, or to the list.
    #[inline]
    fn add(&mut self, change: Change) {
        if self.clearing.is_some() {
            self.end_clearing();
        }
        let page = self.page;
        match self.done.last_mut() {
            Some(last)
                if last.kind == change.kind
                    && last.end() == change.first
                    && last.stretch.next(page) == Some(change.stretch.first) =>
            {
                last.stretch.count += change.stretch.count;
            }
            _ => self.done.push(change),
        }
    }

    fn end_clearing(&mut self) {
        if let Some((first, last, true)) = self.clearing.take() {
            let stretch = Stretch { first: Tce::NONE, count: last - first + 1 };
            self.done.push(Change { first, kind: ChangeKind::Clear, stretch });
        }
    }
}
