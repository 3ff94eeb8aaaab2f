//! Groups that join a container and leave it, and what that does to those that stay.

use dmaspace_abi::vfio::GROUP_UNSET_CONTAINER;
use dmaspace_core::contract::Attachable;
use dmaspace_core::door::{Command, Kernel};
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::Update;
use dmaspace_listener::section::{FrontEnd, TargetMemory};
use dmaspace_listener::{Listener, Section};

use crate::fixture::{Fixture, RAM};
use crate::power::machine::{Machine, leave, rejoin};
use crate::power::windows::{GIB, MIB, PAGE, TOP, registration};
use crate::ram::Ram;
use crate::soft::range;

/// Two windows over all of `ram`.
fn two_windows(ram: &Ram) -> Update {
    let target = TargetMemory::new("ram", SystemAddress::new(0), ram.all().clone()).expect("a proper range");
    Update::new()
        .adding(Section::translated("low", range(0, GIB), PageSize::K4))
        .adding(Section::translated("high", range(TOP, GIB), PageSize::K4))
        .adding_target(target)
}

/// The addresses of entries: the last page of each window, and in the first one the page that shows results.
const LOW: u64 = GIB - PAGE;
const HIGH: u64 = TOP + GIB - PAGE;
const SCRATCH: u64 = 0;

/// The target of the entries at `at`.
fn target(at: u64) -> u64 {
    match at {
        LOW => MIB,
        HIGH => 2 * MIB,
        _ => 0,
    }
}

fn piece(ram: &Ram, at: u64) -> HostMemory {
    ram.slice(target(at), PAGE)
}

fn put_entries(listener: &Listener) {
    for (window, at) in [(0, SCRATCH), (0, LOW), (TOP, HIGH)] {
        let window = listener.translated(Iova::new(window)).expect("the window is in force");
        let target = SystemAddress::new(target(at));
        window.put_run(Iova::new(at), target, PAGE, Access::READ_WRITE).expect("RAM is there");
    }
}

/// The device on the fixture reads through one window and writes through the other.
fn assert_reaches(fixture: &mut Fixture, ram: &Ram) {
    fixture.show_results_at(Iova::new(SCRATCH), piece(ram, SCRATCH));
    fixture.assert_readable(Iova::new(LOW), &piece(ram, LOW));
    fixture.assert_writable(Iova::new(HIGH), &piece(ram, HIGH));
}

/// The only group leaves its container, whose windows, registrations and charges go with it, and comes back: the next
/// sync brings all but the guest's entries, and the guest puts those again.
pub(super) fn a_group_that_left_comes_back(machine: &Machine) {
    let ram = Ram::new(RAM);
    let mut open = machine.space();
    let space = open.space().clone();
    let group = machine.join(&mut open, 0).expect("the first group joins");
    let empty = machine.locked();
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(space.clone()).expect("an empty view fits");
    listener.commit(two_windows(&ram)).expect("two windows fit");
    let full = (machine.locked(), space.windows().windows, registration(&*space).registered());
    for _ in 0..2 {
        put_entries(&listener);
        let mut fixture = machine.fixture_of(&open, machine.device(&open, &group, 0));
        assert_reaches(&mut fixture, &ram);
        drop(fixture);

        let change = leave(&open, &group);
        assert!(change.after.windows.is_empty() && space.mappings(IovaRange::all()).is_empty());
        assert_eq!((registration(&*space).registered(), machine.locked()), (Vec::new(), empty));
        listener.sync().expect("a space without a device is left alone");
        rejoin(&open, &group);
        listener.sync().expect("there is room as before");
        assert_eq!((machine.locked(), space.windows().windows, registration(&*space).registered()), full);
        assert_eq!(listener.audit(), []);
    }
    listener.detach(&space).expect("everything can be taken out");
}

/// Two groups in one container, where the host can. When one leaves, the kernel clears the entries of the one that
/// stays (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_release_ownership), and the space puts them again.
/// Where the host cannot, the second group is refused and the first goes on.
pub(super) fn two_groups_share_a_space_where_the_host_lets_them(machine: &Machine) {
    let ram = Ram::new(RAM);
    let mut open = machine.space();
    let space = open.space().clone();
    let first = machine.join(&mut open, 0).expect("the first group joins");
    let mut fixture = machine.fixture_of(&open, machine.device(&open, &first, 0));
    fixture.ram = ram.clone();
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(space.clone()).expect("an empty view fits");
    listener.commit(two_windows(&ram)).expect("two windows fit");
    put_entries(&listener);
    let state = || (machine.locked(), space.windows(), space.mappings(IovaRange::all()), space.describe().fences);
    let before = state();

    let second = match machine.join(&mut open, 1) {
        Ok(_) if machine.is_pseries() => panic!("a pseries host takes one group a container"),
        Ok(second) => second,
        Err(refusal) => {
            assert!(machine.is_pseries(), "{refusal}");
            assert_eq!((state(), space.describe().devices.len()), (before, 1), "after {refusal}");
            assert_reaches(&mut fixture, &ram);
            return listener.detach(&space).expect("everything can be taken out");
        }
    };
    assert_eq!(state(), before, "the second group finds the mappings of the first");
    let mut device = machine.device(&open, &second, 1);
    assert_reaches(&mut fixture, &ram);
    std::mem::swap(&mut fixture.device, &mut device);
    assert_reaches(&mut fixture, &ram);
    std::mem::swap(&mut fixture.device, &mut device);
    drop(device);

    // Past the space, to see the kernel's answer.
    let door = machine.host().door();
    door.call(second.handle(), Command::bare(GROUP_UNSET_CONTAINER)).expect("its device is closed");
    fixture.assert_unreached(Iova::new(LOW));
    fixture.assert_unreached(Iova::new(HIGH));
    leave(&open, &second);
    assert_eq!(state(), before, "live mappings were entered again");
    assert_reaches(&mut fixture, &ram);

    // By the space.
    rejoin(&open, &second);
    leave(&open, &second);
    assert_eq!(state(), before, "live mappings were entered again");
    assert_reaches(&mut fixture, &ram);
    assert_eq!(listener.audit(), []);
    listener.detach(&space).expect("everything can be taken out");
}

/// Two containers with a group each follow one listener. One's group leaves: the other goes on. It comes back: its
/// space gets the mappings of the other, the guest's entries too.
pub(super) fn two_spaces_follow_one_listener(machine: &Machine) {
    let ram = Ram::new(RAM);
    let mut opens = [machine.space(), machine.space()];
    let groups = [0, 1].map(|n| machine.join(&mut opens[n], n).expect("a group for each container"));
    let spaces = [0, 1].map(|n| opens[n].space().clone());
    let mut listener = Listener::new(FrontEnd::default());
    for space in spaces.iter() {
        listener.attach(space.clone()).expect("an empty view fits");
    }
    let report = listener.commit(two_windows(&ram)).expect("two windows fit in each");
    assert_eq!(report.spaces.iter().map(|space| space.backend).collect::<Vec<_>>(), ["spapr"; 2]);
    put_entries(&listener);
    let mut fixture = machine.fixture_of(&opens[0], machine.device(&opens[0], &groups[0], 0));
    let mut device = machine.device(&opens[1], &groups[1], 1);
    for _ in 0..2 {
        assert_reaches(&mut fixture, &ram);
        std::mem::swap(&mut fixture.device, &mut device);
    }
    drop(device);

    leave(&opens[1], &groups[1]);
    assert_reaches(&mut fixture, &ram);
    listener.detach(&spaces[1]).expect("there is nothing left in it");
    rejoin(&opens[1], &groups[1]);
    listener.attach(spaces[1].clone()).expect("there is room as before");
    let live = |n: usize| spaces[n].mappings(IovaRange::all());
    assert_eq!(live(1), live(0));
    let mut device = machine.device(&opens[1], &groups[1], 1);
    std::mem::swap(&mut fixture.device, &mut device);
    assert_reaches(&mut fixture, &ram);
    assert_eq!(listener.audit(), []);
    drop(device);
    let [first, second] = &spaces;
    assert_eq!(second.describe().devices, [groups[1].name()]);
    listener.detach(first).expect("everything can be taken out");
    assert_reaches(&mut fixture, &ram);
    listener.detach(second).expect("everything can be taken out");
}
