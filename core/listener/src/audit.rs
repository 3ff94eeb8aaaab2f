//! The self-audit: does what the spaces hold agree with what the front end said, and with itself?
//!
//! The journal of a commit is gone when the commit is done, but what it must have led to can be worked out again: a plan of everything,
//! made from nothing but the view, has no step when all is as it should be. And the index, which the plan leans on, is checked against
//! what surrounds it: windows, fences, registrations.

use std::fmt;

use crate::plan::{Scope, Step};
use crate::report::Cause;
use crate::section::Need;
use crate::served_space::ServedSpace;
use crate::{Listener, hold};
use dmaspace_core::contract::{Mapping, PciAddressSpace};
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::memory::HostMemory;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The backend's name.
    pub backend: &'static str,
    /// What was found.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.backend, self.what)
    }
}

impl Listener {
    /// What is not as it should be: nothing, unless a device came or went since the last commit, a window was made again with smaller
    /// pages ([`TranslatedWindow::put_run`](crate::TranslatedWindow::put_run)), something is fenced, somebody else
    /// used a space, or there is a mistake in here. Changes nothing; costs what is live, and one call for each space whose kernel
    /// counts mappings.
    pub fn audit(&self) -> Vec<Finding> {
        // What a populate or discard under way has done so far is no finding.
        let _held = hold(&self.discardables);
        self.members.iter().flat_map(|member| self.audit_of(member)).collect()
    }

    fn audit_of(&self, member: &ServedSpace) -> Vec<Finding> {
        let space = member.space.as_ref();
        let finding = |what| Finding { backend: space.describe().backend, what };
        if !member.is_in_step() {
            return vec![finding("its windows changed since the last commit".into())];
        }
        let plan = self.plan(&self.view, member, &Scope::all(&self.view));
        let due = plan.steps.iter().filter(|step| !self.is_given_up(member, step));
        let due = due.map(|step| format!("it is not in step with the guest: it would have to {step}"));
        due.chain(contradictions(space)).map(finding).collect()
    }

    /// Whether it was tried, in vain, and reported.
    fn is_given_up(&self, member: &ServedSpace, step: &Step) -> bool {
        let Step::Map(mapping, Need::BestEffort) = step else { return false };
        let warned = |name: &str| member.warnings.contains_key(&(name.to_owned(), Cause::NotMapped));
        self.view.sections.within(mapping.range).any(|section| warned(section.name()))
    }
}

/// Where the index contradicts itself or what surrounds it.
fn contradictions(space: &dyn PciAddressSpace) -> Vec<String> {
    let (windows, fences) = (space.windows().windows, space.describe().fences);
    let registered = space.powers().registration.map(|registration| registration.registered());
    let mut below: Option<IovaRange> = None;
    let mut found = Vec::new();
    for Mapping { range, memory, .. } in space.mappings(IovaRange::all()) {
        let window = windows.covering(range);
        let granule = window.map(|window| window.granule());
        let fence = fences.iter().find(|fence| fence.range.overlaps(range));
        let checks = [
            (window.is_some(), "lies outside the windows"),
            (below.is_none_or(|below| below.last() < range.first()), "overlaps the mapping below it"),
            (range.bytes() == u128::from(memory.len().get()), "is not as long as its memory"),
            (granule.is_none_or(|page| range.is_aligned_to(page)), "is not made of whole pages"),
            (fence.is_none(), "lies behind a fence"),
            (
                registered.as_ref().is_none_or(|known| is_covered(&memory, known)),
                "leans on memory that is not registered",
            ),
        ];
        found.extend(checks.iter().filter(|(holds, _)| !holds).map(|(_, what)| format!("the mapping {range} {what}")));
        below = Some(range);
    }
    found
}

/// Whether registrations, which are ascending, cover all of `memory`.
fn is_covered(memory: &HostMemory, registered: &[HostMemory]) -> bool {
    let mut next = Some(memory.address());
    for known in registered.iter().filter(|known| known.last() >= memory.address()) {
        match next.filter(|next| *next <= memory.last()) {
            Some(at) if known.address() <= at => next = known.last().checked_add(1),
            _ => break,
        }
    }
    next.is_none_or(|next| next > memory.last())
}
