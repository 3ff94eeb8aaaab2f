//! Discardable sections on the soft host, over all three dialects: the reach of devices, the cost in calls, and the
//! refusals.
//!
//! Every call of these verbs is made to fail in `faults/`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dmaspace::choose::BackendKind;
use dmaspace::facts::Facts;
use dmaspace::open::{Host, Opened};
use dmaspace_core::contract::Unit;
use dmaspace_core::error::Kind;
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, PciAddressSpace, SystemAddress};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{BadUpdate, BlockError, CommitError, DiscardableRam, Fate, InUse, Update, WarningCause};
use dmaspace_listener::{FrontEnd, Listener, Section};
use dmaspace_soft::{FaultMode, FaultPlan, Profile, SoftHost};
use dmaspace_tests::soft::{fixture, host, memory, open, ram};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const RW: Access = Access::READ_WRITE;
const BLOCK: PageSize = PageSize::K64;
/// The start of the section of most tests. It has sixteen blocks.
const AT: u64 = 4 * MIB;

/// Every dialect, with small pages and large ones.
const EVERYWHERE: [(&str, BackendKind); 9] = [
    ("vtd", BackendKind::Type1),
    ("vtd", BackendKind::Iommufd),
    ("vtd-64k", BackendKind::Type1),
    ("vtd-64k", BackendKind::Iommufd),
    ("powernv9", BackendKind::Spapr),
    ("powernv9-64k", BackendKind::Spapr),
    ("pseries", BackendKind::Spapr),
    ("powernv9", BackendKind::SpaprV1),
    ("powernv9-64k", BackendKind::SpaprV1),
];

fn discardable(memory: HostMemory) -> Section {
    Section::discardable("virtio-mem", Iova::new(AT), memory, RW, BLOCK).expect("a proper range")
}

/// The section of most tests, without bytes.
fn blocks_of_nothing() -> Section {
    discardable(memory(1 << 45, MIB))
}

fn blocks(first: u64, count: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(AT + first * BLOCK.bytes()), count * BLOCK.bytes()).expect("a range of the test")
}

fn handle_of(listener: &Listener) -> DiscardableRam {
    listener.discardable(Iova::new(AT)).expect("the section is in force")
}

fn mapped(space: &dyn PciAddressSpace) -> Vec<IovaRange> {
    space.mappings(IovaRange::all()).into_iter().map(|mapping| mapping.range).collect()
}

/// A host that serves the section of most tests, and nothing else.
fn serving(soft: &Arc<SoftHost>, backend: BackendKind) -> (Opened, Listener) {
    let opened = open(soft, backend);
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(opened.space.space().clone()).expect("an empty view fits");
    listener.commit(Update::new().adding(blocks_of_nothing())).expect("it fits");
    soft.reset_calls();
    (opened, listener)
}

/// Calls that map, unmap, register and unregister.
fn changes(soft: &SoftHost) -> u64 {
    const CHANGING: [&str; 6] = [
        "VFIO_IOMMU_MAP_DMA",
        "VFIO_IOMMU_UNMAP_DMA",
        "IOMMU_IOAS_MAP",
        "IOMMU_IOAS_UNMAP",
        "VFIO_IOMMU_SPAPR_REGISTER_MEMORY",
        "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY",
    ];
    CHANGING.iter().map(|call| soft.calls().of(call)).sum()
}

fn unmaps(soft: &SoftHost) -> u64 {
    soft.calls().of("VFIO_IOMMU_UNMAP_DMA") + soft.calls().of("IOMMU_IOAS_UNMAP")
}

#[test]
fn devices_reach_populated_blocks_only() {
    for (preset, backend) in EVERYWHERE {
        let soft = host(preset);
        let mut fixture = fixture(&soft, backend);
        let shown = fixture.ram.slice(AT, MIB);
        let mut listener = Listener::new(FrontEnd::default());
        listener.attach(fixture.space.clone()).expect("an empty view fits");
        let plain = Section::ram("ram", Iova::new(0), fixture.ram.slice(0, MIB), RW).expect("a proper range");
        listener.commit(Update::new().adding(plain).adding(discardable(shown.clone()))).expect("it fits");
        fixture.show_results_at(Iova::new(0x1_0000), fixture.ram.slice(0x1_0000, 0x1000));
        let reached = |fixture: &mut dmaspace_tests::fixture::Fixture, populated: &[u64]| {
            for n in 0..16 {
                let block = shown.slice(n * BLOCK.bytes(), BLOCK.bytes()).expect("inside");
                match populated.contains(&n) {
                    true => fixture.assert_range(blocks(n, 1), &block, true),
                    false => fixture.assert_unreached(blocks(n, 1).first()),
                }
            }
        };
        reached(&mut fixture, &[]);
        let handle = handle_of(&listener);
        handle.populate(blocks(2, 5)).expect("the memory is there");
        reached(&mut fixture, &[2, 3, 4, 5, 6]);
        handle.discard(blocks(3, 2)).expect("blocks go by themselves");
        reached(&mut fixture, &[2, 5, 6]);
        handle.populate(blocks(0, 6)).expect("around the populated blocks");
        assert_eq!(handle.populated(), Ok(vec![blocks(0, 7)]));
        reached(&mut fixture, &[0, 1, 2, 3, 4, 5, 6]);
        handle.discard(blocks(0, 16)).expect("all there is");
        reached(&mut fixture, &[]);
        drop((listener, fixture));
        assert!(soft.ledger().is_clear(), "{preset}: {:?}", soft.ledger());
    }
}

#[test]
fn a_block_in_the_wanted_state_makes_no_call() {
    for (preset, backend) in EVERYWHERE {
        let soft = host(preset);
        let (_opened, listener) = serving(&soft, backend);
        let handle = handle_of(&listener);
        handle.discard(blocks(0, 16)).expect("nothing is there");
        assert_eq!(changes(&soft), 0, "{preset}");
        handle.populate(blocks(2, 4)).expect("it fits");
        soft.reset_calls();
        handle.populate(blocks(3, 2)).expect("it is there");
        handle.discard(blocks(8, 4)).expect("it is not there");
        assert_eq!(soft.calls().total(), 0, "{preset}");
    }
}

#[test]
fn a_block_is_a_mapping_and_a_discard_is_one_unmap_over_all_gaps() {
    for (preset, backend) in EVERYWHERE {
        let soft = host(preset);
        let (opened, listener) = serving(&soft, backend);
        let handle = handle_of(&listener);
        handle.populate(blocks(0, 4)).expect("it fits");
        let keeps_mappings = !backend.is_of_power();
        assert_eq!(soft.ledger().mappings, if keeps_mappings { 4 } else { 4 * BLOCK.bytes() / page_of(&opened) });
        handle.populate(blocks(8, 2)).expect("it fits");
        soft.reset_calls();
        handle.discard(blocks(2, 14)).expect("whole blocks");
        assert_eq!(unmaps(&soft), 1, "{preset}");
        assert_eq!(mapped(opened.space.space().as_ref()), [blocks(0, 2)]);
    }
}

fn page_of(opened: &Opened) -> u64 {
    let windows = opened.space.space().windows().windows;
    windows.containing(Iova::new(AT)).expect("there is a window").granule().bytes()
}

#[test]
fn a_host_that_registers_holds_a_registration_for_each_populated_block_and_no_more() {
    let soft = host("powernv9");
    let (_opened, listener) = serving(&soft, BackendKind::Spapr);
    let tables = soft.ledger().locked;
    let handle = handle_of(&listener);
    assert_eq!(soft.ledger().registrations, 0);
    handle.populate(blocks(0, 6)).expect("it fits");
    assert_eq!((soft.ledger().registrations, soft.ledger().locked), (6, tables + 6 * BLOCK.bytes()));
    handle.discard(blocks(1, 2)).expect("they are registered alone");
    assert_eq!((soft.ledger().registrations, soft.ledger().locked), (4, tables + 4 * BLOCK.bytes()));
}

#[test]
fn a_registration_around_a_block_is_in_the_way_of_both_verbs() {
    let soft = host("powernv9");
    let (opened, listener) = serving(&soft, BackendKind::Spapr);
    let registration = opened.space.space().powers().registration.expect("POWER registers");
    let whole = memory(1 << 45, MIB);
    registration.register(&whole).expect("another user registers it");
    let handle = handle_of(&listener);
    let around = BlockError::RegisteredAround { backend: "spapr", memory: whole.clone() };
    assert_eq!(handle.populate(blocks(0, 1)), Err(around));
    registration.unregister(&whole).expect("nothing leans on it");
    handle.populate(blocks(0, 1)).expect("it is free");
}

#[test]
fn memory_that_is_registered_with_its_neighbour_cannot_become_discardable_beside_it() {
    let opened = open(&host("powernv9"), BackendKind::Spapr);
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(opened.space.space().clone()).expect("an empty view fits");
    let (low, high) = (ram(0, (1 << 45) - MIB, MIB), ram(AT, 1 << 45, MIB));
    listener.commit(Update::new().adding(low.clone()).adding(high.clone())).expect("one registration for both");
    let beside = Update::new().removing(high.clone()).adding(blocks_of_nothing());
    let error = listener.commit(beside).expect_err("the neighbour needs the registration");
    assert!(error.to_string().contains("is registered as one piece"), "{error}");
    listener.commit(Update::new().removing(high).removing(low.clone())).expect("both can go");
    listener.commit(Update::new().adding(low).adding(blocks_of_nothing())).expect("now they are apart");
    handle_of(&listener).populate(blocks(0, 1)).expect("and so are their registrations");
}

/// Calls of these names fail from the first on, after they happened or before.
fn failing(soft: &SoftHost, calls: &[(&'static str, FaultMode)]) {
    let plans: Vec<_> =
        calls.iter().flat_map(|(call, mode)| (1..20).map(|at| FaultPlan::nth(at, *mode).of(call))).collect();
    soft.plan_faults(&plans);
}

#[test]
fn blocks_behind_a_fence_are_not_discarded_wherever_the_section_moves() {
    let calls = |backend| match backend {
        BackendKind::Iommufd => ["IOMMU_IOAS_MAP", "IOMMU_IOAS_UNMAP"],
        _ => ["VFIO_IOMMU_MAP_DMA", "VFIO_IOMMU_UNMAP_DMA"],
    };
    for (preset, backend) in EVERYWHERE {
        let soft = host(preset);
        let (opened, mut listener) = serving(&soft, backend);
        let [map, unmap] = calls(backend);
        failing(&soft, &[(map, FaultMode::FailAfter), (unmap, FaultMode::FailBefore)]);
        let error = handle_of(&listener).populate(blocks(0, 1)).expect_err("the kernel says no");
        soft.plan_faults(&[]);
        let fences: Vec<_> = opened.space.space().describe().fences.into_iter().map(|fence| fence.range).collect();
        let BlockError::Space(error) = error else { panic!("{error}") };
        assert_eq!((error.fenced().to_vec(), fences), (vec![blocks(0, 1)], vec![blocks(0, 1)]), "{preset}");
        assert_eq!(handle_of(&listener).populated(), Ok(vec![]));

        let is_fenced = |result: Result<(), BlockError>| match result {
            Err(BlockError::Space(error)) => error.kind() == Kind::Fenced(blocks(0, 1)),
            _ => false,
        };
        assert!(is_fenced(handle_of(&listener).discard(blocks(0, 2))), "{preset}: a device may still reach it");
        assert!(is_fenced(handle_of(&listener).populate(blocks(0, 2))), "{preset}");
        listener.may_discard(&memory(1 << 45, 0x1000)).expect_err("a device may still reach it");
        handle_of(&listener).populate(blocks(1, 1)).expect("the fence is not in its way");
        handle_of(&listener).discard(blocks(1, 1)).expect("the fence is not in its way");

        // Somewhere else the same memory has the same trouble. (On POWER the window with the fence would go.)
        if backend != BackendKind::Spapr {
            let at = Iova::new(GIB);
            let moved = Section::discardable("moved", at, memory(1 << 45, MIB), RW, BLOCK).expect("a proper range");
            listener.commit(Update::new().removing(blocks_of_nothing()).adding(moved)).expect("it fits");
            let there = IovaRange::with_len(at, BLOCK.bytes()).expect("a proper range");
            assert!(is_fenced(listener.discardable(at).expect("it is in force").discard(there)), "{preset}");
        }
    }
}

#[test]
fn registrations_that_a_failure_left_go_with_the_next_change() {
    type Verb = fn(&DiscardableRam) -> Result<(), BlockError>;
    let verbs: [(Verb, usize); 2] =
        [(|blocks_of| blocks_of.discard(blocks(0, 4)), 0), (|blocks_of| blocks_of.populate(blocks(0, 4)), 4)];
    for (verb, registrations) in verbs {
        let soft = host("powernv9");
        let (_opened, listener) = serving(&soft, BackendKind::Spapr);
        let no = FaultMode::FailBefore;
        failing(&soft, &[("VFIO_IOMMU_MAP_DMA", no), ("VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY", no)]);
        handle_of(&listener).populate(blocks(0, 2)).expect_err("the kernel says no");
        soft.plan_faults(&[]);
        assert_eq!(soft.ledger().registrations, 2, "they could not be taken back");
        soft.reset_calls();
        verb(&handle_of(&listener)).expect("the kernel is well again");
        assert_eq!(soft.calls().of("VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY"), 2, "they may pin other pages by now");
        assert_eq!(soft.ledger().registrations, registrations);
    }
}

#[test]
fn verdicts_count_blocks() {
    let soft = host("vtd");
    let (opened, mut listener) = serving(&soft, BackendKind::Type1);
    handle_of(&listener).populate(blocks(3, 5)).expect("it fits");
    let late = open(&host("vtd"), BackendKind::Iommufd);
    let report = listener.attach(late.space.space().clone()).expect("it fits there too");
    let verdict = &report.spaces[0].sections[0];
    assert_eq!(verdict.fate, Fate::Discardable);
    assert_eq!(verdict.to_string(), "0x400000..=0x4fffff (virtio-mem): discardable: 5 of 16 blocks of 64K populated");
    assert_eq!(mapped(opened.space.space().as_ref()), mapped(late.space.space().as_ref()));
}

/// A kernel that takes only so many mappings.
fn few_mappings(count: u32) -> (Arc<SoftHost>, Opened, Listener) {
    let mut profile = Profile::vtd();
    profile.limits.dma_entries = count;
    let soft = SoftHost::new(profile).expect("a host with few mappings");
    let opened = open(&soft, BackendKind::Type1);
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(opened.space.space().clone()).expect("an empty view fits");
    (soft, opened, listener)
}

#[test]
fn more_blocks_than_the_kernel_takes_are_a_warning_first_and_a_refusal_then() {
    let (soft, opened, mut listener) = few_mappings(6);
    let update = Update::new().adding(blocks_of_nothing()).adding(ram(0, 1 << 46, MIB));
    let foreseen = listener.explain(&update).expect("it makes sense");
    let report = listener.commit(update).expect("nothing is populated yet");
    assert_eq!(report.spaces[0].warnings, foreseen.spaces[0].warnings);
    let [warning] = &report.spaces[0].warnings[..] else { panic!("{:?}", report.spaces[0].warnings) };
    let words = warning.to_string();
    assert_eq!((&*warning.name, warning.cause), ("virtio-mem", WarningCause::FewMappings));
    assert!(words.contains("16 blocks of all sections are yet to come") && words.contains("5 left"), "{words}");

    let handle = handle_of(&listener);
    handle.populate(blocks(0, 3)).expect("three of five");
    soft.reset_calls();
    let refused = handle.populate(blocks(2, 4));
    assert_eq!(refused, Err(BlockError::NoMappingSlots { backend: "type1", needed: 3, left: 2 }));
    assert_eq!(changes(&soft), 0);
    assert_eq!(handle.populated(), Ok(vec![blocks(0, 3)]));
    handle.discard(blocks(1, 1)).expect("one goes");
    handle.populate(blocks(3, 3)).expect("three of three");
    assert_eq!(opened.space.space().powers().mappings_left(), Some(0));
}

#[test]
fn no_warning_comes_where_all_blocks_fit() {
    let (_soft, _opened, mut listener) = few_mappings(16);
    let report = listener.commit(Update::new().adding(blocks_of_nothing())).expect("it fits");
    assert_eq!(report.spaces[0].warnings, []);
}

#[test]
fn many_registrations_are_worth_a_warning_where_memory_is_registered() {
    let many = Section::discardable("virtio-mem", Iova::new(AT), memory(1 << 45, 65 * BLOCK.bytes()), RW, BLOCK);
    let update = Update::new().adding(many.expect("a proper range"));
    for (preset, backend) in EVERYWHERE {
        let opened = open(&host(preset), backend);
        let mut listener = Listener::new(FrontEnd::default());
        listener.attach(opened.space.space().clone()).expect("an empty view fits");
        let report = listener.commit(update.clone()).expect("it fits");
        let causes: Vec<_> = report.spaces[0].warnings.iter().map(|warning| warning.cause).collect();
        let expected = (backend == BackendKind::Spapr).then_some(WarningCause::ManyRegistrations);
        assert_eq!(causes, Vec::from_iter(expected), "{preset}");
    }
}

#[test]
fn the_audit_finds_nothing_and_the_state_lists_populated_blocks() {
    for (preset, backend) in EVERYWHERE {
        let soft = host(preset);
        let (_opened, listener) = serving(&soft, backend);
        handle_of(&listener).populate(blocks(1, 3)).expect("it fits");
        handle_of(&listener).discard(blocks(2, 1)).expect("it can go");
        assert_eq!(listener.audit(), [], "{preset}");
        let state = listener.state();
        assert_eq!(state.discardable[0].populated, [blocks(1, 1), blocks(3, 1)]);
        let owners = state.spaces[0].mappings.iter().flat_map(|live| &live.owners).map(AsRef::as_ref);
        assert_eq!(owners.collect::<Vec<&str>>(), ["virtio-mem"; 2], "{preset}");
    }
}

#[test]
fn blocks_are_counted_when_sections_are_exchanged() {
    let (_soft, opened, mut listener) = few_mappings(16);
    listener.commit(Update::new().adding(blocks_of_nothing())).expect("it fits");
    handle_of(&listener).populate(blocks(0, 16)).expect("all of them");
    // One more mapping than there are, were the sixteen not to go.
    listener.commit(Update::new().removing(blocks_of_nothing()).adding(ram(AT, 1 << 46, MIB))).expect("sixteen go");
    assert_eq!(opened.space.space().powers().mappings_left(), Some(15));
}

#[test]
fn blocks_must_be_made_of_the_hosts_pages() {
    let small = |at: u64, host: u64, granule: u64| {
        let granule = PageSize::from_bytes(granule).expect("a power of two");
        Section::discardable("virtio-mem", Iova::new(at), memory(host, MIB), RW, granule).expect("a proper range")
    };
    let cases = [
        ("vtd", BackendKind::Type1, small(AT, 1 << 45, 0x800), "blocks of 2K are no multiples of the host's 4K pages"),
        ("powernv9-64k", BackendKind::Spapr, small(AT, 1 << 45, 0x1000), "blocks of 4K are no multiples of the host's"),
        ("vtd", BackendKind::Iommufd, small(AT, (1 << 45) + 0x200, 0x1000), "lie differently in pages of 4K"),
        ("vtd", BackendKind::Iommufd, small(AT + 0x1000, 1 << 45, 0x10_0000), "no multiples of its blocks of 1M"),
        ("vtd", BackendKind::Type1, small(1 << 58, 1 << 45, 0x1000), "above the host's top address"),
    ];
    for (preset, backend, section, words) in cases {
        let opened = open(&host(preset), backend);
        let mut listener = Listener::new(FrontEnd::default());
        listener.attach(opened.space.space().clone()).expect("an empty view fits");
        let error = listener.commit(Update::new().adding(section)).expect_err(words);
        assert!(matches!(error, CommitError::Refused(_)) && error.to_string().contains(words), "{error}");
        assert!(listener.discardable(Iova::new(AT)).is_none());
    }
}

#[test]
fn ranges_are_made_of_whole_blocks_of_the_section() {
    let soft = host("vtd");
    let (_opened, listener) = serving(&soft, BackendKind::Type1);
    let handle = handle_of(&listener);
    let half = IovaRange::with_len(Iova::new(AT), BLOCK.bytes() / 2).expect("a proper range");
    for verb in [DiscardableRam::populate, DiscardableRam::discard] {
        assert_eq!(verb(&handle, half), Err(BlockError::Misaligned(half, BLOCK)));
        assert_eq!(verb(&handle, blocks(15, 2)), Err(BlockError::OutsideSection(blocks(15, 2), blocks(0, 16))));
    }
    assert_eq!(soft.calls().total(), 0);
}

#[test]
fn populated_blocks_are_known_without_a_host() {
    for (preset, backend) in EVERYWHERE {
        let soft = host(preset);
        let opened = open(&soft, backend);
        let space = opened.space.space().clone();
        let mut listener = Listener::new(FrontEnd::default());
        listener.commit(Update::new().adding(blocks_of_nothing())).expect("no host is asked");
        handle_of(&listener).populate(blocks(1, 2)).expect("no host is asked");
        listener.attach(space.clone()).expect("it fits");
        assert_eq!(mapped(space.as_ref()), [blocks(1, 2)], "{preset}");
        listener.detach(&space).expect("everything can be taken out");
        assert_eq!(mapped(space.as_ref()), []);
        handle_of(&listener).populate(blocks(4, 1)).expect("no host is asked");
        listener.attach(space.clone()).expect("it fits");
        assert_eq!(mapped(space.as_ref()), [blocks(1, 2), blocks(4, 1)], "{preset}");
    }
}

#[test]
fn the_last_device_leaves_and_the_next_one_finds_the_blocks() {
    let soft = host("vtd");
    let at = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
    let (mut opened, mut listener) = serving(&soft, BackendKind::Type1);
    let handle = handle_of(&listener);
    handle.populate(blocks(0, 2)).expect("it fits");
    let device = opened.devices.remove(0);
    let address = device.name().parse().expect("a PCI address");
    opened.space.remove(device).expect("nothing else holds it");
    handle.discard(blocks(0, 1)).expect("there is nothing to take out");
    handle.populate(blocks(5, 1)).expect("knowledge needs no device");
    opened.space.add(&at, address).map(|device| opened.devices.push(device)).expect("it comes back");
    listener.sync().expect("it fits as before");
    assert_eq!(mapped(opened.space.space().as_ref()), [blocks(1, 1), blocks(5, 1)]);
}

#[test]
fn other_sections_come_and_go_without_a_call_for_blocks() {
    for (preset, backend) in EVERYWHERE {
        let soft = host(preset);
        let (opened, mut listener) = serving(&soft, backend);
        // Both sides of the section, so that the window on POWER does not have to grow later.
        let around = [ram(0, 1 << 46, MIB), ram(32 * MIB, 1 << 47, MIB)];
        listener.commit(around.iter().cloned().fold(Update::new(), Update::adding)).expect("they fit");
        handle_of(&listener).populate(blocks(0, 3)).expect("it fits");
        let pinned = soft.ledger().ever_pinned;
        let neighbours = [ram(AT - MIB, 1 << 48, MIB), ram(AT + MIB, 1 << 49, MIB)];
        for update in [
            neighbours.iter().cloned().fold(Update::new(), Update::adding),
            neighbours.iter().cloned().fold(Update::new(), Update::removing),
        ] {
            assert_eq!(listener.commit(update).expect("they fit").spaces[0].disturbed, 0, "{preset}");
        }
        assert_eq!(soft.ledger().ever_pinned, pinned + 2 * MIB, "{preset}: only the neighbours were pinned");
        assert!(mapped(opened.space.space().as_ref()).contains(&blocks(0, 3)), "{preset}");
    }
}

#[test]
fn a_section_goes_with_its_blocks_and_comes_back_without() {
    for (preset, backend) in EVERYWHERE {
        let soft = host(preset);
        let (opened, mut listener) = serving(&soft, backend);
        let space = opened.space.space();
        let first = handle_of(&listener);
        first.populate(blocks(0, 3)).expect("it fits");
        // No IOMMU reaches that far, or no window does.
        let impossible = Update::new().removing(blocks_of_nothing()).adding(ram(u64::MAX - MIB + 1, 1 << 46, MIB));
        listener.commit(impossible).expect_err("nothing reaches that far");
        assert_eq!((mapped(space.as_ref()), first.populated()), (vec![blocks(0, 3)], Ok(vec![blocks(0, 3)])));

        let again = Update::new().removing(blocks_of_nothing()).adding(blocks_of_nothing());
        listener.commit(again).expect("it fits as before");
        assert_eq!(first.populate(blocks(0, 1)), Err(BlockError::NoSuchSection));
        assert_eq!(first.populated(), Err(BlockError::NoSuchSection));
        assert_eq!((mapped(space.as_ref()), handle_of(&listener).populated()), (vec![], Ok(vec![])), "{preset}");
        assert_eq!(soft.ledger().registrations, 0, "{preset}");
    }
}

#[test]
fn blocks_that_become_plain_ram_stay_mapped() {
    let soft = host("vtd");
    let (opened, mut listener) = serving(&soft, BackendKind::Type1);
    handle_of(&listener).populate(blocks(4, 2)).expect("it fits");
    let plain = ram(AT, 1 << 45, MIB);
    soft.reset_calls();
    let report = listener.commit(Update::new().removing(blocks_of_nothing()).adding(plain)).expect("it fits");
    assert_eq!((report.spaces[0].disturbed, unmaps(&soft)), (0, 0));
    let live = opened.space.space().mappings(IovaRange::all());
    assert_eq!(live.iter().map(|mapping| mapping.range.bytes()).sum::<u128>(), u128::from(MIB));
    assert!(live.iter().any(|mapping| mapping.unit == Unit::Pages(BLOCK)));
}

#[test]
fn discardable_memory_is_in_one_place_only() {
    let soft = host("vtd");
    let (_opened, mut listener) = serving(&soft, BackendKind::Type1);
    let inside = (1 << 45) + MIB / 2;
    let target = TargetMemory::new("target", SystemAddress::new(0), memory(inside, MIB)).expect("a proper range");
    let twin = Section::discardable("twin", Iova::new(GIB), memory(inside, MIB), RW, BLOCK).expect("a proper range");
    let updates = [
        Update::new().adding(ram(GIB, inside, MIB)),
        Update::new().adding(twin.clone()),
        Update::new().adding_target(target.clone()),
        Update::new().removing(blocks_of_nothing()).adding(twin.clone()).adding_target(target.clone()),
        Update::new().removing(blocks_of_nothing()).adding(twin.clone()).adding(ram(0, inside, MIB)),
    ];
    for update in updates {
        let error = listener.commit(update.clone()).expect_err("it is shared");
        assert!(matches!(error, CommitError::Update(BadUpdate::SharesMemory(..))), "{error}");
        assert!(matches!(listener.explain(&update), Err(BadUpdate::SharesMemory(..))));
        assert_eq!(listener.sections().collect::<Vec<_>>(), [&blocks_of_nothing()]);
    }
    let moved = Update::new().removing(blocks_of_nothing()).adding(twin.clone());
    listener.commit(moved).expect("it can be moved");
    listener.commit(Update::new().removing(twin).adding_target(target)).expect("and be something else");
}

#[test]
fn a_balloon_learns_which_spaces_keep_its_pages() {
    for (preset, backend) in EVERYWHERE {
        let soft = host(preset);
        let (_opened, mut listener) = serving(&soft, backend);
        listener.commit(Update::new().adding(ram(0, 1 << 46, MIB))).expect("it fits");
        let error = listener.may_discard(&memory((1 << 46) + 0x3000, 0x1000)).expect_err("it is mapped");
        assert!(matches!(&error, InUse::Mapped { section, .. } if section == "ram"), "{error}");
        assert_eq!(listener.may_discard(&memory((1 << 46) + MIB, 0x1000)), Ok(()), "right behind it nothing is mapped");

        let block = memory((1 << 45) + BLOCK.bytes(), 0x1000);
        assert_eq!(listener.may_discard(&block), Ok(()), "nothing is populated");
        handle_of(&listener).populate(blocks(1, 1)).expect("it fits");
        let error = listener.may_discard(&block).expect_err("it is populated");
        assert!(matches!(&error, InUse::Mapped { section, .. } if section == "virtio-mem"), "{error}");
        handle_of(&listener).discard(blocks(1, 1)).expect("it can go");
        assert_eq!(listener.may_discard(&block), Ok(()), "{preset}");
    }
}

#[test]
fn a_balloon_must_leave_target_memory_alone() {
    for (preset, backend) in EVERYWHERE {
        let soft = host(preset);
        let opened = open(&soft, backend);
        let mut listener = Listener::new(FrontEnd::default());
        listener.attach(opened.space.space().clone()).expect("an empty view fits");
        let target = TargetMemory::new("dimm", SystemAddress::new(0), memory(1 << 46, MIB)).expect("a proper range");
        let window = IovaRange::with_len(Iova::new(0), GIB).expect("a proper range");
        let update = Update::new().adding_target(target).adding(Section::translated("tce", window, PageSize::K64));
        listener.commit(update).expect("it fits");
        let error = listener.may_discard(&memory(1 << 46, 0x1000)).expect_err("entries may come");
        match backend {
            BackendKind::Spapr => assert!(matches!(&error, InUse::Registered { owner, .. } if owner == "dimm")),
            _ => assert!(matches!(&error, InUse::Target { target } if target.contains("dimm"))),
        }
        listener.detach(opened.space.space()).expect("everything can be taken out");
        assert_eq!(listener.may_discard(&memory(1 << 46, 0x1000)), Ok(()), "{preset}: no device is left");
    }
}

#[test]
fn memory_is_held_while_its_section_is_there_and_no_longer() {
    let soft = host("vtd");
    let opened = open(&soft, BackendKind::Type1);
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(opened.space.space().clone()).expect("an empty view fits");
    let map = vm_memory::GuestMemoryMmap::<()>::from_ranges(&[(vm_memory::GuestAddress(0), 1 << 20)]);
    let map = map.expect("memory for the test");
    let region = vm_memory::GuestMemoryBackend::iter(&map).next().expect("one region");
    let life = Arc::downgrade(&region.get_mmap());
    let memory = HostMemory::of_region(region).expect("not empty");
    drop(map);
    let granule = PageSize::K4;
    let section = Section::discardable("dimm", Iova::new(AT), memory, RW, granule).expect("a proper range");
    listener.commit(Update::new().adding(section.clone())).expect("it fits");
    handle_of(&listener).populate(blocks(0, 2)).expect("it fits");
    assert!(life.strong_count() > 0);
    listener.commit(Update::new().removing(section)).expect("it can go");
    assert_eq!(life.strong_count(), 0, "no holder is left");
}

/// More calls than a round lasts, so that a failure elsewhere does not keep it going.
const CALLS_OF_A_ROUND: u64 = 100_000;

/// Populates and discards eight blocks from `own` on, until the round is over.
fn change_own_blocks(handle: &DiscardableRam, own: u64, over: &AtomicBool) {
    for n in 0..CALLS_OF_A_ROUND {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let block = blocks(own + n % 8, 1);
        let verb = if n / 8 % 2 == 0 { DiscardableRam::populate } else { DiscardableRam::discard };
        verb(handle, block).expect("no other thread changes the block");
    }
}

/// A neighbour is added and removed, and a space leaves and joins.
fn commit_around(listener: &mut Listener, space: &Arc<dyn PciAddressSpace>) {
    let neighbour = ram(AT + MIB, 1 << 48, MIB);
    let report = listener.commit(Update::new().adding(neighbour.clone())).expect("it fits");
    assert!(report.spaces.iter().all(|space| space.disturbed == 0));
    listener.commit(Update::new().removing(neighbour)).expect("it can go");
    listener.detach(space).expect("everything can be taken out");
    listener.attach(space.clone()).expect("it fits as before");
}

#[test]
fn threads_change_their_blocks_while_another_commits_and_a_space_leaves_and_joins() {
    const ROUNDS: usize = 30;
    for (preset, backend) in EVERYWHERE {
        let soft = host(preset);
        let (first, mut listener) = serving(&soft, backend);
        let second = open(&host("vtd-64k"), BackendKind::Iommufd);
        listener.attach(second.space.space().clone()).expect("it fits");
        let around = Update::new().adding(ram(0, 1 << 46, MIB)).adding(ram(32 * MIB, 1 << 47, MIB));
        listener.commit(around).expect("it fits");
        let handle = handle_of(&listener);
        for _ in 0..ROUNDS {
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| change_own_blocks(&handle, 0, &over));
                scope.spawn(|| change_own_blocks(&handle, 8, &over));
                commit_around(&mut listener, second.space.space());
                over.store(true, Ordering::Relaxed);
            });
            let populated = handle.populated().expect("it is in force");
            for space in [first.space.space(), second.space.space()] {
                let live = mapped(space.as_ref()).into_iter().filter(|range| range.overlaps(blocks(0, 16)));
                assert_eq!(live.collect::<Vec<_>>(), populated, "{preset}: {}", space.describe().backend);
            }
        }
    }
}
