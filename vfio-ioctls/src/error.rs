//! The error of the original, with its variants.

use std::io;

use dmaspace::door::Errno;
use thiserror::Error;
use vmm_sys_util::errno::Error as SysError;

/// A failed operation.
///
/// Exhaustive: the original's variants.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the text of each says it")]
pub enum VfioError {
    #[error("cannot open the container: {0}")]
    OpenContainer(#[source] io::Error),
    #[error("cannot open the group {1}: {0}")]
    OpenGroup(#[source] io::Error, String),
    #[error("cannot read the status of the group")]
    GetGroupStatus,
    #[error("the group is not viable: bind all its devices to vfio-pci")]
    GroupViable,
    #[error("the kernel speaks another version of VFIO")]
    VfioApiVersion,
    #[error("the kernel lacks an extension of VFIO")]
    VfioExtension,
    #[error("the type of the IOMMU driver is unknown")]
    VfioInvalidType,
    #[error("the kernel has no IOMMU driver for the container")]
    VfioType1V2,
    #[error("cannot attach the group")]
    GroupSetContainer,
    #[error("cannot detach the group")]
    UnsetContainer,
    #[error("cannot choose the IOMMU driver of the container: {0}")]
    ContainerSetIOMMU(#[source] SysError),
    #[error("cannot open the device: {0}")]
    GroupGetDeviceFD(#[source] SysError),
    #[error("the hypervisor's VFIO device refuses the group: {0}")]
    SetDeviceAttr(#[source] SysError),
    #[error("cannot describe the device: {0}")]
    VfioDeviceGetInfo(#[source] SysError),
    #[error("the PCI device lacks a configuration space or interrupts")]
    VfioDeviceGetInfoPCI,
    #[error("the device is neither a PCI nor a platform device")]
    VfioDeviceGetInfoOther,
    #[error("cannot describe a region: {0}")]
    VfioDeviceGetRegionInfo(#[source] SysError),
    #[error("the path names no device with a group")]
    InvalidPath,
    #[error("cannot map memory: {0}")]
    IommuDmaMap(#[source] SysError),
    #[error("cannot unmap memory: {0}")]
    IommuDmaUnmap(#[source] SysError),
    #[error("cannot describe interrupts")]
    VfioDeviceGetIrqInfo,
    #[error("cannot set interrupts")]
    VfioDeviceSetIrq,
    #[error("cannot enable interrupts")]
    VfioDeviceEnableIrq,
    #[error("cannot disable interrupts")]
    VfioDeviceDisableIrq,
    #[error("cannot unmask an interrupt")]
    VfioDeviceUnmaskIrq,
    #[error("cannot trigger an interrupt")]
    VfioDeviceTriggerIrq,
    #[error("cannot set the resample eventfd of an interrupt")]
    VfioDeviceSetIrqResampleFd,
    #[error("cannot duplicate a descriptor")]
    VfioDeviceDupFd,
    #[error("the descriptor is of another hypervisor")]
    VfioDeviceFdWrongType,
    #[error("a region of guest memory has no host address")]
    GetHostAddress,
    #[error("less was unmapped than was to be")]
    InvalidDmaUnmapSize,
    #[error("the operations are of a type that this crate does not know")]
    DowncastVfioOps,
    #[error("a feature of the device is refused: {0}")]
    VfioDeviceFeature(#[source] SysError),
    #[error("cannot estimate the data of the migration: {0}")]
    VfioMigGetPrecopyInfo(#[source] SysError),
    #[error("no migration is under way")]
    NoMigrationDataFd,
    #[error("cannot read or write the data of the migration: {0}")]
    VfioMigrationDataIo(#[source] io::Error),
    #[error("the device does not log its writes")]
    DmaLoggingNotStarted,
    #[error("the device logs its writes already")]
    DmaLoggingAlreadyStarted,
    #[error("the log cannot have that: {0}")]
    DmaLoggingInvalidArgument(&'static str),
}

/// The result of an operation.
pub type Result<T> = std::result::Result<T, VfioError>;

/// An errno as the original's errors hold it.
pub(crate) fn sys(errno: Errno) -> SysError {
    SysError::new(errno.0)
}
