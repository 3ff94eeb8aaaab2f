//! Windows that are created: the listener's requests to a POWER host, and their results.

use std::sync::Arc;

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::device::Device;
use dmaspace::facts::Facts;
use dmaspace::open::{Host, OpenSpace};
use dmaspace_core::contract::{Unit, WindowRequest};
use dmaspace_core::door::{Errno, Failure};
use dmaspace_core::{Access, Iova, IovaRange, PageSize, PciAddressSpace, SystemAddress, Window};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{CommitError, EntryError, Update};
use dmaspace_listener::{FrontEnd, Listener, Section};
use dmaspace_soft::{FaultMode, FaultPlan, SoftHost};
use dmaspace_tests::soft::{host, memory, ram, range};

const MIB: u64 = 1 << 20;
const HIGH: u64 = 1 << 59;

const REMOVE: &str = "VFIO_IOMMU_SPAPR_TCE_REMOVE";
const MAP: &str = "VFIO_IOMMU_MAP_DMA";
const UNMAP: &str = "VFIO_IOMMU_UNMAP_DMA";

/// A host, a space on it that a listener serves, and its devices.
struct WindowFixture {
    soft: Arc<SoftHost>,
    host: Host,
    opened: OpenSpace,
    listener: Listener,
    devices: Vec<Device>,
}

impl WindowFixture {
    /// Without a device.
    fn bare(preset: &str) -> Self {
        let soft = host(preset);
        let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
        let opened = host.open_space(BackendKind::Spapr).expect("the soft host has it");
        let mut listener = Listener::new(FrontEnd::default());
        listener.attach(opened.space().clone()).expect("an empty view fits");
        Self { soft, host, opened, listener, devices: Vec::new() }
    }

    fn new(preset: &str) -> Self {
        let mut fixture = Self::bare(preset);
        fixture.add_device();
        fixture.listener.sync().expect("an empty view fits");
        fixture
    }

    fn add_device(&mut self) {
        let address = self.soft.profile().groups[0].devices[0].address.parse().expect("a PCI address");
        self.devices.push(self.opened.add(&self.host, address).expect("the soft host opens its device"));
    }

    fn space(&self) -> &dyn PciAddressSpace {
        self.opened.space().as_ref()
    }

    /// The pages of the window at an address.
    fn granule_at(&self, at: u64) -> Option<PageSize> {
        self.space().windows().windows.containing(Iova::new(at)).map(|window| window.granule())
    }
}

fn window(at: u64, len: u64, page: PageSize) -> Section {
    Section::translated("window", range(at, len), page)
}

#[test]
fn a_lack_of_the_host_is_noticed_when_its_first_device_is_attached() {
    let mut fixture = WindowFixture::bare("powernv9");
    let odd = Update::new().adding(window(0, 3 * MIB, PageSize::K4));
    fixture.listener.commit(odd).expect("there is no device yet that could miss it");
    fixture.add_device();
    let refused = fixture.listener.sync().expect_err("windows are powers of two in size");
    assert!(matches!(&refused, CommitError::Refused(_)), "{refused}");
}

#[test]
fn after_a_commit_that_failed_the_next_one_looks_at_its_own_sections_only() {
    let mut fixture = WindowFixture::new("powernv9");
    fixture.listener.commit(Update::new().adding(ram(0, 1 << 45, MIB))).expect("it fits");
    fixture.soft.plan_faults(&[FaultPlan::nth(1, FaultMode::FailBefore).of(MAP)]);
    let beyond = Update::new().adding(ram(2 * MIB, 1 << 46, MIB));
    fixture.listener.commit(beyond.clone()).expect_err("the larger window was made in vain");
    assert_eq!(fixture.space().mappings(IovaRange::all()).len(), 1);
    let report = fixture.listener.commit(Update::new()).expect("nothing to do");
    assert!(report.spaces[0].sections.is_empty(), "{report:?}");
    let report = fixture.listener.sync().expect("nothing to do");
    assert_eq!(report.spaces[0].sections.len(), 1, "a sync looks at everything");
    fixture.listener.commit(beyond).expect("it fits now");
}

#[test]
fn a_window_whose_removal_was_reported_as_failed_can_be_made_again() {
    let mut fixture = WindowFixture::new("powernv9");
    fixture.listener.commit(Update::new().adding(window(0, MIB, PageSize::K4))).expect("it fits");
    fixture.soft.plan_faults(&[FaultPlan::nth(1, FaultMode::FailAfter).of(REMOVE)]);
    let resized = Update::new().removing(window(0, MIB, PageSize::K4)).adding(window(0, 2 * MIB, PageSize::K4));
    fixture.listener.commit(resized).expect("the old window is gone");
    assert_eq!(fixture.space().describe().fences, []);
}

#[test]
fn a_window_too_coarse_for_new_ram_is_made_anew() {
    let mut fixture = WindowFixture::new("powernv9-64k");
    fixture.listener.commit(Update::new().adding(ram(0, 1 << 45, MIB))).expect("it fits");
    assert_eq!(fixture.granule_at(0), Some(PageSize::K64));
    let smaller = Update::new().removing(ram(0, 1 << 45, MIB)).adding(ram(0, 1 << 45, 0x1000));
    fixture.listener.commit(smaller).expect("the host has 4K pages, too");
    assert_eq!(fixture.granule_at(0), Some(PageSize::K4));
}

#[test]
fn where_a_window_could_not_be_brought_back_none_is_asked_for() {
    let mut fixture = WindowFixture::new("powernv9");
    fixture.listener.commit(Update::new().adding(window(0, MIB, PageSize::K4))).expect("it fits");
    let fence = IovaRange::with_len(Iova::new(HIGH), MIB).expect("a proper range");
    fixture.space().fence(fence, None, Failure::malformed("test", "made up"));
    fixture.soft.reset_calls();
    let refused = fixture.listener.commit(Update::new().adding(window(HIGH, MIB, PageSize::K4))).expect_err("fenced");
    assert!(matches!(&refused, CommitError::Refused(_)), "{refused}");
    assert!(refused.to_string().contains("fenced after an earlier failure"), "{refused}");
    assert_eq!(fixture.soft.calls().of("VFIO_IOMMU_SPAPR_TCE_CREATE"), 0);
}

#[test]
fn ram_that_could_not_be_unmapped_can_go_and_stays_registered() {
    let mut fixture = WindowFixture::new("powernv9");
    let (stays, goes) = (ram(0, 1 << 45, MIB), ram(MIB, 1 << 46, MIB));
    fixture.listener.commit(Update::new().adding(stays).adding(goes.clone())).expect("it fits");
    // However often it is asked.
    let stubborn: Vec<_> = (1..9).map(|n| FaultPlan::nth(n, FaultMode::FailBefore).of(UNMAP)).collect();
    fixture.soft.plan_faults(&stubborn);
    fixture.listener.commit(Update::new().removing(goes.clone())).expect_err("it is still there");
    assert_eq!(fixture.space().describe().fences.len(), 1);
    fixture.soft.plan_faults(&[]);
    fixture.listener.commit(Update::new().removing(goes)).expect("memory behind the fence has no section any more");
    assert_eq!(fixture.space().powers().registration.expect("a host that registers").registered().len(), 2);
}

#[test]
fn of_entries_that_cannot_all_be_replaced_none_is() {
    let mut fixture = WindowFixture::new("powernv9");
    let target = |at: u64, host: u64| {
        TargetMemory::new("target", SystemAddress::new(at), memory(host, MIB)).expect("a proper range")
    };
    let update = Update::new().adding_target(target(0, 1 << 45)).adding_target(target(MIB, 1 << 46));
    fixture.listener.commit(update.adding(window(0, MIB, PageSize::K4))).expect("it fits");
    let handle = fixture.listener.translated(Iova::new(0)).expect("it is in force");
    handle.put(Iova::new(0), SystemAddress::new(0), Access::READ_WRITE).expect("RAM is there");
    let before = fixture.space().mappings(IovaRange::all());
    // The last page of one and the first of the other: two calls, of which the second finds no entry.
    let border = SystemAddress::new(MIB - 0x1000);
    handle.replace(Iova::new(0), border, 0x2000, Access::READ_WRITE).expect_err("there is one entry only");
    assert_eq!(fixture.space().mappings(IovaRange::all()), before);
}

/// RAM that its owner says is made of pages of 2 MiB.
fn huge(at: u64, host: u64, len: u64) -> Section {
    let memory = memory(host, len).backed_by(PageSize::M2);
    Section::ram("huge", Iova::new(at), memory, Access::READ_WRITE).expect("a proper range")
}

const CREATE: &str = "VFIO_IOMMU_SPAPR_TCE_CREATE";

/// The live mappings, and how each may be unmapped.
fn live(fixture: &WindowFixture) -> Vec<(IovaRange, Unit)> {
    let live = fixture.space().mappings(IovaRange::all());
    live.into_iter().map(|mapping| (mapping.range, mapping.unit)).collect()
}

#[test]
fn a_window_whose_pages_prove_too_large_is_created_again_before_the_first_entry() {
    let mut fixture = WindowFixture::new("powernv9");
    fixture.soft.deny_huge_pages();
    let sections = [huge(0, 1 << 45, 4 * MIB), huge(8 * MIB, 1 << 46, 4 * MIB)];
    let update = sections.iter().cloned().fold(Update::new(), Update::adding);
    let report = fixture.listener.commit(update).expect("smaller pages do");
    let reasons: Vec<_> = report.spaces[0].sections.iter().map(|verdict| verdict.reason.to_string()).collect();
    assert_eq!(reasons, ["read-write with 4K pages"; 2]);
    assert_eq!((report.spaces[0].pinned, report.spaces[0].disturbed), (8 * MIB, 0));
    assert_eq!(fixture.soft.calls().of(CREATE), 2);
    let small = Unit::Pages(PageSize::K4);
    assert_eq!(live(&fixture), [(range(0, 4 * MIB), small), (range(8 * MIB, 4 * MIB), small)]);
    let table = fixture
        .space()
        .powers()
        .window_control
        .expect("POWER")
        .table_bytes(WindowRequest::new(range(0, 16 * MIB), PageSize::K4));
    assert_eq!(fixture.soft.ledger().locked, 8 * MIB + table, "the first table was given back");

    // What comes later finds a window that will do, and any page can go.
    fixture.listener.commit(Update::new().adding(huge(4 * MIB, 1 << 47, 2 * MIB))).expect("it fits");
    let shorter = Update::new().removing(sections[0].clone()).adding(huge(0, 1 << 45, 0x3000));
    fixture.listener.commit(shorter).expect("the window has small pages");
    assert_eq!(fixture.soft.calls().of(CREATE), 2);
    assert_eq!(fixture.listener.audit(), []);
}

#[test]
fn earlier_mappings_are_mapped_again_after_the_pages_proved_too_large() {
    let mut fixture = WindowFixture::new("powernv9");
    fixture.soft.plan_faults(&[FaultPlan::nth(2, FaultMode::FailBefore).of(MAP).with(Errno::EINVAL)]);
    let update = Update::new().adding(huge(0, 1 << 45, 4 * MIB)).adding(huge(8 * MIB, 1 << 46, 4 * MIB));
    fixture.listener.commit(update).expect("smaller pages do");
    let small = Unit::Pages(PageSize::K4);
    assert_eq!(live(&fixture), [(range(0, 4 * MIB), small), (range(8 * MIB, 4 * MIB), small)]);
    assert_eq!(fixture.soft.ledger().mapped, 8 * MIB);
}

#[test]
fn blocks_stay_blocks_in_a_window_that_is_made_again() {
    let mut fixture = WindowFixture::new("powernv9");
    let memory = memory(1 << 46, 4 * MIB).backed_by(PageSize::M2);
    let section = Section::discardable("blocks", Iova::new(8 * MIB), memory, Access::READ_WRITE, PageSize::M2);
    fixture.listener.commit(Update::new().adding(section.expect("a proper range"))).expect("it fits");
    let blocks = fixture.listener.discardable(Iova::new(8 * MIB)).expect("it is in force");
    blocks.populate(range(8 * MIB, 4 * MIB)).expect("it fits");
    assert_eq!(live(&fixture), [(range(8 * MIB, 4 * MIB), Unit::Pages(PageSize::M2))]);
    // A larger window, in which the blocks come first.
    fixture.soft.plan_faults(&[FaultPlan::nth(2, FaultMode::FailBefore).of(MAP).with(Errno::EINVAL)]);
    fixture.listener.commit(Update::new().adding(huge(32 * MIB, 1 << 45, 2 * MIB))).expect("smaller pages do");
    assert_eq!(fixture.granule_at(0), Some(PageSize::K4));
    let large = (range(8 * MIB, 4 * MIB), Unit::Pages(PageSize::M2));
    assert_eq!(live(&fixture), [large, (range(32 * MIB, 2 * MIB), Unit::Pages(PageSize::K4))]);
    fixture.listener.commit(Update::new().adding(huge(16 * MIB, 1 << 47, 2 * MIB))).expect("it fits");
    blocks.discard(range(8 * MIB, 2 * MIB)).expect("a whole block");
}

#[test]
fn a_window_that_was_there_before_keeps_its_pages_whatever_comes() {
    let mut fixture = WindowFixture::new("powernv9");
    let update = Update::new().adding(huge(0, 1 << 45, 4 * MIB)).adding(huge(12 * MIB, 1 << 46, 4 * MIB));
    fixture.listener.commit(update).expect("it fits");
    let before = live(&fixture);
    fixture.soft.reset_calls();
    fixture.soft.deny_huge_pages();
    let error = fixture.listener.commit(Update::new().adding(huge(8 * MIB, 1 << 47, 2 * MIB)));
    let error = error.expect_err("others live there");
    assert!(error.to_string().contains("VFIO_IOMMU_MAP_DMA: EINVAL"), "{error}");
    assert_eq!((live(&fixture), fixture.soft.calls().of(CREATE)), (before, 0));
    assert_eq!(fixture.granule_at(0), Some(PageSize::M2));
}

#[test]
fn smaller_pages_are_tried_once_and_only_where_pages_may_be_at_fault() {
    for (errno, denied, expected) in [
        (Errno::EINVAL, 1, Some(PageSize::K4)),
        (Errno::EINVAL, 2, None),
        (Errno::ENOMEM, 1, None),
        (Errno::EFAULT, 1, None),
    ] {
        let mut fixture = WindowFixture::new("powernv9");
        let plans: Vec<_> =
            (1..=denied).map(|n| FaultPlan::nth(n, FaultMode::FailBefore).of(MAP).with(errno)).collect();
        fixture.soft.plan_faults(&plans);
        let committed = fixture.listener.commit(Update::new().adding(huge(0, 1 << 45, 4 * MIB)));
        assert_eq!(
            (committed.is_ok(), fixture.granule_at(0)),
            (expected.is_some(), expected),
            "{errno}, {denied} times"
        );
        if committed.is_err() {
            assert_eq!((fixture.soft.ledger().locked, fixture.space().describe().fences), (0, vec![]));
        }
    }
}

/// A translated window of huge pages, and a target that is said to be made of such.
fn translated_huge(at: u64) -> Update {
    let target = TargetMemory::new("ram", SystemAddress::new(0), memory(1 << 45, 16 * MIB).backed_by(PageSize::M2));
    let section = Section::translated("window", range(at, 64 * MIB), PageSize::M2);
    Update::new().adding(section).adding_target(target.expect("a proper range"))
}

fn put(fixture: &WindowFixture, at: u64, target: u64) -> Result<(), EntryError> {
    let window = fixture.listener.translated(Iova::new(at & HIGH)).expect("it is in force");
    window.put_run(Iova::new(at), SystemAddress::new(target), 4 * MIB, Access::READ_WRITE)
}

#[test]
fn a_window_is_made_again_when_its_first_entry_shows_that_its_pages_are_too_large() {
    let mut fixture = WindowFixture::new("powernv9");
    fixture.soft.deny_huge_pages();
    fixture.listener.commit(translated_huge(0)).expect("it fits");
    assert_eq!(fixture.granule_at(0), Some(PageSize::M2));
    fixture.soft.reset_calls();
    put(&fixture, 0, 0).expect("smaller pages do");
    assert_eq!((fixture.granule_at(0), fixture.soft.calls().of(CREATE)), (Some(PageSize::K4), 1));
    put(&fixture, 8 * MIB, 4 * MIB).expect("the window has small pages");
    let large = Unit::Pages(PageSize::M2);
    assert_eq!(live(&fixture), [(range(0, 4 * MIB), large), (range(8 * MIB, 4 * MIB), large)]);
    let calls = fixture.soft.calls();
    assert_eq!((calls.of(CREATE), calls.of(REMOVE), calls.of(MAP)), (1, 1, 3));
    // The next commit finds a window that will do.
    fixture.listener.sync().expect("nothing is to be done");
    assert_eq!((fixture.granule_at(0), fixture.soft.calls().of(CREATE)), (Some(PageSize::K4), 1));
    assert_eq!(fixture.listener.audit(), []);
}

#[test]
fn a_window_with_entries_stays_as_it_is_and_the_error_says_so() {
    let mut fixture = WindowFixture::new("powernv9");
    fixture.listener.commit(translated_huge(0)).expect("it fits");
    put(&fixture, 0, 0).expect("the memory is of huge pages so far");
    let before = live(&fixture);
    fixture.soft.plan_faults(&[FaultPlan::nth(1, FaultMode::FailBefore).of(MAP).with(Errno::EINVAL)]);
    let refused = put(&fixture, 8 * MIB, 4 * MIB).expect_err("there are entries");
    assert!(matches!(refused, EntryError::PagesTooLarge(_, PageSize::M2)), "{refused}");
    let words =
        "the host's window is of 2M pages, which may be larger than the memory's, and cannot be made again as it is";
    assert!(refused.to_string().ends_with(words), "{refused}");
    assert_eq!(
        (live(&fixture), fixture.granule_at(0), fixture.soft.calls().of(CREATE)),
        (before, Some(PageSize::M2), 1)
    );
}

#[test]
fn a_window_that_the_platform_would_put_elsewhere_is_not_made_again() {
    let mut fixture = WindowFixture::new("powernv9");
    let low = Section::translated("low", range(0, 64 * MIB), PageSize::K4);
    fixture.soft.deny_huge_pages();
    fixture.listener.commit(translated_huge(HIGH).adding(low.clone())).expect("both fit");
    fixture.listener.commit(Update::new().removing(low)).expect("it can go");
    let refused = put(&fixture, HIGH, 0).expect_err("the lower place is free");
    assert!(matches!(refused, EntryError::PagesTooLarge(_, PageSize::M2)), "{refused}");
    assert_eq!((fixture.granule_at(HIGH), fixture.space().describe().fences), (Some(PageSize::M2), vec![]));
}

#[test]
fn every_space_gets_the_pages_it_needs_and_so_does_one_that_joins_late() {
    let mut fixture = WindowFixture::new("powernv9");
    let open = |n: usize| {
        let device = fixture.soft.profile().groups[n].devices[0].address.parse().expect("a PCI address");
        fixture
            .host
            .open(&OpenRequest::device(device).with_backend(BackendKind::Spapr))
            .expect("the soft host opens its device")
    };
    let (second, late) = (open(1), open(2));
    fixture.soft.deny_huge_pages();
    fixture.listener.attach(second.space.space().clone()).expect("an empty view fits");
    fixture.listener.commit(translated_huge(0)).expect("it fits");
    put(&fixture, 0, 0).expect("smaller pages do");
    fixture.listener.attach(late.space.space().clone()).expect("smaller pages do");
    put(&fixture, 8 * MIB, 4 * MIB).expect("all have small pages");
    for space in [second.space.space(), late.space.space()] {
        let granules: Vec<_> = space.windows().windows.iter().map(Window::granule).collect();
        assert_eq!(granules, [PageSize::K4]);
        assert_eq!(space.mappings(IovaRange::all()), fixture.space().mappings(IovaRange::all()));
    }
}

#[test]
fn processors_whose_first_entries_are_refused_at_once_all_get_them_put() {
    for _ in 0..20 {
        let mut fixture = WindowFixture::new("powernv9");
        fixture.soft.deny_huge_pages();
        fixture.listener.commit(translated_huge(0)).expect("it fits");
        let fixture = &fixture;
        std::thread::scope(|scope| {
            for n in 0..4 {
                scope.spawn(move || put(fixture, n * 8 * MIB, n * 4 * MIB).expect("smaller pages do"));
            }
        });
        assert_eq!((live(fixture).len(), fixture.granule_at(0)), (4, Some(PageSize::K4)));
    }
}
