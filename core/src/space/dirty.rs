//! What devices have written: whom to tell, what to ask the kernel, and what to tell when it cannot be asked.
//!
//! Kernels keep what was written with the mapping. So it is told when a mapping goes, one way or another, and what a failed call was
//! about is told whole.

use std::sync::{Arc, Mutex};

use crate::backend::{Backend, DirtyCalls, DirtyReach};
use crate::contract::dirty::{Dirtied, DirtySink, DirtyTracking, Precision, Synced};
use crate::contract::{Mapping, Unit};
use crate::door::Failure;
use crate::error::{Error, Kind, Operation};
use crate::space::index::{Index, Part};
use crate::space::ones::ones;
use crate::space::{Slot, Space, lock, read, write};
use crate::words::access::Access;
use crate::words::address::IovaRange;
use crate::words::memory::HostMemory;
use crate::words::page::PageSize;

/// What a bitmap has at first: with pages of 4 KiB a question reaches 32 GiB.
const WORDS: usize = 1 << 17;

/// Dirty tracking while it is on.
#[derive(Debug)]
pub(super) struct Tracking {
    sink: Arc<dyn DirtySink>,
    /// Whether the kernel was told to log. What it was not told about from the beginning it cannot tell.
    logging: bool,
    bitmap: Mutex<Vec<u64>>,
}

/// A kernel that logs.
struct Log<'a> {
    calls: &'a dyn DirtyCalls,
    page: PageSize,
    reach: DirtyReach,
}

impl Tracking {
    fn tell(&self, memory: &HostMemory, offset: u64, len: u64) -> u64 {
        self.sink.mark(Dirtied { memory, offset, len });
        len
    }

    /// Tells all that devices may write in `range`.
    fn tell_everything(&self, live: &Index, range: IovaRange) -> u64 {
        let told = |part: Part<'_>| self.tell(part.memory, part.offset, bytes(part.range));
        live.parts(range).filter(is_writable).map(told).fold(0, u64::saturating_add)
    }

    /// Tells what has a bit in a bitmap of `question`.
    fn tell_logged(&self, live: &Index, question: IovaRange, page: PageSize, bitmap: &[u64]) -> u64 {
        let mut told = 0_u64;
        for part in live.parts(question).filter(is_writable) {
            let first = question.offset_of(part.range.first()) >> page.shift();
            let end = first + (bytes(part.range) >> page.shift());
            for run in ones(bitmap, first..end) {
                let offset = part.offset + ((run.start - first) << page.shift());
                told = told.saturating_add(self.tell(part.memory, offset, (run.end - run.start) << page.shift()));
            }
        }
        told
    }
}

fn is_writable(part: &Part<'_>) -> bool {
    part.access.contains(Access::WRITE)
}

fn bytes(range: IovaRange) -> u64 {
    range.len().map_or(u64::MAX, std::num::NonZeroU64::get)
}

/// How many words the bitmap of a range has.
fn words(range: IovaRange, page: PageSize) -> usize {
    usize::try_from((range.bytes() >> page.shift()).div_ceil(64)).unwrap_or(usize::MAX)
}

/// The next question about `range`: as much as one call may be asked about and `room` bytes allow; more where a mapping is larger
/// and cannot be asked about in parts. `None` when devices may write nothing there.
fn next_question(live: &Index, range: IovaRange, log: &Log<'_>, room: u64) -> Option<IovaRange> {
    let mut parts = live.parts(range).filter(is_writable);
    let first = parts.next()?;
    let mut question = askable(&first, log, room);
    if bytes(question) < bytes(first.range) {
        return Some(question);
    }
    for part in parts {
        let next = askable(&part, log, u64::MAX);
        let more = question.hull(next);
        if !(log.reach.over_gaps || question.touches(next)) || more.bytes() > u128::from(room) {
            break;
        }
        question = more;
    }
    Some(question)
}

/// The part as it can be asked about: in whole pages, or in whole units where the kernel tells no less; cut to `room` where that
/// can be.
fn askable(part: &Part<'_>, log: &Log<'_>, room: u64) -> IovaRange {
    let unit = match part.unit {
        _ if log.reach.parts_of_mappings => log.page,
        Unit::Pages(page) => page.max(log.page),
        Unit::Whole => return part.run,
    };
    let whole = part.range.widened_to(unit).intersection(part.run).unwrap_or(part.run);
    let room = unit.round_down(room).max(unit.bytes());
    let cut = IovaRange::with_len(whole.first(), room.min(bytes(whole)));
    cut.unwrap_or(whole)
}

impl<B: Backend> Space<B> {
    fn log_of(&self, tracking: &Tracking) -> Option<Log<'_>> {
        let calls = self.backend.dirty_calls().filter(|_| tracking.logging)?;
        Some(Log { calls, page: calls.page()?, reach: calls.reach() })
    }

    fn precision_of(&self, tracking: &Tracking) -> Precision {
        self.log_of(tracking).map_or(Precision::Everything, |log| Precision::Pages(log.page))
    }

    /// Tells the kernel to log, where that makes sense with so many `devices`, and says whether it does. The gate is held exclusively.
    fn begin_to_log(&self, devices: usize) -> Result<bool, Failure> {
        let Some(calls) = self.backend.dirty_calls() else { return Ok(false) };
        if (devices == 0 && calls.needs_a_device()) || (devices > 0 && calls.page().is_none()) {
            return Ok(false);
        }
        calls.start().inspect_err(|_| {
            // It may have begun all the same.
            let _ = calls.stop();
        })?;
        Ok(true)
    }

    /// A first group makes a new container, which knows of no tracking. Nothing is mapped in it yet.
    pub(super) fn log_again(&self) {
        if !self.backend.dirty_calls().is_some_and(DirtyCalls::needs_a_device) {
            return;
        }
        if let Some(tracking) = &mut *write(&self.tracking) {
            tracking.logging = self.begin_to_log(1).unwrap_or_else(|failure| {
                log::warn!("{}: {failure}: everything counts as written from now on", self.backend.name());
                false
            });
        }
    }

    /// What was mapped until now, or may have been for a moment, counts as written.
    pub(super) fn tell_mapping(&self, mapping: &Mapping) {
        if let Some(tracking) = read(&self.tracking).as_ref().filter(|_| mapping.access.contains(Access::WRITE)) {
            tracking.tell(&mapping.memory, 0, mapping.memory.len().get());
        }
    }

    /// Everything that lives counts as written: what kernels keep of it went with a device.
    pub(super) fn tell_all(&self) {
        if let Some(tracking) = &*read(&self.tracking) {
            for slot in &self.layout().slots {
                tracking.tell_everything(&read(&slot.live), IovaRange::all());
            }
        }
    }

    /// Everything that somebody else may have put into windows counts as written: what was put and cleared between two questions is not
    /// told to anybody.
    pub(super) fn tell_registered(&self) {
        if let Some(tracking) = &*read(&self.tracking) {
            self.tell_registered_to(tracking);
        }
    }

    fn tell_registered_to(&self, tracking: &Tracking) -> u64 {
        let told = |memory: &HostMemory| tracking.tell(memory, 0, memory.len().get());
        read(&self.registered).values().map(told).fold(0, u64::saturating_add)
    }

    /// [`Space::dissolve`], telling what was written there until it went.
    pub(super) fn dissolve_telling(&self, slots: &[&Slot], hull: IovaRange, bytes: u64) -> Result<(), Failure> {
        let tracking = read(&self.tracking);
        let Some(tracking) = &*tracking else { return Self::dissolve(bytes, || self.backend.unmap(hull)) };
        let mut bitmap = lock(&tracking.bitmap);
        let log = self.log_of(tracking);
        let mut room = log.as_ref().and_then(|log| Some((log, bitmap.get_mut(..words(hull, log.page))?)));
        let mut exact = false;
        let result = Self::dissolve(bytes, || {
            // Only the first call can know: what it was told may have gone with its failure.
            let first = room.take().and_then(|(log, bitmap)| {
                bitmap.fill(0);
                log.calls.unmap(hull, bitmap)
            });
            exact = matches!(first, Some(Ok(_)));
            first.unwrap_or_else(|| self.backend.unmap(hull))
        });
        let log = log.filter(|_| exact && result.is_ok());
        for live in slots.iter().map(|slot| read(&slot.live)) {
            match &log {
                Some(log) => tracking.tell_logged(&live, hull, log.page, &bitmap),
                None => tracking.tell_everything(&live, hull),
            };
        }
        result
    }

    /// Asks about what lives in `range` of one window, whose operations are held, and says how many bytes were told. All questions are
    /// asked, whatever becomes of one.
    fn sync_slot(&self, tracking: &Tracking, slot: &Slot, range: IovaRange, trouble: &mut Option<Failure>) -> u64 {
        let Some(log) = self.log_of(tracking) else { return tracking.tell_everything(&read(&slot.live), range) };
        let mut bitmap = lock(&tracking.bitmap);
        let room = (bitmap.len().saturating_sub(self.spare_words()) as u64).saturating_mul(64 << log.page.shift());
        let (mut told, mut rest) = (0_u64, Some(range));
        while let Some(left) = rest {
            let Some(question) = next_question(&read(&slot.live), left, &log, room) else { break };
            told = told.saturating_add(match self.fetch(&log, question, &mut bitmap) {
                Ok(()) => tracking.tell_logged(&read(&slot.live), question, log.page, &bitmap),
                Err(failure) => {
                    trouble.get_or_insert(failure);
                    tracking.tell_everything(&read(&slot.live), question)
                }
            });
            rest = left.without(question).1;
        }
        told
    }

    /// The rest of the page that a bitmap ends in is the kernel's too.
    fn spare_words(&self) -> usize {
        usize::try_from(self.backend.powers().host_page.bytes() / 8).unwrap_or(0)
    }

    fn fetch(&self, log: &Log<'_>, question: IovaRange, bitmap: &mut Vec<u64>) -> Result<(), Failure> {
        let words = words(question, log.page);
        if words > log.reach.longest_bitmap / size_of::<u64>() {
            return Err(Failure::malformed("dirty bitmap", "a mapping is larger than any bitmap of it can be"));
        }
        let words = words + self.spare_words();
        if bitmap.len() < words {
            bitmap.resize(words, 0);
        }
        let bitmap = bitmap.get_mut(..words).unwrap_or_default();
        bitmap.fill(0);
        log.calls.fetch(question, bitmap)
    }
}

impl<B: Backend> DirtyTracking for Space<B> {
    fn start(&self, sink: Arc<dyn DirtySink>) -> Result<Precision, Error> {
        let fail = |kind| Error::new(Operation::TrackDirty, IovaRange::all(), kind);
        let _gate = self.enter_alone(Operation::TrackDirty, IovaRange::all())?;
        let mut tracking = write(&self.tracking);
        if tracking.is_some() {
            return Err(fail(Kind::Tracking));
        }
        let logging = self.begin_to_log(lock(&self.devices).len());
        let logging =
            logging.map_err(|failure| Error::from_kernel(Operation::TrackDirty, IovaRange::all(), failure))?;
        let bitmap = Mutex::new(vec![0; WORDS + self.spare_words()]);
        let tracking = tracking.insert(Tracking { sink, logging, bitmap });
        Ok(self.precision_of(tracking))
    }

    fn sync(&self, range: IovaRange) -> Result<Synced, Error> {
        let operation = Operation::SyncDirty;
        let _gate = self.enter(operation, range)?;
        let tracking = read(&self.tracking);
        let tracking = tracking.as_ref().ok_or_else(|| Error::new(operation, range, Kind::NotTracking))?;
        let (mut told, mut trouble) = (0_u64, None);
        for slot in self.layout().slots.iter().filter(|slot| slot.window.range.overlaps(range)) {
            let _one_by_one = lock(&slot.operations);
            told = told.saturating_add(self.sync_slot(tracking, slot, range, &mut trouble));
        }
        if self.layout().slots.iter().any(|slot| slot.filler.is_some() && slot.window.range.overlaps(range)) {
            told = told.saturating_add(self.tell_registered_to(tracking));
        }
        // Devices may still reach it, and no kernel says what they do there.
        for memory in read(&self.fenced).iter().flat_map(|fenced| &fenced.memory) {
            told = told.saturating_add(tracking.tell(memory, 0, memory.len().get()));
        }
        match trouble {
            Some(failure) => Err(Error::from_kernel(operation, range, failure)),
            None => Ok(Synced { precision: self.precision_of(tracking), bytes: told }),
        }
    }

    fn stop(&self) -> Result<(), Error> {
        let _gate = self.enter_alone(Operation::TrackDirty, IovaRange::all())?;
        let tracking = write(&self.tracking).take();
        let tracking =
            tracking.ok_or_else(|| Error::new(Operation::TrackDirty, IovaRange::all(), Kind::NotTracking))?;
        if let Some(Err(failure)) = self.backend.dirty_calls().filter(|_| tracking.logging).map(DirtyCalls::stop) {
            log::warn!("{}: {failure}: the kernel goes on to log", self.backend.name());
        }
        Ok(())
    }
}
