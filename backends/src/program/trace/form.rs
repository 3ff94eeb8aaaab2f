//! The form of a line, in which some places are open.
//!
//! A place is written `{name:kind}`. The kinds are `x`, digits in hexadecimal; `p`, a pointer as printf's `%p` writes
//! it; `d`, a number in decimal, perhaps negative; `s`, any text; `*`, anything that may follow.

/// The texts and numbers where a form leaves something open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields<'a> {
    numbers: Vec<(&'static str, i128)>,
    texts: Vec<(&'static str, &'a str)>,
}

/// Something that is not in a line although its form has it.
pub(crate) const MISSING: &str = "every number of its form, each below 2^64";

impl<'a> Fields<'a> {
    /// The fields of `text` in `form`, if it has that form.
    pub(crate) fn of(form: &'static str, text: &'a str) -> Option<Self> {
        let mut fields = Self::default();
        fields.follow(form, text).then_some(fields)
    }

    /// The fields of a text that names each: `name=value`, as QEMU's scripts/simpletrace.py prints them.
    pub(crate) fn of_pairs(form: &'static str, text: &'a str) -> Option<Self> {
        let mut fields = Self::default();
        let mut rest = form;
        while let Some((_, place, after)) = next_place(rest) {
            rest = after;
            let value = text.split(' ').find_map(|pair| pair.strip_prefix(place.name)?.strip_prefix('='))?;
            match place.kind {
                's' => fields.texts.push((place.name, value)),
                '*' => {}
                _ => fields.numbers.push((place.name, number_of_pair(value)?)),
            }
        }
        Some(fields)
    }

    /// A number that is not negative.
    ///
    /// # Errors
    /// [`MISSING`].
    pub(crate) fn number(&self, name: &str) -> Result<u64, String> {
        self.signed(name).and_then(|number| u64::try_from(number).map_err(|_| MISSING.to_owned()))
    }

    /// The error a call returned, as a positive number; 0 for none.
    ///
    /// # Errors
    /// [`MISSING`].
    pub(crate) fn errno(&self, name: &str) -> Result<u32, String> {
        let value = match self.signed(name)? {
            // simpletrace.py prints a negative number as if it were none, of 32 bits or of 64.
            value if value > i128::from(i64::MAX) => value - (1 << 64),
            value if value > i128::from(i32::MAX) => value - (1 << 32),
            value => value,
        };
        u32::try_from(value.unsigned_abs()).map_err(|_| MISSING.to_owned())
    }

    /// A text.
    pub(crate) fn text(&self, name: &str) -> Option<&'a str> {
        self.texts.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
    }

    fn signed(&self, name: &str) -> Result<i128, String> {
        let number = self.numbers.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
        number.ok_or_else(|| MISSING.to_owned())
    }

    /// Adds the fields of `text`, which has to be `form` to the end.
    fn follow(&mut self, form: &'static str, text: &'a str) -> bool {
        let Some((before, place, after)) = next_place(form) else { return form == text };
        let Some(text) = text.strip_prefix(before) else { return false };
        if place.kind == '*' {
            return true;
        }
        if place.kind == 's' {
            return self.follow_text(place.name, after, text);
        }
        match number(place.kind, text) {
            Some((number, rest)) => {
                self.numbers.push((place.name, number));
                self.follow(after, rest)
            }
            None => false,
        }
    }

    /// The longest text after which the rest of the form still follows: names have blanks in them.
    fn follow_text(&mut self, name: &'static str, form: &'static str, text: &'a str) -> bool {
        /// A name in which a form's own words stand more often is none.
        const MOST_TRIES: usize = 16;
        let joint = next_place(form).map_or(form, |(before, ..)| before);
        if joint.is_empty() {
            self.texts.push((name, text));
            return !text.is_empty();
        }
        for (end, _) in text.rmatch_indices(joint).take(MOST_TRIES) {
            let (known, numbers) = (self.texts.len(), self.numbers.len());
            if let Some((value, rest)) = text.split_at_checked(end).filter(|(value, _)| !value.is_empty()) {
                self.texts.push((name, value));
                if self.follow(form, rest) {
                    return true;
                }
            }
            self.texts.truncate(known);
            self.numbers.truncate(numbers);
        }
        false
    }
}

struct Place {
    name: &'static str,
    kind: char,
}

/// The text before the first place of a form, the place, and the rest.
fn next_place(form: &'static str) -> Option<(&'static str, Place, &'static str)> {
    let (before, rest) = form.split_once('{')?;
    let (place, after) = rest.split_once('}')?;
    let (name, kind) = place.split_once(':')?;
    Some((before, Place { name, kind: kind.chars().next()? }, after))
}

/// The form as people read it.
pub(crate) fn shown(form: &'static str) -> String {
    let mut out = String::new();
    let mut rest = form;
    while let Some((before, place, after)) = next_place(rest) {
        out.push_str(before);
        out.push_str(match place.kind {
            'x' if before.ends_with("0x") => "…",
            'x' | 'p' => "0x…",
            'd' => "<n>",
            's' => "<name>",
            _ => "",
        });
        rest = after;
    }
    out + rest
}

fn number(kind: char, text: &str) -> Option<(i128, &str)> {
    match kind {
        'x' => hexadecimal(text),
        'p' => match text.strip_prefix("(nil)") {
            Some(rest) => Some((0, rest)),
            None => hexadecimal(text.strip_prefix("0x")?),
        },
        _ => {
            let (digits, rest) = split_where(text.strip_prefix('-').unwrap_or(text), |letter| !letter.is_ascii_digit());
            let number = i128::from(digits.parse::<u64>().ok()?);
            Some((if text.starts_with('-') { -number } else { number }, rest))
        }
    }
}

fn hexadecimal(text: &str) -> Option<(i128, &str)> {
    let (digits, rest) = split_where(text, |letter| !letter.is_ascii_hexdigit());
    Some((u64::from_str_radix(digits, 16).ok()?.into(), rest))
}

fn number_of_pair(text: &str) -> Option<i128> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok().map(i128::from),
        None => text.parse::<i64>().ok().map(i128::from),
    }
}

fn split_where(text: &str, ends: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at_checked(text.find(ends).unwrap_or(text.len())).unwrap_or((text, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_fit_as_a_whole_or_not_at_all() {
        const FORM: &str = "{name:s} at 0x{place:x} ({errno:d})";
        let fields = Fields::of(FORM, "a b at c at 0x1f (-5)").expect("it fits");
        assert_eq!(
            (fields.text("name"), fields.number("place"), fields.errno("errno")),
            (Some("a b at c"), Ok(0x1f), Ok(5))
        );
        assert!(fields.number("other").is_err() && fields.number("errno").is_err());
        for text in ["", "a at 0x (5)", "a at 1f (5)", "a at 0x1f ()", "a at 0x1f (5) ", " at 0x1f (5)", "ä"] {
            assert_eq!(Fields::of(FORM, text), None, "{text}");
        }
    }

    #[test]
    fn pointers_may_be_null_and_ends_may_be_anything() {
        let fields = Fields::of("({p:p}) = {ret:d}{rest:*}", "((nil)) = -22 (Invalid argument)").expect("it fits");
        assert_eq!((fields.number("p"), fields.errno("ret")), (Ok(0), Ok(22)));
        assert!(Fields::of("[{p:p}]", "[1f]").is_none());
    }

    #[test]
    fn pairs_are_found_by_name() {
        const FORM: &str = "region_add [ram] 0x{iova_start:x} - 0x{iova_end:x} ({ret:d})";
        let fields =
            Fields::of_pairs(FORM, "0.000 pid=1 iova_end=0xfff iova_start=0x0 ret=0xfffffff2").expect("it fits");
        assert_eq!((fields.number("iova_end"), fields.errno("ret")), (Ok(0xfff), Ok(14)));
        assert!(Fields::of_pairs(FORM, "iova_start=0x0").is_none());
    }

    #[test]
    fn a_form_is_shown_without_the_names_of_its_places() {
        assert_eq!(shown("[ram] 0x{a:x} - {b:x} [{p:p}] {n:d} {name:s}{rest:*}"), "[ram] 0x… - 0x… [0x…] <n> <name>");
    }
}
