//! One entry of a TCE table.

use std::fmt;

use dmaspace_core::{Access, PageSize, SystemAddress};

/// The device may read (LoPAR: ch_address_map.xml, TCE definition; linux: arch/powerpc/include/asm/tce.h,
/// TCE_PCI_READ).
const READ: u64 = 1;
/// The device may write.
const WRITE: u64 = 2;

/// A translation control entry: a real address of the guest, which is a system address here, and the rights of devices
/// there.
///
/// An entry without a right is a *page fault*: it maps nothing. Its other bits have no meaning, but the guest reads
/// them back as it wrote them.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Tce(u64);

impl Tce {
    /// The entry of every page of a new table.
    pub const NONE: Self = Self(0);

    /// The entry in the guest's encoding, in this machine's byte order.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The guest's encoding.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The rights of devices.
    pub fn access(self) -> Access {
        let read = if self.0 & READ == 0 { Access::empty() } else { Access::READ };
        let write = if self.0 & WRITE == 0 { Access::empty() } else { Access::WRITE };
        read.union(write)
    }

    /// Returns true if devices have a right.
    pub const fn is_live(self) -> bool {
        self.0 & (READ | WRITE) != 0
    }

    /// The first byte of the page that the entry maps.
    pub const fn target(self, page: PageSize) -> SystemAddress {
        SystemAddress::new(page.round_down(self.address()))
    }

    /// Returns true if the entry's address is a multiple of `page`.
    pub const fn is_aligned_to(self, page: PageSize) -> bool {
        page.divides(self.address())
    }

    /// The entry for a page at `target`.
    pub(crate) fn to(target: SystemAddress, access: Access) -> Self {
        let read = if access.contains(Access::READ) { READ } else { 0 };
        let write = if access.contains(Access::WRITE) { WRITE } else { 0 };
        Self(target.get() | read | write)
    }

    /// All bits but the rights.
    const fn address(self) -> u64 {
        self.0 & !(READ | WRITE)
    }
}

/// The entry as it is in a list in the guest's memory: big-endian.
impl From<[u8; size_of::<u64>()]> for Tce {
    fn from(bytes: [u8; size_of::<u64>()]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }
}

impl fmt::Debug for Tce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tce({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_lowest_bits_are_the_rights() {
        for (raw, access) in
            [(0x5000, Access::empty()), (0x5001, Access::READ), (0x5002, Access::WRITE), (0x5003, Access::READ_WRITE)]
        {
            let tce = Tce::new(raw);
            assert_eq!((tce.access(), tce.is_live()), (access, !access.is_empty()));
            assert_eq!(tce.target(PageSize::K4), SystemAddress::new(0x5000));
            assert_eq!(Tce::to(SystemAddress::new(0x5000), access), tce);
        }
    }

    #[test]
    fn bits_between_the_rights_and_the_page_make_it_misaligned() {
        assert!(Tce::new(0x1_0003).is_aligned_to(PageSize::K64));
        assert!(!Tce::new(0x1_1003).is_aligned_to(PageSize::K64));
        assert!(!Tce::new(0x1_0007).is_aligned_to(PageSize::K4));
        assert_eq!(Tce::new(0x1_1003).target(PageSize::K64), SystemAddress::new(0x1_0000));
    }
}
