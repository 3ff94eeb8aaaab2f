//! Dirty tracking above a real backend: how many calls it takes, and who is tracked when spaces come and go.

use dmaspace_core::contract::MapRequest;
use std::collections::BTreeSet;
use std::sync::Arc;

use dmaspace::choose::BackendKind;
use dmaspace_core::contract::dirty::Precision;
use dmaspace_core::error::Kind;
use dmaspace_core::{Access, Iova, IovaRange, PageSize};
use dmaspace_listener::Listener;
use dmaspace_listener::Update;
use dmaspace_listener::section::FrontEnd;
use dmaspace_soft::{FaultMode, FaultPlan};
use dmaspace_tests::dirty::Told;
use dmaspace_tests::soft::{host, memory, open, ram, range};

const PAGE: u64 = 0x1000;
const MIB: u64 = 1 << 20;
const DIRTY: &str = "VFIO_IOMMU_DIRTY_PAGES";
const UNMAP: &str = "VFIO_IOMMU_UNMAP_DMA";

fn pages(first: u64, count: u64) -> BTreeSet<u64> {
    (first / PAGE..first / PAGE + count).collect()
}

#[test]
fn sixty_thousand_scattered_mappings_are_asked_about_unmapped_and_torn_down_in_one_call_each() {
    const COUNT: u64 = 60_000;
    let (soft, told) = (host("vtd"), Arc::new(Told::default()));
    let opened = open(&soft, BackendKind::Type1);
    let space = opened.space.space();
    let scatter = || {
        for n in 0..COUNT {
            let memory = memory((1 << 45) + n * PAGE, PAGE);
            space.map(MapRequest::new(Iova::new(n * 2 * PAGE), &memory, Access::READ_WRITE)).expect("there is room");
        }
    };
    scatter();
    space.powers().dirty_tracking.start(told.clone()).expect("it logs");
    soft.reset_calls();
    let synced = space.powers().dirty_tracking.sync(IovaRange::all()).expect("it answers");
    assert_eq!((synced.bytes, synced.precision), (COUNT * PAGE, Precision::Pages(PageSize::K4)));
    assert_eq!(told.take(), pages(1 << 45, COUNT));
    assert_eq!((soft.calls().of(DIRTY), soft.calls().total()), (1, 1));

    soft.reset_calls();
    assert_eq!(space.unmap(IovaRange::all()).expect("whole mappings"), COUNT * PAGE);
    assert_eq!((soft.calls().of(UNMAP), soft.calls().total()), (1, 1));
    assert_eq!(told.take(), pages(1 << 45, COUNT));

    scatter();
    soft.reset_calls();
    drop(opened);
    assert_eq!(soft.calls().of(UNMAP), 1);
    assert!(soft.ledger().is_clear(), "{:?}", soft.ledger());
}

#[test]
fn mappings_on_both_sides_of_a_hole_go_in_one_call() {
    for backend in [BackendKind::Type1, BackendKind::Iommufd] {
        let soft = host("vtd");
        let opened = open(&soft, backend);
        let mut listener = Listener::new(FrontEnd::default());
        listener.attach(opened.space.space().clone()).expect("an empty view fits");
        let update = Update::new().adding(ram(0, 1 << 40, MIB)).adding(ram(1 << 32, 1 << 41, MIB));
        listener.commit(update).expect("it fits");
        soft.reset_calls();
        assert_eq!(opened.space.space().unmap(IovaRange::all()).expect("whole mappings"), 2 * MIB);
        assert_eq!(soft.calls().total(), 1, "{backend}");
    }
}

#[test]
fn spaces_that_come_and_go_are_tracked_while_they_are_there() {
    let (soft, told) = (host("vtd"), Arc::new(Told::default()));
    let early = open(&soft, BackendKind::Type1);
    let late = soft_space(&soft);
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(early.space.space().clone()).expect("an empty view fits");
    listener.commit(Update::new().adding(ram(0, 1 << 40, MIB))).expect("it fits");
    assert_eq!(listener.track_dirty(told.clone()).expect("it logs"), [Precision::Pages(PageSize::K4)]);

    listener.attach(late.clone()).expect("it fits");
    assert_eq!(listener.sync_dirty().expect("both answer").len(), 2);
    assert_eq!(told.take(), pages(1 << 40, MIB / PAGE));
    assert_eq!(late.powers().dirty_tracking.start(told.clone()).expect_err("it is tracked").kind(), Kind::Tracking);

    listener.detach(&late).expect("everything can be taken out");
    assert_eq!(told.take(), pages(1 << 40, MIB / PAGE));
    assert_eq!(late.powers().dirty_tracking.stop().expect_err("it left").kind(), Kind::NotTracking);
    assert_eq!(listener.sync_dirty().expect("it answers").len(), 1);
}

/// A second space on the same host, without a device: its IOAS takes mappings all the same.
fn soft_space(soft: &Arc<dmaspace_soft::SoftHost>) -> Arc<dyn dmaspace_core::PciAddressSpace> {
    let facts = dmaspace::facts::Facts::of_soft(soft.profile());
    let host = dmaspace::open::Host::new(soft.clone(), facts);
    host.open_space(BackendKind::Iommufd).expect("the soft host has iommufd").space().clone()
}

#[test]
fn a_space_that_cannot_be_tracked_leaves_the_others_untracked() {
    let soft = host("vtd");
    let early = open(&soft, BackendKind::Iommufd);
    let (second, told) = (soft_space(&soft), Arc::new(Told::default()));
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(early.space.space().clone()).expect("an empty view fits");
    listener.attach(second.clone()).expect("an empty view fits");
    second.powers().dirty_tracking.start(told.clone()).expect("on the second space");
    assert_eq!(listener.track_dirty(told.clone()).expect_err("it is tracked").kind(), Kind::Tracking);
    assert_eq!(early.space.space().powers().dirty_tracking.stop().expect_err("left alone").kind(), Kind::NotTracking);
    second.powers().dirty_tracking.stop().expect("it is tracked");
    listener.track_dirty(told).expect("nothing is in its way");
}

#[test]
fn a_question_that_fails_tells_everything_and_the_next_one_is_asked_all_the_same() {
    let (soft, told) = (host("vtd"), Arc::new(Told::default()));
    let opened = open(&soft, BackendKind::Type1);
    let space = opened.space.space();
    for (at, host) in [(0, 1 << 40), (1 << 32, 1 << 41)] {
        space.map(MapRequest::new(Iova::new(at), &memory(host, MIB), Access::READ_WRITE)).expect("there is room");
    }
    space.powers().dirty_tracking.start(told.clone()).expect("it logs");
    soft.plan_faults(&[FaultPlan::nth(1, FaultMode::FailAfter).of(DIRTY)]);
    let error = space.powers().dirty_tracking.sync(range(0, 1 << 33)).expect_err("the first of two windows");
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    assert_eq!(told.take(), &pages(1 << 40, MIB / PAGE) | &pages(1 << 41, MIB / PAGE));
}
