//! Guest memory that is made present before it is pinned, by several threads.
//!
//! A kernel pins memory on the thread that maps or registers it. Pages that are not there yet are allocated and cleared
//! meanwhile, one after the other: for a large guest with a passed-through device, most of the time until it starts.
//! [`Prefault`] has several threads make the pages present first; the maps of the first commit then only pin them.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::num::NonZeroUsize;
//! use std::ops::ControlFlow;
//!
//! use dmaspace::prefault::{Prefault, PrefaultError};
//! use dmaspace::section::Section;
//! use dmaspace::{Access, FrontEnd, HostMemory, Iova, Listener, PageSize};
//! use dmaspace::listener::Update;
//!
//! let len = NonZeroUsize::new(4 << 20).ok_or("not empty")?;
//! let ram = HostMemory::zeroed(len, PageSize::K64).ok_or("no memory")?;
//! let update = Update::new().adding(Section::ram("pc.ram", Iova::new(0), ram, Access::READ_WRITE)?);
//!
//! let mut shown = 0;
//! let prefault = Prefault::of(&update).with_threads(NonZeroUsize::new(2).ok_or("not zero")?);
//! let made = prefault.run(|progress| {
//!     shown = progress.done * 100 / progress.total;
//!     ControlFlow::Continue(())
//! });
//! match made {
//!     Ok(made) => assert_eq!((made.bytes, shown), (4 << 20, 100)),
//!     // The commit makes the pages present then, on its own thread.
//!     Err(PrefaultError::Unsupported) => {}
//!     Err(error) => return Err(error.into()),
//! }
//! Listener::new(FrontEnd::pc()).commit(update)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Memory that is left alone
//! A discardable section: its owner has the blocks that are populated, and populates others on demand. Device memory,
//! which has no pages to make present, and memory that is [unbacked](HostMemory::unbacked). Memory that devices may
//! only read, or that this process may only read, is made present for reading alone.
//!
//! # NUMA
//! The kernel chooses the node of each page by the policy of its mapping (`mbind(2)`), and without one by the policy
//! and the processor of the thread that makes it present. Nothing here sets a policy, binds a thread or migrates a
//! page: a VMM that wants memory on certain nodes must set the policy of the mapping first.

use std::num::{NonZeroU64, NonZeroUsize};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, Builder, Scope};

use dmaspace_core::door::Errno;
use dmaspace_core::{Access, HostMemory};
use dmaspace_listener::Update;
use dmaspace_listener::section::Backing;

use crate::linux::populate::{Populate, ThisKernel};

/// The bytes of a call, unless the caller says otherwise: some milliseconds of a thread.
const CHUNK: u64 = 64 << 20;

/// Memory to make present, and the way to do it.
#[derive(Clone, Debug)]
pub struct Prefault {
    pieces: Vec<Piece>,
    threads: NonZeroUsize,
    chunk: u64,
}

/// Memory that is made present for writing or for reading.
#[derive(Clone, Debug)]
struct Piece {
    memory: HostMemory,
    writes: bool,
}

/// The progress of a prefault. `done` never becomes less, and is `total` in the last call of one that succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The bytes that are present.
    pub done: u64,
    /// All bytes.
    pub total: u64,
}

/// A prefault that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Prefaulted {
    /// The bytes that are present.
    pub bytes: u64,
    /// The kernel calls that were made.
    pub calls: u64,
    /// The threads that made them.
    pub threads: usize,
}

/// The reason why not all memory was made present. Nothing else changed: the memory can be mapped all the same, and the
/// kernel then makes the other pages present.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrefaultError {
    /// The caller's progress function stopped it.
    #[error("the prefault was cancelled after {done} bytes")]
    Cancelled {
        /// The bytes that are present.
        done: u64,
    },
    /// The kernel does not know the calls.
    #[error("the kernel makes no memory present at a process's request: MADV_POPULATE_WRITE needs Linux 5.14")]
    Unsupported,
    /// No thread could be started.
    #[error("no thread could be started: {0}")]
    NoThread(Errno),
    /// The kernel refused a part of the memory.
    #[error("{memory} was not made present: {errno}{}", advice(*errno))]
    Refused {
        /// The part that the failed call was made for. Some of it may be present.
        memory: HostMemory,
        /// The kernel's errno.
        errno: Errno,
        /// The bytes that are present elsewhere.
        done: u64,
    },
}

/// The meaning of an errno of `madvise(2)` for the memory of a guest, and the way out.
fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOMEM => {
            "; the host has no memory left, a limit of the cgroup is reached, or a part is not mapped: give the guest \
             less memory, or raise the limit"
        }
        Errno::EFAULT => {
            "; an access would be a bus error: the file behind the memory is shorter than its mapping, or there are \
             too few huge pages"
        }
        Errno::EHWPOISON => "; the host found that memory to be broken: replace the page, as its kernel log tells",
        Errno::EINVAL => "; the mapping does not allow the access, or is not of memory",
        _ => "",
    }
}

impl Prefault {
    /// All RAM and target memory that `update` adds, with a thread for each processor.
    pub fn of(update: &Update) -> Self {
        let mut prefault = Self::default();
        for section in update.added() {
            // A discardable section's blocks are made present by its owner, and a device's memory has no pages.
            if let Backing::Ram { memory, access } = section.backing() {
                prefault = prefault.with_memory(memory, *access);
            }
        }
        for target in update.added_targets() {
            prefault = prefault.with_memory(target.memory(), Access::READ_WRITE);
        }
        prefault
    }

    /// Makes `memory` present, too, unless it is a device's or unbacked. Bytes that are there already are made present
    /// once.
    #[must_use]
    pub fn with_memory(mut self, memory: &HostMemory, access: Access) -> Self {
        if !memory.is_device_memory() && !memory.is_unbacked() {
            let writes = access.contains(Access::WRITE) && !memory.is_host_read_only();
            self.pieces.push(Piece { memory: memory.clone(), writes });
        }
        self
    }

    /// Has so many threads make calls. Threads that cannot be started are done without.
    #[must_use]
    pub fn with_threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads;
        self
    }

    /// Has each call make at most so many bytes present, rounded up to a page of the memory: 64 MiB unless set. Between
    /// calls the progress is reported, and a prefault can be cancelled.
    #[must_use]
    pub fn with_chunk(mut self, bytes: NonZeroU64) -> Self {
        self.chunk = bytes.get();
        self
    }

    /// The number of bytes, each counted once.
    pub fn bytes(&self) -> u64 {
        self.chunks().iter().map(|chunk| chunk.memory.len().get()).sum()
    }

    /// Makes the memory present. `progress` is called on this thread: before the first call to the kernel, and after
    /// each one that succeeded. A [`ControlFlow::Break`] cancels: calls that are under way end, and no other begins.
    ///
    /// # Errors
    /// Any [`PrefaultError`]; after the first refusal no further call begins.
    pub fn run(&self, progress: impl FnMut(Progress) -> ControlFlow<()>) -> Result<Prefaulted, PrefaultError> {
        self.run_on(&ThisKernel, progress)
    }

    fn run_on(
        &self,
        kernel: &dyn Populate,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Prefaulted, PrefaultError> {
        if !kernel.is_known() {
            return Err(PrefaultError::Unsupported);
        }
        let queue = Queue::of(self.chunks(), kernel);
        let mut tally = Tally { total: self.bytes(), ..Tally::default() };
        if progress(tally.progress()).is_break() {
            return Err(PrefaultError::Cancelled { done: 0 });
        }
        let threads = thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            let threads = queue.start(scope, self.threads.get(), &sender)?;
            drop(sender);
            for answer in receiver {
                tally.count(answer, &mut progress);
                if tally.has_ended() {
                    queue.stop();
                }
            }
            Ok(threads)
        })?;
        tally.result(threads)
    }

    /// The parts that one call each is made for: each byte once, ascending.
    fn chunks(&self) -> Vec<Piece> {
        let mut pieces: Vec<&Piece> = self.pieces.iter().collect();
        pieces.sort_by_key(|piece| (piece.memory.address(), !piece.writes));
        let mut chunks = Vec::new();
        // The first address that is in no chunk yet.
        let mut next = 0;
        for Piece { memory, writes } in pieces {
            let (first, last) = (memory.address().get(), memory.last().get());
            let chunk = memory.backing_page().map_or(1, |page| page.bytes()).max(self.chunk);
            next = next.max(first);
            while next <= last {
                let len = (last - next + 1).min(chunk - next % chunk);
                chunks.extend(memory.slice(next - first, len).map(|memory| Piece { memory, writes: *writes }));
                let Some(end) = next.checked_add(len) else { return chunks };
                next = end;
            }
        }
        chunks
    }
}

impl Default for Prefault {
    /// No memory yet.
    fn default() -> Self {
        let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { pieces: Vec::new(), threads, chunk: CHUNK }
    }
}

/// The answer to one call: the bytes that it made present, or the part and the errno of a refusal.
type Answer = Result<u64, (HostMemory, Errno)>;

/// The chunks, which threads take one after the other.
struct Queue<'a> {
    chunks: Vec<Piece>,
    next: AtomicUsize,
    stopped: AtomicBool,
    kernel: &'a dyn Populate,
}

impl<'a> Queue<'a> {
    fn of(chunks: Vec<Piece>, kernel: &'a dyn Populate) -> Self {
        Self { chunks, next: AtomicUsize::new(0), stopped: AtomicBool::new(false), kernel }
    }

    /// Starts threads, no more than there are chunks, and returns their number.
    fn start<'s, 'e: 's>(
        &'e self,
        scope: &'s Scope<'s, 'e>,
        threads: usize,
        answers: &Sender<Answer>,
    ) -> Result<usize, PrefaultError> {
        let wanted = threads.min(self.chunks.len());
        for started in 0..wanted {
            let answers = answers.clone();
            let thread = Builder::new().name("prefault".to_owned()).spawn_scoped(scope, move || self.work(&answers));
            match thread {
                Ok(_) => {}
                Err(error) if started == 0 => return Err(PrefaultError::NoThread(error.into())),
                Err(error) => {
                    log::warn!("prefault: {started} threads instead of {wanted}: {error}");
                    return Ok(started);
                }
            }
        }
        Ok(wanted)
    }

    fn work(&self, answers: &Sender<Answer>) {
        while !self.stopped.load(Ordering::Relaxed) {
            let Some(Piece { memory, writes }) = self.chunks.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            let made = self.kernel.populate(memory, *writes);
            let answer = made.map(|()| memory.len().get()).map_err(|errno| (memory.clone(), errno));
            if answers.send(answer).is_err() {
                break;
            }
        }
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// The answers so far.
#[derive(Default)]
struct Tally {
    done: u64,
    total: u64,
    calls: u64,
    is_cancelled: bool,
    refused: Option<(HostMemory, Errno)>,
}

impl Tally {
    fn progress(&self) -> Progress {
        Progress { done: self.done, total: self.total }
    }

    fn has_ended(&self) -> bool {
        self.is_cancelled || self.refused.is_some()
    }

    fn count(&mut self, answer: Answer, progress: &mut impl FnMut(Progress) -> ControlFlow<()>) {
        self.calls += 1;
        match answer {
            Ok(bytes) => {
                self.done += bytes;
                if !self.has_ended() {
                    self.is_cancelled = progress(self.progress()).is_break();
                }
            }
            Err(refused) => {
                self.refused.get_or_insert(refused);
            }
        }
    }

    fn result(self, threads: usize) -> Result<Prefaulted, PrefaultError> {
        let Self { done, calls, is_cancelled, refused, total } = self;
        match refused {
            Some((memory, errno)) => Err(PrefaultError::Refused { memory, errno, done }),
            // The last call may have been cancelled when nothing was left to do.
            None if is_cancelled && done < total => Err(PrefaultError::Cancelled { done }),
            None => Ok(Prefaulted { bytes: done, calls, threads }),
        }
    }
}

// The program has vm-memory, whose regions are not present at first.
#[cfg(feature = "program")]
#[cfg(test)]
mod tests;
