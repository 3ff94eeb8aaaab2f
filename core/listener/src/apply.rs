//! Applying a plan, with a journal: a step that fails takes everything done before it back, in reverse.

use crate::page_size_fallback::SmallerPages;
use crate::plan::{Plan, Step};
use crate::report::{Fate, SpaceReport, Warning};
use crate::section::Need;
use dmaspace_core::contract::MapRequest;
use dmaspace_core::contract::Unit;
use dmaspace_core::contract::{Mapping, PciAddressSpace, WindowRequest};
use dmaspace_core::door::Failure;
use dmaspace_core::error::{Error, Kind, Operation, Subject};
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;

/// What was done to one space, and how to take it back.
#[derive(Debug, Default)]
pub(super) struct Journal {
    done: Vec<Done>,
}

#[derive(Debug)]
enum Done {
    Unmapped(Vec<Mapping>),
    WindowRemoved(WindowRequest, Vec<Mapping>),
    Registered(HostMemory),
    PinsShared(HostMemory),
    WindowCreated(IovaRange),
    Mapped(IovaRange),
    Unregistered(HostMemory),
    SharingStopped(HostMemory),
    /// Live units of pages of this size, as they were.
    Replaced(Vec<Mapping>, PageSize),
    /// A step of something best effort failed and left these.
    Fenced(Vec<IovaRange>),
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
) -> Result<Vec<SpaceReport>, Failed> {
    let mut journals: Vec<(&dyn PciAddressSpace, Journal)> = Vec::new();
    let mut reports = Vec::new();
    for (space, plan) in plans {
        let mut journal = Journal::default();
        let result = apply(space, plan, &mut journal);
        journals.push((space, journal));
        match result {
            Ok(report) => reports.push(report),
            Err(error) => {
                let fenced = journals.into_iter().rev().flat_map(|(space, journal)| journal.undo(space)).collect();
                return Err(Failed { error, fenced });
            }
        }
    }
    Ok(reports)
}

/// Carries out the steps of `plan` on `space`, entering each into `journal`.
///
/// # Errors
/// The first step of something required that failed. The journal says what was done before it.
pub(super) fn apply(space: &dyn PciAddressSpace, plan: Plan, journal: &mut Journal) -> Result<SpaceReport, Error> {
    let mut report = SpaceReport {
        backend: space.describe().backend,
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
                Ok(()) => journal.done.push(Done::Mapped(mapping.range)),
                Err(error) => {
                    give_up(&mut report, mapping.range, &error);
                    journal.done.push(Done::Fenced(error.fenced));
                }
            },
            Step::Map(mapping, Need::Required) => {
                let mapping =
                    remade.iter().fold(mapping, |mapping, smaller: &SmallerPages| smaller.of(mapping, &report));
                let done = map_required(space, mapping, journal, &mut report, &mut remade)?;
                journal.done.push(done);
            }
            step => match carry_out(space, step, &mut report) {
                Ok(done) => journal.done.push(done),
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
            let control = space.powers().window_control.ok_or_else(|| powerless(Operation::RemoveWindow, range))?;
            let window = space.windows().windows.covering(range).copied();
            let window = window.ok_or_else(|| Error::new(Operation::RemoveWindow, range, Kind::NoSuchWindow))?;
            Done::WindowRemoved(WindowRequest { range, page: window.granule() }, control.remove_window(range)?)
        }
        Step::Register(memory) => {
            let registration =
                space.powers().registration.ok_or_else(|| powerless(Operation::Register, memory.clone()))?;
            registration.register(&memory)?;
            let is_shared = registration.runs().is_some_and(|runs| runs.users(&memory) > 1);
            let pinned = if is_shared { &mut report.shared } else { &mut report.pinned };
            *pinned = pinned.saturating_add(memory.len().get());
            Done::Registered(memory)
        }
        Step::SharePins(memory) => {
            let sharing = space.powers().pin_sharing.ok_or_else(|| powerless(Operation::SharePins, memory.clone()))?;
            sharing.share_pins(&memory)?;
            Done::PinsShared(memory)
        }
        Step::CreateWindow(request) => {
            let control =
                space.powers().window_control.ok_or_else(|| powerless(Operation::CreateWindow, request.range))?;
            control.create_window(request)?;
            Done::WindowCreated(request.range)
        }
        Step::Map(mapping, _) => map_counting(space, &mapping, report)?,
        Step::Unregister(memory) => {
            let registration =
                space.powers().registration.ok_or_else(|| powerless(Operation::Unregister, memory.clone()))?;
            registration.unregister(&memory)?;
            Done::Unregistered(memory)
        }
        Step::StopSharing(memory) => {
            let sharing =
                space.powers().pin_sharing.ok_or_else(|| powerless(Operation::StopSharing, memory.clone()))?;
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
    journal.note_mapped(entry.range);
    Ok(())
}

fn map_counting(space: &dyn PciAddressSpace, mapping: &Mapping, report: &mut SpaceReport) -> Result<Done, Error> {
    map(space, mapping)?;
    let len = mapping.memory.len().get();
    if space.powers().pin_sharing.is_some_and(|sharing| sharing.sharers(&mapping.memory) > 1) {
        report.shared = report.shared.saturating_add(len);
    } else if space.powers().registration.is_none() {
        // A host that registers pinned it then.
        report.pinned = report.pinned.saturating_add(len);
    }
    Ok(Done::Mapped(mapping.range))
}

fn map(space: &dyn PciAddressSpace, mapping: &Mapping) -> Result<(), Error> {
    space.map(MapRequest::new(mapping.range.first(), &mapping.memory, mapping.access).with_unit(mapping.unit))
}

/// Plans only ask for powers the space has shown; a space that loses one meanwhile gets an error, not a panic.
pub(super) fn powerless(operation: Operation, subject: impl Into<Subject>) -> Error {
    Error::new(operation, subject, Kind::Unsupported("the space lost this power"))
}

/// A best-effort section could not be mapped: the guest lives on without it.
fn give_up(report: &mut SpaceReport, range: IovaRange, error: &Error) {
    for verdict in report.sections.iter_mut().filter(|verdict| verdict.piece.range().overlaps(range)) {
        (verdict.fate, verdict.reason) = (Fate::Skipped, error.to_string());
        report.warnings.extend(Warning::of(verdict, ""));
    }
}

impl Journal {
    /// Unregisters memory beside a plan.
    pub(super) fn unregister(&mut self, space: &dyn PciAddressSpace, memory: HostMemory) -> Result<(), Error> {
        let registration =
            space.powers().registration.ok_or_else(|| powerless(Operation::Unregister, memory.clone()))?;
        registration.unregister(&memory)?;
        self.done.push(Done::Unregistered(memory));
        Ok(())
    }

    /// Something was mapped beside the plan.
    pub(super) fn note_mapped(&mut self, range: IovaRange) {
        self.done.push(Done::Mapped(range));
    }

    /// Something was unmapped beside a plan.
    pub(super) fn note_unmapped(&mut self, old: Vec<Mapping>) {
        self.done.push(Done::Unmapped(old));
    }

    /// Live units were replaced beside a plan.
    pub(super) fn note_replaced(&mut self, old: Vec<Mapping>, page: PageSize) {
        self.done.push(Done::Replaced(old, page));
    }

    /// The window that holds `range`, if it was created here.
    fn window_around(&self, range: IovaRange) -> Option<IovaRange> {
        self.done.iter().find_map(|done| match done {
            Done::WindowCreated(window) if window.covers(range) => Some(*window),
            _ => None,
        })
    }

    /// Takes back what was done, the last first. What cannot be taken back is fenced, and returned.
    pub(super) fn undo(self, space: &dyn PciAddressSpace) -> Vec<IovaRange> {
        self.done.into_iter().rev().flat_map(|done| take_back(space, done)).collect()
    }
}

fn take_back(space: &dyn PciAddressSpace, done: Done) -> Vec<IovaRange> {
    match done {
        Done::Unmapped(live) => map_again(space, live),
        Done::WindowRemoved(request, live) => {
            let created = twice(|| match space.powers().window_control {
                Some(control) => control.create_window(request),
                None => Err(powerless(Operation::CreateWindow, request.range)),
            });
            match created {
                Ok(_) => map_again(space, live),
                Err(error) => {
                    // Without its window nothing is reachable there, so no memory has to be held.
                    space.fence(request.range, None, cause(&error));
                    [error.fenced, vec![request.range]].concat()
                }
            }
        }
        Done::Registered(memory) => {
            settle(space.powers().registration.map(|registration| registration.unregister(&memory)));
            Vec::new()
        }
        Done::PinsShared(memory) => {
            settle(space.powers().pin_sharing.map(|sharing| sharing.stop_sharing(&memory)));
            Vec::new()
        }
        Done::WindowCreated(range) => match space.powers().window_control.map(|control| control.remove_window(range)) {
            Some(Err(error)) => error.fenced,
            _ => Vec::new(),
        },
        Done::Mapped(range) => match space.unmap(range) {
            Ok(_) => Vec::new(),
            Err(error) => error.fenced,
        },
        Done::Fenced(fenced) => fenced,
        Done::Replaced(old, page) => put_back(space, old, page),
        Done::Unregistered(memory) => {
            settle(space.powers().registration.map(|registration| twice(|| registration.register(&memory))));
            Vec::new()
        }
        Done::SharingStopped(memory) => {
            settle(space.powers().pin_sharing.map(|sharing| sharing.share_pins(&memory)));
            Vec::new()
        }
    }
}

fn map_again(space: &dyn PciAddressSpace, live: Vec<Mapping>) -> Vec<IovaRange> {
    let mut lost = Vec::new();
    for mapping in live {
        if let Err(error) = twice(|| map(space, &mapping)) {
            space.fence(mapping.range, Some(mapping.memory), cause(&error));
            lost.push(mapping.range);
        }
    }
    lost
}

fn put_back(space: &dyn PciAddressSpace, old: Vec<Mapping>, page: PageSize) -> Vec<IovaRange> {
    let mut lost = Vec::new();
    for Mapping { range, memory, access, .. } in old {
        if let Err(error) =
            twice(|| space.replace(MapRequest::new(range.first(), &memory, access).with_unit(Unit::Pages(page))))
        {
            let fenced = space.unmap(range).map_or_else(|error| error.fenced, |_| Vec::new());
            space.fence(range, Some(memory), cause(&error));
            lost.extend([error.fenced, fenced, vec![range]].concat());
        }
    }
    lost
}

/// What is being taken back is worth a second try, unless the first left something in doubt.
fn twice<T>(step: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    step().or_else(|error| if error.fenced.is_empty() { step() } else { Err(error) })
}

/// A registration or a holding too many, or one too few, changes nothing that devices can reach: the log is told.
fn settle(result: Option<Result<(), Error>>) {
    if let Some(Err(error)) = result {
        log::error!("while taking back a commit: {error}");
    }
}

fn cause(error: &Error) -> Failure {
    error.failure.unwrap_or(Failure::malformed("undo", "what was there before could not be brought back"))
}
