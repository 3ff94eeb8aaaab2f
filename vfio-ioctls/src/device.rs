//! A device, behind the original's functions.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dmaspace::device::{
    Device, DeviceError, DeviceKind, IrqAction, IrqData, IrqIndex, MigrationData, MigrationState, Region,
};
use dmaspace::door::{Descriptor, Errno};
use dmaspace::{Access, Iova, IovaRange, PageSize};
use vmm_sys_util::eventfd::EventFd;

use crate::error::sys;
use crate::{Result, VfioContainer, VfioError, VfioOps, VfioRegionInfoCap};

/// A region of a device.
#[derive(Clone, Debug)]
pub struct VfioRegion {
    region: Region,
    caps: Vec<VfioRegionInfoCap>,
}

/// A kind of interrupt.
///
/// Exhaustive: the original's fields.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct VfioIrq {
    /// The kernel's flags.
    pub flags: u32,
    /// The index of the kind.
    pub index: u32,
    /// The number of interrupts.
    pub count: u32,
}

/// An estimate of the data that is left to read while the device runs.
///
/// Exhaustive: the original's fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrecopyInfo {
    /// The bytes of the initial data.
    pub initial_bytes: u64,
    /// The bytes that changed since they were read.
    pub dirty_bytes: u64,
}

/// A range of bus addresses whose writes are logged.
///
/// Exhaustive: the original's fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DmaLoggingRange {
    /// The first address.
    pub iova: u64,
    /// The length in bytes.
    pub length: u64,
}

/// An open device. Dropping it closes it, and its group with the last device of the group.
pub struct VfioDevice {
    /// `None` while the device is being closed.
    device: Option<Device>,
    descriptor: Option<Descriptor>,
    can_reset: bool,
    regions: BTreeMap<u32, VfioRegion>,
    irqs: HashMap<u32, VfioIrq>,
    ops: Arc<dyn VfioOps>,
    migration: Mutex<Option<MigrationData>>,
    is_logging: Mutex<bool>,
}

/// The regions and interrupts that a PCI device must have at least: up to the configuration space, and up to MSI-X.
const PCI_LEAST: (u32, u32) = (8, 3);
/// The region that only graphics cards have.
const VGA: u32 = 8;

impl VfioDevice {
    /// Opens the device at a path of sysfs into `vfio_ops`, a [`VfioContainer`]. `_attach_ioas` concerns iommufd alone.
    ///
    /// # Errors
    /// [`VfioError::DowncastVfioOps`] for other operations, [`VfioError::InvalidPath`]; those of opening and describing
    /// the device.
    #[cfg(feature = "v0_10")]
    pub fn new(sysfspath: &Path, vfio_ops: Arc<dyn VfioOps>, _attach_ioas: bool) -> Result<Self> {
        Self::open(sysfspath, vfio_ops)
    }

    /// Opens the device at a path of sysfs into `vfio_ops`, a [`VfioContainer`].
    ///
    /// # Errors
    /// [`VfioError::DowncastVfioOps`] for other operations, [`VfioError::InvalidPath`]; those of opening and describing
    /// the device.
    #[cfg(not(feature = "v0_10"))]
    pub fn new(sysfspath: &Path, vfio_ops: Arc<dyn VfioOps>) -> Result<Self> {
        Self::open(sysfspath, vfio_ops)
    }

    fn open(sysfspath: &Path, ops: Arc<dyn VfioOps>) -> Result<Self> {
        let device = container_of(&*ops)?.open(sysfspath)?;
        Self::of(device, ops)
    }

    /// Describes an open device.
    pub(crate) fn of(device: Device, ops: Arc<dyn VfioOps>) -> Result<Self> {
        let mut opened = Self {
            descriptor: device.descriptor().ok(),
            device: Some(device),
            can_reset: false,
            regions: BTreeMap::new(),
            irqs: HashMap::new(),
            ops,
            migration: Mutex::new(None),
            is_logging: Mutex::new(false),
        };
        opened.describe()?;
        Ok(opened)
    }

    fn describe(&mut self) -> Result<()> {
        let described = self.open_device()?.properties();
        let properties = described.map_err(|error| VfioError::VfioDeviceGetInfo(sys(error.as_errno())))?;
        match properties.kind {
            DeviceKind::Platform => {}
            DeviceKind::Pci if properties.regions >= PCI_LEAST.0 && properties.irqs >= PCI_LEAST.1 => {}
            DeviceKind::Pci => return Err(VfioError::VfioDeviceGetInfoPCI),
            _ => return Err(VfioError::VfioDeviceGetInfoOther),
        }
        self.can_reset = properties.can_reset;
        for index in 0..properties.regions {
            self.describe_region(index);
        }
        for index in 0..properties.irqs {
            self.describe_irqs(index);
        }
        Ok(())
    }

    /// A region that cannot be described counts as absent.
    fn describe_region(&mut self, index: u32) {
        match self.open_device().map(|device| device.region(index)) {
            Ok(Ok(region)) => {
                let caps = region.capabilities.iter().filter_map(VfioRegionInfoCap::of).collect();
                self.regions.insert(index, VfioRegion { region, caps });
            }
            Ok(Err(error)) if index == VGA && error.errno() == Some(Errno::EINVAL) => {}
            Ok(Err(error)) => log::error!("{error}"),
            Err(error) => log::error!("{error}"),
        }
    }

    /// A kind of interrupt that cannot be described counts as absent.
    fn describe_irqs(&mut self, index: u32) {
        match self.open_device().map(|device| device.irqs(IrqIndex(index))) {
            Ok(Ok(irqs)) => {
                self.irqs.insert(index, VfioIrq { flags: irqs.flags, index, count: irqs.count });
            }
            Ok(Err(error)) => log::warn!("{error}"),
            Err(error) => log::warn!("{error}"),
        }
    }

    fn open_device(&self) -> Result<&Device> {
        debug_assert!(self.device.is_some(), "a device is used while it is being closed");
        self.device.as_ref().ok_or(VfioError::VfioDeviceGetInfo(sys(Errno::EBADF)))
    }

    /// The id of the device in an iommufd. `None`: this crate opens devices through their groups.
    pub fn iommufd_dev_id(&self) -> Option<u32> {
        None
    }

    /// Resets the device, if it can be reset alone.
    pub fn reset(&self) {
        if !self.can_reset {
            return;
        }
        if let Ok(Err(error)) = self.open_device().map(Device::reset) {
            log::warn!("{error}");
        }
    }

    /// Describes a kind of interrupt. `None` for one that the device does not have.
    pub fn get_irq_info(&self, irq_index: u32) -> Option<&VfioIrq> {
        self.irqs.get(&irq_index)
    }

    /// Delivers an interrupt as if the device had raised it.
    ///
    /// # Errors
    /// [`VfioError::VfioDeviceTriggerIrq`].
    pub fn trigger_irq(&self, irq_index: u32, vector: u32) -> Result<()> {
        let irq = self.irqs.get(&irq_index).filter(|irq| vector < irq.count);
        let index = irq.ok_or(VfioError::VfioDeviceTriggerIrq)?.index;
        let set = self.open_device()?.trigger_irqs(IrqIndex(index), vector, 1);
        reported(set, VfioError::VfioDeviceTriggerIrq)
    }

    /// Enables a kind of interrupt, and signals an eventfd for each interrupt from the first on.
    ///
    /// # Errors
    /// [`VfioError::VfioDeviceEnableIrq`].
    pub fn enable_irq(&self, irq_index: u32, event_fds: Vec<&EventFd>) -> Result<()> {
        let irq = self.irqs.get(&irq_index).filter(|irq| irq.count > 0 && event_fds.len() <= irq.count as usize);
        let index = irq.ok_or(VfioError::VfioDeviceEnableIrq)?.index;
        let set = self.open_device()?.deliver_irqs(IrqIndex(index), 0, &borrowed(&event_fds));
        reported(set, VfioError::VfioDeviceEnableIrq)
    }

    /// Unmasks INTx when the eventfd is signalled.
    ///
    /// # Errors
    /// [`VfioError::VfioDeviceSetIrqResampleFd`].
    pub fn set_irq_resample_fd(&self, irq_index: u32, event_rfds: Vec<&EventFd>) -> Result<()> {
        let is_intx = self.is_single_intx(irq_index) && event_rfds.len() <= 1;
        if !is_intx {
            return Err(VfioError::VfioDeviceSetIrqResampleFd);
        }
        let set = self.open_device()?.unmask_irqs_by(IrqIndex(irq_index), 0, &borrowed(&event_rfds));
        reported(set, VfioError::VfioDeviceSetIrqResampleFd)
    }

    /// Disables a kind of interrupt.
    ///
    /// # Errors
    /// [`VfioError::VfioDeviceDisableIrq`].
    pub fn disable_irq(&self, irq_index: u32) -> Result<()> {
        let irq = self.irqs.get(&irq_index).filter(|irq| irq.count > 0);
        let index = irq.ok_or(VfioError::VfioDeviceDisableIrq)?.index;
        reported(self.open_device()?.disable_irqs(IrqIndex(index)), VfioError::VfioDeviceDisableIrq)
    }

    /// Unmasks INTx.
    ///
    /// # Errors
    /// [`VfioError::VfioDeviceUnmaskIrq`].
    pub fn unmask_irq(&self, irq_index: u32) -> Result<()> {
        if !self.is_single_intx(irq_index) {
            return Err(VfioError::VfioDeviceUnmaskIrq);
        }
        let set = self.open_device()?.set_irqs(IrqIndex(irq_index), 0, IrqAction::Unmask, IrqData::All(1));
        reported(set, VfioError::VfioDeviceUnmaskIrq)
    }

    /// Returns whether `index` is INTx and the device has it.
    fn is_single_intx(&self, index: u32) -> bool {
        IrqIndex(index) == IrqIndex::INTX && self.irqs.get(&index).is_some_and(|irq| irq.count == 1)
    }

    /// Enables MSI.
    ///
    /// # Errors
    /// [`VfioError::VfioDeviceEnableIrq`].
    pub fn enable_msi(&self, fds: Vec<&EventFd>) -> Result<()> {
        self.enable_irq(IrqIndex::MSI.0, fds)
    }

    /// Disables MSI.
    ///
    /// # Errors
    /// [`VfioError::VfioDeviceDisableIrq`].
    pub fn disable_msi(&self) -> Result<()> {
        self.disable_irq(IrqIndex::MSI.0)
    }

    /// Enables MSI-X.
    ///
    /// # Errors
    /// [`VfioError::VfioDeviceEnableIrq`].
    pub fn enable_msix(&self, fds: Vec<&EventFd>) -> Result<()> {
        self.enable_irq(IrqIndex::MSIX.0, fds)
    }

    /// Disables MSI-X.
    ///
    /// # Errors
    /// [`VfioError::VfioDeviceDisableIrq`].
    pub fn disable_msix(&self) -> Result<()> {
        self.disable_irq(IrqIndex::MSIX.0)
    }

    /// The kernel's flags of a region. 0 for a region that the device does not have.
    pub fn get_region_flags(&self, index: u32) -> u32 {
        self.regions.get(&index).map_or(0, |region| region.region.flags)
    }

    /// The place of a region in the device's descriptor. 0 for a region that the device does not have.
    pub fn get_region_offset(&self, index: u32) -> u64 {
        self.regions.get(&index).map_or(0, |region| region.region.offset)
    }

    /// The size of a region. 0 for a region that the device does not have.
    pub fn get_region_size(&self, index: u32) -> u64 {
        self.regions.get(&index).map_or(0, |region| region.region.size)
    }

    /// The capabilities of a region. None for a region that the device does not have.
    pub fn get_region_caps(&self, index: u32) -> Vec<VfioRegionInfoCap> {
        self.regions.get(&index).map(|region| region.caps.clone()).unwrap_or_default()
    }

    /// Reads bytes of a region. A failure is logged, and the bytes stay as they are.
    pub fn region_read(&self, index: u32, buf: &mut [u8], addr: u64) {
        let (Some(region), Ok(device)) = (self.regions.get(&index), self.open_device()) else {
            return log::warn!("a read from region {index}, which the device does not have");
        };
        if let Err(error) = device.read(&region.region, addr, buf) {
            log::warn!("{error}");
        }
    }

    /// Writes bytes of a region. A failure is logged.
    pub fn region_write(&self, index: u32, buf: &[u8], addr: u64) {
        let (Some(region), Ok(device)) = (self.regions.get(&index), self.open_device()) else {
            return log::warn!("a write to region {index}, which the device does not have");
        };
        if !region.region.access.contains(Access::WRITE) {
            return log::warn!("a write to region {index}, which cannot be written");
        }
        if let Err(error) = device.write(&region.region, addr, buf) {
            log::warn!("{error}");
        }
    }

    /// The largest number of interrupts of INTx, MSI and MSI-X.
    pub fn max_interrupts(&self) -> u32 {
        let kinds = [IrqIndex::INTX, IrqIndex::MSI, IrqIndex::MSIX];
        kinds.iter().filter_map(|index| self.irqs.get(&index.0)).map(|irq| irq.count).max().unwrap_or(0)
    }

    /// The kernel's flags of the kinds of migration that the device supports. `None` if it supports none.
    ///
    /// # Errors
    /// [`VfioError::VfioDeviceFeature`].
    pub fn query_migration_support(&self) -> Result<Option<u64>> {
        match self.open_device()?.migration() {
            Ok(support) => Ok(support.map(|support| support.flags)),
            // The original takes this for a device without migration, too.
            Err(error) if error.errno() == Some(Errno::EINVAL) => Ok(None),
            Err(error) => Err(feature(&error)),
        }
    }

    /// Brings the device into a state of its migration, and keeps the stream that the kernel opens for it.
    ///
    /// # Errors
    /// [`VfioError::VfioDeviceFeature`]; the stream is closed then.
    pub fn set_migration_state(&self, state: u32) -> Result<()> {
        let mut stream = self.migration();
        let Some(wanted) = MigrationState::from_number(state) else {
            *stream = None;
            return Err(VfioError::VfioDeviceFeature(sys(Errno::EINVAL)));
        };
        match self.open_device()?.set_migration_state(wanted) {
            Ok(Some(opened)) => *stream = Some(opened),
            Ok(None) if streams(wanted) => {}
            Ok(None) => *stream = None,
            Err(error) => {
                *stream = None;
                return Err(feature(&error));
            }
        }
        Ok(())
    }

    /// The kernel's number of the state of the device.
    ///
    /// # Errors
    /// [`VfioError::VfioDeviceFeature`], also for a state that this crate does not know.
    pub fn get_migration_state(&self) -> Result<u32> {
        let state = self.open_device()?.migration_state().map_err(|error| feature(&error))?;
        state.map(MigrationState::number).ok_or(VfioError::VfioDeviceFeature(sys(Errno::EINVAL)))
    }

    /// The estimated size of the data of a device that is stopped now.
    ///
    /// # Errors
    /// [`VfioError::VfioDeviceFeature`].
    pub fn get_mig_data_size(&self) -> Result<u64> {
        self.open_device()?.migration_data_size().map_err(|error| feature(&error))
    }

    /// Estimates the data that is left to read while the device runs.
    ///
    /// # Errors
    /// [`VfioError::NoMigrationDataFd`], [`VfioError::VfioMigGetPrecopyInfo`].
    pub fn mig_get_precopy_info(&self) -> Result<PrecopyInfo> {
        let stream = self.migration();
        let asked = stream.as_ref().ok_or(VfioError::NoMigrationDataFd)?.precopy();
        let estimate = asked.map_err(|error| VfioError::VfioMigGetPrecopyInfo(sys(error.as_errno())))?;
        Ok(PrecopyInfo { initial_bytes: estimate.initial_bytes, dirty_bytes: estimate.dirty_bytes })
    }

    /// Reads the next bytes of the stream, and returns their number.
    ///
    /// # Errors
    /// [`VfioError::NoMigrationDataFd`], [`VfioError::VfioMigrationDataIo`].
    pub fn read_migration_data(&self, buf: &mut [u8]) -> Result<usize> {
        let mut kept = self.migration();
        let stream = kept.as_mut().ok_or(VfioError::NoMigrationDataFd)?;
        Read::read(stream, buf).map_err(VfioError::VfioMigrationDataIo)
    }

    /// Reads the stream to its end.
    ///
    /// # Errors
    /// [`VfioError::NoMigrationDataFd`], [`VfioError::VfioMigrationDataIo`].
    pub fn read_migration_data_to_end(&self) -> Result<Vec<u8>> {
        let mut kept = self.migration();
        let stream = kept.as_mut().ok_or(VfioError::NoMigrationDataFd)?;
        let mut data = Vec::new();
        stream.read_to_end(&mut data).map_err(VfioError::VfioMigrationDataIo)?;
        Ok(data)
    }

    /// Writes all bytes to the stream.
    ///
    /// # Errors
    /// [`VfioError::NoMigrationDataFd`], [`VfioError::VfioMigrationDataIo`].
    pub fn write_migration_data(&self, data: &[u8]) -> Result<()> {
        let mut kept = self.migration();
        let stream = kept.as_mut().ok_or(VfioError::NoMigrationDataFd)?;
        stream.write_all(data).map_err(VfioError::VfioMigrationDataIo)
    }

    /// Has the device log the pages of `ranges` that it writes, and returns its granularity.
    ///
    /// # Errors
    /// [`VfioError::DmaLoggingAlreadyStarted`], [`VfioError::DmaLoggingInvalidArgument`],
    /// [`VfioError::VfioDeviceFeature`].
    pub fn start_dma_logging(&self, page_size: u64, ranges: &[DmaLoggingRange]) -> Result<u64> {
        if ranges.is_empty() {
            return Err(VfioError::DmaLoggingInvalidArgument("there is no range"));
        }
        let mut is_logging = self.logging();
        if *is_logging {
            return Err(VfioError::DmaLoggingAlreadyStarted);
        }
        let list: Vec<_> = ranges.iter().map(range_of).collect::<Result<_>>()?;
        let started = self.open_device()?.start_logging(page_of(page_size)?, &list);
        let granted = started.map_err(|error| feature(&error))?;
        *is_logging = true;
        Ok(granted.bytes())
    }

    /// Ends the log of the device.
    ///
    /// # Errors
    /// [`VfioError::DmaLoggingNotStarted`], [`VfioError::VfioDeviceFeature`].
    pub fn stop_dma_logging(&self) -> Result<()> {
        let mut is_logging = self.logging();
        if !*is_logging {
            return Err(VfioError::DmaLoggingNotStarted);
        }
        self.open_device()?.stop_logging().map_err(|error| feature(&error))?;
        *is_logging = false;
        Ok(())
    }

    /// Reads and clears the log of `range`: bit n of the result stands for its n-th page.
    ///
    /// # Errors
    /// [`VfioError::DmaLoggingNotStarted`], [`VfioError::DmaLoggingInvalidArgument`],
    /// [`VfioError::VfioDeviceFeature`].
    pub fn report_dma_logging(&self, range: DmaLoggingRange, page_size: u64) -> Result<Vec<u64>> {
        let (page, range) = (page_of(page_size)?, range_of(&range)?);
        let is_logging = self.logging();
        if !*is_logging {
            return Err(VfioError::DmaLoggingNotStarted);
        }
        self.open_device()?.written_pages(range, page).map_err(|error| feature(&error))
    }

    fn migration(&self) -> MutexGuard<'_, Option<MigrationData>> {
        self.migration.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn logging(&self) -> MutexGuard<'_, bool> {
        self.is_logging.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsRawFd for VfioDevice {
    /// The descriptor of the device; -1 on a host in software.
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl Drop for VfioDevice {
    fn drop(&mut self) {
        // The device is open as long as a descriptor of it: its group could not leave.
        self.descriptor = None;
        *self.migration() = None;
        if let (Some(device), Ok(container)) = (self.device.take(), container_of(&*self.ops)) {
            container.close(device);
        }
    }
}

fn container_of(ops: &dyn VfioOps) -> Result<&VfioContainer> {
    ops.as_any().downcast_ref().ok_or(VfioError::DowncastVfioOps)
}

/// Logs the cause of an error that the original's does not hold.
fn reported(result: std::result::Result<(), DeviceError>, error: VfioError) -> Result<()> {
    result.map_err(|cause| {
        log::warn!("{cause}");
        error
    })
}

fn feature(error: &DeviceError) -> VfioError {
    log::debug!("{error}");
    VfioError::VfioDeviceFeature(sys(error.as_errno()))
}

/// Returns whether a state has a stream.
fn streams(state: MigrationState) -> bool {
    matches!(
        state,
        MigrationState::PreCopy | MigrationState::PreCopyP2p | MigrationState::StopCopy | MigrationState::Resuming
    )
}

fn page_of(page_size: u64) -> Result<PageSize> {
    PageSize::from_bytes(page_size).ok_or(VfioError::DmaLoggingInvalidArgument("the page size is no power of two"))
}

fn range_of(range: &DmaLoggingRange) -> Result<IovaRange> {
    let made = IovaRange::with_len(Iova::new(range.iova), range.length);
    made.map_err(|_| VfioError::DmaLoggingInvalidArgument("a range is empty or ends past 2^64-1"))
}

/// The eventfds as borrowed descriptors.
fn borrowed<'a>(eventfds: &[&'a EventFd]) -> Vec<Option<BorrowedFd<'a>>> {
    eventfds.iter().map(|eventfd| Some(borrow(eventfd))).collect()
}

#[expect(unsafe_code, reason = "UNSAFETY: vmm-sys-util's EventFd has no AsFd")]
fn borrow(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the eventfd is open as long as the reference to it.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}

#[cfg(test)]
mod tests;
