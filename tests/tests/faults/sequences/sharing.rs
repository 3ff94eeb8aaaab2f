//! Spaces that share their pins.

use dmaspace_core::{Iova, SystemAddress};
use dmaspace_listener::Update;

use crate::guest::{
    BAR, DIMM, DIMM_AT, K4, K64, MIB, RAM, RW, beside, dimm, drop_everything, flat, leave, populate, ram, target,
    translated, with_a_pool, with_entries, with_flat_map,
};
use crate::host_configs::{EVERYWHERE, IOMMUFD, WITH_FILES};
use dmaspace_tests::faults::{Sequence, done};

pub(super) const SEQUENCES: &[Sequence] = &[
    Sequence {
        name: "open_a_pool",
        on: &[IOMMUFD],
        arrange: |_| {},
        operate: |world| world.open_sharing(0).and_then(|()| done()),
    },
    Sequence {
        name: "open_a_second_space_in_a_pool",
        on: &[IOMMUFD],
        arrange: |world| {
            with_a_pool(world, 1);
            world.commit(flat(world)).expect("undisturbed");
        },
        operate: |world| world.open_sharing(1).and_then(|()| done()),
    },
    Sequence {
        name: "map_a_flat_map_in_a_pool",
        on: &[IOMMUFD, WITH_FILES],
        arrange: |world| with_a_pool(world, 2),
        operate: |world| world.commit(flat(world)),
    },
    Sequence {
        name: "map_more_than_may_be_locked_in_a_pool",
        on: &[IOMMUFD],
        arrange: |world| {
            with_a_pool(world, 2);
            world.limit_locked_memory(MIB);
        },
        operate: |world| world.commit(flat(world)),
    },
    Sequence {
        name: "exchange_ram_in_a_pool",
        on: &[IOMMUFD],
        arrange: |world| {
            with_a_pool(world, 2);
            world.commit(flat(world).adding(dimm(world))).expect("undisturbed");
        },
        operate: |world| {
            let other = ram(world, "exchanged", DIMM_AT, BAR, 0, K64, RW);
            world.commit(Update::new().removing(dimm(world)).adding(other))
        },
    },
    Sequence {
        name: "join_a_pool_late",
        on: &[IOMMUFD],
        arrange: |world| {
            with_a_pool(world, 1);
            world.commit(flat(world)).expect("undisturbed");
            world.open_sharing(1).expect("undisturbed");
        },
        operate: |world| world.join(1),
    },
    Sequence {
        name: "leave_a_pool",
        on: &[IOMMUFD],
        arrange: |world| {
            with_a_pool(world, 2);
            world.commit(flat(world)).expect("undisturbed");
        },
        operate: leave,
    },
    Sequence {
        name: "put_a_run_into_a_pool",
        on: &[IOMMUFD],
        arrange: |world| {
            with_a_pool(world, 2);
            world.commit(translated(world)).expect("undisturbed");
        },
        operate: |world| {
            world.window(0).put_run(Iova::new(MIB), SystemAddress::new(2 * MIB - 2 * K4), 4 * K4, RW)?;
            done()
        },
    },
    Sequence {
        name: "remove_target_memory_from_a_pool",
        on: &[IOMMUFD],
        arrange: |world| {
            with_a_pool(world, 2);
            world.commit(translated(world)).expect("undisturbed");
            world.window(0).put(Iova::new(MIB), SystemAddress::new(0), RW).expect("undisturbed");
        },
        operate: |world| world.commit(Update::new().removing_target(target(world, DIMM))),
    },
    Sequence {
        name: "populate_blocks_in_a_pool",
        on: &[IOMMUFD],
        arrange: |world| {
            with_a_pool(world, 2);
            world.commit(beside(world)).expect("undisturbed");
            populate(world, 1, 1).expect("undisturbed");
        },
        operate: |world| populate(world, 0, 3),
    },
    Sequence {
        name: "drop_a_pool",
        on: &[IOMMUFD],
        arrange: |world| {
            with_a_pool(world, 2);
            world.commit(flat(world)).expect("undisturbed");
        },
        operate: drop_everything,
    },
    Sequence {
        name: "share_around_what_is_shared",
        on: &[IOMMUFD],
        arrange: |world| {
            with_a_pool(world, 2);
            world.sharing(0, |sharing| sharing.share_pins(&world.ram(RAM, K64, K64))).expect("undisturbed");
        },
        operate: |world| {
            world.sharing(1, |sharing| sharing.share_pins(&world.ram(RAM, 0, 4 * K64)))?;
            done()
        },
    },
    Sequence {
        name: "stop_sharing_what_others_share_in_part",
        on: &[IOMMUFD],
        arrange: |world| {
            with_a_pool(world, 2);
            world.sharing(0, |sharing| sharing.share_pins(&world.ram(RAM, K64, K64))).expect("undisturbed");
            world.sharing(1, |sharing| sharing.share_pins(&world.ram(RAM, 0, 4 * K64))).expect("undisturbed");
        },
        operate: |world| {
            world.sharing(1, |sharing| sharing.stop_sharing(&world.ram(RAM, 0, 4 * K64)))?;
            done()
        },
    },
    Sequence { name: "leave_with_a_flat_map", on: EVERYWHERE, arrange: with_flat_map, operate: leave },
    Sequence { name: "leave_with_entries", on: EVERYWHERE, arrange: with_entries, operate: leave },
];
