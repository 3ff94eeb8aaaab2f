//! Handles with an owner, and leases, for tests that go past the façade.
#![expect(unsafe_code, reason = "UNSAFETY: tests that adopt descriptors or make raw calls keep the memory themselves")]

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use dmaspace_core::contract::live_update::{Handover, NamedMemory};
use dmaspace_core::contract::{AttachPlace, AttachPoint};
use dmaspace_core::door::{Door, Handle, HandleKind, Lease, OwnedHandle};
use dmaspace_core::{Error, HostMemory, PciAddressSpace};
use dmaspace_soft::SoftHost;

/// Opens a node.
///
/// # Panics
/// When it cannot be opened.
pub fn opened(door: &Arc<dyn Door>, path: &Path, kind: HandleKind) -> OwnedHandle {
    OwnedHandle::open(door.clone(), path, kind).expect("the node opens")
}

/// Takes over a descriptor that another process, or another door of this one, has opened.
///
/// # Panics
/// When the door has no descriptors.
pub fn adopted(door: Arc<dyn Door>, descriptor: OwnedFd, kind: HandleKind) -> OwnedHandle {
    // SAFETY: the tests make no space of the descriptor that they duplicate.
    unsafe { OwnedHandle::adopt(door, descriptor, kind) }.expect("the descriptor is open")
}

/// Takes over an open handle of a host in software.
///
/// # Panics
/// Never: the host is not real.
pub fn simulated(soft: &Arc<SoftHost>, handle: Handle) -> OwnedHandle {
    OwnedHandle::simulated(soft.clone(), handle).expect("a host in software")
}

/// The right to attach devices at a place that no space uses.
pub fn beside_spaces(place: AttachPlace) -> AttachPoint<'static> {
    // SAFETY: the tests keep the memory that they map for ever.
    unsafe { AttachPoint::beside_spaces(place) }
}

/// Takes up what another space of the test, or another process, has handed over.
///
/// # Errors
/// The errors of [`LiveUpdate::adopt`](dmaspace_core::contract::live_update::LiveUpdate::adopt).
pub fn adopt(space: &dyn PciAddressSpace, handover: &Handover, memory: &NamedMemory) -> Result<(), Error> {
    // SAFETY: the tests name the same file, or memory that is not there.
    unsafe { space.powers().live_update.adopt(handover, memory) }
}

/// The right to map memory, which is kept for ever.
pub fn lease(memory: &HostMemory) -> Lease<'_> {
    std::mem::forget(memory.clone());
    // SAFETY: a clone is never dropped.
    unsafe { Lease::kept_by_caller(memory) }
}
