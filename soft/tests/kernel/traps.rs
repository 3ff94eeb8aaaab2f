//! The kernel behaviours that cost other libraries memory or data, one test each. K1, lost dirty pages, is in the tests
//! of dirty tracking.

use crate::setting::{GIB, HIGH, MIB, Opened, PAGE, RW, memory, unbacked};
use dmaspace_abi::vfio::{self, UnmapDma};
use dmaspace_core::Iova;
use dmaspace_core::door::{Command, Errno};
use dmaspace_soft::conformance::Dialect;
use dmaspace_soft::conformance::raw;
use dmaspace_soft::{DmaError, FaultMode, FaultPlan, Profile};
use zerocopy::IntoBytes;

#[test]
fn k2_unregistering_under_live_entries_says_yes_and_leaks_the_pins() {
    for profile in [Profile::powernv9(), Profile::pseries()] {
        let opened = Opened::new(profile, Dialect::Spapr);
        let (host, container) = (&*opened.host, opened.handle());
        let ram = memory(2 * PAGE);
        let page = ram.slice(0, PAGE).expect("half of it");
        raw::register(host, container, Some(&page), PAGE).expect("registered");
        let without = host.ledger().locked;
        assert_eq!(raw::map(host, opened.context, MIB, PAGE, Some(&page), RW), Ok(0));
        let locked = host.ledger().locked;

        assert_eq!(raw::unregister(host, container, Some(&page), PAGE), Ok(0));
        assert_eq!(host.ledger().locked, locked, "still locked");
        assert_eq!(host.ledger().leaked, PAGE);
        assert_eq!(raw::unregister(host, container, Some(&page), PAGE), Err(Errno::ENOENT));
        assert_eq!(raw::register(host, container, Some(&ram), 2 * PAGE), Err(Errno::EINVAL));
        assert_eq!(raw::map(host, opened.context, 2 * MIB, PAGE, Some(&page), RW), Ok(0), "still mappable");

        opened.close();
        let ledger = host.ledger();
        assert_eq!(
            (ledger.locked, ledger.leaked, ledger.mappings),
            (PAGE, PAGE, 0),
            "for as long as the process lives"
        );
        assert!(without < locked, "the default window's table was charged too");
    }
}

#[test]
fn k3_registering_over_a_hole_answers_with_the_pages_before_it() {
    let opened = Opened::new(Profile::powernv9(), Dialect::Spapr);
    let (host, container) = (&*opened.host, opened.handle());
    let half = unbacked(GIB, 128 * PAGE);
    assert_eq!(raw::register(host, container, Some(&half), 256 * PAGE), Ok(128));
    assert_eq!(host.ledger().registrations, 0);
    assert_eq!(host.ledger().locked, 0);
    assert_eq!(raw::map(host, opened.context, MIB, PAGE, Some(&half), RW), Err(Errno::EPERM), "not even enabled");
}

#[test]
fn k3_only_the_last_round_of_pins_is_answered_and_none_is_an_error() {
    const ROUND: u64 = 1 << 21;
    let opened = Opened::new(Profile::powernv9(), Dialect::Spapr);
    let (host, container) = (&*opened.host, opened.handle());
    let register = |there: u64| {
        let memory = unbacked(GIB, there * PAGE);
        raw::register(host, container, Some(&memory), 4 * ROUND * PAGE)
    };
    assert_eq!(register(ROUND + 5), Ok(5));
    assert_eq!(register(2 * ROUND), Err(Errno::EFAULT));
}

#[test]
fn k4_any_address_in_a_window_removes_it() {
    let opened = Opened::new(Profile::powernv9(), Dialect::Spapr);
    let (host, container) = (&*opened.host, opened.handle());
    assert_eq!(raw::create(host, container, 16, 64 * GIB, 1), Ok((0, HIGH)));
    assert_eq!(host.ledger().windows, 2);
    assert_eq!(raw::remove(host, container, 0x12_3000), Ok(0));
    assert_eq!(raw::remove(host, container, HIGH + 7), Ok(0));
    assert_eq!(host.ledger().windows, 0);
}

#[test]
fn k5_a_failed_batch_eats_old_entries() {
    let opened = Opened::new(Profile::powernv9(), Dialect::Spapr);
    let (host, container, context) = (&*opened.host, opened.handle(), opened.context);
    let ram = memory(3 * PAGE);
    let (first, both) = (ram.slice(0, PAGE).expect("a page"), ram.slice(0, 2 * PAGE).expect("two"));
    raw::register(host, container, Some(&both), 2 * PAGE).expect("registered");
    raw::map(host, context, MIB, PAGE, Some(&first), RW).expect("an old entry");

    assert_eq!(
        raw::map(host, context, MIB, 3 * PAGE, Some(&ram), RW),
        Err(Errno::EINVAL),
        "the third is not registered"
    );
    assert_eq!(host.ledger().mappings, 0, "the old entry is gone");
    let fault = opened.device().dma_read(Iova::new(MIB), &mut [0]).expect_err("it would read nothing");
    assert_eq!(fault.why, DmaError::NotMapped);
    assert_eq!(raw::unregister(host, container, Some(&both), 2 * PAGE), Ok(0));
    assert_eq!(host.ledger().leaked, 0, "nothing leans on it any more");
}

#[test]
fn k6_an_unmap_that_cuts_has_removed_the_mappings_before() {
    let opened = Opened::new(Profile::vtd(), Dialect::Ioas);
    let (host, context) = (&*opened.host, opened.context);
    let ram = memory(2 * PAGE);
    raw::map(host, context, MIB, PAGE, Some(&ram), RW).expect("one");
    raw::map(host, context, MIB + PAGE, 2 * PAGE, Some(&ram), RW).expect("the next");
    assert_eq!(raw::unmap(host, context, MIB, 2 * PAGE), Err(Errno::ENOENT));
    assert_eq!((host.ledger().mappings, host.ledger().mapped), (1, 2 * PAGE));
}

#[test]
fn k7_errno_is_no_contract() {
    // Look-ups inside the kernel can fail for lack of memory and answer ENOENT, which then does not mean "not there".
    let opened = Opened::new(Profile::vtd(), Dialect::Ioas);
    let host = &*opened.host;
    let ram = memory(PAGE);
    for errno in [Errno::ENOENT, Errno::EFAULT, Errno::EINVAL, Errno::ENOMEM] {
        host.plan_faults(&[FaultPlan::nth(1, FaultMode::FailBefore).with(errno)]);
        assert_eq!(raw::map(host, opened.context, MIB, PAGE, Some(&ram), RW), Err(errno));
        assert_eq!(host.ledger().mappings, 0);
    }
    assert_eq!(raw::map(host, opened.context, MIB, PAGE, Some(&ram), RW), Ok(0));
}

#[test]
fn k8_a_map_that_ran_out_of_memory_leaves_entries_that_later_maps_do_not_replace() {
    let opened = Opened::new(Profile::vtd(), Dialect::Type1);
    let (host, context, device) = (&*opened.host, opened.context, opened.device());
    let (old, new) = (memory(2 * PAGE), memory(2 * PAGE));
    host.plan_faults(&[FaultPlan::nth(1, FaultMode::PartialEffect).with(Errno::ENOMEM)]);
    assert_eq!(raw::map(host, context, MIB, 2 * PAGE, Some(&old), RW), Err(Errno::ENOMEM));
    assert_eq!((host.ledger().locked, host.ledger().mappings), (0, 0), "as far as the ledger counts");

    assert_eq!(raw::map(host, context, MIB, 2 * PAGE, Some(&new), RW), Ok(0));
    device.dma_write(Iova::new(MIB), &[7]).expect("it reaches something");
    let mut byte = [0];
    old.read(0, &mut byte).expect("still there");
    assert_eq!(byte, [7], "the old memory");
    device.dma_write(Iova::new(MIB + PAGE), &[8]).expect("the other half was not left behind");
    new.read(PAGE, &mut byte).expect("there");
    assert_eq!(byte, [8]);

    raw::unmap(host, context, MIB, 2 * PAGE).expect("whole");
    assert!(device.dma_read(Iova::new(MIB), &mut byte).is_err(), "an unmap clears it");
}

#[test]
fn k9_success_with_size_zero_and_a_map_that_exists_mean_stale_memory() {
    let opened = Opened::new(Profile::vtd(), Dialect::Type1V1);
    let (host, context, device) = (&*opened.host, opened.context, opened.device());
    let (old, new) = (memory(2 * PAGE), memory(PAGE));
    raw::map(host, context, MIB, 2 * PAGE, Some(&old), RW).expect("mapped");
    assert_eq!(raw::unmap(host, context, MIB + PAGE, PAGE), Ok((0, 0)), "success, and nothing was unmapped");
    assert_eq!(raw::map(host, context, MIB + PAGE, PAGE, Some(&new), RW), Err(Errno::EEXIST));
    device.dma_write(Iova::new(MIB + PAGE), &[7]).expect("mapped all along");
    let mut byte = [0];
    old.read(PAGE, &mut byte).expect("there");
    assert_eq!(byte, [7]);
}

#[test]
fn k10_the_size_an_unmap_writes_back_is_in_the_arguments_bytes() {
    use dmaspace_core::door::Door;

    let opened = Opened::new(Profile::vtd(), Dialect::Type1);
    let ram = memory(PAGE);
    raw::map(&*opened.host, opened.context, MIB, PAGE, Some(&ram), RW).expect("mapped");
    let mut unmap = UnmapDma { argsz: UnmapDma::SIZE, flags: 0, iova: MIB, size: 16 * PAGE };
    let mut command = Command::with_bytes(vfio::UNMAP_DMA, unmap.as_mut_bytes());
    assert_eq!(opened.host.ioctl(opened.handle(), &mut command), Ok(0));
    assert_eq!(unmap.size, PAGE);
}
