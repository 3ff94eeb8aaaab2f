//! The facts of a space that a plan needs, read once.

use crate::plan::Scope;
use dmaspace_core::contract::{Capabilities, Description, Fence, PciAddressSpace, WindowOffer};
use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::window::Windows;

/// The facts of a space that a plan needs.
pub(crate) struct Host<'a> {
    pub(super) space: &'a dyn PciAddressSpace,
    pub(super) powers: Capabilities,
    pub(super) windows: Windows,
    pub(super) offer: Option<WindowOffer>,
    pub(super) registered: Option<Vec<HostMemory>>,
    /// The registrations of the process, through any space.
    pub(super) runs: Vec<HostMemory>,
    /// The memory whose pins the space shares, where spaces share pins.
    pub(super) shared: Option<Vec<HostMemory>>,
    pub(super) fences: Vec<Fence>,
}

impl<'a> Host<'a> {
    /// The facts for a plan of `scope`.
    pub(crate) fn of(space: &'a dyn PciAddressSpace, scope: &Scope) -> Self {
        let Description { capabilities, fences, .. } = space.describe();
        if scope.is_of_emulated_sections {
            return Self::with_windows_alone(space, capabilities, fences);
        }
        let registration = space.powers().registration;
        let runs = registration.and_then(|registration| registration.runs());
        Self {
            space,
            powers: capabilities,
            windows: space.windows().windows.as_ref().clone(),
            offer: space.powers().window_control.and_then(|control| control.offer()),
            registered: registration.map(|registration| registration.registered()),
            runs: runs.map(ProcessRegistrations::all).unwrap_or_default(),
            shared: space.powers().pin_sharing.map(|sharing| sharing.shared()),
            fences,
        }
    }

    /// The facts for a plan in which nothing is mapped, registered or created.
    fn with_windows_alone(space: &'a dyn PciAddressSpace, powers: Capabilities, fences: Vec<Fence>) -> Self {
        let windows = space.windows().windows.as_ref().clone();
        Self { space, powers, windows, offer: None, registered: None, runs: Vec::new(), shared: None, fences }
    }
}

/// Returns whether no device is attached: there is nothing to map into, and nothing to create windows with.
pub(crate) fn is_dormant(space: &dyn PciAddressSpace) -> bool {
    space.windows().windows.is_empty() && space.powers().window_control.is_none_or(|control| control.offer().is_none())
}
