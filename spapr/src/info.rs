//! What an sPAPR container says of its platform: a struct in, facts out, no descriptor in sight.

use std::num::NonZeroU64;

use dmaspace_abi::spapr::{self, TceInfo};
use dmaspace_core::contract::{WindowOffer, WindowPlace};
use dmaspace_core::{Iova, IovaRange, PageSize, PageSizes, Window};

/// What the platform can do, as the first group that joined tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Where the first slot's window begins.
    first_start: Iova,
    /// How long the window that it would have by default is.
    first_len: u64,
    /// The pages a window can be made of.
    page_sizes: PageSizes,
    /// How many windows there can be at once.
    slots: usize,
    /// How many levels a table can have.
    levels: u32,
}

/// What a container keeps at most (linux: arch/powerpc/include/asm/iommu.h, IOMMU_TABLE_GROUP_MAX_TABLES). A pseries host that could
/// not ask its firmware claims 2^32-1.
const MOST_SLOTS: u32 = 2;

/// Where the second slot's window begins on powernv (linux: arch/powerpc/platforms/powernv/pci-ioda.c,
/// pnv_pci_ioda2_create_table), and where a pseries host's firmware usually puts it.
const SECOND_START: Iova = Iova::new(1 << 59);

/// The largest page that works: from 2^31 on the kernel's own page masks overflow (linux: arch/powerpc/include/asm/iommu.h,
/// IOMMU_PAGE_MASK).
const LARGEST_PAGE: PageSize = PageSize::G1;

impl Platform {
    /// Reads a reply.
    ///
    /// # Errors
    /// What cannot be true about it, in words for [`Answer::Malformed`](dmaspace_core::door::Answer::Malformed).
    pub fn parse(info: &TceInfo) -> Result<Self, &'static str> {
        if info.flags & spapr::INFO_DDW == 0 {
            return Err("a v2 container whose windows cannot be created");
        }
        if info.ddw.max_dynamic_windows_supported == 0 {
            return Err("a v2 container that can have no window");
        }
        let page_sizes = PageSizes::from_mask(info.ddw.pgsizes).and_then(|sizes| sizes.up_to(LARGEST_PAGE));
        Ok(Self {
            first_start: Iova::new(u64::from(info.dma32_window_start)),
            first_len: u64::from(info.dma32_window_size),
            page_sizes: page_sizes.ok_or("it names no page a window could be made of")?,
            slots: info.ddw.max_dynamic_windows_supported.min(MOST_SLOTS) as usize,
            levels: info.ddw.levels,
        })
    }

    /// How many levels a table can have: 5 on powernv, 1 on pseries.
    pub fn levels(&self) -> u32 {
        self.levels
    }

    /// What windows can be created. A platform with one slot may put its window in either place.
    ///
    /// On a pseries host the first place is the firmware's own default window, and there can be no other there: 4 KiB pages and the size
    /// it has. Everything else goes to the second place (linux: arch/powerpc/platforms/pseries/iommu.c, spapr_tce_create_table).
    pub fn offer(&self) -> WindowOffer {
        let mut first = WindowPlace::new(self.first_start, self.page_sizes);
        if self.is_pseries() {
            first.longest = NonZeroU64::new(self.first_len);
            first.page_sizes = PageSizes::only(PageSize::K4);
        }
        let second = WindowPlace::new(SECOND_START, self.page_sizes);
        WindowOffer::new(self.page_sizes, self.slots, vec![first, second])
    }

    /// Only a pseries host has tables of one level: they live in its firmware.
    fn is_pseries(&self) -> bool {
        self.levels <= 1
    }
}

/// Reads a v1 container's reply: the one window it has, whose pages are the smallest there are (linux:
/// drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_create_default_window).
///
/// # Errors
/// What cannot be true about it, in words for [`Answer::Malformed`](dmaspace_core::door::Answer::Malformed).
pub fn fixed_window(info: &TceInfo) -> Result<Window, &'static str> {
    if info.flags & spapr::INFO_DDW != 0 {
        return Err("a v1 container whose windows can be created");
    }
    let (first, len) = (Iova::new(u64::from(info.dma32_window_start)), u64::from(info.dma32_window_size));
    // A pseries kernel counts the bytes in 32 bits: of 4 GiB none are left (linux: arch/powerpc/platforms/pseries/iommu.c,
    // spapr_tce_init_table_group).
    let range = IovaRange::with_len(first, len).map_err(|_| "its window has no bytes, or 4 GiB of them")?;
    match range.is_aligned_to(PageSize::K4) {
        true => Ok(Window { range, page_sizes: PageSizes::only(PageSize::K4) }),
        false => Err("its window is not made of pages of 4K"),
    }
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

    fn changed(change: fn(&mut TceInfo)) -> Result<Platform, &'static str> {
        let mut info = powernv();
        change(&mut info);
        Platform::parse(&info)
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
    fn a_count_of_windows_that_firmware_did_not_tell_is_not_believed() {
        let slots = |count: fn(&mut TceInfo)| changed(count).map(|platform| platform.offer().slots);
        assert_eq!(slots(|info| info.ddw.max_dynamic_windows_supported = u32::MAX), Ok(2));
        assert_eq!(slots(|info| info.ddw.max_dynamic_windows_supported = 1), Ok(1));
    }

    #[test]
    fn pages_the_kernel_stumbles_over_are_not_offered() {
        let with_16g = changed(|info| info.ddw.pgsizes |= 1 << 34).expect("smaller ones are there");
        assert_eq!(with_16g.offer().page_sizes.to_string(), "4K 64K 2M 1G");
    }

    #[test]
    fn replies_that_cannot_be_true_are_refused() {
        let table: [(fn(&mut TceInfo), _); 4] = [
            (|info| info.flags = 0, "a v2 container whose windows cannot be created"),
            (|info| info.ddw.max_dynamic_windows_supported = 0, "a v2 container that can have no window"),
            (|info| info.ddw.pgsizes = 0, "it names no page a window could be made of"),
            (|info| info.ddw.pgsizes = 1 << 34, "it names no page a window could be made of"),
        ];
        for (change, why) in table {
            assert_eq!(changed(change), Err(why));
        }
    }

    #[test]
    fn a_v1_window_is_what_the_reply_says_in_the_smallest_pages() {
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
        assert_eq!(fixed_window(&info(0, 0)), Err("its window has no bytes, or 4 GiB of them"));
        assert_eq!(fixed_window(&info(0x800, 0x1000)), Err("its window is not made of pages of 4K"));
        assert_eq!(fixed_window(&info(0, 0x1800)), Err("its window is not made of pages of 4K"));
        assert_eq!(fixed_window(&powernv()), Err("a v1 container whose windows can be created"));
    }
}
