//! Memory that comes and goes in blocks.

use dmaspace_core::Access;
use dmaspace_listener::Update;

use crate::guest::{
    RW, beside, dimm, discard, discardable, drop_everything, leave, populate, shadow, with_blocks, with_flat_map,
    with_two_spaces,
};
use crate::host_configs::EVERYWHERE;
use dmaspace_tests::faults::Sequence;

pub(super) const SEQUENCES: &[Sequence] = &[
    Sequence {
        name: "add_a_discardable_section",
        on: EVERYWHERE,
        arrange: with_flat_map,
        operate: |world| world.commit(Update::new().adding(discardable(world))),
    },
    Sequence {
        name: "populate_blocks",
        on: EVERYWHERE,
        arrange: |world| with_blocks(world, &[]),
        operate: |world| populate(world, 0, 3),
    },
    Sequence {
        name: "populate_around_blocks",
        on: EVERYWHERE,
        arrange: |world| with_blocks(world, &[1]),
        operate: |world| populate(world, 0, 4),
    },
    Sequence {
        name: "discard_blocks",
        on: EVERYWHERE,
        arrange: |world| with_blocks(world, &[0, 1, 2]),
        operate: |world| discard(world, 1, 2),
    },
    Sequence {
        name: "discard_blocks_over_a_gap",
        on: EVERYWHERE,
        arrange: |world| with_blocks(world, &[0, 2, 3]),
        operate: |world| discard(world, 0, 3),
    },
    Sequence {
        name: "commit_beside_blocks",
        on: EVERYWHERE,
        arrange: |world| with_blocks(world, &[0, 2]),
        operate: |world| world.commit(Update::new().removing(shadow(world, Access::READ)).adding(shadow(world, RW))),
    },
    Sequence {
        name: "remove_a_discardable_section",
        on: EVERYWHERE,
        arrange: |world| with_blocks(world, &[0, 2, 3]),
        operate: |world| world.commit(Update::new().removing(discardable(world))),
    },
    Sequence {
        name: "make_discardable_ram_plain",
        on: EVERYWHERE,
        arrange: |world| with_blocks(world, &[1]),
        operate: |world| world.commit(Update::new().removing(discardable(world)).adding(dimm(world))),
    },
    Sequence {
        name: "make_plain_ram_discardable",
        on: EVERYWHERE,
        arrange: |world| {
            with_flat_map(world);
            world.commit(Update::new().adding(dimm(world))).expect("undisturbed");
        },
        operate: |world| world.commit(Update::new().removing(dimm(world)).adding(discardable(world))),
    },
    Sequence {
        name: "drop_blocks",
        on: EVERYWHERE,
        arrange: |world| with_blocks(world, &[0, 2]),
        operate: drop_everything,
    },
    Sequence {
        name: "populate_blocks_in_two_spaces",
        on: EVERYWHERE,
        arrange: |world| {
            with_two_spaces(world);
            world.commit(beside(world)).expect("undisturbed");
        },
        operate: |world| populate(world, 1, 2),
    },
    Sequence {
        name: "discard_blocks_in_two_spaces",
        on: EVERYWHERE,
        arrange: |world| {
            with_two_spaces(world);
            world.commit(beside(world)).expect("undisturbed");
            populate(world, 0, 3).expect("undisturbed");
        },
        operate: |world| discard(world, 1, 2),
    },
    Sequence {
        name: "join_late_with_blocks",
        on: EVERYWHERE,
        arrange: |world| {
            with_blocks(world, &[0, 2]);
            world.open(1).expect("undisturbed");
        },
        operate: |world| world.join(1),
    },
    Sequence {
        name: "leave_with_blocks",
        on: EVERYWHERE,
        arrange: |world| with_blocks(world, &[0, 2]),
        operate: leave,
    },
];
