//! Windows whose pages prove too large for the memory behind them.
//!
//! An entry shows one page frame, so a window's page must not be larger than the pages of the memory. What those are its owner says
//! ([`HostMemory::backed_by`](crate::HostMemory::backed_by)); the kernel looks for itself, and only when an entry is written: `EINVAL`
//! (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_prereg_ua_to_hpa; arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_ua_to_hpa). As
//! long as the commit that created the window is under way, nobody was promised its pages, and it can be made again with pages that always
//! fit: the host's own. A window that was there before stays as it is, and the commit fails.

use std::fmt;

use crate::address::IovaRange;
use crate::contract::{Mapping, PciAddressSpace, Unit, WindowRequest};
use crate::door::Errno;
use crate::error::{Error, Operation};
use crate::listener::apply::powerless;
use crate::listener::report::SpaceReport;
use crate::page::PageSize;
use crate::section::Backing;

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
        let to = space.window_control()?.offer()?.page_sizes.largest_up_to(space.powers().host_page)?;
        (may_be_at_fault && error.fenced.is_empty() && to < from).then_some(Self { window, from, to })
    }

    /// Makes the window again, with what is mapped in it, and has the report say so.
    ///
    /// # Errors
    /// What the space says. The window is there or not, what was mapped in it too, and no fence is but those the error names.
    pub(super) fn put_in_force(self, space: &dyn PciAddressSpace, report: &mut SpaceReport) -> Result<(), Error> {
        let none = || powerless(Operation::RemoveWindow, self.window);
        let control = space.window_control().ok_or_else(none)?;
        let live = control.remove_window(self.window)?;
        control.create_window(WindowRequest { range: self.window, page: self.to })?;
        for mapping in live {
            let Mapping { range, memory, access, unit } = self.of(mapping, report);
            space.map(range.first(), &memory, access, unit)?;
        }
        let (said, is) = (format!("with {} pages", self.from), format!("with {} pages", self.to));
        let concerned = report.sections.iter_mut().filter(|verdict| self.window.covers(verdict.piece.range()));
        concerned.for_each(|verdict| verdict.reason = verdict.reason.replace(&said, &is));
        Ok(())
    }

    /// The mapping as it is in such a window, if it lies there: what goes by the window's page goes by the new one, but blocks stay blocks.
    pub(super) fn of(self, mapping: Mapping, report: &SpaceReport) -> Mapping {
        if !self.window.covers(mapping.range) {
            return mapping;
        }
        let is_of_blocks = report.sections.iter().any(|verdict| {
            matches!(verdict.piece.backing(), Backing::Discardable { .. })
                && verdict.piece.range().covers(mapping.range)
        });
        let by_page = mapping.unit == Unit::Pages(self.from) && !is_of_blocks;
        Mapping { unit: if by_page { Unit::Pages(self.to) } else { mapping.unit }, ..mapping }
    }
}

impl fmt::Display for SmallerPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pages of {} in the window {}, not {}", self.to, self.window, self.from)
    }
}
