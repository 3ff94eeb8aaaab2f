//! Hot reset: a reset of the slot or bus, for devices that cannot be reset alone.

use std::sync::Arc;

use dmaspace_abi::device::{
    DEV_ID_NOT_OWNED, DEV_ID_OWNED, DEVICE_GET_PCI_HOT_RESET_INFO, DEVICE_PCI_HOT_RESET, DependentDevice,
    HOT_RESET_DEV_ID, HOT_RESET_DEV_ID_OWNED, HotReset, HotResetInfo,
};
use dmaspace_core::contract::DeviceId;
use dmaspace_core::door::{Attached, Attachment, Command, Errno, Failure, Kernel};
use zerocopy::{FromBytes, IntoBytes};

use crate::device::{Action, Device, DeviceError};
use crate::group::VfioGroup;
use crate::pci::PciAddress;

/// The devices that a hot reset of a device affects: all of its slot, or of its bus.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AffectedDevices {
    /// The devices, with the one that was asked.
    pub devices: Vec<AffectedDevice>,
    /// `true` if the reset is allowed, because the iommufd of the device that was asked owns all of them. `None` for a
    /// device that was opened through its group: the reset needs the group of each.
    pub all_owned: Option<bool>,
}

/// A device that a hot reset affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AffectedDevice {
    /// The address of the device.
    pub address: PciAddress,
    /// The owner of the device.
    pub owner: AffectedOwner,
}

/// The owner of a device that a hot reset affects.
///
/// Exhaustive: the kernel's four answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AffectedOwner {
    /// The number of the device's group. A reset needs that group.
    Group(u32),
    /// The device is bound to the iommufd of the device that was asked, and has this id there.
    Bound(DeviceId),
    /// The device is not bound, but another device of its group is bound to the iommufd, so that no other process can
    /// use it.
    OfBoundGroup,
    /// Another process, or the kernel, may use the device: a reset is refused.
    Other,
}

/// The number of attempts to get a list that keeps growing.
const ATTEMPTS: usize = 8;
/// The devices that the first attempt has room for.
const FIRST_ROOM: usize = 8;
/// The most devices that a bus can have: 256 functions, on each of 256 buses below it.
const MOST_DEVICES: usize = 1 << 16;

impl Device {
    /// Lists the devices that [`Device::hot_reset`] would reset (linux: drivers/vfio/pci/vfio_pci_core.c,
    /// vfio_pci_ioctl_get_pci_hot_reset_info).
    ///
    /// # Errors
    /// The kernel's answer: `ENODEV` for a device whose slot and bus cannot be reset.
    pub fn affected_by_hot_reset(&self) -> Result<AffectedDevices, DeviceError> {
        self.list_affected().map_err(|failure| self.error(Action::DescribeHotReset, failure))
    }

    fn list_affected(&self) -> Result<AffectedDevices, Failure> {
        let mut room = FIRST_ROOM;
        for _ in 0..ATTEMPTS {
            let mut reply = question(room);
            let asked = Command::with_bytes(DEVICE_GET_PCI_HOT_RESET_INFO, &mut reply);
            match self.door.call(self.handle, asked) {
                Ok(()) => return parse(&reply).map_err(malformed),
                // The kernel tells the number of devices.
                Err(failure) if failure.errno() == Some(Errno::ENOSPC) => {}
                Err(failure) => return Err(failure),
            }
            let needed = HotResetInfo::read_from_prefix(&reply).map_or(0, |(info, _)| info.count as usize);
            if needed <= room || needed > MOST_DEVICES {
                return Err(malformed("the number of devices cannot be true"));
            }
            room = needed;
        }
        Err(malformed("it lists more devices every time"))
    }

    /// Resets the slot or bus of the device, and all devices there. `groups` must be the groups of all of them for a
    /// device that was opened through its group, and empty for a device with a node of its own: the kernel knows the
    /// iommufd of that one (linux: drivers/vfio/pci/vfio_pci_core.c, vfio_pci_ioctl_pci_hot_reset).
    ///
    /// # Errors
    /// The kernel's answer: `EINVAL` unless the groups, or the iommufd, own every affected device; `ENODEV` for a
    /// device whose slot and bus cannot be reset; `EBUSY` while a BAR of one of the devices is being accessed. `EBADF`
    /// for a group of another door.
    pub fn hot_reset(&self, groups: &[&VfioGroup]) -> Result<(), DeviceError> {
        self.try_to_hot_reset(groups).map_err(|failure| self.error(Action::HotReset, failure))
    }

    fn try_to_hot_reset(&self, groups: &[&VfioGroup]) -> Result<(), Failure> {
        if groups.iter().any(|group| !Arc::ptr_eq(group.door(), &self.door)) {
            return Err(refused(Errno::EBADF));
        }
        let count = u32::try_from(groups.len()).map_err(|_| refused(Errno::EINVAL))?;
        let len = size_of::<HotReset>() + size_of::<i32>() * groups.len();
        let argsz = u32::try_from(len).map_err(|_| refused(Errno::EINVAL))?;
        let mut bytes = HotReset { argsz, flags: 0, count }.as_bytes().to_vec();
        bytes.resize(len, 0);
        let handles: Vec<_> = groups.iter().map(|group| group.handle()).collect();
        let mut attached = Vec::new();
        if !handles.is_empty() {
            attached.push(Attachment { offset: size_of::<HotReset>(), what: Attached::Handles(&handles) });
        }
        self.door.call(self.handle, Command::with_bytes(DEVICE_PCI_HOT_RESET, &mut bytes).attaching(&mut attached))
    }
}

/// A question with room for so many devices.
fn question(devices: usize) -> Vec<u8> {
    let len = size_of::<HotResetInfo>() + devices * size_of::<DependentDevice>();
    let argsz = u32::try_from(len).unwrap_or(u32::MAX);
    let mut bytes = HotResetInfo { argsz, ..HotResetInfo::default() }.as_bytes().to_vec();
    bytes.resize(len, 0);
    bytes
}

pub(super) fn parse(reply: &[u8]) -> Result<AffectedDevices, &'static str> {
    let (info, rest) = HotResetInfo::read_from_prefix(reply).map_err(|_| "it is shorter than its struct")?;
    let len = (info.count as usize).checked_mul(size_of::<DependentDevice>());
    let list = len.and_then(|len| rest.get(..len)).ok_or("its list of devices is cut off")?;
    let by_id = info.flags & HOT_RESET_DEV_ID != 0;
    let mut devices = Vec::new();
    for bytes in list.chunks_exact(size_of::<DependentDevice>()) {
        let found = DependentDevice::read_from_bytes(bytes).map_err(|_| "its list of devices is cut off")?;
        devices.push(AffectedDevice { address: address(found)?, owner: owner(found.owner, by_id) });
    }
    let all_owned = by_id.then_some(info.flags & HOT_RESET_DEV_ID_OWNED != 0);
    Ok(AffectedDevices { devices, all_owned })
}

fn address(found: DependentDevice) -> Result<PciAddress, &'static str> {
    let (device, function) = (found.devfn >> 3, found.devfn & 7);
    let address = PciAddress::new(found.segment.into(), found.bus, device, function);
    address.ok_or("the address of a device cannot be true")
}

fn owner(number: u32, by_id: bool) -> AffectedOwner {
    match number {
        group if !by_id => AffectedOwner::Group(group),
        DEV_ID_OWNED => AffectedOwner::OfBoundGroup,
        DEV_ID_NOT_OWNED => AffectedOwner::Other,
        id => AffectedOwner::Bound(DeviceId::new(id)),
    }
}

fn malformed(why: &'static str) -> Failure {
    Failure::malformed(DEVICE_GET_PCI_HOT_RESET_INFO.name, why)
}

fn refused(errno: Errno) -> Failure {
    Failure::from_errno(DEVICE_PCI_HOT_RESET.name, errno)
}
