//! Migration of a device: its states, and the stream of its own state.
//!
//! The kernel walks from a state to the next by itself; the caller names the states it wants (linux:
//! drivers/vfio/vfio_main.c, vfio_mig_get_next_state; include/uapi/linux/vfio.h, enum vfio_device_mig_state).

use std::fmt;
use std::io::{self, Read, Write};
use std::mem::offset_of;

use dmaspace_abi::device::{
    DEVICE_FEATURE, FEATURE_GET, FEATURE_MIG_DATA_SIZE, FEATURE_MIG_STATE, FEATURE_MIGRATION, FEATURE_SET, FeatureHead,
    FeatureMigDataSize, FeatureMigState, FeatureMigration, MIG_GET_PRECOPY_INFO, MIGRATION_P2P, MIGRATION_PRE_COPY,
    MIGRATION_STOP_COPY, PrecopyInfo, STATE_ERROR, STATE_PRE_COPY, STATE_PRE_COPY_P2P, STATE_RESUMING, STATE_RUNNING,
    STATE_RUNNING_P2P, STATE_STOP, STATE_STOP_COPY,
};
use dmaspace_core::door::{Command, Descriptor, Errno, HandleKind, Kernel, OwnedHandle};
use zerocopy::IntoBytes;

use crate::device::{Action, Device, DeviceError};

/// The kinds of migration that a device supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MigrationSupport {
    /// The device can be stopped and its state be saved and restored. Every device that supports migration can.
    pub stop_copy: bool,
    /// The device has the states [`MigrationState::RunningP2p`] and, with `pre_copy`, [`MigrationState::PreCopyP2p`].
    pub p2p: bool,
    /// The device has the state [`MigrationState::PreCopy`].
    pub pre_copy: bool,
    /// All flags, as the kernel returns them (linux: include/uapi/linux/vfio.h, VFIO_MIGRATION_STOP_COPY and the
    /// following).
    pub flags: u64,
}

/// A state of a device in a migration (linux: include/uapi/linux/vfio.h, enum vfio_device_mig_state).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MigrationState {
    /// The device failed. Only a reset makes it usable again.
    Error,
    /// The device does nothing, and its state does not change.
    Stop,
    /// The device runs.
    Running,
    /// The device is stopped, and its state is read from the stream.
    StopCopy,
    /// The device is stopped, and its state is written to the stream.
    Resuming,
    /// The device runs, and does not access the memory of other devices.
    RunningP2p,
    /// The device runs, and its state is read from the stream.
    PreCopy,
    /// The device does not access the memory of other devices, and its state is read from the stream.
    PreCopyP2p,
}

impl MigrationState {
    /// Every state, with the kernel's number.
    const ALL: [(u32, Self); 8] = [
        (STATE_ERROR, Self::Error),
        (STATE_STOP, Self::Stop),
        (STATE_RUNNING, Self::Running),
        (STATE_STOP_COPY, Self::StopCopy),
        (STATE_RESUMING, Self::Resuming),
        (STATE_RUNNING_P2P, Self::RunningP2p),
        (STATE_PRE_COPY, Self::PreCopy),
        (STATE_PRE_COPY_P2P, Self::PreCopyP2p),
    ];

    /// The state with the kernel's number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == number).map(|(_, state)| *state)
    }

    /// The kernel's number of the state.
    pub fn number(self) -> u32 {
        Self::ALL.iter().find(|(_, state)| *state == self).map_or(STATE_ERROR, |(number, _)| *number)
    }
}

/// An estimate of the data that is left to read in [`MigrationState::PreCopy`]. Both numbers can grow again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrecopyEstimate {
    /// The bytes of the initial data that the other side needs before it can resume without delay.
    pub initial_bytes: u64,
    /// The bytes that changed since they were read.
    pub dirty_bytes: u64,
}

/// The stream of a device's state, which the kernel opens when the device begins to save or to resume. The kernel ends
/// it when the device leaves these states; the stream stays open as long as this value.
pub struct MigrationData {
    handle: OwnedHandle,
    device: String,
}

impl Device {
    /// The kinds of migration that the device supports. `None` for a device whose driver cannot migrate it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn migration(&self) -> Result<Option<MigrationSupport>, DeviceError> {
        let head = feature(FeatureMigration::SIZE, FEATURE_GET | FEATURE_MIGRATION);
        let mut feature = FeatureMigration { head, flags: 0 };
        match self.door.call(self.handle, Command::with_bytes(DEVICE_FEATURE, feature.as_mut_bytes())) {
            Ok(()) => Ok(Some(MigrationSupport {
                stop_copy: feature.flags & MIGRATION_STOP_COPY != 0,
                p2p: feature.flags & MIGRATION_P2P != 0,
                pre_copy: feature.flags & MIGRATION_PRE_COPY != 0,
                flags: feature.flags,
            })),
            Err(failure) if failure.errno() == Some(Errno::ENOTTY) => Ok(None),
            Err(failure) => Err(self.error(Action::Migration, failure)),
        }
    }

    /// The state of the device. `None` for a state that this library does not know.
    ///
    /// # Errors
    /// The kernel's answer: `ENOTTY` for a device whose driver cannot migrate it.
    pub fn migration_state(&self) -> Result<Option<MigrationState>, DeviceError> {
        let head = feature(FeatureMigState::SIZE, FEATURE_GET | FEATURE_MIG_STATE);
        let mut feature = FeatureMigState { head, device_state: 0, data_fd: 0 };
        let asked = self.door.call(self.handle, Command::with_bytes(DEVICE_FEATURE, feature.as_mut_bytes()));
        asked.map_err(|failure| self.error(Action::Migration, failure))?;
        Ok(MigrationState::from_number(feature.device_state))
    }

    /// Brings the device into a state. Returns the stream that the kernel opened on the way: one that is read, where
    /// the device begins to save ([`MigrationState::StopCopy`] or [`MigrationState::PreCopy`]); one that is written,
    /// where it begins to resume ([`MigrationState::Resuming`]); `None` otherwise. From pre-copy to stop-copy the
    /// stream stays (linux: drivers/vfio/vfio_main.c, vfio_ioctl_device_feature_mig_device_state).
    ///
    /// After an error the device may be in another state than before: [`Device::migration_state`] returns it.
    ///
    /// # Errors
    /// The kernel's answer: `ENOTTY` for a device whose driver cannot migrate it, `EINVAL` for a state that the device
    /// lacks or cannot reach.
    pub fn set_migration_state(&self, state: MigrationState) -> Result<Option<MigrationData>, DeviceError> {
        let head = feature(FeatureMigState::SIZE, FEATURE_SET | FEATURE_MIG_STATE);
        let mut feature = FeatureMigState { head, device_state: state.number(), data_fd: 0 };
        let command = Command::with_bytes(DEVICE_FEATURE, feature.as_mut_bytes());
        let field = offset_of!(FeatureMigState, data_fd);
        let opened =
            OwnedHandle::opened_in_field(self.door.clone(), self.handle, command, field, HandleKind::Migration);
        let opened = opened.map_err(|failure| self.error(Action::Migration, failure))?;
        Ok(opened.map(|handle| MigrationData { handle, device: self.name.clone() }))
    }

    /// The kernel's estimate of the bytes that the stream would have if the device were stopped now. Older kernels and
    /// some drivers do not know (`ENOTTY`).
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn migration_data_size(&self) -> Result<u64, DeviceError> {
        let head = feature(FeatureMigDataSize::SIZE, FEATURE_GET | FEATURE_MIG_DATA_SIZE);
        let mut feature = FeatureMigDataSize { head, stop_copy_length: 0 };
        let asked = self.door.call(self.handle, Command::with_bytes(DEVICE_FEATURE, feature.as_mut_bytes()));
        asked.map_err(|failure| self.error(Action::Migration, failure))?;
        Ok(feature.stop_copy_length)
    }
}

impl MigrationData {
    /// Reads the next bytes of the state, and returns their number. 0 is the end of the data; in pre-copy more may come
    /// later, and `errno 42` (`ENOMSG`) says that nothing has changed meanwhile.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn read(&self, into: &mut [u8]) -> Result<usize, DeviceError> {
        self.handle.door().read(self.handle.handle(), into).map_err(|errno| self.error(errno))
    }

    /// Writes the next bytes of the state, and returns the number of those that the kernel took.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn write(&self, from: &[u8]) -> Result<usize, DeviceError> {
        self.handle.door().write(self.handle.handle(), from).map_err(|errno| self.error(errno))
    }

    /// Estimates the data that is left to read in [`MigrationState::PreCopy`] (linux: include/uapi/linux/vfio.h,
    /// VFIO_MIG_GET_PRECOPY_INFO).
    ///
    /// # Errors
    /// The kernel's answer: `EINVAL` in any other state, `ENOTTY` for a device without pre-copy.
    pub fn precopy(&self) -> Result<PrecopyEstimate, DeviceError> {
        let mut info = PrecopyInfo { argsz: PrecopyInfo::SIZE, ..PrecopyInfo::default() };
        let asked = self.handle.call(Command::with_bytes(MIG_GET_PRECOPY_INFO, info.as_mut_bytes()));
        asked.map_err(|failure| DeviceError::new(&self.device, Action::Migration, failure))?;
        Ok(PrecopyEstimate { initial_bytes: info.initial_bytes, dirty_bytes: info.dirty_bytes })
    }

    /// The descriptor of the stream, for calls that this library does not make: poll(2), splice(2).
    ///
    /// # Errors
    /// `EBADF` on a soft host, which has no descriptors.
    pub fn descriptor(&self) -> Result<Descriptor, Errno> {
        self.handle.descriptor()
    }

    fn error(&self, errno: Errno) -> DeviceError {
        DeviceError::new(&self.device, Action::Migration, errno)
    }
}

impl Read for MigrationData {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(Self::read(self, into)?)
    }
}

impl Write for MigrationData {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        Ok(Self::write(self, from)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for MigrationData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MigrationData({}, {:?})", self.device, self.handle)
    }
}

/// The head of a feature's struct of `argsz` bytes.
pub(super) fn feature(argsz: u32, flags: u32) -> FeatureHead {
    FeatureHead { argsz, flags }
}
