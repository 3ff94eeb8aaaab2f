//! Windows that are left to the kernel. The suite's own writer stands in for the kernel.

use std::sync::Arc;

use dmaspace_core::contract::Mapping;
use dmaspace_core::contract::kernel_tables::KernelTables;
use dmaspace_core::error::Kind;
use dmaspace_core::{Access, IovaRange};

use crate::bench::{Bench, WHOLE, range};
use crate::writer::RecordingWriter;

fn tables(bench: &Bench) -> &dyn KernelTables {
    bench.kernel_tables().expect("the case needs tables of the kernel")
}

/// Leaves the window at the base to a writer.
fn leave(bench: &Bench) -> (IovaRange, Arc<RecordingWriter>) {
    let (window, writer) = (bench.window_at_base().range, Arc::new(RecordingWriter::default()));
    tables(bench).hand_to_kernel(window, writer.clone()).expect("nothing is mapped in the window");
    (window, writer)
}

fn entry(bench: &Bench, n: u64) -> Mapping {
    Mapping::new(bench.range(n, 1), bench.ram(n, 1), Access::READ_WRITE, bench.pages())
}

pub(super) fn nothing_is_mapped_in_a_window_of_the_kernel(bench: &mut Bench) {
    let (window, writer) = leave(bench);
    writer.put(entry(bench, 4));
    let refused = Kind::KernelOwned(window);
    bench.refuses(&refused, || bench.map(0, &bench.ram(0, 1), WHOLE));
    bench.refuses(&refused, || bench.replace(4, &bench.ram(0, 1), Access::READ_WRITE));
    bench.refuses(&refused, || bench.unmap(4, 1));
    bench.refuses(&refused, || bench.unmap_range(IovaRange::all()));
}

pub(super) fn a_window_of_the_kernel_is_listed(bench: &mut Bench) {
    assert_eq!(tables(bench).kernel_owned(), []);
    let windows = bench.windows();
    let (window, _) = leave(bench);
    assert_eq!(tables(bench).kernel_owned(), [window]);
    assert_eq!(bench.windows(), windows);
    tables(bench).reclaim(window).expect("the window was left to the kernel");
    assert_eq!(tables(bench).kernel_owned(), []);
}

pub(super) fn a_kernel_owned_window_shows_the_entries_of_the_kernel(bench: &mut Bench) {
    let (_, writer) = leave(bench);
    writer.put(entry(bench, 4));
    let found = bench.lookup(bench.at(4)).expect("the kernel wrote an entry");
    assert_eq!((found.range.first(), found.memory.address()), (bench.at(4), bench.ram(4, 1).address()));
    assert_eq!(bench.lookup(bench.at(5)), None);
    assert_eq!(bench.live(), [entry(bench, 4)]);
    let half = range(bench.at(4), bench.bytes(1) / 2);
    let clipped: Vec<_> = bench.mappings(half).into_iter().map(|mapping| mapping.range).collect();
    assert_eq!(clipped, [half]);
}

pub(super) fn a_reclaimed_window_keeps_the_entries_of_the_kernel(bench: &mut Bench) {
    let (window, writer) = leave(bench);
    writer.put(entry(bench, 4));
    tables(bench).reclaim(window).expect("the window was left to the kernel");
    assert_eq!(bench.live(), [entry(bench, 4)]);
    bench.refuses(&Kind::Overlap(bench.range(4, 1)), || bench.map(4, &bench.ram(0, 1), WHOLE));
    bench.must_map(0, 0, 1, WHOLE);
    assert_eq!(bench.unmap(4, 1).expect("the unit is whole"), bench.bytes(1));
}

pub(super) fn the_kernel_writes_for_every_device(bench: &mut Bench) {
    let (window, writer) = leave(bench);
    assert_eq!(writer.devices(), bench.devices());
    if bench.opens_a_spare() {
        let spare = bench.spare();
        // A host may take one device a space: then the kernel writes for the first alone.
        let _ = bench.attach(&spare);
        assert_eq!(writer.devices(), bench.devices());
    }
    tables(bench).reclaim(window).expect("the window was left to the kernel");
    assert_eq!(writer.devices(), Vec::<String>::new());
}

pub(super) fn a_window_is_left_to_the_kernel_once(bench: &mut Bench) {
    let (window, _) = leave(bench);
    bench.refuses(&Kind::KernelOwned(window), || {
        tables(bench).hand_to_kernel(window, Arc::new(RecordingWriter::default()))
    });
}

pub(super) fn only_an_exact_window_is_left_to_the_kernel(bench: &mut Bench) {
    let part = bench.range(0, 1);
    bench.refuses(&Kind::NoSuchWindow, || tables(bench).hand_to_kernel(part, Arc::new(RecordingWriter::default())));
}

pub(super) fn a_window_with_other_mappings_is_not_left_to_the_kernel(bench: &mut Bench) {
    let (window, writer) = (bench.window_at_base().range, Arc::new(RecordingWriter::default()));
    bench.must_map(4, 4, 1, bench.pages());
    bench.refuses(&Kind::KernelTableDiffers, || tables(bench).hand_to_kernel(window, writer.clone()));
    assert_eq!(writer.devices(), Vec::<String>::new(), "the writer writes for no device");
    writer.put(entry(bench, 4));
    tables(bench).hand_to_kernel(window, writer).expect("the writer knows the mappings");
}

pub(super) fn a_kernel_that_refuses_a_device_gets_no_window(bench: &mut Bench) {
    let (window, writer) = (bench.window_at_base().range, Arc::new(RecordingWriter::default()));
    writer.refuse();
    bench.fails(|| tables(bench).hand_to_kernel(window, writer.clone()));
    assert_eq!(tables(bench).kernel_owned(), []);
    bench.must_map(0, 0, 1, WHOLE);
}

pub(super) fn a_window_of_the_kernel_is_not_removed(bench: &mut Bench) {
    let (window, _) = leave(bench);
    let control = bench.window_control().expect("the case needs window control");
    bench.refuses(&Kind::KernelOwned(window), || control.remove_window(window));
    tables(bench).reclaim(window).expect("the window was left to the kernel");
    control.remove_window(window).expect("the window is the caller's again");
}

pub(super) fn only_a_window_of_the_kernel_is_reclaimed(bench: &mut Bench) {
    let window = bench.window_at_base().range;
    bench.refuses(&Kind::NoSuchWindow, || tables(bench).reclaim(window));
}
