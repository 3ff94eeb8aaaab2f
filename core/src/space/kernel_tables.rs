//! Windows that were left to somebody else.

use std::sync::Arc;

use crate::backend::Backend;
use crate::contract::kernel_tables::{KernelTables, KernelWriter};
use crate::contract::{Attachable, Mapping};
use crate::door::Failure;
use crate::error::{Error, Kind, Operation};
use crate::space::index::Index;
use crate::space::{Layout, Slot, Space, lock, read, write};
use crate::words::address::IovaRange;
use crate::words::memory::HostMemory;

impl Slot {
    /// What lives in `range`, ascending, clipped to it.
    pub(super) fn mappings(&self, range: IovaRange) -> Vec<Mapping> {
        let Some(filler) = &self.filler else { return read(&self.live).within(range).collect() };
        let asked = self.window.range.intersection(range).map(|shared| filler.mappings(shared));
        asked.into_iter().flatten().filter_map(|mapping| clipped(mapping, range)).collect()
    }

    /// A live range whose memory shares bytes with `memory`.
    pub(super) fn leaning_on(&self, memory: &HostMemory) -> Option<IovaRange> {
        let Some(filler) = &self.filler else { return read(&self.live).leaning_on(memory) };
        let found = filler.mappings(self.window.range).into_iter().find(|mapping| mapping.memory.overlaps(memory));
        found.map(|mapping| mapping.range)
    }

    /// An error, where the window was left to somebody and `range` touches it.
    pub(super) fn check_ours(&self, operation: Operation, range: IovaRange) -> Result<(), Error> {
        match self.filler {
            Some(_) if self.window.range.overlaps(range) => {
                Err(Error::new(operation, range, Kind::KernelOwned(self.window.range)))
            }
            _ => Ok(()),
        }
    }
}

fn clipped(mapping: Mapping, range: IovaRange) -> Option<Mapping> {
    let shared = mapping.range.intersection(range)?;
    let memory = mapping.memory.slice(mapping.range.offset_of(shared.first()), shared.len()?.get())?;
    Some(Mapping { range: shared, memory, ..mapping })
}

/// Mappings as an index has them, so that two lists can be compared.
fn joined(mappings: Vec<Mapping>) -> Vec<Mapping> {
    let mut index = Index::default();
    mappings.into_iter().for_each(|mapping| index.insert(mapping));
    index.drain().collect()
}

impl<B: Backend> Space<B> {
    /// Puts `slot` in the place of the one with its window. Windows are as they were. The gate is held exclusively.
    fn put_slot(&self, slot: Slot) {
        let layout = self.layout();
        let slot = Arc::new(slot);
        let same = |known: &Arc<Slot>| if known.window == slot.window { slot.clone() } else { known.clone() };
        let slots = layout.slots.iter().map(same).collect();
        *write(&self.layout) =
            Arc::new(Layout { generation: layout.generation, windows: layout.windows.clone(), slots });
    }

    fn slot_of(&self, operation: Operation, window: IovaRange) -> Result<Arc<Slot>, Error> {
        let layout = self.layout();
        let slot = layout.slots.iter().find(|slot| slot.window.range == window);
        slot.cloned().ok_or_else(|| Error::new(operation, window, Kind::NoSuchWindow))
    }

    fn fillers(&self) -> Vec<(IovaRange, Arc<dyn KernelWriter>)> {
        let layout = self.layout();
        layout.slots.iter().filter_map(|slot| Some((slot.window.range, slot.filler.clone()?))).collect()
    }

    /// All fillers fill for `device` too, or none does.
    pub(super) fn join_fillers(&self, device: &dyn Attachable) -> Result<(), Failure> {
        let fillers = self.fillers();
        let joined = fillers.iter().try_for_each(|(_, filler)| filler.joins(device));
        joined.inspect_err(|_| fillers.iter().for_each(|(_, filler)| leave(filler.as_ref(), device)))
    }

    /// No filler fills for `device` any more, or all do.
    pub(super) fn leave_fillers(&self, device: &dyn Attachable) -> Result<(), Failure> {
        let fillers = self.fillers();
        let left = fillers.iter().try_for_each(|(_, filler)| filler.leaves(device));
        left.inspect_err(|_| self.join_fillers_again(device))
    }

    /// What could not leave after all is filled as before; what cannot be is fenced, since the kernel would go on to say yes.
    pub(super) fn join_fillers_again(&self, device: &dyn Attachable) {
        for slot in &self.layout().slots {
            let Some(filler) = &slot.filler else { continue };
            if let Err(failure) = filler.joins(device) {
                filler.ends();
                let memory = slot.mappings(slot.window.range).into_iter().map(|mapping| mapping.memory).collect();
                self.put_slot(Slot::new(slot.window));
                self.put_up_fence(slot.window.range, failure, memory);
            }
        }
    }

    /// Entries that the kernel had put were entered again, but for those `lost`: without them the window is the kernel's no longer.
    pub(super) fn note_refilled(&self, slot: &Slot, filler: &dyn KernelWriter, lost: &[IovaRange]) {
        let entered: Vec<_> = write(&slot.live).drain().collect();
        if lost.is_empty() {
            return;
        }
        filler.ends();
        let ours = Slot::new(slot.window);
        entered.into_iter().for_each(|mapping| ours.record(mapping));
        self.put_slot(ours);
    }

    /// The space goes: no filler fills for any device any more.
    pub(super) fn leave_fillers_for_good(&self) {
        for (_, filler) in self.fillers() {
            lock(&self.devices).iter().for_each(|device| leave(filler.as_ref(), device.as_ref()));
        }
    }

    /// The windows are about to be forgotten: who fills no others ends.
    pub(super) fn end_fillers(&self) {
        self.fillers().iter().for_each(|(_, filler)| filler.ends_if_idle());
    }
}

/// Whatever the kernel says: it is told that something else failed.
fn leave(filler: &dyn KernelWriter, device: &dyn Attachable) {
    if let Err(failure) = filler.leaves(device) {
        log::error!("{} is still filled for: {failure}", device.name());
    }
}

impl<B: Backend> KernelTables for Space<B> {
    fn hand_to_kernel(&self, window: IovaRange, filler: Arc<dyn KernelWriter>) -> Result<(), Error> {
        let operation = Operation::HandToKernel;
        let _gate = self.enter_alone(operation, window)?;
        let slot = self.slot_of(operation, window)?;
        slot.check_ours(operation, window)?;
        if let Some(fence) = self.fence_over(window) {
            return Err(Error::new(operation, window, Kind::Fenced(fence)));
        }
        let devices = lock(&self.devices);
        let joined = devices.iter().try_for_each(|device| filler.joins(device.as_ref()));
        let checked = joined.map_err(|failure| Error::from_kernel(operation, window, failure)).and_then(|()| {
            // Linked first: what is put from now on is seen here.
            let same = joined_alike(&slot, filler.as_ref());
            if same { Ok(()) } else { Err(Error::new(operation, window, Kind::KernelTableDiffers)) }
        });
        if let Err(error) = checked {
            // A device leaves all fillers at once, and the others go on.
            if self.fillers().is_empty() {
                devices.iter().for_each(|device| leave(filler.as_ref(), device.as_ref()));
            }
            return Err(error);
        }
        self.put_slot(Slot { filler: Some(filler), ..Slot::new(slot.window) });
        Ok(())
    }

    fn reclaim(&self, window: IovaRange) -> Result<(), Error> {
        let operation = Operation::Reclaim;
        let _gate = self.enter_alone(operation, window)?;
        let slot = self.slot_of(operation, window)?;
        let filler = slot.filler.clone().ok_or_else(|| Error::new(operation, window, Kind::NoSuchWindow))?;
        let devices = lock(&self.devices);
        if let Err(failure) = devices.iter().try_for_each(|device| filler.leaves(device.as_ref())) {
            devices.iter().for_each(|device| self.join_fillers_again(device.as_ref()));
            return Err(Error::from_kernel(operation, window, failure));
        }
        let ours = Slot::new(slot.window);
        filler.mappings(window).into_iter().for_each(|mapping| ours.record(mapping));
        self.put_slot(ours);
        // What was cleared meanwhile may have been written before.
        self.tell_registered();
        Ok(())
    }

    fn kernel_owned(&self) -> Vec<IovaRange> {
        self.fillers().into_iter().map(|(window, _)| window).collect()
    }
}

fn joined_alike(slot: &Slot, filler: &dyn KernelWriter) -> bool {
    let window = slot.window.range;
    joined(filler.mappings(window)) == joined(read(&slot.live).within(window).collect())
}
