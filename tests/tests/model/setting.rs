//! A world before anything has happened in it, and how it is drawn: a bus, hosts, a guest's front end.

use dmaspace_core::PageSize;
use dmaspace_listener::section::{Cuts, FrontEnd, Shrink};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::bus::{Bus, LOWER, SLOTS, Upper, range};
use crate::host_under_test::{Hole, HostKind, Spec};

#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) bus: Bus,
    pub(crate) hosts: Vec<Spec>,
    /// The number of hosts that are served from the beginning.
    pub(crate) served: usize,
    pub(crate) front: FrontEnd,
    /// RAM is mostly reached through translated windows.
    pub(crate) is_translated: bool,
}

impl Setting {
    pub(crate) fn is_power(&self) -> bool {
        self.hosts.iter().any(|host| host.kind.is_power())
    }
}

/// Worlds of these kinds of hosts. A slot is mostly as large as the largest of their pages.
pub(crate) fn setting(
    hosts: &'static [&'static [HostKind]],
    uppers: &'static [Upper],
) -> impl Strategy<Value = Setting> {
    let k16 = PageSize::from_shift(14).expect("16K");
    let page = || prop_oneof![4 => Just(PageSize::K4), 1 => Just(k16), 2 => Just(PageSize::K64)];
    let unit =
        prop_oneof![8 => Just(None), 3 => select(vec![PageSize::K4, PageSize::K64, PageSize::M2]).prop_map(Some)];
    let pages = (page(), page(), page());
    (select(hosts), pages, unit, select(uppers), any::<bool>()).prop_flat_map(
        |(kinds, (a, b, c), unit, upper, is_translated)| {
            let pages: Vec<PageSize> = [a, b, c].into_iter().take(kinds.len()).collect();
            let unit = unit.or(pages.iter().copied().max()).expect("there is a host");
            let bus = Bus { unit, upper };
            let served = prop_oneof![3 => Just(kinds.len()), 1 => 0..kinds.len()];
            let hosts: Vec<_> = kinds.iter().zip(pages).map(|(kind, page)| spec(*kind, bus, page).boxed()).collect();
            (hosts, served, front(bus)).prop_map(move |(hosts, served, front)| Setting {
                bus,
                hosts,
                served,
                front,
                is_translated,
            })
        },
    )
}

fn spec(kind: HostKind, bus: Bus, host_page: PageSize) -> impl Strategy<Value = Spec> {
    // 4K, 2M, 1G; 64K, 2M; everything.
    let page_sizes = select(vec![0, 0x1000, 0x4020_1000, 0x21_0000, 0x7fff_ffff_ffff_f000]);
    let page_sizes = page_sizes.prop_map(move |sizes: u64| if kind.is_power() { sizes & 0x7fff_f000 } else { sizes });
    let last = prop_oneof![5 => Just(u64::MAX), 1 => (1..LOWER).prop_map(move |slots| bus.last(0, slots))];
    let last = last.prop_map(move |last| if host_page.divides(last.wrapping_add(1)) { last } else { u64::MAX });
    let entries = prop_oneof![5 => Just(None), 1 => (1..24u32).prop_map(Some)];
    let memlock = prop_oneof![7 => Just(None), 1 => (0..SLOTS).prop_map(move |slots| Some(slots * bus.unit.bytes()))];
    let default_window = prop_oneof![3 => Just(LOWER), 1 => Just(LOWER / 2)];
    let limits = (entries, memlock, default_window);
    (holes(bus, 2), holes(bus, 1), page_sizes, last, limits, any::<bool>()).prop_map(
        move |(holes, second_holes, page_sizes, last, (entries, memlock, default_window), modern)| Spec {
            kind,
            host_page,
            page_sizes,
            last,
            holes,
            second_holes,
            entries,
            // It locks all its memory when the first device is attached.
            memlock: memlock.filter(|_| kind != HostKind::PowerNvV1),
            default_window: default_window * bus.unit.bytes(),
            // An older kernel's type1 does not find what ends at 2^64-1.
            modern: modern || bus.upper == Upper::Top,
        },
    )
}

fn holes(bus: Bus, most: usize) -> impl Strategy<Value = Vec<Hole>> {
    let ragged = prop_oneof![4 => Just(0u64), 1 => Just(0x123u64)];
    let hole = (1..SLOTS, 1..3u64, ragged);
    vec(hole.prop_map(move |(at, len, ragged)| (bus.first(at) + ragged, bus.last(at, len) - ragged)), 0..=most)
}

fn front(bus: Bus) -> impl Strategy<Value = FrontEnd> {
    let cuts = (0..LOWER, 1..6u64, 0..2u32).prop_map(move |(at, len, coarser)| Cuts {
        range: range(bus.first(at), bus.last(at, len)),
        step: PageSize::from_shift(bus.unit.shift() + coarser).expect("not large"),
    });
    let chunk = prop_oneof![2 => Just(None), 1 => Just(PageSize::from_shift(bus.unit.shift() + 2))];
    (select(vec![Shrink::Refuse, Shrink::Report]), vec(cuts, 0..=1), chunk).prop_map(|(shrink, cuts, chunk)| {
        let mut front = FrontEnd::default();
        (front.shrink, front.cuts, front.chunk) = (shrink, cuts, chunk);
        front
    })
}
