//! A door to a host in software that tells each call before it is made, and each answer before it is given.

use std::fmt::Debug;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::door::{Command, Door, Errno, Handle, HandleKind};
use dmaspace_core::words::locked::LockedMemory;
use dmaspace_core::{Access, HostMemory, PageSize};
use dmaspace_soft::SoftHost;

/// The watcher of a door.
pub trait Watcher: Send + Sync + Debug {
    /// An ioctl that is about to be made.
    fn command(&self, command: &Command<'_>);

    /// Another call that can fail and is about to be made, by its name.
    fn call(&self, _name: &'static str) {}

    /// The answer to the ioctl that was told last, whose reply may be changed.
    fn answer(&self, _on: Handle, _command: &mut Command<'_>, _result: Result<i32, Errno>) {}
}

/// The door, with its watcher.
#[derive(Debug)]
pub struct WatchedDoor<W> {
    /// The host behind it.
    pub soft: Arc<SoftHost>,
    /// The watcher.
    pub watcher: W,
}

/// A close cannot be made to fail, so the watcher is not told of it.
#[expect(unsafe_code, reason = "UNSAFETY: passes everything on")]
// SAFETY: each command is passed on to a host in software.
unsafe impl<W: Watcher> Door for WatchedDoor<W> {
    fn open(&self, path: &Path, kind: HandleKind) -> Result<Handle, Errno> {
        self.watcher.call("open");
        self.soft.open(path, kind)
    }

    fn adopt(&self, descriptor: OwnedFd, kind: HandleKind) -> Result<Handle, Errno> {
        self.watcher.call("adopt");
        self.soft.adopt(descriptor, kind)
    }

    fn ioctl(&self, on: Handle, command: &mut Command<'_>) -> Result<i32, Errno> {
        self.watcher.command(command);
        let result = self.soft.ioctl(on, command);
        self.watcher.answer(on, command, result);
        result
    }

    fn ioctl_opening(&self, on: Handle, command: &mut Command<'_>, kind: HandleKind) -> Result<Handle, Errno> {
        self.watcher.command(command);
        self.soft.ioctl_opening(on, command, kind)
    }

    fn pread(&self, on: Handle, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        self.watcher.call("pread");
        self.soft.pread(on, offset, into)
    }

    fn pwrite(&self, on: Handle, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        self.watcher.call("pwrite");
        self.soft.pwrite(on, offset, from)
    }

    fn read(&self, on: Handle, into: &mut [u8]) -> Result<usize, Errno> {
        self.watcher.call("read");
        self.soft.read(on, into)
    }

    fn write(&self, on: Handle, from: &[u8]) -> Result<usize, Errno> {
        self.watcher.call("write");
        self.soft.write(on, from)
    }

    fn mmap(&self, on: Handle, offset: u64, len: NonZeroU64, access: Access) -> Result<HostMemory, Errno> {
        self.watcher.call("mmap");
        self.soft.mmap(on, offset, len, access)
    }

    fn close(&self, handle: Handle) -> Result<(), Errno> {
        self.soft.close(handle)
    }

    fn host_page(&self) -> PageSize {
        self.soft.host_page()
    }

    fn locked_memory(&self) -> Option<LockedMemory> {
        self.soft.locked_memory()
    }

    fn runs(&self) -> &ProcessRegistrations {
        self.soft.runs()
    }

    fn is_real(&self) -> bool {
        self.soft.is_real()
    }
}
