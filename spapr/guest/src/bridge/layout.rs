//! Where a bridge has its windows, what it is called, and which pages it offers.

use std::sync::Arc;

use dmaspace_core::{Iova, IovaRange, PageSize, PageSizes, PciAddressSpace};

use super::reach::{Host, room};
use crate::rtas::pages::known_to_rtas;
use crate::tables::Liobn;

/// A bridge as the guest's device tree describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Its number among the guest's bridges, of which its LIOBNs are made.
    pub index: u32,
    /// The unit ID (BUID) by which RTAS calls name it.
    pub unit: u64,
    /// The window that is there after a reset, in pages of 4 KiB, below 4 GiB.
    pub default_window: IovaRange,
    /// Where the other window begins.
    pub second: Iova,
    /// Where a write is an interrupt.
    pub msi: IovaRange,
    /// The pages of windows that the guest creates, as far as RTAS has a name for them and hosts can provide them.
    pub page_sizes: PageSizes,
}

/// A layout that makes no bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLayout {
    /// A LIOBN has room for 23 bits of it.
    #[error("{0} is no index of a bridge: LIOBNs have room for 23 bits")]
    Index(u32),
    /// The default window's bounds.
    #[error("a default window {0}, which is not made of pages of 4K below 4 GiB")]
    DefaultWindow(IovaRange),
    /// RTAS has no name for any of the pages.
    #[error("windows cannot be created in pages of {0}")]
    Pages(PageSizes),
    /// Two windows share an address.
    #[error("the windows at {0} and at {1} overlap")]
    Overlap(Iova, Iova),
}

/// The pages of the default window (LoPAR: sec_rtas_dma_window.xml, R1-4 b).
pub(super) const DEFAULT_PAGE: PageSize = PageSize::K4;

/// Which bridge a LIOBN belongs to, and that it is a PCI one (qemu: include/hw/ppc/spapr.h, SPAPR_PCI_LIOBN).
const PCI: u32 = 1 << 31;
const INDEX_SHIFT: u32 = 8;
const MOST_INDEX: u32 = (PCI >> INDEX_SHIFT) - 1;

impl Layout {
    /// A bridge as QEMU's pseries machine has it (qemu: hw/ppc/spapr_pci.c, spapr_phb_properties; include/hw/pci-host/spapr.h): the
    /// default window is 1 GiB at 0, the other one begins at 2^59, the MSI window is at 2^42.
    pub fn pseries(index: u32) -> Self {
        const UNIT: u64 = 0x800_0000_2000_0000;
        let range =
            |first, last| IovaRange::new(Iova::new(first), Iova::new(last)).unwrap_or_else(|_| IovaRange::all());
        Self {
            index,
            unit: UNIT + u64::from(index),
            default_window: range(0, 0x3fff_ffff),
            second: Iova::new(1 << 59),
            msi: range(1 << 42, (1 << 42) | 0xfff),
            // 4K 64K 2M 16M.
            page_sizes: PageSizes::from_mask(0x0121_1000).unwrap_or(PageSizes::only(DEFAULT_PAGE)),
        }
    }

    /// The LIOBN of its first or its second window.
    pub fn liobn(&self, window: u8) -> Liobn {
        Liobn::new(PCI | (self.index << INDEX_SHIFT) | u32::from(window))
    }

    /// The same bridge with its windows where `spaces` can have them: the place of the second window, kept where it will do, else
    /// the one with the most room, is in [`Layout::second`] then. A POWER host has two places of its own; a PC's IOMMU does not reach
    /// 2^59, and gets the upper half of what it reaches.
    ///
    /// `None` where there is no place for a second window, or none for the default one.
    pub fn placed_on<'a>(&self, spaces: impl IntoIterator<Item = &'a Arc<dyn PciAddressSpace>>) -> Option<Self> {
        let hosts: Vec<_> = spaces.into_iter().map(|space| Host::of(space.as_ref())).collect();
        let places = hosts.iter().flat_map(Host::places).collect::<Vec<_>>();
        let lowest = places.first().copied().unwrap_or(self.default_window.first());
        let len = self.default_window.len()?.get();
        let starts = [self.default_window.first(), lowest].map(|first| IovaRange::with_len(first, len).ok());
        let fits = |window: &IovaRange| {
            let pages = PageSizes::only(DEFAULT_PAGE);
            room(&hosts, window.first(), pages, &[self.msi], &[]).is_some_and(|room| room.holds(*window))
        };
        let default_window = starts.into_iter().flatten().find(fits)?;
        let room_at = |first: Iova| {
            let pages = known_to_rtas(self.page_sizes)?;
            room(&hosts, first, pages, &[self.msi, default_window], &[default_window])
        };
        let halves = (u32::BITS..u64::BITS).rev().map(|shift| Iova::new(1 << shift));
        let kept = room_at(self.second).map(|room| room.first);
        let better = || {
            let rooms = places.iter().copied().chain(halves).filter_map(room_at);
            rooms.reduce(|best, room| if room.shift > best.shift { room } else { best }).map(|room| room.first)
        };
        Some(Self { default_window, second: kept.or_else(better)?, ..*self })
    }

    /// Whether a bridge can be made of it.
    ///
    /// # Errors
    /// [`BadLayout`], as its variants say.
    pub fn check(&self) -> Result<(), BadLayout> {
        let window = self.default_window;
        if self.index > MOST_INDEX {
            return Err(BadLayout::Index(self.index));
        }
        if !window.is_aligned_to(DEFAULT_PAGE) || window.last().get() > u64::from(u32::MAX) {
            return Err(BadLayout::DefaultWindow(window));
        }
        if known_to_rtas(self.page_sizes).is_none() {
            return Err(BadLayout::Pages(self.page_sizes));
        }
        let overlaps = [
            (window.overlaps(self.msi), window.first(), self.msi.first()),
            (window.contains(self.second), window.first(), self.second),
            (self.msi.contains(self.second), self.msi.first(), self.second),
        ];
        let overlap = overlaps.into_iter().find(|(overlaps, ..)| *overlaps);
        overlap.map_or(Ok(()), |(_, one, other)| Err(BadLayout::Overlap(one, other)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(first), Iova::new(last)).expect("a range of the test")
    }

    #[test]
    fn a_pseries_machine_s_bridges_are_where_qemu_has_them() {
        let layout = Layout::pseries(2);
        assert_eq!(layout.check(), Ok(()));
        assert_eq!((layout.liobn(0).get(), layout.liobn(1).get()), (0x8000_0200, 0x8000_0201));
        assert_eq!((layout.unit, layout.second.get()), (0x800_0000_2000_0002, 0x800_0000_0000_0000));
        assert_eq!((layout.default_window, layout.msi), (range(0, 0x3fff_ffff), range(1 << 42, (1 << 42) + 0xfff)));
        assert_eq!(layout.page_sizes.mask(), 0x121_1000);
    }

    #[test]
    fn layouts_that_make_no_bridge_are_refused() {
        let good = Layout::pseries(0);
        let refused = |layout: Layout| layout.check().expect_err("refused");
        assert_eq!(refused(Layout { index: 1 << 23, ..good }), BadLayout::Index(1 << 23));
        for window in [range(0, 0x3fff_fffe), range(1, 0xfff), range(0, 1 << 32), range(u64::MAX - 0xfff, u64::MAX)] {
            assert_eq!(refused(Layout { default_window: window, ..good }), BadLayout::DefaultWindow(window));
        }
        assert_eq!(Layout { default_window: range(0, 0xffff_ffff), ..good }.check(), Ok(()));
        let page_sizes = PageSizes::only(PageSize::G1);
        assert_eq!(refused(Layout { page_sizes, ..good }), BadLayout::Pages(page_sizes));
        assert!(matches!(refused(Layout { second: Iova::new(0x1000), ..good }), BadLayout::Overlap(..)));
        assert!(matches!(refused(Layout { second: Iova::new(1 << 42), ..good }), BadLayout::Overlap(..)));
        assert!(matches!(refused(Layout { msi: range(0x1000, 0x1fff), ..good }), BadLayout::Overlap(..)));
    }
}
