//! Translated windows.

use dmaspace_core::{Access, Iova, PageSize, SystemAddress};
use dmaspace_listener::Update;
use dmaspace_listener::section::{FrontEnd, TargetMemory};
use dmaspace_listener::{EntryRun, Section};

use crate::guest::{
    DIMM, K4, K64, MIB, RAM, RW, half, high, high_window, low_window, put_some, range, target, translated,
    with_empty_view, with_entries, with_two_spaces,
};
use crate::host_configs::{CREATED, EVERYWHERE, POWERNV};
use dmaspace_tests::faults::{Sequence, done};

pub(super) const SEQUENCES: &[Sequence] = &[
    Sequence {
        name: "add_translated_windows",
        on: EVERYWHERE,
        arrange: |world| with_empty_view(world, FrontEnd::default()),
        operate: |world| world.commit(translated(world)),
    },
    Sequence {
        name: "remove_a_translated_window",
        on: EVERYWHERE,
        arrange: with_entries,
        operate: |world| world.commit(Update::new().removing(high_window(world))),
    },
    Sequence {
        name: "remove_the_first_translated_window",
        on: EVERYWHERE,
        arrange: with_entries,
        operate: |world| world.commit(Update::new().removing(low_window(256 * MIB))),
    },
    Sequence {
        name: "resize_a_translated_window",
        on: EVERYWHERE,
        arrange: |world| {
            with_empty_view(world, FrontEnd::default());
            let update = Update::new().adding(low_window(256 * MIB)).adding_target(target(world, RAM));
            world.commit(update).expect("undisturbed");
            put_some(world);
        },
        operate: |world| world.commit(Update::new().removing(low_window(256 * MIB)).adding(low_window(512 * MIB))),
    },
    Sequence {
        name: "add_target_memory",
        on: CREATED,
        arrange: |world| {
            with_empty_view(world, FrontEnd::default());
            let update = Update::new().adding(low_window(256 * MIB)).adding_target(target(world, RAM));
            world.commit(update).expect("undisturbed");
            put_some(world);
        },
        operate: |world| world.commit(Update::new().adding_target(target(world, DIMM))),
    },
    Sequence {
        name: "grow_a_run_of_two_spaces",
        on: CREATED,
        arrange: |world| {
            with_two_spaces(world);
            let update = Update::new().adding(low_window(256 * MIB)).adding_target(half(world, 0));
            world.commit(update).expect("undisturbed");
        },
        operate: |world| world.commit(Update::new().adding_target(half(world, 1))),
    },
    Sequence {
        name: "join_late_beside_runs_that_could_not_grow",
        on: CREATED,
        arrange: |world| {
            with_empty_view(world, FrontEnd::default());
            let update = Update::new().adding(low_window(256 * MIB)).adding_target(half(world, 0));
            world.commit(update).expect("undisturbed");
            world.window(0).put(Iova::new(MIB), SystemAddress::new(0), RW).expect("undisturbed");
            world.commit(Update::new().adding_target(half(world, 1))).expect("undisturbed");
            world.open(1).expect("undisturbed");
        },
        operate: |world| world.join(1),
    },
    Sequence {
        name: "remove_target_memory",
        on: CREATED,
        arrange: |world| {
            with_empty_view(world, FrontEnd::default());
            world.commit(translated(world)).expect("undisturbed");
        },
        operate: |world| {
            world.commit(Update::new().removing_target(target(world, RAM)).removing_target(target(world, DIMM)))
        },
    },
    Sequence {
        name: "remove_target_memory_and_its_entries",
        on: EVERYWHERE,
        arrange: |world| {
            with_entries(world);
            let at = Iova::new(4 * MIB);
            world.window(0).put(at, SystemAddress::new(2 * MIB), RW).expect("undisturbed");
        },
        operate: |world| world.commit(Update::new().removing_target(target(world, RAM)).clearing_entries()),
    },
    Sequence {
        name: "remove_target_memory_and_its_entries_from_two_spaces",
        on: CREATED,
        arrange: |world| {
            with_two_spaces(world);
            let update = Update::new().adding(low_window(256 * MIB)).adding_target(target(world, RAM));
            world.commit(update).expect("undisturbed");
            put_some(world);
        },
        operate: |world| world.commit(Update::new().removing_target(target(world, RAM)).clearing_entries()),
    },
    Sequence {
        name: "put_an_entry",
        on: EVERYWHERE,
        arrange: with_entries,
        operate: |world| {
            world.window(0).put(Iova::new(5 * MIB), SystemAddress::new(0x5000), RW)?;
            done()
        },
    },
    Sequence {
        name: "put_the_first_entry_of_smaller_pages_than_their_owner_says",
        on: &[POWERNV],
        arrange: |world| {
            with_empty_view(world, FrontEnd::default());
            let memory = world.ram(RAM, 0, 2 * MIB).backed_by(PageSize::K64);
            let target = TargetMemory::new("spapr.ram", SystemAddress::new(0), memory).expect("a piece of the test");
            let large = Section::translated("tce-iommu-80000000", range(0, 256 * MIB), PageSize::K64);
            world.deny_huge_pages();
            world.commit(Update::new().adding(large).adding_target(target)).expect("undisturbed");
        },
        operate: |world| {
            world.window(0).put_run(Iova::new(MIB), SystemAddress::new(0), 2 * K64, RW)?;
            done()
        },
    },
    Sequence {
        name: "put_a_run",
        on: EVERYWHERE,
        arrange: with_entries,
        operate: |world| {
            world.window(0).put_run(Iova::new(5 * MIB), SystemAddress::new(0x5000), 6 * K4, RW)?;
            done()
        },
    },
    Sequence {
        name: "put_runs_that_lie_apart",
        on: EVERYWHERE,
        arrange: with_entries,
        operate: |world| {
            let run = |at: u64, target: u64| EntryRun {
                range: range(at, 2 * K4),
                target: SystemAddress::new(target),
                access: RW,
            };
            let runs = [run(5 * MIB, 0x5000), run(5 * MIB + 2 * K4, 0x9000), run(6 * MIB, 0x2000)];
            world.window(0).put_many(&runs)?;
            done()
        },
    },
    Sequence {
        name: "put_large_entries_over_two_regions",
        on: EVERYWHERE,
        arrange: with_entries,
        operate: |world| {
            let at = Iova::new(high(world) + 5 * MIB);
            world.window(high(world)).put_run(at, SystemAddress::new(2 * MIB - K64), 2 * K64, RW)?;
            done()
        },
    },
    Sequence {
        name: "replace_an_entry",
        on: EVERYWHERE,
        arrange: with_entries,
        operate: |world| {
            world.window(0).replace(Iova::new(MIB), SystemAddress::new(0x9000), K4, RW)?;
            done()
        },
    },
    Sequence {
        name: "replace_a_run",
        on: EVERYWHERE,
        arrange: with_entries,
        operate: |world| {
            let at = Iova::new(high(world) + MIB);
            world.window(high(world)).replace(at, SystemAddress::new(0), 2 * K64, Access::READ)?;
            done()
        },
    },
    Sequence {
        name: "clear_a_run",
        on: EVERYWHERE,
        arrange: with_entries,
        operate: |world| {
            world.window(0).clear(range(MIB + K4, 2 * K4))?;
            done()
        },
    },
    Sequence {
        name: "clear_a_window",
        on: EVERYWHERE,
        arrange: with_entries,
        operate: |world| {
            world.window(0).clear(range(0, 256 * MIB))?;
            done()
        },
    },
];
