//! Repetitions, after which no resource has piled up.

use dmaspace_core::contract::MapRequest;
use dmaspace_core::contract::{Unit, WindowRequest};
use dmaspace_core::{Access, Iova, PageSize};

use crate::power::machine::{Machine, leave, rejoin};
use crate::power::windows::{MIB, PAGE, TOP, control, registration};
use crate::ram::Ram;
use crate::soft::range;

/// 200 times without a device.
pub(super) fn many_cycles_leave_nothing_behind(machine: &Machine) {
    cycles(machine, 200, false);
}

/// Ten times with a device that writes.
pub(super) fn cycles_with_an_open_device_leave_nothing_behind(machine: &Machine) {
    cycles(machine, 10, true);
}

/// A group joins, memory is registered, two windows come with entries in them; then, in turns, all of it is taken back
/// step by step, or left to the group that leaves.
fn cycles(machine: &Machine, count: usize, with_device: bool) {
    let ram = Ram::new(usize::try_from(2 * MIB).expect("2 MiB"));
    let mut open = machine.space();
    let space = open.space().clone();
    let group = machine.join(&mut open, 0).expect("the first group joins");
    leave(&open, &group);
    let before = machine.held();
    for n in 0..count {
        rejoin(&open, &group);
        let fixture = with_device.then(|| machine.fixture_of(&open, machine.device(&open, &group, 0)));
        let (control, registration) = (control(&*space), registration(&*space));
        registration.register(ram.all()).expect("memory can be registered");
        for first in [0, TOP] {
            let request = WindowRequest::new(range(first, 16 * MIB), PageSize::K4);
            control.create_window(request).expect("a window");
            let memory = ram.slice(first % TOP + PAGE, 4 * PAGE);
            space
                .map(
                    MapRequest::new(Iova::new(first), &memory, Access::READ_WRITE).with_unit(Unit::Pages(PageSize::K4)),
                )
                .expect("it fits");
        }
        if let Some(mut fixture) = fixture {
            fixture.show_results_at(Iova::new(0), ram.slice(PAGE, PAGE));
            fixture.assert_writable(Iova::new(TOP + PAGE), &ram.slice(2 * PAGE, PAGE));
        }
        if n % 2 == 0 {
            for first in [TOP, 0] {
                control.remove_window(range(first, 16 * MIB)).expect("a window that is there");
            }
            registration.unregister(ram.all()).expect("nothing leans on it");
        }
        leave(&open, &group);
        assert_eq!(machine.held(), before, "after cycle {n}");
    }
}
