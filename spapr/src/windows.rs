//! Windows that come and go ([`WindowCalls`]), and what the container knows of them.
//!
//! A container has two *slots*. A new window takes the first free one and the platform decides where on the bus that is; the caller
//! learns it from the answer, and removes the window again if it is not where it was wanted. Removing takes any address inside
//! a window for its name, so here only the first address of a window that was granted is ever passed.
//!
//! The kernel starts with a *default window* that nobody asked for: 4 KiB pages, the first slot. It is only a promise until the first
//! map, unmap or creation makes it real (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_create_default_window).
//! [`Spapr::begin`] takes the promise back before any of those, so that every window there is was granted here.

use dmaspace_abi::spapr::{self, TceCreate, TceInfo, TceRemove};
use dmaspace_core::backend::WindowCalls;
use dmaspace_core::contract::{WindowOffer, WindowRequest};
use dmaspace_core::door::{Command, Errno, Failure};
use dmaspace_core::retry::Undone;
use dmaspace_core::{Iova, IovaRange, PageSizes, Window, Windows};
use zerocopy::IntoBytes;

use crate::Spapr;
use crate::info::Platform;
use crate::tce::Table;

/// What is known of a container while it has devices. The kernel forgets it all when the last one leaves.
#[derive(Debug)]
pub(crate) struct Tables {
    platform: Platform,
    granted: Vec<Window>,
}

/// The address that takes back a default window which is still a promise, wherever it would begin.
const DEFAULT_WINDOW: u64 = 0;

impl Tables {
    pub(crate) fn windows(&self) -> Result<Windows, Failure> {
        Windows::new(self.granted.clone()).map_err(|_| malformed_grant("it overlaps another window"))
    }

    /// Remembers a window, unless it cannot be true. Such a window is not removed: an address would have to name it, and might name
    /// another. Nothing is ever mapped in it.
    fn grant(&mut self, start: u64, request: WindowRequest) -> Result<Window, Failure> {
        let len = window_size(request);
        let range = IovaRange::with_len(Iova::new(start), len).map_err(|_| malformed_grant("it ends past 2^64-1"))?;
        if self.granted.iter().any(|window| window.range.overlaps(range)) {
            return Err(malformed_grant("it overlaps another window"));
        }
        let window = Window { range, page_sizes: PageSizes::only(request.page) };
        self.granted.push(window);
        Ok(window)
    }
}

fn malformed_grant(why: &'static str) -> Failure {
    Failure::malformed(spapr::TCE_CREATE.name, why)
}

/// All 2^64 bytes do not fit the field: 0, which the kernel refuses.
fn window_size(request: WindowRequest) -> u64 {
    request.range.len().map_or(0, |len| len.get())
}

impl Spapr {
    /// The first device is there: asks what the platform can do and takes back the default window.
    pub(crate) fn begin(&self) -> Result<Tables, Failure> {
        let mut info = TceInfo { argsz: TceInfo::SIZE, ..TceInfo::default() };
        self.container.call(Command::with_bytes(spapr::TCE_GET_INFO, info.as_mut_bytes()))?;
        let malformed = |why| Failure::malformed(spapr::TCE_GET_INFO.name, why);
        let platform = Platform::parse(&info).map_err(malformed)?;
        self.remove_at(DEFAULT_WINDOW)?;
        Ok(Tables { platform, granted: Vec::new() })
    }

    fn create_with(&self, request: WindowRequest, levels: u32) -> Result<u64, Failure> {
        let mut create = TceCreate {
            argsz: TceCreate::SIZE,
            page_shift: request.page.shift(),
            window_size: window_size(request),
            levels,
            ..TceCreate::default()
        };
        self.container.call(Command::with_bytes(spapr::TCE_CREATE, create.as_mut_bytes()))?;
        Ok(create.start_addr)
    }

    fn remove_at(&self, start: u64) -> Result<(), Failure> {
        let mut remove = TceRemove { argsz: TceRemove::SIZE, flags: 0, start_addr: start };
        self.container.call(Command::with_bytes(spapr::TCE_REMOVE, remove.as_mut_bytes()))
    }

    /// Before the first device a table is taken to be one block, and creating it is the kernel's to refuse.
    fn table(&self, tables: Option<&Tables>, request: WindowRequest) -> Table {
        let levels = tables.map_or(1, |tables| tables.platform.levels());
        Table::new(window_size(request), request.page, self.container.door().host_page(), levels)
    }
}

impl WindowCalls for Spapr {
    fn offer(&self) -> Option<WindowOffer> {
        self.tables().as_ref().map(|tables| tables.platform.offer())
    }

    fn create(&self, request: WindowRequest) -> Result<Window, Failure> {
        let mut tables = self.tables();
        let table = self.table(tables.as_ref(), request);
        let start = table.try_levels(|levels| self.create_with(request, levels))?;
        match tables.as_mut() {
            Some(tables) => tables.grant(start, request),
            None => Err(malformed_grant("a window without a device")),
        }
    }

    /// Where the kernel says `EINVAL`, no window is: a call that failed before may have removed it all the same, and the next one may
    /// come to lie there.
    fn remove(&self, window: Window) -> Result<Undone, Failure> {
        let mut tables = self.tables();
        let removed = Undone::unless_absent(self.remove_at(window.range.first().get()), &[Errno::EINVAL])?;
        if let Some(tables) = tables.as_mut() {
            tables.granted.retain(|granted| granted.range != window.range);
        }
        Ok(removed)
    }

    fn table_bytes(&self, request: WindowRequest) -> u64 {
        self.table(self.tables().as_ref(), request).charge()
    }
}
