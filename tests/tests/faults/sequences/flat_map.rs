//! A PC's flat map.

use dmaspace_core::{Access, Iova, PageSize};
use dmaspace_listener::Section;
use dmaspace_listener::Update;
use dmaspace_listener::section::FrontEnd;

use crate::guest::{DIMM, DIMM_AT, MIB, RAM, RW, bar, dimm, flat, ram, shadow, with_empty_view, with_flat_map};
use crate::host_configs::{COMPAT, CREATED, EVERYWHERE, FIXED, IOMMUFD, POWERNV, TYPE1, WITH_FILES};
use dmaspace_tests::faults::Sequence;

pub(super) const SEQUENCES: &[Sequence] = &[
    Sequence {
        name: "map_a_flat_map",
        on: EVERYWHERE,
        arrange: |world| with_empty_view(world, FrontEnd::default()),
        operate: |world| world.commit(flat(world)),
    },
    Sequence {
        name: "map_files",
        on: &[WITH_FILES],
        arrange: |world| with_empty_view(world, FrontEnd::default()),
        operate: |world| world.commit(flat(world)),
    },
    Sequence {
        name: "exchange_files",
        on: &[WITH_FILES],
        arrange: |world| {
            with_flat_map(world);
            world.commit(Update::new().adding(dimm(world))).expect("undisturbed");
        },
        operate: |world| {
            let other = ram(world, "other", DIMM_AT, RAM, 0x4_0000, 0x4_0000, RW);
            world.commit(Update::new().removing(dimm(world)).adding(other))
        },
    },
    Sequence {
        name: "map_a_flat_map_with_hints",
        on: EVERYWHERE,
        arrange: |world| with_empty_view(world, FrontEnd::pc()),
        operate: |world| world.commit(flat(world)),
    },
    Sequence {
        name: "map_more_than_may_be_locked",
        on: EVERYWHERE,
        arrange: |world| {
            with_empty_view(world, FrontEnd::default());
            world.limit_locked_memory(MIB);
        },
        operate: |world| world.commit(flat(world)),
    },
    Sequence {
        name: "unlock_shadow_ram",
        on: EVERYWHERE,
        arrange: |world| {
            with_empty_view(world, FrontEnd::pc());
            world.commit(flat(world)).expect("undisturbed");
        },
        operate: |world| world.commit(Update::new().removing(shadow(world, Access::READ)).adding(shadow(world, RW))),
    },
    Sequence {
        name: "lock_shadow_ram",
        on: EVERYWHERE,
        arrange: |world| {
            with_empty_view(world, FrontEnd::default());
            world.commit(flat(world)).expect("undisturbed");
            let unlock = Update::new().removing(shadow(world, Access::READ)).adding(shadow(world, RW));
            world.commit(unlock).expect("undisturbed");
        },
        operate: |world| world.commit(Update::new().removing(shadow(world, RW)).adding(shadow(world, Access::READ))),
    },
    Sequence {
        name: "move_a_bar",
        on: &[TYPE1, IOMMUFD, COMPAT, WITH_FILES],
        arrange: |world| {
            with_flat_map(world);
            world.commit(Update::new().adding(bar(world, 0xe000_0000))).expect("undisturbed");
        },
        operate: |world| world.commit(Update::new().removing(bar(world, 0xe000_0000)).adding(bar(world, 0xe000_8000))),
    },
    Sequence {
        name: "add_ram",
        on: EVERYWHERE,
        arrange: with_flat_map,
        operate: |world| world.commit(Update::new().adding(dimm(world))),
    },
    Sequence {
        name: "add_ram_above_the_window",
        on: CREATED,
        arrange: |world| {
            with_empty_view(world, FrontEnd::default());
            world.commit(Update::new().adding(ram(world, "pc.ram", 0, RAM, 0, MIB, RW))).expect("undisturbed");
        },
        operate: |world| world.commit(Update::new().adding(dimm(world))),
    },
    Sequence {
        name: "add_a_bar_and_ram",
        on: FIXED,
        arrange: with_flat_map,
        operate: |world| world.commit(Update::new().adding(bar(world, 0x800_0000)).adding(dimm(world))),
    },
    Sequence {
        name: "remove_ram",
        on: EVERYWHERE,
        arrange: |world| {
            with_flat_map(world);
            world.commit(Update::new().adding(dimm(world))).expect("undisturbed");
        },
        operate: |world| world.commit(Update::new().removing(dimm(world))),
    },
    Sequence {
        name: "exchange_ram",
        on: EVERYWHERE,
        arrange: |world| {
            with_flat_map(world);
            world.commit(Update::new().adding(dimm(world))).expect("undisturbed");
        },
        operate: |world| {
            let other = ram(world, "other", DIMM_AT, RAM, 0x4_0000, 0x4_0000, RW);
            world.commit(Update::new().removing(dimm(world)).adding(other))
        },
    },
    Sequence {
        name: "map_memory_of_smaller_pages_than_its_owner_says",
        on: &[POWERNV],
        arrange: |world| {
            with_empty_view(world, FrontEnd::default());
            world.deny_huge_pages();
        },
        operate: |world| {
            let huge = |name, at, region| {
                let memory = world.ram(region, 0, MIB).backed_by(PageSize::K64);
                Section::ram(name, Iova::new(at), memory, RW).expect("a section of the test")
            };
            world.commit(Update::new().adding(huge("pc.ram", 0, RAM)).adding(huge("dimm", DIMM_AT, DIMM)))
        },
    },
];
