//! Making changes on a host: all of them, or none.
//!
//! No lock of a table's entries is held while a host is called: in the order of all locks ([`dmaspace_core::sync`])
//! they come after those of the listener and its spaces, which look into a table that the kernel fills. The entries do
//! not change meanwhile, since the table's connection is locked.

use dmaspace_core::IovaRange;
use dmaspace_listener::{EntryError, EntryRun, TranslatedWindow};

use crate::change::{EntryChange, part_of};

/// The host behind a table.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) window: TranslatedWindow,
    /// The changes of the hypercall under way. Kept, so that the next one allocates nothing.
    pub(crate) changes: Vec<EntryChange>,
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
        Self { window, changes: Vec::new() }
    }

    /// Makes `self.changes`, one call each where the kernel can. A failure undoes the changes made before it, with the
    /// entries that `before` reads.
    pub(crate) fn make_all(&self, before: Before<'_>) -> Result<(), Incomplete> {
        for (made, change) in self.changes.iter().enumerate() {
            if let Err(error) = self.make(change) {
                let mut remaining = Vec::new();
                for change in self.changes.iter().take(made).rev() {
                    undo(&self.window, change, before, &mut remaining);
                }
                return Err(Incomplete { error, remaining });
            }
        }
        Ok(())
    }

    /// Makes one change.
    pub(crate) fn make(&self, change: &EntryChange) -> Result<(), EntryError> {
        match change {
            EntryChange::Put(run) => put(&self.window, run),
            EntryChange::Replace(run) => replace(&self.window, run),
            EntryChange::Clear(range) => clear(&self.window, *range),
        }
    }
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
