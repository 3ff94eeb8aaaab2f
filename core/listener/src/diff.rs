//! The difference between the pieces in force and a list of them.

use dmaspace_core::words::address::Address;

use crate::pieces::{Piece, Pieces};

/// The pieces to remove from `in_force`, and to add to it, so that it becomes `wanted`. Pieces that were handed over
/// before, in the same order, cost next to nothing: they are recognized without a look at their contents.
pub(crate) fn difference<A: Address, T: Piece<A>>(in_force: &Pieces<A, T>, wanted: &[T]) -> (Vec<T>, Vec<T>) {
    let difference = Difference::walk(in_force, wanted).unwrap_or_else(|| {
        let mut ascending = wanted.to_vec();
        ascending.sort_by_key(|piece| piece.range().first());
        let walked = Difference::walk(in_force, &ascending);
        debug_assert!(walked.is_some(), "a sorted list is ascending");
        walked.unwrap_or_default()
    });
    (difference.removed, difference.added)
}

struct Difference<T> {
    removed: Vec<T>,
    added: Vec<T>,
}

impl<T> Default for Difference<T> {
    fn default() -> Self {
        Self { removed: Vec::new(), added: Vec::new() }
    }
}

impl<T: Clone> Difference<T> {
    /// One walk along both lists. `None` if `wanted` is not ascending.
    fn walk<A: Address>(in_force: &Pieces<A, T>, wanted: &[T]) -> Option<Self>
    where
        T: Piece<A>,
    {
        let (mut difference, mut next) = (Self::default(), 0);
        for now in in_force.slices() {
            next = difference.walk_slice(now, wanted, next)?;
        }
        while let Some(piece) = wanted.get(next) {
            check_ascending(wanted, next)?;
            difference.added.push(piece.clone());
            next += 1;
        }
        Some(difference)
    }

    /// Walks along `now` and along `wanted` from `next` on. Returns the place behind the last piece compared.
    fn walk_slice<A: Address>(&mut self, mut now: &[T], wanted: &[T], mut next: usize) -> Option<usize>
    where
        T: Piece<A>,
    {
        loop {
            let rest = wanted.get(next..).unwrap_or_default();
            let same = now.iter().zip(rest).take_while(|(known, piece)| known.is_clone_of(piece)).count();
            (now, next) = (now.get(same..).unwrap_or_default(), next + same);
            let Some((known, behind)) = now.split_first() else { return Some(next) };
            let Some(piece) = wanted.get(next) else {
                self.removed.extend_from_slice(now);
                return Some(next);
            };
            check_ascending(wanted, next)?;
            let (there, here) = (known.range().first(), piece.range().first());
            if there != here || known != piece {
                if there <= here {
                    self.removed.push(known.clone());
                }
                if here <= there {
                    self.added.push(piece.clone());
                }
            }
            if there <= here {
                now = behind;
            }
            next += usize::from(here <= there);
        }
    }
}

/// `None` if a piece of a list begins before the one that precedes it.
fn check_ascending<A: Address, T: Piece<A>>(pieces: &[T], place: usize) -> Option<()> {
    let begins = place.checked_sub(1).and_then(|before| pieces.get(before..=place)).unwrap_or_default();
    begins.is_sorted_by_key(|piece| piece.range().first()).then_some(())
}

#[cfg(test)]
mod tests {
    use dmaspace_core::words::address::{Iova, IovaRange};

    use super::*;
    use crate::section::Section;

    fn sections(places: &[u64]) -> Vec<Section> {
        let range = |at: u64| IovaRange::with_len(Iova::new(at), 0x10).expect("a range of the test");
        places.iter().map(|at| Section::nothing("section", range(*at * 0x10))).collect()
    }

    fn places(sections: &[Section]) -> Vec<u64> {
        sections.iter().map(|section| section.range().first().get() / 0x10).collect()
    }

    fn check(now: &[Section], wanted: &[Section], removed: &[u64], added: &[u64]) {
        let mut in_force = Pieces::default();
        in_force.change(&[], now).expect("they are disjoint");
        let (gone, come) = difference(&in_force, wanted);
        assert_eq!((places(&gone), places(&come)), (removed.to_vec(), added.to_vec()));
        in_force.change(&gone, &come).expect("the difference fits");
        let mut ascending = wanted.to_vec();
        ascending.sort_by_key(Section::range);
        assert!(in_force.iter().eq(&ascending));
    }

    #[test]
    fn pieces_that_were_handed_over_before_are_no_difference() {
        let places: Vec<_> = (0..if cfg!(miri) { 50 } else { 1000 }).collect();
        let now = sections(&places);
        check(&now, &now, &[], &[]);
        check(&now, &sections(&places), &[], &[]);
    }

    #[test]
    fn the_order_of_a_list_does_not_matter() {
        let now = sections(&[1, 2, 3, 4]);
        let wanted: Vec<_> = now.iter().rev().cloned().chain(sections(&[0, 9])).collect();
        check(&now, &wanted, &[], &[0, 9]);
        check(&now, &[now[0].clone(), now[2].clone(), now[1].clone()], &[4], &[]);
    }

    #[test]
    fn pieces_come_and_go_at_the_ends_and_between() {
        let now = sections(&[1, 2, 4, 6, 8]);
        let some = |places: &[u64]| -> Vec<Section> {
            let known = |at: &u64| now.iter().find(|it| it.range().first().get() == at * 0x10).cloned();
            places.iter().map(|at| known(at).unwrap_or_else(|| sections(&[*at]).remove(0))).collect()
        };
        check(&now, &some(&[0, 1, 2, 4, 6, 8, 9]), &[], &[0, 9]);
        check(&now, &some(&[2, 3, 4, 5, 8]), &[1, 6], &[3, 5]);
        check(&now, &[], &[1, 2, 4, 6, 8], &[]);
        check(&[], &now, &[], &[1, 2, 4, 6, 8]);
    }

    #[test]
    fn a_piece_that_changes_in_place_goes_and_comes() {
        let now = sections(&[1, 2, 3]);
        let mut wanted = now.clone();
        wanted[1] = Section::msi("section", now[1].range());
        check(&now, &wanted, &[2], &[2]);
    }
}
