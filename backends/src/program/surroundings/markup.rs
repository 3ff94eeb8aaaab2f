//! Lines out of HTML, as browsers copy and forums and trackers store them.

use std::borrow::Cow;

/// The elements whose tags are taken off.
const INSIDE: [&str; 14] =
    ["code", "span", "b", "i", "em", "strong", "font", "a", "tt", "kbd", "samp", "html", "body", "mark"];
/// The elements whose tags end a line, too.
const BREAKS: [&str; 9] = ["br", "p", "div", "li", "tr", "td", "pre", "blockquote", "ul"];

/// Letters by their names.
const ENTITIES: [(&str, char); 6] =
    [("lt", '<'), ("gt", '>'), ("quot", '"'), ("amp", '&'), ("apos", '\''), ("nbsp", ' ')];

/// Returns whether a text is HTML, at least in part: a closing tag, a break or a letter by its name stands in it.
/// QEMU's own names may have brackets, too.
pub(super) fn is_in(text: &str) -> bool {
    const SIGNS: [&str; 9] = ["</", "<br", "<BR", "&quot;", "&lt;", "&gt;", "&amp;", "&nbsp;", "&#"];
    text.contains(['<', '&']) && SIGNS.iter().any(|sign| text.contains(sign))
}

/// The lines in a line that may be HTML, without tags and with plain letters.
pub(super) struct Unmarked<'a> {
    text: Cow<'a, str>,
    /// The first byte that was not read; nothing at the end.
    at: Option<usize>,
    is_html: bool,
}

impl<'a> Unmarked<'a> {
    pub(super) fn new(text: Cow<'a, str>, is_html: bool) -> Self {
        Self { text, at: Some(0), is_html }
    }

    /// The line up to the next break.
    fn line_from(&mut self, at: usize) -> String {
        let mut line = String::new();
        let mut rest = self.text.get(at..).unwrap_or_default();
        while let Some((before, marked)) = rest.find(['<', '&']).and_then(|at| rest.split_at_checked(at)) {
            line.push_str(before);
            rest = match Mark::of(marked) {
                Some((Mark::Break, after)) => {
                    self.at = Some(self.text.len() - after.len());
                    return line;
                }
                Some((Mark::Letter(letter), after)) => {
                    line.push(letter);
                    after
                }
                Some((Mark::Nothing, after)) => after,
                None => {
                    let (sign, after) = marked.split_at_checked(1).unwrap_or((marked, ""));
                    line.push_str(sign);
                    after
                }
            };
        }
        line.push_str(rest);
        line
    }
}

impl<'a> Iterator for Unmarked<'a> {
    type Item = Cow<'a, str>;

    fn next(&mut self) -> Option<Cow<'a, str>> {
        let at = self.at.take()?;
        let is_plain = !self.is_html || (at == 0 && !self.text.contains(['<', '&']));
        Some(if is_plain { std::mem::take(&mut self.text) } else { Cow::Owned(self.line_from(at)) })
    }
}

/// The meaning of a tag or of an entity.
enum Mark {
    Letter(char),
    Break,
    Nothing,
}

impl Mark {
    /// The mark that a text begins with, and the text behind it.
    fn of(text: &str) -> Option<(Self, &str)> {
        match text.strip_prefix('&') {
            Some(entity) => Self::of_entity(entity),
            None => Self::of_tag(text.strip_prefix('<')?),
        }
    }

    fn of_entity(text: &str) -> Option<(Self, &str)> {
        /// No name or number is longer.
        const LONGEST: usize = 8;
        let end = text.bytes().take(LONGEST).position(|byte| byte == b';')?;
        let (name, after) = text.split_at_checked(end)?;
        let letter = match name.strip_prefix('#') {
            Some(number) => letter_of(number)?,
            None => ENTITIES.iter().find(|(known, _)| *known == name)?.1,
        };
        Some((Self::Letter(letter), after.strip_prefix(';')?))
    }

    fn of_tag(text: &str) -> Option<(Self, &str)> {
        /// No tag is longer.
        const LONGEST: usize = 400;
        let tag = text.strip_prefix('/').unwrap_or(text);
        let len = tag.bytes().take(LONGEST).position(|byte| !byte.is_ascii_alphanumeric())?;
        let (name, attributes) = tag.split_at_checked(len)?;
        let is_of = |elements: &[&str]| elements.iter().any(|element| element.eq_ignore_ascii_case(name));
        let mark = match (is_of(&BREAKS), is_of(&INSIDE)) {
            (true, _) => Self::Break,
            (_, true) => Self::Nothing,
            _ => return None,
        };
        let end = attributes.bytes().take(LONGEST).position(|byte| byte == b'>')?;
        let is_tag = attributes.starts_with(['>', ' ', '/']);
        is_tag.then_some((mark, attributes.get(end + 1..)?))
    }
}

fn letter_of(number: &str) -> Option<char> {
    let code = match number.strip_prefix(['x', 'X']) {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => number.parse(),
    };
    char::from_u32(code.ok()?).filter(|letter| !letter.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unmarked(line: &str) -> Vec<Cow<'_, str>> {
        Unmarked::new(Cow::Borrowed(line), true).collect()
    }

    #[test]
    fn tags_and_entities_are_gone() {
        let cases = [
            (
                "<pre class=\"x\"><code>AS &quot;memory&quot;&#44; a &lt;b&gt;</code></pre>",
                &["", "AS \"memory\", a <b>", ""][..],
            ),
            ("one<br/>two<BR>three", &["one", "two", "three"]),
            ("<span id='1'>0000&#x2d;0fff&nbsp;</span>", &["0000-0fff "]),
        ];
        for (line, expected) in cases {
            assert_eq!(unmarked(line), expected, "{line}");
        }
    }

    #[test]
    fn a_text_is_html_by_more_than_brackets() {
        assert!(is_in("a</pre>") && is_in("x<br>") && is_in("&quot;memory&quot;"));
        assert!(!is_in("<a> & b") && !is_in("<...>-1 [000]") && !is_in(""));
    }

    #[test]
    fn other_brackets_and_signs_stay() {
        for line in
            ["<...>-1 [000]: a", "a & b", "a <b", "<bus> 1 < 2 > 0", "&amp", "<brk>", "&#7;", "&#xffffff;", "<", "&"]
        {
            assert_eq!(unmarked(line), [line], "{line}");
        }
    }
}
