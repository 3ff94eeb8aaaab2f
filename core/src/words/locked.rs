//! Locked memory: the limit, the bytes that are taken, and the bytes that did not fit.
//!
//! Pinned memory counts against RLIMIT_MEMLOCK, in different accounts: type1 and sPAPR charge the process
//! ([`LockedMemory::of_process`]), iommufd its user ([`LockedMemory::of_user`]). All of them answer `ENOMEM` when the
//! limit is reached, and when the kernel itself is out of memory; the numbers tell which. They are read after a call
//! has failed, and before a window is created whose table is charged.

use std::fmt;

/// The limit on locked memory and the locked bytes of a process, as a door reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockedMemory {
    /// RLIMIT_MEMLOCK; `None` where nothing limits the process: no limit is set, or it has CAP_IPC_LOCK.
    pub limit: Option<u64>,
    /// `VmLck`: the bytes that type1 and sPAPR have charged (linux: mm/util.c, __account_locked_vm).
    pub locked: u64,
    /// `VmPin`: the bytes that iommufd has pinned for this process (linux: drivers/iommu/iommufd/pages.c,
    /// do_update_pinned).
    pub pinned: u64,
}

impl LockedMemory {
    /// The limit (`None` without one), the bytes locked by mlock(2) and the like, and the bytes pinned for devices.
    pub const fn new(limit: Option<u64>, locked: u64, pinned: u64) -> Self {
        Self { limit, locked, pinned }
    }

    /// The account of a kernel that charges the process.
    pub fn of_process(self) -> Allowance {
        Allowance { limit: self.limit, taken: self.locked, payer: AccountingMode::Process }
    }

    /// The account of a kernel that charges the user, as far as one process can see it.
    pub fn of_user(self) -> Allowance {
        Allowance { limit: self.limit, taken: self.pinned, payer: AccountingMode::User }
    }
}

/// The account that locked memory is charged to.
///
/// Exhaustive: Linux has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccountingMode {
    /// This process alone.
    Process,
    /// All processes of its user together: the bytes of the user's other processes are not known.
    User,
}

/// The limit on locked memory and the taken bytes, in the account of a backend's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Allowance {
    /// The bytes that may be locked; `None` where nothing limits them.
    pub limit: Option<u64>,
    /// The bytes that this process has taken.
    pub taken: u64,
    /// The account.
    pub payer: AccountingMode,
}

impl Allowance {
    /// The limit (`None` without one), the bytes that are taken, and the account.
    pub const fn new(limit: Option<u64>, taken: u64, payer: AccountingMode) -> Self {
        Self { limit, taken, payer }
    }

    /// Returns `true` if `bytes` more fit beside what this process has taken.
    pub fn admits(&self, bytes: u64) -> bool {
        self.limit.is_none_or(|limit| self.taken.checked_add(bytes).is_some_and(|sum| sum <= limit))
    }
}

/// Details of an `ENOMEM`: the bytes wanted and the limit they met. Fields are `None` until known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PinLimit {
    /// The bytes the operation would have locked, all of it together; `None` where that is not known.
    pub wanted: Option<u64>,
    /// The bytes that could be locked when the operation had failed and had given back its own; `None` where the door
    /// cannot tell.
    pub allowance: Option<Allowance>,
}

impl PinLimit {
    /// The bytes wanted and the limit they met, as far as they are known.
    pub const fn new(wanted: Option<u64>, allowance: Option<Allowance>) -> Self {
        Self { wanted, allowance }
    }

    /// Whether the limit was in the way (`false`: the kernel itself ran out of memory). `None` where the numbers do not
    /// tell: one is missing, or other processes may have taken the rest.
    pub fn is_reached(&self) -> Option<bool> {
        if self.wanted == Some(0) {
            return Some(false);
        }
        let allowance = self.allowance?;
        match (allowance.limit, allowance.payer) {
            (None, _) => Some(false),
            (Some(_), _) if !allowance.admits(self.wanted?) => Some(true),
            (Some(_), AccountingMode::Process) => Some(false),
            (Some(_), AccountingMode::User) => None,
        }
    }

    pub(crate) fn advice(&self) -> &'static str {
        match self.is_reached() {
            Some(false) => "free memory on the host",
            Some(true) | None => "raise RLIMIT_MEMLOCK, or grant CAP_IPC_LOCK",
        }
    }
}

impl fmt::Display for PinLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const OUT_OF_MEMORY: &str = "the kernel is out of memory";
        let limited = self.allowance.and_then(|allowance| Some((allowance.limit?, allowance)));
        match (self.wanted, limited, self.is_reached()) {
            (Some(0), ..) => write!(f, "{OUT_OF_MEMORY}; nothing more was to be locked"),
            (_, None, Some(_)) => write!(f, "{OUT_OF_MEMORY}; no limit on locked memory is in force"),
            (_, None, None) => f.write_str("the limit on locked memory was reached"),
            (None, Some((limit, allowance)), _) => {
                write!(f, "nothing more fits into {}", Limit(limit, allowance))
            }
            (Some(wanted), Some((limit, allowance)), Some(true)) => {
                write!(f, "{wanted} bytes more do not fit into {}", Limit(limit, allowance))
            }
            (Some(wanted), Some((limit, allowance)), Some(false)) => {
                write!(f, "{OUT_OF_MEMORY}; {wanted} bytes more fit into {}", Limit(limit, allowance))
            }
            (Some(wanted), Some((limit, allowance)), None) => {
                write!(f, "{wanted} bytes more fit into {}", Limit(limit, allowance))?;
                write!(f, ": its user's others have taken the rest, or {OUT_OF_MEMORY}")
            }
        }
    }
}

/// "the 12288 bytes that may be locked (RLIMIT_MEMLOCK), 8192 of them taken".
struct Limit(u64, Allowance);

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(limit, Allowance { taken, payer, .. }) = self;
        let by = if *payer == AccountingMode::User { " by this process" } else { "" };
        write!(f, "the {limit} bytes that may be locked (RLIMIT_MEMLOCK), {taken} of them taken{by}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: LockedMemory = LockedMemory { limit: Some(12288), locked: 8192, pinned: 4096 };

    fn wanting(wanted: u64, allowance: Allowance) -> PinLimit {
        PinLimit { wanted: Some(wanted), allowance: Some(allowance) }
    }

    #[test]
    fn memory_that_exceeds_the_limit_met_the_limit() {
        let limit = wanting(8192, SOME.of_process());
        assert_eq!(limit.is_reached(), Some(true));
        let text =
            "8192 bytes more do not fit into the 12288 bytes that may be locked (RLIMIT_MEMLOCK), 8192 of them taken";
        assert_eq!(limit.to_string(), text);
        let limit = wanting(12288, SOME.of_user());
        let text = "12288 bytes more do not fit into the 12288 bytes that may be locked (RLIMIT_MEMLOCK), \
                    4096 of them taken by this process";
        assert_eq!(limit.to_string(), text);
    }

    #[test]
    fn memory_within_the_limit_met_a_kernel_without_memory_unless_others_share_the_limit() {
        let limit = wanting(4096, SOME.of_process());
        assert_eq!((limit.is_reached(), limit.advice()), (Some(false), "free memory on the host"));
        let text = "the kernel is out of memory; \
                    4096 bytes more fit into the 12288 bytes that may be locked (RLIMIT_MEMLOCK), 8192 of them taken";
        assert_eq!(limit.to_string(), text);
        let limit = wanting(8192, SOME.of_user());
        assert_eq!((limit.is_reached(), limit.advice()), (None, "raise RLIMIT_MEMLOCK, or grant CAP_IPC_LOCK"));
        let text = "8192 bytes more fit into the 12288 bytes that may be locked (RLIMIT_MEMLOCK), \
                    4096 of them taken by this process: its user's others have taken the rest, or the kernel is out of \
                    memory";
        assert_eq!(limit.to_string(), text);
    }

    #[test]
    fn without_a_limit_or_without_bytes_to_lock_it_was_not_the_limit() {
        let free = LockedMemory { limit: None, ..SOME };
        let limit = wanting(u64::MAX, free.of_process());
        assert_eq!(limit.is_reached(), Some(false));
        assert_eq!(limit.to_string(), "the kernel is out of memory; no limit on locked memory is in force");
        let limit = PinLimit { wanted: Some(0), allowance: None };
        assert_eq!(limit.is_reached(), Some(false));
        assert_eq!(limit.to_string(), "the kernel is out of memory; nothing more was to be locked");
    }

    #[test]
    fn unknown_figures_are_left_out() {
        assert_eq!(PinLimit::default().to_string(), "the limit on locked memory was reached");
        let limit = PinLimit { wanted: None, allowance: Some(SOME.of_process()) };
        let text = "nothing more fits into the 12288 bytes that may be locked (RLIMIT_MEMLOCK), 8192 of them taken";
        assert_eq!((limit.is_reached(), limit.to_string().as_str()), (None, text));
    }

    #[test]
    fn a_sum_past_the_last_byte_does_not_fit() {
        assert!(!Allowance { limit: Some(u64::MAX), taken: 1, payer: AccountingMode::Process }.admits(u64::MAX));
        assert!(Allowance { limit: Some(u64::MAX), taken: 0, payer: AccountingMode::Process }.admits(u64::MAX));
    }
}
