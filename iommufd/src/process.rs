//! Moving an iommufd to another process, which is charged from then on.
//!
//! The kernel remembers with each mapping the process that made it: that process is charged, and its memory is pinned.
//! An iommufd with mappings of files only can be moved, as a whole (linux: drivers/iommu/iommufd/ioas.c,
//! iommufd_ioas_change_process, and drivers/iommu/iommufd/pages.c).

use dmaspace_abi::iommufd::{self, IoasChangeProcess};
use dmaspace_core::door::{Command, Errno, Failure};
use zerocopy::IntoBytes;

use crate::object::Iommufd;

impl Iommufd {
    /// Returns whether the kernel can move an iommufd to another process ([`Iommufd::change_process`]). Makes a request
    /// that is too short to have an effect.
    ///
    /// # Errors
    /// A failure of the kernel that tells neither.
    pub fn can_change_process(&self) -> Result<bool, Failure> {
        match self.move_here(IoasChangeProcess::HALF) {
            Ok(()) => Err(Failure::malformed(iommufd::IOAS_CHANGE_PROCESS.name, "half of a request was enough")),
            // The kernel looks up unknown numbers among those of a container (linux: drivers/iommu/iommufd/main.c,
            // iommufd_fops_ioctl).
            Err(failure) if failure.errno() == Some(Errno::ENOTTY) => Ok(false),
            Err(failure) if failure.errno() == Some(Errno::EINVAL) => Ok(true),
            Err(failure) => Err(failure),
        }
    }

    /// Charges this process, in place of another, for all pins of this iommufd. Page tables and pins stay as they are,
    /// devices do not notice, and the kernel finds the memory in this process from now on. Does nothing if this process
    /// is charged already, so that it can be repeated.
    ///
    /// This process is charged before the other one is uncharged. If one user owns both and is charged himself
    /// ([`Iommufd::charge`]), his limit must have room for twice as much.
    ///
    /// # Errors
    /// `ENOTTY` if the kernel lacks the request ([`Iommufd::can_change_process`]), `EINVAL` if a mapping is not of a
    /// file's memory (mapped by its address, or a BAR that its device exported), `ENOMEM` if this process or its user
    /// may not lock so much. The other process is still charged then.
    pub fn change_process(&self) -> Result<(), Failure> {
        self.move_here(IoasChangeProcess::SIZE)
    }

    fn move_here(&self, size: u32) -> Result<(), Failure> {
        let mut change = IoasChangeProcess { size, reserved: 0 };
        self.call(Command::with_bytes(iommufd::IOAS_CHANGE_PROCESS, change.as_mut_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmaspace_soft::ScriptedDoor;

    #[test]
    fn change_process_is_probed_with_a_truncated_struct() {
        let door =
            ScriptedDoor::new(&[|_| Err(Errno::ENOTTY), |_| Err(Errno::EINVAL), |_| Err(Errno::EPERM), |_| Ok(0)]);
        let iommufd = Iommufd::new(crate::fixture::iommufd(&door));
        assert_eq!(iommufd.can_change_process(), Ok(false));
        assert_eq!(iommufd.can_change_process(), Ok(true));
        assert_eq!(iommufd.can_change_process().map_err(|failure| failure.errno()), Err(Some(Errno::EPERM)));
        iommufd.can_change_process().expect_err("it cannot have been done");
        let half = IoasChangeProcess { size: 4, reserved: 0 };
        assert!(door.take().iter().all(|call| call.bytes == half.as_bytes() && call.attached.is_empty()));
    }

    #[test]
    fn change_process_is_called_once_whatever_its_result() {
        let door = ScriptedDoor::new(&[|_| Ok(0), |_| Err(Errno::ENOMEM)]);
        let iommufd = Iommufd::new(crate::fixture::iommufd(&door));
        iommufd.change_process().expect("done");
        assert_eq!(iommufd.change_process().map_err(|failure| failure.errno()), Err(Some(Errno::ENOMEM)));
        let whole = IoasChangeProcess { size: 8, reserved: 0 };
        let asked: Vec<_> = door.take().into_iter().map(|call| (call.name, call.bytes)).collect();
        assert_eq!(asked, vec![("IOMMU_IOAS_CHANGE_PROCESS", whole.as_bytes().to_vec()); 2]);
    }
}
