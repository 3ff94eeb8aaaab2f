//! How far the hosts behind a bridge reach: where there is room for one more of the guest's windows, how much, and in which pages.

use dmaspace_core::contract::{WindowOffer, WindowPlace};
use dmaspace_core::{Iova, IovaRange, PageSize, PageSizes, PciAddressSpace, Windows};

/// What a host says of its windows.
#[derive(Debug)]
pub(super) struct Host {
    windows: Windows,
    /// Where windows are created.
    offer: Option<WindowOffer>,
    /// Entries are no larger than the page behind them.
    page: PageSize,
}

/// Where a window can begin, how large it can be, and its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) first: Iova,
    /// The largest window, as a power of two.
    pub(super) shift: u32,
    pub(super) page_sizes: PageSizes,
}

impl Room {
    /// Whether `window`, which begins here, fits.
    pub(super) fn holds(&self, window: IovaRange) -> bool {
        window.bytes() <= 1 << self.shift
    }

    /// How many entries a window has at most, whichever page it is made of.
    pub(super) fn entries(&self) -> u64 {
        1 << (self.shift - self.page_sizes.largest().shift())
    }
}

impl Host {
    pub(super) fn of(space: &dyn PciAddressSpace) -> Self {
        Self {
            windows: space.windows().windows.as_ref().clone(),
            offer: space.window_control().and_then(|control| control.offer()),
            page: space.powers().host_page,
        }
    }

    /// Where it puts windows that are created, ascending.
    pub(super) fn places(&self) -> impl Iterator<Item = Iova> {
        self.offer.iter().flat_map(|offer| offer.places.iter().map(|place| place.first))
    }

    /// How many windows the guest can have.
    pub(super) fn slots(&self) -> usize {
        self.offer.as_ref().map_or(usize::MAX, |offer| offer.slots)
    }

    /// How many bytes there are from `first` on, and the smallest page there, while the guest has `windows`.
    fn reach(&self, first: Iova, windows: &[IovaRange]) -> Option<(u128, PageSize)> {
        let Some(offer) = &self.offer else {
            if self.windows.is_empty() {
                // No device yet, so nothing is known.
                return Some((u128::MAX, PageSize::K4));
            }
            let window = self.windows.containing(first)?;
            let rest = IovaRange::new(first, window.range.last()).ok()?;
            return Some((rest.bytes(), window.granule()));
        };
        // Platforms fill the lowest place that is free and can hold the window; one with a single slot has its window in either.
        let is_taken = |at: Iova| windows.iter().any(|window| window.contains(at));
        let goes_lower = |place: &WindowPlace| place.first < first && place.longest.is_none() && !is_taken(place.first);
        if offer.slots > 1 && offer.places.iter().any(goes_lower) {
            return None;
        }
        let place = offer.places.iter().find(|place| place.first == first)?;
        // A firmware's default window is only created alone.
        if place.longest.is_some() && !windows.is_empty() {
            return None;
        }
        let longest = place.longest.map_or(u128::MAX, |longest| u128::from(longest.get()));
        let page = place.page_sizes.smallest();
        (page <= self.page).then_some((longest, page))
    }
}

/// The room that there is from `first` on for one more window, on all `hosts`, next to what is `taken` and the guest's `windows`; its
/// pages are those of `pages` that will do. A host's window may be made of smaller pages than the guest's.
pub(super) fn room(
    hosts: &[Host],
    first: Iova,
    pages: PageSizes,
    taken: &[IovaRange],
    windows: &[IovaRange],
) -> Option<Room> {
    let taken = || taken.iter().chain(windows);
    if taken().any(|range| range.contains(first)) || hosts.iter().any(|host| host.slots() <= windows.len()) {
        return None;
    }
    let mut bytes = IovaRange::new(first, Iova::new(u64::MAX)).ok()?.bytes();
    let next = taken().map(|range| range.first().get()).filter(|next| *next > first.get()).min();
    bytes = bytes.min(next.map_or(u128::MAX, |next| u128::from(next - first.get())));
    let mut smallest = PageSize::K4;
    for host in hosts {
        let (reach, page) = host.reach(first, windows)?;
        bytes = bytes.min(reach);
        smallest = smallest.max(page);
    }
    // All 2^64 are no window: its length would not fit.
    let shift = bytes.checked_ilog2()?.min(u64::BITS - 1);
    let will_do = |page: &PageSize| *page >= smallest && page.shift() <= shift && page.divides(first.get());
    let mask = pages.iter().filter(will_do).fold(0, |mask, page| mask | page.bytes());
    Some(Room { first, shift, page_sizes: PageSizes::from_mask(mask)? })
}
