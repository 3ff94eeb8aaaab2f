//! The form of an event, in which some places are open: `0x…` for a number in hexadecimal, `<n>` for one in decimal, `<name>` for any
//! text.

/// What stands where a form leaves something open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields<'a> {
    numbers: Vec<u64>,
    /// The name, where the form has one.
    pub(crate) name: Option<&'a str>,
}

impl<'a> Fields<'a> {
    /// What `text` says in `form`, if it has that form.
    pub(crate) fn of(form: &str, text: &'a str) -> Option<Self> {
        let opens = ["0x…", "<n>", "<name>"];
        let open = opens.into_iter().filter_map(|open| Some((form.find(open)?, open))).min();
        let Some((place, open)) = open else { return (form == text).then(Self::default) };
        let text = text.strip_prefix(form.get(..place)?)?;
        let form = form.get(place + open.len()..)?;
        match open {
            "<name>" => Self::after_name(form, text),
            "<n>" => {
                let digits = text.strip_prefix('-').unwrap_or(text);
                let (digits, rest) = split_where(digits, |letter| !letter.is_ascii_digit());
                // A negative one is an errno, for which nobody asks.
                let number = digits.parse().ok()?;
                Some(Self::of(form, rest)?.with(number))
            }
            _ => {
                let (digits, rest) = split_where(text.strip_prefix("0x")?, |letter| !letter.is_ascii_hexdigit());
                let number = u64::from_str_radix(digits, 16).ok()?;
                Some(Self::of(form, rest)?.with(number))
            }
        }
    }

    /// The longest name after which the rest of the form still follows: names have blanks in them.
    fn after_name(form: &str, text: &'a str) -> Option<Self> {
        let ends = text.char_indices().map(|(place, _)| place).chain([text.len()]).rev();
        ends.filter(|end| *end > 0).find_map(|end| {
            let (name, rest) = text.split_at_checked(end)?;
            Some(Self { name: Some(name), ..Self::of(form, rest)? })
        })
    }

    /// Numbers come up from the last to the first.
    fn with(mut self, number: u64) -> Self {
        self.numbers.insert(0, number);
        self
    }

    /// The numbers, of which the form has `N`.
    ///
    /// # Errors
    /// When it has not.
    pub(crate) fn numbers<const N: usize>(&self) -> Result<[u64; N], String> {
        self.numbers.as_slice().try_into().map_err(|_| format!("{N} numbers"))
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
        let fields = Fields::of("<name> at 0x… (<n>)", "a b at c at 0x1f (-5)").expect("it fits");
        assert_eq!((fields.name, fields.numbers()), (Some("a b at c"), Ok([0x1f, 5])));
        assert!(fields.numbers::<1>().is_err());
        for text in ["", "a at 0x (5)", "a at 1f (5)", "a at 0x1f ()", "a at 0x1f (5) ", " at 0x1f (5)", "ä"] {
            assert_eq!(Fields::of("<name> at 0x… (<n>)", text), None, "{text}");
        }
    }
}
