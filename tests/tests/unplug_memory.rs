//! Memory that is unplugged while entries of the guest point to it: they are cleared with it if the VMM asks for that,
//! and the VMM is told which.

use std::sync::Arc;

use dmaspace::choose::BackendKind;
use dmaspace::open::Opened;
use dmaspace_core::{Access, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{CommitError, EntryRun, FrontEnd, Listener, Section, Update};
use dmaspace_soft::{FaultMode, FaultPlan, SoftHost};
use dmaspace_spapr_guest::WindowError;
use dmaspace_tests::soft::{HOSTS, host, memory, open, range};
use dmaspace_tests::spapr_guest::{FIRST, RAM, SpaprGuest};

const MIB: u64 = 1 << 20;
const K64: u64 = 0x1_0000;
const RW: Access = Access::READ_WRITE;
/// The host address of the guest's memory, whose two halves are one piece in the host.
const HOME: u64 = 1 << 45;

/// A guest with a translated window and two halves of memory, whose border an entry of two pages crosses.
struct Stage {
    listener: Listener,
    opened: Opened,
    soft: Arc<SoftHost>,
}

fn half(n: u64) -> TargetMemory {
    TargetMemory::new("dimm", SystemAddress::new(n * MIB), memory(HOME + n * MIB, MIB)).expect("a proper range")
}

fn entries() -> [EntryRun; 3] {
    [(0, 0, 4), (8 * K64, MIB - K64, 2), (16 * K64, MIB + 4 * K64, 3)].map(|(at, target, pages)| EntryRun {
        range: range(at, pages * K64),
        target: SystemAddress::new(target),
        access: RW,
    })
}

impl Stage {
    fn new(preset: &str, backend: BackendKind) -> Self {
        let soft = host(preset);
        let opened = open(&soft, backend);
        let mut listener = Listener::new(FrontEnd::default());
        listener.attach(opened.space.space().clone()).expect("an empty view fits");
        let window = Section::translated("window", range(0, 16 * MIB), PageSize::K64);
        let update = Update::new().adding(window).adding_target(half(0)).adding_target(half(1));
        listener.commit(update).expect("it fits");
        listener.translated(Iova::new(0)).expect("in force").put_many(&entries()).expect("RAM is there");
        Self { listener, opened, soft }
    }

    /// The bus addresses that the device reaches.
    fn reached(&self) -> Vec<IovaRange> {
        let device = self.soft.device(self.opened.devices[0].name()).expect("it is there");
        let mut joined: Vec<IovaRange> = Vec::new();
        for it in device.reached().expect("it is attached") {
            match joined.last_mut() {
                Some(last) if last.touches(it.range) => *last = last.hull(it.range),
                _ => joined.push(it.range),
            }
        }
        joined
    }
}

#[test]
fn entries_go_with_their_memory_if_the_update_says_so_and_the_report_lists_them() {
    for (preset, backend) in HOSTS.into_iter().chain([("powernv9", BackendKind::SpaprV1)]) {
        let mut stage = Stage::new(preset, backend);
        let all: Vec<_> = entries().iter().map(|run| run.range).collect();
        let refused = stage.listener.commit(Update::new().removing_target(half(1))).expect_err("two entries are there");
        assert!(matches!(refused, CommitError::StillMapped { .. }), "{preset} {backend}: {refused}");
        assert_eq!(stage.reached(), all, "{preset} {backend}");

        let update = Update::new().removing_target(half(1)).clearing_entries();
        let report = stage.listener.commit(update).unwrap_or_else(|error| panic!("{preset} {backend}: {error}"));
        assert_eq!(report.cleared, [range(9 * K64, K64), range(16 * K64, 3 * K64)], "{preset} {backend}");
        assert_eq!(stage.reached(), [range(0, 4 * K64), range(8 * K64, K64)], "{preset} {backend}");
        assert_eq!(stage.listener.audit(), [], "{preset} {backend}");
        let window = stage.listener.translated(Iova::new(0)).expect("in force");
        window.put(Iova::new(16 * K64), SystemAddress::new(MIB), RW).expect_err("the memory is gone");
        window.put(Iova::new(16 * K64), SystemAddress::new(0), RW).expect("the place is free");

        let report = stage.listener.commit(Update::new().adding_target(half(1)).clearing_entries()).expect("it fits");
        assert_eq!(report.cleared, []);
        window.put(Iova::new(9 * K64), SystemAddress::new(MIB), RW).expect("the memory is back");
        let Stage { listener, opened, soft } = stage;
        drop((listener, opened));
        assert!(soft.ledger().is_clear(), "{preset} {backend}: {:?}", soft.ledger());
    }
}

#[test]
fn entries_of_a_guest_on_power_go_from_its_tables_and_from_the_host() {
    let soft = host("powernv9");
    let (mut guest, opened) = SpaprGuest::on(&soft, BackendKind::Spapr);
    let part = |guest: &SpaprGuest, name, at, len| {
        let memory = guest.ram().slice(at, len).expect("inside its RAM");
        TargetMemory::new(name, SystemAddress::new(at), memory).expect("a proper range")
    };
    let all = part(&guest, "spapr.ram", 0, RAM);
    let (ram, dimm) = (part(&guest, "ram", 0, RAM - MIB), part(&guest, "dimm", RAM - MIB, MIB));
    let split = Update::new().removing_target(all).adding_target(ram).adding_target(dimm.clone());
    guest.listener().commit(split).expect("it fits");
    assert_eq!(guest.reset(), 0);
    for (at, tce) in [(0x1000, 0x5003), (0x2000, (RAM - MIB) | 3), (0x3000, (RAM - MIB + 0x1000) | 3)] {
        assert_eq!(guest.put(FIRST, at, tce), 0);
    }
    let before = guest.says();
    let unplug = Update::new().removing_target(dimm);

    let (bridge, listener) = &mut guest.bridges[0];
    let (report, cleared) = bridge.unplug_memory(listener, unplug).expect("the host lets them go");
    let entry = EntryRun { range: range(0x2000, 0x2000), target: SystemAddress::new(RAM - MIB), access: RW };
    assert_eq!((report.cleared, cleared), (vec![entry.range], vec![entry]));
    assert_eq!(guest.says(), before[..1]);
    assert_eq!(guest.has(opened.space.space().as_ref()), before[..1]);
    // The guest goes on with the place.
    assert_eq!([guest.put(FIRST, 0x2000, 0x6003), guest.put(FIRST, 0x3000, 0)], [0, 0]);
    assert_eq!(guest.has(opened.space.space().as_ref()), guest.says());
}

#[test]
fn an_unplug_that_fails_clears_no_entry_of_the_guest() {
    let soft = host("powernv9");
    let (mut guest, opened) = SpaprGuest::on(&soft, BackendKind::Spapr);
    assert_eq!([guest.reset() as i64, guest.put(FIRST, 0x1000, 0x5003)], [0, 0]);
    let before = guest.says();
    let ram = guest.listener().targets().next().expect("it is there").clone();
    let unplug = Update::new().removing_target(ram);
    // The memory that takes its place cannot be registered, after the entries were cleared.
    let fault = FaultPlan::nth(1, FaultMode::FailBefore).of("VFIO_IOMMU_SPAPR_REGISTER_MEMORY");
    soft.plan_faults(&[fault]);
    let (bridge, listener) = &mut guest.bridges[0];
    let failed = bridge.unplug_memory(listener, unplug.adding_target(half(0))).expect_err("the kernel refuses");
    assert!(matches!(failed, WindowError::Commit(CommitError::Step { .. })), "{failed}");
    assert_eq!(soft.faults_fired(), 1);
    assert_eq!(guest.says(), before);
    assert_eq!(guest.has(opened.space.space().as_ref()), before);
}
