//! Memory in huge pages: a window is made of pages as large as it, the host and the guest allow.

use std::time::{Duration, Instant};

use dmaspace_core::contract::WindowRequest;
use dmaspace_core::{Access, Iova, PageSize, SystemAddress};
use dmaspace_listener::section::{FrontEnd, TargetMemory};
use dmaspace_listener::{Listener, Section};

use crate::fixture::Fixture;
use crate::power::machine::Machine;
use crate::power::windows::{MIB, TOP, control, registration};
use crate::ram::Ram;
use crate::soft::range;

/// The bytes of huge memory, in pages of 2 MiB or of 16 MiB.
const LEN: u64 = 32 * MIB;

/// The length of each window.
const LONG: u64 = 64 * MIB;

/// The smallest part that is checked: a quarter of the smallest page.
const SPOT: u64 = 0x400;

/// Guests whose pages in the high window are of 16 MiB and of 2 MiB get a window of 2 MiB pages for it, and the report
/// says why: its table is small, and the device reaches both ends. The low window has small pages all the same. When
/// the guest's memory is in small pages, so are both windows. In the end the host has its huge pages back.
pub(super) fn windows_are_made_of_the_largest_pages_that_work(machine: &Machine) {
    let free = machine.free_huge_pages();
    let mut fixture = machine.fixture();
    let host_page = fixture.space.describe().capabilities.host_page;
    let (small, huge) = (fixture.ram.clone(), machine.huge_ram(LEN));
    let largest = match machine.huge_page() {
        PageSize::M2 => "which the memory behind it is made of; the guest's are 16M",
        _ => "the largest of the host's up to 16M; the guest's are 16M",
    };
    let smaller = "which the memory behind it is made of; the guest's are 16M";

    windows_are(machine, &mut fixture, &huge, PageSize::M16, PageSize::M2, largest);
    windows_are(machine, &mut fixture, &huge, PageSize::M2, PageSize::M2, "which are the guest's");
    windows_are(machine, &mut fixture, &small, PageSize::M16, host_page, smaller);
    windows_are(machine, &mut fixture, &huge, PageSize::M16, PageSize::M2, largest);

    fixture.ram = small;
    drop((fixture, huge));
    assert_eq!(free_in_the_end(machine, free), free);
}

/// The huge pages that are free when as many are as `expected`, or after a while: memory is unpinned some time after it
/// was unregistered (linux: arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_release).
fn free_in_the_end(machine: &Machine, expected: Option<u64>) -> Option<u64> {
    let patience = Instant::now() + Duration::from_secs(20);
    while machine.free_huge_pages() != expected && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(20));
    }
    machine.free_huge_pages()
}

/// A guest with this RAM and entries for pages of `guest_s` in its high window has a window of `page` pages behind it,
/// for the reason `why`. It comes, and goes.
fn windows_are(machine: &Machine, fixture: &mut Fixture, ram: &Ram, guest_s: PageSize, page: PageSize, why: &str) {
    let space = fixture.space.clone();
    let empty = machine.locked();
    fixture.ram = ram.clone();
    let windows = [(0, PageSize::K4), (TOP, guest_s)];
    let sections = windows.map(|(first, page)| Section::translated("window", range(first, LONG), page));
    let target = TargetMemory::new("ram", SystemAddress::new(0), ram.all().clone()).expect("a proper range");
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(space.clone()).expect("an empty view fits");
    let report = listener.commit(listener.update_to(&sections, &[target])).expect("two windows fit");

    let said: Vec<_> = report.spaces[0].sections.iter().map(|verdict| verdict.reason.to_string()).collect();
    let low = format!("the host's window {} with 4K pages, which are the guest's", range(0, LONG));
    let high = format!("the host's window {} with {page} pages, {why}", range(TOP, LONG));
    assert_eq!(said, [low, high]);
    let granted: Vec<_> = space.windows().windows.iter().map(|window| (window.range, window.granule())).collect();
    assert_eq!(granted, [(range(0, LONG), PageSize::K4), (range(TOP, LONG), page)]);
    assert_eq!(registration(&*space).registered(), [ram.all().clone()]);
    let requests = granted.into_iter().map(|(range, page)| WindowRequest::new(range, page));
    let tables: u64 = requests.map(|request| control(&*space).table_bytes(request)).sum();
    assert_eq!(machine.locked() - empty, ram.all().len().get() + tables);

    assert_reaches_both_ends(fixture, &listener, windows);
    listener.detach(&space).expect("everything can be taken out");
    assert_eq!((machine.locked(), space.windows().windows.is_empty()), (empty, true));
}

/// Each of the guest's windows begins there and has entries of that page: the device reads through its first entry, at
/// both ends of it, and writes through its last. Between the entries of the high one is nothing.
fn assert_reaches_both_ends(fixture: &mut Fixture, listener: &Listener, windows: [(u64, PageSize); 2]) {
    let len = fixture.ram.all().len().get();
    for (first, page) in windows.map(|(first, page)| (first, page.bytes())) {
        let window = listener.translated(Iova::new(first)).expect("the window is in force");
        for (at, target) in [(first, 0), (first + LONG - page, len - page)] {
            let target = SystemAddress::new(target);
            window.put_run(Iova::new(at), target, page, Access::READ_WRITE).expect("RAM is there");
        }
        fixture.show_results_at(Iova::new(first + SPOT), fixture.ram.slice(SPOT, SPOT));
        for offset in [0, page - SPOT] {
            fixture.assert_readable(Iova::new(first + offset), &fixture.ram.slice(offset, SPOT));
        }
        fixture.assert_writable(Iova::new(first + LONG - SPOT), &fixture.ram.slice(len - SPOT, SPOT));
    }
    let [.., (high, _)] = windows;
    fixture.assert_unreached(Iova::new(high + LONG / 2));
}
