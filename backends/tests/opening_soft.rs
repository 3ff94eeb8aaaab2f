//! Opening on hosts in software: the backend each host should get, and nothing left behind whichever call fails.
#![expect(clippy::expect_used, reason = "a failing arrangement is a failing test")]

use std::sync::Arc;

use dmaspace::door::Errno;
use dmaspace::{BackendKind, Choice, Facts, Host, OpenError, OpenRequest, Opened, PciAddress};
use dmaspace_soft::{FaultMode, FaultPlan, Profile, SoftHost};

fn profiles() -> [Profile; 4] {
    [Profile::vtd(), Profile::powernv9(), Profile::powernv9_64k(), Profile::pseries()]
}

fn boot(profile: &Profile) -> (Arc<SoftHost>, Host) {
    let machine = SoftHost::new(profile.clone()).expect("a preset is a good profile");
    let facts = Facts::of_soft(profile);
    (machine.clone(), Host::new(machine, facts))
}

fn first_device(host: &Host) -> PciAddress {
    *host.facts().devices.keys().next().expect("every preset has a device")
}

/// The backends a host can be opened on.
fn backends(host: &Host) -> Vec<BackendKind> {
    let request = OpenRequest::device(first_device(host));
    let fits =
        |backend: &BackendKind| Choice::of(host.facts(), &request.clone().with_backend(*backend)).chosen.is_some();
    BackendKind::ALL.into_iter().filter(fits).collect()
}

fn open(host: &Host, backend: BackendKind) -> Result<Opened, OpenError> {
    host.open(&OpenRequest::device(first_device(host)).with_backend(backend))
}

/// The number of descriptors of a device. A group in an iommufd in place of a container has one of its own.
fn descriptors(backend: BackendKind) -> usize {
    if backend == BackendKind::Type1OnIommufd { 2 } else { 1 }
}

#[test]
fn each_host_offers_the_backends_of_its_kind_of_machine() {
    for profile in profiles() {
        let (_machine, host) = boot(&profile);
        let expected: &[_] = match profile.name.as_str() {
            "vtd" => &[BackendKind::Iommufd, BackendKind::Type1, BackendKind::Type1OnIommufd],
            _ => &[BackendKind::Spapr, BackendKind::SpaprV1],
        };
        assert_eq!(backends(&host), expected, "{}", profile.name);
    }
}

#[test]
fn an_opened_device_is_closed_when_it_is_dropped() {
    for profile in profiles() {
        let (machine, host) = boot(&profile);
        for backend in backends(&host) {
            let opened = open(&host, backend).expect("nothing fails");
            assert_eq!(opened.space.backend(), backend);
            assert_eq!(machine.ledger().devices, descriptors(backend));
            drop(opened);
            assert!(machine.ledger().is_clear(), "{} on {}: {:?}", backend, profile.name, machine.ledger());
        }
    }
}

#[test]
fn nothing_is_left_after_any_call_fails() {
    for profile in profiles() {
        let (machine, host) = boot(&profile);
        for (backend, mode) in backends(&host)
            .into_iter()
            .flat_map(|backend| [FaultMode::FailBefore, FaultMode::FailAfter].map(|mode| (backend, mode)))
        {
            let mut failures = 0;
            for at in 1.. {
                machine.plan_faults(&[FaultPlan::nth(at, mode)]);
                let result = open(&host, backend);
                failures += usize::from(result.is_err());
                drop(result);
                let ledger = machine.ledger();
                assert!(ledger.is_clear(), "{backend} on {}, call {at} {mode:?}: {ledger:?}", profile.name);
                if machine.faults_fired() == 0 {
                    break;
                }
            }
            assert!(failures >= 5, "{backend} on {}: only {failures} failures of {mode:?} were noticed", profile.name);
        }
    }
}

#[test]
fn a_device_can_leave_and_come_back() {
    for profile in profiles() {
        let (machine, host) = boot(&profile);
        for backend in backends(&host) {
            let Opened { mut devices, mut space, .. } = open(&host, backend).expect("nothing fails");
            let device = devices.pop().expect("one was wished for");
            space.remove(device).expect("nothing fails").expect("it was the last of its group");
            assert_eq!(machine.ledger().devices + machine.ledger().groups, 0);
            let device = space.add(&host, first_device(&host)).expect("and back again");
            drop(space);
            assert_eq!(machine.ledger().devices, descriptors(backend), "the device holds on to its space");
            drop(device);
            assert!(machine.ledger().is_clear());
        }
    }
}

#[test]
fn a_group_in_a_container_stays_there_when_another_space_attaches_it() {
    for profile in profiles() {
        let (_machine, host) = boot(&profile);
        for backend in backends(&host).into_iter().filter(|backend| *backend != BackendKind::Iommufd) {
            let mut opened = open(&host, backend).expect("nothing fails");
            let group = opened.devices[0].group().cloned().expect("a group's device");
            // An open device would keep its group where it is.
            opened.devices.clear();
            let elsewhere = host.open_space(backend).expect("nothing fails");
            for space in [opened.space.space(), elsewhere.space()] {
                let error = space.attach(group.clone()).expect_err("it is in a container");
                assert_eq!(error.errno(), Some(Errno::EINVAL), "{error}");
            }
            let name = first_device(&host).to_string();
            opened.space.open_device(&group, &name).expect("only a group in a container opens its devices");
        }
    }
}

/// POWER hosts that cannot create windows.
fn without_windows() -> [Profile; 3] {
    [Profile::powernv9(), Profile::powernv9_64k(), Profile::pseries()].map(Profile::with_fixed_window)
}

/// The number of times that a container was given an IOMMU driver.
fn drivers_tried(machine: &SoftHost) -> u64 {
    machine.calls().of(SET_IOMMU)
}

const SET_IOMMU: &str = "VFIO_SET_IOMMU";

#[test]
fn a_host_that_refuses_an_advertised_extension_is_opened_the_older_way_with_the_reason() {
    for profile in without_windows() {
        let (machine, host) = boot(&profile);
        let request = OpenRequest::device(first_device(&host));
        assert_eq!(host.choose(&request).chosen, Some(BackendKind::Spapr), "the facts do not tell");
        let opened = host.open(&request).expect("the older way is there");
        assert_eq!(
            (opened.space.backend(), opened.space.space().describe().backend),
            (BackendKind::SpaprV1, "spapr-v1")
        );
        let choice = opened.choice.to_string();
        assert!(choice.starts_with("spapr-v1: the kernel refused a better one\nnot spapr: "), "{choice}");
        assert!(choice.contains("refused it: VFIO_SET_IOMMU: EINVAL"), "{choice}");
        assert_eq!(drivers_tried(&machine), 2);
        drop(opened);
        assert!(machine.ledger().is_clear(), "{}", profile.name);
    }
}

#[test]
fn nothing_is_left_after_any_call_fails_on_the_first_version() {
    for profile in without_windows() {
        for mode in [FaultMode::FailBefore, FaultMode::FailAfter] {
            let (machine, host) = boot(&profile);
            for at in 1.. {
                machine.plan_faults(&[FaultPlan::nth(at, mode)]);
                drop(host.open(&OpenRequest::device(first_device(&host))));
                let ledger = machine.ledger();
                assert!(ledger.is_clear(), "{}, call {at} {mode:?}: {ledger:?}", profile.name);
                if machine.faults_fired() == 0 {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_request_by_name_opens_that_backend_or_none() {
    let (machine, host) = boot(&Profile::powernv9().with_fixed_window());
    let error = open(&host, BackendKind::Spapr).expect_err("it cannot be had");
    assert!(error.to_string().contains("VFIO_SET_IOMMU: EINVAL"), "{error}");
    assert_eq!(drivers_tried(&machine), 1);
    let opened = open(&host, BackendKind::SpaprV1).expect("it is there");
    assert_eq!(opened.choice.reason(), Some("it was requested by name"));
}

#[test]
fn only_a_refusal_leads_on_and_only_once() {
    let refused_with = |errno, at| {
        let (machine, host) = boot(&Profile::powernv9());
        let plan = FaultPlan::nth(1, FaultMode::FailBefore).of(SET_IOMMU).with(errno);
        let again = FaultPlan::nth(at, FaultMode::FailBefore).of(SET_IOMMU).with(errno);
        machine.plan_faults(&[plan, again]);
        let opened = host.open(&OpenRequest::device(first_device(&host)));
        (opened.map(|opened| opened.space.backend()).ok(), drivers_tried(&machine))
    };
    for errno in [Errno::EINVAL, Errno::EPERM] {
        assert_eq!(refused_with(errno, 3), (Some(BackendKind::SpaprV1), 2), "{errno}");
        assert_eq!(refused_with(errno, 2), (None, 2), "{errno}");
    }
    for errno in [Errno::ENODEV, Errno::ENOMEM, Errno::EIO, Errno::EBUSY] {
        assert_eq!(refused_with(errno, 3), (None, 1), "{errno}");
    }
}

#[test]
fn the_older_way_takes_one_group() {
    let (machine, host) = boot(&Profile::powernv9().with_fixed_window());
    let mut devices = host.facts().devices.keys().copied();
    let (first, second) = (devices.next().expect("a device"), devices.next().expect("another"));
    let error = host.open(&OpenRequest::device(first).with_device(second)).expect_err("one group at a time");
    assert!(error.to_string().contains("VFIO_SET_IOMMU: EINVAL"), "{error}");
    assert_eq!(drivers_tried(&machine), 1);
    let mut opened = host.open(&OpenRequest::device(first)).expect("it is there");
    let error = opened.space.add(&host, second).expect_err("it has one group already");
    let expected = "VFIO_GROUP_SET_CONTAINER: EBUSY); give the group a container of its own";
    assert!(error.to_string().contains(expected), "{error}");
    assert_eq!(opened.space.space().describe().devices.len(), 1);
    drop(opened);
    assert!(machine.ledger().is_clear());
}
