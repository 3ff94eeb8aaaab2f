//! Windows of an sPAPR container: slots, tables, and the addresses that the platform chooses.
//!
//! The platforms: bare metal, where the kernel makes the tables (linux: arch/powerpc/platforms/powernv/pci-ioda.c), and
//! partitions, where firmware makes them on request (linux: arch/powerpc/platforms/pseries/iommu.c).

use dmaspace_abi::spapr::{TceCreate, TceRemove};
use dmaspace_core::door::Errno;
use dmaspace_core::{Iova, IovaRange, PageSize};

use super::{Spapr, tce_of};
use crate::dialect::call::Call;
use crate::dialect::{Pid, System, require};
use crate::profile::{TceIommu, TceManager};

/// A window that was created.
#[derive(Clone, Copy, Debug)]
pub(super) struct TceWindow {
    pub(super) range: IovaRange,
    pub(super) page: PageSize,
    /// The bytes that were charged for its table.
    pub(super) charged: u64,
}

impl TceWindow {
    /// The number of bytes from `at` to the window's end.
    pub(super) fn bytes_from(&self, at: Iova) -> u64 {
        (self.range.last().get() - at.get()).saturating_add(1)
    }

    /// The address of the entry that is `offset` bytes behind the one at `at`, and the number of bytes from there to
    /// the window's end.
    pub(super) fn place(&self, platform: TceManager, at: Iova, offset: u64) -> Option<(Iova, u64)> {
        let inside = self.range.offset_of(at).checked_add(offset)?;
        let bytes = self.range.len()?.get();
        require(inside < bytes || platform == TceManager::PowerNv, Errno::EINVAL).ok()?;
        let place = Iova::new(self.range.first().get() + inside % bytes);
        Some((place, self.bytes_from(place)))
    }

    /// The entries that clearing `size` bytes from `at` affects.
    pub(super) fn reached(&self, platform: TceManager, at: Iova, size: u64) -> impl Iterator<Item = IovaRange> + use<> {
        let inside = size.min(self.bytes_from(at));
        let around = match platform {
            TceManager::PowerNv => (size - inside).min(self.bytes_from(self.range.first())),
            TceManager::PSeries => 0,
        };
        let ranges = [IovaRange::with_len(at, inside), IovaRange::with_len(self.range.first(), around)];
        ranges.into_iter().filter_map(Result::ok)
    }
}

/// A window to create.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    page_shift: u32,
    size: u64,
    levels: u32,
}

impl Spapr {
    /// VFIO_IOMMU_SPAPR_TCE_CREATE.
    pub(super) fn create(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        self.owner = Some(call.by);
        require(!self.groups.is_empty(), Errno::ENXIO)?;
        let mut create: TceCreate = call.read()?;
        require(create.argsz >= TceCreate::SIZE && create.flags == 0, Errno::EINVAL)?;
        self.create_pending(system, call.by)?;
        let wanted = Wanted { page_shift: create.page_shift, size: create.window_size, levels: create.levels };
        create.start_addr = self.create_window(system, call.by, wanted)?.get();
        call.write(&create);
        Ok(0)
    }

    /// VFIO_IOMMU_SPAPR_TCE_REMOVE: the window that contains the address, with all its entries.
    pub(super) fn remove(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        self.owner = Some(call.by);
        require(!self.groups.is_empty(), Errno::ENXIO)?;
        let remove: TceRemove = call.read()?;
        require(remove.argsz >= TceRemove::SIZE && remove.flags == 0, Errno::EINVAL)?;
        if self.pending && remove.start_addr == 0 {
            self.pending = false;
            return Ok(0);
        }
        self.remove_window(system, Iova::new(remove.start_addr))
    }

    /// tce_iommu_create_default_window, which every map, unmap and creation calls first.
    pub(super) fn create_pending(&mut self, system: &mut System, by: Pid) -> Result<(), Errno> {
        if self.pending {
            require(!self.groups.is_empty(), Errno::ENODEV)?;
            let size = tce_of(system)?.default_window;
            self.create_window(system, by, Wanted { page_shift: PageSize::K4.shift(), size, levels: 1 })?;
            self.pending = false;
        }
        Ok(())
    }

    /// tce_iommu_create_window: the first free slot, at the platform's address for it. The table is charged before it
    /// is made, and the charge stays when it cannot be made.
    fn create_window(&mut self, system: &mut System, by: Pid, wanted: Wanted) -> Result<Iova, Errno> {
        let tce = tce_of(system)?;
        let slot = self.windows.iter().position(Option::is_none).ok_or(Errno::ENOSPC)?;
        let page = known_page(&tce, wanted.page_shift).ok_or(Errno::EINVAL)?;
        let charge = system.page().round_down(table_bytes(&tce, system.page(), page, wanted)?);
        system.account(by).lock(charge)?;
        let made = system.cut.take().map_or(Ok(()), Err).and_then(|()| self.make(system, &tce, slot, page, wanted));
        let start = made.inspect_err(|_| system.account(by).leak(charge))?;
        if self.groups.len() > 1 && tce.platform == TceManager::PSeries {
            // The other group does not accept the first one's table (linux: spapr_tce_set_window).
            self.unmake(system, slot);
            system.account(by).unlock(charge);
            return Err(Errno::EPERM);
        }
        system.account(by).note_table(charge);
        let range = IovaRange::with_len(start, wanted.size).map_err(|_| Errno::EINVAL)?;
        if let Some(window) = self.windows.get_mut(slot) {
            *window = Some(TceWindow { range, page, charged: charge });
        }
        Ok(start)
    }

    /// Creates the table on the platform.
    fn make(
        &self,
        system: &mut System,
        tce: &TceIommu,
        slot: usize,
        page: PageSize,
        wanted: Wanted,
    ) -> Result<Iova, Errno> {
        match tce.platform {
            TceManager::PowerNv => make_table(tce, system.page(), slot, page, wanted),
            TceManager::PSeries => {
                let group = self.groups.first().copied().ok_or(Errno::ENODEV)?;
                system.firmware(group).make(tce, slot, page, wanted)
            }
        }
    }

    /// Removes the table from the platform.
    fn unmake(&self, system: &mut System, slot: usize) {
        for group in &self.groups {
            system.firmware(*group).unmake(slot);
        }
    }

    /// tce_iommu_remove_window.
    fn remove_window(&mut self, system: &mut System, at: Iova) -> Result<i32, Errno> {
        let window = self.window_at(at).ok_or(Errno::EINVAL)?;
        self.clear(system, window.range);
        let mut slots = self.windows.iter();
        let slot = slots.position(|slot| slot.is_some_and(|slot| slot.range == window.range)).ok_or(Errno::EINVAL)?;
        self.unmake(system, slot);
        self.uncharge(system, window.charged);
        if let Some(slot) = self.windows.get_mut(slot) {
            *slot = None;
        }
        Ok(0)
    }
}

/// The firmware's knowledge of a partition's group, and the kernel's memory of its failures.
///
/// The firmware's own default window always exists: the kernel drops it from the device tree only, because the default
/// window's property is shorter than the one it looks for (linux: arch/powerpc/platforms/pseries/iommu.c,
/// remove_dma_window_named). So every other window has the second place, in whichever slot the kernel keeps it, and
/// there is room for one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Firmware {
    /// The slot of the window that was created by request, if there is one.
    requested: Option<usize>,
    /// `true` if a creation has failed: the kernel never tries again (linux: failed_ddw_pdn_list).
    given_up: bool,
}

impl Firmware {
    /// Resets the group's windows to the firmware's, because the group has a new owner.
    pub(super) fn reset(&mut self) {
        self.requested = None;
    }

    /// spapr_tce_create_table.
    fn make(&mut self, tce: &TceIommu, slot: usize, page: PageSize, wanted: Wanted) -> Result<Iova, Errno> {
        require(wanted.size.is_power_of_two() && wanted.levels <= 1, Errno::EINVAL)?;
        require(!self.given_up, Errno::ENODEV)?;
        // Resetting to the default window would destroy the other one, so the kernel refuses it; nor does the kernel
        // add a window to the default one.
        require(slot != 0 || self.requested.is_none(), Errno::EPERM)?;
        let [default, other] = tce.starts;
        if slot == 0 && page == PageSize::K4 && wanted.size <= tce.default_window {
            return Ok(Iova::new(default));
        }
        let entries = wanted.size >> page.shift();
        require(entries > 0 && entries <= tce.largest_window, Errno::EINVAL)?;
        self.given_up = self.requested.is_some();
        require(!self.given_up, Errno::ENODEV)?;
        self.requested = Some(slot);
        Ok(Iova::new(other))
    }

    /// spapr_tce_unset_window.
    fn unmake(&mut self, slot: usize) {
        self.requested = self.requested.filter(|requested| *requested != slot);
    }
}

fn known_page(tce: &TceIommu, shift: u32) -> Option<PageSize> {
    PageSize::from_shift(shift).filter(|page| tce.page_sizes & page.bytes() != 0)
}

/// The number of bytes that are charged for a table.
fn table_bytes(tce: &TceIommu, host_page: PageSize, page: PageSize, wanted: Wanted) -> Result<u64, Errno> {
    let bytes = match tce.platform {
        TceManager::PowerNv => levels_bytes(host_page, page, wanted),
        // spapr_tce_get_table_size: an error number that the caller takes for a size.
        TceManager::PSeries if wanted.levels > 1 => 0xffff_ffff,
        TceManager::PSeries => wanted.size >> (page.shift() - 3),
    };
    require(bytes > 0, Errno::EINVAL).map(|()| bytes)
}

/// The most levels a table has on bare metal (linux: POWERNV_IOMMU_MAX_LEVELS).
const MAX_LEVELS: u32 = 5;

/// The largest block the page allocator gives, 16 MiB with 4 KiB pages and with 64 KiB ones.
const MAX_BLOCK_SHIFT: u32 = 24;

/// pnv_pci_ioda2_get_table_size: all levels in full, twice: for the hardware and for the kernel's copy.
fn levels_bytes(host_page: PageSize, page: PageSize, wanted: Wanted) -> u64 {
    let Some(entries_shift) = entries_shift(page, wanted) else { return 0 };
    let level = 1 << level_shift(host_page, entries_shift, wanted.levels);
    let mut table = 0x1000.max(1u64 << (entries_shift + 3));
    let mut bytes: u64 = 0;
    for _ in 0..wanted.levels {
        bytes += table.next_multiple_of(level);
        table = ((table / level) << 3).max(level);
    }
    bytes * 2
}

/// The number of entries, as a shift; `None` for a size that the kernel refuses.
fn entries_shift(page: PageSize, wanted: Wanted) -> Option<u32> {
    let known = (1..=MAX_LEVELS).contains(&wanted.levels) && wanted.size.is_power_of_two();
    wanted.size.trailing_zeros().checked_sub(page.shift()).filter(|_| known)
}

/// The size of one level, as a shift.
fn level_shift(host_page: PageSize, entries_shift: u32, levels: u32) -> u32 {
    (entries_shift.div_ceil(levels) + 3).max(host_page.shift())
}

/// pnv_pci_ioda2_create_table: the first level is allocated, the others when they are needed.
fn make_table(tce: &TceIommu, host_page: PageSize, slot: usize, page: PageSize, wanted: Wanted) -> Result<Iova, Errno> {
    let entries = entries_shift(page, wanted).ok_or(Errno::EINVAL)?;
    let level = level_shift(host_page, entries, wanted.levels);
    require((level - 3) * wanted.levels + page.shift() < 55, Errno::EINVAL)?;
    require(level <= MAX_BLOCK_SHIFT, Errno::ENOMEM)?;
    let start = tce.starts.get(slot).copied().ok_or(Errno::ENOSPC)?;
    Ok(Iova::new(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;

    const GIB: u64 = 1 << 30;

    fn charge_kib(host_page: PageSize, page: PageSize, size: u64, levels: u32) -> u64 {
        levels_bytes(host_page, page, Wanted { page_shift: page.shift(), size, levels }) / 1024
    }

    #[test]
    fn bare_metal_charges_every_level_in_full_and_twice() {
        assert_eq!(charge_kib(PageSize::K64, PageSize::K4, GIB, 1), 4096);
        assert_eq!(charge_kib(PageSize::K64, PageSize::K4, 2 * GIB, 1), 8192);
        assert_eq!(charge_kib(PageSize::K64, PageSize::K64, 64 * GIB, 1), 16384);
        assert_eq!(charge_kib(PageSize::K64, PageSize::K4, 64 * GIB, 2), 262_272);
        assert_eq!(charge_kib(PageSize::K64, PageSize::K64, 256 * GIB, 2), 65664);
        assert_eq!(charge_kib(PageSize::K64, PageSize::M2, 512 * GIB, 1), 4096);
        assert_eq!(charge_kib(PageSize::K64, PageSize::K64, 16384 * GIB, 2), 4_194_560);
    }

    #[test]
    fn smaller_host_pages_make_smaller_levels() {
        assert_eq!(charge_kib(PageSize::K4, PageSize::K4, GIB, 2), 4104);
        assert_eq!(charge_kib(PageSize::K4, PageSize::K4, 2 * GIB, 2), 8208);
        assert_eq!(charge_kib(PageSize::K4, PageSize::K64, 64 * GIB, 2), 16400);
        assert_eq!(charge_kib(PageSize::K4, PageSize::K4, 64 * GIB, 2), 262_208);
        assert_eq!(charge_kib(PageSize::K4, PageSize::K64, 256 * GIB, 2), 65568);
    }

    #[test]
    fn sizes_the_kernel_cannot_compute_are_refused_uncharged() {
        for (size, levels) in [(0, 1), (3 * GIB, 1), (GIB, 0), (GIB, 6), (0x800, 1)] {
            assert_eq!(charge_kib(PageSize::K4, PageSize::K4, size, levels), 0, "{size:#x}, {levels} levels");
        }
    }

    #[test]
    fn a_table_level_larger_than_the_page_allocators_block_is_refused() {
        let tce = Profile::powernv9().tce.expect("it has one");
        let wanted = Wanted { page_shift: 12, size: 64 * GIB, levels: 1 };
        let one_level = make_table(&tce, PageSize::K4, 1, PageSize::K4, wanted);
        assert_eq!(one_level, Err(Errno::ENOMEM));
        let two_levels = make_table(&tce, PageSize::K4, 1, PageSize::K4, Wanted { levels: 2, ..wanted });
        assert_eq!(two_levels, Ok(Iova::new(1 << 59)));
    }

    #[test]
    fn a_partition_makes_one_window_beside_the_default_one_in_either_slot() {
        let tce = Profile::pseries().tce.expect("it has one");
        let wanted = Wanted { page_shift: 16, size: 4 * GIB, levels: 1 };
        let mut firmware = Firmware::default();
        assert_eq!(firmware.make(&tce, 0, PageSize::K64, wanted), Ok(Iova::new(1 << 59)));
        firmware.unmake(0);
        assert_eq!(firmware.make(&tce, 1, PageSize::K64, wanted), Ok(Iova::new(1 << 59)));
        firmware.unmake(1);
        firmware.make(&tce, 0, PageSize::K64, wanted).expect("again");
        assert_eq!(firmware.make(&tce, 1, PageSize::K64, wanted), Err(Errno::ENODEV));
        firmware.unmake(0);
        let later = firmware.make(&tce, 0, PageSize::K64, wanted);
        assert_eq!(later, Err(Errno::ENODEV), "given up until the host is booted again");
    }

    #[test]
    fn a_partitions_default_window_is_refused_beside_another() {
        let tce = Profile::pseries().tce.expect("it has one");
        let small = Wanted { page_shift: 12, size: GIB, levels: 1 };
        let large = Wanted { page_shift: 16, size: 4 * GIB, levels: 1 };
        let mut firmware = Firmware::default();
        assert_eq!(firmware.make(&tce, 0, PageSize::K4, small), Ok(Iova::new(0)));
        assert_eq!(firmware.make(&tce, 1, PageSize::K64, large), Ok(Iova::new(1 << 59)));
        firmware.unmake(0);
        assert_eq!(firmware.make(&tce, 0, PageSize::K4, small), Err(Errno::EPERM), "it would destroy the other");
    }
}
