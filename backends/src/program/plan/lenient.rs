//! Hosts without limits: on them a guest shows its need, and not only that there is too little.

use dmaspace_soft::Profile;

/// The host without a limit on locked memory and on mappings. It still counts both.
pub(crate) fn without_limits(host: &Profile) -> Profile {
    let mut host = host.clone();
    // None would stand for a capability, with which type1 counts nothing.
    host.limits.memlock = Some(u64::MAX);
    // The largest number would stand for a kernel that does not count.
    host.limits.dma_entries = u32::MAX - 1;
    host
}

/// The host with all addresses, too.
pub(crate) fn without_holes(host: &Profile) -> Profile {
    let mut host = without_limits(host);
    if let Some(fixed) = &mut host.fixed {
        fixed.last = u64::MAX;
        fixed.reserved.clear();
    }
    for group in &mut host.groups {
        group.reserved.clear();
    }
    host
}
