//! Registrations that grow.
//!
//! What is registered stays as long as it is, so memory that comes next to a run becomes a run of its own, and every entry that is written
//! is looked up in one run after the other (linux: arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_lookup). As long as no entry leans on a
//! run, it can be given up and registered again together with what comes. The process has its runs once for all spaces, so that all
//! spaces that have one give it up before one of them registers the longer one; a run that others have too, whom this listener does not
//! serve, stays as it is.

use std::ptr;

use crate::apply::Journal;
use crate::plan::{missing_from, near, needed_runs};
use crate::served_space::ServedSpace;
use crate::update::View;
use dmaspace_core::contract::{MemoryRegistration, PciAddressSpace};
use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::error::Error;
use dmaspace_core::words::memory::HostMemory;

/// A run is registered again for new memory of at least this part of its length. Memory that comes piece by piece is so pinned a limited
/// number of times, and the runs are few all the same.
const PART: u64 = 16;

/// A space, and the runs it gives up.
pub(super) type Surrender<'a> = (&'a dyn PciAddressSpace, Vec<HostMemory>);

/// The spaces of `members` that can give up runs, so that they grow to what `view` needs.
pub(super) fn in_the_way<'a>(view: &View, members: &'a [ServedSpace]) -> Vec<Surrender<'a>> {
    let mut surrenders: Vec<Surrender<'a>> = Vec::new();
    let mut seen: Vec<&ProcessRegistrations> = Vec::new();
    for member in members {
        let Some(runs) = runs_of(member) else { continue };
        if seen.iter().any(|known| ptr::eq(*known, runs)) {
            continue;
        }
        seen.push(runs);
        let sharing = members.iter().filter(|other| runs_of(other).is_some_and(|theirs| ptr::eq(theirs, runs)));
        let sharing: Vec<_> = sharing.map(Sharer::of).collect();
        let given_up = growing(view, member, runs, &sharing);
        for sharer in sharing {
            let theirs = sharer.registered.into_iter().filter(|run| given_up.contains(run)).collect::<Vec<_>>();
            surrenders.extend((!theirs.is_empty()).then_some((sharer.space, theirs)));
        }
    }
    surrenders
}

/// Gives up runs, all of them or none. The journals bring them back.
pub(super) fn give_up(surrenders: Vec<Surrender<'_>>) -> Result<Vec<(&dyn PciAddressSpace, Journal)>, Error> {
    let mut journals = Vec::with_capacity(surrenders.len());
    for (space, runs) in surrenders {
        let mut journal = Journal::default();
        let result = runs.into_iter().try_for_each(|run| journal.unregister(space, run));
        journals.push((space, journal));
        if let Err(error) = result {
            take_back(journals);
            return Err(error);
        }
    }
    Ok(journals)
}

/// Registers again what was given up.
pub(super) fn take_back(journals: Vec<(&dyn PciAddressSpace, Journal)>) {
    // Nothing is behind a fence that was only registered.
    journals.into_iter().rev().for_each(|(space, journal)| drop(journal.undo(space)));
}

/// A space among those that share their runs.
struct Sharer<'a> {
    space: &'a dyn PciAddressSpace,
    registered: Vec<HostMemory>,
}

impl<'a> Sharer<'a> {
    fn of(member: &'a ServedSpace) -> Self {
        let registered = member.space.powers().registration.map(MemoryRegistration::registered).unwrap_or_default();
        Self { space: member.space.as_ref(), registered }
    }

    fn has(&self, run: &HostMemory) -> bool {
        near(&self.registered, run).first() == Some(run)
    }

    fn leans_on(&self, run: &HostMemory) -> bool {
        self.space.mapping_onto(run).is_some() || self.space.fence_onto(run).is_some()
    }
}

fn runs_of(member: &ServedSpace) -> Option<&ProcessRegistrations> {
    member.space.powers().registration?.runs()
}

/// Of the runs there are, those that become part of longer ones.
fn growing(view: &View, member: &ServedSpace, runs: &ProcessRegistrations, sharing: &[Sharer<'_>]) -> Vec<HostMemory> {
    let known = runs.all();
    let mut growing = Vec::new();
    for wanted in needed_runs(view, member.space.describe().capabilities.host_page) {
        let inside = near(&known, &wanted);
        let fresh = missing_from(&wanted, inside);
        if fresh.is_empty() {
            continue;
        }
        let is_free = |run: &&HostMemory| {
            let is_of_it = wanted.address() <= run.address() && run.last() <= wanted.last();
            let all_have_it = || sharing.iter().filter(|sharer| sharer.has(run)).count() == runs.users(run);
            is_of_it && all_have_it() && !sharing.iter().any(|sharer| sharer.leans_on(run))
        };
        growing.extend(worth_it(&fresh, inside.iter().filter(is_free).cloned().collect()));
    }
    growing
}

/// Those of `free`, ascending, that grow by enough: by what is fresh, and by those that grow themselves and touch it.
fn worth_it(fresh: &[HostMemory], mut free: Vec<HostMemory>) -> Vec<HostMemory> {
    let mut growing: Vec<HostMemory> = Vec::new();
    let mut bytes = fresh.iter().map(|part| part.len().get()).fold(0, u64::saturating_add);
    let next = |free: &[HostMemory], growing: &[HostMemory], bytes: u64| {
        let touches = |run: &HostMemory| fresh.iter().chain(growing).any(|part| touch(part, run));
        let is_worth_it = |run: &&HostMemory| run.len().get() / PART <= bytes && touches(run);
        free.iter().position(|run| is_worth_it(&run))
    };
    while let Some(place) = next(&free, &growing, bytes) {
        let run = free.remove(place);
        bytes = bytes.saturating_add(run.len().get());
        growing.push(run);
    }
    growing
}

fn touch(a: &HostMemory, b: &HostMemory) -> bool {
    a.last().checked_add(1) == Some(b.address()) || b.last().checked_add(1) == Some(a.address())
}
