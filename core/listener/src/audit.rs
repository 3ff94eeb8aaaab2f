//! The audit: a comparison of the spaces with the view, and of each space's index with itself.
//!
//! A commit's journal is gone afterwards, but its result can be computed again: a plan of everything, made from the
//! view alone, has no step when the space is as it should be. The index, which the plan relies on, is compared with the
//! windows, the fences and the registrations.

use dmaspace_core::HostAddress;
use std::fmt;

use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::memory::HostMemory;

use crate::discardable;
use crate::in_force::InForce;
use crate::plan::{Host, Scope, Step, near};
use crate::report::WarningCause;
use crate::section::Need;
use crate::served_space::ServedSpace;

/// A difference between a space and the view, or a contradiction in a space.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The backend's name.
    pub backend: &'static str,
    /// The finding, in words.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.backend, self.what)
    }
}

/// The findings in all spaces.
pub(crate) fn audit(all: &InForce) -> Vec<Finding> {
    // A populate or discard that is half done is no finding.
    let _blocks = discardable::pause_all(&all.discardables);
    let mut findings = Vec::new();
    for member in &all.served {
        let backend = member.space.describe().backend;
        findings.extend(audit_of(all, member).into_iter().map(|what| Finding { backend, what }));
    }
    findings
}

fn audit_of(all: &InForce, member: &ServedSpace) -> Vec<String> {
    if !member.is_current() {
        return vec!["its windows changed since the last commit".into()];
    }
    let scope = Scope::all_steps(&all.view);
    let host = Host::of(member.space.as_ref(), &scope);
    let plan = all.plan_for(&all.view, &host, &all.populated(), &scope);
    let mut found = Vec::new();
    for step in plan.steps.iter().filter(|step| !is_given_up(all, member, step)) {
        found.push(format!("it is not in step with the guest: it would have to {step}"));
    }
    found.extend(contradictions(&host));
    found
}

/// Returns whether the step failed before, and was reported.
fn is_given_up(all: &InForce, member: &ServedSpace, step: &Step) -> bool {
    let Step::Map(mapping, Need::BestEffort) = step else { return false };
    all.view.sections.within(mapping.range).any(|section| {
        let warning = (section.name().to_owned(), WarningCause::NotMapped);
        member.warnings.contains_key(&warning)
    })
}

/// The contradictions between a space's index and its windows, fences and registrations.
fn contradictions(host: &Host<'_>) -> Vec<String> {
    let Host { windows, fences, registered, live, .. } = host;
    let mut below: Option<IovaRange> = None;
    let mut found = Vec::new();
    for mapping in live.iter().flatten() {
        let range = mapping.range;
        let is_above = below.is_none_or(|below| below.last() < range.first());
        let is_registered = registered.as_ref().is_none_or(|known| is_covered(&mapping.memory, known));
        let window = windows.covering(range);
        let checks = [
            (is_above, "overlaps the mapping below it"),
            (is_registered, "leans on memory that is not registered"),
            (window.is_some(), "lies outside the windows"),
            (range.bytes() == u128::from(mapping.memory.len().get()), "is not as long as its memory"),
            (window.is_none_or(|window| range.is_aligned_to(window.granule())), "is not made of whole pages"),
            (!fences.iter().any(|fence| fence.range.overlaps(range)), "lies behind a fence"),
        ];
        if checks.iter().any(|(holds, _)| !holds) {
            let broken = checks.iter().filter(|(holds, _)| !holds);
            found.extend(broken.map(|(_, what)| format!("the mapping {range} {what}")));
        }
        below = Some(range);
    }
    found
}

/// Returns whether registrations, which are ascending, cover all of `memory`.
fn is_covered(memory: &HostMemory, registered: &[HostMemory]) -> bool {
    let mut next = Some(memory.address());
    for known in near(registered, memory) {
        match next {
            Some(at) if at <= memory.last() && known.address() <= at => {
                next = known.last().get().checked_add(1).map(HostAddress::new)
            }
            _ => break,
        }
    }
    next.is_none_or(|next| next > memory.last())
}
