//! The sequences of the failure sweep, and the sweep itself.
//!
//! `DMASPACE_FAULTS=put_a_run/vtd-type1/3:FailAfter:EIO+4:FailBefore:ENOENT cargo test --test faults -- --nocapture` plays one case alone;
//! the beginning of a case's name plays all that begin so.

#[path = "../src"]
#[allow(unreachable_pub, reason = "at home in the library of this package")]
mod sources {
    pub mod faults;
}

use std::io::Write as _;
use std::sync::Arc;
use std::time::Instant;

use dmaspace::choose::BackendKind;
use dmaspace_core::address::SystemRange;
use dmaspace_core::contract::{Unit, WindowRequest};
use dmaspace_core::listener::Update;
use dmaspace_core::section::{FrontEnd, TargetMemory};
use dmaspace_core::{Access, Iova, IovaRange, Listener, PageSize, Section, SystemAddress};

use dmaspace_spapr::guest::{AnsweredBy, Layout, PciHostBridge, SystemMemory, TceTables};
use dmaspace_tests::kernel::SoftKvm;

use sources::faults::{Done, Ground, Outcome, Sequence, Tally, Trouble, World, done, sweep};

const TYPE1: Ground = Ground { preset: "vtd", backend: BackendKind::Type1 };
const IOMMUFD: Ground = Ground { preset: "vtd", backend: BackendKind::Iommufd };
/// A kernel that maps by file, as all memory of these worlds can be.
const WITH_FILES: Ground = Ground { preset: "vtd@7.2", backend: BackendKind::Iommufd };
/// Two IOMMUs that log what devices write, the third device behind the second.
const LOGGING: Ground = Ground { preset: "vtd-ssads", backend: BackendKind::Iommufd };
const COMPAT: Ground = Ground { preset: "vtd", backend: BackendKind::Type1OnIommufd };
const POWERNV: Ground = Ground { preset: "powernv9", backend: BackendKind::Spapr };
const POWERNV_64K: Ground = Ground { preset: "powernv9-64k", backend: BackendKind::Spapr };
const PSERIES: Ground = Ground { preset: "pseries", backend: BackendKind::Spapr };
const POWERNV_V1: Ground = Ground { preset: "powernv9", backend: BackendKind::SpaprV1 };
const PSERIES_V1: Ground = Ground { preset: "pseries", backend: BackendKind::SpaprV1 };

const EVERYWHERE: &[Ground] = &[TYPE1, IOMMUFD, COMPAT, POWERNV, POWERNV_64K, PSERIES, POWERNV_V1, PSERIES_V1];
/// Hosts with room for both of a bridge's windows.
const WITH_SECOND_WINDOWS: &[Ground] = &[TYPE1, IOMMUFD, POWERNV, POWERNV_64K, PSERIES];
/// Everywhere, and where page tables are made by hand.
const WITH_PAGE_TABLES: &[Ground] =
    &[TYPE1, IOMMUFD, COMPAT, LOGGING, POWERNV, POWERNV_64K, PSERIES, POWERNV_V1, PSERIES_V1];
/// Hosts whose windows are fixed.
const FIXED: &[Ground] = &[TYPE1, IOMMUFD, COMPAT];
/// Hosts whose windows are created.
const CREATED: &[Ground] = &[POWERNV, POWERNV_64K, PSERIES];
/// Hosts with one window that is there.
const GIVEN: &[Ground] = &[POWERNV_V1, PSERIES_V1];
/// Hosts that take several groups into one space.
const SHARING: &[Ground] = &[TYPE1, IOMMUFD, COMPAT, LOGGING, POWERNV, POWERNV_64K];

/// The regions of the guest's memory: 2 MiB, 1 MiB, 64 KiB.
const RAM: usize = 0;
const DIMM: usize = 1;
const BAR: usize = 2;

const K4: u64 = 0x1000;
const K64: u64 = 0x1_0000;
const MIB: u64 = 1 << 20;
const RW: Access = Access::READ_WRITE;

const SEQUENCES: &[Sequence] = &[
    // Devices and spaces.
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
            world.space(0).map(Iova::new(0xfee0_0000), &world.ram(RAM, 0, K64), RW, Unit::Whole).expect("undisturbed");
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
    // What devices write.
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
            world.space(0).dirty_tracking().stop()?;
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
    // A PC's flat map.
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
    // Translated windows.
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
    // A guest's bridge.
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
    // Memory that comes and goes in blocks.
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
    // Several spaces.
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
    // One process makes way for another.
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
            world.space(0).handover().take_back()?;
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
    // Spaces that share their pins.
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
        name: "hold_around_what_is_held",
        on: &[IOMMUFD],
        arrange: |world| {
            with_a_pool(world, 2);
            world.sharing(0, |sharing| sharing.hold(&world.ram(RAM, K64, K64))).expect("undisturbed");
        },
        operate: |world| {
            world.sharing(1, |sharing| sharing.hold(&world.ram(RAM, 0, 4 * K64)))?;
            done()
        },
    },
    Sequence {
        name: "let_go_of_what_others_hold_in_part",
        on: &[IOMMUFD],
        arrange: |world| {
            with_a_pool(world, 2);
            world.sharing(0, |sharing| sharing.hold(&world.ram(RAM, K64, K64))).expect("undisturbed");
            world.sharing(1, |sharing| sharing.hold(&world.ram(RAM, 0, 4 * K64))).expect("undisturbed");
        },
        operate: |world| {
            world.sharing(1, |sharing| sharing.let_go(&world.ram(RAM, 0, 4 * K64)))?;
            done()
        },
    },
    Sequence { name: "leave_with_a_flat_map", on: EVERYWHERE, arrange: with_flat_map, operate: leave },
    Sequence { name: "leave_with_entries", on: EVERYWHERE, arrange: with_entries, operate: leave },
    // The contract's own verbs.
    Sequence {
        name: "map_one_unit",
        on: EVERYWHERE,
        arrange: with_mapped_units,
        operate: |world| {
            world.space(0).map(Iova::new(4 * MIB), &world.ram(DIMM, 0, 4 * K64), RW, Unit::Whole)?;
            done()
        },
    },
    Sequence {
        name: "map_units",
        on: EVERYWHERE,
        arrange: with_mapped_units,
        operate: |world| {
            world.space(0).map(Iova::new(4 * MIB), &world.ram(DIMM, 0, 4 * K64), RW, UNITS)?;
            done()
        },
    },
    Sequence {
        name: "replace_units",
        on: EVERYWHERE,
        arrange: with_mapped_units,
        operate: |world| {
            let memory = world.ram(DIMM, 8 * K64, 2 * K64);
            world.space(0).replace(Iova::new(MIB + K64), &memory, Access::READ, PageSize::K64)?;
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
            world.space(0).map(Iova::new(second), &world.ram(RAM, MIB, 2 * K64), RW, UNITS).expect("undisturbed");
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

/// Where the DIMM is plugged.
const DIMM_AT: u64 = 256 * MIB;
/// The DIMM has four of these.
const BLOCK: PageSize = match PageSize::from_bytes(256 << 10) {
    Some(block) => block,
    None => PageSize::K64,
};
/// Where the second window lies on hosts that create it.
const HIGH: u64 = 1 << 59;
const UNITS: Unit = Unit::Pages(PageSize::K64);

fn range(first: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(first), len).expect("a range of the test")
}

fn request(first: u64) -> WindowRequest {
    WindowRequest { range: range(first, 256 * MIB), page: PageSize::K4 }
}

fn ram(world: &World, name: &str, at: u64, region: usize, offset: u64, len: u64, access: Access) -> Section {
    Section::ram(name, Iova::new(at), world.ram(region, offset, len), access).expect("a section of the test")
}

fn shadow(world: &World, access: Access) -> Section {
    ram(world, "shadow", 0xc_0000, RAM, 0xc_0000, K64, access)
}

fn dimm(world: &World) -> Section {
    ram(world, "dimm", DIMM_AT, DIMM, 0, MIB, RW)
}

/// The DIMM again, as blocks that come and go.
fn discardable(world: &World) -> Section {
    let (at, memory) = (Iova::new(DIMM_AT), world.ram(DIMM, 0, MIB));
    Section::discardable("virtio-mem", at, memory, RW, BLOCK).expect("a section of the test")
}

/// A discardable section, and plain memory beside it.
fn beside(world: &World) -> Update {
    Update::new().adding(shadow(world, Access::READ)).adding(discardable(world))
}

/// The same, with these blocks populated.
fn with_blocks(world: &mut World, populated: &[u64]) {
    with_empty_view(world, FrontEnd::default());
    world.commit(beside(world)).expect("undisturbed");
    for block in populated {
        populate(world, *block, 1).expect("undisturbed");
    }
}

fn blocks(first: u64, count: u64) -> IovaRange {
    range(DIMM_AT + first * BLOCK.bytes(), count * BLOCK.bytes())
}

fn populate(world: &World, first: u64, count: u64) -> Operated {
    world.discardable(DIMM_AT).populate(blocks(first, count))?;
    done()
}

fn discard(world: &World, first: u64, count: u64) -> Operated {
    world.discardable(DIMM_AT).discard(blocks(first, count))?;
    done()
}

fn bar(world: &World, at: u64) -> Section {
    let memory = world.ram(BAR, 0, K64);
    Section::device_memory("another device's BAR", Iova::new(at), memory, RW).expect("a section of the test")
}

/// A small PC, with RAM below the place where every window ends that is created for it.
fn flat(world: &World) -> Update {
    let sections = [
        ram(world, "pc.ram", 0, RAM, 0, 0xa_0000, RW),
        Section::nothing("vga", range(0xa_0000, 0x2_0000)),
        shadow(world, Access::READ),
        ram(world, "pc.ram", MIB, RAM, MIB, 0xf_0000, RW),
        ram(world, "top", 512 * MIB - K64, RAM, 2 * MIB - K64, K64, RW),
        Section::msi("msi", range(0xfee0_0000, MIB)),
    ];
    sections.into_iter().fold(Update::new(), Update::adding)
}

fn low_window(len: u64) -> Section {
    Section::translated("tce-iommu-80000000", range(0, len), PageSize::K4)
}

/// Where the second window lies: sPAPR's place where the host creates windows, one that a PC's IOMMU has elsewhere, or beside the first.
fn high(world: &World) -> u64 {
    match (world.creates_windows(), world.has_one_window()) {
        (true, _) => HIGH,
        (_, true) => 512 * MIB,
        _ => 4096 * MIB,
    }
}

fn high_window(world: &World) -> Section {
    Section::translated("tce-iommu-80000001", range(high(world), 256 * MIB), PageSize::K64)
}

/// The guest's regions, one after the other.
fn target(world: &World, region: usize) -> TargetMemory {
    let (at, len) = if region == RAM { (0, 2 * MIB) } else { (2 * MIB, MIB) };
    TargetMemory::new("spapr.ram", SystemAddress::new(at), world.ram(region, 0, len)).expect("a piece of the test")
}

/// A half of the first region.
fn half(world: &World, n: u64) -> TargetMemory {
    let memory = world.ram(RAM, n * MIB, MIB);
    TargetMemory::new("spapr.ram", SystemAddress::new(n * MIB), memory).expect("a piece of the test")
}

/// sPAPR's bus: two windows, and RAM that is reached only through entries.
fn translated(world: &World) -> Update {
    let windows = Update::new().adding(low_window(256 * MIB)).adding(high_window(world));
    windows.adding_target(target(world, RAM)).adding_target(target(world, DIMM))
}

fn with_empty_view(world: &mut World, front: FrontEnd) {
    world.listener = Listener::new(front);
    world.open(0).expect("undisturbed");
    world.join(0).expect("undisturbed");
}

fn with_two_spaces(world: &mut World) {
    world.open(0).expect("undisturbed");
    world.open_elsewhere(1).expect("undisturbed");
    world.join(0).expect("undisturbed");
    world.join(1).expect("undisturbed");
}

fn with_two_spaces_mapped(world: &mut World) {
    with_two_spaces(world);
    world.commit(flat(world)).expect("undisturbed");
}

fn with_a_pool(world: &mut World, spaces: usize) {
    for n in 0..spaces {
        world.open_sharing(n).expect("undisturbed");
        world.join(n).expect("undisturbed");
    }
}

fn with_flat_map(world: &mut World) {
    with_empty_view(world, FrontEnd::default());
    world.commit(flat(world)).expect("undisturbed");
}

/// A flat map, and two devices, behind two IOMMUs if the host has so many.
fn with_two_devices(world: &mut World) {
    with_flat_map(world);
    world.add(0, 2).expect("undisturbed");
}

/// The same, tracked, and both devices have written.
fn with_writes(world: &mut World) {
    with_two_devices(world);
    world.track().expect("undisturbed");
    world.write(0, 0);
    world.write(1, 0x9_f000);
    world.write(0, MIB);
    world.write(1, 512 * MIB - K4);
}

/// Two translated windows, and a few entries in both.
fn with_entries(world: &mut World) {
    with_empty_view(world, FrontEnd::default());
    world.commit(translated(world)).expect("undisturbed");
    put_some(world);
    let window = world.window(high(world));
    window.put_run(Iova::new(high(world) + MIB), SystemAddress::new(MIB), 3 * K64, RW).expect("undisturbed");
}

fn put_some(world: &World) {
    let window = world.window(0);
    window.put_run(Iova::new(MIB), SystemAddress::new(0), 4 * K4, RW).expect("undisturbed");
    window.put(Iova::new(2 * MIB), SystemAddress::new(MIB), Access::READ).expect("undisturbed");
}

/// A bridge after its reset, which has created windows of 256 MiB in such pages, with entries in all of them.
fn with_bridge(world: &mut World, page_shifts: &[u32]) {
    with_empty_view(world, FrontEnd::default());
    let targets = Update::new().adding_target(target(world, RAM)).adding_target(target(world, DIMM));
    world.commit(targets).expect("undisturbed");
    let layout = Layout::pseries(0).placed_on([&world.space(0)]).expect("there is room");
    world.bridge = Some(PciHostBridge::new(layout, Arc::new(TceTables::new())).expect("a proper layout"));
    let arranged = world.on_bridge(|bridge, listener| {
        bridge.reset(listener)?;
        page_shifts.iter().try_for_each(|shift| bridge.create_window(listener, *shift, 28).map(drop))
    });
    arranged.expect("undisturbed");
    let bridge = world.bridge.as_ref().expect("it is there");
    for window in bridge.windows() {
        let at = window.range.first().get() + 3 * window.page.bytes();
        let entry = bridge.tables().h_stuff_tce(&GuestRam, window.liobn.get().into(), at, 0x1_0003, 2);
        entry.expect("undisturbed");
    }
}

fn remove_window(world: &mut World, number: u8) -> Result<Done, Trouble> {
    world.on_bridge(|bridge, listener| {
        let liobn = bridge.layout().liobn(number);
        bridge.remove_window(listener, liobn).map(drop)
    })
}

/// The same, and the kernel fills the windows, which are small: whoever looks into its tables looks at all of them.
fn with_bridge_and_kernel(world: &mut World, page_shifts: &[u32]) {
    with_empty_view(world, FrontEnd::default());
    world.commit(Update::new().adding_target(target(world, RAM))).expect("undisturbed");
    let layout = Layout::pseries(0).placed_on([&world.space(0)]).expect("there is room");
    let layout = Layout { default_window: range(0, 2 * MIB), ..layout };
    let kvm = SoftKvm::new(world.soft(), &world.ram(RAM, 0, 2 * MIB));
    let bridge = PciHostBridge::new(layout, Arc::new(TceTables::new())).expect("a proper layout");
    world.bridge = Some(bridge.with_kernel(kvm.tables()));
    let arranged = world.on_bridge(|bridge, listener| {
        bridge.reset(listener)?;
        page_shifts.iter().try_for_each(|shift| bridge.create_window(listener, *shift, 22).map(drop))
    });
    arranged.expect("undisturbed");
    let bridge = world.bridge.as_ref().expect("it is there");
    for window in bridge.windows() {
        assert_eq!(bridge.answered_by(window.liobn), Some(AnsweredBy::Kernel));
        let at = window.range.first().get() + 3 * window.page.bytes();
        for at in [at, at + window.page.bytes()] {
            assert!(kvm.put(window.liobn.get().into(), at, 0x1_0003));
        }
    }
}

/// 3 MiB from 0 on. Nobody reads them.
struct GuestRam;

impl SystemMemory for GuestRam {
    fn holds(&self, range: SystemRange) -> bool {
        range.last().get() < 3 * MIB
    }

    fn read(&self, _: SystemAddress, _: &mut [u8]) -> bool {
        false
    }

    fn write(&self, _: SystemAddress, _: &[u8]) -> bool {
        false
    }
}

/// Units of 64 KiB and a whole mapping, put there without a listener.
fn with_mapped_units(world: &mut World) {
    world.open(0).expect("undisturbed");
    with_mapped_units_in(world);
}

fn with_mapped_units_in(world: &World) {
    if world.creates_windows() {
        world.registration(|registration| registration.register(&world.ram(RAM, 0, 2 * MIB))).expect("undisturbed");
        world.registration(|registration| registration.register(&world.ram(DIMM, 0, MIB))).expect("undisturbed");
        world.control(|control| control.create_window(request(0))).expect("undisturbed");
        world.control(|control| control.create_window(request(HIGH))).expect("undisturbed");
    }
    let space = world.space(0);
    space.map(Iova::new(MIB), &world.ram(RAM, 0, 4 * K64), RW, UNITS).expect("undisturbed");
    space.map(Iova::new(2 * MIB), &world.ram(RAM, MIB, 2 * K64), Access::READ, Unit::Whole).expect("undisturbed");
}

type Operated = Result<sources::faults::Done, sources::faults::Trouble>;

fn detach(world: &mut World) -> Operated {
    world.space(0).detach(&world.attached[0])?;
    done()
}

fn leave(world: &mut World) -> Operated {
    let space = world.space(0);
    world.listener.detach(&space)?;
    done()
}

fn drop_everything(world: &mut World) -> Operated {
    world.listener = Listener::default();
    world.opened.clear();
    done()
}

#[test]
fn every_call_of_every_sequence_fails_in_every_way() {
    let only = std::env::var("DMASPACE_FAULTS").unwrap_or_default();
    let begun = Instant::now();
    let tally = sweep(SEQUENCES, &only);
    // Past the capture of the test harness: the numbers are wanted when all is well, too.
    let (sequences, cases) = (SEQUENCES.len(), tally.cases());
    let Tally { single, double, lasting, .. } = &tally;
    let report = format!(
        "{sequences} sequences, {cases} cases in {:.1?}: {single} with one fault, {double} with two, {lasting} with one that lasts\n\
         {:?}\n",
        begun.elapsed(),
        tally.outcomes,
    );
    std::io::stderr().write_all(report.as_bytes()).expect("standard error");
    let shown: Vec<_> = tally.failures.iter().take(40).map(String::as_str).collect();
    assert!(shown.is_empty(), "{} cases failed, among them:\n{}", tally.failures.len(), shown.join("\n"));
    if only.is_empty() {
        assert_eq!(tally.uncovered(), [""; 0], "requests that were not spoilt in these modes");
        assert!(cases >= 20_000, "only {cases} cases");
        let seen = [Outcome::Hidden, Outcome::Undone, Outcome::Fenced, Outcome::Held, Outcome::Believed];
        assert!(seen.iter().all(|outcome| tally.outcomes.contains_key(outcome)), "{:?}", tally.outcomes);
    }
}
