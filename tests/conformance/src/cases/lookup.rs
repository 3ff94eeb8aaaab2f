//! Looking at mappings.

use dmaspace_core::{Access, Iova, IovaRange};

use crate::bench::{Bench, WHOLE};

pub(super) fn lookup_finds_every_byte_of_a_mapping_and_none_beside_it(bench: &mut Bench) {
    bench.must_map(4, 8, 2, WHOLE);
    let range = bench.range(4, 2);
    let inside = [range.first().get(), range.first().get() + 1, range.last().get()];
    for at in inside.map(Iova::new) {
        assert_eq!(bench.lookup(at).map(|mapping| mapping.range), Some(range), "at {at}");
    }
    assert_eq!(bench.lookup(Iova::new(range.first().get() - 1)), None);
    assert_eq!(bench.lookup(Iova::new(range.last().get() + 1)), None);
}

pub(super) fn lookup_finds_nothing_outside_the_windows(bench: &mut Bench) {
    let unit = bench.top_unit();
    bench.map_with(unit.first(), &bench.ram(0, 1), Access::READ_WRITE, WHOLE).expect("the unit is free");
    if let Some(above) = bench.top().get().checked_add(1) {
        assert_eq!(bench.lookup(Iova::new(above)), None);
        assert_eq!(bench.lookup(Iova::new(u64::MAX)), None);
    }
}

pub(super) fn mappings_are_listed_in_ascending_order(bench: &mut Bench) {
    for n in [9, 2, 5, 30, 0] {
        bench.must_map(n, n, 1, WHOLE);
    }
    let listed: Vec<_> = bench.live().into_iter().map(|mapping| mapping.range).collect();
    assert_eq!(listed, [0, 2, 5, 9, 30].map(|n| bench.range(n, 1)));
}

pub(super) fn mappings_are_clipped_to_the_range(bench: &mut Bench) {
    bench.must_map(0, 0, 8, bench.pages());
    bench.must_map(10, 10, 4, WHOLE);
    let clipped = bench.mappings(bench.range(6, 6));
    let parts: Vec<_> = clipped.into_iter().map(|mapping| (mapping.range, mapping.memory)).collect();
    assert_eq!(parts, [(bench.range(6, 2), bench.ram(6, 2)), (bench.range(10, 2), bench.ram(10, 2))]);
}

pub(super) fn mappings_of_an_empty_range_are_none(bench: &mut Bench) {
    bench.must_map(0, 0, 2, WHOLE);
    bench.must_map(4, 4, 2, WHOLE);
    assert_eq!(bench.mappings(bench.range(2, 2)), []);
    bench.unmap_range(IovaRange::all()).expect("every unit is whole");
    assert_eq!(bench.live(), []);
}
