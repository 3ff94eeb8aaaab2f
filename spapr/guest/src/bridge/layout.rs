//! The names of a bridge, the places of its windows, and the page sizes it offers.

use std::sync::Arc;

use dmaspace_core::{Iova, IovaRange, PageSize, PageSizes, PciAddressSpace};

use super::largest;
use super::reach::{HostReach, Room, room};
use crate::liobn::Liobn;
use crate::rtas::pages::known_to_rtas;

/// A bridge as the guest's device tree describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Layout {
    /// The bridge's number among those of the guest, which is part of its LIOBNs.
    pub index: u32,
    /// The unit ID (BUID), by which RTAS calls name the bridge.
    pub unit: u64,
    /// The window that exists after a reset, in pages of 4 KiB, below 4 GiB.
    pub default_window: IovaRange,
    /// The first byte of the second window.
    pub second: Iova,
    /// The range in which a write is an interrupt.
    pub msi: IovaRange,
    /// The page sizes of windows that the guest creates. Sizes that RTAS has no bit for, or that a host cannot provide,
    /// are left out.
    pub page_sizes: PageSizes,
}

/// A layout that is impossible for a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadLayout {
    /// A LIOBN has room for an index of 23 bits.
    #[error("{0} is no index of a bridge: a LIOBN has room for 23 bits")]
    Index(u32),
    /// The default window is not made of 4 KiB pages below 4 GiB.
    #[error("the default window {0} is not made of pages of 4K below 4 GiB")]
    DefaultWindow(IovaRange),
    /// RTAS has no bit for any of the page sizes.
    #[error("windows cannot be created in pages of {0}: RTAS has no bit for them")]
    Pages(PageSizes),
    /// Two windows share an address.
    #[error("the windows at {0} and at {1} overlap")]
    Overlap(Iova, Iova),
}

/// The page size of the default window (LoPAR: sec_rtas_dma_window.xml, R1-4 b).
pub(super) const DEFAULT_PAGE: PageSize = PageSize::K4;

/// The parts of a LIOBN: the bit of PCI buses, and the index of the bridge (qemu: include/hw/ppc/spapr.h,
/// SPAPR_PCI_LIOBN).
const PCI: u32 = 1 << 31;
const INDEX_SHIFT: u32 = 8;
const MOST_INDEX: u32 = (PCI >> INDEX_SHIFT) - 1;

impl Layout {
    /// A bridge of QEMU's pseries machine (qemu: hw/ppc/spapr_pci.c, spapr_phb_properties;
    /// include/hw/pci-host/spapr.h): the default window is 1 GiB at 0, the second window begins at 2^59, the MSI window
    /// is at 2^42.
    pub fn pseries(index: u32) -> Self {
        const UNIT: u64 = 0x800_0000_2000_0000;
        Self {
            index,
            unit: UNIT + u64::from(index),
            default_window: range_of(0, 0x3fff_ffff),
            second: Iova::new(1 << 59),
            msi: range_of(1 << 42, (1 << 42) | 0xfff),
            // 4K 64K 2M 16M.
            page_sizes: PageSizes::from_mask(0x0121_1000).unwrap_or(PageSizes::only(DEFAULT_PAGE)),
        }
    }

    /// The LIOBN of the first window (0) or the second one (1).
    pub fn liobn(&self, window: u8) -> Liobn {
        Liobn::new(PCI | (self.index << INDEX_SHIFT) | u32::from(window))
    }

    /// Returns the layout with windows in places that `spaces` have room for. The default window and [`Layout::second`]
    /// stay where they are if there is room; else the second window goes to the place with the most room. A POWER host
    /// has two places of its own; the IOMMU of a PC does not reach 2^59, so the second window gets the upper half of
    /// the IOMMU's range.
    ///
    /// Returns `None` if there is no room for the default window, or none for a second one.
    pub fn placed_on<'a>(&self, spaces: impl IntoIterator<Item = &'a Arc<dyn PciAddressSpace>>) -> Option<Self> {
        let hosts: Vec<_> = spaces.into_iter().map(|space| HostReach::of(space.as_ref())).collect();
        let places: Vec<_> = hosts.iter().flat_map(HostReach::places).collect();
        let default_window = self.default_window_on(&hosts, places.first().copied())?;
        let placed = Self { default_window, ..*self };
        let second = match placed.room_for_second(&hosts, self.second) {
            Some(room) => room.first,
            None => {
                let halves = (u32::BITS..u64::BITS).rev().map(|shift| Iova::new(1 << shift));
                let candidates = places.into_iter().chain(halves);
                largest(candidates.filter_map(|first| placed.room_for_second(&hosts, first)))?.first
            }
        };
        Some(Self { second, ..placed })
    }

    /// The default window at its address, or else at `lowest`, whichever `hosts` have room for.
    fn default_window_on(&self, hosts: &[HostReach], lowest: Option<Iova>) -> Option<IovaRange> {
        let len = self.default_window.len()?.get();
        let moved = lowest.and_then(|first| IovaRange::with_len(first, len).ok());
        let pages = PageSizes::only(DEFAULT_PAGE);
        [Some(self.default_window), moved]
            .into_iter()
            .flatten()
            .find(|window| room(hosts, window.first(), pages, &[self.msi], &[]).is_some_and(|room| room.holds(*window)))
    }

    /// The room for a second window that begins at `first`.
    fn room_for_second(&self, hosts: &[HostReach], first: Iova) -> Option<Room> {
        let pages = known_to_rtas(self.page_sizes)?;
        room(hosts, first, pages, &[self.msi, self.default_window], &[self.default_window])
    }

    /// Returns an error if the layout is impossible for a bridge.
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
        match overlaps.into_iter().find(|(overlap, ..)| *overlap) {
            Some((_, one, another)) => Err(BadLayout::Overlap(one, another)),
            None => Ok(()),
        }
    }
}

/// A range of constants.
fn range_of(first: u64, last: u64) -> IovaRange {
    let range = IovaRange::new(Iova::new(first), Iova::new(last));
    debug_assert!(range.is_ok(), "{first:#x} is behind {last:#x}");
    range.unwrap_or_else(|_| IovaRange::all())
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
