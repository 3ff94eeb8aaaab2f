//! Page sizes in RTAS calls: bits with numbers of their own, not powers of two.

use dmaspace_core::{PageSize, PageSizes};

/// Page sizes as powers of two, and their bits in "IO Page Sizes" (LoPAR: sec_rtas_dma_window.xml,
/// ibm,query-pe-dma-window Argument Call Buffer, whose bit 31 is the lowest). 2M is newer than that text (linux: commit
/// 387273118714, "powerps/pseries/dma: Add support for 2M IOMMU page size"; qemu: include/hw/ppc/spapr.h,
/// RTAS_DDW_PGSIZE_2M).
const BITS: [(u32, u32); 9] =
    [(12, 0x1), (16, 0x2), (21, 0x100), (24, 0x4), (25, 0x8), (26, 0x10), (27, 0x20), (28, 0x40), (34, 0x80)];

/// The page sizes of `sizes` for which RTAS has a bit.
pub(crate) fn known_to_rtas(sizes: PageSizes) -> Option<PageSizes> {
    let known = BITS.iter().fold(0, |mask, (shift, _)| mask | (1 << shift));
    PageSizes::from_mask(sizes.mask() & known)
}

/// The bits of `sizes`.
pub(super) fn bits_of(sizes: PageSizes) -> u32 {
    let mut bits = 0;
    for (shift, bit) in BITS {
        if PageSize::from_shift(shift).is_some_and(|page| sizes.contains(page)) {
            bits |= bit;
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_a_bit_of_its_own() {
        let bits = |mask: u64| PageSizes::from_mask(mask).map(bits_of);
        // QEMU's pseries machine, and one up to pseries-4.1.
        assert_eq!((bits(0x0121_1000), bits(0x1_1000)), (Some(0x107), Some(0x3)));
        let all = BITS.iter().fold(0, |mask, (shift, _)| mask | (1 << shift));
        assert_eq!(bits(all), Some(0x1ff));
        assert_eq!(bits(1 << 30), Some(0));
    }

    #[test]
    fn sizes_without_a_bit_are_left_out() {
        assert_eq!(PageSizes::from_mask(0x4021_1000).and_then(known_to_rtas).map(PageSizes::mask), Some(0x21_1000));
        assert_eq!(known_to_rtas(PageSizes::only(PageSize::G1)), None);
    }
}
