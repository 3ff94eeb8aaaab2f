//! Replacing the memory behind live units.

use dmaspace_core::Access;
use dmaspace_core::contract::{MappingModel, Swap};
use dmaspace_core::error::Kind;

use crate::bench::{Bench, WHOLE};
use crate::hooks::Call;

const RW: Access = Access::READ_WRITE;

pub(super) fn a_replacement_needs_live_units(bench: &mut Bench) {
    bench.refuses(&Kind::NotLive(bench.range(3, 2)), || bench.replace(3, &bench.ram(8, 2), RW));
    bench.must_map(0, 0, 4, bench.pages());
    bench.refuses(&Kind::NotLive(bench.range(4, 1)), || bench.replace(3, &bench.ram(8, 2), RW));
}

pub(super) fn a_replacement_names_the_first_gap(bench: &mut Bench) {
    for n in [0, 2, 4] {
        bench.must_map(n, n, 1, bench.pages());
    }
    bench.refuses(&Kind::NotLive(bench.range(1, 1)), || bench.replace(0, &bench.ram(8, 5), RW));
}

pub(super) fn a_replacement_must_not_cut_a_unit(bench: &mut Bench) {
    bench.must_map(8, 12, 2, WHOLE);
    let cut = Kind::CutsUnit(bench.range(8, 2));
    bench.refuses(&cut, || bench.replace(8, &bench.ram(0, 1), RW));
    bench.refuses(&cut, || bench.replace(9, &bench.ram(0, 1), RW));
}

pub(super) fn a_gap_comes_before_a_unit_that_is_cut(bench: &mut Bench) {
    bench.must_map(8, 12, 2, WHOLE);
    bench.refuses(&Kind::NotLive(bench.range(10, 1)), || bench.replace(9, &bench.ram(0, 2), RW));
}

pub(super) fn a_replacement_is_checked_as_a_map_is(bench: &mut Bench) {
    bench.must_map(0, 0, 2, bench.pages());
    bench.refuses(&Kind::NoAccess, || bench.replace(0, &bench.ram(8, 1), Access::empty()));
    let read_only = bench.ram(8, 1).host_read_only();
    bench.refuses(&Kind::HostReadOnly(RW), || bench.replace(0, &read_only, RW));
    let granule = bench.granule();
    let misaligned = bench.ram_bytes(granule.bytes() / 2, bench.bytes(1));
    bench.refuses(&Kind::Misaligned(granule), || bench.replace(0, &misaligned, RW));
    let half = bench.ram_bytes(0, bench.bytes(1) / 2);
    let error = bench.replace(0, &half, RW).expect_err("half a unit is not replaced");
    assert!(matches!(error.kind(), Kind::BadUnit(_) | Kind::Misaligned(_)), "{error}");
}

pub(super) fn a_replacement_swaps_memory_and_access(bench: &mut Bench) {
    bench.must_map(0, 0, 4, bench.pages());
    bench.replace(1, &bench.ram(8, 2), Access::READ).expect("the units are live");
    let found = bench.lookup(bench.at(2)).expect("the units are live");
    assert_eq!((found.range, found.memory, found.access), (bench.range(1, 2), bench.ram(8, 2), Access::READ));
}

pub(super) fn a_replacement_says_whether_devices_could_miss_it(bench: &mut Bench) {
    bench.must_map(0, 0, 4, bench.pages());
    let swap = bench.replace(1, &bench.ram(8, 2), RW).expect("the units are live");
    let expected = match bench.capabilities().keeps {
        MappingModel::PageEntries => Swap::Seamless,
        MappingModel::Mappings => Swap::WithGap,
    };
    assert_eq!(swap, expected);
}

pub(super) fn a_replacement_of_a_part_leaves_the_rest(bench: &mut Bench) {
    bench.must_map(0, 0, 4, bench.pages());
    bench.replace(1, &bench.ram(8, 1), RW).expect("the unit is live");
    let parts: Vec<_> = bench.live().into_iter().map(|mapping| (mapping.range, mapping.memory)).collect();
    let expected = [
        (bench.range(0, 1), bench.ram(0, 1)),
        (bench.range(1, 1), bench.ram(8, 1)),
        (bench.range(2, 2), bench.ram(2, 2)),
    ];
    assert_eq!(parts, expected);
    assert_eq!(bench.unmap(0, 4).expect("the units are whole"), bench.bytes(4));
}

pub(super) fn a_device_reaches_the_new_memory_after_a_replacement(bench: &mut Bench) {
    bench.map_scratch();
    bench.must_map(0, 0, 4, bench.pages());
    bench.replace(1, &bench.ram(8, 1), RW).expect("the unit is live");
    bench.assert_writable(bench.at(1), &bench.ram(8, 1));
    bench.assert_not_writable(bench.at(1), &bench.ram(1, 1));
}

pub(super) fn a_replacement_that_fails_leaves_the_old_mapping(bench: &mut Bench) {
    bench.must_map(0, 0, 4, bench.pages());
    bench.fail_next(Call::Map);
    bench.fails(|| bench.replace(1, &bench.ram(8, 2), Access::READ));
    bench.replace(1, &bench.ram(8, 2), Access::READ).expect("the call succeeds again");
}

pub(super) fn a_replacement_that_cannot_be_undone_is_fenced(bench: &mut Bench) {
    bench.must_map(0, 0, 4, bench.pages());
    bench.fail_always(Call::Map);
    if bench.capabilities().keeps == MappingModel::PageEntries {
        bench.fail_always(Call::Unmap);
    }
    let error = bench.replace(1, &bench.ram(8, 2), RW).expect_err("no map call succeeds");
    bench.mend();
    assert!(!error.fenced().is_empty(), "{error}");
    assert!(bench.fenced_ranges().iter().all(|fence| error.fenced().contains(fence)), "{error}");
    assert!(error.fenced().iter().all(|fence| bench.range(1, 2).covers(*fence)), "{error}");
    assert_eq!(bench.mappings(bench.range(1, 2)), [], "a fenced range is not live");
    let beside: Vec<_> = bench.live().into_iter().map(|mapping| mapping.range).collect();
    assert_eq!(beside, [bench.range(0, 1), bench.range(3, 1)]);
}
