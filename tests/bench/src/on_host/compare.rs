//! One comparison: raw calls and the library in turns.

use std::error::Error;
use std::time::Instant;

pub(crate) type Tried<T = ()> = Result<T, Box<dyn Error>>;

/// The nanoseconds by which the time of an emulated host advances with each instruction (ci/src/qemu.rs).
const INSTRUCTION: f64 = 8.0;
/// The rounds of short works; the best of each side counts, because the kernel's timer interrupts some of them.
const ROUNDS: usize = 5;
/// The repetitions from which interrupts are levelled out.
const LONG: u64 = 10_000;
/// The rounds of long works: the first of all finds the kernel's caches of objects empty.
const LONG_ROUNDS: usize = 2;

/// Measures both in turns, each with [`instructions`] of `n` repetitions, and prints the best of one repetition.
pub(crate) fn compare(
    work: &str,
    n: u64,
    mut raw: impl FnMut() -> Tried<f64>,
    mut ours: impl FnMut() -> Tried<f64>,
) -> Tried {
    let (mut of_raw, mut of_ours) = (f64::INFINITY, f64::INFINITY);
    let rounds = if n < LONG { ROUNDS } else { LONG_ROUNDS };
    for _ in 0..rounds {
        of_raw = of_raw.min(raw()?);
        of_ours = of_ours.min(ours()?);
    }
    report(work, n, of_raw, of_ours);
    Ok(())
}

/// Prints the instructions of one of `n` repetitions, of the raw calls and of the library.
#[expect(clippy::cast_precision_loss, reason = "counts of a short run")]
pub(crate) fn report(work: &str, n: u64, of_raw: f64, of_ours: f64) {
    let n = n as f64;
    println!("cost\t{work}\t{:.0}\t{:.0}", of_raw / n, of_ours / n);
}

/// The instructions of this host for a piece of work, its kernel's included.
pub(crate) fn instructions(work: impl FnOnce() -> Tried) -> Tried<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1e9 / INSTRUCTION)
}
