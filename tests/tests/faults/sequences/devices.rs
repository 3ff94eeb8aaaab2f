//! Devices and spaces.

use dmaspace_core::Iova;
use dmaspace_core::contract::MapRequest;
use dmaspace_listener::Update;

use crate::guest::{
    K64, MIB, RAM, RW, detach, drop_everything, low_window, put_some, range, target, translated, with_entries,
    with_flat_map, with_mapped_units_in, with_two_spaces,
};
use crate::host_configs::{EVERYWHERE, GIVEN, IOMMUFD, LOGGING, POWERNV, PSERIES, SHARING, TYPE1, WITH_PAGE_TABLES};
use dmaspace_tests::faults::{Sequence, done};

pub(super) const SEQUENCES: &[Sequence] = &[
    Sequence {
        name: "open_a_device",
        on: WITH_PAGE_TABLES,
        arrange: |_| {},
        operate: |world| world.open(0).and_then(|()| done()),
    },
    Sequence {
        name: "open_a_device_and_ask_for_more",
        on: &[IOMMUFD],
        arrange: |_| {},
        operate: |world| world.open_asking(0, range(0, 512 * MIB)).and_then(|()| done()),
    },
    Sequence {
        name: "open_a_device_that_does_not_reach_what_is_promised",
        on: &[IOMMUFD],
        arrange: |_| {},
        operate: |world| world.open_asking(0, range(0, 4096 * MIB)).and_then(|()| done()),
    },
    Sequence {
        name: "attach_a_second_device",
        on: WITH_PAGE_TABLES,
        arrange: with_entries,
        operate: |world| world.add(0, 1).and_then(|()| done()),
    },
    Sequence {
        name: "open_where_windows_cannot_be_created",
        on: GIVEN,
        arrange: |_| {},
        operate: |world| world.open_the_best(0).and_then(|()| done()),
    },
    Sequence {
        name: "attach_where_the_window_is_more_than_may_be_locked",
        on: GIVEN,
        arrange: |world| {
            world.open_empty().expect("undisturbed");
            world.limit_locked_memory(MIB);
        },
        operate: |world| world.add(0, 0).and_then(|()| done()),
    },
    Sequence {
        name: "attach_where_a_mapping_is_in_the_way",
        on: &[IOMMUFD, LOGGING],
        arrange: |world| {
            world.open_empty().expect("undisturbed");
            world
                .space(0)
                .map(MapRequest::new(Iova::new(0xfee0_0000), &world.ram(RAM, 0, K64), RW))
                .expect("undisturbed");
        },
        operate: |world| world.add(0, 0).and_then(|()| done()),
    },
    Sequence {
        name: "detach_the_last_device",
        on: WITH_PAGE_TABLES,
        arrange: |world| {
            with_entries(world);
            world.ready_to_detach(0, 0);
        },
        operate: detach,
    },
    Sequence {
        name: "detach_one_of_two_devices",
        on: SHARING,
        arrange: |world| {
            world.open(0).expect("undisturbed");
            world.add(0, 1).expect("undisturbed");
            with_mapped_units_in(world);
            world.ready_to_detach(0, 1);
        },
        operate: detach,
    },
    Sequence { name: "drop_a_flat_map", on: WITH_PAGE_TABLES, arrange: with_flat_map, operate: drop_everything },
    Sequence { name: "drop_windows_with_entries", on: EVERYWHERE, arrange: with_entries, operate: drop_everything },
    Sequence {
        name: "drop_two_spaces",
        on: EVERYWHERE,
        arrange: |world| {
            with_two_spaces(world);
            world.commit(translated(world)).expect("undisturbed");
            put_some(world);
        },
        operate: drop_everything,
    },
    Sequence {
        name: "attach_a_device_behind_another_iommu",
        on: &[LOGGING],
        arrange: with_flat_map,
        operate: |world| world.add(0, 2).and_then(|()| done()),
    },
    Sequence {
        name: "detach_a_device_behind_another_iommu",
        on: &[LOGGING],
        arrange: |world| {
            with_flat_map(world);
            world.add(0, 2).expect("undisturbed");
            world.ready_to_detach(0, 1);
        },
        operate: detach,
    },
    Sequence {
        name: "bring_a_space_in_step_that_lost_its_device",
        on: &[TYPE1, POWERNV, PSERIES],
        arrange: |world| {
            with_two_spaces(world);
            let update = Update::new().adding(low_window(256 * MIB)).adding_target(target(world, RAM));
            world.commit(update).expect("undisturbed");
            put_some(world);
            world.ready_to_detach(0, 0);
            detach(world).expect("undisturbed");
            world.commit(Update::new()).expect("undisturbed");
            world.space(0).attach(world.attached[0].clone()).expect("undisturbed");
        },
        operate: |world| world.commit(Update::new()),
    },
];
