//! One entry of a TCE table.

use std::fmt;

use dmaspace_core::{Access, PageSize, SystemAddress};

/// The device may read (LoPAR: ch_address_map.xml, TCE definition; linux: arch/powerpc/include/asm/tce.h, TCE_PCI_READ).
const READ: u64 = 1;
/// The device may write.
const WRITE: u64 = 2;

/// A translation control entry: a real address of the guest's, which is a system address here, and what devices may do there.
///
/// Without a right it is a *page fault*: nothing is mapped, and its other bits mean nothing but are kept.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Tce(u64);

impl Tce {
    /// What an entry is before anything is put.
    pub const NONE: Self = Self(0);

    /// The entry as the guest spells it, in this machine's byte order.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// As the guest spells it.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// What devices may do.
    pub fn access(self) -> Access {
        let mut access = Access::empty();
        access.set(Access::READ, self.0 & READ != 0);
        access.set(Access::WRITE, self.0 & WRITE != 0);
        access
    }

    /// Whether devices may do anything.
    pub const fn is_live(self) -> bool {
        self.0 & (READ | WRITE) != 0
    }

    /// Where the page begins that devices reach through it.
    pub const fn target(self, page: PageSize) -> SystemAddress {
        SystemAddress::new(page.round_down(self.address()))
    }

    /// Whether its address is a multiple of `page`.
    pub const fn is_aligned_to(self, page: PageSize) -> bool {
        page.divides(self.address())
    }

    /// The entry for a page at `target`.
    pub(super) fn to(target: SystemAddress, access: Access) -> Self {
        let read = if access.contains(Access::READ) { READ } else { 0 };
        let write = if access.contains(Access::WRITE) { WRITE } else { 0 };
        Self(target.get() | read | write)
    }

    /// Everything but the rights.
    const fn address(self) -> u64 {
        self.0 & !(READ | WRITE)
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
