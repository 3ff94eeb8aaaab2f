#![doc = include_str!("../README.md")]

mod caps;
mod container;
mod device;
mod device_fd;
mod error;
mod ops;

pub use caps::{
    VfioRegionInfoCap, VfioRegionInfoCapNvlink2Lnkspd, VfioRegionInfoCapNvlink2Ssatgt, VfioRegionInfoCapSparseMmap,
    VfioRegionInfoCapType, VfioRegionSparseMmapArea,
};
pub use container::{VfioContainer, VfioGroup};
pub use device::{DmaLoggingRange, PrecopyInfo, VfioDevice, VfioIrq, VfioRegion};
pub use device_fd::VfioDeviceFd;
pub use error::{Result, VfioError};
pub use ops::VfioOps;
