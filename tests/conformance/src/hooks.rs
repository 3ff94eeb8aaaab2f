//! The hooks of a bench: a device that does DMA, and calls that fail on request.

use dmaspace_core::Iova;

/// A device with a buffer of its own, which moves bytes between the buffer and the bus.
pub trait Dma {
    /// Reads `len` bytes at `from` into the buffer. The buffer's content after a read that was refused is not
    /// specified.
    fn load(&mut self, from: Iova, len: usize);

    /// Writes the first `len` bytes of the buffer to `to`. A write that is refused changes no memory.
    fn store(&mut self, to: Iova, len: usize);
}

/// A sort of call that a backend makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Call {
    /// Mapping memory.
    Map,
    /// Unmapping a range.
    Unmap,
    /// Creating a window.
    CreateWindow,
    /// Removing a window.
    RemoveWindow,
    /// Registering memory.
    Register,
    /// Unregistering memory.
    Unregister,
    /// Attaching a device.
    Attach,
    /// Detaching a device.
    Detach,
    /// Beginning to log what devices write.
    StartDirty,
    /// Reading the log of what devices wrote.
    FetchDirty,
    /// Invalidating the addresses of mappings before a live update.
    Invalidate,
}

impl Call {
    /// All sorts of calls.
    pub const ALL: [Self; 11] = [
        Self::Map,
        Self::Unmap,
        Self::CreateWindow,
        Self::RemoveWindow,
        Self::Register,
        Self::Unregister,
        Self::Attach,
        Self::Detach,
        Self::StartDirty,
        Self::FetchDirty,
        Self::Invalidate,
    ];
}

/// Calls that fail on request, without any effect.
pub trait Faults {
    /// Returns whether calls of this sort can be made to fail.
    fn can_fail(&self, call: Call) -> bool;

    /// Makes calls of this sort fail from now on: `skipped` calls succeed, the `times` calls after them fail, and later
    /// ones succeed again. Requests for different sorts of calls add up; a request for one sort replaces the earlier
    /// request for it.
    fn fail(&self, call: Call, skipped: u32, times: u32);

    /// Forgets all requests: every call succeeds again.
    fn mend(&self);
}
