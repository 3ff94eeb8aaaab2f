//! Entries that processors put while the listener is at work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dmaspace::choose::BackendKind;
use dmaspace::open::Opened;
use dmaspace_core::error::Kind;
use dmaspace_core::{Access, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{CommitError, EntryError, EntryRun, TranslatedWindow, Update};
use dmaspace_listener::{FrontEnd, Listener, Section};
use dmaspace_soft::{FaultMode, FaultPlan, SoftHost};
use dmaspace_tests::soft::{self, host, memory, range};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 0x1000;
const REMOVE: &str = "VFIO_IOMMU_SPAPR_TCE_REMOVE";
const UNREGISTER: &str = "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY";
const WINDOW: u64 = 64 * MIB;
/// The end of the system memory that is plugged and unplugged, and its size.
const DIMM: u64 = 16 * MIB;

fn open(preset: &str, backend: BackendKind) -> (Arc<SoftHost>, Opened) {
    let soft = host(preset);
    let opened = soft::open(&soft, backend);
    (soft, opened)
}

fn target(at: u64) -> TargetMemory {
    TargetMemory::new("ram", SystemAddress::new(at), memory((1 << 45) + at, DIMM)).expect("a proper range")
}

fn window() -> Section {
    Section::translated("tce", range(0, WINDOW), PageSize::K4)
}

type Verb<'a> = &'a dyn Fn() -> Result<(), EntryError>;

/// A listener with a window and two pieces of target memory, serving these spaces.
fn listener_for(spaces: &[&Opened]) -> Listener {
    let mut listener = Listener::new(FrontEnd::default());
    for opened in spaces {
        listener.attach(opened.space.space().clone()).expect("an empty view fits");
    }
    let update = Update::new().adding(window()).adding_target(target(0)).adding_target(target(DIMM));
    listener.commit(update).expect("it fits");
    listener
}

/// Entries that come and go, all over the window and both pieces of memory, until it is over.
fn busy_processor(handle: &TranslatedWindow, number: u64, over: &AtomicBool) {
    let mut state = number;
    while !over.load(Ordering::Relaxed) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = Iova::new((state >> 20) % (WINDOW / PAGE) * PAGE);
        let target = SystemAddress::new((state >> 40) % (2 * DIMM / PAGE) * PAGE);
        // Whatever is refused is the guest's business.
        let _ = match state >> 62 {
            0 => handle.clear(range(at.get(), PAGE)).map(drop),
            1 => handle.replace(at, target, PAGE, Access::READ_WRITE).map(drop),
            _ => handle.put(at, target, Access::READ),
        };
    }
}

/// ProcessRegistrations `work` while processors put and clear entries.
fn meanwhile(listener: &mut Listener, work: impl FnOnce(&mut Listener)) {
    let handle = listener.translated(Iova::new(0)).expect("it is in force");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 1..=2 {
            let (handle, over) = (handle.clone(), &over);
            scope.spawn(move || busy_processor(&handle, number, over));
        }
        work(listener);
        over.store(true, Ordering::Relaxed);
    });
}

const HOSTS: [(&str, BackendKind); 4] = [
    ("vtd", BackendKind::Type1),
    ("vtd", BackendKind::Iommufd),
    ("powernv9", BackendKind::Spapr),
    ("powernv9", BackendKind::SpaprV1),
];

#[test]
fn no_entry_points_to_memory_that_went() {
    for (preset, backend) in HOSTS {
        let (_soft, opened) = open(preset, backend);
        let mut listener = listener_for(&[&opened]);
        meanwhile(&mut listener, |listener| {
            for _ in 0..50 {
                let handle = listener.translated(Iova::new(0)).expect("it is in force");
                let gone = target(DIMM);
                let result = loop {
                    match listener.commit(Update::new().removing_target(gone.clone())) {
                        Err(CommitError::StillMapped { .. }) => drop(handle.clear(range(0, WINDOW)).expect("whole")),
                        other => break other,
                    }
                };
                result.expect("nothing is in its way");
                assert_eq!(opened.space.space().mapping_onto(gone.memory()), None, "{backend}");
                listener.commit(Update::new().adding_target(gone)).expect("it fits");
            }
        });
    }
}

#[test]
fn no_entry_outlives_its_window() {
    for (preset, backend) in HOSTS {
        let (_soft, opened) = open(preset, backend);
        let mut listener = listener_for(&[&opened]);
        for _ in 0..20 {
            meanwhile(&mut listener, |listener| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                listener.commit(Update::new().removing(window())).expect("it can go");
                assert_eq!(opened.space.space().mappings(IovaRange::all()), [], "{backend}");
            });
            listener.commit(Update::new().adding(window())).expect("it fits");
        }
    }
}

#[test]
fn a_space_that_joins_gets_the_entries_of_the_others() {
    for (preset, backend) in HOSTS {
        let (_soft, early) = open(preset, backend);
        let mut listener = listener_for(&[&early]);
        for _ in 0..10 {
            let (_host, late) = open(preset, backend);
            let live = |opened: &Opened| opened.space.space().mappings(IovaRange::all());
            meanwhile(&mut listener, |listener| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                listener.attach(late.space.space().clone()).expect("it fits there too");
                std::thread::sleep(std::time::Duration::from_millis(1));
            });
            // Thousands, so without their names.
            assert!(live(&early) == live(&late), "{backend}: entries differ");
            listener.detach(late.space.space()).expect("it is one of them");
        }
    }
}

#[test]
fn a_space_that_cannot_leave_keeps_up() {
    let (_soft, early) = open("powernv9", BackendKind::Spapr);
    let (soft, late) = open("powernv9", BackendKind::Spapr);
    let mut listener = listener_for(&[&early, &late]);
    let stuck: Vec<_> = (1..=20).map(|n| FaultPlan::nth(n, FaultMode::FailBefore).of(UNREGISTER)).collect();
    for _ in 0..20 {
        soft.plan_faults(&stuck);
        meanwhile(&mut listener, |listener| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            listener.detach(late.space.space()).expect_err("its memory stays registered");
        });
        soft.plan_faults(&[]);
        let live = |opened: &Opened| opened.space.space().mappings(IovaRange::all());
        assert!(live(&early) == live(&late), "entries differ");
    }
}

#[test]
fn a_window_that_cannot_go_answers_as_ever() {
    let (soft, opened) = open("powernv9", BackendKind::Spapr);
    let mut listener = listener_for(&[&opened]);
    let handle = listener.translated(Iova::new(0)).expect("it is in force");
    let stuck: Vec<_> = (1..=2000).map(|n| FaultPlan::nth(n, FaultMode::FailBefore).of(REMOVE)).collect();
    soft.plan_faults(&stuck);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                handle.lookup(Iova::new(0)).expect("the window is there all the time");
            }
        });
        for _ in 0..50 {
            listener.commit(Update::new().removing(window())).expect_err("it cannot go");
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_verb_that_fails_on_the_second_space_is_taken_back_on_the_first() {
    for (preset, backend) in HOSTS {
        let (_first, early) = open(preset, backend);
        let (soft, late) = open(preset, backend);
        let listener = listener_for(&[&early, &late]);
        let handle = listener.translated(Iova::new(0)).expect("it is in force");
        handle.put_run(Iova::new(0), SystemAddress::new(0), 4 * PAGE, Access::READ).expect("RAM is there");
        let before = early.space.space().mappings(IovaRange::all());
        let (map, unmap) = match backend {
            BackendKind::Iommufd => ("IOMMU_IOAS_MAP", "IOMMU_IOAS_UNMAP"),
            _ => ("VFIO_IOMMU_MAP_DMA", "VFIO_IOMMU_UNMAP_DMA"),
        };
        let apart = [run(MIB, DIMM - PAGE, 1), run(MIB + PAGE, 0, 1), run(3 * MIB, DIMM, 1)];
        let verbs: [(&str, Verb<'_>); 4] = [
            (map, &|| handle.put_many(&apart)),
            (map, &|| handle.put_run(Iova::new(MIB), SystemAddress::new(DIMM - PAGE), 2 * PAGE, Access::READ)),
            (map, &|| handle.replace(Iova::new(0), SystemAddress::new(DIMM), PAGE, Access::READ_WRITE).map(drop)),
            // However often it is asked.
            (unmap, &|| handle.clear(range(0, 2 * PAGE)).map(drop)),
        ];
        for (call, verb) in verbs {
            let last = if call == map { 1 } else { 8 };
            let faults: Vec<_> = (1..=last).map(|n| FaultPlan::nth(n, FaultMode::FailBefore).of(call)).collect();
            soft.plan_faults(&faults);
            let error = verb().expect_err("the call fails there");
            soft.plan_faults(&[]);
            assert!(matches!(error, EntryError::Space(_)), "{error}");
            assert_eq!(early.space.space().mappings(IovaRange::all()), before, "{backend}: {error}");
        }
    }
}

fn run(at: u64, target: u64, pages: u64) -> EntryRun {
    EntryRun { range: range(at, pages * PAGE), target: SystemAddress::new(target), access: Access::READ }
}

#[test]
fn runs_are_put_together_or_not_at_all() {
    for (preset, backend) in HOSTS {
        let (soft, opened) = open(preset, backend);
        let listener = listener_for(&[&opened]);
        let handle = listener.translated(Iova::new(0)).expect("it is in force");
        let space = opened.space.space();
        handle.put(Iova::new(9 * PAGE), SystemAddress::new(0), Access::READ).expect("RAM is there");
        let before = space.mappings(IovaRange::all());
        let good = [run(0, 8 * PAGE, 1), run(PAGE, 9 * PAGE, 2), run(5 * PAGE, DIMM - PAGE, 2)];
        for (bad, kind) in [
            (run(9 * PAGE, 0, 1), Kind::Overlap(range(9 * PAGE, PAGE))),
            (run(2 * PAGE, 0, 1), Kind::Overlap(range(0, 3 * PAGE))),
        ] {
            let error = handle.put_many(&[good[0], good[1], good[2], bad]).expect_err("it overlaps");
            assert!(matches!(&error, EntryError::Space(error) if error.kind() == kind), "{backend}: {error}");
            assert_eq!(space.mappings(IovaRange::all()), before);
        }
        let no_ram = handle.put_many(&[good[0], run(20 * PAGE, 2 * DIMM - PAGE, 2)]);
        assert_eq!(no_ram, Err(EntryError::NotRam(SystemAddress::new(2 * DIMM))));
        let outside = handle.put_many(&[good[0], run(WINDOW, 0, 1)]);
        assert_eq!(outside, Err(EntryError::OutsideWindow(range(WINDOW, PAGE), range(0, WINDOW))));
        for failing in 1..=3 {
            let call = if backend == BackendKind::Iommufd { "IOMMU_IOAS_MAP" } else { "VFIO_IOMMU_MAP_DMA" };
            soft.plan_faults(&[FaultPlan::nth(failing, FaultMode::FailAfter).of(call)]);
            handle.put_many(&good).expect_err("a call fails");
            soft.plan_faults(&[]);
            assert_eq!(space.mappings(IovaRange::all()), before);
        }
        handle.put_many(&good).expect("RAM is there");
        let page = |at: u64| handle.lookup(Iova::new(at)).expect("in force").map(|mapping| mapping.range);
        assert_eq!(page(0), Some(range(0, 3 * PAGE)));
        // Two pieces of memory that continue each other.
        assert_eq!(page(6 * PAGE), Some(range(5 * PAGE, 2 * PAGE)));
        assert_eq!(handle.clear(range(0, WINDOW)), Ok(6 * PAGE));
        handle.put_many(&[]).expect("nothing is asked for");
    }
}
