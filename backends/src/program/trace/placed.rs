//! The places of the pieces that a trace told of.

use std::collections::BTreeMap;

use dmaspace::address::{Address, AddressRange};

/// Disjoint pieces by their first address, each with the line that told of it.
pub(crate) struct Placed<A, T> {
    pieces: BTreeMap<A, (AddressRange<A>, T, usize)>,
}

impl<A: Address, T> Default for Placed<A, T> {
    fn default() -> Self {
        Self { pieces: BTreeMap::new() }
    }
}

impl<A: Address, T> Placed<A, T> {
    /// Puts a piece where nothing is.
    ///
    /// # Errors
    /// The expected form, in words, when something is there.
    pub(crate) fn put(&mut self, range: AddressRange<A>, piece: T, line: usize) -> Result<(), String> {
        let below = self.pieces.range(..=range.last()).next_back().map(|(_, piece)| piece);
        if let Some((other, _, line)) = below.filter(|(other, ..)| other.overlaps(range)) {
            return Err(format!(
                "a range that does not overlap {other} of line {line}, which is still there; several containers at \
                 once cannot be told apart"
            ));
        }
        self.pieces.insert(range.first(), (range, piece, line));
        Ok(())
    }

    /// The piece that begins where `range` does.
    pub(crate) fn at(&self, range: AddressRange<A>) -> Option<&T> {
        self.pieces.get(&range.first()).map(|(_, piece, _)| piece)
    }

    /// Takes out what lies in `range`.
    ///
    /// # Errors
    /// The expected form, in words, when something would be cut: QEMU takes away whole pieces, as it gave them.
    pub(crate) fn take(&mut self, range: AddressRange<A>) -> Result<Vec<T>, String> {
        let below = self.pieces.range(..range.first()).next_back().map(|(_, piece)| piece);
        let inside = self.pieces.range(range.first()..=range.last()).map(|(_, piece)| piece);
        let touched = below.into_iter().chain(inside).filter(|(there, ..)| there.overlaps(range));
        let mut going = Vec::new();
        for (there, _, line) in touched {
            if !range.covers(*there) {
                return Err(format!("a range that does not cut {there} of line {line}"));
            }
            going.push(there.first());
        }
        Ok(going.into_iter().filter_map(|first| self.pieces.remove(&first)).map(|(_, piece, _)| piece).collect())
    }

    /// Puts another piece in the place of one.
    pub(crate) fn exchange(&mut self, first: A, piece: T) {
        if let Some((_, there, _)) = self.pieces.get_mut(&first) {
            *there = piece;
        }
    }
}
