//! Memory stays while a device can reach it, whatever safe code does: the ways that compile. The ways that do not
//! compile are in
//! `core/src/soundness.rs`.
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "tests arrange with them")]

use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use dmaspace::BackendKind;
use dmaspace::group::VfioGroup;
use dmaspace_core::contract::live_update::NamedMemory;
use dmaspace_core::contract::{Attachable, MapRequest};
use dmaspace_core::door::{Errno, HandleKind, OwnedHandle};
use dmaspace_core::{Access, HostMemory, Iova, PciAddressSpace};
use dmaspace_soft::{FaultMode, FaultPlan, SoftHost};
use dmaspace_tests::owned::simulated;
use dmaspace_tests::soft::{host, open};

const PAGE: usize = 0x1000;
const AT: Iova = Iova::new(0x10_0000);

/// A page of memory, and whether it is still there.
#[expect(unsafe_code, reason = "UNSAFETY: memory of an owner that the test watches")]
fn watched() -> (HostMemory, Weak<[u8; 2 * PAGE]>) {
    let owner = Arc::new([0; 2 * PAGE]);
    let watch = Arc::downgrade(&owner);
    let base = (owner.as_ptr().addr() + PAGE - 1) & !(PAGE - 1);
    let base = NonNull::new(owner.as_ptr().with_addr(base).cast_mut()).expect("not null");
    let len = NonZeroUsize::new(PAGE).expect("not zero");
    // SAFETY: the page lies in the owner's bytes, which are looked at only through this memory.
    (unsafe { HostMemory::held_by(base, len, owner) }.expect("no wrap"), watch)
}

fn map(space: &dyn PciAddressSpace, memory: &HostMemory) {
    space.map(MapRequest::new(AT, memory, Access::READ_WRITE)).expect("the page fits");
}

#[test]
fn memory_of_a_dropped_hand_over_stays_while_a_duplicate_of_the_container_is_open() {
    let soft = host("vtd");
    let opened = open(&soft, BackendKind::Type1);
    let (memory, watch) = watched();
    let space = opened.space.space().clone();
    map(&*space, &memory);
    // A second process with the same descriptors keeps the container open.
    let fork = soft.fork();
    let container = simulated(&fork, opened.space.handle().expect("a container"));
    space.powers().live_update.hand_over(&NamedMemory::new().with("page", memory.clone())).expect("type1 hands over");
    drop((memory, space, opened));
    // The host in software keeps one for its own device; a real kernel keeps none.
    assert!(watch.strong_count() > 1, "a device may still reach the memory");
    drop(container);
}

#[test]
fn a_device_whose_attach_fails_reaches_nothing_or_is_known_to_the_space() {
    for failures in [1, 20] {
        let soft = host("vtd");
        let opened = open(&soft, BackendKind::Type1);
        let (memory, _watch) = watched();
        let space = opened.space.space().clone();
        map(&*space, &memory);
        let group = Arc::new(VfioGroup::new(second_group(&soft), "other", BackendKind::Type1));
        let info = FaultPlan::nth(2, FaultMode::FailBefore).of("VFIO_IOMMU_GET_INFO");
        let stays = FaultPlan::nth(0, FaultMode::FailBefore).of("VFIO_GROUP_UNSET_CONTAINER").with(Errno::EBUSY);
        let plans: Vec<_> = [info].into_iter().chain((1..=failures).map(|n| stays.later(n))).collect();
        soft.plan_faults(&plans);
        space.attach(group.clone()).expect_err("the windows cannot be read");
        soft.plan_faults(&[]);
        let is_in_a_container = group.is_in_a_container().expect("the kernel answers");
        let is_known = space.describe().devices.contains(&group.name());
        assert_eq!(is_in_a_container, is_known, "after {failures} failures");
    }
}

/// Fails the attach of a second group after it has joined the container, and each of the `failures` first attempts to
/// leave again.
fn plan_a_join_that_fails(soft: &SoftHost, failures: u64) {
    // A container whose driver seems missing is given one, which it refuses.
    let info = FaultPlan::nth(1, FaultMode::FailBefore).of("VFIO_IOMMU_GET_INFO").with(Errno::EINVAL);
    let stays = FaultPlan::nth(0, FaultMode::FailBefore).of("VFIO_GROUP_UNSET_CONTAINER").with(Errno::EBUSY);
    let plans: Vec<_> = [info].into_iter().chain((1..=failures).map(|n| stays.later(n))).collect();
    soft.plan_faults(&plans);
}

fn second_group(soft: &Arc<SoftHost>) -> OwnedHandle {
    let path = format!("/dev/vfio/{}", soft.profile().groups[1].number);
    OwnedHandle::open(soft.clone(), path.as_ref(), HandleKind::Group).expect("the node opens")
}

#[test]
fn a_group_whose_own_attempts_to_leave_fail_is_made_to_leave_by_the_space_or_known_to_it() {
    for (failures, stays) in [(0, false), (2, false), (3, false), (20, true)] {
        let soft = host("vtd");
        let opened = open(&soft, BackendKind::Type1);
        let space = opened.space.space().clone();
        let (memory, watch) = watched();
        map(&*space, &memory);
        let group = Arc::new(VfioGroup::new(second_group(&soft), "other", BackendKind::Type1));
        plan_a_join_that_fails(&soft, failures);
        space.attach(group.clone()).expect_err("the container refuses a second driver");
        soft.plan_faults(&[]);
        let is_known = space.describe().devices.contains(&group.name());
        let is_in_a_container = group.is_in_a_container().expect("the kernel answers");
        assert_eq!((is_in_a_container, is_known), (stays, stays), "after {failures} failures");
        drop((memory, opened));
        assert!(watch.strong_count() > 0, "the page is mapped");
        let attached: Arc<dyn Attachable> = group.clone();
        assert_eq!(space.detach(&attached).is_ok(), stays, "after {failures} failures");
        assert!(!group.is_in_a_container().expect("the kernel answers"));
    }
}

#[test]
fn an_iommufd_device_whose_attach_is_not_taken_back_is_known_to_the_space() {
    for (failures, stays) in [(0, false), (2, false), (20, true)] {
        let soft = host("vtd");
        let mut opened = open(&soft, BackendKind::Iommufd);
        let number = soft.profile().groups[1].devices[0].node.expect("iommufd hosts have nodes");
        let path = format!("/dev/vfio/devices/vfio{number}");
        let node = OwnedHandle::open(soft.clone(), path.as_ref(), HandleKind::Device).expect("the node opens");
        let attach = FaultPlan::nth(0, FaultMode::FailAfter).of("VFIO_DEVICE_ATTACH_IOMMUFD_PT").with(Errno::EIO);
        let stuck = FaultPlan::nth(0, FaultMode::FailBefore).of("VFIO_DEVICE_DETACH_IOMMUFD_PT").with(Errno::EIO);
        // The page table of the first device may not fit the second, which is attached to another one then.
        let attaches = (0..2).map(|n| attach.later(n));
        let plans: Vec<_> = attaches.chain((0..failures).map(|n| stuck.later(n))).collect();
        soft.plan_faults(&plans);
        opened.space.add_device(node, "other").expect_err("the attach fails after its effect");
        soft.plan_faults(&[]);
        assert_eq!(opened.space.space().describe().devices.len(), if stays { 2 } else { 1 }, "{failures} failures");
        for left in opened.space.left_attached() {
            opened.space.detach(&left).expect("the kernel lets it go now");
        }
        drop(opened);
        assert!(soft.ledger().is_clear(), "{:?}", soft.ledger());
    }
}

#[test]
fn a_group_that_stays_after_a_failed_add_can_be_detached_through_the_facade() {
    let soft = host("vtd");
    let mut opened = open(&soft, BackendKind::Type1);
    plan_a_join_that_fails(&soft, 20);
    opened.space.add_group(second_group(&soft), "other").expect_err("the container refuses a second driver");
    soft.plan_faults(&[]);
    assert_eq!(opened.space.space().describe().devices.len(), 2);
    let left = opened.space.left_attached();
    assert_eq!(left.iter().map(|device| device.name()).collect::<Vec<_>>(), ["other"]);
    opened.space.detach(&left[0]).expect("the kernel lets it go now");
    assert_eq!(opened.space.space().describe().devices.len(), 1);
    assert!(opened.space.left_attached().is_empty());
    drop((left, opened));
    assert!(soft.ledger().is_clear(), "{:?}", soft.ledger());
}

#[test]
fn nothing_is_left_attached_by_an_add_that_fails_and_is_undone() {
    let soft = host("vtd");
    let mut opened = open(&soft, BackendKind::Type1);
    plan_a_join_that_fails(&soft, 0);
    opened.space.add_group(second_group(&soft), "other").expect_err("the container refuses a second driver");
    assert!(opened.space.left_attached().is_empty());
}
