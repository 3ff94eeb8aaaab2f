//! The locks of this project, and the one order in which they are taken.
//!
//! Every lock has a [`Rank`]. A thread takes locks in ascending rank; locks of one rank only in ascending key
//! ([`Mutex::keyed`]). A build with debug assertions checks this at run time and fails at the first lock that is
//! taken out of order, whether or not another thread was there to deadlock with. A release build stores neither rank
//! nor key.
//!
//! # The order
//! A lock that is held "for a moment" is never held during a kernel call nor while code of a caller runs.
//!
//! | rank | lock | held during |
//! |---|---|---|
//! | [`Rank::Domain`] | the spaces and the listener of a domain of the façade crate | kernel calls |
//! | [`Rank::GuestConnection`] | the host windows behind one TCE table (key: the table) | kernel calls |
//! | [`Rank::GuestTables`] | the guest's map of logical bus numbers to TCE tables | moments |
//! | [`Rank::Discardable`] | the spaces of a discardable section (key: its first byte) | kernel calls |
//! | [`Rank::TranslatedGate`] | one translated window against commits (key: the window's first byte) | kernel calls |
//! | [`Rank::TranslatedSpaces`] | the spaces that serve a translated window | kernel calls |
//! | [`Rank::TranslatedOrder`] | the puts and clears of a translated window, in turn | kernel calls |
//! | [`Rank::KernelOwned`] | the kernel's table of a translated window | moments |
//! | [`Rank::Targets`] | the target memory of translated windows | moments |
//! | [`Rank::Populated`] | the populated parts of a discardable section | moments |
//! | [`Rank::Gate`] | a space: shared by map, replace, unmap and register, exclusive for other changes | kernel calls |
//! | [`Rank::Registering`] | the registrations that a space makes, in turn | kernel calls |
//! | [`Rank::Operations`] | the changes of a window, in turn (key: its first byte) | kernel calls |
//! | [`Rank::Tracking`] | a space's dirty tracking | kernel calls |
//! | [`Rank::Bitmap`] | the bitmaps that a kernel's dirty log is read into, while none is in use | moments |
//! | [`Rank::Layout`] | the windows of a space | moments |
//! | [`Rank::Live`] | the index of one window | moments |
//! | [`Rank::Attachments`] | the devices of a space | moments |
//! | [`Rank::Registered`] | the registrations of a space | moments |
//! | [`Rank::SharedPins`] | the memory whose pins a space shares | moments |
//! | [`Rank::Fences`] | the fences of a space | moments |
//! | [`Rank::Pending`] | dirty pages that are about to be reported | moments |
//! | [`Rank::ProcessRegistrations`] | the registrations of this process | kernel calls |
//! | [`Rank::SettledTargets`] | the last commit's target memory, which a kernel's table reads under a gate | moments |
//! | [`Rank::GuestTable`] | the entries of one TCE table | moments |
//! | [`Rank::KernelWriter`] | the groups that a kernel's table serves | kernel calls |
//! | [`Rank::KernelLinks`] | the links between KVM's tables and VFIO groups | kernel calls |
//! | [`Rank::Backend`] | a backend's own state, such as its page tables | kernel calls |
//! | [`Rank::BackendPool`] | the memory that spaces of one iommufd share | kernel calls |
//! | [`Rank::Device`] | a device's own state: where it is attached | kernel calls |
//! | [`Rank::DoorWrapper`] | a door around another (a counting door, a scripted door) | moments |
//! | [`Rank::Door`] | a door's descriptors, or the host in software | moments, or all of a call in software |
//!
//! # Code of a caller
//! An owner's `Drop`, a `DirtySink` and a `Recorder` run without any lock of a space: [`assert_none_held_from`] says so
//! where they are called. They may run under the lock of a domain, which they must not call. A backend, an `Attachable`
//! and a `KernelWriter` are called under the locks above; they must not call the space they are called by, and a debug
//! build fails where they do, since the space's locks have a lower rank than theirs.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::{LockResult, PoisonError};

#[cfg(not(dmaspace_loom))]
use parking_lot as imp;

#[cfg(dmaspace_loom)]
use loom::sync as imp;

/// The place of a lock in the order of all locks: a lock is taken only while every lock held has a lower rank. The
/// module's table names each lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the module's table explains each")]
#[non_exhaustive]
pub enum Rank {
    Domain,
    GuestConnection,
    GuestTables,
    Discardable,
    TranslatedGate,
    TranslatedSpaces,
    TranslatedOrder,
    KernelOwned,
    Targets,
    Populated,
    Gate,
    Registering,
    Operations,
    Tracking,
    Bitmap,
    Layout,
    Live,
    Attachments,
    Registered,
    SharedPins,
    Fences,
    Pending,
    ProcessRegistrations,
    SettledTargets,
    GuestTable,
    KernelWriter,
    KernelLinks,
    Backend,
    BackendPool,
    Device,
    DoorWrapper,
    Door,
}

/// Reads past the poison of a lock.
///
/// A lock of the standard library is poisoned when a thread panics while it holds it; those of this module are not.
/// Data under the locks of this project is changed in single steps, each right by itself, and losing track of the
/// memory that devices can reach would be worse than any half-done bookkeeping.
#[inline]
pub fn past_poison<G>(locked: LockResult<G>) -> G {
    locked.unwrap_or_else(PoisonError::into_inner)
}

/// The guard or the data that a method of a lock returns.
#[cfg(not(dmaspace_loom))]
#[inline]
fn taken<G>(locked: G) -> G {
    locked
}

/// The guard or the data that a method of a lock of the model checker returns.
#[cfg(dmaspace_loom)]
fn taken<G>(locked: LockResult<G>) -> G {
    past_poison(locked)
}

/// A mutual exclusion lock with a place in the order of all locks.
pub struct Mutex<T> {
    order: order::Place,
    inner: imp::Mutex<T>,
}

/// The right to a [`Mutex`]'s data, until it is dropped.
#[must_use = "the lock is released at once if the guard is not kept"]
pub struct MutexGuard<'a, T> {
    inner: imp::MutexGuard<'a, T>,
    _held: order::Held,
}

impl<T> Mutex<T> {
    /// A lock that is never held together with another of its rank.
    pub fn new(rank: Rank, value: T) -> Self {
        Self::keyed(rank, 0, value)
    }

    /// A lock that is held together with others of its rank, taken in ascending order of `key`.
    pub fn keyed(rank: Rank, key: u64, value: T) -> Self {
        Self { order: order::Place::new(rank, key), inner: imp::Mutex::new(value) }
    }

    /// The data, once the lock is not needed any more.
    pub fn into_inner(self) -> T {
        taken(self.inner.into_inner())
    }
}

impl<T> Mutex<T> {
    /// Waits for the lock and takes it.
    #[inline]
    #[track_caller]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let held = self.order.enter();
        MutexGuard { inner: taken(self.inner.lock()), _held: held }
    }

    /// The data, without locking: the caller has the lock for itself.
    pub fn get_mut(&mut self) -> &mut T {
        taken(self.inner.get_mut())
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// A panic under the lock leaves its data right ([`past_poison`]).
impl<T> RefUnwindSafe for Mutex<T> {}
impl<T> UnwindSafe for Mutex<T> {}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<T: fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// A reader-writer lock with a place in the order of all locks. A thread must not take it for reading twice: a writer
/// that waits in between would wait for ever.
pub struct RwLock<T> {
    order: order::Place,
    inner: imp::RwLock<T>,
}

/// The right to read a [`RwLock`]'s data, until it is dropped.
#[must_use = "the lock is released at once if the guard is not kept"]
pub struct RwLockReadGuard<'a, T> {
    inner: imp::RwLockReadGuard<'a, T>,
    _held: order::Held,
}

/// The right to change a [`RwLock`]'s data, until it is dropped.
#[must_use = "the lock is released at once if the guard is not kept"]
pub struct RwLockWriteGuard<'a, T> {
    inner: imp::RwLockWriteGuard<'a, T>,
    _held: order::Held,
}

impl<T> RwLock<T> {
    /// A lock that is never held together with another of its rank.
    pub fn new(rank: Rank, value: T) -> Self {
        Self::keyed(rank, 0, value)
    }

    /// A lock that is held together with others of its rank, taken in ascending order of `key`.
    pub fn keyed(rank: Rank, key: u64, value: T) -> Self {
        Self { order: order::Place::new(rank, key), inner: imp::RwLock::new(value) }
    }

    /// The data, once the lock is not needed any more.
    pub fn into_inner(self) -> T {
        taken(self.inner.into_inner())
    }
}

impl<T> RwLock<T> {
    /// Waits for the lock and takes it, beside other readers.
    #[inline(always)]
    #[track_caller]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        let held = self.order.enter();
        RwLockReadGuard { inner: taken(self.inner.read()), _held: held }
    }

    /// Waits for the lock and takes it alone.
    #[inline]
    #[track_caller]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        let held = self.order.enter();
        RwLockWriteGuard { inner: taken(self.inner.write()), _held: held }
    }

    /// The data, without locking: the caller has the lock for itself.
    pub fn get_mut(&mut self) -> &mut T {
        taken(self.inner.get_mut())
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// A panic under the lock leaves its data right ([`past_poison`]).
impl<T> RefUnwindSafe for RwLock<T> {}
impl<T> UnwindSafe for RwLock<T> {}

impl<T: fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<T: fmt::Debug> fmt::Debug for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: fmt::Debug> fmt::Debug for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Fails in a build with debug assertions if this thread holds a lock of this project: `code`, which is a caller's,
/// is about to run.
#[track_caller]
pub fn assert_none_held(code: &str) {
    order::assert_below(None, code);
}

/// Fails in a build with debug assertions if this thread holds a lock of `rank` or of a higher one: `code`, which is
/// a caller's, is about to run. [`Rank::Gate`] is the first lock of a space.
#[track_caller]
pub fn assert_none_held_from(rank: Rank, code: &str) {
    order::assert_below(Some(rank), code);
}

/// The check of the order: the locks that each thread holds. The model checker runs several threads on one, so it
/// goes unchecked.
#[cfg(all(debug_assertions, not(dmaspace_loom)))]
mod order {
    use std::cell::RefCell;
    use std::panic::Location;

    use super::Rank;

    thread_local! {
        static HELD: RefCell<Vec<(Place, &'static Location<'static>)>> = RefCell::new(Vec::with_capacity(16));
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub(super) struct Place {
        rank: Rank,
        key: u64,
    }

    /// An entry of the list, until it is dropped: on this thread, as the guard beside it.
    pub(super) struct Held {
        place: Place,
    }

    impl Place {
        pub(super) const fn new(rank: Rank, key: u64) -> Self {
            Self { rank, key }
        }

        #[track_caller]
        pub(super) fn enter(self) -> Held {
            let here = Location::caller();
            // A thread whose list is gone is ending, and holds no lock of ours.
            let highest = HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                let highest = held.iter().copied().max_by_key(|(place, _)| *place);
                held.push((self, here));
                highest
            });
            let entered = Held { place: self };
            if let Ok(Some((before, there))) = highest {
                assert!(before < self, "{self:?} is taken at {here} under {before:?}, taken at {there}: out of order");
            }
            entered
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            let _ = HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                if let Some(last) = held.iter().rposition(|(place, _)| *place == self.place) {
                    held.remove(last);
                }
            });
        }
    }

    #[track_caller]
    pub(super) fn assert_below(rank: Option<Rank>, code: &str) {
        let highest = HELD.try_with(|held| held.borrow().iter().copied().max_by_key(|(place, _)| *place));
        // Another failure is on its way: this one would end the process and hide it.
        if std::thread::panicking() {
            return;
        }
        if let Ok(Some((place, there))) = highest {
            let allowed = rank.is_some_and(|rank| place.rank < rank);
            assert!(allowed, "{code} would run under {place:?}, taken at {there}");
        }
    }
}

/// Nothing is checked, and nothing is stored.
#[cfg(not(all(debug_assertions, not(dmaspace_loom))))]
mod order {
    use super::Rank;

    #[derive(Clone, Copy)]
    pub(super) struct Place;

    pub(super) struct Held;

    impl Place {
        pub(super) const fn new(_: Rank, _: u64) -> Self {
            Self
        }

        #[inline]
        pub(super) fn enter(self) -> Held {
            Held
        }
    }

    pub(super) fn assert_below(_: Option<Rank>, _: &str) {}
}

#[cfg(test)]
#[cfg(not(dmaspace_loom))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use super::*;

    /// The message `act` fails with, if it fails.
    fn failure(act: impl FnOnce()) -> Option<String> {
        let thrown = catch_unwind(AssertUnwindSafe(act)).err()?;
        Some(thrown.downcast_ref::<String>().cloned().unwrap_or_default())
    }

    fn fails_in_debug_builds(act: impl FnOnce(), with: &str) {
        let failure = failure(act);
        assert_eq!(failure.is_some(), cfg!(debug_assertions));
        assert!(failure.is_none_or(|message| message.contains(with)));
    }

    #[test]
    fn locks_in_ascending_rank_are_taken() {
        let (gate, live) = (RwLock::new(Rank::Gate, 1), Mutex::new(Rank::Live, 2));
        let shared = gate.read();
        assert_eq!(*shared + *live.lock(), 3);
        drop(shared);
        let mut alone = gate.write();
        *alone += *live.lock();
        drop(alone);
        assert_eq!((gate.into_inner(), live.into_inner()), (3, 2));
    }

    #[test]
    fn an_inverted_pair_is_caught_without_a_second_thread() {
        let (gate, live) = (RwLock::new(Rank::Gate, ()), RwLock::new(Rank::Live, ()));
        let inverted = || {
            let _live = live.read();
            let _gate = gate.read();
        };
        fails_in_debug_builds(inverted, "out of order");
        assert_eq!(failure(|| drop(gate.write())), None, "the failure left no trace");
    }

    #[test]
    fn a_lock_taken_twice_for_reading_is_caught() {
        let gate = RwLock::new(Rank::Gate, ());
        let twice = || {
            let _once = gate.read();
            let _again = gate.read();
        };
        fails_in_debug_builds(twice, "out of order");
    }

    #[test]
    fn locks_of_one_rank_are_taken_in_ascending_key_order_only() {
        let windows = [1, 2].map(|key| Mutex::keyed(Rank::Operations, key, ()));
        assert_eq!(failure(|| drop(windows.iter().map(Mutex::lock).collect::<Vec<_>>())), None);
        fails_in_debug_builds(|| drop(windows.iter().rev().map(Mutex::lock).collect::<Vec<_>>()), "out of order");
    }

    #[test]
    fn guards_may_be_dropped_in_any_order() {
        let (gate, live) = (RwLock::new(Rank::Gate, ()), RwLock::new(Rank::Live, ()));
        let (outer, inner) = (gate.read(), live.read());
        drop(outer);
        fails_in_debug_builds(|| drop(gate.read()), "out of order");
        drop(inner);
        assert_eq!(failure(|| drop(gate.read())), None);
    }

    #[test]
    fn code_of_a_caller_under_a_lock_is_caught() {
        let (window, live) = (Mutex::new(Rank::TranslatedGate, ()), Mutex::new(Rank::Live, ()));
        assert_none_held("a test");
        let _window = window.lock();
        assert_none_held_from(Rank::Gate, "a test");
        fails_in_debug_builds(|| assert_none_held("a test"), "a test would run under");
        let _live = live.lock();
        fails_in_debug_builds(|| assert_none_held_from(Rank::Gate, "a test"), "a test would run under");
    }

    #[test]
    fn a_panic_under_a_lock_leaves_it_usable() {
        let lock = Arc::new(Mutex::new(Rank::Live, 7));
        let panicking = {
            let lock = lock.clone();
            std::thread::spawn(move || {
                let _held = lock.lock();
                panic!("on purpose");
            })
        };
        assert!(panicking.join().is_err());
        assert_eq!(*lock.lock(), 7);
    }

    #[cfg(not(debug_assertions))]
    #[test]
    fn a_release_build_stores_no_rank() {
        assert_eq!(size_of::<Mutex<u64>>(), size_of::<imp::Mutex<u64>>());
        assert_eq!(size_of::<MutexGuard<'_, u64>>(), size_of::<imp::MutexGuard<'_, u64>>());
    }
}
