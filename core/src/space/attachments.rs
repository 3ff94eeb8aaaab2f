//! The devices that are attached to a space.

use std::sync::Arc;

use crate::contract::Attachable;
use crate::error::{Error, Kind, Operation, Subject};
use crate::sync::{self, Rank, RwLock};
use crate::words::reserved::Reserved;

/// The devices of a space, in the order they were attached. The list changes only under the space's gate, held
/// exclusively.
///
/// Its lock is [`Rank::Attachments`] in the order of all locks ([`crate::sync`]). It is held for moments: the names
/// and the reserved ranges of the devices can be read while a kernel call is under way.
#[derive(Debug)]
pub(super) struct Attachments {
    list: RwLock<Vec<Attached>>,
}

/// A device, with the answers that it gave before it was attached.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    pub(super) device: Arc<dyn Attachable>,
    pub(super) name: String,
    pub(super) reserved: Vec<Reserved>,
}

impl Attached {
    /// Asks a device for its name and its reserved ranges. The caller holds no lock of the space.
    pub(super) fn of(device: Arc<dyn Attachable>) -> Self {
        sync::assert_none_held_from(Rank::Gate, "a device's name and reserved ranges");
        Self { name: device.name(), reserved: device.reserved(), device }
    }

    /// The device as the subject of an error.
    pub(super) fn subject(&self) -> Subject {
        Subject::Device(self.name.clone())
    }
}

impl Attachments {
    pub(super) fn new(devices: Vec<Arc<dyn Attachable>>) -> Self {
        Self { list: RwLock::new(Rank::Attachments, devices.into_iter().map(Attached::of).collect()) }
    }

    pub(super) fn count(&self) -> usize {
        self.list.read().len()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.list.read().iter().map(|attached| attached.name.clone()).collect()
    }

    pub(super) fn reserved(&self) -> Vec<Reserved> {
        self.list.read().iter().flat_map(|attached| attached.reserved.iter().cloned()).collect()
    }

    /// A copy of the list, for calls that must not be made under its lock.
    pub(super) fn all(&self) -> Vec<Attached> {
        self.list.read().clone()
    }

    /// The entry of `device`, or the refusal of an operation on it.
    pub(super) fn find(
        &self,
        operation: Operation,
        device: &Arc<dyn Attachable>,
        name: &str,
    ) -> Result<Attached, Error> {
        let list = self.list.read();
        let found = list.iter().find(|attached| Arc::ptr_eq(&attached.device, device)).cloned();
        found.ok_or_else(|| Error::new(operation, Subject::Device(name.to_owned()), Kind::NotAttached))
    }

    pub(super) fn add(&self, attached: Attached) {
        self.list.write().push(attached);
    }

    /// Takes a device out of the list. The caller drops it once the locks of the space are released.
    pub(super) fn remove(&self, device: &Arc<dyn Attachable>) -> Option<Attached> {
        let mut list = self.list.write();
        let place = list.iter().position(|attached| Arc::ptr_eq(&attached.device, device))?;
        Some(list.remove(place))
    }

    /// Takes all devices out of the list, last first.
    pub(super) fn take_all(&self) -> Vec<Attached> {
        let mut taken = std::mem::take(&mut *self.list.write());
        taken.reverse();
        taken
    }
}
