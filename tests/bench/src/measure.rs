//! One measurement: a piece of work, done n times and then 2n times.

use std::hint::black_box;

/// A piece of work that can be repeated.
pub(crate) trait Work {
    /// Prepares `n` repetitions. Not measured.
    fn prepare(&mut self, n: u64) {
        let _ = n;
    }

    /// Repeats the work `n` times.
    fn repeat(&mut self, n: u64);
}

impl<F: FnMut(u64)> Work for F {
    fn repeat(&mut self, n: u64) {
        self(n);
    }
}

/// The part that callgrind counts: it dumps its counters whenever this function returns.
#[inline(never)]
pub(crate) fn measured(work: &mut dyn Work, n: u64) {
    black_box(work).repeat(black_box(n));
}

/// The number of allocations of one repetition, and of their bytes, as the difference between 2n and n repetitions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Allocated {
    pub(crate) count: f64,
    pub(crate) bytes: f64,
}

/// Does the work n and 2n times.
pub(crate) fn run(work: &mut dyn Work, n: u64) -> Allocated {
    // Lists and trees reach their lasting size first.
    work.prepare(n.min(16));
    work.repeat(n.min(16));
    work.prepare(n);
    let once = allocation_counter::measure(|| measured(work, n));
    work.prepare(2 * n);
    let twice = allocation_counter::measure(|| measured(work, 2 * n));
    Allocated {
        count: slope(once.count_total, twice.count_total, n),
        bytes: slope(once.bytes_total, twice.bytes_total, n),
    }
}

/// The growth from n to 2n repetitions, for one repetition; 0 if room that is kept for later made it less.
#[expect(clippy::cast_precision_loss, reason = "counts of a short run")]
pub(crate) fn slope(once: u64, twice: u64, n: u64) -> f64 {
    ((twice as f64 - once as f64) / n as f64).max(0.0)
}
