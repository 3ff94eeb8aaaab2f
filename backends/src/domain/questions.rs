//! Questions that change nothing in a domain, and its recorder.

use dmaspace_core::{HostMemory, Iova};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{BadUpdate, Finding, InUse, Recorder, Report, Section, State as Snapshot, Update};

use crate::domain::Domain;

impl Domain {
    /// The report that a commit of `update` would end with ([`Listener::explain`](crate::Listener::explain)).
    ///
    /// # Errors
    /// [`BadUpdate`] for an update that contradicts itself or the view.
    pub fn explain(&self, update: &Update) -> Result<Report, BadUpdate> {
        self.state.read().listener.explain(update)
    }

    /// The section that includes `at`.
    pub fn section_at(&self, at: Iova) -> Option<Section> {
        self.state.read().listener.section_at(at).cloned()
    }

    /// All sections, ascending.
    pub fn sections(&self) -> Vec<Section> {
        self.state.read().listener.sections().cloned().collect()
    }

    /// All target memory, ascending.
    pub fn targets(&self) -> Vec<TargetMemory> {
        self.state.read().listener.targets().cloned().collect()
    }

    /// Everything in force ([`Listener::state`](crate::Listener::state)).
    pub fn state(&self) -> Snapshot {
        self.state.read().listener.state()
    }

    /// Compares the spaces with the view ([`Listener::audit`](crate::Listener::audit)).
    pub fn audit(&self) -> Vec<Finding> {
        self.state.read().listener.audit()
    }

    /// Decides whether `memory` may be discarded ([`Listener::may_discard`](crate::Listener::may_discard)).
    ///
    /// # Errors
    /// [`InUse`] with the user of the memory.
    pub fn may_discard(&self, memory: &HostMemory) -> Result<(), InUse> {
        self.state.read().listener.may_discard(memory)
    }

    /// Records the listener's input with `recorder` from now on
    /// ([`Listener::record_to`](crate::Listener::record_to)). `recorder` must not call the domain.
    pub fn record_to(&self, recorder: Box<dyn Recorder>) {
        self.state.write().listener.record_to(recorder);
    }

    /// Stops recording and returns the recorder.
    pub fn stop_recording(&self) -> Option<Box<dyn Recorder>> {
        self.state.write().listener.stop_recording()
    }
}
