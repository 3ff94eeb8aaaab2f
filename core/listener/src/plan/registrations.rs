//! What has to be registered, in as few runs as there can be, and what need not be any more.

use std::collections::BTreeSet;

use crate::plan::Planner;
use crate::report::{Fate, Verdict};
use crate::section::TargetMemory;
use crate::update::View;
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;

impl Planner<'_> {
    /// What has to be registered and unregistered, in runs; and the fate of target memory.
    pub(super) fn registrations(&mut self, targets: &[TargetMemory]) -> (Vec<HostMemory>, Vec<HostMemory>) {
        let Some(registered) = &self.host.registered else {
            let reason = format!("{} needs no registration", self.host.space.describe().backend);
            let skipped = |target: &TargetMemory| Verdict::new(target.clone(), Fate::Skipped, &*reason);
            self.plan.targets = targets.iter().map(skipped).collect();
            return (Vec::new(), Vec::new());
        };
        self.plan.targets = targets.iter().map(judge_target).collect();
        let needed = needed_runs(self.view, self.host.powers.host_page);
        let blocks = self.populated_blocks();
        let covered = covered_by(&needed);
        let unneeded = |known: &&HostMemory| !covers_any_of(&covered, known) && near(&blocks, known).is_empty();
        let gone: Vec<_> = registered.iter().filter(unneeded).cloned().collect();
        // RangeSet are never part of a run: what is registered together can only be let go of together.
        let missing = needed.iter().chain(&blocks).flat_map(|run| missing_from(run, near(registered, run)));
        (as_others_have_it(missing.collect(), &self.host.runs), gone)
    }
}

/// What `view` needs to be registered, as few runs as possible, on a host with such pages.
pub(crate) fn needed_runs(view: &View, host_page: PageSize) -> Vec<HostMemory> {
    let targets = view.targets.iter().map(TargetMemory::memory);
    let sections = view.sections.iter().filter_map(|section| section.direct().map(|(memory, _)| memory));
    let pinnable = |memory: &&HostMemory| !memory.is_device_memory() && !memory.is_host_read_only();
    runs_of(targets.chain(sections).filter(pinnable).filter_map(|memory| memory.widened_to(host_page)).collect())
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
pub(super) fn runs_of(mut memory: Vec<HostMemory>) -> Vec<HostMemory> {
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

/// The host addresses of runs, which are ascending, first and last: disjoint even where runs of different kinds overlap.
pub(super) fn covered_by(runs: &[HostMemory]) -> Vec<(u64, u64)> {
    let mut covered: Vec<(u64, u64)> = Vec::with_capacity(runs.len());
    for run in runs {
        match covered.last_mut().filter(|(_, last)| run.address() <= *last) {
            Some((_, last)) => *last = run.last().max(*last),
            None => covered.push((run.address(), run.last())),
        }
    }
    covered
}

pub(super) fn covers_any_of(covered: &[(u64, u64)], memory: &HostMemory) -> bool {
    let next = covered.partition_point(|(_, last)| *last < memory.address());
    covered.get(next).is_some_and(|(first, _)| *first <= memory.last())
}

/// Those of `pieces`, which are ascending and disjoint, that share bytes with `memory`.
pub(crate) fn near<'a>(pieces: &'a [HostMemory], memory: &HostMemory) -> &'a [HostMemory] {
    let first = pieces.partition_point(|piece| piece.last() < memory.address());
    let end = pieces.partition_point(|piece| piece.address() <= memory.last());
    pieces.get(first..end).unwrap_or_default()
}

/// What to register for all of `missing` to be: the runs that other spaces of the process have registered are taken as they are, since the
/// kernel refuses all that overlaps them otherwise, and what they leave is registered anew.
fn as_others_have_it(missing: Vec<HostMemory>, runs: &[HostMemory]) -> Vec<HostMemory> {
    let mut taken = BTreeSet::new();
    let mut wanted = Vec::new();
    for part in &missing {
        let theirs = near(runs, part);
        wanted.extend(theirs.iter().filter(|run| taken.insert(run.address())).cloned());
        wanted.extend(missing_from(part, theirs));
    }
    wanted
}

/// The parts of `run` that no registration covers. A registration cannot grow: what is new gets its own.
pub(crate) fn missing_from(run: &HostMemory, registered: &[HostMemory]) -> Vec<HostMemory> {
    registered.iter().fold(vec![run.clone()], |parts, known| {
        let split = |part: HostMemory| match part.overlaps(known) {
            true => <[_; 2]>::from(part.without(known)).into_iter().flatten().collect(),
            false => vec![part],
        };
        parts.into_iter().flat_map(split).collect()
    })
}
