//! Carrying changes to a host: all of them, or none.
//!
//! No lock of a table is held while a host is called: the order of all locks has the tables behind those of the listener and its spaces
//! (`dmaspace_core::sync`), which look into a table that the kernel fills. The table does not change meanwhile: its connection is locked.

use dmaspace_core::IovaRange;
use dmaspace_listener::{EntryError, TranslatedWindow};

use super::change::{Change, Run};

/// A host that said no.
#[derive(Debug)]
pub(super) struct Stuck {
    /// To what, and why.
    pub(super) error: EntryError,
    /// The changes, or parts of them, that were made before and could not be taken back.
    pub(super) stays: Vec<Change>,
}

/// Makes `changes` in `window`, one call each where the kernel can. `before` answers with the live entries of a range before them: what is
/// taken back is read there.
pub(super) fn carry(
    window: &TranslatedWindow,
    before: impl Fn(IovaRange) -> Vec<Run>,
    changes: &[Change],
) -> Result<(), Stuck> {
    for (done, change) in changes.iter().enumerate() {
        if let Err(error) = make(window, change) {
            let made = changes.iter().take(done).rev();
            return Err(Stuck { error, stays: made.flat_map(|change| take_back(window, &before, change)).collect() });
        }
    }
    Ok(())
}

fn make(window: &TranslatedWindow, change: &Change) -> Result<(), EntryError> {
    match change {
        Change::Put(run) => put(window, run),
        Change::Replace(run) => replace(window, run),
        Change::Clear(range) => window.clear(*range).map(drop),
    }
}

/// Returns what could not be taken back.
fn take_back(window: &TranslatedWindow, before: impl Fn(IovaRange) -> Vec<Run>, change: &Change) -> Vec<Change> {
    match change {
        Change::Put(run) => window.clear(run.range).err().map(|_| *change).into_iter().collect(),
        Change::Replace(run) => {
            let old = before(run.range).into_iter();
            let stays = old.filter(|old| replace(window, old).is_err());
            stays.filter_map(|old| run.part(old.range).map(Change::Replace)).collect()
        }
        Change::Clear(range) => {
            let old = before(*range).into_iter();
            old.filter(|old| put(window, old).is_err()).map(|old| Change::Clear(old.range)).collect()
        }
    }
}

fn put(window: &TranslatedWindow, run: &Run) -> Result<(), EntryError> {
    window.put_run(run.range.first(), run.target, len(run), run.access)
}

fn replace(window: &TranslatedWindow, run: &Run) -> Result<(), EntryError> {
    window.replace(run.range.first(), run.target, len(run), run.access).map(drop)
}

fn len(run: &Run) -> u64 {
    // No table has 2^64 bytes.
    run.range.len().map_or(0, |len| len.get())
}
