//! One process makes way for another on the soft host: charges, refusals meanwhile, and the reach of devices.

use dmaspace_core::contract::MapRequest;
use std::sync::Arc;

use dmaspace::choose::BackendKind;
use dmaspace::device::Device;
use dmaspace::facts::Facts;
use dmaspace::open::{Host, OpenError, OpenSpace};
use dmaspace_core::contract::live_update::{Handover, NamedMemory};
use dmaspace_core::contract::{Attachable, LiveUpdateSupport, Unit};
use dmaspace_core::door::OwnedHandle;
use dmaspace_core::error::Kind;
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, PciAddressSpace, SystemAddress};
use dmaspace_listener::Update;
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{FrontEnd, Listener, Section};
use dmaspace_soft::SoftHost;
use dmaspace_tests::dirty::Told;
use dmaspace_tests::owned::{self, simulated};
use dmaspace_tests::soft::{host, memory, open, range};

const K4: u64 = 0x1000;
const K64: u64 = 0x1_0000;
const MIB: u64 = 1 << 20;
/// The address of the guest's memory in one process, and in the next.
const OLD: u64 = 1 << 45;
const NEW: u64 = 1 << 46;
const RW: Access = Access::READ_WRITE;
const MAP: &str = "VFIO_IOMMU_MAP_DMA";
const UNMAP: &str = "VFIO_IOMMU_UNMAP_DMA";

/// A process on the soft host with a space on type1. The devices go first.
struct Vmm {
    listener: Listener,
    devices: Vec<Device>,
    opened: OpenSpace,
    soft: Arc<SoftHost>,
}

fn names(at: u64) -> NamedMemory {
    NamedMemory::new().with("ram", memory(at, 64 * MIB)).with("bar", memory(at + (1 << 40), K64).device_memory())
}

fn part(at: u64, offset: u64, len: u64) -> HostMemory {
    names(at).get("ram").and_then(|ram| ram.slice(offset, len)).expect("inside the memory")
}

/// The guest's bus.
fn sections(at: u64) -> [Section; 4] {
    let bar = names(at).get("bar").cloned().expect("it is there");
    [
        Section::ram("ram", Iova::new(0), part(at, 0, MIB), RW),
        Section::ram("rom", Iova::new(2 * MIB), part(at, MIB, K64), Access::READ),
        Section::discardable("virtio-mem", Iova::new(16 * MIB), part(at, 16 * MIB, MIB), RW, PageSize::K64),
        Section::device_memory("bar", Iova::new(64 * MIB), bar, RW),
    ]
    .map(|section| section.expect("a section of the test"))
}

impl Vmm {
    fn start() -> Self {
        let soft = host("vtd");
        let opened = open(&soft, BackendKind::Type1);
        let mut listener = Listener::new(FrontEnd::default());
        listener.attach(opened.space.space().clone()).expect("nothing is in force");
        Self { listener, devices: opened.devices, opened: opened.space, soft }
    }

    fn with_a_guest() -> Self {
        let mut vmm = Self::start();
        vmm.describe_guest(OLD);
        vmm
    }

    fn describe_guest(&mut self, at: u64) {
        let update = sections(at).into_iter().fold(Update::new(), Update::adding);
        self.listener.commit(update).expect("the host maps it");
        let section = self.listener.discardable(Iova::new(16 * MIB)).expect("in force");
        section.populate(range(16 * MIB, 2 * K64)).expect("the host maps it");
    }

    fn space(&self) -> Arc<dyn PciAddressSpace> {
        self.opened.space().clone()
    }

    fn hand_over(&self) -> Handover {
        self.listener.hand_over(&names(OLD)).expect("type1 moves addresses").remove(0)
    }

    /// A process with the same descriptors, which has adopted nothing yet and whose listener serves nothing.
    fn successor(&self) -> Self {
        let soft = self.soft.fork();
        let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
        let groups =
            self.opened.groups().iter().map(|group| (group.name(), simulated(&soft, group.handle()))).collect();
        let opened = host
            .inherit(BackendKind::Type1, simulated(&soft, self.opened.handle().expect("a container")), groups)
            .expect("it was handed over");
        let inherit = |device: &Device| {
            let group = opened.groups()[0].clone();
            opened.inherit_device(&group, simulated(&soft, device.handle()), device.name())
        };
        let devices = self.devices.iter().map(inherit).collect();
        Self { listener: Listener::new(FrontEnd::default()), devices, opened, soft }
    }
}

fn adopt(space: &dyn PciAddressSpace, handover: &Handover) {
    owned::adopt(space, handover, &names(NEW)).expect("it is the hand-over");
}

#[test]
fn a_successor_finds_everything_in_step_and_is_charged() {
    let old = Vmm::with_a_guest();
    let handover = old.hand_over();
    let mut new = old.successor();
    let locked = old.soft.ledger().locked;
    new.describe_guest(NEW);
    let before = new.soft.calls();
    adopt(new.space().as_ref(), &handover);
    // One for ram, rom and BAR each, and for each block.
    assert_eq!(new.soft.calls().of(MAP) - before.of(MAP), 5);
    let before = new.soft.calls();
    let report = new.listener.attach(new.space()).expect("all of it is there");
    assert_eq!((report.spaces[0].pinned, report.spaces[0].disturbed), (0, 0));
    assert_eq!(new.listener.audit(), []);
    for call in [MAP, UNMAP] {
        assert_eq!(new.soft.calls().of(call), before.of(call), "{call}");
    }

    let ledger = old.soft.ledger();
    assert_eq!((ledger.locked, ledger.without_address, ledger.mappings), (locked, 0, 5));
    let unmaps = new.soft.calls().of(UNMAP);
    drop(old);
    assert_eq!(new.soft.calls().of(UNMAP), unmaps, "who handed over unmaps nothing");
    assert_eq!(new.soft.ledger().locked, locked, "the old process is charged for nothing, and gone");
    assert_eq!(new.space().lookup(Iova::new(K4)).map(|live| live.memory), Some(part(NEW, 0, MIB)));
    let soft = new.soft.clone();
    drop(new);
    assert!(soft.ledger().is_clear());
}

#[test]
fn a_space_that_is_handed_over_cannot_be_changed_until_it_is_taken_back() {
    let mut vmm = Vmm::with_a_guest();
    vmm.hand_over();
    let space = vmm.space();
    let before = vmm.soft.calls();
    let kinds = [
        space.map(MapRequest::new(Iova::new(32 * MIB), &part(OLD, 0, K4), RW)).expect_err("away").kind().clone(),
        space.unmap(range(0, MIB)).expect_err("away").kind().clone(),
        space.powers().dirty_tracking.start(Arc::new(Told::default())).expect_err("away").kind().clone(),
        space.detach(&(vmm.opened.groups()[0].clone() as Arc<dyn Attachable>)).expect_err("away").kind().clone(),
    ];
    assert!(kinds.iter().all(|kind| *kind == Kind::HandedOver), "{kinds:?}");
    let update = Update::new().removing(sections(OLD)[0].clone());
    vmm.listener.commit(update).expect_err("away");
    let blocks = vmm.listener.discardable(Iova::new(16 * MIB)).expect("in force");
    blocks.discard(range(16 * MIB, K64)).expect_err("away");
    assert_eq!(vmm.soft.calls().of(UNMAP), before.of(UNMAP));

    vmm.listener.take_back().expect("no successor has it");
    assert_eq!(vmm.soft.ledger().without_address, 0);
    assert_eq!(vmm.listener.audit(), []);
    blocks.discard(range(16 * MIB, K64)).expect("it is ours");
    assert_eq!(space.powers().live_update.take_back().expect_err("it is ours").kind(), Kind::NotHandedOver);
}

#[test]
fn a_wrong_description_is_named_and_nothing_is_lost() {
    let old = Vmm::with_a_guest();
    let handover = old.hand_over();
    let new = old.successor();
    let space = new.space();
    let fails = |handover: &Handover, names: &NamedMemory| {
        let error = owned::adopt(&*space, handover, names).expect_err("it is wrong");
        (error.kind().clone(), error.to_string())
    };
    let without = |change: fn(&mut Handover)| {
        let mut wrong = handover.clone();
        change(&mut wrong);
        fails(&wrong, &names(NEW))
    };
    let (kind, text) = fails(&handover, &NamedMemory::new());
    assert!(matches!(kind, Kind::NoMemory(_)) && text.contains("adopt 0x0..=0xfffff"), "{text}");
    let short = names(NEW).with("ram", memory(NEW, MIB));
    assert!(fails(&handover, &short).1.contains("too few"));
    let (kind, text) = fails(&handover, &names(NEW).with("bar", memory(NEW, K64)));
    assert!(matches!(kind, Kind::NoMemory(_)) && text.contains("another device's"), "{text}");
    let read_only = names(NEW).with("ram", memory(NEW, 64 * MIB).host_read_only());
    assert!(matches!(fails(&handover, &read_only).0, Kind::HostReadOnly(_)));
    assert!(without(|wrong| wrong.devices.clear()).1.contains("its devices are none"));
    assert!(without(|wrong| wrong.backend = "iommufd".into()).1.contains("it is of iommufd"));
    assert!(matches!(without(|wrong| wrong.mappings[1].range = wrong.mappings[0].range).0, Kind::Overlap(_)));
    // The kernel is asked from here on.
    assert_eq!(without(|wrong| wrong.mappings[2].unit = Unit::Whole).0, Kind::NoSuchMapping);
    assert_eq!(without(|wrong| wrong.mappings[1].range = range(8 * MIB, K64)).0, Kind::NoSuchMapping);
    assert_eq!(old.soft.ledger().without_address, 5);
    adopt(space.as_ref(), &handover);
    assert_eq!(old.soft.ledger().without_address, 0);
}

#[test]
fn a_description_of_too_little_is_seen_by_the_mappings_that_are_left() {
    let old = Vmm::with_a_guest();
    let handover = old.hand_over();
    old.listener.take_back().expect("no successor has it");
    old.space().map(MapRequest::new(Iova::new(32 * MIB), &part(OLD, 0, K4), RW)).expect("it is free");
    old.hand_over();
    let new = old.successor();
    let error = owned::adopt(&*new.space(), &handover, &names(NEW)).expect_err("there is more by now");
    assert!(matches!(error.kind(), Kind::BadHandover(_)), "{error}");
    let error = owned::adopt(&*old.space(), &handover, &names(NEW)).expect_err("there is more by now");
    assert!(matches!(error.kind(), Kind::BadHandover(_)), "{error}");
}

#[test]
fn a_successor_whose_limit_is_too_low_leaves_the_hand_over_to_another() {
    let old = Vmm::with_a_guest();
    let handover = old.hand_over();
    let new = old.successor();
    new.soft.set_memlock(Some(MIB));
    let error = owned::adopt(&*new.space(), &handover, &names(NEW)).expect_err("too much");
    assert!(matches!(error.kind(), Kind::PinLimit(_)), "{error}");
    assert_eq!(old.soft.ledger().without_address, 5);
    new.soft.set_memlock(None);
    old.listener.take_back().expect("the other has nothing but charges");
    assert_eq!((old.soft.ledger().without_address, old.listener.audit()), (0, vec![]));
    drop(new);
    assert_eq!(old.soft.ledger().locked, MIB + 3 * K64, "all is charged to the old process again");
}

#[test]
fn memory_moves_within_a_process() {
    let mut vmm = Vmm::with_a_guest();
    let handover = vmm.hand_over();
    assert_eq!(vmm.hand_over(), handover, "it can be asked again");
    adopt(vmm.space().as_ref(), &handover);
    let listener = std::mem::replace(&mut vmm.listener, Listener::new(FrontEnd::default()));
    drop(listener);
    vmm.describe_guest(NEW);
    let before = vmm.soft.calls();
    vmm.listener.attach(vmm.space()).expect("all of it is there");
    assert_eq!((vmm.soft.calls().of(MAP), vmm.soft.calls().of(UNMAP)), (before.of(MAP), before.of(UNMAP)));
    assert_eq!(vmm.listener.audit(), []);
}

#[test]
fn entries_of_translated_windows_go_along() {
    let translated = |at: u64| {
        let window = Section::translated("tce", range(0, 256 * MIB), PageSize::K4);
        let target = TargetMemory::new("ram", SystemAddress::new(0), part(at, 0, 64 * MIB)).expect("it fits");
        Update::new().adding(window).adding_target(target)
    };
    let mut old = Vmm::start();
    old.listener.commit(translated(OLD)).expect("the host has room");
    let window = old.listener.translated(Iova::new(0)).expect("in force");
    window.put_run(Iova::new(MIB), SystemAddress::new(0x5000), 3 * K4, RW).expect("there is RAM");
    window.put(Iova::new(3 * MIB), SystemAddress::new(MIB), Access::READ).expect("there is RAM");
    let handover = old.hand_over();
    let mut new = old.successor();
    adopt(new.space().as_ref(), &handover);
    new.listener.commit(translated(NEW)).expect("no space is served");
    new.listener.attach(new.space()).expect("all of it is there");
    let window = new.listener.translated(Iova::new(0)).expect("in force");
    let entry = window.lookup(Iova::new(MIB)).expect("in force").expect("it is live");
    assert_eq!(entry.memory, part(NEW, 0x5000, 3 * K4));
    assert_eq!(window.clear(range(MIB, K4)).expect("one entry of the run"), K4);
    assert_eq!(new.listener.audit(), []);
}

#[test]
fn pages_written_meanwhile_are_reported_to_the_successor() {
    let old = Vmm::with_a_guest();
    old.space().powers().dirty_tracking.start(Arc::new(Told::default())).expect("the kernel logs");
    let handover = old.hand_over();
    let new = old.successor();
    adopt(new.space().as_ref(), &handover);
    let told = Arc::new(Told::default());
    new.space().powers().dirty_tracking.start(told.clone()).expect("the kernel goes on");
    new.space().powers().dirty_tracking.sync(IovaRange::all()).expect("it answers");
    assert!(told.take().contains(&dmaspace_tests::dirty::page_of(&part(NEW, 0, MIB), 0x5000)));
}

#[test]
fn hosts_that_cannot_say_why_before_anything_changes() {
    for (preset, backend, why) in [
        ("vtd", BackendKind::Iommufd, "mappings of files"),
        ("vtd", BackendKind::Type1OnIommufd, "VFIO_UPDATE_VADDR"),
        ("powernv9", BackendKind::Spapr, "belongs to one process"),
        ("pseries", BackendKind::Spapr, "belongs to one process"),
    ] {
        let soft = host(preset);
        let opened = open(&soft, backend);
        let space = opened.space.space();
        assert!(matches!(space.describe().capabilities.hands_over, LiveUpdateSupport::Never(_)), "{backend}");
        let error = space.powers().live_update.hand_over(&NamedMemory::new()).expect_err("it cannot");
        assert!(matches!(error.kind(), Kind::Unsupported(_)) && error.to_string().contains(why), "{error}");
        assert!(!space.powers().live_update.is_handed_over());
    }
}

#[test]
fn memory_without_a_name_and_spaces_with_fences_are_not_handed_over() {
    let vmm = Vmm::with_a_guest();
    let error = vmm.space().powers().live_update.hand_over(&NamedMemory::new()).expect_err("no name");
    assert!(matches!(error.kind(), Kind::NoMemory(_)), "{error}");
    let cause = dmaspace_core::door::Failure::malformed("a test", "a test");
    vmm.space().fence(range(128 * MIB, K4), None, cause);
    let error = vmm.space().powers().live_update.hand_over(&names(OLD)).expect_err("fenced");
    assert_eq!(error.kind(), Kind::Fenced(range(128 * MIB, K4)));
    assert_eq!(vmm.soft.ledger().without_address, 0);
}

#[test]
fn a_group_in_no_container_and_a_backend_that_hands_nothing_over_are_not_inherited() {
    let soft = host("vtd");
    let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
    let open = |path: &str, kind| OwnedHandle::open(soft.clone(), path.as_ref(), kind).expect("it is there");
    let number = soft.profile().groups[0].number;
    for backend in [BackendKind::Type1, BackendKind::Spapr] {
        let container = open("/dev/vfio/vfio", dmaspace_core::door::HandleKind::Container);
        let group = open(&format!("/dev/vfio/{number}"), dmaspace_core::door::HandleKind::Group);
        let error =
            host.inherit(backend, container, vec![("group".into(), group)]).expect_err("nothing was handed over");
        assert!(matches!(error, OpenError::NotInherited { .. } | OpenError::NoChoice { .. }), "{error}");
        assert!(soft.ledger().is_clear());
    }
}

#[test]
fn a_description_is_written_and_read_again() {
    let handover = Vmm::with_a_guest().hand_over();
    let text = serde_json::to_string(&handover).expect("it can be written");
    assert_eq!(serde_json::from_str::<Handover>(&text).expect("it can be read"), handover);
    let error = serde_json::from_str::<Handover>(&text.replace("\"version\":1", "\"version\":2")).expect_err("newer");
    assert!(error.to_string().contains("version 1, found 2"), "{error}");
    let error = serde_json::from_str::<Handover>(&text.replace("read-write", "rwx")).expect_err("no access");
    assert!(error.to_string().contains("rwx"), "{error}");
}

#[test]
fn the_error_of_a_description_is_short_however_long_the_description_is() {
    let text = serde_json::to_string(&Vmm::with_a_guest().hand_over()).expect("it can be written");
    let long = "x".repeat(1 << 20);
    let changes =
        [("\"0x0\"", format!("\"{long}\"")), ("read-write", long.clone()), ("\"first\"", format!("\"{long}\""))];
    for (what, instead) in changes {
        let error = serde_json::from_str::<Handover>(&text.replacen(what, &instead, 1)).expect_err("it makes no sense");
        assert!(error.to_string().len() < 300, "{what}: {error}");
    }
    let escape = serde_json::from_str::<Handover>(&text.replace("read-write", "\\u001b[2J")).expect_err("no access");
    assert!(!escape.to_string().contains('\u{1b}'), "{escape:?}");
}
