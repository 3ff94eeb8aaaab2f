//! The memory whose pins are to be shared, where spaces share pins, in as few runs as possible, and the runs that are
//! no longer needed.
//!
//! The pins of everything that can be mapped are shared: sections, populated or not, and target memory. Sharing pins
//! nothing by itself, so there is no reason to share less, and memory that is mapped, here or through another space, is
//! pinned once. The cost is proportional to the memory that is added; only when something is removed, everything is
//! looked at.

use crate::plan::host::Host;
use crate::plan::registrations::{covered_by, covers_any_of, missing_from, near, runs_of};
use crate::plan::scope::Scope;
use crate::report::{Fate, Verdict};
use crate::section::{Section, TargetMemory};
use crate::update::View;
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;

/// The runs to share and to stop sharing on a host that shares `shared`.
pub(super) fn pins(
    view: &View,
    host: &Host<'_>,
    shared: &[HostMemory],
    scope: &Scope,
) -> (Vec<HostMemory>, Vec<HostMemory>) {
    let page = host.powers.host_page;
    let sections = scope.touched.iter().flat_map(|range| view.sections.within(*range));
    let mut new: Vec<HostMemory> = Vec::new();
    for run in shareable(sections, scope.targets.iter(), page) {
        // The same bytes, differently described, are one piece of memory here.
        let known = [near(shared, &run), near(&new, &run)].concat();
        new.extend(missing_from(&run, &known));
    }
    let mut gone = Vec::new();
    if scope.withdraws {
        let covered = covered_by(&shareable(view.sections.iter(), view.targets.iter(), page));
        gone.extend(shared.iter().filter(|known| !covers_any_of(&covered, known)).cloned());
    }
    (new, gone)
}

/// The memory whose pins can be shared, in runs of whole pages.
fn shareable<'a>(
    sections: impl Iterator<Item = &'a Section>,
    targets: impl Iterator<Item = &'a TargetMemory>,
    page: PageSize,
) -> Vec<HostMemory> {
    let memory = sections.filter_map(Section::memory).chain(targets.map(TargetMemory::memory));
    runs_of(memory.filter(|memory| !memory.is_device_memory()).filter_map(|memory| memory.widened_to(page)).collect())
}

/// The fate of target memory on a host where spaces share pins.
pub(super) fn judge_target(target: &TargetMemory) -> Verdict<TargetMemory> {
    let (fate, reason) = if target.memory().is_device_memory() {
        (Fate::Skipped, "another device's memory is not pinned")
    } else {
        (Fate::PinsShared, "entries that point to it share their pins with other spaces")
    };
    Verdict::new(target.clone(), fate, reason)
}
