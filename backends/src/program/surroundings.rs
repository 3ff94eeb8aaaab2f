//! Surroundings: everything around the lines that QEMU or the kernel wrote.
//!
//! A flat view, a trace or an error line seldom comes alone. It stands in a monitor session with prompts and echoes,
//! in a QMP reply, in a log with time stamps, in JSON or logfmt, in a mail with quotes and folded lines, between the
//! fences of a forum, in a terminal's recording with colours and telnet's own bytes, in UTF-16. All formats of this
//! program are read through [`Lines`], which takes the wrapping off and keeps the number of the line of the file. A
//! reader takes the lines it knows; [`PassedOver`] counts the rest.
//!
//! - [`decoding`] makes text of bytes: UTF-16, telnet's commands, quoted-printable.
//! - [`cleaning`] makes plain lines of a terminal's: escape sequences, control characters, mail quotes.
//! - [`markup`] takes the tags and entities of HTML off.
//! - [`strings`] takes lines out of the strings of JSON, logfmt, Python and tables.
//!
//! Nothing here fails. The work is linear in the text, and no line is held longer than a reader looks ahead. Files of
//! 100 MiB, replayed by a release build on one core of a server: a flat view of 1.3 million ranges 5.2 s, the same as
//! a QMP reply 6.4 s, a trace 2.0 s, a JSON log with nothing in it 5.5 s.

mod cleaning;
mod decoding;
mod markup;
mod strings;

use std::borrow::Cow;
use std::collections::VecDeque;

pub(crate) use cleaning::steers;
use strings::Inner;

/// The text of a file.
pub(crate) struct Text<'a> {
    text: Cow<'a, str>,
    /// The columns at which a terminal cut longer lines, if it did.
    cut_at: Option<usize>,
    is_html: bool,
}

impl<'a> Text<'a> {
    /// The text that bytes stand for.
    pub(crate) fn of(bytes: &'a [u8]) -> Self {
        let text = decoding::decoded(bytes);
        let (cut_at, is_html) = (columns_of_terminal(&text), markup::is_in(&text));
        Self { text, cut_at, is_html }
    }

    /// The lines, without their wrapping.
    pub(crate) fn lines(&self) -> Lines<'_> {
        Lines { rest: Some(&self.text), number: 0, ahead: VecDeque::new(), strings: 0, of: self }
    }
}

/// The columns of the terminal from which a text was copied, in which longer lines go on in the next one: several
/// lines are as long as any, and that is a width that terminals have.
fn columns_of_terminal(text: &str) -> Option<usize> {
    const LEAST: usize = 80;
    let (mut longest, mut met) = (0, 0);
    for line in text.split('\n') {
        let len = line.trim_end_matches('\r').len();
        if len > longest {
            (longest, met) = (len, 0);
        }
        met += usize::from(len == longest);
    }
    let is_width = longest >= LEAST && (longest % 10 == 0 || longest == 132);
    (is_width && met > 1).then_some(longest)
}

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
    blanks: (bool, bool),
}

impl Line<'_> {
    /// Returns whether `next` may be the rest of this line.
    pub(crate) fn may_go_on_in(&self, next: &Self) -> bool {
        self.string == next.string && !next.text.is_empty()
    }

    /// The text between this line and `next`, which is the rest of it.
    pub(crate) fn joint(&self, next: &Self) -> &'static str {
        if self.is_cut && !self.blanks.1 && !next.blanks.0 { "" } else { " " }
    }
}

/// The lines of a text, with a look ahead.
pub(crate) struct Lines<'a> {
    rest: Option<&'a str>,
    number: usize,
    ahead: VecDeque<Line<'a>>,
    /// The number of strings so far.
    strings: usize,
    of: &'a Text<'a>,
}

impl<'a> Lines<'a> {
    /// The line `distance` lines after the next one.
    pub(crate) fn peek(&mut self, distance: usize) -> Option<&Line<'a>> {
        while self.ahead.len() <= distance && self.read() {}
        self.ahead.get(distance)
    }

    /// The number of the last line that was read, at least 1.
    pub(crate) fn number(&self) -> usize {
        self.number.max(1)
    }

    /// Reads one line of the file. Returns false at the end.
    fn read(&mut self) -> bool {
        let Some(text) = self.rest else { return false };
        let (line, rest) = text.split_once('\n').map_or((text, None), |(line, rest)| (line, Some(rest)));
        self.rest = rest;
        self.number += 1;
        // A file of a system whose lines end with a carriage return, or a terminal's.
        for part in line.trim_end_matches('\r').split('\r') {
            self.unwrap(part);
        }
        true
    }

    fn unwrap(&mut self, part: &'a str) {
        let taken = Taken {
            had_controls: cleaning::has_controls(part),
            string: 0,
            is_cut: self.of.cut_at.is_some_and(|columns| part.len() == columns),
        };
        let clean = cleaning::cleaned(part);
        let unmarked = if self.of.is_html { markup::unmarked(&clean) } else { None };
        match unmarked {
            Some(lines) => {
                for line in lines {
                    self.unwrap_strings(Cow::Owned(line), taken);
                }
            }
            None => self.unwrap_strings(clean, taken),
        }
    }

    fn unwrap_strings(&mut self, line: Cow<'a, str>, taken: Taken) {
        let Some(inner) = strings::inner_lines(&line, self.of.is_html) else { return self.push(line, taken) };
        let before = self.strings;
        for Inner { text, string } in inner {
            self.strings = before + string;
            self.push(Cow::Owned(text), Taken { string: self.strings, ..taken });
        }
    }

    fn push(&mut self, text: Cow<'a, str>, taken: Taken) {
        let width = text.trim_end().chars().count();
        let blanks = (text.starts_with(' '), text.ends_with(' '));
        let text = match text {
            Cow::Borrowed(text) => Cow::Borrowed(plain(text)),
            Cow::Owned(text) => Cow::Owned(plain(&text).to_owned()),
        };
        let Taken { had_controls, string, is_cut } = taken;
        self.ahead.push_back(Line { number: self.number, text, width, had_controls, string, is_cut, blanks });
    }
}

/// The circumstances in which a line was found.
#[derive(Clone, Copy)]
struct Taken {
    had_controls: bool,
    string: usize,
    is_cut: bool,
}

/// A line without quotation: a mail's, or the marks of code around it.
fn plain(line: &str) -> &str {
    let text = cleaning::unquoted(line).trim();
    let item = text.strip_prefix("- ").or(text.strip_prefix("* ")).filter(|item| item.starts_with('`'));
    let code = item.unwrap_or(text).strip_prefix('`').and_then(|code| code.strip_suffix('`'));
    code.filter(|code| !code.contains('`')).map_or(text, str::trim)
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        while self.ahead.is_empty() && self.read() {}
        self.ahead.pop_front()
    }
}

/// A count of the file's lines out of which nothing was taken. Empty lines do not count.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PassedOver {
    counted: usize,
    /// The line of the file that is being read, and whether anything was taken out of it.
    open: Option<(usize, bool)>,
}

impl PassedOver {
    /// A line was taken.
    pub(crate) fn take(&mut self, line: &Line<'_>) {
        self.note(line.number, true);
    }

    /// A line was taken that another continues in, if there is one.
    pub(crate) fn extend_taken(&mut self, line: Option<Line<'_>>) {
        if let Some(line) = line {
            self.take(&line);
        }
    }

    /// A line was passed over.
    pub(crate) fn pass(&mut self, line: &Line<'_>) {
        if !line.text.is_empty() {
            self.note(line.number, false);
        }
    }

    /// The lines passed over so far.
    pub(crate) fn count(&self) -> usize {
        self.counted + usize::from(matches!(self.open, Some((_, false))))
    }

    fn note(&mut self, number: usize, is_taken: bool) {
        match &mut self.open {
            Some((open, taken)) if *open == number => *taken |= is_taken,
            _ => {
                self.counted = self.count();
                self.open = Some((number, is_taken));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(bytes: &[u8]) -> Vec<(usize, String)> {
        Text::of(bytes).lines().map(|line| (line.number, line.text.into_owned())).collect()
    }

    #[test]
    fn plain_lines_keep_their_numbers() {
        let expected = [(1, "a b".to_owned()), (2, String::new()), (3, "c".to_owned())];
        assert_eq!(lines_of(b"a b\n\n  c"), expected);
        assert_eq!(lines_of(b"a b\r\n\r\n  c"), expected);
        assert_eq!(lines_of(b""), [(1, String::new())]);
    }

    #[test]
    fn the_lines_of_a_json_string_share_a_number() {
        let expected = [(1, "return".to_owned()), (1, "a".to_owned()), (1, "b \"c\"".to_owned())];
        assert_eq!(lines_of(br#"{"return": "a\r\n b \"c\""}"#), expected);
    }

    #[test]
    fn a_terminals_width_is_known_by_the_lines_it_cut() {
        let long = "x".repeat(80);
        assert_eq!(columns_of_terminal(&format!("{long}\ny\n{long}\r\ny\n")), Some(80));
        assert_eq!(columns_of_terminal(&format!("{long}\ny\n")), None);
        assert_eq!(columns_of_terminal(&format!("{long}\n{long}\n{long}y\n")), None);
        let text = format!("{long}\n{long}\ny");
        let cut: Vec<_> = Text::of(text.as_bytes()).lines().map(|line| line.is_cut).collect();
        assert_eq!(cut, [true, true, false]);
    }

    #[test]
    fn marks_of_code_around_a_line_are_gone() {
        assert_eq!(lines_of(b"> - `a b`")[0].1, "a b");
        assert_eq!(lines_of(b"`a` and `b`")[0].1, "`a` and `b`");
        assert_eq!(lines_of(b"```")[0].1, "```");
    }

    #[test]
    fn a_look_ahead_takes_nothing_away() {
        let text = Text::of(b"a\nb\nc");
        let mut lines = text.lines();
        assert_eq!(lines.peek(2).map(|line| line.text.as_ref()), Some("c"));
        assert_eq!(lines.peek(3), None);
        assert_eq!(lines.next().map(|line| line.number), Some(1));
    }

    #[test]
    fn a_line_counts_once_and_only_if_nothing_was_taken_out_of_it() {
        let line = |number| Line {
            number,
            text: "x".into(),
            width: 1,
            had_controls: false,
            string: 0,
            is_cut: false,
            blanks: (false, false),
        };
        let mut passed_over = PassedOver::default();
        passed_over.pass(&line(1));
        passed_over.pass(&line(1));
        passed_over.pass(&line(2));
        passed_over.take(&line(2));
        passed_over.take(&line(3));
        passed_over.pass(&Line { text: "".into(), ..line(4) });
        passed_over.pass(&line(5));
        assert_eq!(passed_over.count(), 2);
    }
}
