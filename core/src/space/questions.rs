//! The ranges that a kernel's dirty log can be asked about.

use crate::backend::{DirtyCalls, DirtyReach};
use crate::contract::Unit;
use crate::door::Failure;
use crate::space::index::{Index, Part, len_of};
use crate::words::access::Access;
use crate::words::address::IovaRange;
use crate::words::page::PageSize;

/// The number of words in the bitmap of a range.
pub(super) fn words(range: IovaRange, page: PageSize) -> usize {
    usize::try_from((range.bytes() >> page.shift()).div_ceil(64)).unwrap_or(usize::MAX)
}

/// A kernel that logs.
pub(super) struct Log<'a> {
    pub(super) calls: &'a dyn DirtyCalls,
    pub(super) page: PageSize,
    pub(super) reach: DirtyReach,
}

impl Log<'_> {
    /// Reads the log of `question` into the bitmap, which grows where one mapping needs more.
    pub(super) fn fetch(&self, question: IovaRange, bitmap: &mut Vec<u64>, spare: usize) -> Result<(), Failure> {
        let needed = words(question, self.page);
        if needed > self.reach.longest_bitmap / size_of::<u64>() {
            return Err(Failure::malformed("dirty bitmap", "a mapping is larger than any bitmap of it can be"));
        }
        let len = needed.saturating_add(spare);
        if bitmap.len() < len {
            bitmap.resize(len, 0);
        }
        let cleared = bitmap.get_mut(..len).unwrap_or_default();
        cleared.fill(0);
        self.calls.fetch(question, cleared)
    }
}

/// Returns `true` if devices may write there.
pub(super) fn is_writable(part: &Part<'_>) -> bool {
    part.access.contains(Access::WRITE)
}

/// The next question about `range`: as much as one call can be asked about and a bitmap with `room` for so many bytes
/// of it holds; more where one mapping is larger and cannot be asked about in parts. `None` when devices may write
/// nothing there.
pub(super) fn next_question(live: &Index, range: IovaRange, log: &Log<'_>, room: u64) -> Option<IovaRange> {
    let mut parts = live.parts(range).filter(is_writable);
    let first = parts.next()?;
    let mut question = askable(&first, log, room);
    if len_of(question) < len_of(first.range) {
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

/// The smallest range around `part` that can be asked about: whole pages, or whole units if the kernel reports only
/// those; cut to `room` where it can be.
fn askable(part: &Part<'_>, log: &Log<'_>, room: u64) -> IovaRange {
    let unit = match part.unit {
        _ if log.reach.parts_of_mappings => log.page,
        Unit::Pages(page) => page.max(log.page),
        Unit::Whole => return part.run,
    };
    let whole = part.range.widened_to(unit).intersection(part.run).unwrap_or(part.run);
    let longest = unit.round_down(room).max(unit.bytes());
    IovaRange::with_len(whole.first(), longest.min(len_of(whole))).unwrap_or(whole)
}
