//! Lines inside the strings of JSON and logfmt: a QMP reply, a log of libvirt, of a container, of journald.

use std::str::Chars;

/// A log in a log in a log.
const DEEPEST: usize = 3;

/// The lines inside the strings of `line`. `None` where the line itself is the text.
pub(super) fn inner_lines(line: &str) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    collect(line, DEEPEST, &mut lines).then_some(lines)
}

/// Adds the lines inside the strings of `line`. Returns false where the line itself is the text.
fn collect(line: &str, depth: usize, lines: &mut Vec<String>) -> bool {
    let text = match Shape::of(line) {
        _ if depth == 0 => return false,
        Shape::Plain => return false,
        Shape::Strings(from) => {
            for string in Strings::in_text(line.get(from..).unwrap_or_default()) {
                collect_all(&string, depth, lines);
            }
            return true;
        }
        Shape::Escaped => unescaped(line),
    };
    collect_all(&text, depth, lines);
    true
}

fn collect_all(text: &str, depth: usize, lines: &mut Vec<String>) {
    let parts = text.split('\n').flat_map(|line| line.trim_end_matches('\r').split('\r'));
    for line in parts {
        if !collect(line, depth - 1, lines) {
            lines.push(super::cleaning::cleaned(line).into_owned());
        }
    }
}

/// The way a line holds others.
enum Shape {
    /// In strings, from this place on.
    Strings(usize),
    /// As a whole, escaped: quotation marks, perhaps line ends.
    Escaped,
    /// In no way.
    Plain,
}

impl Shape {
    fn of(line: &str) -> Self {
        if !line.contains(['"', '\\']) {
            return Self::Plain;
        }
        let text = line.trim_start();
        if is_json(text) {
            return Self::Strings(0);
        }
        // A prefix of a log before it.
        if let Some(at) = line.find("{\"") {
            return Self::Strings(at);
        }
        if let Some(at) = MESSAGES.iter().find_map(|key| field(line, key)) {
            return Self::Strings(at);
        }
        if line.contains("\\\"") || line.contains("\\n") { Self::Escaped } else { Self::Plain }
    }
}

/// The names logs have for the text of an entry (logrus, zap, zerolog, slog).
const MESSAGES: [&str; 4] = ["msg=\"", "message=\"", "MESSAGE=\"", "log=\""];

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
}

impl<'a> Strings<'a> {
    fn in_text(text: &'a str) -> Self {
        Self { letters: text.chars() }
    }
}

impl Iterator for Strings<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        self.letters.by_ref().find(|letter| *letter == '"')?;
        let mut string = String::new();
        while let Some(letter) = self.letters.next() {
            match letter {
                '"' => break,
                '\\' => string.extend(escape(&mut self.letters)),
                letter => string.push(letter),
            }
        }
        Some(string)
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
        'u' => {
            let digits: String = letters.by_ref().take(4).collect();
            Some(u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32).unwrap_or('\u{fffd}'))
        }
        letter => Some(letter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inner(line: &str) -> Vec<String> {
        inner_lines(line).unwrap_or_else(|| panic!("{line} has strings"))
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
            "",
        ] {
            assert_eq!(inner_lines(line), None, "{line}");
        }
    }

    #[test]
    fn strings_that_do_not_end_are_read_to_the_end() {
        assert_eq!(inner("{\"return\": \"a\\nb"), ["return", "a", "b"]);
        assert_eq!(inner("{\"a\\"), ["a"]);
        assert_eq!(inner("{\"\\u0041\\ud800\\u00\""), ["A\u{fffd}\u{fffd}"]);
    }
}
