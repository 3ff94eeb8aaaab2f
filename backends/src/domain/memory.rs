//! The guest's memory in a domain: commits, blocks, entries, dirty pages and hand-overs.

use std::sync::Arc;

use dmaspace_core::contract::dirty::{DirtySink, Precision, Synced};
use dmaspace_core::contract::live_update::{Handover, NamedMemory};
use dmaspace_core::{Error, Iova, IovaRange};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{
    BadUpdate, BlockError, CommitError, DiscardableRam, Listener, Report, Section, TranslatedWindow, Update,
};

use crate::domain::Domain;

impl Domain {
    /// Makes `update` true on every space, or on none ([`Listener::commit`]). Without a device it is accepted, and the
    /// sections that the guest needs are [pending](Report::pending).
    ///
    /// # Errors
    /// As [`Listener::commit`]; everything is as before then.
    pub fn commit(&self, update: Update) -> Result<Report, CommitError> {
        // The last owner of memory that goes is dropped without the lock.
        let removed = update.removed().to_vec();
        let report = self.state.write().listener.commit(update);
        drop(removed);
        report
    }

    /// Commits the update that `make` returns for the view in force, which no other thread changes in between. `make`
    /// must not call the domain.
    ///
    /// # Errors
    /// Those of `make`, and as [`Domain::commit`].
    pub fn commit_with<F>(&self, make: F) -> Result<Report, CommitError>
    where
        F: FnOnce(&Listener) -> Result<Update, BadUpdate>,
    {
        let mut state = self.state.write();
        let update = make(&state.listener)?;
        let removed = update.removed().to_vec();
        let report = state.listener.commit(update);
        // The last owner of memory that goes is dropped without the lock.
        drop(state);
        drop(removed);
        report
    }

    /// Makes the guest's bus consist of `sections`, and its target memory of `targets`.
    ///
    /// # Errors
    /// As [`Domain::commit`].
    pub fn update_to(&self, sections: &[Section], targets: &[TargetMemory]) -> Result<Report, CommitError> {
        self.commit_with(|listener| Ok(listener.update_to(sections, targets)))
    }

    /// Removes all sections that lie in `range`.
    ///
    /// # Errors
    /// As [`Update::removing_range`] and [`Domain::commit`].
    pub fn remove_range(&self, range: IovaRange) -> Result<Report, CommitError> {
        self.commit_with(|listener| Update::new().removing_range(listener, range))
    }

    /// The handle of the translated window whose section begins at `first`.
    pub fn translated(&self, first: Iova) -> Option<TranslatedWindow> {
        self.state.read().listener.translated(first)
    }

    /// The handle of the discardable section that begins at `first`.
    pub fn discardable(&self, first: Iova) -> Option<DiscardableRam> {
        self.state.read().listener.discardable(first)
    }

    /// Lets devices reach the blocks of `range`, whose memory must be there ([`DiscardableRam::populate`]).
    ///
    /// # Errors
    /// As [`DiscardableRam::populate`]; [`BlockError::NoSuchSection`] if `range` begins in no discardable section.
    pub fn populate(&self, range: IovaRange) -> Result<(), BlockError> {
        self.discardable_around(range.first()).ok_or(BlockError::NoSuchSection)?.populate(range)
    }

    /// Keeps devices from reaching the blocks of `range`, whose memory may go then ([`DiscardableRam::discard`]).
    ///
    /// # Errors
    /// As [`DiscardableRam::discard`]; [`BlockError::NoSuchSection`] if `range` begins in no discardable section.
    pub fn discard(&self, range: IovaRange) -> Result<(), BlockError> {
        self.discardable_around(range.first()).ok_or(BlockError::NoSuchSection)?.discard(range)
    }

    /// The discardable section around `at`. Its verbs take locks of their own.
    fn discardable_around(&self, at: Iova) -> Option<DiscardableRam> {
        let state = self.state.read();
        let section = state.listener.section_at(at)?;
        state.listener.discardable(section.range().first())
    }

    /// Reports to `sink` from now on the pages that devices write, in the spaces there are and in those to come
    /// ([`Listener::track_dirty`]). `sink` must not call the domain.
    ///
    /// # Errors
    /// As [`Listener::track_dirty`].
    pub fn track_dirty(&self, sink: Arc<dyn DirtySink>) -> Result<Vec<Precision>, Error> {
        self.state.write().listener.track_dirty(sink)
    }

    /// Reports the pages that devices have written since the last report ([`Listener::sync_dirty`]).
    ///
    /// # Errors
    /// As [`Listener::sync_dirty`].
    pub fn sync_dirty(&self) -> Result<Vec<Synced>, Error> {
        self.state.read().listener.sync_dirty()
    }

    /// Stops tracking ([`Listener::stop_tracking`]).
    pub fn stop_tracking(&self) {
        self.state.write().listener.stop_tracking();
    }

    /// Hands all spaces over to another process, or none, and describes each, in the order of [`Domain::spaces`]
    /// ([`Listener::hand_over`]). [`Domain::with_spaces`] shows the descriptors to pass on.
    ///
    /// # Errors
    /// As [`Listener::hand_over`].
    pub fn hand_over(&self, memory: &NamedMemory) -> Result<Vec<Handover>, Error> {
        self.state.read().listener.hand_over(memory)
    }

    /// Takes back every space that is handed over ([`Listener::take_back`]).
    ///
    /// # Errors
    /// As [`Listener::take_back`].
    pub fn take_back(&self) -> Result<(), Error> {
        self.state.read().listener.take_back()
    }
}
