//! Who writes down what a listener is told and how that ended.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::section::FrontEnd;
use crate::{CommitError, Update};
use dmaspace_core::contract::PciAddressSpace;

/// Is told what happens to a listener: everything that changes what is in force, *before* it is done, so that what ends a VMM is
/// written down too, and then how it ended.
///
/// The calls come in order and never at once: after [`Recorder::begins`] each of [`Recorder::commits`], [`Recorder::joins`] and
/// [`Recorder::leaves`] is followed by [`Recorder::ended`]. A recorder that is in trouble keeps it to itself: a guest is worth more than
/// its record. The entries a guest puts into translated windows and the blocks that are populated are not told: they are its data
/// path.
pub trait Recorder: fmt::Debug + Send {
    /// The record begins: what the front end said of the guest's bus, what is in force (as additions to nothing), and the spaces
    /// served, in the order they joined.
    fn begins(&mut self, front: &FrontEnd, in_force: &Update, spaces: &[&dyn PciAddressSpace]);

    /// An update is about to be made true. An empty one brings spaces in step whose windows changed.
    fn commits(&mut self, update: &Update);

    /// A space is about to join, as the last.
    fn joins(&mut self, space: &dyn PciAddressSpace);

    /// The space that is number `place`, from 0, of those served is about to leave.
    fn leaves(&mut self, place: usize);

    /// It was done, or it failed and everything is as it was.
    fn ended(&mut self, failure: Option<&CommitError>);
}

/// For who wants to look at a recorder while a listener has it.
impl<R: Recorder + ?Sized> Recorder for Arc<Mutex<R>> {
    fn begins(&mut self, front: &FrontEnd, in_force: &Update, spaces: &[&dyn PciAddressSpace]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).begins(front, in_force, spaces);
    }

    fn commits(&mut self, update: &Update) {
        self.lock().unwrap_or_else(PoisonError::into_inner).commits(update);
    }

    fn joins(&mut self, space: &dyn PciAddressSpace) {
        self.lock().unwrap_or_else(PoisonError::into_inner).joins(space);
    }

    fn leaves(&mut self, place: usize) {
        self.lock().unwrap_or_else(PoisonError::into_inner).leaves(place);
    }

    fn ended(&mut self, failure: Option<&CommitError>) {
        self.lock().unwrap_or_else(PoisonError::into_inner).ended(failure);
    }
}
