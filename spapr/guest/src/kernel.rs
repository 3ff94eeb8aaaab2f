//! Tables that the kernel fills: KVM answers the hypercalls itself, and no processor leaves the guest for them.
//!
//! What KVM needs for that is a [`KernelTable`] for each window, *linked* to the groups whose tables it is to fill: a hypercall on one that
//! is linked to none is answered with H_SUCCESS and changes nothing that devices see (linux: arch/powerpc/kvm/book3s_64_vio.c,
//! kvmppc_h_put_tce). So there is a table only while it is linked, and none for a window whose hypercalls are ours.

use std::collections::HashSet;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLockWriteGuard};

use dmaspace_core::contract::Attachable;
use dmaspace_core::door::{Failure, Handle};
use dmaspace_core::{IovaRange, PageSize};
use dmaspace_listener::{EntryError, EntryRun, KernelEntries, TranslatedWindow};

use super::change::Run;
use super::entry::Tce;
use super::table::TceTable;
use super::tables::{Liobn, SharedTable};

/// Who makes tables that the kernel fills: KVM, for one virtual machine.
///
/// # Safety
/// Each table that it makes must keep the promises of [`KernelTable`].
#[expect(unsafe_code, reason = "UNSAFETY: a space frees memory that no table shows")]
pub unsafe trait KernelTables: Send + Sync + fmt::Debug {
    /// Makes an empty table for `window`, in entries of `page`, under the guest's name for it. It is linked to no group.
    ///
    /// # Errors
    /// What KVM says; there is no table then.
    fn create(&self, liobn: Liobn, window: IovaRange, page: PageSize) -> Result<Arc<dyn KernelTable>, Failure>;
}

/// A table that the kernel fills, for as long as this lives. Dropping it unlinks it from all groups.
///
/// # Safety
/// A space frees memory that no entry of the table points to. So [`KernelTable::entry`] must show each entry as the kernel has it, and success of
/// [`KernelTable::unlink`] must mean that the kernel enters nothing for the group any more.
#[expect(unsafe_code, reason = "UNSAFETY: a space frees memory that no table shows")]
pub unsafe trait KernelTable: Send + Sync + fmt::Debug {
    /// The entry for the `index`-th page of the window, as the guest spelled it; [`Tce::NONE`] behind the last one. Makes no call.
    fn entry(&self, index: u64) -> Tce;

    /// Has the kernel fill the group's table of the same window as well, from now on: what is in this one already is not entered there.
    ///
    /// # Errors
    /// What KVM says: `EINVAL` when the group's container has no such window. It is not linked then.
    fn link(&self, group: Handle) -> Result<(), Failure>;

    /// Has KVM forget the group, for when it leaves its container: it is linked to none of the virtual machine's tables any more. One that
    /// is not linked stays so.
    ///
    /// # Errors
    /// What KVM says; it is as it was then.
    fn unlink(&self, group: Handle) -> Result<(), Failure>;
}

/// Who answers the hypercalls on a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnsweredBy {
    /// KVM: no processor leaves the guest for them.
    Kernel,
    /// The VMM, which hands them to [`TceTables`](super::TceTables), and why.
    Vmm(Reason),
}

/// Why a table was not left to the kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Nobody asked for it.
    #[error("the bridge was given no KVM")]
    NoKernel,
    /// Devices are emulated, so there is no host's table to fill.
    #[error("there is no host behind the window")]
    NoHost,
    /// The guest had put entries before there was a host. KVM enters only what the guest puts from then on, and its table is only read here:
    /// they would be missing on the host.
    #[error("the guest had put entries before a host came")]
    Entries,
    /// KVM made no table.
    #[error("KVM has no table for it: {0}")]
    Refused(Failure),
    /// A host's table could not be linked, or is none of the kernel's to fill.
    #[error(transparent)]
    Host(#[from] EntryError),
    /// It was left to the kernel, and taken back: something that concerned the window failed, or its host lost its last device.
    #[error("it was taken back from the kernel")]
    TakenBack,
}

/// Leaves an empty table, and the window behind it, to the kernel. No hypercall of ours writes to it meanwhile.
pub(super) fn leave(
    kernel: &dyn KernelTables,
    liobn: Liobn,
    table: &SharedTable,
    window: &TranslatedWindow,
) -> Result<(), Reason> {
    let (range, page, is_empty) = {
        let table = table.read().unwrap_or_else(PoisonError::into_inner);
        (table.range(), table.page(), table.live(table.range()).is_empty())
    };
    if !is_empty {
        return Err(Reason::Entries);
    }
    let created = kernel.create(liobn, range, page).map_err(Reason::Refused)?;
    let filling = Filling { table: table.clone(), groups: Mutex::default() };
    filling.table_mut().leave_to(created);
    window.hand_to_kernel(Arc::new(filling)).map_err(|error| {
        // No host has entries that a guest which would not wait has put meanwhile.
        let _filled = {
            let mut table = table.write().unwrap_or_else(PoisonError::into_inner);
            let empty = table.emptied();
            mem::replace(&mut *table, empty)
        };
        error.into()
    })
}

/// A table of the kernel's, as the listener knows it.
#[derive(Debug)]
struct Filling {
    table: SharedTable,
    /// Those it is linked to.
    groups: Mutex<HashSet<Handle>>,
}

impl Filling {
    fn table_mut(&self) -> RwLockWriteGuard<'_, TceTable> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn groups(&self) -> MutexGuard<'_, HashSet<Handle>> {
        // Changed after the kernel agreed: right even after a panic elsewhere.
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kernel(&self) -> Option<Arc<dyn KernelTable>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).kernel().cloned()
    }
}

// SAFETY: passed on from `KernelTable`, which promises as much.
#[expect(unsafe_code, reason = "UNSAFETY: passed on from a trait that promises as much")]
unsafe impl KernelEntries for Filling {
    fn runs(&self, range: IovaRange) -> Vec<EntryRun> {
        let run = |run: Run| EntryRun { range: run.range, target: run.target, access: run.access };
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.live(range).into_iter().map(run).collect()
    }

    fn joins(&self, group: &dyn Attachable) -> Result<(), Failure> {
        const LINK: &str = "KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE";
        let kernel = self.kernel().ok_or(Failure::malformed(LINK, "the table is the kernel's no longer"))?;
        let group = group.group().ok_or(Failure::malformed(LINK, "not a group"))?;
        kernel.link(group)?;
        self.groups().insert(group);
        Ok(())
    }

    fn leaves(&self, group: &dyn Attachable) -> Result<(), Failure> {
        match (self.kernel(), group.group()) {
            (Some(kernel), Some(group)) => {
                kernel.unlink(group)?;
                self.groups().remove(&group);
                Ok(())
            }
            // Nothing is linked any more, or ever was.
            _ => Ok(()),
        }
    }

    fn ends(&self) {
        // In two statements: the kernel's table is dropped after the lock.
        let kernel = self.table_mut().take_back();
        drop(kernel);
    }

    fn ends_if_idle(&self) {
        if self.groups().is_empty() {
            self.ends();
        }
    }
}
