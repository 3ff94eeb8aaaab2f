//! The memory of a guest's tables, which the guest makes them take: counted, and limited.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The memory that all tables of a guest may take together, and the memory that they take.
#[derive(Debug)]
pub(crate) struct Allowance {
    pub(crate) most: u64,
    taken: AtomicU64,
}

/// The tables of the guest may take no more than so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom(pub(crate) u64);

/// The share of one table. It is given back when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// `None` for a table that is not the guest's.
    allowance: Option<Arc<Allowance>>,
    charged: u64,
}

impl Allowance {
    pub(crate) fn of(most: u64) -> Self {
        Self { most, taken: AtomicU64::new(0) }
    }

    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> Result<(), NoRoom> {
        let more = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= self.most);
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.map_or(Err(NoRoom(self.most)), |_| Ok(()))
    }
}

impl Account {
    pub(super) fn on(allowance: Option<Arc<Allowance>>) -> Self {
        Self { allowance, charged: 0 }
    }

    /// An account of another table on the same allowance.
    pub(super) fn another(&self) -> Self {
        Self::on(self.allowance.clone())
    }

    /// Charges further bytes, if they are left.
    pub(super) fn reserve(&mut self, bytes: u64) -> Result<(), NoRoom> {
        if let Some(allowance) = &self.allowance {
            allowance.take(bytes)?;
            self.charged += bytes;
        }
        Ok(())
    }

    /// Charges exactly `bytes`, be they left or not: they are in use.
    pub(super) fn settle(&mut self, bytes: u64) {
        if bytes == self.charged {
            return;
        }
        if let Some(allowance) = &self.allowance {
            // Wraps around where it becomes less.
            allowance.taken.fetch_add(bytes.wrapping_sub(self.charged), Ordering::Relaxed);
            self.charged = bytes;
        }
    }
}

/// A copy of a table is not the guest's.
impl Clone for Account {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.settle(0);
    }
}
