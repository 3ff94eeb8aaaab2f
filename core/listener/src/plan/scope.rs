//! The scope of a plan: the ranges an update touches, widened to whole runs.

use crate::section::{Section, TargetMemory};
use crate::update::{Update, View, continues};
use dmaspace_core::words::address::IovaRange;

/// The scope of a plan.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    /// The ranges of the PCI address space that may change: whole runs, disjoint, ascending.
    pub(super) touched: Vec<IovaRange>,
    /// The sections removed, ascending. The entries of a translated one go with it, even if one like it is added.
    pub(super) removed: Vec<IovaRange>,
    /// The target memory whose fate is asked for.
    pub(super) targets: Vec<TargetMemory>,
    /// True if anything is removed.
    pub(super) withdraws: bool,
    /// True if nothing is looked at that is mapped or registered: windows and registrations stay as they are.
    pub(super) is_of_emulated_sections: bool,
}

impl Scope {
    /// Everything in `view`.
    pub(crate) fn all(view: &View) -> Self {
        let targets = view.targets.iter().cloned().collect();
        Self {
            touched: vec![IovaRange::all()],
            removed: Vec::new(),
            targets,
            withdraws: true,
            is_of_emulated_sections: false,
        }
    }

    /// The ranges that the removals of `update` touch in the view without the update: a section that goes leaves the
    /// run it was in.
    pub(crate) fn of_removals(update: &Update, before: &View) -> Self {
        let mut removed: Vec<_> = update.removed.iter().map(Section::range).collect();
        removed.sort();
        let withdraws = !(update.removed.is_empty() && update.removed_targets.is_empty());
        Self {
            touched: all_widened(before, &update.removed),
            removed,
            targets: update.added_targets.clone(),
            withdraws,
            is_of_emulated_sections: update.is_of_emulated_sections(),
        }
    }

    /// This scope for a space whose devices changed meanwhile: everything is looked at.
    pub(crate) fn of_everything(&self, view: &View) -> Self {
        Self { removed: self.removed.clone(), ..Self::all(view) }
    }

    /// Adds the ranges that the additions of `update` touch in the view with the update: a section that is added joins
    /// a run.
    pub(crate) fn widen_by_additions(&mut self, update: &Update, after: &View) {
        let come = all_widened(after, &update.added);
        self.touched = disjoint(self.touched.iter().copied().chain(come).collect());
    }
}

pub(super) fn disjoint(mut ranges: Vec<IovaRange>) -> Vec<IovaRange> {
    ranges.sort();
    let mut out: Vec<IovaRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if last.overlaps(range) || last.touches(range) => *last = last.hull(range),
            _ => out.push(range),
        }
    }
    out
}

/// The ranges of `sections`, each widened, disjoint. A run is walked once, however many of its sections are asked for.
fn all_widened(view: &View, sections: &[Section]) -> Vec<IovaRange> {
    let mut ranges: Vec<_> = sections.iter().map(Section::range).collect();
    ranges.sort();
    let mut out: Vec<IovaRange> = Vec::new();
    for range in ranges {
        if !out.last().is_some_and(|last| last.covers(range)) {
            out.push(widened(view, range));
        }
    }
    disjoint(out)
}

/// `range` with the sections on both sides that could share a run with one in it.
fn widened(view: &View, range: IovaRange) -> IovaRange {
    let mut hull = range;
    while let Some(below) = view.sections.ending_before(hull.first()) {
        if !view.sections.beginning_at(hull.first()).is_some_and(|next| continues(below, next)) {
            break;
        }
        hull = hull.hull(below.range());
    }
    while let Some(above) = hull.end().and_then(|end| view.sections.beginning_at(end)) {
        if !view.sections.within(hull).next_back().is_some_and(|last| continues(last, above)) {
            break;
        }
        hull = hull.hull(above.range());
    }
    hull
}
