//! Disjoint blocks of host memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::Backend;
use crate::error::Kind;
use crate::sync::{Rank, RwLock};
use crate::words::address::HostAddress;
use crate::words::memory::HostMemory;

/// Blocks of host memory by their first byte: the registrations of a space, or the memory whose pins it shares. They
/// change under the space's gate, and are removed only while that is held exclusively. The lock is held for moments.
#[derive(Debug)]
pub(super) struct Blocks {
    by_address: RwLock<BTreeMap<HostAddress, HostMemory>>,
    /// The number of changes. Read under the gate.
    changes: AtomicU64,
}

/// Memory that one block covered, as of a number of changes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Covered {
    first: u64,
    last: u64,
    changes: u64,
}

impl Blocks {
    pub(super) fn new(rank: Rank) -> Self {
        Self { by_address: RwLock::new(rank, BTreeMap::new()), changes: AtomicU64::new(1) }
    }

    /// Checks that `memory` can be a block beside the blocks there are. `already` is the refusal of memory that
    /// overlaps one.
    pub(super) fn check_fits(&self, backend: &impl Backend, memory: &HostMemory, already: Kind) -> Result<(), Kind> {
        let page = backend.capabilities().host_page;
        if memory.is_unbacked() && backend.is_real() {
            Err(Kind::Unbacked)
        } else if memory.is_device_memory() {
            Err(Kind::DeviceMemory)
        } else if !page.divides(memory.address().get()) || !page.divides(memory.len().get()) {
            Err(Kind::Misaligned(page))
        } else if self.overlaps(memory) {
            Err(already)
        } else {
            Ok(())
        }
    }

    fn overlaps(&self, memory: &HostMemory) -> bool {
        let blocks = self.by_address.read();
        let below = blocks.range(..=memory.last()).next_back();
        below.is_some_and(|(_, block)| block.last() >= memory.address())
    }

    /// Returns whether `memory` is exactly one block.
    pub(super) fn has(&self, memory: &HostMemory) -> bool {
        self.by_address.read().get(&memory.address()) == Some(memory)
    }

    /// Returns whether every byte of `memory` lies in a block. Adjacent blocks cover memory together.
    pub(super) fn cover(&self, memory: &HostMemory) -> bool {
        let blocks = self.by_address.read();
        let mut next = memory.address();
        while next <= memory.last() {
            let Some((_, block)) = blocks.range(..=next).next_back().filter(|(_, block)| block.last() >= next) else {
                return false;
            };
            let Some(after) = block.last().get().checked_add(1) else { break };
            next = HostAddress::new(after);
        }
        true
    }

    /// Returns whether every byte of `memory` lies in a block, which is looked up only where `known` does not have it.
    /// The gate is held.
    #[inline(always)]
    pub(super) fn cover_again(&self, memory: &HostMemory, known: &mut Covered) -> bool {
        let changes = self.changes.load(Ordering::Relaxed);
        let (first, last) = (memory.address().get(), memory.last().get());
        let is_known = known.changes == changes && known.first <= first && last <= known.last;
        is_known || self.cover_and_note(memory, changes, known)
    }

    /// [`Blocks::cover`], with a note of the block that has all of the memory, if one has.
    #[inline(never)]
    fn cover_and_note(&self, memory: &HostMemory, changes: u64, known: &mut Covered) -> bool {
        let (first, last) = (memory.address(), memory.last());
        let blocks = self.by_address.read();
        if let Some((_, block)) = blocks.range(..=first).next_back().filter(|(_, block)| block.last() >= last) {
            *known = Covered { first: block.address().get(), last: block.last().get(), changes };
            return true;
        }
        drop(blocks);
        self.cover(memory)
    }

    pub(super) fn all(&self) -> Vec<HostMemory> {
        self.by_address.read().values().cloned().collect()
    }

    pub(super) fn add(&self, memory: &HostMemory) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        let before = self.by_address.write().insert(memory.address(), memory.clone());
        debug_assert!(before.is_none(), "a block was added where one is");
    }

    /// Takes a block out. The caller drops it once the locks of the space are released.
    pub(super) fn remove(&self, memory: &HostMemory) -> Option<HostMemory> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.by_address.write().remove(&memory.address())
    }

    pub(super) fn take_all(&self) -> Vec<HostMemory> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        std::mem::take(&mut *self.by_address.write()).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    fn memory(address: u64, len: u64) -> HostMemory {
        HostMemory::unbacked(HostAddress::new(address), NonZeroU64::new(len).expect("not zero")).expect("no wrap")
    }

    #[test]
    fn adjacent_blocks_cover_memory_together_and_gaps_do_not() {
        let blocks = Blocks::new(Rank::Registered);
        blocks.add(&memory(0x1000, 0x1000));
        blocks.add(&memory(0x2000, 0x2000));
        assert!(blocks.cover(&memory(0x1000, 0x3000)));
        assert!(blocks.cover(&memory(0x1800, 0x1000)));
        assert!(!blocks.cover(&memory(0x1000, 0x4000)));
        assert!(!blocks.cover(&memory(0, 0x2000)));
    }

    #[test]
    fn a_block_that_is_gone_covers_nothing_any_more() {
        let blocks = Blocks::new(Rank::Registered);
        let mut known = Covered::default();
        assert!(!blocks.cover_again(&memory(0, 0x1000), &mut known));
        blocks.add(&memory(0x1000, 0x2000));
        assert!(blocks.cover_again(&memory(0x1000, 0x1000), &mut known));
        assert!(blocks.cover_again(&memory(0x2000, 0x1000), &mut known));
        assert!(!blocks.cover_again(&memory(0x2000, 0x1001), &mut known));
        blocks.add(&memory(0x3000, 0x1000));
        assert!(blocks.cover_again(&memory(0x2000, 0x2000), &mut known));
        blocks.remove(&memory(0x1000, 0x2000));
        assert!(!blocks.cover_again(&memory(0x2000, 0x1000), &mut known));
    }

    #[test]
    fn the_last_page_of_all_can_be_covered() {
        let blocks = Blocks::new(Rank::Registered);
        blocks.add(&memory(u64::MAX - 0xfff, 0x1000));
        assert!(blocks.cover(&memory(u64::MAX - 0xfff, 0x1000)));
        assert!(blocks.overlaps(&memory(u64::MAX - 0x1fff, 0x1800)));
    }

    #[test]
    fn only_the_whole_block_is_the_block() {
        let blocks = Blocks::new(Rank::SharedPins);
        blocks.add(&memory(0x1000, 0x2000));
        assert!(blocks.has(&memory(0x1000, 0x2000)));
        assert!(!blocks.has(&memory(0x1000, 0x1000)));
        assert_eq!(blocks.remove(&memory(0x1000, 0x2000)), Some(memory(0x1000, 0x2000)));
        assert_eq!(blocks.all(), []);
    }
}
