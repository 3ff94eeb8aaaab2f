//! Calls that fail: after an error everything is as it was.

use dmaspace_core::error::{Kind, Operation, Subject};

use crate::bench::{Bench, WHOLE};
use crate::hooks::Call;

pub(super) fn a_map_that_fails_changes_nothing(bench: &mut Bench) {
    bench.must_map(0, 0, 1, WHOLE);
    for unit in [WHOLE, bench.pages()] {
        bench.fail_next(Call::Map);
        bench.fails(|| bench.map(4, &bench.ram(4, 2), unit));
    }
    bench.must_map(4, 4, 2, WHOLE);
}

pub(super) fn a_map_that_fails_in_the_middle_leaves_nothing(bench: &mut Bench) {
    for skipped in 1..4 {
        bench.fail(Call::Map, skipped, 1);
        bench.fails(|| bench.map(4, &bench.ram(4, 4), bench.pages()));
        bench.mend();
    }
    bench.must_map(4, 4, 4, WHOLE);
}

pub(super) fn an_error_names_operation_range_and_call(bench: &mut Bench) {
    bench.fail_next(Call::Map);
    let error = bench.fails(|| bench.map(4, &bench.ram(4, 2), WHOLE));
    assert_eq!((error.operation(), error.subject()), (Operation::Map, &Subject::Range(bench.range(4, 2))));
    assert_eq!(error.kind(), Kind::Refused, "{error}");
}

pub(super) fn a_device_reaches_nothing_after_a_map_that_failed(bench: &mut Bench) {
    bench.map_scratch();
    bench.fail(Call::Map, 2, 1);
    bench.fails(|| bench.map(4, &bench.ram(4, 4), bench.pages()));
    for n in 4..8 {
        bench.assert_not_writable(bench.at(n), &bench.ram(n, 1));
    }
}

pub(super) fn an_unmap_that_fails_once_is_tried_again(bench: &mut Bench) {
    bench.must_map(4, 4, 2, WHOLE);
    bench.fail_next(Call::Unmap);
    assert_eq!(bench.unmap(4, 2).expect("one failure is no reason to give up"), bench.bytes(2));
    assert_eq!((bench.live(), bench.fences()), (vec![], vec![]));
}
