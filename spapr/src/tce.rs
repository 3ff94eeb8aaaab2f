//! TCE tables: their levels, their size, and the locked memory that they are charged. Arithmetic, without a descriptor.
//!
//! A window's table has one entry of 8 bytes for each of its pages. It can be one block, or a tree of *levels* whose
//! blocks are smaller; the caller says how many levels and the kernel divides the entries evenly between them. One
//! level is best: the hardware finds an entry in one step. A table gets more levels only where the platform takes more,
//! and only as many as keep its blocks within a size that every kernel can allocate in principle. It gets more than
//! that if such a block could not be allocated: on a host that has been up for a while large blocks are rare, and the
//! kernel does not wait for them (linux: arch/powerpc/platforms/powernv/pci-ioda-tce.c, pnv_alloc_tce_level:
//! GFP_ATOMIC).
//!
//! # Failed attempts cost
//! The kernel charges a table before it allocates it and does not take the charge back when that fails (linux:
//! drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_create_table): the process loses that much of its limit for good. So
//! an attempt is made only if it can end differently from the one before: with smaller blocks, and a number of levels
//! that the platform accepts. Beginning with one level of any size, and raising the number after a failure, would leak
//! the whole charge of a large table each time. A pseries host gets one attempt: it refuses every number of levels but
//! one, after it has charged 4 GiB (linux: arch/powerpc/platforms/pseries/iommu.c, spapr_tce_get_table_size).
//!
//! Numbers are u128 where a table could outgrow 64 bits: the table of a window of 2^63 bytes in pages of one byte is
//! absurd, and its size must not wrap.

use dmaspace_core::PageSize;
use dmaspace_core::door::{Errno, Failure};

/// The table of a window that may be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// The number of entries, as a power of two, rounded up.
    entries_shift: u32,
    /// The page size of the window.
    page: PageSize,
    /// The page size of the host, which is the smallest size of a block.
    host_page: PageSize,
    /// The most levels that the platform takes.
    most_levels: u32,
}

/// The bytes of an entry, as a power of two.
const ENTRY_SHIFT: u32 = 3;

/// Blocks of up to 2^7 host pages can be allocated on every kernel: the lowest limit of any (linux:
/// arch/powerpc/Kconfig, ARCH_FORCE_MAX_ORDER: 7 or 8 with pages of 64 KiB, more with smaller ones).
const BLOCK_PAGES_SHIFT: u32 = 7;

/// powernv refuses, once it has charged it, a table whose levels if all were full would span 2^55 bytes of bus
/// addresses or more (linux: arch/powerpc/platforms/powernv/pci-ioda-tce.c, pnv_pci_ioda2_table_alloc_pages).
const SPAN_SHIFT: u32 = 55;

impl Table {
    /// The table of a window of `window` bytes (0 stands for 2^64) in pages of `page`, on a host with pages of
    /// `host_page` and tables of up to `most_levels`.
    pub(crate) fn new(window: u64, page: PageSize, host_page: PageSize, most_levels: u32) -> Self {
        // The kernel refuses a window that is smaller than its page.
        let entries_shift = window_shift(window).saturating_sub(page.shift());
        // A platform that names no number takes one level.
        Self { entries_shift, page, host_page, most_levels: most_levels.max(1) }
    }

    /// Makes `attempt` with a number of levels, and with more where that can help, until one is accepted.
    ///
    /// Only `ENOMEM` leads to another attempt. It has two meanings that cannot be distinguished: the kernel has no
    /// block of that size, and smaller ones help; or the limit on locked memory is reached, and neither this attempt
    /// nor another is charged.
    ///
    /// # Errors
    /// The failure of the last attempt.
    pub(crate) fn try_levels<T>(self, mut attempt: impl FnMut(u32) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut result = attempt(self.first_levels());
        for levels in self.more_levels() {
            match &result {
                Err(failure) if failure.errno() == Some(Errno::ENOMEM) => result = attempt(levels),
                _ => break,
            }
        }
        result
    }

    /// The levels that keep blocks within [`BLOCK_PAGES_SHIFT`], at most the platform's.
    fn first_levels(self) -> u32 {
        let block_shift = self.host_page.shift() + BLOCK_PAGES_SHIFT;
        let table_shift = self.entries_shift + ENTRY_SHIFT;
        table_shift.div_ceil(block_shift).clamp(1, self.most_levels)
    }

    /// Larger numbers of levels, as long as each has smaller blocks than the number before and the platform accepts it.
    fn more_levels(self) -> impl Iterator<Item = u32> {
        (self.first_levels() + 1..=self.most_levels)
            .take_while(move |levels| self.block_shift(*levels) < self.block_shift(levels - 1))
            .take_while(move |levels| self.is_in_span(*levels))
    }

    /// The bytes of one block, as a power of two.
    fn block_shift(self, levels: u32) -> u32 {
        (self.entries_shift.div_ceil(levels) + ENTRY_SHIFT).max(self.host_page.shift())
    }

    fn is_in_span(self, levels: u32) -> bool {
        (self.block_shift(levels) - ENTRY_SHIFT) * levels + self.page.shift() < SPAN_SHIFT
    }

    /// The bytes of locked memory that the kernel charges for the table at the first attempt, in whole pages (linux:
    /// drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_create_table). A table of a few entries is charged nothing on a
    /// pseries host.
    pub(crate) fn charge(self) -> u64 {
        let charge = if self.most_levels == 1 { self.one_block() } else { self.tree(self.first_levels()) };
        u64::try_from(charge).map_or(u64::MAX, |charge| self.host_page.round_down(charge))
    }

    /// The charge for a table of one level on a powernv host, which charges twice as much as a pseries host.
    pub(crate) fn charge_of_one_level(self) -> u64 {
        u64::try_from(self.tree(1)).unwrap_or(u64::MAX)
    }

    /// The charge on a pseries host: the table, which is in the firmware (linux:
    /// arch/powerpc/platforms/pseries/iommu.c, spapr_tce_get_table_size).
    fn one_block(self) -> u128 {
        1 << (self.entries_shift + ENTRY_SHIFT)
    }

    /// The charge on a powernv host: all blocks of all levels, as if each level were full, and as much again for the
    /// addresses in the process (linux: arch/powerpc/platforms/powernv/pci-ioda.c, pnv_pci_ioda2_get_table_size).
    fn tree(self, levels: u32) -> u128 {
        const SMALLEST: u128 = 0x1000;
        let block = 1u128 << self.block_shift(levels);
        let mut level = self.one_block().max(SMALLEST);
        let mut bytes = 0;
        for _ in 0..levels {
            bytes += level.next_multiple_of(block);
            // One entry in the level above for each block in this one.
            level = ((level / block) << ENTRY_SHIFT).max(block);
        }
        2 * bytes
    }
}

/// The power of two that is `window` or next above it; 0 stands for 2^64.
fn window_shift(window: u64) -> u32 {
    match window.checked_sub(1) {
        Some(last) => u64::BITS - last.leading_zeros(),
        None => u64::BITS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const TIB: u64 = 1 << 40;
    const KIB: u64 = 1 << 10;

    /// powernv's number (linux: arch/powerpc/platforms/powernv/pci.h, POWERNV_IOMMU_MAX_LEVELS).
    const POWERNV: u32 = 5;
    const PSERIES: u32 = 1;

    fn attempts(table: Table, errno: Errno) -> Vec<u32> {
        let mut attempts = Vec::new();
        let result: Result<(), _> = table.try_levels(|levels| {
            attempts.push(levels);
            Err(Failure::from_errno("VFIO_IOMMU_SPAPR_TCE_CREATE", errno))
        });
        result.expect_err("every attempt fails");
        attempts
    }

    /// Window, its page, the host's page; the attempts and the charge in KiB.
    type Row = (u64, PageSize, PageSize, &'static [u32], u64);

    const POWERNV_TABLES: [Row; 18] = [
        // A host with pages of 64K.
        (GIB, PageSize::K4, PageSize::K64, &[1, 2], 4096),
        (2 * GIB, PageSize::K4, PageSize::K64, &[1, 2], 8192),
        (64 * GIB, PageSize::K64, PageSize::K64, &[1, 2], 16_384),
        (64 * GIB, PageSize::K4, PageSize::K64, &[2], 262_272),
        (256 * GIB, PageSize::K64, PageSize::K64, &[2], 65_664),
        (512 * GIB, PageSize::M2, PageSize::K64, &[1, 2], 4096),
        (TIB, PageSize::K64, PageSize::K64, &[2], 262_272),
        // A third level would span 2^55 bytes, which is refused.
        (16 * TIB, PageSize::K64, PageSize::K64, &[2], 4_194_560),
        // QEMU counts the entries in 32 bits, which makes none of them.
        (16 * TIB, PageSize::K4, PageSize::K64, &[2, 3], 67_109_888),
        // A host with pages of 4K.
        (GIB, PageSize::K4, PageSize::K4, &[2], 4104),
        (2 * GIB, PageSize::K4, PageSize::K4, &[2, 3], 8208),
        (64 * GIB, PageSize::K64, PageSize::K4, &[2, 3], 16_400),
        (64 * GIB, PageSize::K4, PageSize::K4, &[2, 3], 262_208),
        (256 * GIB, PageSize::K64, PageSize::K4, &[2, 3], 65_568),
        (512 * GIB, PageSize::M2, PageSize::K4, &[2], 4104),
        (TIB, PageSize::K64, PageSize::K4, &[2, 3], 262_208),
        (16 * TIB, PageSize::K64, PageSize::K4, &[2, 3, 4], 4_194_560),
        (16 * TIB, PageSize::K4, PageSize::K4, &[2, 3, 4], 67_109_888),
    ];

    #[test]
    fn powernv_tables_have_the_levels_and_the_charge_the_kernel_computes() {
        for (window, page, host_page, levels, kib) in POWERNV_TABLES {
            let table = Table::new(window, page, host_page, POWERNV);
            assert_eq!(attempts(table, Errno::ENOMEM), levels, "{table:?}");
            assert_eq!(table.charge(), kib * KIB, "{table:?}");
        }
    }

    #[test]
    fn a_table_has_one_level_as_long_as_every_kernel_can_allocate_its_block() {
        let levels = |entries: u64, host_page| {
            let table = Table::new(entries * PageSize::K4.bytes(), PageSize::K4, host_page, POWERNV);
            (table.first_levels(), table.charge() > table.charge_of_one_level())
        };
        // Blocks of 8 MiB and of 512 KiB.
        for (host_page, most) in [(PageSize::K64, 1 << 20), (PageSize::K4, 1 << 16)] {
            assert_eq!(levels(most, host_page), (1, false));
            assert_eq!(levels(2 * most, host_page), (2, true));
        }
    }

    #[test]
    fn pseries_tables_are_tried_with_one_level_only_and_charged_once() {
        for (window, page, bytes) in [(GIB, PageSize::K4, 2048 * KIB), (16 * TIB, PageSize::K64, 2 * GIB)] {
            for host_page in [PageSize::K4, PageSize::K64] {
                let table = Table::new(window, page, host_page, PSERIES);
                assert_eq!(attempts(table, Errno::ENOMEM), [1]);
                assert_eq!(table.charge(), bytes);
            }
        }
    }

    #[test]
    fn less_than_a_page_of_a_table_is_not_charged() {
        let (of_32, of_4096) = ((64 << 20, PageSize::M2, PageSize::K4), (16 << 20, PageSize::K4, PageSize::K64));
        for (window, page, host_page) in [of_32, of_4096] {
            assert_eq!(Table::new(window, page, host_page, PSERIES).charge(), 0);
        }
    }

    #[test]
    fn a_platform_that_names_no_levels_takes_one() {
        assert_eq!(attempts(Table::new(GIB, PageSize::K4, PageSize::K4, 0), Errno::ENOMEM), [1]);
    }

    #[test]
    fn only_a_lack_of_memory_leads_to_another_attempt() {
        let table = Table::new(64 * GIB, PageSize::K64, PageSize::K64, POWERNV);
        for errno in [Errno::EINVAL, Errno::ENOSPC, Errno::EPERM, Errno::ENXIO, Errno::ENODEV] {
            assert_eq!(attempts(table, errno), [1]);
        }
    }

    #[test]
    fn the_first_attempt_that_succeeds_is_the_last() {
        let table = Table::new(64 * GIB, PageSize::K64, PageSize::K64, POWERNV);
        assert_eq!(table.try_levels(Ok), Ok(1));
    }

    #[test]
    fn nothing_wraps_at_the_edges() {
        let smallest = PageSize::from_shift(0).expect("a page of one byte");
        for window in [0, 1, 8, 1 << 63, u64::MAX] {
            for page in [smallest, PageSize::K4, PageSize::G1] {
                for most_levels in [0, PSERIES, POWERNV, u32::MAX] {
                    let table = Table::new(window, page, PageSize::K64, most_levels);
                    let levels = attempts(table, Errno::ENOMEM);
                    assert!((1..=POWERNV as usize).contains(&levels.len()), "{table:?}: {levels:?}");
                    assert!(PageSize::K64.divides(table.charge()) || table.charge() == u64::MAX);
                }
            }
        }
        let largest = Table::new(0, smallest, PageSize::K64, POWERNV);
        assert_eq!(largest.charge(), u64::MAX);
    }

    #[test]
    fn a_window_below_the_least_table_is_charged_a_page() {
        assert_eq!(Table::new(0x1_0000, PageSize::K64, PageSize::K64, POWERNV).charge(), 128 * KIB);
        assert_eq!(Table::new(0x1_0000, PageSize::K64, PageSize::K4, POWERNV).charge(), 8 * KIB);
    }
}
