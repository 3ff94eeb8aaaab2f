//! Telling somebody about groups and devices before they are used: KVM, above all.
//!
//! Some drivers want to know the virtual machine when their device is opened (a group's) or bound (one with a node of its own), so KVM
//! has to be told of the descriptor before that (linux: Documentation/virt/kvm/devices/vfio.rst); and it has to let go of it before
//! the last descriptor is closed, or the group stays busy. Opening takes a [`Registry`] and calls it at those two moments.

use std::fmt;
use std::sync::Arc;

use dmaspace_core::door::{Errno, Handle};

/// Somebody who wants to know which groups and devices are in use.
pub trait Registry: Send + Sync + fmt::Debug {
    /// A group or a device with a node of its own was opened, and nothing was done with it yet.
    ///
    /// # Errors
    /// Why it cannot be used; it is closed again then.
    fn add(&self, handle: Handle) -> Result<(), Errno>;

    /// It is about to be closed.
    ///
    /// # Errors
    /// Why it could not be forgotten. It is closed all the same.
    fn remove(&self, handle: Handle) -> Result<(), Errno>;
}

/// An entry in a registry, which lasts as long as this.
#[derive(Debug)]
pub(crate) struct Entry {
    registry: Arc<dyn Registry>,
    handle: Handle,
}

impl Entry {
    /// Adds `handle`.
    pub(crate) fn new(registry: Arc<dyn Registry>, handle: Handle) -> Result<Self, Errno> {
        registry.add(handle)?;
        Ok(Self { registry, handle })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Err(errno) = self.registry.remove(self.handle) {
            log::warn!("{:?} could not be removed from {:?}: {errno}", self.handle, self.registry);
        }
    }
}
