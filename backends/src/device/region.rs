//! Regions of a device, and the kernel's description of one.

use std::num::NonZeroU64;

use dmaspace_abi::chain::{self, ChainError};
use dmaspace_abi::device::{
    DEVICE_GET_REGION_INFO, REGION_CAP_SPARSE_MMAP, REGION_HAS_CAPABILITIES, REGION_MMAP, REGION_READ, REGION_WRITE,
    RegionInfo, SparseArea, SparseMmap,
};
use dmaspace_core::Access;
use dmaspace_core::door::{Command, Door, Failure, Handle, Kernel};
use zerocopy::{FromBytes, IntoBytes};

use crate::device::DeviceProblem;

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
    /// The first byte of the region in the device's descriptor.
    offset: u64,
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

/// The number of attempts to get a description that keeps growing.
const ATTEMPTS: usize = 8;
/// An upper bound for the size of a description, enough for 4,096 areas.
const MOST_ROOM: u32 = 1 << 16;

/// Asks the kernel to describe region `index`, with a larger buffer each time until the capabilities fit.
pub(super) fn describe(door: &dyn Door, device: Handle, index: u32) -> Result<Region, Failure> {
    let mut room = RegionInfo::SIZE;
    for _ in 0..ATTEMPTS {
        let mut reply = question(index, room);
        door.call(device, Command::with_bytes(DEVICE_GET_REGION_INFO, &mut reply))?;
        match parse(&reply).map_err(malformed)? {
            Reply::Complete(region) if region.index == index => return Ok(region),
            Reply::Complete(_) => return Err(malformed("it describes another region")),
            Reply::Needs(more) if more > MOST_ROOM => return Err(malformed("it needs an absurdly large buffer")),
            Reply::Needs(more) => room = more,
        }
    }
    Err(malformed("it needs a larger buffer every time"))
}

/// The meaning of a reply.
pub(super) enum Reply {
    /// The whole description.
    Complete(Region),
    /// The capabilities did not fit. The description needs this many bytes.
    Needs(u32),
}

fn question(index: u32, room: u32) -> Vec<u8> {
    let info = RegionInfo { argsz: room, index, ..RegionInfo::default() };
    let mut bytes = info.as_bytes().to_vec();
    bytes.resize(room as usize, 0);
    bytes
}

pub(super) fn parse(reply: &[u8]) -> Result<Reply, &'static str> {
    let (info, _) = RegionInfo::read_from_prefix(reply).map_err(|_| "it is shorter than its struct")?;
    let has_capabilities = info.flags & REGION_HAS_CAPABILITIES != 0;
    if has_capabilities && info.cap_offset == 0 {
        let grew = info.argsz as usize > reply.len();
        return if grew { Ok(Reply::Needs(info.argsz)) } else { Err("its capabilities are nowhere") };
    }
    let first = if has_capabilities { info.cap_offset } else { 0 };
    let capabilities = chain::capabilities(reply, size_of::<RegionInfo>(), first).map_err(ChainError::reason)?;
    let sparse = capabilities.iter().find(|capability| capability.header.id == REGION_CAP_SPARSE_MMAP);
    let mappable = match sparse {
        _ if info.flags & REGION_MMAP == 0 => Vec::new(),
        Some(capability) => areas(capability.bytes, info.size)?,
        None => area(0, info.size).into_iter().collect(),
    };
    let RegionInfo { index, size, offset, .. } = info;
    Ok(Reply::Complete(Region { index, size, access: access(info.flags), mappable, offset }))
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
