//! Page tables and their logs (linux: drivers/iommu/iommufd/hw_pagetable.c, drivers/iommu/intel/iommu.c).
//!
//! The kernel makes page tables for address spaces that devices are attached to, and removes them; others are allocated
//! by request, for a device, and those can log. All page tables of one address space have the same mappings.
//!
//! Every entry of a page table has one dirty bit, and an entry is as large a page as the IOMMU can use there. A query
//! that ends inside an entry reports all of it; a query that begins inside an entry clears its bit and reports it from
//! the query's beginning.

use std::collections::BTreeSet;
use std::mem::offset_of;

use dmaspace_abi::iommufd::{self, HwInfo, HwptAlloc, HwptGetDirtyBitmap, HwptSetDirtyTracking};
use dmaspace_core::door::Errno;
use dmaspace_core::{Iova, IovaRange, PageSize, PageSizes};

use super::ioas::Ioas;
use super::{Context, Object, read};
use crate::dialect::call::Call;
use crate::dialect::{System, require};
use crate::engine::Run;
use crate::facts::Iommu;

/// A page table.
#[derive(Debug)]
pub(super) struct PageTable {
    /// `true` if the kernel made it, and removes it with its last device.
    pub(super) is_automatic: bool,
    /// The IOMMU that it fits.
    iommu: Iommu,
    /// The log of writes; `None` for a page table that cannot log.
    log: Option<Log>,
}

/// The writes through a page table, while logging is on.
#[derive(Debug, Default)]
struct Log {
    is_on: bool,
    /// The first addresses of the entries that were written through.
    written: BTreeSet<Iova>,
}

impl PageTable {
    /// A page table that the kernel makes.
    pub(super) fn automatic(iommu: Iommu) -> Self {
        Self { is_automatic: true, iommu, log: None }
    }

    /// A page table that is allocated by request.
    fn by_hand(iommu: Iommu, logs: bool) -> Self {
        Self { is_automatic: false, iommu, log: logs.then(Log::default) }
    }

    /// Returns whether devices behind an IOMMU can be attached to it.
    pub(super) fn fits(&self, iommu: Iommu) -> bool {
        self.iommu == iommu
    }

    /// A device wrote in `range`, through `run`.
    pub(super) fn note_write(&mut self, run: &Run, range: IovaRange, sizes: PageSizes) {
        let Some(log) = self.log.as_mut().filter(|log| log.is_on) else { return };
        for entry in entries(run, range, sizes) {
            log.written.insert(entry.first());
        }
    }

    /// Drops the log of `range`, whose mapping was removed.
    pub(super) fn forget(&mut self, range: IovaRange) {
        if let Some(log) = &mut self.log {
            log.written.retain(|at| !range.contains(*at));
        }
    }

    /// iopt_set_dirty_tracking: an old log is cleared first.
    fn set_logging(&mut self, on: bool) -> Result<(), Errno> {
        let log = self.log.as_mut().ok_or(Errno::EOPNOTSUPP)?;
        if on {
            log.written.clear();
        }
        log.is_on = on;
        Ok(())
    }

    /// intel_iommu_read_and_clear_dirty.
    fn take_written(&mut self, entry: IovaRange, clear: bool) -> bool {
        let Some(log) = &mut self.log else { return false };
        if clear { log.written.remove(&entry.first()) } else { log.written.contains(&entry.first()) }
    }
}

/// The whole entries that map the part of a run inside `range`.
fn entries(run: &Run, range: IovaRange, sizes: PageSizes) -> impl Iterator<Item = IovaRange> {
    let shown = run.range.intersection(range);
    let mut next = shown.map(IovaRange::first);
    std::iter::from_fn(move || {
        let at = next.filter(|at| shown.is_some_and(|shown| shown.contains(*at)))?;
        let entry = entry_at(run, at, sizes)?;
        next = entry.end();
        Some(entry)
    })
}

/// The entry that maps `at`: the largest page inside the run for which bus and host address have the same alignment.
fn entry_at(run: &Run, at: Iova, sizes: PageSizes) -> Option<IovaRange> {
    let misalignment = run.range.first().get() ^ run.memory.address().get();
    let aligned = sizes.iter().filter(|page| page.divides(misalignment));
    let usable = aligned.filter_map(|page| page_around(at, page)).filter(|entry| run.range.covers(*entry));
    usable.max_by_key(|entry| entry.bytes()).or_else(|| page_around(at, sizes.smallest()))
}

/// The page of this size that contains `at`.
fn page_around(at: Iova, page: PageSize) -> Option<IovaRange> {
    IovaRange::with_len(Iova::new(page.round_down(at.get())), page.bytes()).ok()
}

impl Context {
    /// iommufd_get_hw_info, of a driver without data of its own.
    pub(super) fn hw_info(&self, system: &System, call: &mut Call<'_, '_>) -> Result<(), Errno> {
        require(system.facts.has_logging_page_tables(), Errno::ENOTTY)?;
        let mut info: HwInfo = read(call)?;
        require(info.flags == 0 && info.reserved == [0; 3], Errno::EOPNOTSUPP)?;
        let group = self.group_of(info.dev_id)?;
        (info.data_len, info.out_data_type) = (0, 0);
        let logs = system.facts.iommu(group).logs_writes;
        info.out_capabilities = if logs { iommufd::CAP_DIRTY_TRACKING } else { 0 };
        call.write(&info);
        Ok(())
    }

    /// iommufd_hwpt_alloc, of page tables that the kernel manages.
    pub(super) fn hwpt_alloc(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<(), Errno> {
        require(system.facts.has_logging_page_tables(), Errno::ENOTTY)?;
        let mut alloc: HwptAlloc = read(call)?;
        require(alloc.reserved == 0, Errno::EOPNOTSUPP)?;
        require((alloc.data_type == 0) == (alloc.data_len == 0), Errno::EINVAL)?;
        let iommu = system.facts.iommu(self.group_of(alloc.dev_id)?);
        // A page table that was allocated by request as a parent needs a driver's data.
        self.ioas(alloc.pt_id).map_err(|_| Errno::EINVAL)?;
        let logs = alloc.flags & iommufd::HWPT_ALLOC_DIRTY_TRACKING != 0;
        let known = alloc.flags & !iommufd::HWPT_ALLOC_DIRTY_TRACKING == 0 && alloc.data_type == 0;
        require(known && (iommu.logs_writes || !logs), Errno::EOPNOTSUPP)?;
        let id = self.free_id();
        self.add_page_table(system, alloc.pt_id, id, PageTable::by_hand(iommu, logs))?;
        alloc.out_hwpt_id = id;
        call.write(&alloc);
        Ok(())
    }

    /// iommufd_hwpt_set_dirty_tracking.
    pub(super) fn set_dirty_tracking(&mut self, system: &System, call: &Call<'_, '_>) -> Result<(), Errno> {
        require(system.facts.has_logging_page_tables(), Errno::ENOTTY)?;
        let set: HwptSetDirtyTracking = read(call)?;
        require(set.flags & !iommufd::DIRTY_TRACKING_ENABLE == 0, Errno::EOPNOTSUPP)?;
        let page_table = self.page_table_mut(set.hwpt_id)?;
        page_table.set_logging(set.flags & iommufd::DIRTY_TRACKING_ENABLE != 0)
    }

    /// iommufd_hwpt_get_dirty_bitmap: reports nothing behind the first gap, and no error there.
    pub(super) fn get_dirty_bitmap(&mut self, system: &System, call: &mut Call<'_, '_>) -> Result<(), Errno> {
        require(system.facts.has_logging_page_tables(), Errno::ENOTTY)?;
        let get: HwptGetDirtyBitmap = read(call)?;
        let known = get.flags & !iommufd::GET_DIRTY_BITMAP_NO_CLEAR == 0 && get.reserved == 0;
        require(known, Errno::EOPNOTSUPP)?;
        let sizes = system.facts.fixed.as_ref().ok_or(Errno::EOPNOTSUPP)?.page_sizes;
        let (ioas, _) = self.ioas_of_page_table(get.hwpt_id)?;
        let range = checked_range(ioas, &get)?;
        let shown = ioas.contiguous(range);
        let page_table = ioas.page_tables.get_mut(&get.hwpt_id).ok_or(Errno::ENOENT)?;
        let log = page_table.log.as_ref().ok_or(Errno::EOPNOTSUPP)?;
        if !log.is_on {
            return Ok(());
        }
        let clear = get.flags & iommufd::GET_DIRTY_BITMAP_NO_CLEAR == 0;
        for run in shown {
            // An entry that reaches into the range is cleared whole, and reported from where the walk reaches it.
            for entry in entries(&run, range, sizes).filter(|entry| page_table.take_written(*entry, clear)) {
                let from = entry.first().max(range.first());
                let first = (from.get() - range.first().get()) >> get.page_size.trailing_zeros();
                let last = (from.get() - range.first().get() + (entry.last().get() - entry.first().get()))
                    >> get.page_size.trailing_zeros();
                set_bits(call, first, last);
            }
        }
        Ok(())
    }

    /// The group of a bound device.
    fn group_of(&self, device: u32) -> Result<u32, Errno> {
        match self.objects.get(&device) {
            Some(Object::Device(group)) => Ok(*group),
            _ => Err(Errno::ENOENT),
        }
    }
}

/// iommufd_check_iova_range.
fn checked_range(ioas: &Ioas, get: &HwptGetDirtyBitmap) -> Result<IovaRange, Errno> {
    let last = get.iova.checked_add(get.length.wrapping_sub(1)).ok_or(Errno::EOVERFLOW)?;
    let bounds = get.iova | last.wrapping_add(1);
    require(ioas.alignment.divides(bounds) && get.page_size != 0, Errno::EINVAL)?;
    require(bounds & (get.page_size - 1) == 0, Errno::EINVAL)?;
    IovaRange::new(Iova::new(get.iova), Iova::new(last)).map_err(|_| Errno::EINVAL)
}

/// iova_bitmap_set, which checks neither the range nor the bitmap's length: bits outside the bitmap are lost.
fn set_bits(call: &mut Call<'_, '_>, first: u64, last: u64) {
    let Some(bitmap) = call.buffer(offset_of!(HwptGetDirtyBitmap, data)) else { return };
    for bit in first..=last {
        let byte = usize::try_from(bit / 8).ok().and_then(|at| bitmap.get_mut(at));
        // Words are in the host's order, and hosts are little-endian.
        if let Some(byte) = byte {
            *byte |= 1 << (bit % 8);
        }
    }
}
