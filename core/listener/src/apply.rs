//! Applying plans: a step that fails undoes all steps before it, in reverse, in every space.

use crate::journal::{Done, Journal, map, powerless};
use crate::page_size_fallback::SmallerPages;
use crate::plan::{Plan, Step};
use crate::report::{Fate, SpaceReport, Warning};
use crate::section::Need;
use crate::served_space::{SeenDevices, ServedSpace};
use dmaspace_core::contract::{Mapping, PciAddressSpace, WindowRequest};
use dmaspace_core::error::{Error, Kind, Operation};
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::memory::HostMemory;

/// A plan that was applied to one space.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) report: SpaceReport,
    /// True if the plan itself created or removed windows.
    pub(super) has_changed_windows: bool,
}

impl Applied {
    /// Has `member` remember the commit, which was planned when its devices were as `seen`, and returns the report.
    pub(super) fn remembered_by(self, member: &mut ServedSpace, seen: SeenDevices) -> SpaceReport {
        let mut report = self.report;
        let seen = if self.has_changed_windows { seen.with_windows_of(member.space.as_ref()) } else { seen };
        member.remember(seen, &mut report);
        report
    }
}

/// A step that failed on one of several spaces, after all steps before it were undone.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    /// The ranges that could not be restored, beside those the error names.
    pub(super) fenced: Vec<IovaRange>,
}

/// Applies each plan to its space, all or none. The journals end up in `spent`, to be dropped without locks: they may
/// hold the last owner of memory.
pub(super) fn apply_all<'a>(
    plans: impl IntoIterator<Item = (&'a dyn PciAddressSpace, Plan)>,
    spent: &mut Vec<Journal>,
) -> Result<Vec<Applied>, Failed> {
    let mut begun: Vec<(&dyn PciAddressSpace, Journal)> = Vec::new();
    let mut all = Vec::new();
    let mut failure = None;
    for (space, plan) in plans {
        let mut journal = Journal::of(space);
        let result = apply(space, plan, &mut journal);
        let has_changed_windows = journal.has_changed_windows();
        begun.push((space, journal));
        match result {
            Ok(report) => all.push(Applied { report, has_changed_windows }),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    let result = match failure {
        None => Ok(all),
        Some(error) => Err(Failed { error, fenced: undo_all(&begun) }),
    };
    spent.extend(begun.into_iter().map(|(_, journal)| journal));
    result
}

/// Undoes journals, the last one first, and returns the ranges that had to be fenced.
pub(super) fn undo_all(journals: &[(&dyn PciAddressSpace, Journal)]) -> Vec<IovaRange> {
    let mut fenced = Vec::new();
    for (space, journal) in journals.iter().rev() {
        fenced.extend(journal.undo(*space));
    }
    fenced
}

/// Carries out the steps of `plan` on `space`, entering each into `journal`.
///
/// # Errors
/// The error of the first step for something required. The journal has the steps before it.
pub(super) fn apply(space: &dyn PciAddressSpace, plan: Plan, journal: &mut Journal) -> Result<SpaceReport, Error> {
    let Plan { steps, entries, .. } = plan;
    let report = SpaceReport {
        backend: space.describe().backend,
        sections: plan.sections,
        targets: plan.targets,
        pinned: 0,
        shared: 0,
        disturbed: plan.disturbed,
        warnings: plan.warnings,
    };
    let mut work = Work { space, journal, report, remade: Vec::new() };
    for step in steps {
        log::debug!("{}: {step}", work.report.backend);
        work.carry_out(step)?;
    }
    for entry in &entries {
        work.map_entry(entry)?;
    }
    Ok(work.report)
}

/// Creates a window that has no mappings again, with smaller pages.
///
/// # Errors
/// The space's error. The journal restores the window.
pub(super) fn create_again_empty(
    smaller: SmallerPages,
    space: &dyn PciAddressSpace,
    journal: &mut Journal,
) -> Result<(), Error> {
    let request = smaller.request();
    let steps = vec![Step::RemoveWindow(request.range), Step::CreateWindow(request)];
    apply(space, Plan::of(steps), journal)?;
    Ok(())
}

/// A plan that is being applied.
struct Work<'a> {
    space: &'a dyn PciAddressSpace,
    journal: &'a mut Journal,
    report: SpaceReport,
    /// The windows of this plan that were created again with smaller pages.
    remade: Vec<SmallerPages>,
}

impl Work<'_> {
    fn carry_out(&mut self, step: Step) -> Result<(), Error> {
        let done = match step {
            Step::Unmap(range) => self.unmap(range)?,
            Step::RemoveWindow(range) => self.remove_window(range)?,
            Step::Register(memory) => self.register(memory)?,
            Step::SharePins(memory) => self.share_pins(memory)?,
            Step::CreateWindow(request) => self.create_window(request)?,
            Step::Map(mapping, Need::BestEffort) => self.map_best_effort(&mapping),
            Step::Map(mapping, Need::Required) => self.map_required(mapping)?,
            Step::Unregister(memory) => return self.unregister(memory),
            Step::StopSharing(memory) => self.stop_sharing(memory)?,
        };
        self.journal.enter(done);
        Ok(())
    }

    fn unmap(&self, range: IovaRange) -> Result<Done, Error> {
        let live = self.space.mappings(range);
        self.space.unmap(range)?;
        Ok(Done::Unmapped(live))
    }

    fn remove_window(&self, range: IovaRange) -> Result<Done, Error> {
        let control = self.space.powers().window_control.ok_or_else(|| powerless(Operation::RemoveWindow, range))?;
        let windows = self.space.windows().windows;
        let no_window = || Error::new(Operation::RemoveWindow, range, Kind::NoSuchWindow);
        let page = windows.covering(range).ok_or_else(no_window)?.granule();
        Ok(Done::WindowRemoved(WindowRequest::new(range, page), control.remove_window(range)?))
    }

    fn create_window(&self, request: WindowRequest) -> Result<Done, Error> {
        let control =
            self.space.powers().window_control.ok_or_else(|| powerless(Operation::CreateWindow, request.range))?;
        control.create_window(request)?;
        Ok(Done::WindowCreated(request.range))
    }

    fn register(&mut self, memory: HostMemory) -> Result<Done, Error> {
        let registration =
            self.space.powers().registration.ok_or_else(|| powerless(Operation::Register, memory.clone()))?;
        registration.register(&memory)?;
        let is_shared = registration.runs().is_some_and(|runs| runs.users(&memory) > 1);
        let pinned = if is_shared { &mut self.report.shared } else { &mut self.report.pinned };
        *pinned = pinned.saturating_add(memory.len().get());
        Ok(Done::Registered(memory))
    }

    fn unregister(&mut self, memory: HostMemory) -> Result<(), Error> {
        let Err(error) = self.journal.unregister(self.space, memory) else { return Ok(()) };
        // Only the fence still uses it, and keeps it until the space is dropped.
        if let Kind::Fenced(fence) = error.kind() {
            log::warn!("{}: memory behind the fence {fence} stays registered", self.report.backend);
            return Ok(());
        }
        Err(error)
    }

    fn share_pins(&self, memory: HostMemory) -> Result<Done, Error> {
        let sharing = self.space.powers().pin_sharing.ok_or_else(|| powerless(Operation::SharePins, memory.clone()))?;
        sharing.share_pins(&memory)?;
        Ok(Done::PinsShared(memory))
    }

    fn stop_sharing(&self, memory: HostMemory) -> Result<Done, Error> {
        let sharing =
            self.space.powers().pin_sharing.ok_or_else(|| powerless(Operation::StopSharing, memory.clone()))?;
        sharing.stop_sharing(&memory)?;
        Ok(Done::SharingStopped(memory))
    }

    /// Maps memory that the guest can live without. A failure becomes the section's fate and a warning.
    fn map_best_effort(&mut self, mapping: &Mapping) -> Done {
        let Err(error) = map(self.space, mapping) else { return Done::Mapped(mapping.range) };
        for verdict in self.report.sections.iter_mut().filter(|verdict| verdict.piece.range().overlaps(mapping.range)) {
            verdict.fate = Fate::Skipped;
            verdict.reason = error.to_string().into();
            self.report.warnings.extend(Warning::of(verdict, ""));
        }
        Done::Fenced(error.fenced().to_vec())
    }

    /// Maps required memory, with smaller pages if the window is of this plan and its pages prove too large.
    fn map_required(&mut self, planned: Mapping) -> Result<Done, Error> {
        let mapping = self.remade.iter().fold(planned, |mapping, smaller| smaller.of(mapping, &self.report));
        match self.map_counting(&mapping) {
            Ok(()) => {}
            Err(error) => {
                let smaller = self.create_window_again(mapping.range, error)?;
                self.map_counting(&smaller.of(mapping.clone(), &self.report))?;
            }
        }
        Ok(Done::Mapped(mapping.range))
    }

    /// Maps an entry, in a window with smaller pages if the window is of this plan and its pages prove too large.
    fn map_entry(&mut self, entry: &Mapping) -> Result<(), Error> {
        if let Err(error) = map(self.space, entry) {
            self.create_window_again(entry.range, error)?;
            map(self.space, entry)?;
        }
        self.journal.enter(Done::Mapped(entry.range));
        Ok(())
    }

    fn map_counting(&mut self, mapping: &Mapping) -> Result<(), Error> {
        map(self.space, mapping)?;
        let len = mapping.memory.len().get();
        let report = &mut self.report;
        if self.space.powers().pin_sharing.is_some_and(|sharing| sharing.sharers(&mapping.memory) > 1) {
            report.shared = report.shared.saturating_add(len);
        } else if self.space.powers().registration.is_none() {
            // A host with registration pinned the memory then.
            report.pinned = report.pinned.saturating_add(len);
        }
        Ok(())
    }

    /// Creates the window around `range` again if it is of this plan and its pages were too large, as `error` may mean.
    ///
    /// # Errors
    /// `error` itself where smaller pages cannot help, or the space's error.
    fn create_window_again(&mut self, range: IovaRange, error: Error) -> Result<SmallerPages, Error> {
        let created = self.journal.window_around(range);
        let smaller = created.and_then(|window| SmallerPages::after(&error, self.space, window));
        let Some(smaller) = smaller else { return Err(error) };
        log::warn!("{}: {error}; trying {smaller}", self.report.backend);
        self.create_with_smaller_pages(smaller)?;
        self.remade.push(smaller);
        Ok(smaller)
    }

    /// Creates a window of this plan again, with everything mapped in it, and notes the new pages in the report.
    ///
    /// # Errors
    /// The space's error. The window and its mappings may be there or not; the only fences are those the error names.
    fn create_with_smaller_pages(&mut self, smaller: SmallerPages) -> Result<(), Error> {
        let request = smaller.request();
        let control =
            self.space.powers().window_control.ok_or_else(|| powerless(Operation::RemoveWindow, request.range))?;
        let live = control.remove_window(request.range)?;
        control.create_window(request)?;
        for mapping in live {
            map(self.space, &smaller.of(mapping, &self.report))?;
        }
        smaller.note_in(&mut self.report);
        Ok(())
    }
}
