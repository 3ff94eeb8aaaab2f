//! Everything in force: the view, the spaces that serve it, and the state behind handles.

use std::collections::BTreeMap;
use std::sync::Arc;

use dmaspace_core::contract::{Mapping, PciAddressSpace};
use dmaspace_core::sync::{Rank, RwLock};
use dmaspace_core::words::address::Iova;

use crate::discardable::Discardables;
use crate::error::CommitError;
use crate::pieces::Pieces;
use crate::plan::{self, Host, Plan, Populated, Scope};
use crate::report::{Report, SpaceReport, Verdict};
use crate::section::{FrontEnd, Section};
use crate::served_space::ServedSpace;
use crate::tracking::Tracking;
use crate::translated::{EntryError, EntryRun, Shared, Spaces, Targets};
use crate::update::{BadUpdate, Update, View};

/// Everything in force. Commits change it in `commit.rs`, attaches and detaches in `membership.rs`.
#[derive(Debug)]
pub(crate) struct InForce {
    pub(crate) front: FrontEnd,
    pub(crate) view: View,
    pub(crate) served: Vec<ServedSpace>,
    /// The translated windows, by first byte.
    pub(crate) windows: BTreeMap<Iova, Arc<Shared>>,
    /// The memory that entries can point to from now on.
    pub(crate) targets: Targets,
    /// The target memory as of the last commit, used to resolve entries in kernel-owned windows.
    pub(crate) settled: Targets,
    pub(crate) discardables: Discardables,
    pub(crate) tracking: Tracking,
}

impl InForce {
    /// Nothing in force yet, for a guest's bus as `front` describes it.
    pub(crate) fn new(front: FrontEnd) -> Self {
        Self {
            front,
            view: View::default(),
            served: Vec::new(),
            windows: BTreeMap::new(),
            targets: Arc::new(RwLock::new(Rank::Targets, Pieces::default())),
            settled: Arc::new(RwLock::new(Rank::SettledTargets, Pieces::default())),
            discardables: Discardables::new(),
            tracking: Tracking::default(),
        }
    }

    /// The spaces served, in the order they were attached.
    pub(crate) fn spaces(&self) -> impl Iterator<Item = &Arc<dyn PciAddressSpace>> {
        self.served.iter().map(|member| &member.space)
    }

    /// The spaces served, for windows and sections to hold.
    pub(crate) fn serving(&self) -> Spaces {
        self.spaces().cloned().collect()
    }

    /// The view as an update from nothing.
    pub(crate) fn update_from_nothing(&self) -> Update {
        Update {
            added: self.view.sections.iter().cloned().collect(),
            added_targets: self.view.targets.iter().cloned().collect(),
            ..Update::new()
        }
    }

    /// The populated ranges of the discardable sections in force.
    pub(crate) fn populated(&self) -> Populated {
        self.discardables.iter().map(|(first, section)| (*first, section.populated())).collect()
    }

    /// The mappings that make `entries` in a space.
    pub(crate) fn mappings_of(&self, entries: &[EntryRun]) -> Result<Vec<Mapping>, EntryError> {
        let mut mappings = Vec::new();
        for run in entries {
            let below = self.windows.range(..=run.range.first()).next_back();
            let (_, window) = below.ok_or(EntryError::NoSuchWindow)?;
            mappings.extend(window.mappings_of(run)?);
        }
        Ok(mappings)
    }

    /// Plans `scope` of `view` for one space: all of the view, if devices came or left since the last commit.
    pub(crate) fn plan(&self, view: &View, member: &ServedSpace, scope: &Scope, populated: &Populated) -> Plan {
        let of_everything;
        let scope = if member.is_current() {
            scope
        } else {
            of_everything = scope.of_everything(view);
            &of_everything
        };
        self.plan_for(view, &Host::of(member.space.as_ref(), scope), populated, scope)
    }

    /// Plans `scope` of `view` for the space of `host`.
    pub(crate) fn plan_for(&self, view: &View, host: &Host<'_>, populated: &Populated, scope: &Scope) -> Plan {
        plan::plan(view, &self.front, host, populated, scope)
    }

    /// Plans for `members`, in their order.
    ///
    /// # Errors
    /// [`CommitError::Refused`] if one of the plans refuses something required.
    pub(crate) fn plans(
        &self,
        view: &View,
        members: &[ServedSpace],
        scope: &Scope,
        populated: &Populated,
    ) -> Result<Vec<Plan>, CommitError> {
        let plans: Vec<_> = members.iter().map(|member| self.plan(view, member, scope, populated)).collect();
        if plans.iter().any(Plan::is_refused) {
            return Err(CommitError::Refused(Report { spaces: foreseen(plans, members), ..Report::default() }));
        }
        Ok(plans)
    }

    /// The report that a commit of `update` would end with, without doing any of it.
    pub(crate) fn explain(&self, update: &Update) -> Result<Report, BadUpdate> {
        if update.is_empty() {
            return Ok(self.foresee(&self.view, &Scope::of(update)));
        }
        let mut view = self.view.clone();
        view.change(update)?;
        view.check_discardable_memory(update, self.discardables.keys())?;
        Ok(self.foresee(&view, &Scope::of(update)))
    }

    fn foresee(&self, view: &View, scope: &Scope) -> Report {
        let populated = self.populated();
        let plans = self.served.iter().map(|member| self.plan(view, member, scope, &populated)).collect();
        Report { spaces: foreseen(plans, &self.served), unserved: self.unserved(view, scope), ..Report::default() }
    }

    /// The fates of the sections in `scope` while no space is served.
    pub(crate) fn unserved(&self, view: &View, scope: &Scope) -> Vec<Verdict<Section>> {
        if self.served.is_empty() { Plan::without_device(view, scope).sections } else { Vec::new() }
    }
}

impl Drop for InForce {
    /// Closes the windows. Without a listener the kernel's entries would go unnoticed: the windows are reclaimed from
    /// the kernel.
    fn drop(&mut self) {
        for window in self.windows.values() {
            let paused = window.pause();
            paused.reclaim_everywhere();
            paused.serve(Vec::new());
        }
    }
}

/// The reports of plans before anything is done.
fn foreseen(plans: Vec<Plan>, members: &[ServedSpace]) -> Vec<SpaceReport> {
    debug_assert_eq!(plans.len(), members.len(), "there is a plan for each space");
    plans.into_iter().zip(members).map(|(plan, member)| plan.into_report(member.space.as_ref())).collect()
}
