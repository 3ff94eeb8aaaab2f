//! The pages that devices wrote, collected by address in this process.

use dmaspace_core::contract::MapRequest;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use dmaspace_core::contract::dirty::{Dirtied, DirtySink, Precision};
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::Update;
use dmaspace_listener::section::{FrontEnd, TargetMemory};
use dmaspace_listener::{Listener, Section};

use crate::fixture::Fixture;
use crate::ram::SPOT;
use crate::scenarios::second_window;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 0x1000;

/// A sink that collects pages of 4 KiB, by their number in this process.
#[derive(Debug, Default)]
pub struct Told(Mutex<BTreeSet<u64>>);

impl Told {
    /// Returns the pages told since the last call.
    pub fn take(&self) -> BTreeSet<u64> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the pages told so far, and keeps them.
    pub fn seen(&self) -> BTreeSet<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl DirtySink for Told {
    fn mark(&self, dirtied: Dirtied<'_>) {
        let last = dirtied.address().get() + (dirtied.len - 1);
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pages.extend(dirtied.address().get() / PAGE..=last / PAGE);
    }
}

/// The page that `offset` of `memory` lies in.
pub fn page_of(memory: &HostMemory, offset: u64) -> u64 {
    (memory.address().get() + offset) / PAGE
}

/// The device writes into the pages at these offsets of `memory`, which is mapped at `at`. Returns the pages.
fn write_to(fixture: &mut Fixture, at: u64, memory: &HostMemory, offsets: &[u64]) -> BTreeSet<u64> {
    for offset in offsets {
        let spot = memory.slice(*offset, SPOT as u64).expect("inside the memory");
        fixture.assert_writable(Iova::new(at + offset), &spot);
    }
    offsets.iter().map(|offset| page_of(memory, *offset)).collect()
}

/// Pages that a device wrote, with holes between the mappings, before and after mappings came and went, are told; on a
/// host that logs exactly (`exact`), no others.
pub fn dirty_pages(fixture: &mut Fixture, exact: bool) {
    let section = |name, at, memory: &HostMemory, access| {
        Section::ram(name, Iova::new(at), memory.clone(), access).expect("a section of the scenario")
    };
    let low = fixture.ram.slice(0, MIB);
    let read_only = fixture.ram.slice(MIB, MIB);
    let high = fixture.ram.slice(2 * MIB, 4 * MIB);
    let (low_at, high_at, window) = (0, 8 * MIB, second_window(fixture).0);
    let high_section = section("high", high_at, &high, Access::READ_WRITE);
    let sections = [
        section("low", low_at, &low, Access::READ_WRITE),
        section("read-only", 4 * MIB, &read_only, Access::READ),
        high_section.clone(),
        Section::translated("window", range(window, 64 * MIB), PageSize::K64),
    ];
    let entries = fixture.ram.slice(8 * MIB, 2 * MIB);
    let target = TargetMemory::new("target", SystemAddress::new(0), entries.clone()).expect("a proper range");
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(fixture.space.clone()).expect("an empty view fits every host");
    listener.commit(listener.update_to(&sections, &[target])).expect("the sections fit");
    fixture.show_results_at(Iova::new(0x1_0000), low.slice(0x1_0000, PAGE).expect("inside"));
    write_to(fixture, low_at, &low, &[0x3_0000]);

    let told = Arc::new(Told::default());
    let precision = listener.track_dirty(told.clone()).expect("every host can be tracked");
    let ask = |listener: &Listener| {
        let synced = listener.sync_dirty().expect("it answers");
        assert_eq!(synced.iter().map(|synced| synced.precision).collect::<Vec<_>>(), precision);
        told.take()
    };
    let assert_told = |told: BTreeSet<u64>, written: BTreeSet<u64>| {
        assert!(written.is_subset(&told), "{written:x?} were written, told {} pages", told.len());
        assert!(!exact || told == written, "{written:x?} were written, {told:x?} told");
    };
    ask(&listener);

    // On both sides of holes, and of memory that cannot be written; the first and the last page of a mapping.
    let mut written = write_to(fixture, low_at, &low, &[0, 0x5_0000, MIB - PAGE]);
    written.append(&mut write_to(fixture, high_at, &high, &[0x1_1000, 3 * MIB, 4 * MIB - PAGE]));
    let answer = ask(&listener);
    assert!(!answer.contains(&page_of(&read_only, 0)), "no device can write there");
    assert_told(answer, written);
    // A page that is written again is told again.
    let written = write_to(fixture, high_at, &high, &[3 * MIB]);
    assert_told(ask(&listener), written);

    // Entries that come and go while pages are tracked.
    let handle = listener.translated(Iova::new(window)).expect("the window is in force");
    handle
        .put_run(Iova::new(window), SystemAddress::new(0x2_0000), 0x2_0000, Access::READ_WRITE)
        .expect("RAM is there");
    let behind = entries.slice(0x2_0000, 0x2_0000).expect("inside");
    let written = write_to(fixture, window, &behind, &[0x1000, 0x1_8000]);
    assert_told(ask(&listener), written);
    let mut written = write_to(fixture, window, &behind, &[0x2000]);
    handle.clear(range(window, 0x1_0000)).expect("whole entries");
    written.append(&mut write_to(fixture, window, &behind, &[0x1_3000]));
    let answer = ask(&listener);
    assert!(written.is_subset(&answer), "{written:x?} were written, {} pages told", answer.len());

    // RAM that goes.
    let mut written = write_to(fixture, high_at, &high, &[0x7_0000]);
    written.append(&mut write_to(fixture, low_at, &low, &[0x8_0000]));
    listener.commit(Update::new().removing(high_section)).expect("RAM can go");
    let answer = ask(&listener);
    assert!(written.is_subset(&answer), "{written:x?} were written, {} pages told", answer.len());

    listener.stop_tracking();
    listener.sync_dirty().expect_err("it ended");
    let space = fixture.space.clone();
    listener.detach(&space).expect("everything can be taken out");
    assert!(precision.iter().all(|precision| !exact || *precision == Precision::Pages(PageSize::K4)));
}

fn range(first: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(first), len).expect("a range of the scenario")
}

/// As many mappings as a kernel takes by default, each by itself: all of them asked about, and unmapped.
pub fn scattered(fixture: &mut Fixture) {
    const COUNT: u64 = 60_000;
    let (space, told) = (fixture.space.clone(), Arc::new(Told::default()));
    let pages = fixture.ram.all().len().get() / PAGE;
    for n in 0..COUNT {
        let memory = fixture.ram.slice(n % pages * PAGE, PAGE);
        space
            .map(MapRequest::new(Iova::new(n * 2 * PAGE), &memory, Access::READ_WRITE))
            .expect("the kernel takes 65,535");
    }
    let tracking = space.powers().dirty_tracking;
    tracking.start(told.clone()).expect("every host can be tracked");
    fixture.show_results_at(Iova::new(0), fixture.ram.slice(0, PAGE));
    let last = COUNT - 1;
    fixture.assert_writable(Iova::new(last * 2 * PAGE), &fixture.ram.slice(last % pages * PAGE, PAGE));
    let synced = tracking.sync(IovaRange::all()).expect("it answers");
    assert!(synced.bytes <= COUNT * PAGE && told.take().contains(&page_of(fixture.ram.all(), last % pages * PAGE)));
    assert_eq!(space.unmap(IovaRange::all()).expect("whole mappings"), COUNT * PAGE);
    tracking.stop().expect("it is tracked");
    space.map(MapRequest::new(Iova::new(0), &fixture.ram.slice(0, PAGE), Access::READ_WRITE)).expect("it is free");
    fixture.assert_unreached(Iova::new(last * 2 * PAGE));
}
