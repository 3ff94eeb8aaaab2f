//! An iommufd whose mappings are of files, and a second process that has it charged to itself, on a real kernel.
//!
//! The second is this program again, which [`is_another`] tells, with the iommufd as its standard input.

use dmaspace_core::contract::MapRequest;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;

use dmaspace::OpenError;
use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::facts::Facts;
use dmaspace::linux::LinuxDoor;
use dmaspace::open::Host;
use dmaspace::pci::PciAddress;
use dmaspace_core::door::{Door as _, Errno, HandleKind};
use dmaspace_core::{Access, Iova};
use dmaspace_iommufd::Iommufd;

use crate::files::impostor;
use crate::ledger::{OfThisProcess, have_locked_memory_counted};
use crate::limits::LockLimit;
use crate::ram::Ram;

const MIB: u64 = 1 << 20;
/// In the environment of the second process.
const ANOTHER: &str = "DMASPACE_TESTS_CHANGE_PROCESS";

/// Returns whether this process is the second.
pub fn is_another() -> bool {
    std::env::var_os(ANOTHER).is_some()
}

/// Plays the second process.
///
/// # Panics
/// When it is not charged for the mappings.
pub fn have_this_one_charged() {
    have_locked_memory_counted();
    let iommufd = std::io::stdin().as_fd().try_clone_to_owned().expect("one descriptor more");
    let door = Arc::new(LinuxDoor::new());
    let iommufd = Iommufd::new(crate::owned::adopted(door, iommufd, HandleKind::Iommufd));
    assert_eq!(OfThisProcess.locked().pinned, 0);
    for _ in 0..2 {
        iommufd.change_process().expect("all of it is a file's");
        assert_eq!(OfThisProcess.locked().pinned, MIB);
    }
}

/// Runs the first process, which maps, takes over the charge that the second left, and maps again.
///
/// # Errors
/// What opening says.
///
/// # Panics
/// When anything is not as it should be.
pub fn another_process_is_charged_once_it_asks(device: PciAddress) -> Result<(), OpenError> {
    let pinned = || OfThisProcess.locked().pinned;
    let door = Arc::new(LinuxDoor::new());
    let host = Host::new(door.clone(), Facts::of_this_host(&*door).expect("sysfs is mounted"));
    let opened = host.open(&OpenRequest::device(device).with_backend(BackendKind::Iommufd))?;
    let space = opened.space.space();
    let none = pinned();
    let (_file, memory) = impostor();
    space.map(MapRequest::new(Iova::new(0), &memory, Access::READ_WRITE)).expect("it fits");
    assert_eq!(pinned(), none + MIB);

    let iommufd = opened.space.handle().expect("an iommufd");
    let iommufd = door.descriptor(iommufd).expect("it is open");
    let copy = || iommufd.as_fd().try_clone_to_owned().expect("one descriptor more");
    let another = Command::new("/proc/self/exe").env(ANOTHER, "1").stdin(Stdio::from(copy())).status();
    assert!(another.expect("this program starts again").success(), "the other says why, above");
    assert_eq!(pinned(), none, "the other was charged, and is gone");

    let iommufd = Iommufd::new(crate::owned::adopted(door.clone(), copy(), HandleKind::Iommufd));
    assert_eq!((iommufd.can_change_process(), pinned()), (Ok(true), none), "a question changes nothing");
    iommufd.change_process().expect("all of it is a file's");
    assert_eq!(pinned(), none + MIB);
    let ram = Ram::new(1 << 21).slice(0, MIB);
    space.map(MapRequest::new(Iova::new(8 * MIB), &ram, Access::READ_WRITE)).expect("it fits");
    let refused = iommufd.change_process().expect_err("that has an address");
    assert_eq!((refused.errno(), pinned()), (Some(Errno::EINVAL), none + 2 * MIB));
    Ok(())
}
