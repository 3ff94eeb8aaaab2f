//! Dirty tracking against an IOMMU in a few lines that logs written pages: no written page is ever missing, and where
//! nothing failed none is told that was not.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests arrange with them")]

use dmaspace_core::contract::MapRequest;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dmaspace_core::backend::{Calls, DirtyCalls, DirtyReach};
use dmaspace_core::contract::dirty::{Dirtied, DirtySink, DirtyTracking, Precision};
use dmaspace_core::contract::{Capabilities, MappingModel, Unit};
use dmaspace_core::door::{Errno, Failure, Lease};
use dmaspace_core::error::Kind;
use dmaspace_core::retry::Undone;
use dmaspace_core::{
    Access, Backend, HostAddress, HostMemory, Iova, IovaRange, PageSize, PageSizes, PciAddressSpace, Space, Windows,
};

const PAGE: u64 = 0x1000;
/// The host address of the first mapping's memory, so that bus pages and host pages are told apart.
const HOST: u64 = 1 << 40;

/// The state that the test and the space share.
#[derive(Debug, Default)]
struct Iommu {
    /// Mappings by their first page, and how many pages they have.
    live: BTreeMap<u64, u64>,
    logging: bool,
    written: BTreeSet<u64>,
}

impl Iommu {
    fn covered(&self, page: u64) -> bool {
        self.live.range(..=page).next_back().is_some_and(|(first, pages)| page < first + pages)
    }

    /// The pages written from `first` on, before `end` and, unless gaps are fine, before the first hole (K1), cleared.
    fn take(&mut self, range: IovaRange, bitmap: &mut [u64], over_gaps: bool) {
        let first = range.first().get() / PAGE;
        let mut end = range.last().get() / PAGE + 1;
        if !over_gaps {
            let hole = self
                .live
                .range(..end)
                .fold(first, |hole, (at, pages)| if *at <= hole { hole.max(at + pages) } else { hole });
            end = end.min(hole);
        }
        while let Some(page) = self.written.range(first..end.max(first)).next().copied() {
            self.written.remove(&page);
            let bit = page - first;
            bitmap[usize::try_from(bit / 64).expect("small")] |= 1 << (bit % 64);
        }
    }
}

#[derive(Debug)]
struct Logging {
    iommu: Arc<Mutex<Iommu>>,
    reach: DirtyReach,
    tells_with_unmap: bool,
    questions: Arc<AtomicU64>,
    /// Of this many questions one fails, after it has cleared the pages it was asked about.
    fails_each: u64,
}

fn failure() -> Failure {
    Failure::from_errno("fetch", Errno::EFAULT)
}

impl Logging {
    fn remove(&self, range: IovaRange) -> u64 {
        let mut iommu = self.iommu.lock().expect("no panic under it");
        let (first, last) = (range.first().get() / PAGE, range.last().get() / PAGE);
        let gone: Vec<_> = iommu.live.range(first..=last).map(|(first, pages)| (*first, *pages)).collect();
        for (first, pages) in &gone {
            iommu.live.remove(first);
            let lost: Vec<_> = iommu.written.range(*first..first + pages).copied().collect();
            for page in lost {
                iommu.written.remove(&page);
            }
        }
        gone.iter().map(|(_, pages)| pages * PAGE).sum()
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: an IOMMU without devices")]
// SAFETY: no device is behind it.
unsafe impl Backend for Logging {
    fn name(&self) -> &'static str {
        "logging"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(MappingModel::Mappings, PageSize::K4)
    }

    fn is_real(&self) -> bool {
        false
    }

    fn refresh(&self, _devices: usize) -> Result<Windows, Failure> {
        Ok(Windows::uniform(vec![IovaRange::all()], PageSizes::only(PageSize::K4)))
    }

    fn map(&self, range: IovaRange, memory: &Lease<'_>, _access: Access) -> Result<(), Failure> {
        let mut iommu = self.iommu.lock().expect("no panic under it");
        iommu.live.insert(range.first().get() / PAGE, memory.len().get() / PAGE);
        Ok(())
    }

    fn unmap(&self, range: IovaRange) -> Result<Undone<Option<u64>>, Failure> {
        Ok(Undone::Done(Some(self.remove(range))))
    }

    fn calls(&self) -> Calls<'_> {
        let mut calls = Calls::default();
        calls.dirty = Some(self);
        calls
    }
}

impl DirtyCalls for Logging {
    fn page(&self) -> Option<PageSize> {
        Some(PageSize::K4)
    }

    fn start(&self) -> Result<(), Failure> {
        let mut iommu = self.iommu.lock().expect("no panic under it");
        (iommu.logging, iommu.written) = (true, BTreeSet::new());
        Ok(())
    }

    fn stop(&self) -> Result<(), Failure> {
        self.iommu.lock().expect("no panic under it").logging = false;
        Ok(())
    }

    fn reach(&self) -> DirtyReach {
        self.reach
    }

    fn fetch(&self, range: IovaRange, bitmap: &mut [u64]) -> Result<(), Failure> {
        let mut iommu = self.iommu.lock().expect("no panic under it");
        let cut = |page: u64| iommu.live.range(..page).next_back().is_some_and(|(first, pages)| page < first + pages);
        let ends = [range.first().get() / PAGE, range.last().get() / PAGE + 1];
        assert!(self.reach.parts_of_mappings || !ends.into_iter().any(cut), "{range} cuts a mapping");
        assert!(bitmap.iter().all(|word| *word == 0) && range.bytes() <= bitmap.len() as u128 * 64 * u128::from(PAGE));
        iommu.take(range, bitmap, self.reach.over_gaps);
        let asked = self.questions.fetch_add(1, Ordering::Relaxed) + 1;
        if self.fails_each > 0 && asked % self.fails_each == 0 { Err(failure()) } else { Ok(()) }
    }

    fn unmap(&self, range: IovaRange, bitmap: &mut [u64]) -> Option<Result<Undone<Option<u64>>, Failure>> {
        if !self.tells_with_unmap {
            return None;
        }
        self.iommu.lock().expect("no panic under it").take(range, bitmap, true);
        Some(Ok(Undone::Done(Some(self.remove(range)))))
    }
}

/// The host pages that were told.
#[derive(Default)]
struct Told(Mutex<BTreeSet<u64>>);

impl DirtySink for Told {
    fn mark(&self, dirtied: Dirtied<'_>) {
        assert!(dirtied.len > 0 && dirtied.offset + dirtied.len <= dirtied.memory.len().get());
        let first = dirtied.address().get() / PAGE;
        self.0.lock().expect("no panic under it").extend(first..first + dirtied.len / PAGE);
    }
}

impl Told {
    fn take(&self) -> BTreeSet<u64> {
        std::mem::take(&mut *self.0.lock().expect("no panic under it"))
    }
}

fn range(first_page: u64, pages: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(first_page * PAGE), pages * PAGE).expect("a range of the test")
}

fn memory(first_page: u64, pages: u64) -> HostMemory {
    HostMemory::unbacked(HostAddress::new(HOST + first_page * PAGE), NonZeroU64::new(pages * PAGE).expect("not empty"))
        .expect("no wrap")
}

fn host_page(page: u64) -> u64 {
    HOST / PAGE + page
}

struct Scene {
    iommu: Arc<Mutex<Iommu>>,
    questions: Arc<AtomicU64>,
    space: Space<Logging>,
    told: Arc<Told>,
}

const OVER_GAPS: DirtyReach = DirtyReach::of_whole_mappings(256 << 20).with_gaps();
const IN_PARTS: DirtyReach = DirtyReach::of_whole_mappings(256 << 20).with_parts_of_mappings();

fn scene_of(reach: DirtyReach, tells_with_unmap: bool, fails_each: u64) -> Scene {
    let (iommu, questions, told) = (Arc::default(), Arc::default(), Arc::new(Told::default()));
    let backend =
        Logging { iommu: Arc::clone(&iommu), reach, tells_with_unmap, questions: Arc::clone(&questions), fails_each };
    let space = Space::new(backend).expect("it answers");
    let precision = space.powers().dirty_tracking.start(told.clone()).expect("it logs");
    assert_eq!(precision, Precision::Pages(PageSize::K4));
    Scene { iommu, questions, space, told }
}

impl Scene {
    fn map(&self, first_page: u64, pages: u64, unit: Unit) {
        let memory = memory(first_page, pages);
        self.space
            .map(MapRequest::new(range(first_page, pages).first(), &memory, Access::READ_WRITE).with_unit(unit))
            .expect("free");
    }

    /// A device writes, if it can.
    fn write(&self, page: u64) -> bool {
        let mut iommu = self.iommu.lock().expect("no panic under it");
        let reached = iommu.covered(page);
        if reached {
            iommu.written.insert(page);
        }
        reached
    }

    fn questions(&self) -> u64 {
        self.questions.swap(0, Ordering::Relaxed)
    }
}

#[test]
fn k1_no_question_crosses_a_gap_where_the_kernel_ends_at_one() {
    let scene = scene_of(IN_PARTS, false, 0);
    scene.map(16, 32, Unit::Whole);
    scene.map(64, 32, Unit::Whole);
    let reached = (0..112).filter(|page| scene.write(*page)).count();
    assert_eq!(reached, 64);
    let synced = scene.space.sync(range(0, 112)).expect("it answers");
    assert_eq!(synced.bytes, 64 * PAGE);
    assert_eq!(scene.told.take(), (16..48).chain(64..96).map(host_page).collect());
    assert_eq!(scene.questions(), 2);
}

#[test]
fn adjacent_ranges_are_one_query_and_gaps_are_covered_where_the_kernel_allows() {
    for (reach, gaps, expected) in [(IN_PARTS, 0, 1), (OVER_GAPS, 0, 1), (OVER_GAPS, 1, 1), (IN_PARTS, 1, 1000)] {
        let scene = scene_of(reach, false, 0);
        for n in 0..1000 {
            scene.map(n * (2 + gaps), 2, Unit::Whole);
        }
        scene.space.sync(IovaRange::all()).expect("it answers");
        assert_eq!(scene.questions(), expected, "{reach:?}");
        let (page, first) = (1000 + gaps * 500, host_page(1000 + gaps * 500));
        assert!(scene.write(page));
        scene.space.sync(IovaRange::all()).expect("it answers");
        assert_eq!(scene.told.take(), BTreeSet::from([first]));
        scene.space.sync(IovaRange::all()).expect("it answers");
        assert_eq!(scene.told.take(), BTreeSet::new());
    }
}

/// Adds up, and remembers nothing.
#[derive(Default)]
struct Sum(AtomicU64);

impl DirtySink for Sum {
    fn mark(&self, dirtied: Dirtied<'_>) {
        self.0.fetch_add(dirtied.len, Ordering::Relaxed);
    }
}

#[test]
fn a_question_allocates_nothing() {
    for reach in [IN_PARTS, OVER_GAPS] {
        let scene = scene_of(reach, true, 0);
        let sum = Arc::new(Sum::default());
        scene.space.stop().expect("it is tracked");
        scene.space.start(sum.clone()).expect("it logs");
        (0..1000).for_each(|n| scene.map(n * 3, 2, Unit::Whole));
        (0..3000).step_by(7).for_each(|page| assert_eq!(scene.write(page), page % 3 < 2));
        let counted = allocation_counter::measure(|| {
            scene.space.sync(IovaRange::all()).expect("it answers");
        });
        assert_eq!(counted.count_total, 0, "{reach:?}");
        assert_eq!(sum.0.swap(0, Ordering::Relaxed), 286 * PAGE);
    }
}

#[test]
fn a_question_as_large_as_the_bitmap_does_not_make_it_grow() {
    let scene = scene_of(IN_PARTS, false, 0);
    scene.map(0, 16 << 20, Unit::Whole);
    let counted = allocation_counter::measure(|| {
        scene.space.sync(IovaRange::all()).expect("it answers");
        scene.space.sync(IovaRange::all()).expect("it answers");
    });
    assert_eq!((counted.count_total, scene.questions()), (0, 4));
}

#[test]
fn a_mapping_larger_than_the_bitmap_is_asked_about_in_parts_or_with_a_larger_bitmap() {
    // 64 GiB: twice the range of the first bitmap.
    const PAGES: u64 = 16 << 20;
    for (reach, expected) in [(IN_PARTS, 2), (OVER_GAPS, 1)] {
        let scene = scene_of(reach, false, 0);
        scene.map(0, PAGES, Unit::Whole);
        [0, PAGES / 2 - 1, PAGES / 2, PAGES - 1].iter().for_each(|page| assert!(scene.write(*page)));
        scene.space.sync(IovaRange::all()).expect("it answers");
        assert_eq!(scene.told.take(), [0, PAGES / 2 - 1, PAGES / 2, PAGES - 1].map(host_page).into());
        assert_eq!(scene.questions(), expected);
    }
}

#[test]
fn a_mapping_that_no_bitmap_covers_is_told_whole_and_said() {
    let scene = scene_of(DirtyReach::of_whole_mappings(8).with_gaps(), false, 0);
    scene.map(0, 65, Unit::Whole);
    let error = scene.space.sync(IovaRange::all()).expect_err("65 pages need two words");
    assert_eq!(error.kind(), Kind::BadReply);
    assert_eq!(scene.told.take().len(), 65);
}

#[test]
fn asking_about_a_part_tells_at_least_the_part() {
    let (whole, pages) = (scene_of(OVER_GAPS, false, 0), scene_of(IN_PARTS, false, 0));
    for scene in [&whole, &pages] {
        scene.map(0, 64, Unit::Whole);
        (0..64).for_each(|page| assert!(scene.write(page)));
        let part = IovaRange::with_len(Iova::new(8 * PAGE + 1), PAGE).expect("a range of the test");
        scene.space.sync(part).expect("it answers");
    }
    assert_eq!(whole.told.take().len(), 64);
    assert_eq!(pages.told.take(), [8, 9].map(host_page).into());
}

#[test]
fn read_only_memory_is_never_written() {
    let scene = scene_of(IN_PARTS, false, 0);
    scene.space.map(MapRequest::new(Iova::new(0), &memory(0, 4), Access::READ)).expect("free");
    scene.space.sync(IovaRange::all()).expect("it answers");
    scene.space.unmap(IovaRange::all()).expect("it answers");
    assert_eq!((scene.told.take(), scene.questions()), (BTreeSet::new(), 0));
}

#[test]
fn dirty_pages_are_reported_when_their_section_goes() {
    for (tells_with_unmap, expected) in [(true, 1), (false, 8)] {
        let scene = scene_of(OVER_GAPS, tells_with_unmap, 0);
        scene.map(0, 8, Unit::Pages(PageSize::K4));
        assert!(scene.write(3));
        scene.space.unmap(range(0, 8)).expect("it answers");
        let told = scene.told.take();
        assert!(told.contains(&host_page(3)) && told.len() == expected, "{told:?}");
    }
}

#[test]
fn replaced_memory_is_told_too() {
    let scene = scene_of(OVER_GAPS, true, 0);
    scene.map(0, 8, Unit::Pages(PageSize::K4));
    assert!(scene.write(3));
    scene
        .space
        .replace(
            MapRequest::new(Iova::new(0), &memory(100, 8), Access::READ_WRITE).with_unit(Unit::Pages(PageSize::K4)),
        )
        .expect("it is live");
    assert!(scene.write(4));
    scene.space.sync(IovaRange::all()).expect("it answers");
    assert_eq!(scene.told.take(), [3, 104].map(host_page).into());
}

#[test]
fn tracking_starts_once_and_a_stopped_space_refuses_to_sync_or_stop() {
    let scene = scene_of(IN_PARTS, false, 0);
    assert_eq!(scene.space.start(scene.told.clone()).expect_err("twice").kind(), Kind::Tracking);
    scene.space.stop().expect("it stops");
    assert!(!scene.iommu.lock().expect("no panic under it").logging);
    let errors = [scene.space.sync(IovaRange::all()).map(drop), scene.space.stop()];
    for result in errors {
        assert_eq!(result.expect_err("it has stopped").kind(), Kind::NotTracking);
    }
}

#[test]
fn dropping_a_tracked_space_loses_nothing() {
    let Scene { space, told, .. } = {
        let scene = scene_of(IN_PARTS, false, 0);
        scene.map(0, 8, Unit::Whole);
        scene
    };
    drop(space);
    assert_eq!(told.take().len(), 8);
}

/// Mappings are made and removed, devices write, and the test asks now and then.
fn storm(reach: DirtyReach, tells_with_unmap: bool, fails_each: u64, seed: u64) {
    const BUS: u64 = 512;
    let scene = scene_of(reach, tells_with_unmap, fails_each);
    let mut state = seed;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let (mut written, mut told) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..5_000 {
        match random(8) {
            0 => {
                let (at, pages) = (random(BUS), 1 + random(8));
                let unit = if random(2) == 0 { Unit::Whole } else { Unit::Pages(PageSize::K4) };
                let _ = scene.space.map(
                    MapRequest::new(range(at, pages).first(), &memory(at, pages), Access::READ_WRITE).with_unit(unit),
                );
            }
            1 => drop(scene.space.unmap(range(random(BUS), 1 + random(16)))),
            2 => {
                let result = scene.space.sync(range(random(BUS), 1 + random(64)));
                assert!(result.is_ok() || fails_each > 0);
            }
            _ => {
                let page = random(BUS + 8);
                if scene.write(page) {
                    written.insert(host_page(page));
                }
            }
        }
        told.extend(scene.told.take());
    }
    assert!(scene.space.sync(IovaRange::all()).is_ok() || fails_each > 0);
    told.extend(scene.told.take());
    assert!(written.is_subset(&told), "{:?} were never told", written.difference(&told).collect::<Vec<_>>());
    assert!(scene.iommu.lock().expect("no panic under it").written.is_empty());
}

#[test]
fn no_written_page_is_ever_missing() {
    for seed in 0..4 {
        storm(IN_PARTS, false, 0, seed);
        storm(OVER_GAPS, true, 0, seed);
        storm(OVER_GAPS, false, 3, seed);
        storm(IN_PARTS, false, 3, seed);
    }
}
