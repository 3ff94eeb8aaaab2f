//! A processor of the guest that puts or clears an entry waits for no call of another window or space: not for memory
//! that is registered, a device that is attached, or a dirty log that is read.
//!
//! A door holds one call until the test lets it go. No test sleeps: hypercalls end while the call is held, or a
//! watchdog fails the test.

use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::facts::Facts;
use dmaspace::open::{Host, Opened};
use dmaspace::pci::PciAddress;
use dmaspace_core::contract::dirty::{Dirtied, DirtySink};
use dmaspace_core::door::Command;
use dmaspace_core::{Iova, PageSize, SystemAddress};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{FrontEnd, Listener, Section, Update};
use dmaspace_soft::SoftHost;
use dmaspace_spapr_guest::{Liobn, Tce, TceTable, TceTables};
use dmaspace_tests::soft::{host, memory, range};
use dmaspace_tests::watched_door::{WatchedDoor, Watcher};

const GIB: u64 = 1 << 30;
const PAGE: u64 = 0x1000;
const RAM: u64 = 1 << 24;

/// A busy machine may stop for a while.
const PATIENCE: Duration = Duration::from_secs(60);

/// A door that holds one call.
type HoldingDoor = WatchedDoor<Holder>;

/// The watcher that holds a call.
#[derive(Debug)]
struct Holder {
    held: Mutex<Held>,
    moved: Condvar,
}

/// The progress of the call that is held.
#[derive(Debug, PartialEq)]
enum Held {
    /// No call is to be held.
    None,
    /// The next ioctl of this name is to be held.
    Next(&'static str),
    /// The call is held.
    Now,
}

impl Holder {
    fn hold_next(&self, name: &'static str) {
        *self.held.lock().expect("no panic under it") = Held::Next(name);
    }

    fn wait_until_held(&self) {
        let held = self.held.lock().expect("no panic under it");
        let (held, _) = self.moved.wait_timeout_while(held, PATIENCE, |held| *held != Held::Now).expect("no panic");
        assert_eq!(*held, Held::Now, "the call was not made");
    }

    fn let_go(&self) {
        *self.held.lock().expect("no panic under it") = Held::None;
        self.moved.notify_all();
    }
}

impl Watcher for Holder {
    /// Waits while this call is held.
    fn command(&self, command: &Command<'_>) {
        let mut held = self.held.lock().expect("no panic under it");
        if *held == Held::Next(command.request.name) {
            *held = Held::Now;
            self.moved.notify_all();
            drop(self.moved.wait_while(held, |held| *held == Held::Now).expect("no panic under it"));
        }
    }
}

const REGISTER: &str = "VFIO_IOMMU_SPAPR_REGISTER_MEMORY";
const ATTACH: &str = "VFIO_GROUP_SET_CONTAINER";
const LOG: &str = "VFIO_IOMMU_DIRTY_PAGES";
const MAP: &str = "VFIO_IOMMU_MAP_DMA";

/// A sink that forgets.
struct Forgetful;

impl DirtySink for Forgetful {
    fn mark(&self, _: Dirtied<'_>) {}
}

/// One of a guest's bridges: two windows on a space of its own.
struct Bridge {
    listener: Listener,
    opened: Opened,
    low: Window,
    high: Window,
}

/// A window with its table.
#[derive(Clone)]
struct Window {
    tables: Arc<TceTables>,
    liobn: Liobn,
    first: u64,
}

impl Window {
    /// Puts entries and clears them.
    fn put_and_clear(&self) {
        for page in 10..200 {
            self.put(page);
            self.tables
                .h_stuff_tce(&memory(0x7f00_0000_0000, RAM), self.liobn, self.at(page), Tce::NONE, 1)
                .expect("a good call");
        }
    }

    fn at(&self, page: u64) -> Iova {
        Iova::new(self.first + page * PAGE)
    }

    /// Puts an entry, which stays.
    fn put(&self, page: u64) {
        let tce = Tce::new((page * PAGE) | 3);
        self.tables.h_put_tce(&memory(0x7f00_0000_0000, RAM), self.liobn, self.at(page), tce).expect("a good call");
    }
}

/// A guest with two bridges behind one door.
struct Guest {
    door: Arc<HoldingDoor>,
    host: Host,
    bridges: [Bridge; 2],
}

impl Guest {
    /// The second windows of its bridges begin at `high`.
    fn on(preset: &str, backend: BackendKind, high: u64) -> Self {
        let soft = host(preset);
        let door = Arc::new(WatchedDoor {
            soft: soft.clone(),
            watcher: Holder { held: Mutex::new(Held::None), moved: Condvar::new() },
        });
        let host = Host::new(door.clone(), Facts::of_soft(soft.profile()));
        let tables = Arc::new(TceTables::new());
        let bridge = |number: usize| Bridge::new(&host, &soft, backend, &tables, number, high);
        let bridges = [bridge(0), bridge(1)];
        Self { door, host, bridges }
    }
}

fn address(soft: &SoftHost, group: usize) -> PciAddress {
    soft.profile().groups[group].devices[0].address.parse().expect("a PCI address")
}

impl Bridge {
    fn new(
        host: &Host,
        soft: &SoftHost,
        backend: BackendKind,
        tables: &Arc<TceTables>,
        number: usize,
        high: u64,
    ) -> Self {
        let request = OpenRequest::device(address(soft, number)).with_backend(backend);
        let opened = host.open(&request).expect("the soft host opens it");
        let mut listener = Listener::new(FrontEnd::default());
        listener.attach(opened.space.space().clone()).expect("an empty view fits");
        // Each bridge sees the guest's memory at addresses of its own: no registration is another's.
        let ram = memory(0x7f00_0000_0000 + number as u64 * GIB, RAM);
        let target = TargetMemory::new("ram", SystemAddress::new(0), ram).expect("a range");
        let sections = [0, high].map(|first| Section::translated("tce", range(first, GIB), PageSize::K4));
        let update = sections.into_iter().fold(Update::new().adding_target(target), Update::adding);
        listener.commit(update).expect("it fits");
        let window = |first: u64, which: u32| {
            let liobn = Liobn::new(0x8000_0000 + 2 * u32::try_from(number).expect("small") + which);
            let table = TceTable::new(Iova::new(first), PageSize::K4, GIB / PAGE).expect("a table");
            tables.add(liobn, table).expect("it is free");
            let there = listener.translated(Iova::new(first)).expect("it is in force");
            tables.connect(liobn, there).expect("both are empty");
            Window { tables: tables.clone(), liobn, first }
        };
        let (low, high) = (window(0, 0), window(high, 1));
        Self { listener, opened, low, high }
    }
}

/// Runs `slow` until `door` holds its call, then hypercalls on `windows`, which must end while the call is held.
fn beside<T: Send>(door: &HoldingDoor, slow: impl FnOnce() -> T + Send, windows: &[&Window]) -> T {
    thread::scope(|scope| {
        let slow = scope.spawn(slow);
        door.watcher.wait_until_held();
        let (end, ended) = mpsc::channel();
        for window in windows {
            let (window, end) = (Window::clone(window), end.clone());
            scope.spawn(move || {
                window.put_and_clear();
                end.send(window.liobn)
            });
        }
        let end: Vec<_> = windows.iter().map_while(|_| ended.recv_timeout(PATIENCE).ok()).collect();
        door.watcher.let_go();
        assert_eq!(end.len(), windows.len(), "only {end:?} did not wait");
        slow.join().expect("no panic")
    })
}

#[test]
fn hypercalls_do_not_wait_for_memory_that_is_registered() {
    let Guest { door, bridges: [mut first, second], .. } = Guest::on("powernv9", BackendKind::Spapr, 1 << 59);
    let dimm = TargetMemory::new("dimm", SystemAddress::new(RAM), memory(0x7e00_0000_0000, RAM)).expect("a range");
    door.watcher.hold_next(REGISTER);
    let windows = [&first.low.clone(), &first.high.clone(), &second.low, &second.high];
    let commit = beside(&door, || first.listener.commit(Update::new().adding_target(dimm)), &windows);
    commit.expect("nothing fails");
}

#[test]
fn hypercalls_do_not_wait_for_a_device_of_another_space_that_is_attached() {
    let Guest { door, host, bridges: [mut first, second] } = Guest::on("powernv9", BackendKind::Spapr, 1 << 59);
    door.watcher.hold_next(ATTACH);
    let windows = [&second.low, &second.high];
    let added = beside(&door, || first.opened.space.add(&host, address(&door.soft, 2)), &windows);
    added.expect("the soft host attaches it");
}

#[test]
fn hypercalls_do_not_wait_for_a_device_that_waits_for_another_window() {
    let Guest { door, host, bridges: [mut first, second] } = Guest::on("powernv9", BackendKind::Spapr, 1 << 59);
    let (low, high) = (first.low.clone(), first.high.clone());
    let third = address(&door.soft, 2);
    door.watcher.hold_next(MAP);
    thread::scope(|scope| {
        let slow = scope.spawn(|| low.put(9));
        door.watcher.wait_until_held();
        // It comes to stand behind the map while the hypercalls of the windows are made.
        let adding = scope.spawn(|| first.opened.space.add(&host, third));
        beside(&door, || {}, &[&high, &second.low]);
        slow.join().expect("no panic");
        adding.join().expect("no panic").expect("the soft host attaches it");
    });
}

#[test]
fn hypercalls_do_not_wait_for_a_dirty_log_that_is_read() {
    let mut guest = Guest::on("vtd", BackendKind::Type1, 1 << 32);
    let Guest { door, bridges: [first, second], .. } = &mut guest;
    first.listener.track_dirty(Arc::new(Forgetful)).expect("it tracks");
    first.low.put(9);
    first.high.put(9);
    door.watcher.hold_next(LOG);
    let windows = [&first.high.clone(), &second.low, &second.high];
    beside(door, || first.listener.sync_dirty(), &windows).expect("nothing fails");
}
