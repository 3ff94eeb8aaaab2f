//! Memory that the guest's front end hands over in many blocks.

use dmaspace_core::contract::WindowRequest;
use dmaspace_core::{Access, Iova, PageSize, SystemAddress};
use dmaspace_listener::Update;
use dmaspace_listener::section::{FrontEnd, TargetMemory};
use dmaspace_listener::{Listener, Section};

use crate::power::machine::Machine;
use crate::power::windows::{GIB, PAGE, control, registration};
use crate::ram::Ram;
use crate::soft::range;

/// Blocks, of a page of the largest host's each.
const BLOCKS: u64 = 1024;

/// Memory comes in 1,024 adjacent blocks in one update: the kernel looks through one registration, not through 1,024,
/// whenever an entry is put. Entries can run across blocks, and devices reach both ends.
pub(super) fn adjacent_blocks_are_one_registration(machine: &Machine) {
    let mut fixture = machine.fixture();
    let space = fixture.space.clone();
    let ram = Ram::new(usize::try_from(BLOCKS * PAGE).expect("64 MiB"));
    let block = |n: u64| {
        let memory = ram.slice(n * PAGE, PAGE);
        TargetMemory::new("block", SystemAddress::new(n * PAGE), memory).expect("a proper range")
    };
    let section = Section::translated("window", range(0, GIB), PageSize::K4);
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(space.clone()).expect("an empty view fits");
    let before = machine.locked();
    let update = (0..BLOCKS).fold(Update::new(), |update, n| update.adding_target(block(n)));
    let report = listener.commit(update).expect("memory can be registered").spaces.remove(0);
    assert_eq!(registration(&*space).registered(), [ram.all().clone()]);
    assert_eq!((report.pinned, machine.locked() - before), (BLOCKS * PAGE, BLOCKS * PAGE));

    let report = listener.commit(Update::new().adding(section)).expect("a window fits").spaces.remove(0);
    assert_eq!((report.pinned, report.disturbed), (0, 0), "the memory stays as it is");
    let window = listener.translated(Iova::new(0)).expect("the window is in force");
    window.put_run(Iova::new(0), SystemAddress::new(0), BLOCKS * PAGE, Access::READ_WRITE).expect("RAM is there");
    let middle = BLOCKS / 2 * PAGE;
    fixture.show_results_at(Iova::new(middle), ram.slice(middle, PAGE));
    for at in [0, middle - PAGE, BLOCKS * PAGE - 0x1000] {
        fixture.assert_readable(Iova::new(at), &ram.slice(at, 0x1000));
        fixture.assert_writable(Iova::new(at), &ram.slice(at, 0x1000));
    }
    window.clear(range(0, BLOCKS * PAGE)).expect("whole entries");
    let update = (0..BLOCKS).fold(Update::new(), |update, n| update.removing_target(block(n)));
    listener.commit(update).expect("no entry points there");
    assert_eq!(registration(&*space).registered(), []);
    listener.detach(&space).expect("everything can be taken out");
    assert_eq!(machine.locked(), before);
}

/// A container that comes late, after memory has grown: it registers exactly the runs the first one has, which pins and
/// charges nothing. While an entry leans on a run it stays as it is; when none does, it grows in both. Devices reach
/// memory through both all the time.
pub(super) fn a_late_container_registers_the_runs_there_are(machine: &Machine) {
    const PART: u64 = 16 * PAGE;
    let ram = Ram::new(usize::try_from(3 * PART).expect("3 MiB"));
    let part = |n: u64| {
        let memory = ram.slice(n * PART, PART);
        TargetMemory::new("part", SystemAddress::new(n * PART), memory).expect("a proper range")
    };
    let mut opens = [machine.space(), machine.space()];
    let groups = [0, 1].map(|n| machine.join(&mut opens[n], n).expect("a group for each container"));
    let spaces = [0, 1].map(|n| opens[n].space().clone());
    let mut fixture = machine.fixture_of(&opens[0], machine.device(&opens[0], &groups[0], 0));
    let empty = machine.locked();
    let window = range(0, GIB);
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(spaces[0].clone()).expect("an empty view fits");
    let first = Update::new().adding(Section::translated("window", window, PageSize::K4)).adding_target(part(0));
    listener.commit(first).expect("it fits");
    let entries = listener.translated(Iova::new(0)).expect("the window is in force");
    let put = |n: u64| {
        let (at, len) = (n * PART, 2 * PAGE);
        entries.put_run(Iova::new(at), SystemAddress::new(at), len, Access::READ_WRITE).expect("RAM is there");
    };
    put(0);
    listener.commit(Update::new().adding_target(part(1))).expect("it fits beside the first run");
    put(1);
    let runs = vec![ram.slice(0, PART), ram.slice(PART, PART)];
    assert_eq!(registration(&*spaces[0]).registered(), runs);

    let before = machine.locked();
    listener.attach(spaces[1].clone()).expect("it registers the same runs");
    assert_eq!(registration(&*spaces[1]).registered(), runs);
    let table = control(&*spaces[1]).table_bytes(WindowRequest::new(window, PageSize::K4));
    assert_eq!(machine.locked(), before + table, "only its window's table is charged");
    let mut device = machine.device(&opens[1], &groups[1], 1);
    for _ in 0..2 {
        fixture.show_results_at(Iova::new(PAGE), ram.slice(PAGE, PAGE));
        fixture.assert_readable(Iova::new(PART), &ram.slice(PART, PAGE));
        fixture.assert_writable(Iova::new(PART), &ram.slice(PART, PAGE));
        std::mem::swap(&mut fixture.device, &mut device);
    }

    entries.clear(window).expect("whole entries");
    listener.commit(Update::new().adding_target(part(2))).expect("it fits");
    assert!(spaces.iter().all(|space| registration(&**space).registered() == [ram.all().clone()]), "one run of all");
    assert_eq!(machine.locked(), before + table + PART);
    put(0);
    put(2);
    for _ in 0..2 {
        fixture.show_results_at(Iova::new(PAGE), ram.slice(PAGE, PAGE));
        fixture.assert_writable(Iova::new(2 * PART), &ram.slice(2 * PART, PAGE));
        std::mem::swap(&mut fixture.device, &mut device);
    }
    drop(device);
    listener.detach(&spaces[0]).expect("everything can be taken out");
    assert_eq!(registration(&*spaces[1]).registered(), [ram.all().clone()]);
    listener.detach(&spaces[1]).expect("everything can be taken out");
    assert_eq!(machine.locked(), empty);
}
