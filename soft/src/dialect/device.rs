//! The calls of a device beside binding and attaching, on either kind of descriptor (linux:
//! drivers/vfio/pci/vfio_pci_core.c, vfio_pci_core_ioctl; drivers/vfio/vfio_main.c, vfio_ioctl_device_feature).

use std::mem::offset_of;

use dmaspace_abi::device::{
    self, DEV_ID_NOT_OWNED, DEV_ID_OWNED, DependentDevice, FeatureHead, FeatureMigState, FeatureToken, HotReset,
    HotResetInfo, PrecopyInfo,
};
use dmaspace_core::door::Errno;
use zerocopy::IntoBytes;

use crate::dialect::call::Call;
use crate::dialect::feature::{Migration, Step, Token, check, is_precopy};
use crate::dialect::function::{Function, device_info, irq_info, region_info};
use crate::dialect::iommufd::DeviceIndex;
use crate::dialect::require;
use crate::dialect::vfio::{Claim, Device};
use crate::kernel::{ContextId, File, Kernel, Reply};

impl Kernel {
    /// vfio_device_fops_unl_ioctl and vfio_pci_core_ioctl. `node` is the iommufd of a device that was opened by its own
    /// node.
    pub(crate) fn device_ioctl(
        &mut self,
        index: DeviceIndex,
        node: Option<ContextId>,
        call: &mut Call<'_, '_>,
    ) -> Result<Reply, Errno> {
        let dynamic = self.system.facts.has_dynamic_msix();
        let device = self.devices.get_mut(index).ok_or(Errno::ENODEV)?;
        let result = match call.number() {
            number if number == device::DEVICE_GET_INFO.number => device_info(call)?,
            number if number == device::DEVICE_GET_REGION_INFO.number => region_info(call)?,
            number if number == device::DEVICE_GET_IRQ_INFO.number => irq_info(dynamic, call)?,
            number if number == device::DEVICE_SET_IRQS.number => device.function.irqs.set(dynamic, call)?,
            number if number == device::DEVICE_RESET.number => {
                device.function.reset();
                0
            }
            number if number == device::DEVICE_GET_PCI_HOT_RESET_INFO.number => {
                self.hot_reset_info(index, node, call)?
            }
            number if number == device::DEVICE_PCI_HOT_RESET.number => self.hot_reset(index, node, call)?,
            number if number == device::DEVICE_FEATURE.number => self.device_feature(index, call)?,
            // Only descriptors of device nodes can be bound.
            number if number == device::DEVICE_BIND_IOMMUFD.number => return Err(Errno::EINVAL),
            _ => return Err(Errno::ENOTTY),
        };
        Ok(Reply::Number(result))
    }

    /// vfio_pci_ioctl_get_pci_hot_reset_info. Devices on a root bus have neither a slot nor a bus that can be reset.
    fn hot_reset_info(
        &self,
        index: DeviceIndex,
        node: Option<ContextId>,
        call: &mut Call<'_, '_>,
    ) -> Result<i32, Errno> {
        let mut info: HotResetInfo = call.read()?;
        require(info.argsz >= HotResetInfo::SIZE, Errno::EINVAL)?;
        let on_bus = self.on_bus_of(index)?;
        let room = (info.argsz - HotResetInfo::SIZE) as usize / size_of::<DependentDevice>();
        info.count = u32::try_from(on_bus.len()).unwrap_or(u32::MAX);
        if on_bus.len() > room {
            info.flags = 0;
            call.write(&info);
            return Err(Errno::ENOSPC);
        }
        info.flags = if node.is_some() { device::HOT_RESET_DEV_ID | device::HOT_RESET_DEV_ID_OWNED } else { 0 };
        let mut at = size_of::<HotResetInfo>();
        for device in on_bus {
            let owner = node.map_or(device.group, |context| self.id_in(context, device));
            if node.is_some() && owner == DEV_ID_NOT_OWNED {
                info.flags &= !device::HOT_RESET_DEV_ID_OWNED;
            }
            let affected = dependent(device, owner).ok_or(Errno::EINVAL)?;
            call.write_at(at, affected.as_bytes());
            at += size_of::<DependentDevice>();
        }
        call.write(&info);
        Ok(0)
    }

    /// vfio_pci_ioctl_pci_hot_reset: all affected devices must be of the groups that the caller names, or of its
    /// iommufd.
    fn hot_reset(&mut self, index: DeviceIndex, node: Option<ContextId>, call: &Call<'_, '_>) -> Result<i32, Errno> {
        let reset: HotReset = call.read()?;
        require(reset.argsz >= HotReset::SIZE && reset.flags == 0, Errno::EINVAL)?;
        require((reset.count > 0) != node.is_some(), Errno::EINVAL)?;
        let on_bus = self.on_bus_of(index)?;
        require(reset.count as usize <= on_bus.len(), Errno::EINVAL)?;
        let groups = self.named_groups(call)?;
        let is_owned = |device: &&Device| match node {
            Some(context) => self.id_in(context, device) != DEV_ID_NOT_OWNED,
            None => groups.contains(&device.group),
        };
        require(on_bus.iter().all(is_owned), Errno::EINVAL)?;
        let affected: Vec<_> = on_bus.iter().map(|device| device.address.clone()).collect();
        for device in self.devices.iter_mut().filter(|device| affected.contains(&device.address)) {
            device.function.reset();
        }
        Ok(0)
    }

    /// The groups whose descriptors the caller passed.
    fn named_groups(&self, call: &Call<'_, '_>) -> Result<Vec<u32>, Errno> {
        let mut groups = Vec::new();
        for handle in call.handles(size_of::<HotReset>()) {
            let File::Group(number) = self.file(call.by, *handle)? else { return Err(Errno::EINVAL) };
            groups.push(number);
        }
        Ok(groups)
    }

    /// The devices on the bus of a device.
    fn on_bus_of(&self, index: DeviceIndex) -> Result<Vec<&Device>, Errno> {
        let bus = self.devices.get(index).and_then(|device| bus_of(&device.address)).ok_or(Errno::ENODEV)?;
        require(!bus.ends_with(":00"), Errno::ENODEV)?;
        Ok(self.devices.iter().filter(|device| bus_of(&device.address) == Some(bus)).collect())
    }

    /// vfio_iommufd_get_dev_id, and the kernel's word for a device that is not bound itself.
    fn id_in(&self, context: ContextId, device: &Device) -> u32 {
        if let Some(id) = self.bound_id(context, device) {
            return id;
        }
        match self.groups.get(&device.group).map(|group| group.claim) {
            Some(Claim::Context(owner, _)) if owner == context => DEV_ID_OWNED,
            _ => DEV_ID_NOT_OWNED,
        }
    }

    /// The bytes of a device's descriptor.
    pub(crate) fn function_of(&mut self, file: File) -> Result<&mut Function, Errno> {
        let index = match file {
            File::DeviceOfGroup(index) => index,
            File::Node(node) if node.bound.is_some() => node.device,
            _ => return Err(Errno::EINVAL),
        };
        self.devices.get_mut(index).map(|device| &mut device.function).ok_or(Errno::ENODEV)
    }
}

impl Kernel {
    /// vfio_ioctl_device_feature.
    pub(crate) fn device_feature(&mut self, index: DeviceIndex, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        let head: FeatureHead = call.read()?;
        let known = device::FEATURE_MASK | device::FEATURE_GET | device::FEATURE_SET | device::FEATURE_PROBE;
        require(head.argsz >= FeatureHead::SIZE && head.flags & !known == 0, Errno::EINVAL)?;
        let both = device::FEATURE_GET | device::FEATURE_SET;
        require(head.flags & device::FEATURE_PROBE != 0 || head.flags & both != both, Errno::EINVAL)?;
        match head.flags & device::FEATURE_MASK {
            device::FEATURE_VF_TOKEN => self.set_token(index, head, call),
            device::FEATURE_MIG_STATE => self.migration_state(index, head, call),
            feature => {
                let function = self.devices.get_mut(index).map(|device| &mut device.function).ok_or(Errno::ENODEV)?;
                match feature {
                    device::FEATURE_MIGRATION => function.migration_flags(head, call),
                    device::FEATURE_MIG_DATA_SIZE => function.migration_data_size(head, call),
                    device::FEATURE_LOGGING_START => function.start_log(head, call),
                    device::FEATURE_LOGGING_STOP => function.stop_log(head),
                    device::FEATURE_LOGGING_REPORT => function.report_log(head, call),
                    _ => Err(Errno::ENOTTY),
                }
            }
        }
    }

    /// vfio_pci_core_feature_token.
    fn set_token(&mut self, index: DeviceIndex, head: FeatureHead, call: &Call<'_, '_>) -> Result<i32, Errno> {
        let device = self.devices.get_mut(index).ok_or(Errno::ENODEV)?;
        let Token::Physical(token, _) = &mut device.function.token else { return Err(Errno::ENOTTY) };
        if check(head, device::FEATURE_SET, FeatureToken::SIZE)? == Step::Done {
            return Ok(0);
        }
        *token = call.read::<FeatureToken>()?.uuid;
        Ok(0)
    }

    /// vfio_pci_validate_vf_token.
    pub(crate) fn validate_token(&mut self, index: DeviceIndex, given: Option<[u8; 16]>) -> Result<(), Errno> {
        let device = self.devices.get_mut(index).ok_or(Errno::ENODEV)?;
        match (&mut device.function.token, given) {
            (Token::None, None) | (Token::Physical(_, 0), None) => Ok(()),
            (Token::None, Some(_)) => Err(Errno::EINVAL),
            (Token::Physical(token, 0), Some(given)) => {
                *token = given;
                Ok(())
            }
            (Token::Physical(token, _), given) => require(given == Some(*token), Errno::EACCES),
            (Token::Virtual(physical), given) => {
                let physical = *physical;
                let physical = self.devices.get(physical).ok_or(Errno::ENODEV)?;
                let Token::Physical(token, _) = &physical.function.token else { return Ok(()) };
                require(given == Some(*token), Errno::EACCES)
            }
        }
    }

    /// vfio_pci_vf_token_user_add, with 1 or -1.
    pub(crate) fn count_token_user(&mut self, index: DeviceIndex, opened: bool) {
        let Some(Token::Virtual(physical)) = self.devices.get(index).map(|device| &device.function.token) else {
            return;
        };
        let physical = *physical;
        let physical = self.devices.get_mut(physical).map(|device| &mut device.function.token);
        if let Some(Token::Physical(_, users)) = physical {
            *users = if opened { *users + 1 } else { users.saturating_sub(1) };
        }
    }

    /// vfio_ioctl_device_feature_mig_device_state.
    fn migration_state(
        &mut self,
        index: DeviceIndex,
        head: FeatureHead,
        call: &mut Call<'_, '_>,
    ) -> Result<i32, Errno> {
        let function = self.devices.get_mut(index).map(|device| &mut device.function).ok_or(Errno::ENODEV)?;
        let migration = function.migration.as_ref().ok_or(Errno::ENOTTY)?;
        let access = device::FEATURE_GET | device::FEATURE_SET;
        if check(head, access, FeatureMigState::SIZE)? == Step::Done {
            return Ok(0);
        }
        let mut feature: FeatureMigState = call.read()?;
        feature.data_fd = -1;
        if head.flags & device::FEATURE_GET != 0 {
            feature.device_state = migration.state;
            call.write(&feature);
            return Ok(0);
        }
        let opened = function.set_migration_state(feature.device_state);
        // The field is left as a descriptor that the caller does not see.
        feature.data_fd = 0;
        call.write(&feature);
        if let Some(stream) = opened? {
            let file = self.install(call.by, File::Stream(index, stream));
            call.opened(offset_of!(FeatureMigState, data_fd), file);
        }
        Ok(0)
    }

    /// The calls on the stream of a migration.
    pub(crate) fn stream_ioctl(
        &mut self,
        index: DeviceIndex,
        stream: u64,
        call: &mut Call<'_, '_>,
    ) -> Result<Reply, Errno> {
        require(call.number() == device::MIG_GET_PRECOPY_INFO.number, Errno::ENOTTY)?;
        let migration = self.stream(index, stream)?;
        let mut info: PrecopyInfo = call.read()?;
        require(info.argsz >= PrecopyInfo::SIZE, Errno::EINVAL)?;
        require(migration.flags & device::MIGRATION_PRE_COPY != 0, Errno::ENOTTY)?;
        require(is_precopy(migration.state), Errno::EINVAL)?;
        (info.initial_bytes, info.dirty_bytes) = (migration.left(), 0);
        call.write(&info);
        Ok(Reply::Number(0))
    }

    /// The migration behind a stream: `ENODEV` for a stream that is ended.
    pub(crate) fn stream(&mut self, index: DeviceIndex, stream: u64) -> Result<&mut Migration, Errno> {
        let function = self.devices.get_mut(index).map(|device| &mut device.function).ok_or(Errno::ENODEV)?;
        let migration = function.migration.as_mut().ok_or(Errno::ENODEV)?;
        require(migration.stream == stream && migration.streams(), Errno::ENODEV)?;
        Ok(migration)
    }
}

/// The domain and the bus of an address.
fn bus_of(address: &str) -> Option<&str> {
    address.rsplit_once(':').map(|(bus, _)| bus)
}

fn dependent(device: &Device, owner: u32) -> Option<DependentDevice> {
    let (bus, slot) = device.address.rsplit_once(':')?;
    let (domain, bus) = bus.split_once(':')?;
    let (slot, function) = slot.split_once('.')?;
    let devfn = u8::from_str_radix(slot, 16).ok()?.checked_mul(8)? | u8::from_str_radix(function, 16).ok()?;
    // The kernel's struct has 16 bits for the domain.
    #[allow(clippy::cast_possible_truncation, reason = "as the kernel does")]
    let segment = u32::from_str_radix(domain, 16).ok()? as u16;
    Some(DependentDevice { owner, segment, bus: u8::from_str_radix(bus, 16).ok()?, devfn })
}
