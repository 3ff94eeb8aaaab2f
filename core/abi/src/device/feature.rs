//! Features of a VFIO device: VF tokens, migration, and the log of the device's own writes (linux:
//! include/uapi/linux/vfio.h; drivers/vfio/vfio_main.c, vfio_ioctl_device_feature).
//!
//! Each struct here is the kernel's `vfio_device_feature` with the feature's own struct behind it.

use std::mem::offset_of;

use dmaspace_core::door::Request;
use vfio_bindings::bindings::vfio as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::device::DEVICE_FEATURE;
use crate::vfio::BASE;

/// Migration data: fills a [`PrecopyInfo`]. The call is made on the descriptor that [`FeatureMigState`] opened.
pub const MIG_GET_PRECOPY_INFO: Request = Request::vfio(BASE + 21, "VFIO_MIG_GET_PRECOPY_INFO");

const _: () = assert!(MIG_GET_PRECOPY_INFO.is(0x3b79));

/// Reads a feature.
pub const FEATURE_GET: u32 = kernel::VFIO_DEVICE_FEATURE_GET;
/// Sets a feature.
pub const FEATURE_SET: u32 = kernel::VFIO_DEVICE_FEATURE_SET;
/// Asks whether the feature can be read or set, and does neither.
pub const FEATURE_PROBE: u32 = kernel::VFIO_DEVICE_FEATURE_PROBE;
/// The part of the flags that is the number of the feature.
pub const FEATURE_MASK: u32 = kernel::VFIO_DEVICE_FEATURE_MASK;

/// The number of the feature in [`FeatureToken`].
pub const FEATURE_VF_TOKEN: u32 = kernel::VFIO_DEVICE_FEATURE_PCI_VF_TOKEN;
/// The number of the feature in [`FeatureMigration`].
pub const FEATURE_MIGRATION: u32 = kernel::VFIO_DEVICE_FEATURE_MIGRATION;
/// The number of the feature in [`FeatureMigState`].
pub const FEATURE_MIG_STATE: u32 = kernel::VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE;
/// The number of the feature in [`FeatureLoggingStart`].
pub const FEATURE_LOGGING_START: u32 = kernel::VFIO_DEVICE_FEATURE_DMA_LOGGING_START;
/// The number of the feature that ends the log. It has no struct of its own: [`FeatureHead`] is all.
pub const FEATURE_LOGGING_STOP: u32 = kernel::VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP;
/// The number of the feature in [`FeatureLoggingReport`].
pub const FEATURE_LOGGING_REPORT: u32 = kernel::VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT;
/// The number of the feature in [`FeatureMigDataSize`].
pub const FEATURE_MIG_DATA_SIZE: u32 = kernel::VFIO_DEVICE_FEATURE_MIG_DATA_SIZE;

const _: () = assert!(FEATURE_MASK | FEATURE_GET | FEATURE_SET | FEATURE_PROBE == 0x7_ffff);

/// The head of every argument of [`DEVICE_FEATURE`](crate::device::DEVICE_FEATURE), and all of one that has no data.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureHead {
    /// The size of the argument.
    pub argsz: u32,
    /// The number of a feature, and [`FEATURE_GET`], [`FEATURE_SET`], [`FEATURE_PROBE`].
    pub flags: u32,
}

/// Sets the token that users of the virtual functions of a physical function must know.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureToken {
    /// The head of every feature.
    pub head: FeatureHead,
    /// The UUID, in the order of its text.
    pub uuid: [u8; 16],
}

/// The reply to a question for the kinds of migration that a device supports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureMigration {
    /// The head of every feature.
    pub head: FeatureHead,
    /// [`MIGRATION_STOP_COPY`], [`MIGRATION_P2P`], [`MIGRATION_PRE_COPY`].
    pub flags: u64,
}

/// The device can be stopped and its state be saved and restored.
pub const MIGRATION_STOP_COPY: u64 = kernel::VFIO_MIGRATION_STOP_COPY as u64;
/// The device can stop to access the memory of other devices while it still answers them.
pub const MIGRATION_P2P: u64 = kernel::VFIO_MIGRATION_P2P as u64;
/// A part of the state can be saved while the device runs.
pub const MIGRATION_PRE_COPY: u64 = kernel::VFIO_MIGRATION_PRE_COPY as u64;

/// Reads or sets the state of a device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureMigState {
    /// The head of every feature.
    pub head: FeatureHead,
    /// One of the `STATE_` constants.
    pub device_state: u32,
    /// On return of a change of state, the descriptor of the data of the migration, or -1: attached, left zero.
    pub data_fd: i32,
}

/// The device failed, and must be reset.
pub const STATE_ERROR: u32 = kernel::vfio_device_mig_state_VFIO_DEVICE_STATE_ERROR;
/// The device does nothing.
pub const STATE_STOP: u32 = kernel::vfio_device_mig_state_VFIO_DEVICE_STATE_STOP;
/// The device runs.
pub const STATE_RUNNING: u32 = kernel::vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING;
/// The device is stopped, and its state can be read.
pub const STATE_STOP_COPY: u32 = kernel::vfio_device_mig_state_VFIO_DEVICE_STATE_STOP_COPY;
/// The device is stopped, and its state can be written.
pub const STATE_RESUMING: u32 = kernel::vfio_device_mig_state_VFIO_DEVICE_STATE_RESUMING;
/// The device runs, and does not access the memory of other devices.
pub const STATE_RUNNING_P2P: u32 = kernel::vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING_P2P;
/// The device runs, and its state can be read.
pub const STATE_PRE_COPY: u32 = kernel::vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY;
/// The device is in both of [`STATE_RUNNING_P2P`] and [`STATE_PRE_COPY`].
pub const STATE_PRE_COPY_P2P: u32 = kernel::vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY_P2P;

/// The reply to a question for the size of the data that a device will need when it is stopped and copied.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureMigDataSize {
    /// The head of every feature.
    pub head: FeatureHead,
    /// The estimated size in bytes.
    pub stop_copy_length: u64,
}

/// The argument of and reply to [`MIG_GET_PRECOPY_INFO`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PrecopyInfo {
    /// [`PrecopyInfo::SIZE`].
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// The estimated bytes that are left of the initial data.
    pub initial_bytes: u64,
    /// The estimated bytes that have changed since they were read.
    pub dirty_bytes: u64,
}

/// Begins a log of a device's writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureLoggingStart {
    /// The head of every feature.
    pub head: FeatureHead,
    /// The wanted granularity; on return the device's.
    pub page_size: u64,
    /// The number of ranges.
    pub num_ranges: u32,
    /// Zero.
    pub reserved: u32,
    /// The address of the [`LoggingRange`]s: attached, left zero.
    pub ranges: u64,
}

/// A range of bus addresses whose writes are logged.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LoggingRange {
    /// The first address.
    pub iova: u64,
    /// The length in bytes.
    pub length: u64,
}

/// Reads and clears a part of the log.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureLoggingReport {
    /// The head of every feature.
    pub head: FeatureHead,
    /// The first address.
    pub iova: u64,
    /// The length in bytes.
    pub length: u64,
    /// The bytes that a bit stands for.
    pub page_size: u64,
    /// The address of the bitmap: attached, left zero. The kernel sets bits, and clears none.
    pub bitmap: u64,
}

laid_out_as!(FeatureHead, kernel::vfio_device_feature { argsz, flags });
laid_out_as!(PrecopyInfo, kernel::vfio_precopy_info { argsz, flags, initial_bytes, dirty_bytes });
laid_out_as!(LoggingRange, kernel::vfio_device_feature_dma_logging_range { iova, length });

/// Gives a feature its `SIZE`, and checks size and offsets against the kernel's struct behind the head.
macro_rules! feature {
    ($ours:ident, $kernel:ident { $($field:ident $(as $theirs:ident)?),+ }) => {
        laid_out_as!(@size $ours);

        const _: () = {
            assert!(size_of::<$ours>() == size_of::<FeatureHead>() + size_of::<kernel::$kernel>());
            $(feature!(@offset $ours, $kernel, $field $($theirs)?);)+
        };
    };
    (@offset $ours:ident, $kernel:ident, $field:ident $theirs:ident) => {
        assert!(offset_of!($ours, $field) == size_of::<FeatureHead>() + offset_of!(kernel::$kernel, $theirs))
    };
    (@offset $ours:ident, $kernel:ident, $field:ident) => {
        assert!(offset_of!($ours, $field) == size_of::<FeatureHead>() + offset_of!(kernel::$kernel, $field))
    };
}

laid_out_as!(@size FeatureToken);
feature!(FeatureMigration, vfio_device_feature_migration { flags });
feature!(FeatureMigState, vfio_device_feature_mig_state { device_state, data_fd });
feature!(FeatureMigDataSize, vfio_device_feature_mig_data_size { stop_copy_length });
feature!(FeatureLoggingStart, vfio_device_feature_dma_logging_control {
    page_size, num_ranges, reserved as __reserved, ranges
});
feature!(FeatureLoggingReport, vfio_device_feature_dma_logging_report { iova, length, page_size, bitmap });

const _: () = assert!(DEVICE_FEATURE.is(0x3b75) && size_of::<FeatureToken>() == size_of::<FeatureHead>() + 16);
