//! The trait by which a VMM maps memory, whatever is behind it.

use std::any::Any;

use vmm_sys_util::errno::Error as SysError;

use crate::{Result, VfioError};

/// The operations of a VMM on the address space of its devices.
///
/// An implementation has all three. The default bodies, with which the original panics, map nothing (`ENOSYS`) and
/// show a value of no use.
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
        Err(VfioError::IommuDmaMap(SysError::new(libc::ENOSYS)))
    }

    /// Unmaps `size` bytes at the bus address `iova`: all mappings that lie in the range.
    ///
    /// # Errors
    /// The reason of the refusal: above all, a mapping that the range cuts.
    fn vfio_dma_unmap(&self, _iova: u64, _size: usize) -> Result<()> {
        Err(VfioError::IommuDmaUnmap(SysError::new(libc::ENOSYS)))
    }

    /// The implementation itself, for a downcast.
    fn as_any(&self) -> &dyn Any {
        &()
    }
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::VfioOps;
    use crate::VfioError;

    struct Nothing;

    impl VfioOps for Nothing {}

    #[test]
    #[expect(unsafe_code, reason = "UNSAFETY: nothing is mapped")]
    fn an_implementation_without_bodies_maps_nothing_and_is_no_value() {
        // SAFETY: the default body maps no memory.
        let mapped = unsafe { Nothing.vfio_dma_map(0, 0x1000, ptr::null_mut()) };
        assert!(matches!(mapped, Err(VfioError::IommuDmaMap(error)) if error.errno() == libc::ENOSYS));
        let unmapped = Nothing.vfio_dma_unmap(0, 0x1000);
        assert!(matches!(unmapped, Err(VfioError::IommuDmaUnmap(error)) if error.errno() == libc::ENOSYS));
        assert!(Nothing.as_any().downcast_ref::<Nothing>().is_none());
    }
}
