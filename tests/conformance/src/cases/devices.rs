//! Attaching and detaching devices.

use dmaspace_core::error::{Error, Kind};
use dmaspace_core::{Access, Iova};

use crate::bench::{Bench, WHOLE};
use crate::hooks::Call;

pub(super) fn the_attached_device_is_listed(bench: &mut Bench) {
    assert_eq!(bench.devices(), [bench.device().name()]);
}

pub(super) fn a_device_that_is_not_attached_is_not_detached(bench: &mut Bench) {
    let spare = bench.spare();
    bench.refuses(&Kind::NotAttached, || bench.detach(&spare));
}

pub(super) fn a_device_can_return(bench: &mut Bench) {
    bench.close_device();
    let device = bench.device();
    for _ in 0..2 {
        bench.detach(&device).expect("the device is attached");
        assert_eq!(bench.devices(), Vec::<String>::new());
        bench.attach(&device).expect("the device is free");
        assert_eq!(bench.devices(), [device.name()]);
    }
}

pub(super) fn a_change_of_devices_tells_the_windows_before_and_after(bench: &mut Bench) {
    bench.close_device();
    let device = bench.device();
    let before = bench.windows();
    let left = bench.detach(&device).expect("the device is attached");
    assert_eq!((&left.before, &left.after), (&before, &bench.windows()));
    let came = bench.attach(&device).expect("the device is free");
    assert_eq!((&came.before, &came.after), (&left.after, &bench.windows()));
    for change in [left, came] {
        let grew = change.after.generation > change.before.generation;
        assert_eq!(grew, change.after.windows != change.before.windows, "{change:?}");
    }
}

pub(super) fn mappings_stay_when_a_second_device_is_attached_and_detached(bench: &mut Bench) {
    bench.must_map(2, 2, 2, bench.pages());
    let (live, spare) = (bench.live(), bench.spare());
    bench.attach(&spare).expect("the second device fits");
    assert_eq!((bench.live(), bench.fences()), (live.clone(), vec![]));
    bench.detach(&spare).expect("the device is attached");
    assert_eq!((bench.live(), bench.fences()), (live, vec![]));
}

pub(super) fn devices_are_listed_in_the_order_they_came(bench: &mut Bench) {
    let (first, spare) = (bench.device(), bench.spare());
    bench.attach(&spare).expect("the second device fits");
    assert_eq!(bench.devices(), [first.name(), spare.name()]);
    bench.close_device();
    bench.detach(&first).expect("the device is attached");
    assert_eq!(bench.devices(), [spare.name()]);
}

pub(super) fn an_attach_that_would_strand_a_mapping_is_undone(bench: &mut Bench) {
    let hole = bench.device_hole().expect("the case needs windows of the device");
    let at: Iova = hole.first();
    bench.map_with(at, &bench.ram(0, 1), Access::READ_WRITE, WHOLE).expect("no device is attached");
    let (before, device) = (bench.state(), bench.device());
    let error: Error = bench.attach(&device).expect_err("a mapping is in the way");
    assert!(matches!(&error.kind(), Kind::WouldStrand(live, _) if *live == hole), "{error}");
    assert_eq!(error.fenced(), [], "{error}");
    assert_eq!(bench.state(), before);
    bench.unmap_range(hole).expect("the unit is whole");
    bench.attach(&device).expect("nothing is in the way");
    assert_eq!(bench.live(), []);
}

pub(super) fn an_attach_that_fails_changes_nothing(bench: &mut Bench) {
    bench.must_map(2, 2, 2, bench.pages());
    let spare = bench.spare();
    bench.fail_next(Call::Attach);
    bench.fails(|| bench.attach(&spare));
    bench.attach(&spare).expect("the call succeeds again");
}

pub(super) fn a_detach_that_fails_changes_nothing(bench: &mut Bench) {
    let spare = bench.spare();
    bench.attach(&spare).expect("the second device fits");
    bench.must_map(2, 2, 2, bench.pages());
    bench.fail_always(Call::Detach);
    bench.fails(|| bench.detach(&spare));
    bench.mend();
    bench.detach(&spare).expect("the call succeeds again");
}
