//! Advice for errors of devices: the usual cause of an errno, and its remedy.

use dmaspace_core::door::Errno;

use crate::device::action::Action;

/// The advice for an errno of an action.
pub(super) fn advice(action: Action, errno: Errno) -> Option<&'static str> {
    Some(match (action, errno) {
        (Action::Read(_) | Action::Write(_), Errno::EIO) => "enable the device's memory first (Device::enable)",
        (Action::SetIrqs(_), Errno::EINVAL) => {
            "of INTx, MSI and MSI-X one is enabled at a time: disable the other, stay below the number that \
             Device::irqs returns, and pass eventfds"
        }
        (Action::SetIrqs(_), Errno::ENOTTY) => "mask and unmask these interrupts in the device itself",
        (Action::SetIrqs(_), Errno::EBUSY) => "remove the earlier eventfd first",
        (Action::Reset, Errno::EINVAL) => "the device cannot be reset alone: use Device::hot_reset",
        (Action::Reset, Errno::EAGAIN) => "the kernel was using the device: try again",
        (Action::HotReset, Errno::EINVAL) => {
            "pass the groups of all devices that Device::affected_by_hot_reset lists, or bind all of them to the same \
             iommufd"
        }
        (Action::HotReset, Errno::EBUSY) => "a BAR of an affected device was being accessed: try again",
        (Action::HotReset | Action::DescribeHotReset, Errno::ENODEV) => "neither its slot nor its bus can be reset",
        (Action::SetToken, Errno::ENOTTY) => "only a physical function with SR-IOV enabled in vfio-pci has a token",
        (Action::Migration, Errno::ENOTTY) => {
            "the driver cannot do this: bind the device to its vendor's VFIO driver, such as mlx5_vfio_pci"
        }
        (Action::Migration, Errno::EINVAL) => {
            "ask Device::migration for the states that the device has, and Device::migration_state for the present one"
        }
        (Action::Logging, Errno::ENOTTY) => {
            "the device has no log of its own: let the IOMMU log, or count all as written"
        }
        (Action::Logging, Errno::E2BIG) => "merge ranges: the device logs fewer",
        (Action::Export(_), Errno::ENOTTY | Errno::EOPNOTSUPP) => "this kernel or device has no exports",
        _ => return None,
    })
}
