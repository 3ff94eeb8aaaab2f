//! Tables that KVM fills: it answers the hypercalls on them itself, and no processor leaves the guest for them.
//!
//! For that KVM needs an in-kernel TCE table ([`InKernelTable`]) for each window, *linked* to the groups whose tables
//! it fills as well. KVM answers a hypercall on a table that is linked to no group with H_SUCCESS and changes nothing
//! for devices (linux: arch/powerpc/kvm/book3s_64_vio.c, kvmppc_h_put_tce). So an in-kernel table exists only while it
//! is linked, and never for a window whose hypercalls the VMM answers.

use std::collections::HashSet;
use std::mem;
use std::sync::Arc;

use dmaspace_core::IovaRange;
use dmaspace_core::contract::Attachable;
use dmaspace_core::door::{Failure, Handle};
use dmaspace_core::sync::{Mutex, Rank};
use dmaspace_listener::{EntryError, EntryRun, KernelEntries, TranslatedWindow};

use crate::kernel_table::{InKernelTable, InKernelTables};
use crate::tables::{QuietTable, SharedTable};

/// The side that answers the hypercalls on a table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AnsweredBy {
    /// KVM: no processor leaves the guest for them.
    Kernel,
    /// The VMM, which passes them to [`TceTables`](crate::TceTables), and the reason.
    Vmm(VmmReason),
}

/// The reason that the VMM answers the hypercalls on a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VmmReason {
    /// The VMM passed no KVM to the bridge.
    #[error("the bridge was given no KVM")]
    NoKernel,
    /// Devices are emulated, so there is no host's table to fill.
    #[error("there is no host behind the window")]
    NoHost,
    /// The guest had put entries before there was a host. KVM enters only entries that the guest puts from then on, and
    /// this process can only read KVM's table: the older ones would be missing on the host.
    #[error("the guest had put entries before a host was attached")]
    Entries,
    /// KVM created no table.
    #[error("KVM created no TCE table: {0}")]
    Refused(Failure),
    /// A host's table could not be linked, or is not one that a kernel can fill.
    #[error(transparent)]
    Host(#[from] EntryError),
    /// The table was handed to the kernel and reclaimed: a change of the window failed, or its host lost its last
    /// device.
    #[error("the table was reclaimed from the kernel")]
    Reclaimed,
}

/// Hands an empty table, and the window behind it, to the kernel.
pub(crate) fn hand_over(
    kernel: &dyn InKernelTables,
    quiet: &QuietTable,
    window: &TranslatedWindow,
) -> Result<(), VmmReason> {
    let (range, page, is_empty) = {
        let table = quiet.entries.read();
        (table.range(), table.page(), table.live(table.range()).is_empty())
    };
    if !is_empty {
        return Err(VmmReason::Entries);
    }
    let created = kernel.create(quiet.liobn, range, page).map_err(VmmReason::Refused)?;
    // Entries without a right are no entries for KVM, which begins with an empty table.
    let emptied = {
        let mut table = quiet.entries.write();
        let mut empty = table.emptied();
        empty.hand_to(created);
        mem::replace(&mut *table, empty)
    };
    drop(emptied);
    let linked = LinkedTable { entries: quiet.entries.clone(), groups: Mutex::new(Rank::KernelWriter, HashSet::new()) };
    window.hand_to_kernel(Arc::new(linked)).map_err(|error| {
        // No host has entries that a guest which did not wait has put meanwhile.
        let filled = {
            let mut table = quiet.entries.write();
            let empty = table.emptied();
            mem::replace(&mut *table, empty)
        };
        drop(filled);
        error.into()
    })
}

/// An in-kernel table, as the listener uses it.
///
/// Its locks are [`Rank::GuestTable`] and [`Rank::KernelWriter`] in the order of all locks ([`dmaspace_core::sync`]);
/// neither is held during a call of KVM's.
#[derive(Debug)]
struct LinkedTable {
    entries: SharedTable,
    /// The groups that the table is linked to.
    groups: Mutex<HashSet<Handle>>,
}

impl LinkedTable {
    fn kernel(&self) -> Option<Arc<dyn InKernelTable>> {
        self.entries.read().kernel().cloned()
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: passed on from a trait that makes the same promises")]
// SAFETY: entries and unlinking are passed on from `InKernelTable`, which makes the same promises.
unsafe impl KernelEntries for LinkedTable {
    fn runs(&self, range: IovaRange) -> Vec<EntryRun> {
        self.entries.read().live(range)
    }

    fn joins(&self, group: &dyn Attachable) -> Result<(), Failure> {
        const LINK: &str = "KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE";
        let kernel = self.kernel().ok_or(Failure::malformed(LINK, "the table was reclaimed from the kernel"))?;
        let group = group.group().ok_or(Failure::malformed(LINK, "the device is not a VFIO group"))?;
        kernel.link(group)?;
        self.groups.lock().insert(group);
        Ok(())
    }

    fn leaves(&self, group: &dyn Attachable) -> Result<(), Failure> {
        let (Some(kernel), Some(group)) = (self.kernel(), group.group()) else {
            // Reclaiming the table unlinked all groups, and a device without a group is never linked.
            return Ok(());
        };
        kernel.unlink(group)?;
        self.groups.lock().remove(&group);
        Ok(())
    }

    fn ends(&self) {
        // Two statements: the kernel's table, whose drop makes calls, is dropped after the lock.
        let kernel = self.entries.write().reclaim();
        drop(kernel);
    }

    fn ends_if_idle(&self) -> bool {
        let is_idle = self.groups.lock().is_empty();
        if is_idle {
            self.ends();
        }
        is_idle
    }
}
