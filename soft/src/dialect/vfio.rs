//! VFIO itself: containers, groups and devices, and their references to each other (linux: drivers/vfio/container.c,
//! drivers/vfio/group.c).
//!
//! A container exists while it is open or has a group; an IOMMU driver exists in it while it has a group, and its state
//! ends with the last one. A group exists while it or a device that was opened through it is open.

use dmaspace_abi::vfio::{self, Extension, GroupStatus, IommuType, SetContainer};
use dmaspace_core::door::Errno;
use std::mem::offset_of;

use crate::dialect::call::Call;
use crate::dialect::function::Function;
use crate::dialect::iommufd::DeviceIndex;
use crate::dialect::spapr::{self, Spapr};
use crate::dialect::type1::{self, Type1};
use crate::dialect::{System, require};
use crate::engine::Table;
use crate::kernel::{ContainerId, ContextId, File, Kernel, Reply};
use crate::profile::{KernelInterface, Profile};

/// An open `/dev/vfio/vfio`, or one whose descriptor was closed while groups remain.
#[derive(Debug)]
pub(crate) struct Container {
    /// `true` if there is a descriptor.
    pub(crate) is_open: bool,
    /// The groups, newest first, as the kernel keeps them.
    pub(crate) groups: Vec<u32>,
    /// The IOMMU driver that SET_IOMMU chose.
    pub(crate) driver: Option<Driver>,
}

impl Container {
    pub(crate) fn new() -> Self {
        Self { is_open: true, groups: Vec::new(), driver: None }
    }
}

/// An IOMMU driver's part of a container.
#[derive(Debug)]
pub(crate) enum Driver {
    Type1(Type1),
    Spapr(Spapr),
}

impl Driver {
    fn open(system: &System, version: IommuType) -> Self {
        if TCE_TYPES.contains(&version) {
            Self::Spapr(Spapr::new(version))
        } else {
            Self::Type1(Type1::new(system, version))
        }
    }

    pub(crate) fn table(&self) -> &Table {
        match self {
            Self::Type1(type1) => type1.table(),
            Self::Spapr(spapr) => spapr.table(),
        }
    }

    fn attach(&mut self, system: &mut System, group: u32) -> Result<(), Errno> {
        match self {
            Self::Type1(type1) => type1.attach(system, group),
            Self::Spapr(spapr) => spapr.attach(system, group),
        }
    }

    fn detach(&mut self, system: &mut System, group: u32) {
        match self {
            Self::Type1(type1) => type1.detach(system, group),
            Self::Spapr(spapr) => spapr.detach(system, group),
        }
    }

    fn release(&mut self, system: &mut System) {
        match self {
            Self::Type1(type1) => type1.release(system),
            Self::Spapr(spapr) => spapr.release(system),
        }
    }

    fn ioctl(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        match self {
            Self::Type1(type1) => type1.ioctl(system, call),
            Self::Spapr(spapr) => spapr.ioctl(system, call),
        }
    }
}

const TCE_TYPES: [IommuType; 2] = [IommuType::SPAPR_TCE, IommuType::SPAPR_TCE_V2];

/// A group of devices.
#[derive(Debug)]
pub(crate) struct Group {
    /// The owner of the DMA of its devices.
    pub(crate) claim: Claim,
    /// The number of its descriptor and of devices opened through it: the group is open while there are any.
    pub(crate) users: u32,
    /// The container that the group has joined.
    pub(crate) container: Option<ContainerId>,
    /// The iommufd that the group has joined in a container's place.
    pub(crate) context: Option<ContextId>,
    /// The number of its devices that were opened by nodes of their own and bound.
    pub(crate) bound: u32,
}

/// The owner of a group's DMA (linux: drivers/iommu/iommu.c, iommu_group_claim_dma_owner).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    Nobody,
    /// A driver of the kernel.
    Kernel,
    Container,
    /// An iommufd, with the number of its claims.
    Context(ContextId, u32),
}

impl Group {
    pub(crate) fn new(held_by_kernel: bool) -> Self {
        let claim = if held_by_kernel { Claim::Kernel } else { Claim::Nobody };
        Self { claim, users: 0, container: None, context: None, bound: 0 }
    }

    /// vfio_group_has_iommu.
    fn is_in_a_container(&self) -> bool {
        self.container.is_some() || self.context.is_some()
    }

    /// iommu_device_claim_dma_owner: one iommufd can own several devices of a group.
    pub(crate) fn claim_for(&mut self, context: ContextId) -> Result<(), Errno> {
        self.claim = match self.claim {
            Claim::Nobody => Claim::Context(context, 1),
            Claim::Context(owner, count) if owner == context => Claim::Context(owner, count + 1),
            Claim::Kernel | Claim::Container | Claim::Context(..) => return Err(Errno::EPERM),
        };
        Ok(())
    }

    /// iommu_device_release_dma_owner.
    pub(crate) fn unclaim_for_context(&mut self) {
        if let Claim::Context(owner, count) = self.claim {
            self.claim = if count > 1 { Claim::Context(owner, count - 1) } else { Claim::Nobody };
        }
    }
}

impl Kernel {
    /// vfio_fops_unl_ioctl. Without a driver every other request is `EINVAL`.
    pub(crate) fn container_ioctl(&mut self, id: ContainerId, call: &mut Call<'_, '_>) -> Result<Reply, Errno> {
        let result = match call.number() {
            number if number == vfio::GET_API_VERSION.number => vfio::API_VERSION,
            number if number == vfio::CHECK_EXTENSION.number => self.check_extension(id, Extension(call.value()?))?,
            number if number == vfio::SET_IOMMU.number => self.set_iommu(id, IommuType(call.value()?))?,
            _ => {
                let Self { system, containers, .. } = self;
                let driver = containers.get_mut(&id).and_then(|container| container.driver.as_mut());
                driver.ok_or(Errno::EINVAL)?.ioctl(system, call)?
            }
        };
        Ok(Reply::Number(result))
    }

    /// vfio_container_ioctl_check_extension: the chosen driver answers, or the first driver with a positive answer.
    fn check_extension(&self, id: ContainerId, extension: Extension) -> Result<i32, Errno> {
        let container = self.containers.get(&id).ok_or(Errno::EBADF)?;
        let type1_has = type1::has_extension(&self.system, extension);
        let spapr_has = spapr::has_extension(&self.system, extension);
        let has = match container.driver {
            Some(Driver::Type1(_)) => type1_has,
            Some(Driver::Spapr(_)) => spapr_has,
            // Only a driver of a container answers this one.
            None if extension == Extension::UPDATE_VADDR => false,
            None => (self.has(KernelInterface::Type1) && type1_has) || (self.has(KernelInterface::Spapr) && spapr_has),
        };
        Ok(i32::from(has))
    }

    /// vfio_ioctl_set_iommu: needs a group, and can be repeated with another type after the driver has refused a group.
    fn set_iommu(&mut self, id: ContainerId, version: IommuType) -> Result<i32, Errno> {
        let (type1, spapr) = (self.has(KernelInterface::Type1), self.has(KernelInterface::Spapr));
        let Self { system, containers, .. } = self;
        let container = containers.get_mut(&id).ok_or(Errno::EBADF)?;
        require(!container.groups.is_empty() && container.driver.is_none(), Errno::EINVAL)?;
        let known = if TCE_TYPES.contains(&version) {
            spapr
        } else {
            type1 && version.0 < EXTENSIONS_BEGIN && type1::has_extension(system, version.extension())
        };
        require(known, Errno::ENODEV)?;
        let mut driver = Driver::open(system, version);
        for group in &container.groups {
            if let Err(errno) = driver.attach(system, *group) {
                driver.release(system);
                return Err(errno);
            }
        }
        container.driver = Some(driver);
        Ok(0)
    }

    /// vfio_group_fops_unl_ioctl.
    pub(crate) fn group_ioctl(&mut self, number: u32, call: &mut Call<'_, '_>) -> Result<Reply, Errno> {
        let result = match call.number() {
            request if request == vfio::GROUP_GET_STATUS.number => self.group_status(number, call)?,
            request if request == vfio::GROUP_SET_CONTAINER.number => self.set_container(number, call)?,
            request if request == vfio::GROUP_UNSET_CONTAINER.number => self.unset_container(number)?,
            request if request == vfio::GROUP_GET_DEVICE_FD.number => return self.device_of_group(number, call),
            _ => return Err(Errno::ENOTTY),
        };
        Ok(Reply::Number(result))
    }

    /// vfio_group_ioctl_get_status.
    fn group_status(&self, number: u32, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        let mut status: GroupStatus = call.read()?;
        require(status.argsz >= GroupStatus::SIZE, Errno::EINVAL)?;
        let group = self.groups.get(&number).ok_or(Errno::ENODEV)?;
        status.flags = match group.claim {
            _ if group.is_in_a_container() => vfio::GROUP_VIABLE | vfio::GROUP_CONTAINER_SET,
            Claim::Nobody => vfio::GROUP_VIABLE,
            Claim::Kernel | Claim::Container | Claim::Context(..) => 0,
        };
        call.write(&status);
        Ok(0)
    }

    /// vfio_group_ioctl_set_container. An iommufd requires only that the group is in no container.
    fn set_container(&mut self, number: u32, call: &Call<'_, '_>) -> Result<i32, Errno> {
        let handle = call.handle(offset_of!(SetContainer, container)).ok_or(Errno::EBADF)?;
        let file = self.file(call.by, handle)?;
        let Self { system, containers, contexts, groups, .. } = self;
        let group = groups.get_mut(&number).ok_or(Errno::ENODEV)?;
        require(!group.is_in_a_container(), Errno::EINVAL)?;
        if let File::Iommufd(id) = file {
            contexts.get_mut(&id).ok_or(Errno::EBADF)?.join();
            group.context = Some(id);
            return Ok(0);
        }
        let File::Container(id) = file else { return Err(Errno::EBADFD) };
        let container = containers.get_mut(&id).ok_or(Errno::EBADF)?;
        require(group.claim == Claim::Nobody, Errno::EPERM)?;
        system.facts.claim(number)?;
        if let Some(driver) = &mut container.driver {
            driver.attach(system, number)?;
        }
        (group.claim, group.container) = (Claim::Container, Some(id));
        container.groups.insert(0, number);
        Ok(0)
    }

    /// vfio_group_ioctl_unset_container: refused while a device is open, but for a group in an iommufd.
    fn unset_container(&mut self, number: u32) -> Result<i32, Errno> {
        let group = self.groups.get(&number).ok_or(Errno::ENODEV)?;
        require(group.is_in_a_container(), Errno::EINVAL)?;
        require(group.container.is_none() || self.devices_open_through(number) == 0, Errno::EBUSY)?;
        self.leave_container(number);
        Ok(0)
    }

    /// vfio_group_detach_container. The driver and its state end with the last group; an iommufd keeps its state.
    fn leave_container(&mut self, number: u32) {
        let Self { system, containers, groups, .. } = self;
        let Some(group) = groups.get_mut(&number) else { return };
        if let Some(id) = group.context.take() {
            return self.put_context(id);
        }
        let Some(id) = group.container.take() else { return };
        group.claim = Claim::Nobody;
        let Some(container) = containers.get_mut(&id) else { return };
        if let Some(driver) = &mut container.driver {
            driver.detach(system, number);
        }
        container.groups.retain(|other| *other != number);
        if container.groups.is_empty() {
            if let Some(mut driver) = container.driver.take() {
                driver.release(system);
            }
            if !container.is_open {
                containers.remove(&id);
            }
        }
    }

    /// vfio_group_ioctl_get_device_fd.
    fn device_of_group(&mut self, number: u32, call: &Call<'_, '_>) -> Result<Reply, Errno> {
        let name = call.bytes()?.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = std::str::from_utf8(name).map_err(|_| Errno::ENODEV)?;
        let (address, options) = name.split_once(' ').unwrap_or((name, ""));
        let mut devices = self.devices.iter();
        let found = devices.position(|device| device.group == number && device.address == address);
        let index = found.ok_or(Errno::ENODEV)?;
        self.validate_token(index, token_of(options)?)?;
        let group = self.groups.get_mut(&number).ok_or(Errno::ENODEV)?;
        if let Some(context) = group.context {
            return self.open_through_iommufd(index, context);
        }
        let container = group.container.and_then(|id| self.containers.get(&id)).ok_or(Errno::EINVAL)?;
        require(container.driver.is_some(), Errno::EINVAL)?;
        let Some(device) = self.devices.get_mut(index) else { return Err(Errno::ENODEV) };
        group.users += u32::from(device.opened == 0);
        device.opened += 1;
        if device.opened == 1 {
            self.count_token_user(index, true);
        }
        Ok(Reply::Opened(File::DeviceOfGroup(index)))
    }

    /// vfio_df_group_open, with an iommufd in a container's place: the first descriptor of a device binds and attaches
    /// it.
    fn open_through_iommufd(&mut self, index: DeviceIndex, id: ContextId) -> Result<Reply, Errno> {
        let Self { system, contexts, groups, devices, .. } = self;
        let device = devices.get_mut(index).ok_or(Errno::ENODEV)?;
        let group = groups.get_mut(&device.group).ok_or(Errno::ENODEV)?;
        let context = contexts.get_mut(&id).ok_or(Errno::ENODEV)?;
        if device.opened == 0 {
            system.facts.claim(device.group)?;
            group.claim_for(id)?;
            let devid = context.bind(device.group);
            if let Err(errno) = context.attach_opened(system, index, device.group) {
                context.unbind(system, devid, index, device.group);
                group.unclaim_for_context();
                return Err(errno);
            }
            device.bound = Some((id, devid));
        }
        device.opened += 1;
        if device.opened == 1 {
            self.count_token_user(index, true);
        }
        Ok(Reply::Opened(File::DeviceOfGroup(index)))
    }

    fn devices_open_through(&self, group: u32) -> usize {
        self.devices.iter().filter(|device| device.group == group && device.opened > 0).count()
    }

    /// vfio_group_fops_open: refused while the group is open, or while one of its devices is bound through its own
    /// node.
    pub(crate) fn open_group(&mut self, number: u32) -> Result<File, Errno> {
        let group = self.groups.get_mut(&number).ok_or(Errno::ENOENT)?;
        require(group.bound == 0 && group.users == 0, Errno::EBUSY)?;
        group.users = 1;
        Ok(File::Group(number))
    }

    /// Closes the descriptor of a group, or the last one of a device opened through it.
    pub(crate) fn put_group(&mut self, number: u32) {
        let Some(group) = self.groups.get_mut(&number) else { return };
        debug_assert!(group.users > 0, "group {number} is closed more often than it was opened");
        group.users = group.users.saturating_sub(1);
        if group.users == 0 {
            self.leave_container(number);
        }
    }

    /// Closes the descriptor of a container, which keeps the state of its groups.
    pub(crate) fn close_container(&mut self, id: ContainerId) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        container.is_open = false;
        if container.groups.is_empty() {
            self.containers.remove(&id);
        }
    }

    /// Closes a descriptor of a device that was opened through its group.
    pub(crate) fn close_device_of_group(&mut self, index: DeviceIndex) {
        let Some(device) = self.devices.get_mut(index) else { return };
        debug_assert!(device.opened > 0, "device {} is closed more often than it was opened", device.address);
        device.opened = device.opened.saturating_sub(1);
        if device.opened > 0 {
            return;
        }
        device.function.close();
        let number = device.group;
        self.count_token_user(index, false);
        let Some(device) = self.devices.get_mut(index) else { return };
        let Some((id, devid)) = device.bound.take() else { return self.put_group(number) };
        let Self { system, contexts, groups, .. } = self;
        if let Some(context) = contexts.get_mut(&id) {
            context.unbind(system, devid, index, number);
        }
        if let Some(group) = groups.get_mut(&number) {
            group.unclaim_for_context();
        }
        self.put_context(id);
    }
}

/// The token among the options behind a device's name (linux: drivers/vfio/pci/vfio_pci_core.c, vfio_pci_core_match).
fn token_of(options: &str) -> Result<Option<[u8; 16]>, Errno> {
    let mut token = None;
    for option in options.split(' ').filter(|option| !option.is_empty()) {
        let uuid = option.strip_prefix("vf_token=").filter(|_| token.is_none()).ok_or(Errno::EINVAL)?;
        token = Some(uuid_of(uuid).ok_or(Errno::EINVAL)?);
    }
    Ok(token)
}

/// uuid_parse.
fn uuid_of(text: &str) -> Option<[u8; 16]> {
    let dashes = [8, 13, 18, 23].iter().all(|at| text.as_bytes().get(*at) == Some(&b'-'));
    let digits = text.replace('-', "");
    if !dashes || text.len() != 36 || digits.len() != 32 || !digits.is_ascii() {
        return None;
    }
    let mut uuid = [0; 16];
    for (n, byte) in uuid.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * n..2 * n + 2)?, 16).ok()?;
    }
    Some(uuid)
}

/// The first extension of CHECK_EXTENSION that is no type for SET_IOMMU.
const EXTENSIONS_BEGIN: u64 = 8;

/// A PCI device.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) address: String,
    pub(crate) group: u32,
    /// The number of the device's own node.
    pub(crate) node: Option<u32>,
    /// The number of descriptors in use: opened through the group, or bound.
    pub(crate) opened: u32,
    /// The iommufd that the device was bound to when it was opened through its group, and its id there.
    pub(crate) bound: Option<(ContextId, u32)>,
    /// Its regions, interrupts and features.
    pub(crate) function: Function,
}

impl Device {
    /// The devices of a host.
    pub(crate) fn all(profile: &Profile) -> Vec<Self> {
        let mut devices = Vec::new();
        for group in &profile.groups {
            for device in &group.devices {
                let address = device.address.clone();
                let (group, node, function) = (group.number, device.node, Function::new());
                devices.push(Self { address, group, node, opened: 0, bound: None, function });
            }
        }
        devices
    }
}
