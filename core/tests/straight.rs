//! One page on its straight path and on the general one: the same answers, the same calls, the same index.
//!
//! A fence anywhere in a space has every verb take the general path (`core/src/space/straight.rs`), so one of two
//! spaces has one, far away.
#![cfg(not(dmaspace_loom))]
#![allow(clippy::expect_used, clippy::panic, reason = "tests arrange and report with them")]

mod iotlb;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::Mutex;

use dmaspace_core::contract::{ForListeners, MapBatch, MapRequest, MappingModel, Unit};
use dmaspace_core::{Access, HostAddress, HostMemory, Iova, IovaRange, PageSize, PciAddressSpace, Space};
use iotlb::{BROKEN, Call, Iotlb, PAGE, memory, page_at, range};
use proptest::prelude::*;

/// A page far from those of the test.
const FAR: u64 = 0x8000_0000;

/// The calls that were made, and the number of those to fail after the next `passing`.
#[derive(Debug, Default)]
struct Played {
    calls: Vec<Call>,
    passing: usize,
    failing: usize,
}

/// A space, and the script of its backend.
struct Player {
    space: Space<Iotlb>,
    played: Arc<Mutex<Played>>,
}

impl Player {
    fn new(keeps: MappingModel, is_general: bool) -> Self {
        let played = Arc::new(Mutex::new(Played::default()));
        let playing = played.clone();
        let mut backend = Iotlb::playing(Arc::new(move |call| {
            let mut played = playing.lock().expect("no panic under it");
            played.calls.push(call);
            if played.passing > 0 || played.failing == 0 {
                played.passing = played.passing.saturating_sub(1);
                return Ok(());
            }
            played.failing -= 1;
            Err(BROKEN)
        }));
        backend.keeps = keeps;
        let space = Space::new(backend).expect("it has a window");
        if is_general {
            space.fence(page_at(FAR), None, BROKEN);
        }
        Self { space, played }
    }

    /// Plays a step, and describes everything that can be seen of it.
    fn play(&self, step: &Step) -> String {
        let answer = match *step {
            Step::Fail(passing, failing) => {
                let mut played = self.played.lock().expect("no panic under it");
                (played.passing, played.failing) = (passing, failing);
                String::new()
            }
            Step::Map(at, host, access, is_whole) => {
                let memory = memory(0x7000_0000 + host * PAGE);
                let unit = if is_whole { Unit::Whole } else { Unit::Pages(PageSize::K4) };
                format!("{:?}", self.space.map(MapRequest::new(at, &memory, access).with_unit(unit)))
            }
            Step::Unmap(range) => format!("{:?}", self.space.unmap(range)),
            Step::Batch(first, count) => {
                let mut batch = MapBatch::new(Unit::Pages(PageSize::K4));
                for n in 0..count {
                    batch.set_memory(&memory(0x7000_0000 + n * 2 * PAGE));
                    batch.add(page_at(first + n * PAGE), 0, Access::READ_WRITE).expect("inside the memory");
                }
                format!("{:?}", self.space.map_batch(&batch))
            }
            Step::Scattered(first, count) => {
                let mut batch = MapBatch::new(Unit::Pages(PageSize::K4));
                batch.set_memory(&pages_of_memory());
                for n in 0..count {
                    let access = if n < 3 { Access::READ_WRITE } else { Access::READ };
                    batch.add(page_at(first + n * PAGE), n * 5 % PAGES * PAGE, access).expect("inside the memory");
                }
                format!("{:?}", self.space.map_batch(&batch))
            }
        };
        let played = self.played.lock().expect("no panic under it");
        let mappings = self.space.mappings(IovaRange::all());
        let found: Vec<_> = (0..PAGES).map(|n| (self.space.lookup(page(n)), self.space.translate(page(n)))).collect();
        let fences = self.space.describe().fences.into_iter().filter(|fence| fence.range != page_at(FAR));
        format!("{answer} {:?} {mappings:?} {found:?} {:?}", played.calls, fences.collect::<Vec<_>>())
    }
}

const PAGES: u64 = 6;

/// As much memory as there are pages, in one piece.
fn pages_of_memory() -> HostMemory {
    let len = NonZeroU64::new(PAGES * PAGE).expect("not zero");
    HostMemory::unbacked(HostAddress::new(0x7000_0000), len).expect("no wrap")
}

fn page(n: u64) -> Iova {
    Iova::new(0x10_0000 + n * PAGE)
}

#[derive(Clone, Debug)]
enum Step {
    Fail(usize, usize),
    Map(Iova, u64, Access, bool),
    Unmap(IovaRange),
    Batch(u64, u64),
    Scattered(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let access = prop_oneof![Just(Access::READ_WRITE), Just(Access::READ), Just(Access::empty())];
    let at =
        prop_oneof![9 => (0..PAGES).prop_map(page), 1 => Just(Iova::new(0x10_0800)), 1 => Just(Iova::new(1 << 33))];
    // Hosts' pages that continue each other as the bus does, and others.
    let map = (at, 0_u64..3, 0..PAGES, access, prop::bool::weighted(0.2));
    let unmap = (0..PAGES, prop_oneof![6 => Just(PAGE), 1 => Just(2 * PAGE), 1 => Just(0x800)]);
    prop_oneof![
        1 => (0_usize..2, 0_usize..7).prop_map(|(passing, failing)| Step::Fail(passing, failing)),
        8 => map.prop_map(|(at, other, host, access, is_whole)| {
            let host = if other == 0 { host * 7 } else { at.get() / PAGE % PAGES };
            Step::Map(at, host, access, is_whole)
        }),
        6 => unmap.prop_map(|(n, len)| {
            let first = page(n).get();
            Step::Unmap(range(first, first + len - 1))
        }),
        1 => (0..PAGES, 0_u64..4).prop_map(|(n, count)| Step::Batch(page(n).get(), count)),
        1 => (0..PAGES, 0_u64..6).prop_map(|(n, count)| Step::Scattered(page(n).get(), count)),
    ]
}

proptest! {
    #[test]
    fn the_straight_path_is_the_general_one(steps in prop::collection::vec(step(), 1..60), entries in any::<bool>()) {
        let keeps = if entries { MappingModel::PageEntries } else { MappingModel::Mappings };
        let (straight, general) = (Player::new(keeps, false), Player::new(keeps, true));
        for step in steps {
            prop_assert_eq!(straight.play(&step), general.play(&step));
        }
    }
}
