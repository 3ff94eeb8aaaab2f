//! The live mappings of one window: the only record there is of them.
//!
//! Mappings are kept as runs: a `Whole` unit is a run by itself; units of pages that continue each other on the bus
//! and in the host are one run. A guest that maps all of its memory page by page costs as much as one that maps it at
//! once.
//!
//! Whole mappings and long runs are few: they are kept in a tree. Single pages and short runs may be millions: each
//! page is one word of a table ([`Words`]), which has its host address, its rights, and the number of its [`Kind`], of
//! which one memory is kept.
//!
//! Invariants:
//! - runs are disjoint, in the tree and in the table together; none is empty;
//! - two runs of pages that could be one run are one: in the tree if it is longer than [`SHORT`] pages, otherwise in
//!   the table if its pages are the table's and its memory can be told by a word;
//! - a kind has a memory exactly while pages of it are in the table; their addresses lie in its bounds; one kind
//!   without pages may be `idle`, which keeps its number for the next memory of its unplug unit, and no owner;
//! - no run of the tree shares bytes with `quiet` or touches it, so a page there concerns the table alone.
//!
//! A page is found once and then changed where it was found ([`Place`]): the space's verbs do that around a kernel
//! call. Everything else about a page is as for runs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::num::NonZeroU64;

use crate::contract::{BatchPart, Mapping, Unit};
use crate::space::deferred::Deferred;
use crate::space::radix::{Ascending, LeafHint, Words};
use crate::words::access::Access;
use crate::words::address::{HostAddress, Iova, IovaRange};
use crate::words::memory::{HostMemory, UnplugUnit};
use crate::words::page::PageSize;

/// The length in pages up to which a run of pages is kept page by page.
const SHORT: u64 = 32;

/// A word of the table: a host address, which is a multiple of 4 KiB, then the number of its kind, then the rights.
const ADDRESS: u64 = !0xfff;
const KIND_SHIFT: u32 = 2;
const RIGHTS: u64 = 0b11;
/// The number of kinds that a word can name.
const KINDS: usize = 1 << 10;

/// The live mappings of one window.
#[derive(Debug)]
pub(super) struct Index {
    /// Whole mappings, long runs, and all that a word cannot tell, by first byte.
    runs: BTreeMap<Iova, Run>,
    /// A range without runs of the tree, as large as it can be around the last page; `None` where that is not known.
    quiet: Option<IovaRange>,
    pages: Pages,
}

/// A page of the table, or the place for one, as it was found. It is good until the index is changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    index: u64,
    /// Zero without a page.
    word: u64,
    hint: LeafHint,
}

/// Single pages and short runs.
#[derive(Debug)]
struct Pages {
    /// The first byte of the window.
    first: Iova,
    /// The pages' size: the window's granule at first. It changes only while the table is empty.
    page: PageSize,
    /// By the number of pages between `first`, rounded down to a page, and the page.
    words: Words,
    kinds: Kinds,
}

/// The kinds of the memory behind pages.
#[derive(Debug, Default)]
struct Kinds {
    by_number: Vec<Kind>,
    /// The numbers of the kinds in use, by unplug unit.
    by_unit: Vec<(UnplugUnit, u16)>,
    unused: Vec<u16>,
    /// The kind that lost its pages last: it is in `by_unit` and not in `unused`.
    idle: Option<(UnplugUnit, u16)>,
    /// The kind of the last insertion, which is the most likely one of the next.
    last: u16,
}

/// Memory that is alike but for its address.
#[derive(Debug)]
struct Kind {
    /// One memory of the kind: it keeps the owner of all of them.
    memory: Option<HostMemory>,
    /// The number of pages in the table.
    live: u64,
    /// The lowest and the highest byte of any of them since the kind was first used.
    lowest: u64,
    highest: u64,
}

/// The part of a run that lies in a range.
pub(super) struct Part<'a> {
    /// The part.
    pub(super) range: IovaRange,
    /// The whole run.
    pub(super) run: IovaRange,
    /// The run's memory, of which the part begins at `offset`.
    pub(super) memory: Cow<'a, HostMemory>,
    pub(super) offset: u64,
    pub(super) access: Access,
    pub(super) unit: Unit,
}

/// A mapping at its place, with its memory where the caller has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed<'a> {
    pub(super) range: IovaRange,
    pub(super) memory: &'a HostMemory,
    pub(super) access: Access,
    pub(super) unit: Unit,
}

#[derive(Clone, Debug)]
struct Run {
    range: IovaRange,
    memory: HostMemory,
    access: Access,
    unit: Unit,
}

impl Index {
    /// The empty index of a window that begins at `first` and has such a granule.
    pub(super) fn new(first: Iova, page: PageSize) -> Self {
        let pages = Pages { first, page, words: Words::default(), kinds: Kinds::default() };
        Self { runs: BTreeMap::new(), quiet: Some(IovaRange::all()), pages }
    }

    /// The place of a page, if `range` is one that is the table's alone.
    #[inline(always)]
    pub(super) fn place_of(&self, range: IovaRange) -> Option<Place> {
        if self.is_quiet(range) { self.pages.place_of(range) } else { None }
    }

    /// Adds a page of memory where there is none. Returns `false` if a word cannot tell it; nothing changed then.
    #[inline(always)]
    pub(super) fn insert_page(&mut self, place: Place, memory: &HostMemory, access: Access) -> bool {
        debug_assert!(!place.is_live(), "a page is put where one is");
        let Some(word) = self.pages.word_for(memory, access) else { return false };
        self.insert_word(place, word);
        true
    }

    /// Puts the word of a page, which is counted, where there is none.
    #[inline]
    fn insert_word(&mut self, place: Place, word: u64) {
        let step = self.pages.page.bytes();
        // A word is never as small as a page: it has rights.
        if self.pages.words.insert_near(place.hint, place.index, word, step) {
            self.join_around(place.index);
        }
    }

    /// Adds parts of a batch, ascending, all of `memory` and with one access. The caller checked that their ranges are
    /// free. The kind and the leaf of pages are looked up once for many.
    pub(super) fn insert_parts(&mut self, memory: &HostMemory, access: Access, unit: Unit, parts: &[BatchPart]) {
        let kind = if unit == Unit::Pages(self.pages.page) { self.pages.hold_kind(memory, parts) } else { None };
        let (mut near, mut elsewhere) = ((0, LeafHint::NOWHERE), 0);
        let (mut lowest, mut highest) = (u64::MAX, 0);
        for part in parts {
            let address = memory.address().get().wrapping_add(part.offset);
            let place = if address & !ADDRESS == 0 { self.free_place(part.range, &mut near) } else { None };
            if let (Some(kind), Some(place)) = (kind, place) {
                (lowest, highest) = (lowest.min(address), highest.max(address + (self.pages.page.bytes() - 1)));
                self.insert_word(place, word_of(address, kind, access));
                continue;
            }
            elsewhere += 1;
            if let Some(memory) = memory.slice(part.offset, len_of(part.range)) {
                self.insert(Placed { range: part.range, memory: &memory, access, unit });
            }
        }
        if let Some(kind) = kind {
            self.pages.kinds.count(kind, (lowest, highest), 0);
            // The caller has the memory, too.
            drop(self.pages.kinds.leave(word_of(0, kind, access), 1 + elsewhere));
        }
    }

    /// [`Index::place_of`] a page that is not there. `near` is the index of the page before and its hint.
    #[inline]
    fn free_place(&self, range: IovaRange, near: &mut (u64, LeafHint)) -> Option<Place> {
        let index = self.pages.page_index(range).filter(|_| self.is_quiet(range))?;
        let hint = self.pages.words.hint_near(*near, index);
        *near = (index, hint);
        Some(Place { index, word: 0, hint })
    }

    /// Returns whether no run of the tree concerns a page.
    #[inline]
    fn is_quiet(&self, page: IovaRange) -> bool {
        self.quiet.is_some_and(|quiet| quiet.covers(page))
    }

    /// Moves the run around a page to the tree, if it is not short any more.
    #[inline(never)]
    fn join_around(&mut self, index: u64) {
        if let Some(long) = self.pages.take_long_run(index, index) {
            self.insert_long(long);
        }
    }

    /// Removes a page. Returns its memory if it was the last of its kind.
    #[inline(always)]
    pub(super) fn remove_page(&mut self, place: Place) -> Option<HostMemory> {
        debug_assert!(place.is_live(), "no page is taken");
        let word = self.pages.words.remove_near(place.hint, place.index);
        if word == 0 { None } else { self.pages.kinds.leave(word, 1) }
    }

    /// Adds a mapping. The caller checked that its range is free.
    #[inline(never)]
    pub(super) fn insert(&mut self, placed: Placed<'_>) {
        debug_assert!(self.overlap(placed.range).is_none(), "{} is mapped twice", placed.range);
        if placed.unit == Unit::Pages(self.pages.page) {
            if let Some(place) = self.place_of(placed.range) {
                if self.insert_page(place, placed.memory, placed.access) {
                    return;
                }
            }
        }
        self.insert_run(placed);
        self.look_around(placed.range);
    }

    /// Sets the range without runs of the tree around a page.
    fn look_around(&mut self, page: IovaRange) {
        if self.is_quiet(page) {
            return;
        }
        let below = self.runs.range(..=page.first()).next_back().map(|(_, run)| run.range.last());
        let above = self.runs.range(page.first()..).next().map(|(first, _)| *first);
        // One byte apart from both.
        let first = below.map_or(Some(0), |last| last.get().checked_add(2));
        let last = above.map_or(Some(u64::MAX), |first| first.get().checked_sub(2));
        self.quiet = first.zip(last).and_then(|(first, last)| IovaRange::new(Iova::new(first), Iova::new(last)).ok());
    }

    fn insert_run(&mut self, placed: Placed<'_>) {
        if !self.continues_a_long_run(placed) {
            if let Some((first, last)) = self.pages.insert(placed) {
                if let Some(long) = self.pages.take_long_run(first, last) {
                    self.insert_long(long);
                }
                return;
            }
        }
        let Placed { range, memory, access, unit } = placed;
        self.insert_long(Run { range, memory: memory.clone(), access, unit });
    }

    /// Returns whether a run of the tree and `run` could be one.
    fn continues_a_long_run(&self, run: Placed<'_>) -> bool {
        if self.runs.is_empty() || run.unit == Unit::Whole {
            return false;
        }
        let below = self.run_ending_before(run.range.first());
        let above = run.range.end().and_then(|end| self.runs.get(&end));
        below.is_some_and(|below| below.placed().continues_to(run))
            || above.is_some_and(|above| run.continues_to(above.placed()))
    }

    /// Adds a run to the tree, with all runs that continue it.
    fn insert_long(&mut self, mut run: Run) {
        if run.unit != Unit::Whole {
            for neighbour in self.pages.take_neighbours(&run).into_iter().flatten() {
                run = run.joined(&neighbour).or_else(|| neighbour.joined(&run)).unwrap_or(run);
            }
        }
        if let Some(joined) = self.run_ending_before(run.range.first()).and_then(|below| below.joined(&run)) {
            self.runs.remove(&joined.range.first());
            run = joined;
        }
        let above = run.range.end().and_then(|end| self.runs.get(&end));
        if let Some((border, joined)) = above.and_then(|above| Some((above.range.first(), run.joined(above)?))) {
            self.runs.remove(&border);
            run = joined;
        }
        self.quiet = None;
        self.runs.insert(run.range.first(), run);
    }

    /// Removes everything in `range`, which cuts no unit. The memory is dropped later, with `deferred`.
    pub(super) fn remove(&mut self, range: IovaRange, deferred: &mut Deferred) {
        self.pages.remove(range, deferred);
        if self.runs.is_empty() {
            return;
        }
        self.quiet = None;
        while let Some(run) = self.take_one_touching(range) {
            let (below, above) = run.range.without(range);
            for rest in [below, above].into_iter().flatten() {
                if let Some(part) = run.part(rest) {
                    self.insert(part.placed());
                }
            }
            deferred.release(run.memory);
        }
        self.look_around(range);
    }

    /// Removes everything, and returns it.
    pub(super) fn drain(&mut self) -> Vec<Mapping> {
        let all = self.all();
        *self = Self::new(self.pages.first, self.pages.page);
        all
    }

    /// The live mapping at `at`, with everything that continues it.
    pub(super) fn at(&self, at: Iova) -> Option<Mapping> {
        let (word, is_longer) = self.pages.word_at(at);
        if word != 0 && !is_longer { self.pages.page_at(at, word) } else { self.run_at(at) }
    }

    /// The run around `at`, of several pages or of the tree.
    #[inline(never)]
    fn run_at(&self, at: Iova) -> Option<Mapping> {
        if let Some(run) = self.pages.run_around(at) {
            return Some(run.into_mapping());
        }
        if self.runs.is_empty() {
            return None;
        }
        let (_, run) = self.runs.range(..=at).next_back()?;
        if run.range.contains(at) { Some(run.clone().into_mapping()) } else { None }
    }

    /// The host address behind `at`, and the access to it, without a clone of the memory.
    pub(super) fn translate(&self, at: Iova) -> Option<(HostAddress, Access)> {
        self.pages.translate(at).or_else(|| self.translate_long(at))
    }

    #[inline(never)]
    fn translate_long(&self, at: Iova) -> Option<(HostAddress, Access)> {
        if self.runs.is_empty() {
            return None;
        }
        let (_, run) = self.runs.range(..=at).next_back().filter(|(_, run)| run.range.contains(at))?;
        let address = run.memory.address().get().checked_add(run.range.offset_of(at))?;
        Some((HostAddress::new(address), run.access))
    }

    /// The live mappings in `range`, ascending, clipped to it.
    pub(super) fn within(&self, range: IovaRange) -> impl Iterator<Item = Mapping> {
        self.touching(range).filter_map(move |run| {
            let shared = run.range.intersection(range)?;
            if shared == run.range {
                return Some(run.into_owned().into_mapping());
            }
            run.part(shared).map(Run::into_mapping)
        })
    }

    /// All live mappings, ascending.
    pub(super) fn all(&self) -> Vec<Mapping> {
        if self.pages.words.is_empty() {
            return self.runs.values().cloned().map(Run::into_mapping).collect();
        }
        let mut all = Vec::with_capacity(self.runs.len());
        all.extend(self.within(IovaRange::all()));
        all
    }

    /// The parts of runs that lie in `range`, ascending, without a copy of the memory of long runs.
    pub(super) fn parts(&self, range: IovaRange) -> impl Iterator<Item = Part<'_>> {
        self.touching(range).filter_map(move |run| {
            let shared = run.range.intersection(range)?;
            let (whole, access, unit) = (run.range, run.access, run.unit);
            let offset = whole.offset_of(shared.first());
            let memory = match run {
                Cow::Borrowed(run) => Cow::Borrowed(&run.memory),
                Cow::Owned(run) => Cow::Owned(run.memory),
            };
            Some(Part { range: shared, run: whole, memory, offset, access, unit })
        })
    }

    /// The smallest range that holds all live mappings of `range`, and the number of their bytes. `None` when there
    /// are none.
    pub(super) fn hull(&self, range: IovaRange) -> Option<(IovaRange, u64)> {
        let mut sum = self.pages.hull(range);
        if self.runs.is_empty() {
            return sum;
        }
        for shared in self.long_touching(range).filter_map(|run| run.range.intersection(range)) {
            let (hull, bytes) = sum.unwrap_or((shared, 0));
            sum = Some((hull.hull(shared), bytes.saturating_add(len_of(shared))));
        }
        sum
    }

    /// The first live run that shares bytes with `range`.
    pub(super) fn overlap(&self, range: IovaRange) -> Option<IovaRange> {
        if self.runs.is_empty() && self.pages.are_none_in(range) {
            return None;
        }
        self.touching(range).next().map(|run| run.range)
    }

    /// The unit that one end of `range` would cut.
    pub(super) fn cut_by(&self, range: IovaRange) -> Option<IovaRange> {
        self.cut_before(range.first()).or_else(|| self.cut_before(range.end()?))
    }

    fn cut_before(&self, border: Iova) -> Option<IovaRange> {
        if let Some(page) = self.pages.cut_before(border) {
            return Some(page);
        }
        if self.runs.is_empty() {
            return None;
        }
        let (_, run) = self.runs.range(..border).next_back()?;
        run.unit_cut_before(border)
    }

    /// The first part of `range` that is not mapped.
    pub(super) fn gap_in(&self, range: IovaRange) -> Option<IovaRange> {
        if self.pages.cover(range) {
            return None;
        }
        let mut rest = range;
        for run in self.touching(range) {
            let (below, above) = rest.without(run.range);
            if below.is_some() {
                return below;
            }
            rest = above?;
        }
        Some(rest)
    }

    /// A live run in `range` whose memory shares bytes with `memory`. The cost does not grow with the pages whose kinds
    /// have no memory there.
    pub(super) fn onto(&self, memory: &HostMemory, range: IovaRange) -> Option<IovaRange> {
        let long = self.long_touching(range).find(|run| run.memory.overlaps(memory)).map(|run| run.range);
        long.or_else(|| self.pages.onto(memory, range))
    }

    fn run_ending_before(&self, first: Iova) -> Option<&Run> {
        let (_, run) = self.runs.range(..first).next_back()?;
        if run.range.end() == Some(first) { Some(run) } else { None }
    }

    fn take_one_touching(&mut self, range: IovaRange) -> Option<Run> {
        let first = self.long_touching(range).next()?.range.first();
        self.runs.remove(&first)
    }

    /// The runs of the tree that share bytes with `range`, ascending.
    fn long_touching(&self, range: IovaRange) -> impl Iterator<Item = &Run> {
        let reaching_in = self.runs.range(..range.first()).next_back().filter(|(_, run)| run.range.overlaps(range));
        reaching_in.into_iter().chain(self.runs.range(range.first()..=range.last())).map(|(_, run)| run)
    }

    /// All runs that share bytes with `range`, ascending.
    fn touching(&self, range: IovaRange) -> impl Iterator<Item = Cow<'_, Run>> {
        let mut long = self.long_touching(range).peekable();
        let mut short = self.pages.touching(range).peekable();
        std::iter::from_fn(move || match (long.peek(), short.peek()) {
            (Some(tree), Some(page)) if page.range < tree.range => short.next().map(Cow::Owned),
            (Some(_), _) => long.next().map(Cow::Borrowed),
            (None, _) => short.next().map(Cow::Owned),
        })
    }
}

impl Place {
    /// Returns `true` if there is a page.
    pub(super) fn is_live(self) -> bool {
        self.word != 0
    }
}

impl Pages {
    #[inline(always)]
    fn place_of(&self, range: IovaRange) -> Option<Place> {
        let index = self.page_index(range)?;
        let (word, hint) = self.words.find(index);
        Some(Place { index, word, hint })
    }

    /// The index of `range`, if that is one page of the table.
    #[inline]
    fn page_index(&self, range: IovaRange) -> Option<u64> {
        let page = self.page;
        let is_page = range.last().get() - range.first().get() == page.bytes() - 1 && page.divides(range.first().get());
        if is_page { self.index_of(range.first()) } else { None }
    }

    /// The number of the kind of `memory`, if words can tell its pages. Each of `parts` is counted as one page of the
    /// kind, which has one page more until it is left once.
    fn hold_kind(&mut self, memory: &HostMemory, parts: &[BatchPart]) -> Option<u16> {
        if !memory.is_plain() || self.page < PageSize::K4 {
            return None;
        }
        let kind = self.kinds.number_for(memory)?;
        // No bounds: they are known once the pages are.
        self.kinds.count(kind, (u64::MAX, 0), parts.len() as u64 + 1);
        Some(kind)
    }

    /// The word of a page, which is counted. `None` if a word cannot tell it.
    #[inline(always)]
    fn word_for(&mut self, memory: &HostMemory, access: Access) -> Option<u64> {
        let address = memory.address().get();
        if !(memory.is_plain() && address & !ADDRESS == 0 && self.page >= PageSize::K4) {
            return None;
        }
        let kind = self.kinds.enter(memory, 1)?;
        Some(word_of(address, kind, access))
    }

    /// Adds a run, if a word can tell each of its pages. Returns the indices of its first and last page.
    fn insert(&mut self, run: Placed<'_>) -> Option<(u64, u64)> {
        let Unit::Pages(page) = run.unit else { return None };
        if self.words.is_empty() {
            self.page = page;
        }
        let pages = u64::try_from(run.range.bytes() >> page.shift()).ok()?;
        let is_told = self.page == page
            && page >= PageSize::K4
            && pages <= SHORT
            && run.range.is_aligned_to(page)
            && run.memory.is_plain()
            && run.memory.address().get() & !ADDRESS == 0;
        if !is_told {
            return None;
        }
        let first = self.index_of(run.range.first())?;
        let kind = self.kinds.enter(run.memory, pages)?;
        let word = word_of(run.memory.address().get(), kind, run.access);
        for n in 0..pages {
            self.words.insert(first + n, word + (n << page.shift()));
        }
        Some((first, first + (pages - 1)))
    }

    /// Takes the run around these pages out, if it is not short any more.
    fn take_long_run(&mut self, first: u64, last: u64) -> Option<Run> {
        if first == last && self.words.neighbours(first) == (0, 0) {
            return None;
        }
        let (first, last) = self.widened(first, last);
        if last - first < SHORT { None } else { self.take(first, last) }
    }

    /// Takes the runs right below and right above `run` out that continue it.
    fn take_neighbours(&mut self, run: &Run) -> [Option<Run>; 2] {
        if self.words.is_empty() || run.unit != Unit::Pages(self.page) {
            return [None, None];
        }
        let before = run.range.first().get().checked_sub(1).map(Iova::new);
        let below = before.and_then(|last| self.run_around(last));
        let above = run.range.end().and_then(|end| self.run_around(end));
        let continued = below.filter(|below| below.placed().continues_to(run.placed()));
        let continuing = above.filter(|above| run.placed().continues_to(above.placed()));
        [continued, continuing].map(|neighbour| {
            let range = neighbour?.range;
            self.take(self.index_of(range.first())?, self.index_of(range.last())?)
        })
    }

    /// Takes the pages of one run out.
    fn take(&mut self, first: u64, last: u64) -> Option<Run> {
        let run = self.run_of(first, last, self.words.get(first))?;
        let kinds = &mut self.kinds;
        self.words.remove(first, last, |word| {
            // The run keeps the owner.
            drop(kinds.leave(word, 1));
        });
        Some(run)
    }

    fn remove(&mut self, range: IovaRange, deferred: &mut Deferred) {
        let Some((first, last)) = self.indices(range) else { return };
        if self.words.are_many_and_all_in(first, last) {
            self.words = Words::default();
            for memory in self.kinds.drain() {
                deferred.release(memory);
            }
            return;
        }
        let kinds = &mut self.kinds;
        // Most neighbours are of one kind: they are counted together.
        let (mut known, mut pages) = (0, 0);
        self.words.remove(first, last, |word| {
            if number_of(known) != number_of(word) {
                kinds.release(known, pages, deferred);
                pages = 0;
            }
            (known, pages) = (word, pages + 1);
        });
        kinds.release(known, pages, deferred);
    }

    /// The runs that share bytes with `range`, ascending, with the pages of them that do.
    fn touching(&self, range: IovaRange) -> impl Iterator<Item = Run> {
        let indices = self.indices(range);
        let mut words = indices.map(|(first, last)| self.words.ascending(first, last).peekable());
        let mut is_first = true;
        std::iter::from_fn(move || {
            let run = self.next_run(words.as_mut()?)?;
            // Whole runs at both ends, as all runs are.
            let at_end = indices.is_some_and(|(_, last)| run.1 == last);
            let (first, last) = if is_first || at_end { self.widened(run.0, run.1) } else { run };
            is_first = false;
            self.run_of(first, last, self.words.get(first))
        })
    }

    /// The next words that continue each other: the indices of the first and the last.
    fn next_run(&self, words: &mut Peekable<Ascending<'_>>) -> Option<(u64, u64)> {
        let step = self.page.bytes();
        let (first, mut word) = words.next()?;
        let mut last = first;
        while let Some((_, next)) =
            words.next_if(|(index, next)| *index == last + 1 && word.checked_add(step) == Some(*next))
        {
            (last, word) = (last + 1, next);
        }
        Some((first, last))
    }

    /// The pages `first` to `last`, which are of one run, with all others of the run.
    fn widened(&self, mut first: u64, mut last: u64) -> (u64, u64) {
        let step = self.page.bytes();
        let (mut lowest, mut highest) = (self.words.get(first), self.words.get(last));
        while let Some(below) = first.checked_sub(1) {
            let word = self.words.get(below);
            if word == 0 || word.checked_add(step) != Some(lowest) {
                break;
            }
            (first, lowest) = (below, word);
        }
        while let Some(next) = highest.checked_add(step) {
            if self.words.get(last + 1) != next {
                break;
            }
            (last, highest) = (last + 1, next);
        }
        (first, last)
    }

    fn run_around(&self, at: Iova) -> Option<Run> {
        let index = self.index_of(at)?;
        if self.words.get(index) == 0 {
            return None;
        }
        let (first, last) = self.widened(index, index);
        self.run_of(first, last, self.words.get(first))
    }

    /// The word of the page around `at`, or zero, and `true` if the page is a part of a longer run.
    fn word_at(&self, at: Iova) -> (u64, bool) {
        let Some(index) = self.index_of(at) else { return (0, false) };
        self.words.word_near(index, self.page.bytes())
    }

    /// The page around `at`, whose word this is.
    fn page_at(&self, at: Iova, word: u64) -> Option<Mapping> {
        let page = self.page;
        let first = page.round_down(at.get());
        let range = IovaRange::new(Iova::new(first), Iova::new(first | (page.bytes() - 1))).ok()?;
        let memory = self.kinds.memory(word)?.like_this_at(word & ADDRESS, NonZeroU64::new(page.bytes())?);
        Some(Mapping { range, memory, access: rights_of(word), unit: Unit::Pages(page) })
    }

    /// The host address of the byte at `at`, and the rights to it.
    fn translate(&self, at: Iova) -> Option<(HostAddress, Access)> {
        let page = self.page;
        let word = self.words.get(self.index_of(at)?);
        if word == 0 {
            return None;
        }
        let offset = at.get() & (page.bytes() - 1);
        Some((HostAddress::new((word & ADDRESS) + offset), rights_of(word)))
    }

    /// The run of the pages `first` to `last`, of which `word` is the first.
    fn run_of(&self, first: u64, last: u64, word: u64) -> Option<Run> {
        let page = self.page;
        let start = page.round_down(self.first.get()).checked_add(first << page.shift())?;
        let len = NonZeroU64::new((last - first + 1) << page.shift())?;
        let range = IovaRange::with_len(Iova::new(start), len.get()).ok()?;
        let memory = self.kinds.memory(word)?.like_this_at(word & ADDRESS, len);
        Some(Run { range, memory, access: rights_of(word), unit: Unit::Pages(page) })
    }

    fn hull(&self, range: IovaRange) -> Option<(IovaRange, u64)> {
        let (page, (first, last)) = (self.page, self.indices(range)?);
        let (first, last, count) = self.words.extent(first, last)?;
        let pages = self.range_of(first, last)?.intersection(range)?;
        Some((pages, count << page.shift()))
    }

    fn are_none_in(&self, range: IovaRange) -> bool {
        match self.indices(range) {
            None => true,
            Some((first, last)) if first == last => self.words.get(first) == 0,
            Some((first, last)) => self.words.ascending(first, last).next().is_none(),
        }
    }

    /// Returns whether all of `range` is pages of the table.
    fn cover(&self, range: IovaRange) -> bool {
        let Some((first, last)) = self.indices(range) else { return false };
        let page = self.page;
        let reaches = self.range_of(first, last).is_some_and(|pages| pages.covers(range));
        let wanted = (last - first).saturating_add(1);
        debug_assert!(range.bytes() <= u128::from(wanted) << page.shift(), "the pages of a range cover it");
        reaches && self.words.extent(first, last).is_some_and(|(.., count)| count == wanted)
    }

    fn cut_before(&self, border: Iova) -> Option<IovaRange> {
        let page = self.page;
        if page.divides(border.get()) {
            return None;
        }
        let index = self.index_of(border).filter(|index| self.words.get(*index) != 0);
        index.and_then(|_| page_around(page, border))
    }

    fn onto(&self, memory: &HostMemory, range: IovaRange) -> Option<IovaRange> {
        if !self.kinds.reach(memory) {
            return None;
        }
        self.touching(range).find(|run| run.memory.overlaps(memory)).map(|run| run.range)
    }

    /// The index of the page that `at` lies in.
    fn index_of(&self, at: Iova) -> Option<u64> {
        let page = self.page;
        Some(at.get().checked_sub(page.round_down(self.first.get()))? >> page.shift())
    }

    /// The indices of the pages that share bytes with `range`.
    fn indices(&self, range: IovaRange) -> Option<(u64, u64)> {
        if self.words.is_empty() {
            return None;
        }
        Some((self.index_of(range.first().max(self.first))?, self.index_of(range.last())?))
    }

    fn range_of(&self, first: u64, last: u64) -> Option<IovaRange> {
        let page = self.page;
        let base = page.round_down(self.first.get());
        let end = base.checked_add(last << page.shift())?.checked_add(page.bytes() - 1)?;
        IovaRange::new(Iova::new(base.checked_add(first << page.shift())?), Iova::new(end)).ok()
    }
}

impl Kind {
    /// The kind of `memory`, without pages.
    fn of(memory: &HostMemory) -> Self {
        Self { memory: Some(memory.clone()), live: 0, lowest: u64::MAX, highest: 0 }
    }

    #[inline(always)]
    fn is_of(&self, memory: &HostMemory) -> bool {
        self.memory.as_ref().is_some_and(|known| known.is_of_a_kind(memory))
    }

    fn count(&mut self, (first, last): (u64, u64), pages: u64) {
        self.live += pages;
        self.lowest = self.lowest.min(first);
        self.highest = self.highest.max(last);
    }
}

impl Kinds {
    /// Counts `pages` more of the kind of `memory`, and returns the kind's number. `None` if there are too many kinds.
    #[inline(always)]
    fn enter(&mut self, memory: &HostMemory, pages: u64) -> Option<u16> {
        let bytes = (memory.address().get(), memory.last().get());
        if let Some(kind) = self.by_number.get_mut(usize::from(self.last)) {
            if kind.is_of(memory) {
                kind.count(bytes, pages);
                return Some(self.last);
            }
        }
        let number = self.another_number_for(memory)?;
        self.count(number, bytes, pages);
        Some(number)
    }

    /// Counts `pages` more of a kind, the first and the last byte of which are these.
    #[inline]
    fn count(&mut self, number: u16, bytes: (u64, u64), pages: u64) {
        let kind = self.by_number.get_mut(usize::from(number));
        debug_assert!(kind.is_some(), "a kind without a place");
        if let Some(kind) = kind {
            kind.count(bytes, pages);
        }
    }

    /// The number of the kind of `memory`, which may be new. `None` if there are too many kinds.
    #[inline]
    fn number_for(&mut self, memory: &HostMemory) -> Option<u16> {
        match self.by_number.get(usize::from(self.last)) {
            Some(kind) if kind.is_of(memory) => Some(self.last),
            _ => self.another_number_for(memory),
        }
    }

    /// [`Kinds::number_for`] of memory that is not of the kind of the last insertion, or of a kind without pages.
    #[inline(never)]
    fn another_number_for(&mut self, memory: &HostMemory) -> Option<u16> {
        self.last = match self.revive(memory) {
            Some(number) => number,
            None => self.number_of(memory).or_else(|| self.add(memory))?,
        };
        Some(self.last)
    }

    /// Gives the idle kind, if it is the only kind there is, the memory if that is of its unplug unit.
    fn revive(&mut self, memory: &HostMemory) -> Option<u16> {
        let (_, number) = self.idle.filter(|(unit, _)| self.by_unit.len() == 1 && *unit == memory.unit())?;
        let kind = self.by_number.get_mut(usize::from(number))?;
        debug_assert!(kind.memory.is_none() && kind.live == 0, "an idle kind has pages");
        kind.memory = Some(memory.clone());
        (kind.lowest, kind.highest) = (u64::MAX, 0);
        self.idle = None;
        Some(number)
    }

    /// The number of the idle kind, which is forgotten.
    fn take_idle(&mut self) -> Option<u16> {
        let idle = self.idle.take()?;
        if let Ok(place) = self.by_unit.binary_search(&idle) {
            self.by_unit.remove(place);
        }
        Some(idle.1)
    }

    fn number_of(&self, memory: &HostMemory) -> Option<u16> {
        let unit = memory.unit();
        let first = self.by_unit.partition_point(|(known, _)| *known < unit);
        let of_unit = self.by_unit.get(first..)?.iter().take_while(|(known, _)| *known == unit);
        let is_of = |number: &u16| self.by_number.get(usize::from(*number)).is_some_and(|kind| kind.is_of(memory));
        of_unit.map(|(_, number)| *number).find(is_of)
    }

    fn add(&mut self, memory: &HostMemory) -> Option<u16> {
        let kind = Kind::of(memory);
        let number = match self.unused.pop().or_else(|| self.take_idle()) {
            Some(number) => {
                *self.by_number.get_mut(usize::from(number))? = kind;
                number
            }
            None if self.by_number.len() < KINDS => {
                self.by_number.push(kind);
                u16::try_from(self.by_number.len() - 1).ok()?
            }
            None => return None,
        };
        let entry = (memory.unit(), number);
        self.by_unit.insert(self.by_unit.partition_point(|known| *known < entry), entry);
        Some(number)
    }

    /// Counts `pages` of the kind of `word` less. Returns the kind's memory if these were the last.
    #[inline(always)]
    fn leave(&mut self, word: u64, pages: u64) -> Option<HostMemory> {
        let number = number_of(word);
        let kind = self.by_number.get_mut(usize::from(number))?;
        debug_assert!(kind.live >= pages, "a page of a kind without pages");
        kind.live = kind.live.saturating_sub(pages);
        if kind.live > 0 { None } else { self.retire(number) }
    }

    /// [`Kinds::leave`] of any number of pages, with the memory dropped later.
    fn release(&mut self, word: u64, pages: u64, deferred: &mut Deferred) {
        if pages > 0 {
            if let Some(memory) = self.leave(word, pages) {
                deferred.release(memory);
            }
        }
    }

    /// Forgets all kinds, and returns their memory.
    fn drain(&mut self) -> impl Iterator<Item = HostMemory> {
        std::mem::take(self).by_number.into_iter().filter_map(|kind| kind.memory)
    }

    /// Takes the memory of a kind without pages out. The kind is idle then.
    #[inline(never)]
    fn retire(&mut self, number: u16) -> Option<HostMemory> {
        if self.idle.is_some() {
            let before = self.take_idle();
            self.unused.extend(before);
        }
        let memory = self.by_number.get_mut(usize::from(number))?.memory.take()?;
        self.idle = Some((memory.unit(), number));
        Some(memory)
    }

    fn memory(&self, word: u64) -> Option<&HostMemory> {
        self.by_number.get(usize::from(number_of(word)))?.memory.as_ref()
    }

    /// Returns whether a page of any kind may share bytes with `memory`.
    fn reach(&self, memory: &HostMemory) -> bool {
        let mut used = self.by_number.iter().filter(|kind| kind.live > 0);
        used.any(|kind| kind.lowest <= memory.last().get() && memory.address().get() <= kind.highest)
    }
}

/// The word of a page at a host address.
fn word_of(address: u64, kind: u16, access: Access) -> u64 {
    address | (u64::from(kind) << KIND_SHIFT) | u64::from(access.bits())
}

/// The number of the kind in a word.
fn number_of(word: u64) -> u16 {
    u16::try_from((word & !ADDRESS) >> KIND_SHIFT).unwrap_or_default()
}

fn rights_of(word: u64) -> Access {
    Access::from_bits_truncate(u8::try_from(word & RIGHTS).unwrap_or_default())
}

/// The length of a range; 2^64 - 1 for all 2^64 bytes.
pub(super) fn len_of(range: IovaRange) -> u64 {
    range.len().map_or(u64::MAX, std::num::NonZeroU64::get)
}

impl<'a> Placed<'a> {
    /// A mapping without a copy of its memory.
    pub(super) fn of(mapping: &'a Mapping) -> Self {
        Self { range: mapping.range, memory: &mapping.memory, access: mapping.access, unit: mapping.unit }
    }

    /// Returns whether this run and the one right above it can be one: they are alike and their memory is adjacent.
    fn continues_to(self, next: Self) -> bool {
        self.access == next.access
            && self.unit == next.unit
            && self.unit != Unit::Whole
            && self.range.touches(next.range)
            && self.memory.last().get().checked_add(1) == Some(next.memory.address().get())
            && self.memory.is_of_a_kind(next.memory)
    }
}

impl Run {
    fn into_mapping(self) -> Mapping {
        let Self { range, memory, access, unit } = self;
        Mapping { range, memory, access, unit }
    }

    /// The part of the run at `part`, which lies in it.
    fn part(&self, part: IovaRange) -> Option<Self> {
        let memory = match part.len() {
            Some(len) => self.memory.slice(self.range.offset_of(part.first()), len.get()),
            None => Some(self.memory.clone()),
        };
        debug_assert!(memory.is_some(), "{part} is no part of {}", self.range);
        Some(Self { range: part, memory: memory?, access: self.access, unit: self.unit })
    }

    fn placed(&self) -> Placed<'_> {
        Placed { range: self.range, memory: &self.memory, access: self.access, unit: self.unit }
    }

    /// The run and the one right above it as one, if they can be.
    fn joined(&self, next: &Self) -> Option<Self> {
        if !self.placed().continues_to(next.placed()) {
            return None;
        }
        let memory = self.memory.joined_with(&next.memory)?;
        Some(Self { range: self.range.hull(next.range), memory, access: self.access, unit: self.unit })
    }

    /// The unit of this run that has `border` strictly inside.
    fn unit_cut_before(&self, border: Iova) -> Option<IovaRange> {
        if border > self.range.last() {
            return None;
        }
        match self.unit {
            Unit::Whole => Some(self.range),
            Unit::Pages(page) => page_around(page, border),
        }
    }
}

/// The page with `border` strictly inside; `None` on the border of two pages.
fn page_around(page: PageSize, border: Iova) -> Option<IovaRange> {
    if page.divides(border.get()) {
        return None;
    }
    IovaRange::with_len(Iova::new(page.round_down(border.get())), page.bytes()).ok()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    const K4: Unit = Unit::Pages(PageSize::K4);

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(first), Iova::new(last)).expect("a range of the test")
    }

    fn mapping(first: u64, pages: u64, host: u64, unit: Unit) -> Mapping {
        let len = NonZeroU64::new(pages * 0x1000).expect("not empty");
        let memory = HostMemory::unbacked(HostAddress::new(host), len).expect("no wrap");
        let range = IovaRange::with_len(Iova::new(first), len.get()).expect("a range of the test");
        Mapping { range, memory, access: Access::READ_WRITE, unit }
    }

    fn index(mappings: impl IntoIterator<Item = Mapping>) -> Index {
        let mut index = Index::new(Iova::new(0), PageSize::K4);
        for mapping in mappings {
            index.insert(Placed::of(&mapping));
        }
        index
    }

    #[test]
    fn pages_that_continue_each_other_are_one_run_in_any_order() {
        let index = index([
            mapping(0x2000, 1, 0x7002_0000, K4),
            mapping(0x0000, 1, 0x7000_0000 + 0x1_e000, K4),
            mapping(0x1000, 1, 0x7000_0000 + 0x1_f000, K4),
        ]);
        assert_eq!(index.within(IovaRange::all()).collect::<Vec<_>>(), [mapping(0, 3, 0x7001_e000, K4)]);
    }

    #[test]
    fn whole_units_and_pages_that_do_not_continue_stay_apart() {
        let whole = index([mapping(0, 1, 0x7000_0000, Unit::Whole), mapping(0x1000, 1, 0x7000_1000, Unit::Whole)]);
        assert_eq!(whole.within(IovaRange::all()).count(), 2);
        let others = index([mapping(0, 1, 0x7000_0000, K4), mapping(0x1000, 1, 0x7000_2000, K4)]);
        assert_eq!(others.within(IovaRange::all()).count(), 2);
    }

    #[test]
    fn removing_the_middle_leaves_both_ends_with_their_memory() {
        let mut index = index([mapping(0x1000, 4, 0x7000_0000, K4)]);
        index.remove(range(0x2000, 0x2fff), &mut Deferred::default());
        let left: Vec<_> = index.within(IovaRange::all()).collect();
        assert_eq!(left, [mapping(0x1000, 1, 0x7000_0000, K4), mapping(0x3000, 2, 0x7000_2000, K4)]);
    }

    #[test]
    fn ends_inside_a_unit_cut_it() {
        let index = index([mapping(0x1000, 4, 0x7000_0000, Unit::Whole), mapping(0x1_0000, 4, 0x7010_0000, K4)]);
        assert_eq!(index.cut_by(range(0x2000, 0xffff)), Some(range(0x1000, 0x4fff)));
        assert_eq!(index.cut_by(range(0, 0x1fff)), Some(range(0x1000, 0x4fff)));
        assert_eq!(index.cut_by(range(0x1000, 0x4fff)), None);
        assert_eq!(index.cut_by(range(0, u64::MAX)), None);
        assert_eq!(index.cut_by(range(0x1_1000, 0x1_1fff)), None);
        assert_eq!(index.cut_by(range(0x1_1800, 0x1_1fff)), Some(range(0x1_1000, 0x1_1fff)));
    }

    #[test]
    fn the_hull_counts_only_live_bytes() {
        let index = index([mapping(0x1000, 1, 0x7000_0000, K4), mapping(0x5000, 2, 0x7010_0000, K4)]);
        assert_eq!(index.hull(range(0, 0x5fff)), Some((range(0x1000, 0x5fff), 0x2000)));
        assert_eq!(index.hull(range(0x2000, 0x4fff)), None);
    }

    #[test]
    fn gaps_are_found_before_between_and_after() {
        let index = index([mapping(0x1000, 1, 0x7000_0000, K4), mapping(0x3000, 1, 0x7010_0000, K4)]);
        assert_eq!(index.gap_in(range(0, 0x1fff)), Some(range(0, 0xfff)));
        assert_eq!(index.gap_in(range(0x1000, 0x3fff)), Some(range(0x2000, 0x2fff)));
        assert_eq!(index.gap_in(range(0x3000, 0x4fff)), Some(range(0x4000, 0x4fff)));
        assert_eq!(index.gap_in(range(0x3000, 0x3fff)), None);
    }

    #[test]
    fn the_last_page_of_all_can_be_added_and_removed() {
        let top = u64::MAX - 0xfff;
        let mut index = index([mapping(top, 1, 0x7000_0000, K4)]);
        assert_eq!(index.at(Iova::new(u64::MAX)), Some(mapping(top, 1, 0x7000_0000, K4)));
        index.remove(range(top, u64::MAX), &mut Deferred::default());
        assert_eq!(index.hull(IovaRange::all()), None);
    }

    /// A window of 1,024 pages in which a model keeps each page by itself.
    mod model {
        use proptest::prelude::*;

        use super::*;

        const FIRST: u64 = 0x4_0000_0000;
        const PAGES: u64 = 256;

        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        struct Unmerged {
            host: u64,
            unit: u64,
            access: Access,
        }

        #[derive(Clone, Debug)]
        enum Step {
            /// Pages at a place, with the host's pages that continue at a place of a few, of one of three unplug units.
            Map {
                at: u64,
                pages: u64,
                host: u64,
                unit: u64,
                read_only: bool,
            },
            /// The same in parts of so many pages, which continue each other in the memory or come in descending order.
            MapParts {
                at: u64,
                parts: u64,
                pages: u64,
                unit: u64,
                descending: bool,
            },
            Unmap {
                at: u64,
                pages: u64,
            },
        }

        fn step() -> impl Strategy<Value = Step> {
            let pages = prop_oneof![6 => 1_u64..3, 2 => 3_u64..40, 1 => 30_u64..120];
            let map = (0..PAGES, pages.clone(), 0_u64..4, 0_u64..3, prop::bool::weighted(0.2));
            let parts = (0..PAGES, 1_u64..80, 1_u64..3, 0_u64..3, any::<bool>());
            prop_oneof![
                1 => parts.prop_map(|(at, parts, pages, unit, descending)| {
                    Step::MapParts { at, parts, pages, unit, descending }
                }),
                3 => map.prop_map(|(at, pages, host, unit, read_only)| Step::Map { at, pages, host, unit, read_only }),
                1 => (0..PAGES, pages).prop_map(|(at, pages)| Step::Unmap { at, pages }),
            ]
        }

        fn page_range(at: u64, pages: u64) -> IovaRange {
            IovaRange::with_len(Iova::new(FIRST + at * 0x1000), pages * 0x1000).expect("inside")
        }

        fn memory_at(page: Unmerged, pages: u64) -> HostMemory {
            let len = NonZeroU64::new(pages * 0x1000).expect("not empty");
            HostMemory::unbacked(HostAddress::new(page.host), len).expect("no wrap").in_unit(page.unit)
        }

        /// The model's pages, joined.
        fn runs(model: &BTreeMap<u64, Unmerged>) -> Vec<Mapping> {
            let mut runs: Vec<(u64, u64, Unmerged)> = Vec::new();
            for (at, page) in model {
                match runs.last_mut() {
                    Some((first, pages, start))
                        if *first + *pages == *at
                            && Unmerged { host: start.host + *pages * 0x1000, ..*start } == *page =>
                    {
                        *pages += 1;
                    }
                    _ => runs.push((*at, 1, *page)),
                }
            }
            let run = |(at, pages, page): (u64, u64, Unmerged)| {
                let (range, memory) = (page_range(at, pages), memory_at(page, pages));
                Mapping { range, memory, access: page.access, unit: K4 }
            };
            runs.into_iter().map(run).collect()
        }

        fn apply(index: &mut Index, model: &mut BTreeMap<u64, Unmerged>, step: &Step) {
            match *step {
                Step::Map { at, pages, host, unit, read_only } => {
                    let pages = pages.min(PAGES - at);
                    if index.overlap(page_range(at, pages)).is_some() {
                        return;
                    }
                    // Often the host's pages continue as the bus does, so that runs meet.
                    let access = if read_only { Access::READ } else { Access::READ_WRITE };
                    let page = Unmerged { host: 0x7000_0000 + host * 0x1_0000_0000 + at * 0x1000, unit, access };
                    let memory = memory_at(page, pages);
                    let mapping = Mapping { range: page_range(at, pages), memory, access, unit: K4 };
                    index.insert(Placed::of(&mapping));
                    for n in 0..pages {
                        model.insert(at + n, Unmerged { host: page.host + n * 0x1000, ..page });
                    }
                }
                Step::MapParts { at, parts, pages, unit, descending } => {
                    let count = parts.min((PAGES - at) / pages);
                    if count == 0 || index.overlap(page_range(at, count * pages)).is_some() {
                        return;
                    }
                    let access = Access::READ;
                    let first = Unmerged { host: 0x7000_0000 + at * 0x1000, unit, access };
                    let memory = memory_at(first, count * pages);
                    let place = |n: u64| if descending { count - 1 - n } else { n } * pages;
                    let part = |n: u64| BatchPart {
                        range: page_range(at + n * pages, pages),
                        memory: 0,
                        offset: place(n) * 0x1000,
                        access,
                    };
                    index.insert_parts(&memory, access, K4, &(0..count).map(part).collect::<Vec<_>>());
                    for n in 0..count * pages {
                        let host = first.host + (place(n / pages) + n % pages) * 0x1000;
                        model.insert(at + n, Unmerged { host, ..first });
                    }
                }
                Step::Unmap { at, pages } => {
                    let pages = pages.min(PAGES - at);
                    match index.place_of(page_range(at, pages)).filter(|place| place.is_live()) {
                        Some(place) => drop(index.remove_page(place)),
                        None => index.remove(page_range(at, pages), &mut Deferred::default()),
                    }
                    model.retain(|page, _| !(at..at + pages).contains(page));
                }
            }
        }

        fn check(index: &Index, model: &BTreeMap<u64, Unmerged>, at: u64, pages: u64) {
            let expected = runs(model);
            assert_eq!(index.within(IovaRange::all()).collect::<Vec<_>>(), expected);
            let range = page_range(at, pages);
            let inside: Vec<_> = model.range(at..at + pages).map(|(at, _)| *at).collect();
            let hull = inside.first().zip(inside.last());
            let hull = hull.map(|(first, last)| (page_range(*first, last - first + 1), inside.len() as u64 * 0x1000));
            assert_eq!(index.hull(range), hull);
            assert_eq!(index.gap_in(range).is_none(), inside.len() as u64 == pages);
            let around = expected.iter().find(|run| run.range.contains(range.first()));
            assert_eq!(index.at(range.first()).as_ref(), around);
            let host = around.map(|run| run.memory.address().get() + run.range.offset_of(range.first()));
            let reached = around.zip(host).map(|(run, host)| (HostAddress::new(host), run.access));
            assert_eq!(index.translate(range.first()), reached);
            let over = expected.iter().find(|run| run.range.overlaps(range)).map(|run| run.range);
            assert_eq!(index.overlap(range), over);
            let memory = memory_at(Unmerged { host: 0x7000_0000 + at * 0x1000, unit: 0, access: Access::READ }, pages);
            let onto = expected.iter().any(|run| run.memory.overlaps(&memory));
            assert_eq!(index.onto(&memory, IovaRange::all()).is_some(), onto);
            if let Some(quiet) = index.quiet {
                let near =
                    |run: &Run| run.range.overlaps(quiet) || run.range.touches(quiet) || quiet.touches(run.range);
                assert!(!index.runs.values().any(near), "a run near {quiet}");
            }
            let live: u64 = index.pages.kinds.by_number.iter().map(|kind| kind.live).sum();
            let words = index.pages.words.extent(0, u64::MAX).map_or(0, |(.., count)| count);
            assert_eq!(live, words, "each page is counted once");
            let long = index.runs.values().map(|run| run.range.bytes() >> 12).sum::<u128>();
            assert_eq!(long + u128::from(words), model.len() as u128);
        }

        /// Miri takes seconds for a step.
        const STEPS: usize = if cfg!(miri) { 8 } else { 80 };

        proptest! {
            #[test]
            fn the_index_is_as_a_list_of_pages(
                steps in prop::collection::vec(step(), 1..STEPS), at in 0..PAGES - 40, pages in 1_u64..40,
            ) {
                let (mut index, mut model) = (Index::new(Iova::new(FIRST), PageSize::K4), BTreeMap::new());
                for step in steps {
                    apply(&mut index, &mut model, &step);
                    check(&index, &model, at, pages);
                }
                let all: Vec<_> = index.within(IovaRange::all()).collect();
                prop_assert_eq!(index.drain(), all);
            }
        }
    }

    #[test]
    fn pages_of_more_kinds_than_a_word_can_name_are_kept_too() {
        let mut index = index([]);
        let kinds = KINDS as u64 + 10;
        for n in 0..kinds {
            let mut page = mapping(n * 0x2000, 1, 0x7000_0000, K4);
            page.memory = page.memory.in_unit(n);
            index.insert(Placed::of(&page));
        }
        assert_eq!(index.within(IovaRange::all()).count() as u64, kinds);
        assert_eq!(index.hull(IovaRange::all()).map(|(_, bytes)| bytes), Some(kinds * 0x1000));
        index.remove(IovaRange::all(), &mut Deferred::default());
        assert_eq!(index.hull(IovaRange::all()), None);
    }

    #[test]
    fn the_last_page_of_an_owner_releases_it() {
        let page = |at: u64| mapping(at, 1, 0x7000_0000, K4);
        let mut index = index([page(0), page(0x2000)]);
        index.remove(range(0, 0xfff), &mut Deferred::default());
        assert!(index.pages.kinds.by_number.iter().all(|kind| kind.memory.is_some()));
        index.remove(range(0x2000, 0x2fff), &mut Deferred::default());
        assert!(index.pages.kinds.by_number.iter().all(|kind| kind.memory.is_none()));
        assert_eq!(index.pages.kinds.by_unit.len(), 1, "the idle kind keeps its number");
    }

    #[test]
    fn an_idle_kind_serves_the_next_memory_of_any_unit() {
        let page = |unit: u64, access: Access| {
            let mut page = mapping(0, 1, 0x7000_0000, K4);
            (page.memory, page.access) = (page.memory.in_unit(unit), access);
            page
        };
        let mut index = index([]);
        for (unit, access) in [(1, Access::READ), (1, Access::READ_WRITE), (2, Access::READ), (1, Access::READ)] {
            let wanted = page(unit, access);
            index.insert(Placed::of(&wanted));
            assert_eq!(index.at(Iova::new(0)), Some(wanted));
            index.remove(range(0, 0xfff), &mut Deferred::default());
            let kinds = &index.pages.kinds;
            assert!(kinds.by_number.iter().all(|kind| kind.memory.is_none()));
            assert_eq!(kinds.by_unit.len() + kinds.unused.len(), kinds.by_number.len());
        }
        assert_eq!(index.pages.kinds.by_number.len(), 1, "the number is used again");
    }
}
