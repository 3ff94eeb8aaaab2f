//! Planning: from what is mapped and what the front end says to an ordered list of steps and the fate of every section. Pure: the
//! same plan is what a dry run prints.
//!
//! Sections that continue each other on the bus and in the host are joined to runs, runs are trimmed inwards to their window's
//! granule, and what is mapped already and stays the same is left alone. Only the ranges an update touches are looked at, widened
//! to whole runs.

mod cutting;
mod holding;
mod judging;
mod populated;
mod registrations;
mod scope;

use std::fmt;

use crate::discardable::Discardables;
use crate::report::{Fate, SpaceReport, Verdict, Warning};
use crate::section::{Backing, FrontEnd, Need, Section, TargetMemory};
use crate::update::View;
use crate::windows::{self, WindowPlan};
use cutting::Cutting;
use dmaspace_core::contract::{
    Capabilities, Fence, Mapping, MappingModel, PciAddressSpace, Unit, WindowOffer, WindowRequest,
};
use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::words::access::Access;
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;
use dmaspace_core::words::window::{Window, Windows};
pub(super) use registrations::{missing_from, near, needed_runs};
use scope::disjoint;
pub(super) use scope::{Scope, continues};

/// One thing to do to a space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Unmap a range that holds nothing that stays.
    Unmap(IovaRange),
    /// Remove a window with everything in it.
    RemoveWindow(IovaRange),
    /// Register memory.
    Register(HostMemory),
    /// Share the pins of memory with other spaces.
    SharePins(HostMemory),
    /// Create a window.
    CreateWindow(WindowRequest),
    /// Map memory; a failure of what is best effort is reported and passed over.
    Map(Mapping, Need),
    /// Unregister memory nothing leans on any more.
    Unregister(HostMemory),
    /// Stop sharing the pins of memory that no mapping uses.
    StopSharing(HostMemory),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unmap(range) => write!(f, "unmap {range}"),
            Self::RemoveWindow(range) => write!(f, "remove the window {range}"),
            Self::Register(memory) => write!(f, "register {memory}"),
            Self::SharePins(memory) => write!(f, "share the pins of {memory}"),
            Self::CreateWindow(WindowRequest { range, page }) => write!(f, "create a window {range} of {page} pages"),
            Self::Map(mapping, _) => write!(f, "map {} at {}, {}", mapping.memory, mapping.range, mapping.access),
            Self::Unregister(memory) => write!(f, "unregister {memory}"),
            Self::StopSharing(memory) => write!(f, "stop sharing the pins of {memory}"),
        }
    }
}

/// What one update means for one space.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) sections: Vec<Verdict<Section>>,
    pub(super) targets: Vec<Verdict<TargetMemory>>,
    pub(super) disturbed: u64,
    pub(super) warnings: Vec<Warning>,
    /// Entries of translated windows that other spaces have and this one lacks. They come last.
    pub(super) entries: Vec<Mapping>,
    /// How many more mappings it takes than it frees.
    more_mappings: u64,
}

/// What a plan has to know of a space.
pub(super) struct Host<'a> {
    space: &'a dyn PciAddressSpace,
    powers: Capabilities,
    windows: Windows,
    offer: Option<WindowOffer>,
    registered: Option<Vec<HostMemory>>,
    /// What the process has registered, through whichever space.
    runs: Vec<HostMemory>,
    held: Option<Vec<HostMemory>>,
    fences: Vec<Fence>,
}

impl<'a> Host<'a> {
    pub(super) fn of(space: &'a dyn PciAddressSpace) -> Self {
        Self {
            space,
            powers: space.describe().capabilities,
            windows: space.windows().windows.as_ref().clone(),
            offer: space.powers().window_control.and_then(|control| control.offer()),
            registered: space.powers().registration.map(|registration| registration.registered()),
            runs: space
                .powers()
                .registration
                .and_then(|registration| registration.runs())
                .map(ProcessRegistrations::all)
                .unwrap_or_default(),
            held: space.powers().pin_sharing.map(|sharing| sharing.shared()),
            fences: space.describe().fences,
        }
    }
}

/// Whether no device is attached, so that there is nothing to map into or to create windows with.
pub(super) fn is_dormant(space: &dyn PciAddressSpace) -> bool {
    space.windows().windows.is_empty() && space.powers().window_control.is_none_or(|control| control.offer().is_none())
}

/// Plans what the scope has to become for `view` to hold on the host, with what is populated of its discardable sections.
pub(super) fn plan(view: &View, front: &FrontEnd, host: &Host<'_>, discardables: &Discardables, scope: &Scope) -> Plan {
    if is_dormant(host.space) {
        return Plan::of_nothing(view, scope);
    }
    let (hints, none) = (&front.cuts[..], &[][..]);
    let mut ways = vec![
        Cutting { hints, chunk: front.chunk },
        Cutting { hints, chunk: None },
        Cutting { hints: none, chunk: None },
    ];
    ways.dedup();
    let mut left = None;
    let mut plan = Plan::default();
    for cutting in ways {
        plan = Planner::new(view, front, host, discardables, cutting, scope).plan();
        if plan.more_mappings == 0 {
            return plan;
        }
        let Some(left) = *left.get_or_insert_with(|| host.space.powers().mappings_left()) else { return plan };
        // Chunks leave half of the mappings to what is to come.
        let most = if cutting.chunk.is_some() { left / 2 } else { left };
        if plan.more_mappings <= most {
            return plan;
        }
    }
    let left = left.flatten().unwrap_or_default();
    plan.refuse_all(&format!("{} more mappings are needed, the kernel has {left} left", plan.more_mappings));
    plan
}

struct Planner<'a> {
    view: &'a View,
    front: &'a FrontEnd,
    host: &'a Host<'a>,
    discardables: &'a Discardables,
    cutting: Cutting<'a>,
    scope: &'a Scope,
    windows: WindowPlan,
    plan: Plan,
    /// How many mappings the plan takes out, however few calls that takes.
    freed: u64,
}

/// Sections that continue each other, in one window.
struct Run<'a> {
    range: IovaRange,
    memory: HostMemory,
    access: Access,
    need: Need,
    window: Window,
    /// The pages it must be mapped in, if it will go page by page.
    unit: Option<PageSize>,
    sections: Vec<&'a Section>,
}

impl<'a> Planner<'a> {
    fn new(
        view: &'a View,
        front: &'a FrontEnd,
        host: &'a Host<'a>,
        discardables: &'a Discardables,
        cutting: Cutting<'a>,
        scope: &'a Scope,
    ) -> Self {
        let windows = match &host.offer {
            Some(offer) => {
                windows::plan(view, cutting.hints, host.powers.host_page, offer, &host.windows, &host.fences)
            }
            None => WindowPlan { after: host.windows.clone(), ..WindowPlan::default() },
        };
        let (plan, freed) = (Plan::default(), 0);
        Self { view, front, host, discardables, cutting, scope, windows, plan, freed }
    }

    fn plan(mut self) -> Plan {
        let touched = self.with_changed_windows(&self.scope.touched);
        let mut maps = Vec::new();
        for range in &touched {
            let wanted = self.judge(*range);
            self.change(*range, wanted, &mut maps);
        }
        let created: Vec<_> = self.windows.created.iter().copied().map(Step::CreateWindow).collect();
        let (first, last) = if self.windows.come_first { (created, Vec::new()) } else { (Vec::new(), created) };
        self.plan.steps.extend(first);
        self.plan.steps.extend(self.windows.removed.iter().copied().map(Step::RemoveWindow));
        let (register, unregister) = self.registrations(&self.scope.targets);
        self.plan.steps.extend(register.into_iter().map(Step::Register));
        let (hold, let_go) = self.holdings(&self.scope.targets);
        self.plan.steps.extend(hold.into_iter().map(Step::SharePins));
        self.plan.steps.extend(last);
        let taken: u64 = maps.iter().map(|step| self.mappings_taken_by(step)).sum();
        self.plan.more_mappings = taken.saturating_sub(self.freed);
        self.plan.steps.extend(maps);
        // Last, when nothing leans on it any more and nothing can fail after it that would want it back.
        self.plan.steps.extend(unregister.into_iter().map(Step::Unregister));
        self.plan.steps.extend(let_go.into_iter().map(Step::StopSharing));
        self.plan.warnings = self.warnings();
        self.plan.warnings.extend(self.warnings_of_blocks());
        self.plan
    }

    /// A window that goes or comes touches everything in it.
    fn with_changed_windows(&self, touched: &[IovaRange]) -> Vec<IovaRange> {
        let changed =
            self.windows.removed.iter().copied().chain(self.windows.created.iter().map(|request| request.range));
        disjoint(touched.iter().copied().chain(changed).collect())
    }

    /// Leaves alone what is mapped and stays, unmaps the rest, and maps what is missing.
    fn change(&mut self, range: IovaRange, wanted: Vec<Run<'a>>, maps: &mut Vec<Step>) {
        let live = self.host.space.mappings(range);
        let survives = |at: IovaRange| !self.windows.removed.iter().any(|window| window.overlaps(at));
        let mut kept: Vec<IovaRange> = Vec::new();
        let mut going: Vec<IovaRange> = Vec::new();
        let mut disturbed = 0;
        for mapping in &live {
            let near = overlapping(&wanted, mapping.range, |run| run.range);
            let same: Vec<_> = near.iter().filter_map(|run| run.same_as(mapping)).collect();
            let whole = same.first() == Some(&mapping.range);
            let survives = survives(mapping.range);
            if survives && self.is_entry(mapping.range) {
                kept.push(mapping.range);
            } else if survives && (whole || mapping.unit != Unit::Whole) {
                let rest = rest_of(mapping.range, &same);
                self.freed += rest.iter().map(|range| self.mappings_in(*range, mapping.unit)).sum::<u64>();
                going.extend(rest);
                kept.extend(&same);
            } else {
                going.push(mapping.range);
                self.freed += self.mappings_in(mapping.range, mapping.unit);
                disturbed += same.iter().map(|range| bytes(*range)).sum::<u64>();
            }
        }
        self.plan.disturbed += disturbed;
        going.retain(|range| survives(*range));
        // An unmap spans gaps, but neither what stays nor a fence.
        let fences = self.host.fences.iter().map(|fence| fence.range);
        let obstacles = disjoint(kept.iter().copied().chain(fences).collect());
        self.plan.steps.extend(merged(going, &obstacles).into_iter().map(Step::Unmap));
        for run in &wanted {
            for gap in rest_of(run.range, &kept) {
                maps.extend(self.pieces(run, gap).map(|mapping| Step::Map(mapping, run.need)));
            }
        }
    }

    /// How many of the kernel's mappings a live range in such units is.
    fn mappings_in(&self, range: IovaRange, unit: Unit) -> u64 {
        match (self.host.powers.keeps, unit) {
            (MappingModel::Mappings, Unit::Pages(page)) => bytes(range) >> page.shift(),
            (MappingModel::Mappings, Unit::Whole) | (MappingModel::PageEntries, _) => 1,
        }
    }

    fn mappings_taken_by(&self, step: &Step) -> u64 {
        match step {
            Step::Map(mapping, _) => self.mappings_in(mapping.range, mapping.unit),
            _ => 0,
        }
    }

    /// Whether the guest put what lives in `range`, into a translated section that stays.
    fn is_entry(&self, range: IovaRange) -> bool {
        let stays =
            |section: &&Section| overlapping(&self.scope.removed, section.range(), |removed| *removed).is_empty();
        let section = self.view.sections.within(range).next().filter(stays);
        section.is_some_and(|section| matches!(section.backing(), Backing::Translated { .. }))
    }

    /// A missing part of a run, cut where later changes are expected. Table entries need no cuts.
    fn pieces(&self, run: &Run<'_>, gap: IovaRange) -> impl Iterator<Item = Mapping> + use<> {
        let granule = run.window.granule();
        let (unit, parts) = match (run.unit, self.host.powers.keeps) {
            (Some(page), _) => (Unit::Pages(page), vec![gap]),
            (None, MappingModel::PageEntries) => (Unit::Pages(granule), vec![gap]),
            (None, MappingModel::Mappings) => (Unit::Whole, self.cutting.pieces(gap, granule)),
        };
        let (access, first, memory) = (run.access, run.range.first(), run.memory.clone());
        parts.into_iter().filter_map(move |range| {
            let memory = memory.slice(range.first().get() - first.get(), range.len()?.get())?;
            Some(Mapping { range, memory, access, unit })
        })
    }
}

impl Run<'_> {
    /// The part of a live mapping that this run would map just the same.
    fn same_as(&self, live: &Mapping) -> Option<IovaRange> {
        let shared = self.range.intersection(live.range)?;
        let here = self.memory.address().wrapping_add(self.range.offset_of(shared.first()));
        let there = live.memory.address().wrapping_add(live.range.offset_of(shared.first()));
        let goes_alike = self.unit.is_none_or(|page| live.unit == Unit::Pages(page));
        let same = here == there && self.access == live.access && self.memory.is_of_a_kind(&live.memory);
        (same && goes_alike).then_some(shared)
    }
}

impl<'a> Run<'a> {
    fn append(&mut self, next: Run<'a>) {
        if let Some(memory) = self.memory.joined_with(&next.memory) {
            self.memory = memory;
            self.range = self.range.hull(next.range);
            self.sections.extend(next.sections);
        }
    }
}

/// Those of `pieces`, which are ascending and disjoint, that share bytes with `range`.
fn overlapping<T>(pieces: &[T], range: IovaRange, place: impl Fn(&T) -> IovaRange) -> &[T] {
    let first = pieces.partition_point(|piece| place(piece).last() < range.first());
    let end = pieces.partition_point(|piece| place(piece).first() <= range.last());
    pieces.get(first..end).unwrap_or_default()
}

/// What is left of `range` without `taken`, which is ascending.
pub(super) fn rest_of(range: IovaRange, taken: &[IovaRange]) -> Vec<IovaRange> {
    let mut rest = Some(range);
    let mut out = Vec::new();
    for hole in overlapping(taken, range, |hole| *hole) {
        let Some(current) = rest else { break };
        let (below, above) = current.without(*hole);
        out.extend(below);
        rest = above;
    }
    out.extend(rest);
    out
}

/// Ranges to unmap, joined across gaps in which there is no obstacle.
fn merged(going: Vec<IovaRange>, obstacles: &[IovaRange]) -> Vec<IovaRange> {
    let mut out: Vec<IovaRange> = Vec::new();
    for range in going {
        match out.last_mut().filter(|last| overlapping(obstacles, last.hull(range), |obstacle| *obstacle).is_empty()) {
            Some(last) => *last = last.hull(range),
            None => out.push(range),
        }
    }
    out
}

fn bytes(range: IovaRange) -> u64 {
    range.len().map_or(u64::MAX, std::num::NonZeroU64::get)
}

impl Plan {
    /// These steps, and nothing to report.
    pub(super) fn of(steps: Vec<Step>) -> Self {
        Self { steps, ..Self::default() }
    }

    /// Nothing can be done yet.
    fn of_nothing(view: &View, scope: &Scope) -> Self {
        const WHY: &str = "no device is attached yet";
        let sections = scope.touched.iter().flat_map(|range| view.sections.within(*range));
        let sections = sections.map(|section| Verdict::new(section.clone(), Fate::Skipped, WHY)).collect();
        let targets = scope.targets.iter().map(|target| Verdict::new(target.clone(), Fate::Skipped, WHY)).collect();
        Self { sections, targets, ..Self::default() }
    }

    /// Whether something required cannot be provided.
    pub(super) fn is_refused(&self) -> bool {
        let refused = |fate: Fate| fate == Fate::Refused;
        self.sections.iter().any(|verdict| refused(verdict.fate))
            || self.targets.iter().any(|verdict| refused(verdict.fate))
    }

    /// What it would do, as a report. Nothing is pinned by a plan.
    pub(super) fn into_report(self, space: &dyn PciAddressSpace) -> SpaceReport {
        let Self { sections, targets, disturbed, warnings, .. } = self;
        SpaceReport { backend: space.describe().backend, sections, targets, pinned: 0, shared: 0, disturbed, warnings }
    }

    /// The kernel cannot hold all of it: nothing is tried.
    fn refuse_all(&mut self, reason: &str) {
        let takes_some = |fate: Fate| matches!(fate, Fate::Mapped | Fate::Discardable);
        for verdict in self.sections.iter_mut().filter(|verdict| takes_some(verdict.fate)) {
            (verdict.fate, verdict.reason) = (Fate::Refused, reason.to_string());
        }
    }
}
