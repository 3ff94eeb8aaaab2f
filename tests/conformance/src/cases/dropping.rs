//! Dropping a space.

use dmaspace_core::Access;

use crate::bench::{Bench, WHOLE};
use crate::memory::watched;

pub(super) fn dropping_a_space_releases_everything(bench: &mut Bench) {
    bench.must_map(0, 0, 4, bench.pages());
    bench.must_map(8, 8, 2, WHOLE);
    let unit = bench.top_unit();
    bench.map_with(unit.first(), &bench.ram(0, 1), Access::READ_WRITE, WHOLE).expect("the unit is free");
    assert_eq!(bench.close(), None);
}

pub(super) fn dropping_a_space_releases_its_memory(bench: &mut Bench) {
    let (memory, watch) = watched(bench.bytes(2), bench.unit());
    bench.map(2, &memory, WHOLE).expect("the units are free");
    drop(memory);
    assert!(watch.is_held(), "a device may still reach the memory");
    bench.close();
    assert!(!watch.is_held(), "no device reaches the memory");
}

pub(super) fn dropping_a_space_removes_windows_and_registrations(bench: &mut Bench) {
    let request = bench.second_window().expect("the case needs a second window");
    let control = bench.window_control().expect("the case needs window control");
    let window = control.create_window(request).expect("the place is free").range;
    bench.map_with(window.first(), &bench.ram(0, 1), Access::READ_WRITE, WHOLE).expect("the window is empty");
    bench.must_map(0, 1, 1, WHOLE);
    assert_eq!(bench.close(), None);
}
