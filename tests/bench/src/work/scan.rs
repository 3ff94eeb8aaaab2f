//! Dirty scans into a VMM's bitmap, beside a plain loop over the words of the log and beside a copy of them.
//!
//! The log is random, of a density. Each side first gets a copy of it, as a kernel writes it, and has all zero words
//! in its buffer afterwards, as a kernel wants them.

use std::error::Error;
use std::hint::black_box;
use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dmaspace_core::contract::dirty::{Dirtied, DirtiedPages, DirtySink};
use dmaspace_core::contract::{MapRequest, PciAddressSpace};
use dmaspace_core::{Access, Iova, IovaRange, Space};

use crate::host::{self, NullHost};
use crate::measure::Work;

/// The bytes of guest memory of one word of the log.
const WORD: u64 = 64 << 12;
/// The words of the log of 1 TiB.
const LARGE: u64 = (1 << 40) / WORD;
/// The rounds of a measurement of time, of which the fastest counts.
const ROUNDS: u32 = 9;

/// The part of the pages that are dirty.
#[derive(Clone, Copy)]
pub(crate) enum Density {
    Clean,
    /// One page of a hundred.
    Sparse,
    /// Every other page, at random.
    Half,
    Full,
}

impl Density {
    const ALL: [(&'static str, Self); 4] =
        [("clean", Self::Clean), ("1 %", Self::Sparse), ("50 %", Self::Half), ("full", Self::Full)];

    /// A log of this density.
    fn log(self, words: u64) -> Vec<u64> {
        let mut state = 1;
        (0..words).map(|_| self.word(&mut state)).collect()
    }

    fn word(self, state: &mut u64) -> u64 {
        match self {
            Self::Clean => 0,
            Self::Sparse => (0..64).fold(0, |word, bit| word | (u64::from(next(state) % 100 == 0) << bit)),
            Self::Half => (u64::from(next(state)) << 32) | u64::from(next(state)),
            Self::Full => u64::MAX,
        }
    }
}

fn next(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    u32::try_from(*state >> 32).expect("half of a word")
}

/// The bitmap of a VMM: a bit for each page, from the first byte of the mapping on.
struct Bitmap(Vec<AtomicU64>);

impl Bitmap {
    fn new(words: u64) -> Arc<Self> {
        Arc::new(Self((0..words).map(|_| AtomicU64::new(0)).collect()))
    }

    /// Marks pages of consecutive words.
    fn mark_words(&self, first: usize, words: impl Iterator<Item = u64>) {
        let mine = self.0.get(first..).unwrap_or_default();
        for (mine, word) in mine.iter().zip(words) {
            if word != 0 {
                mine.fetch_or(word, Ordering::Relaxed);
            }
        }
    }
}

impl DirtySink for Bitmap {
    fn mark(&self, dirtied: Dirtied<'_>) {
        let (first, end) = (dirtied.offset >> 12, (dirtied.offset + dirtied.len) >> 12);
        let whole = (first.div_ceil(64), end / 64);
        if whole.0 * 64 == first && whole.1 * 64 == end {
            let words = iter::repeat_n(u64::MAX, place(whole.1 - whole.0));
            return self.mark_words(place(whole.0), words);
        }
        let words = (first / 64..end.div_ceil(64)).map(|word| {
            let (from, to) = (first.saturating_sub(word * 64), (end - word * 64).min(64));
            (u64::MAX << from) & (u64::MAX >> (64 - to))
        });
        self.mark_words(place(first / 64), words);
    }

    fn mark_pages(&self, pages: DirtiedPages<'_>) {
        self.mark_words(place(pages.offset / WORD), pages.words.iter().copied());
    }
}

/// A sink without a bitmap.
struct Nowhere;

impl DirtySink for Nowhere {
    fn mark(&self, dirtied: Dirtied<'_>) {
        black_box(dirtied.len);
    }

    fn mark_pages(&self, pages: DirtiedPages<'_>) {
        black_box(pages.words);
    }
}

fn place(word: u64) -> usize {
    usize::try_from(word).expect("a bitmap in memory")
}

/// Syncs of dmaspace over n words: for each word.
pub(crate) struct Scans {
    density: Density,
    sink: fn(u64) -> Arc<dyn DirtySink>,
    space: Option<Arc<Space<NullHost>>>,
}

impl Scans {
    pub(crate) fn work(density: Density) -> Box<dyn Work> {
        Box::new(Self::new(density, |words| Bitmap::new(words)))
    }

    fn new(density: Density, sink: fn(u64) -> Arc<dyn DirtySink>) -> Self {
        Self { density, sink, space: None }
    }
}

impl Work for Scans {
    fn prepare(&mut self, n: u64) {
        let space = host::logging_space(self.density.log(n));
        let memory = host::unit_of_ram(1 << 41, n * WORD, 0);
        space.map(MapRequest::new(Iova::new(0), &memory, Access::READ_WRITE)).expect("it is free");
        space.powers().dirty_tracking.start((self.sink)(n)).expect("nothing is tracked yet");
        sync(&space);
        self.space = Some(space);
    }

    fn repeat(&mut self, _: u64) {
        if let Some(space) = &self.space {
            sync(space);
        }
    }
}

fn sync(space: &Arc<Space<NullHost>>) {
    black_box(space.powers().dirty_tracking.sync(IovaRange::all()).expect("it is tracked"));
}

/// The plain loop over n words: for each word.
pub(crate) struct Loops {
    density: Density,
    log: Vec<u64>,
    buffer: Vec<u64>,
    bitmap: Arc<Bitmap>,
}

impl Loops {
    pub(crate) fn work(density: Density) -> Box<dyn Work> {
        Box::new(Self::new(density))
    }

    fn new(density: Density) -> Self {
        Self { density, log: Vec::new(), buffer: Vec::new(), bitmap: Bitmap::new(0) }
    }

    fn copy(&mut self) {
        black_box(&mut self.buffer).copy_from_slice(black_box(&self.log));
    }
}

impl Work for Loops {
    fn prepare(&mut self, n: u64) {
        self.log = self.density.log(n);
        self.buffer = vec![0; self.log.len()];
        self.bitmap = Bitmap::new(n);
    }

    fn repeat(&mut self, _: u64) {
        self.copy();
        for (word, mine) in self.buffer.iter_mut().zip(&self.bitmap.0) {
            if *word != 0 {
                mine.fetch_or(*word, Ordering::Relaxed);
                *word = 0;
            }
        }
    }
}

/// Prints the time of a scan of the log of 1 TiB: of dmaspace and of the plain loop, both into a bitmap, of dmaspace
/// without the bitmap, and of a copy. All are without the copy that the kernel makes, and take turns.
pub(crate) fn print_times() -> Result<(), Box<dyn Error>> {
    println!("| dirty pages | dmaspace | word loop | ratio | dmaspace alone | copy | ratio |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for (name, density) in Density::ALL {
        let [ours, plain, alone, copy] = times(density);
        let (ours, plain, alone) = (ours - copy, plain - copy, alone - copy);
        let (to_plain, to_copy) = (plain / ours, copy / alone);
        println!(
            "| {name} | {ours:.1} ms | {plain:.1} ms | {to_plain:.2} | {alone:.1} ms | {copy:.1} ms | {to_copy:.2} |"
        );
    }
    Ok(())
}

/// The times of dmaspace, of the plain loop, of dmaspace without a bitmap, and of the copy.
fn times(density: Density) -> [f64; 4] {
    let mut ours = Scans::new(density, |words| Bitmap::new(words));
    let (mut plain, mut alone) = (Loops::new(density), Scans::new(density, |_| Arc::new(Nowhere)));
    ours.prepare(LARGE);
    plain.prepare(LARGE);
    alone.prepare(LARGE);
    let mut fastest = [f64::MAX; 4];
    for _ in 0..ROUNDS {
        let times = [
            timed(|| ours.repeat(LARGE)),
            timed(|| plain.repeat(LARGE)),
            timed(|| alone.repeat(LARGE)),
            timed(|| plain.copy()),
        ];
        for (fastest, time) in fastest.iter_mut().zip(times) {
            *fastest = fastest.min(time);
        }
    }
    fastest
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1_000.0
}
