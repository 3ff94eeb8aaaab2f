//! Obstacles: the reasons why a backend was not chosen, each with its remedy.

use std::fmt;

use dmaspace_core::IovaRange;
use dmaspace_core::door::Failure;

use crate::backend_kind::BackendKind;
use crate::facts::{CONTAINER_NODE, Platform};
use crate::pci::PciAddress;

/// A reason why a backend was not chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obstacle {
    /// It fits, but another backend was requested.
    AskedForAnother(BackendKind),
    /// It fits, but this one is preferred.
    Better(BackendKind),
    /// It is a backend of another crate, which this library cannot open.
    Foreign(&'static str),
    /// It does not exist on this kind of machine.
    Platform(Platform),
    /// A node is missing.
    NoNode {
        /// The node.
        path: &'static str,
        /// The module that creates the node, as `modprobe` knows it.
        module: &'static str,
    },
    /// The module of this IOMMU driver is not loaded, so no container can use the driver.
    NoDriver(&'static str),
    /// The device does not exist.
    NoDevice(PciAddress),
    /// The device is in no IOMMU group: it is behind no IOMMU, or the IOMMU is off.
    NoGroup(PciAddress, Platform),
    /// The device's group is one of VFIO's groups without an IOMMU.
    NoIommu(PciAddress),
    /// The firmware needs memory of the group's devices mapped one to one, which no process may undo (linux:
    /// drivers/iommu/iommu.c, IOMMU_RESV_DIRECT).
    Firmware {
        /// The group.
        group: u32,
        /// The direct region.
        range: IovaRange,
    },
    /// The device is bound to this driver, which is none of VFIO's, or to none.
    Unbound(PciAddress, Option<String>),
    /// Another device of the group is bound to a driver that may do DMA.
    Neighbour {
        /// The group.
        group: u32,
        /// The other device.
        device: PciAddress,
        /// The driver of the other device.
        driver: String,
    },
    /// The group has no node, although its device is bound to a VFIO driver.
    NoGroupNode(u32),
    /// The device has no node of its own.
    NoDeviceNode(PciAddress),
    /// The devices are in several groups, but an address space takes one group: on a pseries host, and with sPAPR's
    /// first version.
    SeveralGroups(Vec<u32>),
    /// The kernel advertises it, and refused it when it was tried.
    Refused(Failure),
}

impl Obstacle {
    /// The remedy.
    pub fn fix(&self) -> String {
        match self {
            Self::AskedForAnother(_) | Self::Better(_) => "request it by name".to_owned(),
            Self::Foreign(_) => "open it with its own crate, and use OpenSpace::around".to_owned(),
            Self::Platform(_) => "none: use another backend".to_owned(),
            Self::NoNode { module, .. } => {
                format!("modprobe {module}; if there is no such module, use a kernel that has it")
            }
            Self::NoDriver(module) => format!("modprobe {module}"),
            Self::NoDevice(_) => "look for it with lspci -D; a hot-plugged one may need a rescan".to_owned(),
            Self::NoGroup(_, Platform::X86_64) => {
                "turn the IOMMU on in the firmware, and in the kernel with intel_iommu=on or amd_iommu=on".to_owned()
            }
            Self::NoGroup(..) => "use a kernel with an IOMMU driver for this machine".to_owned(),
            Self::NoIommu(_) => "turn the IOMMU on: without one a device can reach all of the host's memory".to_owned(),
            Self::Firmware { .. } => {
                "update the firmware, or turn off in its setup what uses the device: the kernel has \
                                      no switch for it"
                    .to_owned()
            }
            Self::Unbound(address, driver) => bind_to_vfio(*address, driver.as_deref()),
            Self::Neighbour { device, driver, .. } => bind_to_vfio(*device, Some(driver)),
            Self::NoGroupNode(number) => {
                format!("use a kernel with CONFIG_VFIO_GROUP, or create /dev/vfio/{number}")
            }
            Self::NoDeviceNode(_) => {
                "use a kernel with CONFIG_VFIO_DEVICE_CDEV, or create the node in /dev/vfio/devices".to_owned()
            }
            Self::SeveralGroups(_) => "give each group an address space of its own".to_owned(),
            Self::Refused(_) => "use a kernel that can create DMA windows on this machine".to_owned(),
        }
    }
}

/// The commands that bind a device to vfio-pci.
fn bind_to_vfio(address: PciAddress, driver: Option<&str>) -> String {
    let device = format!("/sys/bus/pci/devices/{address}");
    let unbind = match driver {
        Some(_) => format!("echo {address} > {device}/driver/unbind; "),
        None => String::new(),
    };
    let bind = format!("echo vfio-pci > {device}/driver_override; echo {address} > /sys/bus/pci/drivers_probe");
    format!("modprobe vfio-pci; {unbind}{bind}")
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AskedForAnother(other) => write!(f, "{other} was requested"),
            Self::Better(other) => write!(f, "{other} is preferred here"),
            Self::Foreign(name) => write!(f, "{name} is a backend of another crate"),
            Self::Platform(platform) => write!(f, "{platform} machines have none"),
            Self::NoNode { path, .. } => write!(f, "{path} is missing"),
            Self::NoDriver(module) => write!(f, "{CONTAINER_NODE} knows no {module}"),
            Self::NoDevice(address) => write!(f, "there is no device {address}"),
            Self::NoGroup(address, _) => write!(f, "{address} is in no IOMMU group"),
            Self::NoIommu(address) => write!(f, "{address} is behind no IOMMU, only in a group without one"),
            Self::Firmware { group, range } => {
                write!(f, "the firmware needs {range} mapped one to one for the devices of group {group}")
            }
            Self::Unbound(address, None) => write!(f, "{address} is bound to no driver"),
            Self::Unbound(address, Some(driver)) => write!(f, "{address} is bound to {driver}"),
            Self::Neighbour { group, device, driver } => {
                write!(f, "group {group} is shared with {device}, which is bound to {driver}")
            }
            Self::NoGroupNode(number) => write!(f, "/dev/vfio/{number} is missing"),
            Self::NoDeviceNode(address) => write!(f, "{address} has no node in /dev/vfio/devices"),
            Self::SeveralGroups(groups) => {
                write!(f, "an address space takes one group, and the devices are in groups {groups:?}")
            }
            Self::Refused(failure) => write!(f, "the kernel advertises it, and refused it: {failure}"),
        }
    }
}
