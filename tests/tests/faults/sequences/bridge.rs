//! A guest's bridge.

use crate::guest::{detach, drop_everything, remove_window, with_bridge, with_bridge_and_kernel};
use crate::host_configs::{CREATED, POWERNV, POWERNV_64K, WITH_SECOND_WINDOWS};
use dmaspace_tests::faults::{Sequence, done};

pub(super) const SEQUENCES: &[Sequence] = &[
    Sequence {
        name: "reset_a_bridge",
        on: WITH_SECOND_WINDOWS,
        arrange: |world| with_bridge(world, &[16]),
        operate: |world| world.on_bridge(|bridge, listener| bridge.reset(listener).map(drop)),
    },
    Sequence {
        name: "create_a_dma_window",
        on: WITH_SECOND_WINDOWS,
        arrange: |world| with_bridge(world, &[]),
        operate: |world| world.on_bridge(|bridge, listener| bridge.create_window(listener, 16, 28).map(drop)),
    },
    Sequence {
        name: "remove_a_dma_window",
        on: WITH_SECOND_WINDOWS,
        arrange: |world| with_bridge(world, &[16]),
        operate: |world| remove_window(world, 1),
    },
    Sequence {
        name: "remove_the_default_window",
        on: WITH_SECOND_WINDOWS,
        arrange: |world| with_bridge(world, &[16]),
        operate: |world| remove_window(world, 0),
    },
    Sequence {
        name: "remove_the_last_dma_window",
        on: WITH_SECOND_WINDOWS,
        arrange: |world| {
            with_bridge(world, &[16]);
            remove_window(world, 0).expect("undisturbed");
        },
        operate: |world| remove_window(world, 1),
    },
    Sequence {
        name: "reset_a_bridge_whose_windows_the_kernel_fills",
        on: CREATED,
        arrange: |world| with_bridge_and_kernel(world, &[16]),
        operate: |world| world.on_bridge(|bridge, listener| bridge.reset(listener).map(drop)),
    },
    Sequence {
        name: "create_a_window_for_the_kernel_to_fill",
        on: CREATED,
        arrange: |world| with_bridge_and_kernel(world, &[]),
        operate: |world| world.on_bridge(|bridge, listener| bridge.create_window(listener, 16, 22).map(drop)),
    },
    Sequence {
        name: "remove_a_window_that_the_kernel_fills",
        on: CREATED,
        arrange: |world| with_bridge_and_kernel(world, &[16]),
        operate: |world| remove_window(world, 1),
    },
    Sequence {
        name: "remove_the_last_window_that_the_kernel_fills",
        on: CREATED,
        arrange: |world| {
            with_bridge_and_kernel(world, &[16]);
            remove_window(world, 0).expect("undisturbed");
        },
        operate: |world| remove_window(world, 1),
    },
    Sequence {
        name: "detach_a_host_whose_windows_the_kernel_fills",
        on: CREATED,
        arrange: |world| with_bridge_and_kernel(world, &[16]),
        operate: |world| {
            let space = world.space(0);
            world.on_bridge(|bridge, listener| bridge.detach(listener, &space))
        },
    },
    Sequence {
        name: "detach_the_last_device_of_a_host_whose_windows_the_kernel_fills",
        on: CREATED,
        arrange: |world| {
            with_bridge_and_kernel(world, &[16]);
            world.ready_to_detach(0, 0);
        },
        operate: detach,
    },
    Sequence {
        name: "attach_a_second_device_where_the_kernel_fills",
        on: &[POWERNV, POWERNV_64K],
        arrange: |world| with_bridge_and_kernel(world, &[16]),
        operate: |world| world.add(0, 1).and_then(|()| done()),
    },
    Sequence {
        name: "drop_windows_that_the_kernel_fills",
        on: CREATED,
        arrange: |world| with_bridge_and_kernel(world, &[16]),
        operate: drop_everything,
    },
    Sequence {
        name: "attach_a_host_to_a_bridge",
        on: WITH_SECOND_WINDOWS,
        arrange: |world| {
            with_bridge(world, &[16]);
            let space = world.space(0);
            let detached = world.on_bridge(|bridge, listener| bridge.detach(listener, &space));
            detached.expect("undisturbed");
        },
        operate: |world| {
            let space = world.space(0);
            world.on_bridge(|bridge, listener| bridge.attach(listener, space).map(drop))
        },
    },
    Sequence {
        name: "detach_a_host_from_a_bridge",
        on: WITH_SECOND_WINDOWS,
        arrange: |world| with_bridge(world, &[16]),
        operate: |world| {
            let space = world.space(0);
            world.on_bridge(|bridge, listener| bridge.detach(listener, &space))
        },
    },
];
