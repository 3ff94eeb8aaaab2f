//! The reach of the hosts behind a bridge: the places with room for one more window of the guest, its largest size, and
//! its page sizes.

use dmaspace_core::contract::{WindowOffer, WindowPlace};
use dmaspace_core::{Iova, IovaRange, PageSize, PageSizes, PciAddressSpace, Windows};

/// The windows that a host has and offers.
#[derive(Debug)]
pub(super) struct HostReach {
    windows: Windows,
    /// The windows that can be created. `None` for a host with fixed windows.
    offer: Option<WindowOffer>,
    /// The host's page, which the pages of a window must not exceed.
    page: PageSize,
}

/// The room for a window: its first byte, its largest size, and its page sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) first: Iova,
    /// The largest window, as a power of two.
    pub(super) shift: u32,
    pub(super) page_sizes: PageSizes,
}

impl Room {
    /// Returns true if there is room for `window`, which begins at the room's first byte.
    pub(super) fn holds(&self, window: IovaRange) -> bool {
        window.bytes() <= 1 << self.shift
    }

    /// The most entries of a window, with any of the page sizes.
    pub(super) fn entries(&self) -> u64 {
        1 << (self.shift - self.page_sizes.largest().shift())
    }
}

impl HostReach {
    pub(super) fn of(space: &dyn PciAddressSpace) -> Self {
        Self {
            windows: space.windows().windows.as_ref().clone(),
            offer: space.powers().window_control.and_then(|control| control.offer()),
            page: space.describe().capabilities.host_page,
        }
    }

    /// The places of windows that are created, ascending.
    pub(super) fn places(&self) -> impl Iterator<Item = Iova> {
        self.offer.iter().flat_map(|offer| offer.places.iter().map(|place| place.first))
    }

    /// The most windows that the guest can have.
    pub(super) fn slots(&self) -> usize {
        self.offer.as_ref().map_or(usize::MAX, |offer| offer.slots)
    }

    /// The bytes within reach from `first` on, and the smallest page there, while the guest has `windows`.
    fn reach(&self, first: Iova, windows: &[IovaRange]) -> Option<(u128, PageSize)> {
        let Some(offer) = &self.offer else {
            if self.windows.is_empty() {
                // Nothing is known before there is a device.
                return Some((u128::MAX, PageSize::K4));
            }
            let window = self.windows.containing(first)?;
            let rest = IovaRange::new(first, window.range.last()).ok()?;
            return Some((rest.bytes(), window.granule()));
        };
        // Platforms fill the lowest place that is free and can hold the window; one with a single slot uses either
        // place.
        if offer.slots > 1 && offer.places.iter().any(|place| is_preferred(place, first, windows)) {
            return None;
        }
        let place = offer.places.iter().find(|place| place.first == first)?;
        // A firmware creates its default window only while there is no other window.
        if place.longest.is_some() && !windows.is_empty() {
            return None;
        }
        let longest = place.longest.map_or(u128::MAX, |longest| u128::from(longest.get()));
        let page = place.page_sizes.smallest();
        (page <= self.page).then_some((longest, page))
    }
}

/// Returns true if a platform would create a window of any size at `place` rather than at `first`.
fn is_preferred(place: &WindowPlace, first: Iova, windows: &[IovaRange]) -> bool {
    let is_free = !windows.iter().any(|window| window.contains(place.first));
    place.first < first && place.longest.is_none() && is_free
}

/// The room from `first` on for one more window on all `hosts`, next to the ranges `taken` and the guest's `windows`.
/// Its page sizes are those of `pages` that the hosts can provide: a host's window may have smaller pages than the
/// guest's.
pub(super) fn room(
    hosts: &[HostReach],
    first: Iova,
    pages: PageSizes,
    taken: &[IovaRange],
    windows: &[IovaRange],
) -> Option<Room> {
    let is_taken = taken.iter().chain(windows).any(|range| range.contains(first));
    if is_taken || hosts.iter().any(|host| host.slots() <= windows.len()) {
        return None;
    }
    let mut bytes = bytes_up_to_next(first, taken.iter().chain(windows))?;
    let mut smallest = PageSize::K4;
    for host in hosts {
        let (reach, page) = host.reach(first, windows)?;
        bytes = bytes.min(reach);
        smallest = smallest.max(page);
    }
    // No window has all 2^64 bytes: the length would not fit its field.
    let shift = bytes.checked_ilog2()?.min(u64::BITS - 1);
    let mut mask = 0;
    for page in pages.iter() {
        if page >= smallest && page.shift() <= shift && page.divides(first.get()) {
            mask |= page.bytes();
        }
    }
    Some(Room { first, shift, page_sizes: PageSizes::from_mask(mask)? })
}

/// The bytes from `first` up to the next of the ranges `taken`, or up to the end of the bus.
fn bytes_up_to_next<'a>(first: Iova, taken: impl Iterator<Item = &'a IovaRange>) -> Option<u128> {
    let rest = IovaRange::new(first, Iova::new(u64::MAX)).ok()?.bytes();
    let next = taken.map(|range| range.first().get()).filter(|next| *next > first.get()).min();
    Some(next.map_or(rest, |next| rest.min(u128::from(next - first.get()))))
}
