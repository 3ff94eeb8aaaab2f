//! Mapping: the mapping that a map makes, and its lifetime.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dmaspace_core::Access;
use dmaspace_core::error::Kind;

use crate::bench::{Bench, WHOLE};
use crate::memory::{watched, with_farewell};

pub(super) fn a_mapping_is_found_until_it_is_unmapped(bench: &mut Bench) {
    let memory = bench.ram(1, 2);
    bench.map(4, &memory, WHOLE).expect("the units are free");
    let found = bench.lookup(bench.at(5)).expect("the mapping is live");
    assert_eq!((found.range, found.memory, found.access), (bench.range(4, 2), memory, Access::READ_WRITE));
    assert_eq!(bench.unmap(4, 2).expect("the unit is whole"), bench.bytes(2));
    assert_eq!(bench.lookup(bench.at(5)), None);
}

pub(super) fn a_map_over_a_live_unit_is_refused(bench: &mut Bench) {
    bench.must_map(4, 0, 4, bench.pages());
    let overlap = Kind::Overlap(bench.range(4, 4));
    for (n, pages) in [(4, 4), (3, 2), (7, 2), (5, 1), (2, 8)] {
        bench.refuses(&overlap, || bench.map(n, &bench.ram(8, pages), bench.pages()));
    }
}

pub(super) fn an_overlap_is_refused_by_the_live_mapping_it_touches(bench: &mut Bench) {
    bench.must_map(2, 0, 1, WHOLE);
    bench.must_map(5, 1, 2, WHOLE);
    bench.refuses(&Kind::Overlap(bench.range(5, 2)), || bench.map(3, &bench.ram(8, 3), WHOLE));
    bench.refuses(&Kind::Overlap(bench.range(2, 1)), || bench.map(1, &bench.ram(8, 8), WHOLE));
}

pub(super) fn touching_is_not_overlapping(bench: &mut Bench) {
    bench.must_map(4, 0, 4, bench.pages());
    bench.must_map(3, 8, 1, bench.pages());
    bench.must_map(8, 9, 1, WHOLE);
}

pub(super) fn memory_can_be_mapped_at_several_places(bench: &mut Bench) {
    bench.must_map(0, 3, 2, WHOLE);
    bench.must_map(8, 3, 2, bench.pages());
    bench.must_map(16, 4, 2, WHOLE);
    assert_eq!(bench.live().len(), 3);
    bench.unmap(0, 2).expect("the unit is whole");
    let found = bench.lookup(bench.at(9)).expect("the other place is live");
    assert_eq!(found.memory, bench.ram(3, 2));
}

pub(super) fn each_access_is_kept_as_it_was_asked_for(bench: &mut Bench) {
    for (n, access) in [Access::READ, Access::WRITE, Access::READ_WRITE].into_iter().enumerate() {
        let at = bench.at(n as u64 * 2);
        bench.map_with(at, &bench.ram(0, 1), access, WHOLE).expect("the unit is free");
        assert_eq!(bench.lookup(at).map(|mapping| mapping.access), Some(access));
    }
}

pub(super) fn whole_mappings_that_touch_stay_separate(bench: &mut Bench) {
    bench.must_map(4, 0, 2, WHOLE);
    bench.must_map(6, 2, 2, WHOLE);
    assert_eq!(bench.live().len(), 2);
    assert_eq!(bench.unmap(6, 2).expect("the second unit is whole"), bench.bytes(2));
    assert_eq!(bench.live().first().map(|mapping| mapping.range), Some(bench.range(4, 2)));
}

pub(super) fn units_that_continue_each_other_are_one_run(bench: &mut Bench) {
    bench.must_map(4, 0, 2, bench.pages());
    bench.must_map(8, 4, 2, bench.pages());
    bench.must_map(6, 2, 2, bench.pages());
    let live: Vec<_> = bench.live().into_iter().map(|mapping| (mapping.range, mapping.memory)).collect();
    assert_eq!(live, [(bench.range(4, 6), bench.ram(0, 6))]);
}

pub(super) fn units_that_differ_in_access_stay_separate(bench: &mut Bench) {
    bench.must_map(4, 0, 2, bench.pages());
    bench.map_with(bench.at(6), &bench.ram(2, 2), Access::READ, bench.pages()).expect("the units are free");
    let ranges: Vec<_> = bench.live().into_iter().map(|mapping| mapping.range).collect();
    assert_eq!(ranges, [bench.range(4, 2), bench.range(6, 2)]);
}

pub(super) fn a_mapping_holds_its_memory_until_it_is_unmapped(bench: &mut Bench) {
    let (memory, watch) = watched(bench.bytes(1), bench.unit());
    bench.map(2, &memory, WHOLE).expect("the unit is free");
    drop(memory);
    assert!(watch.is_held(), "a device may still reach the memory");
    bench.unmap(2, 1).expect("the unit is whole");
    assert!(!watch.is_held(), "no device reaches the memory");
}

/// The time an unmap may take that does not wait for a lock of its own.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn an_owner_may_look_at_the_space_when_it_is_dropped(bench: &mut Bench) {
    let (space, at, range) = (bench.space().clone(), bench.at(2), bench.range(2, 1));
    let seen = Arc::new(Mutex::new(None));
    let (owners_space, noted) = (Arc::downgrade(bench.space()), seen.clone());
    let memory = with_farewell(bench.bytes(1), bench.unit(), move || {
        let found = owners_space.upgrade().map(|space| space.lookup(at));
        *noted.lock().expect("the owner is dropped once") = Some(found);
    });
    bench.map(2, &memory, WHOLE).expect("the unit is free");
    drop(memory);
    let (finished, waiting) = mpsc::channel();
    std::thread::spawn(move || {
        let unmapped = space.unmap(range);
        drop(space);
        // The channel is gone if the case has given up.
        let _ = finished.send(unmapped);
    });
    let unmapped = waiting.recv_timeout(PATIENCE).expect("the unmap must not drop an owner under a lock of the space");
    unmapped.expect("the unit is whole");
    assert_eq!(*seen.lock().expect("the owner is dropped once"), Some(Some(None)), "the owner saw the range unmapped");
}

pub(super) fn a_device_reads_and_writes_mapped_memory(bench: &mut Bench) {
    bench.map_scratch();
    bench.must_map(4, 8, 2, WHOLE);
    for n in 0..2 {
        bench.assert_readable(bench.at(4 + n), &bench.ram(8 + n, 1));
        bench.assert_writable(bench.at(4 + n), &bench.ram(8 + n, 1));
    }
}

pub(super) fn a_device_does_not_write_memory_mapped_read_only(bench: &mut Bench) {
    bench.map_scratch();
    bench.map_with(bench.at(4), &bench.ram(8, 1), Access::READ, WHOLE).expect("the unit is free");
    bench.assert_readable(bench.at(4), &bench.ram(8, 1));
    bench.assert_not_writable(bench.at(4), &bench.ram(8, 1));
}

pub(super) fn a_device_reaches_nothing_after_an_unmap(bench: &mut Bench) {
    bench.map_scratch();
    bench.must_map(4, 8, 1, WHOLE);
    bench.unmap(4, 1).expect("the unit is whole");
    bench.assert_not_writable(bench.at(4), &bench.ram(8, 1));
    bench.assert_not_readable(bench.at(4), &bench.ram(8, 1));
}
