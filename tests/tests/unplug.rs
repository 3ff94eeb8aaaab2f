//! A device that leaves while a commit, an attach or a change of blocks is under way. No call of the kernel fails, so
//! nothing may end up fenced, and everything is in force again once the device is back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::facts::Facts;
use dmaspace::open::{Host, Opened};
use dmaspace::pci::PciAddress;
use dmaspace_core::{Access, Iova, IovaRange, PageSize, PciAddressSpace, SystemAddress};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{CommitError, FrontEnd, Listener, Section, Update};
use dmaspace_soft::SoftHost;
use dmaspace_tests::soft::{HOSTS, host, memory, ram, range};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 0x1000;
/// Host addresses of the guest's RAM before and after a replacement.
const HOMES: [u64; 2] = [1 << 45, 1 << 46];
const SECTIONS: u64 = 300;
const ROUNDS: usize = 40;

/// A space with one device, which a listener serves.
struct Stage {
    soft: Arc<SoftHost>,
    host: Host,
    opened: Opened,
    listener: Listener,
}

impl Stage {
    fn new(preset: &str, backend: BackendKind) -> Self {
        let soft = host(preset);
        let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
        let opened =
            host.open(&OpenRequest::device(address(&soft)).with_backend(backend)).expect("the soft host opens it");
        let mut listener = Listener::new(FrontEnd::default());
        listener.attach(opened.space.space().clone()).expect("an empty view fits");
        Self { soft, host, opened, listener }
    }

    fn space(&self) -> &Arc<dyn PciAddressSpace> {
        self.opened.space.space()
    }

    /// Runs `work` on the listener while the device leaves.
    fn unplug_during<T>(&mut self, delay: usize, work: impl FnOnce(&mut Listener) -> T) -> T {
        let (start, is_going) = (Barrier::new(2), AtomicBool::new(false));
        let (opened, listener) = (&mut self.opened, &mut self.listener);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let device = opened.devices.remove(0);
                start.wait();
                for _ in 0..delay * 400 {
                    std::hint::black_box(is_going.load(Ordering::Relaxed));
                }
                opened.space.remove(device).expect("nothing else holds it");
            });
            start.wait();
            is_going.store(true, Ordering::Relaxed);
            work(listener)
        })
    }

    fn plug(&mut self) {
        let device = self.opened.space.add(&self.host, address(&self.soft)).expect("it comes back");
        self.opened.devices.push(device);
    }

    /// The device is back: nothing is fenced, and all of the view is in force.
    fn check_recovered(&mut self, case: &str) {
        assert_eq!(self.space().describe().fences, [], "{case}: nothing failed");
        self.plug();
        let report = self.listener.sync().unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(report.spaces.iter().find_map(|space| space.refusal()), None, "{case}");
        assert_eq!(self.listener.audit(), [], "{case}");
        assert_eq!(self.space().describe().fences, [], "{case}");
    }

    fn close(self, case: &str) {
        let Self { soft, listener, opened, .. } = self;
        drop((listener, opened));
        assert!(soft.ledger().is_clear(), "{case}: {:?}", soft.ledger());
    }
}

fn address(soft: &SoftHost) -> PciAddress {
    soft.profile().groups[0].devices[0].address.parse().expect("a PCI address")
}

/// RAM in pieces that do not continue each other in the host, so that each is a mapping of its own.
fn pieces(home: u64) -> Vec<Section> {
    (0..SECTIONS).map(|n| ram(n * MIB, home + n * 2 * MIB, MIB)).collect()
}

fn reached(space: &dyn PciAddressSpace) -> u128 {
    space.mappings(IovaRange::all()).iter().map(|mapping| mapping.range.bytes()).sum()
}

#[test]
fn a_device_that_leaves_while_sections_are_replaced_fences_nothing() {
    for (preset, backend) in HOSTS {
        let mut stage = Stage::new(preset, backend);
        stage.listener.commit(stage.listener.update_to(&pieces(HOMES[0]), &[])).expect("it fits");
        for round in 0..ROUNDS {
            let case = format!("{preset} {backend}, round {round}");
            let wanted = pieces(HOMES[(round + 1) % 2]);
            let result = stage.unplug_during(round, |listener| listener.commit(listener.update_to(&wanted, &[])));
            if let Err(error) = &result {
                assert!(matches!(error, CommitError::Step { fenced, .. } if fenced.is_empty()), "{case}: {error}");
            }
            stage.check_recovered(&case);
            stage
                .listener
                .commit(stage.listener.update_to(&wanted, &[]))
                .unwrap_or_else(|error| panic!("{case}: {error}"));
            assert_eq!(reached(stage.space().as_ref()), u128::from(SECTIONS * MIB), "{case}");
        }
        stage.close(preset);
    }
}

#[test]
fn a_device_that_leaves_while_a_window_is_replaced_fences_nothing() {
    let window = |page| Section::translated("window", range(0, 64 * MIB), page);
    let target = TargetMemory::new("ram", SystemAddress::new(0), memory(HOMES[0], 16 * MIB)).expect("a proper range");
    for (preset, backend) in HOSTS {
        let mut stage = Stage::new(preset, backend);
        let pages = [PageSize::K64, PageSize::M2];
        stage.listener.commit(Update::new().adding(window(pages[0])).adding_target(target.clone())).expect("it fits");
        for round in 0..ROUNDS {
            let case = format!("{preset} {backend}, round {round}");
            let handle = stage.listener.translated(Iova::new(0)).expect("it is in force");
            let page = handle.page().expect("it is in force").bytes();
            handle.clear(range(0, 64 * MIB)).expect("whole entries");
            for n in 0..4 {
                let at = Iova::new(n * 2 * page.max(PAGE));
                handle.put_run(at, SystemAddress::new(n * page), page, Access::READ_WRITE).expect("RAM is there");
            }
            let update = Update::new().removing(window(pages[round % 2])).adding(window(pages[(round + 1) % 2]));
            let result = stage.unplug_during(round, |listener| listener.commit(update.clone()));
            stage.check_recovered(&case);
            if result.is_err() {
                stage.listener.commit(update).unwrap_or_else(|error| panic!("{case}: {error}"));
            }
        }
        stage.close(preset);
    }
}

#[test]
fn a_device_that_leaves_while_its_space_joins_fences_nothing() {
    for (preset, backend) in HOSTS {
        let mut stage = Stage::new(preset, backend);
        stage.listener.commit(stage.listener.update_to(&pieces(HOMES[0]), &[])).expect("it fits");
        let space = stage.space().clone();
        for round in 0..ROUNDS {
            let case = format!("{preset} {backend}, round {round}");
            stage.listener.detach(&space).unwrap_or_else(|error| panic!("{case}: {error}"));
            let joined = stage.unplug_during(round, |listener| listener.attach(space.clone()));
            assert_eq!(space.describe().fences, [], "{case}: nothing failed");
            if joined.is_err() {
                stage.plug();
                stage.listener.attach(space.clone()).unwrap_or_else(|error| panic!("{case}: {error}"));
                assert_eq!(stage.listener.audit(), [], "{case}");
            } else {
                stage.check_recovered(&case);
            }
            assert_eq!(reached(space.as_ref()), u128::from(SECTIONS * MIB), "{case}");
        }
        drop(space);
        stage.close(preset);
    }
}

#[test]
fn a_device_that_leaves_while_blocks_are_discarded_fences_nothing() {
    for (preset, backend) in HOSTS {
        let mut stage = Stage::new(preset, backend);
        let dimm =
            Section::discardable("dimm", Iova::new(0), memory(HOMES[0], 64 * MIB), Access::READ_WRITE, PageSize::M2);
        stage.listener.commit(Update::new().adding(dimm.expect("a proper range"))).expect("it fits");
        let blocks = stage.listener.discardable(Iova::new(0)).expect("it is in force");
        let half = range(0, 32 * MIB);
        for round in 0..ROUNDS {
            let case = format!("{preset} {backend}, round {round}");
            blocks.populate(half).unwrap_or_else(|error| panic!("{case}: {error}"));
            let discarded = stage.unplug_during(round / 4, |_| blocks.discard(half));
            stage.check_recovered(&case);
            let left = if discarded.is_ok() { 0 } else { 32 * MIB };
            assert_eq!(reached(stage.space().as_ref()), u128::from(left), "{case}");
        }
        stage.close(preset);
    }
}
