//! The facts of a space that a plan needs, read once.

use std::borrow::Cow;

use crate::plan::Scope;
use dmaspace_core::contract::{Capabilities, Description, Fence, Mapping, PciAddressSpace, WindowOffer};
use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::window::Windows;

/// The facts of a space that a plan needs.
pub(crate) struct Host<'a> {
    pub(super) space: &'a dyn PciAddressSpace,
    pub(super) powers: Capabilities,
    pub(crate) windows: Windows,
    pub(super) offer: Option<WindowOffer>,
    pub(crate) registered: Option<Vec<HostMemory>>,
    /// The registrations of the process, through any space.
    pub(super) runs: Vec<HostMemory>,
    /// The memory whose pins the space shares, where spaces share pins.
    pub(super) shared: Option<Vec<HostMemory>>,
    pub(crate) fences: Vec<Fence>,
    /// All live mappings, for a plan of everything.
    pub(crate) live: Option<Vec<Mapping>>,
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
            live: scope.is_everything().then(|| space.mappings(IovaRange::all())),
        }
    }

    /// The live mappings in `range`.
    pub(super) fn live_in(&self, range: IovaRange) -> Cow<'_, [Mapping]> {
        match &self.live {
            Some(live) if range == IovaRange::all() => live.into(),
            _ => self.space.mappings(range).into(),
        }
    }

    /// The facts for a plan in which nothing is mapped, registered or created.
    fn with_windows_alone(space: &'a dyn PciAddressSpace, powers: Capabilities, fences: Vec<Fence>) -> Self {
        let windows = space.windows().windows.as_ref().clone();
        Self {
            space,
            powers,
            windows,
            offer: None,
            registered: None,
            runs: Vec::new(),
            shared: None,
            fences,
            live: None,
        }
    }
}

/// Returns whether no device is attached: there is nothing to map into, and nothing to create windows with.
pub(crate) fn is_dormant(space: &dyn PciAddressSpace) -> bool {
    space.windows().windows.is_empty() && space.powers().window_control.is_none_or(|control| control.offer().is_none())
}
