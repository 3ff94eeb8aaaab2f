//! Planning: an ordered list of steps, and the fate of every section, from the live mappings and the view. Pure: a dry
//! run prints the same plan.
//!
//! Sections that continue each other on the bus and in the host are joined to runs, runs are trimmed inwards to their
//! window's granule, and mappings that stay the same are left alone. Only the ranges an update touches are looked at,
//! widened as far as the change reaches: to whole pages, and to whole mappings of a kernel that unmaps nothing less. A
//! byte is mapped if all of its page lies in the run, so a change does not reach farther, however long the run is.

mod cutting;
mod host;
mod judging;
mod pins;
mod populated;
mod registrations;
mod scope;
mod step;

use std::collections::BTreeMap;

use crate::report::{Fate, Verdict};
use crate::section::{Backing, FrontEnd, Need};
use crate::update::View;
use crate::windows::{self, WindowPlan};
use cutting::Cutting;
use dmaspace_core::contract::{Mapping, MappingModel, Unit};
use dmaspace_core::words::access::Access;
use dmaspace_core::words::address::{Iova, IovaRange};
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;
use dmaspace_core::words::window::Window;
pub(super) use host::{Host, is_dormant};
pub(super) use registrations::{missing_from, near, needed_runs};
pub(super) use scope::Scope;
use scope::disjoint;
pub(super) use step::{Plan, Step};

/// The populated ranges of discardable sections, by the sections' first bytes.
pub(super) type Populated = BTreeMap<Iova, Vec<IovaRange>>;

/// Plans the steps after which `view` holds on the host, in the scope.
pub(super) fn plan(view: &View, front: &FrontEnd, host: &Host<'_>, populated: &Populated, scope: &Scope) -> Plan {
    if is_dormant(host.space) {
        return Plan::without_device(view, scope);
    }
    let mut left = None;
    let mut plan = Plan::default();
    for cutting in ways_to_cut(front) {
        plan = Planner::new(view, front, host, populated, cutting, scope).plan();
        if plan.more_mappings == 0 {
            return plan;
        }
        let Some(left) = *left.get_or_insert_with(|| host.space.powers().mappings_left()) else { return plan };
        // Chunks leave half of the mappings to later updates.
        let most = if cutting.chunk.is_some() { left / 2 } else { left };
        if plan.more_mappings <= most {
            return plan;
        }
    }
    let rest = left.flatten().unwrap_or_default();
    plan.refuse_all(&format!("{} more mappings are needed, the kernel has {rest} left", plan.more_mappings));
    plan
}

/// The ways to cut mappings, from the most cuts to none.
fn ways_to_cut(front: &FrontEnd) -> Vec<Cutting<'_>> {
    let (hints, none) = (&front.cuts[..], &[][..]);
    let mut ways = vec![
        Cutting { hints, chunk: front.chunk },
        Cutting { hints, chunk: None },
        Cutting { hints: none, chunk: None },
    ];
    ways.dedup();
    ways
}

struct Planner<'a> {
    view: &'a View,
    front: &'a FrontEnd,
    host: &'a Host<'a>,
    populated: &'a Populated,
    cutting: Cutting<'a>,
    scope: &'a Scope,
    windows: WindowPlan,
    plan: Plan,
    /// The number of mappings the plan unmaps, in any number of calls.
    freed: u64,
}

/// Sections that continue each other, in one window.
#[derive(Clone, Copy)]
struct Run<'a> {
    range: IovaRange,
    /// The address of the first byte in this process.
    address: u64,
    /// The memory of one of the sections: all of the run is of a kind with it.
    memory: &'a HostMemory,
    access: Access,
    need: Need,
    window: Window,
    /// The pages it must be mapped in, if it is unmapped page by page later.
    unit: Option<PageSize>,
}

/// The live mappings of a range, sorted by their future.
struct Sorted {
    kept: Vec<IovaRange>,
    going: Vec<IovaRange>,
}

impl<'a> Planner<'a> {
    fn new(
        view: &'a View,
        front: &'a FrontEnd,
        host: &'a Host<'a>,
        populated: &'a Populated,
        cutting: Cutting<'a>,
        scope: &'a Scope,
    ) -> Self {
        let windows = match &host.offer {
            Some(offer) => {
                windows::plan(view, cutting.hints, host.powers.host_page, offer, &host.windows, &host.fences)
            }
            None => WindowPlan::fixed(host.windows.clone()),
        };
        Self { view, front, host, populated, cutting, scope, windows, plan: Plan::default(), freed: 0 }
    }

    fn plan(mut self) -> Plan {
        let mut maps = Vec::new();
        for range in self.reached() {
            let wanted = self.judge(range);
            self.change(range, &wanted, &mut maps);
        }
        // A section that two ranges share is judged with each, alike.
        self.plan.sections.dedup_by(|later, earlier| later.piece.range() == earlier.piece.range());
        let (unregister, stop_sharing) = self.prepare_windows_and_memory();
        let taken: u64 = maps.iter().map(|(mapping, _)| self.mappings_in(mapping.range, mapping.unit)).sum();
        self.plan.more_mappings = taken.saturating_sub(self.freed);
        let steps = &mut self.plan.steps;
        steps.extend(maps.into_iter().map(|(mapping, need)| Step::Map(mapping, need)));
        // Last, when no mapping uses it any more, and no later step can fail whose undo would want it back.
        steps.extend(unregister.into_iter().map(Step::Unregister));
        steps.extend(stop_sharing.into_iter().map(Step::StopSharing));
        self.plan.warnings = self.warnings();
        self.plan.warnings.extend(self.warnings_of_blocks());
        self.plan
    }

    /// Adds the steps between unmapping and mapping: windows, registrations and shared pins. Returns the memory to
    /// unregister, and the memory whose pins are shared no longer.
    fn prepare_windows_and_memory(&mut self) -> (Vec<HostMemory>, Vec<HostMemory>) {
        let targets = &self.scope.targets;
        let (mut register, mut unregister) = (Vec::new(), Vec::new());
        let (mut share, mut stop_sharing) = (Vec::new(), Vec::new());
        if let Some(registered) = &self.host.registered {
            self.plan.targets = targets.iter().map(registrations::judge_target).collect();
            let blocks = self.populated_blocks();
            (register, unregister) = registrations::registrations(self.view, self.host, registered, &blocks);
        } else {
            for target in targets {
                let reason = format!("{} needs no registration", self.host.space.describe().backend);
                self.plan.targets.push(Verdict::new(target.clone(), Fate::Skipped, reason));
            }
        }
        if let Some(shared) = &self.host.shared {
            self.plan.targets = targets.iter().map(pins::judge_target).collect();
            (share, stop_sharing) = pins::pins(self.view, self.host, shared, self.scope);
        }
        let created = self.windows.created.iter().copied().map(Step::CreateWindow);
        let steps = &mut self.plan.steps;
        if self.windows.come_first {
            steps.extend(created.clone());
        }
        steps.extend(self.windows.removed.iter().copied().map(Step::RemoveWindow));
        steps.extend(register.into_iter().map(Step::Register));
        steps.extend(share.into_iter().map(Step::SharePins));
        if !self.windows.come_first {
            steps.extend(created);
        }
        (unregister, stop_sharing)
    }

    /// The ranges that the changes reach, disjoint. A window that is removed or created is a change of all it holds.
    fn reached(&self) -> Vec<IovaRange> {
        let mut reached: Vec<_> = self.scope.touched.iter().map(|range| self.reach_of(*range)).collect();
        reached.extend(&self.windows.removed);
        reached.extend(self.windows.created.iter().map(|request| request.range));
        disjoint(reached)
    }

    /// The range that a change of `range` reaches: the pages it lies in, and the mappings that are unmapped as a whole.
    fn reach_of(&self, range: IovaRange) -> IovaRange {
        let mut reach = range;
        for at in [range.first(), range.last()] {
            if let Some(window) = self.windows.after.containing(at) {
                let pages = range.widened_to(window.granule()).intersection(window.range);
                reach = reach.hull(pages.unwrap_or(range));
            }
        }
        for at in [reach.first(), reach.last()] {
            match self.host.space.lookup(at) {
                Some(Mapping { range, unit: Unit::Whole, .. }) => reach = reach.hull(range),
                Some(Mapping { range, unit: Unit::Pages(page), .. }) => {
                    let units = reach.widened_to(page).intersection(range);
                    reach = reach.hull(units.unwrap_or(reach));
                }
                None => {}
            }
        }
        reach
    }

    /// Leaves mappings alone that stay, unmaps the rest, and maps missing memory.
    fn change(&mut self, range: IovaRange, wanted: &[Run<'a>], maps: &mut Vec<(Mapping, Need)>) {
        let Sorted { kept, mut going } = self.sort(range, wanted);
        going.retain(|range| self.survives(*range));
        if !going.is_empty() {
            // One unmap spans gaps, but neither mappings that stay nor a fence.
            let fences = self.host.fences.iter().map(|fence| fence.range);
            let obstacles = disjoint(kept.iter().copied().chain(fences).collect());
            self.plan.steps.extend(merged(going, &obstacles).into_iter().map(Step::Unmap));
        }
        let mut ahead = &kept[..];
        for run in wanted {
            ahead = reaching(ahead, run.range, |kept| *kept);
            if ahead.first().is_some_and(|kept| kept.covers(run.range)) {
                continue;
            }
            for gap in rest_of(run.range, ahead) {
                maps.extend(self.pieces(run, gap).into_iter().map(|mapping| (mapping, run.need)));
            }
        }
    }

    /// Sorts the live mappings of `range`, and counts the mappings that are freed and the bytes that are disturbed.
    fn sort(&mut self, range: IovaRange, mut wanted: &[Run<'a>]) -> Sorted {
        let live = self.host.live_in(range);
        let mut sorted = Sorted { kept: Vec::with_capacity(live.len()), going: Vec::new() };
        for mapping in live.iter() {
            wanted = reaching(wanted, mapping.range, |run| run.range);
            if self.is_wanted(mapping, wanted.first()) {
                sorted.kept.push(mapping.range);
                continue;
            }
            let near = overlapping(wanted, mapping.range, |run| run.range);
            let same: Vec<_> = near.iter().filter_map(|run| run.same_as(mapping)).collect();
            let is_whole = same.first() == Some(&mapping.range);
            if !self.survives(mapping.range) || !(is_whole || self.can_be_split(mapping)) {
                sorted.going.push(mapping.range);
                self.freed += self.mappings_in(mapping.range, mapping.unit);
                self.plan.disturbed += same.iter().map(|range| bytes(*range)).sum::<u64>();
            } else if self.is_entry(mapping.range) {
                sorted.kept.push(mapping.range);
            } else {
                let rest = rest_of(mapping.range, &same);
                self.freed += rest.iter().map(|range| self.mappings_in(*range, mapping.unit)).sum::<u64>();
                sorted.going.extend(rest);
                sorted.kept.extend(&same);
            }
        }
        sorted
    }

    /// Returns whether all of a mapping stays, as part of `run`.
    fn is_wanted(&self, mapping: &Mapping, run: Option<&Run<'_>>) -> bool {
        let same = run.and_then(|run| run.same_as(mapping));
        same == Some(mapping.range) && self.survives(mapping.range)
    }

    fn can_be_split(&self, mapping: &Mapping) -> bool {
        mapping.unit != Unit::Whole || self.is_entry(mapping.range)
    }

    /// Returns whether no window is removed around `range`.
    fn survives(&self, range: IovaRange) -> bool {
        !self.windows.removed.iter().any(|window| window.overlaps(range))
    }

    /// The number of the kernel's mappings that a live range in such units is.
    fn mappings_in(&self, range: IovaRange, unit: Unit) -> u64 {
        match (self.host.powers.keeps, unit) {
            (MappingModel::Mappings, Unit::Pages(page)) => bytes(range) >> page.shift(),
            (MappingModel::Mappings, Unit::Whole) | (MappingModel::PageEntries, _) => 1,
        }
    }

    /// Returns whether the guest put the mapping at `range`, into a translated section that stays.
    fn is_entry(&self, range: IovaRange) -> bool {
        let Some(section) = self.view.sections.within(range).next() else { return false };
        let goes = !overlapping(&self.scope.removed, section.range(), |removed| *removed).is_empty();
        !goes && matches!(section.backing(), Backing::Translated { .. })
    }

    /// A missing part of a run, cut where later changes are expected. Table entries need no cuts.
    fn pieces(&self, run: &Run<'_>, gap: IovaRange) -> Vec<Mapping> {
        let granule = run.window.granule();
        let (unit, parts) = match (run.unit, self.host.powers.keeps) {
            (Some(page), _) => (Unit::Pages(page), vec![gap]),
            (None, MappingModel::PageEntries) => (Unit::Pages(granule), vec![gap]),
            (None, MappingModel::Mappings) => (Unit::Whole, self.cutting.pieces(gap, granule)),
        };
        let mut pieces = Vec::with_capacity(parts.len());
        for range in parts {
            let memory = self.memory_in(range);
            debug_assert!(memory.is_some(), "the sections of a run cover it, and their memory is one piece");
            let access = run.access;
            pieces.extend(memory.map(|memory| Mapping::new(range, memory, access, unit)));
        }
        pieces
    }

    /// The memory that the sections in `range` show there, where it is one piece.
    fn memory_in(&self, range: IovaRange) -> Option<HostMemory> {
        let mut joined: Option<HostMemory> = None;
        for section in self.view.sections.within(range) {
            let shared = section.range().intersection(range)?;
            let part = section.memory()?.slice(section.range().offset_of(shared.first()), shared.len()?.get())?;
            joined = Some(match joined {
                None => part,
                Some(below) => below.joined_with(&part)?,
            });
        }
        joined
    }
}

impl Run<'_> {
    /// The part of a live mapping that this run would map just the same.
    fn same_as(&self, live: &Mapping) -> Option<IovaRange> {
        let shared = self.range.intersection(live.range)?;
        let here = self.address.wrapping_add(self.range.offset_of(shared.first()));
        let there = live.memory.address().get().wrapping_add(live.range.offset_of(shared.first()));
        let is_of_its_unit = self.unit.is_none_or(|page| live.unit == Unit::Pages(page));
        let is_same = here == there && self.access == live.access && self.memory.is_of_a_kind(&live.memory);
        if is_same && is_of_its_unit { Some(shared) } else { None }
    }

    /// The part of this run in `range`.
    fn clipped_to(self, range: IovaRange) -> Option<Self> {
        if range.covers(self.range) {
            return Some(self);
        }
        let range = self.range.intersection(range)?;
        let address = self.address.wrapping_add(self.range.offset_of(range.first()));
        Some(Self { range, address, ..self })
    }
}

/// The items of `pieces`, which are ascending and disjoint, from the first one on that does not end before `range`. The
/// cost is proportional to the items before it.
fn reaching<T>(pieces: &[T], range: IovaRange, place: impl Fn(&T) -> IovaRange) -> &[T] {
    let passed = pieces.iter().take_while(|piece| place(piece).last() < range.first()).count();
    pieces.get(passed..).unwrap_or_default()
}

/// The items of `pieces`, which are ascending and disjoint, that share bytes with `range`.
fn overlapping<T>(pieces: &[T], range: IovaRange, place: impl Fn(&T) -> IovaRange) -> &[T] {
    let first = pieces.partition_point(|piece| place(piece).last() < range.first());
    let end = pieces.partition_point(|piece| place(piece).first() <= range.last());
    pieces.get(first..end).unwrap_or_default()
}

/// The parts of `range` outside `taken`, which is ascending.
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
        match out.last_mut() {
            Some(last) if overlapping(obstacles, last.hull(range), |obstacle| *obstacle).is_empty() => {
                *last = last.hull(range);
            }
            _ => out.push(range),
        }
    }
    out
}

fn bytes(range: IovaRange) -> u64 {
    range.len().map_or(u64::MAX, std::num::NonZeroU64::get)
}
