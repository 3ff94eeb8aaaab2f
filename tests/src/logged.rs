//! Dirty tracking where a real kernel logs: the library on a mock device of iommufd's.

use dmaspace_core::contract::MapRequest;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dmaspace::linux::LinuxDoor;
use dmaspace_core::backend::DirtyCalls;
use dmaspace_core::contract::Attachable;
use dmaspace_core::contract::dirty::{DirtyTracking, Precision};
use dmaspace_core::{Access, Iova, IovaRange, PageSize, PciAddressSpace, Space};
use dmaspace_iommufd::Ioas;

use crate::dirty::{Told, page_of};
use crate::mock::{MockDevice, open};
use crate::ram::Ram;

const PAGE: u64 = 0x1000;
/// The start of the mock IOMMU's window.
const FIRST: u64 = 16 << 20;
const PAGES: u64 = 1024;

struct Scene {
    space: Space<Ioas>,
    device: Arc<MockDevice>,
    ram: Ram,
    told: Arc<Told>,
}

fn address_space() -> (Arc<LinuxDoor>, Space<Ioas>) {
    let door = Arc::new(LinuxDoor::new());
    let iommufd = open(&door);
    let ioas = Ioas::new(iommufd).expect("an address space");
    (door, Space::new(ioas).expect("it answers"))
}

fn device_of(door: &Arc<LinuxDoor>, space: &Space<Ioas>, logs: bool) -> Arc<MockDevice> {
    let device = MockDevice::new(door, space.backend_ref().iommufd().handle(), logs);
    space.attach(device.clone()).expect("the mock device fits");
    device
}

fn tracked() -> Scene {
    let (door, space) = address_space();
    let device = device_of(&door, &space, true);
    let told = Arc::new(Told::default());
    let precision = space.powers().dirty_tracking.start(told.clone()).expect("its IOMMU logs");
    assert_eq!(precision, Precision::Pages(PageSize::K4));
    Scene { space, device, ram: Ram::new(4 << 20), told }
}

fn range(page: u64, pages: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(FIRST + page * PAGE), pages * PAGE).expect("a range of the test")
}

impl Scene {
    /// Maps pages of RAM at the same pages of the window.
    fn map(&self, page: u64, pages: u64) -> bool {
        let memory = self.ram.slice(page * PAGE, pages * PAGE);
        self.space.map(MapRequest::new(range(page, pages).first(), &memory, Access::READ_WRITE)).is_ok()
    }

    /// The device writes these pages; says which it reached.
    fn write(&self, live: &BTreeMap<u64, u64>, pages: &[u64]) -> BTreeSet<u64> {
        let last = pages.iter().max().map_or(0, |last| *last);
        let bits: Vec<bool> = (0..=last).map(|page| pages.contains(&page)).collect();
        // The mock's own pages are half of ours: the first half of each is written.
        let halves: Vec<bool> = bits.iter().flat_map(|bit| [*bit, false]).collect();
        self.device.write(FIRST, &halves);
        pages
            .iter()
            .copied()
            .filter(|page: &u64| live.range(..=*page).next_back().is_some_and(|(first, count)| *page < first + count))
            .map(|page| page_of(self.ram.all(), page * PAGE))
            .collect()
    }
}

/// The windows are the mock IOMMU's, and a mapping is found at its place and nowhere else.
pub fn mapped_memory_is_found_at_its_address() {
    const LAST: u64 = (2 << 30) - 1;
    let (door, space) = address_space();
    let device = device_of(&door, &space, true);
    let windows: Vec<_> = space.windows().windows.iter().map(|window| window.range).collect();
    assert_eq!(windows, [IovaRange::new(Iova::new(FIRST), Iova::new(LAST)).expect("a proper range")]);

    let ram = Ram::new(4 << 20);
    let memory = ram.slice(8 * PAGE, 32 * PAGE);
    let places = [FIRST, LAST + 1 - 32 * PAGE];
    for at in places {
        space.map(MapRequest::new(Iova::new(at), &memory, Access::READ_WRITE)).expect("it lies in the window");
        assert!(device.finds(at, &memory) && !device.finds(at, &ram.slice(0, 32 * PAGE)), "another memory");
    }
    assert!(!device.finds(FIRST + 32 * PAGE, &memory), "nothing is mapped there");
    space.unmap(range(0, 32)).expect("no unit is cut");
    assert!(!device.finds(places[0], &memory) && device.finds(places[1], &memory));
}

/// The kernel's own answer ends at the hole, and is a success (K1); the library's does not.
pub fn k1_a_question_over_a_hole_loses_pages() {
    let scene = tracked();
    assert!(scene.map(0, 32) && scene.map(64, 32));
    let live = BTreeMap::from([(0, 32), (64, 32)]);
    let all: Vec<u64> = (0..96).collect();
    scene.write(&live, &all);
    let mut bitmap = vec![0_u64; 2 + 1024];
    scene.space.backend_ref().fetch(range(0, 96), &mut bitmap).expect("the kernel says yes");
    assert_eq!(bitmap.iter().map(|word| word.count_ones()).sum::<u32>(), 32, "64 pages were written");

    let written = scene.write(&live, &all);
    let synced = scene.space.sync(IovaRange::all()).expect("it answers");
    assert_eq!((synced.bytes, scene.told.take()), (64 * PAGE, written));
}

/// Mappings change while the device writes anywhere: exactly the written pages of live mappings are told, and at least
/// the written pages of mappings that were unmapped.
pub fn exactly_the_written_pages_are_reported() {
    let scene = tracked();
    let mut state = 1_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let (mut live, mut written, mut gone) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    for round in 0..300 {
        match random(4) {
            0 => {
                let (page, pages) = (random(PAGES - 32), 1 + random(32));
                if scene.map(page, pages) {
                    live.insert(page, pages);
                }
            }
            1 => {
                let Some((page, pages)) = live.range(random(PAGES)..).next().map(|(page, pages)| (*page, *pages))
                else {
                    continue;
                };
                scene.space.unmap(range(page, pages)).expect("a whole mapping");
                live.remove(&page);
                gone.extend((page..page + pages).map(|page| page_of(scene.ram.all(), page * PAGE)));
            }
            2 => {
                let pages: Vec<u64> = (0..1 + random(20)).map(|_| random(PAGES)).collect();
                written.append(&mut scene.write(&live, &pages));
            }
            _ => {
                let synced = scene.space.sync(IovaRange::all()).expect("it answers");
                assert_eq!(synced.precision, Precision::Pages(PageSize::K4));
                let told = scene.told.take();
                let (missing, extra) = (&written - &told, &told - &(&written | &gone));
                assert!(
                    missing.is_empty() && extra.is_empty(),
                    "round {round}: missing {missing:x?}, extra {extra:x?}"
                );
                (written, gone) = (BTreeSet::new(), BTreeSet::new());
            }
        }
    }
}

/// Devices of one IOMMU share a page table; one that does not log turns all into everything, until it leaves.
pub fn a_device_that_cannot_log_makes_everything_count() {
    let (door, space) = address_space();
    let (first, second) = (device_of(&door, &space, true), device_of(&door, &space, true));
    let (told, ram) = (Arc::new(Told::default()), Ram::new(4 << 20));
    space.start(told.clone()).expect("both log");
    space.map(MapRequest::new(range(0, 4).first(), &ram.slice(0, 4 * PAGE), Access::READ_WRITE)).expect("it is free");
    assert_eq!(second.write(FIRST + PAGE, &[true]), 1);
    assert_eq!(first.write(FIRST + 2 * PAGE, &[true]), 1);
    space.sync(IovaRange::all()).expect("it answers");
    assert_eq!(told.take(), [PAGE, 2 * PAGE].map(|offset| page_of(ram.all(), offset)).into());

    let mute = device_of(&door, &space, false);
    let synced = space.sync(IovaRange::all()).expect("it answers");
    assert_eq!((synced.precision, synced.bytes), (Precision::Everything, 4 * PAGE));
    space.detach(&(mute as Arc<dyn Attachable>)).expect("it can go");
    told.take();
    // Pages written while the page table was not queried are told at the next query.
    assert_eq!(first.write(FIRST + 3 * PAGE, &[true]), 1);
    let synced = space.sync(IovaRange::all()).expect("it answers");
    assert_eq!(synced.precision, Precision::Pages(PageSize::K4));
    assert_eq!(told.take(), [page_of(ram.all(), 3 * PAGE)].into());
}
