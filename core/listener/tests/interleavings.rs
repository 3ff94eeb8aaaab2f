//! The concurrent promises of translated windows in all interleavings of two threads with up to four preemptions: a
//! processor of the guest uses a [`TranslatedWindow`] while the VMM changes the listener.
//!
//! The locks are loom's: `ci/interleavings`. Each scenario prints the number of its interleavings.
#![cfg(dmaspace_loom)]
#![allow(clippy::expect_used, clippy::print_stdout, reason = "tests arrange and report with them")]

#[path = "../../tests/iotlb/mod.rs"]
mod iotlb;

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dmaspace_core::words::address::SystemAddress;
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, PciAddressSpace, Space};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{CommitError, EntryError, FrontEnd, Listener, Report, Section, TranslatedWindow, Update};
use loom::thread;

use iotlb::{AT, Call, Device, Iotlb, PAGE, memory, obliging, page_at, range};

/// Runs `scenario` in all its interleavings and reports their number. The scenario returns whether the processor was
/// first; both orders must be among the interleavings.
fn explore(name: &str, scenario: impl Fn() -> bool + Send + Sync + 'static) {
    let (all, first) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counting, counting_first) = (all.clone(), first.clone());
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.max_branches = 100_000;
    builder.check(move || {
        counting.fetch_add(1, Ordering::Relaxed);
        counting_first.fetch_add(scenario().into(), Ordering::Relaxed);
    });
    let (interleavings, processor_first) = (all.load(Ordering::Relaxed), first.load(Ordering::Relaxed));
    println!("{name}: {interleavings} interleavings, in {processor_first} of them the processor is first");
    assert!(0 < processor_first && processor_first < interleavings, "the threads meet");
}

/// Runs the VMM, or another processor, on a thread of its own beside a processor of the guest, and returns the results
/// of both. The listener stays until both have ended.
///
/// The model checker finds the points at which threads meet by their locks. The processor begins on the thread that
/// runs first: after the VMM it could find a window gone without taking a lock.
fn beside<V: 'static, P>(
    mut listener: Listener,
    vmm: impl FnOnce(&mut Listener) -> V + 'static,
    processor: impl FnOnce() -> P,
) -> (V, P) {
    let vmm = thread::spawn(move || (vmm(&mut listener), listener));
    let processor = processor();
    let (vmm, _listener) = vmm.join().expect("no panic");
    (vmm, processor)
}

/// The host address of the target memory's page.
const HOST: u64 = 0x7000_0000;

/// The host address of more memory.
const MORE: u64 = 0x7100_0000;

/// The translated section of all scenarios.
fn section() -> Section {
    Section::translated("window", range(0, 0xffff), PageSize::K4)
}

/// A page of target memory, which the guest sees at its host address.
fn target(address: u64) -> TargetMemory {
    TargetMemory::new("ram", SystemAddress::new(address), memory(address)).expect("a range of the test")
}

fn space() -> Arc<Space<Iotlb>> {
    Arc::new(Space::new(Iotlb::playing(obliging())).expect("it has a window"))
}

/// A space that counts the maps its backend is asked for.
fn counting(maps: &Arc<AtomicUsize>) -> Arc<Space<Iotlb>> {
    let maps = maps.clone();
    let backend = Iotlb::playing(Arc::new(move |call| {
        maps.fetch_add(matches!(call, Call::Map(_)).into(), Ordering::Relaxed);
        Ok(())
    }));
    Arc::new(Space::new(backend).expect("it has a window"))
}

/// A space that forgets everything with its last device.
fn forgetful() -> Arc<Space<Iotlb>> {
    Arc::new(Space::new(Iotlb { forgets: true, ..Iotlb::playing(obliging()) }).expect("it answers"))
}

/// A listener that serves `spaces`, with the translated section and two pages of target memory in force.
fn serving(spaces: &[&Arc<Space<Iotlb>>]) -> (Listener, TranslatedWindow) {
    let mut listener = Listener::new(FrontEnd::default());
    let update = Update::new().adding(section()).adding_target(target(HOST)).adding_target(target(MORE));
    listener.commit(update).expect("committed");
    for space in spaces {
        listener.attach(Arc::clone(space) as Arc<dyn PciAddressSpace>).expect("attached");
    }
    let window = listener.translated(Iova::new(0)).expect("in force");
    (listener, window)
}

/// Puts an entry at [`AT`] that points to [`HOST`].
fn put(window: &TranslatedWindow) -> Result<(), EntryError> {
    put_at(window, AT, HOST)
}

fn put_at(window: &TranslatedWindow, at: u64, target: u64) -> Result<(), EntryError> {
    window.put(Iova::new(at), SystemAddress::new(target), Access::READ_WRITE)
}

/// Withdraws the memory at [`HOST`].
fn withdraw(listener: &mut Listener) -> Result<Report, CommitError> {
    listener.commit(Update::new().removing_target(target(HOST)))
}

fn remove_the_window(listener: &mut Listener) -> Result<Report, CommitError> {
    listener.commit(Update::new().removing(section()))
}

/// The memory that a space's devices reach.
fn reached(space: &Space<Iotlb>) -> Vec<HostMemory> {
    space.mappings(IovaRange::all()).into_iter().map(|mapping| mapping.memory).collect()
}

#[test]
fn target_memory_is_withdrawn_exactly_when_no_entry_beside_it_is_put() {
    explore("put against withdraw", || {
        let space = space();
        let (listener, window) = serving(&[&space]);
        let (withdrawn, put) = beside(listener, withdraw, || put(&window));
        assert_eq!(put.is_ok(), withdrawn.is_err(), "{put:?}, {withdrawn:?}");
        assert!(matches!(put, Ok(()) | Err(EntryError::NotRam(_))), "{put:?}");
        assert!(matches!(withdrawn, Ok(_) | Err(CommitError::StillMapped { .. })), "{withdrawn:?}");
        assert_eq!(reached(&space).len(), usize::from(put.is_ok()));
        put.is_ok()
    });
}

#[test]
fn an_entry_that_is_put_beside_the_removal_of_its_window_goes_with_it() {
    explore("put against removal of the window", || {
        let space = space();
        let (listener, window) = serving(&[&space]);
        let (removed, before) = beside(listener, remove_the_window, || put(&window));
        removed.expect("committed");
        assert!(matches!(before, Ok(()) | Err(EntryError::NoSuchWindow)), "{before:?}");
        assert_eq!(reached(&space), []);
        assert_eq!(put(&window), Err(EntryError::NoSuchWindow));
        before.is_ok()
    });
}

#[test]
fn a_listener_that_ends_beside_a_put_leaves_no_put_under_way() {
    explore("put against the end of the listener", || {
        let space = space();
        let (listener, window) = serving(&[&space]);
        let ending = space.clone();
        let (at_the_end, put) = beside(
            listener,
            move |listener| {
                drop(mem::take(listener));
                reached(&ending).len()
            },
            || put(&window),
        );
        assert!(matches!(put, Ok(()) | Err(EntryError::NoSuchWindow)), "{put:?}");
        assert_eq!(at_the_end, usize::from(put.is_ok()), "{put:?}");
        assert_eq!(reached(&space).len(), at_the_end);
        put.is_ok()
    });
}

#[test]
fn a_space_that_is_detached_beside_a_put_keeps_no_entry() {
    explore("put against detach of the only space", || {
        let space = space();
        let (listener, window) = serving(&[&space]);
        let leaving: Arc<dyn PciAddressSpace> = space.clone();
        let (detached, put) = beside(listener, move |listener| listener.detach(&leaving), || put(&window));
        detached.expect("detached");
        assert!(matches!(put, Ok(()) | Err(EntryError::NoSuchWindow)), "{put:?}");
        assert_eq!(reached(&space), []);
        put.is_ok()
    });
}

#[test]
fn an_entry_that_is_put_beside_the_detach_of_one_of_two_spaces_is_in_the_one_that_stays() {
    explore("put against detach of one of two spaces", || {
        let mapped = Arc::new(AtomicUsize::new(0));
        let (leaves, stays) = (counting(&mapped), space());
        let (listener, window) = serving(&[&leaves, &stays]);
        let leaving: Arc<dyn PciAddressSpace> = leaves.clone();
        let (detached, put) = beside(listener, move |listener| listener.detach(&leaving), || put(&window));
        detached.expect("detached");
        assert_eq!(put, Ok(()));
        assert_eq!((reached(&leaves), reached(&stays)), (vec![], vec![memory(HOST)]));
        mapped.load(Ordering::Relaxed) > 0
    });
}

#[test]
fn an_entry_that_is_put_beside_the_attach_of_a_space_is_in_both_spaces() {
    explore("attach of a space against put", || {
        let (first, joins) = (space(), space());
        let (listener, window) = serving(&[&first]);
        let joining = joins.clone();
        let (attached, (put, put_in_both)) =
            beside(listener, move |listener| listener.attach(joining), || (put(&window), !reached(&joins).is_empty()));
        attached.expect("attached");
        assert_eq!(put, Ok(()));
        assert_eq!((reached(&first), reached(&joins)), (vec![memory(HOST)], vec![memory(HOST)]));
        !put_in_both
    });
}

#[test]
fn an_entry_that_is_put_beside_the_commit_that_restores_a_space_is_in_both_spaces() {
    explore("commit against put", || {
        let (stays, returns) = (space(), forgetful());
        let device = Device::playing("only", obliging());
        returns.attach(device.clone()).expect("attached");
        let (listener, window) = serving(&[&stays, &returns]);
        put_at(&window, 0, MORE).expect("put");
        returns.detach(&device).expect("detached");
        returns.attach(device).expect("attached");
        let (committed, (put, restored)) =
            beside(listener, |listener| listener.sync(), || (put(&window), returns.lookup(Iova::new(0)).is_some()));
        committed.expect("committed");
        assert_eq!(put, Ok(()));
        assert_eq!(reached(&stays), [memory(MORE), memory(HOST)]);
        assert_eq!(reached(&returns), [memory(MORE), memory(HOST)]);
        !restored
    });
}

#[test]
fn an_entry_that_is_put_while_another_processor_clears_its_place_is_in_both_spaces_or_in_none() {
    explore("put against clear in two spaces", || {
        let (one, two) = (space(), space());
        let (listener, window) = serving(&[&one, &two]);
        let other = window.clone();
        let (cleared, put) = beside(listener, move |_| other.clear(page_at(AT)), || put(&window));
        let cleared = cleared.expect("cleared");
        assert_eq!(put, Ok(()));
        assert_eq!(reached(&one), reached(&two));
        assert_eq!(
            cleared + PAGE * reached(&one).len() as u64,
            PAGE,
            "the entry is put once, and cleared at most once"
        );
        cleared > 0
    });
}

#[test]
fn a_look_up_finds_an_entry_throughout_the_detach_of_one_of_two_spaces() {
    explore("look-up against detach of one of two spaces", || {
        let (leaves, stays) = (space(), space());
        let (listener, window) = serving(&[&leaves, &stays]);
        put(&window).expect("put");
        let leaving: Arc<dyn PciAddressSpace> = leaves.clone();
        let (detached, (found, still_in_both)) = beside(
            listener,
            move |listener| listener.detach(&leaving),
            || (window.lookup(Iova::new(AT)), !reached(&leaves).is_empty()),
        );
        detached.expect("detached");
        let entry = found.expect("the window stays").expect("the entry stays");
        assert_eq!(entry.memory, memory(HOST));
        still_in_both
    });
}
