//! Making changes on a host: all of them, or none.
//!
//! No lock of a table's entries is held while a host is called: in the order of all locks ([`dmaspace_core::sync`])
//! they come after those of the listener and its spaces, which look into a table that the kernel fills. The entries do
//! not change meanwhile, since the table's connection is locked.

use dmaspace_core::IovaRange;
use dmaspace_listener::{EntryError, EntryRun, TranslatedWindow};

use crate::change::{EntryChange, part_of};

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

/// Makes `changes` in `window`, one call each where the kernel can. A failure undoes the changes made before it, with
/// the entries that `before` reads.
pub(crate) fn make_all(
    window: &TranslatedWindow,
    changes: &[EntryChange],
    before: Before<'_>,
) -> Result<(), Incomplete> {
    for (made, change) in changes.iter().enumerate() {
        if let Err(error) = make(window, change) {
            let mut remaining = Vec::new();
            for change in changes.iter().take(made).rev() {
                undo(window, change, before, &mut remaining);
            }
            return Err(Incomplete { error, remaining });
        }
    }
    Ok(())
}

/// Makes one change.
pub(crate) fn make(window: &TranslatedWindow, change: &EntryChange) -> Result<(), EntryError> {
    match change {
        EntryChange::Put(run) => put(window, run),
        EntryChange::Replace(run) => replace(window, run),
        EntryChange::Clear(range) => clear(window, *range),
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
