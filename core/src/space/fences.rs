//! Fences: ranges whose state in the kernel is unknown after a failure that could not be undone.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::contract::Fence;
use crate::door::Failure;
use crate::error::{Error, Kind, Operation};
use crate::sync::{Rank, RwLock};
use crate::words::address::IovaRange;
use crate::words::memory::HostMemory;
use crate::words::window::Windows;

/// The fences of a space, and the memory that a device might still reach behind each.
///
/// A fence is put up under the space's gate and under the `operations` of each window that it lies in, or under the
/// gate alone, held exclusively. A verb checks it under the same locks, so nothing is mapped behind a fence. Memory
/// behind a fence is never freed.
///
/// Its lock is [`Rank::Fences`] in the order of all locks ([`crate::sync`]).
#[derive(Debug)]
pub(super) struct Fences {
    list: RwLock<Vec<Fenced>>,
    /// Set once there is a fence. Changed and read under the locks that order a fence against a verb, so a verb that
    /// finds none needs no lock of this list.
    any: AtomicBool,
}

#[derive(Debug)]
struct Fenced {
    fence: Fence,
    memory: Vec<HostMemory>,
}

impl Fences {
    pub(super) fn new() -> Self {
        Self { list: RwLock::new(Rank::Fences, Vec::new()), any: AtomicBool::new(false) }
    }

    /// Puts up a fence around `range`, with the memory that a device might reach behind it.
    pub(super) fn put_up(&self, backend: &str, range: IovaRange, cause: Failure, memory: Vec<HostMemory>) {
        log::error!("{backend}: {range} is fenced: its state is unknown after {cause}");
        let mut list = self.list.write();
        list.push(Fenced { fence: Fence { range, cause }, memory });
        self.any.store(true, Ordering::Release);
    }

    /// Returns `true` if there is a fence anywhere.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Refuses an operation on a range that overlaps a fence.
    pub(super) fn check(&self, operation: Operation, range: IovaRange) -> Result<(), Error> {
        if !self.any() {
            return Ok(());
        }
        let list = self.list.read();
        let over = list.iter().map(|fenced| fenced.fence.range).find(|fence| fence.overlaps(range));
        over.map_or(Ok(()), |fence| Err(Error::new(operation, range, Kind::Fenced(fence))))
    }

    /// A copy of the fences, without their memory.
    pub(super) fn all(&self) -> Vec<Fence> {
        self.list.read().iter().map(|fenced| fenced.fence.clone()).collect()
    }

    /// The memory behind all fences.
    pub(super) fn memory(&self) -> Vec<HostMemory> {
        self.list.read().iter().flat_map(|fenced| &fenced.memory).cloned().collect()
    }

    /// A fence in one of `windows` whose memory shares bytes with `memory`: entries behind it may still point there.
    pub(super) fn onto(&self, memory: &HostMemory, windows: &Windows) -> Option<IovaRange> {
        let list = self.list.read();
        let mut reaching = list.iter().filter(|fenced| fenced.memory.iter().any(|behind| behind.overlaps(memory)));
        let found = reaching.find(|fenced| windows.overlapping(fenced.fence.range).next().is_some());
        found.map(|fenced| fenced.fence.range)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.read().is_empty()
    }
}

impl Drop for Fences {
    /// Keeps the memory behind fences for ever, since a device might still reach it.
    fn drop(&mut self) {
        for memory in self.list.get_mut().drain(..).flat_map(|fenced| fenced.memory) {
            std::mem::forget(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::words::address::HostAddress;
    use std::num::NonZeroU64;

    use super::*;
    use crate::door::Errno;
    use crate::words::address::Iova;
    use crate::words::page::{PageSize, PageSizes};

    const CAUSE: Failure = Failure::from_errno("UNMAP", Errno::EIO);

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(first), Iova::new(last)).expect("a range of the test")
    }

    fn memory(address: u64) -> HostMemory {
        HostMemory::unbacked(HostAddress::new(address), NonZeroU64::new(0x1000).expect("not zero")).expect("no wrap")
    }

    #[test]
    fn a_range_is_refused_exactly_where_it_overlaps_a_fence() {
        let fences = Fences::new();
        fences.put_up("test", range(0x2000, 0x2fff), CAUSE, Vec::new());
        let refused = Error::new(Operation::Map, range(0x1000, 0x2000), Kind::Fenced(range(0x2000, 0x2fff)));
        assert_eq!(fences.check(Operation::Map, range(0x1000, 0x2000)), Err(refused));
        assert_eq!(fences.check(Operation::Map, range(0x1000, 0x1fff)), Ok(()));
        assert_eq!(fences.check(Operation::Map, range(0x3000, 0x3fff)), Ok(()));
        assert_eq!(fences.all(), [Fence { range: range(0x2000, 0x2fff), cause: CAUSE }]);
    }

    #[test]
    fn memory_behind_a_fence_counts_while_the_window_of_the_fence_exists() {
        let fences = Fences::new();
        fences.put_up("test", range(0x2000, 0x2fff), CAUSE, vec![memory(0x7000_0000)]);
        let window = |first, last| Windows::uniform(vec![range(first, last)], PageSizes::only(PageSize::K4));
        assert_eq!(fences.onto(&memory(0x7000_0800), &window(0, 0xffff)), Some(range(0x2000, 0x2fff)));
        assert_eq!(fences.onto(&memory(0x7000_1000), &window(0, 0xffff)), None);
        assert_eq!(fences.onto(&memory(0x7000_0000), &window(0x1_0000, 0x1_ffff)), None);
        assert_eq!(fences.memory(), [memory(0x7000_0000)]);
    }
}
