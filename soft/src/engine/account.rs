//! The locked and pinned memory of one process, as in `/proc/<pid>/status`.
//!
//! `VmLck` (linux: mm/util.c, __account_locked_vm) is charged by type1 and sPAPR, `VmPin` by iommufd, which also
//! charges the user, or `VmLck` if OPTION_RLIMIT_MODE is set (linux: drivers/iommu/iommufd/pages.c, do_update_pinned).
//! The host has one user, whose count is the sum over the processes; the only limit is RLIMIT_MEMLOCK, and a process
//! without one has CAP_IPC_LOCK.

use dmaspace_core::PageSize;
use dmaspace_core::door::Errno;

/// The charges of a process, in bytes.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    page: PageSize,
    /// RLIMIT_MEMLOCK; `None` for a process without a limit.
    pub(crate) limit: Option<u64>,
    /// `VmLck`.
    pub(crate) locked: Gauge,
    /// `VmPin`.
    pub(crate) pinned: Gauge,
    /// The part of `VmLck` that the kernel will never uncharge.
    pub(crate) leaked: u64,
    /// All bytes that were ever pinned, counted once per pin.
    pub(crate) ever_pinned: u64,
    /// The bytes of all TCE tables that were ever made.
    pub(crate) ever_tables: u64,
}

/// A level, and its maximum so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gauge {
    pub(crate) now: u64,
    pub(crate) peak: u64,
}

impl Gauge {
    fn rise(&mut self, bytes: u64) {
        self.now = self.now.saturating_add(bytes);
        self.peak = self.peak.max(self.now);
    }

    fn fall(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.now, "more is given back than was charged");
        self.now = self.now.saturating_sub(bytes);
    }
}

impl Account {
    pub(crate) fn new(page: PageSize, limit: Option<u64>) -> Self {
        let (locked, pinned) = (Gauge::default(), Gauge::default());
        Self { page, limit, locked, pinned, leaked: 0, ever_pinned: 0, ever_tables: 0 }
    }

    /// Charges `bytes` to `VmLck`.
    pub(crate) fn lock(&mut self, bytes: u64) -> Result<(), Errno> {
        self.admit(self.locked.now, bytes)?;
        self.locked.rise(bytes);
        Ok(())
    }

    /// Uncharges `bytes` from `VmLck`.
    pub(crate) fn unlock(&mut self, bytes: u64) {
        self.locked.fall(bytes);
    }

    /// Notes that `bytes` of `VmLck` will never be uncharged.
    pub(crate) fn leak(&mut self, bytes: u64) {
        self.leaked = self.leaked.saturating_add(bytes);
    }

    /// Charges `bytes` to `VmPin`.
    pub(crate) fn pin(&mut self, bytes: u64) -> Result<(), Errno> {
        self.admit(self.pinned.now, bytes)?;
        self.pinned.rise(bytes);
        Ok(())
    }

    /// Charges `bytes` to `VmPin` while another process of the same user is charged `elsewhere`.
    pub(crate) fn pin_beside(&mut self, elsewhere: u64, bytes: u64) -> Result<(), Errno> {
        self.admit(self.pinned.now.saturating_add(elsewhere), bytes)?;
        self.pinned.rise(bytes);
        Ok(())
    }

    /// Charges `bytes` to `VmLck`, and counts them in `VmPin`.
    pub(crate) fn lock_pinned(&mut self, bytes: u64) -> Result<(), Errno> {
        self.lock(bytes)?;
        self.pinned.rise(bytes);
        Ok(())
    }

    /// Uncharges `bytes` from `VmPin`.
    pub(crate) fn unpin(&mut self, bytes: u64) {
        self.pinned.fall(bytes);
    }

    /// Notes that a call pinned `bytes`.
    pub(crate) fn note_pins(&mut self, bytes: u64) {
        self.ever_pinned = self.ever_pinned.saturating_add(bytes);
    }

    /// Notes that a table of `bytes` was made.
    pub(crate) fn note_table(&mut self, bytes: u64) {
        self.ever_tables = self.ever_tables.saturating_add(bytes);
    }

    /// The number of bytes that can still be locked.
    pub(crate) fn room(&self) -> u64 {
        self.limit.map_or(u64::MAX, |limit| self.page.round_down(limit).saturating_sub(self.locked.now))
    }

    fn admit(&self, now: u64, bytes: u64) -> Result<(), Errno> {
        let limit = self.limit.map_or(u64::MAX, |limit| self.page.round_down(limit));
        let fits = now.checked_add(bytes).is_some_and(|sum| sum <= limit);
        if fits { Ok(()) } else { Err(Errno::ENOMEM) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_counts_whole_pages_and_refuses_without_charging() {
        let mut account = Account::new(PageSize::K4, Some(0x2fff));
        assert_eq!(account.lock(0x2000), Ok(()));
        assert_eq!(account.lock(0x1000), Err(Errno::ENOMEM));
        assert_eq!(account.locked.now, 0x2000);
        assert_eq!(account.pin(0x2000), Ok(()));
        account.unlock(0x2000);
        assert_eq!((account.locked.now, account.locked.peak), (0, 0x2000));
    }

    #[test]
    fn without_a_limit_everything_fits() {
        assert_eq!(Account::new(PageSize::K4, None).lock(u64::MAX), Ok(()));
    }
}
