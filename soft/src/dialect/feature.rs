//! Features of a device: VF tokens, migration, and the device's own log of its writes (linux:
//! drivers/vfio/vfio_main.c, vfio_ioctl_device_feature; drivers/vfio/pci/vfio_pci_core.c).

use std::collections::BTreeSet;

use dmaspace_abi::device::{self, FeatureHead, LoggingRange};
use dmaspace_core::door::Errno;
use dmaspace_core::{Iova, IovaRange};

use crate::dialect::iommufd::DeviceIndex;
use crate::dialect::require;

/// The part of a device in single-root I/O virtualisation.
#[derive(Debug, Default)]
pub(crate) enum Token {
    /// A device without virtual functions.
    #[default]
    None,
    /// A physical function: the token, and the number of open virtual functions.
    Physical([u8; 16], u32),
    /// A virtual function, with its physical function.
    Virtual(DeviceIndex),
}

/// The migration of a device.
#[derive(Debug)]
pub(crate) struct Migration {
    /// The kinds of migration that the device supports.
    pub(crate) flags: u64,
    pub(crate) state: u32,
    /// The number of the stream that is in use. Earlier ones are ended.
    pub(crate) stream: u64,
    /// The data that is being saved or resumed, and the part of it that was read.
    pub(crate) data: Vec<u8>,
    pub(crate) read: usize,
}

/// The device's own log.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// The ranges that are logged. `None` without a log.
    pub(crate) ranges: Option<Vec<IovaRange>>,
    /// The numbers of the pages that were written.
    pub(crate) written: BTreeSet<u64>,
}

/// The granularity of the log: 4 KiB.
pub(crate) const LOG_SHIFT: u32 = 12;
/// LOG_MAX_RANGES.
pub(crate) const MOST_RANGES: usize = 4096 / size_of::<[u64; 6]>();
/// The magic number at the beginning of a stream.
pub(crate) const MAGIC: &[u8; 8] = b"softdev\0";
/// `ENOMSG`: there is no more data yet.
const NO_MESSAGE: Errno = Errno(42);

/// The next step after the check of a feature's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The call only asked.
    Done,
    /// The feature is to be read or set.
    Act,
}

/// vfio_check_feature.
pub(crate) fn check(head: FeatureHead, supported: u32, size: u32) -> Result<Step, Errno> {
    let asked = head.flags & (device::FEATURE_GET | device::FEATURE_SET);
    require(asked & !supported == 0, Errno::EINVAL)?;
    if head.flags & device::FEATURE_PROBE != 0 {
        return Ok(Step::Done);
    }
    require(asked != 0 && head.argsz >= size, Errno::EINVAL)?;
    Ok(Step::Act)
}

/// A range to log: whole pages, disjoint from the others.
pub(crate) fn logged(range: LoggingRange, page: u64, others: &[IovaRange]) -> Result<IovaRange, Errno> {
    require(page.is_power_of_two() && (range.iova | range.length) & (page - 1) == 0, Errno::EINVAL)?;
    range.iova.checked_add(range.length).ok_or(Errno::EOVERFLOW)?;
    let range = IovaRange::with_len(Iova::new(range.iova), range.length).map_err(|_| Errno::EINVAL)?;
    require(!others.iter().any(|other| other.overlaps(range)), Errno::EINVAL)?;
    Ok(range)
}

impl Log {
    /// An empty log.
    pub(crate) fn of(ranges: Vec<IovaRange>) -> Self {
        Self { ranges: Some(ranges), written: BTreeSet::new() }
    }

    /// Notes that the device wrote in `range`.
    pub(crate) fn note(&mut self, range: IovaRange) {
        let Some(ranges) = &self.ranges else { return };
        for logged in ranges.iter().filter_map(|logged| logged.intersection(range)) {
            self.written.extend(logged.first().get() >> LOG_SHIFT..=logged.last().get() >> LOG_SHIFT);
        }
    }
}

impl Migration {
    pub(crate) fn new(flags: u64) -> Self {
        Self { flags, state: device::STATE_RUNNING, stream: 0, data: Vec::new(), read: 0 }
    }

    /// A reset makes the device run again, and ends its stream.
    pub(crate) fn reset(&mut self) {
        *self = Self { stream: self.stream, ..Self::new(self.flags) };
    }

    pub(crate) fn begin_stream(&mut self, data: Vec<u8>) -> u64 {
        self.stream += 1;
        (self.data, self.read) = (data, 0);
        self.stream
    }

    /// The bytes that were not read yet.
    pub(crate) fn left(&self) -> u64 {
        self.data.len().saturating_sub(self.read) as u64
    }

    /// Returns whether the device is in a state with a stream.
    pub(crate) fn streams(&self) -> bool {
        is_precopy(self.state) || [device::STATE_STOP_COPY, device::STATE_RESUMING].contains(&self.state)
    }

    /// read(2) on the stream.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        require(self.state != device::STATE_RESUMING, Errno::EINVAL)?;
        let mut moved = 0;
        for (to, from) in into.iter_mut().zip(self.data.iter().skip(self.read)) {
            *to = *from;
            moved += 1;
        }
        self.read += moved;
        if moved == 0 && is_precopy(self.state) { Err(NO_MESSAGE) } else { Ok(moved) }
    }

    /// write(2) on the stream.
    pub(crate) fn write(&mut self, from: &[u8]) -> Result<usize, Errno> {
        require(self.state == device::STATE_RESUMING, Errno::EINVAL)?;
        self.data.extend_from_slice(from);
        Ok(from.len())
    }

    /// Returns whether the device has a state (linux: drivers/vfio/vfio_main.c, state_flags_table).
    pub(crate) fn supports(&self, state: u32) -> bool {
        let needed = match state {
            device::STATE_PRE_COPY => device::MIGRATION_PRE_COPY,
            device::STATE_PRE_COPY_P2P => device::MIGRATION_PRE_COPY | device::MIGRATION_P2P,
            device::STATE_RUNNING_P2P => device::MIGRATION_P2P,
            _ => 0,
        };
        state <= device::STATE_PRE_COPY_P2P && self.flags & needed == needed
    }

    /// vfio_mig_get_next_state.
    pub(crate) fn next(&self, wanted: u32) -> Result<u32, Errno> {
        require(self.supports(wanted), Errno::EINVAL)?;
        let mut next = arc(self.state, wanted);
        while !self.supports(next) {
            next = arc(next, wanted);
        }
        if next == device::STATE_ERROR { Err(Errno::EINVAL) } else { Ok(next) }
    }
}

pub(crate) fn is_precopy(state: u32) -> bool {
    [device::STATE_PRE_COPY, device::STATE_PRE_COPY_P2P].contains(&state)
}

/// The next state on the way from a state to another (linux: drivers/vfio/vfio_main.c, vfio_from_fsm_table).
fn arc(from: u32, to: u32) -> u32 {
    use device::{
        STATE_ERROR as ERROR, STATE_PRE_COPY as PRE_COPY, STATE_PRE_COPY_P2P as PRE_COPY_P2P,
        STATE_RESUMING as RESUMING, STATE_RUNNING as RUNNING, STATE_RUNNING_P2P as RUNNING_P2P, STATE_STOP as STOP,
        STATE_STOP_COPY as STOP_COPY,
    };
    match (from, to) {
        (ERROR, _) | (_, ERROR) => ERROR,
        (from, to) if from == to => to,
        (STOP, STOP_COPY | RESUMING) => to,
        (STOP, _) => RUNNING_P2P,
        (RUNNING, PRE_COPY) => PRE_COPY,
        (RUNNING, _) => RUNNING_P2P,
        (PRE_COPY, PRE_COPY_P2P | STOP_COPY) => PRE_COPY_P2P,
        (PRE_COPY, _) => RUNNING,
        (PRE_COPY_P2P, PRE_COPY | STOP_COPY) => to,
        (PRE_COPY_P2P, _) => RUNNING_P2P,
        (STOP_COPY, PRE_COPY | PRE_COPY_P2P) => ERROR,
        (STOP_COPY | RESUMING, _) => STOP,
        (RUNNING_P2P, RUNNING | PRE_COPY) => RUNNING,
        (RUNNING_P2P, PRE_COPY_P2P) => PRE_COPY_P2P,
        (RUNNING_P2P, _) => STOP,
        _ => ERROR,
    }
}
