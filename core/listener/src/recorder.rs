//! The recorder of a listener: a record of the input that changes the view, and of the outcome.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::section::FrontEnd;
use crate::{CommitError, Update};
use dmaspace_core::contract::PciAddressSpace;
use dmaspace_core::sync::{self, Rank, past_poison};

/// Records a listener's input: everything that changes the view or the spaces served, *before* it is done, so that an
/// update that ends the VMM is on record too, and then the outcome.
///
/// The calls come in order, one at a time, and while the listener holds no lock: after [`Recorder::begins`] each of
/// [`Recorder::commits`], [`Recorder::joins`] and [`Recorder::leaves`] is followed by [`Recorder::ended`]. A recorder
/// must deal with its own failures: a guest is worth more than its record. Entries of translated windows and populated
/// blocks are not recorded: they are the guest's data path.
pub trait Recorder: fmt::Debug + Send {
    /// Begins the record with the front end's facts about the guest's bus, the view (as additions to nothing), and the
    /// spaces served, in the order they were attached.
    fn begins(&mut self, front: &FrontEnd, in_force: &Update, spaces: &[&dyn PciAddressSpace]);

    /// Records an update that is about to be committed. An empty one brings spaces up to date whose windows changed.
    fn commits(&mut self, update: &Update);

    /// Records that a space is about to be attached, as the last one.
    fn joins(&mut self, space: &dyn PciAddressSpace);

    /// Records that the space at index `place` of the spaces served is about to be detached.
    fn leaves(&mut self, place: usize);

    /// Records the outcome: success, or a failure that left everything as before.
    fn ended(&mut self, failure: Option<&CommitError>);
}

/// For a caller that looks at a recorder while a listener has it.
impl<R: Recorder + ?Sized> Recorder for Arc<Mutex<R>> {
    fn begins(&mut self, front: &FrontEnd, in_force: &Update, spaces: &[&dyn PciAddressSpace]) {
        past_poison(self.lock()).begins(front, in_force, spaces);
    }

    fn commits(&mut self, update: &Update) {
        past_poison(self.lock()).commits(update);
    }

    fn joins(&mut self, space: &dyn PciAddressSpace) {
        past_poison(self.lock()).joins(space);
    }

    fn leaves(&mut self, place: usize) {
        past_poison(self.lock()).leaves(place);
    }

    fn ended(&mut self, failure: Option<&CommitError>) {
        past_poison(self.lock()).ended(failure);
    }
}

/// The recorder that a listener has, if any.
#[derive(Debug, Default)]
pub(super) struct Recording {
    /// Behind a mutex only so that a listener is `Sync`; it is never locked.
    recorder: Option<Mutex<Box<dyn Recorder>>>,
}

impl Recording {
    /// Replaces the recorder.
    pub(super) fn set(&mut self, recorder: Box<dyn Recorder>) {
        self.recorder = Some(Mutex::new(recorder));
    }

    /// Removes the recorder and returns it.
    pub(super) fn take(&mut self) -> Option<Box<dyn Recorder>> {
        Some(past_poison(self.recorder.take()?.into_inner()))
    }

    /// The recorder, to be called now: no lock may be held but that of an owner of the listener.
    pub(super) fn recorder(&mut self) -> Option<&mut dyn Recorder> {
        let recorder = past_poison(self.recorder.as_mut()?.get_mut());
        sync::assert_none_held_from(Rank::GuestConnection, "the recorder of a listener");
        Some(recorder.as_mut())
    }

    /// Records the outcome of the event that was announced before.
    pub(super) fn ended<T>(&mut self, result: &Result<T, CommitError>) {
        if let Some(recorder) = self.recorder() {
            recorder.ended(result.as_ref().err());
        }
    }
}
