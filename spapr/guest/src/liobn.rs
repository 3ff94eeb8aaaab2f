//! The name of a TCE table.

use std::fmt;

/// A logical I/O bus number: the name of a TCE table in hypercalls and in the device tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Liobn(u32);

impl Liobn {
    /// Wraps a raw number.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The LIOBN in a register of the guest, which has 64 bits. `None` for a number of more than 32 bits: no table has
    /// such a name.
    pub fn from_register(register: u64) -> Option<Self> {
        u32::try_from(register).ok().map(Self)
    }

    /// The raw number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Liobn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Liobn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Liobn({:#x})", self.0)
    }
}
