//! The outcome of each section and why, as a plan foresees it and a commit reports it.

use std::borrow::Cow;
use std::fmt;

use dmaspace_core::words::access::Access;
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::page::PageSize;

use crate::section::{Need, Section, TargetMemory};

/// The outcome for a section or for target memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
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
    /// No device is there yet to reach it; the guest needs it, so the first device gets it or is refused.
    Pending,
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
            Self::Pending => "pending",
            Self::Skipped => "skipped",
            Self::Refused => "refused",
        })
    }
}

/// The reason for a fate: facts, which become words when they are displayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FateReason(Facts);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Facts {
    /// In these words.
    Told(Cow<'static, str>),
    /// Mapped with this access, in pages of this size, but for so many bytes at the beginning and at the end.
    Mapped(Access, PageSize, u64, u64),
}

impl FateReason {
    /// The reason for memory that is mapped in pages of `granule`, without so many bytes at its ends.
    pub(super) fn mapped(access: Access, granule: PageSize, lost_head: u64, lost_tail: u64) -> Self {
        Self(Facts::Mapped(access, granule, lost_head, lost_tail))
    }

    /// Corrects the size of pages after smaller ones were granted than planned. Bytes that were lost to the planned
    /// pages stay lost.
    pub(super) fn correct_pages(&mut self, planned: PageSize, granted: PageSize) {
        match &mut self.0 {
            Facts::Mapped(_, granule, 0, 0) if *granule == planned => *granule = granted,
            Facts::Mapped(..) => {}
            Facts::Told(words) => {
                *words = words.replace(&format!("with {planned} pages"), &format!("with {granted} pages")).into();
            }
        }
    }
}

impl From<&'static str> for FateReason {
    fn from(words: &'static str) -> Self {
        Self(Facts::Told(words.into()))
    }
}

impl From<String> for FateReason {
    fn from(words: String) -> Self {
        Self(Facts::Told(words.into()))
    }
}

impl fmt::Display for FateReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Facts::Told(words) => f.write_str(words),
            Facts::Mapped(access, granule, 0, 0) => write!(f, "{access} with {granule} pages"),
            Facts::Mapped(access, granule, head, tail) => {
                write!(f, "{access}, without {head} + {tail} bytes that are no whole page of {granule}")
            }
        }
    }
}

/// A piece of the view and its fate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verdict<T> {
    /// The section or target memory.
    pub piece: T,
    /// Its fate.
    pub fate: Fate,
    /// The reason, which becomes words when it is displayed.
    pub reason: FateReason,
    /// Bytes at its beginning that are not reached, because a page began earlier.
    pub lost_head: u64,
    /// Bytes at its end that are not reached, because a page ends later.
    pub lost_tail: u64,
}

impl<T> Verdict<T> {
    pub(super) fn new(piece: T, fate: Fate, reason: impl Into<FateReason>) -> Self {
        Self { piece, fate, reason: reason.into(), lost_head: 0, lost_tail: 0 }
    }
}

impl<T: fmt::Display> fmt::Display for Verdict<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.piece, self.fate, self.reason)
    }
}

/// The effects of a commit, or the expected ones, on one space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpaceReport {
    /// The backend's name.
    pub backend: &'static str,
    /// The sections whose fate this commit decides, ascending: those added, and those in whose pages or mappings
    /// something changes. The other sections of a long run are not among them.
    pub sections: Vec<Verdict<Section>>,
    /// The target memory whose fate this commit decides, ascending.
    pub targets: Vec<Verdict<TargetMemory>>,
    /// Bytes handed to calls that pin them.
    pub pinned: u64,
    /// Bytes mapped whose pins are shared with other spaces, or registered as other spaces have them registered: pinned
    /// once for all of them, and not counted above.
    pub shared: u64,
    /// Bytes that are the same before and after, but unmapped in between.
    pub disturbed: u64,
    /// Facts that a user should know although the commit succeeded, each cause once for as long as it lasts.
    pub warnings: Vec<Warning>,
}

/// A fact that a user should know although the guest can live with it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warning {
    /// The section's name.
    pub name: String,
    /// The cause.
    pub cause: WarningCause,
    /// The place, the reason and the remedy, in words.
    pub text: String,
}

/// The cause of a warning. A section gets one warning for each cause, until a commit finds that the cause is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum WarningCause {
    /// Bytes at its ends are not reached.
    LosesBytes,
    /// It is best effort, and devices do not reach it.
    NotMapped,
    /// The kernel does not take as many mappings as discardable sections have blocks.
    FewMappings,
    /// So many blocks are registrations of their own that every entry becomes expensive.
    ManyRegistrations,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Warning {
    /// The warning that a fate deserves, if any; `advice` follows the words.
    pub(super) fn of(verdict: &Verdict<Section>, advice: &str) -> Option<Self> {
        let best_effort = verdict.piece.need() == Some(Need::BestEffort);
        let cause = match verdict.fate {
            Fate::Skipped if best_effort => WarningCause::NotMapped,
            Fate::Mapped | Fate::Skipped if verdict.lost_head > 0 || verdict.lost_tail > 0 => WarningCause::LosesBytes,
            _ => return None,
        };
        Some(Self { name: verdict.piece.name().into(), cause, text: format!("{verdict}{advice}") })
    }
}

impl SpaceReport {
    /// The first section or target memory that is refused, in words.
    pub fn refusal(&self) -> Option<String> {
        if let Some(section) = self.sections.iter().find(|verdict| verdict.fate == Fate::Refused) {
            return Some(section.to_string());
        }
        self.targets.iter().find(|verdict| verdict.fate == Fate::Refused).map(ToString::to_string)
    }
}

/// The effects of a commit, or the expected ones: one report for each space, in the order they were attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// One for each space.
    pub spaces: Vec<SpaceReport>,
    /// The sections that this commit adds while the listener serves no space, ascending. Empty if it serves one.
    pub unserved: Vec<Verdict<Section>>,
    /// The bus addresses of live entries that the commit cleared in any of the spaces
    /// ([`Update::clearing_entries`](crate::Update::clearing_entries)), ascending, neighbours joined. A dry run lists
    /// none.
    pub cleared: Vec<IovaRange>,
}

impl Report {
    /// The sections that the guest needs and that are not in force yet, for want of a device: those of spaces without
    /// one, and those of a listener without a space. A device that is added gets them, or is refused.
    pub fn pending(&self) -> impl Iterator<Item = &Verdict<Section>> {
        let of_spaces = self.spaces.iter().flat_map(|space| &space.sections);
        of_spaces.chain(&self.unserved).filter(|verdict| verdict.fate == Fate::Pending)
    }
}
