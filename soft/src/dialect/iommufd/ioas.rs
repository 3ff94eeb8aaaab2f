//! One I/O address space (linux: drivers/iommu/iommufd/io_pagetable.c).
//!
//! Without a device it is all of [0, 2^64-1], aligned to a byte. A device brings a page table, unless it finds one,
//! which narrows the address space to the IOMMU's range and page, and reserves the device's ranges.

use std::collections::BTreeMap;

use dmaspace_core::door::Errno;
use dmaspace_core::{Access, Iova, IovaRange, PageSize};

use super::DeviceIndex;
use super::page_table::PageTable;
use super::pages::{PagesStore, Piece};
use crate::dialect::{System, outside, require};
use crate::engine::{Run, Table};

/// One byte.
const BYTE: PageSize = match PageSize::from_shift(0) {
    Some(page) => page,
    None => PageSize::K4,
};

/// An address space.
#[derive(Debug)]
pub(super) struct Ioas {
    pub(super) table: Table,
    /// The alignment of bus addresses.
    pub(super) alignment: PageSize,
    /// The page tables that map it.
    pub(super) page_tables: BTreeMap<u32, PageTable>,
    reserved: Vec<(IovaRange, Owner)>,
    /// The ranges that must not be reserved (IOAS_ALLOW_IOVAS).
    allowed: Vec<IovaRange>,
    /// The alignment of bus addresses without a page table: a page where huge pages are forbidden.
    smallest: PageSize,
    /// `true` if mappings can be cut, because none of them is made of large pages.
    cuts: bool,
}

/// The owner of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    PageTable(u32),
    Device(DeviceIndex),
}

/// The wanted address of a mapping.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    At(Iova),
    Anywhere,
}

impl Default for Ioas {
    fn default() -> Self {
        Self {
            table: Table::default(),
            alignment: BYTE,
            page_tables: BTreeMap::new(),
            reserved: Vec::new(),
            allowed: Vec::new(),
            smallest: BYTE,
            cuts: false,
        }
    }
}

impl Ioas {
    /// The ranges that are not reserved, ascending.
    pub(super) fn usable(&self) -> Vec<IovaRange> {
        let mut usable = vec![IovaRange::all()];
        for (hole, _) in &self.reserved {
            usable = outside(&usable, *hole);
        }
        usable
    }

    pub(super) fn has_huge_pages(&self) -> bool {
        self.smallest == BYTE
    }

    /// iopt_enable_large_pages and iopt_disable_large_pages.
    pub(super) fn allow_huge_pages(&mut self, page: PageSize, allowed: bool) -> Result<(), Errno> {
        if allowed == self.has_huge_pages() {
            return Ok(());
        }
        if !allowed {
            require(self.page_tables.is_empty() || self.table.iter().next().is_none(), Errno::EINVAL)?;
            require(self.table.iter().all(|run| is_aligned(run, page, page)), Errno::EADDRINUSE)?;
        }
        self.smallest = if allowed { BYTE } else { page };
        self.alignment = if self.page_tables.is_empty() { self.smallest } else { self.alignment.max(self.smallest) };
        Ok(())
    }

    /// iopt_set_allow_iova: replaces the ranges that must not be reserved.
    pub(super) fn allow(&mut self, allowed: Vec<IovaRange>) -> Result<(), Errno> {
        let mut taken = self.reserved.iter().map(|(reserved, _)| reserved);
        let is_free = !taken.any(|reserved| allowed.iter().any(|range| reserved.overlaps(*range)));
        require(is_free, Errno::EADDRINUSE)?;
        self.allowed = allowed;
        Ok(())
    }

    /// iopt_table_enforce_dev_resv_regions: all of them or none. A mapping or an allowed range in the way is
    /// `EADDRINUSE`.
    pub(super) fn reserve(&mut self, ranges: &[IovaRange], owner: Owner) -> Result<(), Errno> {
        for range in ranges {
            let is_free = !self.table.overlaps(*range) && !self.allowed.iter().any(|allowed| allowed.overlaps(*range));
            require(is_free, Errno::EADDRINUSE)?;
        }
        self.reserved.extend(ranges.iter().map(|range| (*range, owner)));
        Ok(())
    }

    /// iopt_remove_reserved_iova.
    pub(super) fn unreserve(&mut self, owner: Owner) {
        self.reserved.retain(|(_, other)| *other != owner);
    }

    /// iopt_table_add_domain: existing mappings must fit the page table, and are pinned unless they already are.
    pub(super) fn add_page_table(
        &mut self,
        system: &mut System,
        pages: &mut PagesStore,
        id: u32,
        page_table: PageTable,
    ) -> Result<(), Errno> {
        let fixed = system.facts.fixed.clone().ok_or(Errno::EOPNOTSUPP)?;
        let alignment = fixed.page_sizes.smallest().max(self.alignment);
        require(alignment <= system.page(), Errno::EINVAL)?;
        require(self.table.iter().all(|run| is_aligned(run, alignment, system.page())), Errno::EADDRINUSE)?;
        let beyond = IovaRange::all().without(fixed.aperture).1;
        self.reserve(beyond.as_slice(), Owner::PageTable(id))?;
        if self.page_tables.is_empty() {
            self.pin_all(system, pages).inspect_err(|_| self.unreserve(Owner::PageTable(id)))?;
        }
        self.alignment = alignment;
        self.page_tables.insert(id, page_table);
        Ok(())
    }

    /// iopt_table_remove_domain.
    pub(super) fn remove_page_table(&mut self, system: &mut System, pages: &mut PagesStore, id: u32) {
        self.page_tables.remove(&id);
        self.unreserve(Owner::PageTable(id));
        if self.page_tables.is_empty() {
            for run in self.table.iter() {
                pages.unpin(system, run);
            }
            self.alignment = self.smallest;
        }
    }

    /// iopt_for_each_contig_area: the runs of `range` up to the first gap.
    pub(super) fn contiguous(&self, range: IovaRange) -> Vec<Run> {
        let mut next = Some(range.first());
        let mut runs = Vec::new();
        for run in self.table.overlapping(range) {
            if next != Some(run.range.first().max(range.first())) {
                break;
            }
            next = run.range.end();
            runs.push(run.clone());
        }
        runs
    }

    /// A device wrote in `range`, which lies in one run, through a page table.
    pub(super) fn note_write(&mut self, system: &System, page_table: u32, range: IovaRange) {
        let Some(fixed) = &system.facts.fixed else { return };
        let found = self.table.at(range.first()).zip(self.page_tables.get_mut(&page_table));
        if let Some((run, page_table)) = found {
            page_table.note_write(run, range, fixed.page_sizes);
        }
    }

    /// iopt_map_pages: maps pieces one after the other, and returns the address of the first.
    pub(super) fn map(
        &mut self,
        system: &mut System,
        pages: &mut PagesStore,
        pieces: Vec<Piece>,
        place: Place,
        access: Access,
    ) -> Result<Iova, Errno> {
        let length = pieces.iter().map(|piece| piece.memory.len().get()).sum();
        require(self.alignment.divides(length), Errno::EINVAL)?;
        let at = match place {
            Place::At(at) => self.checked(at, length)?,
            Place::Anywhere => self.choose(system.page(), &pieces, length)?,
        };
        let runs = self.runs_of(pages, &pieces, at, access, system.page())?;
        if !self.page_tables.is_empty() {
            // An entry must have access (linux: drivers/iommu/intel/iommu.c, __domain_mapping).
            require(!access.is_empty(), Errno::EINVAL)?;
            pin_each(system, pages, &runs)?;
        }
        for piece in &pieces {
            pages.get(piece);
        }
        for run in runs {
            self.table.insert(run);
        }
        Ok(at)
    }

    /// iopt_get_pages: the memory of `length` bytes from `at`, without a gap.
    pub(super) fn pieces(&self, at: Iova, length: u64) -> Result<Vec<Piece>, Errno> {
        require(length > 0, Errno::EINVAL)?;
        let range = IovaRange::with_len(at, length).map_err(|_| Errno::EOVERFLOW)?;
        let mut pieces = Vec::new();
        let mut next = Some(at);
        for run in self.table.overlapping(range) {
            let shown = run.range.intersection(range).ok_or(Errno::ENOENT)?;
            require(next == Some(shown.first()), Errno::ENOENT)?;
            let len = shown.len().ok_or(Errno::EOVERFLOW)?.get();
            let memory = run.memory.slice(run.range.offset_of(shown.first()), len).ok_or(Errno::ENOENT)?;
            pieces.push(Piece { pages: run.source, memory });
            next = shown.end();
        }
        require(next == range.end() && !pieces.is_empty(), Errno::ENOENT).map(|()| pieces)
    }

    /// iopt_unmap_iova_range: mapping by mapping; a mapping that would be cut ends it, and earlier ones stay removed.
    pub(super) fn unmap(
        &mut self,
        system: &mut System,
        pages: &mut PagesStore,
        range: IovaRange,
    ) -> Result<u64, Errno> {
        let found: Vec<_> = self.table.overlapping(range).map(|run| run.range).collect();
        let mut bytes = 0;
        for mapped in found {
            require(range.covers(mapped), Errno::ENOENT)?;
            bytes += self.remove(system, pages, mapped.first());
            system.cut.take().map_or(Ok(()), Err)?;
        }
        Ok(bytes)
    }

    /// iopt_disable_large_pages.
    pub(super) fn disable_large_pages(&mut self) -> Result<(), Errno> {
        require(self.cuts || self.page_tables.is_empty() || self.table.len() == 0, Errno::EINVAL)?;
        self.cuts = true;
        Ok(())
    }

    /// iopt_cut_iova: cuts the mappings that lie across an end of `range` in two, where that is possible.
    pub(super) fn cut_at_ends(&mut self, pages: &mut PagesStore, range: IovaRange) -> Result<(), Errno> {
        if !self.cuts {
            return Ok(());
        }
        for at in range.end().into_iter().chain([range.first()]) {
            let Some(run) = self.table.at(at).filter(|run| run.range.first() < at).cloned() else { continue };
            require(self.alignment.divides(at.get()), Errno::EINVAL)?;
            let below = run.range.offset_of(at);
            let (lower, upper) = (run.memory.slice(0, below), run.memory.slice(below, run.bytes() - below));
            let (Some(lower), Some(upper)) = (lower, upper) else { continue };
            pages.get(&Piece { pages: run.source, memory: upper.clone() });
            self.table.remove(run.range.first());
            for (first, memory) in [(run.range.first(), lower), (at, upper)] {
                if let Some(part) = Run::new(first, memory, run.access, run.source) {
                    self.table.insert(part);
                }
            }
        }
        Ok(())
    }

    /// iopt_unmap_all.
    pub(super) fn unmap_all(&mut self, system: &mut System, pages: &mut PagesStore) {
        let firsts: Vec<_> = self.table.iter().map(|run| run.range.first()).collect();
        for first in firsts {
            self.remove(system, pages, first);
        }
    }

    fn remove(&mut self, system: &mut System, pages: &mut PagesStore, first: Iova) -> u64 {
        let Some(run) = self.table.remove(first) else { return 0 };
        for page_table in self.page_tables.values_mut() {
            page_table.forget(run.range);
        }
        if !self.page_tables.is_empty() {
            pages.unpin(system, &run);
        }
        let bytes = run.bytes();
        pages.put(system, &Piece { pages: run.source, memory: run.memory });
        bytes
    }

    /// iopt_check_iova.
    fn checked(&self, at: Iova, length: u64) -> Result<Iova, Errno> {
        require(self.alignment.divides(at.get()), Errno::EINVAL)?;
        let range = IovaRange::with_len(at, length).map_err(|_| Errno::EOVERFLOW)?;
        let reserved = self.reserved.iter().any(|(reserved, _)| reserved.overlaps(range));
        require(!reserved, Errno::EINVAL)?;
        require(!self.table.overlaps(range), Errno::EEXIST).map(|()| at)
    }

    /// iopt_alloc_iova: the lowest free address above zero, aligned as the memory is, up to a huge page.
    fn choose(&self, page: PageSize, pieces: &[Piece], length: u64) -> Result<Iova, Errno> {
        require(length < u64::MAX / 2, Errno::EOVERFLOW)?;
        let address = pieces.first().map_or(0, |piece| piece.memory.address().get());
        let alignment =
            PageSize::largest_dividing(&[address, length.next_power_of_two()]).unwrap_or(BYTE).min(PageSize::M2);
        require(alignment >= self.alignment, Errno::EINVAL)?;
        let top = u64::MAX - page.bytes();
        let mut from = page.bytes();
        loop {
            let at = alignment.round_up(from).ok_or(Errno::ENOSPC)? | (address % page.bytes());
            let range = IovaRange::with_len(Iova::new(at), length).ok().filter(|range| range.last().get() <= top);
            match self.in_the_way(range.ok_or(Errno::ENOSPC)?) {
                None => return Ok(Iova::new(at)),
                Some(obstacle) => from = obstacle.end().ok_or(Errno::ENOSPC)?.get(),
            }
        }
    }

    fn in_the_way(&self, range: IovaRange) -> Option<IovaRange> {
        let reserved = self.reserved.iter().map(|(reserved, _)| *reserved).find(|reserved| reserved.overlaps(range));
        reserved.or_else(|| self.table.overlapping(range).next().map(|run| run.range))
    }

    /// iopt_insert_area, for each piece.
    fn runs_of(
        &self,
        pages: &PagesStore,
        pieces: &[Piece],
        first: Iova,
        access: Access,
        page: PageSize,
    ) -> Result<Vec<Run>, Errno> {
        let mut at = first;
        let mut runs = Vec::new();
        for piece in pieces {
            require(!access.contains(Access::WRITE) || pages.are_writable(piece), Errno::EPERM)?;
            require(self.alignment.divides(piece.memory.address().get() % page.bytes()), Errno::EINVAL)?;
            let run = Run::new(at, piece.memory.clone(), access, piece.pages).ok_or(Errno::EOVERFLOW)?;
            at = run.range.end().unwrap_or(at);
            runs.push(run);
        }
        Ok(runs)
    }

    fn pin_all(&self, system: &mut System, pages: &mut PagesStore) -> Result<(), Errno> {
        pin_each(system, pages, &self.table.iter().cloned().collect::<Vec<_>>())
    }
}

/// Pins all of them or none.
fn pin_each(system: &mut System, pages: &mut PagesStore, runs: &[Run]) -> Result<(), Errno> {
    let mut pinned = Vec::new();
    for run in runs {
        match pages.pin(system, run) {
            Ok(bytes) => pinned.push((run, bytes)),
            Err(errno) => {
                for (run, _) in &pinned {
                    pages.unpin(system, run);
                }
                return Err(errno);
            }
        }
    }
    for (run, bytes) in &pinned {
        pages.note_pins(system, run, *bytes);
    }
    Ok(())
}

/// Returns whether a mapping fits a page table with such pages (linux: iopt_check_iova_alignment).
fn is_aligned(run: &Run, alignment: PageSize, page: PageSize) -> bool {
    let offset = run.memory.address().get() % page.bytes();
    alignment.divides(run.range.first().get() | run.bytes() | offset)
}
