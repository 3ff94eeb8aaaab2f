//! The memory that a process has registered for sPAPR windows: pinned and charged once, whatever the number of
//! containers that use it (linux: arch/powerpc/mm/book3s64/iommu_api.c).
//!
//! Invariants: registrations share no byte; a registration exists exactly while a container or a TCE uses it.

use std::collections::BTreeMap;

use dmaspace_core::{HostAddress, HostMemory, PageSize};

/// A registered block.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    /// The block's number, never used again.
    pub(crate) id: u64,
    /// The pinned memory.
    pub(crate) memory: HostMemory,
    /// The largest page of a TCE that can point into the block.
    pub(crate) page: PageSize,
    /// The number of containers that use the block.
    pub(crate) users: u32,
    /// The number of TCEs that point into the block.
    pub(crate) mapped: u64,
}

impl Registration {
    /// One past the block's last byte; the kernel refuses blocks that end at 2^64.
    pub(crate) fn end(&self) -> u64 {
        self.memory.last().get().saturating_add(1)
    }
}

/// The registrations of a process.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    by_address: BTreeMap<u64, Registration>,
    addresses: BTreeMap<u64, u64>,
    last_id: u64,
}

impl Registry {
    /// Adds a block with one user and returns its number. The caller has checked that it overlaps no other block.
    pub(crate) fn add(&mut self, memory: HostMemory, page: PageSize) -> u64 {
        self.last_id += 1;
        let (id, address) = (self.last_id, memory.address());
        self.addresses.insert(id, address.get());
        self.by_address.insert(address.get(), Registration { id, memory, page, users: 1, mapped: 0 });
        id
    }

    /// The block with the number `id`.
    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Registration> {
        self.by_address.get_mut(self.addresses.get(&id)?)
    }

    /// The block with exactly this span (linux: mm_iommu_get).
    pub(crate) fn exactly(&mut self, address: u64, size: u64) -> Option<&mut Registration> {
        self.by_address.get_mut(&address).filter(|block| block.memory.len().get() == size)
    }

    /// The block that contains all of the span (linux: mm_iommu_lookup).
    pub(crate) fn holding(&self, address: u64, size: u64) -> Option<&Registration> {
        let (_, block) = self.by_address.range(..=address).next_back()?;
        address.checked_add(size).filter(|end| *end <= block.end()).map(|_| block)
    }

    /// Returns whether a block shares bytes with the span.
    pub(crate) fn overlaps(&self, address: u64, size: u64) -> bool {
        let last = address.saturating_add(size - 1);
        self.by_address
            .range(..=last)
            .next_back()
            .is_some_and(|(_, block)| block.memory.last() >= HostAddress::new(address))
    }

    /// Removes a user. Returns the block if that was its last user and no TCE points into it; while TCEs do, the last
    /// user stays (linux: mm_iommu_put).
    pub(crate) fn put(&mut self, id: u64) -> Option<Registration> {
        let block = self.get_mut(id)?;
        if block.users > 1 {
            block.users -= 1;
        } else if block.mapped == 0 {
            let address = self.addresses.remove(&id)?;
            return self.by_address.remove(&address);
        }
        None
    }

    /// All blocks, ascending by address.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Registration> {
        self.by_address.values()
    }

    /// Removes and returns every block.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Registration> + use<> {
        self.addresses.clear();
        std::mem::take(&mut self.by_address).into_values()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    fn memory(address: u64, len: u64) -> HostMemory {
        HostMemory::unbacked(HostAddress::new(address), NonZeroU64::new(len).expect("not empty")).expect("no wrap")
    }

    #[test]
    fn a_block_is_found_for_ranges_wholly_inside_it() {
        let mut registry = Registry::default();
        registry.add(memory(0x1000, 0x2000), PageSize::K4);
        registry.add(memory(0x3000, 0x1000), PageSize::K4);
        assert!(registry.holding(0x2000, 0x1000).is_some());
        assert!(registry.holding(0x2000, 0x2000).is_none(), "two blocks do not hold one page together");
        assert!(registry.holding(0x4000, 0x1000).is_none());
        assert!(registry.overlaps(0x3fff, 0x1000));
        assert!(!registry.overlaps(0x4000, 0x1000));
    }

    #[test]
    fn the_last_unregistration_is_refused_while_a_tce_maps_the_block() {
        let mut registry = Registry::default();
        let id = registry.add(memory(0x1000, 0x1000), PageSize::K4);
        registry.get_mut(id).expect("just added").mapped = 1;
        assert!(registry.put(id).is_none());
        registry.get_mut(id).expect("still there").mapped = 0;
        assert!(registry.put(id).is_some());
        assert_eq!(registry.iter().count(), 0);
    }
}
