//! Counts of the resources that the host's processes hold, and have used.

use crate::engine::Account;

/// The host's resources, over all its processes. Sizes are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ledger {
    /// Locked memory, `VmLck`, which type1 and sPAPR charge.
    pub locked: u64,
    /// The maximum of `locked` so far.
    pub peak_locked: u64,
    /// Pinned memory, `VmPin`, which iommufd charges.
    pub pinned: u64,
    /// The maximum of `pinned` so far.
    pub peak_pinned: u64,
    /// The part of `locked` that no call uncharges any more, because real kernels leak it: a table that could not be
    /// made, memory that was unregistered under live entries. It ends with the process.
    pub leaked: u64,
    /// All memory that was ever pinned, counted once per pin. Other devices' memory and copies add nothing.
    pub ever_pinned: u64,
    /// The size of all TCE tables that were ever made.
    pub ever_tables: u64,
    /// Open descriptors of `/dev/vfio/vfio`.
    pub containers: usize,
    /// Open descriptors of groups.
    pub groups: usize,
    /// Open descriptors of devices.
    pub devices: usize,
    /// Open descriptors of `/dev/iommu`.
    pub iommufds: usize,
    /// Open streams of migrations.
    pub streams: usize,
    /// Address spaces and page tables of iommufds.
    pub objects: usize,
    /// TCE windows.
    pub windows: usize,
    /// Registered blocks of memory.
    pub registrations: usize,
    /// Live mappings; on sPAPR, live TCEs.
    pub mappings: u64,
    /// The size of live mappings.
    pub mapped: u64,
    /// Live mappings of type1 whose address was invalidated, and not updated since.
    pub without_address: usize,
}

impl Ledger {
    /// Returns whether nothing is held: no memory, no descriptor, no mapping, window or registration. Past use does not
    /// count.
    pub fn is_clear(&self) -> bool {
        let bytes = [self.locked, self.pinned, self.mappings, self.mapped];
        let counts =
            [self.containers, self.groups, self.devices, self.iommufds, self.objects, self.windows, self.registrations];
        let counts = counts.iter().chain([&self.streams]);
        bytes.iter().all(|bytes| *bytes == 0) && counts.into_iter().all(|count| *count == 0)
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
