//! What a process holds of the kernel's: read before and after, it must be the same.

use std::fs;

/// Locked memory and descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// `VmLck` and `VmPin` of /proc/self/status.
    pub locked: Vec<String>,
    /// Where the open descriptors lead.
    pub descriptors: Vec<String>,
}

impl Ledger {
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
