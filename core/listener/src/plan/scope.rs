//! The scope of a plan: the ranges an update changes. A plan widens them as far as the change reaches on its host.

use crate::section::{Section, TargetMemory};
use crate::update::{Update, View};
use dmaspace_core::words::address::IovaRange;

/// The scope of a plan.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    /// The ranges of the PCI address space that change: disjoint, ascending.
    pub(super) touched: Vec<IovaRange>,
    /// The sections removed, ascending. The entries of a translated one go with it, even if one like it is added.
    pub(super) removed: Vec<IovaRange>,
    /// The target memory whose fate is asked for.
    pub(super) targets: Vec<TargetMemory>,
    /// True if anything is removed.
    pub(super) withdraws: bool,
    /// True if the steps alone are asked for, and not the fates.
    pub(super) is_of_steps_alone: bool,
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
            is_of_steps_alone: false,
            is_of_emulated_sections: false,
        }
    }

    /// The steps that everything in `view` takes, whatever the fate of each section.
    pub(crate) fn all_steps(view: &View) -> Self {
        Self { is_of_steps_alone: true, ..Self::all(view) }
    }

    /// Returns whether all of the PCI address space may change.
    pub(super) fn is_everything(&self) -> bool {
        self.touched == [IovaRange::all()]
    }

    /// The sections and the target memory that `update` removes and adds.
    pub(crate) fn of(update: &Update) -> Self {
        let mut removed: Vec<_> = update.removed.iter().map(Section::range).collect();
        removed.sort();
        let added = update.added.iter().map(Section::range);
        let withdraws = !(update.removed.is_empty() && update.removed_targets.is_empty());
        Self {
            touched: disjoint(removed.iter().copied().chain(added).collect()),
            removed,
            targets: update.added_targets.clone(),
            withdraws,
            is_of_steps_alone: false,
            is_of_emulated_sections: update.is_of_emulated_sections(),
        }
    }

    /// This scope for a space whose devices changed meanwhile: everything is looked at.
    pub(crate) fn of_everything(&self, view: &View) -> Self {
        Self { removed: self.removed.clone(), ..Self::all(view) }
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
