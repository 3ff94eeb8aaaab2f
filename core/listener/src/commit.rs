//! The commit: every space is brought up to date with the view, or none is.
//!
//! 1. The view is changed. Target memory that goes is withdrawn from entries to come, and must not be behind entries
//!    that are there.
//! 2. Changes of discardable sections are paused, and so are the windows that close; all windows where entries must not
//!    change.
//! 3. Plans are made for all spaces. A refusal ends the commit here, before any call.
//! 4. The plans are applied, one space after the other. A step that fails undoes all steps before it, in every space.
//! 5. The handles of removed sections are closed, new ones are opened.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use dmaspace_core::contract::PciAddressSpace;
use dmaspace_core::words::address::{Iova, IovaRange, SystemAddress};

use crate::apply::{Applied, Failed, apply_all};
use crate::discardable::{self, PausedBlocks};
use crate::error::CommitError;
use crate::in_force::InForce;
use crate::journal::Journal;
use crate::merge_registrations::{mergeable, release, restore};
use crate::pieces::Pieces;
use crate::plan::{Plan, Populated, Scope, Step};
use crate::report::Report;
use crate::section::{Backing, Section, TargetMemory};
use crate::served_space::{SeenDevices, ServedSpace};
use crate::translated::{Paused, Shared, joined};
use crate::update::Update;

impl InForce {
    /// Makes `update` true on every space, or changes nothing.
    pub(crate) fn commit(&mut self, update: &Update) -> Result<Report, CommitError> {
        if update.is_empty() && self.served.iter().all(ServedSpace::is_current) {
            return Ok(self.commit_of_nothing());
        }
        let scope = Scope::of(update);
        self.view.change(update)?;
        let result = self.put_in_force(update, &scope);
        if result.is_err() {
            self.view.revert(update);
        }
        if update.concerns_targets() {
            self.set_targets(self.view.targets.clone());
            let old = mem::replace(&mut *self.settled.write(), self.view.targets.clone());
            drop(old);
        }
        result
    }

    /// Looks at everything in force on every space, and does what is missing there.
    pub(crate) fn sync(&mut self) -> Result<Report, CommitError> {
        let scope = Scope::all(&self.view);
        self.put_in_force(&Update::new(), &scope)
    }

    /// A commit that changes nothing, while each space is as the last commit left it.
    fn commit_of_nothing(&mut self) -> Report {
        let spaces = self.served.iter_mut().map(ServedSpace::remember_nothing).collect();
        Report { spaces, ..Report::default() }
    }

    fn put_in_force(&mut self, update: &Update, scope: &Scope) -> Result<Report, CommitError> {
        self.view.check_discardable_memory(update, self.discardables.keys())?;
        self.withdraw_targets(update)?;
        // Declared before the locks, hence dropped after them: a journal may hold the last owner of memory.
        let mut spent = Vec::new();
        let (discardables, windows) = (self.discardables.clone(), self.windows.clone());
        let blocks = discardable::pause_all(&discardables);
        let windows = self.pause_windows(&windows, update);
        let seen: Vec<_> = self.served.iter().map(|member| SeenDevices::of(member.space.as_ref())).collect();
        let stranded = self.stranded_by(update, &windows);
        let cleared = joined(stranded.iter().flatten().copied().collect());
        let commit = Commit { all: self, scope, populated: self.populated(), windows: &windows, stranded: &stranded };
        let applied = commit.run(&mut spent)?;
        self.close_sections(&update.removed, &windows.closing, blocks);
        self.open_sections(&update.added);
        let mut report = Report { unserved: self.unserved(&self.view, scope), cleared, ..Report::default() };
        for ((applied, member), seen) in applied.into_iter().zip(&mut self.served).zip(seen) {
            report.spaces.push(applied.remembered_by(member, seen));
        }
        Ok(report)
    }

    /// Withdraws target memory that goes from entries to come, and checks that no entry in force points to it: on most
    /// hosts nothing else would notice.
    fn withdraw_targets(&self, update: &Update) -> Result<(), CommitError> {
        if update.removed_targets.is_empty() {
            return Ok(());
        }
        let mut left = self.targets.read().clone();
        left.remove_all(&update.removed_targets);
        self.set_targets(left);
        for window in self.windows.values() {
            // A verb under way may have looked at the old list.
            drop(window.pause());
        }
        self.check_targets_are_free(update)
    }

    fn set_targets(&self, targets: Pieces<SystemAddress, TargetMemory>) {
        let old = mem::replace(&mut *self.targets.write(), targets);
        drop(old);
    }

    /// Checks that no entry of a window that stays points to memory that goes, but for entries that the commit clears.
    fn check_targets_are_free(&self, update: &Update) -> Result<(), CommitError> {
        for target in &update.removed_targets {
            let mut staying = self.windows.values().filter(|window| {
                let is_cleared = update.clears_entries && !window.is_kernel_owned();
                !is_cleared && !update.removes(window.range())
            });
            if let Some(entries) = staying.find_map(|window| window.entries_onto(target.memory())) {
                return Err(CommitError::StillMapped { target: target.to_string(), entries });
            }
        }
        Ok(())
    }

    /// The entries that the commit clears in each space, since they point to memory that goes. The windows are paused.
    fn stranded_by(&self, update: &Update, windows: &PausedWindows<'_>) -> Vec<Vec<IovaRange>> {
        if !update.strands() {
            return Vec::new();
        }
        let staying = || windows.staying.iter().filter(|window| !window.is_kernel_owned());
        let stranded_in = |space: &dyn PciAddressSpace| {
            staying().flat_map(|window| window.stranded_in(space, &update.removed_targets)).collect()
        };
        self.spaces().map(|space| stranded_in(space.as_ref())).collect()
    }

    /// Pauses the windows that close, and all others if no entry may come meanwhile: while a space gets entries that it
    /// lacks, gives up registrations that entries could use, or loses entries to memory that goes.
    fn pause_windows<'w>(&self, windows: &'w BTreeMap<Iova, Arc<Shared>>, update: &Update) -> PausedWindows<'w> {
        let lags = self.served.len() > 1 && !self.served.iter().all(ServedSpace::is_current);
        let merges =
            update.adds() && !update.is_of_emulated_sections() && !mergeable(&self.view, &self.served).is_empty();
        let mut paused = PausedWindows { closing: Vec::new(), staying: Vec::new(), lags, merges };
        // In ascending order, as locks of one rank are taken.
        for window in windows.values() {
            if update.removes(window.range()) {
                paused.closing.push(window.pause());
            } else if lags || merges || update.strands() {
                paused.staying.push(window.pause());
            }
        }
        paused
    }

    fn close_sections(&mut self, removed: &[Section], closing: &[Paused<'_>], mut blocks: PausedBlocks<'_>) {
        for window in closing {
            window.serve(Vec::new());
            self.windows.remove(&window.range().first());
        }
        for section in removed {
            let first = section.range().first();
            self.discardables.remove(&first);
            if let Some(serving) = blocks.get_mut(&first) {
                **serving = None;
            }
        }
    }

    fn open_sections(&mut self, added: &[Section]) {
        for section in added {
            let first = section.range().first();
            if let Backing::Translated { page } = section.backing() {
                let (targets, settled) = (self.targets.clone(), self.settled.clone());
                let window = Shared::new(section.range(), *page, targets, settled, self.serving());
                self.windows.insert(first, window);
            }
            if let Some(blocks) = discardable::Shared::new(section, self.serving()) {
                self.discardables.insert(first, blocks);
            }
        }
    }
}

/// The windows that are paused for a commit.
struct PausedWindows<'w> {
    /// The windows whose sections go.
    closing: Vec<Paused<'w>>,
    /// The windows that stay; empty if their entries may change meanwhile.
    staying: Vec<Paused<'w>>,
    /// True if a space beside others lost or regained its device.
    lags: bool,
    /// True if registrations are merged with memory that is added.
    merges: bool,
}

/// A commit under way: the view is changed, and the locks are held.
struct Commit<'a> {
    all: &'a InForce,
    scope: &'a Scope,
    populated: Populated,
    windows: &'a PausedWindows<'a>,
    /// The entries to clear in each space. Empty if there are none anywhere.
    stranded: &'a [Vec<IovaRange>],
}

impl Commit<'_> {
    /// Plans and applies. The journals end up in `spent`.
    fn run(&self, spent: &mut Vec<Journal>) -> Result<Vec<Applied>, CommitError> {
        self.reclaim_closing()?;
        let applied = if self.windows.merges { self.apply_merging(spent)? } else { self.apply(self.plans()?, spent)? };
        for member in self.regained() {
            for window in &self.windows.staying {
                window.hand_over_returning(member.space.as_ref());
            }
        }
        Ok(applied)
    }

    /// Reclaims closing windows from the kernel, so that the kernel puts no more entries, and the entries can be
    /// restored.
    fn reclaim_closing(&self) -> Result<(), CommitError> {
        if self.windows.closing.iter().any(|window| window.is_kernel_owned()) {
            // A refusal comes before that.
            self.plans()?;
            for window in &self.windows.closing {
                window.reclaim_everywhere();
            }
        }
        Ok(())
    }

    /// The spaces that regained a device beside others, and lack entries.
    fn regained(&self) -> impl Iterator<Item = &ServedSpace> {
        let served: &[_] = if self.windows.lags { &self.all.served } else { &[] };
        served.iter().filter(|member| member.regained_device())
    }

    /// The plans for all spaces; those that regained a device get the entries they lack, too.
    fn plans(&self) -> Result<Vec<Plan>, CommitError> {
        let mut plans = self.all.plans(&self.all.view, &self.all.served, self.scope, &self.populated)?;
        for (plan, stranded) in plans.iter_mut().zip(self.stranded) {
            // Before anything is unregistered.
            plan.steps.splice(..0, stranded.iter().copied().map(Step::Unmap));
        }
        for member in self.regained() {
            let place = self.all.served.iter().position(|known| Arc::ptr_eq(&known.space, &member.space));
            let plan = place.and_then(|place| plans.get_mut(place));
            debug_assert!(plan.is_some(), "there is a plan for each space");
            if let Some(plan) = plan {
                plan.entries =
                    self.windows.staying.iter().flat_map(|window| window.lacked_by(&*member.space)).collect();
            }
        }
        Ok(plans)
    }

    /// Applies plans that are made after mergeable registrations were released. Where they cannot be, memory that is
    /// added gets registrations of its own.
    fn apply_merging(&self, spent: &mut Vec<Journal>) -> Result<Vec<Applied>, CommitError> {
        // A refusal comes before anything is released.
        let plans = self.plans()?;
        let released = match release(mergeable(&self.all.view, &self.all.served)) {
            Ok(released) => released,
            Err(error) => {
                log::warn!("registrations are not merged: {error}");
                return self.apply(plans, spent);
            }
        };
        let applied = self.plans().and_then(|plans| self.apply(plans, spent));
        if applied.is_err() {
            restore(&released);
        }
        spent.extend(released.into_iter().map(|(_, journal)| journal));
        applied
    }

    fn apply(&self, plans: Vec<Plan>, spent: &mut Vec<Journal>) -> Result<Vec<Applied>, CommitError> {
        let spaces = self.all.served.iter().map(|member| member.space.as_ref());
        Ok(apply_all(spaces.zip(plans), spent)?)
    }
}

impl From<Failed> for CommitError {
    fn from(failed: Failed) -> Self {
        let fenced = [failed.error.fenced(), &failed.fenced].concat();
        Self::Step { error: failed.error, fenced }
    }
}
