//! An sPAPR TCE container, v1 and v2 (linux: drivers/vfio/vfio_iommu_spapr_tce.c).
//!
//! There are no mappings, only windows, and entries in them that are written and cleared. A map over live entries
//! replaces them; a map that fails half way clears the entries it had written, and does not restore those it had
//! replaced; only its first entry is checked against the window. Some refusals are positive results.
//!
//! Past a window's end powernv's index arithmetic goes on elsewhere (linux:
//! arch/powerpc/platforms/powernv/pci-ioda-tce.c, pnv_tce): with several levels at the window's beginning, with one
//! level in memory that is no table at all. Here it is always the beginning, so that tests can see the damage. On
//! pseries the hypervisor refuses such an entry.

mod batch;
mod blocks;
mod eeh;
mod windows;

use dmaspace_abi::spapr::{self, DdwInfo, TceInfo};
use dmaspace_abi::vfio::{self, Extension, IommuType, MapDma, UnmapDma};
use dmaspace_core::door::Errno;
use dmaspace_core::{Access, Iova, IovaRange, PageSize};
use std::mem::offset_of;

use crate::dialect::call::Call;
use crate::dialect::{Pid, System, require};
use crate::engine::{Registration, Run, Table};
use crate::profile::{TceIommu, TceManager};
use batch::Batch;
use blocks::{Pinned, new_block, read_block};
pub(crate) use eeh::Pe;
pub(crate) use windows::Firmware;
use windows::TceWindow;

/// A container of the sPAPR driver.
#[derive(Debug)]
pub(crate) struct Spapr {
    v2: bool,
    /// `true` if maps are allowed: after ENABLE, after the first registration.
    enabled: bool,
    /// The process that the container belongs to for good.
    owner: Option<Pid>,
    /// `true` if the first call that needs a window must create the default one.
    pending: bool,
    windows: [Option<TceWindow>; 2],
    /// Attached groups, newest first, as the kernel keeps them.
    groups: Vec<u32>,
    /// The numbers of the registrations it uses.
    registered: Vec<u64>,
    table: Table,
    /// The bytes that ENABLE charged.
    enable_charge: u64,
}

/// The module's answer to VFIO_CHECK_EXTENSION: v2 always, whether or not the platform has it.
pub(crate) fn has_extension(system: &System, extension: Extension) -> bool {
    let eeh = system.facts.tce.as_ref().is_some_and(|tce| tce.eeh);
    let types = [IommuType::SPAPR_TCE.extension(), IommuType::SPAPR_TCE_V2.extension()];
    types.contains(&extension) || (extension == Extension::EEH && eeh)
}

impl Spapr {
    /// tce_iommu_open.
    pub(crate) fn new(version: IommuType) -> Self {
        Self {
            v2: version == IommuType::SPAPR_TCE_V2,
            enabled: false,
            owner: None,
            pending: false,
            windows: [None, None],
            groups: Vec::new(),
            registered: Vec::new(),
            table: Table::default(),
            enable_charge: 0,
        }
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// The registrations it uses: the process and the number.
    pub(crate) fn registered(&self) -> Vec<(Pid, u64)> {
        self.owner.iter().flat_map(|owner| self.registered.iter().map(|id| (*owner, *id))).collect()
    }

    /// The number of windows.
    pub(crate) fn window_count(&self) -> usize {
        self.windows.iter().flatten().count()
    }

    /// The number of live entries.
    pub(crate) fn live_entries(&self) -> u64 {
        let runs = self.windows.iter().flatten().flat_map(|window| self.table.overlapping(window.range));
        runs.map(|run| self.entries_of(run)).sum()
    }

    /// tce_iommu_attach_group.
    pub(crate) fn attach(&mut self, system: &mut System, group: u32) -> Result<(), Errno> {
        let tce = tce_of(system)?;
        require(!self.v2 || tce.windows > 0, Errno::EINVAL)?;
        require(self.v2 || self.groups.is_empty(), Errno::EBUSY)?;
        // A partition's group accepts tables of its own only (linux: arch/powerpc/platforms/pseries/iommu.c,
        // spapr_tce_set_window).
        require(tce.platform == TceManager::PowerNv || self.window_count() == 0, Errno::EPERM)?;
        self.pending |= self.groups.is_empty() && self.windows.first().is_some_and(Option::is_none);
        self.groups.insert(0, group);
        system.firmware(group).reset();
        Ok(())
    }

    /// tce_iommu_detach_group: windows are shared, so all their entries are cleared, whatever groups remain.
    pub(crate) fn detach(&mut self, system: &mut System, group: u32) {
        self.groups.retain(|other| *other != group);
        self.clear(system, IovaRange::all());
        system.firmware(group).reset();
    }

    /// tce_iommu_release.
    pub(crate) fn release(&mut self, system: &mut System) {
        while let Some(group) = self.groups.first().copied() {
            self.detach(system, group);
        }
        for window in std::mem::take(&mut self.windows).into_iter().flatten() {
            self.uncharge(system, window.charged);
        }
        for id in std::mem::take(&mut self.registered) {
            self.put_registration(system, id);
        }
        self.disable(system);
    }

    /// tce_iommu_ioctl.
    pub(crate) fn ioctl(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        require(self.owner.is_none_or(|owner| owner == call.by), Errno::EPERM)?;
        match call.number() {
            number if number == spapr::TCE_GET_INFO.number => self.get_info(system, call),
            number if number == vfio::MAP_DMA.number => self.map(system, call),
            number if number == vfio::UNMAP_DMA.number => self.unmap(system, call),
            number if number == spapr::ENABLE.number && !self.v2 => self.enable(system, call.by),
            number if number == spapr::DISABLE.number && !self.v2 => Ok(self.disable(system)),
            number if number == spapr::REGISTER_MEMORY.number && self.v2 => self.register(system, call),
            number if number == spapr::UNREGISTER_MEMORY.number && self.v2 => self.unregister(system, call),
            number if number == spapr::TCE_CREATE.number && self.v2 => self.create(system, call),
            number if number == spapr::TCE_REMOVE.number && self.v2 => self.remove(system, call),
            number if number == spapr::EEH_PE_OP.number => self.pe_op(system, call),
            _ => Err(Errno::ENOTTY),
        }
    }

    /// The default window is reported whether or not it exists; `argsz` is not written back.
    fn get_info(&self, system: &System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        let tce = tce_of(system)?;
        require(!self.groups.is_empty(), Errno::ENXIO)?;
        let asked: TceInfo = call.read_prefix(offset_of!(TceInfo, ddw))?;
        require(asked.argsz as usize >= offset_of!(TceInfo, ddw), Errno::EINVAL)?;
        let mut info = TceInfo { argsz: asked.argsz, ..TceInfo::default() };
        let [start, _] = tce.starts;
        debug_assert!((start | tce.default_window) >> 32 == 0, "a checked profile has a 32-bit default window");
        info.dma32_window_start = u32::try_from(start).unwrap_or(0);
        info.dma32_window_size = u32::try_from(tce.default_window).unwrap_or(0);
        if self.v2 && tce.windows > 0 {
            info.flags = spapr::INFO_DDW;
            info.ddw =
                DdwInfo { pgsizes: tce.page_sizes, max_dynamic_windows_supported: tce.windows, levels: tce.levels };
        }
        let most = if asked.argsz < TceInfo::SIZE { offset_of!(TceInfo, ddw) } else { size_of::<TceInfo>() };
        require(call.bytes()?.len() >= most, Errno::EINVAL)?;
        call.write_prefix(&info, most);
        Ok(0)
    }

    /// VFIO_IOMMU_MAP_DMA. A misaligned bus address is refused with the result 1.
    fn map(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        require(self.enabled, Errno::EPERM)?;
        let map: MapDma = call.read()?;
        require(map.argsz >= MapDma::SIZE, Errno::EINVAL)?;
        require(map.flags & !(vfio::MAP_READ | vfio::MAP_WRITE) == 0, Errno::EINVAL)?;
        self.create_pending(system, call.by)?;
        let memory = call.memory(offset_of!(MapDma, vaddr), map.vaddr);
        let at = Iova::new(map.iova);
        let window = self.window_at(at).ok_or(Errno::ENXIO)?;
        require(window.page.divides(map.size | memory.address), Errno::EINVAL)?;
        require(map.flags != 0, Errno::EINVAL)?;
        if !window.page.divides(map.iova) {
            return Ok(1);
        }
        let fault = system.cut.take();
        let entries = map.size >> window.page.shift();
        let entries = if fault.is_some() { entries.div_ceil(2) } else { entries };
        let batch = Batch { window, at, entries, access: access(map.flags) };
        let plan = if self.v2 { batch.show(system, call.by, &memory)? } else { batch.pin(system, call.by, &memory)? };
        match plan.failure.or(fault) {
            Some(errno) => {
                for run in &plan.runs {
                    self.clear(system, run.range);
                }
                Err(errno)
            }
            None => {
                for run in plan.runs {
                    self.write(system, run);
                }
                Ok(0)
            }
        }
    }

    /// VFIO_IOMMU_UNMAP_DMA. Entries that are not live are skipped, and no size is written back. A misaligned bus
    /// address is refused with the result 1, and so is, after Linux 6.12, a range that leaves the window (linux:
    /// arch/powerpc/kernel/iommu.c, iommu_tce_check_ioba).
    fn unmap(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        require(self.enabled, Errno::EPERM)?;
        let unmap: UnmapDma = call.read()?;
        require(unmap.argsz >= UnmapDma::SIZE && unmap.flags == 0, Errno::EINVAL)?;
        self.create_pending(system, call.by)?;
        let at = Iova::new(unmap.iova);
        let window = self.window_at(at).ok_or(Errno::ENXIO)?;
        require(window.page.divides(unmap.size), Errno::EINVAL)?;
        let stays_inside = unmap.size <= window.bytes_from(at);
        if !window.page.divides(unmap.iova) || (system.facts.is_modern() && !stays_inside) {
            return Ok(1);
        }
        let fault = system.cut.take();
        let size = if fault.is_some() { window.page.round_down(unmap.size / 2) } else { unmap.size };
        for range in window.reached(tce_of(system)?.platform, at, size) {
            self.clear(system, range);
        }
        fault.map_or(Ok(0), Err)
    }

    /// tce_iommu_enable: charges the whole window, however little is mapped in it later.
    fn enable(&mut self, system: &mut System, by: Pid) -> Result<i32, Errno> {
        require(!self.enabled, Errno::EBUSY)?;
        require(!self.groups.is_empty(), Errno::ENODEV)?;
        let charge = tce_of(system)?.default_window;
        self.owner = Some(by);
        system.account(by).lock(charge)?;
        self.enable_charge = charge;
        self.enabled = true;
        Ok(0)
    }

    /// tce_iommu_disable.
    fn disable(&mut self, system: &mut System) -> i32 {
        self.enabled = false;
        let charge = std::mem::take(&mut self.enable_charge);
        self.uncharge(system, charge);
        0
    }

    /// tce_iommu_register_pages. A hole in the memory is answered with the number of pages before it, and nothing is
    /// registered.
    fn register(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        self.owner = Some(call.by);
        let (memory, size) = read_block(system, call)?;
        if let Some(block) = system.process(call.by).registry.exactly(memory.address, size) {
            require(!self.registered.contains(&block.id), Errno::EBUSY)?;
            block.users += 1;
            self.registered.push(block.id);
        } else {
            match new_block(system, call.by, &memory, size)? {
                Pinned::All(id) => self.registered.push(id),
                Pinned::Some(pages) => return Ok(pages),
            }
        }
        self.enabled = true;
        Ok(0)
    }

    /// tce_iommu_unregister_pages. The last put fails with EBUSY while TCEs point into the block, but its result is
    /// ignored: the container forgets the block, the block stays pinned and charged, and the result is 0.
    fn unregister(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        require(self.owner.is_some(), Errno::EPERM)?;
        let (memory, size) = read_block(system, call)?;
        let block = system.process(call.by).registry.exactly(memory.address, size).ok_or(Errno::ENOENT)?;
        let id = block.id;
        require(self.registered.contains(&id), Errno::ENOENT)?;
        self.registered.retain(|known| *known != id);
        self.put_registration(system, id);
        Ok(0)
    }

    /// Writes entries over existing ones.
    fn write(&mut self, system: &mut System, run: Run) {
        let entries = self.entries_of(&run);
        if let Some(block) = self.block(system, run.source) {
            block.mapped += entries;
        }
        for replaced in self.table.put(run) {
            self.let_go(system, replaced);
        }
    }

    /// tce_iommu_clear.
    fn clear(&mut self, system: &mut System, range: IovaRange) {
        for run in self.table.carve(range) {
            self.let_go(system, run);
        }
    }

    /// Releases the memory of entries that were cleared.
    fn let_go(&self, system: &mut System, run: Run) {
        let entries = self.entries_of(&run);
        if let Some(block) = self.block(system, run.source) {
            debug_assert!(entries <= block.mapped, "more entries are cleared than were written");
            block.mapped = block.mapped.saturating_sub(entries);
        }
        system.release(run.memory);
    }

    /// mm_iommu_put, and its consequences.
    fn put_registration(&self, system: &mut System, id: u64) {
        let Some(owner) = self.owner else { return };
        if let Some(block) = system.process(owner).registry.put(id) {
            system.give_back(owner, |account| account.unlock(block.memory.len().get()));
            system.release(block.memory);
        }
    }

    fn uncharge(&self, system: &mut System, bytes: u64) {
        if let Some(owner) = self.owner {
            system.give_back(owner, |account| account.unlock(bytes));
        }
    }

    fn block<'w>(&self, system: &'w mut System, id: u64) -> Option<&'w mut Registration> {
        system.process(self.owner?).registry.get_mut(id)
    }

    fn entries_of(&self, run: &Run) -> u64 {
        let window = self.window_at(run.range.first());
        debug_assert!(window.is_some(), "entries at {} outlived their window", run.range);
        run.bytes() >> window.map_or(PageSize::K4, |window| window.page).shift()
    }

    /// tce_iommu_find_table.
    fn window_at(&self, at: Iova) -> Option<TceWindow> {
        self.windows.iter().flatten().find(|window| window.range.contains(at)).copied()
    }
}

fn tce_of(system: &System) -> Result<TceIommu, Errno> {
    system.facts.tce.clone().ok_or(Errno::ENODEV)
}

fn access(flags: u32) -> Access {
    let mut access = Access::empty();
    access.set(Access::READ, flags & vfio::MAP_READ != 0);
    access.set(Access::WRITE, flags & vfio::MAP_WRITE != 0);
    access
}
