//! QEMU's words for the content of a range (qemu: system/memory.c, memory_region_type, and the prefix for memory that
//! outlives the guest's power).

use std::fmt;
use std::sync::Arc;

/// The word for the content of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// `true` if it outlives the guest's power (`nv-`).
    pub(crate) nonvolatile: bool,
    /// The rest of the word.
    pub(crate) what: What,
}

/// The things that can be behind a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// `ram`.
    Ram,
    /// `rom`: memory the guest may only read, perhaps only for now.
    Rom,
    /// `ramd`: a device's memory, mmapped into QEMU.
    RamDevice,
    /// `romd`: reads like memory, writes go to a device model.
    RomDevice,
    /// `i/o`: a device model, and every translating region.
    Io,
    /// A word that is not known here, such as `container` (QEMU 11): nothing that a device can be given.
    Other(Arc<str>),
}

impl What {
    fn of(word: &str) -> Self {
        match word {
            "ram" => Self::Ram,
            "rom" => Self::Rom,
            "ramd" => Self::RamDevice,
            "romd" => Self::RomDevice,
            "i/o" => Self::Io,
            word => Self::Other(word.into()),
        }
    }

    fn word(&self) -> &str {
        match self {
            Self::Ram => "ram",
            Self::Rom => "rom",
            Self::RamDevice => "ramd",
            Self::RomDevice => "romd",
            Self::Io => "i/o",
            Self::Other(word) => word,
        }
    }
}

impl Kind {
    /// The kind of a volatile range.
    pub(crate) const fn volatile(what: What) -> Self {
        Self { nonvolatile: false, what }
    }

    /// Returns whether memory is behind it.
    pub(crate) fn is_memory(&self) -> bool {
        matches!(self.what, What::Ram | What::Rom | What::RamDevice | What::RomDevice)
    }

    /// The kind that a word stands for. `None` for a text that is no word.
    pub(super) fn of(word: &str) -> Option<Self> {
        const LONGEST: usize = 32;
        let is_word = (1..=LONGEST).contains(&word.len()) && !word.contains(|letter: char| " (),:".contains(letter));
        let (nonvolatile, word) = word.strip_prefix("nv-").map_or((false, word), |rest| (true, rest));
        is_word.then(|| Self { nonvolatile, what: What::of(word) })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.nonvolatile { "nv-" } else { "" }, self.what.word())
    }
}
