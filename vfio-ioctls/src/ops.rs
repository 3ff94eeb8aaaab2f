//! The trait by which a VMM maps memory, whatever is behind it.

use std::any::Any;

use crate::Result;

/// The operations of a VMM on the address space of its devices.
///
/// The default bodies panic, as the original's do: an implementation has all three.
pub trait VfioOps: Any + Send + Sync {
    /// Maps `size` bytes at `user_addr` for reading and writing at the bus address `iova`.
    ///
    /// # Errors
    /// The reason of the refusal.
    ///
    /// # Safety
    /// Until [`VfioOps::vfio_dma_unmap`] has removed the mapping, devices read and write the memory at any time: it
    /// stays mapped in this process, and no Rust reference to it exists.
    #[expect(unsafe_code, reason = "UNSAFETY: the caller promises that the memory outlives its mapping")]
    unsafe fn vfio_dma_map(&self, _iova: u64, _size: usize, _user_addr: *mut u8) -> Result<()> {
        unimplemented!()
    }

    /// Unmaps `size` bytes at the bus address `iova`: all mappings that lie in the range.
    ///
    /// # Errors
    /// The reason of the refusal: above all, a mapping that the range cuts.
    fn vfio_dma_unmap(&self, _iova: u64, _size: usize) -> Result<()> {
        unimplemented!()
    }

    /// The implementation itself, for a downcast.
    fn as_any(&self) -> &dyn Any {
        unimplemented!()
    }
}
