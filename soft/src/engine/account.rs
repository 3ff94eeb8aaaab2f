//! What one process has locked and pinned, as `/proc/<pid>/status` would say.
//!
//! `VmLck` (linux: mm/util.c, __account_locked_vm) is charged by type1 and sPAPR, `VmPin` by iommufd, which also
//! charges the user, or `VmLck` if it is asked to (linux: drivers/iommu/iommufd/pages.c, do_update_pinned). There is
//! one user here, so his count is the sum over his processes; the only limit is RLIMIT_MEMLOCK, and a process without
//! one has CAP_IPC_LOCK.

use dmaspace_core::PageSize;
use dmaspace_core::door::Errno;

/// The charges of a process, in bytes.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    page: PageSize,
    /// RLIMIT_MEMLOCK, where it applies.
    pub(crate) limit: Option<u64>,
    /// `VmLck`.
    pub(crate) locked: Gauge,
    /// `VmPin`.
    pub(crate) pinned: Gauge,
    /// What of `VmLck` the kernel will never give back.
    pub(crate) leaked: u64,
    /// Bytes ever pinned, counted again when pinned again.
    pub(crate) ever_pinned: u64,
    /// Bytes of TCE tables ever made.
    pub(crate) ever_tables: u64,
}

/// A level and how high it ever was.
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

    /// Gives `bytes` back to `VmLck`.
    pub(crate) fn unlock(&mut self, bytes: u64) {
        self.locked.fall(bytes);
    }

    /// Remembers that `bytes` were charged to `VmLck` for good.
    pub(crate) fn leak(&mut self, bytes: u64) {
        self.leaked = self.leaked.saturating_add(bytes);
    }

    /// Charges `bytes` to `VmPin`.
    pub(crate) fn pin(&mut self, bytes: u64) -> Result<(), Errno> {
        self.admit(self.pinned.now, bytes)?;
        self.pinned.rise(bytes);
        Ok(())
    }

    /// Charges `bytes` to `VmPin` while the user is charged `elsewhere` for another process of his.
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

    /// Gives `bytes` back to `VmPin`.
    pub(crate) fn unpin(&mut self, bytes: u64) {
        self.pinned.fall(bytes);
    }

    /// Remembers that a call pinned `bytes`.
    pub(crate) fn note_pins(&mut self, bytes: u64) {
        self.ever_pinned = self.ever_pinned.saturating_add(bytes);
    }

    /// Remembers that a table of `bytes` was made.
    pub(crate) fn note_table(&mut self, bytes: u64) {
        self.ever_tables = self.ever_tables.saturating_add(bytes);
    }

    /// How many more bytes can be locked.
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
