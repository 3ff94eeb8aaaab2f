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
//! - [`lines`] does all that one line after another.
//!
//! Nothing here fails. The work is linear in the text. Beside the text itself no more is held than the lines that a
//! reader looks ahead and, for each string in a string, one line of the text: `program/bounds.rs` counts both.

mod cleaning;
mod decoding;
mod lines;
mod markup;
mod rows;
mod strings;

use std::borrow::Cow;

pub(crate) use cleaning::steers;
pub(crate) use lines::{Line, Lines};

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
        Lines::new(self)
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
        let text = Text::of(b"x");
        let any = text.lines().next().expect("a line");
        let line = |number| Line { number, ..any.clone() };
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
