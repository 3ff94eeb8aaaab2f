//! The listener: keeps the windows hosts offer in step with the windows a guest sees.
//!
//! It asks no "is this x86?" and no "is this RAM device memory?". A section says whether it is required or best effort, a window
//! says what its smallest page is, and one listener serves every pair of guest and host, and several hosts at once.
//!
//! ```text
//!  Update ──► plan (pure) ──► apply, with a journal ──► PciAddressSpace
//! ```
//!
//! What changes by itself between commits has handles, which any thread may use: entries of translated windows
//! ([`TranslatedWindow`]), and blocks of RAM that comes and goes ([`DiscardableRam`]).
//!
//! Sections and target memory change in transactions ([`Update`]). A commit is planned for every space, then applied to one after the
//! other; a step of something required that fails takes everything back, in every space, in reverse. All of it can be recorded
//! ([`Recorder`]), to be replayed where nobody waits for a guest.

mod apply;
mod audit;
mod balloon;
pub mod bar;
mod discardable;
mod handover;
mod kernel_owned;
mod merge_registrations;
mod page_size_fallback;
mod plan;
mod range_set;
mod recorder;
#[cfg(feature = "serde")]
pub mod recording;
mod report;
pub mod section;
mod served_space;
mod state;
mod tracking;
mod translated;
mod update;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;
mod windows;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use audit::Finding;
pub use balloon::InUse;
pub use discardable::{BlockError, DiscardableRam};
pub use kernel_owned::KernelEntries;
pub use recorder::Recorder;
pub use report::{Cause, Fate, Report, SpaceReport, Verdict, Warning};
pub use section::{FrontEnd, Section};
pub use served_space::{RecurringWarning, Totals};
pub use state::{DiscardableState, LiveMapping, Registration, SpaceState, State, TranslatedState};
pub use translated::{EntryError, EntryRun, TranslatedWindow};
pub use update::{BadUpdate, Update};

use apply::Journal;
use discardable::{Discardables, Serving};
use dmaspace_core::contract::dirty::DirtySink;
use dmaspace_core::contract::{Mapping, PciAddressSpace};
use dmaspace_core::error::Error;
use dmaspace_core::words::address::{Address, Iova, IovaRange, SystemAddress};
use dmaspace_core::words::memory::HostMemory;
use plan::{Host, Plan, Scope};
use section::{Backing, TargetMemory};
use served_space::ServedSpace;
use translated::{Shared, Targets};
use update::{Piece, Pieces, View};

/// A guest's view of its PCI address space, kept in force on any number of hosts.
#[derive(Debug, Default)]
pub struct Listener {
    front: FrontEnd,
    view: View,
    targets: Targets,
    /// The same as of the last commit: what entries that the kernel put point to.
    settled: Targets,
    members: Vec<ServedSpace>,
    windows: BTreeMap<Iova, Arc<Shared>>,
    discardables: Discardables,
    /// Behind a mutex only so that a listener can be shared; it is never locked.
    recorder: Option<Mutex<Box<dyn Recorder>>>,
    /// Who is told what devices write.
    sink: Option<Arc<dyn DirtySink>>,
}

/// Why a commit, or an attach, did not happen. Everything is as it was, except for ranges named as fenced.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// The update makes no sense. No host was asked.
    #[error(transparent)]
    Update(#[from] BadUpdate),
    /// A host cannot provide a required section. No call was made; the report says which, and the fate of all others.
    #[error("{}", .0.spaces.iter().find_map(SpaceReport::refusal).unwrap_or_default())]
    Refused(Report),
    /// Entries of a translated window still point to target memory that would go.
    #[error("{target} would go, but the entries at {entries} still point to it; clear them first")]
    StillMapped {
        /// The target memory, in words.
        target: String,
        /// Live entries.
        entries: IovaRange,
    },
    /// A kernel call failed, and everything was taken back.
    #[error("{error}{}", fenced_words(.fenced))]
    Step {
        /// What failed.
        error: Error,
        /// Ranges that could not be brought back.
        fenced: Vec<IovaRange>,
    },
    /// Entries that were to be put lie in no translated window, or point to no target memory. No call was made.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The space is not one of this listener's.
    #[error("the space is not attached to this listener")]
    NotAttached,
}

fn fenced_words(fenced: &[IovaRange]) -> String {
    let words = |range: &IovaRange| format!("; {range} could not be brought back and is fenced");
    fenced.iter().map(words).collect::<Vec<_>>().concat()
}

impl Listener {
    /// A listener for a guest whose bus `front` describes.
    pub fn new(front: FrontEnd) -> Self {
        Self { front, ..Self::default() }
    }

    /// The sections in force, ascending.
    pub fn sections(&self) -> impl Iterator<Item = &Section> {
        self.view.sections.iter()
    }

    /// The target memory in force, ascending.
    pub fn targets(&self) -> impl Iterator<Item = &TargetMemory> {
        self.view.targets.iter()
    }

    /// The spaces served.
    pub fn spaces(&self) -> impl Iterator<Item = &Arc<dyn PciAddressSpace>> {
        self.members.iter().map(|member| &member.space)
    }

    /// The update that leads from what is in force to `sections` and `targets`, for front ends that know the whole list.
    pub fn update_to(&self, sections: &[Section], targets: &[TargetMemory]) -> Update {
        let (removed, added) = difference(self.view.sections.iter(), sections);
        let (removed_targets, added_targets) = difference(self.view.targets.iter(), targets);
        Update { removed, added, removed_targets, added_targets }
    }

    /// What a commit of `update` would do, without doing any of it.
    ///
    /// # Errors
    /// [`BadUpdate`] when it makes no sense.
    pub fn explain(&self, update: &Update) -> Result<Report, BadUpdate> {
        let mut view = self.view.clone();
        let mut scope = Scope::of_removals(update, &view);
        view.change(update)?;
        view.check_discardable_memory(update, self.discardables.keys())?;
        scope.widen_by_additions(update, &view);
        let plans = self.members.iter().map(|member| self.plan(&view, member, &scope));
        Ok(foresee(plans, &self.members))
    }

    /// Brings every space in step again after its windows changed: a device came to it or went. Entries of translated windows that it lost
    /// with its last device it gets from another space that has them, with those that were put there meanwhile; what the only space lost is
    /// the guest's to put again. Between the device's return and this, entries that were there before cannot be replaced
    /// ([`TranslatedWindow::replace`]).
    ///
    /// # Errors
    /// As [`Listener::commit`].
    pub fn sync(&mut self) -> Result<Report, CommitError> {
        self.commit(Update::new())
    }

    /// Tells `recorder` everything from now on, what is in force first. A recorder that was told so far is told no more.
    pub fn record_to(&mut self, mut recorder: Box<dyn Recorder>) {
        let in_force = self.update_from_nothing();
        let spaces: Vec<_> = self.spaces().map(AsRef::as_ref).collect();
        recorder.begins(&self.front, &in_force, &spaces);
        self.recorder = Some(Mutex::new(recorder));
    }

    /// Tells nobody any more, and gives back who was told.
    pub fn stop_recording(&mut self) -> Option<Box<dyn Recorder>> {
        self.recorder.take().map(|recorder| recorder.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn update_from_nothing(&self) -> Update {
        Update {
            added: self.sections().cloned().collect(),
            added_targets: self.targets().cloned().collect(),
            ..Update::new()
        }
    }

    /// Tells the recorder what is about to happen, lets it happen, and tells how it ended.
    fn recorded<T>(
        &mut self,
        tell: impl FnOnce(&mut dyn Recorder),
        happen: impl FnOnce(&mut Self) -> Result<T, CommitError>,
    ) -> Result<T, CommitError> {
        if let Some(recorder) = self.told() {
            tell(recorder);
        }
        let result = happen(self);
        if let Some(recorder) = self.told() {
            recorder.ended(result.as_ref().err());
        }
        result
    }

    fn told(&mut self) -> Option<&mut dyn Recorder> {
        let recorder = self.recorder.as_mut()?.get_mut().unwrap_or_else(PoisonError::into_inner);
        Some(recorder.as_mut())
    }

    /// Makes `update` true on every space. A space without a device has no windows: it is left alone until it has.
    ///
    /// # Errors
    /// Any [`CommitError`] but [`CommitError::NotAttached`]; everything is as it was then, except for ranges named as fenced.
    pub fn commit(&mut self, update: Update) -> Result<Report, CommitError> {
        self.recorded(|recorder| recorder.commits(&update), |listener| listener.make_true(&update))
    }

    fn make_true(&mut self, update: &Update) -> Result<Report, CommitError> {
        let mut scope = Scope::of_removals(update, &self.view);
        self.view.change(update)?;
        let checked = self.view.check_discardable_memory(update, self.discardables.keys());
        scope.widen_by_additions(update, &self.view);
        let result = checked
            .map_err(CommitError::from)
            .and_then(|()| self.withdraw_targets(update))
            .and_then(|()| self.put_in_force(update, &scope));
        if result.is_err() {
            self.view.revert(update);
        }
        if !(update.removed_targets.is_empty() && update.added_targets.is_empty()) {
            self.tell_targets(&self.view.targets);
            *self.settled.write().unwrap_or_else(PoisonError::into_inner) = self.view.targets.clone();
        }
        result
    }

    /// Memory that goes is taken from entries to come, and must not be behind any that are there: on most hosts nobody else would
    /// notice.
    fn withdraw_targets(&self, update: &Update) -> Result<(), CommitError> {
        if update.removed_targets.is_empty() {
            return Ok(());
        }
        let mut left = self.targets.read().unwrap_or_else(PoisonError::into_inner).clone();
        left.remove_all(&update.removed_targets);
        self.tell_targets(&left);
        // A verb under way may have looked before.
        self.windows.values().for_each(|window| drop(window.hold()));
        self.check_targets_are_free(update)
    }

    /// What entries can point to from now on.
    fn tell_targets(&self, targets: &Pieces<SystemAddress, TargetMemory>) {
        *self.targets.write().unwrap_or_else(PoisonError::into_inner) = targets.clone();
    }

    /// Brings every space in step with the view, which `update` has changed already.
    fn put_in_force(&mut self, update: &Update, scope: &Scope) -> Result<Report, CommitError> {
        let discardables = self.discardables.clone();
        let mut held = hold(&discardables);
        let removed = update.removed.iter().map(|section| section.range().first());
        let closing: Vec<_> = removed.filter_map(|first| self.windows.get(&first)).cloned().collect();
        // No entry may come while its window goes.
        let gates: Vec<_> = closing.iter().map(|window| window.hold()).collect();
        let in_step: Vec<bool> = self.members.iter().map(ServedSpace::is_in_step).collect();
        let mut report = match self.bring_in_step(update, scope, &closing) {
            Ok(report) => report,
            Err(error) => {
                // Windows that were removed and created again are the ones there were.
                let unchanged = self.members.iter_mut().zip(in_step).filter(|(_, in_step)| *in_step);
                unchanged.for_each(|(member, _)| member.note_windows());
                return Err(error);
            }
        };
        gates.iter().for_each(|gate| gate.serve(Vec::new()));
        drop(gates);
        closing.iter().for_each(|window| drop(self.windows.remove(&window.range().first())));
        for section in &update.removed {
            let first = section.range().first();
            self.discardables.remove(&first);
            held.get_mut(&first).into_iter().for_each(|serving| **serving = None);
        }
        self.open_sections(&update.added);
        self.members.iter_mut().zip(&mut report.spaces).for_each(|(member, report)| member.note(report));
        Ok(report)
    }

    /// Brings every space in step with the view. Nobody puts entries in the windows that are `closing`.
    fn bring_in_step(&self, update: &Update, scope: &Scope, closing: &[Arc<Shared>]) -> Result<Report, CommitError> {
        let stays = |window: &&Arc<Shared>| !closing.iter().any(|closing| Arc::ptr_eq(closing, window));
        let staying: Vec<_> = self.windows.values().filter(stays).collect();
        let grows = !(update.added.is_empty() && update.added_targets.is_empty());
        let is_growing = grows && !merge_registrations::in_the_way(&self.view, &self.members).is_empty();
        let lags = self.members.len() > 1 && !self.members.iter().all(ServedSpace::is_in_step);
        // No entry may come while a space gets those it lacks, or gives up what entries lean on.
        let quiet = if is_growing || lags { &staying[..] } else { &[] };
        let _quiet: Vec<_> = quiet.iter().map(|window| window.hold()).collect();
        let plan = || {
            let mut plans = self.plans(&self.view, &self.members, scope)?;
            let lagging = self.members.iter().zip(&mut plans).filter(|(member, _)| lags && member.came_back());
            for (member, plan) in lagging {
                plan.entries = staying.iter().flat_map(|window| window.lacked_by(member.space.as_ref())).collect();
            }
            Ok(plans)
        };
        if closing.iter().any(|window| window.is_kernel_owned()) {
            // What is refused is refused before.
            plan()?;
            // What the kernel put is in the spaces' hands before its window goes: it cannot put more, and can be brought back.
            closing.iter().for_each(|window| window.reclaim_everywhere());
        }
        let report = match is_growing {
            true => self.apply_growing(plan),
            false => plan().and_then(|plans| apply_to(&self.members, plans)),
        }?;
        for member in self.members.iter().filter(|member| lags && member.came_back()) {
            staying.iter().for_each(|window| window.hand_over_returning(member.space.as_ref()));
        }
        Ok(report)
    }

    /// Applies what is planned once runs that can grow were given up; if they cannot be, what is planned as it is. No entry may come meanwhile.
    fn apply_growing(&self, plan: impl Fn() -> Result<Vec<Plan>, CommitError>) -> Result<Report, CommitError> {
        // What is refused is refused before anything is given up.
        let plans = plan()?;
        let given_up = match merge_registrations::give_up(merge_registrations::in_the_way(&self.view, &self.members)) {
            Ok(given_up) => given_up,
            Err(error) => {
                log::warn!("registrations do not grow: {error}");
                return apply_to(&self.members, plans);
            }
        };
        let result = plan().and_then(|plans| apply_to(&self.members, plans));
        if result.is_err() {
            merge_registrations::take_back(given_up);
        }
        result
    }

    /// Serves one more space: what is in force is planned for it, populated blocks included, and entries that are live are put there
    /// too.
    ///
    /// # Errors
    /// [`CommitError::Refused`] or [`CommitError::Step`]; the space is as it was then.
    pub fn attach(&mut self, space: Arc<dyn PciAddressSpace>) -> Result<Report, CommitError> {
        self.attach_with_entries(space, &[])
    }

    /// As [`Listener::attach`], for the first space of a guest whose devices were emulated so far: nobody but the guest's tables has
    /// the entries of translated windows then, and `entries` are put there with all the rest, or nothing is. Where a space is served
    /// already, that has the entries, and these are not looked at.
    ///
    /// # Errors
    /// As [`Listener::attach`], and [`CommitError::Entry`]; the space is as it was then.
    pub fn attach_with_entries(
        &mut self,
        space: Arc<dyn PciAddressSpace>,
        entries: &[EntryRun],
    ) -> Result<Report, CommitError> {
        self.recorded(|recorder| recorder.joins(space.as_ref()), |listener| listener.admit(space.clone(), entries))
    }

    /// What `entries` mean for a space.
    fn mappings_of(&self, entries: &[EntryRun]) -> Result<Vec<Mapping>, EntryError> {
        let mut mappings = Vec::new();
        for run in entries {
            let below = self.windows.range(..=run.range.first()).next_back();
            let (_, window) = below.ok_or(EntryError::NoSuchWindow)?;
            mappings.extend(window.mappings_of(run)?);
        }
        Ok(mappings)
    }

    fn admit(&mut self, space: Arc<dyn PciAddressSpace>, entries: &[EntryRun]) -> Result<Report, CommitError> {
        let entries = if self.members.is_empty() { self.mappings_of(entries)? } else { Vec::new() };
        let discardables = self.discardables.clone();
        let mut held = hold(&discardables);
        let mut joining = [ServedSpace::new(space.clone())];
        let mut plan = self.plans(&self.view, &joining, &Scope::all(&self.view))?.pop().unwrap_or_default();
        // No entry may come before the space is there to get it.
        let windows: Vec<_> = self.windows.values().cloned().collect();
        let gates: Vec<_> = windows.iter().map(|window| window.hold()).collect();
        self.track_joining(&space).map_err(|error| CommitError::Step { error, fenced: Vec::new() })?;
        // A space that has adopted what another process had there has them.
        let missing = |entry: &Mapping| space.mappings(entry.range) != [entry.clone()];
        let live = windows.iter().flat_map(|window| window.entries()).chain(entries);
        plan.entries = live.filter(missing).collect();
        let mut journal = Journal::default();
        let replayed = apply::apply(space.as_ref(), plan, &mut journal).and_then(|report| {
            windows.iter().try_for_each(|window| window.hand_over_joining(space.as_ref()))?;
            Ok(report)
        });
        let mut report = replayed.map_err(|error| {
            windows.iter().for_each(|window| window.give_up(&space));
            let fenced = journal.undo(space.as_ref());
            self.track_no_longer(&space);
            CommitError::Step { error, fenced }
        })?;
        joining.iter_mut().for_each(|member| member.note(&mut report));
        self.members.extend(joining);
        gates.iter().for_each(|gate| gate.serve(self.serving()));
        held.values_mut().for_each(|serving| **serving = Some(self.serving()));
        Ok(Report { spaces: vec![report] })
    }

    /// Serves a space no longer: everything this listener put there is taken out. What the listener knows stays, for the next one.
    ///
    /// # Errors
    /// [`CommitError::NotAttached`], or [`CommitError::Step`] when something could not be taken out.
    pub fn detach(&mut self, space: &Arc<dyn PciAddressSpace>) -> Result<(), CommitError> {
        let place = self.members.iter().position(|known| Arc::ptr_eq(&known.space, space));
        let place = place.ok_or(CommitError::NotAttached)?;
        self.recorded(|recorder| recorder.leaves(place), |listener| listener.dismiss(place))
    }

    fn dismiss(&mut self, place: usize) -> Result<(), CommitError> {
        let discardables = self.discardables.clone();
        let mut held = hold(&discardables);
        // No entry may come that a space lacks which cannot leave after all.
        let windows: Vec<_> = self.windows.values().cloned().collect();
        let gates: Vec<_> = windows.iter().map(|window| window.hold()).collect();
        let leaving = [self.members.remove(place)];
        let nothing = View::default();
        let plans = self.plans(&nothing, &leaving, &Scope::all(&nothing));
        let applied = plans.and_then(|plans| {
            let parting: Vec<_> = leaving.iter().map(|member| member.space.clone()).collect();
            let taken_back = windows.iter().try_for_each(|window| window.reclaim(&parting));
            taken_back.map_err(|error| CommitError::Step { error, fenced: Vec::new() })?;
            apply_to(&leaving, plans)
        });
        if let Err(error) = applied {
            // It may be without what the kernel put since.
            windows.iter().for_each(|window| window.reclaim_everywhere());
            let [member] = leaving;
            self.members.insert(place, member);
            return Err(error);
        }
        leaving.iter().for_each(|member| self.track_no_longer(&member.space));
        gates.iter().for_each(|gate| gate.serve(self.serving()));
        held.values_mut().for_each(|serving| **serving = Some(self.serving()));
        Ok(())
    }

    /// The translated window whose section begins at `first`.
    pub fn translated(&self, first: Iova) -> Option<TranslatedWindow> {
        self.windows.get(&first).map(Shared::handle)
    }

    /// The discardable section that begins at `first`.
    pub fn discardable(&self, first: Iova) -> Option<DiscardableRam> {
        self.discardables.get(&first).map(|section| section.handle())
    }

    fn serving(&self) -> Vec<Arc<dyn PciAddressSpace>> {
        self.spaces().cloned().collect()
    }

    fn plan(&self, view: &View, member: &ServedSpace, scope: &Scope) -> Plan {
        let host = Host::of(member.space.as_ref());
        match member.is_in_step() {
            true => plan::plan(view, &self.front, &host, &self.discardables, scope),
            false => plan::plan(view, &self.front, &host, &self.discardables, &scope.of_everything(view)),
        }
    }

    /// The plans for `members`, or a report with what is refused.
    fn plans(&self, view: &View, members: &[ServedSpace], scope: &Scope) -> Result<Vec<Plan>, CommitError> {
        let plans: Vec<_> = members.iter().map(|member| self.plan(view, member, scope)).collect();
        if plans.iter().any(Plan::is_refused) { Err(CommitError::Refused(foresee(plans, members))) } else { Ok(plans) }
    }

    fn open_sections(&mut self, added: &[Section]) {
        for section in added {
            if let Backing::Translated { page } = section.backing() {
                let shared =
                    Shared::new(section.range(), *page, self.targets.clone(), self.settled.clone(), self.serving());
                self.windows.insert(section.range().first(), shared);
            }
            let discardable = discardable::Shared::new(section, self.serving());
            self.discardables.extend(discardable.map(|shared| (section.range().first(), shared)));
        }
    }

    /// Whether no entry of a window that stays points to memory that goes.
    fn check_targets_are_free(&self, update: &Update) -> Result<(), CommitError> {
        let goes = |range: IovaRange| update.removed.iter().any(|section| section.range() == range);
        let entries: Vec<_> =
            self.windows.values().filter(|window| !goes(window.range())).flat_map(|window| window.entries()).collect();
        let overlap = |a: &HostMemory, b: &HostMemory| a.address() <= b.last() && b.address() <= a.last();
        for target in &update.removed_targets {
            if let Some(entry) = entries.iter().find(|entry| overlap(&entry.memory, target.memory())) {
                return Err(CommitError::StillMapped { target: target.to_string(), entries: entry.range });
            }
        }
        Ok(())
    }
}

/// What keeps discardable sections as they are while it lasts, by first byte.
type Held<'a> = BTreeMap<Iova, MutexGuard<'a, Serving>>;

/// Waits for changes of discardable sections under way, and lets none begin.
fn hold(discardables: &Discardables) -> Held<'_> {
    discardables.iter().map(|(first, section)| (*first, section.hold())).collect()
}

/// Applies each plan to its member, all or none.
fn apply_to(members: &[ServedSpace], plans: Vec<Plan>) -> Result<Report, CommitError> {
    let spaces = members.iter().map(|member| member.space.as_ref());
    let spaces = apply::apply_all(spaces.zip(plans)).map_err(|failed| {
        let fenced = [failed.error.fenced.clone(), failed.fenced].concat();
        CommitError::Step { error: failed.error, fenced }
    })?;
    Ok(Report { spaces })
}

/// What plans say before anything is done.
fn foresee(plans: impl IntoIterator<Item = Plan>, members: &[ServedSpace]) -> Report {
    let spaces = plans.into_iter().zip(members).map(|(plan, member)| plan.into_report(member.space.as_ref()));
    Report { spaces: spaces.collect() }
}

/// What has to go and to come so that `now`, which is ascending, becomes `wanted`: one walk along both.
fn difference<'a, A: Address, T: Piece<A> + 'a>(now: impl Iterator<Item = &'a T>, wanted: &'a [T]) -> (Vec<T>, Vec<T>) {
    let first = |piece: &T| piece.range().first();
    let mut ascending: Vec<&T> = wanted.iter().collect();
    if !wanted.is_sorted_by_key(first) {
        ascending.sort_by_key(|piece| first(piece));
    }
    let (mut now, mut wanted) = (now.peekable(), ascending.into_iter().peekable());
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    while let Some(next) = wanted.peek().copied() {
        removed.extend(std::iter::from_fn(|| now.next_if(|piece| first(piece) < first(next))).cloned());
        match now.next_if(|piece| first(piece) == first(next)) {
            Some(same) if same == next => {}
            changed => {
                removed.extend(changed.cloned());
                added.push(next.clone());
            }
        }
        wanted.next();
    }
    removed.extend(now.cloned());
    (removed, added)
}
