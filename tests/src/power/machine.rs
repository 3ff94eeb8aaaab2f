//! A POWER host with devices, each in a group of its own: real, or in software.

use std::fs;
use std::sync::Arc;

use dmaspace::choose::BackendKind;
use dmaspace::device::Device;
use dmaspace::facts::{Facts, FactsError, Platform};
use dmaspace::group::VfioGroup;
use dmaspace::linux::LinuxDoor;
use dmaspace::open::{Host, OpenError, OpenSpace};
use dmaspace::pci::PciAddress;
use dmaspace_core::PageSize;
use dmaspace_core::contract::{Attachable, WindowChange};
use dmaspace_core::door::HandleKind;
use dmaspace_soft::SoftHost;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::device::TestDevice;
use crate::edu::Edu;
use crate::fixture::Fixture;
use crate::ledger::{OfThisProcess, ProcessLedger};
use crate::limits::LockLimit;
use crate::ram::Ram;
use crate::soft::{buffered, lock_limit};

/// A host and the devices of it that a trial may use.
pub struct Machine {
    host: Host,
    devices: Vec<PciAddress>,
    kind: Kind,
}

enum Kind {
    /// Its door, which knows its handles.
    #[cfg_attr(not(target_arch = "powerpc64"), expect(dead_code, reason = "for KVM on POWER"))]
    Real(Arc<LinuxDoor>),
    Soft(Arc<SoftHost>),
}

impl Machine {
    /// The host this process runs on, with these devices.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn real(devices: Vec<PciAddress>) -> Result<Self, FactsError> {
        let door = Arc::new(LinuxDoor::new());
        let host = Host::new(door.clone(), Facts::of_this_host(&*door)?);
        Ok(Self { host, devices, kind: Kind::Real(door) })
    }

    /// A soft host with its devices, of which each group has one.
    pub fn soft(soft: &Arc<SoftHost>) -> Self {
        // The guest's RAM is of this process, whose pages are small.
        soft.deny_huge_pages();
        Self::believing(soft)
    }

    /// A soft host that believes the page size that memory claims.
    pub fn believing(soft: &Arc<SoftHost>) -> Self {
        let devices = soft
            .profile()
            .groups
            .iter()
            .map(|group: &dmaspace_soft::profile::Group| group.devices[0].address.parse().expect("a PCI address"))
            .collect();
        let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
        Self { host, devices, kind: Kind::Soft(soft.clone()) }
    }

    /// The host.
    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// The door of a real host.
    #[cfg(target_arch = "powerpc64")]
    pub(super) fn linux_door(&self) -> Arc<LinuxDoor> {
        match &self.kind {
            Kind::Real(door) => door.clone(),
            Kind::Soft(_) => panic!("a soft host has no KVM"),
        }
    }

    /// Returns whether its tables are a hypervisor's: one group a container then.
    pub(super) fn is_pseries(&self) -> bool {
        self.host.facts().platform == Platform::Pseries
    }

    /// The size of the huge pages that a host has for processes, if it has any.
    pub(super) fn huge_page(&self) -> PageSize {
        if self.is_pseries() { PageSize::M2 } else { PageSize::M16 }
    }

    /// `len` bytes in huge pages.
    pub(super) fn huge_ram(&self, len: u64) -> Ram {
        match &self.kind {
            Kind::Real(_) => Ram::in_huge_pages(len, self.huge_page()),
            Kind::Soft(_) => Ram::as_if_in_huge_pages(len, self.huge_page()),
        }
    }

    /// The number of huge pages left; none are counted in software.
    pub(super) fn free_huge_pages(&self) -> Option<u64> {
        let Kind::Real(_) = self.kind else { return None };
        let kib = self.huge_page().bytes() >> 10;
        let count = fs::read_to_string(format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/free_hugepages"));
        Some(count.expect("the host has huge pages").trim().parse().expect("a number"))
    }

    /// A space without a group.
    pub(super) fn space(&self) -> OpenSpace {
        self.host.open_space(BackendKind::Spapr).expect("a container opens")
    }

    /// The group of the `n`-th device joins a space.
    pub(super) fn join(&self, space: &mut OpenSpace, n: usize) -> Result<Arc<VfioGroup>, OpenError> {
        let facts = self.host.facts();
        let number = facts.devices[&self.devices[n]].group.expect("the device is behind an IOMMU");
        let node = crate::owned::opened(self.host.door(), &facts.groups[&number].path(), HandleKind::Group);
        space.add_group(node, &format!("group {number}"))
    }

    /// Opens and readies the `n`-th device, whose group is in a space.
    pub(super) fn device(&self, space: &OpenSpace, group: &Arc<VfioGroup>, n: usize) -> Box<dyn TestDevice> {
        let device = space.open_device(group, &self.devices[n].to_string()).expect("the device opens");
        self.bring_up(device)
    }

    fn bring_up(&self, device: Device) -> Box<dyn TestDevice> {
        match &self.kind {
            Kind::Real(_) => Box::new(Edu::new(device)),
            Kind::Soft(soft) => buffered(soft, device),
        }
    }

    /// A fixture with the first device.
    pub(super) fn fixture(&self) -> Fixture {
        let mut space = self.space();
        let group = self.join(&mut space, 0).expect("the first group joins");
        let device = self.device(&space, &group, 0);
        self.fixture_of(&space, device).keeping(space)
    }

    /// A fixture with this device, which is in this space.
    pub(super) fn fixture_of(&self, space: &OpenSpace, device: Box<dyn TestDevice>) -> Fixture {
        let lock_limit: Box<dyn LockLimit> = match &self.kind {
            Kind::Real(_) => Box::new(OfThisProcess),
            Kind::Soft(soft) => lock_limit(soft),
        };
        Fixture::new(space.space().clone(), device, lock_limit)
    }

    /// The locked memory this process is charged for: `VmLck`.
    pub(super) fn locked(&self) -> u64 {
        self.host.door().locked_memory().expect("the door can tell").locked
    }

    /// The kernel resources of this process, in words.
    pub(super) fn held(&self) -> String {
        match &self.kind {
            Kind::Real(_) => format!("{:?}", ProcessLedger::now()),
            Kind::Soft(soft) => {
                let ledger = soft.ledger();
                let descriptors = (ledger.containers, ledger.groups, ledger.devices);
                let inside = (ledger.windows, ledger.registrations, ledger.mappings);
                format!("{} locked, {descriptors:?} open, {inside:?} in there", ledger.locked)
            }
        }
    }

    /// So many bytes may be locked for as long as the result lasts.
    pub(super) fn limited_to(&self, bytes: u64) -> Limited<'_> {
        let before = getrlimit(Resource::Memlock);
        match &self.kind {
            Kind::Real(_) => limit_this_process(Rlimit { current: Some(bytes), ..before }),
            Kind::Soft(soft) => soft.set_memlock(Some(bytes)),
        }
        Limited { machine: self, before }
    }
}

fn limit_this_process(limit: Rlimit) {
    setrlimit(Resource::Memlock, limit).expect("nothing is raised above the ceiling");
}

/// While this lasts, little may be locked.
pub(super) struct Limited<'a> {
    machine: &'a Machine,
    before: Rlimit,
}

impl Drop for Limited<'_> {
    fn drop(&mut self) {
        match &self.machine.kind {
            Kind::Real(_) => limit_this_process(self.before),
            Kind::Soft(soft) => soft.set_memlock(soft.profile().limits.memlock),
        }
    }
}

/// A group leaves its space.
pub(super) fn leave(space: &OpenSpace, group: &Arc<VfioGroup>) -> WindowChange {
    let group: Arc<dyn Attachable> = group.clone();
    space.space().detach(&group).expect("a group without an open device can leave")
}

/// A group that left joins again.
pub(super) fn rejoin(space: &OpenSpace, group: &Arc<VfioGroup>) -> WindowChange {
    space.space().attach(group.clone()).expect("a group that left can join")
}
