//! What a process has registered of its memory, in runs, for all of its spaces.
//!
//! POWER's kernel keeps one list of registrations for each process, whatever the number of containers that made them. One that is exactly
//! another, by address and length, shares its pins and is charged nothing; one that overlaps another in any other way is refused with
//! `EINVAL`, after it was pinned (linux: arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_get, mm_iommu_do_alloc). So spaces that cut the same
//! memory into different runs shut each other out, and whoever joins late has to cut it as those before did.
//!
//! Invariants: runs are disjoint; each counts the spaces that have registered it, and is there exactly as long as there is one. Counting
//! and the kernel's call are one step: of two spaces that register the same run at once, the second finds the first one's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::words::memory::HostMemory;

/// The registrations of a process.
#[derive(Default)]
pub struct ProcessRegistrations {
    by_address: Mutex<BTreeMap<u64, Run>>,
}

struct Run {
    memory: HostMemory,
    users: usize,
}

impl ProcessRegistrations {
    /// Those there are, ascending by host address. Waits for a registration under way.
    pub fn all(&self) -> Vec<HostMemory> {
        self.lock().values().map(|run| run.memory.clone()).collect()
    }

    /// How many spaces have registered exactly this.
    pub fn users(&self, memory: &HostMemory) -> usize {
        self.lock().get(&memory.address()).filter(|run| run.is(memory)).map_or(0, |run| run.users)
    }

    /// Registers `memory` for one space more, by a call.
    ///
    /// # Errors
    /// The run that `memory` overlaps without being the same: no call is made then. Inside, what the call says: nothing changed.
    pub(crate) fn enter<E>(
        &self,
        memory: &HostMemory,
        register: impl FnOnce() -> Result<(), E>,
    ) -> Result<Result<(), E>, HostMemory> {
        let mut runs = self.lock();
        let near = runs.range(..=memory.last()).next_back().map(|(_, run)| run);
        if let Some(other) = near.filter(|run| run.memory.overlaps(memory) && !run.is(memory)) {
            return Err(other.memory.clone());
        }
        Ok(register().map(|()| {
            let run = runs.entry(memory.address()).or_insert_with(|| Run { memory: memory.clone(), users: 0 });
            run.users += 1;
        }))
    }

    /// Unregisters `memory` for one space, by a call.
    ///
    /// # Errors
    /// What the call says; nothing changed then.
    pub(crate) fn leave<T, E>(&self, memory: &HostMemory, unregister: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let mut runs = self.lock();
        let left = unregister()?;
        let gone = count_down(&mut runs, memory);
        // Its owner's code may run now.
        drop(runs);
        drop(gone);
        Ok(left)
    }

    /// The kernel has forgotten a space's registration by itself.
    pub(crate) fn forget(&self, memory: &HostMemory) {
        let gone = count_down(&mut self.lock(), memory);
        drop(gone);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Run>> {
        // Changed in single steps after the kernel agreed: right even after a panic elsewhere.
        self.by_address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count_down(runs: &mut BTreeMap<u64, Run>, memory: &HostMemory) -> Option<Run> {
    let run = runs.get_mut(&memory.address()).filter(|run| run.is(memory))?;
    run.users = run.users.saturating_sub(1);
    if run.users == 0 { runs.remove(&memory.address()) } else { None }
}

impl Run {
    /// Whether the kernel takes both for one.
    fn is(&self, memory: &HostMemory) -> bool {
        self.memory.address() == memory.address() && self.memory.len() == memory.len()
    }
}

/// How many there are: a door's debug output shows them.
impl fmt::Debug for ProcessRegistrations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessRegistrations").field("count", &self.lock().len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    fn memory(address: u64, len: u64) -> HostMemory {
        HostMemory::unbacked(address, NonZeroU64::new(len).expect("not empty")).expect("no wrap")
    }

    fn enter(runs: &ProcessRegistrations, memory: &HostMemory) -> Result<Result<(), ()>, HostMemory> {
        runs.enter(memory, || Ok(()))
    }

    fn leave(runs: &ProcessRegistrations, memory: &HostMemory) {
        runs.leave(memory, || Ok::<_, ()>(())).expect("the call succeeds");
    }

    #[test]
    fn a_run_is_there_as_long_as_somebody_has_it() {
        let (runs, run) = (ProcessRegistrations::default(), memory(0x1000, 0x2000));
        enter(&runs, &run).expect("free").expect("registered");
        enter(&runs, &run).expect("the same").expect("registered");
        assert_eq!((runs.all(), runs.users(&run)), (vec![run.clone()], 2));
        leave(&runs, &run);
        assert_eq!((runs.all(), runs.users(&run)), (vec![run.clone()], 1));
        runs.forget(&run);
        assert_eq!((runs.all(), runs.users(&run)), (vec![], 0));
        runs.forget(&run);
        assert_eq!(runs.users(&run), 0);
    }

    #[test]
    fn what_overlaps_a_run_otherwise_is_refused_without_a_call() {
        let (runs, run) = (ProcessRegistrations::default(), memory(0x2000, 0x2000));
        enter(&runs, &run).expect("free").expect("registered");
        for (address, len) in [(0x1000, 0x2000), (0x2000, 0x1000), (0x3000, 0x1000), (0x1000, 0x8000), (0x3000, 0x2000)]
        {
            let refused = runs.enter(&memory(address, len), || -> Result<(), ()> { panic!("no call is to be made") });
            assert_eq!(refused, Err(run.clone()), "{address:#x}, {len:#x}");
        }
        for (address, len) in [(0x1000, 0x1000), (0x4000, 0x1000)] {
            enter(&runs, &memory(address, len)).expect("it only touches").expect("registered");
        }
        assert_eq!(runs.all().len(), 3);
    }

    #[test]
    fn a_call_that_fails_changes_nothing() {
        let (runs, run) = (ProcessRegistrations::default(), memory(0x1000, 0x1000));
        assert_eq!(runs.enter(&run, || Err(1)), Ok(Err(1)));
        assert_eq!(runs.all(), []);
        enter(&runs, &run).expect("free").expect("registered");
        assert_eq!(runs.leave(&run, || Err::<(), _>(2)), Err(2));
        assert_eq!(runs.users(&run), 1);
    }

    #[test]
    fn the_last_page_of_all_can_be_a_run() {
        let (runs, run) = (ProcessRegistrations::default(), memory(u64::MAX - 0xfff, 0x1000));
        enter(&runs, &run).expect("free").expect("registered");
        assert!(enter(&runs, &memory(u64::MAX - 0x1fff, 0x2000)).is_err());
        leave(&runs, &run);
        assert_eq!(runs.all(), []);
    }
}
