//! The spaces a listener serves, and the facts it remembers about each of them from commit to commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::plan::is_dormant;
use crate::report::{Fate, SpaceReport, Verdict, Warning, WarningCause};
use crate::section::Section;
use dmaspace_core::contract::PciAddressSpace;
use dmaspace_core::words::window::Windows;

/// A space that a listener serves.
#[derive(Clone, Debug)]
pub(super) struct ServedSpace {
    pub(super) space: Arc<dyn PciAddressSpace>,
    /// The backend's name.
    backend: &'static str,
    /// The devices' part of the space at the last commit. If it changed since (a device was attached or detached), the
    /// next commit plans the whole view anew.
    seen: SeenDevices,
    /// The warnings whose causes last, by section and cause.
    pub(super) warnings: BTreeMap<(String, WarningCause), RecurringWarning>,
    pub(super) totals: Totals,
}

/// The part of a space's state that only a device's arrival or departure changes without the listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenDevices {
    windows: Arc<Windows>,
    /// True without a device. Where windows are created, the first device brings none by itself.
    is_dormant: bool,
    forgotten: u64,
}

impl SeenDevices {
    /// The state of `space`. Must be taken before a plan reads the space: a device that leaves after that is noticed at
    /// the next commit.
    pub(super) fn of(space: &dyn PciAddressSpace) -> Self {
        let forgotten = space.times_forgotten();
        Self { windows: space.windows().windows, is_dormant: is_dormant(space), forgotten }
    }

    /// This state, after the listener itself created or removed windows.
    #[must_use]
    pub(super) fn with_windows_of(self, space: &dyn PciAddressSpace) -> Self {
        Self { windows: space.windows().windows, ..self }
    }
}

/// A warning whose cause lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecurringWarning {
    /// The warning as it was first given.
    pub warning: Warning,
    /// The number of commits that met its cause.
    pub times: u64,
}

/// The cost of all commits on a space since it was attached to the listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// The number of commits.
    pub commits: u64,
    /// Bytes handed to calls that pin them; bytes pinned twice count twice.
    pub pinned: u64,
    /// Bytes mapped whose pins are shared with other spaces, or registered as other spaces have them registered.
    pub shared: u64,
    /// Bytes that were the same before and after a commit, but unmapped in between.
    pub disturbed: u64,
}

impl ServedSpace {
    /// A space that joins, with the state before its first plan.
    pub(super) fn new(space: Arc<dyn PciAddressSpace>, seen: SeenDevices) -> Self {
        let backend = space.describe().backend;
        Self { space, backend, seen, warnings: BTreeMap::new(), totals: Totals::default() }
    }

    /// Returns whether no device came or left since the last commit.
    pub(super) fn is_current(&self) -> bool {
        self.seen == SeenDevices::of(self.space.as_ref())
    }

    /// Returns whether a device came or left since the last commit, and at least one is attached.
    pub(super) fn regained_device(&self) -> bool {
        !self.is_current() && !is_dormant(self.space.as_ref())
    }

    /// Remembers a commit of nothing, and returns the report of it.
    pub(super) fn remember_nothing(&mut self) -> SpaceReport {
        self.totals.commits += 1;
        log::info!("{}: nothing to commit", self.backend);
        SpaceReport { backend: self.backend, ..SpaceReport::default() }
    }

    /// Remembers a commit that was planned for `seen`. Afterwards `report` holds only the warnings that were not given
    /// before.
    pub(super) fn remember(&mut self, seen: SeenDevices, report: &mut SpaceReport) {
        self.seen = seen;
        self.add_to_totals(report);
        self.forget_cured(report);
        report.warnings.retain(|warning| self.is_new(warning));
        for warning in &report.warnings {
            log::warn!("{}: {warning}", report.backend);
        }
        log::info!(
            "{}: {} sections decided, {} bytes pinned, {} shared, {} disturbed",
            report.backend,
            report.sections.len(),
            report.pinned,
            report.shared,
            report.disturbed
        );
    }

    fn add_to_totals(&mut self, report: &SpaceReport) {
        let totals = &mut self.totals;
        totals.commits += 1;
        totals.pinned = totals.pinned.saturating_add(report.pinned);
        totals.shared = totals.shared.saturating_add(report.shared);
        totals.disturbed = totals.disturbed.saturating_add(report.disturbed);
    }

    /// Forgets the warnings whose causes the report shows to be gone.
    fn forget_cured(&mut self, report: &SpaceReport) {
        for verdict in &report.sections {
            for cause in cured_causes(verdict, report) {
                self.warnings.remove(&(verdict.piece.name().to_owned(), cause));
            }
        }
    }

    /// Counts a warning, and returns whether this is the first commit that gives it.
    fn is_new(&mut self, warning: &Warning) -> bool {
        let entry = self.warnings.entry((warning.name.clone(), warning.cause));
        let recurring = entry.or_insert_with(|| RecurringWarning { warning: warning.clone(), times: 0 });
        recurring.times += 1;
        recurring.times == 1
    }
}

/// The causes that no longer hold for a section with this verdict.
fn cured_causes(verdict: &Verdict<Section>, report: &SpaceReport) -> Vec<WarningCause> {
    match verdict.fate {
        Fate::Mapped if verdict.lost_head == 0 && verdict.lost_tail == 0 => {
            vec![WarningCause::NotMapped, WarningCause::LosesBytes]
        }
        Fate::Mapped => vec![WarningCause::NotMapped],
        Fate::Discardable => {
            let name = verdict.piece.name();
            let mut cured = vec![WarningCause::FewMappings, WarningCause::ManyRegistrations];
            cured
                .retain(|cause| !report.warnings.iter().any(|warning| warning.cause == *cause && warning.name == name));
            cured
        }
        _ => Vec::new(),
    }
}
