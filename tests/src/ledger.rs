//! The kernel resources of a process: read before and after a test, they must be equal.

use std::fs;

use dmaspace::linux::LinuxDoor;
use dmaspace_core::door::Door;
use dmaspace_core::words::locked::LockedMemory;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::limits::LockLimit;

/// Makes the kernel count what this thread locks. Root's CAP_IPC_LOCK switches the limit off, and for iommufd the
/// counting too (linux: drivers/iommu/iommufd/pages.c, iopt_alloc_pages): the capability goes, and a limit that is
/// large enough takes its place.
pub fn have_locked_memory_counted() {
    limit_to(LIMIT);
    let mut sets = capabilities(None).expect("every thread has capabilities");
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    sets.permitted.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, sets).expect("a capability can be given up");
}

/// sPAPR v1 charges its whole window, 2 GiB on powernv, before anything is mapped.
const LIMIT: u64 = 8 << 30;

fn limit_to(bytes: u64) {
    let limits = Rlimit { current: Some(bytes), maximum: Some(LIMIT) };
    setrlimit(Resource::Memlock, limits).expect("root sets its own limits");
}

/// The limit on this process's locked memory. A limit that was set lasts as long as this.
#[derive(Debug)]
pub struct OfThisProcess;

impl LockLimit for OfThisProcess {
    fn locked(&self) -> LockedMemory {
        LinuxDoor::new().locked_memory().expect("procfs is mounted")
    }

    fn limit(&self, bytes: u64) {
        limit_to(bytes);
    }
}

impl Drop for OfThisProcess {
    fn drop(&mut self) {
        limit_to(LIMIT);
    }
}

/// Locked memory and descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessLedger {
    /// `VmLck` and `VmPin` of /proc/self/status.
    pub locked: Vec<String>,
    /// The files behind the open descriptors.
    pub descriptors: Vec<String>,
}

impl ProcessLedger {
    /// This process's, now.
    pub fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").expect("procfs is mounted");
        let locked = status.lines().filter(|line| line.starts_with("VmLck") || line.starts_with("VmPin"));
        let targets = fs::read_dir("/proc/self/fd").expect("procfs is mounted").flatten();
        // The directory being read is a descriptor too, and gone by the time it is looked at.
        let targets = targets.filter_map(|entry| fs::read_link(entry.path()).ok());
        let mut descriptors: Vec<_> = targets.map(|target| target.display().to_string()).collect();
        descriptors.sort();
        Self { locked: locked.map(str::to_owned).collect(), descriptors }
    }
}
