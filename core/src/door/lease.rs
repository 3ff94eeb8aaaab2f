//! The token without which no kernel call makes memory reachable for devices.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use crate::words::memory::HostMemory;

/// Memory that devices may reach from now on, and that is kept until they cannot any more.
///
/// A mapping outlives the call that makes it. A [`Space`](crate::Space) keeps the memory until the mapping is gone, and
/// it alone makes leases; so safe code cannot map memory past it and free the memory under a device.
#[derive(Debug)]
pub struct Lease<'a> {
    memory: Cow<'a, HostMemory>,
}

impl<'a> Lease<'a> {
    /// A lease of memory that a space keeps.
    pub(crate) fn kept_by_space(memory: &'a HostMemory) -> Self {
        Self { memory: Cow::Borrowed(memory) }
    }

    /// A lease of memory that the caller keeps, for raw calls at a door.
    ///
    /// # Safety
    /// The caller keeps a clone of `memory` until whatever the call maps or registers is gone from the kernel, also
    /// after a call that failed.
    #[expect(unsafe_code, reason = "UNSAFETY: the caller promises to keep the memory, as a space does")]
    pub unsafe fn kept_by_caller(memory: &'a HostMemory) -> Self {
        Self { memory: Cow::Borrowed(memory) }
    }

    /// A lease of an address without memory, which no door of real devices maps. `None` for memory that is there.
    pub fn of_unbacked(memory: &'a HostMemory) -> Option<Self> {
        memory.is_unbacked().then_some(Self { memory: Cow::Borrowed(memory) })
    }

    /// The part of the lease that is exactly `memory`. `None` when a byte of it is outside.
    pub fn narrowed_to(&self, memory: &HostMemory) -> Option<Lease<'a>> {
        let offset = memory.address().get().checked_sub(self.memory.address().get())?;
        let part = self.memory.slice(offset, memory.len().get())?;
        Some(Lease { memory: Cow::Owned(part) })
    }
}

impl fmt::Display for Lease<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.memory.fmt(f)
    }
}

impl Deref for Lease<'_> {
    type Target = HostMemory;

    fn deref(&self) -> &HostMemory {
        &self.memory
    }
}
