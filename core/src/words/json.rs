//! Forms of words that serde writes and reads (feature `serde`): addresses are `"0x…"`, sizes are numbers of bytes.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::page::PageSize;
use super::window;

/// A text that may be an excerpt of input of any length: the middle of a long one is left out.
pub(crate) fn shortened(text: &str) -> Cow<'_, str> {
    const HEAD: usize = 160;
    // The place in the input, which serde_json puts at the end.
    const TAIL: usize = 40;
    let (head, tail) = (text.char_indices().nth(HEAD), text.char_indices().rev().nth(TAIL - 1));
    match (head, tail) {
        (Some((head, _)), Some((tail, _))) if head < tail => {
            let (beginning, end) = (text.get(..head).unwrap_or_default(), text.get(tail..).unwrap_or_default());
            format!("{beginning}…{end}").into()
        }
        _ => text.into(),
    }
}

/// A host's window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct JsonWindow {
    /// The first bus address.
    pub first: Hex,
    /// The last bus address, which is inside.
    pub last: Hex,
    /// The pages it can be mapped in, in bytes, ascending.
    pub page_sizes: Vec<u64>,
}

impl JsonWindow {
    /// A window.
    pub fn of(window: &window::Window) -> Self {
        Self {
            first: Hex(window.range.first().get()),
            last: Hex(window.range.last().get()),
            page_sizes: window.page_sizes.iter().map(PageSize::bytes).collect(),
        }
    }
}

/// An address, written `"0x…"`: not every reader's numbers hold 64 bits.
///
/// Exhaustive: a number and its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Digits;

        impl Visitor<'_> for Digits {
            type Value = Hex;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address as a string, \"0x\" and up to 16 hexadecimal digits")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Hex, E> {
                let digits = text.strip_prefix("0x").filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
                let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
                number.map(Hex).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_str(Digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_a_long_text_is_left_out() {
        let short = "ä".repeat(200);
        assert_eq!(shortened(&short), short);
        let long = format!("{}{}at the end", "ä".repeat(160), "x".repeat(100_000));
        let text = shortened(&long);
        assert!(text.starts_with(&"ä".repeat(160)) && text.ends_with("xxat the end"), "{text}");
        assert_eq!(text.chars().count(), 201);
    }
}
