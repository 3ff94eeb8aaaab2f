//! Hosts, opened contexts and memory for the tests of the soft host.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;

use dmaspace_abi::vfio::IommuType;
use dmaspace_core::door::{Door, Errno, Handle, HandleKind};
use dmaspace_core::{Access, HostAddress, HostMemory, PageSize};
use dmaspace_soft::conformance::Dialect;
use dmaspace_soft::conformance::raw::{self, Context};
use dmaspace_soft::profile::{KernelInterface, TceManager};
use dmaspace_soft::{Profile, SoftDevice, SoftHost};

pub(crate) const RW: Access = Access::READ_WRITE;
pub(crate) const PAGE: u64 = 0x1000;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;
/// The first address of the second window of sPAPR hosts.
pub(crate) const HIGH: u64 = 1 << 59;

/// A context, with everything that is open for it.
pub(crate) struct Opened {
    pub(crate) host: Arc<SoftHost>,
    pub(crate) context: Context,
    /// The groups, or the devices by nodes of their own, in the order of the profile's groups.
    pub(crate) members: Vec<Handle>,
}

impl Opened {
    /// Boots a host of this profile and opens a context with its first group.
    pub(crate) fn new(profile: Profile, dialect: Dialect) -> Self {
        Self::on(SoftHost::new(profile).expect("a sound profile"), dialect, 1)
    }

    /// Opens a context with the first `members` groups.
    pub(crate) fn on(host: Arc<SoftHost>, dialect: Dialect, members: usize) -> Self {
        match dialect {
            Dialect::Type1 => Self::container(host, IommuType::TYPE1_V2, members),
            Dialect::Type1V1 => Self::container(host, IommuType::TYPE1, members),
            Dialect::Spapr => Self::container(host, IommuType::SPAPR_TCE_V2, members),
            Dialect::SpaprV1 => Self::container(host, IommuType::SPAPR_TCE, members),
            Dialect::Ioas => Self::ioas(host, members),
            Dialect::Compat => Self::compat(host, IommuType::TYPE1_V2, members),
            Dialect::CompatV1 => Self::compat(host, IommuType::TYPE1, members),
        }
    }

    fn container(host: Arc<SoftHost>, version: IommuType, members: usize) -> Self {
        let container = open(&host, "/dev/vfio/vfio", HandleKind::Container);
        let mut groups = Vec::new();
        for group in host.profile().groups.iter().take(members) {
            let handle = open_group(&host, group.number);
            raw::set_container(&*host, handle, container).expect("the group joins");
            groups.push(handle);
        }
        raw::set_iommu(&*host, container, version).expect("the driver takes the container");
        let spapr = matches!(version, IommuType::SPAPR_TCE | IommuType::SPAPR_TCE_V2);
        let context = if spapr { Context::Spapr(container) } else { Context::Type1(container) };
        Self { host, context, members: groups }
    }

    /// Opens an iommufd in a container's place: groups that joined, and the first device of each.
    fn compat(host: Arc<SoftHost>, version: IommuType, members: usize) -> Self {
        let iommufd = open(&host, "/dev/iommu", HandleKind::Iommufd);
        let mut opened = Vec::new();
        for group in host.profile().groups.iter().take(members) {
            let handle = open_group(&host, group.number);
            raw::set_container(&*host, handle, iommufd).expect("the group joins");
            raw::set_iommu(&*host, iommufd, version).expect("it is as good as a container");
            let device = raw::open_device(&*host, handle, &group.devices[0].address).expect("the device is attached");
            opened.extend([device, handle]);
        }
        Self { host, context: Context::Compat(iommufd), members: opened }
    }

    fn ioas(host: Arc<SoftHost>, members: usize) -> Self {
        let iommufd = open(&host, "/dev/iommu", HandleKind::Iommufd);
        let id = raw::alloc_ioas(&*host, iommufd).expect("an address space");
        let mut devices = Vec::new();
        for node in host.profile().groups.iter().filter_map(|group| group.devices[0].node).take(members) {
            let device = open_node(&host, node);
            raw::bind(&*host, device, iommufd).expect("the device is bound");
            raw::attach(&*host, device, id).expect("the device is attached");
            devices.push(device);
        }
        Self { host, context: Context::Ioas { iommufd, id }, members: devices }
    }

    /// The container, or `/dev/iommu`.
    pub(crate) fn handle(&self) -> Handle {
        match self.context {
            Context::Type1(handle)
            | Context::Compat(handle)
            | Context::Spapr(handle)
            | Context::Ioas { iommufd: handle, .. } => handle,
        }
    }

    /// Maps all of `memory` for reading and writing.
    pub(crate) fn map(&self, at: u64, memory: &HostMemory) -> Result<i32, Errno> {
        raw::map(&*self.host, self.context, at, memory.len().get(), Some(memory), RW)
    }

    /// The first device of the first group.
    pub(crate) fn device(&self) -> SoftDevice {
        device(&self.host, 0)
    }

    /// Closes everything, members first.
    pub(crate) fn close(&self) {
        for member in &self.members {
            self.host.close(*member).expect("it is open");
        }
        self.host.close(self.handle()).expect("it is open");
    }
}

/// The first device of a group.
pub(crate) fn device(host: &SoftHost, group: usize) -> SoftDevice {
    host.device(&host.profile().groups[group].devices[0].address).expect("the profile's")
}

pub(crate) fn open(host: &SoftHost, path: &str, kind: HandleKind) -> Handle {
    host.open(Path::new(path), kind).expect("the host has it")
}

pub(crate) fn open_group(host: &SoftHost, number: u32) -> Handle {
    open(host, &format!("/dev/vfio/{number}"), HandleKind::Group)
}

pub(crate) fn open_node(host: &SoftHost, number: u32) -> Handle {
    open(host, &format!("/dev/vfio/devices/vfio{number}"), HandleKind::Device)
}

/// Memory with bytes.
pub(crate) fn memory(bytes: u64) -> HostMemory {
    let bytes = usize::try_from(bytes).ok().and_then(NonZeroUsize::new).expect("a size of the test");
    HostMemory::zeroed(bytes, PageSize::K64).expect("memory for the test")
}

/// Memory that is an address only.
pub(crate) fn unbacked(address: u64, bytes: u64) -> HostMemory {
    HostMemory::unbacked(HostAddress::new(address), NonZeroU64::new(bytes).expect("not empty")).expect("no wrap")
}

/// The kinds of context a host has.
pub(crate) fn dialects(profile: &Profile) -> Vec<Dialect> {
    let mut dialects = Vec::new();
    if profile.has(KernelInterface::Type1) {
        dialects.extend([Dialect::Type1, Dialect::Type1V1]);
    }
    if profile.has(KernelInterface::Spapr) {
        dialects.extend([Dialect::Spapr, Dialect::SpaprV1]);
    }
    if profile.has(KernelInterface::Iommufd) {
        dialects.extend([Dialect::Ioas, Dialect::Compat, Dialect::CompatV1]);
    }
    dialects
}

pub(crate) fn platform(profile: &Profile) -> Option<TceManager> {
    profile.tce.as_ref().map(|tce| tce.platform)
}
