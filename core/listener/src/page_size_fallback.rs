//! Windows whose pages prove too large for the memory behind them.
//!
//! An entry shows one page frame, so a window's page must not be larger than the pages of the memory. What those are its owner says
//! ([`HostMemory::backed_by`](dmaspace_core::HostMemory::backed_by)); the kernel looks for itself, and only when an entry is written: `EINVAL`
//! (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_prereg_ua_to_hpa; arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_ua_to_hpa). As
//! long as the commit that created the window is under way, nobody was promised its pages, and it can be made again with pages that always
//! fit: the host's own. A window that was there before stays as it is, and the commit fails.
//!
//! A translated window gets its entries only after the commit. It is made again when its first entry is put: while it has none, nobody leans
//! on its pages either.

use dmaspace_core::contract::MapRequest;
use std::fmt;

use crate::apply::{Journal, apply, powerless};
use crate::plan::{Plan, Step};
use crate::report::SpaceReport;
use crate::section::Backing;
use crate::windows::have_room;
use dmaspace_core::contract::{Mapping, PciAddressSpace, Unit, WindowRequest};
use dmaspace_core::door::Errno;
use dmaspace_core::error::{Error, Operation};
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::page::PageSize;
use dmaspace_core::words::window::Windows;

/// A window, and the pages it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SmallerPages {
    window: IovaRange,
    from: PageSize,
    to: PageSize,
}

impl SmallerPages {
    /// What may help after `error`, which concerns something in `window`: nothing where the pages are not at fault, or as small as the
    /// host's own.
    pub(super) fn after(error: &Error, space: &dyn PciAddressSpace, window: IovaRange) -> Option<Self> {
        let may_be_at_fault = error.operation == Operation::Map && error.errno() == Some(Errno::EINVAL);
        let from = space.windows().windows.covering(window)?.granule();
        let to = space
            .powers()
            .window_control?
            .offer()?
            .page_sizes
            .largest_up_to(space.describe().capabilities.host_page)?;
        (may_be_at_fault && error.fenced.is_empty() && to < from).then_some(Self { window, from, to })
    }

    /// Makes the window again, with what is mapped in it, and has the report say so.
    ///
    /// # Errors
    /// What the space says. The window is there or not, what was mapped in it too, and no fence is but those the error names.
    pub(super) fn put_in_force(self, space: &dyn PciAddressSpace, report: &mut SpaceReport) -> Result<(), Error> {
        let none = || powerless(Operation::RemoveWindow, self.window);
        let control = space.powers().window_control.ok_or_else(none)?;
        let live = control.remove_window(self.window)?;
        control.create_window(WindowRequest { range: self.window, page: self.to })?;
        for mapping in live {
            let Mapping { range, memory, access, unit } = self.of(mapping, report);
            space.map(MapRequest::new(range.first(), &memory, access).with_unit(unit))?;
        }
        let (said, is) = (format!("with {} pages", self.from), format!("with {} pages", self.to));
        let concerned = report.sections.iter_mut().filter(|verdict| self.window.covers(verdict.piece.range()));
        concerned.for_each(|verdict| verdict.reason = verdict.reason.replace(&said, &is));
        Ok(())
    }

    /// Makes the window again, in which there is nothing.
    ///
    /// # Errors
    /// What the space says. The journal brings back what there was.
    pub(super) fn put_in_force_empty(self, space: &dyn PciAddressSpace, journal: &mut Journal) -> Result<(), Error> {
        let request = WindowRequest { range: self.window, page: self.to };
        let steps = vec![Step::RemoveWindow(self.window), Step::CreateWindow(request)];
        apply(space, Plan::of(steps), journal).map(drop)
    }

    /// Whether the platform would put the window where it is now.
    pub(super) fn has_room(self, space: &dyn PciAddressSpace) -> bool {
        let offer = space.powers().window_control.and_then(|control| control.offer());
        let others = space.windows().windows.iter().filter(|window| window.range != self.window).copied().collect();
        let (Some(offer), Ok(others)) = (offer, Windows::new(others)) else { return false };
        have_room(&[WindowRequest { range: self.window, page: self.to }], &offer, &others)
    }

    /// The window's pages as they are.
    pub(super) fn from(self) -> PageSize {
        self.from
    }

    /// The mapping as it is in such a window, if it lies there: what goes by the window's page goes by the new one, but blocks stay blocks,
    /// and entries what the guest put.
    pub(super) fn of(self, mapping: Mapping, report: &SpaceReport) -> Mapping {
        if !self.window.covers(mapping.range) {
            return mapping;
        }
        let has_a_unit = report.sections.iter().any(|verdict| {
            matches!(verdict.piece.backing(), Backing::Discardable { .. } | Backing::Translated { .. })
                && verdict.piece.range().covers(mapping.range)
        });
        let by_page = mapping.unit == Unit::Pages(self.from) && !has_a_unit;
        Mapping { unit: if by_page { Unit::Pages(self.to) } else { mapping.unit }, ..mapping }
    }
}

impl fmt::Display for SmallerPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pages of {} in the window {}, not {}", self.to, self.window, self.from)
    }
}
