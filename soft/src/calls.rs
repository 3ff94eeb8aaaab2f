//! How often what was called.

use std::collections::BTreeMap;

/// Counts of kernel calls by name: the request's for an ioctl, else "open", "close", "pread", "pwrite", "mmap",
/// "adopt".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    counts: BTreeMap<&'static str, Count>,
}

/// How often one call was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// In all.
    pub made: u64,
    /// How many of them failed. A positive result where zero was meant is no failure here.
    pub failed: u64,
}

impl Calls {
    /// How often a call was made, failed ones included.
    pub fn of(&self, name: &str) -> u64 {
        self.counts.get(name).map_or(0, |count| count.made)
    }

    /// How often calls were made, closing excepted, which cannot be made to fail: what a sweep over all faults counts
    /// to.
    pub fn total(&self) -> u64 {
        self.iter().filter(|(name, _)| *name != "close").map(|(_, count)| count.made).sum()
    }

    /// All counts, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Count)> + '_ {
        self.counts.iter().map(|(name, count)| (*name, *count))
    }

    pub(crate) fn note(&mut self, name: &'static str, failed: bool) {
        let count = self.counts.entry(name).or_default();
        count.made += 1;
        count.failed += u64::from(failed);
    }
}
