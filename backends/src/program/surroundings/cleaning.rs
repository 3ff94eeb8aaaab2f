//! Plain lines out of the text that a terminal or a mail program showed.

use std::borrow::Cow;
use std::str::Chars;

/// Returns whether a line has control characters, tabs apart.
pub(super) fn has_controls(line: &str) -> bool {
    line.bytes().any(|byte| (byte < 0x20 && byte != b'\t') || byte == 0x7f)
}

/// A line without escape sequences, control characters and letters that only steer how text is shown. What editors
/// make of quotation marks, dashes and blanks is taken back.
pub(super) fn cleaned(line: &str) -> Cow<'_, str> {
    if line.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Cow::Borrowed(line);
    }
    let mut out = String::with_capacity(line.len());
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\u{1b}' => skip_escape(&mut letters),
            '\u{9b}' => skip_control_sequence(&mut letters),
            '\u{8}' => {
                out.pop();
            }
            '\t' | '\u{a0}' => out.push(' '),
            '\u{201c}' | '\u{201d}' => out.push('"'),
            '\u{2013}' => out.push('-'),
            letter if letter.is_control() || steers(letter) => {}
            letter => out.push(letter),
        }
    }
    Cow::Owned(out)
}

/// A line of its own, cleaned as by [`cleaned`].
pub(super) fn cleaned_of(line: Cow<'_, str>) -> Cow<'_, str> {
    match line {
        Cow::Borrowed(line) => cleaned(line),
        Cow::Owned(line) => {
            let clean = match cleaned(&line) {
                Cow::Owned(clean) => Some(clean),
                Cow::Borrowed(_) => None,
            };
            Cow::Owned(clean.unwrap_or(line))
        }
    }
}

/// Letters without a shape: marks of direction and of width. They could show a line as another than it is.
pub(crate) fn steers(letter: char) -> bool {
    matches!(letter, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The rest of an escape sequence (ECMA-48).
fn skip_escape(letters: &mut Chars<'_>) {
    match letters.next() {
        Some('[') => skip_control_sequence(letters),
        // A string for the terminal ends with a bell or an escape of its own, or with the line.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(letter) = letters.next() {
                if letter == '\u{7}' {
                    break;
                }
                if letter == '\u{1b}' {
                    letters.next();
                    break;
                }
            }
        }
        Some('(' | ')' | '#' | '%' | ' ') => {
            letters.next();
        }
        _ => {}
    }
}

fn skip_control_sequence(letters: &mut Chars<'_>) {
    for letter in letters.by_ref() {
        if ('\u{40}'..='\u{7e}').contains(&letter) {
            break;
        }
    }
}

/// A line without the marks of quotation in a mail.
pub(super) fn unquoted(line: &str) -> &str {
    let mut rest = line;
    while let Some(quoted) = rest.trim_start().strip_prefix('>') {
        rest = quoted;
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_titles_and_echoes_are_gone() {
        assert_eq!(cleaned("\u{1b}[1;31mred\u{1b}[0m"), "red");
        assert_eq!(cleaned("\u{1b}]0;title\u{7}text"), "text");
        assert_eq!(cleaned("\u{1b}]0;title\u{1b}\\text"), "text");
        assert_eq!(cleaned("\u{1b}(Btext\u{0}"), "text");
        assert_eq!(cleaned("texx\u{8}t"), "text");
        assert_eq!(cleaned("\u{9b}31mtext"), "text");
        assert_eq!(cleaned("\u{1b}[31"), "");
    }

    #[test]
    fn nothing_that_steers_a_terminal_is_left() {
        let all: String = (0..0x300).chain(0x2000..0x2070).filter_map(char::from_u32).collect();
        assert!(!cleaned(&all).contains(|letter: char| letter.is_control() || steers(letter)));
    }

    #[test]
    fn typographic_replacements_are_reverted() {
        assert_eq!(cleaned("AS \u{201c}memory\u{201d},\u{a0}0\u{2013}f"), "AS \"memory\", 0-f");
    }

    #[test]
    fn quotes_of_quotes_are_unquoted() {
        assert_eq!(unquoted("> > text"), " text");
        assert_eq!(unquoted(">>>> text > 5"), " text > 5");
        assert_eq!(unquoted("text"), "text");
    }
}
