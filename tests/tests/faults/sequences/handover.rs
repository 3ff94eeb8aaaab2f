//! One process makes way for another.

use crate::guest::{drop_everything, with_flat_map, with_mapped_units, with_two_spaces_mapped};
use crate::host_configs::{EVERYWHERE, IOMMUFD, TYPE1};
use dmaspace_tests::faults::{Sequence, done};

pub(super) const SEQUENCES: &[Sequence] = &[
    Sequence {
        name: "hand_a_space_over",
        on: EVERYWHERE,
        arrange: with_mapped_units,
        operate: |world| world.hand_over(0).and_then(|_| done()),
    },
    Sequence {
        name: "hand_over_two_spaces",
        on: &[TYPE1],
        arrange: |world| {
            with_flat_map(world);
            world.open(1).expect("undisturbed");
            world.join(1).expect("undisturbed");
        },
        operate: |world| world.hand_over_all(),
    },
    Sequence {
        name: "hand_over_two_spaces_of_which_one_cannot_be",
        on: &[TYPE1, IOMMUFD],
        arrange: with_two_spaces_mapped,
        operate: |world| world.hand_over_all(),
    },
    Sequence {
        name: "take_a_space_back",
        on: &[TYPE1],
        arrange: |world| {
            with_mapped_units(world);
            world.hand_over(0).expect("undisturbed");
        },
        operate: |world| {
            world.space(0).powers().live_update.take_back()?;
            done()
        },
    },
    Sequence {
        name: "adopt_a_space_with_its_memory_elsewhere",
        on: &[TYPE1],
        arrange: |world| {
            with_mapped_units(world);
            world.hand_over(0).expect("undisturbed");
        },
        operate: |world| {
            let handover = world.hand_over(0)?;
            world.adopt_elsewhere(0, &handover)
        },
    },
    Sequence {
        name: "drop_a_space_that_is_handed_over",
        on: &[TYPE1],
        arrange: |world| {
            with_mapped_units(world);
            world.hand_over(0).expect("undisturbed");
        },
        operate: drop_everything,
    },
];
