use std::collections::BTreeMap;

use super::*;

const GIB: u64 = 1 << 30;
const HIGH: u64 = 1 << 59;

fn low() -> TceTable {
    TceTable::new(Iova::new(0), PageSize::K4, GIB >> 12).expect("a table of the test")
}

fn run(first: u64, pages: u64, target: u64, access: Access) -> EntryRun {
    let range = IovaRange::with_len(Iova::new(first), pages << 12).expect("a range of the test");
    EntryRun { range, target: SystemAddress::new(target), access }
}

fn list(raw: impl IntoIterator<Item = u64>) -> Vec<Tce> {
    raw.into_iter().map(Tce::new).collect()
}

/// Writes entries, and returns the changes that makes.
fn write(table: &mut TceTable, at: u64, entries: Entries<'_>) -> Vec<EntryChange> {
    let changes = table.changes(Iova::new(at), entries).expect("inside");
    table.write(Iova::new(at), entries).expect("inside");
    changes
}

#[test]
fn bounds_without_a_possible_table_are_refused() {
    let new = |first, page, entries| TceTable::new(Iova::new(first), page, entries).map(|table| table.range().last());
    let tiny = PageSize::from_shift(11).expect("a page");
    let huge = PageSize::from_shift(35).expect("a page");
    assert_eq!(new(0, tiny, 1), Err(BadTable::Page(tiny)));
    assert_eq!(new(0, huge, 1), Err(BadTable::Page(huge)));
    assert_eq!(new(0x1000, PageSize::K64, 1), Err(BadTable::Misaligned(Iova::new(0x1000), PageSize::K64)));
    assert_eq!(new(0, PageSize::K4, 0), Err(BadTable::BadRange(BadRange::Empty)));
    assert_eq!(new(0, PageSize::K4, 1 << 52), Err(BadTable::BadRange(BadRange::Overflow)));
    assert_eq!(new(1 << 63, PageSize::K4, (1 << 51) + 1), Err(BadTable::BadRange(BadRange::Overflow)));
    assert_eq!(new(1 << 63, PageSize::K4, 1 << 51), Ok(Iova::new(u64::MAX)));
}

#[test]
fn a_huge_window_with_three_entries_costs_three_leaves_and_the_way_to_them_and_frees_them() {
    let entries = (1u64 << 46) >> 16;
    let mut table = TceTable::new(Iova::new(HIGH), PageSize::K64, entries).expect("a table of the test");
    assert_eq!(table.allocated(), 0);
    for at in [HIGH, HIGH + (1 << 40), table.range().last().get() - 0xffff] {
        table.write(Iova::new(at), Entries::List(&list([0x1_0003]))).expect("inside");
    }
    // Five levels: the root is of all three, and each has a way of its own below.
    assert_eq!(table.allocated(), (1 + 3 * 4) * NODE);
    const { assert!(NODE < 600) };
    assert_eq!(table.live(IovaRange::all()).len(), 3);
    let nothing = Entries::Same(Tce::NONE, entries);
    assert_eq!(table.changes(Iova::new(HIGH), nothing), Ok(vec![EntryChange::Clear(table.range())]));
    table.write(Iova::new(HIGH), nothing).expect("inside");
    assert_eq!(table.allocated(), 0);
    assert_eq!(table.changes(Iova::new(HIGH), nothing), Ok(vec![]));
}

#[test]
fn a_leaf_is_freed_with_its_last_entry() {
    let mut table = TceTable::new(Iova::new(0), PageSize::K4, LEAF).expect("a table of the test");
    write(&mut table, 0, Entries::Same(Tce::new(0x7003), 2));
    write(&mut table, 0, Entries::List(&list([0])));
    assert_eq!(table.allocated(), NODE);
    write(&mut table, 0x1000, Entries::List(&list([0])));
    assert_eq!(table.allocated(), 0);
}

#[test]
fn lists_that_fill_and_clear_one_place_allocate_nothing() {
    let mut table = low();
    let entries = list((0..512).map(|n| (0x10_0000 + (n << 12)) | 3));
    let fill_and_clear = |table: &mut TceTable| {
        // Across borders of leaves.
        table.write(Iova::new(0x5000), Entries::List(&entries)).expect("inside");
        table.write(Iova::new(0x5000), Entries::Same(Tce::NONE, 512)).expect("inside");
    };
    fill_and_clear(&mut table);
    let allocated = allocation_counter::measure(|| fill_and_clear(&mut table));
    assert_eq!((allocated.count_total, table.allocated()), (0, 0));
}

#[test]
fn five_hundred_and_twelve_entries_that_continue_each_other_are_one_run() {
    let mut table = low();
    let entries = list((0..512).map(|n| (0x10_0000 + (n << 12)) | 3));
    // Across a border of chunks.
    let changes = write(&mut table, 0x20_0000 - 0x3000, Entries::List(&entries));
    let whole = run(0x20_0000 - 0x3000, 512, 0x10_0000, Access::READ_WRITE);
    assert_eq!(changes, [EntryChange::Put(whole)]);
    assert_eq!(table.live(IovaRange::all()), [whole]);
    let all = write(&mut table, 0, Entries::Same(Tce::NONE, GIB >> 12));
    assert_eq!(all, [EntryChange::Clear(table.range())]);
}

#[test]
fn a_run_ends_where_system_memory_or_the_rights_do_not_go_on() {
    let mut table = low();
    let entries = list([0x1003, 0x2003, 0x2003, 0x3001, 0x4001, 0x3001]);
    let changes = write(&mut table, 0, Entries::List(&entries));
    let puts = [
        run(0, 2, 0x1000, Access::READ_WRITE),
        run(0x2000, 1, 0x2000, Access::READ_WRITE),
        run(0x3000, 2, 0x3000, Access::READ),
        run(0x5000, 1, 0x3000, Access::READ),
    ];
    assert_eq!(changes, puts.map(EntryChange::Put));
    assert_eq!(table.live(IovaRange::all()), puts);
}

#[test]
fn a_run_does_not_go_on_past_the_top_of_system_memory() {
    let mut table = low();
    let entries = list([0xffff_ffff_ffff_f003, 3]);
    let changes = write(&mut table, 0, Entries::List(&entries));
    let puts = [run(0, 1, 0xffff_ffff_ffff_f000, Access::READ_WRITE), run(0x1000, 1, 0, Access::READ_WRITE)];
    assert_eq!(changes, puts.map(EntryChange::Put));
}

#[test]
fn live_entries_are_replaced_new_ones_put_and_equal_ones_left_alone() {
    let mut table = low();
    write(&mut table, 0x1000, Entries::List(&list([0x2003, 0x3003])));
    let changes = write(&mut table, 0, Entries::List(&list([0x1003, 0x2003, 0x3001, 0x4003])));
    let put = run(0, 1, 0x1000, Access::READ_WRITE);
    let replaced = run(0x2000, 1, 0x3000, Access::READ);
    let more = run(0x3000, 1, 0x4000, Access::READ_WRITE);
    assert_eq!(changes, [EntryChange::Put(put), EntryChange::Replace(replaced), EntryChange::Put(more)]);
}

#[test]
fn clears_are_merged_over_gaps_and_left_out_where_nothing_was() {
    let mut table = low();
    let raw = [0x1003, 0, 0x3003, 0, 0, 0];
    write(&mut table, 0, Entries::List(&list(raw)));
    let nothing = list([0, 0, 0, 0x7003, 0, 0]);
    let changes = write(&mut table, 0, Entries::List(&nothing));
    let cleared = run(0, 3, 0, Access::READ).range;
    assert_eq!(changes, [EntryChange::Clear(cleared), EntryChange::Put(run(0x3000, 1, 0x7000, Access::READ_WRITE))]);
}

#[test]
fn an_entry_without_a_right_is_kept_but_not_live() {
    let mut table = low();
    assert_eq!(write(&mut table, 0x5000, Entries::List(&list([0xdead_0000_0ffc]))), []);
    assert_eq!(table.get(Iova::new(0x5fff)), Ok(Tce::new(0xdead_0000_0ffc)));
    assert_eq!(table.live(IovaRange::all()), []);
    assert_eq!(write(&mut table, 0, Entries::Same(Tce::NONE, 16)), []);
    assert_eq!(table.get(Iova::new(0x5000)), Ok(Tce::NONE));
}

#[test]
fn entries_outside_are_refused_and_nothing_is_written() {
    let mut table = low();
    let window = table.range();
    for (at, count) in [(GIB, 1), (GIB, 0), (GIB - 0x1000, 2), (0, (GIB >> 12) + 1), (0x1000, u64::MAX)] {
        let outside = OutsideTable { at: Iova::new(at), count, window };
        let entries = Entries::Same(Tce::new(0x7003), count);
        assert_eq!(table.changes(Iova::new(at), entries), Err(outside));
        assert_eq!(table.write(Iova::new(at), entries), Err(outside));
    }
    assert_eq!(table.write(Iova::new(0), Entries::List(&[])), Ok(()));
    assert_eq!(table.allocated(), 0);
}

#[test]
fn translation_names_the_reason_of_a_fault() {
    let mut table = TceTable::new(Iova::new(HIGH), PageSize::K64, 16).expect("a table of the test");
    table.write(Iova::new(HIGH), Entries::List(&list([0x3_0003, 0x5_0001, 0x6_0002, 0x7_0000]))).expect("inside");
    let translate = |offset: u64, access| table.translate(Iova::new(HIGH + offset), access);
    let refused = |offset: u64, access| Err(Fault::NotAllowed(Iova::new(HIGH + offset), access));
    assert_eq!(translate(0x1234, Access::WRITE), Ok((SystemAddress::new(0x3_1234), Access::READ_WRITE)));
    assert_eq!(translate(0x1_ffff, Access::READ), Ok((SystemAddress::new(0x5_ffff), Access::READ)));
    assert_eq!(translate(0x1_0000, Access::WRITE), refused(0x1_0000, Access::READ));
    assert_eq!(translate(0x1_0000, Access::READ_WRITE), refused(0x1_0000, Access::READ));
    assert_eq!(translate(0x2_0000, Access::READ), refused(0x2_0000, Access::WRITE));
    for offset in [0x3_0000, 0x4_0000] {
        assert_eq!(translate(offset, Access::READ), Err(Fault::NotMapped(Iova::new(HIGH + offset))));
    }
    for at in [HIGH - 1, HIGH + 0x10_0000, 0, u64::MAX] {
        let at = Iova::new(at);
        assert_eq!(table.translate(at, Access::READ), Err(Fault::OutsideWindow(at, table.range())));
    }
}

/// Makes changes on a host. Fails at a put over a live entry, a replacement of no entry, and a clear of no entry.
fn make(host: &mut BTreeMap<u64, (u64, Access)>, changes: &[EntryChange]) {
    for change in changes {
        let (range, run) = match change {
            EntryChange::Put(run) | EntryChange::Replace(run) => (run.range, Some(run)),
            EntryChange::Clear(range) => (*range, None),
        };
        let mut cleared = 0;
        for at in (range.first().get()..=range.last().get()).step_by(4096) {
            let old = match run {
                Some(run) => host.insert(at, (run.target.get() + at - range.first().get(), run.access)),
                None => host.remove(&at),
            };
            match change {
                EntryChange::Put(_) => assert_eq!(old, None, "{change:?}"),
                EntryChange::Replace(_) => assert!(old.is_some(), "{change:?}"),
                EntryChange::Clear(_) => cleared += usize::from(old.is_some()),
            }
        }
        assert!(run.is_some() || cleared > 0, "{change:?}");
    }
}

#[test]
fn a_host_that_makes_the_changes_has_the_table_s_entries() {
    const ENTRIES: u64 = 1200;
    let mut table = TceTable::new(Iova::new(HIGH), PageSize::K4, ENTRIES).expect("a table of the test");
    let mut host = BTreeMap::new();
    let mut state = 7u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let rounds = if cfg!(miri) { 2 } else { 1000 };
    for _ in 0..rounds {
        let first = random(ENTRIES);
        let count = random(40.min(ENTRIES - first) + 1);
        let target = random(64) << 12;
        let mut raw = |n: u64| match random(8) {
            0 => random(3) << 12,
            1 => (random(64) << 12) | random(4),
            _ => (target + (n << 12)) | 3,
        };
        let entries: Vec<_> = (0..count).map(|n| Tce::new(raw(n))).collect();
        let entries = match random(4) {
            0 => Entries::Same(Tce::NONE, count),
            1 => Entries::Same(Tce::new(target | 1), count),
            _ => Entries::List(&entries),
        };
        make(&mut host, &write(&mut table, HIGH + (first << 12), entries));
        let mut live = BTreeMap::new();
        make(&mut live, &table.live(IovaRange::all()).into_iter().map(EntryChange::Put).collect::<Vec<_>>());
        assert_eq!(live, host);
    }
    table.write(table.range().first(), Entries::Same(Tce::NONE, ENTRIES)).expect("inside");
    assert_eq!(table.allocated(), 0);
}
