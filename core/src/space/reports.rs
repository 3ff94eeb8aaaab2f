//! Reports of dirty pages, on their way from a space's locks to the caller's sink.

use std::sync::Arc;

use crate::contract::dirty::{Dirtied, DirtiedPages, DirtySink};
use crate::sync::{Mutex, Rank};
use crate::words::memory::HostMemory;
use crate::words::ones::Bits;
use crate::words::page::PageSize;

/// The room of a report for pieces of memory, for stretches and for words. A report with more of them allocates.
const PARTS: usize = 1 << 12;
const STRETCHES: usize = 1 << 16;
const WORDS: usize = 1 << 16;

/// Dirty memory that was found under the locks of a space.
#[derive(Debug)]
pub(super) struct Report {
    /// Pieces of memory, each with the end of its stretches in `stretches`.
    parts: Vec<(HostMemory, usize)>,
    stretches: Vec<Stretch>,
    /// The words of all stretches that have some, one stretch after the other.
    words: Vec<u64>,
}

/// Dirty bytes of one piece of memory.
#[derive(Clone, Copy, Debug)]
enum Stretch {
    /// Every byte, from an offset on: the offset and the length.
    Run(u64, u64),
    /// Pages of this size, from an offset on, one for each bit of so many words.
    Words(u64, PageSize, usize),
}

/// The sink of a space that tracks, and the reports that have not reached it yet.
///
/// A report is delivered by the thread that found the pages, after it has released the locks. A sync on another
/// thread must not return before that: it delivers the report too. A page that is marked twice is marked.
#[derive(Debug)]
pub(super) struct Outbox {
    sink: Arc<dyn DirtySink>,
    /// [`Rank::Pending`] in the order of all locks ([`crate::sync`]).
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    pending: Vec<Arc<Report>>,
    /// An empty report that is not in use: a sync allocates nothing.
    spare: Option<Arc<Report>>,
}

impl Report {
    fn new() -> Self {
        Self {
            parts: Vec::with_capacity(PARTS),
            stretches: Vec::with_capacity(STRETCHES),
            words: Vec::with_capacity(WORDS),
        }
    }

    /// Adds `len` bytes of `memory`, from `offset` on. Returns their number.
    pub(super) fn add(&mut self, memory: &HostMemory, offset: u64, len: u64) -> u64 {
        self.stretches.push(Stretch::Run(offset, len));
        self.parts.push((memory.clone(), self.stretches.len()));
        len
    }

    /// Adds all of `memory`.
    pub(super) fn add_whole(&mut self, memory: &HostMemory) -> u64 {
        self.add(memory, 0, memory.len().get())
    }

    /// Adds the pages of `memory` that have a bit in `bits`, of which the first is for the page at `offset`. Returns
    /// the number of their bytes.
    pub(super) fn add_pages(&mut self, memory: &HostMemory, offset: u64, page: PageSize, bits: Bits<'_>) -> u64 {
        let before = self.stretches.len();
        let (mut dirty, mut next) = (0_u64, 0);
        while let Some(number) = bits.next_dirty(next) {
            let place = offset + ((number as u64) << (6 + page.shift()));
            let full = bits.full_from(number);
            if full > 0 {
                self.stretches.push(Stretch::Run(place, (full as u64) << (6 + page.shift())));
                dirty += full as u64 * 64;
                next = number + full;
            } else {
                let words = self.words.len();
                let count = bits.copy_mixed(number, &mut self.words);
                self.stretches.push(Stretch::Words(place, page, count));
                dirty += self.words.iter().skip(words).map(|word| u64::from(word.count_ones())).sum::<u64>();
                next = number + count;
            }
        }
        if self.stretches.len() > before {
            self.parts.push((memory.clone(), self.stretches.len()));
        }
        dirty << page.shift()
    }

    fn mark_in(&self, sink: &dyn DirtySink) {
        let (mut begin, mut words) = (0, &self.words[..]);
        for (memory, end) in &self.parts {
            for stretch in self.stretches.get(begin..*end).unwrap_or_default() {
                match *stretch {
                    Stretch::Run(offset, len) => sink.mark(Dirtied { memory, offset, len }),
                    Stretch::Words(offset, page, count) => {
                        let (here, behind) = words.split_at_checked(count).unwrap_or((words, &[]));
                        sink.mark_pages(DirtiedPages { memory, offset, page, words: here });
                        words = behind;
                    }
                }
            }
            begin = *end;
        }
    }

    fn clear(&mut self) {
        self.parts.clear();
        self.stretches.clear();
        self.words.clear();
    }
}

impl Outbox {
    pub(super) fn new(sink: Arc<dyn DirtySink>) -> Self {
        let state = State { pending: Vec::with_capacity(16), spare: Some(Arc::new(Report::new())) };
        Self { sink, state: Mutex::new(Rank::Pending, state) }
    }

    /// A report that `fill` has filled, to be delivered once the locks of the space are released. `None` when nothing
    /// was dirty. Returns the number of dirty bytes beside it.
    pub(super) fn fill(&self, fill: impl FnOnce(&mut Report) -> u64) -> (Option<Arc<Report>>, u64) {
        let spare = self.state.lock().spare.take();
        let mut shared = spare.unwrap_or_else(|| Arc::new(Report::new()));
        let Some(report) = Arc::get_mut(&mut shared) else {
            debug_assert!(false, "a spare report is in use");
            return (None, 0);
        };
        let bytes = fill(report);
        let mut state = self.state.lock();
        if report.parts.is_empty() {
            state.spare = Some(shared);
            return (None, bytes);
        }
        state.pending.push(shared.clone());
        (Some(shared), bytes)
    }

    /// The reports that have not been delivered to the end.
    pub(super) fn pending(&self) -> Vec<Arc<Report>> {
        self.state.lock().pending.clone()
    }

    /// Marks the pages of a report in the sink. The caller holds no lock of a space.
    pub(super) fn deliver(&self, mut report: Arc<Report>) {
        report.mark_in(&*self.sink);
        self.state.lock().pending.retain(|pending| !Arc::ptr_eq(pending, &report));
        // The last thread that delivers it empties it, which may drop the last owner of memory.
        if let Some(unused) = Arc::get_mut(&mut report) {
            unused.clear();
            self.state.lock().spare = Some(report);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::words::address::HostAddress;
    use std::num::NonZeroU64;

    use super::*;

    #[derive(Default)]
    struct Marked(std::sync::Mutex<Vec<(u64, u64)>>);

    impl DirtySink for Marked {
        fn mark(&self, dirtied: Dirtied<'_>) {
            self.0.lock().expect("no panic under it").push((dirtied.address().get(), dirtied.len));
        }
    }

    fn memory(address: u64) -> HostMemory {
        HostMemory::unbacked(HostAddress::new(address), NonZeroU64::new(0x4000).expect("not zero")).expect("no wrap")
    }

    #[test]
    fn a_report_marks_each_run_of_each_piece() {
        let marked = Arc::new(Marked::default());
        let outbox = Outbox::new(marked.clone());
        let (report, bytes) = outbox.fill(|report| {
            report.add_pages(&memory(0x1_0000), 0, PageSize::K4, Bits::of(&[0b1010], 1..4))
                + report.add_whole(&memory(0x2_0000))
        });
        outbox.deliver(report.expect("there is something"));
        let expected = [(0x1_0000, 0x1000), (0x1_2000, 0x1000), (0x2_0000, 0x4000)];
        assert_eq!((bytes, marked.0.lock().expect("no panic under it").as_slice()), (0x6000, expected.as_slice()));
        assert_eq!(outbox.pending().len(), 0);
    }

    #[test]
    fn a_report_is_pending_until_it_is_delivered_and_empty_after_that() {
        let marked = Arc::new(Marked::default());
        let outbox = Outbox::new(marked.clone());
        let (report, _) = outbox.fill(|report| report.add_whole(&memory(0x1_0000)));
        let of_another_thread = outbox.pending();
        outbox.deliver(report.expect("there is something"));
        for pending in of_another_thread {
            outbox.deliver(pending);
        }
        assert_eq!(marked.0.lock().expect("no panic under it").len(), 2);
        let (none, bytes) = outbox.fill(|_| 0);
        assert!(none.is_none() && bytes == 0);
    }
}
