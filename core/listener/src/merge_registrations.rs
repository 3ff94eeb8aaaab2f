//! Merging adjacent registrations.
//!
//! A registration cannot grow, so memory that is added next to a run becomes a run of its own, and the kernel looks
//! every entry up in one run after the other (linux: arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_lookup). While no
//! entry uses a run, it can be released and registered again together with the added memory. A process has one list of
//! runs for all spaces, so all spaces that have a run release it before one of them registers the longer one; a run
//! that a space of another listener has, too, stays as it is.

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

/// A run is registered again for new memory of at least this part of its length. This limits the number of times that
/// memory is pinned again when it is added piece by piece, and keeps the runs few.
const PART: u64 = 16;

/// A space, and the registrations it releases.
pub(super) type Release<'a> = (&'a dyn PciAddressSpace, Vec<HostMemory>);

/// Spaces whose registrations were released, with the journals that restore them.
pub(super) type Released<'a> = Vec<(&'a dyn PciAddressSpace, Journal)>;

/// The registrations that can be released, so that they are merged with the memory that `view` needs, by the spaces of
/// `members`.
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

/// Registers released memory again.
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

/// The registered runs that become part of longer ones.
fn growing(view: &View, member: &ServedSpace, runs: &ProcessRegistrations, sharing: &[Sharer<'_>]) -> Vec<HostMemory> {
    let known = runs.all();
    let mut growing = Vec::new();
    for wanted in needed_runs(view, member.space.describe().capabilities.host_page) {
        let inside = near(&known, &wanted);
        let fresh = missing_from(&wanted, inside);
        if fresh.is_empty() {
            continue;
        }
        let mut free = inside.to_vec();
        free.retain(|run| {
            let is_inside = wanted.address() <= run.address() && run.last() <= wanted.last();
            is_inside && can_be_released(run, runs, sharing)
        });
        growing.extend(worth_merging(&fresh, free));
    }
    growing
}

/// Returns whether all users of a run are among `sharing`, and none of them has a mapping or a fence onto it.
fn can_be_released(run: &HostMemory, runs: &ProcessRegistrations, sharing: &[Sharer<'_>]) -> bool {
    let sharers = sharing.iter().filter(|sharer| sharer.has(run)).count();
    sharers == runs.users(run) && !sharing.iter().any(|sharer| sharer.leans_on(run))
}

/// The runs of `free` worth merging: each touches fresh memory or a run that is merged, and is at most [`PART`] times
/// as long as all of that.
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
    a.last().get().checked_add(1) == Some(b.address().get()) || b.last().get().checked_add(1) == Some(a.address().get())
}
