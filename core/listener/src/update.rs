//! Updates, and the view they change: what the front end said, checked as a whole before anything else happens.

use std::collections::BTreeMap;

use crate::section::{Backing, Section, TargetMemory};
use dmaspace_core::words::address::{Address, AddressRange, Iova, IovaRange, SystemAddress};

/// A transaction: sections and target memory that go and come. Nothing happens until it is committed.
///
/// Removals come first: a section that is moved, or changed in place, is removed as it was and added as it is.
#[derive(Clone, Debug, Default)]
pub struct Update {
    pub(super) removed: Vec<Section>,
    pub(super) added: Vec<Section>,
    pub(super) removed_targets: Vec<TargetMemory>,
    pub(super) added_targets: Vec<TargetMemory>,
}

impl Update {
    /// An update that changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A section comes.
    #[must_use]
    pub fn adding(mut self, section: Section) -> Self {
        self.added.push(section);
        self
    }

    /// A section goes. It must be there exactly so.
    #[must_use]
    pub fn removing(mut self, section: Section) -> Self {
        self.removed.push(section);
        self
    }

    /// Target memory comes.
    #[must_use]
    pub fn adding_target(mut self, target: TargetMemory) -> Self {
        self.added_targets.push(target);
        self
    }

    /// Target memory goes. It must be there exactly so.
    #[must_use]
    pub fn removing_target(mut self, target: TargetMemory) -> Self {
        self.removed_targets.push(target);
        self
    }

    /// The sections that go.
    pub fn removed(&self) -> &[Section] {
        &self.removed
    }

    /// The sections that come.
    pub fn added(&self) -> &[Section] {
        &self.added
    }

    /// The target memory that goes.
    pub fn removed_targets(&self) -> &[TargetMemory] {
        &self.removed_targets
    }

    /// The target memory that comes.
    pub fn added_targets(&self) -> &[TargetMemory] {
        &self.added_targets
    }

    /// The update that takes this one back.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            removed: self.added,
            added: self.removed,
            removed_targets: self.added_targets,
            added_targets: self.removed_targets,
        }
    }

    /// Whether the section at `range` goes.
    pub(super) fn removes(&self, range: IovaRange) -> bool {
        self.removed.iter().any(|section| section.range() == range)
    }

    /// Whether anything comes.
    pub(super) fn adds(&self) -> bool {
        !(self.added.is_empty() && self.added_targets.is_empty())
    }

    /// Whether target memory goes or comes.
    pub(super) fn concerns_targets(&self) -> bool {
        !(self.removed_targets.is_empty() && self.added_targets.is_empty())
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty()
            && self.added.is_empty()
            && self.removed_targets.is_empty()
            && self.added_targets.is_empty()
    }
}

/// Why an update makes no sense. Nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUpdate {
    /// What is removed is not there, or not so.
    #[error("{0} is removed, but is not there in this form")]
    NotThere(String),
    /// What is added overlaps something that stays or is added too.
    #[error("{0} is added, but overlaps {1}")]
    Overlap(String, String),
    /// What is added shares memory with a discardable section, or the other way round: a block that one lets go of the other would
    /// still show to devices, or pin.
    #[error("{0} is added, but shares memory with {1}, and discardable memory can be in one place only")]
    SharesMemory(String, String),
}

/// What lies where in one address space: disjoint pieces by first address.
#[derive(Clone, Debug)]
pub(super) struct Pieces<A, T> {
    pieces: BTreeMap<A, T>,
}

/// Something that lies somewhere.
pub(super) trait Piece<A>: Clone + PartialEq + ToString {
    fn range(&self) -> AddressRange<A>;
}

impl Piece<Iova> for Section {
    fn range(&self) -> AddressRange<Iova> {
        self.range()
    }
}

impl Piece<SystemAddress> for TargetMemory {
    fn range(&self) -> AddressRange<SystemAddress> {
        self.range()
    }
}

impl<A: Address, T> Default for Pieces<A, T> {
    fn default() -> Self {
        Self { pieces: BTreeMap::new() }
    }
}

impl<A: Address, T: Piece<A>> Pieces<A, T> {
    /// Takes `removed` out and puts `added` in, or changes nothing.
    fn change(&mut self, removed: &[T], added: &[T]) -> Result<(), BadUpdate> {
        let mut gone: Vec<&T> = Vec::new();
        let mut come: Vec<&T> = Vec::new();
        let result = removed
            .iter()
            .try_for_each(|piece| {
                self.take(piece)?;
                gone.push(piece);
                Ok(())
            })
            .and_then(|()| {
                added.iter().try_for_each(|piece| {
                    self.put(piece)?;
                    come.push(piece);
                    Ok(())
                })
            });
        if result.is_err() {
            self.revert(&gone, &come);
        }
        result
    }

    /// Undoes a change that was made.
    fn revert(&mut self, removed: &[&T], added: &[&T]) {
        for piece in added {
            self.pieces.remove(&piece.range().first());
        }
        for piece in removed {
            self.pieces.insert(piece.range().first(), (*piece).clone());
        }
    }

    /// Takes `removed` out, as far as it is there.
    pub(super) fn remove_all(&mut self, removed: &[T]) {
        removed.iter().for_each(|piece| drop(self.pieces.remove(&piece.range().first())));
    }

    fn take(&mut self, piece: &T) -> Result<(), BadUpdate> {
        let first = piece.range().first();
        if self.pieces.get(&first) != Some(piece) {
            return Err(BadUpdate::NotThere(piece.to_string()));
        }
        self.pieces.remove(&first);
        Ok(())
    }

    fn put(&mut self, piece: &T) -> Result<(), BadUpdate> {
        if let Some(there) = self.within(piece.range()).next() {
            return Err(BadUpdate::Overlap(piece.to_string(), there.to_string()));
        }
        self.pieces.insert(piece.range().first(), piece.clone());
        Ok(())
    }

    /// The pieces that share bytes with `range`, ascending.
    pub(super) fn within(&self, range: AddressRange<A>) -> impl DoubleEndedIterator<Item = &T> {
        let reaching_in = self.pieces.range(..range.first()).next_back().map(|(_, piece)| piece);
        let reaching_in = reaching_in.filter(move |piece| piece.range().overlaps(range));
        let inside = self.pieces.range(range.first()..=range.last()).map(|(_, piece)| piece);
        reaching_in.into_iter().chain(inside)
    }

    /// All of them, ascending.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.pieces.values()
    }

    /// The piece that ends right before `first`.
    pub(super) fn ending_before(&self, first: A) -> Option<&T> {
        let (_, piece) = self.pieces.range(..first).next_back()?;
        (piece.range().end() == Some(first)).then_some(piece)
    }

    /// The piece that begins at `first`.
    pub(super) fn beginning_at(&self, first: A) -> Option<&T> {
        self.pieces.get(&first)
    }
}

/// What the front end said so far.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub(super) sections: Pieces<Iova, Section>,
    pub(super) targets: Pieces<SystemAddress, TargetMemory>,
}

impl View {
    /// Makes the update's changes, or none.
    pub(super) fn change(&mut self, update: &Update) -> Result<(), BadUpdate> {
        self.sections.change(&update.removed, &update.added)?;
        let targets = self.targets.change(&update.removed_targets, &update.added_targets);
        if targets.is_err() {
            self.sections.revert(&Vec::from_iter(&update.removed), &Vec::from_iter(&update.added));
        }
        targets
    }

    /// Whether all discardable sections have their memory to themselves after the update, whose changes are made. `discardables` are
    /// the places of those that were there before.
    pub(super) fn check_discardable_memory<'a>(
        &self,
        update: &Update,
        discardables: impl Iterator<Item = &'a Iova> + Clone,
    ) -> Result<(), BadUpdate> {
        let is_discardable = |section: &&Section| matches!(section.backing(), Backing::Discardable { .. });
        let staying = discardables.filter_map(|first| self.sections.beginning_at(*first)).filter(is_discardable);
        for section in &update.added {
            let Some(memory) = section.memory() else { continue };
            let shares = |other: &&Section| {
                other.range() != section.range() && other.memory().is_some_and(|shown| shown.overlaps(memory))
            };
            let other = if is_discardable(&section) {
                let target = || self.targets.iter().find(|target| target.memory().overlaps(memory));
                let other = self.sections.iter().find(shares).map(ToString::to_string);
                other.or_else(|| target().map(ToString::to_string))
            } else {
                staying.clone().find(shares).map(ToString::to_string)
            };
            if let Some(other) = other {
                return Err(BadUpdate::SharesMemory(section.to_string(), other));
            }
        }
        for target in &update.added_targets {
            let shares = |section: &&Section| section.memory().is_some_and(|shown| shown.overlaps(target.memory()));
            if let Some(section) = staying.clone().find(shares) {
                return Err(BadUpdate::SharesMemory(target.to_string(), section.to_string()));
            }
        }
        Ok(())
    }

    /// Undoes the update's changes.
    pub(super) fn revert(&mut self, update: &Update) {
        self.sections.revert(&Vec::from_iter(&update.removed), &Vec::from_iter(&update.added));
        self.targets.revert(&Vec::from_iter(&update.removed_targets), &Vec::from_iter(&update.added_targets));
    }
}

/// Whether `next` continues `section` on the bus and in the host, with the same rights.
pub(super) fn continues(section: &Section, next: &Section) -> bool {
    let (Some((memory, access)), Some((more, same))) = (section.direct(), next.direct()) else { return false };
    section.range().touches(next.range()) && access == same && memory.joined_with(more).is_some()
}
