//! The decision to give a window smaller pages after its pages proved too large for the memory behind them.
//!
//! An entry shows one page frame, so a window's page must not be larger than the memory's pages. The memory's owner
//! names their size ([`HostMemory::backed_by`](dmaspace_core::HostMemory::backed_by)); the kernel checks it only when
//! an entry is written: `EINVAL` (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_prereg_ua_to_hpa;
//! arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_ua_to_hpa). While the commit that created the window runs, the window
//! can be created again with pages that always fit: the host's own. A window that was there before keeps its pages, and
//! the commit fails.
//!
//! A translated window gets its entries only after the commit. It is created again when its first entry is put: while
//! it has no entry, its page size may still change.
//!
//! This module decides; [`crate::apply`] acts.

use std::fmt;

use crate::report::SpaceReport;
use crate::section::Backing;
use crate::windows::have_room;
use dmaspace_core::contract::{Mapping, PciAddressSpace, Unit, WindowRequest};
use dmaspace_core::door::Errno;
use dmaspace_core::error::{Error, Operation};
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::page::PageSize;
use dmaspace_core::words::window::Windows;

/// A window, its pages, and the smaller pages it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SmallerPages {
    window: IovaRange,
    from: PageSize,
    to: PageSize,
}

impl SmallerPages {
    /// The smaller pages that may help after `error`, which concerns something in `window`. `None` if the page size is
    /// not at fault, or no larger than the host's own page.
    pub(super) fn after(error: &Error, space: &dyn PciAddressSpace, window: IovaRange) -> Option<Self> {
        let may_be_at_fault = error.operation() == Operation::Map && error.errno() == Some(Errno::EINVAL);
        if !may_be_at_fault || !error.fenced().is_empty() {
            return None;
        }
        let from = space.windows().windows.covering(window)?.granule();
        let to = space
            .powers()
            .window_control?
            .offer()?
            .page_sizes
            .largest_up_to(space.describe().capabilities.host_page)?;
        if to < from { Some(Self { window, from, to }) } else { None }
    }

    /// The window to create in place of the one there is.
    pub(super) fn request(self) -> WindowRequest {
        WindowRequest::new(self.window, self.to)
    }

    /// Returns whether the platform would put the window where it is now.
    pub(super) fn has_room(self, space: &dyn PciAddressSpace) -> bool {
        let mut others: Vec<_> = space.windows().windows.iter().copied().collect();
        others.retain(|window| window.range != self.window);
        let Some(offer) = space.powers().window_control.and_then(|control| control.offer()) else { return false };
        match Windows::new(others) {
            Ok(others) => have_room(&[self.request()], &offer, &others),
            Err(_) => {
                debug_assert!(false, "the windows of a space are disjoint");
                false
            }
        }
    }

    /// The window's pages as they are.
    pub(super) fn from(self) -> PageSize {
        self.from
    }

    /// A mapping as it is in the new window, if it lies there: a unit of the window's page becomes one of the new page.
    /// Blocks and entries keep their unit.
    pub(super) fn of(self, mapping: Mapping, report: &SpaceReport) -> Mapping {
        let follows_page = self.window.covers(mapping.range) && mapping.unit == Unit::Pages(self.from);
        if !follows_page || has_unit_of_its_own(mapping.range, report) {
            return mapping;
        }
        Mapping::new(mapping.range, mapping.memory, mapping.access, Unit::Pages(self.to))
    }

    /// Corrects the pages that the report's reasons name.
    pub(super) fn note_in(self, report: &mut SpaceReport) {
        for verdict in report.sections.iter_mut().filter(|verdict| self.window.covers(verdict.piece.range())) {
            verdict.reason.correct_pages(self.from, self.to);
        }
    }
}

/// Returns whether `range` lies in a section whose blocks or entries have a size of their own.
fn has_unit_of_its_own(range: IovaRange, report: &SpaceReport) -> bool {
    report.sections.iter().map(|verdict| &verdict.piece).any(|section| {
        matches!(section.backing(), Backing::Discardable { .. } | Backing::Translated { .. })
            && section.range().covers(range)
    })
}

impl fmt::Display for SmallerPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pages of {} in the window {}, not {}", self.to, self.window, self.from)
    }
}
