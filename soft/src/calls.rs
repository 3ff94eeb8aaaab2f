//! Counts of kernel calls.

use std::collections::BTreeMap;

/// Counts of kernel calls by name: the name of the request for an ioctl, else "open", "close", "pread", "pwrite",
/// "read", "write", "mmap", "adopt".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallCounts {
    counts: BTreeMap<&'static str, CallCount>,
}

/// The count of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallCount {
    /// The number of calls, failed ones included.
    pub made: u64,
    /// The number of failed calls. A positive result is not counted as a failure.
    pub failed: u64,
}

impl CallCounts {
    /// The number of calls of this name, failed ones included.
    pub fn of(&self, name: &str) -> u64 {
        self.counts.get(name).map_or(0, |count| count.made)
    }

    /// The number of calls of every name but "close", which cannot be made to fail: a sweep over all faults injects one
    /// at each.
    pub fn total(&self) -> u64 {
        self.iter().filter(|(name, _)| *name != "close").map(|(_, count)| count.made).sum()
    }

    /// All counts, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, CallCount)> + '_ {
        self.counts.iter().map(|(name, count)| (*name, *count))
    }

    pub(crate) fn note(&mut self, name: &'static str, failed: bool) {
        let count = self.counts.entry(name).or_default();
        count.made += 1;
        count.failed += u64::from(failed);
    }
}
