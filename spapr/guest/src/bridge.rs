//! A PCI host bridge (PHB) as a guest sees it: up to two TCE windows and the MSI window, in force on a listener.
//!
//! After a reset there is the *default window*, below 4 GiB and in small pages. The guest creates and removes windows
//! by RTAS calls ([`crate::rtas`]) and fills them by hypercalls ([`crate::hypercalls`]). Each window is a table under a
//! LIOBN and a translated section, both or neither: a change that a host refuses has not happened.
//!
//! The bridge chooses the place of a new window. It follows the platforms, which fill the lowest place that is free:
//! the default window's address while there is no window, the second address next to one (qemu:
//! hw/ppc/spapr_rtas_ddw.c, rtas_ibm_create_pe_dma_window; linux: drivers/vfio/vfio_iommu_spapr_tce.c,
//! tce_iommu_find_free_table).

mod layout;
mod reach;

use std::collections::BTreeMap;
use std::sync::Arc;

use dmaspace_core::words::address::BadRange;
use dmaspace_core::{Iova, IovaRange, PageSize, PageSizes, PciAddressSpace};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{CommitError, EntryRun, Listener, Report, Section, TranslatedWindow, Update};

use crate::in_kernel::{self, AnsweredBy, VmmReason};
use crate::kernel_table::InKernelTables;
use crate::liobn::Liobn;
use crate::rtas::pages::known_to_rtas;
use crate::table::{BadTable, TceTable};
use crate::tables::{Connections, LiobnInUse, QuietTable, TceTables};
use layout::DEFAULT_PAGE;
pub use layout::{BadLayout, Layout};
use reach::{HostReach, Room, room};

/// The most windows of a bridge (qemu: include/hw/pci-host/spapr.h, SPAPR_PCI_DMA_MAX_WINDOWS).
pub const MOST_WINDOWS: usize = 2;

/// The most entries that a query promises for a window (qemu: hw/ppc/spapr_rtas_ddw.c, rtas_ibm_query_pe_dma_window).
const MOST_ENTRIES: u64 = 1 << 37;

/// One of a bridge's windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuestWindow {
    /// The guest's name for its table.
    pub liobn: Liobn,
    /// The window's range on the bus.
    pub range: IovaRange,
    /// The page size of its entries.
    pub page: PageSize,
    /// True for the window that a reset creates.
    pub is_default: bool,
}

/// The windows that the guest can create next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DdwOffer {
    /// The number of windows.
    pub windows: u32,
    /// The most entries of a window, with any of the page sizes. Zero when no window can be created.
    pub most_entries: u64,
    /// The page sizes. `None` when no window can be created.
    pub page_sizes: Option<PageSizes>,
}

/// The reason that a bridge's windows did not change. They are as they were, except for ranges that a host's error
/// names as fenced.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WindowError {
    /// The page size is not offered.
    #[error("windows cannot be created in pages of 2^{0} bytes")]
    Page(u32),
    /// The window would be smaller than its page.
    #[error("a window of 2^{0} bytes is smaller than its pages of 2^{1}")]
    SmallerThanPage(u32, u32),
    /// The window would be larger than the room for it.
    #[error("a window of 2^{0} bytes is too large: there is room for 2^{1}")]
    TooLarge(u32, u32),
    /// The bridge or a host has no place for another window.
    #[error("there is no place for one more window")]
    NoPlace,
    /// The bridge has no window with this LIOBN.
    #[error("there is no window with LIOBN {0}")]
    NoSuchWindow(Liobn),
    /// A table of another bridge has the LIOBN.
    #[error(transparent)]
    LiobnInUse(#[from] LiobnInUse),
    /// A host refused the change.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// There can be no table for the layout's window.
    #[error(transparent)]
    Table(#[from] BadTable),
}

/// A PCI host bridge: its windows, and their tables among those of the guest.
///
/// A bridge has a listener of its own, whose sections are the bridge's; the VMM adds target memory there. Every verb
/// must get the same listener.
#[derive(Debug)]
pub struct PciHostBridge {
    layout: Layout,
    tables: Arc<TceTables>,
    /// Ascending by LIOBN.
    windows: Vec<GuestWindow>,
    /// True while the MSI window is in force: from the first reset on.
    has_msi: bool,
    /// The kernel that may answer hypercalls in the VMM's place.
    kernel: Option<Arc<dyn InKernelTables>>,
    /// The reasons that the VMM answers a window's hypercalls. A window that was handed to the kernel has none.
    reasons: BTreeMap<Liobn, VmmReason>,
}

impl PciHostBridge {
    /// A bridge without windows. A reset creates the first one.
    ///
    /// # Errors
    /// [`BadLayout`], as its variants say.
    pub fn new(layout: Layout, tables: Arc<TceTables>) -> Result<Self, BadLayout> {
        layout.check()?;
        Ok(Self { layout, tables, windows: Vec::new(), has_msi: false, kernel: None, reasons: BTreeMap::new() })
    }

    /// Has `kernel` answer the hypercalls on windows where it can: on windows that are created from now on, and on
    /// those without entries when their first host is attached. [`PciHostBridge::answered_by`] tells where it does, and
    /// why not elsewhere.
    ///
    /// A VMM that takes memory from the guest must take away KVM's memory slot first and commit then: KVM puts no entry
    /// for memory that is in no slot. No processor of the guest may put entries while a host is attached or detached,
    /// or the bridge is reset: such an entry could be lost.
    ///
    /// Every look-up of a range in a window that KVM fills reads all entries of the range.
    #[must_use]
    pub fn with_kernel(mut self, kernel: Arc<dyn InKernelTables>) -> Self {
        self.kernel = Some(kernel);
        self
    }

    /// The side that answers the hypercalls on a window, with the reason. `None` when there is no such window.
    pub fn answered_by(&self, liobn: Liobn) -> Option<AnsweredBy> {
        self.windows.iter().find(|window| window.liobn == liobn)?;
        if self.tables.is_left_to_kernel(liobn) {
            return Some(AnsweredBy::Kernel);
        }
        Some(AnsweredBy::Vmm(self.reasons.get(&liobn).cloned().unwrap_or(VmmReason::Reclaimed)))
    }

    /// The bridge's names, and the places of its windows.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The guest's tables.
    pub fn tables(&self) -> &Arc<TceTables> {
        &self.tables
    }

    /// The windows that exist, ascending by LIOBN.
    pub fn windows(&self) -> &[GuestWindow] {
        &self.windows
    }

    /// Resets the bridge: removes its windows with their entries, and creates the default one.
    ///
    /// # Errors
    /// [`WindowError::Commit`], [`WindowError::LiobnInUse`].
    pub fn reset(&mut self, listener: &mut Listener) -> Result<Report, WindowError> {
        let all = self.windows.clone();
        self.change(listener, all, Some(self.default_window()))
    }

    /// Takes all of the bridge out of force, for when it is unplugged. A reset puts it in force again.
    ///
    /// # Errors
    /// [`WindowError::Commit`].
    pub fn withdraw(&mut self, listener: &mut Listener) -> Result<Report, WindowError> {
        if !self.has_msi {
            return Ok(listener.commit(Update::new())?);
        }
        let all = self.windows.clone();
        let update = Update::new().removing(self.msi());
        let report = self.exchange(listener, update, &all, None)?;
        self.has_msi = false;
        Ok(report)
    }

    /// Commits an update that removes target memory, and clears the guest's entries that point to it: in the tables
    /// and on every host. Returns the entries, as the guest put them, beside the report. The guest is not told: it
    /// should have cleared them itself before its memory is unplugged.
    ///
    /// # Errors
    /// [`WindowError::Commit`]: nothing is cleared then. [`CommitError::StillMapped`] for entries of a window that KVM
    /// fills.
    pub fn unplug_memory(
        &mut self,
        listener: &mut Listener,
        update: Update,
    ) -> Result<(Report, Vec<EntryRun>), WindowError> {
        let gone: Vec<_> = update.removed_targets().iter().map(TargetMemory::range).collect();
        let update = update.clearing_entries();
        self.tables.clearing(&self.liobns(), &gone, || Ok(listener.commit(update)?))
    }

    /// The windows that the guest can create next, on the hosts that `listener` serves now.
    pub fn offer(&self, listener: &Listener) -> DdwOffer {
        let reaches = hosts(listener);
        let slots = reaches.iter().map(HostReach::slots).min().unwrap_or(usize::MAX).min(MOST_WINDOWS);
        let left = slots.saturating_sub(self.windows.len());
        match largest(self.rooms(&reaches)) {
            Some(room) => DdwOffer {
                windows: u32::try_from(left).unwrap_or(u32::MAX),
                most_entries: room.entries().min(MOST_ENTRIES),
                page_sizes: Some(room.page_sizes),
            },
            None => DdwOffer { windows: 0, most_entries: 0, page_sizes: None },
        }
    }

    /// Creates an empty window of `2^window_shift` bytes in pages of `2^page_shift`. Every host that the listener
    /// serves creates a window behind it. The report gives the pages of that window, and the reason for them.
    ///
    /// # Errors
    /// Before a host is asked: [`WindowError::Page`], [`WindowError::SmallerThanPage`], [`WindowError::NoPlace`],
    /// [`WindowError::TooLarge`], [`WindowError::LiobnInUse`]. Then [`WindowError::Commit`].
    pub fn create_window(
        &mut self,
        listener: &mut Listener,
        page_shift: u32,
        window_shift: u32,
    ) -> Result<(GuestWindow, Report), WindowError> {
        let page = self.offered_page(page_shift)?;
        if window_shift < page_shift {
            return Err(WindowError::SmallerThanPage(window_shift, page_shift));
        }
        let most_shift = page_shift + MOST_ENTRIES.ilog2();
        if window_shift > most_shift {
            return Err(WindowError::TooLarge(window_shift, most_shift));
        }
        let liobn = self.free_liobn().ok_or(WindowError::NoPlace)?;
        let first = self.place_for(&hosts(listener), page, window_shift)?;
        let range = IovaRange::with_len(first, 1 << window_shift).map_err(BadTable::from)?;
        let window = GuestWindow { liobn, range, page, is_default: false };
        let report = self.change(listener, Vec::new(), Some(window))?;
        Ok((window, report))
    }

    fn offered_page(&self, page_shift: u32) -> Result<PageSize, WindowError> {
        let offered = known_to_rtas(self.layout.page_sizes);
        let page = PageSize::from_shift(page_shift).filter(|page| offered.is_some_and(|sizes| sizes.contains(*page)));
        page.ok_or(WindowError::Page(page_shift))
    }

    /// The first byte of the preferred place for a window of `2^window_shift` bytes in pages of `page`.
    fn place_for(&self, hosts: &[HostReach], page: PageSize, window_shift: u32) -> Result<Iova, WindowError> {
        let rooms = self.rooms(hosts);
        let most_shift = rooms.iter().map(|room| room.shift).max().ok_or(WindowError::NoPlace)?;
        let mut with_page = rooms.iter().filter(|room| room.page_sizes.contains(page)).peekable();
        if with_page.peek().is_none() {
            return Err(WindowError::Page(page.shift()));
        }
        let room = with_page.find(|room| window_shift <= room.shift);
        room.map(|room| room.first).ok_or(WindowError::TooLarge(window_shift, most_shift))
    }

    /// Removes a window with its entries. Removing the last window, unless it is the default one, creates the default
    /// one again (LoPAR: sec_rtas_dma_window.xml, ibm,remove-pe-dma-window, R1-3).
    ///
    /// # Errors
    /// [`WindowError::NoSuchWindow`], [`WindowError::Commit`].
    pub fn remove_window(&mut self, listener: &mut Listener, liobn: Liobn) -> Result<Report, WindowError> {
        let found = self.windows.iter().find(|window| window.liobn == liobn).copied();
        let window = found.ok_or(WindowError::NoSuchWindow(liobn))?;
        let is_last = self.windows.len() == 1;
        let restored = (is_last && !window.is_default).then(|| self.default_window());
        self.change(listener, vec![window], restored)
    }

    /// Has the listener serve one more host. The first host gets the entries of the tables, any other the entries of
    /// the first one. Every host must be attached by this verb, or before the first reset.
    ///
    /// # Errors
    /// [`WindowError::Commit`]; the host is not served then.
    pub fn attach(&mut self, listener: &mut Listener, space: Arc<dyn PciAddressSpace>) -> Result<Report, WindowError> {
        let liobns = self.liobns();
        let Self { tables, windows, kernel, reasons, .. } = self;
        tables.joining(&liobns, |live, quiet| {
            let report = listener.attach_with_entries(space, live)?;
            Ok((report, connect(reasons, kernel.as_deref(), windows, quiet, listener)))
        })
    }

    /// Has the listener serve a host no longer. The tables keep their entries.
    ///
    /// # Errors
    /// [`WindowError::Commit`]; the host is still served then.
    pub fn detach(&mut self, listener: &mut Listener, space: &Arc<dyn PciAddressSpace>) -> Result<(), WindowError> {
        self.tables.parting(&self.liobns(), || {
            listener.detach(space)?;
            Ok(listener.spaces().next().is_none())
        })
    }

    /// One commit that removes the windows `going` and creates `coming`.
    fn change(
        &mut self,
        listener: &mut Listener,
        going: Vec<GuestWindow>,
        coming: Option<GuestWindow>,
    ) -> Result<Report, WindowError> {
        let update = if self.has_msi { Update::new() } else { Update::new().adding(self.msi()) };
        let report = self.exchange(listener, update, &going, coming)?;
        self.has_msi = true;
        Ok(report)
    }

    fn exchange(
        &mut self,
        listener: &mut Listener,
        mut update: Update,
        going: &[GuestWindow],
        coming: Option<GuestWindow>,
    ) -> Result<Report, WindowError> {
        let mut new = Vec::new();
        for window in going {
            update = update.removing(window.section());
        }
        if let Some(window) = &coming {
            update = update.adding(window.section());
            new.push((window.liobn, window.table()?));
        }
        let old: Vec<_> = going.iter().map(|window| window.liobn).collect();
        let Self { tables, kernel, reasons, .. } = self;
        let report = tables.exchange(&old, new, |quiet| {
            let report = listener.commit(update)?;
            Ok::<_, WindowError>((report, connect(reasons, kernel.as_deref(), coming.as_slice(), quiet, listener)))
        })?;
        self.windows.retain(|window| !old.contains(&window.liobn));
        self.windows.extend(coming);
        self.windows.sort_by_key(|window| window.liobn);
        Ok(report)
    }

    /// The places with room for one more window, the preferred place first.
    fn rooms(&self, hosts: &[HostReach]) -> Vec<Room> {
        let windows: Vec<_> = self.windows.iter().map(|window| window.range).collect();
        let Some(pages) = known_to_rtas(self.layout.page_sizes).filter(|_| windows.len() < MOST_WINDOWS) else {
            return Vec::new();
        };
        let places = [self.layout.default_window.first(), self.layout.second];
        places.into_iter().filter_map(|first| room(hosts, first, pages, &[self.layout.msi], &windows)).collect()
    }

    fn free_liobn(&self) -> Option<Liobn> {
        let used = self.liobns();
        [0, 1].map(|window| self.layout.liobn(window)).into_iter().find(|liobn| !used.contains(liobn))
    }

    fn liobns(&self) -> Vec<Liobn> {
        self.windows.iter().map(|window| window.liobn).collect()
    }

    pub(crate) fn default_window(&self) -> GuestWindow {
        let range = self.layout.default_window;
        GuestWindow { liobn: self.layout.liobn(0), range, page: DEFAULT_PAGE, is_default: true }
    }

    fn msi(&self) -> Section {
        Section::msi("msi", self.layout.msi)
    }
}

impl GuestWindow {
    /// The window's section, with QEMU's name for it (qemu: hw/ppc/spapr_iommu.c, spapr_tce_table_realize).
    fn section(&self) -> Section {
        Section::translated(&format!("tce-iommu-{:x}", self.liobn.get()), self.range, self.page)
    }

    /// An empty table for the window.
    fn table(&self) -> Result<TceTable, BadTable> {
        let len = self.range.len().ok_or(BadRange::Overflow)?;
        TceTable::new(self.range.first(), self.page, len.get() >> self.page.shift())
    }
}

/// Connects tables without a host to their windows on the listener's hosts, and hands them to the kernel where that is
/// possible. `reasons` gets the reasons where it is not.
fn connect(
    reasons: &mut BTreeMap<Liobn, VmmReason>,
    kernel: Option<&dyn InKernelTables>,
    windows: &[GuestWindow],
    tables: &[QuietTable],
    listener: &Listener,
) -> Connections {
    // Without a host there is none that could refuse an entry.
    let is_served = listener.spaces().next().is_some();
    let mut connections = Connections::new();
    for table in tables {
        let found = windows.iter().find(|window| window.liobn == table.liobn).filter(|_| is_served);
        let window = found.and_then(|window| listener.translated(window.range.first()));
        match hand_over(kernel, table, window.as_ref()) {
            Ok(()) => {
                reasons.remove(&table.liobn);
            }
            Err(reason) => {
                reasons.insert(table.liobn, reason);
            }
        }
        connections.extend(window.map(|window| (table.liobn, window)));
    }
    connections
}

fn hand_over(
    kernel: Option<&dyn InKernelTables>,
    table: &QuietTable,
    window: Option<&TranslatedWindow>,
) -> Result<(), VmmReason> {
    in_kernel::hand_over(kernel.ok_or(VmmReason::NoKernel)?, table, window.ok_or(VmmReason::NoHost)?)
}

fn hosts(listener: &Listener) -> Vec<HostReach> {
    listener.spaces().map(|space| HostReach::of(space.as_ref())).collect()
}

/// The room for the largest window, the first one of several.
fn largest(rooms: impl IntoIterator<Item = Room>) -> Option<Room> {
    rooms.into_iter().reduce(|best, room| if room.shift > best.shift { room } else { best })
}
