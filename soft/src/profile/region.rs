//! ReservedProfile ranges in the kernel's own text: the lines of `/sys/kernel/iommu_groups/<n>/reserved_regions`.

use std::str::FromStr;

use super::{Reason, ReservedProfile};

/// The error of a line that describes no reserved range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no reserved range such as 0x00000000fee00000 0x00000000feefffff msi; the words are msi, reserved, direct \
     and direct-relaxable"
)]
pub struct BadRegion(String);

impl FromStr for ReservedProfile {
    type Err = BadRegion;

    /// Reads a line as sysfs has it: first address, last address, reason.
    fn from_str(line: &str) -> Result<Self, BadRegion> {
        parse(line).ok_or_else(|| BadRegion(line.trim().to_owned()))
    }
}

impl ReservedProfile {
    /// Reads the text of sysfs: a range in each line.
    ///
    /// # Errors
    /// The first line that describes no range.
    pub fn lines(text: &str) -> Result<Vec<Self>, BadRegion> {
        text.lines().filter(|line| !line.trim().is_empty()).map(str::parse).collect()
    }
}

fn parse(line: &str) -> Option<ReservedProfile> {
    let mut words = line.split_whitespace();
    let (first, last, reason) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    Some(ReservedProfile { first: hexadecimal(first)?, last: hexadecimal(last)?, reason: Reason::of_kernel(reason)? })
}

fn hexadecimal(word: &str) -> Option<u64> {
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()
}

impl Reason {
    /// The reason behind the kernel's word.
    pub fn of_kernel(word: &str) -> Option<Self> {
        Some(match word {
            "msi" => Self::Msi,
            "reserved" => Self::Reserved,
            "direct" => Self::Direct,
            "direct-relaxable" => Self::DirectRelaxable,
            _ => return None,
        })
    }

    /// The kernel's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Msi => "msi",
            Self::Reserved => "reserved",
            Self::Direct => "direct",
            Self::DirectRelaxable => "direct-relaxable",
        }
    }
}
