//! A space that a listener serves, and what is to be remembered of it from commit to commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::plan::is_dormant;
use crate::report::{Cause, Fate, SpaceReport, Warning};
use dmaspace_core::contract::PciAddressSpace;

/// A space that is served.
#[derive(Clone, Debug)]
pub(super) struct ServedSpace {
    pub(super) space: Arc<dyn PciAddressSpace>,
    /// How it was when it was last brought in step. When that changes without us, because a device came or went, all of the view is
    /// planned for it anew.
    known: SeenGeneration,
    /// By section and cause, what was warned of and lasts.
    pub(super) warnings: BTreeMap<(String, Cause), RecurringWarning>,
    pub(super) totals: Totals,
}

/// What tells whether a device came or went: where windows are created, the first one brings none by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SeenGeneration {
    windows: u64,
    is_dormant: bool,
}

impl SeenGeneration {
    fn of(space: &dyn PciAddressSpace) -> Self {
        Self { windows: space.windows().generation, is_dormant: is_dormant(space) }
    }
}

/// A warning whose cause lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecurringWarning {
    /// As it was first given.
    pub warning: Warning,
    /// How many commits met its cause.
    pub times: u64,
}

/// What commits have cost a space since it joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// How many commits there were.
    pub commits: u64,
    /// Bytes handed to calls that pin them; what was pinned twice counts twice.
    pub pinned: u64,
    /// Bytes mapped of what other spaces hold too, or registered as they have it.
    pub shared: u64,
    /// Bytes that were the same before and after a commit, but were not there in between.
    pub disturbed: u64,
}

impl ServedSpace {
    pub(super) fn new(space: Arc<dyn PciAddressSpace>) -> Self {
        let known = SeenGeneration::of(space.as_ref());
        Self { space, known, warnings: BTreeMap::new(), totals: Totals::default() }
    }

    pub(super) fn is_in_step(&self) -> bool {
        self.known == SeenGeneration::of(self.space.as_ref())
    }

    /// Whether a device came or went since, and one is there.
    pub(super) fn came_back(&self) -> bool {
        !self.is_in_step() && !is_dormant(self.space.as_ref())
    }

    pub(super) fn note_windows(&mut self) {
        self.known = SeenGeneration::of(self.space.as_ref());
    }

    /// Remembers a commit. What is left in the report are warnings not given before.
    pub(super) fn note(&mut self, report: &mut SpaceReport) {
        self.note_windows();
        self.totals.commits += 1;
        self.totals.pinned = self.totals.pinned.saturating_add(report.pinned);
        self.totals.shared = self.totals.shared.saturating_add(report.shared);
        self.totals.disturbed = self.totals.disturbed.saturating_add(report.disturbed);
        for verdict in report.sections.iter().filter(|verdict| verdict.fate == Fate::Mapped) {
            let lossless = verdict.lost_head == 0 && verdict.lost_tail == 0;
            let cured = [Some(Cause::NotMapped), lossless.then_some(Cause::LosesBytes)];
            for cause in cured.into_iter().flatten() {
                self.warnings.remove(&(verdict.piece.name().to_owned(), cause));
            }
        }
        for verdict in report.sections.iter().filter(|verdict| verdict.fate == Fate::Discardable) {
            for cause in [Cause::FewMappings, Cause::ManyRegistrations] {
                let lasts = |warning: &Warning| warning.cause == cause && warning.name == verdict.piece.name();
                if !report.warnings.iter().any(lasts) {
                    self.warnings.remove(&(verdict.piece.name().to_owned(), cause));
                }
            }
        }
        report.warnings.retain(|warning| self.is_news(warning));
        report.warnings.iter().for_each(|warning| log::warn!("{}: {warning}", report.backend));
        log::info!(
            "{}: {} sections decided, {} bytes pinned, {} shared, {} disturbed",
            report.backend,
            report.sections.len(),
            report.pinned,
            report.shared,
            report.disturbed
        );
    }

    fn is_news(&mut self, warning: &Warning) -> bool {
        let standing = self.warnings.entry((warning.name.clone(), warning.cause));
        let standing = standing.or_insert_with(|| RecurringWarning { warning: warning.clone(), times: 0 });
        standing.times += 1;
        standing.times == 1
    }
}
