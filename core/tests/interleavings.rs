//! The concurrent promises of a space in all interleavings of two threads with up to four preemptions.
//!
//! The locks are loom's: `ci/interleavings`. Each scenario prints the number of its interleavings.
#![cfg(dmaspace_loom)]
#![allow(clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests arrange and report with them")]

mod iotlb;

use std::any::Any;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use dmaspace_core::contract::ForListeners;
use dmaspace_core::contract::dirty::{Dirtied, DirtySink};
use dmaspace_core::{HostMemory, Iova, IovaRange, PciAddressSpace, Space};
use loom::thread;

use iotlb::{AT, BROKEN, Call, Device, Iotlb, map, memory, obliging, page_at, range, request};

/// Runs `scenario` in all its interleavings and reports their number.
fn explore(name: &str, scenario: impl Fn() + Send + Sync + 'static) {
    let count = Arc::new(AtomicUsize::new(0));
    let counting = count.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.max_branches = 100_000;
    builder.check(move || {
        counting.fetch_add(1, Ordering::Relaxed);
        scenario();
    });
    println!("{name}: {} interleavings", count.load(Ordering::Relaxed));
}

fn space(backend: Iotlb) -> Arc<Space<Iotlb>> {
    Arc::new(Space::new(backend).expect("it has a window"))
}

/// An IOTLB whose first map fails, and the unmap that follows it.
fn failing_once() -> Iotlb {
    let calls = AtomicUsize::new(0);
    Iotlb::playing(Arc::new(move |call| match call {
        Call::Map(_) if calls.load(Ordering::Relaxed) == 0 => {
            calls.store(1, Ordering::Relaxed);
            Err(BROKEN)
        }
        Call::Unmap(_) => Err(BROKEN),
        _ => Ok(()),
    }))
}

fn nothing_is_mapped_behind_a_fence(space: &Space<Iotlb>) {
    for fence in space.describe().fences {
        assert_eq!(space.mappings(fence.range), [], "a mapping lies behind {}", fence.range);
    }
}

#[test]
fn two_maps_of_which_one_leaves_a_fence_leave_nothing_behind_it() {
    explore("fence against map", || {
        let space = space(failing_once());
        let other = {
            let space = space.clone();
            thread::spawn(move || map(&space, 0x7100_0000).is_ok())
        };
        let mine = map(&space, 0x7000_0000).is_ok();
        let theirs = other.join().expect("no panic");
        nothing_is_mapped_behind_a_fence(&space);
        assert!(!(mine && theirs));
        assert_eq!(space.describe().fences.len(), 1);
    });
}

#[test]
fn a_fence_that_is_put_up_beside_a_map_comes_before_it_or_after_it() {
    explore("put up a fence against map", || {
        let space = space(Iotlb::playing(obliging()));
        let other = {
            let space = space.clone();
            thread::spawn(move || map(&space, 0x7000_0000).is_ok())
        };
        space.fence(page_at(AT), None, BROKEN);
        let mapped_when_fenced = space.lookup(Iova::new(AT)).is_some();
        let mapped = other.join().expect("no panic");
        assert_eq!(mapped, mapped_when_fenced, "nothing is mapped after the fence is up");
    });
}

#[test]
fn a_look_up_finds_a_mapping_throughout_an_attach_that_moves_the_windows() {
    explore("attach against look-up", || {
        let backend = Iotlb::playing(obliging());
        let window = backend.window.clone();
        let space = space(backend);
        map(&space, 0x7000_0000).expect("mapped");
        *window.lock() = range(0, 0x7fff_ffff);
        let attaching = {
            let space = space.clone();
            thread::spawn(move || space.attach(Device::playing("device", obliging())).expect("attached"))
        };
        let found = space.lookup(Iova::new(AT)).expect("it stays mapped");
        assert_eq!(found.memory, memory(0x7000_0000));
        let _ = (space.describe(), space.windows());
        let change = attaching.join().expect("no panic");
        assert_ne!(change.before, change.after);
        assert_eq!(space.mappings(IovaRange::all()).len(), 1);
    });
}

/// The owner of memory, which looks at the space when it is dropped.
struct Owner {
    bytes: Vec<u8>,
    space: Arc<OnceLock<Weak<Space<Iotlb>>>>,
    dropped: Arc<AtomicUsize>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        assert!(!self.bytes.is_empty());
        self.dropped.fetch_add(1, Ordering::Relaxed);
        // Under a lock of the space loom would find a deadlock here.
        if let Some(space) = self.space.get().and_then(Weak::upgrade) {
            let _ = (space.lookup(Iova::new(AT)), space.describe());
        }
    }
}

#[test]
fn an_owner_is_dropped_once_and_under_no_lock_beside_a_reader() {
    explore("drop under a reader", || {
        let (slot, dropped) = (Arc::new(OnceLock::new()), Arc::new(AtomicUsize::new(0)));
        let owner = Arc::new(Owner { bytes: vec![0; 0x2000], space: slot.clone(), dropped: dropped.clone() });
        let base = (owner.bytes.as_ptr() as usize).next_multiple_of(0x1000) as *mut u8;
        let (base, len) = (NonNull::new(base).expect("not null"), NonZeroUsize::new(0x1000).expect("not zero"));
        let owner: Arc<dyn Any + Send + Sync> = owner;
        #[expect(unsafe_code, reason = "UNSAFETY: the owner keeps its bytes, which nothing refers to")]
        // SAFETY: the owner keeps the bytes, and they are of no other use.
        let memory = unsafe { HostMemory::held_by(base, len, owner) }.expect("aligned");
        let space = space(Iotlb::playing(obliging()));
        assert!(slot.set(Arc::downgrade(&space)).is_ok());
        space.map(request(&memory)).expect("mapped");
        drop(memory);
        let reader = {
            let space = space.clone();
            thread::spawn(move || space.mappings(IovaRange::all()).len())
        };
        space.unmap(page_at(AT)).expect("unmapped");
        assert!(reader.join().expect("no panic") <= 1);
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
    });
}

/// A sink that remembers the addresses that were marked.
#[derive(Default)]
struct Marked(std::sync::Mutex<BTreeSet<u64>>);

impl DirtySink for Marked {
    fn mark(&self, dirtied: Dirtied<'_>) {
        self.0.lock().expect("no panic under it").insert(dirtied.address().get());
    }
}

#[test]
fn a_sync_beside_an_unmap_returns_after_the_pages_are_reported() {
    explore("sync against unmap", || {
        let space = space(Iotlb::playing(obliging()));
        let sink = Arc::new(Marked::default());
        let tracking = space.powers().dirty_tracking;
        tracking.start(sink.clone()).expect("it tracks");
        map(&space, 0x7000_0000).expect("mapped");
        let unmapping = {
            let space = space.clone();
            thread::spawn(move || space.unmap(page_at(AT)).is_ok())
        };
        tracking.sync(IovaRange::all()).expect("it answers");
        assert!(sink.0.lock().expect("no panic under it").contains(&0x7000_0000), "the page was mapped before");
        assert!(unmapping.join().expect("no panic"));
    });
}

#[test]
fn a_detach_of_the_last_device_beside_a_map_leaves_neither_a_mapping_nor_a_fence() {
    explore("last detach against map", || {
        let space = space(Iotlb { forgets: true, ..Iotlb::playing(obliging()) });
        let device = Device::playing("only", obliging());
        space.attach(device.clone()).expect("attached");
        let mapping = {
            let space = space.clone();
            thread::spawn(move || map(&space, 0x7000_0000))
        };
        space.detach(&device).expect("detached");
        if let Err(refused) = mapping.join().expect("no panic") {
            assert_eq!(refused.failure(), None, "the kernel was not asked");
        }
        assert_eq!(space.mappings(IovaRange::all()), []);
        assert_eq!(space.describe().fences, []);
    });
}
