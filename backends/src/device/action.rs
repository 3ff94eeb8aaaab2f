//! Actions on a device, for errors.

use std::fmt;

use dmaspace_abi::device::REGION_CONFIG;

use crate::device::irq_index::IrqIndex;

/// An action on a device. A bare number is the region's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Ask for the size and the kind of a region.
    Describe(u32),
    /// Read from a region.
    Read(u32),
    /// Write to a region.
    Write(u32),
    /// Map a part of a region.
    Map(u32),
    /// Export a part of a region.
    Export(u32),
    /// Reset the device.
    Reset,
    /// Ask for the kind of the device.
    DescribeDevice,
    /// Ask for the number of interrupts of a kind.
    DescribeIrqs(IrqIndex),
    /// Set up, mask, unmask or trigger interrupts of a kind.
    SetIrqs(IrqIndex),
    /// Ask for the devices that a hot reset affects.
    DescribeHotReset,
    /// Reset the slot or bus of the device.
    HotReset,
    /// Set the token of its virtual functions.
    SetToken,
    /// Use the migration of the device.
    Migration,
    /// Use the device's log of its writes.
    Logging,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Describe(index) => write!(f, "describe {}", RegionName(*index)),
            Self::Read(index) => write!(f, "read {}", RegionName(*index)),
            Self::Write(index) => write!(f, "write {}", RegionName(*index)),
            Self::Map(index) => write!(f, "map {}", RegionName(*index)),
            Self::Export(index) => write!(f, "export {}", RegionName(*index)),
            Self::Reset => f.write_str("reset"),
            Self::DescribeDevice => f.write_str("describe"),
            Self::DescribeIrqs(index) => write!(f, "describe {index}"),
            Self::SetIrqs(index) => write!(f, "set {index}"),
            Self::DescribeHotReset => f.write_str("describe hot reset"),
            Self::HotReset => f.write_str("hot reset"),
            Self::SetToken => f.write_str("set VF token"),
            Self::Migration => f.write_str("migration"),
            Self::Logging => f.write_str("log of writes"),
        }
    }
}

/// The usual name of a region.
struct RegionName(u32);

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bar @ 0..=5 => write!(f, "BAR {bar}"),
            REGION_CONFIG => f.write_str("configuration space"),
            other => write!(f, "region {other}"),
        }
    }
}
