//! Processors of a guest that make hypercalls while the VMM takes hosts away: neither ever waits for the other for
//! good.
//!
//! The soft host and its KVM answer at once, so a wrong order of locks shows within a few rounds: the first two tests
//! hung at round 0 and at round 3 before the order was mended. A watchdog fails a round that hangs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use dmaspace::choose::BackendKind;
use dmaspace::open::Opened;
use dmaspace_core::{Iova, PciAddressSpace};
use dmaspace_listener::Listener;
use dmaspace_soft::SoftHost;
use dmaspace_spapr_guest::{Layout, Liobn, PciHostBridge, Tce, TceTables};
use dmaspace_tests::kernel::SoftKvm;
use dmaspace_tests::soft::{host, memory, open, range};
use dmaspace_tests::spapr_guest::{FIRST, RAM, SpaprGuest};

const PROCESSORS: u64 = 2;

/// A round takes milliseconds, and a busy machine may stop for a while.
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest whose window KVM has filled until its host lost its last device: hypercalls are the VMM's again.
struct Round {
    bridge: PciHostBridge,
    listener: Listener,
    opened: Opened,
    kvm: Arc<SoftKvm>,
    soft: Arc<SoftHost>,
}

impl Round {
    fn with_device() -> Self {
        let soft = host("powernv9");
        let opened = open(&soft, BackendKind::Spapr);
        let mut layout = Layout::pseries(0);
        layout.default_window = range(0, 1 << 20);
        let guest = SpaprGuest::new(layout);
        let kvm = SoftKvm::new(&soft, guest.ram());
        let mut guest = guest.with_kernel(kvm.tables());
        guest.attach(&opened).expect("an empty view fits");
        assert_eq!(guest.reset(), 0);
        let (bridge, listener) = guest.bridges.remove(0);
        assert!(bridge.tables().is_left_to_kernel(liobn()));
        Self { bridge, listener, opened, kvm, soft }
    }

    fn after_the_last_device_left() -> Self {
        let mut round = Self::with_device();
        round.remove_device();
        assert!(!round.bridge.tables().is_left_to_kernel(liobn()));
        round
    }

    fn remove_device(&mut self) {
        let device = self.opened.devices.remove(0);
        self.opened.space.remove(device).expect("nothing fails").expect("the group left");
    }

    fn space(&self) -> Arc<dyn PciAddressSpace> {
        self.opened.space.space().clone()
    }
}

fn liobn() -> Liobn {
    Liobn::new(u32::try_from(FIRST).expect("a LIOBN"))
}

/// Runs `vmm` while the guest's processors make hypercalls on `tables`, which they alone keep once `vmm` has dropped
/// its own handle.
fn beside_processors(tables: Arc<TceTables>, vmm: impl FnOnce()) {
    let has_ended = Arc::new(AtomicBool::new(false));
    let begin = Arc::new(Barrier::new(usize::try_from(PROCESSORS).expect("few") + 1));
    let processor = |number: u64| {
        let (tables, has_ended, begin) = (tables.clone(), has_ended.clone(), begin.clone());
        thread::spawn(move || {
            begin.wait();
            let (ioba, tce) = (Iova::new(number << 12), Tce::new(0x5003));
            let ram = memory(0x7f00_0000_0000, RAM);
            while !has_ended.load(Ordering::Relaxed) {
                // A host without a window refuses, which is no fault.
                let _ = tables.h_put_tce(&ram, liobn(), ioba, tce);
                let _ = tables.h_stuff_tce(&ram, liobn(), ioba, Tce::NONE, 1);
                let _ = tables.h_get_tce(liobn(), ioba);
            }
        })
    };
    let processors: Vec<_> = (0..PROCESSORS).map(processor).collect();
    drop(tables);
    begin.wait();
    vmm();
    has_ended.store(true, Ordering::Relaxed);
    for processor in processors {
        processor.join().expect("a processor that panics has found a fault");
    }
}

/// Plays so many rounds, and fails when one does not end.
fn play(rounds: usize, round: fn()) {
    let (ended, has_ended) = mpsc::channel();
    thread::spawn(move || {
        for number in 0..rounds {
            round();
            if ended.send(number).is_err() {
                return;
            }
        }
    });
    for number in 0..rounds {
        match has_ended.recv_timeout(PATIENCE) {
            Ok(ended) => assert_eq!(ended, number),
            Err(RecvTimeoutError::Timeout) => panic!("round {number} hangs"),
            Err(RecvTimeoutError::Disconnected) => panic!("round {number} panicked"),
        }
    }
}

#[test]
fn processors_and_a_listener_that_detaches_the_host_do_not_wait_for_each_other() {
    play(1_000, || {
        let mut round = Round::after_the_last_device_left();
        let (tables, space) = (round.bridge.tables().clone(), round.space());
        let listener = &mut round.listener;
        beside_processors(tables, || listener.detach(&space).expect("nothing fails"));
        assert_eq!(round.kvm.holds(), (0, 0));
    });
}

#[test]
fn processors_that_outlive_bridge_and_listener_do_not_wait_for_themselves() {
    play(1_000, || {
        let Round { bridge, listener, opened, kvm, soft } = Round::after_the_last_device_left();
        beside_processors(bridge.tables().clone(), || drop((bridge, listener)));
        drop(opened);
        assert_eq!(kvm.holds(), (0, 0));
        assert!(soft.ledger().is_clear(), "{:?}", soft.ledger());
    });
}

#[test]
fn processors_and_a_bridge_that_swaps_its_host_do_not_wait_for_each_other() {
    play(200, || {
        let mut round = Round::after_the_last_device_left();
        let (tables, space) = (round.bridge.tables().clone(), round.space());
        let Round { bridge, listener, .. } = &mut round;
        beside_processors(tables, || {
            bridge.detach(listener, &space).expect("nothing fails");
            bridge.reset(listener).expect("no host could refuse");
        });
        assert_eq!(round.kvm.holds(), (0, 0));
    });
}

#[test]
fn processors_and_a_device_that_leaves_do_not_wait_for_each_other() {
    play(200, || {
        let mut round = Round::with_device();
        let tables = round.bridge.tables().clone();
        beside_processors(tables, || round.remove_device());
        assert_eq!(round.kvm.holds(), (0, 0));
    });
}
