//! Windows: made of every page, no more than there are slots, and removed with their entries.

use dmaspace_core::contract::MapRequest;
use dmaspace_core::contract::{MemoryRegistration, PciAddressSpace, Unit, WindowControl, WindowRequest};
use dmaspace_core::error::Kind;
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::section::{FrontEnd, TargetMemory};
use dmaspace_listener::{CommitError, Update};
use dmaspace_listener::{Listener, Section};

use crate::fixture::Fixture;
use crate::power::machine::Machine;
use crate::soft::range;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;

/// The start of the second window.
pub(super) const TOP: u64 = 1 << 59;

/// A multiple of every host's page.
pub(super) const PAGE: u64 = 0x1_0000;

pub(super) fn control(space: &dyn PciAddressSpace) -> &dyn WindowControl {
    space.powers().window_control.expect("POWER's windows come and go")
}

pub(super) fn registration(space: &dyn PciAddressSpace) -> &dyn MemoryRegistration {
    space.powers().registration.expect("POWER wants memory registered")
}

fn window(first: u64, page: PageSize) -> WindowRequest {
    WindowRequest::new(range(first, GIB), page)
}

/// A window in every page up to 2 MiB that the host has, wherever it can be: its table is charged as was foretold, the
/// device reaches memory through its first and its last entry, and when it is removed everything is as before. Memory
/// in pages smaller than the window's cannot be mapped there. A page the host does not have is refused, and those it
/// has are named.
pub(super) fn windows_are_made_of_every_page_the_host_has(machine: &Machine) {
    let mut fixture = machine.fixture();
    let space = fixture.space.clone();
    let (control, host_page) = (control(&*space), space.describe().capabilities.host_page);
    registration(&*space).register(fixture.ram.all()).expect("the guest's RAM can be registered");
    let offer = control.offer().expect("a device is attached");
    let empty = (machine.locked(), space.windows().windows);

    for place in &offer.places {
        // Slots are filled from the bottom of the bus up.
        let below = (place.first.get() == TOP).then(|| window(0, PageSize::K4));
        if let Some(below) = below {
            control.create_window(below).expect("a first window");
        }
        for page in place.page_sizes.up_to(PageSize::M2).expect("all have pages of 4 KiB").iter() {
            let before = machine.locked();
            let request = window(place.first.get(), page);
            let granted = control.create_window(request).expect("a page the host has");
            assert_eq!((granted.range, granted.granule()), (request.range, page));
            assert_eq!(machine.locked() - before, control.table_bytes(request), "the table of {page} entries");
            if page <= host_page {
                assert_reaches_both_ends(&mut fixture, granted.range, page);
            } else {
                assert_takes_no_smaller_pages(&fixture, granted.range, page);
            }
            control.remove_window(granted.range).expect("a window that is there");
            assert_eq!(machine.locked(), before, "after the window of {page} entries");
        }
        if let Some(below) = below {
            control.remove_window(below.range).expect("a window that is there");
        }
    }

    let mut pages = [PageSize::from_shift(13), Some(PageSize::M16), Some(PageSize::G1)].into_iter().flatten();
    let lacking = pages.find(|page| !offer.page_sizes.contains(*page)).expect("no host has pages of 8 KiB");
    let error = control.create_window(window(0, lacking)).expect_err("the host has no such page");
    assert_eq!((error.kind(), error.failure()), (&Kind::UnsupportedPage(offer.page_sizes), None));
    assert!(error.to_string().contains(&format!("the host's pages are {}", offer.page_sizes)), "{error}");
    assert_eq!((machine.locked(), space.windows().windows), empty);
}

/// The device reads through a window's first entry, and writes through its last.
fn assert_reaches_both_ends(fixture: &mut Fixture, window: IovaRange, page: PageSize) {
    let (first, bytes) = (window.first().get(), page.bytes());
    let places = [first + GIB / 2, first, first + GIB - bytes].map(Iova::new);
    let pieces = [0, 1, 2].map(|n| fixture.ram.slice(n * bytes, bytes));
    for (at, memory) in places.iter().zip(&pieces) {
        fixture
            .space
            .map(MapRequest::new(*at, memory, Access::READ_WRITE).with_unit(Unit::Pages(page)))
            .expect("an entry");
    }
    fixture.show_results_at(places[0], pieces[0].clone());
    fixture.assert_readable(places[1], &pieces[1]);
    let last_page = pieces[2].slice(bytes - 0x1000, 0x1000).expect("inside");
    fixture.assert_writable(Iova::new(first + GIB - 0x1000), &last_page);
}

/// An entry stands for memory of one piece (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_page_is_contained).
fn assert_takes_no_smaller_pages(fixture: &Fixture, window: IovaRange, page: PageSize) {
    let all = fixture.ram.all();
    let offset = page.round_up(all.address().get()).expect("far from the end") - all.address().get();
    let memory = fixture.ram.slice(offset, page.bytes());
    let mapped =
        fixture.space.map(MapRequest::new(window.first(), &memory, Access::READ_WRITE).with_unit(Unit::Pages(page)));
    let error = mapped.expect_err("the memory is in smaller pages");
    assert_eq!((error.kind(), error.fenced()), (&Kind::Refused, &[][..]), "{error}");
    assert!(fixture.space.mappings(IovaRange::all()).is_empty(), "after {error}");
}

/// Two windows are in force and a third is wanted: of the listener, which refuses before the kernel is asked, and of
/// the space, whose kernel refuses. The two are as they were.
pub(super) fn a_third_window_is_refused_and_two_go_on(machine: &Machine) {
    let mut fixture = machine.fixture();
    let space = fixture.space.clone();
    let section = |first| Section::translated("window", range(first, GIB), PageSize::K4);
    let target = TargetMemory::new("ram", SystemAddress::new(0), fixture.ram.all().clone()).expect("a proper range");
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(space.clone()).expect("an empty view fits");
    listener.commit(listener.update_to(&[section(0), section(TOP)], &[target])).expect("two windows fit");
    let places = [0, GIB - PAGE, TOP, TOP + GIB - PAGE].map(Iova::new);
    for (n, at) in (0..).zip(places) {
        let window = listener.translated(if at.get() < TOP { Iova::new(0) } else { Iova::new(TOP) });
        let window = window.expect("the window is in force");
        window.put_run(at, SystemAddress::new(n * PAGE), PAGE, Access::READ_WRITE).expect("RAM is there");
    }
    fixture.show_results_at(places[0], fixture.ram.slice(0, PAGE));
    let before = (machine.locked(), space.windows(), space.mappings(IovaRange::all()));

    let refusal = listener.commit(Update::new().adding(section(4 * GIB))).expect_err("there are two slots");
    assert!(matches!(refusal, CommitError::Refused(_)), "{refusal}");
    assert!(refusal.to_string().contains("the host has 2 window slots, and they are taken"), "{refusal}");
    let refusal = control(&*space).create_window(window(4 * GIB, PageSize::K4)).expect_err("there are two slots");
    assert_eq!((refusal.kind(), refusal.fenced()), (&Kind::NoWindowSlot, &[][..]), "{refusal}");
    assert_eq!((machine.locked(), space.windows(), space.mappings(IovaRange::all())), before, "after {refusal}");

    for (n, at) in (0..).zip(places).skip(1) {
        fixture.assert_writable(at, &fixture.ram.slice(n * PAGE, PAGE));
    }
    listener.detach(&space).expect("everything can be taken out");
}

/// A window is removed with entries in it: the removal returns them, the other window stays, and they can be written
/// again once the window is back.
pub(super) fn a_window_goes_with_its_entries_and_they_can_come_back(machine: &Machine) {
    const ENTRIES: [u64; 3] = [TOP, TOP + GIB / 2, TOP + GIB - PAGE];
    let mut fixture = machine.fixture();
    let space = fixture.space.clone();
    let (control, registration) = (control(&*space), registration(&*space));
    let memory: Vec<HostMemory> = (0..4).map(|n| fixture.ram.slice(n * MIB, PAGE)).collect();
    let all = fixture.ram.all().clone();
    registration.register(&all).expect("the guest's RAM can be registered");
    control.create_window(window(0, PageSize::K4)).expect("a first window");
    let map = |at: u64, memory: &HostMemory| {
        space
            .map(MapRequest::new(Iova::new(at), memory, Access::READ_WRITE).with_unit(Unit::Pages(PageSize::K4)))
            .expect("it fits")
    };
    map(PAGE, &memory[3]);
    fixture.show_results_at(Iova::new(PAGE), memory[3].clone());
    let before = machine.locked();

    for _ in 0..2 {
        control.create_window(window(TOP, PageSize::K4)).expect("a second window");
        for (at, memory) in ENTRIES.iter().zip(&memory) {
            map(*at, memory);
        }
        for (at, memory) in ENTRIES.iter().zip(&memory) {
            fixture.assert_writable(Iova::new(*at), memory);
        }
        let gone = control.remove_window(range(TOP, GIB)).expect("entries are no obstacle");
        let gone: Vec<_> = gone.into_iter().map(|mapping| (mapping.range.first().get(), mapping.memory)).collect();
        assert_eq!(gone, ENTRIES.into_iter().zip(memory.iter().cloned()).collect::<Vec<_>>());
        assert_eq!((machine.locked(), space.mappings(range(TOP, GIB))), (before, Vec::new()));
        fixture.assert_unreached(Iova::new(ENTRIES[1]));
    }

    // Nothing leans on the memory any more when the last window goes: the kernel gives all of it back.
    registration.unregister(&all).expect_err("an entry of the first window points there");
    control.remove_window(range(0, GIB)).expect("a window that is there");
    registration.unregister(&all).expect("nothing leans on it");
    assert_eq!(before - machine.locked(), all.len().get() + control.table_bytes(window(0, PageSize::K4)));
}
