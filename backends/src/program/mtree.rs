//! QEMU's `info mtree -f`: the flat views of a guest's address spaces, as text.
//!
//! The format is QEMU's own (qemu: system/memory.c, mtree_print_flatview; up to 2.9 each address space had a heading
//! of its own):
//!
//! ```text
//! FlatView #1
//!  AS "memory", root: system
//!  Root memory region: system
//!   0000000000100000-00000000bfffffff (prio 0, ram): pc.ram @0000000000100000
//! ```
//!
//! A text is read as people have it, through [`crate::program::surroundings`]: the lines around the views are passed
//! over and counted. Ranges are strict. A line that is a range, and no good one, is refused with its number: a range
//! that is guessed at would show up much later, as one that is mapped wrongly. The words for the content of a range
//! are QEMU's, and they grow: a new one is kept as it is.

mod kind;
mod line;
mod range;
mod reader;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

pub(crate) use kind::{Kind, What};
pub(crate) use line::is_heading;
pub(crate) use reader::parse;

use crate::program::printable;

/// The flat views in a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlatViews {
    /// The views, never none.
    pub(crate) views: Vec<FlatView>,
    /// The number of lines around them that were passed over.
    pub(crate) passed_over: usize,
}

/// A flat view: a layout that address spaces share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlatView {
    /// The line it begins with.
    pub(crate) line: usize,
    /// The address spaces, never none. Where the text names none, the root region's name stands for one.
    pub(crate) spaces: Vec<AddressSpace>,
    /// The ranges, ascending and disjoint.
    pub(crate) ranges: Vec<Range>,
    /// `true` if QEMU says that it has no ranges.
    pub(crate) is_empty: bool,
}

impl FlatView {
    /// Adds a range. The list grows by a quarter, since it is the larger part of a long text.
    fn push(&mut self, range: Range) {
        const FEWEST: usize = 16;
        if self.ranges.len() == self.ranges.capacity() {
            self.ranges.reserve_exact((self.ranges.len() / 4).max(FEWEST));
        }
        self.ranges.push(range);
    }
}

/// An address space by its two names. Several may share one: every function behind an emulated IOMMU has a `vtd-root`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddressSpace {
    /// Its own.
    pub(crate) name: String,
    /// The name of the memory region at its root.
    pub(crate) root: String,
}

/// A range of a flat view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// Its line.
    pub(crate) line: usize,
    /// The first address.
    pub(crate) first: u64,
    /// The last address, which is inside.
    pub(crate) last: u64,
    /// The kind of its content.
    pub(crate) kind: Kind,
    /// The name of the memory region behind it.
    pub(crate) name: Arc<str>,
    /// The place in that region at which the range begins.
    pub(crate) offset: u64,
}

/// A line that does not have the expected form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}{}", instead(.found))]
pub(crate) struct BadLine {
    /// Its number, from 1; one past the last when the text ends too early.
    pub(crate) line: usize,
    /// The expected form.
    pub(crate) expected: String,
    /// The line itself; nothing at the end of the text.
    pub(crate) found: Option<String>,
}

/// As much of a line as is worth repeating.
const REPEATED: usize = 60;

fn instead(line: &Option<String>) -> String {
    match line {
        None => ", but the text ends".to_owned(),
        Some(line) => format!(", found {}", printable::quoted(line, REPEATED)),
    }
}

/// Names, each held once: a guest's RAM is in thousands of ranges.
#[derive(Debug, Default)]
struct Names {
    names: BTreeSet<Arc<str>>,
}

impl Names {
    fn of(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        let held: Arc<str> = name.into();
        self.names.insert(held.clone());
        held
    }
}

impl fmt::Display for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
pub(crate) mod tests;
