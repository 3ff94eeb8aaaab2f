//! A VFIO device's own descriptor: bound to an iommufd, attached there, or opened through its group (linux:
//! drivers/vfio/device_cdev.c, drivers/vfio/vfio_main.c).
//!
//! `function.rs` has the calls beside DMA.

use dmaspace_abi::device::{self, AttachIommufdPt, BindIommufd, DetachIommufdPt};
use dmaspace_core::door::Errno;
use std::mem::offset_of;

use crate::dialect::call::Call;
use crate::dialect::iommufd::DeviceIndex;
use crate::dialect::require;
use crate::dialect::vfio::Device;
use crate::kernel::{ContextId, File, Kernel, Reply};

/// The sizes that the kernel requires of the structs: without the token, without the PASID.
const BIND_LEAST: usize = offset_of!(BindIommufd, token_uuid_ptr);
const ATTACH_LEAST: usize = offset_of!(AttachIommufdPt, pasid);
const DETACH_LEAST: usize = offset_of!(DetachIommufdPt, pasid);

/// A descriptor of a device's own node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeFile {
    pub(crate) device: DeviceIndex,
    /// The iommufd that the device is bound to, and the device's id there.
    pub(crate) bound: Option<(ContextId, u32)>,
}

impl Kernel {
    /// vfio_device_fops_unl_ioctl, of a descriptor of a device's own node: only binding is accepted before it is bound.
    pub(crate) fn node_ioctl(&mut self, id: u64, node: NodeFile, call: &mut Call<'_, '_>) -> Result<Reply, Errno> {
        if call.number() == device::DEVICE_BIND_IOMMUFD.number {
            return self.bind(id, node, call);
        }
        let (context, _) = node.bound.ok_or(Errno::EINVAL)?;
        match call.number() {
            number if number == device::DEVICE_ATTACH_IOMMUFD_PT.number => self.attach_node(node.device, context, call),
            number if number == device::DEVICE_DETACH_IOMMUFD_PT.number => self.detach_node(node.device, context, call),
            _ => self.device_ioctl(node.device, Some(context), call),
        }
    }

    /// vfio_df_ioctl_bind_iommufd.
    fn bind(&mut self, id: u64, node: NodeFile, call: &mut Call<'_, '_>) -> Result<Reply, Errno> {
        let mut bind: BindIommufd = call.read_prefix(BIND_LEAST)?;
        let handle = call.handle(offset_of!(BindIommufd, iommufd));
        let flags = if self.system.facts.is_modern() { device::BIND_TOKEN } else { 0 };
        let known = bind.argsz as usize >= BIND_LEAST && bind.flags & !flags == 0;
        require(known && (handle.is_some() || bind.iommufd >= 0), Errno::EINVAL)?;
        let token = self.token_of(&bind, call)?;
        let device = self.devices.get(node.device).ok_or(Errno::ENODEV)?;
        let (number, opened) = (device.group, device.opened);
        let group = self.groups.get(&number).ok_or(Errno::ENODEV)?;
        require(group.users == 0, Errno::EBUSY)?;
        require(node.bound.is_none(), Errno::EINVAL)?;
        let File::Iommufd(context) = self.file(call.by, handle.ok_or(Errno::EBADF)?)? else {
            return Err(Errno::EBADFD);
        };
        require(opened == 0, Errno::EINVAL)?;
        // Kernels that take no token here look at none (linux: drivers/vfio/pci/vfio_pci_core.c,
        // vfio_pci_core_match_token_uuid).
        if flags != 0 {
            self.validate_token(node.device, token)?;
        }
        self.system.facts.claim(number)?;
        let group = self.groups.get_mut(&number).ok_or(Errno::ENODEV)?;
        group.claim_for(context)?;
        group.bound += 1;
        bind.out_devid = self.contexts.get_mut(&context).ok_or(Errno::EBADF)?.bind(number);
        if let Some(device) = self.devices.get_mut(node.device) {
            device.opened = 1;
        }
        self.count_token_user(node.device, true);
        self.replace_file(id, File::Node(NodeFile { bound: Some((context, bind.out_devid)), ..node }));
        call.write_prefix(&bind, BIND_LEAST);
        Ok(Reply::Number(0))
    }

    /// The token of a bind, if it has one.
    fn token_of(&self, bind: &BindIommufd, call: &mut Call<'_, '_>) -> Result<Option<[u8; 16]>, Errno> {
        if bind.flags & device::BIND_TOKEN == 0 {
            return Ok(None);
        }
        require(bind.argsz >= BindIommufd::SIZE, Errno::EINVAL)?;
        let token = call.buffer(offset_of!(BindIommufd, token_uuid_ptr)).ok_or(Errno::EFAULT)?;
        token.first_chunk().copied().map(Some).ok_or(Errno::EFAULT)
    }

    /// The id of a device in an iommufd (linux: drivers/vfio/iommufd.c, vfio_iommufd_get_dev_id).
    pub(crate) fn bound_id(&self, context: ContextId, device: &Device) -> Option<u32> {
        let index = self.device(&device.address)?;
        let by_node = self.bound_nodes().find_map(|(bound, place)| if bound == index { Some(place) } else { None });
        by_node.or(device.bound).filter(|(owner, _)| *owner == context).map(|(_, id)| id)
    }

    /// vfio_df_ioctl_attach_pt. An attached device moves.
    fn attach_node(
        &mut self,
        device: DeviceIndex,
        context: ContextId,
        call: &mut Call<'_, '_>,
    ) -> Result<Reply, Errno> {
        let mut attach: AttachIommufdPt = call.read_prefix(ATTACH_LEAST)?;
        require(attach.argsz as usize >= ATTACH_LEAST && attach.flags == 0, Errno::EINVAL)?;
        let group = self.devices.get(device).ok_or(Errno::ENODEV)?.group;
        let Self { system, contexts, .. } = self;
        let context = contexts.get_mut(&context).ok_or(Errno::EBADF)?;
        attach.pt_id = context.attach(system, device, group, attach.pt_id)?;
        call.write_prefix(&attach, ATTACH_LEAST);
        Ok(Reply::Number(0))
    }

    /// vfio_df_ioctl_detach_pt: returns 0 whether the device was attached or not.
    fn detach_node(&mut self, device: DeviceIndex, context: ContextId, call: &Call<'_, '_>) -> Result<Reply, Errno> {
        let detach: DetachIommufdPt = call.read_prefix(DETACH_LEAST)?;
        require(detach.argsz as usize >= DETACH_LEAST && detach.flags == 0, Errno::EINVAL)?;
        let group = self.devices.get(device).ok_or(Errno::ENODEV)?.group;
        let Self { system, contexts, .. } = self;
        contexts.get_mut(&context).ok_or(Errno::EBADF)?.detach(system, device, group);
        Ok(Reply::Number(0))
    }

    /// vfio_df_unbind_iommufd: only closing unbinds.
    pub(crate) fn close_node(&mut self, node: NodeFile) {
        let Some((id, devid)) = node.bound else { return };
        self.count_token_user(node.device, false);
        let Some(device) = self.devices.get_mut(node.device) else { return };
        device.opened = 0;
        device.function.close();
        let number = device.group;
        let Self { system, contexts, groups, .. } = self;
        if let Some(context) = contexts.get_mut(&id) {
            context.unbind(system, devid, node.device, number);
        }
        if let Some(group) = groups.get_mut(&number) {
            group.unclaim_for_context();
            debug_assert!(group.bound > 0, "more devices of group {number} are unbound than were bound");
            group.bound = group.bound.saturating_sub(1);
        }
        self.put_context(id);
    }
}
