//! The work of a guest, from its memory map to its device's DMA, the same on every host: a PC's flat map, sPAPR's two
//! windows, and memory that comes and goes in blocks.

use dmaspace_core::contract::MappingModel;
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::section::{FrontEnd, TargetMemory};
use dmaspace_listener::{CommitError, Fate, Report, Update};
use dmaspace_listener::{Listener, Section};

use crate::dirty::dirty_pages;
use crate::fixture::Fixture;
use crate::limits::limit_met_in_the_middle_of_a_commit;
use crate::ram::Droppable;

/// A scenario by name.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// The name in reports.
    pub name: &'static str,
    /// The scenario.
    pub run: fn(&mut Fixture),
}

/// All there are.
pub const ALL: &[Scenario] = &[
    Scenario { name: "dirty_pages", run: |fixture| dirty_pages(fixture, false) },
    Scenario { name: "discardable_blocks", run: discardable_blocks },
    Scenario { name: "flat_pc_map", run: flat_pc_map },
    Scenario { name: "limit_met_in_the_middle_of_a_commit", run: limit_met_in_the_middle_of_a_commit },
    Scenario { name: "two_windows", run: two_windows },
];

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The start of the flat map's RAM above 4 GiB.
const HIGH: u64 = 4 * GIB;

fn range(first: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(first), len).expect("a range of the scenario")
}

fn ram(name: &str, at: u64, memory: HostMemory, access: Access) -> Section {
    Section::ram(name, Iova::new(at), memory, access).expect("a section of the scenario")
}

/// A PC with 8 MiB below 4 GiB, 4 MiB above, holes for VGA and MMIO, shadow RAM, and firmware below 4 GiB.
fn flat_pc_sections(fixture: &Fixture) -> Vec<Section> {
    let pc_ram = |at: u64, len: u64| fixture.ram.slice(at, len);
    // Short of 4 GiB: on a PHB4 the last 64 KiB below it are for interrupts, whatever window lies there (qemu:
    // hw/pci-host/pnv_phb4.c, pnv_phb4_update_msi_regions).
    let bios = fixture.ram.slice(12 * MIB, 0x2_0000);
    vec![
        ram("pc.ram", 0, pc_ram(0, 0xa_0000), Access::READ_WRITE),
        Section::nothing("vga-lowmem", range(0xa_0000, 0x2_0000)),
        ram("pc.rom", 0xc_0000, pc_ram(0xc_0000, 0x1_3000), Access::READ),
        ram("pc.ram", 0xd_3000, pc_ram(0xd_3000, 0x2_d000), Access::READ_WRITE),
        ram("pc.ram", MIB, pc_ram(MIB, 7 * MIB), Access::READ_WRITE),
        Section::nothing("ioapic", range(0xfec0_0000, 0x1000)),
        Section::msi("apic-msi", range(0xfee0_0000, MIB)),
        ram("pc.bios", 0xfffc_0000, bios, Access::READ),
        ram("pc.ram", HIGH, pc_ram(8 * MIB, 4 * MIB), Access::READ_WRITE),
    ]
}

/// All sections in one commit; the device reaches every RAM section as far as its access goes, and nothing else. Then
/// shadow RAM turns from ROM to RAM and the RAM above 4 GiB goes: only they change.
fn flat_pc_map(fixture: &mut Fixture) {
    let mut listener = Listener::new(FrontEnd::pc());
    listener.attach(fixture.space.clone()).expect("an empty view fits every host");
    let mut sections = flat_pc_sections(fixture);
    let reach = reach(fixture);
    let beyond = |section: &Section| reach.is_some_and(|reach| section.range().last() > reach);
    if sections.iter().any(|section| section.direct().is_some() && beyond(section)) {
        // A pseries host, or a window that is there: the whole map is refused before anything happens, the part in
        // reach is mapped.
        let refused =
            listener.commit(listener.update_to(&sections, &[])).expect_err("the map reaches beyond the window");
        assert!(matches!(refused, CommitError::Refused(_)), "{refused}");
        sections.retain(|section| !beyond(section));
    }
    let report = listener.commit(listener.update_to(&sections, &[])).expect("the map fits");
    assert_fates(&report, &sections);

    fixture.show_results_at(Iova::new(0x1_0000), fixture.ram.slice(0x1_0000, 0x1000));
    for section in &sections {
        let Some((memory, access)) = section.direct() else { continue };
        fixture.assert_range(section.range(), memory, access.contains(Access::WRITE));
    }
    // The pages before and after the mappings, and one far from all of them.
    for hole in [0xa_0000, 0xb_f000, 8 * MIB, GIB / 2, 0xfffb_f000, HIGH + 4 * MIB] {
        assert_outside(fixture, hole);
    }

    unlock_shadow_ram(fixture, &mut listener, &sections);
    leave(fixture, listener);
}

/// The end of the host's windows, where they have one. The listener cannot know of windows to come.
fn reach(fixture: &Fixture) -> Option<Iova> {
    let Some(control) = fixture.space.powers().window_control else { return fixture.space.windows().windows.top() };
    let offer = control.offer().expect("a device is attached");
    let longest = offer.places.first()?.longest?;
    Some(Iova::new(longest.get() - 1))
}

/// Shadow RAM turns from ROM to RAM, and the RAM at the end goes.
fn unlock_shadow_ram(fixture: &mut Fixture, listener: &mut Listener, sections: &[Section]) {
    let rom = sections.iter().find(|section| section.name() == "pc.rom").expect("the map has one");
    let high = sections.iter().rfind(|section| section.name() == "pc.ram").expect("the map has RAM");
    let (shadow, _) = rom.direct().expect("ROM is memory");
    let unlocked = ram("pc.ram", 0xc_0000, shadow.clone(), Access::READ_WRITE);
    let update = Update::new().removing(rom.clone()).removing(high.clone()).adding(unlocked.clone());
    let report = listener.commit(update).expect("unlocking the shadow RAM fits");
    assert_eq!(report.spaces[0].disturbed, 0, "only the change is touched");
    fixture.assert_range(unlocked.range(), shadow, true);
    fixture.assert_unreached(high.range().first());
    fixture.assert_range(sections[0].range(), &fixture.ram.slice(0, 0xa_0000), true);
}

fn assert_fates(report: &Report, sections: &[Section]) {
    let verdicts = &report.spaces[0].sections;
    assert_eq!(verdicts.len(), sections.len());
    for (verdict, section) in verdicts.iter().zip(sections) {
        let expected = match section.direct() {
            Some(_) => Fate::Mapped,
            None if section.name() == "apic-msi" => Fate::Msi,
            None => Fate::Skipped,
        };
        assert_eq!((verdict.fate, verdict.lost_head, verdict.lost_tail), (expected, 0, 0), "{verdict}");
    }
}

/// The start of the second window, and the length of both: sPAPR's place where the host creates windows, a place every
/// PC's IOMMU has elsewhere; both inside the one window where there is no other.
pub(crate) fn second_window(fixture: &Fixture) -> (u64, u64) {
    match (fixture.creates_windows(), fixture.space.describe().capabilities.keeps) {
        (true, _) => (1 << 59, GIB),
        (false, MappingModel::Mappings) => (HIGH, GIB),
        (false, MappingModel::PageEntries) => (GIB / 2, GIB / 4),
    }
}

/// sPAPR's bus: two TCE windows and one for MSI; RAM is reached only through entries.
fn two_windows(fixture: &mut Fixture) {
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(fixture.space.clone()).expect("an empty view fits every host");
    let (second, len) = second_window(fixture);
    let sections = [
        Section::translated("tce-iommu-80000000", range(0, len), PageSize::K4),
        Section::msi("msi", range(1 << 42, 0x1000)),
        Section::translated("tce-iommu-80000001", range(second, len), PageSize::K64),
    ];
    let target =
        TargetMemory::new("spapr.ram", SystemAddress::new(0), fixture.ram.all().clone()).expect("a proper range");
    let report =
        listener.commit(listener.update_to(&sections, std::slice::from_ref(&target))).expect("two windows fit");
    for verdict in &report.spaces[0].sections {
        let expected = if verdict.piece.name() == "msi" { Fate::Msi } else { Fate::Window };
        assert_eq!(verdict.fate, expected, "{verdict}");
    }
    let fate = match (fixture.space.powers().registration, fixture.space.powers().pin_sharing) {
        (Some(_), _) => Fate::Registered,
        (None, Some(_)) => Fate::PinsShared,
        (None, None) => Fate::Skipped,
    };
    assert_eq!(report.spaces[0].targets[0].fate, fate);

    let low = listener.translated(Iova::new(0)).expect("the first window is in force");
    let high = listener.translated(Iova::new(second)).expect("the second window is in force");
    // Results show through an entry in the middle of the first window.
    let scratch = Iova::new(len / 2);
    low.put(scratch, SystemAddress::new(15 * MIB), Access::READ_WRITE).expect("RAM is there");
    fixture.show_results_at(scratch, fixture.ram.slice(15 * MIB, 0x1000));

    for (window, first, page) in [(&low, 0, 0x1000), (&high, second, 0x1_0000_u64)] {
        // The window's first, a middle and its last entry, each to another place in RAM.
        let places = [first, first + len / 4, first + len - page];
        for (n, at) in (1..).zip(places) {
            let place = n * 2 * MIB;
            window.put(Iova::new(at), SystemAddress::new(place), Access::READ_WRITE).expect("RAM is there");
            fixture.assert_range(range(at, page), &fixture.ram.slice(place, page), true);
        }
        // Between entries, and right outside the window.
        for hole in [first + page, first + len / 4 - page, first + len / 4 + page] {
            fixture.assert_unreached(Iova::new(hole));
        }
        assert_outside(fixture, first + len);

        // A run of sixteen entries, read-only; then the middle is cleared.
        let run = Iova::new(first + len / 8);
        window.put_run(run, SystemAddress::new(9 * MIB), 16 * page, Access::READ).expect("RAM is there");
        fixture.assert_range(range(run.get(), 16 * page), &fixture.ram.slice(9 * MIB, 16 * page), false);
        window.clear(range(run.get() + 4 * page, 8 * page)).expect("whole entries");
        fixture.assert_unreached(Iova::new(run.get() + 4 * page));
        fixture.assert_unreached(Iova::new(run.get() + 12 * page - 0x1000));
        fixture.assert_readable(Iova::new(run.get() + 12 * page), &fixture.ram.slice(9 * MIB + 12 * page, page));

        // An entry that is live can be replaced, not put again.
        window.put(run, SystemAddress::new(0), Access::READ_WRITE).expect_err("the entry is live");
        window.replace(run, SystemAddress::new(11 * MIB), page, Access::READ_WRITE).expect("the entry is live");
        fixture.assert_range(range(run.get(), page), &fixture.ram.slice(11 * MIB, page), true);
        window.clear(range(first + len / 4, page)).expect("whole entries");
        fixture.assert_unreached(Iova::new(first + len / 4));
    }

    assert_outside(fixture, second - 0x1000);

    // A window is removed with its entries; the other window stays as it is.
    listener.commit(Update::new().removing(sections[2].clone())).expect("a window can go");
    assert!(high.put(Iova::new(second), SystemAddress::new(0), Access::READ).is_err(), "the window is gone");
    fixture.assert_unreached(Iova::new(second));
    fixture.assert_readable(Iova::new(0), &fixture.ram.slice(2 * MIB, 0x1000));
    leave(fixture, listener);
}

/// virtio-mem beside plain RAM: devices reach the populated blocks and nothing else. Pages that are dropped after a
/// discard belong to no block: a block that is populated again has the pages that this process sees.
fn discardable_blocks(fixture: &mut Fixture) {
    const BLOCK: PageSize = PageSize::K64;
    const FIRST: u64 = 4 * MIB;
    const SECOND: u64 = GIB / 2;
    let blocks = |first: u64, n: u64, count: u64| range(first + n * BLOCK.bytes(), count * BLOCK.bytes());
    let discardable = |name, at, memory| {
        Section::discardable(name, Iova::new(at), memory, Access::READ_WRITE, BLOCK).expect("a section of the scenario")
    };
    let (shown, droppable) = (fixture.ram.slice(FIRST, MIB), Droppable::new(MIB));
    let sections = [
        ram("pc.ram", 0, fixture.ram.slice(0, MIB), Access::READ_WRITE),
        discardable("virtio-mem", FIRST, shown.clone()),
        discardable("droppable", SECOND, droppable.memory().clone()),
    ];
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(fixture.space.clone()).expect("an empty view fits every host");
    let report = listener.commit(listener.update_to(&sections, &[])).expect("the sections fit");
    let fates: Vec<_> = report.spaces[0].sections.iter().map(|verdict| verdict.fate).collect();
    assert_eq!(fates, [Fate::Mapped, Fate::Discardable, Fate::Discardable]);
    fixture.show_results_at(Iova::new(0x1_0000), fixture.ram.slice(0x1_0000, 0x1000));
    fixture.assert_unreached(Iova::new(FIRST));

    // Four blocks of sixteen come, two in their middle go.
    let part = |n: u64, count: u64| shown.slice(n * BLOCK.bytes(), count * BLOCK.bytes()).expect("inside the section");
    let handle = listener.discardable(Iova::new(FIRST)).expect("the section is in force");
    handle.populate(blocks(FIRST, 4, 4)).expect("the memory is there");
    fixture.assert_range(blocks(FIRST, 4, 4), &part(4, 4), true);
    for hole in [0, 3, 8, 15] {
        fixture.assert_unreached(blocks(FIRST, hole, 1).first());
    }
    handle.discard(blocks(FIRST, 5, 2)).expect("the blocks can go by themselves");
    fixture.assert_range(blocks(FIRST, 4, 1), &part(4, 1), true);
    fixture.assert_unreached(blocks(FIRST, 5, 1).first());
    fixture.assert_unreached(blocks(FIRST, 6, 1).first());
    fixture.assert_range(blocks(FIRST, 7, 1), &part(7, 1), true);

    // Dropped pages do not come back by the device's way.
    let dropping = listener.discardable(Iova::new(SECOND)).expect("the section is in force");
    dropping.populate(blocks(SECOND, 0, 16)).expect("the memory is there");
    fixture.assert_range(blocks(SECOND, 0, 16), droppable.memory(), true);
    dropping.discard(blocks(SECOND, 2, 3)).expect("the blocks can go by themselves");
    droppable.drop_pages(2 * BLOCK.bytes(), 3 * BLOCK.bytes());
    dropping.populate(blocks(SECOND, 2, 3)).expect("new pages come when they are asked for");
    let anew = droppable.memory().slice(2 * BLOCK.bytes(), 3 * BLOCK.bytes()).expect("inside the section");
    fixture.assert_range(blocks(SECOND, 2, 3), &anew, true);

    // A section goes with its blocks; the others stay as they are.
    let report = listener.commit(Update::new().removing(sections[1].clone())).expect("a section can go");
    assert_eq!(report.spaces[0].disturbed, 0, "only the removed section is touched");
    handle.populate(blocks(FIRST, 0, 1)).expect_err("the section is gone");
    fixture.assert_unreached(blocks(FIRST, 4, 1).first());
    fixture.assert_range(blocks(SECOND, 0, 16), droppable.memory(), true);
    leave(fixture, listener);
}

/// On a host that creates windows: memory that is not made of the pages its owner says. The window's pages are small
/// all the same, and the device reaches all of it.
pub fn smaller_pages_than_said(fixture: &mut Fixture) {
    let huge = PageSize::M2.bytes();
    let begin = fixture.ram.all().address().get().next_multiple_of(huge) - fixture.ram.all().address().get();
    let memory = |n: u64| fixture.ram.slice(begin + n * huge, huge).backed_by(PageSize::M2);
    let sections = [ram("first", 0, memory(0), Access::READ_WRITE), ram("second", 2 * huge, memory(1), Access::READ)];
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(fixture.space.clone()).expect("an empty view fits every host");
    let report = listener.commit(listener.update_to(&sections, &[])).expect("smaller pages do");
    assert_fates(&report, &sections);
    let window = *fixture.space.windows().windows.iter().next().expect("the RAM has one");
    assert!(window.granule() <= fixture.space.describe().capabilities.host_page, "{window}");
    fixture.show_results_at(Iova::new(0x1_0000), fixture.ram.slice(begin + 0x1_0000, 0x1000));
    for section in &sections {
        let (memory, access) = section.direct().expect("RAM");
        fixture.assert_range(section.range(), memory, access.contains(Access::WRITE));
    }
    fixture.assert_unreached(Iova::new(huge));
    leave(fixture, listener);
}

/// Nothing is mapped at `at`, as far as a device can tell: a PHB4 takes an address modulo its table, so right behind
/// its end a window begins anew (qemu: hw/pci-host/pnv_phb4.c, pnv_phb4_translate_tve). It is known by a first window
/// that can be as long as one likes; a window that is there already does not tell.
fn assert_outside(fixture: &mut Fixture, at: u64) {
    let windows = fixture.space.windows().windows;
    let has_end = fixture.creates_windows() && reach(fixture).is_some();
    let may_begin_anew = fixture.space.describe().capabilities.keeps == MappingModel::PageEntries && !has_end;
    if !may_begin_anew || windows.containing(Iova::new(at)).is_some() {
        fixture.assert_unreached(Iova::new(at));
    }
}

/// A space that leaves its listener is empty.
fn leave(fixture: &Fixture, mut listener: Listener) {
    let space = fixture.space.clone();
    listener.detach(&space).expect("everything can be taken out");
    assert!(space.mappings(IovaRange::all()).is_empty(), "a space that left holds nothing");
    let registered = space.powers().registration.map_or(0, |registration| registration.registered().len());
    assert_eq!(registered, 0, "a space that left has nothing registered");
    assert_eq!(
        space.powers().pin_sharing.map_or(0, |sharing| sharing.shared().len()),
        0,
        "a space that left holds no memory"
    );
}
