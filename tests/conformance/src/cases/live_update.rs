//! Live update: a space is handed over and adopted while devices go on.

use dmaspace_core::contract::live_update::{Handover, NamedMemory};
use dmaspace_core::error::{Error, Kind};
use dmaspace_core::{Access, IovaRange};

use crate::bench::{Bench, ROOM, WHOLE};
use crate::hooks::Call;

/// Maps three pieces and returns how many.
fn map_some(bench: &Bench) {
    bench.must_map(0, 0, 2, WHOLE);
    bench.must_map(4, 4, 4, bench.pages());
    bench.map_with(bench.at(12), &bench.ram(12, 1), Access::READ, WHOLE).expect("the unit is free");
}

fn hand_over(bench: &Bench) -> Handover {
    bench.hand_over().expect("the space can be handed over")
}

pub(super) fn a_space_that_cannot_be_handed_over_says_why(bench: &mut Bench) {
    bench.must_map(0, 0, 2, WHOLE);
    let before = bench.state();
    let error = bench.hand_over().expect_err("the space cannot be handed over");
    assert!(matches!(error.kind(), Kind::Unsupported(why) if !why.is_empty()), "{error}");
    assert!(!bench.live_update().is_handed_over());
    assert_eq!(bench.state(), before);
    bench.must_map(4, 4, 1, WHOLE);
}

pub(super) fn nothing_changes_in_a_space_that_is_handed_over(bench: &mut Bench) {
    map_some(bench);
    hand_over(bench);
    assert!(bench.live_update().is_handed_over());
    let refused = Kind::HandedOver;
    bench.refuses(&refused, || bench.map(20, &bench.ram(20, 1), WHOLE));
    bench.refuses(&refused, || bench.replace(4, &bench.ram(20, 1), Access::READ_WRITE));
    bench.refuses(&refused, || bench.unmap(0, 2));
    bench.refuses(&refused, || bench.detach(&bench.device()));
    bench.refuses(&refused, || bench.attach(&bench.device()));
    bench.take_back().expect("no other process has adopted the space");
}

pub(super) fn a_space_that_is_handed_over_can_be_looked_at(bench: &mut Bench) {
    map_some(bench);
    let before = bench.state();
    hand_over(bench);
    assert_eq!(bench.state(), before);
    assert_eq!(bench.lookup(bench.at(5)).map(|mapping| mapping.range), Some(bench.range(4, 4)));
    bench.take_back().expect("no other process has adopted the space");
}

pub(super) fn a_hand_over_describes_every_mapping(bench: &mut Bench) {
    map_some(bench);
    let handover = hand_over(bench);
    assert_eq!(handover.devices, bench.devices());
    assert_eq!(handover.windows, bench.window_list());
    let described: Vec<_> = handover.mappings.iter().map(|handed| (handed.range, handed.access, handed.unit)).collect();
    let live: Vec<_> = bench.live().iter().map(|mapping| (mapping.range, mapping.access, mapping.unit)).collect();
    assert_eq!(described, live);
    let places: Vec<_> =
        handover.mappings.iter().map(|handed| (handed.place.name.as_str(), handed.place.offset)).collect();
    assert_eq!(places, [0, 4, 12].map(|n| ("ram", bench.bytes(n))));
    bench.take_back().expect("no other process has adopted the space");
}

pub(super) fn a_second_hand_over_describes_the_same(bench: &mut Bench) {
    map_some(bench);
    let first = hand_over(bench);
    assert_eq!(hand_over(bench), first);
    bench.take_back().expect("no other process has adopted the space");
}

pub(super) fn a_hand_over_can_be_taken_back(bench: &mut Bench) {
    map_some(bench);
    let before = bench.state();
    hand_over(bench);
    bench.take_back().expect("no other process has adopted the space");
    assert!(!bench.live_update().is_handed_over());
    assert_eq!(bench.state(), before);
    assert_eq!(bench.unmap(0, 2).expect("the unit is whole"), bench.bytes(2));
    bench.must_map(20, 20, 2, WHOLE);
}

pub(super) fn a_device_goes_on_while_the_space_is_handed_over(bench: &mut Bench) {
    bench.map_scratch();
    bench.must_map(4, 4, 2, bench.pages());
    hand_over(bench);
    bench.assert_readable(bench.at(4), &bench.ram(4, 1));
    bench.assert_writable(bench.at(5), &bench.ram(5, 1));
    bench.take_back().expect("no other process has adopted the space");
    bench.assert_writable(bench.at(5), &bench.ram(5, 1));
}

pub(super) fn a_space_can_adopt_its_own_hand_over(bench: &mut Bench) {
    map_some(bench);
    let before = bench.state();
    let handover = hand_over(bench);
    bench.adopt(&handover, &bench.names()).expect("the description is the space's own");
    assert!(!bench.live_update().is_handed_over());
    assert_eq!(bench.state(), before);
    assert_eq!(bench.unmap_range(IovaRange::all()).expect("the units are whole"), bench.bytes(7));
}

pub(super) fn memory_without_a_name_is_not_handed_over(bench: &mut Bench) {
    map_some(bench);
    let before = bench.state();
    let part = NamedMemory::new().with("part", bench.ram(0, 6));
    let error = bench.live_update().hand_over(&part).expect_err("not all of a mapping has a name");
    assert!(matches!(error.kind(), Kind::NoMemory(_)), "{error}");
    assert_eq!((bench.live_update().is_handed_over(), bench.state()), (false, before));
}

/// Asserts that `handover` is refused, that the space is still handed over, and that its own description is adopted
/// afterwards.
fn refused_first(bench: &Bench, handover: &Handover, names: &NamedMemory) -> Error {
    let original = hand_over(bench);
    let error = bench.adopt(handover, names).expect_err("the description does not fit");
    assert_eq!(error.failure(), None, "{error}");
    assert!(bench.live_update().is_handed_over());
    bench.adopt(&original, &bench.names()).expect("the description is the space's own");
    error
}

pub(super) fn nothing_is_adopted_without_its_memory(bench: &mut Bench) {
    map_some(bench);
    for names in [NamedMemory::new(), NamedMemory::new().with("ram", bench.ram(0, 3))] {
        let handover = hand_over(bench);
        let error = refused_first(bench, &handover, &names);
        assert!(matches!(error.kind(), Kind::NoMemory(_)), "{error}");
    }
}

pub(super) fn nothing_is_adopted_from_another_backend(bench: &mut Bench) {
    map_some(bench);
    let mut handover = hand_over(bench);
    handover.backend = "another".to_owned();
    let error = refused_first(bench, &handover, &bench.names());
    assert!(matches!(error.kind(), Kind::BadHandover(_)), "{error}");
}

pub(super) fn nothing_is_adopted_for_other_devices(bench: &mut Bench) {
    map_some(bench);
    let mut handover = hand_over(bench);
    handover.devices.clear();
    let error = refused_first(bench, &handover, &bench.names());
    assert!(matches!(error.kind(), Kind::BadHandover(_)), "{error}");
}

pub(super) fn nothing_is_adopted_that_was_not_mapped(bench: &mut Bench) {
    map_some(bench);
    let mut handover = hand_over(bench);
    handover.mappings.pop();
    let error = refused_first(bench, &handover, &bench.names());
    assert!(matches!(error.kind(), Kind::BadHandover(_)), "{error}");
}

pub(super) fn overlapping_mappings_are_not_adopted(bench: &mut Bench) {
    map_some(bench);
    let mut handover = hand_over(bench);
    let twice = handover.mappings[0].clone();
    handover.mappings.push(twice);
    let error = refused_first(bench, &handover, &bench.names());
    assert!(matches!(error.kind(), Kind::Overlap(_)), "{error}");
}

pub(super) fn a_space_that_is_not_handed_over_is_neither_taken_back_nor_adopted(bench: &mut Bench) {
    bench.must_map(0, 0, 1, WHOLE);
    bench.refuses(&Kind::NotHandedOver, || bench.take_back());
    bench.refuses(&Kind::NotHandedOver, || bench.adopt(&Handover::new(""), &bench.names()));
}

pub(super) fn nothing_is_handed_over_beside_a_fence(bench: &mut Bench) {
    map_some(bench);
    let fence = Kind::Fenced(bench.fence(20, 20));
    bench.refuses(&fence, || bench.hand_over());
    assert!(!bench.live_update().is_handed_over());
}

pub(super) fn a_hand_over_that_fails_changes_nothing(bench: &mut Bench) {
    map_some(bench);
    bench.fail_always(Call::Invalidate);
    bench.fails(|| bench.hand_over());
    bench.mend();
    assert!(!bench.live_update().is_handed_over());
    assert_eq!(bench.unmap(0, ROOM).expect("the units are whole"), bench.bytes(7));
}
