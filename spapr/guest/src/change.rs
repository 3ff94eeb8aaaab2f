//! What a write to a table changes for devices, in runs.
//!
//! A host is asked once a run, so a run goes on as long as bus and system address do, and the rights and what there was before stay the
//! same. Entries that say what they said before are no change: no host is asked for them.

use dmaspace_core::{Access, IovaRange, PageSize, SystemAddress};

use super::entry::Tce;

/// Entries that continue each other on the bus and in system memory, with the same rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where on the bus.
    pub range: IovaRange,
    /// Where the first byte of it is in system memory.
    pub target: SystemAddress,
    /// What devices may do.
    pub access: Access,
}

/// One change for devices. The changes of one hypercall lie apart, ascending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Live entries where there were none.
    Put(Run),
    /// Live entries where there were others, each of them live.
    Replace(Run),
    /// No entry where there was at least one.
    Clear(IovaRange),
}

impl Run {
    /// The run of one entry.
    pub(super) fn of(range: IovaRange, tce: Tce, page: PageSize) -> Self {
        Self { range, target: tce.target(page), access: tce.access() }
    }

    /// Whether `next` goes on where this run ends, with the same rights.
    pub(super) fn is_continued_by(&self, next: &Self) -> bool {
        self.range.touches(next.range) && self.access == next.access && self.target_of(next.range) == Some(next.target)
    }

    /// The part of it in `range`, which lies inside.
    pub(super) fn part(&self, range: IovaRange) -> Option<Self> {
        Some(Self { range, target: self.target_of(range)?, access: self.access })
    }

    /// Where `range`, which begins inside or right behind it, would go on in system memory.
    fn target_of(&self, range: IovaRange) -> Option<SystemAddress> {
        self.target.get().checked_add(self.range.offset_of(range.first())).map(SystemAddress::new)
    }
}

/// Joins entries that come in the order of their bus addresses, without a gap, to changes.
#[derive(Debug)]
pub(super) struct Changes {
    page: PageSize,
    done: Vec<Change>,
    /// The clears since the last put, and whether one of them clears anything.
    clearing: Option<(IovaRange, bool)>,
}

impl Changes {
    pub(super) fn new(page: PageSize) -> Self {
        Self { page, done: Vec::new(), clearing: None }
    }

    /// The entry at `range` was `old` and becomes `new`.
    pub(super) fn note(&mut self, range: IovaRange, old: Tce, new: Tce) {
        if !new.is_live() {
            let (before, clears) = self.clearing.unwrap_or((range, false));
            self.clearing = Some((before.hull(range), clears || old.is_live()));
            return;
        }
        self.end_clearing();
        let run = Run::of(range, new, self.page);
        if !old.is_live() {
            self.put(run);
        } else if run != Run::of(range, old, self.page) {
            self.replace(run);
        }
    }

    pub(super) fn finish(mut self) -> Vec<Change> {
        self.end_clearing();
        self.done
    }

    fn put(&mut self, run: Run) {
        match self.done.last_mut() {
            Some(Change::Put(before)) if before.is_continued_by(&run) => before.range = before.range.hull(run.range),
            _ => self.done.push(Change::Put(run)),
        }
    }

    fn replace(&mut self, run: Run) {
        match self.done.last_mut() {
            Some(Change::Replace(before)) if before.is_continued_by(&run) => {
                before.range = before.range.hull(run.range);
            }
            _ => self.done.push(Change::Replace(run)),
        }
    }

    fn end_clearing(&mut self) {
        if let Some((range, true)) = self.clearing.take() {
            self.done.push(Change::Clear(range));
        }
    }
}
