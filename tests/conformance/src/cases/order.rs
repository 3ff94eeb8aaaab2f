//! The order of errors: of a request that is wrong in two ways, the first error of the list in the contract is the
//! answer.

use std::sync::Arc;

use dmaspace_core::contract::Unit;
use dmaspace_core::error::{Kind, Operation, Subject};
use dmaspace_core::words::address::BadRange;
use dmaspace_core::{Access, Iova, PageSize};

use crate::bench::{Bench, WHOLE};
use crate::memory::watched;
use crate::writer::RecordingWriter;

fn half_a_granule_after(bench: &Bench, at: Iova) -> Iova {
    Iova::new(at.get() + bench.granule().bytes() / 2)
}

fn too_small(bench: &Bench) -> PageSize {
    PageSize::from_shift(bench.granule().shift() - 1).expect("half a granule is a power of two")
}

pub(super) fn a_bad_range_comes_before_missing_access(bench: &mut Bench) {
    let overflow = Kind::BadRange(BadRange::Overflow);
    let last = Iova::new(u64::MAX - bench.bytes(1) + 1);
    bench.refuses(&overflow, || bench.map_with(last, &bench.ram(0, 2), Access::empty(), WHOLE));
}

pub(super) fn missing_access_comes_before_memory_that_is_only_readable(bench: &mut Bench) {
    let memory = bench.ram(0, 1).host_read_only();
    bench.refuses(&Kind::NoAccess, || bench.map_with(bench.at(0), &memory, Access::empty(), WHOLE));
}

pub(super) fn memory_that_is_only_readable_comes_before_unbacked_memory(bench: &mut Bench) {
    let memory = bench.unbacked().host_read_only().device_memory();
    bench.refuses(&Kind::HostReadOnly(Access::READ_WRITE), || bench.map(0, &memory, WHOLE));
}

pub(super) fn unbacked_memory_comes_before_device_memory(bench: &mut Bench) {
    bench.refuses(&Kind::Unbacked, || bench.map(0, &bench.unbacked().device_memory(), WHOLE));
}

pub(super) fn device_memory_comes_before_a_fence(bench: &mut Bench) {
    bench.fence(2, 0);
    bench.refuses(&Kind::DeviceMemory, || bench.map(2, &bench.ram(1, 1).device_memory(), WHOLE));
}

pub(super) fn a_fence_comes_before_the_windows(bench: &mut Bench) {
    bench.fence(0, 0);
    let fence = Kind::Fenced(bench.range(0, 1));
    let misaligned = half_a_granule_after(bench, bench.at(0));
    bench.refuses(&fence, || bench.map_with(misaligned, &bench.ram(1, 1), Access::READ_WRITE, WHOLE));
    if let Some(below) = bench.at(0).get().checked_sub(bench.bytes(1)) {
        bench.refuses(&fence, || bench.map_with(Iova::new(below), &bench.ram(1, 2), Access::READ_WRITE, WHOLE));
    }
}

pub(super) fn the_windows_come_before_alignment(bench: &mut Bench) {
    let top = bench.top();
    if top.get().checked_add(bench.bytes(2)).is_none() {
        return;
    }
    let at = half_a_granule_after(bench, bench.top_unit().first());
    let outside = Kind::OutsideWindows(Some(top));
    bench.refuses(&outside, || bench.map_with(at, &bench.ram(0, 2), Access::READ_WRITE, WHOLE));
}

pub(super) fn the_windows_come_before_a_window_of_the_kernel(bench: &mut Bench) {
    let window = bench.window_at_base().range;
    let tables = bench.kernel_tables().expect("the case needs tables of the kernel");
    tables.hand_to_kernel(window, Arc::new(RecordingWriter::default())).expect("nothing is mapped in the window");
    let last = Iova::new(window.last().get() - (bench.bytes(1) - 1));
    let outside = Kind::OutsideWindows(Some(bench.top()));
    bench.refuses(&outside, || bench.map_with(last, &bench.ram(0, 2), Access::READ_WRITE, WHOLE));
}

pub(super) fn a_window_of_the_kernel_comes_before_alignment(bench: &mut Bench) {
    let window = bench.window_at_base().range;
    let tables = bench.kernel_tables().expect("the case needs tables of the kernel");
    tables.hand_to_kernel(window, Arc::new(RecordingWriter::default())).expect("nothing is mapped in the window");
    let at = half_a_granule_after(bench, bench.at(0));
    bench.refuses(&Kind::KernelOwned(window), || bench.map_with(at, &bench.ram(0, 1), Access::READ_WRITE, WHOLE));
}

pub(super) fn alignment_comes_before_the_unit(bench: &mut Bench) {
    let at = half_a_granule_after(bench, bench.at(0));
    let small = Unit::Pages(too_small(bench));
    let misaligned = Kind::Misaligned(bench.granule());
    bench.refuses(&misaligned, || bench.map_with(at, &bench.ram(0, 1), Access::READ_WRITE, small));
}

pub(super) fn the_unit_comes_before_an_overlap(bench: &mut Bench) {
    bench.must_map(0, 0, 1, WHOLE);
    let small = too_small(bench);
    bench.refuses(&Kind::BadUnit(small), || bench.map(0, &bench.ram(1, 1), Unit::Pages(small)));
}

pub(super) fn an_overlap_comes_before_registration(bench: &mut Bench) {
    bench.must_map(0, 0, 1, bench.pages());
    let (unregistered, _watch) = watched(bench.bytes(1), bench.unit());
    bench.refuses(&Kind::Overlap(bench.range(0, 1)), || bench.map(0, &unregistered, WHOLE));
}

pub(super) fn a_refusal_names_the_request_and_no_call(bench: &mut Bench) {
    bench.must_map(4, 0, 1, WHOLE);
    let error = bench.map(4, &bench.ram(1, 1), WHOLE).expect_err("the unit is mapped");
    assert_eq!((error.operation(), error.subject()), (Operation::Map, &Subject::Range(bench.range(4, 1))));
    assert_eq!((error.failure(), error.fenced().to_vec()), (None, vec![]));
}
