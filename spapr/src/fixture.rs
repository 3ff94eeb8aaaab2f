//! Containers behind a scripted door, for the unit tests of this crate.

use std::sync::Arc;

use dmaspace_core::HostMemory;
use dmaspace_core::door::{Handle, HandleKind, Lease, OwnedHandle};
use dmaspace_soft::ScriptedDoor;

/// An open container behind the door.
pub(crate) fn container(door: &Arc<ScriptedDoor>) -> OwnedHandle {
    door.own(Handle::new(1, HandleKind::Container)).expect("the door is not real")
}

/// A lease of memory without bytes.
pub(crate) fn lease(memory: &HostMemory) -> Lease<'_> {
    Lease::of_unbacked(memory).expect("there is no memory behind it")
}
