//! What devices bring and take along: windows, and on some hosts everything that was mapped.

use std::sync::Arc;

use crate::backend::Backend;
use crate::contract::{Attachable, MappingModel, WindowChange};
use crate::error::{Error, Kind, Operation};
use crate::space::{Layout, Slot, Space, read, write};
use crate::words::address::IovaRange;
use crate::words::window::Windows;

impl<B: Backend> Space<B> {
    /// What attaching the first device locks: iommufd pins what was mapped before it came (linux:
    /// drivers/iommu/iommufd/io_pagetable.c, iopt_table_add_domain). Whoever comes later finds it pinned. `None`: others
    /// hold some of it too, and may have pinned it.
    pub(super) fn locked_by_attaching(&self, devices: usize) -> Option<u64> {
        if devices > 0 {
            return Some(0);
        }
        if read(&self.held).values().any(|memory| self.is_shared(memory)) {
            return None;
        }
        let live = |slot: &Arc<Slot>| read(&slot.live).hull(slot.window.range).map_or(0, |(_, bytes)| bytes);
        Some(self.layout().slots.iter().map(live).fold(0, u64::saturating_add))
    }

    /// Takes the windows the host offers now into force, moving what lives to where it belongs. The gate is held exclusively.
    pub(super) fn adopt_windows(&self, windows: Windows) -> WindowChange {
        let layout = self.layout();
        let before = layout.snapshot();
        if *layout.windows != windows {
            let live = layout.slots.iter().flat_map(|slot| write(&slot.live).drain()).collect();
            *write(&self.layout) = Arc::new(Layout::new(layout.generation + 1, windows, live));
        }
        WindowChange { before, after: self.layout().snapshot() }
    }

    /// The first live mapping that `windows` could not hold.
    pub(super) fn stranded_by(&self, windows: &Windows) -> Option<IovaRange> {
        let fits =
            |range: IovaRange| windows.covering(range).is_some_and(|window| range.is_aligned_to(window.granule()));
        let layout = self.layout();
        layout.slots.iter().find_map(|slot| {
            let live = slot.mappings(slot.window.range);
            live.into_iter().map(|mapping| mapping.range).find(|range| !fits(*range))
        })
    }

    /// Adds the live mapping and the reserved range that collide to the refusal of a device that does not reach all that is mapped.
    pub(super) fn naming_collision(&self, device: &dyn Attachable, mut error: Error) -> Error {
        if !error.failure.is_some_and(|failure| self.backend.may_be_a_collision(&failure)) {
            return error;
        }
        let layout = self.layout();
        let live = |range| layout.slots.iter().find_map(|slot| read(&slot.live).overlap(range));
        let collision = device.reserved().into_iter().find_map(|reserved| Some((live(reserved.range)?, reserved)));
        if let Some((live, reserved)) = collision {
            error.kind = Kind::WouldStrand(live, Some(Box::new(reserved)));
        }
        error
    }

    /// Forgets what the kernel forgot when the last device left its container.
    pub(super) fn forget_everything(&self) {
        self.layout().slots.iter().for_each(|slot| drop(write(&slot.live).drain()));
        self.forget_registrations();
    }

    /// Detaches a device again, and returns what could not be brought back for the `devices` that were there before.
    pub(super) fn undo_attach(&self, device: &Arc<dyn Attachable>, devices: usize) -> Vec<IovaRange> {
        if let Err(failure) = self.backend.detach(&**device, self.attach_point()) {
            log::error!("{}: {} could not be detached again: {failure}", self.backend.name(), device.name());
        }
        self.tell_all();
        if let Err(failure) = self.backend.refresh(devices) {
            log::error!("{}: the windows could not be read again: {failure}", self.backend.name());
        }
        self.refill_tables(Operation::Attach, devices)
    }

    /// The kernel clears the tables of a container when one of several groups leaves it (linux:
    /// drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_release_ownership): what lives for the `devices` that stay is entered again. Returns
    /// what could not be, which is fenced.
    pub(super) fn refill_tables(&self, operation: Operation, devices: usize) -> Vec<IovaRange> {
        if devices == 0 || self.keeps() == MappingModel::Mappings {
            return Vec::new();
        }
        let refill = |slot: &Arc<Slot>| {
            let lost = self.bring_back(operation, slot, &slot.mappings(slot.window.range));
            if let Some(filler) = &slot.filler {
                self.note_refilled(slot, filler.as_ref(), &lost);
            }
            lost
        };
        self.layout().slots.iter().flat_map(refill).collect()
    }
}
