//! In place of alioth's src/vfio/group.rs (alioth 0.12.0, Apache-2.0): the devices of a group, which dmaspace opens and
//! attaches by their PCI addresses.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use crate::sys::vfio::VfioIommu;
use crate::vfio::Result;
use crate::vfio::container::Container;
use crate::vfio::device::Device;

#[derive(Debug)]
pub struct Group {
    container: Option<Arc<Container>>,
}

impl Group {
    pub fn new(_path: &Path) -> Result<Self> {
        Ok(Group { container: None })
    }

    pub fn attach(&mut self, container: Arc<Container>, _iommu: VfioIommu) -> Result<()> {
        self.container.replace(container);
        Ok(())
    }
}

#[derive(Debug)]
pub struct DevFd {
    /// For alioth's own calls on the device.
    fd: File,
    device: Option<dmaspace::Device>,
    container: Arc<Container>,
}

impl DevFd {
    pub fn new(group: Arc<Group>, id: &str) -> Result<Self> {
        let container = group.container.clone().ok_or(io::ErrorKind::NotFound).map_err(io::Error::from)?;
        let device = container.add(id)?;
        let descriptor = device.descriptor().map_err(io::Error::other)?;
        let fd = File::from(descriptor.as_fd().try_clone_to_owned()?);
        Ok(DevFd { fd, device: Some(device), container })
    }
}

impl Drop for DevFd {
    fn drop(&mut self) {
        if let Some(device) = self.device.take()
            && let Err(e) = self.container.remove(device)
        {
            log::error!("removing a device: {e:?}");
        }
    }
}

impl Device for DevFd {
    fn fd(&self) -> &File {
        &self.fd
    }
}
