//! Hypercalls that a guest of KVM's makes itself: answered by KVM, which fills the windows, or here.

use std::sync::Arc;

use dmaspace::kvm::KvmVfio;
use dmaspace::linux::LinuxDoor;
use dmaspace::open::OpenSpace;
use dmaspace_core::contract::{MapRequest, Unit};
use dmaspace_core::error::Kind;
use dmaspace_core::{Access, Iova, PageSize, PciAddressSpace};
use dmaspace_listener::{CommitError, Update};
use dmaspace_spapr_guest::hypercalls::{H_PUT_TCE, H_PUT_TCE_INDIRECT, H_STUFF_TCE};
use dmaspace_spapr_guest::{AnsweredBy, Layout, VmmReason};

use crate::fixture::Fixture;
use crate::power::machine::Machine;
use crate::power::vm::Vm;
use crate::ram::{Ram, SPOT};
use crate::soft::range;
use crate::spapr_guest::{FIRST, LIST, SECOND, SpaprGuest};

/// The addresses of entries, a page of every size apart, and their targets.
const AT: [u64; 4] = [0x1_0000, 0x2_0000, 0x2_1000, 0x2_2000];
const TARGETS: [u64; 4] = [0x40_0000, 0x41_0000, 0x43_0000, 0x42_0000];
/// The entry of the second window.
const HIGH: u64 = (1 << 59) + 0x5_0000;

const READ_WRITE: u64 = 3;

/// A guest of KVM's, with devices of the host's.
struct Play {
    guest: SpaprGuest,
    vm: Vm,
    fixture: Fixture,
    space: Arc<dyn PciAddressSpace>,
}

impl Play {
    /// Opens a host's first device for a guest, whose hypercalls KVM answers, where it is given one.
    fn new(machine: &Machine, door: Option<Arc<LinuxDoor>>) -> (Self, OpenSpace) {
        let mut open = machine.space();
        let group = machine.join(&mut open, 0).expect("the first group joins");
        let space = open.space().clone();
        let mut layout = Layout::pseries(0).placed_on([&space]).expect("there is room");
        // Small: an emulated processor is slow, and every look into KVM's table reads all of it.
        layout.default_window = range(0, 16 << 20);
        let guest = SpaprGuest::new(layout);
        let vm = Vm::new(guest.ram().clone());
        let mut fixture = machine.fixture_of(&open, machine.device(&open, &group, 0));
        fixture.ram = Ram::of(guest.ram().clone());
        let guest = match door {
            Some(door) => guest.with_kernel(Arc::new(KvmVfio::new(door, vm.descriptor()).expect("KVM has the device"))),
            None => guest,
        };
        let mut play = Self { guest, vm, fixture, space };
        play.attach(&open);
        assert_eq!(play.guest.reset(), 0);
        (play, open)
    }

    fn attach(&mut self, open: &OpenSpace) {
        let (bridge, listener) = &mut self.guest.bridges[0];
        bridge.attach(listener, open.space().clone()).expect("there is room");
    }

    fn answered_by(&self, liobn: u64) -> AnsweredBy {
        let window = self.guest.windows().into_iter().find(|window| u64::from(window.liobn.get()) == liobn);
        let window = window.expect("there is the window");
        self.guest.bridge().answered_by(window.liobn).expect("there is the window")
    }

    /// The guest makes hypercalls. Those that leave it are answered here.
    fn make(&mut self, calls: &[[u64; 5]]) -> Vec<i64> {
        let guest = &self.guest;
        self.vm.make(calls, |token, arguments| guest.hypercall(token, arguments))
    }

    /// All entries, by both calls that put any.
    fn put_all(&mut self) {
        self.guest.write_list(LIST, &TARGETS[1..].iter().map(|target| target | READ_WRITE).collect::<Vec<_>>());
        let calls =
            [[H_PUT_TCE, FIRST, AT[0], TARGETS[0] | READ_WRITE, 0], [H_PUT_TCE_INDIRECT, FIRST, AT[1], LIST, 3]];
        assert_eq!(self.make(&calls), [0, 0]);
    }

    /// The device reaches the guest's memory through the last of them, and shows its results through the first.
    fn assert_reaches(&mut self) {
        let shown = self.guest.ram().slice(TARGETS[0] + 0x100, 0x100).expect("inside");
        self.fixture.show_results_at(Iova::new(AT[0] + 0x100), shown);
        self.assert_reaches_at(AT[3], TARGETS[3]);
        assert!(AT.iter().all(|at| self.space.lookup(Iova::new(*at)).is_some()));
    }

    fn assert_reaches_at(&mut self, at: u64, target: u64) {
        let memory = self.guest.ram().slice(target, SPOT as u64).expect("inside");
        self.fixture.assert_readable(Iova::new(at), &memory);
        self.fixture.assert_writable(Iova::new(at), &memory);
        let live = self.space.lookup(Iova::new(at)).expect("the space knows it");
        let offset = at - live.range.first().get();
        assert_eq!(live.memory.address().get() + offset, memory.address().get());
        assert_eq!(live.access, Access::READ_WRITE);
    }

    /// Clears all but the first, with which the device shows its results.
    fn stuff_all_but_one(&mut self) {
        assert_eq!(self.make(&[[H_STUFF_TCE, FIRST, AT[1], 0, 3]]), [0]);
        self.fixture.assert_unreached(Iova::new(AT[3]));
        assert_eq!(AT.map(|at| self.space.lookup(Iova::new(at)).is_some()), [true, false, false, false]);
    }

    fn end(mut self) {
        let (bridge, listener) = &mut self.guest.bridges[0];
        assert_eq!(listener.audit(), []);
        bridge.withdraw(listener).expect("everything can be taken out");
        for space in listener.spaces().cloned().collect::<Vec<_>>() {
            bridge.detach(listener, &space).expect("it can leave");
        }
    }
}

/// KVM answers: no hypercall leaves the guest, and the entries it writes are the ones that the device reaches and that
/// the space lists. Other writers of the window are refused, and memory that the window shows stays.
pub(super) fn hypercalls_are_answered_in_the_kernel(machine: &Machine) {
    let door = machine.linux_door();
    let (mut play, _open) = Play::new(machine, Some(door));
    assert_eq!(play.answered_by(FIRST), AnsweredBy::Kernel);
    play.put_all();
    play.assert_reaches();
    assert_eq!(play.vm.exits, 0);
    assert_eq!(play.guest.says(), play.guest.has(play.space.as_ref()));

    let spot = play.guest.ram().slice(0, 0x1_0000).expect("inside");
    let unit = Unit::Pages(PageSize::K4);
    let request = MapRequest::new(Iova::new(0x8_0000), &spot, Access::READ).with_unit(unit);
    let refused = play.space.map(request).expect_err("it is the kernel's");
    assert!(matches!(refused.kind(), Kind::KernelOwned(_)), "{refused}");
    assert_eq!(play.guest.put(FIRST, 0x8_0000, READ_WRITE), -1);
    let state = play.guest.listener().state();
    assert_eq!(
        state.translated.iter().map(|window| (window.kernel_owned, window.live)).collect::<Vec<_>>(),
        [(true, 0x4000)]
    );
    let target = play.guest.listener().targets().next().expect("it is there").clone();
    let kept = play.guest.listener().commit(Update::new().removing_target(target));
    assert!(matches!(kept, Err(CommitError::StillMapped { .. })), "{kept:?}");

    play.stuff_all_but_one();
    assert_eq!(play.vm.exits, 0);
    // The other window, in pages of 64K: on a host with smaller ones, KVM enters several for each.
    assert_eq!(play.guest.create(16, 24).expect("there is room"), (SECOND, 1 << 59));
    assert_eq!(play.answered_by(SECOND), AnsweredBy::Kernel);
    assert_eq!(play.make(&[[H_PUT_TCE, SECOND, HIGH, TARGETS[1] | READ_WRITE, 0]]), [0]);
    play.assert_reaches_at(HIGH + 0x8000, TARGETS[1] + 0x8000);
    assert_eq!(play.guest.remove(SECOND), 0);
    assert_eq!(play.vm.exits, 0);
    // Its table is gone, the other one is as it was.
    assert_eq!(play.make(&[[H_PUT_TCE, SECOND, HIGH, TARGETS[1] | READ_WRITE, 0]]), [-4]);
    assert_eq!(play.vm.exits, 1);
    // A reset leaves nothing, and begins anew.
    assert_eq!(play.guest.reset(), 0);
    assert_eq!((play.answered_by(FIRST), play.space.lookup(Iova::new(AT[0]))), (AnsweredBy::Kernel, None));
    play.put_all();
    play.assert_reaches();
    assert_eq!(play.vm.exits, 1);
    play.end();
}

/// Without a KVM that is told of the windows, each of the same hypercalls leaves the guest, and comes to the same.
pub(super) fn hypercalls_are_answered_here(machine: &Machine) {
    let (mut play, _open) = Play::new(machine, None);
    assert_eq!(play.answered_by(FIRST), AnsweredBy::Vmm(VmmReason::NoKernel));
    play.put_all();
    assert_eq!(play.vm.exits, 2);
    play.assert_reaches();
    play.stuff_all_but_one();
    assert_eq!(play.vm.exits, 3);
    play.end();
}

/// A second host joins while KVM owns the window: it gets the entries that are there, and those that KVM writes from
/// then on. It leaves, and the first goes on.
pub(super) fn a_late_host_gets_the_entries_that_the_kernel_put(machine: &Machine) {
    let (mut play, _open) = Play::new(machine, Some(machine.linux_door()));
    play.put_all();
    let mut later = machine.space();
    let group = machine.join(&mut later, 1).expect("the second group joins");
    play.attach(&later);
    let mut device = machine.device(&later, &group, 1);
    // Its findings, on the fixture in place of the first device.
    std::mem::swap(&mut play.fixture.device, &mut device);
    play.assert_reaches();
    play.stuff_all_but_one();
    play.put_all();
    play.assert_reaches();
    std::mem::swap(&mut play.fixture.device, &mut device);
    play.assert_reaches();
    drop(device);
    let (bridge, listener) = &mut play.guest.bridges[0];
    bridge.detach(listener, later.space()).expect("it can leave");
    play.stuff_all_but_one();
    play.put_all();
    play.assert_reaches();
    assert_eq!((play.answered_by(FIRST), play.vm.exits), (AnsweredBy::Kernel, 0));
    play.end();
}
