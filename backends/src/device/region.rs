//! Regions of a device, and the kernel's description of one.

use std::num::NonZeroU64;

use dmaspace_abi::chain::{self, Capability, ChainError};
use dmaspace_abi::device::{
    DEVICE_GET_REGION_INFO, Nvlink2LinkSpeed, Nvlink2Ssatgt, REGION_CAP_MSIX_MAPPABLE, REGION_CAP_NVLINK2_LINK_SPEED,
    REGION_CAP_NVLINK2_SSATGT, REGION_CAP_SPARSE_MMAP, REGION_CAP_TYPE, REGION_HAS_CAPABILITIES, REGION_MMAP,
    REGION_READ, REGION_WRITE, RegionInfo, RegionType, SparseArea, SparseMmap,
};
use dmaspace_core::Access;
use dmaspace_core::door::{Door, Failure, Handle};
use zerocopy::{FromBytes, IntoBytes};

use crate::device::DeviceProblem;
use crate::device::reply::{self, Reply};

/// A region of a device: a BAR, the ROM or the configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Region {
    /// The number of the region: 0 to 5 are the BARs.
    pub index: u32,
    /// The size in bytes. A region that the device does not have is 0 bytes long.
    pub size: u64,
    /// The accesses this process may make.
    pub access: Access,
    /// The parts that can be mapped, in ascending order.
    pub mappable: Vec<RegionArea>,
    /// The capabilities, in the kernel's order.
    pub capabilities: Vec<RegionCapability>,
    /// All flags, as the kernel returns them (linux: include/uapi/linux/vfio.h, struct vfio_region_info).
    pub flags: u32,
    /// The first byte of the region in the device's descriptor, for a VMM's own pread(2), pwrite(2) and mmap(2).
    pub offset: u64,
}

/// A capability of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegionCapability {
    /// Only these parts can be mapped, in ascending order.
    SparseMmap(Vec<RegionArea>),
    /// A region of the device's own.
    Type {
        /// The type: a number of the kernel's, or bit 31 and a PCI vendor.
        kind: u32,
        /// The subtype, which the type or the vendor defines.
        subtype: u32,
    },
    /// The part of the BAR with the MSI-X table can be mapped too (linux: drivers/vfio/pci/vfio_pci_core.c,
    /// msix_mmappable_cap).
    MsixMappable,
    /// NVLink2 memory of a graphics card (POWER, before Linux 5.13).
    Nvlink2Ssatgt {
        /// The address of the memory as the processor's NVLink knows it.
        target: u64,
    },
    /// The link of an NVLink2 bridge (POWER, before Linux 5.13).
    Nvlink2LinkSpeed {
        /// The speed of the link.
        speed: u32,
    },
    /// A capability that this library does not know.
    Unknown {
        /// The number of the capability.
        id: u16,
        /// The version of its layout.
        version: u16,
    },
}

impl RegionCapability {
    fn areas(&self) -> Option<&[RegionArea]> {
        if let Self::SparseMmap(areas) = self { Some(areas) } else { None }
    }
}

/// A part of a region.
///
/// Exhaustive: an area has no more than bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionArea {
    /// The offset of the first byte in the region.
    pub offset: u64,
    /// The size in bytes.
    pub len: NonZeroU64,
}

impl Region {
    /// The place of `len` bytes at `offset` in the device's descriptor.
    pub(super) fn at(&self, offset: u64, len: u64) -> Result<u64, DeviceProblem> {
        let outside = DeviceProblem::Outside { offset, len, size: self.size };
        match offset.checked_add(len) {
            Some(end) if end <= self.size => self.offset.checked_add(offset).ok_or(outside),
            _ => Err(outside),
        }
    }
}

/// Asks the kernel to describe region `index`.
pub(super) fn describe(door: &dyn Door, device: Handle, index: u32) -> Result<Region, Failure> {
    let head = RegionInfo { index, ..RegionInfo::default() };
    let region = reply::ask(door, device, DEVICE_GET_REGION_INFO, head.as_bytes(), parse)?;
    if region.index == index { Ok(region) } else { Err(malformed("it describes another region")) }
}

pub(super) fn parse(reply: &[u8]) -> Result<Reply<Region>, &'static str> {
    let (info, _) = RegionInfo::read_from_prefix(reply).map_err(|_| "it is shorter than its struct")?;
    let has_capabilities = info.flags & REGION_HAS_CAPABILITIES != 0;
    if has_capabilities && info.cap_offset == 0 {
        let grew = info.argsz as usize > reply.len();
        return if grew { Ok(Reply::Needs(info.argsz)) } else { Err("its capabilities are nowhere") };
    }
    let first = if has_capabilities { info.cap_offset } else { 0 };
    let chain = chain::capabilities(reply, size_of::<RegionInfo>(), first).map_err(ChainError::reason)?;
    let mut capabilities = Vec::new();
    for found in &chain {
        capabilities.push(capability(found, info.size)?);
    }
    let mappable = match capabilities.iter().find_map(RegionCapability::areas) {
        _ if info.flags & REGION_MMAP == 0 => Vec::new(),
        Some(areas) => areas.to_vec(),
        None => area(0, info.size).into_iter().collect(),
    };
    let RegionInfo { index, flags, size, offset, .. } = info;
    Ok(Reply::Complete(Region { index, size, access: access(flags), mappable, capabilities, flags, offset }))
}

fn capability(found: &Capability<'_>, size: u64) -> Result<RegionCapability, &'static str> {
    Ok(match found.header.id {
        REGION_CAP_SPARSE_MMAP => RegionCapability::SparseMmap(areas(found.bytes, size)?),
        REGION_CAP_TYPE => {
            let RegionType { kind, subtype, .. } = body(found)?;
            RegionCapability::Type { kind, subtype }
        }
        REGION_CAP_MSIX_MAPPABLE => RegionCapability::MsixMappable,
        REGION_CAP_NVLINK2_SSATGT => RegionCapability::Nvlink2Ssatgt { target: body::<Nvlink2Ssatgt>(found)?.tgt },
        REGION_CAP_NVLINK2_LINK_SPEED => {
            RegionCapability::Nvlink2LinkSpeed { speed: body::<Nvlink2LinkSpeed>(found)?.link_speed }
        }
        id => RegionCapability::Unknown { id, version: found.header.version },
    })
}

/// The struct of a capability.
fn body<T: FromBytes>(found: &Capability<'_>) -> Result<T, &'static str> {
    T::read_from_prefix(found.bytes).map(|(body, _)| body).map_err(|_| "a capability is cut off")
}

/// The areas of a sparse region of `size` bytes.
fn areas(capability: &[u8], size: u64) -> Result<Vec<RegionArea>, &'static str> {
    let (head, rest) = SparseMmap::read_from_prefix(capability).map_err(|_| "its list of areas is cut off")?;
    let len = (head.nr_areas as usize).checked_mul(size_of::<SparseArea>());
    let list = len.and_then(|len| rest.get(..len)).ok_or("its list of areas is cut off")?;
    let mut found = Vec::new();
    for bytes in list.chunks_exact(size_of::<SparseArea>()) {
        if let Ok(SparseArea { offset, size }) = SparseArea::read_from_bytes(bytes) {
            found.extend(area(offset, size));
        }
    }
    found.sort_unstable_by_key(|area| area.offset);
    if found.iter().all(|area| lies_within(area, size)) { Ok(found) } else { Err("an area reaches past its region") }
}

fn lies_within(area: &RegionArea, size: u64) -> bool {
    area.offset.checked_add(area.len.get()).is_some_and(|end| end <= size)
}

/// An area, unless it is empty.
fn area(offset: u64, size: u64) -> Option<RegionArea> {
    NonZeroU64::new(size).map(|len| RegionArea { offset, len })
}

fn access(flags: u32) -> Access {
    let mut access = Access::empty();
    access.set(Access::READ, flags & REGION_READ != 0);
    access.set(Access::WRITE, flags & REGION_WRITE != 0);
    access
}

fn malformed(why: &'static str) -> Failure {
    Failure::malformed(DEVICE_GET_REGION_INFO.name, why)
}
