//! What became of what: the fate of every section, with its reason, as a plan foresees it and a commit reports it.

use std::fmt;

use crate::section::{Need, Section, TargetMemory};

/// What becomes of a section or of target memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// Devices reach it, but for the bytes lost at its ends.
    Mapped,
    /// Devices reach it as far as it is populated.
    Discardable,
    /// It is registered, so that entries may point to it.
    Registered,
    /// Its pins are shared: pages that entries pin are pinned once for all spaces.
    PinsShared,
    /// A host window stands behind it; its entries can be put.
    Window,
    /// A write to it is an interrupt; it is never mapped.
    Msi,
    /// Devices do not reach it, and the guest can live with that.
    Skipped,
    /// Devices do not reach it, and the guest cannot live with that: the commit fails.
    Refused,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mapped => "mapped",
            Self::Discardable => "discardable",
            Self::Registered => "registered",
            Self::PinsShared => "pins shared",
            Self::Window => "window",
            Self::Msi => "msi",
            Self::Skipped => "skipped",
            Self::Refused => "refused",
        })
    }
}

/// A piece of the view and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict<T> {
    /// The section or target memory.
    pub piece: T,
    /// What becomes of it.
    pub fate: Fate,
    /// Why, in words.
    pub reason: String,
    /// Bytes at its beginning that are not reached, because a page began earlier.
    pub lost_head: u64,
    /// Bytes at its end that are not reached, because a page ends later.
    pub lost_tail: u64,
}

impl<T> Verdict<T> {
    pub(super) fn new(piece: T, fate: Fate, reason: impl Into<String>) -> Self {
        Self { piece, fate, reason: reason.into(), lost_head: 0, lost_tail: 0 }
    }
}

impl<T: fmt::Display> fmt::Display for Verdict<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.piece, self.fate, self.reason)
    }
}

/// What a commit does, or would do, to one space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpaceReport {
    /// The backend's name.
    pub backend: &'static str,
    /// The sections whose fate this commit decides, ascending.
    pub sections: Vec<Verdict<Section>>,
    /// The target memory whose fate this commit decides, ascending.
    pub targets: Vec<Verdict<TargetMemory>>,
    /// Bytes handed to calls that pin them.
    pub pinned: u64,
    /// Bytes mapped of what other spaces hold too, or registered as they have it: pinned once for all of them, and not counted above.
    pub shared: u64,
    /// Bytes that are the same before and after, but were not there in between.
    pub disturbed: u64,
    /// What a user should know although the commit went well, each cause once for as long as it lasts.
    pub warnings: Vec<Warning>,
}

/// Something a user should know although the guest can live with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The section's name.
    pub name: String,
    /// What is wrong with it.
    pub cause: Cause,
    /// The whole story: where, why, and what would help.
    pub text: String,
}

/// What a warning is about. A section is warned of once for each, until a commit finds that it is so no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// Bytes at its ends are not reached.
    LosesBytes,
    /// It is best effort, and devices do not reach it.
    NotMapped,
    /// The kernel does not take as many mappings as discardable sections have blocks.
    FewMappings,
    /// So many blocks are registrations of their own that every entry becomes dear.
    ManyRegistrations,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Warning {
    /// What is to be said of a fate, if anything; `advice` follows it.
    pub(super) fn of(verdict: &Verdict<Section>, advice: &str) -> Option<Self> {
        let best_effort = verdict.piece.need() == Some(Need::BestEffort);
        let cause = match verdict.fate {
            Fate::Skipped if best_effort => Cause::NotMapped,
            Fate::Mapped | Fate::Skipped if verdict.lost_head > 0 || verdict.lost_tail > 0 => Cause::LosesBytes,
            _ => return None,
        };
        Some(Self { name: verdict.piece.name().into(), cause, text: format!("{verdict}{advice}") })
    }
}

impl SpaceReport {
    /// The first section or target memory that is refused, in words.
    pub fn refusal(&self) -> Option<String> {
        let sections = self.sections.iter().find(|verdict| verdict.fate == Fate::Refused).map(ToString::to_string);
        let targets = || self.targets.iter().find(|verdict| verdict.fate == Fate::Refused).map(ToString::to_string);
        sections.or_else(targets)
    }
}

/// What a commit does, or would do: one report for each space, in the order they joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One for each space.
    pub spaces: Vec<SpaceReport>,
}
