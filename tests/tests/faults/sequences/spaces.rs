//! Several spaces.

use dmaspace_core::{Iova, SystemAddress};
use dmaspace_listener::Update;

use crate::guest::{
    DIMM_AT, K4, MIB, RAM, RW, dimm, flat, high_window, put_some, ram, translated, with_entries, with_flat_map,
    with_two_spaces,
};
use crate::host_configs::EVERYWHERE;
use dmaspace_tests::faults::{Sequence, done};

pub(super) const SEQUENCES: &[Sequence] = &[
    Sequence {
        name: "map_a_flat_map_in_two_spaces",
        on: EVERYWHERE,
        arrange: with_two_spaces,
        operate: |world| world.commit(flat(world)),
    },
    Sequence {
        name: "exchange_ram_in_two_spaces",
        on: EVERYWHERE,
        arrange: |world| {
            with_two_spaces(world);
            world.commit(flat(world).adding(dimm(world))).expect("undisturbed");
        },
        operate: |world| {
            let other = ram(world, "other", DIMM_AT, RAM, 0x4_0000, 0x4_0000, RW);
            world.commit(Update::new().removing(dimm(world)).adding(other))
        },
    },
    Sequence {
        name: "remove_a_translated_window_from_two_spaces",
        on: EVERYWHERE,
        arrange: |world| {
            with_two_spaces(world);
            world.commit(translated(world)).expect("undisturbed");
            put_some(world);
        },
        operate: |world| world.commit(Update::new().removing(high_window(world))),
    },
    Sequence {
        name: "put_a_run_into_two_spaces",
        on: EVERYWHERE,
        arrange: |world| {
            with_two_spaces(world);
            world.commit(translated(world)).expect("undisturbed");
            put_some(world);
        },
        operate: |world| {
            world.window(0).put_run(Iova::new(5 * MIB), SystemAddress::new(0x5000), 3 * K4, RW)?;
            done()
        },
    },
    Sequence {
        name: "join_late_with_a_flat_map",
        on: EVERYWHERE,
        arrange: |world| {
            with_flat_map(world);
            world.open(1).expect("undisturbed");
        },
        operate: |world| world.join(1),
    },
    Sequence {
        name: "join_late_with_entries",
        on: EVERYWHERE,
        arrange: |world| {
            with_entries(world);
            world.open(1).expect("undisturbed");
        },
        operate: |world| world.join(1),
    },
];
