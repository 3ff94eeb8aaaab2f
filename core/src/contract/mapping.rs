//! Mappings: memory that devices find at bus addresses.

use crate::words::access::Access;
use crate::words::address::{Iova, IovaRange};
use crate::words::memory::HostMemory;
use crate::words::page::PageSize;

/// The smallest part of a mapping that can be unmapped by itself.
///
/// Exhaustive: the index of a space handles each form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// The mapping is unmapped as a whole, which lets every kernel make it in one call.
    Whole,
    /// Any run of pages of this size may be unmapped later. type1 and iommufd need one call a page for that; sPAPR does
    /// not.
    Pages(PageSize),
}

/// One live mapping, or a run of units that continue each other.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mapping {
    /// The bus addresses.
    pub range: IovaRange,
    /// The memory behind them, byte for byte.
    pub memory: HostMemory,
    /// The access that devices have.
    pub access: Access,
    /// The parts in which it may be unmapped.
    pub unit: Unit,
}

impl Mapping {
    /// A mapping of `memory` at `range`, which are of one size.
    pub fn new(range: IovaRange, memory: HostMemory, access: Access, unit: Unit) -> Self {
        debug_assert_eq!(range.bytes(), u128::from(memory.len().get()), "a mapping is as long as its memory");
        Self { range, memory, access, unit }
    }
}

/// A request to map memory, or to replace the memory behind live units.
#[derive(Clone, Copy, Debug)]
pub struct MapRequest<'a> {
    at: Iova,
    memory: &'a HostMemory,
    access: Access,
    unit: Unit,
}

impl<'a> MapRequest<'a> {
    /// Asks for all of `memory` at `at`, to be unmapped as a whole.
    pub fn new(at: Iova, memory: &'a HostMemory, access: Access) -> Self {
        Self { at, memory, access, unit: Unit::Whole }
    }

    /// The same request, to be unmapped in parts of `unit`.
    #[must_use]
    pub fn with_unit(self, unit: Unit) -> Self {
        Self { unit, ..self }
    }

    /// The first bus address.
    pub fn at(&self) -> Iova {
        self.at
    }

    /// The memory.
    pub fn memory(&self) -> &'a HostMemory {
        self.memory
    }

    /// The access that devices get.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The parts in which it may be unmapped later.
    pub fn unit(&self) -> Unit {
        self.unit
    }
}

/// Tells whether devices could miss a mapping while it was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Swap {
    /// The kernel swapped entry by entry.
    Seamless,
    /// The old memory was unmapped before the new memory was mapped: for a moment devices found nothing.
    WithGap,
}
