//! A PCI host bridge (PHB) as a guest sees it: two TCE windows and the MSI window, in force on a listener.
//!
//! After a reset there is the *default window*, below 4 GiB and in small pages. The guest creates and removes windows by RTAS calls
//! ([`super::rtas`]), and fills them by hypercalls ([`super::hypercalls`]). Each window is a table under a LIOBN and a translated section,
//! both or none: what hosts refuse has not happened.
//!
//! Where a new window lies is the bridge's to say. It follows the platforms, which fill the lowest place that is free: at the default
//! window's address while there is no window, at the second address next to one (qemu: hw/ppc/spapr_rtas_ddw.c,
//! rtas_ibm_create_pe_dma_window; linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_find_free_table).

mod layout;
mod reach;

use std::collections::BTreeMap;
use std::sync::Arc;

use dmaspace_core::words::address::BadRange;
use dmaspace_core::{Iova, IovaRange, PageSize, PageSizes, PciAddressSpace};
use dmaspace_listener::{CommitError, EntryRun, Report, TranslatedWindow, Update};
use dmaspace_listener::{Listener, Section};

use super::change::Run;
use super::kernel::{self, AnsweredBy, KernelTables, Reason};
use super::rtas::pages::known_to_rtas;
use super::table::{BadTable, TceTable};
use super::tables::{Liobn, LiobnInUse, SharedTable, TceTables};
use layout::DEFAULT_PAGE;
pub use layout::{BadLayout, Layout};
use reach::{Host, Room, room};

/// How many windows a bridge has at most (qemu: include/hw/pci-host/spapr.h, SPAPR_PCI_DMA_MAX_WINDOWS).
pub const MOST_WINDOWS: usize = 2;

/// The most entries a window is said to have (qemu: hw/ppc/spapr_rtas_ddw.c, rtas_ibm_query_pe_dma_window).
const MOST_ENTRIES: u64 = 1 << 37;

/// One of a bridge's windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestWindow {
    /// What the guest calls its table.
    pub liobn: Liobn,
    /// Where it is on the bus.
    pub range: IovaRange,
    /// The page of its entries.
    pub page: PageSize,
    /// Whether it is the one that a reset made.
    pub is_default: bool,
}

/// What the guest can create next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DdwOffer {
    /// How many windows.
    pub windows: u32,
    /// How many entries a window can have, whichever page it is made of. Zero with no window.
    pub most_entries: u64,
    /// The pages it can be made of. `None` when there is no place for one.
    pub page_sizes: Option<PageSizes>,
}

/// Why a bridge's windows are as they were, except for ranges that a host's error names as fenced.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WindowError {
    /// No such page is offered.
    #[error("windows cannot be created in pages of 2^{0} bytes")]
    Page(u32),
    /// The window would be smaller than its page.
    #[error("a window of 2^{0} bytes in pages of 2^{1}")]
    SmallerThanPage(u32, u32),
    /// The window would be larger than there is room.
    #[error("a window of 2^{0} bytes, where there is room for one of 2^{1}")]
    TooLarge(u32, u32),
    /// There are as many windows as there can be.
    #[error("there is no place for one more window")]
    NoPlace,
    /// No window has this LIOBN.
    #[error("there is no window with LIOBN {0}")]
    NoSuchWindow(Liobn),
    /// Somebody else's table has the LIOBN.
    #[error(transparent)]
    LiobnInUse(#[from] LiobnInUse),
    /// A host said no.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The layout gives no table.
    #[error(transparent)]
    Table(#[from] BadTable),
}

/// A PCI host bridge: its windows, and their tables among those of the guest.
///
/// It tells a listener, its own one, whose sections are this bridge's; target memory is the VMM's to add there. Every verb takes the
/// same one.
#[derive(Debug)]
pub struct PciHostBridge {
    layout: Layout,
    tables: Arc<TceTables>,
    /// Ascending by LIOBN.
    windows: Vec<GuestWindow>,
    /// Whether the MSI window is in force: from the first reset on.
    has_msi: bool,
    /// Who may answer hypercalls in our place.
    kernel: Option<Arc<dyn KernelTables>>,
    /// Why a window's hypercalls are ours; none where the kernel took them.
    reasons: BTreeMap<Liobn, Reason>,
}

impl PciHostBridge {
    /// A bridge without windows: a reset makes the first one.
    ///
    /// # Errors
    /// [`BadLayout`], as its variants say.
    pub fn new(layout: Layout, tables: Arc<TceTables>) -> Result<Self, BadLayout> {
        layout.check()?;
        Ok(Self { layout, tables, windows: Vec::new(), has_msi: false, kernel: None, reasons: BTreeMap::new() })
    }

    /// The same bridge, which leaves the hypercalls on its windows to `kernel` where it can: on windows that are created from now on, and on
    /// those without entries when their first host comes. [`PciHostBridge::answered_by`] says where it did, and why not where it did not.
    ///
    /// A VMM that takes memory from the guest first takes KVM's memory slot away, then commits: KVM puts no entry for what is in no slot.
    /// It has no processor of the guest put entries while a host is attached or detached, or the bridge is reset: nobody hears of them.
    ///
    /// Whoever asks what is in a window that KVM fills looks at every place for an entry that the window has.
    #[must_use]
    pub fn with_kernel(mut self, kernel: Arc<dyn KernelTables>) -> Self {
        self.kernel = Some(kernel);
        self
    }

    /// Who answers the hypercalls on a window, and why. `None`: there is no such window.
    pub fn answered_by(&self, liobn: Liobn) -> Option<AnsweredBy> {
        self.windows.iter().find(|window| window.liobn == liobn)?;
        if self.tables.is_left_to_kernel(liobn) {
            return Some(AnsweredBy::Kernel);
        }
        Some(AnsweredBy::Vmm(self.reasons.get(&liobn).cloned().unwrap_or(Reason::TakenBack)))
    }

    /// Where its windows are, and what it is called.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The guest's tables.
    pub fn tables(&self) -> &Arc<TceTables> {
        &self.tables
    }

    /// The windows there are, ascending by LIOBN.
    pub fn windows(&self) -> &[GuestWindow] {
        &self.windows
    }

    /// Resets the bridge: its windows go, with their entries, and the default one is created anew.
    ///
    /// # Errors
    /// [`WindowError::Commit`], [`WindowError::LiobnInUse`].
    pub fn reset(&mut self, listener: &mut Listener) -> Result<Report, WindowError> {
        let all = self.windows.clone();
        self.change(listener, all, Some(self.default_window()))
    }

    /// Takes all of the bridge out of force, for when it is unplugged. A reset brings it back.
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

    /// What the guest can create next, on the hosts that `listener` serves now.
    pub fn offer(&self, listener: &Listener) -> DdwOffer {
        let hosts = hosts(listener);
        let slots = hosts.iter().map(Host::slots).min().unwrap_or(usize::MAX).min(MOST_WINDOWS);
        let rooms = self.rooms(&hosts);
        let largest = rooms.into_iter().reduce(|best, room| if room.shift > best.shift { room } else { best });
        let left = slots.saturating_sub(self.windows.len());
        match largest {
            Some(room) => DdwOffer {
                windows: u32::try_from(left).unwrap_or(u32::MAX),
                most_entries: room.entries().min(MOST_ENTRIES),
                page_sizes: Some(room.page_sizes),
            },
            None => DdwOffer { windows: 0, most_entries: 0, page_sizes: None },
        }
    }

    /// Creates a window of `2^window_shift` bytes in pages of `2^page_shift`, empty, with a host's window behind it wherever the listener
    /// serves a host. The report says which pages that is made of, and why.
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
        let offered = known_to_rtas(self.layout.page_sizes);
        let page = PageSize::from_shift(page_shift).filter(|page| offered.is_some_and(|sizes| sizes.contains(*page)));
        let page = page.ok_or(WindowError::Page(page_shift))?;
        if window_shift < page_shift {
            return Err(WindowError::SmallerThanPage(window_shift, page_shift));
        }
        let most_shift = page_shift + MOST_ENTRIES.ilog2();
        if window_shift > most_shift {
            return Err(WindowError::TooLarge(window_shift, most_shift));
        }
        let liobn = self.free_liobn().ok_or(WindowError::NoPlace)?;
        let rooms = self.rooms(&hosts(listener));
        let most = rooms.iter().map(|room| room.shift).max().ok_or(WindowError::NoPlace)?;
        let of_page: Vec<_> = rooms.iter().filter(|room| room.page_sizes.contains(page)).collect();
        if of_page.is_empty() {
            return Err(WindowError::Page(page_shift));
        }
        let room = of_page.iter().find(|room| window_shift <= room.shift);
        let room = room.ok_or(WindowError::TooLarge(window_shift, most))?;
        // The room is below 2^64.
        let range = IovaRange::with_len(room.first, 1 << window_shift).map_err(BadTable::from)?;
        let window = GuestWindow { liobn, range, page, is_default: false };
        let report = self.change(listener, Vec::new(), Some(window))?;
        Ok((window, report))
    }

    /// Removes a window with its entries. Where that was the last one, and not the default one, the default one comes back (LoPAR:
    /// sec_rtas_dma_window.xml, ibm,remove-pe-dma-window, R1-3).
    ///
    /// # Errors
    /// [`WindowError::NoSuchWindow`], [`WindowError::Commit`].
    pub fn remove_window(&mut self, listener: &mut Listener, liobn: Liobn) -> Result<Report, WindowError> {
        let window = self.windows.iter().find(|window| window.liobn == liobn).copied();
        let window = window.ok_or(WindowError::NoSuchWindow(liobn))?;
        let is_last = self.windows.len() == 1;
        let restored = (is_last && !window.is_default).then(|| self.default_window());
        self.change(listener, vec![window], restored)
    }

    /// Has the listener serve one more host. The first one gets the entries that are in the tables, others what the first one has. Every
    /// host has to come this way, or before the first reset.
    ///
    /// # Errors
    /// [`WindowError::Commit`]; it is not served then.
    pub fn attach(&mut self, listener: &mut Listener, space: Arc<dyn PciAddressSpace>) -> Result<Report, WindowError> {
        let Self { tables, windows, kernel, reasons, .. } = self;
        let liobns: Vec<_> = windows.iter().map(|window| window.liobn).collect();
        tables.joining(&liobns, |live, tables| {
            let run = |run: &Run| EntryRun { range: run.range, target: run.target, access: run.access };
            let report = listener.attach_with_entries(space, &live.iter().map(run).collect::<Vec<_>>())?;
            let handles: Vec<_> = windows.iter().map(|window| listener.translated(window.range.first())).collect();
            for ((window, handle), (table, had_host)) in windows.iter().zip(&handles).zip(tables) {
                if !had_host {
                    decide(reasons, kernel.as_deref(), window.liobn, table, handle.as_ref());
                }
            }
            Ok((report, handles))
        })
    }

    /// Has the listener serve a host no longer. The tables keep their entries.
    ///
    /// # Errors
    /// [`WindowError::Commit`]; it is still served then.
    pub fn detach(&mut self, listener: &mut Listener, space: &Arc<dyn PciAddressSpace>) -> Result<(), WindowError> {
        self.tables.parting(&self.liobns(), || {
            listener.detach(space)?;
            Ok(listener.spaces().next().is_none())
        })
    }

    /// One commit in which `going` go and `coming` comes.
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
        update: Update,
        going: &[GuestWindow],
        coming: Option<GuestWindow>,
    ) -> Result<Report, WindowError> {
        let update = going.iter().fold(update, |update, window| update.removing(window.section()));
        let update = coming.iter().fold(update, |update, window| update.adding(window.section()));
        let tables = coming.iter().map(|window| Ok((window.liobn, window.table()?)));
        let tables = tables.collect::<Result<Vec<_>, BadTable>>()?;
        let old: Vec<_> = going.iter().map(|window| window.liobn).collect();
        let Self { tables: known, kernel, reasons, .. } = self;
        let report = known.exchange(&old, tables, |tables| {
            let report = listener.commit(update)?;
            // With no host there is nothing that could refuse an entry.
            let is_served = listener.spaces().next().is_some();
            let handle = |window: &GuestWindow| listener.translated(window.range.first()).filter(|_| is_served);
            let handles: Vec<_> = coming.iter().map(handle).collect();
            for ((window, handle), table) in coming.iter().zip(&handles).zip(tables) {
                decide(reasons, kernel.as_deref(), window.liobn, table, handle.as_ref());
            }
            Ok::<_, WindowError>((report, handles))
        })?;
        self.windows.retain(|window| !old.contains(&window.liobn));
        self.windows.extend(coming);
        self.windows.sort_by_key(|window| window.liobn);
        Ok(report)
    }

    /// Where there is room for one more window, the preferred place first.
    fn rooms(&self, hosts: &[Host]) -> Vec<Room> {
        let windows: Vec<_> = self.windows.iter().map(|window| window.range).collect();
        let places = [self.layout.default_window.first(), self.layout.second];
        let Some(pages) = known_to_rtas(self.layout.page_sizes).filter(|_| windows.len() < MOST_WINDOWS) else {
            return Vec::new();
        };
        let room_at = |first: Iova| room(hosts, first, pages, &[self.layout.msi], &windows);
        places.into_iter().filter_map(room_at).collect()
    }

    fn free_liobn(&self) -> Option<Liobn> {
        let free = |liobn: &Liobn| !self.liobns().contains(liobn);
        [0, 1].map(|window| self.layout.liobn(window)).into_iter().find(free)
    }

    fn liobns(&self) -> Vec<Liobn> {
        self.windows.iter().map(|window| window.liobn).collect()
    }

    pub(super) fn default_window(&self) -> GuestWindow {
        let range = self.layout.default_window;
        GuestWindow { liobn: self.layout.liobn(0), range, page: DEFAULT_PAGE, is_default: true }
    }

    fn msi(&self) -> Section {
        Section::msi("msi", self.layout.msi)
    }
}

impl GuestWindow {
    /// Named as QEMU names it (qemu: hw/ppc/spapr_iommu.c, spapr_tce_table_realize).
    fn section(&self) -> Section {
        Section::translated(&format!("tce-iommu-{:x}", self.liobn.get()), self.range, self.page)
    }

    fn table(&self) -> Result<TceTable, BadTable> {
        let len = self.range.len().ok_or(BadRange::Overflow)?;
        TceTable::new(self.range.first(), self.page, len.get() >> self.page.shift())
    }
}

/// Leaves a table to the kernel, if it can be, and remembers why not.
fn decide(
    reasons: &mut BTreeMap<Liobn, Reason>,
    kernel: Option<&dyn KernelTables>,
    liobn: Liobn,
    table: &SharedTable,
    window: Option<&TranslatedWindow>,
) {
    let left = match (kernel, window) {
        (None, _) => Err(Reason::NoKernel),
        (Some(_), None) => Err(Reason::NoHost),
        (Some(kernel), Some(window)) => kernel::leave(kernel, liobn, table, window),
    };
    match left {
        Ok(()) => drop(reasons.remove(&liobn)),
        Err(reason) => {
            reasons.insert(liobn, reason);
        }
    }
}

fn hosts(listener: &Listener) -> Vec<Host> {
    listener.spaces().map(|space| Host::of(space.as_ref())).collect()
}
