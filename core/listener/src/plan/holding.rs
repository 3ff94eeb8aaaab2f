//! What is to be held, where spaces share pins, in as few runs as there can be, and what need not be any more.
//!
//! Everything that can be mapped is held: sections, populated or not, and target memory. Holding pins nothing, so there is no reason to
//! hold less, and what is mapped of it, here or through another space, is pinned once. What is new costs what is new; only when something
//! goes, everything is looked at.

use crate::plan::Planner;
use crate::plan::registrations::{covered_by, covers_any_of, missing_from, near, runs_of};
use crate::report::{Fate, Verdict};
use crate::section::{Section, TargetMemory};
use dmaspace_core::words::memory::HostMemory;

impl Planner<'_> {
    /// What has to be held and let go of, in runs; and the fate of target memory, if it is to be held.
    pub(super) fn holdings(&mut self, targets: &[TargetMemory]) -> (Vec<HostMemory>, Vec<HostMemory>) {
        let Some(held) = &self.host.held else { return (Vec::new(), Vec::new()) };
        self.plan.targets = targets.iter().map(judge_target).collect();
        let sections = self.scope.touched.iter().flat_map(|range| self.view.sections.within(*range));
        let needed = self.holdable(sections, targets.iter());
        let gone = if self.scope.withdraws {
            let covered = covered_by(&self.holdable(self.view.sections.iter(), self.view.targets.iter()));
            held.iter().filter(|known| !covers_any_of(&covered, known)).cloned().collect()
        } else {
            Vec::new()
        };
        let mut new: Vec<HostMemory> = Vec::new();
        for run in &needed {
            // The same bytes, differently described, are one piece of memory here.
            let known = [near(held, run), near(&new, run)].concat();
            new.extend(missing_from(run, &known));
        }
        (new, gone)
    }

    /// What can be held, in runs of whole pages.
    fn holdable<'b>(
        &self,
        sections: impl Iterator<Item = &'b Section>,
        targets: impl Iterator<Item = &'b TargetMemory>,
    ) -> Vec<HostMemory> {
        let memory = sections.filter_map(Section::memory).chain(targets.map(TargetMemory::memory));
        let memory = memory.filter(|memory| !memory.is_device_memory());
        runs_of(memory.filter_map(|memory| memory.widened_to(self.host.powers.host_page)).collect())
    }
}

fn judge_target(target: &TargetMemory) -> Verdict<TargetMemory> {
    let (fate, reason) = if target.memory().is_device_memory() {
        (Fate::Skipped, "another device's memory is not pinned")
    } else {
        (Fate::PinsShared, "entries that point to it share what they pin with other spaces")
    };
    Verdict::new(target.clone(), fate, reason)
}
