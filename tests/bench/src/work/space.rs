//! Single pages in a space: map and unmap, look-ups, and the bytes that a live mapping takes.

use std::sync::Arc;

use dmaspace_core::contract::{MapRequest, PciAddressSpace, Unit};
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize};

use crate::door::{self, Real};
use crate::host::{self, Kind};
use crate::measure::Work;

const PAGE: u64 = 0x1000;

/// A space in which pages of one piece of memory are live.
pub(crate) struct Pages {
    space: Arc<dyn PciAddressSpace>,
    /// One page, mapped everywhere: no two mappings continue each other.
    page: HostMemory,
    live: u64,
    stride: u64,
    state: u64,
}

impl Pages {
    /// `live` pages, `stride` pages apart.
    pub(crate) fn new(live: u64, stride: u64) -> Self {
        Self::on(host::space(Kind::Mappings), host::ram(PAGE), live, stride)
    }

    fn on(space: Arc<dyn PciAddressSpace>, page: HostMemory, live: u64, stride: u64) -> Self {
        let pages = Self { space, page, live, stride, state: 1 };
        for n in 0..live {
            pages.map(n);
        }
        pages
    }

    fn at(&self, n: u64) -> Iova {
        Iova::new((n * self.stride) * PAGE)
    }

    fn map(&self, n: u64) {
        let request = MapRequest::new(self.at(n), &self.page, Access::READ_WRITE);
        self.space.map(request.with_unit(Unit::Pages(PageSize::K4))).expect("the page is free");
    }

    fn unmap(&self, n: u64) {
        let range = IovaRange::with_len(self.at(n), PAGE).expect("a page");
        assert_eq!(self.space.unmap(range), Ok(PAGE));
    }

    /// Any of the live pages.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % self.live.max(1)
    }
}

/// Unmapping and mapping any page; mapping and unmapping one in an empty space.
pub(crate) fn pairs(live: u64, stride: u64) -> Box<dyn Work> {
    repeat_pairs(Pages::new(live, stride))
}

/// The same pairs through a real backend, over a door that answers at once.
pub(crate) fn real_pairs(real: Real, live: u64) -> Box<dyn Work> {
    let page = host::ram(PAGE);
    repeat_pairs(Pages::on(door::space(real, &page), page, live, 2))
}

/// The same pairs through a real backend, over the Linux door and a kernel that answers at once.
pub(crate) fn linux_pairs(real: Real, live: u64) -> Box<dyn Work> {
    let page = host::ram(PAGE);
    repeat_pairs(Pages::on(door::linux_space(real, &page), page, live, 2))
}

fn repeat_pairs(mut pages: Pages) -> Box<dyn Work> {
    Box::new(move |n| {
        for _ in 0..n {
            let page = pages.next();
            if pages.live == 0 {
                pages.map(page);
                pages.unmap(page);
            } else {
                pages.unmap(page);
                pages.map(page);
            }
        }
    })
}

/// Looking up any live page.
pub(crate) fn lookups(live: u64) -> Box<dyn Work> {
    let mut pages = Pages::new(live, 2);
    Box::new(move |n| {
        for _ in 0..n {
            let page = pages.next();
            assert!(pages.space.lookup(pages.at(page)).is_some(), "the page is live");
        }
    })
}

/// Looking up the host address behind any live page.
pub(crate) fn translations(live: u64) -> Box<dyn Work> {
    let mut pages = Pages::new(live, 2);
    Box::new(move |n| {
        for _ in 0..n {
            let page = pages.next();
            assert!(pages.space.translate(pages.at(page)).is_some(), "the page is live");
        }
    })
}

/// The bytes that one live page takes: `stride` apart, or one run with a stride of 0.
pub(crate) fn bytes_of_a_page(live: u64, stride: u64) -> f64 {
    let memory = host::ram(if stride == 0 { live * PAGE } else { PAGE });
    let mut pages = Pages::new(0, stride.max(1));
    let taken = allocation_counter::measure(|| {
        for n in 0..live {
            if stride == 0 {
                pages.page = memory.slice(n * PAGE, PAGE).expect("inside");
            }
            pages.map(n);
        }
    });
    #[expect(clippy::cast_precision_loss, reason = "a size of this process")]
    let bytes = taken.bytes_current as f64 / live as f64;
    bytes
}
