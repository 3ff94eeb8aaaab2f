//! Advice for errors of opening and attaching: the usual cause of an errno, and its remedy.

use dmaspace_core::Error;
use dmaspace_core::door::{Errno, Failure};
use dmaspace_core::error::Kind;

/// Advice for opening a node.
pub(crate) fn node_advice(errno: Errno) -> Option<&'static str> {
    Some(match errno {
        Errno::ENOENT => "bind the device to vfio-pci, which creates the node; the module iommufd creates /dev/iommu",
        Errno::ENODEV | Errno::ENXIO => "load the module behind the node",
        Errno::EACCES | Errno::EPERM => "give this user access to the node, with chown or a udev rule",
        Errno::EBUSY => "another process, or another space of this one, has it open",
        Errno::EMFILE => "raise RLIMIT_NOFILE",
        _ => return None,
    })
}

/// Advice for a refused attach, whose causes the space itself does not know.
pub(crate) fn attach_advice(error: &Error) -> Option<&'static str> {
    if error.kind() == Kind::Refused { call_advice(error.failure().as_ref()?) } else { None }
}

/// Advice for a call that the kernel refused.
pub(crate) fn call_advice(failure: &Failure) -> Option<&'static str> {
    let (call, errno) = (failure.call(), failure.errno()?);
    let known = CALLS.iter().find(|(known, of, _)| *known == call && *of == errno);
    known.map(|(_, _, advice)| *advice)
}

/// The advice for each call and errno that has a usual cause.
const CALLS: [(&str, Errno, &str); 18] = [
    ("VFIO_GROUP_SET_CONTAINER", Errno::EPERM, BIND_ALL),
    ("VFIO_GROUP_GET_DEVICE_FD", Errno::EPERM, BIND_ALL),
    (
        "VFIO_GROUP_GET_DEVICE_FD",
        Errno::EACCES,
        "put the VF token of its physical function behind the device's name: '0000:01:00.1 vf_token=<uuid>'",
    ),
    (
        "VFIO_GROUP_SET_CONTAINER",
        Errno::EINVAL,
        "look for a direct region in the group's reserved_regions in /sys/kernel/iommu_groups: with one the firmware \
         keeps the device",
    ),
    (
        "VFIO_GROUP_SET_CONTAINER",
        Errno::EBUSY,
        "give the group a container of its own: one of spapr-v1 takes no second group",
    ),
    ("VFIO_SET_IOMMU", Errno::ENODEV, "modprobe vfio_iommu_type1, or on POWER vfio_iommu_spapr_tce"),
    (
        "VFIO_SET_IOMMU",
        Errno::EPERM,
        "interrupts are not isolated on this host; if you trust the guest, load vfio_iommu_type1 with \
         allow_unsafe_interrupts=1; up to Linux 6.5 it is also the answer where the firmware keeps the device, with a \
         direct region in the group's reserved_regions",
    ),
    (
        "VFIO_DEVICE_BIND_IOMMUFD",
        Errno::EPERM,
        "bind all devices of the group to vfio-pci; if interrupts are not isolated on this host and you trust the \
         guest, load iommufd with allow_unsafe_interrupts=1",
    ),
    ("VFIO_DEVICE_BIND_IOMMUFD", Errno::EBUSY, "another process has the group of the device open"),
    (
        "VFIO_DEVICE_BIND_IOMMUFD",
        Errno::EINVAL,
        "another process, or another space of this one, has the device open, or the firmware keeps it, with a direct \
         region in the group's reserved_regions",
    ),
    ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", Errno::EADDRINUSE, UNMAP_RESERVED),
    ("VFIO_GROUP_GET_DEVICE_FD", Errno::EADDRINUSE, UNMAP_RESERVED),
    ("IOMMU_OPTION", Errno::EPERM, "grant CAP_SYS_RESOURCE, or leave the accounting to the user's limit"),
    ("IOMMU_OPTION", Errno::EBUSY, "set the accounting mode right after opening: the first object fixes it"),
    ("IOMMU_OPTION", Errno::EOPNOTSUPP, "this kernel's iommufd lacks the option"),
    ("IOMMU_IOAS_ALLOW_IOVAS", Errno::EINVAL, "require ranges that do not overlap and are longer than one byte"),
    (
        "IOMMU_IOAS_ALLOW_IOVAS",
        Errno::EADDRINUSE,
        "an attached device does not reach all of the required range: require less",
    ),
    ("VFIO_GROUP_GET_DEVICE_FD", Errno::ENODEV, "check that the device is still bound to vfio-pci"),
];

const BIND_ALL: &str = "bind all devices of the group to vfio-pci";

const UNMAP_RESERVED: &str =
    "unmap the mappings in the device's reserved regions first, and require none of these regions";
