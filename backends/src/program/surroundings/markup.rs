//! Lines out of HTML, as browsers copy and forums and trackers store them.

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

/// The lines in a line of HTML, without tags and with plain letters. `None` for a line that has neither.
pub(super) fn unmarked(line: &str) -> Option<Vec<String>> {
    if !line.contains(['<', '&']) {
        return None;
    }
    let mut lines = vec![String::with_capacity(line.len())];
    let (mut rest, mut is_marked) = (line, false);
    while let Some((before, marked)) = rest.find(['<', '&']).and_then(|at| rest.split_at_checked(at)) {
        push(&mut lines, before);
        rest = match Mark::of(marked) {
            Some((mark, after)) => {
                is_marked = true;
                match mark {
                    Mark::Letter(letter) => push(&mut lines, letter.encode_utf8(&mut [0; 4])),
                    Mark::Break => lines.push(String::new()),
                    Mark::Nothing => {}
                }
                after
            }
            None => {
                let (sign, after) = marked.split_at_checked(1).unwrap_or((marked, ""));
                push(&mut lines, sign);
                after
            }
        };
    }
    push(&mut lines, rest);
    is_marked.then_some(lines)
}

fn push(lines: &mut [String], text: &str) {
    if let Some(last) = lines.last_mut() {
        last.push_str(text);
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
            assert_eq!(unmarked(line).expect("it is marked"), expected, "{line}");
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
            assert_eq!(unmarked(line), None, "{line}");
        }
    }
}
