//! Lines without their wrapping, one after another.

use std::borrow::Cow;
use std::collections::VecDeque;

use super::Text;
use super::cleaning;
use super::markup::Unmarked;
use super::rows::Rows;
use super::strings::Wrapped;

/// A line without its wrapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// The number of the file's line, from 1. The lines of one JSON string share it.
    pub(crate) number: usize,
    /// The text, without blanks at either end and without control characters.
    pub(crate) text: Cow<'a, str>,
    /// The columns it took, indentation included.
    pub(crate) width: usize,
    /// `true` if the file had control characters here, line ends apart.
    pub(crate) had_controls: bool,
    /// The number of the string that the line was in; 0 for a line of the file itself. A line does not go on in another
    /// string.
    pub(crate) string: usize,
    /// `true` if a terminal may have cut it, so that it goes on in the next line.
    pub(crate) is_cut: bool,
    /// `true` if blanks were taken off at its beginning, and at its end.
    pub(super) blanks: (bool, bool),
}

impl Line<'_> {
    /// Returns whether `next` may be the rest of this line.
    pub(crate) fn may_go_on_in(&self, next: &Self) -> bool {
        /// Neither mail programs nor terminals are wider.
        const WIDEST: usize = 1 << 14;
        self.string == next.string && !next.text.is_empty() && self.text.len().max(next.text.len()) <= WIDEST
    }

    /// The text between this line and `next`, which is the rest of it.
    pub(crate) fn joint(&self, next: &Self) -> &'static str {
        if self.is_cut && !self.blanks.1 && !next.blanks.0 { "" } else { " " }
    }

    /// Returns whether the line may be more than a word: half of a long text may be empty lines.
    pub(crate) fn may_be_known(&self) -> bool {
        self.text.len() >= SHORTEST
    }

    /// The beginning of the text, as much as an error repeats.
    pub(crate) fn beginning(&self) -> String {
        /// More than any error repeats.
        const LONGEST: usize = 256;
        self.text.char_indices().nth(LONGEST).and_then(|(end, _)| self.text.get(..end)).unwrap_or(&self.text).to_owned()
    }
}

/// No line that a reader knows is shorter.
const SHORTEST: usize = 8;

/// The lines of a text, with a look ahead.
pub(crate) struct Lines<'a> {
    of: &'a Text<'a>,
    rows: Rows,
    /// The number of the file's line that is being read.
    number: usize,
    /// The number of strings so far.
    strings: usize,
    /// The circumstances of the row that is being read.
    taken: Taken,
    /// The lines in that row that are left.
    unmarked: Option<Unmarked<'a>>,
    /// The line that is being read, if it holds others, and the lines in that, in which one holds others.
    wrapped: Vec<Wrapped<'a>>,
    /// The lines that are left in a line that holds no others.
    inner: Option<Unmarked<'a>>,
    ahead: VecDeque<Line<'a>>,
}

/// The circumstances in which a line was found.
#[derive(Clone, Copy, Default)]
struct Taken {
    had_controls: bool,
    is_cut: bool,
}

/// A log in a log in a log.
const DEEPEST: usize = 3;

impl<'a> Lines<'a> {
    pub(super) fn new(of: &'a Text<'a>) -> Self {
        Self {
            of,
            rows: Rows::new(),
            number: 0,
            strings: 0,
            taken: Taken::default(),
            unmarked: None,
            wrapped: Vec::new(),
            inner: None,
            ahead: VecDeque::new(),
        }
    }

    /// The line `distance` lines after the next one.
    pub(crate) fn peek(&mut self, distance: usize) -> Option<&Line<'a>> {
        while self.ahead.len() <= distance {
            let line = self.read()?;
            self.ahead.push_back(line);
        }
        self.ahead.get(distance)
    }

    /// The number of the last line that was read, at least 1.
    pub(crate) fn number(&self) -> usize {
        self.number.max(1)
    }

    /// Reads a line.
    fn read(&mut self) -> Option<Line<'a>> {
        loop {
            if let Some(text) = self.inner.as_mut().and_then(Iterator::next) {
                return Some(self.line(text, self.strings));
            }
            self.inner = None;
            if let Some(wrapped) = self.wrapped.last_mut() {
                match wrapped.next(&mut self.strings) {
                    Some(text) => self.open(Cow::Owned(text)),
                    None => drop(self.wrapped.pop()),
                }
            } else if let Some(text) = self.unmarked.as_mut().and_then(Iterator::next) {
                match Wrapped::of(text) {
                    Ok(wrapped) => self.push(wrapped),
                    Err(text) => return Some(self.line(text, 0)),
                }
            } else {
                let row = self.rows.next(&self.of.text)?;
                self.number += usize::from(row.begins_line);
                if row.text.is_empty() {
                    return Some(self.empty_line());
                }
                self.open_row(row.text);
            }
        }
    }

    /// Begins to read a row of the file.
    fn open_row(&mut self, row: &'a str) {
        self.taken = Taken {
            had_controls: cleaning::has_controls(row),
            is_cut: self.of.cut_at.is_some_and(|columns| row.len() == columns),
        };
        self.unmarked = Some(self.unmarked_of(cleaning::cleaned(row)));
    }

    fn empty_line(&self) -> Line<'a> {
        Line {
            number: self.number,
            text: Cow::Borrowed(""),
            width: 0,
            had_controls: false,
            string: 0,
            is_cut: false,
            blanks: (false, false),
        }
    }

    fn unmarked_of(&self, text: Cow<'a, str>) -> Unmarked<'a> {
        Unmarked::new(text, self.of.is_html)
    }

    /// Begins to read a line of a string.
    fn open(&mut self, text: Cow<'a, str>) {
        let opened = if self.wrapped.len() < DEEPEST { Wrapped::of(text) } else { Err(text) };
        match opened {
            Ok(wrapped) => self.push(wrapped),
            Err(text) => self.inner = Some(self.unmarked_of(cleaning::cleaned_of(text))),
        }
    }

    /// Begins to read the strings of a line, and the text around them before.
    fn push(&mut self, wrapped: Wrapped<'a>) {
        if let Some(around) = wrapped.around() {
            self.strings += 1;
            self.inner = Some(self.unmarked_of(cleaning::cleaned_of(Cow::Owned(around))));
        }
        self.wrapped.push(wrapped);
    }

    fn line(&self, text: Cow<'a, str>, string: usize) -> Line<'a> {
        let width = text.trim_end().chars().count();
        let blanks = (text.starts_with(' '), text.ends_with(' '));
        let text = match text {
            Cow::Borrowed(text) => Cow::Borrowed(plain(text)),
            Cow::Owned(text) => Cow::Owned(owned_plain(text)),
        };
        let Taken { had_controls, is_cut } = self.taken;
        Line { number: self.number, text, width, had_controls, string, is_cut, blanks }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        self.ahead.pop_front().or_else(|| self.read())
    }
}

/// A line without quotation: a mail's, or the marks of code around it.
fn plain(line: &str) -> &str {
    let text = cleaning::unquoted(line).trim();
    let item = text.strip_prefix("- ").or(text.strip_prefix("* ")).filter(|item| item.starts_with('`'));
    let code = item.unwrap_or(text).strip_prefix('`').and_then(|code| code.strip_suffix('`'));
    code.filter(|code| !code.contains('`')).map_or(text, str::trim)
}

fn owned_plain(line: String) -> String {
    let plain = plain(&line);
    if plain.len() == line.len() { line } else { plain.to_owned() }
}
