//! A listener's input, in a form that serde can write and read: one [`Line`] for each event.
//!
//! This module has the words and their checks; the text format, with an example, is in the `recording` module of the
//! crate `dmaspace`. A recording is foreign input: no number in it is trusted.

mod piece;

pub use piece::{Asked, BadPiece, Made, Piece, PieceKind, SpaceOf};

use serde::{Deserialize, Serialize};

use crate::CommitError;
use crate::section::{self, FrontEnd};
use dmaspace_core::contract::PciAddressSpace;
use dmaspace_core::words::address::{Iova, IovaRange};
pub use dmaspace_core::words::json::{Hex, JsonWindow};

/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;

/// One event that happened, or is about to.
///
/// Exhaustive: another event needs another [`VERSION`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase", deny_unknown_fields)]
pub enum Line {
    /// The record begins.
    Begin {
        /// [`VERSION`].
        version: u32,
        /// The fate of required sections that lose bytes.
        shrink: RecordedShrink,
        /// The ranges in which later changes are expected.
        cuts: Vec<RecordedCuts>,
        /// The bytes that a change of a few pages may disturb elsewhere.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        chunk: Option<u64>,
        /// The view, ascending.
        in_force: Vec<Piece>,
        /// The spaces served, in the order they were attached.
        spaces: Vec<RecordedSpace>,
    },
    /// An update is about to be committed.
    Update {
        /// The pieces removed.
        removed: Vec<Piece>,
        /// The pieces added.
        added: Vec<Piece>,
    },
    /// A space is about to be attached, as the last one.
    Join {
        /// The space.
        space: RecordedSpace,
    },
    /// A space is about to be detached.
    Leave {
        /// The index of the space among the spaces served.
        space: usize,
    },
    /// The last update, join or leave is done, or it failed and everything is as before.
    Ended {
        /// The outcome.
        result: Ending,
        /// The reason of a failure, in words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
    },
}

/// The outcome of an event.
///
/// Exhaustive: another outcome needs another [`VERSION`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// Success.
    Ok,
    /// A host cannot provide something required. No call was made.
    Refused,
    /// A call failed and everything was undone, or the request contradicted itself.
    Error,
}

impl Ending {
    /// The outcome that this failure, or none, means.
    pub fn of(failure: Option<&CommitError>) -> Self {
        match failure {
            None => Self::Ok,
            Some(CommitError::Refused(_)) => Self::Refused,
            Some(_) => Self::Error,
        }
    }
}

/// The fate of required sections that lose bytes.
///
/// Exhaustive: another fate needs another [`VERSION`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordedShrink {
    /// [`section::Shrink::Refuse`].
    Refuse,
    /// [`section::Shrink::Report`].
    Report,
}

/// A range in which later changes are expected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RecordedCuts {
    /// The first bus address.
    pub first: Hex,
    /// The last bus address, which is inside.
    pub last: Hex,
    /// The step of the changes, in bytes.
    pub step: u64,
}

/// A space that is served, as far as a reader can use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RecordedSpace {
    /// The backend's name.
    pub backend: String,
    /// The host's windows at that time, ascending.
    pub windows: Vec<JsonWindow>,
}

impl RecordedSpace {
    /// The facts of a space.
    pub fn of(space: &dyn PciAddressSpace) -> Self {
        let windows = space.windows().windows.iter().map(JsonWindow::of).collect();
        Self { backend: space.describe().backend.to_owned(), windows }
    }
}

/// The largest number of pieces that cuts may ask for: more than a kernel has mappings for in one container, and few
/// enough to plan.
pub const MOST_CUTS: u64 = 1 << 16;

/// The front end a record begins with.
///
/// # Errors
/// [`BadPiece`] for a range, step or chunk that is none, and for more than [`MOST_CUTS`] pieces.
pub fn front_end(shrink: RecordedShrink, cuts: &[RecordedCuts], chunk: Option<u64>) -> Result<FrontEnd, BadPiece> {
    let cuts = cuts.iter().map(RecordedCuts::read).collect::<Result<Vec<_>, _>>()?;
    let pieces = cuts.iter().map(|cuts| cuts.range.bytes().div_ceil(u128::from(cuts.step.bytes()))).sum::<u128>();
    if pieces > u128::from(MOST_CUTS) {
        return Err(BadPiece(format!("cuts into at most {MOST_CUTS} pieces, found {pieces}")));
    }
    let shrink = match shrink {
        RecordedShrink::Refuse => section::Shrink::Refuse,
        RecordedShrink::Report => section::Shrink::Report,
    };
    let chunk = chunk.map(|bytes| piece::page("chunk", bytes)).transpose()?;
    Ok(FrontEnd { shrink, cuts, chunk })
}

impl RecordedCuts {
    /// The recorded form of a front end's cuts.
    pub fn of(cuts: &section::Cuts) -> Self {
        Self { first: Hex(cuts.range.first().get()), last: Hex(cuts.range.last().get()), step: cuts.step.bytes() }
    }

    fn read(&self) -> Result<section::Cuts, BadPiece> {
        let range = IovaRange::new(Iova::new(self.first.0), Iova::new(self.last.0));
        let range = range.map_err(|_| BadPiece::order(self.first, self.last))?;
        let step = piece::page("step", self.step)?;
        Ok(section::Cuts { range, step })
    }
}

impl RecordedShrink {
    /// The recorded form of a front end's choice.
    pub fn of(shrink: section::Shrink) -> Self {
        match shrink {
            section::Shrink::Refuse => Self::Refuse,
            section::Shrink::Report => Self::Report,
        }
    }
}
