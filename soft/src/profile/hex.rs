//! Addresses, sizes and masks in files: written as "0xfee00000", read in that form or as a plain number.

use serde::{Deserialize, Deserializer, Serializer, de};

pub(super) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{number:#x}"))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Spelling::deserialize(deserializer)?.number()
}

/// The two notations of a number.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number, or one in quotes such as \"0xfee00000\"")]
enum Spelling {
    Number(u64),
    Text(String),
}

impl Spelling {
    fn number<E: de::Error>(self) -> Result<u64, E> {
        let text = match self {
            Self::Number(number) => return Ok(number),
            Self::Text(text) => text,
        };
        let parsed = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        parsed.map_err(|error| E::custom(format_args!("`{text}` is no number such as 0xfee00000: {error}")))
    }
}

/// Lists of two numbers.
pub(super) mod list {
    use serde::Serializer;
    use serde::ser::SerializeSeq;

    pub(in super::super) fn serialize<S: Serializer>(numbers: &[u64; 2], serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(numbers.len()))?;
        for number in numbers {
            list.serialize_element(&format!("{number:#x}"))?;
        }
        list.end()
    }
}
