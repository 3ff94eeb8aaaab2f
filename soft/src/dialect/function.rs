//! A PCI function, beside its DMA: information, regions, interrupts, resets and features (linux:
//! drivers/vfio/pci/vfio_pci_core.c, drivers/vfio/vfio_main.c).
//!
//! Every device here is a PCI Express function that can be reset alone: a BAR 0 of 16 KiB that keeps the bytes written
//! to it, a configuration space, INTx, 8 MSI and 16 MSI-X interrupts, an error and a request notification.
//!
//! Limits: no region can be mapped, and the configuration space keeps only the command register.

use std::mem::offset_of;

use dmaspace_abi::device::{
    self, DeviceInfo, FeatureHead, FeatureLoggingReport, FeatureLoggingStart, FeatureMigDataSize, FeatureMigration,
    IrqInfo, LoggingRange, RegionInfo,
};
use dmaspace_core::door::Errno;
use zerocopy::FromBytes;

use crate::dialect::call::Call;
use crate::dialect::feature::{LOG_SHIFT, Log, MAGIC, MOST_RANGES, Migration, Step, Token, check, is_precopy, logged};
use crate::dialect::irqs::Irqs;
use crate::dialect::require;

/// A PCI function that a kernel gives to a VMM, without its DMA.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) irqs: Irqs,
    pub(crate) token: Token,
    pub(crate) migration: Option<Migration>,
    pub(crate) log: Log,
    /// The bytes of BAR 0.
    pub(crate) bar: Vec<u8>,
    /// The command register.
    command: u16,
}

/// The size of BAR 0.
const BAR: u64 = 0x4000;
/// The size of the configuration space of a PCI Express device (linux: drivers/pci/probe.c, pci_cfg_space_size).
const CONFIG: u64 = 0x1000;
/// The offset of the command register.
const COMMAND: u64 = 4;
/// The command bit that makes the BARs respond.
const COMMAND_MEMORY: u16 = 2;
/// The vendor and the device of QEMU's `edu`, which this device is like.
const IDENTITY: [u8; 4] = [0x34, 0x12, 0xe8, 0x11];

/// VFIO_PCI_OFFSET_SHIFT.
const REGION_SHIFT: u32 = 40;

impl Function {
    pub(crate) fn new() -> Self {
        Self {
            irqs: Irqs::default(),
            token: Token::default(),
            migration: None,
            log: Log::default(),
            bar: vec![0; usize::try_from(BAR).unwrap_or_default()],
            command: 0,
        }
    }

    /// The effect of a reset. Interrupts stay set up, and so does the configuration, which the kernel restores (linux:
    /// drivers/pci/pci.c, pci_try_reset_function).
    pub(crate) fn reset(&mut self) {
        self.bar.fill(0);
        self.irqs.deassert();
        if let Some(migration) = &mut self.migration {
            migration.reset();
        }
        self.log = Log::default();
    }

    /// The effect of the last close (linux: drivers/vfio/pci/vfio_pci_core.c, vfio_pci_core_close_device).
    pub(crate) fn close(&mut self) {
        self.reset();
        self.irqs = Irqs::default();
        self.command = 0;
    }

    /// The bytes of the configuration space from `offset` on.
    fn config(&self, offset: u64) -> Vec<u8> {
        let mut bytes = IDENTITY.to_vec();
        bytes.extend(self.command.to_le_bytes());
        bytes.resize(usize::try_from(CONFIG).unwrap_or_default(), 0);
        bytes.drain(..usize::try_from(offset).unwrap_or_default().min(bytes.len()));
        bytes
    }

    /// vfio_pci_rw, for reading.
    pub(crate) fn read(&self, at: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let (region, offset) = (at >> REGION_SHIFT, at & ((1 << REGION_SHIFT) - 1));
        let from = match u32::try_from(region) {
            Ok(0) => self.responding_bar(offset)?,
            Ok(device::REGION_CONFIG) if offset < CONFIG => self.config(offset),
            _ => return Err(Errno::EINVAL),
        };
        let mut moved = 0;
        for (to, from) in into.iter_mut().zip(from) {
            *to = from;
            moved += 1;
        }
        Ok(moved)
    }

    /// vfio_pci_rw, for writing.
    pub(crate) fn write(&mut self, at: u64, from: &[u8]) -> Result<usize, Errno> {
        let (region, offset) = (at >> REGION_SHIFT, at & ((1 << REGION_SHIFT) - 1));
        match u32::try_from(region) {
            Ok(0) => {
                self.responding_bar(offset)?;
                let room = self.bar.iter_mut().skip(usize::try_from(offset).unwrap_or(usize::MAX));
                let mut moved = 0;
                for (to, from) in room.zip(from) {
                    *to = *from;
                    moved += 1;
                }
                Ok(moved)
            }
            Ok(device::REGION_CONFIG) if offset < CONFIG => {
                let room = usize::try_from(CONFIG - offset).unwrap_or(usize::MAX);
                let mut command = self.command.to_le_bytes();
                for (at, from) in (offset..).zip(from) {
                    if let Some(to) = at.checked_sub(COMMAND).and_then(|at| command.get_mut(usize::try_from(at).ok()?))
                    {
                        *to = *from;
                    }
                }
                self.command = u16::from_le_bytes(command);
                Ok(from.len().min(room))
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// The bytes of BAR 0 from `offset` on: `EIO` while it does not respond (linux: drivers/vfio/pci/vfio_pci_rdwr.c,
    /// vfio_pci_bar_rw).
    fn responding_bar(&self, offset: u64) -> Result<Vec<u8>, Errno> {
        require(offset < BAR, Errno::EINVAL)?;
        require(self.command & COMMAND_MEMORY != 0, Errno::EIO)?;
        Ok(self.bar.iter().skip(usize::try_from(offset).unwrap_or(usize::MAX)).copied().collect())
    }
}

/// vfio_pci_ioctl_get_info: a PCI device as vfio-pci sees it.
pub(crate) fn device_info(call: &mut Call<'_, '_>) -> Result<i32, Errno> {
    let least = offset_of!(DeviceInfo, cap_offset);
    let mut info: DeviceInfo = call.read_prefix(least)?;
    require(info.argsz as usize >= least, Errno::EINVAL)?;
    info.flags = device::DEVICE_HAS_RESET | device::DEVICE_IS_PCI;
    (info.num_regions, info.num_irqs) = (device::PCI_REGIONS, device::PCI_IRQS);
    call.write_prefix(&info, least);
    Ok(0)
}

/// vfio_pci_ioctl_get_region_info.
pub(crate) fn region_info(call: &mut Call<'_, '_>) -> Result<i32, Errno> {
    let mut info: RegionInfo = call.read()?;
    require(info.argsz >= RegionInfo::SIZE, Errno::EINVAL)?;
    require(info.index < device::REGION_VGA, Errno::EINVAL)?;
    info.size = match info.index {
        0 => BAR,
        device::REGION_CONFIG => CONFIG,
        _ => 0,
    };
    info.flags = if info.size > 0 { device::REGION_READ | device::REGION_WRITE } else { 0 };
    info.offset = u64::from(info.index) << REGION_SHIFT;
    call.write(&info);
    Ok(0)
}

/// vfio_pci_ioctl_get_irq_info.
pub(crate) fn irq_info(dynamic: bool, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
    let mut info: IrqInfo = call.read()?;
    require(info.argsz >= IrqInfo::SIZE && info.index < device::PCI_IRQS, Errno::EINVAL)?;
    info.count = Irqs::count(info.index);
    info.flags = device::IRQ_EVENTFD
        | match info.index {
            device::IRQ_INTX => device::IRQ_MASKABLE | device::IRQ_AUTOMASKED,
            device::IRQ_MSIX if dynamic => 0,
            _ => device::IRQ_NORESIZE,
        };
    call.write(&info);
    Ok(0)
}

impl Function {
    /// vfio_ioctl_device_feature_migration.
    pub(crate) fn migration_flags(&self, head: FeatureHead, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        let migration = self.migration.as_ref().ok_or(Errno::ENOTTY)?;
        if check(head, device::FEATURE_GET, FeatureMigration::SIZE)? == Step::Act {
            call.write(&FeatureMigration { head, flags: migration.flags });
        }
        Ok(0)
    }

    /// vfio_ioctl_device_feature_migration_data_size.
    pub(crate) fn migration_data_size(&self, head: FeatureHead, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        require(self.migration.is_some(), Errno::ENOTTY)?;
        if check(head, device::FEATURE_GET, FeatureMigDataSize::SIZE)? == Step::Act {
            call.write(&FeatureMigDataSize { head, stop_copy_length: self.saved().len() as u64 });
        }
        Ok(0)
    }

    /// The state of the device as a stream.
    fn saved(&self) -> Vec<u8> {
        [MAGIC, self.bar.as_slice()].concat()
    }

    /// A driver's migration_set_state: walks along the arcs, and returns the number of the stream that it opened.
    pub(crate) fn set_migration_state(&mut self, wanted: u32) -> Result<Option<u64>, Errno> {
        let mut opened = None;
        while let Some(migration) = self.migration.as_ref().filter(|migration| migration.state != wanted) {
            let next = migration.next(wanted)?;
            opened = self.step(next)?;
        }
        let is_known = self.migration.as_ref().is_some_and(|migration| migration.supports(wanted));
        require(is_known, Errno::EINVAL)?;
        Ok(opened)
    }

    /// One arc.
    fn step(&mut self, next: u32) -> Result<Option<u64>, Errno> {
        let saved = self.saved();
        let Some(migration) = self.migration.as_mut() else { return Ok(None) };
        let before = std::mem::replace(&mut migration.state, next);
        match next {
            device::STATE_STOP_COPY | device::STATE_PRE_COPY | device::STATE_PRE_COPY_P2P if is_precopy(before) => {
                // The stream goes on. The device is stopped only now, so that it is saved anew.
                if next == device::STATE_STOP_COPY {
                    (migration.data, migration.read) = (saved, 0);
                }
                Ok(None)
            }
            device::STATE_STOP_COPY | device::STATE_PRE_COPY | device::STATE_PRE_COPY_P2P => {
                Ok(Some(migration.begin_stream(saved)))
            }
            device::STATE_RESUMING => Ok(Some(migration.begin_stream(Vec::new()))),
            device::STATE_STOP if before == device::STATE_RESUMING => self.resume().map(|()| None),
            _ => Ok(None),
        }
    }

    /// Takes over the state that was written: `EINVAL` for one of another device, which leaves the device failed.
    fn resume(&mut self) -> Result<(), Errno> {
        let Some(migration) = self.migration.as_mut() else { return Ok(()) };
        match migration.data.strip_prefix(MAGIC) {
            Some(bar) if bar.len() == self.bar.len() => {
                self.bar.copy_from_slice(bar);
                Ok(())
            }
            _ => {
                migration.state = device::STATE_ERROR;
                Err(Errno::EINVAL)
            }
        }
    }

    /// vfio_ioctl_device_feature_logging_start. A device that can be migrated can log.
    pub(crate) fn start_log(&mut self, head: FeatureHead, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        require(self.migration.is_some(), Errno::ENOTTY)?;
        if check(head, device::FEATURE_SET, FeatureLoggingStart::SIZE)? == Step::Done {
            return Ok(0);
        }
        let mut start: FeatureLoggingStart = call.read()?;
        require(start.num_ranges > 0, Errno::EINVAL)?;
        require(start.num_ranges as usize <= MOST_RANGES, Errno::E2BIG)?;
        let list = call.buffer(offset_of!(FeatureLoggingStart, ranges)).ok_or(Errno::EFAULT)?;
        let mut ranges = Vec::new();
        for bytes in list.chunks_exact(size_of::<LoggingRange>()).take(start.num_ranges as usize) {
            let range = LoggingRange::read_from_bytes(bytes).map_err(|_| Errno::EFAULT)?;
            ranges.push(logged(range, start.page_size, &ranges)?);
        }
        require(ranges.len() == start.num_ranges as usize, Errno::EFAULT)?;
        // As drivers do (linux: drivers/vfio/pci/mlx5/cmd.c, mlx5vf_start_page_tracker).
        require(self.log.ranges.is_none(), Errno::EINVAL)?;
        self.log = Log::of(ranges);
        start.page_size = 1 << LOG_SHIFT;
        call.write(&start);
        Ok(0)
    }

    /// vfio_ioctl_device_feature_logging_stop.
    pub(crate) fn stop_log(&mut self, head: FeatureHead) -> Result<i32, Errno> {
        require(self.migration.is_some(), Errno::ENOTTY)?;
        if check(head, device::FEATURE_SET, 0)? == Step::Act {
            self.log = Log::default();
        }
        Ok(0)
    }

    /// vfio_ioctl_device_feature_logging_report.
    pub(crate) fn report_log(&mut self, head: FeatureHead, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        require(self.migration.is_some(), Errno::ENOTTY)?;
        if check(head, device::FEATURE_GET, FeatureLoggingReport::SIZE)? == Step::Done {
            return Ok(0);
        }
        let report: FeatureLoggingReport = call.read()?;
        require(report.page_size >= 4096 && report.page_size.is_power_of_two(), Errno::EINVAL)?;
        let end = report.iova.checked_add(report.length).ok_or(Errno::EOVERFLOW)?;
        require(self.log.ranges.is_some(), Errno::EINVAL)?;
        let bitmap = call.buffer(offset_of!(FeatureLoggingReport, bitmap)).ok_or(Errno::EFAULT)?;
        let (first, end) = (report.iova >> LOG_SHIFT, end.div_ceil(1 << LOG_SHIFT));
        let written: Vec<_> = self.log.written.range(first..end).copied().collect();
        for page in written {
            self.log.written.remove(&page);
            let bit = ((page << LOG_SHIFT).saturating_sub(report.iova)) / report.page_size;
            let byte = bitmap.get_mut(usize::try_from(bit / 8).unwrap_or(usize::MAX)).ok_or(Errno::EFAULT)?;
            *byte |= 1 << (bit % 8);
        }
        Ok(0)
    }
}
