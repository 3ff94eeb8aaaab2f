//! Reports of dirty pages, on their way from a space's locks to the caller's sink.

use std::sync::Arc;

use crate::contract::dirty::{Dirtied, DirtySink};
use crate::sync::{Mutex, Rank};
use crate::words::memory::HostMemory;

/// The room of a report for pieces of memory and for dirty runs. A report with more of them allocates.
const PARTS: usize = 1 << 12;
const RUNS: usize = 1 << 16;

/// Dirty memory that was found under the locks of a space.
#[derive(Debug)]
pub(super) struct Report {
    /// Pieces of memory, each with the end of its runs in `runs`.
    parts: Vec<(HostMemory, usize)>,
    /// The offset and the length of each dirty run.
    runs: Vec<(u64, u64)>,
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
        Self { parts: Vec::with_capacity(PARTS), runs: Vec::with_capacity(RUNS) }
    }

    /// Adds dirty runs of `memory`, each with its offset and its length. Returns the number of their bytes.
    pub(super) fn add(&mut self, memory: &HostMemory, runs: impl Iterator<Item = (u64, u64)>) -> u64 {
        let before = self.runs.len();
        let mut bytes = 0_u64;
        for (offset, len) in runs {
            self.runs.push((offset, len));
            bytes = bytes.saturating_add(len);
        }
        if self.runs.len() > before {
            self.parts.push((memory.clone(), self.runs.len()));
        }
        bytes
    }

    /// Adds all of `memory`.
    pub(super) fn add_whole(&mut self, memory: &HostMemory) -> u64 {
        self.add(memory, std::iter::once((0, memory.len().get())))
    }

    fn mark_in(&self, sink: &dyn DirtySink) {
        let mut begin = 0;
        for (memory, end) in &self.parts {
            for &(offset, len) in self.runs.get(begin..*end).unwrap_or_default() {
                sink.mark(Dirtied { memory, offset, len });
            }
            begin = *end;
        }
    }

    fn clear(&mut self) {
        self.parts.clear();
        self.runs.clear();
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
            report.add(&memory(0x1_0000), [(0, 0x1000), (0x2000, 0x1000)].into_iter())
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
