//! Entries that point to target memory that goes.

use dmaspace_core::contract::{Mapping, PciAddressSpace};
use dmaspace_core::words::address::{Iova, IovaRange};
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;

use crate::section::TargetMemory;
use crate::translated::Shared;

impl Shared {
    /// The entries in `space` that point to bytes of `targets`: ascending, entries that continue each other joined.
    pub(crate) fn stranded_in(&self, space: &dyn PciAddressSpace, targets: &[TargetMemory]) -> Vec<IovaRange> {
        let mut stranded = Vec::new();
        for entry in space.mappings(self.range()) {
            for target in targets {
                stranded.extend(onto(&entry, target.memory(), self.page()));
            }
        }
        joined(stranded)
    }
}

/// The entries of a run, of pages of `page`, that point to bytes of `memory`.
fn onto(run: &Mapping, memory: &HostMemory, page: PageSize) -> Option<IovaRange> {
    if !run.memory.overlaps(memory) {
        return None;
    }
    let begin = run.memory.address().get();
    let offset_of = |address: u64| run.range.first().get().checked_add(address - begin).map(Iova::new);
    let first = offset_of(memory.address().get().max(begin))?;
    let last = offset_of(memory.last().get().min(run.memory.last().get()))?;
    IovaRange::new(first, last).ok()?.widened_to(page).intersection(run.range)
}

/// Ranges in ascending order, as few as possible.
pub(crate) fn joined(mut ranges: Vec<IovaRange>) -> Vec<IovaRange> {
    ranges.sort_unstable();
    let mut joined: Vec<IovaRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.overlaps(range) || last.touches(range) => *last = last.hull(range),
            _ => joined.push(range),
        }
    }
    joined
}
