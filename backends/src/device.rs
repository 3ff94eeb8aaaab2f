//! An open device: its registers, BARs and configuration space, its interrupts, resets and features.
//!
//! The functions here are the kernel's calls, with the kernel's types made safe, and no policy: when to route an
//! interrupt, to reset or to migrate is the VMM's decision. Their request numbers are right on POWER too, where
//! `_IOC_NONE` is not zero. A call that is missing can be made on the descriptor ([`Device::descriptor`]).
//!
//! - The device: [`Device::properties`].
//! - Regions: [`Device::region`], [`Device::read`], [`Device::write`], [`Device::map`], [`Device::export`].
//! - Interrupts: [`Device::irqs`], [`Device::deliver_irqs`], [`Device::unmask_irqs_by`], [`Device::set_irqs`].
//! - Resets: [`Device::reset`], [`Device::affected_by_hot_reset`], [`Device::hot_reset`].
//! - Tokens of virtual functions: [`VfToken`], [`Device::set_vf_token`].
//! - Migration: [`Device::migration`], [`Device::set_migration_state`], [`MigrationData`].
//! - The device's own log of its writes: [`Device::start_logging`], [`Device::written_pages`].

use std::fmt;
use std::sync::Arc;

use dmaspace_abi::device::{DEVICE_FEATURE, DEVICE_RESET, ExportRange, FEATURE_EXPORT, REGION_CONFIG};
use dmaspace_core::door::{Command, Descriptor, Door, Errno, Failure, Handle, HandleKind, Kernel, OwnedHandle};
use dmaspace_core::{HostMemory, MemoryFile, PciAddressSpace};
use dmaspace_iommufd::Cdev;
use zerocopy::IntoBytes;

use crate::group::VfioGroup;
use crate::registry::Entry;

mod action;
mod advice;
mod error;
mod hot_reset;
mod irq_index;
mod irqs;
mod logging;
mod migration;
mod properties;
mod region;
mod reply;
#[cfg(test)]
mod tests;
mod token;

pub use action::Action;
pub use error::{DeviceError, DeviceProblem};
pub use hot_reset::{AffectedDevice, AffectedDevices, AffectedOwner};
pub use irq_index::IrqIndex;
pub use irqs::{IrqAction, IrqData, IrqProperties};
pub use migration::{MigrationData, MigrationState, MigrationSupport, PrecopyEstimate};
pub use properties::{DeviceCapability, DeviceKind, DeviceProperties};
pub use region::{Region, RegionArea, RegionCapability};
pub use token::{BadVfToken, VfToken};

/// An open device.
///
/// A device that was opened through its group is closed when this value is dropped, and must be closed before the
/// group can be detached. A device with a node of its own is attached to the space itself: it is closed when this
/// value is dropped and the device is detached.
///
/// Closing a device resets it, which can take seconds.
pub struct Device {
    door: Arc<dyn Door>,
    handle: Handle,
    name: String,
    opened: OpenedBy,
    /// The space that translates the device's DMA. It stays open for as long as the device.
    space: Option<Arc<dyn PciAddressSpace>>,
}

/// The way a device was opened.
enum OpenedBy {
    /// Through its group, which stays open for as long as the device. The descriptor is `None` while the device is
    /// being closed.
    Group(Option<OwnedHandle>, Arc<VfioGroup>),
    /// By its own node. The registry entry is dropped first, while the descriptor still exists.
    Node { _entry: Option<Entry>, cdev: Arc<Cdev> },
}

/// The open(2) flags of an export.
#[allow(clippy::cast_sign_loss, reason = "flags")]
const OPEN_FLAGS: u32 = (libc::O_RDWR | libc::O_CLOEXEC) as u32;

/// The offset of the command register in a PCI device's configuration space.
const PCI_COMMAND: u64 = 0x04;
/// The command bit that makes the memory BARs respond.
const PCI_COMMAND_MEMORY: u16 = 1 << 1;
/// The command bit that lets the device do DMA.
const PCI_COMMAND_MASTER: u16 = 1 << 2;

impl Device {
    /// Opens a device of `group`, by its name in sysfs: `0000:00:03.0`. The group must be in a container.
    ///
    /// A virtual function whose physical function is driven by VFIO needs their token behind the name
    /// ([`VfToken::behind`]); [`Device::name`] leaves it out.
    ///
    /// # Errors
    /// The kernel's answer: `EINVAL` for a group that is in no container, `ENODEV` for a name that is not in the
    /// group, `EACCES` without the right token, `EINVAL` for a token that the device does not need.
    pub fn open(group: &Arc<VfioGroup>, name: &str) -> Result<Self, Failure> {
        Ok(Self::of_group(group.open_descriptor(name)?, group, name))
    }

    /// Takes ownership of an open device of `group`. `name` is the device's name in sysfs.
    pub(crate) fn of_group(device: OwnedHandle, group: &Arc<VfioGroup>, name: &str) -> Self {
        group.note_opened();
        let (door, handle) = (device.door().clone(), device.handle());
        let opened = OpenedBy::Group(Some(device), group.clone());
        Self { door, handle, name: token::without_options(name).to_owned(), opened, space: None }
    }

    pub(crate) fn of_node(door: Arc<dyn Door>, name: &str, cdev: Arc<Cdev>, entry: Option<Entry>) -> Self {
        let handle = cdev.device();
        Self { door, handle, name: name.to_owned(), opened: OpenedBy::Node { _entry: entry, cdev }, space: None }
    }

    /// Keeps `space` open for as long as the device is.
    pub(crate) fn with_space(mut self, space: Arc<dyn PciAddressSpace>) -> Self {
        self.space = Some(space);
        self
    }

    /// The space that translates the device's DMA, if the device was opened into one.
    pub fn space(&self) -> Option<&Arc<dyn PciAddressSpace>> {
        self.space.as_ref()
    }

    /// The name the device was opened by: its PCI address.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The handle of the device.
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// The descriptor of the device, for calls that this library does not make.
    ///
    /// # Errors
    /// `EBADF` on a soft host, which has no descriptors.
    pub fn descriptor(&self) -> Result<Descriptor, Errno> {
        self.door.descriptor(self.handle)
    }

    /// The group that the device was opened through. `None` for a device with a node of its own.
    pub fn group(&self) -> Option<&Arc<VfioGroup>> {
        match &self.opened {
            OpenedBy::Group(_, group) => Some(group),
            OpenedBy::Node { .. } => None,
        }
    }

    /// The device as the space knows it. `None` for a device that was opened through its group.
    pub fn cdev(&self) -> Option<&Arc<Cdev>> {
        match &self.opened {
            OpenedBy::Group(..) => None,
            OpenedBy::Node { cdev, .. } => Some(cdev),
        }
    }

    /// Describes region `index`.
    ///
    /// # Errors
    /// The kernel's answer (`EINVAL` for a region that does not exist), or a description that cannot be true.
    pub fn region(&self, index: u32) -> Result<Region, DeviceError> {
        region::describe(&*self.door, self.handle, index)
            .map_err(|failure| self.error(Action::Describe(index), failure))
    }

    /// Reads `into.len()` bytes at `offset` of a region. An aligned run of 2, 4 or 8 bytes is one access of that width
    /// (linux: drivers/vfio/pci/vfio_pci_rdwr.c, vfio_pci_core_do_io_rw).
    ///
    /// # Errors
    /// [`DeviceProblem::Outside`]; the kernel's answer (`EIO` while the device's memory is disabled);
    /// [`DeviceProblem::Short`].
    pub fn read(&self, region: &Region, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        self.try_to_read(region, offset, into).map_err(|problem| self.error(Action::Read(region.index), problem))
    }

    fn try_to_read(&self, region: &Region, offset: u64, into: &mut [u8]) -> Result<(), DeviceProblem> {
        let at = region.at(offset, into.len() as u64)?;
        all_of(self.door.pread(self.handle, at, into)?, into.len())
    }

    /// Writes bytes at `offset` of a region, with accesses as wide as [`Device::read`]'s.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn write(&self, region: &Region, offset: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.try_to_write(region, offset, from).map_err(|problem| self.error(Action::Write(region.index), problem))
    }

    fn try_to_write(&self, region: &Region, offset: u64, from: &[u8]) -> Result<(), DeviceProblem> {
        let at = region.at(offset, from.len() as u64)?;
        all_of(self.door.pwrite(self.handle, at, from)?, from.len())
    }

    /// Makes the BARs respond and lets the device do DMA, as a driver does first. The device should be attached to its
    /// space by then.
    ///
    /// # Errors
    /// The kernel's answer to reading or writing the command register.
    pub fn enable(&self) -> Result<(), DeviceError> {
        let config = self.region(REGION_CONFIG)?;
        let mut command = [0; 2];
        self.read(&config, PCI_COMMAND, &mut command)?;
        let enabled = u16::from_le_bytes(command) | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
        self.write(&config, PCI_COMMAND, &enabled.to_le_bytes())
    }

    /// Maps a part of a region into this process, for a guest's accesses or another device's DMA. [`Region::mappable`]
    /// lists the parts that can be mapped.
    ///
    /// Read registers with [`Device::read`] instead: a [`HostMemory`] copies byte by byte, and a device that does not
    /// decode accesses of one byte returns garbage or, on POWER, raises a machine check.
    ///
    /// The kernel keeps the device open for as long as a part of it is mapped. Its group cannot leave the container
    /// before that.
    ///
    /// # Errors
    /// [`DeviceProblem::Outside`]; the kernel's answer (`EINVAL` for a part that cannot be mapped).
    pub fn map(&self, region: &Region, area: RegionArea) -> Result<HostMemory, DeviceError> {
        self.try_to_map(region, area).map_err(|problem| self.error(Action::Map(region.index), problem))
    }

    fn try_to_map(&self, region: &Region, area: RegionArea) -> Result<HostMemory, DeviceProblem> {
        let at = region.at(area.offset, area.len.get())?;
        Ok(self.door.mmap(self.handle, at, area.len, region.access)?)
    }

    /// Maps a part of a BAR as [`Device::map`] does, for other devices' DMA. Where the kernel can export the part
    /// ([`Device::export`]), iommufd can map the memory too; type1 needs no export.
    ///
    /// # Errors
    /// As [`Device::map`] and [`Device::export`], except that a kernel without exports is no error.
    pub fn map_exported(&self, region: &Region, area: RegionArea) -> Result<HostMemory, DeviceError> {
        let memory = self.map(region, area)?;
        match self.export(region, area) {
            Ok(file) => Ok(memory.in_file(file, 0)),
            Err(error) if matches!(error.errno(), Some(Errno::ENOTTY | Errno::EOPNOTSUPP)) => Ok(memory),
            Err(error) => Err(error),
        }
    }

    /// Exports a part of a BAR as a file of its own, for [`HostMemory::in_file`]: the memory of this part begins at
    /// offset 0 of the file. Linux can since 6.19, on hosts with peer-to-peer DMA (linux: drivers/vfio/pci/Kconfig,
    /// VFIO_PCI_DMABUF).
    ///
    /// The kernel revokes an export when the BAR stops responding: when the device's memory is disabled (the opposite
    /// of [`Device::enable`]), and when the device is reset, put to sleep or closed. From then on an address space
    /// that has the export mapped translates to nothing there, without any notification; the mapping itself stays
    /// until it is unmapped (linux: drivers/iommu/iommufd/pages.c, iopt_revoke_notify). A VMM must therefore remove a
    /// BAR's sections when the guest disables the device's memory, and add them again when the guest enables it, as it
    /// does when the guest moves the BAR.
    ///
    /// # Errors
    /// [`DeviceProblem::Outside`]; the kernel's answer: `ENOTTY` for a kernel without exports, `EOPNOTSUPP` for a
    /// device without, `EINVAL` for parts of pages, `ENODEV` for a region that is not a memory BAR.
    pub fn export(&self, region: &Region, area: RegionArea) -> Result<MemoryFile, DeviceError> {
        self.try_to_export(region, area).map_err(|problem| self.error(Action::Export(region.index), problem))
    }

    fn try_to_export(&self, region: &Region, area: RegionArea) -> Result<MemoryFile, DeviceProblem> {
        region.at(area.offset, area.len.get())?;
        let mut export = ExportRange {
            argsz: ExportRange::SIZE,
            flags: FEATURE_EXPORT,
            region_index: region.index,
            open_flags: OPEN_FLAGS,
            reserved: 0,
            nr_ranges: 1,
            offset: area.offset,
            length: area.len.get(),
        };
        let mut command = Command::with_bytes(DEVICE_FEATURE, export.as_mut_bytes());
        match OwnedHandle::opened_by(self.door.clone(), self.handle, &mut command, HandleKind::Export) {
            Ok(export) => Ok(MemoryFile::exported(export)),
            Err(errno) => Err(Failure::from_errno(DEVICE_FEATURE.name, errno).into()),
        }
    }

    /// Resets the device (linux: drivers/vfio/pci/vfio_pci_core.c, vfio_pci_ioctl_reset). Its interrupts stay set up.
    ///
    /// # Errors
    /// The kernel's answer: `EINVAL` for a device that cannot be reset alone ([`DeviceProperties::can_reset`]),
    /// `EAGAIN` while the kernel uses it.
    pub fn reset(&self) -> Result<(), DeviceError> {
        self.door.call(self.handle, Command::bare(DEVICE_RESET)).map_err(|failure| self.error(Action::Reset, failure))
    }

    fn error(&self, action: Action, problem: impl Into<DeviceProblem>) -> DeviceError {
        DeviceError::new(&self.name, action, problem)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // A device with a node of its own is closed with the last `Arc` of its `Cdev`.
        if let OpenedBy::Group(device, group) = &mut self.opened {
            drop(device.take());
            group.note_closed();
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, {:?})", self.name, self.handle)
    }
}

fn all_of(moved: usize, wanted: usize) -> Result<(), DeviceProblem> {
    if moved == wanted { Ok(()) } else { Err(DeviceProblem::Short(moved)) }
}
