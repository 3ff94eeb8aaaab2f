//! Translated windows whose entries the kernel writes (KVM's in-kernel TCE tables).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dmaspace_core::contract::kernel_tables::KernelWriter;
use dmaspace_core::contract::{Attachable, Mapping};
use dmaspace_core::door::Failure;
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::page::PageSize;

use super::entry::{EntryRun, Targets, placed, resolve};

/// The kernel's table of one window, as the owner of the table sees it.
///
/// Called from any thread, under locks of the listener and its spaces: an implementation must not call either of them.
/// A build with debug assertions fails where one does.
///
/// # Safety
/// A listener shows a space the entries that the kernel put ([`KernelWriter::mappings`]), and the space frees memory
/// that is not shown. An implementation must keep the promises of [`KernelWriter`], and [`KernelEntries::runs`] must
/// show each live entry.
#[expect(unsafe_code, reason = "UNSAFETY: a space frees memory that is not shown")]
pub unsafe trait KernelEntries: Send + Sync + fmt::Debug {
    /// The live entries in `range`, ascending, joined to runs. Makes no kernel call.
    fn runs(&self, range: IovaRange) -> Vec<EntryRun>;

    /// Has the kernel write the window's entries for a group, too ([`KernelWriter::joins`]).
    ///
    /// # Errors
    /// The kernel's failure; the kernel writes nothing for the group then.
    fn joins(&self, group: &dyn Attachable) -> Result<(), Failure>;

    /// Has the kernel write entries for a group no longer ([`KernelWriter::leaves`]).
    ///
    /// # Errors
    /// The kernel's failure; the kernel still writes entries for the group then.
    fn leaves(&self, group: &dyn Attachable) -> Result<(), Failure>;

    /// Ends the kernel's ownership. The entries it put stay visible, and belong to the guest.
    fn ends(&self);

    /// Ends the kernel's ownership if the kernel writes entries for no group any more, and returns whether it has
    /// ended.
    fn ends_if_idle(&self) -> bool;
}

/// A window's entries while the kernel owns them, as mappings.
#[derive(Debug)]
pub(crate) struct KernelOwned {
    entries: Arc<dyn KernelEntries>,
    page: PageSize,
    /// The target memory as of the last commit: memory that is about to go is still behind entries that are there.
    settled: Targets,
    ended: AtomicBool,
}

impl KernelOwned {
    pub(super) fn new(entries: Arc<dyn KernelEntries>, page: PageSize, settled: Targets) -> Arc<Self> {
        Arc::new(Self { entries, page, settled, ended: AtomicBool::new(false) })
    }

    /// Returns whether the kernel no longer writes entries: the spaces' devices are gone, or the window was reclaimed.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: passed on from a trait that promises as much")]
// SAFETY: passed on from `KernelEntries`, which promises as much. An entry that points to no target points to memory
// that the kernel has not registered: the kernel refuses such an entry.
unsafe impl KernelWriter for KernelOwned {
    fn mappings(&self, range: IovaRange) -> Vec<Mapping> {
        let runs = self.entries.runs(range);
        let targets = self.settled.read();
        let mut mappings = Vec::new();
        for run in runs {
            // Entries that the kernel puts point to registered memory, hence to a target: nothing is missed.
            let memory = resolve(&targets, run.target, run.range.len().map_or(0, |len| len.get())).unwrap_or_default();
            mappings.extend(placed(run.range.first(), memory, run.access, self.page));
        }
        mappings
    }

    fn joins(&self, device: &dyn Attachable) -> Result<(), Failure> {
        self.entries.joins(device)
    }

    fn leaves(&self, device: &dyn Attachable) -> Result<(), Failure> {
        self.entries.leaves(device)
    }

    fn ends(&self) {
        self.entries.ends();
        self.ended.store(true, Ordering::Release);
    }

    fn ends_if_idle(&self) {
        if self.entries.ends_if_idle() {
            self.ended.store(true, Ordering::Release);
        }
    }
}
