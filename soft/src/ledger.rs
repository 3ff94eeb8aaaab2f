//! What the host holds, and what it was made to do.

use crate::engine::Account;

/// The host's books, over all its processes. Sizes are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Locked memory, `VmLck`: what type1 and sPAPR charge.
    pub locked: u64,
    /// The most there ever was.
    pub peak_locked: u64,
    /// Pinned memory, `VmPin`: what iommufd charges.
    pub pinned: u64,
    /// The most there ever was.
    pub peak_pinned: u64,
    /// The part of `locked` that no call gives back any more, as real kernels leak it: a table that could not be made,
    /// memory that was unregistered under live entries. It goes with the process.
    pub leaked: u64,
    /// Memory ever pinned, counted again when pinned again. Other devices' memory and copies add nothing.
    pub ever_pinned: u64,
    /// TCE tables ever made.
    pub ever_tables: u64,
    /// Open descriptors of `/dev/vfio/vfio`.
    pub containers: usize,
    /// Open descriptors of groups.
    pub groups: usize,
    /// Open descriptors of devices.
    pub devices: usize,
    /// Open descriptors of `/dev/iommu`.
    pub iommufds: usize,
    /// Address spaces and page tables of iommufds.
    pub objects: usize,
    /// TCE windows.
    pub windows: usize,
    /// Registered blocks of memory.
    pub registrations: usize,
    /// Live mappings; on sPAPR, live TCEs.
    pub mappings: u64,
    /// Live mappings' bytes.
    pub mapped: u64,
    /// Live mappings of type1 whose address a process has let go of, and none has given again.
    pub without_address: usize,
}

impl Ledger {
    /// Whether nothing is held: no memory, no descriptor, nothing mapped, created or registered. What was once done
    /// does not count.
    pub fn is_clear(&self) -> bool {
        let bytes = [self.locked, self.pinned, self.mappings, self.mapped];
        let counts =
            [self.containers, self.groups, self.devices, self.iommufds, self.objects, self.windows, self.registrations];
        bytes.iter().all(|bytes| *bytes == 0) && counts.iter().all(|count| *count == 0)
    }

    pub(crate) fn count_account(&mut self, account: &Account) {
        self.locked += account.locked.now;
        self.peak_locked += account.locked.peak;
        self.pinned += account.pinned.now;
        self.peak_pinned += account.pinned.peak;
        self.leaked += account.leaked;
        self.ever_pinned += account.ever_pinned;
        self.ever_tables += account.ever_tables;
    }
}
