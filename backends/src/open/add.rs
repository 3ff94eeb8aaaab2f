//! Devices that are added to a space by their PCI addresses.

use dmaspace_core::door::HandleKind;

use crate::backend_kind::BackendKind;
use crate::choose::{Choice, OpenRequest};
use crate::device::Device;
use crate::facts::{IommuGroup, PciDevice, VfioDevice};
use crate::open::{Host, OpenError, OpenSpace, open_node};
use crate::pci::PciAddress;

impl OpenSpace {
    /// Opens a device by its own node or by its group's, as the backend needs, and attaches it. The windows of the
    /// space may change.
    ///
    /// # Errors
    /// [`OpenError`]; nothing of the device is open then.
    pub fn add(&mut self, host: &Host, address: PciAddress) -> Result<Device, OpenError> {
        let request = OpenRequest::device(address).with_backend(self.backend());
        let choice = Choice::of(host.facts(), &request);
        let device = host.facts().devices.get(&address);
        let (Some(device), Some(_)) = (device, choice.chosen) else { return Err(OpenError::NoBackend(choice)) };
        let group = device.group.and_then(|number| host.facts().groups.get(&number));
        match (self.backend(), &device.vfio, group) {
            (BackendKind::Iommufd, Some(vfio), _) => self.add_by_node(host, device, vfio),
            (BackendKind::Iommufd, None, _) | (_, _, None) => {
                debug_assert!(false, "{} was chosen without a node or a group: {device:?}", self.backend());
                Err(OpenError::NoBackend(choice))
            }
            (_, _, Some(group)) => self.add_by_group(host, device, group),
        }
    }

    fn add_by_node(&mut self, host: &Host, device: &PciDevice, vfio: &VfioDevice) -> Result<Device, OpenError> {
        let name = device.address.to_string();
        let node = open_node(self.door()?, &vfio.path(), HandleKind::Device)?;
        let reserved = match device.group {
            Some(group) => host.facts().reserved(group, &name),
            None => Vec::new(),
        };
        self.add_device_with_reserved(node, &name, reserved)
    }

    fn add_by_group(&mut self, host: &Host, device: &PciDevice, group: &IommuGroup) -> Result<Device, OpenError> {
        let name = device.address.to_string();
        let group_name = format!("group {}", group.number);
        if let Some(group) = self.group(&group_name) {
            self.keep_no_longer(&group_name);
            return self.open_device(&group, &name);
        }
        let node = open_node(self.door()?, &group.path(), HandleKind::Group)?;
        let reserved = host.facts().reserved(group.number, &group_name);
        let group = self.add_group_with_reserved(node, &group_name, reserved)?;
        self.open_device(&group, &name).map_err(|error| self.give_up(&group, error))
    }
}
