//! Attaching spaces to a listener, and detaching them.

use std::sync::Arc;

use dmaspace_core::contract::{Mapping, PciAddressSpace};
use dmaspace_core::error::Error;

use crate::apply::{Applied, apply, apply_all};
use crate::discardable::{self, PausedBlocks};
use crate::error::CommitError;
use crate::in_force::InForce;
use crate::journal::Journal;
use crate::plan::{Plan, Populated, Scope};
use crate::report::Report;
use crate::served_space::{SeenDevices, ServedSpace};
use crate::translated::{EntryRun, Paused};
use crate::update::View;

impl InForce {
    /// Serves one more space, with everything in force. `entries` are put, too, if no space was served so far.
    pub(crate) fn attach(
        &mut self,
        space: Arc<dyn PciAddressSpace>,
        entries: &[EntryRun],
    ) -> Result<Report, CommitError> {
        let entries = if self.served.is_empty() { self.mappings_of(entries)? } else { Vec::new() };
        // Declared before the locks, hence dropped after them: a journal may hold the last owner of memory.
        let mut journal = Journal::of(space.as_ref());
        let (discardables, all_windows) = (self.discardables.clone(), self.windows.clone());
        let blocks = discardable::pause_all(&discardables);
        let seen = SeenDevices::of(space.as_ref());
        let mut joining = [ServedSpace::new(space.clone(), seen.clone())];
        let mut plans = self.plans(&self.view, &joining, &Scope::all(&self.view), &self.populated())?;
        let mut plan = plans.pop().unwrap_or_default();
        // No entry may come before the space is there to get it.
        let windows: Vec<_> = all_windows.values().map(|window| window.pause()).collect();
        self.tracking.start_on(space.as_ref()).map_err(|error| CommitError::Step { error, fenced: Vec::new() })?;
        plan.entries = missing_entries(space.as_ref(), &windows, entries);
        match populate(space.as_ref(), plan, &windows, &mut journal) {
            Err(error) => {
                for window in &windows {
                    window.reclaim_in(space.as_ref());
                }
                let fenced = journal.undo(space.as_ref());
                self.tracking.stop_on(space.as_ref());
                Err(CommitError::Step { error, fenced })
            }
            Ok(applied) => {
                let [member] = &mut joining;
                let report = applied.remembered_by(member, seen);
                self.served.extend(joining);
                self.serve_with_all(&windows, blocks);
                Ok(Report { spaces: vec![report], ..Report::default() })
            }
        }
    }

    /// Detaches the space at index `place`: everything this listener mapped there is unmapped.
    pub(crate) fn detach(&mut self, place: usize) -> Result<(), CommitError> {
        // Declared before the locks, hence dropped after them: a journal may hold the last owner of memory.
        let mut spent = Vec::new();
        let (discardables, all_windows) = (self.discardables.clone(), self.windows.clone());
        let blocks = discardable::pause_all(&discardables);
        // An entry that came now would be missing if the space cannot be detached after all.
        let windows: Vec<_> = all_windows.values().map(|window| window.pause()).collect();
        let leaving = [self.served.remove(place)];
        let [member] = &leaving;
        if let Err(error) = self.unmap_everything(&leaving, &windows, &mut spent) {
            // The space may lack entries that the kernel has put since.
            for window in &windows {
                window.reclaim_everywhere();
            }
            let [member] = leaving;
            self.served.insert(place, member);
            return Err(error);
        }
        self.tracking.stop_on(member.space.as_ref());
        self.serve_with_all(&windows, blocks);
        Ok(())
    }

    fn unmap_everything(
        &self,
        leaving: &[ServedSpace; 1],
        windows: &[Paused<'_>],
        spent: &mut Vec<Journal>,
    ) -> Result<(), CommitError> {
        let nothing = View::default();
        let plans = self.plans(&nothing, leaving, &Scope::all(&nothing), &Populated::new())?;
        let [member] = leaving;
        for window in windows {
            let reclaimed = window.reclaim(std::slice::from_ref(&member.space));
            reclaimed.map_err(|error| CommitError::Step { error, fenced: Vec::new() })?;
        }
        apply_all(plans.into_iter().map(|plan| (member.space.as_ref(), plan)), spent)?;
        Ok(())
    }

    /// Has all spaces served now serve the windows and the discardable sections.
    fn serve_with_all(&self, windows: &[Paused<'_>], mut blocks: PausedBlocks<'_>) {
        for window in windows {
            window.serve(self.serving());
        }
        for serving in blocks.values_mut() {
            **serving = Some(self.serving());
        }
    }
}

/// The entries in force, and `more`, without those that the space has: one that has adopted a live update finds them
/// there.
fn missing_entries(space: &dyn PciAddressSpace, windows: &[Paused<'_>], more: Vec<Mapping>) -> Vec<Mapping> {
    let mut entries: Vec<_> = windows.iter().flat_map(|window| window.entries()).collect();
    entries.extend(more);
    entries.retain(|entry| space.mappings(entry.range) != [entry.clone()]);
    entries
}

/// Applies the plan of a space that joins, and hands windows to the kernel as they are in the other spaces.
fn populate(
    space: &dyn PciAddressSpace,
    plan: Plan,
    windows: &[Paused<'_>],
    journal: &mut Journal,
) -> Result<Applied, Error> {
    let report = apply(space, plan, journal)?;
    for window in windows {
        window.hand_over_joining(space)?;
    }
    Ok(Applied { report, has_changed_windows: journal.has_changed_windows() })
}
