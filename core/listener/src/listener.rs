//! The listener: the front of this crate.

use std::sync::Arc;

use dmaspace_core::contract::PciAddressSpace;
use dmaspace_core::contract::dirty::{DirtySink, Precision, Synced};
use dmaspace_core::contract::live_update::{Handover, NamedMemory};
use dmaspace_core::error::Error;
use dmaspace_core::words::address::{Iova, IovaRange};
use dmaspace_core::words::memory::HostMemory;

use crate::audit::{self, Finding};
use crate::balloon::{self, InUse};
use crate::diff::difference;
use crate::discardable::DiscardableRam;
use crate::error::CommitError;
use crate::handover;
use crate::in_force::InForce;
use crate::recorder::{Recorder, Recording};
use crate::report::Report;
use crate::section::{FrontEnd, Section, TargetMemory};
use crate::state::State;
use crate::translated::{EntryRun, TranslatedWindow};
use crate::update::{BadUpdate, Update};

/// A guest's view of its PCI address space, kept in force on any number of hosts.
///
/// Dropping a listener closes its windows and leaves the mappings in the spaces as they are: a VMM that ends drops the
/// spaces, too.
#[derive(Debug)]
pub struct Listener {
    in_force: InForce,
    recording: Recording,
}

impl Default for Listener {
    fn default() -> Self {
        Self::new(FrontEnd::default())
    }
}

impl Listener {
    /// A listener for a guest whose bus `front` describes.
    pub fn new(front: FrontEnd) -> Self {
        Self { in_force: InForce::new(front), recording: Recording::default() }
    }

    /// The sections in force, ascending.
    pub fn sections(&self) -> impl Iterator<Item = &Section> {
        self.in_force.view.sections.iter()
    }

    /// The section in force that includes `at`.
    pub fn section_at(&self, at: Iova) -> Option<&Section> {
        let at = IovaRange::new(at, at).ok()?;
        self.in_force.view.sections.around(at)
    }

    /// The sections in force that lie in `range`, wholly or in part, ascending.
    pub fn sections_in(&self, range: IovaRange) -> impl Iterator<Item = &Section> {
        self.in_force.view.sections.within(range)
    }

    /// The target memory in force, ascending.
    pub fn targets(&self) -> impl Iterator<Item = &TargetMemory> {
        self.in_force.view.targets.iter()
    }

    /// The spaces served, in the order they were attached.
    pub fn spaces(&self) -> impl Iterator<Item = &Arc<dyn PciAddressSpace>> {
        self.in_force.spaces()
    }

    /// The translated window whose section begins at `first`.
    pub fn translated(&self, first: Iova) -> Option<TranslatedWindow> {
        self.in_force.windows.get(&first).map(TranslatedWindow::of)
    }

    /// The discardable section that begins at `first`.
    pub fn discardable(&self, first: Iova) -> Option<DiscardableRam> {
        self.in_force.discardables.get(&first).map(DiscardableRam::of)
    }

    /// The update that leads from the view in force to `sections` and `targets`, for front ends that know the whole
    /// list.
    pub fn update_to(&self, sections: &[Section], targets: &[TargetMemory]) -> Update {
        let (removed, added) = difference(&self.in_force.view.sections, sections);
        let (removed_targets, added_targets) = difference(&self.in_force.view.targets, targets);
        Update { removed, added, removed_targets, added_targets, ..Update::new() }
    }

    /// The report that a commit of `update` would end with, without doing any of it. Waits for no kernel call; asks a
    /// kernel that counts mappings for the number left, if more are needed.
    ///
    /// # Errors
    /// [`BadUpdate`] for an update that contradicts itself or the view.
    pub fn explain(&self, update: &Update) -> Result<Report, BadUpdate> {
        self.in_force.explain(update)
    }

    /// Makes `update` true on every space, or on none. It looks at what the update reaches; [`Listener::sync`] looks at
    /// everything. A space without a device has no windows: required sections are
    /// [pending](Report::pending) there, and it gets everything at the first commit after it has a device.
    ///
    /// # Errors
    /// Any [`CommitError`] but [`CommitError::NotAttached`]; everything is as before then, except for ranges named as
    /// fenced. If a device left meanwhile, no range is fenced for that: commit again, or [`Listener::sync`] once a
    /// device is back.
    pub fn commit(&mut self, update: Update) -> Result<Report, CommitError> {
        if let Some(recorder) = self.recording.recorder() {
            recorder.commits(&update);
        }
        let result = self.in_force.commit(&update);
        self.recording.ended(&result);
        result
    }

    /// Brings every space up to date again after a device was attached or detached, and tries again what the last
    /// commits could not do: best-effort sections that a host refused, registrations that could not be removed.
    ///
    /// A space that lost its last device, and thereby its entries of translated windows, gets them from another space
    /// that has them, with the entries put there meanwhile; entries that the only space lost must be put again by the
    /// guest. Until this call, entries that were there before the device returned cannot be replaced
    /// ([`TranslatedWindow::replace`]).
    ///
    /// # Errors
    /// As [`Listener::commit`].
    pub fn sync(&mut self) -> Result<Report, CommitError> {
        if let Some(recorder) = self.recording.recorder() {
            recorder.commits(&Update::new());
        }
        let result = self.in_force.sync();
        self.recording.ended(&result);
        result
    }

    /// Serves one more space: everything in force is mapped there, populated blocks and live entries included.
    ///
    /// # Errors
    /// [`CommitError::Refused`] or [`CommitError::Step`]; the space is as before then.
    pub fn attach(&mut self, space: Arc<dyn PciAddressSpace>) -> Result<Report, CommitError> {
        self.attach_with_entries(space, &[])
    }

    /// Serves the first space of a guest whose devices were emulated so far, as [`Listener::attach`] does. Only the
    /// guest's tables have the entries of translated windows then: `entries` are put with all the rest, or nothing is
    /// mapped. If a space is served already, that one has the entries, and these are ignored.
    ///
    /// # Errors
    /// As [`Listener::attach`], and [`CommitError::Entry`]; the space is as before then.
    pub fn attach_with_entries(
        &mut self,
        space: Arc<dyn PciAddressSpace>,
        entries: &[EntryRun],
    ) -> Result<Report, CommitError> {
        if let Some(recorder) = self.recording.recorder() {
            recorder.joins(space.as_ref());
        }
        let result = self.in_force.attach(space, entries);
        self.recording.ended(&result);
        result
    }

    /// Stops serving a space: everything this listener mapped there is unmapped. The view stays, for the next space.
    ///
    /// # Errors
    /// [`CommitError::NotAttached`], or [`CommitError::Step`] if a range could not be unmapped.
    pub fn detach(&mut self, space: &Arc<dyn PciAddressSpace>) -> Result<(), CommitError> {
        let place = self.spaces().position(|known| Arc::ptr_eq(known, space)).ok_or(CommitError::NotAttached)?;
        if let Some(recorder) = self.recording.recorder() {
            recorder.leaves(place);
        }
        let result = self.in_force.detach(place);
        self.recording.ended(&result);
        result
    }

    /// Records the listener's input with `recorder` from now on, in place of the recorder before; the record begins
    /// with the view in force.
    pub fn record_to(&mut self, recorder: Box<dyn Recorder>) {
        let in_force = self.in_force.update_from_nothing();
        self.recording.set(recorder);
        let spaces: Vec<_> = self.in_force.spaces().map(AsRef::as_ref).collect();
        if let Some(recorder) = self.recording.recorder() {
            recorder.begins(&self.in_force.front, &in_force, &spaces);
        }
    }

    /// Stops recording and returns the recorder.
    pub fn stop_recording(&mut self) -> Option<Box<dyn Recorder>> {
        self.recording.take()
    }

    /// Reports to `sink` from now on the pages that devices write through any of the spaces: at each
    /// [`Listener::sync_dirty`], and whenever memory is unmapped. Spaces that are attached later are tracked too.
    /// Returns the precision of each space, in their order.
    ///
    /// Writes of the guest's processors are not included: a VMM joins them from KVM's log. The sink must not call the
    /// listener, its handles or its spaces: it may be called in the middle of a commit.
    ///
    /// ```
    /// use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
    /// use dmaspace_core::contract::dirty::{Dirtied, DirtySink};
    /// use dmaspace_listener::{FrontEnd, Listener};
    ///
    /// #[derive(Default)]
    /// struct Count(AtomicU64);
    ///
    /// impl DirtySink for Count {
    ///     fn mark(&self, dirtied: Dirtied<'_>) {
    ///         self.0.fetch_add(dirtied.len, Ordering::Relaxed);
    ///     }
    /// }
    ///
    /// # fn main() -> Result<(), dmaspace_core::Error> {
    /// let (mut listener, written) = (Listener::new(FrontEnd::pc()), Arc::new(Count::default()));
    /// listener.track_dirty(written.clone())?;
    /// // The guest runs, and the view changes.
    /// listener.sync_dirty()?;
    /// println!("{} bytes to send again", written.0.swap(0, Ordering::Relaxed));
    /// listener.stop_tracking();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Kind::Tracking`](dmaspace_core::error::Kind::Tracking) if a space is tracked already, or a kernel's failure.
    /// No space is tracked then that was not tracked before.
    pub fn track_dirty(&mut self, sink: Arc<dyn DirtySink>) -> Result<Vec<Precision>, Error> {
        let spaces = self.in_force.serving();
        self.in_force.tracking.start(&spaces, sink)
    }

    /// Reports the pages that devices have written since the last report, in all spaces, even if one of them fails.
    ///
    /// # Errors
    /// The first error of a space: everything it was asked about was reported as dirty then.
    /// [`Kind::NotTracking`](dmaspace_core::error::Kind::NotTracking) for a space that is not tracked.
    pub fn sync_dirty(&self) -> Result<Vec<Synced>, Error> {
        self.in_force.tracking.sync(&self.in_force.serving())
    }

    /// Stops tracking. Pages dirtied since the last report are lost; call [`Listener::sync_dirty`] first.
    pub fn stop_tracking(&mut self) {
        let spaces = self.in_force.serving();
        self.in_force.tracking.stop(&spaces);
    }

    /// Hands all spaces over to another process, or none, and describes each, in the order they were attached
    /// ([`dmaspace_core::contract::live_update`]). Commits, entries and blocks are refused from then on.
    ///
    /// The successor's listener gets the same view, the populated blocks of discardable sections included, and serves
    /// the spaces after they have adopted these descriptions: live entries of translated windows are found in the
    /// spaces.
    ///
    /// # Errors
    /// As [`LiveUpdate::hand_over`](dmaspace_core::contract::live_update::LiveUpdate::hand_over); every space that
    /// could be handed over is taken back then.
    pub fn hand_over(&self, memory: &NamedMemory) -> Result<Vec<Handover>, Error> {
        handover::hand_over(&self.in_force, memory)
    }

    /// Takes back every space that is handed over, after no other process has adopted it.
    ///
    /// # Errors
    /// The first of [`LiveUpdate::take_back`](dmaspace_core::contract::live_update::LiveUpdate::take_back); the other
    /// spaces are taken back all the same, and the call can be repeated.
    pub fn take_back(&self) -> Result<(), Error> {
        handover::take_back(&self.in_force)
    }

    /// Decides whether `memory` may be discarded (a balloon's `MADV_DONTNEED`, a hole punched into a file): no space
    /// served may map it, have it registered or be able to get entries that point to it. The answer holds until the
    /// next commit, and for blocks of discardable sections until they are populated.
    ///
    /// The cost is proportional to the number of live mappings.
    ///
    /// # Errors
    /// [`InUse`] with the user of the memory.
    pub fn may_discard(&self, memory: &HostMemory) -> Result<(), InUse> {
        balloon::may_discard(&self.in_force, memory)
    }

    /// Compares the spaces with the view, and each space's index with itself. The list is empty unless a device came or
    /// left since the last commit, a window was created again with smaller pages ([`TranslatedWindow::put_run`]), a
    /// range is fenced, a space was used without the listener, or this library is wrong. Changes nothing; the cost is
    /// proportional to the number of live mappings, plus one kernel call for each space whose kernel counts mappings.
    pub fn audit(&self) -> Vec<Finding> {
        audit::audit(&self.in_force)
    }

    /// Everything in force, for a user's question or a bug report. The cost is proportional to the number of live
    /// mappings, plus one kernel call for each space whose kernel counts mappings.
    pub fn state(&self) -> State {
        State::of(&self.in_force)
    }
}

impl Update {
    /// Removes all sections that lie in `range`, as `listener` has them; addresses without a section are skipped. A
    /// section that this update removes already is removed once.
    ///
    /// # Errors
    /// [`BadUpdate::Cut`] for a section that lies in `range` only in part.
    pub fn removing_range(mut self, listener: &Listener, range: IovaRange) -> Result<Self, BadUpdate> {
        for section in listener.sections_in(range) {
            if section.range().intersection(range) != Some(section.range()) {
                return Err(BadUpdate::Cut(section.to_string(), range));
            }
            if !self.removes(section.range()) {
                self.removed.push(section.clone());
            }
        }
        Ok(self)
    }
}
