//! A host in a world, and the model's memory of it.

use std::sync::Arc;

use dmaspace_core::contract::{Mapping, PciAddressSpace};
use dmaspace_core::{HostMemory, Iova, IovaRange, Window};
use dmaspace_listener::Section;
use dmaspace_listener::section::Backing;
use dmaspace_soft::Ledger;
use dmaspace_tests::model::{Guest, ModelHost, Reached, page_of_entries};

use crate::host_under_test::{HostKind, HostUnderTest, Spec};

pub(crate) struct TestHost {
    pub(crate) host_under_test: HostUnderTest,
    pub(crate) is_served: bool,
    /// The memory that devices reached after the last step.
    pub(crate) live: Reached,
    /// Its windows changed since the listener last looked.
    pub(crate) is_stale: bool,
    /// A fault was survived by giving up something best effort, which may be missing from then on.
    pub(crate) is_loose: bool,
    /// A partition's firmware does not always give a window again: not the default one beside another, and none once it
    /// failed to.
    pub(crate) is_spent: bool,
    /// A fault left memory registered that no section needs, or unregistered that one needs. The next commit makes up
    /// for it.
    pub(crate) has_odd_registrations: bool,
}

/// The state of a host before a step.
pub(crate) struct Before {
    pub(crate) fences: Vec<IovaRange>,
    pub(crate) windows: Vec<Window>,
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) registered: Vec<HostMemory>,
    pub(crate) ledger: Ledger,
}

impl TestHost {
    pub(crate) fn new(spec: &Spec) -> Self {
        Self {
            host_under_test: HostUnderTest::new(spec.clone()),
            is_served: false,
            live: Reached::default(),
            is_stale: false,
            is_loose: false,
            is_spent: false,
            has_odd_registrations: false,
        }
    }

    pub(crate) fn space(&self) -> &Arc<dyn PciAddressSpace> {
        self.host_under_test.space()
    }

    pub(crate) fn name(&self) -> &'static str {
        self.space().describe().backend
    }

    pub(crate) fn host(&self) -> ModelHost {
        ModelHost::of(self.space().as_ref())
    }

    pub(crate) fn mappings(&self) -> Vec<Mapping> {
        self.space().mappings(IovaRange::all())
    }

    pub(crate) fn reached(&self) -> Reached {
        Reached::of(&self.mappings())
    }

    /// Without a device there are no windows, and nothing is done to it.
    pub(crate) fn is_idle(&self) -> bool {
        let host = self.host();
        host.windows.is_empty() && host.offer.is_none()
    }

    pub(crate) fn is_fenced(&self) -> bool {
        !self.host().fences.is_empty()
    }

    pub(crate) fn before(&self) -> Before {
        let ModelHost { fences, windows, .. } = self.host();
        let (mappings, registered) = (self.mappings(), self.registered());
        Before { fences, windows, mappings, registered, ledger: self.host_under_test.soft.ledger() }
    }

    /// The registered memory, where memory is registered.
    pub(crate) fn registered(&self) -> Vec<HostMemory> {
        self.space().powers().registration.map(|registration| registration.registered()).unwrap_or_default()
    }

    /// The memory whose pins are shared, in a pool.
    pub(crate) fn held(&self) -> Vec<HostMemory> {
        self.space().powers().pin_sharing.map(|sharing| sharing.shared()).unwrap_or_default()
    }

    /// Required sections that cannot be served.
    pub(crate) fn objections(&self, guest: &Guest) -> Vec<(Section, &'static str)> {
        if self.is_idle() { Vec::new() } else { guest.objections(&self.host()) }
    }

    /// Returns whether limits of the host may be in the way of a guest, which the model does not work out.
    pub(crate) fn is_scarce(&self, guest: &Guest) -> bool {
        let spec = &self.host_under_test.spec;
        let mappings = self.mappings().len() + 2 * guest.sections.len() + guest.entries.len();
        let is_full = spec.entries.is_some_and(|most| mappings >= most as usize);
        spec.memlock.is_some() || (is_full && spec.kind == HostKind::Type1) || self.may_lack_windows(guest)
    }

    /// The host decides at last whether there is a window, and where: in the first place that is free. And a table can
    /// be too large.
    fn may_lack_windows(&self, guest: &Guest) -> bool {
        let host = self.host();
        let Some(offer) = &host.offer else { return false };
        let is_known = |first: Iova| offer.places.iter().any(|place| place.first == first);
        let mut translated = guest.sections.iter().filter(|section| page_of_entries(section).is_some());
        let mut ram = guest.sections.iter().filter(|section| matches!(section.backing(), Backing::Ram { .. }));
        let lowest = guest.windows_on(&host).first().map(|window| window.range.first());
        self.is_spent
            || lowest.is_some_and(|lowest| offer.places.first().is_none_or(|place| place.first != lowest))
            || !translated.all(|section| is_known(section.range().first()))
            || ram.any(|ram| ram.range().last().get() >> 50 > 0)
    }
}
