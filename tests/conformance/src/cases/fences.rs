//! Fences: ranges whose state is unknown after a failure that could not be undone.

use std::thread;

use dmaspace_core::Access;
use dmaspace_core::error::Kind;

use crate::bench::{Bench, WHOLE, map_in};
use crate::hooks::Call;
use crate::memory::watched;

pub(super) fn a_map_that_cannot_be_undone_is_fenced(bench: &mut Bench) {
    bench.must_map(0, 0, 1, WHOLE);
    let fence = bench.fence(2, 2);
    assert_eq!(bench.fenced_ranges(), [fence]);
    assert_eq!(bench.mappings(fence), [], "a fenced range is not live");
    assert_eq!(bench.lookup(bench.at(2)), None);
    assert_eq!(bench.live().len(), 1);
}

pub(super) fn an_unmap_that_fails_is_fenced(bench: &mut Bench) {
    bench.must_map(0, 0, 1, WHOLE);
    bench.must_map(2, 2, 2, WHOLE);
    bench.fail_always(Call::Unmap);
    let error = bench.unmap(2, 2).expect_err("no unmap call succeeds");
    bench.mend();
    assert_eq!(error.fenced(), [bench.range(2, 2)], "{error}");
    assert_eq!(bench.fenced_ranges(), error.fenced());
    assert!(error.failure().is_some(), "{error}");
    assert_eq!(bench.live().iter().map(|mapping| mapping.range).collect::<Vec<_>>(), [bench.range(0, 1)]);
}

pub(super) fn nothing_is_mapped_behind_a_fence(bench: &mut Bench) {
    let fence = Kind::Fenced(bench.fence(2, 2));
    for (n, pages) in [(2, 1), (1, 2), (2, 2), (0, 8)] {
        bench.refuses(&fence, || bench.map(n, &bench.ram(8, pages), WHOLE));
    }
}

pub(super) fn nothing_is_replaced_behind_a_fence(bench: &mut Bench) {
    bench.must_map(0, 0, 2, bench.pages());
    let fence = Kind::Fenced(bench.fence(2, 2));
    bench.refuses(&fence, || bench.replace(1, &bench.ram(8, 2), Access::READ_WRITE));
    bench.refuses(&fence, || bench.replace(2, &bench.ram(8, 1), Access::READ_WRITE));
}

pub(super) fn nothing_is_unmapped_behind_a_fence(bench: &mut Bench) {
    bench.must_map(0, 0, 2, bench.pages());
    let fence = Kind::Fenced(bench.fence(2, 2));
    bench.refuses(&fence, || bench.unmap(2, 1));
    bench.refuses(&fence, || bench.unmap(0, 8));
}

pub(super) fn beside_a_fence_everything_works(bench: &mut Bench) {
    bench.fence(2, 2);
    bench.must_map(1, 8, 1, bench.pages());
    bench.must_map(3, 9, 2, bench.pages());
    bench.replace(3, &bench.ram(12, 1), Access::READ).expect("the unit is live");
    assert_eq!(bench.unmap(3, 2).expect("the units are whole"), bench.bytes(2));
    assert_eq!(bench.unmap(0, 2).expect("the unit is whole"), bench.bytes(1));
}

pub(super) fn memory_behind_a_fence_is_held_for_ever(bench: &mut Bench) {
    let (memory, watch) = watched(bench.bytes(1), bench.unit());
    bench.fence_with(2, &memory);
    drop(memory);
    assert!(watch.is_held(), "a device may still reach the memory");
    bench.close();
    assert!(watch.is_held(), "a device may reach the memory even when the space is gone");
}

pub(super) fn a_fence_keeps_the_cause(bench: &mut Bench) {
    bench.fail_next(Call::Map);
    bench.fail_always(Call::Unmap);
    let error = bench.map(2, &bench.ram(2, 1), WHOLE).expect_err("the map call fails");
    bench.mend();
    assert!(error.to_string().contains(&bench.range(2, 1).to_string()), "{error}");
    let causes: Vec<_> = bench.fences().into_iter().map(|fence| fence.cause.to_string()).collect();
    assert_eq!(causes.len(), 1);
    assert!(!causes[0].is_empty());
}

pub(super) fn registered_memory_behind_a_fence_stays_registered(bench: &mut Bench) {
    let fence = bench.fence(2, 2);
    let registration = bench.registration().expect("the case needs registration");
    let all = bench.ram(0, crate::bench::ROOM);
    bench.refuses(&Kind::Fenced(fence), || registration.unregister(&all));
}

pub(super) fn a_window_that_cannot_be_removed_is_fenced(bench: &mut Bench) {
    bench.must_map(2, 2, 2, WHOLE);
    let window = bench.window_at_base().range;
    bench.fail_always(Call::RemoveWindow);
    let control = bench.window_control().expect("the case needs window control");
    let error = control.remove_window(window).expect_err("no removal succeeds");
    bench.mend();
    assert_eq!((error.fenced().to_vec(), bench.fenced_ranges()), (vec![window], vec![window]));
    assert_eq!(bench.mappings(window), []);
}

pub(super) fn no_window_is_created_over_a_fence(bench: &mut Bench) {
    let request = bench.second_window().expect("the case needs a second window");
    let control = bench.window_control().expect("the case needs window control");
    control.create_window(request).expect("the place is free");
    bench.fail_always(Call::RemoveWindow);
    control.remove_window(request.range).expect_err("no removal succeeds");
    bench.mend();
    control.remove_window(request.range).expect("a removal can be tried again");
    bench.refuses(&Kind::Fenced(request.range), || control.create_window(request));
}

/// The number of rounds, and of threads in each.
const ROUNDS: u64 = 16;
const THREADS: u64 = 4;

pub(super) fn no_thread_maps_behind_a_fence(bench: &mut Bench) {
    for round in 0..ROUNDS {
        bench.fail_next(Call::Map);
        bench.fail_always(Call::Unmap);
        let (at, space) = (bench.at(round), bench.space().as_ref());
        let pieces: Vec<_> = (0..THREADS).map(|n| bench.ram(n, 1)).collect();
        let mapped = thread::scope(|scope| {
            let maps: Vec<_> = pieces
                .iter()
                .map(|memory| scope.spawn(move || map_in(space, at, memory, Access::READ_WRITE, WHOLE).is_ok()))
                .collect();
            maps.into_iter().map(|map| map.join().expect("a map does not panic")).filter(|ok| *ok).count()
        });
        bench.mend();
        let fence = bench.range(round, 1);
        assert!(bench.fenced_ranges().contains(&fence), "one map failed and could not be undone");
        assert_eq!((mapped, bench.mappings(fence)), (0, vec![]), "a map went through the fence in round {round}");
    }
}
