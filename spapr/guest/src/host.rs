//! Making changes on a host: all of them, or none.
//!
//! No lock of a table's entries is held while a host is called: in the order of all locks ([`dmaspace_core::sync`])
//! they come after those of the listener and its spaces, which look into a table that the kernel fills. The entries do
//! not change meanwhile, since the table's connection is locked.

use dmaspace_core::IovaRange;
use dmaspace_core::error::Subject;
use dmaspace_listener::{EntryError, EntryRun, TranslatedWindow};

use crate::change::{Change, ChangeKind, EntryChange, part_of};
use crate::table::Geometry;

/// The host behind a table.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) window: TranslatedWindow,
    /// The changes of the hypercall under way, and the runs of puts that are made together. Kept, so that the next
    /// hypercall allocates nothing.
    pub(crate) changes: Vec<Change>,
    pub(crate) runs: Vec<EntryRun>,
}

/// A change that a host refused.
#[derive(Debug)]
pub(crate) struct Incomplete {
    /// The host's reason.
    pub(crate) error: EntryError,
    /// The changes, or parts of them, that were made before and could not be undone.
    pub(crate) remaining: Vec<EntryChange>,
}

/// The live entries of a range as they were before any change.
type Before<'a> = &'a dyn Fn(IovaRange) -> Vec<EntryRun>;

impl Host {
    pub(crate) fn new(window: TranslatedWindow) -> Self {
        Self { window, changes: Vec::new(), runs: Vec::new() }
    }

    /// Makes `self.changes` of a table, in one pass and one call each where the kernel can. A failure undoes the
    /// changes made before it, with the entries that `before` reads.
    pub(crate) fn make_all(&mut self, table: &Geometry, before: Before<'_>) -> Result<(), Incomplete> {
        let mut made = 0;
        while let Some(change) = self.changes.get(made) {
            self.runs.clear();
            let puts = self.changes.iter().skip(made).take_while(|change| change.kind == ChangeKind::Put);
            self.runs.extend(puts.filter_map(|put| table.run(put)));
            let result = match (&self.runs[..], table.change(change)) {
                ([_, _, ..], _) => self.window.put_many(&self.runs),
                (_, Some(change)) => self.make(&change),
                (_, None) => Ok(()),
            };
            if let Err(error) = result {
                let mut remaining = left_of(&self.runs, &error);
                remaining.extend(self.undo_first(made, table, before));
                return Err(Incomplete { error, remaining });
            }
            made += self.runs.len().max(1);
        }
        Ok(())
    }

    /// Undoes the first `made` changes. Returns the changes, or parts of them, that could not be undone.
    fn undo_first(&self, made: usize, table: &Geometry, before: Before<'_>) -> Vec<EntryChange> {
        let mut remaining = Vec::new();
        for change in self.changes.iter().take(made).rev().filter_map(|change| table.change(change)) {
            undo(&self.window, &change, before, &mut remaining);
        }
        remaining
    }

    /// Makes one change.
    #[inline]
    pub(crate) fn make(&self, change: &EntryChange) -> Result<(), EntryError> {
        match change {
            EntryChange::Put(run) => put(&self.window, run),
            EntryChange::Replace(run) => replace(&self.window, run),
            EntryChange::Clear(range) => clear(&self.window, *range),
        }
    }
}

/// The puts of several runs that stay after a failure: the parts that are fenced, since they could not be undone.
/// Nothing of the run that was refused stays, as of one that is put by itself.
fn left_of(runs: &[EntryRun], error: &EntryError) -> Vec<EntryChange> {
    let (EntryError::Space(error) | EntryError::PagesTooLarge(error, _)) = error else { return Vec::new() };
    let refused = match error.subject() {
        Subject::Range(range) => Some(*range),
        _ => None,
    };
    let mut left = Vec::new();
    for run in runs.iter().filter(|run| runs.len() > 1 && !refused.is_some_and(|range| range.overlaps(run.range))) {
        let fenced = error.fenced().iter().filter_map(|fence| fence.intersection(run.range));
        left.extend(fenced.filter_map(|range| part_of(run, range)).map(EntryChange::Put));
    }
    left
}

/// Undoes `change`, and adds the parts that could not be undone to `remaining`.
fn undo(window: &TranslatedWindow, change: &EntryChange, before: Before<'_>, remaining: &mut Vec<EntryChange>) {
    match change {
        EntryChange::Put(run) => {
            if clear(window, run.range).is_err() {
                remaining.push(*change);
            }
        }
        EntryChange::Replace(run) => {
            for old in before(run.range) {
                if replace(window, &old).is_err() {
                    remaining.extend(part_of(run, old.range).map(EntryChange::Replace));
                }
            }
        }
        EntryChange::Clear(range) => {
            for old in before(*range) {
                if put(window, &old).is_err() {
                    remaining.push(EntryChange::Clear(old.range));
                }
            }
        }
    }
}

fn put(window: &TranslatedWindow, run: &EntryRun) -> Result<(), EntryError> {
    window.put_run(run.range.first(), run.target, len(run), run.access)
}

fn replace(window: &TranslatedWindow, run: &EntryRun) -> Result<(), EntryError> {
    window.replace(run.range.first(), run.target, len(run), run.access)?;
    Ok(())
}

fn clear(window: &TranslatedWindow, range: IovaRange) -> Result<(), EntryError> {
    window.clear(range)?;
    Ok(())
}

fn len(run: &EntryRun) -> u64 {
    let len = run.range.len();
    debug_assert!(len.is_some(), "no table spans 2^64 bytes");
    len.map_or(0, |len| len.get())
}
