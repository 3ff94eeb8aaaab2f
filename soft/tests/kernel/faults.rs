//! Every fault, and the sweep that injects it everywhere.

use crate::setting::{GIB, HIGH, MIB, Opened, PAGE, RW, memory};
use dmaspace_core::door::{Door, Errno, HandleKind};
use dmaspace_soft::conformance::Dialect;
use dmaspace_soft::conformance::raw;
use dmaspace_soft::{FaultMode, FaultPlan, Profile, SoftHost};

const MAP: &str = "VFIO_IOMMU_MAP_DMA";
const UNMAP: &str = "VFIO_IOMMU_UNMAP_DMA";

fn inject(host: &SoftHost, mode: FaultMode) {
    host.plan_faults(&[FaultPlan::nth(1, mode).with(Errno::ENOMEM)]);
}

#[test]
fn fail_before_has_no_effect_and_fail_after_has() {
    let opened = Opened::new(Profile::vtd(), Dialect::Type1);
    let (host, ram) = (&*opened.host, memory(PAGE));
    inject(host, FaultMode::FailBefore);
    assert_eq!((opened.map(MIB, &ram), host.ledger().mappings), (Err(Errno::ENOMEM), 0));
    inject(host, FaultMode::FailAfter);
    assert_eq!((opened.map(MIB, &ram), host.ledger().mappings), (Err(Errno::ENOMEM), 1));
    assert_eq!(opened.map(MIB, &ram), Err(Errno::EEXIST), "the fault came once");
    assert_eq!(host.faults_fired(), 1);
}

#[test]
fn a_call_that_fails_after_its_effect_writes_nothing_back() {
    let opened = Opened::new(Profile::powernv9(), Dialect::Spapr);
    let host = &*opened.host;
    host.plan_faults(&[FaultPlan::nth(1, FaultMode::FailAfter).of("VFIO_IOMMU_SPAPR_TCE_CREATE").with(Errno::EFAULT)]);
    assert_eq!(raw::create(host, opened.handle(), 12, GIB, 1), Err(Errno::EFAULT));
    assert_eq!(host.ledger().windows, 2, "it is there, at a place that the caller does not know");
}

#[test]
fn a_result_without_an_effect_can_be_zero_or_positive() {
    let opened = Opened::new(Profile::powernv9(), Dialect::Spapr);
    let (host, ram) = (&*opened.host, memory(PAGE));
    inject(host, FaultMode::Positive(128));
    assert_eq!(raw::register(host, opened.handle(), Some(&ram), PAGE), Ok(128));
    inject(host, FaultMode::ZeroWithoutEffect);
    assert_eq!(raw::register(host, opened.handle(), Some(&ram), PAGE), Ok(0));
    assert_eq!(host.ledger().registrations, 0);
}

#[test]
fn an_unmaps_size_can_be_one_page_short() {
    for (profile, dialect) in [(Profile::vtd(), Dialect::Type1), (Profile::vtd(), Dialect::Ioas)] {
        let opened = Opened::new(profile, dialect);
        let (host, ram) = (&*opened.host, memory(2 * PAGE));
        inject(host, FaultMode::ShortSize);
        raw::map(host, opened.context, MIB, 2 * PAGE, Some(&ram), RW).expect("maps write no size back");
        assert_eq!(host.faults_fired(), 0);
        inject(host, FaultMode::ShortSize);
        assert_eq!(raw::unmap(host, opened.context, MIB, 2 * PAGE), Ok((0, PAGE)));
        assert_eq!((host.ledger().mappings, host.faults_fired()), (0, 1));
    }
}

#[test]
fn an_unmap_can_stop_after_its_first_mapping() {
    for dialect in [Dialect::Type1, Dialect::Ioas] {
        let opened = Opened::new(Profile::vtd(), dialect);
        let (host, ram) = (&*opened.host, memory(PAGE));
        for page in 0..3 {
            raw::map(host, opened.context, MIB + page * PAGE, PAGE, Some(&ram), RW).expect("mapped");
        }
        inject(host, FaultMode::PartialEffect);
        assert_eq!(raw::unmap(host, opened.context, MIB, 3 * PAGE), Err(Errno::ENOMEM));
        assert_eq!(host.ledger().mappings, 2);
    }
}

#[test]
fn spapr_maps_and_unmaps_can_stop_half_way() {
    let opened = Opened::new(Profile::powernv9(), Dialect::Spapr);
    let (host, ram) = (&*opened.host, memory(4 * PAGE));
    raw::register(host, opened.handle(), Some(&ram), 4 * PAGE).expect("registered");
    opened.map(MIB, &ram).expect("mapped");
    inject(host, FaultMode::PartialEffect);
    assert_eq!((opened.map(MIB, &ram), host.ledger().mappings), (Err(Errno::ENOMEM), 2), "two old entries eaten");
    opened.map(MIB, &ram).expect("mapped");
    inject(host, FaultMode::PartialEffect);
    assert_eq!(raw::unmap(host, opened.context, MIB, 4 * PAGE), Err(Errno::ENOMEM));
    assert_eq!(host.ledger().mappings, 2);
}

#[test]
fn a_windows_charge_can_be_leaked() {
    let opened = Opened::new(Profile::powernv9(), Dialect::Spapr);
    let host = &*opened.host;
    raw::remove(host, opened.handle(), 0).expect("not made yet");
    inject(host, FaultMode::PartialEffect);
    assert_eq!(raw::create(host, opened.handle(), 12, GIB, 1), Err(Errno::ENOMEM));
    assert_eq!((host.ledger().windows, host.ledger().leaked), (0, 4 * MIB));
}

#[test]
fn opening_can_fail_and_leaves_nothing_open() {
    let opened = Opened::new(Profile::vtd(), Dialect::Type1);
    let host = &*opened.host;
    let before = host.ledger();
    inject(host, FaultMode::FailBefore);
    assert_eq!(host.open("/dev/vfio/vfio".as_ref(), HandleKind::Container), Err(Errno::ENOMEM));
    for mode in [FaultMode::FailAfter, FaultMode::Positive(1), FaultMode::ZeroWithoutEffect, FaultMode::PartialEffect] {
        inject(host, mode);
        assert_eq!(raw::open_device(host, opened.members[0], "0000:00:03.0"), Err(Errno::ENOMEM));
    }
    assert_eq!(host.ledger(), before);
    assert_eq!(raw::unset_container(host, opened.members[0]), Ok(0), "no device holds it");
}

#[test]
fn calls_are_counted_by_name_and_failures_apart() {
    let opened = Opened::new(Profile::vtd(), Dialect::Type1);
    let (host, ram) = (&*opened.host, memory(PAGE));
    host.reset_calls();
    raw::map(host, opened.context, MIB, PAGE, Some(&ram), RW).expect("mapped");
    raw::map(host, opened.context, MIB, PAGE, Some(&ram), RW).expect_err("mapped already");
    raw::unmap(host, opened.context, MIB, PAGE).expect("mapped");
    let calls = host.calls();
    let counts: Vec<_> = calls.iter().map(|(name, count)| (name, count.made, count.failed)).collect();
    assert_eq!(counts, [(MAP, 2, 1), (UNMAP, 1, 0)]);
    assert_eq!((calls.total(), calls.of(MAP), calls.of("open")), (3, 2, 0));
}

/// Opens a container, and maps a page in a window that it creates.
fn scenario(host: &SoftHost) -> Result<(), Errno> {
    let container = host.open("/dev/vfio/vfio".as_ref(), HandleKind::Container)?;
    let group = host.open("/dev/vfio/0".as_ref(), HandleKind::Group)?;
    raw::set_container(host, group, container)?;
    raw::set_iommu(host, container, dmaspace_abi::vfio::IommuType::SPAPR_TCE_V2)?;
    let ram = memory(PAGE);
    raw::register(host, container, Some(&ram), PAGE)?;
    let (_, high) = raw::create(host, container, 12, GIB, 1)?;
    assert_eq!(high, HIGH);
    raw::map(host, raw::Context::Spapr(container), high, PAGE, Some(&ram), RW).map(|_| ())
}

/// The sweep for any scenario: count its calls, then inject a fault into each in turn, and check that nothing is left.
#[test]
fn every_call_of_a_scenario_can_be_made_to_fail() {
    let clean = SoftHost::new(Profile::powernv9()).expect("sound");
    scenario(&clean).expect("without a fault");
    let calls = clean.calls().total();
    assert_eq!(calls, 7);
    for at in 1..=calls {
        for mode in [FaultMode::FailBefore, FaultMode::FailAfter, FaultMode::PartialEffect] {
            let host = SoftHost::new(Profile::powernv9()).expect("sound");
            let process = host.fork();
            process.plan_faults(&[FaultPlan::nth(at, mode)]);
            assert_eq!(scenario(&process), Err(Errno::EIO), "call {at}, {mode:?}");
            drop(process);
            assert!(host.ledger().is_clear(), "call {at}, {mode:?}");
        }
    }
}
