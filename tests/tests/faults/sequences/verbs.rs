//! The contract's own verbs.

use dmaspace_core::contract::MapRequest;
use dmaspace_core::contract::Unit;
use dmaspace_core::{Access, Iova, IovaRange, PageSize};

use crate::guest::{DIMM, HIGH, K64, MIB, RAM, RW, UNITS, range, request, with_mapped_units};
use crate::host_configs::{CREATED, EVERYWHERE};
use dmaspace_tests::faults::{Sequence, done};

pub(super) const SEQUENCES: &[Sequence] = &[
    Sequence {
        name: "map_one_unit",
        on: EVERYWHERE,
        arrange: with_mapped_units,
        operate: |world| {
            world.space(0).map(MapRequest::new(Iova::new(4 * MIB), &world.ram(DIMM, 0, 4 * K64), RW))?;
            done()
        },
    },
    Sequence {
        name: "map_units",
        on: EVERYWHERE,
        arrange: with_mapped_units,
        operate: |world| {
            world
                .space(0)
                .map(MapRequest::new(Iova::new(4 * MIB), &world.ram(DIMM, 0, 4 * K64), RW).with_unit(UNITS))?;
            done()
        },
    },
    Sequence {
        name: "replace_units",
        on: EVERYWHERE,
        arrange: with_mapped_units,
        operate: |world| {
            let memory = world.ram(DIMM, 8 * K64, 2 * K64);
            world.space(0).replace(
                MapRequest::new(Iova::new(MIB + K64), &memory, Access::READ).with_unit(Unit::Pages(PageSize::K64)),
            )?;
            done()
        },
    },
    Sequence {
        name: "unmap_units",
        on: EVERYWHERE,
        arrange: with_mapped_units,
        operate: |world| {
            world.space(0).unmap(range(MIB + K64, 2 * K64))?;
            done()
        },
    },
    Sequence {
        name: "unmap_over_gaps",
        on: EVERYWHERE,
        arrange: with_mapped_units,
        operate: |world| {
            world.space(0).unmap(range(0, 16 * MIB))?;
            done()
        },
    },
    Sequence {
        name: "unmap_across_windows",
        on: EVERYWHERE,
        arrange: |world| {
            with_mapped_units(world);
            let second = match (world.creates_windows(), world.has_one_window()) {
                (true, _) => HIGH,
                (_, true) => 512 * MIB,
                _ => 0xfef0_0000,
            };
            world
                .space(0)
                .map(MapRequest::new(Iova::new(second), &world.ram(RAM, MIB, 2 * K64), RW).with_unit(UNITS))
                .expect("undisturbed");
        },
        operate: |world| {
            world.space(0).unmap(IovaRange::all())?;
            done()
        },
    },
    Sequence {
        name: "create_a_window",
        on: CREATED,
        arrange: |world| world.open(0).expect("undisturbed"),
        operate: |world| {
            world.control(|control| control.create_window(request(0)))?;
            done()
        },
    },
    Sequence {
        name: "create_a_second_window",
        on: CREATED,
        arrange: |world| {
            world.open(0).expect("undisturbed");
            world.control(|control| control.create_window(request(0))).expect("undisturbed");
        },
        operate: |world| {
            world.control(|control| control.create_window(request(HIGH)))?;
            done()
        },
    },
    Sequence {
        name: "remove_a_window_with_entries",
        on: CREATED,
        arrange: with_mapped_units,
        operate: |world| {
            world.control(|control| control.remove_window(request(0).range))?;
            done()
        },
    },
    Sequence {
        name: "register_memory",
        on: CREATED,
        arrange: |world| world.open(0).expect("undisturbed"),
        operate: |world| {
            world.registration(|registration| registration.register(&world.ram(DIMM, 0, MIB)))?;
            done()
        },
    },
    Sequence {
        name: "unregister_memory",
        on: CREATED,
        arrange: |world| {
            with_mapped_units(world);
            world.space(0).unmap(IovaRange::all()).expect("undisturbed");
        },
        operate: |world| {
            world.registration(|registration| registration.unregister(&world.ram(DIMM, 0, MIB)))?;
            done()
        },
    },
];
