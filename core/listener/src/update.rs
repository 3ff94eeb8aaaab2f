//! Updates, and the view they change: the front end's description, checked as a whole before anything else happens.

use crate::pieces::{Conflict, Pieces};
use crate::section::{Backing, Section, TargetMemory};
use dmaspace_core::words::address::{Iova, IovaRange, SystemAddress};
use dmaspace_core::words::memory::HostMemory;

/// A transaction: sections and target memory that are removed and added. Nothing happens until it is committed.
///
/// Removals come first: a section that is moved, or changed in place, is removed as it was and added as it is.
#[derive(Clone, Debug, Default)]
pub struct Update {
    pub(super) removed: Vec<Section>,
    pub(super) added: Vec<Section>,
    pub(super) removed_targets: Vec<TargetMemory>,
    pub(super) added_targets: Vec<TargetMemory>,
    pub(super) clears_entries: bool,
}

impl Update {
    /// An update that changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a section.
    #[must_use]
    pub fn adding(mut self, section: Section) -> Self {
        self.added.push(section);
        self
    }

    /// Removes a section, which must be in the view exactly so.
    #[must_use]
    pub fn removing(mut self, section: Section) -> Self {
        self.removed.push(section);
        self
    }

    /// Adds target memory.
    #[must_use]
    pub fn adding_target(mut self, target: TargetMemory) -> Self {
        self.added_targets.push(target);
        self
    }

    /// Removes target memory, which must be in the view exactly so.
    #[must_use]
    pub fn removing_target(mut self, target: TargetMemory) -> Self {
        self.removed_targets.push(target);
        self
    }

    /// Has the commit clear the live entries that point to target memory that is removed, in every space, and list them
    /// in [`Report::cleared`](crate::Report::cleared). Without it such entries refuse the commit
    /// ([`CommitError::StillMapped`](crate::CommitError::StillMapped)).
    ///
    /// For memory that is unplugged while the guest has not cleared its entries: devices lose the memory, and the guest
    /// is not told. Entries that the kernel writes are not cleared: they still refuse the commit. The tables of a
    /// guest on POWER know nothing of it: use `PciHostBridge::unplug_memory` of dmaspace-spapr-guest there.
    #[must_use]
    pub fn clearing_entries(self) -> Self {
        Self { clears_entries: true, ..self }
    }

    /// The sections removed.
    pub fn removed(&self) -> &[Section] {
        &self.removed
    }

    /// The sections added.
    pub fn added(&self) -> &[Section] {
        &self.added
    }

    /// The target memory removed.
    pub fn removed_targets(&self) -> &[TargetMemory] {
        &self.removed_targets
    }

    /// The target memory added.
    pub fn added_targets(&self) -> &[TargetMemory] {
        &self.added_targets
    }

    /// The update that undoes this one.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            removed: self.added,
            added: self.removed,
            removed_targets: self.added_targets,
            added_targets: self.removed_targets,
            clears_entries: self.clears_entries,
        }
    }

    /// Returns whether the section at `range` is removed.
    pub(super) fn removes(&self, range: IovaRange) -> bool {
        self.removed.iter().any(|section| section.range() == range)
    }

    /// Returns whether anything is added.
    pub(super) fn adds(&self) -> bool {
        !(self.added.is_empty() && self.added_targets.is_empty())
    }

    /// Returns whether target memory is removed or added.
    pub(super) fn concerns_targets(&self) -> bool {
        !(self.removed_targets.is_empty() && self.added_targets.is_empty())
    }

    /// Returns whether entries may have to be cleared because target memory goes.
    pub(super) fn strands(&self) -> bool {
        self.clears_entries && !self.removed_targets.is_empty()
    }

    /// Returns whether the update is about nothing that is mapped or registered, so that the windows and the
    /// registrations of a host stay as they are.
    pub(super) fn is_of_emulated_sections(&self) -> bool {
        let mut sections = self.removed.iter().chain(&self.added);
        !self.concerns_targets() && sections.all(|section| matches!(section.backing(), Backing::Nothing))
    }

    /// Returns whether the update changes nothing.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty()
            && self.added.is_empty()
            && self.removed_targets.is_empty()
            && self.added_targets.is_empty()
    }
}

/// The reason why an update contradicts itself or the view. Nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadUpdate {
    /// A piece is removed that is not in the view in this form.
    #[error("{0} is removed, but is not there in this form")]
    NotThere(String),
    /// A piece is added that overlaps one that stays or is added too.
    #[error("{0} is added, but overlaps {1}")]
    Overlap(String, String),
    /// A piece is added that shares memory with a discardable section, or a discardable section shares memory with a
    /// piece: a block that is discarded in the section would still be mapped, or pinned, by the piece.
    #[error("{0} is added, but shares memory with {1}, and discardable memory can be in one place only")]
    SharesMemory(String, String),
    /// A range is removed that holds a part of a section: a section is removed whole.
    #[error("{1} is removed, but holds only a part of {0}")]
    Cut(String, IovaRange),
}

impl From<Conflict> for BadUpdate {
    fn from(conflict: Conflict) -> Self {
        match conflict {
            Conflict::NotThere(piece) => Self::NotThere(piece),
            Conflict::Overlap(piece, there) => Self::Overlap(piece, there),
        }
    }
}

/// The front end's description of the guest so far.
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
            self.sections.revert(update.removed.iter(), update.added.iter());
        }
        Ok(targets?)
    }

    /// Checks that all discardable sections have their memory to themselves after the update, whose changes are made.
    /// `discardables` are the first bytes of the discardable sections before the update.
    pub(super) fn check_discardable_memory<'a>(
        &self,
        update: &Update,
        discardables: impl Iterator<Item = &'a Iova> + Clone,
    ) -> Result<(), BadUpdate> {
        let staying: Vec<&Section> = discardables
            .filter_map(|first| self.sections.beginning_at(*first))
            .filter(|section| is_discardable(section))
            .collect();
        for section in &update.added {
            let other =
                if is_discardable(section) { self.shown_elsewhere(section) } else { sharing(&staying, section) };
            if let Some(other) = other {
                return Err(BadUpdate::SharesMemory(section.to_string(), other));
            }
        }
        for target in &update.added_targets {
            let section = staying.iter().find(|section| shows(section, target.memory()));
            if let Some(section) = section {
                return Err(BadUpdate::SharesMemory(target.to_string(), section.to_string()));
            }
        }
        Ok(())
    }

    /// The name of another piece that shows memory of `section`.
    fn shown_elsewhere(&self, section: &Section) -> Option<String> {
        let memory = section.memory()?;
        if let Some(other) = self.sections.iter().find(|other| other.range() != section.range() && shows(other, memory))
        {
            return Some(other.to_string());
        }
        self.targets.iter().find(|target| target.memory().overlaps(memory)).map(ToString::to_string)
    }

    /// Undoes the update's changes.
    pub(super) fn revert(&mut self, update: &Update) {
        self.sections.revert(update.removed.iter(), update.added.iter());
        self.targets.revert(update.removed_targets.iter(), update.added_targets.iter());
    }
}

/// Returns whether `next` continues `section` on the bus and in the host, with the same rights.
pub(super) fn continues(section: &Section, next: &Section) -> bool {
    let (Some((memory, access)), Some((more, same))) = (section.direct(), next.direct()) else { return false };
    section.range().touches(next.range()) && access == same && memory.is_continued_by(more)
}

fn is_discardable(section: &Section) -> bool {
    matches!(section.backing(), Backing::Discardable { .. })
}

/// Returns whether a section shows bytes of `memory`.
fn shows(section: &Section, memory: &HostMemory) -> bool {
    section.memory().is_some_and(|shown| shown.overlaps(memory))
}

/// The name of one of `others` that shows memory of `section`.
fn sharing(others: &[&Section], section: &Section) -> Option<String> {
    let memory = section.memory()?;
    let mut others = others.iter();
    others.find(|other| other.range() != section.range() && shows(other, memory)).map(ToString::to_string)
}
