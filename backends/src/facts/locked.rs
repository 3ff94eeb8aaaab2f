//! Limits on locked memory, from procfs.

use dmaspace_core::words::locked::LockedMemory;

use super::Limits;
use super::files::{FactsError, Files};

/// The value of a `name : value` line.
pub(super) fn field_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

pub(super) fn limits(files: &Files<'_>) -> Result<Limits, FactsError> {
    let (locked_memory, locked_memory_ceiling) =
        files.parsed("proc/self/limits", "soft and hard limits", lock_limits)?.unwrap_or_default();
    let may_lock_without_limit = files.parsed("proc/self/status", "capabilities", may_lock)?.unwrap_or_default();
    let type1_mappings =
        files.parsed("sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "a number", |text| text.parse().ok())?;
    Ok(Limits { locked_memory, locked_memory_ceiling, may_lock_without_limit, type1_mappings })
}

/// The soft and the hard limit in /proc/self/limits. An inner `None` is "unlimited".
pub(super) fn lock_limits(limits: &str) -> Option<(Option<u64>, Option<u64>)> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    let mut columns = line.split_whitespace().map(|column| match column {
        "unlimited" => Some(None),
        bytes => bytes.parse().ok().map(Some),
    });
    Some((columns.next()??, columns.next()??))
}

/// The memory that this process may lock, and has locked. `None` where procfs does not say.
pub(crate) fn locked_memory() -> Option<LockedMemory> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    locked_memory_in(&status, &limits)
}

pub(super) fn locked_memory_in(status: &str, limits: &str) -> Option<LockedMemory> {
    let (limit, _) = lock_limits(limits)?;
    let lifted = may_lock(status) == Some(true);
    let limit = if lifted { None } else { limit };
    Some(LockedMemory::new(limit, bytes_of(status, "VmLck")?, bytes_of(status, "VmPin")?))
}

/// A size in /proc/self/status, in bytes.
fn bytes_of(status: &str, name: &str) -> Option<u64> {
    let kib: u64 = field_of(status, name)?.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// Returns `Some(true)` if the effective capabilities in /proc/self/status include CAP_IPC_LOCK.
pub(super) fn may_lock(status: &str) -> Option<bool> {
    const CAP_IPC_LOCK: u32 = 14;
    let effective = u64::from_str_radix(field_of(status, "CapEff")?, 16).ok()?;
    Some((effective >> CAP_IPC_LOCK) & 1 == 1)
}
