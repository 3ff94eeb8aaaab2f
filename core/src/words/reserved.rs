//! Reserved ranges: bus addresses at which a device does not reach memory, the reason, and the device.
//!
//! Windows tell where memory can be mapped; they do not tell why there is a hole. The code that attaches a device knows
//! the reason ([`crate::contract::Attachable::reserved`]), and refusals can name it.

use std::fmt;

use crate::words::address::{Iova, IovaRange};

/// Why a range is reserved (linux: drivers/iommu/iommu.c, iommu_group_resv_type_string).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Why {
    /// `msi`: a write there is an interrupt, or the kernel delivers interrupts through it.
    Msi,
    /// `reserved`: the hardware does something else with it.
    Hardware,
    /// `direct`: the firmware wants it mapped one to one.
    Direct,
    /// `direct-relaxable`: the firmware wanted it mapped one to one, but can do without. Memory can be mapped there.
    DirectRelaxable,
    /// A word that is not known here.
    Other(String),
}

impl Why {
    /// The meaning of the kernel's word.
    pub fn of(word: &str) -> Self {
        match word {
            "msi" => Self::Msi,
            "reserved" => Self::Hardware,
            "direct" => Self::Direct,
            "direct-relaxable" => Self::DirectRelaxable,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// Bus addresses at which a device does not reach memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Reserved {
    /// The range.
    pub range: IovaRange,
    /// The reason.
    pub why: Why,
    /// The device or group.
    pub whose: String,
}

impl Reserved {
    /// A range that is reserved for `whose`, a device or a group.
    pub fn new(range: IovaRange, why: Why, whose: impl Into<String>) -> Self {
        Self { range, why, whose: whose.into() }
    }

    /// Returns `true` if the range blocks mappings.
    pub fn counts(&self) -> bool {
        self.why != Why::DirectRelaxable
    }

    /// Returns `true` if it is in the range of AMD's IOMMU for HyperTransport's own traffic, just below 1 TiB (linux:
    /// drivers/iommu/amd/amd_iommu_types.h, HT_RANGE_START).
    fn is_hypertransport(&self) -> bool {
        let within = self.range.first() >= Iova::new(0xfd_0000_0000) && self.range.last() <= Iova::new(0xff_ffff_ffff);
        self.why == Why::Hardware && within
    }
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, ", self.range)?;
        match &self.why {
            Why::Msi => f.write_str("where a write is an interrupt")?,
            Why::Hardware if self.is_hypertransport() => f.write_str("AMD's HyperTransport hole")?,
            Why::Hardware => f.write_str("which the hardware keeps to itself")?,
            Why::Direct => f.write_str("which the firmware wants mapped one to one")?,
            Why::DirectRelaxable => f.write_str("which the firmware once wanted mapped one to one")?,
            Why::Other(word) => write!(f, "reserved as {word:?}")?,
        }
        write!(f, " ({})", self.whose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(first: u64, last: u64, word: &str) -> String {
        let range = IovaRange::new(Iova::new(first), Iova::new(last)).expect("a range of the test");
        Reserved { range, why: Why::of(word), whose: "group 7".into() }.to_string()
    }

    #[test]
    fn every_word_of_the_kernels_is_explained() {
        assert_eq!(text(0x10, 0x1f, "msi"), "0x10..=0x1f, where a write is an interrupt (group 7)");
        assert_eq!(text(0x10, 0x1f, "reserved"), "0x10..=0x1f, which the hardware keeps to itself (group 7)");
        assert_eq!(text(0x10, 0x1f, "direct"), "0x10..=0x1f, which the firmware wants mapped one to one (group 7)");
    }

    #[test]
    fn hypertransport_is_known_by_where_it_is() {
        let hole = "0xfd00000000..=0xffffffffff, AMD's HyperTransport hole (group 7)";
        assert_eq!(text(0xfd_0000_0000, 0xff_ffff_ffff, "reserved"), hole);
        assert!(text(0xfd_0000_0000, 0x100_0000_0000, "reserved").contains("the hardware"));
    }

    #[test]
    fn an_unknown_word_is_passed_on_and_stays_on_its_line() {
        assert_eq!(text(0, 0, "x\ny"), "0x0..=0x0, reserved as \"x\\ny\" (group 7)");
    }
}
