//! Promises of a space that hold whatever other threads, devices and owners of memory do meanwhile.
#![allow(clippy::expect_used, clippy::panic, reason = "tests arrange with them")]
#![cfg(not(dmaspace_loom))]

mod iotlb;

use std::any::Any;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak, mpsc};
use std::thread;
use std::time::Duration;

use dmaspace_core::contract::dirty::{Dirtied, DirtySink, DirtyTracking};
use dmaspace_core::contract::{Attachable, ForListeners, MappingModel};
use dmaspace_core::door::Failure;
use dmaspace_core::error::Kind;
use dmaspace_core::retry::Undone;
use dmaspace_core::words::reserved::{Reserved, Why};
use dmaspace_core::{HostMemory, Iova, IovaRange, PciAddressSpace, Space};

use iotlb::{AT, BROKEN, Call, Device, Iotlb, Script, map, memory, obliging, page_at, range, request};

fn space(script: Script) -> Arc<Space<Iotlb>> {
    Arc::new(Space::new(Iotlb::playing(script)).expect("it has a window"))
}

/// A gate that a call waits at.
#[derive(Default)]
struct Barrier {
    state: Mutex<(bool, bool)>,
    moved: Condvar,
}

impl Barrier {
    /// Waits until the test opens the barrier.
    fn pass(&self) {
        let mut state = self.state.lock().expect("no panic under it");
        state.0 = true;
        self.moved.notify_all();
        while !state.1 {
            state = self.moved.wait(state).expect("no panic under it");
        }
    }

    /// Waits until a call stands at the barrier.
    fn wait_for_a_call(&self) {
        let mut state = self.state.lock().expect("no panic under it");
        while !state.0 {
            state = self.moved.wait(state).expect("no panic under it");
        }
    }

    fn open(&self) {
        self.state.lock().expect("no panic under it").1 = true;
        self.moved.notify_all();
    }
}

/// The outcome of `act` on a thread of its own, unless it hangs.
fn within_five_seconds<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, outcome) = mpsc::channel();
    thread::spawn(move || done.send(act()));
    outcome.recv_timeout(Duration::from_secs(5)).ok()
}

/// Has `second` wait for the lock of the window while a map fails, and its undo too. Returns the outcome of `second`.
fn behind_a_fence<T: Send + 'static>(second: impl FnOnce(&Space<Iotlb>) -> T + Send + 'static) -> T {
    let (barrier, broken) = (Arc::new(Barrier::default()), Arc::new(AtomicBool::new(false)));
    let script: Script = {
        let (barrier, broken) = (barrier.clone(), broken.clone());
        Arc::new(move |call| match call {
            Call::Map(_) if !broken.swap(true, Ordering::SeqCst) => {
                barrier.pass();
                Err(BROKEN)
            }
            Call::Unmap(_) => Err(BROKEN),
            _ => Ok(()),
        })
    };
    let space = space(script);
    let first = {
        let space = space.clone();
        thread::spawn(move || map(&space, 0x7000_0000))
    };
    barrier.wait_for_a_call();
    let waiting = {
        let space = space.clone();
        thread::spawn(move || second(&space))
    };
    // It has to stand at the window's lock; where it is too slow for that it finds the fence without having waited.
    thread::sleep(Duration::from_millis(200));
    barrier.open();
    assert_eq!(first.join().expect("no panic").map_err(|error| error.fenced().to_vec()), Err(vec![page_at(AT)]));
    let outcome = waiting.join().expect("no panic");
    assert_eq!(space.mappings(IovaRange::all()), [], "a mapping lies behind the fence");
    outcome
}

#[test]
fn a_map_that_waited_for_a_failing_map_is_refused_by_its_fence() {
    let second = behind_a_fence(|space| map(space, 0x7100_0000));
    assert_eq!(second.map_err(|error| error.kind().clone()), Err(Kind::Fenced(page_at(AT))));
}

#[test]
fn an_unmap_that_waited_for_a_failing_map_is_refused_by_its_fence() {
    let second = behind_a_fence(|space| space.unmap(page_at(AT)));
    assert_eq!(second.map_err(|error| error.kind().clone()), Err(Kind::Fenced(page_at(AT))));
}

#[test]
fn a_replace_that_waited_for_a_failing_map_is_refused_by_its_fence() {
    let second = behind_a_fence(|space| space.replace(request(&memory(0x7100_0000))));
    assert_eq!(second.map_err(|error| error.kind().clone()), Err(Kind::Fenced(page_at(AT))));
}

#[test]
fn a_fence_waits_for_the_map_that_is_under_way() {
    let barrier = Arc::new(Barrier::default());
    let waiting = barrier.clone();
    let space = space(Arc::new(move |call| {
        if matches!(call, Call::Map(_)) {
            waiting.pass();
        }
        Ok(())
    }));
    let mapping = {
        let space = space.clone();
        thread::spawn(move || map(&space, 0x7000_0000))
    };
    barrier.wait_for_a_call();
    let fencing = {
        let space = space.clone();
        thread::spawn(move || space.fence(page_at(AT), None, BROKEN))
    };
    thread::sleep(Duration::from_millis(100));
    assert_eq!(space.describe().fences, [], "the map is not done yet");
    barrier.open();
    mapping.join().expect("no panic").expect("mapped before the fence");
    fencing.join().expect("no panic");
    assert_eq!(space.describe().fences.len(), 1);
}

/// The owner of memory, which looks at a space when it is dropped.
struct Owner {
    bytes: Vec<u8>,
    space: Arc<Mutex<Weak<Space<Iotlb>>>>,
    looked: Arc<AtomicUsize>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        let space = self.space.lock().expect("no panic under it").upgrade();
        if let Some(space) = space {
            assert!(self.bytes.len() > 1);
            let _ = (space.lookup(Iova::new(AT)), space.describe().devices, space.windows(), space.describe().fences);
            // Even a verb that changes the space.
            let _ = space.unmap(page_at(0x8000));
            self.looked.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A space with a mapping of memory whose owner looks at the space, and the number of looks.
fn owned(backend: Iotlb, device: Option<&Arc<dyn Attachable>>) -> (Arc<Space<Iotlb>>, Arc<AtomicUsize>) {
    let (slot, looked) = (Arc::new(Mutex::new(Weak::new())), Arc::new(AtomicUsize::new(0)));
    let owner = Arc::new(Owner { bytes: vec![0; 0x3000], space: slot.clone(), looked: looked.clone() });
    let base = (owner.bytes.as_ptr() as usize).next_multiple_of(0x1000) as *mut u8;
    let (base, len) = (NonNull::new(base).expect("not null"), NonZeroUsize::new(0x1000).expect("not zero"));
    let owner: Arc<dyn Any + Send + Sync> = owner;
    #[expect(unsafe_code, reason = "UNSAFETY: the owner keeps its bytes, which nothing refers to")]
    // SAFETY: the owner keeps the bytes, and they are of no other use.
    let memory = unsafe { HostMemory::held_by(base, len, owner) }.expect("aligned");
    let space = Arc::new(Space::new(backend).expect("it has a window"));
    *slot.lock().expect("no panic under it") = Arc::downgrade(&space);
    if let Some(device) = device {
        space.attach(device.clone()).expect("attached");
    }
    space.map(request(&memory)).expect("mapped");
    (space, looked)
}

#[test]
fn an_owner_may_look_at_the_space_when_an_unmap_drops_it() {
    let looks = within_five_seconds(|| {
        let (space, looked) = owned(Iotlb::playing(obliging()), None);
        space.unmap(page_at(AT)).expect("unmapped");
        looked.load(Ordering::SeqCst)
    });
    assert_eq!(looks, Some(1));
}

#[test]
fn an_owner_may_look_at_the_space_when_a_replace_drops_it() {
    let looks = within_five_seconds(|| {
        let (space, looked) = owned(Iotlb::playing(obliging()), None);
        space.replace(request(&memory(0x7000_0000))).expect("replaced");
        looked.load(Ordering::SeqCst)
    });
    assert_eq!(looks, Some(1));
}

#[test]
fn an_owner_may_look_at_the_space_when_the_last_device_leaves() {
    let looks = within_five_seconds(|| {
        let device = Device::playing("only", obliging());
        let (space, looked) = owned(Iotlb { forgets: true, ..Iotlb::playing(obliging()) }, Some(&device));
        space.detach(&device).expect("detached");
        (looked.load(Ordering::SeqCst), space.mappings(IovaRange::all()).len())
    });
    assert_eq!(looks, Some((1, 0)));
}

/// A sink that looks at the space and unmaps.
struct Looking(Mutex<Weak<Space<Iotlb>>>, AtomicUsize);

impl DirtySink for Looking {
    fn mark(&self, dirtied: Dirtied<'_>) {
        let space = self.0.lock().expect("no panic under it").upgrade().expect("it is there");
        let _ = (
            space.lookup(Iova::new(AT)),
            space.describe().devices,
            space.describe().fences,
            space.unmap(page_at(0x8000)),
        );
        self.1.fetch_add(usize::try_from(dirtied.len).expect("small"), Ordering::SeqCst);
    }
}

#[test]
fn a_dirty_sink_may_look_at_the_space_and_is_told_before_the_verb_returns() {
    let told = within_five_seconds(|| {
        let space = space(obliging());
        let sink = Arc::new(Looking(Mutex::new(Arc::downgrade(&space)), AtomicUsize::new(0)));
        space.start(sink.clone()).expect("it tracks");
        map(&space, 0x7000_0000).expect("mapped");
        space.sync(IovaRange::all()).expect("it answers");
        let by_sync = sink.1.swap(0, Ordering::SeqCst);
        space.unmap(page_at(AT)).expect("unmapped");
        let by_unmap = sink.1.swap(0, Ordering::SeqCst);
        space.stop().expect("it tracked");
        (by_sync, by_unmap)
    });
    assert_eq!(told, Some((0x1000, 0x1000)));
}

#[test]
fn a_device_that_is_not_there_any_more_is_detached() {
    let answers = Arc::new(AtomicUsize::new(0));
    let asked = answers.clone();
    // The first call does its work and fails; later ones find nothing.
    let script: Script = Arc::new(move |call| match call {
        Call::Detach if asked.fetch_add(1, Ordering::SeqCst) == 0 => Err(BROKEN),
        _ => Ok(()),
    });
    let device: Arc<dyn Attachable> =
        Arc::new(Device { name: "gone", script, reserved: Vec::new(), detached: Undone::WasNotThere });
    let space = space(obliging());
    space.attach(device.clone()).expect("attached");
    space.detach(&device).expect("it is not there any more");
    assert_eq!(space.describe().devices, [""; 0]);
    assert_eq!(answers.load(Ordering::SeqCst), 4, "an absence is believed at the third answer");
}

#[test]
fn names_and_reserved_ranges_do_not_wait_for_an_attach() {
    let barrier = Arc::new(Barrier::default());
    let waiting = barrier.clone();
    let script: Script = Arc::new(move |call| {
        if call == Call::Attach {
            waiting.pass();
        }
        Ok(())
    });
    let reserved = Reserved::new(range(0xfee0_0000, 0xfeef_ffff), Why::Msi, "slow");
    let slow: Arc<dyn Attachable> =
        Arc::new(Device { name: "slow", script, reserved: vec![reserved.clone()], detached: Undone::Done(()) });
    let space = space(obliging());
    space.attach(Device::playing("quick", obliging())).expect("attached");
    let attaching = {
        let space = space.clone();
        thread::spawn(move || space.attach(slow))
    };
    barrier.wait_for_a_call();
    let looking = space.clone();
    let seen = within_five_seconds(move || {
        (looking.describe().devices, looking.describe().reserved, looking.lookup(Iova::new(AT)))
    });
    barrier.open();
    attaching.join().expect("no panic").expect("attached");
    assert_eq!(seen, Some((vec!["quick".to_owned()], Vec::new(), None)));
    assert_eq!(
        (space.describe().devices, space.describe().reserved),
        (vec!["quick".to_owned(), "slow".to_owned()], vec![reserved])
    );
}

#[test]
fn a_device_may_look_at_the_space_for_its_name_and_its_reserved_ranges() {
    /// A device whose name and reserved ranges come from the space.
    #[derive(Debug)]
    struct Curious(Weak<Space<Iotlb>>);
    #[expect(unsafe_code, reason = "UNSAFETY: it is no device")]
    // SAFETY: it does no DMA.
    unsafe impl Attachable for Curious {
        fn name(&self) -> String {
            format!("after {:?}", self.0.upgrade().map(|space| space.describe().devices))
        }
        fn reserved(&self) -> Vec<Reserved> {
            self.0.upgrade().map(|space| space.describe().reserved).unwrap_or_default()
        }
        fn attach_to(&self, _: dmaspace_core::contract::AttachPoint<'_>) -> Result<(), Failure> {
            Ok(())
        }
        fn detach_from(&self, _: dmaspace_core::contract::AttachPoint<'_>) -> Result<Undone, Failure> {
            Ok(Undone::Done(()))
        }
    }
    let devices = within_five_seconds(|| {
        let space = space(obliging());
        space.attach(Arc::new(Curious(Arc::downgrade(&space)))).expect("attached");
        space.describe().devices
    });
    assert_eq!(devices, Some(vec!["after Some([])".to_owned()]));
}

#[test]
fn a_device_that_leaves_between_an_unmap_and_a_map_leaves_no_fence() {
    let space = Arc::new(Space::new(Iotlb { forgets: true, ..Iotlb::playing(obliging()) }).expect("it answers"));
    let device = Device::playing("only", obliging());
    space.attach(device.clone()).expect("attached");
    map(&space, 0x7000_0000).expect("mapped");
    space.unmap(page_at(AT)).expect("unmapped");
    space.detach(&device).expect("detached");
    let refused = map(&space, 0x7100_0000).expect_err("there is no window");
    assert_eq!((refused.kind(), refused.failure()), (&Kind::OutsideWindows(None), None), "the kernel was not asked");
    assert_eq!((space.describe().fences, space.times_forgotten()), (Vec::new(), 1));
    space.attach(device).expect("attached again");
    map(&space, 0x7100_0000).expect("nothing is fenced");
}

#[test]
fn a_device_that_cannot_be_detached_after_a_failed_attach_stays_a_device_of_the_space() {
    let (refusing, stuck) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let refreshing = refusing.clone();
    let backend = Iotlb {
        forgets: true,
        ..Iotlb::playing(Arc::new(move |call| match call {
            Call::Refresh(2) if refreshing.load(Ordering::SeqCst) => Err(BROKEN),
            _ => Ok(()),
        }))
    };
    let space = Arc::new(Space::new(backend).expect("it answers"));
    let first = Device::playing("first", obliging());
    space.attach(first.clone()).expect("attached");
    map(&space, 0x7000_0000).expect("mapped");
    let staying = stuck.clone();
    let second = Device::playing(
        "second",
        Arc::new(move |call| match call {
            Call::Detach if staying.load(Ordering::SeqCst) => Err(BROKEN),
            _ => Ok(()),
        }),
    );
    refusing.store(true, Ordering::SeqCst);
    space.attach(second.clone()).expect_err("the windows cannot be read");
    refusing.store(false, Ordering::SeqCst);
    assert_eq!(
        (space.describe().devices, space.describe().fences),
        (vec!["first".to_owned(), "second".to_owned()], Vec::new())
    );
    space.detach(&first).expect("detached");
    assert_eq!(space.mappings(IovaRange::all()).len(), 1, "the second device still reaches it");
    stuck.store(false, Ordering::SeqCst);
    space.detach(&second).expect("detached");
    assert_eq!((space.describe().devices.len(), space.mappings(IovaRange::all()).len()), (0, 0));
}

#[test]
fn an_undo_of_an_attach_that_fails_once_is_repeated() {
    let failing = Arc::new(AtomicBool::new(true));
    let space = space(Arc::new(|call| if call == Call::Refresh(1) { Err(BROKEN) } else { Ok(()) }));
    let once = failing.clone();
    let device = Device::playing(
        "device",
        Arc::new(move |call| match call {
            Call::Detach if once.swap(false, Ordering::SeqCst) => Err(BROKEN),
            _ => Ok(()),
        }),
    );
    space.attach(device).expect_err("the windows cannot be read");
    assert_eq!((space.describe().devices, failing.load(Ordering::SeqCst)), (Vec::new(), false));
}

#[test]
fn windows_that_shrink_over_a_live_mapping_when_a_device_leaves_are_not_believed() {
    let backend = Iotlb::playing(obliging());
    let window = backend.window.clone();
    let space = Arc::new(Space::new(backend).expect("it has a window"));
    let (staying, leaving) = (Device::playing("stays", obliging()), Device::playing("leaves", obliging()));
    space.attach(staying).expect("attached");
    space.attach(leaving.clone()).expect("attached");
    map(&space, 0x7000_0000).expect("mapped");
    *window.lock() = range(0x10_0000, 0xffff_ffff);
    let change = space.detach(&leaving).expect("detached");
    assert_eq!(change.before, change.after, "the old windows are kept");
    assert_eq!(space.mappings(IovaRange::all()).len(), 1);
    space.unmap(page_at(AT)).expect("it can still be unmapped");
}

/// A number for each call.
type Counts = Arc<Mutex<Vec<usize>>>;

/// A space that keeps entries, with one page mapped and two devices, and the mappings that a look-up finds during each
/// map call after that.
fn looked_at() -> (Arc<Space<Iotlb>>, Arc<dyn Attachable>, Counts) {
    let looking: Arc<Mutex<Weak<Space<Iotlb>>>> = Arc::default();
    let seen: Arc<Mutex<Vec<usize>>> = Arc::default();
    let script: Script = {
        let (looking, seen) = (looking.clone(), seen.clone());
        Arc::new(move |call| {
            let space = looking.lock().expect("no panic under it").upgrade();
            if let (Call::Map(_), Some(space)) = (call, space) {
                seen.lock().expect("no panic under it").push(space.mappings(IovaRange::all()).len());
            }
            Ok(())
        })
    };
    let mut backend = Iotlb::playing(script);
    backend.keeps = MappingModel::PageEntries;
    let space = Arc::new(Space::new(backend).expect("it has a window"));
    let leaving = Device::playing("leaves", obliging());
    space.attach(Device::playing("stays", obliging())).expect("attached");
    space.attach(leaving.clone()).expect("attached");
    map(&space, 0x7000_0000).expect("mapped");
    *looking.lock().expect("no panic under it") = Arc::downgrade(&space);
    (space, leaving, seen)
}

#[test]
fn mappings_that_are_entered_again_when_a_device_leaves_stay_in_the_index() {
    let (space, leaving, seen) = looked_at();
    space.detach(&leaving).expect("detached");
    assert_eq!(*seen.lock().expect("no panic under it"), [1]);
}

#[test]
fn a_mapping_that_is_replaced_without_a_gap_stays_in_the_index() {
    let (space, _leaving, seen) = looked_at();
    space.replace(request(&memory(0x7100_0000))).expect("replaced");
    assert_eq!(*seen.lock().expect("no panic under it"), [1]);
}
