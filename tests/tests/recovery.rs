//! A device that its host has isolated, and how it comes back.

use dmaspace::choose::BackendKind;
use dmaspace_core::contract::MapRequest;
use dmaspace_core::contract::Unit;
use dmaspace_core::contract::eeh::{Eeh, PeOperation, PeState, PeWatch, Reset, Thaw};
use dmaspace_core::error::Kind;
use dmaspace_core::{Access, Iova, PageSize};
use dmaspace_soft::{FaultMode, FaultPlan};
use dmaspace_tests::recovery::no_device_to_recover;
use dmaspace_tests::soft::{host, open, range};

const MIB: u64 = 1 << 20;

#[test]
fn a_frozen_pe_says_so_and_reaches_memory_again_after_its_recovery() {
    [BackendKind::Spapr, BackendKind::SpaprV1].into_iter().for_each(freeze_and_recover);
}

fn freeze_and_recover(backend: BackendKind) {
    let soft = host("powernv9");
    let opened = open(&soft, backend);
    let space = opened.space.space();
    let device = soft.device(opened.devices[0].name()).expect("it is there");
    let memory = dmaspace_tests::ram::Ram::new(1 << 20);
    if let (Some(registration), Some(control)) = (space.powers().registration, space.powers().window_control) {
        registration.register(memory.all()).expect("there is room");
        let request = dmaspace_core::contract::WindowRequest::new(range(0, 64 * MIB), PageSize::K4);
        control.create_window(request).expect("there is a slot");
    }
    space
        .map(MapRequest::new(Iova::new(0), memory.all(), Access::READ_WRITE).with_unit(Unit::Pages(PageSize::K4)))
        .expect("it fits");
    let reaches_memory = || device.dma_write(Iova::new(0), &[1, 2, 3]).is_ok();
    assert!(reaches_memory());

    let eeh = space.powers().eeh.expect("powernv recovers PEs");
    let mut watch = PeWatch::default();
    assert_eq!(watch.look(eeh), Ok(None));
    device.freeze();
    assert_eq!(watch.look(eeh), Ok(Some(PeState::Stopped)));
    assert_eq!(watch.look(eeh), Ok(None));
    assert!(!reaches_memory());
    assert!(PeState::Stopped.answers_all_ones() && PeState::Stopped.to_string().contains("registers read all ones"));

    let steps = [
        (PeOperation::Thaw(Thaw::Mmio), PeState::StoppedDma),
        (PeOperation::Reset(Reset::Hot), PeState::Reset),
        (PeOperation::Reset(Reset::Deactivate), PeState::Normal),
        (PeOperation::Configure, PeState::Normal),
    ];
    for (operation, state) in steps {
        eeh.operate(operation).expect("there is one group");
        assert_eq!((eeh.state(), reaches_memory()), (Ok(state), state == PeState::Normal), "after {operation:?}");
    }
    assert_eq!(watch.look(eeh), Ok(Some(PeState::Normal)));
}

#[test]
fn a_watch_forgets_nothing_when_the_kernel_fails() {
    let soft = host("powernv9");
    let opened = open(&soft, BackendKind::Spapr);
    let eeh = opened.space.space().powers().eeh.expect("powernv recovers PEs");
    let mut watch = PeWatch::default();
    soft.device(opened.devices[0].name()).expect("it is there").freeze();
    soft.plan_faults(&[FaultPlan::nth(1, FaultMode::FailBefore).of("VFIO_EEH_PE_OP")]);
    let error = watch.look(eeh).expect_err("the kernel says no");
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    assert_eq!(watch.look(eeh), Ok(Some(PeState::Stopped)));
}

#[test]
fn an_unknown_state_number_is_an_error() {
    let soft = host("powernv9");
    let opened = open(&soft, BackendKind::Spapr);
    let eeh = opened.space.space().powers().eeh.expect("powernv recovers PEs");
    soft.plan_faults(&[FaultPlan::nth(1, FaultMode::Positive(3)).of("VFIO_EEH_PE_OP")]);
    assert_eq!(eeh.state().expect_err("3 means nothing").kind(), Kind::BadReply);
    soft.plan_faults(&[FaultPlan::nth(1, FaultMode::Positive(3)).of("VFIO_EEH_PE_OP")]);
    eeh.operate(PeOperation::Configure).expect_err("only a state is a positive result");
    assert_eq!(eeh.state(), Ok(PeState::Normal));
}

#[test]
fn with_several_groups_in_a_space_the_pe_is_ambiguous() {
    let soft = host("powernv9");
    let mut opened = open(&soft, BackendKind::Spapr);
    let facts = dmaspace::facts::Facts::of_soft(soft.profile());
    let second = soft.profile().groups[1].devices[0].address.parse().expect("a PCI address");
    let second = opened.space.add(&dmaspace::open::Host::new(soft.clone(), facts), second).expect("powernv shares");
    let eeh = opened.space.space().powers().eeh.expect("powernv recovers PEs");
    soft.reset_calls();
    let error = eeh.state().expect_err("two groups");
    assert!(matches!(error.kind(), Kind::Unsupported(why) if why.contains("several groups")), "{error}");
    assert_eq!(soft.calls().total(), 0);
    drop(second);
}

#[test]
fn a_host_without_recovery_and_a_space_without_a_device_say_so() {
    for (preset, backend) in
        [("pseries", BackendKind::Spapr), ("vtd", BackendKind::Type1), ("vtd", BackendKind::Iommufd)]
    {
        let soft = host(preset);
        let opened = open(&soft, backend);
        let eeh = opened.space.space().powers().eeh;
        assert!(!eeh.is_some_and(Eeh::is_available), "{preset} {backend}");
    }
    let soft = host("powernv9");
    let facts = dmaspace::facts::Facts::of_soft(soft.profile());
    let empty = dmaspace::open::Host::new(soft.clone(), facts).open_space(BackendKind::Spapr).expect("it has it");
    no_device_to_recover(empty.space().powers().eeh.expect("powernv recovers PEs"));
}
