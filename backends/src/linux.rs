//! The Linux door: kernel calls for real.
//!
//! All of the façade's unsafe code is in this file, but for KVM's calls on POWER. A table (src/commands.rs) decides which commands are made at all and that their
//! arguments are shaped so that the kernel stays inside the bytes it is given; here addresses and descriptors are filled in, the call
//! is made, and they are taken out again, so that no caller ever holds an address it could use elsewhere.
//!
//! What the door does *not* keep is memory: a mapping outlives the call that made it, and whoever makes the call through the door
//! directly has to hold the [`HostMemory`] until the mapping is gone. [`dmaspace_core::Space`] does, for all who use it.
#![expect(unsafe_code, reason = "UNSAFETY: the one place that makes system calls std has no safe form of")]

use std::ffi::c_void;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicPtr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use dmaspace_core::contract::AttachPlace;
use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::door::{Argument, Attached, Attachment, Command, Door, Errno, Handle, HandleKind};
use dmaspace_core::words::locked::LockedMemory;
use dmaspace_core::{Access, HostMemory, PageSize};

use crate::commands;
use crate::facts::locked_memory;
use crate::host_page::host_page;

/// The door to the kernel this process runs on.
///
/// It owns the descriptors behind its handles and closes what is left when it is dropped. Calls from several threads do not wait for
/// one another; a handle closed during another thread's call is closed when that call returns.
#[derive(Default)]
pub struct LinuxDoor {
    /// By handle number. Numbers are never used again, so this only grows: by a few bytes for every handle ever opened.
    open: RwLock<Vec<Option<Open>>>,
    runs: ProcessRegistrations,
}

/// An open descriptor.
#[derive(Clone)]
struct Open {
    kind: HandleKind,
    file: Arc<File>,
}

impl LinuxDoor {
    /// A door with nothing open.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lends the descriptor behind `handle`: for KVM, for interrupts, for whatever else a VMM does with its devices.
    ///
    /// It stays open until `borrow` returns, whoever closes the handle meanwhile.
    ///
    /// # Errors
    /// `EBADF` when the handle is not open.
    pub fn with_descriptor<T>(&self, handle: Handle, borrow: impl FnOnce(BorrowedFd<'_>) -> T) -> Result<T, Errno> {
        let file = self.file(handle)?;
        Ok(borrow(file.as_fd()))
    }

    fn table(&self) -> RwLockReadGuard<'_, Vec<Option<Open>>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Vec<Option<Open>>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, file: File, kind: HandleKind) -> Handle {
        let mut table = self.table_mut();
        let handle = Handle::new(table.len() as u64, kind);
        table.push(Some(Open { kind, file: Arc::new(file) }));
        handle
    }

    /// The file behind a handle. Anyone can spell a handle, so its kind is believed only if it is the one the door gave it: the
    /// kind decides which commands are made.
    #[inline]
    fn file(&self, handle: Handle) -> Result<Arc<File>, Errno> {
        let index = usize::try_from(handle.id()).map_err(|_| Errno::EBADF)?;
        let table = self.table();
        let open = table.get(index).and_then(Option::as_ref).filter(|open| open.kind == handle.kind());
        open.map(|open| open.file.clone()).ok_or(Errno::EBADF)
    }

    /// Makes a command whose result is `opens`.
    fn make(&self, on: Handle, command: &mut Command<'_>, opens: Option<HandleKind>) -> Result<i32, Errno> {
        let file = self.file(on)?;
        let rule = commands::judge(on.kind(), command)?;
        // A descriptor must not get lost as a number, nor a number become a descriptor.
        if rule.opens() != opens {
            return Err(Errno::EINVAL);
        }
        let number = command.request.number;
        match (&mut command.argument, &mut *command.attachments) {
            (Argument::None, _) => ioctl(&file, number, ptr::null_mut()),
            // Passed in the register a pointer would be in.
            (Argument::Value(value), _) => {
                ioctl(&file, number, ptr::without_provenance_mut(usize::try_from(*value).map_err(|_| Errno::EINVAL)?))
            }
            (Argument::Bytes(bytes), [Attachment { offset, what }]) => {
                self.make_filled(&file, number, bytes, *offset, what)
            }
            (Argument::Bytes(bytes), _) => ioctl(&file, number, bytes.as_mut_ptr().cast()),
        }
    }

    /// Makes a command with what is attached in its place, and takes it out again.
    #[inline(always)]
    fn make_filled(
        &self,
        file: &File,
        number: u32,
        bytes: &mut [u8],
        at: usize,
        what: &mut Attached<'_>,
    ) -> Result<i32, Errno> {
        match what {
            Attached::Memory(memory) => {
                filled(bytes, at, memory.address().to_ne_bytes(), |argument| ioctl(file, number, argument))
            }
            Attached::Buffer(buffer) => {
                let address = buffer.as_mut_ptr().expose_provenance() as u64;
                filled(bytes, at, address.to_ne_bytes(), |argument| ioctl(file, number, argument))
            }
            Attached::Handle(handle) => {
                // Held open for the time of the call.
                let lent = self.file(*handle)?;
                filled(bytes, at, lent.as_raw_fd().to_ne_bytes(), |argument| ioctl(file, number, argument))
            }
            Attached::Container(point) => {
                let AttachPlace::Container(container) = point.place() else { return Err(Errno::EINVAL) };
                let lent = self.file(container)?;
                filled(bytes, at, lent.as_raw_fd().to_ne_bytes(), |argument| ioctl(file, number, argument))
            }
            // The caller fills in the field.
            Attached::Copied(_) => ioctl(file, number, bytes.as_mut_ptr().cast()),
            Attached::FileOf(memory) => {
                let (behind, _) = memory.file().ok_or(Errno::EBADF)?;
                let lent = behind.handle().map(|handle| self.file(handle)).transpose()?;
                let descriptor = lent.as_ref().map(|lent| lent.as_fd()).or(behind.descriptor()).ok_or(Errno::EBADF)?;
                filled(bytes, at, descriptor.as_raw_fd().to_ne_bytes(), |argument| ioctl(file, number, argument))
            }
        }
    }
}

/// Calls with `field` in its place, and puts zeros there afterwards.
#[inline]
fn filled<const N: usize>(
    bytes: &mut [u8],
    at: usize,
    field: [u8; N],
    call: impl FnOnce(*mut c_void) -> Result<i32, Errno>,
) -> Result<i32, Errno> {
    put(bytes, at, field)?;
    let result = call(bytes.as_mut_ptr().cast());
    put(bytes, at, [0; N])?;
    result
}

#[inline]
fn put<const N: usize>(bytes: &mut [u8], at: usize, field: [u8; N]) -> Result<(), Errno> {
    let place = bytes.get_mut(at..).and_then(|from| from.first_chunk_mut());
    place.map(|place| *place = field).ok_or(Errno::EINVAL)
}

/// Makes the call. Only [`LinuxDoor::make`] may, with a command that was judged and filled.
#[inline]
fn ioctl(file: &File, number: u32, argument: *mut c_void) -> Result<i32, Errno> {
    // SAFETY: the command passed `commands::judge`. Its argument is nothing, a number, a string with its NUL, or a struct of which the
    // kernel touches no more than the bytes there, borrowed for the call; every pointer in it is the address of a buffer of at least
    // the length the struct claims, borrowed likewise, or of memory whose owner vouched for it; descriptors are held open.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), number as libc::Ioctl, argument) };
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

#[cold]
fn last_error() -> Errno {
    io::Error::last_os_error().into()
}

/// An mmap, undone when the last holder lets go.
struct Mapped {
    /// Only ever read; atomic because a raw pointer could not be shared between threads.
    base: AtomicPtr<c_void>,
    len: NonZeroUsize,
}

impl Mapped {
    fn new(file: &File, offset: u64, len: NonZeroUsize, access: Access) -> Result<Self, Errno> {
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let protection = protection(access);
        // SAFETY: with a null hint and without MAP_FIXED the kernel picks addresses nothing else uses.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), len.get(), protection, libc::MAP_SHARED, file.as_raw_fd(), offset) };
        if base == libc::MAP_FAILED { Err(last_error()) } else { Ok(Self { base: AtomicPtr::new(base), len }) }
    }

    /// The mapping as memory that keeps it.
    fn into_memory(mut self) -> Option<HostMemory> {
        let base = NonNull::new(self.base.get_mut().cast::<u8>())?;
        let len = self.len;
        // SAFETY: the span is `self`'s mapping, which lasts until `self` is dropped, and nothing else knows its address.
        unsafe { HostMemory::held_by(base, len, Arc::new(self)) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let base = *self.base.get_mut();
        // SAFETY: the span is the mapping made in `new`. Pointers into it are only in `HostMemory`s that hold `self`: none is left.
        let result = unsafe { libc::munmap(base, self.len.get()) };
        if result != 0 {
            log::error!("munmap of {:#x} bytes at {base:p}: {}", self.len, last_error());
        }
    }
}

fn protection(access: Access) -> libc::c_int {
    let read = if access.contains(Access::READ) { libc::PROT_READ } else { 0 };
    let write = if access.contains(Access::WRITE) { libc::PROT_WRITE } else { 0 };
    read | write
}

// SAFETY: each command goes to this process's kernel as it is, and its answer is returned; numbers are places in a list that only grows;
// `commands::judge` refuses memory that is not there, and what makes memory or devices known without a lease or an attach point.
unsafe impl Door for LinuxDoor {
    fn open(&self, path: &Path, kind: HandleKind) -> Result<Handle, Errno> {
        // std adds O_CLOEXEC to everything it opens.
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(self.keep(file, kind))
    }

    fn adopt(&self, descriptor: OwnedFd, kind: HandleKind) -> Result<Handle, Errno> {
        Ok(self.keep(File::from(descriptor), kind))
    }

    fn ioctl(&self, on: Handle, command: &mut Command<'_>) -> Result<i32, Errno> {
        self.make(on, command, None)
    }

    fn ioctl_opening(&self, on: Handle, command: &mut Command<'_>, kind: HandleKind) -> Result<Handle, Errno> {
        let descriptor = self.make(on, command, Some(kind))?;
        // SAFETY: the kernel just made this descriptor for us (the rule says that its result is one), so nobody else owns it.
        let file = unsafe { File::from_raw_fd(descriptor) };
        Ok(self.keep(file, kind))
    }

    fn pread(&self, on: Handle, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        Ok(self.file(on)?.read_at(into, offset)?)
    }

    fn pwrite(&self, on: Handle, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        Ok(self.file(on)?.write_at(from, offset)?)
    }

    /// What is mapped of a device is [`HostMemory::device_memory`].
    ///
    /// The kernel keeps a device open for as long as a part of it is mapped, whether its handle is closed or not. Reading a BAR
    /// while the device's memory is disabled gives all ones or a SIGBUS, depending on the kernel.
    fn mmap(&self, on: Handle, offset: u64, len: NonZeroU64, access: Access) -> Result<HostMemory, Errno> {
        // Memory that cannot even be read is none.
        if access.is_empty() {
            return Err(Errno::EINVAL);
        }
        let len = NonZeroUsize::try_from(len).map_err(|_| Errno::EOVERFLOW)?;
        let mapped = Mapped::new(&*self.file(on)?, offset, len, access)?;
        let memory = mapped.into_memory().ok_or(Errno::EFAULT)?;
        let memory = if access.contains(Access::WRITE) { memory } else { memory.host_read_only() };
        Ok(if on.kind() == HandleKind::Device { memory.device_memory() } else { memory })
    }

    fn close(&self, handle: Handle) -> Result<(), Errno> {
        self.file(handle)?;
        let index = usize::try_from(handle.id()).map_err(|_| Errno::EBADF)?;
        let closed = self.table_mut().get_mut(index).and_then(Option::take);
        // Dropped here, when the lock is free again: closing a device resets it, which can take seconds.
        closed.map(drop).ok_or(Errno::EBADF)
    }

    fn host_page(&self) -> PageSize {
        host_page()
    }

    fn locked_memory(&self) -> Option<LockedMemory> {
        locked_memory()
    }

    fn runs(&self) -> &ProcessRegistrations {
        &self.runs
    }

    fn is_real(&self) -> bool {
        true
    }
}

impl fmt::Debug for LinuxDoor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.table().iter().flatten().count();
        write!(f, "LinuxDoor({open} open)")
    }
}

#[cfg(test)]
pub(crate) mod tests;
