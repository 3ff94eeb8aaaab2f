//! The writes of devices behind iommufd are told exactly, although the kernel leaves pages out.

use dmaspace_core::contract::MapRequest;
use std::collections::BTreeSet;
use std::sync::Arc;

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::facts::Facts;
use dmaspace::open::{Host, Opened};
use dmaspace_core::backend::DirtyCalls;
use dmaspace_core::contract::dirty::{DirtySink, Precision};
use dmaspace_core::contract::{Attachable, Unit};
use dmaspace_core::door::{HandleKind, OwnedHandle};
use dmaspace_core::{Access, Backend, HostMemory, Iova, IovaRange, PageSize, PciAddressSpace};
use dmaspace_iommufd::{Cdev, Ioas};
use dmaspace_soft::profile::KernelVersion;
use dmaspace_soft::{Profile, SoftHost};
use dmaspace_tests::dirty::{Told, dirty_pages, page_of};
use dmaspace_tests::owned::{beside_spaces, lease};
use dmaspace_tests::ram::Ram;
use dmaspace_tests::soft::{fixture, range};
use proptest::prelude::*;

const PAGE: u64 = 0x1000;
const MIB: u64 = 1 << 20;
const RW: Access = Access::READ_WRITE;
const PAGES: Unit = Unit::Pages(PageSize::K4);
const EXACT: Precision = Precision::Pages(PageSize::K4);

/// An open space whose device writes are told to a sink.
struct Tracked {
    soft: Arc<SoftHost>,
    host: Host,
    opened: Opened,
    told: Arc<Told>,
}

impl Tracked {
    /// With the host's first device.
    fn new(profile: Profile) -> Self {
        let soft = SoftHost::new(profile).expect("sound");
        let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
        let wish =
            OpenRequest::device(address(&soft, 0).parse().expect("a PCI address")).with_backend(BackendKind::Iommufd);
        let opened = host.open(&wish).expect("the soft host opens its device");
        Self { soft, host, opened, told: Arc::default() }
    }

    fn space(&self) -> &dyn PciAddressSpace {
        &**self.opened.space.space()
    }

    fn add(&mut self, device: usize) {
        let address = address(&self.soft, device).parse().expect("a PCI address");
        let device = self.opened.space.add(&self.host, address).expect("it can be attached");
        self.opened.devices.push(device);
    }

    fn start(&self) -> Precision {
        let sink: Arc<dyn DirtySink> = self.told.clone();
        self.space().powers().dirty_tracking.start(sink).expect("it can be tracked")
    }

    /// Asks about a range, and says how exact the answer was and which pages were told.
    fn sync(&self, range: IovaRange) -> (Precision, BTreeSet<u64>) {
        let synced = self.space().powers().dirty_tracking.sync(range).expect("it answers");
        (synced.precision, self.told.take())
    }

    fn map(&self, at: u64, memory: &HostMemory, unit: Unit) {
        self.space().map(MapRequest::new(Iova::new(at), memory, RW).with_unit(unit)).expect("it fits");
    }

    fn write(&self, device: usize, at: u64) {
        let device = self.soft.device(&address(&self.soft, device)).expect("it is there");
        device.dma_write(Iova::new(at), &[1; 8]).expect("it is mapped");
    }
}

fn address(soft: &SoftHost, device: usize) -> String {
    soft.profile().groups[device].devices[0].address.clone()
}

fn pages(memory: &HostMemory, numbers: impl IntoIterator<Item = u64>) -> BTreeSet<u64> {
    numbers.into_iter().map(|page| page_of(memory, page * PAGE)).collect()
}

#[test]
fn the_scenario_is_told_exactly() {
    let soft = dmaspace_tests::soft::host("vtd-ssads");
    dirty_pages(&mut fixture(&soft, BackendKind::Iommufd), true);
    assert!(soft.ledger().is_clear());
}

#[test]
fn k1_pages_behind_a_gap_are_reported() {
    let tracked = Tracked::new(Profile::vtd_ssads());
    let ram = Ram::new(1 << 20);
    // Two mappings that touch, a gap, two more: two questions, where one would lose the second half.
    for first in [0, 4, 9, 13] {
        tracked.map(MIB + first * PAGE, &ram.slice(first * PAGE, 4 * PAGE), Unit::Whole);
    }
    assert_eq!(tracked.start(), EXACT);
    let written = [0, 3, 4, 7, 9, 12, 13, 16];
    for page in written.iter() {
        tracked.write(0, MIB + page * PAGE);
    }
    let (precision, told) = tracked.sync(range(0, 16 * MIB));
    assert_eq!((precision, told), (EXACT, pages(ram.all(), written)));
    assert_eq!(tracked.soft.calls().of("IOMMU_HWPT_GET_DIRTY_BITMAP"), 2);
}

#[test]
fn the_rest_of_a_large_page_is_not_lost() {
    let tracked = Tracked::new(Profile::vtd_ssads().with_fixed_iommu(Profile::vtd().fixed));
    let ram = Ram::new(6 << 20);
    let offset = ram.all().address().get().next_multiple_of(2 * MIB) - ram.all().address().get();
    let block = ram.slice(offset, 2 * MIB);
    tracked.map(64 * MIB, &block, Unit::Whole);
    tracked.start();
    tracked.write(0, 64 * MIB + 5 * PAGE);
    let (_, first) = tracked.sync(range(65 * MIB, MIB));
    let (_, second) = tracked.sync(range(64 * MIB, MIB));
    assert!(first.union(&second).any(|page| *page == page_of(&block, 5 * PAGE)));
}

#[test]
fn devices_behind_several_iommus_are_all_told_of() {
    let mut tracked = Tracked::new(Profile::vtd_ssads());
    let ram = Ram::new(1 << 20);
    tracked.map(MIB, &ram.slice(0, 8 * PAGE), Unit::Whole);
    tracked.add(1);
    assert_eq!(tracked.start(), EXACT);
    // Its page table is made now.
    tracked.add(2);
    for device in 0..3 {
        tracked.write(device, MIB + (2 * device as u64) * PAGE);
    }
    let (precision, told) = tracked.sync(range(0, 16 * MIB));
    assert_eq!((precision, told), (EXACT, pages(ram.all(), [0, 2, 4])));
    assert_eq!(tracked.soft.calls().of("IOMMU_HWPT_ALLOC"), 2, "the first two share one");
}

#[test]
fn while_a_device_that_is_not_logged_is_there_everything_counts() {
    let mut profile = Profile::vtd_ssads();
    profile.groups[1].logs_writes = false;
    let mut tracked = Tracked::new(profile);
    let ram = Ram::new(1 << 20);
    tracked.map(MIB, &ram.slice(0, 4 * PAGE), Unit::Whole);
    assert_eq!(tracked.start(), EXACT);
    tracked.add(1);
    tracked.write(1, MIB + PAGE);
    let (precision, told) = tracked.sync(range(0, 16 * MIB));
    assert_eq!((precision, told), (Precision::Everything, pages(ram.all(), 0..4)));
    let device = tracked.opened.devices.pop().expect("the one that was added");
    tracked.opened.space.remove(device).expect("it can go");
    tracked.told.take();
    tracked.write(0, MIB + 2 * PAGE);
    let (precision, told) = tracked.sync(range(0, 16 * MIB));
    assert_eq!((precision, told), (EXACT, pages(ram.all(), [2])));
}

#[test]
fn pages_written_before_a_device_left_are_reported() {
    let mut tracked = Tracked::new(Profile::vtd_ssads());
    let ram = Ram::new(1 << 20);
    tracked.map(MIB, &ram.slice(0, 4 * PAGE), Unit::Whole);
    tracked.add(2);
    tracked.start();
    tracked.write(2, MIB + 3 * PAGE);
    let device = tracked.opened.devices.pop().expect("the one that was added");
    tracked.opened.space.remove(device).expect("it can go");
    let (_, told) = tracked.sync(range(0, 16 * MIB));
    assert!(told.contains(&page_of(ram.all(), 3 * PAGE)));
}

#[test]
fn on_hosts_that_cannot_log_everything_counts_and_an_old_kernel_is_asked_once() {
    let old = KernelVersion { major: 6, minor: 6 };
    for (profile, questions) in [(Profile::vtd(), 2), (Profile::vtd_ssads().with_kernel(old), 1)] {
        let mut tracked = Tracked::new(profile);
        tracked.add(1);
        let ram = Ram::new(1 << 20);
        tracked.map(MIB, &ram.slice(0, 4 * PAGE), Unit::Whole);
        assert_eq!(tracked.start(), Precision::Everything);
        assert_eq!(tracked.sync(range(0, 16 * MIB)), (Precision::Everything, pages(ram.all(), 0..4)));
        assert_eq!(tracked.soft.calls().of("IOMMU_GET_HW_INFO"), questions);
        assert_eq!(tracked.soft.calls().of("IOMMU_HWPT_ALLOC"), 0);
    }
}

#[test]
fn the_backend_by_itself_says_where_its_calls_end() {
    let soft = SoftHost::new(Profile::vtd_ssads()).expect("sound");
    let iommufd = OwnedHandle::open(soft.clone(), "/dev/iommu".as_ref(), HandleKind::Iommufd).expect("it has one");
    let ioas = Ioas::new(iommufd).expect("made");
    assert_eq!(ioas.page(), None, "no device yet");
    let node =
        OwnedHandle::open(soft.clone(), "/dev/vfio/devices/vfio0".as_ref(), HandleKind::Device).expect("it has one");
    let device = Cdev::new(node, address(&soft, 0));
    ioas.attach(&device, beside_spaces(ioas.attach_place())).expect("attached");
    assert_eq!(ioas.page(), Some(PageSize::K4));
    let reach = ioas.reach();
    assert!(!reach.over_gaps && !reach.parts_of_mappings);
    ioas.start().expect("begun");
    let ram = Ram::new(1 << 20);
    for at in [0, 2 * PAGE] {
        ioas.map(range(MIB + at, PAGE), &lease(&ram.slice(at, PAGE)), RW).expect("mapped");
        soft.device(&device.name()).expect("there").dma_write(Iova::new(MIB + at), &[1]).expect("mapped");
    }
    let ask = |range| {
        // A word, and a host page to spare.
        let mut bitmap = [0; 1 + 512];
        ioas.fetch(range, &mut bitmap).map(|()| bitmap[0])
    };
    assert_eq!(ask(range(MIB, 3 * PAGE)), Ok(1), "the kernel says nothing behind the gap");
    assert_eq!(ask(range(MIB + 2 * PAGE, PAGE)), Ok(1));
    ioas.stop().expect("ended");
    ioas.detach(&device, beside_spaces(ioas.attach_place())).expect("detached");
    assert_eq!(soft.calls().of("IOMMU_HWPT_ALLOC"), 1);
    drop((device, ioas));
    assert!(soft.ledger().is_clear());
}

/// Mappings of a few pages with gaps of a few between them, and pages that are written.
fn lives() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
    proptest::collection::vec((0u64..4, 1u64..12, any::<bool>()), 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn reported_pages_are_the_written_pages(
        lives in lives(),
        writes in proptest::collection::vec((0usize..3, any::<prop::sample::Index>()), 0..40),
        asked in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
    ) {
        let mut tracked = Tracked::new(Profile::vtd_ssads());
        tracked.add(1);
        tracked.add(2);
        let ram = Ram::new(2 << 20);
        let (mut at, mut mapped) = (MIB, Vec::new());
        for (gap, count, whole) in lives {
            at += gap * PAGE;
            let memory = ram.slice(at - MIB, count * PAGE);
            tracked.map(at, &memory, if whole { Unit::Whole } else { PAGES });
            mapped.extend((0..count).map(|page| at + page * PAGE));
            at += count * PAGE;
        }
        prop_assert_eq!(tracked.start(), EXACT);
        let number = |at: u64| page_of(ram.all(), at - MIB);
        for round in 0..2 {
            let mut written = BTreeSet::new();
            for (device, page) in &writes {
                let at = *page.get(&mapped);
                tracked.write(*device, at);
                written.insert(number(at));
            }
            // A part of it first, in the second round, then all.
            let mut told = BTreeSet::new();
            if round == 1 {
                let ends = [*asked.0.get(&mapped), *asked.1.get(&mapped)];
                let (first, last) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
                let (_, part) = tracked.sync(range(first, last - first + PAGE));
                let inside: BTreeSet<_> =
                    mapped.iter().filter(|at| (first..=last).contains(*at)).map(|at| number(*at)).collect();
                prop_assert!(written.intersection(&inside).all(|page| part.contains(page)));
                told.extend(part);
            }
            told.extend(tracked.sync(IovaRange::all()).1);
            prop_assert_eq!(told, written);
        }
    }
}
