//! The reply of an sPAPR container about its platform: a struct in, facts out, without a descriptor.

use std::num::NonZeroU64;

use dmaspace_abi::spapr::{self, TceInfo};
use dmaspace_core::contract::{WindowOffer, WindowPlace};
use dmaspace_core::door::Failure;
use dmaspace_core::{Iova, IovaRange, PageSize, PageSizes, Window};

/// The platform's limits on windows, as the first group of a container reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcePlatform {
    /// The first byte of the first slot's window.
    first_start: Iova,
    /// The bytes of the default window in the first slot.
    first_len: u64,
    /// The page sizes of windows.
    page_sizes: PageSizes,
    /// The most windows at once.
    slots: usize,
    /// The most levels of a table.
    levels: u32,
}

/// The most windows of a container (linux: arch/powerpc/include/asm/iommu.h, IOMMU_TABLE_GROUP_MAX_TABLES). A pseries
/// host that could not ask its firmware reports 2^32-1.
const MOST_SLOTS: u32 = 2;

/// The first byte of the second slot's window on powernv (linux: arch/powerpc/platforms/powernv/pci-ioda.c,
/// pnv_pci_ioda2_create_table). The firmware of a pseries host usually puts it there, too.
const SECOND_START: Iova = Iova::new(1 << 59);

/// The largest page that works: from 2^31 on the kernel's own page masks overflow (linux:
/// arch/powerpc/include/asm/iommu.h, IOMMU_PAGE_MASK).
const LARGEST_PAGE: PageSize = PageSize::G1;

fn malformed(why: &'static str) -> Failure {
    Failure::malformed(spapr::TCE_GET_INFO.name, why)
}

impl TcePlatform {
    /// Reads a reply.
    ///
    /// # Errors
    /// A malformed answer, with the impossible part in words.
    pub(crate) fn parse(info: &TceInfo) -> Result<Self, Failure> {
        if info.flags & spapr::INFO_DDW == 0 {
            return Err(malformed("a v2 container whose windows cannot be created"));
        }
        if info.ddw.max_dynamic_windows_supported == 0 {
            return Err(malformed("a v2 container that can have no window"));
        }
        let page_sizes = PageSizes::from_mask(info.ddw.pgsizes).and_then(|sizes| sizes.up_to(LARGEST_PAGE));
        Ok(Self {
            first_start: Iova::new(u64::from(info.dma32_window_start)),
            first_len: u64::from(info.dma32_window_size),
            page_sizes: page_sizes.ok_or_else(|| malformed("it names no page that a window can have"))?,
            slots: info.ddw.max_dynamic_windows_supported.min(MOST_SLOTS) as usize,
            levels: info.ddw.levels,
        })
    }

    /// The most levels of a table: 5 on powernv, 1 on pseries.
    pub(crate) fn levels(&self) -> u32 {
        self.levels
    }

    /// The windows that can be created. A platform with one slot may put its window in either place.
    ///
    /// On a pseries host the first place is that of the firmware's default window, with 4 KiB pages and a size of its
    /// own. No other window can be there; every other window goes to the second place (linux:
    /// arch/powerpc/platforms/pseries/iommu.c, spapr_tce_create_table).
    pub(crate) fn offer(&self) -> WindowOffer {
        let mut first = WindowPlace::new(self.first_start, self.page_sizes);
        if self.is_pseries() {
            first.longest = NonZeroU64::new(self.first_len);
            first.page_sizes = PageSizes::only(PageSize::K4);
        }
        let second = WindowPlace::new(SECOND_START, self.page_sizes);
        WindowOffer::new(self.page_sizes, self.slots, vec![first, second])
    }

    /// Returns true for a pseries host. No other host has tables of one level only: they are in its firmware.
    fn is_pseries(&self) -> bool {
        self.levels <= 1
    }
}

/// Reads a v1 container's reply: its one window, in the smallest pages (linux:
/// drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_create_default_window).
///
/// # Errors
/// A malformed answer, with the impossible part in words.
pub(crate) fn fixed_window(info: &TceInfo) -> Result<Window, Failure> {
    if info.flags & spapr::INFO_DDW != 0 {
        return Err(malformed("a v1 container whose windows can be created"));
    }
    let (first, len) = (Iova::new(u64::from(info.dma32_window_start)), u64::from(info.dma32_window_size));
    // A pseries kernel counts the bytes in 32 bits: of 4 GiB none are left (linux:
    // arch/powerpc/platforms/pseries/iommu.c, spapr_tce_init_table_group).
    let range = IovaRange::with_len(first, len).map_err(|_| malformed("its window has no bytes, or 4 GiB of them"))?;
    if !range.is_aligned_to(PageSize::K4) {
        return Err(malformed("its window is not made of pages of 4K"));
    }
    Ok(Window::new(range, PageSizes::only(PageSize::K4)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmaspace_abi::spapr::DdwInfo;

    /// A POWER9 host: 4K 64K 2M 1G.
    fn powernv() -> TceInfo {
        TceInfo {
            argsz: TceInfo::SIZE,
            flags: spapr::INFO_DDW,
            dma32_window_start: 0,
            dma32_window_size: 0x8000_0000,
            ddw: DdwInfo { pgsizes: 0x4021_1000, max_dynamic_windows_supported: 2, levels: 5 },
        }
    }

    fn changed(change: fn(&mut TceInfo)) -> Result<TcePlatform, Failure> {
        let mut info = powernv();
        change(&mut info);
        TcePlatform::parse(&info)
    }

    #[test]
    fn powernv_offers_two_windows_where_its_slots_are() {
        let platform = changed(|_| {}).expect("a host as it is");
        let offer = platform.offer();
        assert_eq!(offer.page_sizes.to_string(), "4K 64K 2M 1G");
        assert_eq!(offer.slots, 2);
        let places = offer.places.iter().map(|place| (place.first.get(), place.longest, place.page_sizes));
        assert_eq!(places.collect::<Vec<_>>(), [(0, None, offer.page_sizes), (1 << 59, None, offer.page_sizes)]);
        assert_eq!(platform.levels(), 5);
    }

    #[test]
    fn a_pseries_host_has_only_its_default_window_in_the_first_place() {
        let pseries = changed(|info| (info.ddw.levels, info.dma32_window_size) = (1, 0x4000_0000));
        let offer = pseries.expect("a host as it is").offer();
        let [first, second] = offer.places[..] else { panic!("two places") };
        assert_eq!((first.longest, first.page_sizes), (NonZeroU64::new(1 << 30), PageSizes::only(PageSize::K4)));
        assert!(first.holds(1 << 30) && !first.holds(1 << 31));
        assert_eq!((second.longest, second.page_sizes), (None, offer.page_sizes));
    }

    #[test]
    fn an_impossible_count_of_windows_is_limited() {
        let slots = |count: fn(&mut TceInfo)| changed(count).map(|platform| platform.offer().slots);
        assert_eq!(slots(|info| info.ddw.max_dynamic_windows_supported = u32::MAX), Ok(2));
        assert_eq!(slots(|info| info.ddw.max_dynamic_windows_supported = 1), Ok(1));
    }

    #[test]
    fn pages_too_large_for_the_kernel_s_masks_are_not_offered() {
        let with_16g = changed(|info| info.ddw.pgsizes |= 1 << 34).expect("smaller ones are there");
        assert_eq!(with_16g.offer().page_sizes.to_string(), "4K 64K 2M 1G");
    }

    #[test]
    fn impossible_replies_are_refused() {
        let table: [(fn(&mut TceInfo), _); 4] = [
            (|info| info.flags = 0, "a v2 container whose windows cannot be created"),
            (|info| info.ddw.max_dynamic_windows_supported = 0, "a v2 container that can have no window"),
            (|info| info.ddw.pgsizes = 0, "it names no page that a window can have"),
            (|info| info.ddw.pgsizes = 1 << 34, "it names no page that a window can have"),
        ];
        for (change, why) in table {
            assert_eq!(changed(change), Err(malformed(why)));
        }
    }

    #[test]
    fn a_v1_window_is_the_reply_s_in_the_smallest_pages() {
        let info = |start, size| TceInfo {
            argsz: TceInfo::SIZE,
            dma32_window_start: start,
            dma32_window_size: size,
            ..TceInfo::default()
        };
        let window = fixed_window(&info(0, 0x8000_0000)).expect("a host as it is");
        assert_eq!((window.range.to_string(), window.granule()), ("0x0..=0x7fffffff".to_owned(), PageSize::K4));
        let highest = fixed_window(&info(0x8000_0000, 0x8000_0000)).expect("it ends with the first 4 GiB");
        assert_eq!(highest.range.last(), Iova::new(0xffff_ffff));
        assert_eq!(fixed_window(&info(0, 0)), Err(malformed("its window has no bytes, or 4 GiB of them")));
        assert_eq!(fixed_window(&info(0x800, 0x1000)), Err(malformed("its window is not made of pages of 4K")));
        assert_eq!(fixed_window(&info(0, 0x1800)), Err(malformed("its window is not made of pages of 4K")));
        assert_eq!(fixed_window(&powernv()), Err(malformed("a v1 container whose windows can be created")));
    }
}
