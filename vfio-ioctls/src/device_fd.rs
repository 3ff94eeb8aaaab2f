//! The VFIO device of a hypervisor.

#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
use kvm_ioctls::DeviceFd as KvmDeviceFd;

#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
use crate::{Result, VfioError};

/// The VFIO device of KVM, which is told of every group. Without KVM there is none.
#[derive(Debug)]
pub struct VfioDeviceFd(Inner);

#[derive(Debug)]
enum Inner {
    #[cfg(all(feature = "kvm", target_arch = "x86_64"))]
    Kvm(KvmDeviceFd),
}

impl VfioDeviceFd {
    /// Takes over KVM's VFIO device.
    #[cfg(all(feature = "kvm", target_arch = "x86_64"))]
    pub fn new_from_kvm(fd: KvmDeviceFd) -> Self {
        Self(Inner::Kvm(fd))
    }

    /// Returns KVM's VFIO device.
    ///
    /// # Errors
    /// None: the original has devices of other hypervisors, too.
    #[cfg(all(feature = "kvm", target_arch = "x86_64"))]
    pub fn to_kvm(self) -> Result<KvmDeviceFd> {
        let Inner::Kvm(fd) = self.0;
        Ok(fd)
    }

    /// Duplicates the descriptor.
    ///
    /// # Errors
    /// [`VfioError::VfioDeviceDupFd`].
    #[cfg(all(feature = "kvm", target_arch = "x86_64"))]
    pub fn try_clone(&self) -> Result<Self> {
        use std::os::fd::{AsRawFd, FromRawFd};

        let Inner::Kvm(fd) = &self.0;
        #[expect(unsafe_code, reason = "UNSAFETY: kvm-ioctls has no safe duplicate")]
        // SAFETY: no memory is passed.
        let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return Err(VfioError::VfioDeviceDupFd);
        }
        #[expect(unsafe_code, reason = "UNSAFETY: kvm-ioctls has no safe duplicate")]
        // SAFETY: the kernel just made the descriptor, of the same file, for this value alone.
        let copy = unsafe { KvmDeviceFd::from_raw_fd(copy) };
        Ok(Self::new_from_kvm(copy))
    }
}
