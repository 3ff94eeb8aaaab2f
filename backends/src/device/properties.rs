//! The kernel's description of a whole device.

use dmaspace_abi::chain::{self, Capability, ChainError};
use dmaspace_abi::device::{
    AtomicCompletion, DEVICE_CAP_ATOMIC_COMPLETION, DEVICE_GET_INFO, DEVICE_HAS_CAPABILITIES, DEVICE_HAS_RESET,
    DEVICE_IS_AMBA, DEVICE_IS_AP, DEVICE_IS_CCW, DEVICE_IS_CDX, DEVICE_IS_FSL_MC, DEVICE_IS_PCI, DEVICE_IS_PLATFORM,
    DeviceInfo,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::device::reply::{self, Reply};
use crate::device::{Action, Device, DeviceError};

/// The kernel's description of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceProperties {
    /// The bus of the device.
    pub kind: DeviceKind,
    /// `true` if [`Device::reset`] works.
    pub can_reset: bool,
    /// The number of regions. A PCI device has nine, and its own behind them; some may be 0 bytes long.
    pub regions: u32,
    /// The number of kinds of interrupt. A PCI device has five.
    pub irqs: u32,
    /// The capabilities.
    pub capabilities: Vec<DeviceCapability>,
    /// All flags, as the kernel returns them (linux: include/uapi/linux/vfio.h, struct vfio_device_info).
    pub flags: u32,
}

/// The bus of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// A PCI function, or a mediated device that looks like one.
    Pci,
    /// A platform device.
    Platform,
    /// A device on an AMBA bus (Arm).
    Amba,
    /// A channel I/O device (s390).
    Ccw,
    /// An adjunct processor (s390).
    Ap,
    /// A device on a Freescale management complex bus.
    FslMc,
    /// A device on a CDX bus (AMD).
    Cdx,
    /// A kind that this library does not know.
    Unknown,
}

/// A capability of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceCapability {
    /// The atomic operations that the device's root port completes (linux: drivers/vfio/pci/vfio_pci_core.c,
    /// vfio_pci_info_atomic_cap).
    AtomicCompletion {
        /// Operations of 32 bits.
        of_32_bits: bool,
        /// Operations of 64 bits.
        of_64_bits: bool,
        /// Operations of 128 bits.
        of_128_bits: bool,
    },
    /// A capability that this library does not know, such as those of zPCI devices.
    Unknown {
        /// The number of the capability.
        id: u16,
        /// The version of its layout.
        version: u16,
    },
}

impl Device {
    /// Describes the device: its bus, the number of its regions and kinds of interrupt, and its capabilities (linux:
    /// drivers/vfio/pci/vfio_pci_core.c, vfio_pci_ioctl_get_info).
    ///
    /// # Errors
    /// The kernel's answer, or a description that cannot be true.
    pub fn properties(&self) -> Result<DeviceProperties, DeviceError> {
        let head = DeviceInfo::default();
        let described = reply::ask(&*self.door, self.handle, DEVICE_GET_INFO, head.as_bytes(), parse);
        described.map_err(|failure| self.error(Action::DescribeDevice, failure))
    }
}

pub(super) fn parse(reply: &[u8]) -> Result<Reply<DeviceProperties>, &'static str> {
    let (info, _) = DeviceInfo::read_from_prefix(reply).map_err(|_| "it is shorter than its struct")?;
    let has_capabilities = info.flags & DEVICE_HAS_CAPABILITIES != 0;
    if has_capabilities && info.cap_offset == 0 {
        let grew = info.argsz as usize > reply.len();
        return if grew { Ok(Reply::Needs(info.argsz)) } else { Err("its capabilities are nowhere") };
    }
    let first = if has_capabilities { info.cap_offset } else { 0 };
    let chain = chain::capabilities(reply, size_of::<DeviceInfo>(), first).map_err(ChainError::reason)?;
    let mut capabilities = Vec::new();
    for found in &chain {
        capabilities.push(capability(found)?);
    }
    Ok(Reply::Complete(DeviceProperties {
        kind: kind(info.flags),
        can_reset: info.flags & DEVICE_HAS_RESET != 0,
        regions: info.num_regions,
        irqs: info.num_irqs,
        capabilities,
        flags: info.flags,
    }))
}

fn capability(found: &Capability<'_>) -> Result<DeviceCapability, &'static str> {
    if found.header.id != DEVICE_CAP_ATOMIC_COMPLETION {
        return Ok(DeviceCapability::Unknown { id: found.header.id, version: found.header.version });
    }
    let (atomic, _) = AtomicCompletion::read_from_prefix(found.bytes).map_err(|_| "a capability is cut off")?;
    Ok(DeviceCapability::AtomicCompletion {
        of_32_bits: atomic.flags & 1 != 0,
        of_64_bits: atomic.flags & 2 != 0,
        of_128_bits: atomic.flags & 4 != 0,
    })
}

fn kind(flags: u32) -> DeviceKind {
    let kinds = [
        (DEVICE_IS_PCI, DeviceKind::Pci),
        (DEVICE_IS_PLATFORM, DeviceKind::Platform),
        (DEVICE_IS_AMBA, DeviceKind::Amba),
        (DEVICE_IS_CCW, DeviceKind::Ccw),
        (DEVICE_IS_AP, DeviceKind::Ap),
        (DEVICE_IS_FSL_MC, DeviceKind::FslMc),
        (DEVICE_IS_CDX, DeviceKind::Cdx),
    ];
    kinds.iter().find(|(flag, _)| flags & flag != 0).map_or(DeviceKind::Unknown, |(_, kind)| *kind)
}
