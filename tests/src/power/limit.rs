//! A window whose table is too big for the limit on locked memory.

use dmaspace_core::contract::WindowRequest;
use dmaspace_core::error::{Kind, Operation};
use dmaspace_core::words::locked::{AccountingMode, Allowance, PinLimit};
use dmaspace_core::{Access, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::section::{FrontEnd, TargetMemory};
use dmaspace_listener::{CommitError, Update};
use dmaspace_listener::{Listener, Section};

use crate::power::machine::Machine;
use crate::power::windows::{GIB, PAGE, TOP, control, registration};
use crate::soft::range;

/// The error names the wanted, allowed and locked bytes; nothing changed, in the space and in the kernel's count;
/// earlier sections stay in force. When just as much may be locked as was wanted, the window comes.
pub(super) fn a_window_too_big_for_the_limit_changes_nothing(machine: &Machine) {
    let mut fixture = machine.fixture();
    let space = fixture.space.clone();
    let low = Section::translated("low", range(0, GIB), PageSize::K4);
    let high = Section::translated("high", range(TOP, 4 * GIB), PageSize::K4);
    let target = TargetMemory::new("ram", SystemAddress::new(0), fixture.ram.all().clone()).expect("a proper range");
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(space.clone()).expect("an empty view fits");
    listener.commit(Update::new().adding(low).adding_target(target)).expect("one window fits");
    let window = listener.translated(Iova::new(0)).expect("the window is in force");
    window.put_run(Iova::new(0), SystemAddress::new(0), 2 * PAGE, Access::READ_WRITE).expect("RAM is there");
    fixture.show_results_at(Iova::new(PAGE), fixture.ram.slice(PAGE, PAGE));

    let registered = || registration(&*space).registered();
    let taken = machine.locked();
    let before = (space.windows(), space.mappings(IovaRange::all()), registered());
    let wanted = control(&*space).table_bytes(WindowRequest::new(high.range(), PageSize::K4));
    let allowed = taken + wanted - PAGE;
    let limited = machine.limited_to(allowed);
    let refusal = listener.commit(Update::new().adding(high.clone())).expect_err("its table does not fit");
    let CommitError::Step { error, fenced } = &refusal else { panic!("a step was to fail: {refusal}") };
    let allowance = Some(Allowance::new(Some(allowed), taken, AccountingMode::Process));
    let kind = Kind::PinLimit(PinLimit::new(Some(wanted), allowance));
    assert_eq!((error.operation(), &error.kind().clone()), (Operation::CreateWindow, &kind), "{error}");
    let words = format!(
        "{wanted} bytes more do not fit into the {allowed} bytes that may be locked (RLIMIT_MEMLOCK), {taken} of them \
         taken"
    );
    assert!(refusal.to_string().contains(&words), "{refusal}");
    assert_eq!((fenced.as_slice(), error.fenced()), (&[][..], &[][..]), "{refusal}");
    assert_eq!(machine.locked(), taken, "the kernel keeps a charge after {refusal}");
    assert_eq!((space.windows(), space.mappings(IovaRange::all()), registered()), before, "after {refusal}");
    fixture.assert_writable(Iova::new(0), &fixture.ram.slice(0, PAGE));
    drop(limited);

    let limited = machine.limited_to(taken + wanted);
    listener.commit(Update::new().adding(high)).expect("its table just fits");
    assert_eq!(machine.locked(), taken + wanted);
    drop(limited);
    let last = Iova::new(TOP + 4 * GIB - PAGE);
    let window = listener.translated(Iova::new(TOP)).expect("the window is in force");
    window.put_run(last, SystemAddress::new(2 * PAGE), PAGE, Access::READ_WRITE).expect("RAM is there");
    fixture.assert_readable(last, &fixture.ram.slice(2 * PAGE, PAGE));
    fixture.assert_writable(last, &fixture.ram.slice(2 * PAGE, PAGE));
    listener.detach(&space).expect("everything can be taken out");
}
