//! Who is charged when descriptors go from process to process.
//!
//! The kernel remembers with each mapping which process made it: that one is charged, and pins to come look for its
//! memory there. An iommufd whose mappings are all of files can be moved, as a whole (linux:
//! drivers/iommu/iommufd/ioas.c, iommufd_ioas_change_process, and drivers/iommu/iommufd/pages.c).

use dmaspace_abi::iommufd::{self, IoasChangeProcess};
use dmaspace_core::door::{Command, Errno, Failure};
use zerocopy::IntoBytes;

use crate::object::Iommufd;

impl Iommufd {
    /// Whether the kernel can move an iommufd to another process: [`Iommufd::change_process`]. Asks the kernel for
    /// something too short to be done, and changes nothing.
    ///
    /// # Errors
    /// What the kernel says beyond yes and no.
    pub fn can_change_process(&self) -> Result<bool, Failure> {
        match self.move_here(IoasChangeProcess::HALF) {
            Ok(()) => Err(Failure::malformed(iommufd::IOAS_CHANGE_PROCESS.name, "half of a request was enough")),
            // Numbers that it does not know are looked for among a container's (linux: drivers/iommu/iommufd/main.c,
            // iommufd_fops_ioctl).
            Err(failure) if failure.errno() == Some(Errno::ENOTTY) => Ok(false),
            Err(failure) if failure.errno() == Some(Errno::EINVAL) => Ok(true),
            Err(failure) => Err(failure),
        }
    }

    /// Has this process charged for all that is pinned in this iommufd, in whichever address space, instead of whoever
    /// was. Page tables and pins stay as they are, devices do not notice, and the kernel finds the memory from now on
    /// by this process. Where it is charged already nothing happens, so this can be tried again.
    ///
    /// This process is charged before the other is not. As long as both are one user's, and he is the one who is
    /// charged ([`Iommufd::charge`]), his limit must have room for twice as much.
    ///
    /// # Errors
    /// `ENOTTY` when the kernel cannot ([`Iommufd::can_change_process`]), `EINVAL` when something is mapped that is not
    /// memory of a file: by its address, or a BAR that its device exported; `ENOMEM` when this process or its user may
    /// not lock so much. The other is charged then, as before.
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
    fn whether_it_can_be_moved_is_asked_with_half_of_a_request() {
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
    fn it_is_moved_by_one_call_whatever_comes_of_that() {
        let door = ScriptedDoor::new(&[|_| Ok(0), |_| Err(Errno::ENOMEM)]);
        let iommufd = Iommufd::new(crate::fixture::iommufd(&door));
        iommufd.change_process().expect("done");
        assert_eq!(iommufd.change_process().map_err(|failure| failure.errno()), Err(Some(Errno::ENOMEM)));
        let whole = IoasChangeProcess { size: 8, reserved: 0 };
        let asked: Vec<_> = door.take().into_iter().map(|call| (call.name, call.bytes)).collect();
        assert_eq!(asked, vec![("IOMMU_IOAS_CHANGE_PROCESS", whole.as_bytes().to_vec()); 2]);
    }
}
