//! Capabilities of regions.

use dmaspace::device::RegionCapability;

/// A part of a region that can be mapped.
///
/// Exhaustive: the original's fields.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct VfioRegionSparseMmapArea {
    /// The offset in the region.
    pub offset: u64,
    /// The size in bytes.
    pub size: u64,
}

/// The parts of a region that can be mapped.
///
/// Exhaustive: the original's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfioRegionInfoCapSparseMmap {
    /// The parts, ascending.
    pub areas: Vec<VfioRegionSparseMmapArea>,
}

/// The type of a region of the device's own.
///
/// Exhaustive: the original's fields.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct VfioRegionInfoCapType {
    /// The type.
    pub type_: u32,
    /// The subtype, which the type defines.
    pub subtype: u32,
}

/// The address of NVLink2 memory.
///
/// Exhaustive: the original's fields.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct VfioRegionInfoCapNvlink2Ssatgt {
    /// The address.
    pub tgt: u64,
}

/// The speed of an NVLink2 link.
///
/// Exhaustive: the original's fields.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct VfioRegionInfoCapNvlink2Lnkspd {
    /// The speed.
    pub link_speed: u32,
}

/// A capability of a region.
///
/// Exhaustive: the original's variants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VfioRegionInfoCap {
    /// The parts that can be mapped.
    SparseMmap(VfioRegionInfoCapSparseMmap),
    /// The type of a region of the device's own.
    Type(VfioRegionInfoCapType),
    /// The MSI-X table can be mapped.
    MsixMappable,
    /// NVLink2 memory.
    Nvlink2Ssatgt(VfioRegionInfoCapNvlink2Ssatgt),
    /// An NVLink2 link.
    Nvlink2Lnkspd(VfioRegionInfoCapNvlink2Lnkspd),
}

impl VfioRegionInfoCap {
    /// The capability, unless the original does not know it.
    pub(crate) fn of(capability: &RegionCapability) -> Option<Self> {
        Some(match capability {
            RegionCapability::SparseMmap(areas) => {
                let areas =
                    areas.iter().map(|area| VfioRegionSparseMmapArea { offset: area.offset, size: area.len.get() });
                Self::SparseMmap(VfioRegionInfoCapSparseMmap { areas: areas.collect() })
            }
            RegionCapability::Type { kind, subtype } => {
                Self::Type(VfioRegionInfoCapType { type_: *kind, subtype: *subtype })
            }
            RegionCapability::MsixMappable => Self::MsixMappable,
            RegionCapability::Nvlink2Ssatgt { target } => {
                Self::Nvlink2Ssatgt(VfioRegionInfoCapNvlink2Ssatgt { tgt: *target })
            }
            RegionCapability::Nvlink2LinkSpeed { speed } => {
                Self::Nvlink2Lnkspd(VfioRegionInfoCapNvlink2Lnkspd { link_speed: *speed })
            }
            _ => return None,
        })
    }
}
