//! Updates: the listener makes them true, or says why not and leaves everything as it was.

use dmaspace_core::error::Operation;
use dmaspace_core::{HostAddress, HostMemory, IovaRange};
use dmaspace_listener::Section;
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{BadUpdate, CommitError, Report, SpaceReport, Verdict};
use dmaspace_tests::model::{Change, Guest, ModelHost};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::host_under_test::HostKind;
use crate::step::Fault;
use crate::test_host::TestHost;
use crate::update_builder::{update, without_the_parts_that_stay};
use crate::world::World;

impl World {
    pub(crate) fn commit(&mut self, change: &Change, whole: bool, fault: Option<Fault>) -> TestCaseResult {
        let whole = whole && self.guest.after(change).is_some();
        let change = &if whole { without_the_parts_that_stay(change) } else { change.clone() };
        let after = self.guest.after(change);
        let update = match &after {
            Some(after) if whole => self.listener.update_to(&after.sections, &after.targets),
            _ => update(change),
        };
        let explained = self.listener.explain(&update);
        prop_assert_eq!(explained.is_ok(), after.is_some(), "explain: {:?}", explained);
        let before = self.before();
        let (result, fired) = self.disturbed(fault, |listener| listener.commit(update));
        let Some(after) = after else {
            let is_bad = matches!(result, Err(CommitError::Update(_) | CommitError::StillMapped { .. }));
            prop_assert!(is_bad, "an update that makes no sense: {:?}", result);
            return self.check_untouched(&before);
        };
        let strands_entries = self.strands_entries(change, &after);
        let scarce = self.served().any(|place| place.is_scarce(&after));
        if fired.is_none() {
            self.check_foreseen(&explained, &result)?;
        }
        match result {
            Ok(report) => {
                // Behind a fence no entry is known any more.
                let is_fenced = self.served().any(TestHost::is_fenced);
                prop_assert!(!strands_entries || is_fenced, "entries point to memory that went");
                for place in self.served() {
                    // A fence may lie over a section that was served before.
                    let known = if place.is_stale { Vec::new() } else { place.objections(&self.guest) };
                    let objections = place.objections(&after);
                    let new = objections.iter().find(|(section, _)| !known.iter().any(|(known, _)| known == section));
                    prop_assert!(new.is_none(), "{} serves a section that it cannot: {:?}", place.name(), new);
                }
                let old = std::mem::replace(&mut self.guest, after);
                self.check_report(&before, &old, &report, fired)
            }
            Err(CommitError::StillMapped { .. }) if strands_entries => self.check_untouched(&before),
            Err(CommitError::Refused(report)) => {
                let objects = self.served().any(|place| !place.objections(&after).is_empty());
                let is_fair = objects || scarce || fired.is_some() || self.blames_a_fence(&report, change, &after);
                prop_assert!(is_fair, "refused without need: {}", CommitError::Refused(report));
                self.check_untouched(&before)
            }
            Err(CommitError::Step { error, fenced }) => {
                prop_assert!(fired.is_some() || scarce, "failed without cause: {}", error);
                if error.operation() == Operation::CreateWindow {
                    let partitions =
                        self.places.iter_mut().filter(|place| place.host_under_test.spec.kind == HostKind::PSeries);
                    for place in partitions {
                        place.is_spent = true;
                    }
                }
                self.check_undone(&before, &[fenced, error.fenced().to_vec()].concat())?;
                self.check()?;
                if fired.is_some() && !scarce { self.commit(change, whole, None) } else { Ok(()) }
            }
            Err(error) => Err(TestCaseError::fail(format!("{error}, although {after:?}"))),
        }
    }

    /// A dry run has the same outcome of every section as the commit.
    fn check_foreseen(
        &self,
        explained: &Result<Report, BadUpdate>,
        result: &Result<Report, CommitError>,
    ) -> TestCaseResult {
        type Fates = (Vec<Verdict<Section>>, Vec<Verdict<TargetMemory>>);
        let fates = |report: &Report| -> Vec<Fates> {
            report.spaces.iter().map(|space| (space.sections.clone(), space.targets.clone())).collect()
        };
        if let Ok(report) | Err(CommitError::Refused(report)) = result {
            prop_assert_eq!(Ok(fates(report)), explained.as_ref().map(fates));
        }
        Ok(())
    }

    /// Returns whether live entries of windows that stay point to target memory that is removed.
    fn strands_entries(&self, change: &Change, after: &Guest) -> bool {
        after.entries.values().any(|entry| {
            let last = entry.host + (entry.range.bytes() as u64 - 1);
            let overlaps =
                |memory: &HostMemory| memory.address() <= HostAddress::new(last) && entry.host <= memory.last().get();
            change.removed_targets.iter().any(|target| overlaps(target.memory()))
        })
    }

    /// Returns whether a fence is the reason for a refusal: one that is near what changes, in the same created window
    /// at least.
    fn blames_a_fence(&self, report: &Report, change: &Change, after: &Guest) -> bool {
        let mut near: Vec<_> = change.removed.iter().chain(&change.added).map(Section::range).collect();
        let sections = || self.guest.sections.iter().chain(&after.sections).map(Section::range);
        let is_near = |near: &[IovaRange], range: IovaRange| {
            near.iter().any(|other| other.overlaps(range) || other.touches(range) || range.touches(*other))
        };
        while let Some(more) = sections().find(|range| !near.contains(range) && is_near(&near, *range)) {
            near.push(more);
        }
        let refusals: Vec<_> = report.spaces.iter().filter_map(SpaceReport::refusal).collect();
        let is_blamed = |fence: &IovaRange| refusals.iter().any(|why| why.contains(&format!("{fence} is fenced")));
        self.served().any(|place| {
            let ModelHost { fences, offer, .. } = place.host();
            let all_count = place.is_stale || offer.is_some();
            fences.iter().any(|fence| is_blamed(fence) && (all_count || is_near(&near, *fence)))
        })
    }
}
