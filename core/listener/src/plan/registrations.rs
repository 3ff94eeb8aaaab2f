//! The memory to register, in as few runs as possible, and the registrations that are no longer needed.

use dmaspace_core::HostAddress;
use std::collections::BTreeSet;

use crate::plan::host::Host;
use crate::report::{Fate, Verdict};
use crate::section::TargetMemory;
use crate::update::View;
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;

/// The memory to register and to unregister for `view`, whose populated blocks are `blocks`, on a host whose
/// registrations are `registered`.
pub(super) fn registrations(
    view: &View,
    host: &Host<'_>,
    registered: &[HostMemory],
    blocks: &[HostMemory],
) -> (Vec<HostMemory>, Vec<HostMemory>) {
    let needed = needed_runs(view, host.powers.host_page);
    let covered = covered_by(&needed);
    let mut gone = registered.to_vec();
    gone.retain(|known| !covers_any_of(&covered, known) && near(blocks, known).is_empty());
    let mut missing = Vec::new();
    // Blocks are never part of a run: a registration can only be removed as a whole.
    for run in needed.iter().chain(blocks) {
        missing.extend(missing_from(run, near(registered, run)));
    }
    (as_others_have_it(missing, &host.runs), gone)
}

/// The fate of target memory on a host that wants registration.
///
/// POWER pins for writing, always (linux: arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_do_alloc).
pub(super) fn judge_target(target: &TargetMemory) -> Verdict<TargetMemory> {
    let (fate, reason) = if target.memory().is_device_memory() {
        (Fate::Skipped, "another device's memory cannot be registered")
    } else if target.memory().is_host_read_only() {
        (Fate::Skipped, "this process itself may only read it, and registration pins for writing")
    } else {
        (Fate::Registered, "entries may point to it")
    };
    Verdict::new(target.clone(), fate, reason)
}

/// The memory that `view` needs registered on a host with pages of `host_page`, in as few runs as possible.
pub(crate) fn needed_runs(view: &View, host_page: PageSize) -> Vec<HostMemory> {
    let targets = view.targets.iter().map(TargetMemory::memory);
    let sections = view.sections.iter().filter_map(|section| section.direct().map(|(memory, _)| memory));
    let mut needed = Vec::new();
    for memory in targets.chain(sections) {
        if !memory.is_device_memory() && !memory.is_host_read_only() {
            needed.extend(memory.widened_to(host_page));
        }
    }
    runs_of(needed)
}

/// Memory in as few spans as possible.
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

/// The host addresses of runs, which are ascending, first and last: disjoint even where runs of different kinds
/// overlap.
pub(super) fn covered_by(runs: &[HostMemory]) -> Vec<(u64, u64)> {
    let mut covered: Vec<(u64, u64)> = Vec::with_capacity(runs.len());
    for run in runs {
        match covered.last_mut() {
            Some((_, last)) if run.address() <= HostAddress::new(*last) => {
                *last = run.last().max(HostAddress::new(*last)).get()
            }
            _ => covered.push((run.address().get(), run.last().get())),
        }
    }
    covered
}

pub(super) fn covers_any_of(covered: &[(u64, u64)], memory: &HostMemory) -> bool {
    let next = covered.partition_point(|(_, last)| *last < memory.address().get());
    covered.get(next).is_some_and(|(first, _)| *first <= memory.last().get())
}

/// The items of `pieces`, which are ascending and disjoint, that share bytes with `memory`.
pub(crate) fn near<'a>(pieces: &'a [HostMemory], memory: &HostMemory) -> &'a [HostMemory] {
    let first = pieces.partition_point(|piece| piece.last() < memory.address());
    let end = pieces.partition_point(|piece| piece.address() <= memory.last());
    pieces.get(first..end).unwrap_or_default()
}

/// The spans to register so that all of `missing` is registered. The runs of other spaces of the process are taken as
/// they are, since the kernel refuses everything else that overlaps them; the rest is registered anew.
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

/// The parts of `run` that no registration covers. A registration cannot grow: new memory gets its own.
pub(crate) fn missing_from(run: &HostMemory, registered: &[HostMemory]) -> Vec<HostMemory> {
    let mut parts = vec![run.clone()];
    for known in registered {
        let mut rest = Vec::new();
        for part in parts {
            if part.overlaps(known) {
                rest.extend(<[_; 2]>::from(part.without(known)).into_iter().flatten());
            } else {
                rest.push(part);
            }
        }
        parts = rest;
    }
    parts
}
