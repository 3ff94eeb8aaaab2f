//! A writer of windows in place of the kernel, which only remembers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dmaspace_core::IovaRange;
use dmaspace_core::contract::kernel_tables::KernelWriter;
use dmaspace_core::contract::{Attachable, Mapping};
use dmaspace_core::door::Failure;

/// A kernel's part of a window, as far as the contract sees it.
#[derive(Debug, Default)]
pub(crate) struct RecordingWriter {
    entries: Mutex<Vec<Mapping>>,
    devices: Mutex<Vec<String>>,
    refuses: AtomicBool,
}

impl RecordingWriter {
    /// Reports `mapping` as written by the kernel from now on.
    pub(crate) fn put(&self, mapping: Mapping) {
        lock(&self.entries).push(mapping);
    }

    /// The devices the writer writes for.
    pub(crate) fn devices(&self) -> Vec<String> {
        lock(&self.devices).clone()
    }

    /// Refuses every device from now on.
    pub(crate) fn refuse(&self) {
        self.refuses.store(true, Ordering::SeqCst);
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: a writer that writes nothing")]
// SAFETY: it writes nothing, and shows the entries of the case.
unsafe impl KernelWriter for RecordingWriter {
    fn mappings(&self, range: IovaRange) -> Vec<Mapping> {
        lock(&self.entries).iter().filter(|mapping| mapping.range.overlaps(range)).cloned().collect()
    }

    fn joins(&self, device: &dyn Attachable) -> Result<(), Failure> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(Failure::malformed("conformance", "the writer refuses the device"));
        }
        let mut devices = lock(&self.devices);
        if !devices.contains(&device.name()) {
            devices.push(device.name());
        }
        Ok(())
    }

    fn leaves(&self, device: &dyn Attachable) -> Result<(), Failure> {
        lock(&self.devices).retain(|name| *name != device.name());
        Ok(())
    }

    fn ends(&self) {
        lock(&self.devices).clear();
    }

    fn ends_if_idle(&self) {}
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
