//! The access that a device has to memory.

use std::fmt;

bitflags::bitflags! {
    /// The access that a device has to the memory behind a mapping. "Read" and "write" are always the device's:
    /// [`Access::READ`] lets it read the memory, as VFIO_DMA_MAP_FLAG_READ does.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub struct Access: u8 {
        /// The device may read.
        const READ = 1;
        /// The device may write.
        const WRITE = 2;
    }
}

impl Access {
    /// Reads and writes, as for RAM.
    pub const READ_WRITE: Self = Self::READ.union(Self::WRITE);
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.contains(Self::READ), self.contains(Self::WRITE)) {
            (true, true) => "read-write",
            (true, false) => "read-only",
            (false, true) => "write-only",
            (false, false) => "no access",
        })
    }
}
