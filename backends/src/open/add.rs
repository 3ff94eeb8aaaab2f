//! Devices that are added to a space by their PCI addresses, or by their places in sysfs.

use dmaspace_core::door::HandleKind;

use crate::backend_kind::BackendKind;
use crate::choose::{Choice, OpenRequest};
use crate::device::Device;
use crate::facts::{IommuGroup, SysfsDevice, VfioDevice};
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
        self.add_by_nodes(host, &device.into())
    }

    /// Opens a device that is no PCI function as [`OpenSpace::add`] opens one that is: a mediated device, a platform
    /// device. The facts of `host` have its group.
    ///
    /// ```no_run
    /// # fn example(space: &mut dmaspace::OpenSpace) -> Result<(), Box<dyn std::error::Error>> {
    /// use dmaspace::Host;
    /// use dmaspace::facts::SysfsDevice;
    ///
    /// let path = "/sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
    /// space.add_at(&Host::this()?, &SysfsDevice::read(path.as_ref())?)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`OpenError::NoNode`] for a device that the backend cannot open; as [`OpenSpace::add`].
    pub fn add_at(&mut self, host: &Host, device: &SysfsDevice) -> Result<Device, OpenError> {
        self.door()?;
        self.add_by_nodes(host, device)
    }

    fn add_by_nodes(&mut self, host: &Host, device: &SysfsDevice) -> Result<Device, OpenError> {
        let group = device.group.and_then(|number| host.facts().groups.get(&number));
        match (self.backend(), &device.vfio, group) {
            (BackendKind::Iommufd, Some(vfio), _) => self.add_by_node(host, device, vfio),
            (BackendKind::Iommufd, None, _) | (_, _, None) => {
                Err(OpenError::NoNode { device: device.name.clone(), backend: self.backend() })
            }
            (_, _, Some(group)) => self.add_by_group(host, &device.name, group),
        }
    }

    fn add_by_node(&mut self, host: &Host, device: &SysfsDevice, vfio: &VfioDevice) -> Result<Device, OpenError> {
        let node = open_node(self.door()?, &vfio.path(), HandleKind::Device)?;
        let reserved = match device.group {
            Some(group) => host.facts().reserved(group, &device.name),
            None => Vec::new(),
        };
        self.add_device_with_reserved(node, &device.name, reserved)
    }

    fn add_by_group(&mut self, host: &Host, name: &str, group: &IommuGroup) -> Result<Device, OpenError> {
        let group_name = format!("group {}", group.number);
        if let Some(group) = self.group(&group_name) {
            self.keep_no_longer(&group_name);
            return self.open_device(&group, name);
        }
        let node = open_node(self.door()?, &group.path(), HandleKind::Group)?;
        let reserved = host.facts().reserved(group.number, &group_name);
        let group = self.add_group_with_reserved(node, &group_name, reserved)?;
        self.open_device(&group, name).map_err(|error| self.give_up(&group, error))
    }
}
