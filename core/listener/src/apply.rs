//! Applying a plan, with a journal: a step that fails takes everything done before it back, in reverse.

use crate::journal::{Done, Journal, map, powerless};
use crate::page_size_fallback::SmallerPages;
use crate::plan::{Plan, Step};
use crate::report::{Fate, SpaceReport, Warning};
use crate::section::Need;
use crate::served_space::{SeenDevices, ServedSpace};
use dmaspace_core::contract::{Mapping, PciAddressSpace, WindowRequest};
use dmaspace_core::error::{Error, Kind, Operation};
use dmaspace_core::words::address::IovaRange;

/// A plan that was applied to one space.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) report: SpaceReport,
    /// Whether the plan itself created or removed windows.
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

/// A step that failed on one of several spaces, after everything done before it was taken back.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    /// What could not be taken back, beside what the error names.
    pub(super) fenced: Vec<IovaRange>,
}

/// Applies each plan to its space, all or none.
pub(super) fn apply_all<'a>(
    plans: impl IntoIterator<Item = (&'a dyn PciAddressSpace, Plan)>,
) -> Result<Vec<Applied>, Failed> {
    let mut journals: Vec<(&dyn PciAddressSpace, Journal)> = Vec::new();
    let mut all = Vec::new();
    for (space, plan) in plans {
        let mut journal = Journal::of(space);
        let result = apply(space, plan, &mut journal);
        let has_changed_windows = journal.has_changed_windows();
        journals.push((space, journal));
        match result {
            Ok(report) => all.push(Applied { report, has_changed_windows }),
            Err(error) => {
                let fenced = journals.into_iter().rev().flat_map(|(space, journal)| journal.undo(space)).collect();
                return Err(Failed { error, fenced });
            }
        }
    }
    Ok(all)
}

/// Carries out the steps of `plan` on `space`, entering each into `journal`.
///
/// # Errors
/// The first step of something required that failed. The journal says what was done before it.
pub(super) fn apply(space: &dyn PciAddressSpace, plan: Plan, journal: &mut Journal) -> Result<SpaceReport, Error> {
    let mut report = SpaceReport {
        backend: space.backend(),
        sections: plan.sections,
        targets: plan.targets,
        pinned: 0,
        shared: 0,
        disturbed: plan.disturbed,
        warnings: plan.warnings,
    };
    let mut remade = Vec::new();
    for step in plan.steps {
        log::debug!("{}: {step}", report.backend);
        match step {
            Step::Map(mapping, Need::BestEffort) => match map(space, &mapping) {
                Ok(()) => journal.enter(Done::Mapped(mapping.range)),
                Err(error) => {
                    give_up(&mut report, mapping.range, &error);
                    journal.enter(Done::Fenced(error.fenced));
                }
            },
            Step::Map(mapping, Need::Required) => {
                let mapping =
                    remade.iter().fold(mapping, |mapping, smaller: &SmallerPages| smaller.of(mapping, &report));
                let done = map_required(space, mapping, journal, &mut report, &mut remade)?;
                journal.enter(done);
            }
            step => match carry_out(space, step, &mut report) {
                Ok(done) => journal.enter(done),
                // Nobody needs it any more but the fence, which holds it until the space is dropped.
                Err(Error { operation: Operation::Unregister, kind: Kind::Fenced(fence), .. }) => {
                    log::warn!("{}: memory behind the fence {fence} stays registered", report.backend);
                }
                Err(error) => return Err(error),
            },
        }
    }
    for entry in &plan.entries {
        map_entry(space, entry, journal, &mut report)?;
    }
    Ok(report)
}

fn carry_out(space: &dyn PciAddressSpace, step: Step, report: &mut SpaceReport) -> Result<Done, Error> {
    Ok(match step {
        Step::Unmap(range) => {
            let live = space.mappings(range);
            space.unmap(range)?;
            Done::Unmapped(live)
        }
        Step::RemoveWindow(range) => {
            let control = space.window_control().ok_or_else(|| powerless(Operation::RemoveWindow, range))?;
            let window = space.windows().windows.covering(range).copied();
            let window = window.ok_or_else(|| Error::new(Operation::RemoveWindow, range, Kind::NoSuchWindow))?;
            Done::WindowRemoved(WindowRequest { range, page: window.granule() }, control.remove_window(range)?)
        }
        Step::Register(memory) => {
            let registration = space.registration().ok_or_else(|| powerless(Operation::Register, memory.clone()))?;
            registration.register(&memory)?;
            let is_shared = registration.runs().is_some_and(|runs| runs.users(&memory) > 1);
            let pinned = if is_shared { &mut report.shared } else { &mut report.pinned };
            *pinned = pinned.saturating_add(memory.len().get());
            Done::Registered(memory)
        }
        Step::SharePins(memory) => {
            let sharing = space.sharing().ok_or_else(|| powerless(Operation::SharePins, memory.clone()))?;
            sharing.share_pins(&memory)?;
            Done::PinsShared(memory)
        }
        Step::CreateWindow(request) => {
            let control = space.window_control().ok_or_else(|| powerless(Operation::CreateWindow, request.range))?;
            control.create_window(request)?;
            Done::WindowCreated(request.range)
        }
        Step::Map(mapping, _) => map_counting(space, &mapping, report)?,
        Step::Unregister(memory) => {
            let registration = space.registration().ok_or_else(|| powerless(Operation::Unregister, memory.clone()))?;
            registration.unregister(&memory)?;
            Done::Unregistered(memory)
        }
        Step::StopSharing(memory) => {
            let sharing = space.sharing().ok_or_else(|| powerless(Operation::StopSharing, memory.clone()))?;
            sharing.stop_sharing(&memory)?;
            Done::SharingStopped(memory)
        }
    })
}

/// Maps what is required, with smaller pages if the window is of this plan and its pages prove too large: then it is among the `remade`.
fn map_required(
    space: &dyn PciAddressSpace,
    mapping: Mapping,
    journal: &Journal,
    report: &mut SpaceReport,
    remade: &mut Vec<SmallerPages>,
) -> Result<Done, Error> {
    map_counting(space, &mapping, report).or_else(|error| {
        let smaller = remake_window(space, mapping.range, error, journal, report)?;
        remade.push(smaller);
        map_counting(space, &smaller.of(mapping, report), report)
    })
}

/// Makes the window that holds `range` again if it is of this plan and its pages were too large, as `error` may mean.
fn remake_window(
    space: &dyn PciAddressSpace,
    range: IovaRange,
    error: Error,
    journal: &Journal,
    report: &mut SpaceReport,
) -> Result<SmallerPages, Error> {
    let created = journal.window_around(range);
    let smaller = created.and_then(|window| SmallerPages::after(&error, space, window));
    let Some(smaller) = smaller else { return Err(error) };
    log::warn!("{}: {error}; trying {smaller}", report.backend);
    smaller.put_in_force(space, report)?;
    Ok(smaller)
}

/// Maps an entry, in a window with smaller pages if that is of this plan and its pages prove too large.
fn map_entry(
    space: &dyn PciAddressSpace,
    entry: &Mapping,
    journal: &mut Journal,
    report: &mut SpaceReport,
) -> Result<(), Error> {
    map(space, entry).or_else(|error| {
        remake_window(space, entry.range, error, journal, report)?;
        map(space, entry)
    })?;
    journal.enter(Done::Mapped(entry.range));
    Ok(())
}

fn map_counting(space: &dyn PciAddressSpace, mapping: &Mapping, report: &mut SpaceReport) -> Result<Done, Error> {
    map(space, mapping)?;
    let len = mapping.memory.len().get();
    if space.sharing().is_some_and(|sharing| sharing.sharers(&mapping.memory) > 1) {
        report.shared = report.shared.saturating_add(len);
    } else if space.registration().is_none() {
        // A host that registers pinned it then.
        report.pinned = report.pinned.saturating_add(len);
    }
    Ok(Done::Mapped(mapping.range))
}

/// A best-effort section could not be mapped: the guest lives on without it.
fn give_up(report: &mut SpaceReport, range: IovaRange, error: &Error) {
    for verdict in report.sections.iter_mut().filter(|verdict| verdict.piece.range().overlaps(range)) {
        (verdict.fate, verdict.reason) = (Fate::Skipped, error.to_string());
        report.warnings.extend(Warning::of(verdict, ""));
    }
}
