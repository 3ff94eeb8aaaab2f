//! The difference between two lists of pieces.

use std::iter::Peekable;

use dmaspace_core::words::address::Address;

use crate::update::Piece;

/// The pieces to remove from `in_force`, which is ascending, and to add to it, so that it becomes `wanted`: one walk
/// along both.
pub(crate) fn difference<'a, A: Address, T: Piece<A> + 'a>(
    in_force: impl Iterator<Item = &'a T>,
    wanted: &'a [T],
) -> (Vec<T>, Vec<T>) {
    let mut now = in_force.peekable();
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    for piece in ascending(wanted) {
        remove_below(&mut now, piece.range().first(), &mut removed);
        match now.next_if(|known| known.range().first() == piece.range().first()) {
            Some(same) if same == piece => {}
            changed => {
                removed.extend(changed.cloned());
                added.push(piece.clone());
            }
        }
    }
    removed.extend(now.cloned());
    (removed, added)
}

fn remove_below<'a, A: Address, T: Piece<A> + 'a>(
    now: &mut Peekable<impl Iterator<Item = &'a T>>,
    first: A,
    removed: &mut Vec<T>,
) {
    while let Some(piece) = now.next_if(|piece| piece.range().first() < first) {
        removed.push(piece.clone());
    }
}

/// The pieces by first address. Most front ends list them in that order already.
fn ascending<A: Address, T: Piece<A>>(pieces: &[T]) -> Vec<&T> {
    let mut ascending: Vec<&T> = pieces.iter().collect();
    if !pieces.is_sorted_by_key(|piece| piece.range().first()) {
        ascending.sort_by_key(|piece| piece.range().first());
    }
    ascending
}
