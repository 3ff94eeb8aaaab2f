//! Dirty tracking: a page that a device wrote is never missing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dmaspace_core::contract::dirty::{Dirtied, DirtySink};
use dmaspace_core::error::Kind;
use dmaspace_core::{Access, HostAddress, HostMemory, IovaRange};

use crate::bench::{Bench, SPOT, WHOLE};
use crate::hooks::Call;

/// Spans of host addresses that were marked: first and last byte.
#[derive(Default)]
struct Marks(Mutex<Vec<(u64, u64)>>);

impl Marks {
    fn list(&self) -> MutexGuard<'_, Vec<(u64, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the start of `memory`, as much as a transfer moves, is marked.
    fn cover(&self, memory: &HostMemory) -> bool {
        let (first, last) = (memory.address(), memory.address().get() + SPOT as u64 - 1);
        self.list().iter().any(|mark| mark.0 <= first.get() && last <= mark.1)
    }

    fn touch(&self, memory: &HostMemory) -> bool {
        self.list().iter().any(|mark| mark.0 <= memory.last().get() && memory.address() <= HostAddress::new(mark.1))
    }

    fn is_empty(&self) -> bool {
        self.list().is_empty()
    }

    fn clear(&self) {
        self.list().clear();
    }
}

impl DirtySink for Marks {
    fn mark(&self, dirtied: Dirtied<'_>) {
        self.list().push((dirtied.address().get(), dirtied.address().get() + dirtied.len - 1));
    }
}

fn start(bench: &Bench) -> Arc<Marks> {
    let marks = Arc::new(Marks::default());
    bench.dirty().start(marks.clone()).expect("nothing is tracked yet");
    marks
}

fn sync(bench: &Bench) {
    bench.dirty().sync(IovaRange::all()).expect("dirty pages are tracked");
}

pub(super) fn tracking_starts_once(bench: &mut Bench) {
    start(bench);
    bench.refuses(&Kind::Tracking, || bench.dirty().start(Arc::new(Marks::default())));
    bench.dirty().stop().expect("dirty pages are tracked");
}

pub(super) fn nothing_is_synced_or_stopped_without_tracking(bench: &mut Bench) {
    bench.refuses(&Kind::NotTracking, || bench.dirty().sync(IovaRange::all()));
    bench.refuses(&Kind::NotTracking, || bench.dirty().stop());
}

pub(super) fn tracking_can_start_again_after_it_stopped(bench: &mut Bench) {
    bench.must_map(0, 0, 2, WHOLE);
    for _ in 0..2 {
        let marks = start(bench);
        sync(bench);
        bench.dirty().stop().expect("dirty pages are tracked");
        drop(marks);
    }
}

pub(super) fn a_sync_of_nothing_marks_nothing(bench: &mut Bench) {
    let marks = start(bench);
    let synced = bench.dirty().sync(IovaRange::all()).expect("dirty pages are tracked");
    assert_eq!((synced.bytes, marks.is_empty()), (0, true));
    bench.must_map(0, 0, 2, WHOLE);
    let synced = bench.dirty().sync(bench.range(4, 4)).expect("dirty pages are tracked");
    assert_eq!((synced.bytes, marks.is_empty()), (0, true), "nothing is mapped in the range");
}

pub(super) fn a_page_that_was_written_is_never_missing(bench: &mut Bench) {
    bench.map_scratch();
    bench.must_map(0, 0, 4, bench.pages());
    bench.must_map(8, 8, 4, WHOLE);
    let marks = start(bench);
    for n in [1, 9] {
        bench.device_writes(bench.at(n));
    }
    sync(bench);
    for n in [1, 9] {
        assert!(marks.cover(&bench.ram(n, 1)), "the write to unit {n} is missing");
    }
}

pub(super) fn an_unmap_reports_the_written_pages(bench: &mut Bench) {
    bench.map_scratch();
    bench.must_map(0, 0, 4, bench.pages());
    bench.must_map(8, 8, 2, WHOLE);
    let marks = start(bench);
    for n in [2, 8] {
        bench.device_writes(bench.at(n));
    }
    bench.unmap(0, 16).expect("the units are whole");
    for n in [2, 8] {
        assert!(marks.cover(&bench.ram(n, 1)), "the write to unit {n} is missing");
    }
}

pub(super) fn a_replacement_reports_the_written_pages(bench: &mut Bench) {
    bench.map_scratch();
    bench.must_map(0, 0, 2, bench.pages());
    let marks = start(bench);
    bench.device_writes(bench.at(1));
    bench.replace(1, &bench.ram(8, 1), Access::READ_WRITE).expect("the unit is live");
    sync(bench);
    assert!(marks.cover(&bench.ram(1, 1)), "the write to the old memory is missing");
}

pub(super) fn a_mapping_made_during_tracking_is_tracked(bench: &mut Bench) {
    bench.map_scratch();
    let marks = start(bench);
    bench.must_map(4, 4, 2, WHOLE);
    bench.device_writes(bench.at(5));
    sync(bench);
    assert!(marks.cover(&bench.ram(5, 1)));
}

pub(super) fn a_page_is_told_again_only_if_it_may_have_been_written_again(bench: &mut Bench) {
    bench.map_scratch();
    bench.must_map(0, 0, 2, bench.pages());
    let marks = start(bench);
    bench.device_writes(bench.at(0));
    sync(bench);
    marks.clear();
    bench.device_writes(bench.at(1));
    sync(bench);
    assert!(marks.cover(&bench.ram(1, 1)), "a later write is told by a later sync");
}

pub(super) fn memory_that_devices_only_read_is_never_marked(bench: &mut Bench) {
    bench.map_with(bench.at(0), &bench.ram(0, 2), Access::READ, WHOLE).expect("the units are free");
    let marks = start(bench);
    sync(bench);
    bench.unmap(0, 2).expect("the unit is whole");
    assert!(!marks.touch(&bench.ram(0, 2)), "no device may write the memory");
}

pub(super) fn marks_lie_in_the_memory_that_is_mapped(bench: &mut Bench) {
    bench.must_map(0, 4, 2, WHOLE);
    let marks = start(bench);
    sync(bench);
    bench.unmap(0, 2).expect("the unit is whole");
    let mapped = bench.ram(4, 2);
    assert!(
        marks
            .list()
            .iter()
            .all(|mark: &(u64, u64)| mapped.address() <= HostAddress::new(mark.0) && mark.1 <= mapped.last().get()),
        "{:x?} and {mapped}",
        marks.list()
    );
}

pub(super) fn nothing_is_told_after_the_end(bench: &mut Bench) {
    bench.map_scratch();
    bench.must_map(0, 0, 2, WHOLE);
    let marks = start(bench);
    bench.dirty().stop().expect("dirty pages are tracked");
    marks.clear();
    bench.device_writes(bench.at(0));
    bench.unmap(0, 2).expect("the unit is whole");
    assert!(marks.is_empty());
}

pub(super) fn a_sync_that_fails_marks_everything_it_asked_about(bench: &mut Bench) {
    bench.must_map(0, 0, 2, bench.pages());
    let marks = start(bench);
    bench.fail_always(Call::FetchDirty);
    let synced = bench.dirty().sync(IovaRange::all());
    bench.mend();
    // A space that has no log makes no call that could fail.
    if let Err(error) = synced {
        assert!(error.failure().is_some(), "{error}");
    }
    for n in 0..2 {
        assert!(marks.cover(&bench.ram(n, 1)), "unit {n} may have been written");
    }
}

pub(super) fn a_start_that_fails_tracks_nothing(bench: &mut Bench) {
    bench.must_map(0, 0, 2, WHOLE);
    bench.fail_next(Call::StartDirty);
    let started = bench.dirty().start(Arc::new(Marks::default()));
    bench.mend();
    if started.is_err() {
        bench.refuses(&Kind::NotTracking, || bench.dirty().sync(IovaRange::all()));
        start(bench);
    }
}

pub(super) fn a_fenced_mapping_stays_dirty(bench: &mut Bench) {
    bench.must_map(0, 0, 2, WHOLE);
    let marks = start(bench);
    bench.fail_always(Call::Unmap);
    bench.unmap(0, 2).expect_err("no unmap call succeeds");
    bench.mend();
    marks.clear();
    sync(bench);
    assert!(marks.cover(&bench.ram(0, 1)), "a device may still write behind the fence");
}
