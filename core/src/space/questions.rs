//! The ranges that a kernel's dirty log can be asked about.

use crate::backend::{DirtyCalls, DirtyReach};
use crate::contract::Unit;
use crate::door::Failure;
use crate::space::index::{Index, Part, len_of};
use crate::words::access::Access;
use crate::words::address::IovaRange;
use crate::words::ones::clean_words;
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
        let zeroed = bitmap.get_mut(..len).unwrap_or_default();
        debug_assert_eq!(clean_words(zeroed), len, "a bitmap is zeroed after each question");
        self.calls.fetch(question, zeroed)
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
    if let Some(all) = everything(live, range, &first, log).filter(|all| all.bytes() <= u128::from(room)) {
        return Some(all);
    }
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

/// All mappings in `range`, of which `first` is the first that is asked about, if they can be one question.
fn everything(live: &Index, range: IovaRange, first: &Part<'_>, log: &Log<'_>) -> Option<IovaRange> {
    if !log.reach.over_gaps || live.cut_by(range).is_some() {
        return None;
    }
    let rest = IovaRange::new(first.range.first(), range.last()).ok()?;
    let (hull, _) = live.hull(rest)?;
    if hull.is_aligned_to(log.page) { Some(hull) } else { None }
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
