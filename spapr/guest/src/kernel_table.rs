//! The two traits that KVM implements for tables that it fills itself ([`crate::in_kernel`]).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dmaspace_core::door::{Failure, Handle};
use dmaspace_core::{IovaRange, PageSize};

use crate::entry::Tce;
use crate::liobn::Liobn;

/// Creates in-kernel TCE tables: KVM, for one virtual machine.
///
/// # Safety
/// Each table that it creates must keep the promises of [`InKernelTable`].
#[expect(unsafe_code, reason = "UNSAFETY: a space frees memory that no table shows")]
pub unsafe trait InKernelTables: Send + Sync + fmt::Debug {
    /// Creates an empty table for `window` in entries of `page`, by the guest's name for it. The table is linked to no
    /// group.
    ///
    /// # Errors
    /// KVM's failure; there is no table then.
    fn create(&self, liobn: Liobn, window: IovaRange, page: PageSize) -> Result<Arc<dyn InKernelTable>, Failure>;
}

/// A table that the kernel fills, for as long as the value lives. Its drop unlinks it from all groups.
///
/// # Safety
/// A space frees memory that no entry of the table points to. So [`InKernelTable::entry`] must show each entry as the
/// kernel has it, [`InKernelTable::next_entry`] must pass over none, and the success of [`InKernelTable::unlink`] must
/// mean that the kernel enters nothing for the group any more.
#[expect(unsafe_code, reason = "UNSAFETY: a space frees memory that no table shows")]
pub unsafe trait InKernelTable: Send + Sync + fmt::Debug {
    /// The entry for the `index`-th page of the window, as the guest wrote it; [`Tce::NONE`] behind the last one.
    ///
    /// Called under the lock of a guest's table: it must make no call to a kernel and must call nothing of this crate
    /// but [`next_of`].
    fn entry(&self, index: u64) -> Tce;

    /// The first entry other than [`Tce::NONE`] for the `from`-th page to the `last`-th, and the number of its page.
    ///
    /// KVM keeps no list of the entries that the guest has put, so a question about a range searches all of its pages.
    /// An implementation whose entries are words of shared memory searches them with [`next_of`].
    ///
    /// Called as [`InKernelTable::entry`] is.
    fn next_entry(&self, from: u64, last: u64) -> Option<(u64, Tce)> {
        (from..=last).map(|index| (index, self.entry(index))).find(|(_, tce)| *tce != Tce::NONE)
    }

    /// Has the kernel fill the group's table of the same window, too, from now on. Entries that exist already are not
    /// entered there.
    ///
    /// # Errors
    /// KVM's failure: `EINVAL` when the group's container has no such window. The group is not linked then.
    fn link(&self, group: Handle) -> Result<(), Failure>;

    /// Has KVM forget the group before it leaves its container: none of the virtual machine's tables is linked to it
    /// from then on. A group that is not linked stays so.
    ///
    /// # Errors
    /// KVM's failure; the group's links are unchanged then.
    fn unlink(&self, group: Handle) -> Result<(), Failure>;
}

/// Searches the words of a kernel's table for [`InKernelTable::next_entry`].
pub fn next_of(entries: &[AtomicU64], from: u64, last: u64) -> Option<(u64, Tce)> {
    let end = usize::try_from(last).map_or(entries.len(), |last| entries.len().min(last.saturating_add(1)));
    let rest = entries.get(usize::try_from(from).ok()?..end)?;
    let empty = rest.chunks_exact(BLOCK).take_while(|block| is_empty(block)).count() * BLOCK;
    let (place, tce) = (empty..).zip(rest.iter().skip(empty)).find_map(|(place, entry)| {
        let tce = Tce::new(entry.load(Ordering::Relaxed));
        (tce != Tce::NONE).then_some((place, tce))
    })?;
    Some((from + place as u64, tce))
}

/// The number of words that are compared at once.
const BLOCK: usize = 16;

/// Returns true if all words of a block are 0, as most words of a table are.
fn is_empty(block: &[AtomicU64]) -> bool {
    let words: Option<&[AtomicU64; BLOCK]> = block.try_into().ok();
    words.is_some_and(|words| words.iter().fold(0, |all, entry| all | entry.load(Ordering::Relaxed)) == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A table with the default search.
    #[derive(Debug)]
    struct Slow(Vec<AtomicU64>);

    #[expect(unsafe_code, reason = "UNSAFETY: a table that no kernel writes")]
    // SAFETY: each entry is shown, and there is no group.
    unsafe impl InKernelTable for Slow {
        fn entry(&self, index: u64) -> Tce {
            let place = usize::try_from(index).expect("a small table");
            Tce::new(self.0.get(place).map_or(0, |entry| entry.load(Ordering::Relaxed)))
        }

        fn link(&self, _: Handle) -> Result<(), Failure> {
            Ok(())
        }

        fn unlink(&self, _: Handle) -> Result<(), Failure> {
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn a_search_by_blocks_finds_the_entry_that_a_search_one_by_one_finds(
            len in 0_usize..70,
            put in prop::collection::vec((0_usize..70, 1_u64..5), 0..3),
            from in 0_u64..75,
            last in 0_u64..75,
        ) {
            let table = Slow((0..len).map(|_| AtomicU64::new(0)).collect());
            for (place, tce) in put {
                if let Some(entry) = table.0.get(place) {
                    entry.store(tce, Ordering::Relaxed);
                }
            }
            prop_assert_eq!(next_of(&table.0, from, last), table.next_entry(from, last));
            prop_assert_eq!(next_of(&table.0, from, u64::MAX), table.next_entry(from, 80));
        }
    }
}
