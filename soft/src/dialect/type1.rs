//! A type1 container: whole mappings in fixed ranges (linux: drivers/vfio/vfio_iommu_type1.c).
//!
//! Limits: no emulated devices.

mod addresses;
mod dirty;

use std::collections::{BTreeMap, BTreeSet};

use dmaspace_abi::IovaSpan;
use dmaspace_abi::type1::{self, Bitmap, DmaAvailable, Info, IovaRanges, Migration, UnmapDirty};
use dmaspace_abi::vfio::{self, CapabilityHeader, Extension, IommuType, MapDma, UnmapDma};
use dmaspace_core::door::Errno;
use dmaspace_core::{Access, Iova, IovaRange, PageSize};
use std::mem::offset_of;
use zerocopy::IntoBytes;

use crate::dialect::call::{Call, UserMemory};
use crate::dialect::{Pid, System, outside, require};
use crate::engine::{Run, Table};
use dirty::Log;

/// VFIO_TYPE1_NESTING_IOMMU: old kernels report it and then fail to attach.
const NESTING: IommuType = IommuType(6);
/// The largest bitmap that one call fills (linux: DIRTY_BITMAP_SIZE_MAX).
const DIRTY_BITMAP_SIZE_MAX: u64 = type1::LONGEST_BITMAP;

/// A container of the type1 driver.
#[derive(Debug)]
pub(crate) struct Type1 {
    version: IommuType,
    table: Table,
    /// The number of mappings that it has room for.
    available: u32,
    groups: Vec<u32>,
    /// The ranges that can be mapped, ascending.
    ranges: Vec<IovaRange>,
    /// `true` if the writes of devices are logged.
    is_logging: bool,
    /// The logs of the mappings that were asked about.
    logs: BTreeMap<Iova, Log>,
    /// The mappings whose addresses were invalidated.
    without_address: BTreeSet<Iova>,
}

/// The answer of type1 to VFIO_CHECK_EXTENSION. Coherency cannot be enforced here.
pub(crate) fn has_extension(system: &System, extension: Extension) -> bool {
    let always = [IommuType::TYPE1.extension(), IommuType::TYPE1_V2.extension(), Extension::UNMAP_ALL];
    always.contains(&extension)
        || (extension == NESTING.extension() && !system.facts.is_modern())
        || (extension == Extension::UPDATE_VADDR && system.facts.moves_addresses())
}

impl Type1 {
    /// vfio_iommu_type1_open.
    pub(crate) fn new(system: &System, version: IommuType) -> Self {
        let available = system.facts.dma_entries;
        Self {
            version,
            table: Table::default(),
            available,
            groups: Vec::new(),
            ranges: Vec::new(),
            is_logging: false,
            logs: BTreeMap::new(),
            without_address: BTreeSet::new(),
        }
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// vfio_iommu_type1_attach_group.
    pub(crate) fn attach(&mut self, system: &System, group: u32) -> Result<(), Errno> {
        require(self.version != NESTING, Errno::EINVAL)?;
        require(self.without_address.is_empty(), Errno::EBUSY)?;
        system.facts.attach(group)?;
        let conflict = system.facts.reserved(group).iter().any(|range| self.table.overlaps(*range));
        require(!conflict, Errno::EINVAL)?;
        let mut groups = self.groups.clone();
        groups.push(group);
        let ranges = usable_ranges(system, &groups);
        require(!ranges.is_empty(), Errno::EINVAL)?;
        (self.groups, self.ranges) = (groups, ranges);
        Ok(())
    }

    /// vfio_iommu_type1_detach_group. The mappings end with the last group.
    pub(crate) fn detach(&mut self, system: &mut System, group: u32) {
        self.groups.retain(|other| *other != group);
        if self.groups.is_empty() {
            self.release(system);
        } else {
            self.ranges = usable_ranges(system, &self.groups);
        }
    }

    /// vfio_iommu_type1_release.
    pub(crate) fn release(&mut self, system: &mut System) {
        self.sweep(system, IovaRange::all());
        self.without_address.clear();
        for run in self.table.drain() {
            self.available += 1;
            forget(system, run);
        }
    }

    /// vfio_iommu_type1_ioctl.
    pub(crate) fn ioctl(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        match call.number() {
            number if number == type1::GET_INFO.number => self.get_info(system, call),
            number if number == vfio::MAP_DMA.number => self.map(system, call),
            number if number == vfio::UNMAP_DMA.number => self.unmap(system, call),
            number if number == type1::DIRTY_PAGES.number => self.dirty_pages(system, call),
            _ => Err(Errno::ENOTTY),
        }
    }

    /// vfio_iommu_type1_get_info: with too small an `argsz` it succeeds without the capabilities, and returns the size
    /// it needs.
    fn get_info(&self, system: &System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        let mut info: Info = call.read_prefix(offset_of!(Info, cap_offset))?;
        let asked = info.argsz as usize;
        require(asked >= offset_of!(Info, cap_offset), Errno::EINVAL)?;
        require(call.bytes()?.len() >= asked, Errno::EINVAL)?;
        info.flags = type1::INFO_PAGE_SIZES | type1::INFO_CAPABILITIES;
        info.iova_pgsizes = page_sizes(system);
        let chain = self.capabilities(system);
        let wanted = size_of::<Info>() + chain.len();
        if asked < wanted {
            info.argsz = u32::try_from(wanted).map_err(|_| Errno::E2BIG)?;
        } else {
            call.write_at(size_of::<Info>(), &chain);
            info.cap_offset = Info::SIZE;
        }
        call.write_prefix(&info, asked.min(size_of::<Info>()));
        Ok(0)
    }

    /// The capabilities in the kernel's order, as they follow the info struct.
    fn capabilities(&self, system: &System) -> Vec<u8> {
        let migration = Migration {
            header: header(type1::CAP_MIGRATION),
            pgsize_bitmap: granule_of(system).bytes(),
            max_dirty_bitmap_size: DIRTY_BITMAP_SIZE_MAX,
            ..Migration::default()
        };
        let available = DmaAvailable { header: header(type1::CAP_DMA_AVAIL), avail: self.available };
        let nr_iovas = u32::try_from(self.ranges.len()).unwrap_or(u32::MAX);
        let ranges = IovaRanges { header: header(type1::CAP_IOVA_RANGE), nr_iovas, reserved: 0 };
        let spans: Vec<_> = self.ranges.iter().map(span_of).collect();
        chain_of(&[&[migration.as_bytes()], &[available.as_bytes()], &[ranges.as_bytes(), spans.as_bytes()]])
    }

    /// vfio_dma_do_map.
    fn map(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        let map: MapDma = call.read()?;
        require(map.argsz >= MapDma::SIZE, Errno::EINVAL)?;
        require(map.flags & !(vfio::MAP_READ | vfio::MAP_WRITE | type1::MAP_VADDR) == 0, Errno::EINVAL)?;
        let memory = call.memory(offset_of!(MapDma, vaddr), map.vaddr);
        let range = check_map_bounds(system, &map, &memory)?;
        if map.flags & type1::MAP_VADDR != 0 {
            return self.update_vaddr(system, call.by, range);
        }
        require(!self.table.overlaps(range), Errno::EEXIST)?;
        require(self.available > 0, Errno::ENOSPC)?;
        require(self.ranges.iter().any(|usable| usable.covers(range)), Errno::EINVAL)?;
        let run = pin(system, call.by, range, &memory, access_of(map.flags))?;
        if let Some(errno) = system.cut.take() {
            self.table.leave_behind(&run, granule_of(system));
            forget(system, run);
            return Err(errno);
        }
        self.table.insert(run);
        self.available -= 1;
        Ok(0)
    }

    /// vfio_iommu_type1_unmap_dma. The size is written back on success only.
    fn unmap(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        let mut unmap: UnmapDma = call.read()?;
        require(unmap.argsz >= UnmapDma::SIZE, Errno::EINVAL)?;
        let known = type1::UNMAP_GET_DIRTY | type1::UNMAP_ALL | type1::UNMAP_VADDR;
        require(unmap.flags & !known == 0, Errno::EINVAL)?;
        if unmap.flags & type1::UNMAP_GET_DIRTY != 0 {
            self.tell_unmapped(system, call, &unmap)?;
        }
        unmap.size = self.unmap_range(system, &unmap)?;
        call.write(&unmap);
        Ok(0)
    }

    /// Reports the pages that were written in the range of an unmap.
    fn tell_unmapped(&mut self, system: &System, call: &mut Call<'_, '_>, unmap: &UnmapDma) -> Result<(), Errno> {
        let alone = unmap.flags & (type1::UNMAP_ALL | type1::UNMAP_VADDR) == 0;
        require(alone && unmap.argsz >= UnmapDirty::SIZE, Errno::EINVAL)?;
        let request: UnmapDirty = call.read()?;
        self.check_bitmap(system, unmap.size, &request.bitmap)?;
        let Some(range) = check_unmap_bounds(system, unmap, false)? else { return Ok(()) };
        require(!cuts_a_run(&self.table, range), Errno::EINVAL)?;
        self.fill(system, call, offset_of!(UnmapDirty, bitmap) + offset_of!(Bitmap, data), range)
    }

    /// vfio_dma_do_unmap.
    fn unmap_range(&mut self, system: &mut System, unmap: &UnmapDma) -> Result<u64, Errno> {
        let all = unmap.flags & type1::UNMAP_ALL != 0;
        let Some(range) = check_unmap_bounds(system, unmap, all)? else { return Ok(0) };
        if self.version == IommuType::TYPE1_V2 && !all {
            require(!cuts_a_run(&self.table, range), Errno::EINVAL)?;
        }
        // v1 removes a whole mapping whose beginning lies in the range, and stops at one that began before.
        let begun_before = self.table.at(range.first()).is_some_and(|run| run.range.first() < range.first());
        if begun_before {
            return Ok(0);
        }
        if unmap.flags & type1::UNMAP_VADDR != 0 {
            return self.invalidate_vaddrs(range);
        }
        let firsts: Vec<_> = self.table.overlapping(range).map(|run| run.range.first()).collect();
        let mut bytes = 0;
        for first in firsts {
            bytes += self.remove(system, first);
            system.cut.take().map_or(Ok(()), Err)?;
        }
        Ok(bytes)
    }

    /// vfio_remove_dma.
    fn remove(&mut self, system: &mut System, first: Iova) -> u64 {
        let Some(run) = self.table.remove(first) else { return 0 };
        self.logs.remove(&first);
        self.without_address.remove(&first);
        let bytes = run.bytes();
        self.available += 1;
        self.sweep(system, run.range);
        forget(system, run);
        bytes
    }

    /// Clears the hardware's entries, including those that a failed map left.
    fn sweep(&mut self, system: &mut System, range: IovaRange) {
        for run in self.table.sweep(range) {
            system.release(run.memory);
        }
    }
}

/// The checks of a map that depend on the request alone. Linux 7.2 checks for a wrap before its other checks.
fn check_map_bounds(system: &System, map: &MapDma, memory: &UserMemory) -> Result<IovaRange, Errno> {
    let rights = map.flags & (vfio::MAP_READ | vfio::MAP_WRITE) != 0;
    let range = IovaRange::with_len(Iova::new(map.iova), map.size);
    let wraps = map.size > 0 && (range.is_err() || memory.address.checked_add(map.size - 1).is_none());
    if system.facts.is_modern() {
        require(map.size > 0, Errno::EINVAL)?;
        require(!wraps, system.facts.wrap())?;
    }
    require(rights == (map.flags & type1::MAP_VADDR == 0), Errno::EINVAL)?;
    let aligned = granule_of(system).divides(map.size | map.iova | memory.address);
    require(map.size > 0 && aligned, Errno::EINVAL)?;
    require(!wraps, system.facts.wrap())?;
    range.map_err(|_| system.facts.wrap())
}

/// The checks of an unmap that depend on the request alone. `None` for a range that ends at 2^64, in which Linux 6.12
/// finds no mapping: it compares with an end that has wrapped to zero.
fn check_unmap_bounds(system: &System, unmap: &UnmapDma, all: bool) -> Result<Option<IovaRange>, Errno> {
    let granule = granule_of(system);
    require(granule.divides(unmap.iova), Errno::EINVAL)?;
    if all {
        require(unmap.iova == 0 && unmap.size == 0, Errno::EINVAL)?;
        return Ok(Some(IovaRange::all()));
    }
    require(unmap.size > 0 && granule.divides(unmap.size), Errno::EINVAL)?;
    let range = IovaRange::with_len(Iova::new(unmap.iova), unmap.size).map_err(|_| system.facts.wrap())?;
    Ok(Some(range).filter(|range| system.facts.is_modern() || range.end().is_some()))
}

/// Returns whether a run lies across an end of `range`.
fn cuts_a_run(table: &Table, range: IovaRange) -> bool {
    [range.first(), range.last()].into_iter().filter_map(|end| table.at(end)).any(|run| !range.covers(run.range))
}

/// vfio_pin_map_dma: page by page, so that the first obstacle, the limit or a missing page, decides the answer. Other
/// devices' memory is not charged.
fn pin(system: &mut System, by: Pid, range: IovaRange, memory: &UserMemory, access: Access) -> Result<Run, Errno> {
    let size = range.bytes().try_into().map_err(|_| Errno::EINVAL)?;
    let page = system.page();
    let there = memory.pinnable_pages(size, access.contains(Access::WRITE), page) << page.shift();
    let account = system.account(by);
    let charged = if memory.is_device_memory() { 0 } else { size };
    require(charged.min(there) <= account.room(), Errno::ENOMEM)?;
    let pinned = memory.pinnable(size, access.contains(Access::WRITE)).ok_or(Errno::EFAULT)?;
    account.lock(charged)?;
    account.note_pins(charged);
    Run::new(range.first(), pinned, access, by.0).ok_or(Errno::EINVAL)
}

/// The number of bytes that were charged for a mapping.
fn charged_for(run: &Run) -> u64 {
    if run.memory.is_device_memory() { 0 } else { run.bytes() }
}

/// Uncharges a mapping and releases its memory.
fn forget(system: &mut System, run: Run) {
    let charged = charged_for(&run);
    system.give_back(Pid(run.source), |account| account.unlock(charged));
    system.release(run.memory);
}

/// The page sizes of the IOMMU, where sizes below the host's page become the host's page (linux:
/// vfio_update_pgsize_bitmap).
pub(crate) fn page_sizes(system: &System) -> u64 {
    let mask = system.facts.fixed.as_ref().map_or(0, |fixed| fixed.page_sizes.mask());
    let below = system.page().bytes() - 1;
    if mask & below == 0 { mask } else { mask & !below | system.page().bytes() }
}

/// The alignment of every address and length.
fn granule_of(system: &System) -> PageSize {
    let smallest = PageSize::from_shift(page_sizes(system).trailing_zeros());
    debug_assert!(smallest.is_some(), "a checked profile with type1 has page sizes");
    smallest.unwrap_or(system.page())
}

/// The ranges that can be mapped while these groups are attached (linux: vfio_iommu_resv_exclude).
fn usable_ranges(system: &System, groups: &[u32]) -> Vec<IovaRange> {
    let mut ranges: Vec<_> = system.facts.fixed.iter().map(|fixed| fixed.aperture).collect();
    for hole in groups.iter().flat_map(|group| system.facts.reserved(*group)) {
        ranges = outside(&ranges, *hole);
    }
    ranges
}

pub(crate) fn access_of(flags: u32) -> Access {
    let mut access = Access::empty();
    access.set(Access::READ, flags & vfio::MAP_READ != 0);
    access.set(Access::WRITE, flags & vfio::MAP_WRITE != 0);
    access
}

/// The header of a capability that is not chained yet.
pub(crate) fn header(id: u16) -> CapabilityHeader {
    CapabilityHeader { id, version: 1, next: 0 }
}

pub(crate) fn span_of(range: &IovaRange) -> IovaSpan {
    IovaSpan { start: range.first().get(), last: range.last().get() }
}

/// Chains capabilities behind an info struct, each padded to eight bytes, with `next` counted from the start of the
/// struct (linux: drivers/vfio/vfio_main.c, vfio_info_cap_add, vfio_info_cap_shift).
pub(crate) fn chain_of(capabilities: &[&[&[u8]]]) -> Vec<u8> {
    let mut chain = Vec::new();
    let mut previous: Option<usize> = None;
    for capability in capabilities {
        let at = chain.len();
        chain.extend(capability.concat());
        chain.resize(chain.len().next_multiple_of(8), 0);
        if let Some(field) = previous.and_then(|previous| next_field(&mut chain, previous)) {
            let next = u32::try_from(size_of::<Info>() + at).unwrap_or(0);
            field.copy_from_slice(next.as_bytes());
        }
        previous = Some(at);
    }
    chain
}

/// The `next` field of the capability at `at`.
fn next_field(chain: &mut [u8], at: usize) -> Option<&mut [u8]> {
    let from = at + offset_of!(CapabilityHeader, next);
    chain.get_mut(from..from + size_of::<u32>())
}
