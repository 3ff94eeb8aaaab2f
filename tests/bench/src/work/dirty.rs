//! Dirty tracking.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dmaspace_core::contract::dirty::{Dirtied, DirtiedPages, DirtySink};
use dmaspace_core::contract::{MapRequest, PciAddressSpace, Unit};
use dmaspace_core::{Access, Iova, IovaRange, PageSize, Space};

use crate::host::{self, Kind, NullHost};
use crate::measure::Work;

const PAGE: u64 = 0x1000;

/// Counts the bytes.
#[derive(Default)]
struct Count(AtomicU64);

impl DirtySink for Count {
    fn mark(&self, dirtied: Dirtied<'_>) {
        self.0.fetch_add(dirtied.len, Ordering::Relaxed);
    }

    fn mark_pages(&self, pages: DirtiedPages<'_>) {
        let dirty: u64 = pages.words.iter().map(|word| u64::from(word.count_ones())).sum();
        self.0.fetch_add(dirty << pages.page.shift(), Ordering::Relaxed);
    }
}

fn track(space: &Space<NullHost>) {
    let tracking = space.powers().dirty_tracking;
    tracking.start(Arc::new(Count::default())).expect("nothing is tracked yet");
}

fn sync(space: &Space<NullHost>) -> u64 {
    let tracking = space.powers().dirty_tracking;
    tracking.sync(IovaRange::all()).expect("it is tracked").bytes
}

/// One sync over n clean mappings that lie apart: for each mapping.
pub(crate) struct Scattered {
    space: Arc<Space<NullHost>>,
    live: u64,
}

impl Scattered {
    pub(crate) fn work() -> Box<dyn Work> {
        let space = host::space(Kind::Mappings);
        track(&space);
        Box::new(Self { space, live: 0 })
    }
}

impl Work for Scattered {
    fn prepare(&mut self, n: u64) {
        let memory = host::unit_of_ram(0x7000_0000, PAGE, 0);
        for page in self.live..n {
            let request = MapRequest::new(Iova::new(2 * page * PAGE), &memory, Access::READ_WRITE);
            self.space.map(request.with_unit(Unit::Pages(PageSize::K4))).expect("the page is free");
        }
        self.live = self.live.max(n);
    }

    fn repeat(&mut self, n: u64) {
        assert_eq!((self.live, sync(&self.space)), (n, 0));
    }
}

/// Unmapping and mapping a page while tracked, beside one mapping of 1 TiB.
pub(crate) fn pairs() -> Box<dyn Work> {
    const TIB: u64 = 1 << 40;
    let space = host::space(Kind::TellingMappings);
    let large = host::unit_of_ram(1 << 41, TIB, 0);
    space.map(MapRequest::new(Iova::new(TIB), &large, Access::READ_WRITE)).expect("it is free");
    let page = host::unit_of_ram(0x7000_0000, PAGE, 1);
    track(&space);
    sync(&space);
    Box::new(move |n| {
        for _ in 0..n {
            let request = MapRequest::new(Iova::new(0), &page, Access::READ_WRITE);
            space.map(request.with_unit(Unit::Pages(PageSize::K4))).expect("it is free");
            let range = IovaRange::with_len(Iova::new(0), PAGE).expect("a page");
            assert_eq!(space.unmap(range), Ok(PAGE));
        }
    })
}

/// One sync over a mapping of n words of a bitmap, each of them `word`: for each word.
pub(crate) struct Words {
    space: Arc<Space<NullHost>>,
    word: u64,
    mapped: u64,
}

impl Words {
    pub(crate) fn work(word: u64) -> Box<dyn Work> {
        let space = host::dirty_space(Kind::Mappings, word);
        track(&space);
        Box::new(Self { space, word, mapped: 0 })
    }
}

impl Work for Words {
    fn prepare(&mut self, n: u64) {
        if self.mapped > 0 {
            let all = IovaRange::with_len(Iova::new(0), self.mapped * 64 * PAGE).expect("a range");
            assert!(self.space.unmap(all).is_ok(), "it is mapped");
        }
        self.mapped = n;
        let memory = host::unit_of_ram(1 << 41, n * 64 * PAGE, 0);
        self.space.map(MapRequest::new(Iova::new(0), &memory, Access::READ_WRITE)).expect("it is free");
    }

    fn repeat(&mut self, n: u64) {
        assert_eq!(sync(&self.space), n * u64::from(self.word.count_ones()) * PAGE);
    }
}
