//! Reading flat views, line by line.

use std::collections::BTreeSet;

use super::line::Part;
use super::range::RangeText;
use super::{AddressSpace, BadLine, FlatView, FlatViews, Names, Range, What};
use crate::program::printable;
use crate::program::surroundings::{Line, Lines, PassedOver, Text};

pub(super) const VIEW: &str =
    "`FlatView #<number>`, as QEMU's `info mtree -f` begins; or a trace of QEMU's VFIO events, or a recording";

/// Reads a text.
///
/// # Errors
/// The first range that is no good one; where there is no view at all, the first line.
pub(crate) fn parse(text: &Text<'_>) -> Result<FlatViews, BadLine> {
    let mut lines = text.lines();
    let mut reader = Reader::default();
    while let Some(line) = lines.next() {
        reader.read(&line, &mut lines)?;
    }
    reader.finish(lines.number())
}

/// A guest has an address space for each PCI function, and for some functions a few more.
const MOST_SPACES: usize = 1 << 18;
/// A text may have the views of several commands.
const MOST_VIEWS: usize = 1 << 18;

/// The views read so far.
#[derive(Default)]
struct Reader {
    views: Vec<FlatView>,
    /// The view that is being read, or was read last.
    view: Option<FlatView>,
    place: Place,
    /// The number of address spaces so far.
    spaces: usize,
    names: Names,
    /// Words behind offsets that are no accelerators known here.
    marks: BTreeSet<String>,
    passed_over: PassedOver,
    /// The first line that was passed over, which is where a text that has no view is wrong.
    first_passed: Option<BadLine>,
    /// `true` once the text had a tree.
    has_tree: bool,
}

/// The reader's place in the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Before, between and after views.
    #[default]
    Outside,
    /// In a tree of `info mtree` without `-f`.
    Tree,
    /// In a view that has no root yet.
    Spaces,
    /// In a view whose ranges follow.
    Ranges,
}

impl Reader {
    fn read(&mut self, line: &Line<'_>, lines: &mut Lines<'_>) -> Result<(), BadLine> {
        match Part::of(&line.text) {
            Part::Heading(space) => {
                self.begin(line)?;
                if let Some(space) = space {
                    self.add_space(line, space)?;
                }
            }
            Part::Space(space) => {
                if self.place != Place::Spaces {
                    self.begin(line)?;
                }
                self.add_space(line, space)?;
            }
            Part::Root(root) => {
                if self.place != Place::Spaces {
                    self.begin(line)?;
                }
                self.place = Place::Ranges;
                self.name_view(root);
            }
            Part::Empty if matches!(self.place, Place::Spaces | Place::Ranges) => {
                self.view().is_empty = true;
                self.place = Place::Outside;
            }
            Part::Range(range) if self.takes_ranges(range.is_ok()) => return self.read_range(line, range, lines),
            part => {
                self.leave(&part);
                self.pass(line);
                return Ok(());
            }
        }
        self.passed_over.take(line);
        Ok(())
    }

    /// Returns whether a range belongs to a view. A good one may stand alone, without a heading.
    fn takes_ranges(&self, is_good: bool) -> bool {
        match self.place {
            Place::Spaces | Place::Ranges => true,
            Place::Outside => is_good && !self.has_tree,
            Place::Tree => false,
        }
    }

    /// Something that is no part of a view.
    fn leave(&mut self, part: &Part<'_>) {
        match part {
            Part::End => self.place = Place::Outside,
            Part::Tree => {
                self.place = Place::Tree;
                self.has_tree = true;
            }
            _ => {}
        }
    }

    fn begin(&mut self, line: &Line<'_>) -> Result<(), BadLine> {
        if self.views.len() >= MOST_VIEWS {
            return Err(bad(line, format!("no more than {MOST_VIEWS} flat views")));
        }
        self.views.extend(self.view.replace(FlatView { line: line.number, ..FlatView::default() }));
        self.place = Place::Spaces;
        Ok(())
    }

    fn add_space(&mut self, line: &Line<'_>, space: AddressSpace) -> Result<(), BadLine> {
        self.spaces += 1;
        if self.spaces > MOST_SPACES {
            return Err(bad(line, format!("no more than {MOST_SPACES} address spaces")));
        }
        self.view().spaces.push(space);
        Ok(())
    }

    fn view(&mut self) -> &mut FlatView {
        debug_assert!(self.view.is_some(), "a view was begun");
        self.view.get_or_insert_default()
    }

    /// A view that names no address space goes by its root.
    fn name_view(&mut self, root: &str) {
        let view = self.view();
        if view.spaces.is_empty() {
            view.spaces.push(AddressSpace { name: root.to_owned(), root: root.to_owned() });
        }
    }

    fn read_range(
        &mut self,
        line: &Line<'_>,
        range: Result<RangeText<'_>, &'static str>,
        lines: &mut Lines<'_>,
    ) -> Result<(), BadLine> {
        if self.place == Place::Outside {
            self.begin(line)?;
        }
        self.place = Place::Ranges;
        match unfolded(line, range.is_ok(), lines) {
            Some(Unfolded { text, continued }) => {
                let whole = RangeText::of(&text).unwrap_or(Err(super::range::RANGE));
                self.add_range(line, whole)?;
                for _ in 0..continued {
                    self.passed_over.extend_taken(lines.next());
                }
                Ok(())
            }
            None => self.add_range(line, range),
        }
    }

    fn add_range(&mut self, line: &Line<'_>, text: Result<RangeText<'_>, &'static str>) -> Result<(), BadLine> {
        let text = text.map_err(|expected| bad(line, expected))?;
        let before = self.view.as_ref().and_then(|view| view.ranges.last());
        check(&text, before).map_err(|expected| bad(line, expected))?;
        const MOST_MARKS: usize = 16;
        if self.marks.len() < MOST_MARKS {
            self.marks.extend(text.mark.map(str::to_owned));
        }
        let RangeText { first, last, mut kind, offset, .. } = text;
        if let What::Other(word) = &mut kind.what {
            *word = self.names.of(word);
        }
        let range = Range { line: line.number, first, last, kind, name: self.names.of(text.name), offset };
        self.view().push(range);
        self.passed_over.take(line);
        Ok(())
    }

    fn pass(&mut self, line: &Line<'_>) {
        self.passed_over.pass(line);
        if self.first_passed.is_none() && !line.text.is_empty() {
            let expected = if line.had_controls { "text without control characters" } else { VIEW };
            self.first_passed = Some(bad(line, expected));
        }
    }

    fn finish(mut self, last_line: usize) -> Result<FlatViews, BadLine> {
        self.views.extend(self.view.take());
        if self.views.is_empty() {
            let nothing = BadLine { line: last_line, expected: VIEW.into(), found: None };
            let mut first = self.first_passed.unwrap_or(nothing);
            if self.has_tree {
                first.expected.push_str("; `info mtree` prints trees, with `-f` it prints flat views");
            }
            return Err(first);
        }
        self.forget_marks();
        self.check_kinds()?;
        for view in self.views.iter_mut().filter(|view| view.spaces.is_empty()) {
            view.spaces.push(AddressSpace { name: String::new(), root: String::new() });
        }
        Ok(FlatViews { views: self.views, passed_over: self.passed_over.count() })
    }

    /// A region is of one kind. A word that is not known does not stand for memory, unless it was misspelt: then the
    /// guest would lose it. QEMU's own new words are no misspelling: a machine may name a container like the memory in
    /// it.
    fn check_kinds(&self) -> Result<(), BadLine> {
        if !self.ranges().any(is_of_unknown_kind) {
            return Ok(());
        }
        let memory: BTreeSet<_> =
            self.ranges().filter(|range| range.kind.is_memory()).map(|range| &range.name).collect();
        match self.ranges().find(|range| is_of_unknown_kind(range) && memory.contains(&range.name)) {
            None => Ok(()),
            Some(range) => {
                let name = printable::cut(&range.name, LONGEST_NAME);
                let expected = format!("the kind ram, rom, ramd, romd or i/o, of which {name} is elsewhere");
                Err(BadLine { line: range.line, expected, found: Some(range.kind.to_string()) })
            }
        }
    }

    fn ranges(&self) -> impl Iterator<Item = &Range> {
        self.views.iter().flat_map(|view| &view.ranges)
    }

    /// A word that stands behind an offset somewhere is no part of a name anywhere.
    fn forget_marks(&mut self) {
        if self.marks.is_empty() {
            return;
        }
        for range in self.views.iter_mut().flat_map(|view| &mut view.ranges) {
            if let Some((name, mark)) = range.name.rsplit_once(' ') {
                if self.marks.contains(mark) {
                    range.name = self.names.of(name);
                }
            }
        }
    }
}

fn is_of_unknown_kind(range: &Range) -> bool {
    matches!(&range.kind.what, What::Other(word) if &**word != CONTAINER)
}

/// Since QEMU 11 (qemu: system/memory.c, memory_region_type).
const CONTAINER: &str = "container";

/// Flat views are ascending, disjoint, and inside their regions: QEMU never writes anything else.
fn check(range: &RangeText<'_>, before: Option<&Range>) -> Result<(), String> {
    if let Some(before) = before.filter(|before| before.last >= range.first) {
        return Err(format!("a range that begins after the one before it, which ends at {:#x}", before.last));
    }
    let Some(reach) = range.last.checked_sub(range.first) else {
        return Err("a last address that does not lie before the first".to_owned());
    };
    match range.offset.checked_add(reach) {
        Some(_) => Ok(()),
        None => Err("an offset at which the range fits into its region".to_owned()),
    }
}

fn bad(line: &Line<'_>, expected: impl Into<String>) -> BadLine {
    BadLine { line: line.number, expected: expected.into(), found: Some(line.beginning()) }
}

/// As much of a name as is worth repeating.
const LONGEST_NAME: usize = 60;

/// A range with the lines that a mail program folded off it.
struct Unfolded {
    text: String,
    continued: usize,
}

/// Mail programs fold at 72 to 80 columns.
const FOLD: usize = 72;
const WIDEST_FOLD: usize = 80;

/// The range of which `line` is the beginning. `is_whole` is `true` if it is a good range already. Nothing where no
/// fold explains the line: then it stays as it is, and so does the error.
fn unfolded(line: &Line<'_>, mut is_whole: bool, lines: &mut Lines<'_>) -> Option<Unfolded> {
    const MOST_LINES: usize = 3;
    let mut whole: Option<Unfolded> = None;
    let mut cut_off: Option<Line<'_>> = None;
    for continued in 0..MOST_LINES {
        let Some(next) = lines.peek(continued).filter(|next| line.may_go_on_in(next)) else { break };
        let last = cut_off.as_ref().unwrap_or(line);
        let fold = Fold { is_whole, is_cut: last.is_cut, width: last.width, line: &line.text };
        if !fold.continues(&next.text) {
            break;
        }
        let text = whole.as_ref().map_or(line.text.as_ref(), |whole| &whole.text);
        let joint = if text.ends_with('-') { "" } else { last.joint(next) };
        let text = format!("{text}{joint}{}", next.text);
        is_whole = matches!(RangeText::of(&text), Some(Ok(_)));
        whole = Some(Unfolded { text, continued: continued + 1 });
        cut_off = Some(next.clone());
    }
    whole.filter(|_| is_whole)
}

/// Returns whether something stands before a range's addresses, as a log puts it there. No mail program folds a log.
fn has_prefix(line: &str) -> bool {
    line.split_once(" (prio ").is_some_and(|(before, _)| before.contains(' '))
}

/// The end of a line that may have been folded.
struct Fold<'a> {
    /// `true` if it is a good range already, so that only its name can go on.
    is_whole: bool,
    is_cut: bool,
    width: usize,
    /// The line that the range begins with.
    line: &'a str,
}

impl Fold<'_> {
    /// Returns whether a line was folded off.
    fn continues(&self, next: &str) -> bool {
        let first_word = next.split(' ').next().unwrap_or_default();
        let is_offset = first_word.len() == 17 && first_word.starts_with('@');
        let may_go_on = !self.is_whole || is_offset || self.is_cut || self.is_folded_before(first_word, next);
        may_go_on && Part::of(next) == Part::Other && !is_field(first_word)
    }

    fn is_folded_before(&self, first_word: &str, next: &str) -> bool {
        let may_be_folded = self.width <= WIDEST_FOLD && next.len() < FOLD / 2;
        may_be_folded && self.width + 1 + first_word.chars().count() > FOLD && !has_prefix(self.line)
    }
}

/// Returns whether a word is a field of the journal, `_PID=1`.
fn is_field(word: &str) -> bool {
    let name = word.split_once('=').map(|(name, _)| name);
    name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'))
}
