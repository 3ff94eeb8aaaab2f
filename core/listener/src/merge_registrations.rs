//! Registrations that grow.
//!
//! What is registered stays as long as it is, so memory that comes next to a run becomes a run of its own, and every entry that is written
//! is looked up in one run after the other (linux: arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_lookup). As long as no entry leans on a
//! run, it can be given up and registered again together with what comes. The process has its runs once for all spaces, so that all
//! spaces that have one give it up before one of them registers the longer one; a run that others have too, whom this listener does not
//! serve, stays as it is.

use std::ptr;

use crate::apply::undo_all;
use crate::journal::Journal;
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

/// A space, and the registrations it releases.
pub(super) type Release<'a> = (&'a dyn PciAddressSpace, Vec<HostMemory>);

/// Spaces whose registrations were released, with the journals that restore them.
pub(super) type Released<'a> = Vec<(&'a dyn PciAddressSpace, Journal)>;

/// The registrations that can be released, so that they are merged with the memory that `view` needs, by the spaces of `members`.
pub(super) fn mergeable<'a>(view: &View, members: &'a [ServedSpace]) -> Vec<Release<'a>> {
    let mut releases: Vec<Release<'a>> = Vec::new();
    let mut seen: Vec<&ProcessRegistrations> = Vec::new();
    for member in members {
        let Some(runs) = runs_of(member) else { continue };
        if seen.iter().any(|known| ptr::eq(*known, runs)) {
            continue;
        }
        seen.push(runs);
        let sharing = members.iter().filter(|other| runs_of(other).is_some_and(|theirs| ptr::eq(theirs, runs)));
        let sharers: Vec<_> = sharing.map(Sharer::of).collect();
        let merged = growing(view, member, runs, &sharers);
        for Sharer { space, mut registered } in sharers {
            registered.retain(|run| merged.contains(run));
            if !registered.is_empty() {
                releases.push((space, registered));
            }
        }
    }
    releases
}

/// Releases registrations, all of them or none.
pub(super) fn release(releases: Vec<Release<'_>>) -> Result<Released<'_>, Error> {
    let mut released = Vec::with_capacity(releases.len());
    for (space, runs) in releases {
        let mut journal = Journal::of(space);
        let mut result = Ok(());
        for run in runs {
            result = result.and_then(|()| journal.unregister(space, run));
        }
        released.push((space, journal));
        if let Err(error) = result {
            restore(&released);
            return Err(error);
        }
    }
    Ok(released)
}

/// Registers again what was released.
pub(super) fn restore(released: &Released<'_>) {
    let fenced = undo_all(released);
    debug_assert!(fenced.is_empty(), "memory that is only registered is behind no fence");
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
        growing.extend(worth_merging(&fresh, inside.iter().filter(is_free).cloned().collect()));
    }
    growing
}

/// The runs of `free` worth merging: each touches fresh memory or a run that is merged, and is at most [`PART`] times as long as all of
/// that.
fn worth_merging(fresh: &[HostMemory], mut free: Vec<HostMemory>) -> Vec<HostMemory> {
    let mut merged: Vec<HostMemory> = Vec::new();
    let mut bytes = fresh.iter().map(|part| part.len().get()).fold(0, u64::saturating_add);
    while let Some(place) = free.iter().position(|run| is_worth_merging(run, fresh, &merged, bytes)) {
        let run = free.remove(place);
        bytes = bytes.saturating_add(run.len().get());
        merged.push(run);
    }
    merged
}

fn is_worth_merging(run: &HostMemory, fresh: &[HostMemory], merged: &[HostMemory], bytes: u64) -> bool {
    run.len().get() / PART <= bytes && fresh.iter().chain(merged).any(|part| touch(part, run))
}

fn touch(a: &HostMemory, b: &HostMemory) -> bool {
    a.last().checked_add(1) == Some(b.address()) || b.last().checked_add(1) == Some(a.address())
}
