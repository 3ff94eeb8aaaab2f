//! One line: which part of a flat view it is.

use super::AddressSpace;
use super::range::RangeText;

/// The parts that views are made of, and what ends one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// `FlatView #<number>`, or QEMU 2.9's heading, which names the address space.
    Heading(Option<AddressSpace>),
    /// ` AS "<name>", root: <region>`.
    Space(AddressSpace),
    /// ` Root memory region: <region>`.
    Root(&'a str),
    /// A range, or the expected form.
    Range(Result<RangeText<'a>, &'static str>),
    /// `No rendered FlatView`.
    Empty,
    /// `Dispatch` (`info mtree -f -d`), a monitor's prompt or the fence of a forum: the view is over.
    End,
    /// A heading of `info mtree` without `-f`: trees follow, whose ranges overlap.
    Tree,
    /// Something that is no part of a view.
    Other,
}

const HEADING: &str = "FlatView #";
/// QEMU 2.9 (qemu: memory.c, mtree_info).
const OLD_HEADING: &str = "address-space (flat view): ";

/// Returns whether flat views begin with a line.
pub(crate) fn is_heading(line: &str) -> bool {
    matches!(Part::of(line), Part::Heading(_) | Part::Root(_))
}

impl<'a> Part<'a> {
    /// The part a line is. A log may put something before it.
    pub(super) fn of(line: &'a str) -> Self {
        RangeText::of(line).map_or_else(|| Self::of_words(line), Self::Range)
    }

    fn of_words(line: &'a str) -> Self {
        /// The fence of a forum.
        const SHORTEST: usize = 3;
        if line.len() < SHORTEST {
            return Self::Other;
        }
        if let Some((_, number)) = line.split_once(HEADING) {
            let is_number = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
            return if is_number { Self::Heading(None) } else { Self::Other };
        }
        if let Some((_, name)) = line.split_once(OLD_HEADING) {
            return Self::Heading(Some(AddressSpace { name: name.to_owned(), root: String::new() }));
        }
        if let Some(space) = space(line) {
            return Self::Space(space);
        }
        if let Some((_, root)) = line.split_once("Root memory region: ") {
            return Self::Root(root);
        }
        match line {
            _ if line.contains("No rendered FlatView") => Self::Empty,
            _ if line == "Dispatch" || line.ends_with(" Dispatch") => Self::End,
            _ if line.contains("(qemu)") || line.starts_with("```") => Self::End,
            _ if is_of_a_tree(line) => Self::Tree,
            _ => Self::Other,
        }
    }
}

/// `info mtree` without `-f` is the mistake that will be made (qemu: system/memory.c, mtree_info_as).
fn is_of_a_tree(line: &str) -> bool {
    ["address-space: ", "memory-region: "].iter().any(|heading| line.starts_with(heading))
}

/// `AS "memory", root: system`, perhaps with `, alias <region>` behind it.
fn space(line: &str) -> Option<AddressSpace> {
    let (_, rest) = line.split_once("AS \"")?;
    let (name, behind) = rest.split_once("\", root: ")?;
    let root = behind.split_once(", alias ").map_or(behind, |(root, _)| root);
    Some(AddressSpace { name: name.to_owned(), root: root.to_owned() })
}
