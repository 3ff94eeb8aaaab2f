//! Planning: from what is mapped and what the front end says to an ordered list of steps and the fate of every section. Pure: the
//! same plan is what a dry run prints.
//!
//! Sections that continue each other on the bus and in the host are joined to runs, runs are trimmed inwards to their window's
//! granule, and what is mapped already and stays the same is left alone. Only the ranges an update touches are looked at, widened
//! to whole runs.

mod populated;

use std::fmt;

use crate::access::Access;
use crate::address::{Iova, IovaRange};
use crate::contract::{Fence, Keeps, Mapping, PciAddressSpace, Powers, Unit, WindowOffer, WindowRequest};
use crate::listener::discardable::Discardables;
use crate::listener::report::{Fate, SpaceReport, Verdict, Warning};
use crate::listener::update::{Update, View};
use crate::listener::windows::{self, WindowPlan};
use crate::memory::HostMemory;
use crate::page::PageSize;
use crate::section::{Backing, Cuts, FrontEnd, Need, Section, Shrink, TargetMemory};
use crate::window::{Window, Windows};

/// One thing to do to a space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Unmap a range that holds nothing that stays.
    Unmap(IovaRange),
    /// Remove a window with everything in it.
    RemoveWindow(IovaRange),
    /// Register memory.
    Register(HostMemory),
    /// Create a window.
    CreateWindow(WindowRequest),
    /// Map memory; a failure of what is best effort is reported and passed over.
    Map(Mapping, Need),
    /// Unregister memory nothing leans on any more.
    Unregister(HostMemory),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unmap(range) => write!(f, "unmap {range}"),
            Self::RemoveWindow(range) => write!(f, "remove the window {range}"),
            Self::Register(memory) => write!(f, "register {memory}"),
            Self::CreateWindow(WindowRequest { range, page }) => write!(f, "create a window {range} of {page} pages"),
            Self::Map(mapping, _) => write!(f, "map {} at {}, {}", mapping.memory, mapping.range, mapping.access),
            Self::Unregister(memory) => write!(f, "unregister {memory}"),
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
    /// How many more mappings it takes than it frees.
    more_mappings: u64,
}

/// What a plan has to know of a space.
pub(super) struct Host<'a> {
    space: &'a dyn PciAddressSpace,
    powers: Powers,
    windows: Windows,
    offer: Option<WindowOffer>,
    registered: Option<Vec<HostMemory>>,
    fences: Vec<Fence>,
}

impl<'a> Host<'a> {
    pub(super) fn of(space: &'a dyn PciAddressSpace) -> Self {
        Self {
            space,
            powers: space.powers(),
            windows: space.windows().windows.as_ref().clone(),
            offer: space.window_control().and_then(|control| control.offer()),
            registered: space.registration().map(|registration| registration.registered()),
            fences: space.fences(),
        }
    }
}

impl Host<'_> {
    /// Whether no device is attached, so that there is nothing to map into or to create windows with.
    pub(super) fn is_dormant(&self) -> bool {
        self.windows.is_empty() && self.offer.is_none()
    }
}

/// What a plan looks at.
#[derive(Debug, Default)]
pub(super) struct Scope {
    /// The ranges of the PCI address space that may change: whole runs, disjoint, ascending.
    touched: Vec<IovaRange>,
    /// The sections that go, ascending. The entries of a translated one go with it, even if one like it comes.
    removed: Vec<IovaRange>,
    /// The target memory whose fate is asked for.
    targets: Vec<TargetMemory>,
}

impl Scope {
    /// Everything in `view`.
    pub(super) fn all(view: &View) -> Self {
        let targets = view.targets.iter().cloned().collect();
        Self { touched: vec![IovaRange::all()], removed: Vec::new(), targets }
    }

    /// What the removals of `update` touch in the view without the update: a section that goes leaves the run it was in.
    pub(super) fn of_removals(update: &Update, before: &View) -> Self {
        let mut removed: Vec<_> = update.removed.iter().map(Section::range).collect();
        removed.sort();
        Self { touched: all_widened(before, &update.removed), removed, targets: update.added_targets.clone() }
    }

    /// The same update, for a space whose windows changed meanwhile: everything is looked at.
    pub(super) fn of_everything(&self, view: &View) -> Self {
        Self { removed: self.removed.clone(), ..Self::all(view) }
    }

    /// And what its additions touch in the view with the update: a section that comes joins a run.
    pub(super) fn widen_by_additions(&mut self, update: &Update, after: &View) {
        let come = all_widened(after, &update.added);
        self.touched = disjoint(self.touched.iter().copied().chain(come).collect());
    }
}

fn disjoint(mut ranges: Vec<IovaRange>) -> Vec<IovaRange> {
    ranges.sort();
    let mut out: Vec<IovaRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut().filter(|last| last.overlaps(range) || last.touches(range)) {
            Some(last) => *last = last.hull(range),
            None => out.push(range),
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

/// Whether `next` continues `section` on the bus and in the host, with the same rights.
pub(super) fn continues(section: &Section, next: &Section) -> bool {
    let (Some((memory, access)), Some((more, same))) = (section.direct(), next.direct()) else { return false };
    section.range().touches(next.range()) && access == same && memory.joined_with(more).is_some()
}

/// Plans what the scope has to become for `view` to hold on the host, with what is populated of its discardable sections.
pub(super) fn plan(view: &View, front: &FrontEnd, host: &Host<'_>, discardables: &Discardables, scope: &Scope) -> Plan {
    if host.is_dormant() {
        return Plan::of_nothing(view, scope);
    }
    let cut_by = |cutting| Planner::new(view, front, host, discardables, cutting, scope).plan();
    let hints = &front.cuts[..];
    let plan = cut_by(Cutting { hints, chunk: front.chunk });
    let left = if plan.more_mappings == 0 { None } else { host.space.mappings_left() };
    // Chunks leave half of the mappings to what is to come.
    let Some(left) = left.filter(|left| plan.more_mappings > left / 2) else { return plan };
    let hinted = cut_by(Cutting { hints, chunk: None });
    if hinted.more_mappings <= left {
        return hinted;
    }
    let mut joined = cut_by(Cutting { hints: &[], chunk: None });
    if joined.more_mappings > left {
        joined.refuse_all(&format!("{} more mappings are needed, the kernel has {left} left", joined.more_mappings));
    }
    joined
}

/// Where mappings are cut although they could be one, so that later changes disturb little.
#[derive(Clone, Copy)]
struct Cutting<'a> {
    /// Where the front end expects changes.
    hints: &'a [Cuts],
    /// Elsewhere.
    chunk: Option<PageSize>,
}

impl Cutting<'_> {
    /// A part of a run, in pieces.
    fn pieces(self, part: IovaRange, granule: PageSize) -> Vec<IovaRange> {
        let chunks = self.chunk.map(|chunk| Cuts { range: part, step: chunk.max(granule).max(bound_of_chunks(part)) });
        // Nothing smaller than a page of the window can change.
        let coarsened =
            |cuts: &Cuts| Some(Cuts { range: cuts.range.trimmed_to(granule)?, step: cuts.step.max(granule) });
        let hints = self.hints.iter().filter_map(coarsened);
        let cut_all = |parts: Vec<_>, cuts: Cuts| parts.into_iter().flat_map(|part| cut(part, cuts)).collect();
        hints.chain(chunks).fold(vec![part], cut_all)
    }
}

/// The smallest chunk that cuts a run into no more than about a thousand pieces, so that not even a hostile one takes for ever.
fn bound_of_chunks(run: IovaRange) -> PageSize {
    const MOST_PIECES_SHIFT: u32 = 10;
    let shift = u128::BITS - (run.bytes() - 1).leading_zeros();
    PageSize::from_shift(shift.saturating_sub(MOST_PIECES_SHIFT)).unwrap_or(PageSize::K4)
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
        self.plan.steps.extend(self.windows.removed.iter().copied().map(Step::RemoveWindow));
        let (register, unregister) = self.registrations(&self.scope.targets);
        self.plan.steps.extend(register.into_iter().map(Step::Register));
        self.plan.steps.extend(self.windows.created.iter().copied().map(Step::CreateWindow));
        let taken: u64 = maps.iter().map(|step| self.mappings_taken_by(step)).sum();
        self.plan.more_mappings = taken.saturating_sub(self.freed);
        self.plan.steps.extend(maps);
        // Last, when nothing leans on it any more and nothing can fail after it that would want it back.
        self.plan.steps.extend(unregister.into_iter().map(Step::Unregister));
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

    /// Decides the fate of every section in `range` and returns the runs to be mapped, trimmed.
    fn judge(&mut self, range: IovaRange) -> Vec<Run<'a>> {
        let view = self.view;
        let judged = self.plan.sections.len();
        let mut runs: Vec<Run<'a>> = Vec::new();
        let mut populated: Vec<Run<'a>> = Vec::new();
        for section in view.sections.within(range) {
            if let Backing::Discardable { memory, access, granule } = section.backing() {
                populated.extend(self.judge_discardable(section, memory, *access, *granule));
                continue;
            }
            match self.place(section) {
                Ok(run) => match runs.last_mut().filter(|last| continues_run(last, section, &run)) {
                    Some(last) => last.append(run),
                    None => runs.push(run),
                },
                Err(verdict) => self.plan.sections.push(verdict),
            }
        }
        let mut wanted: Vec<_> = runs.into_iter().filter_map(|run| self.trim(run)).collect();
        wanted.extend(populated);
        wanted.sort_by_key(|run| run.range);
        // Ranges are judged in ascending order; within one, fates are known in the order of runs.
        if let Some(new) = self.plan.sections.get_mut(judged..) {
            new.sort_by_key(|verdict| verdict.piece.range());
        }
        wanted
    }

    /// The run a section is by itself, or its fate if it is not mapped.
    fn place(&self, section: &'a Section) -> Result<Run<'a>, Verdict<Section>> {
        let verdict = |fate, reason: String| Err(Verdict::new(section.clone(), fate, reason));
        if let Some(reason) = self.windows.refusal(section) {
            return verdict(Fate::Refused, reason.to_string());
        }
        let (need, unmet) = match section.need() {
            Some(Need::Required) => (Need::Required, Fate::Refused),
            Some(Need::BestEffort) | None => (Need::BestEffort, Fate::Skipped),
        };
        let Some((memory, access)) = section.direct() else { return Err(self.judge_indirect(section)) };
        if let Some(reason) = self.unfit(memory, access) {
            return verdict(unmet, reason);
        }
        let Some(window) = self.windows.after.covering(section.range()).copied() else {
            return verdict(unmet, self.outside(section.range()));
        };
        if let Some(fence) = self.host.fences.iter().find(|fence| fence.range.overlaps(section.range())) {
            return verdict(unmet, format!("{} is fenced after an earlier failure", fence.range));
        }
        let (range, memory) = (section.range(), memory.clone());
        Ok(Run { range, memory, access, need, window, unit: None, sections: vec![section] })
    }

    /// Why this host cannot map such memory, wherever it lies.
    fn unfit(&self, memory: &HostMemory, access: Access) -> Option<String> {
        if access.is_empty() {
            return Some("devices may neither read nor write it".into());
        }
        if memory.is_device_memory() && !self.host.powers.maps_device_memory {
            return Some(format!("{} cannot map another device's memory", self.host.space.backend()));
        }
        let needs_writing = access.contains(Access::WRITE) || self.host.registered.is_some();
        (memory.is_host_read_only() && needs_writing).then(|| "this process itself may only read the memory".into())
    }

    /// The fate of a section that is not mapped by itself.
    fn judge_indirect(&self, section: &Section) -> Verdict<Section> {
        let (fate, reason) = match section.backing() {
            Backing::Translated { page } => self.judge_translated(section.range(), *page),
            Backing::Msi => (Fate::Msi, "a write here is an interrupt".into()),
            _ => (Fate::Skipped, "emulated: no memory is behind it".into()),
        };
        Verdict::new(section.clone(), fate, reason)
    }

    /// Windows that are created fit exactly; in fixed ones, what lies in them is usable, unless their pages are too large for an entry.
    fn judge_translated(&self, range: IovaRange, page: PageSize) -> (Fate, String) {
        if let Some(window) = self.windows.after.overlapping(range).find(|window| window.granule() > page) {
            let why = format!("its entries are pages of {page}, and {} is the host's smallest", window.granule());
            return (Fate::Refused, why);
        }
        if let Some(window) = self.windows.after.covering(range) {
            return (Fate::Window, format!("the host's window {} with {} pages", window.range, window.granule()));
        }
        let shared = self.windows.after.overlapping(range).filter_map(|window| window.range.intersection(range));
        let usable: Vec<_> = shared.filter_map(|shared| shared.trimmed_to(page)).collect();
        if usable.is_empty() {
            return (Fate::Refused, self.outside(range) + &self.elsewhere(range));
        }
        let usable: Vec<_> = usable.iter().map(ToString::to_string).collect();
        (Fate::Window, format!("usable as far as the host's windows reach: {}", usable.join(", ")))
    }

    fn outside(&self, range: IovaRange) -> String {
        match self.windows.after.top() {
            None => "the host offers no window".into(),
            Some(top) if range.first() > top => format!("above the host's top address {top}"),
            Some(_) => {
                let windows: Vec<_> = self.windows.after.iter().map(|window| window.range.to_string()).collect();
                format!("not inside one window of the host ({})", windows.join(", "))
            }
        }
    }

    /// Where a window of this size could go instead: above 4 GiB, aligned to its size, in nobody's way.
    fn elsewhere(&self, range: IovaRange) -> String {
        const ABOVE_4G: u64 = 1 << 32;
        let place = range.len().and_then(|len| {
            let step = len.get().checked_next_power_of_two()?;
            let free = |at: u64| {
                let place = IovaRange::with_len(Iova::new(at), len.get()).ok()?;
                let taken = self.view.sections.within(place).next().is_some();
                (!taken && self.windows.after.covering(place).is_some()).then_some(place)
            };
            // As many steps as there are sections that could be in the way, and one.
            let tries = self.view.sections.iter().count() as u64 + 1;
            (0..=tries).find_map(|n| free(ABOVE_4G.max(step).checked_add(n.checked_mul(step)?)?))
        });
        place.map_or_else(String::new, |place| format!("; {place} would do"))
    }

    /// Trims a run to whole pages and decides the fate of its sections. `None` when nothing of it is mapped.
    fn trim(&mut self, run: Run<'a>) -> Option<Run<'a>> {
        let granule = run.window.granule();
        let unmet = if run.need == Need::Required { Fate::Refused } else { Fate::Skipped };
        if !granule.divides(run.range.first().get().wrapping_sub(run.memory.address())) {
            let reason = format!("its bus and host addresses lie differently in pages of {granule}");
            self.plan
                .sections
                .extend(run.sections.iter().map(|section| Verdict::new((*section).clone(), unmet, &*reason)));
            return None;
        }
        let trimmed = run.range.trimmed_to(granule);
        for section in &run.sections {
            self.plan.sections.push(self.judge_trimmed(section, trimmed, &run));
        }
        let trimmed = trimmed?;
        let memory = run.memory.slice(run.range.offset_of(trimmed.first()), trimmed.len()?.get())?;
        Some(Run { range: trimmed, memory, ..run })
    }

    fn judge_trimmed(&self, section: &Section, trimmed: Option<IovaRange>, run: &Run<'_>) -> Verdict<Section> {
        let (range, granule) = (section.range(), run.window.granule());
        let refuses = run.need == Need::Required && self.front.shrink == Shrink::Refuse;
        let Some(shared) = trimmed.and_then(|trimmed| trimmed.intersection(range)) else {
            let fate = if refuses { Fate::Refused } else { Fate::Skipped };
            let mut verdict = Verdict::new(section.clone(), fate, format!("no whole page of {granule} lies in it"));
            verdict.lost_head = range.len().map_or(u64::MAX, |len| len.get());
            return verdict;
        };
        let lost_head = shared.first().get() - range.first().get();
        let lost_tail = range.last().get() - shared.last().get();
        let (fate, reason) = match (lost_head, lost_tail) {
            (0, 0) => (Fate::Mapped, format!("{} with {granule} pages", run.access)),
            (head, tail) if refuses => {
                (Fate::Refused, format!("{head} + {tail} bytes at its ends are no whole page of {granule}"))
            }
            (head, tail) => (
                Fate::Mapped,
                format!("{}, without {head} + {tail} bytes that are no whole page of {granule}", run.access),
            ),
        };
        Verdict { piece: section.clone(), fate, reason, lost_head, lost_tail }
    }

    /// What a guest can live without is worth a warning, with the one remedy there is.
    fn warnings(&self) -> Vec<Warning> {
        let warning = |verdict| Warning::of(verdict, &self.advice(verdict));
        self.plan.sections.iter().filter_map(warning).collect()
    }

    fn advice(&self, verdict: &Verdict<Section>) -> String {
        if verdict.lost_head == 0 && verdict.lost_tail == 0 {
            return String::new();
        }
        let range = verdict.piece.range();
        let around = range.first().get().checked_sub(1).map(Iova::new).into_iter().chain(range.end());
        let mut neighbours =
            around.filter_map(|at| self.view.sections.within(IovaRange::new(at, at).ok()?).next()).map(Section::name);
        let table = neighbours.find(|name| name.contains("msix"));
        table.map_or_else(String::new, |name| format!("; relocating {name}, which splits it, would help"))
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
            (Keeps::Mappings, Unit::Pages(page)) => bytes(range) >> page.shift(),
            (Keeps::Mappings, Unit::Whole) | (Keeps::Entries, _) => 1,
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
            (None, Keeps::Entries) => (Unit::Pages(granule), vec![gap]),
            (None, Keeps::Mappings) => (Unit::Whole, self.cutting.pieces(gap, granule)),
        };
        let (access, first, memory) = (run.access, run.range.first(), run.memory.clone());
        parts.into_iter().filter_map(move |range| {
            let memory = memory.slice(range.first().get() - first.get(), range.len()?.get())?;
            Some(Mapping { range, memory, access, unit })
        })
    }

    /// What has to be registered and unregistered, in runs; and the fate of target memory.
    fn registrations(&mut self, targets: &[TargetMemory]) -> (Vec<HostMemory>, Vec<HostMemory>) {
        let Some(registered) = &self.host.registered else {
            let reason = format!("{} needs no registration", self.host.space.backend());
            let skipped = |target: &TargetMemory| Verdict::new(target.clone(), Fate::Skipped, &*reason);
            self.plan.targets = targets.iter().map(skipped).collect();
            return (Vec::new(), Vec::new());
        };
        self.plan.targets = targets.iter().map(judge_target).collect();
        let page = self.host.powers.host_page;
        let targets = self.view.targets.iter().map(TargetMemory::memory);
        let sections = self.view.sections.iter().filter_map(|section| section.direct().map(|(memory, _)| memory));
        let pinnable = |memory: &&HostMemory| !memory.is_device_memory() && !memory.is_host_read_only();
        let needed: Vec<_> =
            targets.chain(sections).filter(pinnable).filter_map(|memory| memory.widened_to(page)).collect();
        let needed = runs_of(needed);
        let blocks = self.populated_blocks();
        let unneeded =
            |known: &&HostMemory| !needed.iter().any(|run| run.overlaps(known)) && near(&blocks, known).is_empty();
        let gone: Vec<_> = registered.iter().filter(unneeded).cloned().collect();
        // Blocks are never part of a run: what is registered together can only be let go of together.
        let new = needed.iter().chain(&blocks).flat_map(|run| missing_from(run, near(registered, run))).collect();
        (new, gone)
    }
}

/// POWER pins for writing, always (linux: arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_do_alloc).
fn judge_target(target: &TargetMemory) -> Verdict<TargetMemory> {
    let (fate, reason) = if target.memory().is_device_memory() {
        (Fate::Skipped, "another device's memory cannot be registered")
    } else if target.memory().is_host_read_only() {
        (Fate::Skipped, "this process itself may only read it, and registration pins for writing")
    } else {
        (Fate::Registered, "entries may point to it")
    };
    Verdict::new(target.clone(), fate, reason)
}

/// Memory as few spans as possible.
fn runs_of(mut memory: Vec<HostMemory>) -> Vec<HostMemory> {
    memory.sort_by_key(HostMemory::address);
    let mut runs: Vec<HostMemory> = Vec::new();
    for span in memory {
        match runs.last_mut().and_then(|last| last.merged_with(&span).map(|merged| (last, merged))) {
            Some((last, merged)) => *last = merged,
            None => runs.push(span),
        }
    }
    runs
}

/// Those of `pieces`, which are ascending and disjoint, that share bytes with `memory`.
fn near<'a>(pieces: &'a [HostMemory], memory: &HostMemory) -> &'a [HostMemory] {
    let first = pieces.partition_point(|piece| piece.last() < memory.address());
    let end = pieces.partition_point(|piece| piece.address() <= memory.last());
    pieces.get(first..end).unwrap_or_default()
}

/// The parts of `run` that no registration covers. A registration cannot grow: what is new gets its own.
fn missing_from(run: &HostMemory, registered: &[HostMemory]) -> Vec<HostMemory> {
    registered.iter().fold(vec![run.clone()], |parts, known| {
        let split = |part: HostMemory| match part.overlaps(known) {
            true => <[_; 2]>::from(part.without(known)).into_iter().flatten().collect(),
            false => vec![part],
        };
        parts.into_iter().flat_map(split).collect()
    })
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

fn continues_run(last: &Run<'_>, section: &Section, next: &Run<'_>) -> bool {
    last.sections.last().is_some_and(|before| continues(before, section))
        && last.window == next.window
        && last.need == next.need
}

/// Those of `pieces`, which are ascending and disjoint, that share bytes with `range`.
fn overlapping<T>(pieces: &[T], range: IovaRange, place: impl Fn(&T) -> IovaRange) -> &[T] {
    let first = pieces.partition_point(|piece| place(piece).last() < range.first());
    let end = pieces.partition_point(|piece| place(piece).first() <= range.last());
    pieces.get(first..end).unwrap_or_default()
}

/// What is left of `range` without `taken`, which is ascending.
fn rest_of(range: IovaRange, taken: &[IovaRange]) -> Vec<IovaRange> {
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

/// `part` cut at the two ends of the hint and at every step between.
fn cut(part: IovaRange, cuts: Cuts) -> Vec<IovaRange> {
    let Some(shared) = part.intersection(cuts.range) else { return vec![part] };
    let (below, above) = part.without(shared);
    let mut out: Vec<_> = below.into_iter().collect();
    let mut rest = shared;
    while let Some((step, more)) = cuts
        .step
        .round_down(rest.first().get())
        .checked_add(cuts.step.bytes())
        .and_then(|at| rest.split_before(Iova::new(at)))
    {
        out.push(step);
        rest = more;
    }
    out.push(rest);
    out.extend(above);
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
        SpaceReport { backend: space.backend(), sections, targets, pinned: 0, disturbed, warnings }
    }

    /// The kernel cannot hold all of it: nothing is tried.
    fn refuse_all(&mut self, reason: &str) {
        let takes_some = |fate: Fate| matches!(fate, Fate::Mapped | Fate::Discardable);
        for verdict in self.sections.iter_mut().filter(|verdict| takes_some(verdict.fate)) {
            (verdict.fate, verdict.reason) = (Fate::Refused, reason.to_string());
        }
    }
}
