//! Dirty tracking.

use crate::guest::{MIB, detach, range, with_flat_map, with_two_devices, with_writes};
use crate::host_configs::SHARING;
use dmaspace_tests::faults::{Sequence, done};

pub(super) const SEQUENCES: &[Sequence] = &[
    Sequence { name: "track_writes", on: SHARING, arrange: with_two_devices, operate: |world| world.track() },
    Sequence { name: "ask_for_writes", on: SHARING, arrange: with_writes, operate: |world| world.sync() },
    Sequence {
        name: "track_writes_no_more",
        on: SHARING,
        arrange: |world| {
            with_two_devices(world);
            world.track().expect("undisturbed");
        },
        operate: |world| {
            world.space(0).powers().dirty_tracking.stop()?;
            done()
        },
    },
    Sequence {
        name: "unmap_while_writes_are_tracked",
        on: SHARING,
        arrange: with_writes,
        operate: |world| {
            world.space(0).unmap(range(0, 1024 * MIB))?;
            done()
        },
    },
    Sequence {
        name: "attach_while_writes_are_tracked",
        on: SHARING,
        arrange: |world| {
            with_flat_map(world);
            world.track().expect("undisturbed");
        },
        operate: |world| world.add(0, 2).and_then(|()| done()),
    },
    Sequence {
        name: "detach_while_writes_are_tracked",
        on: SHARING,
        arrange: |world| {
            with_writes(world);
            world.ready_to_detach(0, 1);
        },
        operate: detach,
    },
];
