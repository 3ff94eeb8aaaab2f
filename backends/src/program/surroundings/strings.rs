//! Lines inside the strings of JSON and logfmt: a QMP reply, a log of libvirt, of a container, of journald.

use std::borrow::Cow;
use std::str::Chars;

use super::rows::Rows;

/// A line that holds others in strings, and the place up to which it was read. One line inside is made at a time, so
/// that a reply of 100 MB takes no more memory than its longest line.
pub(super) struct Wrapped<'a> {
    text: Cow<'a, str>,
    /// The first byte that was not read.
    at: usize,
    shape: Shape,
    /// The end of the string that is being read.
    open: Option<End>,
    /// A piece of a string without its escapes, and the rows that were read of it.
    piece: String,
    rows: Option<Rows>,
}

/// The end of a string.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// This quotation mark.
    Quote(u8),
    /// The end of the text.
    OfText,
}

impl<'a> Wrapped<'a> {
    /// The wrapped line that `line` is, or else the line itself.
    pub(super) fn of(line: Cow<'a, str>) -> Result<Self, Cow<'a, str>> {
        let shape = Shape::of(&line);
        let (at, text) = match shape {
            Shape::Plain => return Err(line),
            Shape::Strings(at, _) => (at, line),
            Shape::Fields => (0, trimmed(line)),
            Shape::Escaped => (0, line),
        };
        Ok(Self { text, at, shape, open: None, piece: String::new(), rows: None })
    }

    /// The text around the strings, if there is any: some logs have fields behind the text of an entry, and QEMU writes
    /// a device's options before its error.
    pub(super) fn around(&self) -> Option<String> {
        let Shape::Strings(at, _) = self.shape else { return None };
        let (before, strings) = self.text.split_at_checked(at)?;
        let after = strings.rsplit_once(['}', '"']).map_or("", |(_, after)| after);
        (!before.trim().is_empty()).then(|| [before, after].concat())
    }

    /// The next line inside. `strings` counts the strings that were begun.
    pub(super) fn next(&mut self, strings: &mut usize) -> Option<String> {
        loop {
            if let Some(row) = self.rows.as_mut().and_then(|rows| rows.next(&self.piece)) {
                if row.text.len() < self.piece.len() {
                    return Some(row.text.to_owned());
                }
                self.rows = None;
                return Some(std::mem::take(&mut self.piece));
            }
            self.piece.clear();
            self.rows = Some(Rows::new());
            if !self.read(strings) {
                self.rows = None;
                return None;
            }
        }
    }

    /// Reads a piece. Returns false at the end.
    fn read(&mut self, strings: &mut usize) -> bool {
        if let Some(end) = self.open {
            self.read_line(end);
            return true;
        }
        let is_any = match self.shape {
            Shape::Strings(_, quotes) => self.begin_string(quotes),
            Shape::Fields => self.read_field(),
            Shape::Escaped if self.at == 0 => {
                self.read_line(End::OfText);
                true
            }
            Shape::Escaped | Shape::Plain => false,
        };
        *strings += usize::from(is_any);
        is_any
    }

    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Reads the first line of the next string.
    fn begin_string(&mut self, quotes: &[u8]) -> bool {
        let begins = |byte: &u8| quotes.contains(byte) || *byte == b'[';
        while let Some(at) = self.rest().bytes().position(|byte| begins(&byte)) {
            let sign = self.rest().as_bytes().get(at).copied().unwrap_or_default();
            self.at += at + 1;
            if sign != b'[' {
                self.read_line(End::Quote(sign));
                return true;
            }
            if let Some((text, len)) = bytes_in(self.rest()) {
                self.at += len;
                self.piece = text;
                return true;
            }
        }
        false
    }

    /// Reads a string up to its end, or up to the end of a line in it.
    fn read_line(&mut self, end: End) {
        self.open = None;
        let is_sign = |byte: u8| byte == b'\\' || End::Quote(byte) == end;
        let mut piece = std::mem::take(&mut self.piece);
        while let Some(at) = self.rest().bytes().position(is_sign) {
            let (before, signed) = self.rest().split_at_checked(at).unwrap_or_default();
            piece.push_str(before);
            let mut letters = signed.chars();
            let is_escape = letters.next() == Some('\\');
            let letter = if is_escape { escape(&mut letters) } else { None };
            let is_line = letter == Some('\n');
            piece.extend(letter.filter(|_| !is_line));
            self.at = self.text.len() - letters.as_str().len();
            if is_line {
                self.open = Some(end);
            }
            if is_line || !is_escape {
                self.piece = piece;
                return;
            }
        }
        piece.push_str(self.rest());
        self.at = self.text.len();
        self.piece = piece;
    }

    /// Reads the next field in quotation marks of a row (RFC 4180).
    fn read_field(&mut self) -> bool {
        while let Some((before, quoted)) = self.rest().split_once('"') {
            let is_field = before.is_empty() || before.ends_with(',');
            let (field, rest) = field_of_csv(quoted);
            self.at = self.text.len() - rest.len();
            if is_field {
                self.piece = field;
                return true;
            }
        }
        self.at = self.text.len();
        false
    }
}

fn trimmed(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim()),
        Cow::Owned(text) => Cow::Owned(text.trim().to_owned()),
    }
}

/// The way a line holds others.
#[derive(Clone, Copy)]
enum Shape {
    /// In strings, from this place on, in these quotation marks.
    Strings(usize, &'static [u8]),
    /// In the fields of a table, in which quotation marks are doubled.
    Fields,
    /// As a whole, escaped: quotation marks, perhaps line ends.
    Escaped,
    /// In no way.
    Plain,
}

const OF_JSON: &[u8] = b"\"";
const OF_PYTHON: &[u8] = b"\"'";

impl Shape {
    fn of(line: &str) -> Self {
        if !line.contains(['"', '\\', '\'']) {
            return Self::Plain;
        }
        let text = line.trim_start();
        if ["['", "('", "{'", "[b'"].iter().any(|start| text.starts_with(start)) {
            return Self::Strings(0, OF_PYTHON);
        }
        if is_of_csv(text) {
            return Self::Fields;
        }
        if is_json(text) {
            return Self::Strings(0, OF_JSON);
        }
        // A prefix of a log before it.
        if let Some(at) = line.find("{\"") {
            return Self::Strings(at, OF_JSON);
        }
        if let Some(at) = MESSAGES.iter().find_map(|key| field(line, key)) {
            return Self::Strings(at, OF_JSON);
        }
        if line.contains("\\\"") || line.contains("\\n") { Self::Escaped } else { Self::Plain }
    }
}

/// A row of a table as spreadsheets and databases export it (RFC 4180): a field in quotation marks is its last one.
fn is_of_csv(text: &str) -> bool {
    let ends = text.trim_end().len() > 2 && text.trim_end().ends_with('"');
    let is_behind_another = text.contains(",\"") && !text.starts_with(['{', '[', '"']);
    let has_doubled = text.starts_with('"') && text.contains("\"\"") && !text.contains("\":");
    ends && !text.contains('\\') && (is_behind_another || has_doubled)
}

/// The field whose quotation mark was read, and the text behind it.
fn field_of_csv(quoted: &str) -> (String, &str) {
    let mut field = String::new();
    let mut rest = quoted;
    while let Some((piece, after)) = rest.split_once('"') {
        field.push_str(piece);
        rest = after;
        match after.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None => break,
        }
    }
    (field, rest)
}

/// The names logs have for the text of an entry (logrus, zap, zerolog, slog).
const MESSAGES: [&str; 8] =
    ["msg=\"", "message=\"", "MESSAGE=\"", "log=\"", "line=\"", "text=\"", "output=\"", "err=\""];

/// The place of a field of logfmt.
fn field(line: &str, key: &str) -> Option<usize> {
    let at = line.find(key)?;
    let starts_word = line.get(..at).is_some_and(|before| before.is_empty() || before.ends_with(' '));
    starts_word.then_some(at)
}

/// The text behind a bracket that it begins with.
fn behind(text: &str, bracket: char) -> Option<&str> {
    text.strip_prefix(bracket).map(str::trim_start)
}

/// An object, an array, or one line of either as they are printed for people.
fn is_json(text: &str) -> bool {
    match (behind(text, '{'), behind(text, '[')) {
        (Some(rest), _) => rest.starts_with('"'),
        (_, Some(rest)) => rest.starts_with(['"', '{']),
        (None, None) => {
            let end = text.trim_end();
            text.starts_with('"') && (text.contains("\":") || end.ends_with('"') || end.ends_with("\","))
        }
    }
}

/// The text of a list of bytes whose bracket was read, and the length of the list: journald prints so what is not all
/// printable.
fn bytes_in(list: &str) -> Option<(String, usize)> {
    let is_of_list = |byte: u8| byte.is_ascii_digit() || b", ".contains(&byte);
    let len = list.bytes().position(|byte| !is_of_list(byte))?;
    let (numbers, after) = list.split_at_checked(len)?;
    if !numbers.starts_with(|first: char| first.is_ascii_digit()) || !after.starts_with(']') {
        return None;
    }
    let bytes: Option<Vec<u8>> = numbers.split(',').map(|number| number.trim().parse().ok()).collect();
    Some((String::from_utf8_lossy(&bytes?).into_owned(), len + 1))
}

/// The letter an escape stands for, whose backslash was read.
fn escape(letters: &mut Chars<'_>) -> Option<char> {
    match letters.next()? {
        'n' => Some('\n'),
        'r' => Some('\r'),
        't' => Some('\t'),
        'b' => Some('\u{8}'),
        'f' => Some(' '),
        'u' => Some(letter_by_number(letters, 4)),
        // Python's and C's.
        'x' => Some(letter_by_number(letters, 2)),
        letter => Some(letter),
    }
}

fn letter_by_number(letters: &mut Chars<'_>, digits: usize) -> char {
    let text = letters.as_str();
    let end = text.char_indices().nth(digits).map_or(text.len(), |(end, _)| end);
    let (digits, rest) = text.split_at_checked(end).unwrap_or_default();
    *letters = rest.chars();
    u32::from_str_radix(digits, 16).ok().and_then(char::from_u32).unwrap_or('\u{fffd}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::surroundings::cleaning::cleaned;

    /// The lines inside, each with the number of its string.
    fn numbered(line: &str) -> Vec<(String, usize)> {
        let Ok(mut wrapped) = Wrapped::of(Cow::Borrowed(line)) else { panic!("{line} has strings") };
        let mut strings = 0;
        let mut lines: Vec<_> = wrapped.around().map(|text| (text, 0)).into_iter().collect();
        while let Some(text) = wrapped.next(&mut strings) {
            lines.push((text, strings));
        }
        lines
    }

    fn inner(line: &str) -> Vec<String> {
        let lines = numbered(line).into_iter().flat_map(|(line, _)| match Wrapped::of(Cow::Borrowed(line.as_str())) {
            Ok(_) => inner(&line),
            Err(_) => vec![cleaned(&line).into_owned()],
        });
        lines.collect()
    }

    #[test]
    fn logs_of_every_shape_hold_the_line() {
        for log in [
            r#"{"level":"info","msg":"text \"a\""}"#,
            r#"2025-04-25 stdout F {"msg":"text \"a\""}"#,
            r#"time="2026-01-02" level=info msg="text \"a\"" name=x"#,
            r#"  "return": "text \"a\"","#,
            r#""text \"a\"","#,
            r#"{"log":"{\"msg\":\"text \\\"a\\\"\"}\n"}"#,
            r#"text \"a\""#,
            r#"['other', 'text "a"\n', "it's"]"#,
            r#"1,x,"text ""a""""#,
            r#""text ""a""""#,
            r#"I0102 10:00:00 qemu.go:123] "output" line="text \"a\"" pid=1"#,
            r#"{"MESSAGE":[116,101,120,116,32,34,97,34,13],"_PID":"1"}"#,
        ] {
            assert!(inner(log).iter().any(|line| line == "text \"a\""), "{log}: {:?}", inner(log));
        }
    }

    #[test]
    fn quotation_marks_alone_are_no_wrapping() {
        for line in [
            "AS \"memory\", root: system",
            "vfio_listener_region_add_no_dma_map Region \"0000:01:00.0 BAR 0 mmaps[0]\" 0xfe001000 size=0x1000",
            "[ 1.5] something \"quoted\"",
            "Region 'x', \"y\"",
            "-device 'x'",
            "",
        ] {
            assert!(Wrapped::of(Cow::Borrowed(line)).is_err(), "{line}");
        }
    }

    #[test]
    fn the_text_around_the_fields_of_an_entry_is_a_line_too() {
        assert_eq!(inner("2026\tINFO\ttext\t{\"pid\": 12}"), ["2026 INFO text ", "pid"]);
        let error = inner("qemu: -device {\"driver\":\"vfio-pci\"}: vfio_dma_map(0x1) = -22");
        assert_eq!(error, ["qemu: -device : vfio_dma_map(0x1) = -22", "driver", "vfio-pci"]);
    }

    #[test]
    fn every_string_has_its_number() {
        let numbers = numbered("{\"a\":\"b\\nc\"}");
        assert_eq!(numbers, [("a", 1), ("b", 2), ("c", 2)].map(|(text, string)| (text.to_owned(), string)));
    }

    #[test]
    fn strings_that_do_not_end_are_read_to_the_end() {
        assert_eq!(inner("{\"return\": \"a\\nb"), ["return", "a", "b"]);
        assert_eq!(inner("{\"a\\"), ["a"]);
        assert_eq!(inner("{\"\\u0041\\ud800\\u00\""), ["A\u{fffd}\u{fffd}"]);
    }
}
