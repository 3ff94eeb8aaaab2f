//! A registry of groups and devices in use: KVM, above all.
//!
//! Some drivers need the virtual machine when their device is opened (a device of a group) or bound (a device with a
//! node of its own), so KVM must get the descriptor before that (linux: Documentation/virt/kvm/devices/vfio.rst). KVM
//! must also drop it before the last descriptor is closed, or the group stays busy. Opening takes a [`Registry`] and
//! calls it at these two moments.

use std::fmt;
use std::sync::Arc;

use dmaspace_core::door::{Errno, Handle};

/// A list of the groups and devices in use, kept outside this crate.
///
/// It must call no space and no listener: it may be called under their locks.
pub trait Registry: Send + Sync + fmt::Debug {
    /// Adds a group, or a device with a node of its own, that was opened and not used yet.
    ///
    /// # Errors
    /// The reason that the group or device cannot be used. It is closed again then.
    fn add(&self, handle: Handle) -> Result<(), Errno>;

    /// Removes a group or device that is about to be closed.
    ///
    /// # Errors
    /// The reason that it could not be removed. It is closed all the same.
    fn remove(&self, handle: Handle) -> Result<(), Errno>;
}

/// An entry in a registry, from its creation to its drop.
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
