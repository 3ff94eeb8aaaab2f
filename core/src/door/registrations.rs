//! The process-wide list of registered memory (preregistration, POWER).
//!
//! POWER's kernel keeps one list of registrations for each process, whatever the number of containers that made them.
//! A registration that equals another by address and length shares its pins and is charged nothing. A registration
//! that overlaps another in any other way is refused with `EINVAL`, after it was pinned (linux:
//! arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_get, mm_iommu_do_alloc). Spaces that cut the same memory
//! differently would therefore refuse each other's registrations; a space that joins late must cut the memory as the
//! spaces before it did.
//!
//! Invariants: entries are disjoint; each counts the spaces that have registered it, and exists exactly as long as
//! that count is above zero. Counting and the kernel call are one step under one lock: of two spaces that register
//! the same memory at once, the second finds the entry of the first.

use std::collections::BTreeMap;
use std::fmt;

use crate::sync::{self, Mutex, MutexGuard, Rank};
use crate::words::address::HostAddress;
use crate::words::memory::HostMemory;

/// The registrations of a process. Its lock is [`Rank::ProcessRegistrations`] in the order of all locks
/// ([`crate::sync`]).
pub struct ProcessRegistrations {
    by_address: Mutex<BTreeMap<HostAddress, Registration>>,
}

/// Registered memory, and the number of spaces that registered it.
struct Registration {
    memory: HostMemory,
    users: usize,
}

impl Default for ProcessRegistrations {
    fn default() -> Self {
        Self { by_address: Mutex::new(Rank::ProcessRegistrations, BTreeMap::new()) }
    }
}

impl ProcessRegistrations {
    /// All registered memory, ascending by host address. Waits for a registration that is under way.
    pub fn all(&self) -> Vec<HostMemory> {
        self.lock().values().map(|registration| registration.memory.clone()).collect()
    }

    /// The number of spaces that have registered exactly `memory`.
    pub fn users(&self, memory: &HostMemory) -> usize {
        let list = self.lock();
        let same = list.get(&memory.address()).filter(|registration| registration.equals(memory));
        same.map_or(0, |registration| registration.users)
    }

    /// Counts one more space that has registered `memory`, if the call `register` succeeds.
    ///
    /// # Errors
    /// The registered memory that `memory` overlaps without being equal to it: no call is made then. The inner error
    /// is the call's, and changes nothing.
    pub(crate) fn enter<E>(
        &self,
        memory: &HostMemory,
        register: impl FnOnce() -> Result<(), E>,
    ) -> Result<Result<(), E>, HostMemory> {
        let mut list = self.lock();
        let nearest = list.range(..=memory.last()).next_back().map(|(_, registration)| registration);
        if let Some(other) = nearest.filter(|near| near.memory.overlaps(memory) && !near.equals(memory)) {
            return Err(other.memory.clone());
        }
        if let Err(error) = register() {
            return Ok(Err(error));
        }
        let fresh = || Registration { memory: memory.clone(), users: 0 };
        list.entry(memory.address()).or_insert_with(fresh).users += 1;
        Ok(Ok(()))
    }

    /// Counts one space less that has registered `memory`, if the call `unregister` succeeds.
    ///
    /// # Errors
    /// The call's, which changes nothing.
    pub(crate) fn leave<T, E>(&self, memory: &HostMemory, unregister: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let mut list = self.lock();
        let left = unregister()?;
        let last = count_down(&mut list, memory);
        drop(list);
        drop_owner(last);
        Ok(left)
    }

    /// Counts one space less that has registered `memory`: the kernel has unregistered it with the space's container.
    pub(crate) fn forget(&self, memory: &HostMemory) {
        let last = count_down(&mut self.lock(), memory);
        drop_owner(last);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<HostAddress, Registration>> {
        self.by_address.lock()
    }
}

/// Takes out the registration of `memory` if no space is left that has it.
fn count_down(list: &mut BTreeMap<HostAddress, Registration>, memory: &HostMemory) -> Option<Registration> {
    let registration = list.get_mut(&memory.address()).filter(|registration| registration.equals(memory))?;
    debug_assert!(registration.users > 0, "a registration without a user stayed in the list");
    registration.users = registration.users.saturating_sub(1);
    if registration.users == 0 { list.remove(&memory.address()) } else { None }
}

/// Drops what may be the last owner of memory: its code must not run under the list's lock.
fn drop_owner(registration: Option<Registration>) {
    if registration.is_some() {
        sync::assert_none_held_from(Rank::ProcessRegistrations, "the owner of unregistered memory");
    }
}

impl Registration {
    /// Returns whether the kernel takes both for one registration.
    fn equals(&self, memory: &HostMemory) -> bool {
        self.memory.address() == memory.address() && self.memory.len() == memory.len()
    }
}

/// Shows the number of registrations, as part of a door's debug output.
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
        HostMemory::unbacked(HostAddress::new(address), NonZeroU64::new(len).expect("not empty")).expect("no wrap")
    }

    fn enter(runs: &ProcessRegistrations, memory: &HostMemory) -> Result<Result<(), ()>, HostMemory> {
        runs.enter(memory, || Ok(()))
    }

    fn leave(runs: &ProcessRegistrations, memory: &HostMemory) {
        runs.leave(memory, || Ok::<_, ()>(())).expect("the call succeeds");
    }

    #[test]
    fn memory_stays_registered_as_long_as_one_space_has_it() {
        let (runs, run) = (ProcessRegistrations::default(), memory(0x1000, 0x2000));
        enter(&runs, &run).expect("free").expect("registered");
        enter(&runs, &run).expect("equal memory").expect("registered");
        assert_eq!((runs.all(), runs.users(&run)), (vec![run.clone()], 2));
        leave(&runs, &run);
        assert_eq!((runs.all(), runs.users(&run)), (vec![run.clone()], 1));
        runs.forget(&run);
        assert_eq!((runs.all(), runs.users(&run)), (vec![], 0));
        runs.forget(&run);
        assert_eq!(runs.users(&run), 0);
    }

    #[test]
    fn a_partial_overlap_is_refused_without_a_call() {
        let (runs, run) = (ProcessRegistrations::default(), memory(0x2000, 0x2000));
        enter(&runs, &run).expect("free").expect("registered");
        for (address, len) in [(0x1000, 0x2000), (0x2000, 0x1000), (0x3000, 0x1000), (0x1000, 0x8000), (0x3000, 0x2000)]
        {
            let refused = runs.enter(&memory(address, len), || -> Result<(), ()> { panic!("no call must be made") });
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
    fn the_last_page_of_all_can_be_registered() {
        let (runs, run) = (ProcessRegistrations::default(), memory(u64::MAX - 0xfff, 0x1000));
        enter(&runs, &run).expect("free").expect("registered");
        assert!(enter(&runs, &memory(u64::MAX - 0x1fff, 0x2000)).is_err());
        leave(&runs, &run);
        assert_eq!(runs.all(), []);
    }
}
