//! Bounds: the refusals of a map before any kernel call.

use dmaspace_core::contract::Unit;
use dmaspace_core::error::Kind;
use dmaspace_core::words::address::BadRange;
use dmaspace_core::{Access, Iova, PageSize};

use crate::bench::{Bench, WHOLE};

pub(super) fn a_range_must_not_wrap(bench: &mut Bench) {
    let last_unit = Iova::new(u64::MAX - bench.bytes(1) + 1);
    let overflow = Kind::BadRange(BadRange::Overflow);
    bench.refuses(&overflow, || bench.map_with(last_unit, &bench.ram(0, 2), Access::READ_WRITE, WHOLE));
}

pub(super) fn access_must_be_asked_for(bench: &mut Bench) {
    bench.refuses(&Kind::NoAccess, || bench.map_with(bench.at(0), &bench.ram(0, 1), Access::empty(), WHOLE));
}

pub(super) fn memory_that_is_only_readable_must_not_be_mapped_for_writing(bench: &mut Bench) {
    let memory = bench.ram(0, 1).host_read_only();
    for (asked, refused) in [(Access::WRITE, Access::WRITE), (Access::READ_WRITE, Access::READ_WRITE)] {
        let needed = if bench.capabilities().maps_host_read_only { refused } else { Access::READ_WRITE };
        bench.refuses(&Kind::HostReadOnly(needed), || bench.map_with(bench.at(0), &memory, asked, WHOLE));
    }
}

pub(super) fn memory_that_is_only_readable_can_be_mapped_for_reading(bench: &mut Bench) {
    let memory = bench.ram(0, 1).host_read_only();
    bench.map_with(bench.at(0), &memory, Access::READ, WHOLE).expect("devices only read it");
}

pub(super) fn memory_that_is_only_readable_is_refused_where_pins_are_for_writing(bench: &mut Bench) {
    let memory = bench.ram(0, 1).host_read_only();
    let refused = Kind::HostReadOnly(Access::READ_WRITE);
    bench.refuses(&refused, || bench.map_with(bench.at(0), &memory, Access::READ, WHOLE));
}

pub(super) fn unbacked_memory_is_refused_where_devices_are_real(bench: &mut Bench) {
    bench.refuses(&Kind::Unbacked, || bench.map(0, &bench.unbacked(), WHOLE));
}

pub(super) fn device_memory_is_refused(bench: &mut Bench) {
    bench.refuses(&Kind::DeviceMemory, || bench.map(0, &bench.ram(0, 1).device_memory(), WHOLE));
}

pub(super) fn device_memory_can_be_mapped(bench: &mut Bench) {
    bench.map(0, &bench.ram(0, 1).device_memory(), WHOLE).expect("the space says that it maps memory of other devices");
    let found = bench.lookup(bench.at(0)).expect("the mapping is live");
    assert!(found.memory.is_device_memory());
}

pub(super) fn a_range_must_lie_inside_one_window(bench: &mut Bench) {
    let top = bench.top();
    let Some(above) = top.get().checked_add(1) else { return };
    // A range that wraps around is refused for that.
    if above.checked_add(bench.bytes(1) - 1).is_none() {
        return;
    }
    let outside = Kind::OutsideWindows(Some(top));
    bench.refuses(&outside, || bench.map_with(Iova::new(above), &bench.ram(0, 1), Access::READ_WRITE, WHOLE));
}

pub(super) fn a_range_must_not_reach_past_a_window(bench: &mut Bench) {
    let (top, unit) = (bench.top(), bench.top_unit());
    if top.get().checked_add(bench.bytes(1)).is_none() {
        return;
    }
    let outside = Kind::OutsideWindows(Some(top));
    bench.refuses(&outside, || bench.map_with(unit.first(), &bench.ram(0, 2), Access::READ_WRITE, WHOLE));
}

pub(super) fn a_range_must_not_lie_in_a_hole(bench: &mut Bench) {
    let hole = bench.hole().expect("the case needs a hole");
    let below = Iova::new(hole.get() - bench.bytes(1));
    let outside = Kind::OutsideWindows(Some(bench.top()));
    for (at, pages) in [(hole, 1), (below, 2)] {
        bench.refuses(&outside, || bench.map_with(at, &bench.ram(0, pages), Access::READ_WRITE, WHOLE));
    }
    bench.map_with(below, &bench.ram(0, 1), Access::READ_WRITE, WHOLE).expect("the unit below the hole is free");
}

pub(super) fn the_highest_unit_of_the_windows_can_be_mapped(bench: &mut Bench) {
    let unit = bench.top_unit();
    bench.map_with(unit.first(), &bench.ram(0, 1), Access::READ_WRITE, WHOLE).expect("the unit is free");
    assert_eq!(bench.unmap_range(unit).expect("the unit is whole"), bench.bytes(1));
}

pub(super) fn the_bounds_must_be_aligned(bench: &mut Bench) {
    let granule = bench.granule();
    let half = granule.bytes() / 2;
    let at = Iova::new(bench.at(0).get() + half);
    let misaligned = Kind::Misaligned(granule);
    bench.refuses(&misaligned, || bench.map_with(at, &bench.ram(0, 1), Access::READ_WRITE, WHOLE));
    bench.refuses(&misaligned, || bench.map(0, &bench.ram_bytes(0, half), WHOLE));
}

pub(super) fn the_host_address_must_be_aligned(bench: &mut Bench) {
    let granule = bench.granule();
    let memory = bench.ram_bytes(granule.bytes() / 2, granule.bytes());
    bench.refuses(&Kind::Misaligned(granule), || bench.map(0, &memory, WHOLE));
}

pub(super) fn a_unit_must_not_be_smaller_than_the_granule(bench: &mut Bench) {
    let small = PageSize::from_shift(bench.granule().shift() - 1).expect("half a granule is a power of two");
    bench.refuses(&Kind::BadUnit(small), || bench.map(0, &bench.ram(0, 1), Unit::Pages(small)));
}

pub(super) fn a_range_must_be_whole_units(bench: &mut Bench) {
    let large = PageSize::from_shift(bench.unit().shift() + 1).expect("two units are a power of two");
    bench.refuses(&Kind::BadUnit(large), || bench.map(0, &bench.ram(0, 1), Unit::Pages(large)));
    bench.refuses(&Kind::BadUnit(large), || bench.map(0, &bench.ram(0, 3), Unit::Pages(large)));
}
