//! The time of making guest memory present before it is pinned, on one thread and on several.

use std::error::Error;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::thread;
use std::time::Instant;

use dmaspace::Access;
use dmaspace::prefault::{Prefault, Prefaulted};

use crate::host;

/// The memory of one measurement, fresh each time.
const LEN: u64 = 1 << 30;
/// The rounds of the measurement, of which the fastest counts.
const ROUNDS: usize = 5;

/// Prints the time of one thread and of a thread for each processor, in turns.
pub(crate) fn print() -> Result<(), Box<dyn Error>> {
    let most = thread::available_parallelism()?;
    let mut fastest = [f64::MAX; 2];
    let mut made = None;
    for _ in 0..ROUNDS {
        for (fastest, threads) in fastest.iter_mut().zip([NonZeroUsize::MIN, most]) {
            let (time, prefaulted) = measure(threads)?;
            *fastest = fastest.min(time);
            made = Some(prefaulted);
        }
    }
    let [one, all] = fastest;
    let Prefaulted { bytes, calls, threads, .. } = made.ok_or("no round")?;
    println!("{bytes} bytes in {calls} calls: {one:.0} ms on 1 thread, {all:.0} ms on {threads}: {:.2} x", one / all);
    Ok(())
}

fn measure(threads: NonZeroUsize) -> Result<(f64, Prefaulted), Box<dyn Error>> {
    let memory = host::ram(LEN);
    let prefault = Prefault::default().with_memory(&memory, Access::READ_WRITE).with_threads(threads);
    let start = Instant::now();
    let made = prefault.run(|_| ControlFlow::Continue(()))?;
    Ok((start.elapsed().as_secs_f64() * 1_000.0, made))
}
