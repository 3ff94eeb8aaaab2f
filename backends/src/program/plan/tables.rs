//! The memory that an IOMMU's page tables take, estimated from the ranges that are mapped and the pages they are in.
//!
//! A table fills one page of the IOMMU's smallest size, with entries of eight bytes, and a table of a level covers
//! as much as one entry of the next level. So it is on VT-d (linux: drivers/iommu/intel/iommu.h), AMD-Vi and SMMUv3
//! (linux: drivers/iommu/io-pgtable-arm.c).

use std::collections::BTreeMap;

use dmaspace::PageSizes;
use serde::Serialize;

/// The page tables of a guest whose memory is in pages of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PageTables {
    /// The page of the guest's memory on the host, in bytes.
    pub(crate) page: u64,
    /// The bytes of all tables.
    pub(crate) bytes: u64,
}

/// The form of an IOMMU's page tables.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// The page of a table, as a shift.
    granule: u32,
    /// The last address that is translated.
    last: u64,
}

/// Addresses, the last one inside.
type Span = (u64, u64);

/// The page tables for `mapped`, which does not overlap, for each page size that is worth a choice. `sizes` are the
/// IOMMU's, `last` is the last address that it translates.
pub(crate) fn estimate(mapped: &[Span], sizes: PageSizes, last: u64) -> Vec<PageTables> {
    /// No one has memory in larger pages.
    const LARGEST: u32 = 30;
    let form = Form { granule: sizes.smallest().shift(), last };
    let leaves: Vec<u32> = form.levels().filter(|shift| *shift <= LARGEST && has(sizes, *shift)).collect();
    let of_leaf = |n: usize| leaves.get(..=n).map(|leaves| form.bytes(mapped, leaves));
    let tables = leaves.iter().enumerate().filter_map(|(n, leaf)| Some((leaf, of_leaf(n)?)));
    tables.map(|(leaf, bytes)| PageTables { page: 1 << leaf, bytes }).collect()
}

fn has(sizes: PageSizes, shift: u32) -> bool {
    sizes.iter().any(|size| size.shift() == shift)
}

impl Form {
    /// The shift of the bytes that an entry of each level covers, ascending.
    fn levels(self) -> impl Iterator<Item = u32> {
        let digits = self.granule - ENTRY;
        let bits = u64::BITS - self.last.leading_zeros();
        (0..).map(move |level| self.granule + level * digits).take_while(move |shift| *shift < bits)
    }

    /// The bytes of the tables for `mapped`, in pages of the sizes `leaves`, ascending: each part in the largest page
    /// that fits.
    fn bytes(self, mapped: &[Span], leaves: &[u32]) -> u64 {
        let mut parts = Vec::new();
        for span in mapped {
            split(*span, leaves, &mut parts);
        }
        let tables: u64 = self.levels().map(|shift| tables_of(&parts, shift, shift + self.granule - ENTRY)).sum();
        tables.saturating_mul(1 << self.granule)
    }
}

/// The shift of an entry's size.
const ENTRY: u32 = 3;

/// A part of a range, and the shift of the page it is mapped in.
type Part = (Span, u32);

/// Adds the parts of a range, each in the largest page that fits.
fn split((first, last): Span, leaves: &[u32], parts: &mut Vec<Part>) {
    let Some((leaf, smaller)) = leaves.split_last() else { return };
    let mask = (1_u64 << leaf) - 1;
    let begin = first.checked_add(mask).map(|first| first & !mask);
    let end = if last & mask == mask { Some(last) } else { (last & !mask).checked_sub(1) };
    let middle = begin.zip(end);
    match middle.filter(|(begin, end)| begin <= end) {
        Some((begin, end)) => {
            parts.push(((begin, end), *leaf));
            if first < begin {
                split((first, begin - 1), smaller, parts);
            }
            if end < last {
                split((end + 1, last), smaller, parts);
            }
        }
        None => split((first, last), smaller, parts),
    }
}

/// The number of tables whose entries cover 2^`entry` bytes each, and which cover 2^`table` bytes: those with an entry
/// for a page, or for a table below.
fn tables_of(parts: &[Part], entry: u32, table: u32) -> u64 {
    let needed = parts.iter().filter(|(_, leaf)| *leaf <= entry);
    let number = |address: u64| address.checked_shr(table).unwrap_or(0);
    let mut merged: BTreeMap<u64, u64> = BTreeMap::new();
    let mut spans: Vec<_> = needed.map(|((first, last), _)| (number(*first), number(*last))).collect();
    spans.sort_unstable();
    for (first, last) in spans {
        match merged.last_entry() {
            Some(mut open) if first <= *open.get() => *open.get_mut() = last.max(*open.get()),
            _ => {
                merged.insert(first, last);
            }
        }
    }
    merged.iter().map(|(first, last)| last - first + 1).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn of(mapped: &[Span], mask: u64, last: u64) -> Vec<(u64, u64)> {
        let tables = estimate(mapped, PageSizes::from_mask(mask).expect("sizes of the test"), last);
        tables.into_iter().map(|tables| (tables.page, tables.bytes)).collect()
    }

    #[test]
    fn a_table_for_each_512_pages_and_the_levels_above() {
        // 512 tables of 4 KiB pages, one of each level above: of 2 MiB, of 1 GiB, and the first.
        let expected = [(4 << 10, (512 + 3) << 12), (2 << 20, 3 << 12), (1 << 30, 2 << 12)];
        assert_eq!(of(&[(0, GIB - 1)], 0x4020_1000, 0xffff_ffff_ffff), expected);
        // 39 bits have three levels.
        let expected = [(4 << 10, (512 + 2) << 12), (2 << 20, 2 << 12), (1 << 30, 1 << 12)];
        assert_eq!(of(&[(0, GIB - 1)], 0x4020_1000, 0x7f_ffff_ffff), expected);
    }

    #[test]
    fn ranges_without_a_whole_page_are_mapped_in_smaller_pages() {
        let ragged = [(0, (2 << 20) + 0xfff)];
        assert_eq!(of(&ragged, 0x4020_1000, 0x7f_ffff_ffff)[1], (2 << 20, 3 << 12));
        // Two ranges in one table.
        let two = [(0, 0xfff), (0x2000, 0x2fff)];
        assert_eq!(of(&two, 0x1000, 0x7f_ffff_ffff), [(4 << 10, 3 << 12)]);
    }

    #[test]
    fn large_granules_have_large_tables() {
        let tables = of(&[(0, GIB - 1)], 0x2001_0000, 0xffff_ffff_ffff);
        // 512 MiB a table; two tables, and one of each of two levels.
        assert_eq!(tables, [(64 << 10, 4 << 16), (512 << 20, 2 << 16)]);
    }

    #[test]
    fn the_last_address_is_no_exception() {
        let all = of(&[(0, u64::MAX)], 0x4000_1000, u64::MAX);
        assert_eq!(all.len(), 2);
        assert!(of(&[(u64::MAX - 0xfff, u64::MAX)], 0x1000, u64::MAX)[0].1 > 0);
    }
}
