//! A host of a few dozen pages with one space on it, whose devices come and go.

use std::sync::Arc;

use dmaspace::choose::BackendKind;
use dmaspace::device::Device;
use dmaspace::facts::Facts;
use dmaspace::open::{Host, OpenSpace};
use dmaspace::pci::PciAddress;
use dmaspace_core::{PageSize, PciAddressSpace};
use dmaspace_soft::profile::{KernelInterface, KernelVersion, Reason, ReservedProfile};
use dmaspace_soft::{Profile, SoftDevice, SoftHost};

/// The hosts there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostKind {
    /// A PC, through a VFIO container.
    Type1,
    /// A PC, through `/dev/iommu`.
    Iommufd,
    /// A PC, through `/dev/iommu`, in a pool.
    Pool,
    /// POWER's bare metal.
    PowerNv,
    /// A partition of it.
    PSeries,
    /// POWER's bare metal, where windows cannot be created.
    PowerNvV1,
}

impl HostKind {
    /// The way to its IOMMU.
    pub(crate) fn backend(self) -> BackendKind {
        match self {
            Self::Type1 => BackendKind::Type1,
            Self::Iommufd | Self::Pool => BackendKind::Iommufd,
            Self::PowerNv | Self::PSeries => BackendKind::Spapr,
            Self::PowerNvV1 => BackendKind::SpaprV1,
        }
    }

    /// Returns whether it is POWER.
    pub(crate) fn is_power(self) -> bool {
        self.backend().is_of_power()
    }

    /// Returns whether its windows are created.
    pub(crate) fn creates_windows(self) -> bool {
        self.backend() == BackendKind::Spapr
    }
}

/// Bus addresses no device can use.
pub(crate) type Hole = (u64, u64);

/// The parameters of a host.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// The kind of host.
    pub(crate) kind: HostKind,
    /// The page of its memory.
    pub(crate) host_page: PageSize,
    /// The pages of its IOMMU beside that one, as a mask.
    pub(crate) page_sizes: u64,
    /// The last address its IOMMU translates, where windows are fixed.
    pub(crate) last: u64,
    /// The ranges that no device can use.
    pub(crate) holes: Vec<Hole>,
    /// The ranges that its second device cannot use either.
    pub(crate) second_holes: Vec<Hole>,
    /// The number of mappings that a type1 container takes.
    pub(crate) entries: Option<u32>,
    /// The limit on locked memory.
    pub(crate) memlock: Option<u64>,
    /// The length of the default window: a partition's, or the only one there is.
    pub(crate) default_window: u64,
    /// Set when its kernel is a later one.
    pub(crate) modern: bool,
}

impl Spec {
    fn profile(&self) -> Profile {
        let mut profile = match self.kind {
            HostKind::Type1 | HostKind::Iommufd | HostKind::Pool => Profile::vtd(),
            HostKind::PowerNv => Profile::powernv9(),
            HostKind::PSeries => Profile::pseries(),
            HostKind::PowerNvV1 => Profile::powernv9().with_fixed_window(),
        };
        let reserved = |(first, last): &Hole| ReservedProfile { first: *first, last: *last, reason: Reason::Reserved };
        profile.host_page = self.host_page.bytes();
        profile.kernel = if self.modern { KernelVersion::V7_2 } else { KernelVersion::V6_12 };
        profile.limits.memlock = self.memlock;
        profile.limits.dma_entries = self.entries.unwrap_or(0xffff);
        if let Some(fixed) = &mut profile.fixed {
            profile.backends =
                vec![if self.kind == HostKind::Type1 { KernelInterface::Type1 } else { KernelInterface::Iommufd }];
            fixed.page_sizes = self.page_sizes | self.host_page.bytes();
            fixed.last = self.last;
            fixed.reserved = self.holes.iter().map(reserved).collect();
            profile.groups[1].reserved = self.second_holes.iter().map(reserved).collect();
        }
        if let Some(tce) = &mut profile.tce {
            tce.page_sizes = self.page_sizes | PageSize::K4.bytes();
            tce.default_window = self.default_window;
        }
        profile
    }
}

/// A host and the space on it.
pub(crate) struct HostUnderTest {
    /// The parameters of the host.
    pub(crate) spec: Spec,
    /// The host.
    pub(crate) soft: Arc<SoftHost>,
    /// The first device, as the bus sees it.
    pub(crate) dma: SoftDevice,
    devices: Vec<Device>,
    opened: OpenSpace,
    host: Host,
    addresses: Vec<PciAddress>,
}

impl HostUnderTest {
    /// Boots the host and attaches its first device.
    pub(crate) fn new(spec: Spec) -> Self {
        let soft = SoftHost::new(spec.profile()).expect("a sound profile");
        let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
        let opened = match spec.kind {
            HostKind::Pool => host.open_pool().and_then(|pool| host.open_space_in(&pool)),
            kind => host.open_space(kind.backend()),
        };
        let opened = opened.expect("the soft host has it");
        let devices = soft.profile().groups.iter().flat_map(|group| &group.devices);
        let names: Vec<String> = devices.map(|device| device.address.clone()).collect();
        let dma = soft.device(&names[0]).expect("it is there");
        let addresses = names.iter().map(|name| name.parse().expect("a PCI address")).collect();
        let mut host_under_test = Self { spec, soft, dma, devices: Vec::new(), opened, host, addresses };
        assert!(host_under_test.plug(), "the first device is attached to an empty space");
        host_under_test
    }

    pub(crate) fn space(&self) -> &Arc<dyn PciAddressSpace> {
        self.opened.space()
    }

    /// The number of attached devices.
    pub(crate) fn devices(&self) -> usize {
        self.devices.len()
    }

    /// Attaches the next device; whether that was possible.
    pub(crate) fn plug(&mut self) -> bool {
        let Some(address) = self.addresses.get(self.devices.len()) else { return false };
        if [HostKind::PSeries, HostKind::PowerNvV1].contains(&self.spec.kind) && !self.devices.is_empty() {
            // Its groups have an address space each.
            return false;
        }
        let added = self.opened.add(&self.host, *address);
        added.map(|device| self.devices.push(device)).is_ok()
    }

    /// Detaches the device that came last.
    pub(crate) fn unplug(&mut self) {
        if let Some(device) = self.devices.pop() {
            self.opened.remove(device).expect("devices can leave");
        }
    }
}

impl Drop for HostUnderTest {
    /// Devices before their space, as a VMM would.
    fn drop(&mut self) {
        self.devices.clear();
    }
}
