//! The listener on the soft host: what no kernel has to decide.

use std::sync::Arc;

use dmaspace::choose::BackendKind;
use dmaspace::facts::Facts;
use dmaspace::open::{Host, Opened};
use dmaspace_core::contract::MapRequest;
use dmaspace_core::door::Errno;
use dmaspace_core::{Access, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::vm_memory::sections as vm_memory_sections;
use dmaspace_listener::{CommitError, Fate, Update};
use dmaspace_listener::{FrontEnd, Listener, Section};
use dmaspace_soft::profile::{Reason, ReservedProfile};
use dmaspace_soft::{FaultMode, FaultPlan, Profile, SoftHost};
use dmaspace_tests::soft::{host, memory, open, ram, range};
use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap, GuestRegionMmap};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn adding(sections: impl IntoIterator<Item = Section>) -> Update {
    sections.into_iter().fold(Update::new(), Update::adding)
}

/// The vtd preset with as many mappings as its kernel takes by default.
fn type1() -> (Arc<SoftHost>, Opened, Listener) {
    type1_for(FrontEnd::default())
}

fn type1_for(front: FrontEnd) -> (Arc<SoftHost>, Opened, Listener) {
    let soft = host("vtd");
    let opened = open(&soft, BackendKind::Type1);
    let mut listener = Listener::new(front);
    listener.attach(opened.space.space().clone()).expect("an empty view fits");
    soft.reset_calls();
    (soft, opened, listener)
}

#[test]
fn a_tib_in_pieces_of_2_mib_takes_one_mapping() {
    let (soft, opened, mut listener) = type1();
    let pieces = (0..GIB / (2 * MIB) * 1024).map(|n| ram(4 * GIB + n * 2 * MIB, (1 << 45) + n * 2 * MIB, 2 * MIB));
    listener.commit(adding(pieces)).expect("they join");
    assert_eq!(soft.calls().of("VFIO_IOMMU_MAP_DMA"), 1);
    assert_eq!(opened.space.space().mappings(IovaRange::all())[0].memory.len().get(), 1024 * GIB);
}

#[test]
fn a_hole_in_a_tib_of_a_pc_disturbs_a_gib() {
    let (_, _, mut listener) = type1_for(FrontEnd::pc());
    let guest = ram(4 * GIB, 1 << 45, 1024 * GIB);
    listener.commit(adding([guest.clone()])).expect("it fits");
    let hole = 500 * GIB;
    let below = ram(4 * GIB, 1 << 45, hole);
    let above = ram(4 * GIB + hole + MIB, (1 << 45) + hole + MIB, 524 * GIB - MIB);
    let report = listener.commit(adding([below, above]).removing(guest)).expect("it fits");
    assert_eq!(report.spaces[0].disturbed, GIB - MIB);
}

#[test]
fn chunks_give_way_where_they_would_take_more_than_half_of_the_mappings() {
    for (entries, mappings) in [(2047, 1), (2048, 1024)] {
        let mut profile = Profile::vtd();
        profile.limits.dma_entries = entries;
        let soft = SoftHost::new(profile).expect("a host with few mappings");
        let opened = open(&soft, BackendKind::Type1);
        let mut listener = Listener::new(FrontEnd::pc());
        listener.attach(opened.space.space().clone()).expect("an empty view fits");
        listener.commit(adding([ram(4 * GIB, 1 << 45, 1024 * GIB)])).expect("joined it is one");
        assert_eq!(opened.space.space().mappings(IovaRange::all()).len(), mappings, "of {entries}");
    }
}

#[test]
fn not_even_the_largest_guest_takes_more_than_a_thousand_calls_a_run() {
    let (soft, _, mut listener) = type1_for(FrontEnd::pc());
    listener.commit(adding([ram(4 * GIB, 1 << 45, (1 << 46) - 4 * GIB)])).expect("it fits");
    assert_eq!(soft.calls().of("VFIO_IOMMU_MAP_DMA"), 1024);
}

#[test]
fn more_sections_than_the_kernel_takes_are_refused_before_the_first_call() {
    let (soft, opened, mut listener) = type1();
    // Nothing joins: every page of the host lies elsewhere.
    let pieces = (0..70_000).map(|n| ram(4 * GIB + n * 0x1000, (1 << 45) + n * 0x3000, 0x1000));
    let error = listener.commit(adding(pieces)).expect_err("the kernel takes 65,535");
    let CommitError::Refused(report) = &error else { panic!("{error}") };
    assert!(report.spaces[0].sections.iter().all(|verdict| verdict.fate == Fate::Refused));
    let words = error.to_string();
    assert!(words.contains("70000") && words.contains("65535"), "{words}");
    assert_eq!(soft.calls().of("VFIO_IOMMU_MAP_DMA"), 0);
    assert!(opened.space.space().mappings(IovaRange::all()).is_empty());
    assert_eq!(listener.sections().count(), 0);
}

#[test]
fn hints_give_way_where_mappings_are_few() {
    let mut profile = Profile::vtd();
    profile.limits.dma_entries = 3;
    let soft = SoftHost::new(profile).expect("a host with few mappings");
    let opened = open(&soft, BackendKind::Type1);
    let mut listener = Listener::new(FrontEnd::pc());
    listener.attach(opened.space.space().clone()).expect("an empty view fits");
    // With hints it would be 66 mappings: 64 pages of shadow RAM, and what lies on both sides.
    listener.commit(adding([ram(0, 1 << 45, 2 * MIB)])).expect("joined it is one");
    assert_eq!(opened.space.space().mappings(IovaRange::all()).len(), 1);
}

#[test]
fn an_update_happens_on_every_space_or_on_none() {
    let (pc, power) = (host("vtd"), host("powernv9"));
    let (type1, iommufd) = (open(&pc, BackendKind::Type1), open(&host("vtd"), BackendKind::Iommufd));
    let spapr = open(&power, BackendKind::Spapr);
    let mut listener = Listener::new(FrontEnd::default());
    for opened in [&type1, &iommufd, &spapr] {
        listener.attach(opened.space.space().clone()).expect("an empty view fits");
    }
    listener.commit(adding([ram(0, 1 << 45, MIB)])).expect("it fits everywhere");
    // No PC's IOMMU reaches that far, a POWER window does.
    let far = adding([ram(MIB, 1 << 46, MIB), ram(1 << 58, 1 << 47, MIB)]);
    listener.commit(far).expect_err("two of three refuse");
    for opened in [&type1, &iommufd, &spapr] {
        let live = opened.space.space().mappings(IovaRange::all());
        assert_eq!(live.iter().map(|mapping| mapping.range.bytes()).sum::<u128>(), u128::from(MIB));
    }
}

#[test]
fn a_late_space_gets_the_live_mappings_and_no_more() {
    let (first, second) = (host("powernv9"), host("powernv9"));
    let (early, late) = (open(&first, BackendKind::Spapr), open(&second, BackendKind::Spapr));
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(early.space.space().clone()).expect("an empty view fits");
    let window = IovaRange::with_len(Iova::new(0), GIB).expect("a proper range");
    let target = TargetMemory::new("ram", SystemAddress::new(0), memory(1 << 45, GIB)).expect("a proper range");
    let update = Update::new().adding(Section::translated("tce", window, PageSize::K4)).adding_target(target);
    listener.commit(update).expect("a window fits");
    let handle = listener.translated(Iova::new(0)).expect("it is in force");
    handle.put_run(Iova::new(0x5000), SystemAddress::new(0x5000), 512 * 0x1000, Access::READ).expect("RAM is there");
    assert_eq!(first.calls().of("VFIO_IOMMU_SPAPR_TCE_CREATE"), 1);
    assert_eq!(first.calls().of("VFIO_IOMMU_MAP_DMA"), 1, "512 entries are one call");

    second.reset_calls();
    listener.attach(late.space.space().clone()).expect("it fits there too");
    assert_eq!(second.calls().of("VFIO_IOMMU_MAP_DMA"), 1, "and one call for the late space");
    handle.put(Iova::new(0), SystemAddress::new(0), Access::READ).expect("RAM is there");
    let live = |opened: &Opened| opened.space.space().mappings(IovaRange::all());
    assert_eq!(live(&early), live(&late));
    first.reset_calls();
    handle.clear(window).expect("whole entries");
    assert_eq!(first.calls().of("VFIO_IOMMU_UNMAP_DMA"), 1, "a whole window is one call");
}

#[test]
fn the_last_device_leaves_and_the_next_one_finds_everything() {
    let soft = host("vtd");
    let at = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
    let mut opened = open(&soft, BackendKind::Type1);
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(opened.space.space().clone()).expect("an empty view fits");
    listener.commit(adding([ram(0, 1 << 45, MIB)])).expect("it fits");

    let device = opened.devices.remove(0);
    let address = device.name().parse().expect("a PCI address");
    opened.space.remove(device).expect("nothing else holds it");
    assert!(opened.space.space().mappings(IovaRange::all()).is_empty(), "the kernel forgot it all");
    let report = listener.commit(adding([ram(4 * GIB, 1 << 46, MIB)])).expect("knowledge needs no device");
    assert_eq!(report.spaces[0].sections.iter().map(|verdict| verdict.fate).collect::<Vec<_>>(), [Fate::Pending; 2]);

    opened.space.add(&at, address).map(|device| opened.devices.push(device)).expect("it comes back");
    let report = listener.sync().expect("it fits as before");
    assert_eq!(report.spaces[0].sections.iter().map(|verdict| verdict.fate).collect::<Vec<_>>(), [Fate::Mapped; 2]);
    assert_eq!(opened.space.space().mappings(IovaRange::all()).len(), 2);
}

#[test]
fn another_device_changes_no_entry() {
    let mut profile = Profile::vtd();
    // The second device has a reserved region that the first one has not.
    profile.groups[1].reserved.push(ReservedProfile { first: 8 << 40, last: (9 << 40) - 1, reason: Reason::Reserved });
    let soft = SoftHost::new(profile).expect("a host with two groups");
    let at = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
    let mut opened = open(&soft, BackendKind::Type1);
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(opened.space.space().clone()).expect("an empty view fits");
    let window = IovaRange::with_len(Iova::new(0), GIB).expect("a proper range");
    let target = TargetMemory::new("ram", SystemAddress::new(0), memory(1 << 45, GIB)).expect("a proper range");
    let update = Update::new().adding(Section::translated("viommu", window, PageSize::K4)).adding_target(target);
    listener.commit(update.adding(ram(4 * GIB, 1 << 46, MIB))).expect("it fits");
    let handle = listener.translated(Iova::new(0)).expect("it is in force");
    handle.put_run(Iova::new(0x5000), SystemAddress::new(0x5000), 16 * 0x1000, Access::READ).expect("RAM is there");

    let before = opened.space.space().mappings(IovaRange::all());
    let second = soft.profile().groups[1].devices[0].address.parse().expect("a PCI address");
    let windows = opened.space.space().windows().generation;
    opened.space.add(&at, second).map(|device| opened.devices.push(device)).expect("nothing is in its way");
    assert_ne!(opened.space.space().windows().generation, windows, "its reserved region splits a window");
    soft.reset_calls();
    listener.sync().expect("nothing is to be done");
    assert_eq!(opened.space.space().mappings(IovaRange::all()), before);
    assert_eq!((soft.calls().of("VFIO_IOMMU_MAP_DMA"), soft.calls().of("VFIO_IOMMU_UNMAP_DMA")), (0, 0));
}

fn bar(at: u64) -> Section {
    let name = "0000:00:03.0 BAR 0";
    Section::device_memory(name, Iova::new(at), memory(1 << 46, MIB), Access::READ_WRITE).expect("a proper range")
}

#[test]
fn a_bar_that_cannot_be_mapped_is_warned_of_once_however_often_it_moves() {
    let soft = host("vtd");
    let opened = open(&soft, BackendKind::Iommufd);
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(opened.space.space().clone()).expect("an empty view fits");
    let report = listener.commit(adding([bar(0xfe00_0000)])).expect("the guest lives on");
    let warning = "0xfe000000..=0xfe0fffff (0000:00:03.0 BAR 0): skipped: iommufd cannot map another device's memory, \
                   unless that device exported it";
    assert_eq!(report.spaces[0].warnings.iter().map(ToString::to_string).collect::<Vec<_>>(), [warning]);
    let report = listener.commit(adding([bar(0xfd00_0000)]).removing(bar(0xfe00_0000))).expect("the guest lives on");
    assert_eq!(report.spaces[0].warnings, []);
    let standing = &listener.state().spaces[0].warnings;
    assert_eq!(standing.iter().map(|standing| standing.times).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_bar_that_the_host_refused_is_tried_again_by_a_sync_and_by_no_other_commit() {
    let (soft, opened, mut listener) = type1();
    let refused = FaultPlan::nth(0, FaultMode::FailBefore).of("VFIO_IOMMU_MAP_DMA").with(Errno::EFAULT);
    soft.plan_faults(&(0..8).map(|n| refused.later(n)).collect::<Vec<_>>());
    listener.commit(adding([bar(GIB)])).expect("best effort");
    soft.plan_faults(&[]);
    assert_eq!(opened.space.space().mappings(IovaRange::all()).len(), 0);
    listener.commit(adding([ram(0, 1 << 45, MIB)])).expect("it fits");
    assert_eq!(opened.space.space().mappings(IovaRange::all()).len(), 1);
    let report = listener.sync().expect("the host takes it now");
    assert_eq!(opened.space.space().mappings(IovaRange::all()).len(), 2, "{report:?}");
}

#[test]
fn the_state_names_whose_everything_is() {
    let (soft, opened) = (host("powernv9"), host("vtd"));
    let (spapr, type1) = (open(&soft, BackendKind::Spapr), open(&opened, BackendKind::Type1));
    let mut listener = Listener::new(FrontEnd::default());
    for opened in [&spapr, &type1] {
        listener.attach(opened.space.space().clone()).expect("an empty view fits");
    }
    listener.commit(adding([ram(0, 1 << 45, MIB)])).expect("it fits");
    let state = listener.state();
    for space in &state.spaces {
        assert_eq!((space.mapped(), space.totals.pinned, space.devices.len()), (MIB, MIB, 1));
        assert!(space.mappings.iter().all(|live| live.owners.iter().map(AsRef::as_ref).eq(["ram"])), "{space}");
    }
    assert_eq!(state.spaces[0].registrations[0].owners.len(), 1);
    assert_eq!(state.spaces[1].mappings_left, Some(65_534));
    let text = state.to_string();
    for line in ["type1 with group 3: 0x100000 bytes in 1 mappings", "  65534 mappings left"] {
        assert!(text.lines().any(|known| known == line), "{text}");
    }
}

#[test]
fn the_audit_finds_changes_made_past_the_listener() {
    let (_, opened, mut listener) = type1();
    listener.commit(adding([ram(0, 1 << 45, MIB), bar(0xfe00_0000)])).expect("it fits");
    assert_eq!(listener.audit(), []);
    let space = opened.space.space();
    space.map(MapRequest::new(Iova::new(GIB), &memory(1 << 44, MIB), Access::READ)).expect("the range is free");
    space.unmap(IovaRange::with_len(Iova::new(0), MIB).expect("a proper range")).expect("it is there");
    let found: Vec<_> = listener.audit().iter().map(|finding| finding.what.clone()).collect();
    let due = "it is not in step with the guest: it would have to";
    let memory = "host memory 0x200000000000..=0x2000000fffff";
    let expected =
        [format!("{due} unmap 0x40000000..=0x400fffff"), format!("{due} map {memory} at 0x0..=0xfffff, read-write")];
    assert_eq!(found, expected);
}

#[test]
fn a_window_whose_entries_are_smaller_than_the_hosts_pages_is_refused() {
    let opened = open(&host("vtd-64k"), BackendKind::Type1);
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(opened.space.space().clone()).expect("an empty view fits");
    let window = |page| Update::new().adding(Section::translated("viommu", range(0, GIB), page));
    let error = listener.commit(window(PageSize::K4)).expect_err("no entry could ever be put");
    let words = "0x0..=0x3fffffff (viommu): refused: its entries are pages of 4K, and 64K is the host's smallest";
    assert_eq!(error.to_string(), words);
    listener.commit(window(PageSize::K64)).expect("that fits");
}

#[test]
fn a_dimm_comes_and_goes_by_snapshots_of_the_guests_memory() {
    let (soft, opened, mut listener) = type1();
    let mib = usize::try_from(MIB).expect("a small number");
    let map = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), mib), (GuestAddress(GIB), mib)]);
    let memory = GuestMemoryAtomic::new(map.expect("memory for the test"));
    let follow = |listener: &mut Listener| {
        let sections = vm_memory_sections(&*memory.memory()).expect("proper ranges");
        let update = listener.update_to(&sections, &[]);
        let report = listener.commit(update).expect("it fits").spaces.remove(0);
        (report.sections.len(), report.pinned, report.disturbed)
    };
    follow(&mut listener);
    soft.reset_calls();

    let dimm = MmapRegion::new(mib).expect("memory for the test");
    let dimm = Arc::new(GuestRegionMmap::new(dimm, GuestAddress(4 * GIB)).expect("no wrap"));
    let plugged = memory.memory().insert_region(dimm.clone()).expect("nothing is there");
    memory.lock().expect("no other holder").replace(plugged);
    assert_eq!(follow(&mut listener), (1, MIB, 0));

    let life = Arc::downgrade(&dimm.get_mmap());
    drop(dimm);
    let (unplugged, _) = memory.memory().remove_region(GuestAddress(4 * GIB), MIB).expect("it is there");
    memory.lock().expect("no other holder").replace(unplugged);
    assert!(life.upgrade().is_some(), "it is mapped, so it is held, whatever the VMM lets go of");
    assert_eq!(follow(&mut listener), (0, 0, 0));
    assert!(life.upgrade().is_none(), "no device reaches it any more");
    assert_eq!((soft.calls().of("VFIO_IOMMU_MAP_DMA"), soft.calls().of("VFIO_IOMMU_UNMAP_DMA")), (1, 1));
    assert_eq!(opened.space.space().mappings(IovaRange::all()).len(), 2);
}

#[test]
fn memory_that_devices_may_neither_read_nor_write_is_refused_before_the_first_call() {
    let (soft, _opened, mut listener) = type1();
    let section = Section::ram("ram", Iova::new(0), memory(1 << 45, MIB), Access::empty()).expect("a proper range");
    let error = listener.commit(adding([section])).expect_err("it is required");
    assert!(matches!(&error, CommitError::Refused(_)), "{error}");
    assert_eq!(soft.calls().of("VFIO_IOMMU_MAP_DMA"), 0);
}

#[test]
fn the_whole_list_is_compared_in_whatever_order_it_comes() {
    let (soft, _opened, mut listener) = type1();
    let pieces: Vec<_> = (0..4).map(|n| ram(n * 2 * MIB, (1 << 45) + n * 4 * MIB, MIB)).collect();
    listener.commit(listener.update_to(&pieces, &[])).expect("it fits");
    soft.reset_calls();
    let backwards: Vec<_> = pieces.iter().rev().cloned().collect();
    assert!(listener.update_to(&backwards, &[]).is_empty());
    // The third moves, the first is another one, a fifth comes below all that stay.
    let moved = [pieces[1].clone(), ram(20 * MIB, (1 << 45) + 8 * MIB, MIB), pieces[3].clone(), ram(0, 1 << 46, MIB)];
    let update = listener.update_to(&moved, &[]);
    assert_eq!((update.removed().len(), update.added().len()), (2, 2));
    listener.commit(update).expect("it fits");
    assert_eq!((soft.calls().of("VFIO_IOMMU_MAP_DMA"), soft.calls().of("VFIO_IOMMU_UNMAP_DMA")), (2, 2));
    // A section that is listed twice overlaps itself.
    let twice = listener.update_to(&[moved[0].clone(), moved[0].clone()], &[]);
    assert!(matches!(listener.commit(twice), Err(CommitError::Update(_))));
}
