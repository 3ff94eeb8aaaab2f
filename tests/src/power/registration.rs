//! Memory that the guest's front end hands over in many blocks.

use dmaspace_core::listener::Update;
use dmaspace_core::section::{FrontEnd, TargetMemory};
use dmaspace_core::{Access, Iova, Listener, PageSize, Section, SystemAddress};

use crate::power::machine::Machine;
use crate::power::windows::{GIB, PAGE, registration};
use crate::ram::Ram;
use crate::soft::range;

/// Blocks, of a page of the largest host's each.
const BLOCKS: u64 = 1024;

/// Memory comes in 1,024 adjacent blocks in one update: the kernel looks through one registration, not through 1,024, whenever an entry
/// is put. Entries can run across blocks, and devices reach both ends.
pub(super) fn adjacent_blocks_are_one_registration(machine: &Machine) {
    let mut stage = machine.stage();
    let space = stage.space.clone();
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
    stage.show_results_at(Iova::new(middle), ram.slice(middle, PAGE));
    for at in [0, middle - PAGE, BLOCKS * PAGE - 0x1000] {
        stage.assert_readable(Iova::new(at), &ram.slice(at, 0x1000));
        stage.assert_writable(Iova::new(at), &ram.slice(at, 0x1000));
    }
    window.clear(range(0, BLOCKS * PAGE)).expect("whole entries");
    let update = (0..BLOCKS).fold(Update::new(), |update, n| update.removing_target(block(n)));
    listener.commit(update).expect("no entry points there");
    assert_eq!(registration(&*space).registered(), []);
    listener.detach(&space).expect("everything can be taken out");
    assert_eq!(machine.locked(), before);
}
