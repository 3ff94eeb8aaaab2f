//! Unmapping: gaps are fine, cutting a unit is not.

use dmaspace_core::error::Kind;
use dmaspace_core::{Access, IovaRange};

use crate::bench::{Bench, WHOLE, range};

pub(super) fn unmapping_nothing_is_no_error(bench: &mut Bench) {
    assert_eq!(bench.unmap(0, 64).expect("gaps are fine"), 0);
    assert_eq!(bench.unmap_range(IovaRange::all()).expect("gaps are fine"), 0);
}

pub(super) fn an_unmap_spans_gaps_and_counts_bytes(bench: &mut Bench) {
    for n in [2, 5, 9] {
        bench.must_map(n, n, 1, WHOLE);
    }
    assert_eq!(bench.unmap(0, 9).expect("gaps are fine"), bench.bytes(2));
    assert_eq!(bench.live().len(), 1);
    assert_eq!(bench.unmap_range(IovaRange::all()).expect("every unit is whole"), bench.bytes(1));
}

pub(super) fn an_unmap_reaches_outside_the_windows(bench: &mut Bench) {
    let unit = bench.top_unit();
    bench.map_with(unit.first(), &bench.ram(0, 1), Access::READ_WRITE, WHOLE).expect("the unit is free");
    let reaching = IovaRange::new(unit.first(), IovaRange::all().last()).expect("a range");
    assert_eq!(bench.unmap_range(reaching).expect("gaps are fine"), bench.bytes(1));
}

pub(super) fn an_unmap_spans_windows(bench: &mut Bench) {
    bench.must_map(0, 0, 1, WHOLE);
    let windows = bench.window_list();
    let unit = bench.unit();
    let other = windows.iter().filter(|window| !window.range.contains(bench.at(0)));
    let inside = other
        .filter_map(|window| window.range.trimmed_to(unit))
        .find(|inside| inside.bytes() >= u128::from(unit.bytes()));
    let free = inside.expect("a second window has room for a unit");
    bench.map_with(free.first(), &bench.ram(1, 1), Access::READ_WRITE, WHOLE).expect("the unit is free");
    let both = bench.range(0, 1).hull(range(free.first(), unit.bytes()));
    assert_eq!(bench.unmap_range(both).expect("every unit is whole"), bench.bytes(2));
    assert_eq!(bench.live(), []);
}

pub(super) fn a_whole_unit_is_not_cut(bench: &mut Bench) {
    bench.must_map(4, 0, 4, WHOLE);
    bench.must_map(8, 4, 1, WHOLE);
    let cut = Kind::CutsUnit(bench.range(4, 4));
    for (n, pages) in [(4, 1), (5, 1), (7, 1), (0, 6), (7, 4)] {
        bench.refuses(&cut, || bench.unmap(n, pages));
    }
    assert_eq!(bench.unmap(8, 1).expect("the neighbour is whole"), bench.bytes(1));
}

pub(super) fn an_unmap_that_cuts_one_unit_unmaps_no_other(bench: &mut Bench) {
    bench.must_map(0, 0, 1, WHOLE);
    bench.must_map(2, 2, 2, WHOLE);
    bench.must_map(6, 6, 1, bench.pages());
    bench.refuses(&Kind::CutsUnit(bench.range(2, 2)), || bench.unmap(0, 3));
    bench.refuses(&Kind::CutsUnit(bench.range(2, 2)), || bench.unmap(3, 4));
}

pub(super) fn any_run_of_pages_can_be_unmapped(bench: &mut Bench) {
    bench.must_map(0, 0, 8, bench.pages());
    assert_eq!(bench.unmap(2, 3).expect("the pages are whole"), bench.bytes(3));
    let left: Vec<_> = bench.live().into_iter().map(|mapping| (mapping.range, mapping.memory)).collect();
    assert_eq!(left, [(bench.range(0, 2), bench.ram(0, 2)), (bench.range(5, 3), bench.ram(5, 3))]);
}

pub(super) fn a_device_reaches_the_pages_that_stay(bench: &mut Bench) {
    bench.map_scratch();
    bench.must_map(0, 0, 4, bench.pages());
    bench.unmap(1, 2).expect("the pages are whole");
    for (n, live) in [(0, true), (1, false), (2, false), (3, true)] {
        let (at, memory) = (bench.at(n), bench.ram(n, 1));
        if live { bench.assert_writable(at, &memory) } else { bench.assert_not_writable(at, &memory) }
    }
}

pub(super) fn half_a_page_unit_is_not_unmapped(bench: &mut Bench) {
    bench.must_map(0, 0, 8, bench.pages());
    let half = range(bench.at(2), bench.bytes(1) / 2);
    bench.refuses(&Kind::CutsUnit(bench.range(2, 1)), || bench.unmap_range(half));
}

pub(super) fn an_unmapped_range_can_be_mapped_again(bench: &mut Bench) {
    bench.must_map(0, 0, 8, bench.pages());
    bench.unmap(2, 3).expect("the pages are whole");
    bench.must_map(2, 2, 3, bench.pages());
    assert_eq!(bench.live().len(), 1, "units that continue each other are one run");
    bench.unmap(0, 8).expect("the pages are whole");
    bench.must_map(0, 8, 4, WHOLE);
}
