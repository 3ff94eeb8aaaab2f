//! A VFIO device's own descriptor: bound to an iommufd, attached there, or opened through its group (linux:
//! drivers/vfio/device_cdev.c, drivers/vfio/vfio_main.c).
//!
//! Limits: no regions, no interrupts, no features; a device here only does DMA.

use dmaspace_abi::device::{self, AttachIommufdPt, BindIommufd, DetachIommufdPt, DeviceInfo};
use dmaspace_core::door::Errno;
use std::mem::offset_of;

use crate::dialect::call::Call;
use crate::dialect::iommufd::DeviceIndex;
use crate::dialect::require;
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
    /// vfio_device_fops_unl_ioctl, of a device that was opened through its group.
    pub(crate) fn device_ioctl(&self, call: &mut Call<'_, '_>) -> Result<Reply, Errno> {
        let result = match call.number() {
            number if number == device::DEVICE_GET_INFO.number => device_info(call)?,
            number if number == device::DEVICE_RESET.number => 0,
            // Only descriptors of device nodes can be bound.
            number if number == device::DEVICE_BIND_IOMMUFD.number => return Err(Errno::EINVAL),
            _ => return Err(Errno::ENOTTY),
        };
        Ok(Reply::Number(result))
    }

    /// vfio_device_fops_unl_ioctl, of a descriptor of a device's own node: only binding is accepted before it is bound.
    pub(crate) fn node_ioctl(&mut self, id: u64, node: NodeFile, call: &mut Call<'_, '_>) -> Result<Reply, Errno> {
        if call.number() == device::DEVICE_BIND_IOMMUFD.number {
            return self.bind(id, node, call);
        }
        let (context, _) = node.bound.ok_or(Errno::EINVAL)?;
        match call.number() {
            number if number == device::DEVICE_ATTACH_IOMMUFD_PT.number => self.attach_node(node.device, context, call),
            number if number == device::DEVICE_DETACH_IOMMUFD_PT.number => self.detach_node(node.device, context, call),
            _ => self.device_ioctl(call),
        }
    }

    /// vfio_df_ioctl_bind_iommufd.
    fn bind(&mut self, id: u64, node: NodeFile, call: &mut Call<'_, '_>) -> Result<Reply, Errno> {
        let mut bind: BindIommufd = call.read_prefix(BIND_LEAST)?;
        let handle = call.handle(offset_of!(BindIommufd, iommufd));
        let known = bind.argsz as usize >= BIND_LEAST && bind.flags == 0;
        require(known && (handle.is_some() || bind.iommufd >= 0), Errno::EINVAL)?;
        let device = self.devices.get(node.device).ok_or(Errno::ENODEV)?;
        let (number, opened) = (device.group, device.opened);
        let group = self.groups.get(&number).ok_or(Errno::ENODEV)?;
        require(group.users == 0, Errno::EBUSY)?;
        require(node.bound.is_none(), Errno::EINVAL)?;
        let File::Iommufd(context) = self.file(call.by, handle.ok_or(Errno::EBADF)?)? else {
            return Err(Errno::EBADFD);
        };
        require(opened == 0, Errno::EINVAL)?;
        self.system.facts.claim(number)?;
        let group = self.groups.get_mut(&number).ok_or(Errno::ENODEV)?;
        group.claim_for(context)?;
        group.bound += 1;
        bind.out_devid = self.contexts.get_mut(&context).ok_or(Errno::EBADF)?.bind(number);
        if let Some(device) = self.devices.get_mut(node.device) {
            device.opened = 1;
        }
        self.replace_file(id, File::Node(NodeFile { bound: Some((context, bind.out_devid)), ..node }));
        call.write_prefix(&bind, BIND_LEAST);
        Ok(Reply::Number(0))
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
        let Some(device) = self.devices.get_mut(node.device) else { return };
        device.opened = 0;
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

/// vfio_pci_ioctl_get_info: a PCI device as vfio-pci sees it.
fn device_info(call: &mut Call<'_, '_>) -> Result<i32, Errno> {
    let least = offset_of!(DeviceInfo, cap_offset);
    let mut info: DeviceInfo = call.read_prefix(least)?;
    require(info.argsz as usize >= least, Errno::EINVAL)?;
    info.flags = device::DEVICE_HAS_RESET | device::DEVICE_IS_PCI;
    // VFIO_PCI_NUM_REGIONS and VFIO_PCI_NUM_IRQS.
    (info.num_regions, info.num_irqs) = (9, 5);
    call.write_prefix(&info, least);
    Ok(0)
}
