//! Lines inside the strings of JSON and logfmt: a QMP reply, a log of libvirt, of a container, of journald.

use std::str::Chars;

/// A log in a log in a log.
const DEEPEST: usize = 3;

/// A line inside a string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inner {
    pub(super) text: String,
    /// The number of its string, from 1, in the order of the file's line.
    pub(super) string: usize,
}

/// The lines inside the strings of `line`, of a text that may be HTML. `None` where the line itself is the text.
pub(super) fn inner_lines(line: &str, is_html: bool) -> Option<Vec<Inner>> {
    let mut found = Found { is_html, ..Found::default() };
    found.collect(line, DEEPEST).then_some(found.lines)
}

/// The lines found so far.
#[derive(Default)]
struct Found {
    lines: Vec<Inner>,
    strings: usize,
    is_html: bool,
}

impl Found {
    /// Adds the lines inside the strings of `line`. Returns false where the line itself is the text.
    fn collect(&mut self, line: &str, depth: usize) -> bool {
        let shape = if depth == 0 { Shape::Plain } else { Shape::of(line) };
        match shape {
            Shape::Plain => return false,
            Shape::Strings(from, quotes) => {
                let (before, after) = line.split_at_checked(from).unwrap_or((line, ""));
                self.push_around(before, after);
                for string in (Strings { letters: after.chars(), quotes }) {
                    self.push_all(&string, depth);
                }
            }
            Shape::Fields => {
                for field in fields_of_csv(line) {
                    self.push_all(&field, depth);
                }
            }
            Shape::Escaped => self.push_all(&unescaped(line), depth),
        }
        true
    }

    /// Adds the text around the strings of a line: some logs have fields behind the text of an entry, and QEMU writes a
    /// device's options before its error.
    fn push_around(&mut self, before: &str, strings: &str) {
        let after = strings.rsplit_once(['}', '"']).map_or("", |(_, after)| after);
        if !before.trim().is_empty() {
            self.strings += 1;
            self.push(&[before, after].concat());
        }
    }

    /// Adds the lines of a string.
    fn push_all(&mut self, text: &str, depth: usize) {
        self.strings += 1;
        let parts = text.split('\n').flat_map(|line| line.trim_end_matches('\r').split('\r'));
        for line in parts {
            if !self.collect(line, depth - 1) {
                self.push(line);
            }
        }
    }

    fn push(&mut self, line: &str) {
        let clean = super::cleaning::cleaned(line);
        let unmarked = if self.is_html { super::markup::unmarked(&clean) } else { None };
        match unmarked {
            Some(lines) => self.lines.extend(lines.into_iter().map(|text| Inner { text, string: self.strings })),
            None => self.lines.push(Inner { text: clean.into_owned(), string: self.strings }),
        }
    }
}

/// The way a line holds others.
enum Shape {
    /// In strings, from this place on, in these quotation marks.
    Strings(usize, &'static [char]),
    /// In the fields of a table, in which quotation marks are doubled.
    Fields,
    /// As a whole, escaped: quotation marks, perhaps line ends.
    Escaped,
    /// In no way.
    Plain,
}

const OF_JSON: &[char] = &['"'];
const OF_PYTHON: &[char] = &['"', '\''];

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

/// The fields in quotation marks of a row.
fn fields_of_csv(line: &str) -> Vec<String> {
    let mut fields = Vec::new();
    let mut rest = line.trim();
    while let Some((before, quoted)) = rest.split_once('"') {
        let mut field = String::new();
        rest = quoted;
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
        if before.is_empty() || before.ends_with(',') {
            fields.push(field);
        }
    }
    fields
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

/// The strings in a text.
struct Strings<'a> {
    letters: Chars<'a>,
    quotes: &'static [char],
}

impl Strings<'_> {
    /// The rest of a string that began with `quote`.
    fn rest_of_string(&mut self, quote: char) -> String {
        let mut string = String::new();
        while let Some(letter) = self.letters.next() {
            match letter {
                '\\' => string.extend(escape(&mut self.letters)),
                letter if letter == quote => break,
                letter => string.push(letter),
            }
        }
        string
    }

    /// The text of a list of bytes, whose bracket was read: journald prints so what is not all printable.
    fn bytes(&mut self) -> Option<String> {
        let (list, rest) = self.letters.as_str().split_once(']')?;
        if !list.bytes().all(|byte| byte.is_ascii_digit() || b", ".contains(&byte)) {
            return None;
        }
        let bytes: Option<Vec<u8>> = list.split(',').map(|number| number.trim().parse().ok()).collect();
        self.letters = rest.chars();
        Some(String::from_utf8_lossy(&bytes?).into_owned())
    }
}

impl Iterator for Strings<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        while let Some(letter) = self.letters.next() {
            if self.quotes.contains(&letter) {
                return Some(self.rest_of_string(letter));
            }
            if letter == '[' && self.letters.as_str().starts_with(|first: char| first.is_ascii_digit()) {
                if let Some(text) = self.bytes() {
                    return Some(text);
                }
            }
        }
        None
    }
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => out.extend(escape(&mut letters)),
            letter => out.push(letter),
        }
    }
    out
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
    let digits: String = letters.by_ref().take(digits).collect();
    u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32).unwrap_or('\u{fffd}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inner(line: &str) -> Vec<String> {
        let lines = inner_lines(line, true).unwrap_or_else(|| panic!("{line} has strings"));
        lines.into_iter().map(|line| line.text).collect()
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
            assert_eq!(inner_lines(line, true), None, "{line}");
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
        let lines = inner_lines("{\"a\":\"b\\nc\"}", true).expect("strings");
        let numbers: Vec<_> = lines.iter().map(|line| (line.text.as_str(), line.string)).collect();
        assert_eq!(numbers, [("a", 1), ("b", 2), ("c", 2)]);
    }

    #[test]
    fn strings_that_do_not_end_are_read_to_the_end() {
        assert_eq!(inner("{\"return\": \"a\\nb"), ["return", "a", "b"]);
        assert_eq!(inner("{\"a\\"), ["a"]);
        assert_eq!(inner("{\"\\u0041\\ud800\\u00\""), ["A\u{fffd}\u{fffd}"]);
    }
}
