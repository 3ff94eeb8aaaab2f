//! Creating and removing windows ([`WindowCalls`]), and the windows granted to a container.
//!
//! A container has two *slots*. A new window takes the first free slot, and the platform chooses its place on the bus.
//! The answer contains the place; the caller removes the window again if it wanted another. The kernel removes the
//! window that contains a given address, so this module only ever passes the first address of a window that was
//! granted.
//!
//! The kernel starts with a *default window*: 4 KiB pages, in the first slot. It is only a promise until the first map,
//! unmap or creation makes it real (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_create_default_window).
//! [`Spapr::begin`] removes the promise before any of these calls: every window of the container was granted here.

use dmaspace_abi::spapr::{self, TceCreate, TceInfo, TceRemove};
use dmaspace_core::backend::WindowCalls;
use dmaspace_core::contract::{WindowOffer, WindowRequest};
use dmaspace_core::door::{Command, Errno, Failure};
use dmaspace_core::retry::Undone;
use dmaspace_core::{Iova, IovaRange, PageSize, PageSizes, Window, Windows};
use zerocopy::IntoBytes;

use crate::Spapr;
use crate::info::TcePlatform;
use crate::tce::Table;

/// The platform and the windows of a container while it has devices. The kernel forgets all of it when the last one
/// leaves.
#[derive(Debug)]
pub(crate) struct Tables {
    platform: TcePlatform,
    granted: Vec<Window>,
}

/// The address that removes a default window which is still a promise, at any place.
const DEFAULT_WINDOW: u64 = 0;

/// The bytes of one entry.
const TCE_BYTES: u64 = 8;

impl Tables {
    pub(crate) fn windows(&self) -> Result<Windows, Failure> {
        Windows::new(self.granted.clone()).map_err(|_| malformed_grant("it overlaps another window"))
    }

    /// Remembers a window, or refuses an impossible one. An impossible window is not removed: the address that names it
    /// might name another window. Nothing is ever mapped in it.
    fn grant(&mut self, start: u64, request: WindowRequest) -> Result<Window, Failure> {
        let len = window_size(request);
        let range = IovaRange::with_len(Iova::new(start), len).map_err(|_| malformed_grant("it ends past 2^64-1"))?;
        if self.granted.iter().any(|window| window.range.overlaps(range)) {
            return Err(malformed_grant("it overlaps another window"));
        }
        let window = Window::new(range, PageSizes::only(request.page));
        self.granted.push(window);
        Ok(window)
    }
}

/// Returns `true` if the address of `window` lies in the table of another of the `granted` ones.
fn would_hit_another(granted: &[Window], window: Window, host_page: PageSize) -> bool {
    let mut others = granted.iter().filter(|granted| granted.range != window.range);
    others.any(|other| table_range(other, host_page).contains(window.range.first()))
}

/// The bus addresses that the kernel takes for those of a window. A table is at least one page of the host's memory, so
/// a small window reaches further than it was asked to (linux: arch/powerpc/platforms/powernv/pci-ioda-tce.c,
/// pnv_pci_ioda2_table_alloc_pages).
fn table_range(window: &Window, host_page: PageSize) -> IovaRange {
    let entries_of_one_page = host_page.bytes() / TCE_BYTES;
    let shortest = entries_of_one_page.saturating_mul(window.granule().bytes());
    let last = window.range.first().get().saturating_add(shortest - 1).max(window.range.last().get());
    IovaRange::new(window.range.first(), Iova::new(last)).unwrap_or(window.range)
}

fn malformed_grant(why: &'static str) -> Failure {
    Failure::malformed(spapr::TCE_CREATE.name, why)
}

/// All 2^64 bytes do not fit the field: 0, which the kernel refuses.
fn window_size(request: WindowRequest) -> u64 {
    request.range.len().map_or(0, |len| len.get())
}

impl Spapr {
    /// Reads the platform's offer after the first device was attached, and removes the default window.
    pub(crate) fn begin(&self) -> Result<Tables, Failure> {
        let mut info = TceInfo { argsz: TceInfo::SIZE, ..TceInfo::default() };
        self.container.call(Command::with_bytes(spapr::TCE_GET_INFO, info.as_mut_bytes()))?;
        let platform = TcePlatform::parse(&info)?;
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

    /// The table for a window. Without a device the table counts as one block, and the kernel refuses to create it.
    fn table(&self, tables: Option<&Tables>, request: WindowRequest) -> Table {
        let levels = tables.map_or(1, |tables| tables.platform.levels());
        Table::new(window_size(request), request.page, self.container.door().host_page(), levels)
    }
}

impl WindowCalls for Spapr {
    fn offer(&self) -> Option<WindowOffer> {
        self.tables.lock().as_ref().map(|tables| tables.platform.offer())
    }

    fn create(&self, request: WindowRequest) -> Result<Window, Failure> {
        let mut tables = self.tables.lock();
        let table = self.table(tables.as_ref(), request);
        let start = table.try_levels(|levels| self.create_with(request, levels))?;
        match tables.as_mut() {
            Some(tables) => tables.grant(start, request),
            None => Err(malformed_grant("a window without a device")),
        }
    }

    /// `EINVAL` means that the kernel has no window there: an earlier call that failed may have removed it all the
    /// same. The window is forgotten then, since the next one may get its place.
    ///
    /// No call is made for an address inside the table of another window: the kernel would remove that window.
    fn remove(&self, window: Window) -> Result<Undone, Failure> {
        let mut tables = self.tables.lock();
        let host_page = self.container.door().host_page();
        if tables.as_ref().is_some_and(|tables| would_hit_another(&tables.granted, window, host_page)) {
            return Ok(Undone::WasNotThere);
        }
        let removed = Undone::unless_absent(self.remove_at(window.range.first().get()), &[Errno::EINVAL])?;
        if let Some(tables) = tables.as_mut() {
            tables.granted.retain(|granted| granted.range != window.range);
        }
        Ok(removed)
    }

    fn table_bytes(&self, request: WindowRequest) -> u64 {
        self.table(self.tables.lock().as_ref(), request).charge()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(first: u64, len: u64, page: PageSize) -> Window {
        let range = IovaRange::with_len(Iova::new(first), len).expect("it does not wrap");
        Window::new(range, PageSizes::only(page))
    }

    #[test]
    fn an_address_behind_a_small_window_hits_its_table() {
        let granted = [window(1 << 59, 4 << 20, PageSize::K64)];
        let behind = window((1 << 59) + (4 << 20), 4 << 20, PageSize::K64);
        assert!(would_hit_another(&granted, behind, PageSize::K64));
        assert!(!would_hit_another(&granted, window((1 << 59) + (512 << 20), 4 << 20, PageSize::K64), PageSize::K64));
        assert!(!would_hit_another(&granted, window(1 << 59, 4 << 20, PageSize::K64), PageSize::K64));
        let last = window(0u64.wrapping_sub(0x1000), 0x1000, PageSize::K4);
        assert_eq!(table_range(&last, PageSize::K4), last.range);
    }
}
