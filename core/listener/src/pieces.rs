//! The pieces of one address space: values with disjoint ranges, ascending, in chunks that copies share.
//!
//! A copy of the whole (a dry run's view, the target memory that windows read) shares each chunk with the original
//! until one of both changes it; a change then copies that chunk alone. Lists that front ends hand over are compared
//! chunk by chunk ([`crate::diff`]).
//!
//! # Invariants
//! 1. No chunk is empty, and none has more than [`MOST`] pieces.
//! 2. Pieces are disjoint and ascending, within a chunk and from one chunk to the next.
//! 3. A chunk's `first` is the first address of its first piece.
//! 4. Two neighbours that would fill no more than half a chunk are one, so that chunks are few.

use std::slice;
use std::sync::Arc;

use crate::section::{Section, TargetMemory};
use dmaspace_core::words::address::{Address, AddressRange, Iova, SystemAddress};

/// The most pieces of a chunk: few enough to be moved and copied at little cost.
const MOST: usize = 128;

/// A value with an address range. A clone must cost next to nothing.
pub(crate) trait Piece<A>: Clone + PartialEq + ToString {
    fn range(&self) -> AddressRange<A>;

    /// Returns whether both are clones of one piece, and hence equal.
    fn is_clone_of(&self, other: &Self) -> bool;
}

impl Piece<Iova> for Section {
    fn range(&self) -> AddressRange<Iova> {
        self.range()
    }

    fn is_clone_of(&self, other: &Self) -> bool {
        self.is_clone_of(other)
    }
}

impl Piece<SystemAddress> for TargetMemory {
    fn range(&self) -> AddressRange<SystemAddress> {
        self.range()
    }

    fn is_clone_of(&self, other: &Self) -> bool {
        self.is_clone_of(other)
    }
}

/// The conflict of a change with the pieces there are, or with itself.
#[derive(Debug)]
pub(crate) enum Conflict {
    /// This piece is to be taken out, and is not there in this form.
    NotThere(String),
    /// The first piece is to be put in, and overlaps the second.
    Overlap(String, String),
}

/// The pieces of one address space.
#[derive(Clone, Debug)]
pub(crate) struct Pieces<A, T> {
    chunks: Vec<Chunk<A, T>>,
}

#[derive(Clone, Debug)]
struct Chunk<A, T> {
    first: A,
    pieces: Arc<Vec<T>>,
}

/// A place between pieces: before piece `index` of a chunk, or behind its last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    chunk: usize,
    index: usize,
}

/// The pieces from a place on: the rest of a chunk, and the chunks behind it.
#[derive(Clone, Debug)]
pub(crate) struct Ascending<'a, A, T> {
    pieces: slice::Iter<'a, T>,
    chunks: slice::Iter<'a, Chunk<A, T>>,
}

impl<A, T> Default for Pieces<A, T> {
    fn default() -> Self {
        Self { chunks: Vec::new() }
    }
}

impl<A: Address, T: Piece<A>> Pieces<A, T> {
    /// Takes `removed` out and puts `added` in, or changes nothing.
    pub(crate) fn change(&mut self, removed: &[T], added: &[T]) -> Result<(), Conflict> {
        for (done, piece) in removed.iter().enumerate() {
            if let Err(error) = self.take(piece) {
                self.revert(removed.iter().take(done), [].iter());
                return Err(error);
            }
        }
        for (done, piece) in added.iter().enumerate() {
            if let Err(error) = self.put(piece) {
                self.revert(removed.iter(), added.iter().take(done));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Undoes a change that was made.
    pub(crate) fn revert<'a>(&mut self, removed: impl Iterator<Item = &'a T>, added: impl Iterator<Item = &'a T>)
    where
        T: 'a,
    {
        for piece in added {
            self.remove_at(piece.range().first());
        }
        for piece in removed {
            let place = self.reaching(piece.range().first());
            self.insert(place, piece.clone());
        }
    }

    /// Takes out the pieces of `removed` that are there.
    pub(crate) fn remove_all(&mut self, removed: &[T]) {
        for piece in removed {
            self.remove_at(piece.range().first());
        }
    }

    fn take(&mut self, piece: &T) -> Result<(), Conflict> {
        let first = piece.range().first();
        if self.beginning_at(first) != Some(piece) {
            return Err(Conflict::NotThere(piece.to_string()));
        }
        self.remove_at(first);
        Ok(())
    }

    fn put(&mut self, piece: &T) -> Result<(), Conflict> {
        let place = self.reaching(piece.range().first());
        if let Some(there) = self.at(place).filter(|there| there.range().overlaps(piece.range())) {
            return Err(Conflict::Overlap(piece.to_string(), there.to_string()));
        }
        self.insert(place, piece.clone());
        Ok(())
    }

    /// Removes the piece that begins at `first`, if there is one.
    fn remove_at(&mut self, first: A) {
        let place = self.reaching(first);
        let Some(chunk) = self.chunks.get_mut(place.chunk) else { return };
        if chunk.pieces.get(place.index).is_none_or(|piece| piece.range().first() != first) {
            return;
        }
        Arc::make_mut(&mut chunk.pieces).remove(place.index);
        match chunk.pieces.first() {
            Some(piece) => chunk.first = piece.range().first(),
            None => drop(self.chunks.remove(place.chunk)),
        }
        self.join(place.chunk);
        self.join(place.chunk.saturating_sub(1));
    }

    /// Inserts a piece where it belongs, at a place that [`Pieces::reaching`] found for it.
    fn insert(&mut self, place: Place, piece: T) {
        let first = piece.range().first();
        let Some(chunk) = self.chunks.get_mut(place.chunk) else {
            return self.chunks.push(Chunk { first, pieces: Arc::new(vec![piece]) });
        };
        let pieces = Arc::make_mut(&mut chunk.pieces);
        pieces.insert(place.index.min(pieces.len()), piece);
        chunk.first = chunk.first.min(first);
        if pieces.len() > MOST {
            let upper = pieces.split_off(MOST / 2);
            if let Some(border) = upper.first().map(|piece| piece.range().first()) {
                self.chunks.insert(place.chunk + 1, Chunk { first: border, pieces: Arc::new(upper) });
            }
        }
    }

    /// Joins a chunk with the next one, if both would fill no more than half a chunk.
    fn join(&mut self, chunk: usize) {
        let [lower, upper, ..] = self.chunks.get_mut(chunk..).unwrap_or_default() else { return };
        if lower.pieces.len() + upper.pieces.len() <= MOST / 2 {
            Arc::make_mut(&mut lower.pieces).extend(upper.pieces.iter().cloned());
            self.chunks.remove(chunk + 1);
        }
    }

    /// The place before the first piece that ends at `address` or later.
    fn reaching(&self, address: A) -> Place {
        let chunk = self.chunks.partition_point(|chunk| chunk.first <= address).saturating_sub(1);
        let pieces = self.chunk(chunk);
        Place { chunk, index: pieces.partition_point(|piece| piece.range().last() < address) }
    }

    fn chunk(&self, chunk: usize) -> &[T] {
        self.chunks.get(chunk).map(|chunk| &chunk.pieces[..]).unwrap_or_default()
    }

    /// The piece behind a place.
    fn at(&self, place: Place) -> Option<&T> {
        self.chunk(place.chunk).get(place.index).or_else(|| self.chunk(place.chunk + 1).first())
    }

    /// The piece that has all of `range`.
    pub(crate) fn around(&self, range: AddressRange<A>) -> Option<&T> {
        self.at(self.reaching(range.first())).filter(|piece| piece.range().covers(range))
    }

    /// The pieces that share bytes with `range`, ascending.
    pub(crate) fn within(&self, range: AddressRange<A>) -> impl Iterator<Item = &T> {
        let from = self.reaching(range.first());
        let pieces = self.chunk(from.chunk).get(from.index..).unwrap_or_default();
        let chunks = self.chunks.get(from.chunk + 1..).unwrap_or_default();
        let all = Ascending { pieces: pieces.iter(), chunks: chunks.iter() };
        all.take_while(move |piece| piece.range().first() <= range.last())
    }

    /// The last piece that shares bytes with `range`.
    pub(crate) fn last_within(&self, range: AddressRange<A>) -> Option<&T> {
        let chunk = self.chunks.partition_point(|chunk| chunk.first <= range.last()).checked_sub(1)?;
        let pieces = self.chunk(chunk);
        let last = pieces.partition_point(|piece| piece.range().first() <= range.last()).checked_sub(1)?;
        pieces.get(last).filter(|piece| piece.range().overlaps(range))
    }

    /// All pieces, ascending.
    pub(crate) fn iter(&self) -> Ascending<'_, A, T> {
        Ascending { pieces: [].iter(), chunks: self.chunks.iter() }
    }

    /// The number of pieces.
    pub(crate) fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.pieces.len()).sum()
    }

    /// All pieces, ascending, as slices.
    pub(crate) fn slices(&self) -> impl Iterator<Item = &[T]> {
        self.chunks.iter().map(|chunk| &chunk.pieces[..])
    }

    /// The piece that ends right before `first`.
    pub(crate) fn ending_before(&self, first: A) -> Option<&T> {
        let before = first.get().checked_sub(1).map(A::new)?;
        self.at(self.reaching(before)).filter(|piece| piece.range().end() == Some(first))
    }

    /// The piece that begins at `first`.
    pub(crate) fn beginning_at(&self, first: A) -> Option<&T> {
        self.at(self.reaching(first)).filter(|piece| piece.range().first() == first)
    }
}

impl<'a, A, T> Iterator for Ascending<'a, A, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        loop {
            if let Some(piece) = self.pieces.next() {
                return Some(piece);
            }
            self.pieces = self.chunks.next()?.pieces.iter();
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let known = self.pieces.len();
        (known + self.chunks.len(), Some(known + self.chunks.len() * MOST))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dmaspace_core::words::address::IovaRange;
    use proptest::prelude::*;

    use super::*;

    /// Sections of a few lengths, close enough to overlap.
    fn section(at: u64, len: u64) -> Section {
        Section::nothing("piece", range(at * 4, len))
    }

    fn range(first: u64, len: u64) -> IovaRange {
        IovaRange::with_len(Iova::new(first), len).expect("a range of the test")
    }

    #[derive(Clone, Debug)]
    enum Step {
        Change(Vec<(u64, u64)>, Vec<(u64, u64)>),
        Copy,
    }

    /// Miri takes seconds for a step.
    const STEPS: usize = if cfg!(miri) { 8 } else { 60 };

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let some = || prop::collection::vec((0..400_u64, 1..9_u64), 0..40);
        let change = (some(), some()).prop_map(|(removed, added)| Step::Change(removed, added));
        let step = prop_oneof![8 => change, 1 => Just(Step::Copy)];
        prop::collection::vec(step, 1..STEPS)
    }

    /// The model of a piece list: sections by first byte.
    type Model = BTreeMap<Iova, Section>;

    fn change(model: &mut Model, removed: &[Section], added: &[Section]) -> bool {
        let mut after = model.clone();
        for section in removed {
            if after.get(&section.range().first()) != Some(section) {
                return false;
            }
            after.remove(&section.range().first());
        }
        for section in added {
            if after.values().any(|there| there.range().overlaps(section.range())) {
                return false;
            }
            after.insert(section.range().first(), section.clone());
        }
        *model = after;
        true
    }

    fn check(pieces: &Pieces<Iova, Section>, model: &Model) {
        assert!(pieces.iter().eq(model.values()) && pieces.len() == model.len());
        assert!(pieces.chunks.iter().all(|chunk| (1..=MOST).contains(&chunk.pieces.len())), "invariant 1");
        assert!(pieces.chunks.iter().all(|chunk| chunk.first == chunk.pieces[0].range().first()), "invariant 3");
        let together = pieces.chunks.windows(2).map(|pair| pair[0].pieces.len() + pair[1].pieces.len());
        assert!(together.into_iter().all(|pieces| pieces > MOST / 2), "invariant 4");
        for (first, len) in [(0, 1), (3, 9), (100, 700), (1590, 100), (0, u64::MAX)] {
            let asked = range(first, len);
            assert!(pieces.within(asked).eq(model.values().filter(|section| section.range().overlaps(asked))));
            let last = model.values().rfind(|section| section.range().overlaps(asked));
            assert_eq!(pieces.last_within(asked), last);
            assert_eq!(pieces.around(asked), model.values().find(|section| section.range().covers(asked)));
            let before = model.values().find(|section| section.range().end() == Some(asked.first()));
            assert_eq!(pieces.ending_before(asked.first()), before);
            assert_eq!(pieces.beginning_at(asked.first()), model.get(&asked.first()));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 128 }))]

        #[test]
        fn pieces_behave_as_a_map_by_first_address_does(steps in steps()) {
            let (mut pieces, mut model) = (Pieces::default(), Model::new());
            let mut copies: Vec<(Pieces<Iova, Section>, Model)> = Vec::new();
            for step in steps {
                match step {
                    Step::Copy => copies.push((pieces.clone(), model.clone())),
                    Step::Change(removed, added) => {
                        let there = removed.iter().map(|(at, len)| {
                            model.range(..=Iova::new(*at * 4)).next_back().map_or(section(*at, *len), |it| it.1.clone())
                        });
                        let mut removed: Vec<_> = there.collect();
                        removed.dedup();
                        let mut added: Vec<Section> = added.iter().map(|(at, len)| section(*at, *len)).collect();
                        added.retain(|section| pieces.within(section.range()).next().is_none());
                        let before = model.clone();
                        let is_good = change(&mut model, &removed, &added);
                        prop_assert_eq!(pieces.change(&removed, &added).is_ok(), is_good);
                        check(&pieces, &model);
                        if is_good && added.len() % 3 == 0 {
                            pieces.revert(removed.iter(), added.iter());
                            model = before;
                            check(&pieces, &model);
                        }
                    }
                }
            }
            for (copy, model) in &copies {
                check(copy, model);
            }
        }
    }

    /// Several chunks of pieces; a multiple of 50. Miri takes a minute for a thousand.
    const MANY: u64 = if cfg!(miri) { 300 } else { 1000 };

    #[test]
    fn a_copy_shares_all_chunks_but_the_one_that_changes() {
        let mut pieces = Pieces::default();
        let sections: Vec<_> = (0..MANY).map(|n| section(n, 4)).collect();
        pieces.change(&[], &sections).expect("they are disjoint");
        let copy = pieces.clone();
        pieces.change(&sections[200..201], &[]).expect("it is there");
        let shared = copy.chunks.iter().filter(|chunk| Arc::strong_count(&chunk.pieces) == 2).count();
        assert_eq!(
            (shared, copy.iter().count(), pieces.iter().count()),
            (copy.chunks.len() - 1, sections.len(), sections.len() - 1)
        );
    }

    #[test]
    fn many_pieces_that_go_leave_few_chunks() {
        let mut pieces = Pieces::default();
        let sections: Vec<_> = (0..MANY).map(|n| section(n, 4)).collect();
        pieces.change(&[], &sections).expect("they are disjoint");
        let gone: Vec<_> = sections.iter().enumerate().filter(|(n, _)| n % 50 != 0).map(|(_, it)| it.clone()).collect();
        pieces.change(&gone, &[]).expect("they are there");
        assert_eq!((pieces.iter().count(), pieces.chunks.len()), (sections.len() / 50, 1));
    }
}
