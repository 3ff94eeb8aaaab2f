//! Windows that the kernel owns: KVM writes their entries, as the guest's hypercalls ask (in-kernel TCE tables).
//!
//! A [`KernelWriter`] is called under the gate; it must not call the space.

use std::sync::Arc;

use crate::contract::kernel_tables::KernelWriter;
use crate::contract::{Attachable, Mapping};
use crate::door::Failure;
use crate::error::{Error, Kind, Operation};
use crate::space::attachments::Attached;
use crate::space::deferred::Deferred;
use crate::space::fences::Fences;
use crate::space::index::{Index, Placed};
use crate::space::layout::{Layout, Slot};
use crate::words::address::{Iova, IovaRange};
use crate::words::page::PageSize;

/// The kernel-owned windows of a layout. All of it is called with the gate held exclusively.
impl Layout {
    /// The windows that the kernel owns, with their writers.
    pub(super) fn kernel_owned(&self) -> Vec<(IovaRange, Arc<dyn KernelWriter>)> {
        let set = self.get();
        set.slots.iter().filter_map(|slot| Some((slot.window.range, slot.writer.clone()?))).collect()
    }

    /// Has the writers of all kernel-owned windows write for `device` too, or none of them.
    pub(super) fn join_writers(&self, device: &dyn Attachable) -> Result<(), Failure> {
        let owned = self.kernel_owned();
        let joined = owned.iter().try_for_each(|(_, writer)| writer.joins(device));
        if joined.is_err() {
            for (_, writer) in &owned {
                leave(writer.as_ref(), device);
            }
        }
        joined
    }

    /// Has no writer write for `device` any more. After an error all of them do.
    pub(super) fn leave_writers(&self, device: &dyn Attachable, backend: &str, fences: &Fences) -> Result<(), Failure> {
        let left = self.kernel_owned().iter().try_for_each(|(_, writer)| writer.leaves(device));
        if left.is_err() {
            self.rejoin_writers(device, backend, fences);
        }
        left
    }

    /// Has all writers write for a device that could not be detached. A window whose writer refuses is reclaimed and
    /// fenced, since the kernel would go on to accept the guest's entries.
    pub(super) fn rejoin_writers(&self, device: &dyn Attachable, backend: &str, fences: &Fences) {
        for slot in &self.get().slots {
            let Some(writer) = &slot.writer else { continue };
            if let Err(failure) = writer.joins(device) {
                writer.ends();
                let entries = slot.mappings(slot.window.range);
                self.replace(Slot::new(slot.window));
                let memory = entries.into_iter().map(|mapping| mapping.memory).collect();
                fences.put_up(backend, slot.window.range, failure, memory);
            }
        }
    }

    /// Hands a window to the kernel, if the writer's entries are the live mappings.
    pub(super) fn hand_to_kernel(
        &self,
        window: IovaRange,
        writer: Arc<dyn KernelWriter>,
        devices: &[Attached],
        deferred: &mut Deferred,
    ) -> Result<(), Error> {
        let operation = Operation::HandToKernel;
        let slot = self.get().slot_of(operation, window)?;
        let joined = devices.iter().try_for_each(|attached| writer.joins(attached.device.as_ref()));
        let checked = match joined {
            Err(failure) => Err(Error::from_kernel(operation, window, failure)),
            // The writer is linked before the tables are compared, so that no entry is missed.
            Ok(()) if has_same_entries(&slot, writer.as_ref()) => Ok(()),
            Ok(()) => Err(Error::new(operation, window, Kind::KernelTableDiffers)),
        };
        // A device leaves all writers at once, and the other windows stay the kernel's.
        if checked.is_err() && self.kernel_owned().is_empty() {
            for attached in devices {
                leave(writer.as_ref(), attached.device.as_ref());
            }
        }
        checked?;
        for mapping in slot.mappings(window) {
            deferred.release(mapping.memory);
        }
        self.replace(Slot { writer: Some(writer), ..Slot::new(slot.window) });
        Ok(())
    }

    /// Takes a window back from the kernel, with the entries there are.
    pub(super) fn reclaim(
        &self,
        window: IovaRange,
        devices: &[Attached],
        backend: &str,
        fences: &Fences,
    ) -> Result<(), Error> {
        let operation = Operation::Reclaim;
        let slot = self.get().slot_of(operation, window)?;
        let Some(writer) = &slot.writer else { return Err(Error::new(operation, window, Kind::NoSuchWindow)) };
        let left = devices.iter().try_for_each(|attached| writer.leaves(attached.device.as_ref()));
        if let Err(failure) = left {
            for attached in devices {
                self.rejoin_writers(attached.device.as_ref(), backend, fences);
            }
            return Err(Error::from_kernel(operation, window, failure));
        }
        let ours = Slot::new(slot.window);
        for mapping in writer.mappings(window) {
            ours.record(Placed::of(&mapping));
        }
        self.replace(ours);
        Ok(())
    }

    /// Notes that the kernel's entries in `slot` were entered again, except for those `lost`. A window with lost
    /// entries is reclaimed.
    pub(super) fn note_refilled(&self, slot: &Slot, lost: &[IovaRange]) {
        let Some(writer) = &slot.writer else { return };
        let entered = slot.live.write().drain();
        if lost.is_empty() {
            return;
        }
        writer.ends();
        let ours = Slot::new(slot.window);
        for mapping in entered {
            ours.record(Placed::of(&mapping));
        }
        self.replace(ours);
    }

    /// Has no writer write for any device, for a space that is dropped.
    pub(super) fn end_writers(&self, devices: &[Attached]) {
        for (_, writer) in self.kernel_owned() {
            for attached in devices {
                leave(writer.as_ref(), attached.device.as_ref());
            }
        }
    }

    /// Ends the writers that write no other window: the kernel forgets the windows.
    pub(super) fn end_idle_writers(&self) {
        for (_, writer) in self.kernel_owned() {
            writer.ends_if_idle();
        }
    }
}

/// Has a writer leave a device, after something else has failed.
fn leave(writer: &dyn KernelWriter, device: &dyn Attachable) {
    if let Err(failure) = writer.leaves(device) {
        log::error!("the kernel still writes entries for {}: {failure}", device.name());
    }
}

fn has_same_entries(slot: &Slot, writer: &dyn KernelWriter) -> bool {
    let window = slot.window.range;
    joined(writer.mappings(window)) == joined(slot.mappings(window))
}

/// Mappings as an index has them, so that two lists can be compared.
fn joined(mappings: Vec<Mapping>) -> Vec<Mapping> {
    let mut index = Index::new(Iova::new(0), PageSize::K4);
    for mapping in &mappings {
        index.insert(Placed::of(mapping));
    }
    index.drain()
}
