//! Dirty tracking: querying the kernel's log, and falling back to "all dirty".
//!
//! A kernel keeps the log of a mapping with the mapping. So pages are reported when a mapping is unmapped, and
//! everything that a failed call was about counts as dirty. Pages are found under the locks of the space and reported
//! to the sink after these are released.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backend::{Backend, DirtyCalls};
use crate::contract::dirty::{DirtySink, Precision};
use crate::door::Failure;
use crate::error::{Error, Kind, Operation};
use crate::space::deferred::Deferred;
use crate::space::index::{Index, len_of};
use crate::space::layout::{Slot, WindowSet};
use crate::space::questions::{Log, is_writable, next_question, words};
use crate::space::reports::{Outbox, Report};
use crate::space::unmap_all::unmap_all;
use crate::sync::{Mutex, Rank, RwLock};
use crate::words::access::Access;
use crate::words::address::IovaRange;
use crate::words::memory::HostMemory;
use crate::words::ones::{Bits, clean, clean_words};
use crate::words::page::PageSize;

/// The length of a bitmap at first: with pages of 4 KiB a question reaches 32 GiB.
const WORDS: usize = 1 << 17;

/// The dirty tracking of a space, on or off. It is turned on and off under the space's gate, held exclusively.
///
/// Its lock is [`Rank::Tracking`] in the order of all locks ([`crate::sync`]).
#[derive(Debug)]
pub(super) struct Tracking {
    active: RwLock<Option<Active>>,
    /// Set while tracking is on. Changed and read under the gate, so that a verb without tracking takes no lock of it.
    is_on: AtomicBool,
}

/// Dirty tracking while it is on.
#[derive(Debug)]
struct Active {
    outbox: Arc<Outbox>,
    /// Set while the kernel logs. It cannot answer for mappings from before it began to.
    logging: bool,
    /// Bitmaps for the next questions, all zero. [`Rank::Bitmap`] in the order of all locks ([`crate::sync`]).
    bitmaps: Mutex<Vec<Vec<u64>>>,
}

/// The progress of a sync: the part of the range that is left, and the answers so far.
pub(super) struct Progress {
    pub(super) rest: Option<IovaRange>,
    pub(super) bytes: u64,
    /// The first failure. All questions are asked in any case.
    pub(super) failure: Option<Failure>,
    pub(super) precision: Precision,
}

impl Tracking {
    pub(super) fn new() -> Self {
        Self { active: RwLock::new(Rank::Tracking, None), is_on: AtomicBool::new(false) }
    }

    /// Returns `true` while tracking is on. The gate is held.
    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Acquire)
    }

    /// Turns tracking on.
    pub(super) fn start(
        &self,
        backend: &impl Backend,
        devices: usize,
        sink: Arc<dyn DirtySink>,
    ) -> Result<Precision, Error> {
        let mut active = self.active.write();
        if active.is_some() {
            return Err(Error::new(Operation::TrackDirty, IovaRange::all(), Kind::Tracking));
        }
        let logging = begin_to_log(backend, devices)
            .map_err(|failure| Error::from_kernel(Operation::TrackDirty, IovaRange::all(), failure))?;
        // The first is made here, so that a question allocates nothing unless others are under way.
        let bitmaps = Mutex::new(Rank::Bitmap, vec![new_bitmap(backend)]);
        let started = Active { outbox: Arc::new(Outbox::new(sink)), logging, bitmaps };
        self.is_on.store(true, Ordering::Release);
        Ok(active.insert(started).precision(backend))
    }

    /// Turns tracking off. The sink is dropped by the caller, once the locks of the space are released.
    pub(super) fn stop(&self, backend: &impl Backend) -> Result<Arc<Outbox>, Error> {
        let Some(active) = self.active.write().take() else { return Err(not_tracking(Operation::TrackDirty)) };
        self.is_on.store(false, Ordering::Release);
        if let Some(calls) = backend.calls().dirty.filter(|_| active.logging) {
            if let Err(failure) = calls.stop() {
                log::warn!("{}: {failure}: the kernel goes on to log", backend.name());
            }
        }
        Ok(active.outbox)
    }

    /// Turns the kernel's log on again where a first group has made a new container, in which nothing is mapped yet.
    pub(super) fn log_again(&self, backend: &impl Backend) {
        if !log_needs_a_device(backend) {
            return;
        }
        if let Some(active) = &mut *self.active.write() {
            active.logging = begin_to_log(backend, 1).unwrap_or_else(|failure| {
                log::warn!("{}: {failure}: everything counts as dirty from now on", backend.name());
                false
            });
        }
    }

    /// Reports a mapping whole: it was mapped until now, or may have been for a moment.
    pub(super) fn report_mapping(&self, memory: &HostMemory, access: Access, deferred: &mut Deferred) {
        if !access.contains(Access::WRITE) {
            return;
        }
        if let Some(active) = &*self.active.read() {
            active.report(deferred, |report| report.add_whole(memory));
        }
    }

    /// Reports all live mappings: the kernel's log of them ended with a device.
    pub(super) fn report_all(&self, set: &WindowSet, deferred: &mut Deferred) {
        if let Some(active) = &*self.active.read() {
            for slot in &set.slots {
                active.report(deferred, |report| add_everything(report, &slot.live.read(), IovaRange::all()));
            }
        }
    }

    /// Reports `memory` whole: the kernel may have mapped any of it by itself, and unmapped it again since the last
    /// sync.
    pub(super) fn report_memory(&self, memory: &[HostMemory], deferred: &mut Deferred) -> u64 {
        let Some(active) = &*self.active.read() else { return 0 };
        let mut bytes = 0_u64;
        for piece in memory {
            bytes = bytes.saturating_add(active.report(deferred, |report| report.add_whole(piece)));
        }
        bytes
    }

    /// Unmaps a range in which `bytes` are mapped, and reports the pages that were written there until then.
    pub(super) fn unmap(
        &self,
        backend: &impl Backend,
        slots: &[&Slot],
        hull: IovaRange,
        bytes: u64,
        deferred: &mut Deferred,
    ) -> Result<(), Failure> {
        if !self.is_on() {
            return unmap_all(bytes, || backend.unmap(hull));
        }
        let active = self.active.read();
        let Some(active) = &*active else { return unmap_all(bytes, || backend.unmap(hull)) };
        let mut bitmap = active.bitmap(backend);
        let log = active.log(backend);
        let mut room = log.as_ref().and_then(|log| Some((log, bitmap.get_mut(..words(hull, log.page))?)));
        let mut exact = false;
        let unmapped = unmap_all(bytes, || {
            // The first call alone can know: a call that failed may have taken the log with it.
            let answer = room.take().and_then(|(log, bitmap)| log.calls.unmap(hull, bitmap));
            exact = matches!(answer, Some(Ok(_)));
            answer.unwrap_or_else(|| backend.unmap(hull))
        });
        let known = log.filter(|_| exact && unmapped.is_ok());
        // A call that failed may have set bits too, in the words that it was given.
        let len = active.log(backend).map_or(0, |log| words(hull, log.page));
        let filled = part_of(&mut bitmap, len);
        let is_clean = clean_words(filled) == filled.len();
        for slot in slots {
            let live = slot.live.read();
            match &known {
                Some(_) if is_clean => 0,
                Some(log) => active.report(deferred, |report| add_logged(report, &live, hull, log.page, filled)),
                None => active.report(deferred, |report| add_everything(report, &live, hull)),
            };
        }
        if !is_clean {
            clean(filled);
        }
        active.keep(bitmap);
        unmapped
    }

    /// Asks one question about the rest of a sync in one window, whose operations are held.
    pub(super) fn sync_slot(
        &self,
        backend: &impl Backend,
        slot: &Slot,
        progress: &mut Progress,
        deferred: &mut Deferred,
    ) -> Result<(), Error> {
        let active = self.active.read();
        let active = active.as_ref().ok_or_else(|| not_tracking(Operation::SyncDirty))?;
        let rest = progress.rest.and_then(|rest| rest.intersection(slot.window.range));
        let mut asked = slot.window.range;
        let log = active.log(backend);
        if let (Some(rest), Some(log)) = (rest, &log) {
            let mut bitmap = active.bitmap(backend);
            let spare = spare_words(backend);
            let room = (bitmap.len().saturating_sub(spare) as u64).saturating_mul(64 << log.page.shift());
            let next = next_question(&slot.live.read(), rest, log, room);
            if let Some(question) = next {
                asked = question;
                let fetched = log.fetch(question, &mut bitmap, spare);
                let filled = part_of(&mut bitmap, words(question, log.page).saturating_add(spare));
                let is_clean = clean_words(filled) == filled.len();
                let live = slot.live.read();
                progress.add(active.report(deferred, |report| match fetched {
                    Ok(()) if is_clean => 0,
                    Ok(()) => add_logged(report, &live, question, log.page, filled),
                    Err(_) => add_everything(report, &live, question),
                }));
                progress.failure = progress.failure.or(fetched.err());
                if !is_clean {
                    clean(filled);
                }
            }
            active.keep(bitmap);
        } else if let Some(rest) = rest {
            progress.add(active.report(deferred, |report| add_everything(report, &slot.live.read(), rest)));
        }
        progress.rest = progress.rest.and_then(|rest| rest.without(asked).1);
        Ok(())
    }

    /// Ends a sync: the pages that other threads have found and not reported yet are reported too.
    pub(super) fn end_sync(
        &self,
        backend: &impl Backend,
        progress: &mut Progress,
        deferred: &mut Deferred,
    ) -> Result<(), Error> {
        let active = self.active.read();
        let active = active.as_ref().ok_or_else(|| not_tracking(Operation::SyncDirty))?;
        for report in active.outbox.pending() {
            deferred.report(active.outbox.clone(), report);
        }
        progress.precision = active.precision(backend);
        Ok(())
    }
}

impl Progress {
    pub(super) fn of(range: IovaRange) -> Self {
        Self { rest: Some(range), bytes: 0, failure: None, precision: Precision::Everything }
    }

    pub(super) fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

impl Active {
    fn log<'a>(&self, backend: &'a impl Backend) -> Option<Log<'a>> {
        let calls = backend.calls().dirty.filter(|_| self.logging)?;
        Some(Log { calls, page: calls.page()?, reach: calls.reach() })
    }

    /// A bitmap for one question, all zero: questions about two windows do not wait for each other.
    fn bitmap(&self, backend: &impl Backend) -> Vec<u64> {
        let kept = self.bitmaps.lock().pop();
        kept.unwrap_or_else(|| new_bitmap(backend))
    }

    /// Keeps a bitmap, all zero again, for the next question.
    fn keep(&self, bitmap: Vec<u64>) {
        self.bitmaps.lock().push(bitmap);
    }

    fn precision(&self, backend: &impl Backend) -> Precision {
        self.log(backend).map_or(Precision::Everything, |log| Precision::Pages(log.page))
    }

    /// Has dirty pages reported once the locks of the space are released. Returns the number of their bytes.
    fn report(&self, deferred: &mut Deferred, fill: impl FnOnce(&mut Report) -> u64) -> u64 {
        let (report, bytes) = self.outbox.fill(fill);
        if let Some(report) = report {
            deferred.report(self.outbox.clone(), report);
        }
        bytes
    }
}

fn new_bitmap(backend: &impl Backend) -> Vec<u64> {
    vec![0; WORDS + spare_words(backend)]
}

fn not_tracking(operation: Operation) -> Error {
    Error::new(operation, IovaRange::all(), Kind::NotTracking)
}

/// The host page behind a bitmap, in words: the kernel may set bits in the rest of the page that a bitmap ends in.
fn spare_words(backend: &impl Backend) -> usize {
    usize::try_from(backend.capabilities().host_page.bytes() / 8).unwrap_or(0)
}

/// Returns whether the log needs a device: a container has no driver before its first group is attached.
fn log_needs_a_device(backend: &impl Backend) -> bool {
    backend.calls().dirty.is_some_and(DirtyCalls::needs_a_device)
}

/// Turns the kernel's log on, where that makes sense with so many devices, and returns whether the kernel logs now.
fn begin_to_log(backend: &impl Backend, devices: usize) -> Result<bool, Failure> {
    let Some(calls) = backend.calls().dirty else { return Ok(false) };
    let too_early = devices == 0 && log_needs_a_device(backend);
    if too_early || (devices > 0 && calls.page().is_none()) {
        return Ok(false);
    }
    calls.start().inspect_err(|_| {
        // The kernel may log all the same.
        let _ = calls.stop();
    })?;
    Ok(true)
}

/// The first `len` words of a bitmap, as far as it reaches.
fn part_of(bitmap: &mut [u64], len: usize) -> &mut [u64] {
    let end = len.min(bitmap.len());
    bitmap.get_mut(..end).unwrap_or_default()
}

/// Adds all mappings that devices may write in `range`.
fn add_everything(report: &mut Report, live: &Index, range: IovaRange) -> u64 {
    let mut bytes = 0_u64;
    for part in live.parts(range).filter(is_writable) {
        bytes = bytes.saturating_add(report.add(&part.memory, part.offset, len_of(part.range)));
    }
    bytes
}

/// Adds the pages that have a bit in a bitmap of `question`.
fn add_logged(report: &mut Report, live: &Index, question: IovaRange, page: PageSize, bitmap: &[u64]) -> u64 {
    let asked = bitmap.get(..words(question, page)).unwrap_or(bitmap);
    let mut bytes = 0_u64;
    for part in live.parts(question).filter(is_writable) {
        let first = question.offset_of(part.range.first()) >> page.shift();
        let end = first + (len_of(part.range) >> page.shift());
        bytes = bytes.saturating_add(report.add_pages(&part.memory, part.offset, page, Bits::of(asked, first..end)));
    }
    bytes
}
