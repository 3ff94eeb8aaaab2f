//! Hot reset of a PCI slot or bus (linux: include/uapi/linux/vfio.h; drivers/vfio/pci/vfio_pci_core.c).

use std::mem::offset_of;

use dmaspace_core::door::Request;
use vfio_bindings::bindings::vfio as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::vfio::BASE;

/// Device: fills a [`HotResetInfo`] and the [`DependentDevice`]s behind it. `ENOSPC` with their number in `count` if
/// there is no room for them.
pub const DEVICE_GET_PCI_HOT_RESET_INFO: Request = Request::vfio(BASE + 12, "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO");
/// Device: resets the slot or bus ([`HotReset`]).
pub const DEVICE_PCI_HOT_RESET: Request = Request::vfio(BASE + 13, "VFIO_DEVICE_PCI_HOT_RESET");

const _: () = {
    assert!(DEVICE_GET_PCI_HOT_RESET_INFO.is(0x3b70));
    assert!(DEVICE_PCI_HOT_RESET.is(0x3b71));
};

/// The head of the argument of and reply to [`DEVICE_GET_PCI_HOT_RESET_INFO`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HotResetInfo {
    /// The size of the buffer.
    pub argsz: u32,
    /// [`HOT_RESET_DEV_ID`], [`HOT_RESET_DEV_ID_OWNED`].
    pub flags: u32,
    /// The number of affected devices.
    pub count: u32,
}

/// The affected devices are named by their ids in the iommufd of the device that was asked, not by their groups.
pub const HOT_RESET_DEV_ID: u32 = kernel::VFIO_PCI_HOT_RESET_FLAG_DEV_ID;
/// The iommufd owns all affected devices, so that a reset is allowed.
pub const HOT_RESET_DEV_ID_OWNED: u32 = kernel::VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED;

/// A device that a hot reset affects.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DependentDevice {
    /// The number of its group; with [`HOT_RESET_DEV_ID`] its id in the iommufd, [`DEV_ID_OWNED`] or
    /// [`DEV_ID_NOT_OWNED`].
    pub owner: u32,
    /// The PCI segment.
    pub segment: u16,
    /// The bus.
    pub bus: u8,
    /// The device in the high 5 bits, the function in the low 3.
    pub devfn: u8,
}

/// The device is not bound, but another device of its group is bound to the iommufd.
pub const DEV_ID_OWNED: u32 = kernel::VFIO_PCI_DEVID_OWNED;
/// The iommufd does not own the device.
pub const DEV_ID_NOT_OWNED: u32 = u32::MAX;

const _: () = assert!(kernel::VFIO_PCI_DEVID_NOT_OWNED == -1);

/// The head of the argument of [`DEVICE_PCI_HOT_RESET`]. The descriptors of the groups that own the affected devices
/// follow; none for a device with a node of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HotReset {
    /// [`HotReset::SIZE`] and the bytes of the descriptors.
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// The number of descriptors.
    pub count: u32,
}

laid_out_as!(HotResetInfo, kernel::vfio_pci_hot_reset_info { argsz, flags, count });
laid_out_as!(DependentDevice, kernel::vfio_pci_dependent_device { owner as __bindgen_anon_1, segment, bus, devfn });
laid_out_as!(HotReset, kernel::vfio_pci_hot_reset { argsz, flags, count });

const _: () = {
    assert!(size_of::<HotResetInfo>() == offset_of!(kernel::vfio_pci_hot_reset_info, devices));
    assert!(size_of::<HotReset>() == offset_of!(kernel::vfio_pci_hot_reset, group_fds));
};
