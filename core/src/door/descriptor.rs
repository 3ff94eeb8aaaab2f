//! The descriptor behind a handle, lent to the VMM.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

/// A descriptor of a door, for calls that this library does not make: interrupts, KVM, a hand-over through a socket.
///
/// It stays open as long as this value or a clone of it lives, even when the handle is closed meanwhile; a group, a
/// device or a container is then still open for the kernel. The mappings of a container are the space's: calls that
/// map, unmap or detach behind its back break what it promises.
#[derive(Clone, Debug)]
pub struct Descriptor(Arc<File>);

impl Descriptor {
    /// A descriptor that a door shares.
    pub fn new(file: Arc<File>) -> Self {
        Self(file)
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
