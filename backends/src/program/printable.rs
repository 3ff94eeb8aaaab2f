//! Text that came from a file, on its way to a terminal: nothing in it may steer one, and none of it is endless.

use std::borrow::Cow;

use crate::program::surroundings::steers;

/// A text in which every letter shows. Line ends stay.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if is_hidden(letter) { out.extend(letter.escape_unicode()) } else { out.push(letter) }
    }
    Cow::Owned(out)
}

/// JSON in which every letter shows: outside of strings it has no letter that does not.
pub(crate) fn shown_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_hidden(letter) { out.push_str(&format!("\\u{:04x}", u32::from(letter))) } else { out.push(letter) }
    }
    out
}

fn is_hidden(letter: char) -> bool {
    (letter.is_control() && letter != '\n') || steers(letter)
}

/// The beginning of a text in quotation marks, as much as `most` letters.
pub(crate) fn quoted(text: &str, most: usize) -> String {
    match text.char_indices().nth(most).and_then(|(end, _)| text.get(..end)) {
        Some(beginning) => format!("{beginning:?}…"),
        None => format!("{text:?}"),
    }
}

/// The beginning of a text, as much as `most` letters.
pub(crate) fn cut(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most).and_then(|(end, _)| text.get(..end)) {
        Some(beginning) => Cow::Owned(format!("{beginning}…")),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_by_their_numbers() {
        assert_eq!(shown("a\u{1b}[2J\u{9b}b\u{202e}\n"), "a\\u{1b}[2J\\u{9b}b\\u{202e}\n");
        assert_eq!(shown_json("\"\u{9b}\u{7f}\""), "\"\\u009b\\u007f\"");
        assert!(matches!(shown("plain – text\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_long_text_is_cut_between_letters() {
        assert_eq!(quoted("äöü", 2), "\"äö\"…");
        assert_eq!(quoted("äöü", 3), "\"äöü\"");
        assert_eq!(cut("äöü", 2), "äö…");
        assert_eq!(cut("äöü", 3), "äöü");
    }
}
