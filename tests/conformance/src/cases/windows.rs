//! Windows: the snapshot, and creating and removing them.

use dmaspace_core::contract::{WindowControl, WindowRequest};
use dmaspace_core::error::Kind;
use dmaspace_core::{Access, IovaRange, PageSize};

use crate::bench::{Bench, WHOLE, range};
use crate::hooks::Call;

fn control(bench: &Bench) -> &dyn WindowControl {
    bench.window_control().expect("the case needs window control")
}

/// Creates a second window.
fn second(bench: &Bench) -> IovaRange {
    let request = bench.second_window().expect("the case needs a second window");
    control(bench).create_window(request).expect("the place is free").range
}

pub(super) fn windows_are_ascending_and_disjoint(bench: &mut Bench) {
    let windows = bench.window_list();
    assert!(!windows.is_empty());
    for pair in windows.windows(2) {
        assert!(pair[0].range.last() < pair[1].range.first(), "{} and {}", pair[0], pair[1]);
    }
    assert_eq!(windows.last().map(|window| window.range.last()), bench.windows().windows.top());
}

pub(super) fn the_generation_stays_while_the_windows_stay(bench: &mut Bench) {
    let before = bench.windows();
    bench.must_map(0, 0, 4, bench.pages());
    bench.replace(0, &bench.ram(8, 1), Access::READ).expect("the unit is live");
    bench.unmap(0, 4).expect("the units are whole");
    bench.refuses(&Kind::NoAccess, || bench.map_with(bench.at(0), &bench.ram(0, 1), Access::empty(), WHOLE));
    assert_eq!(bench.windows(), before);
}

pub(super) fn a_window_is_granted_where_it_was_asked_for(bench: &mut Bench) {
    let request = bench.second_window().expect("the case needs a second window");
    let granted = control(bench).create_window(request).expect("the place is free");
    assert_eq!((granted.range, granted.granule()), (request.range, request.page));
    assert!(bench.window_list().contains(&granted));
}

pub(super) fn a_created_window_can_be_mapped(bench: &mut Bench) {
    let window = second(bench);
    bench.map_with(window.first(), &bench.ram(0, 2), Access::READ_WRITE, bench.pages()).expect("the window is empty");
    let last = range(window.first(), bench.bytes(64));
    assert_eq!(bench.mappings(last).len(), 1);
    assert_eq!(bench.unmap_range(window).expect("the units are whole"), bench.bytes(2));
}

pub(super) fn the_generation_grows_with_every_window(bench: &mut Bench) {
    let before = bench.windows().generation;
    let window = second(bench);
    let between = bench.windows().generation;
    control(bench).remove_window(window).expect("the window is there");
    let after = bench.windows().generation;
    assert!(before < between && between < after, "{before}, {between}, {after}");
}

pub(super) fn a_window_of_an_odd_size_is_refused(bench: &mut Bench) {
    let request = bench.second_window().expect("the case needs a second window");
    let odd = range(request.range.first(), bench.bytes(3));
    bench.refuses(&Kind::BadWindowSize, || control(bench).create_window(WindowRequest::new(odd, request.page)));
}

pub(super) fn a_window_of_an_unknown_page_is_refused(bench: &mut Bench) {
    let request = bench.second_window().expect("the case needs a second window");
    let sizes = control(bench).offer().expect("a device is attached").page_sizes;
    let unknown =
        (12..40).filter_map(PageSize::from_shift).find(|page| !sizes.contains(*page)).expect("no host has all");
    let refused = Kind::UnsupportedPage(sizes);
    bench.refuses(&refused, || control(bench).create_window(WindowRequest::new(request.range, unknown)));
}

pub(super) fn a_window_over_another_is_refused(bench: &mut Bench) {
    let request = bench.second_window().expect("the case needs a second window");
    let window = bench.window_at_base().range;
    let inside = range(window.first(), bench.bytes(2));
    for over in [window, inside] {
        let overlap = Kind::Overlap(window);
        bench.refuses(&overlap, || control(bench).create_window(WindowRequest::new(over, request.page)));
    }
}

pub(super) fn more_windows_than_the_host_has_are_refused(bench: &mut Bench) {
    while let Some(request) = bench.second_window() {
        control(bench).create_window(request).expect("the place is free");
    }
    let offer = control(bench).offer().expect("a device is attached");
    if bench.window_list().len() < offer.slots {
        return;
    }
    let windows = bench.windows();
    let above =
        bench.unit().round_up(bench.top().get()).and_then(|first| first.checked_next_multiple_of(bench.bytes(64)));
    let above = above.and_then(|first| IovaRange::with_len(dmaspace_core::Iova::new(first), bench.bytes(64)).ok());
    let Some(above) = above else { return };
    let request = WindowRequest::new(above, bench.granule());
    let error = control(bench).create_window(request).expect_err("all slots are taken");
    assert_eq!(error.kind(), Kind::NoWindowSlot, "{error}");
    assert_eq!(bench.windows(), windows);
}

pub(super) fn a_window_is_removed_by_its_exact_range(bench: &mut Bench) {
    let window = bench.window_at_base().range;
    let inside = range(window.first(), bench.bytes(1));
    let beside = range(dmaspace_core::Iova::new(window.first().get() + bench.bytes(1)), bench.bytes(1));
    for wrong in [inside, beside] {
        bench.refuses(&Kind::NoSuchWindow, || control(bench).remove_window(wrong));
    }
    assert_eq!(control(bench).remove_window(window).expect("the window is there"), []);
}

pub(super) fn a_removed_window_returns_its_mappings(bench: &mut Bench) {
    bench.must_map(2, 2, 2, bench.pages());
    bench.must_map(8, 8, 1, WHOLE);
    let live = bench.live();
    let removed = control(bench).remove_window(bench.window_at_base().range).expect("the window is there");
    assert_eq!(removed, live);
    assert_eq!(bench.live(), []);
}

pub(super) fn nothing_is_mapped_in_a_removed_window(bench: &mut Bench) {
    let at = bench.at(2);
    control(bench).remove_window(bench.window_at_base().range).expect("the window is there");
    assert_eq!(bench.lookup(at), None);
    let outside = Kind::OutsideWindows(bench.windows().windows.top());
    bench.refuses(&outside, || bench.map_with(at, &bench.ram(0, 1), Access::READ_WRITE, WHOLE));
}

pub(super) fn a_removed_window_can_be_created_again(bench: &mut Bench) {
    let window = second(bench);
    let request = WindowRequest::new(window, bench.granule());
    for _ in 0..3 {
        control(bench).remove_window(window).expect("the window is there");
        control(bench).create_window(request).expect("the place is free again");
    }
    bench.map_with(window.first(), &bench.ram(0, 1), Access::READ_WRITE, WHOLE).expect("the window is empty");
}

pub(super) fn a_larger_window_needs_a_larger_table(bench: &mut Bench) {
    let page = bench.granule();
    let first = bench.window_at_base().range.first();
    let bytes = |len| control(bench).table_bytes(WindowRequest::new(range(first, len), page));
    assert!(bytes(1 << 30) > 0);
    assert!(bytes(1 << 40) > bytes(1 << 30));
}

pub(super) fn a_window_that_cannot_be_created_changes_nothing(bench: &mut Bench) {
    let request = bench.second_window().expect("the case needs a second window");
    bench.fail_next(Call::CreateWindow);
    bench.fails(|| control(bench).create_window(request));
    control(bench).create_window(request).expect("the call succeeds again");
}
