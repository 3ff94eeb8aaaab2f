//! The Linux door: real kernel calls.
//!
//! All unsafe code of this crate that makes calls is here, except for KVM's calls on POWER. A table
//! (src/commands.rs) decides which commands are made at all, and checks that the kernel stays inside the bytes of the
//! argument. This file fills in addresses and descriptors, makes the call, and takes them out again, so that no caller
//! ever holds an address that it could use elsewhere. Map and unmap calls have a shorter way (`direct`): their struct
//! is the door's own, and the descriptor that of the [`OwnedHandle`], which needs no look-up in the table of handles.
//!
//! The door does *not* keep memory alive: a mapping outlives the call that made it. [`dmaspace_core::Space`] keeps the
//! [`HostMemory`] until the mapping is gone, and only a space makes the leases that such a call needs.
#![expect(unsafe_code, reason = "UNSAFETY: the one place that makes system calls std has no safe form of")]

mod direct;
pub(crate) mod populate;

use std::ffi::c_void;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::AtomicPtr;

use dmaspace_core::contract::AttachPlace;
use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::door::{
    Argument, Attached, Attachment, Command, Descriptor, DirectMap, DirectUnmap, Door, Errno, Handle, HandleKind,
    OwnedHandle,
};
use dmaspace_core::sync::{Rank, RwLock};
use dmaspace_core::words::locked::LockedMemory;
use dmaspace_core::{Access, HostMemory, PageSize};

use crate::commands;
use crate::facts::locked_memory;
use crate::host_page::host_page;

/// The door to the kernel this process runs on.
///
/// It owns the descriptors behind its handles, and closes the remaining ones when it is dropped. Calls of several
/// threads do not wait for one another. A handle that is closed during another thread's call is closed when that call
/// returns.
pub struct LinuxDoor {
    /// The descriptors by handle number. A number is never used again, so the list only grows: by a few bytes for every
    /// handle ever opened.
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
        Self { open: RwLock::new(Rank::Door, Vec::new()), runs: ProcessRegistrations::default() }
    }

    fn keep(&self, file: File, kind: HandleKind) -> Handle {
        let mut table = self.open.write();
        let handle = Handle::new(table.len() as u64, kind);
        table.push(Some(Open { kind, file: Arc::new(file) }));
        handle
    }

    /// The file behind a handle. Any code can construct a handle, so its kind must be the one that the door gave it:
    /// the kind decides which commands are made.
    #[inline]
    fn file(&self, handle: Handle) -> Result<Arc<File>, Errno> {
        let index = usize::try_from(handle.id()).map_err(|_| Errno::EBADF)?;
        let table = self.open.read();
        match table.get(index) {
            Some(Some(open)) if open.kind == handle.kind() => Ok(open.file.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    /// Makes a command whose result is a descriptor of the kind `opens`, or none.
    fn make(&self, on: Handle, command: &mut Command<'_>, opens: Option<HandleKind>) -> Result<i32, Errno> {
        // Keeps the file open during the call.
        let open = self.file(on)?;
        let file = open.as_raw_fd();
        let rule = commands::judge(on.kind(), command)?;
        // A descriptor must not be returned as a number, nor a number be taken for a descriptor.
        if rule.opens() != opens {
            return Err(Errno::EINVAL);
        }
        let number = command.request.number;
        match (&mut command.argument, &mut *command.attachments) {
            (Argument::None, _) => ioctl(file, number, ptr::null_mut()),
            // Passed in the register a pointer would be in.
            (Argument::Value(value), _) => {
                ioctl(file, number, ptr::without_provenance_mut(usize::try_from(*value).map_err(|_| Errno::EINVAL)?))
            }
            (Argument::Bytes(bytes), [Attachment { offset, what }]) => {
                self.make_filled(file, number, bytes, *offset, what)
            }
            (Argument::Bytes(bytes), [one, two]) => self.make_filled_twice(file, number, bytes, one, two),
            (Argument::Bytes(bytes), _) => ioctl(file, number, bytes.as_mut_ptr().cast()),
        }
    }

    /// Makes a command with the attachment filled in, and takes it out again.
    fn make_filled(
        &self,
        file: RawFd,
        number: u32,
        bytes: &mut [u8],
        at: usize,
        what: &mut Attached<'_>,
    ) -> Result<i32, Errno> {
        match what {
            Attached::Memory(memory) => {
                filled(bytes, at, memory.address().get().to_ne_bytes(), |argument| ioctl(file, number, argument))
            }
            Attached::Buffer(buffer) => {
                let address = buffer.as_mut_ptr().expose_provenance() as u64;
                filled(bytes, at, address.to_ne_bytes(), |argument| ioctl(file, number, argument))
            }
            Attached::Handle(handle) => {
                // Keeps the file open during the call.
                let lent = self.file(*handle)?;
                filled(bytes, at, lent.as_raw_fd().to_ne_bytes(), |argument| ioctl(file, number, argument))
            }
            Attached::Container(point) => {
                let AttachPlace::Container(container) = point.place() else { return Err(Errno::EINVAL) };
                let lent = self.file(container)?;
                filled(bytes, at, lent.as_raw_fd().to_ne_bytes(), |argument| ioctl(file, number, argument))
            }
            Attached::Handles(handles) => {
                // Keeps the files open during the call.
                let lent = handles.iter().map(|handle| self.file(*handle)).collect::<Result<Vec<_>, _>>()?;
                let field: Vec<u8> = lent.iter().flat_map(|file| file.as_raw_fd().to_ne_bytes()).collect();
                filled_with(bytes, at, &field, |argument| ioctl(file, number, argument))
            }
            Attached::Eventfds(eventfds) => {
                filled_with(bytes, at, &descriptors_of(eventfds), |argument| ioctl(file, number, argument))
            }
            Attached::Opened { kind, handle } => {
                **handle = None;
                // The field stays -1 unless the kernel opens a descriptor.
                put(bytes, at, NO_DESCRIPTOR.to_ne_bytes())?;
                let result = ioctl(file, number, bytes.as_mut_ptr().cast());
                let opened =
                    bytes.get(at..).and_then(|from| from.first_chunk()).map(|field| i32::from_ne_bytes(*field));
                put(bytes, at, [0; 4])?;
                if let (Ok(_), Some(descriptor @ 0..)) = (result, opened) {
                    // SAFETY: the kernel just opened this descriptor for us: the rule says that it returns one in this
                    // field, which held none before. So nothing else owns it.
                    let opened = unsafe { File::from_raw_fd(descriptor) };
                    **handle = Some(self.keep(opened, *kind));
                }
                result
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

impl LinuxDoor {
    /// Makes a command with two attachments, a handle and a buffer, filled in.
    #[cold]
    fn make_filled_twice(
        &self,
        file: RawFd,
        number: u32,
        bytes: &mut [u8],
        one: &Attachment<'_>,
        two: &mut Attachment<'_>,
    ) -> Result<i32, Errno> {
        let (Attached::Handle(handle), Attached::Buffer(buffer)) = (&one.what, &mut two.what) else {
            return Err(Errno::EINVAL);
        };
        let lent = self.file(*handle)?;
        put(bytes, one.offset, lent.as_raw_fd().to_ne_bytes())?;
        let address = buffer.as_mut_ptr().expose_provenance() as u64;
        let result = filled(bytes, two.offset, address.to_ne_bytes(), |argument| ioctl(file, number, argument));
        put(bytes, one.offset, [0; 4])?;
        result
    }
}

/// The number that stands for no descriptor.
const NO_DESCRIPTOR: i32 = -1;

/// The descriptors of eventfds, as an array.
fn descriptors_of(eventfds: &[Option<BorrowedFd<'_>>]) -> Vec<u8> {
    let numbers = eventfds.iter().map(|eventfd| eventfd.map_or(NO_DESCRIPTOR, |eventfd| eventfd.as_raw_fd()));
    numbers.flat_map(i32::to_ne_bytes).collect()
}

/// Makes `call` with `field` filled in, and writes zeros over it afterwards.
#[cold]
fn filled_with(
    bytes: &mut [u8],
    at: usize,
    field: &[u8],
    call: impl FnOnce(*mut c_void) -> Result<i32, Errno>,
) -> Result<i32, Errno> {
    let end = at.checked_add(field.len()).ok_or(Errno::EINVAL)?;
    bytes.get_mut(at..end).ok_or(Errno::EINVAL)?.copy_from_slice(field);
    let result = call(bytes.as_mut_ptr().cast());
    bytes.get_mut(at..end).ok_or(Errno::EINVAL)?.fill(0);
    result
}

/// Makes `call` with `field` filled in, and writes zeros over it afterwards.
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

/// Makes the call. Only [`LinuxDoor::make`] may call this, with a command that was judged and filled in, and
/// [`direct`].
#[inline]
fn ioctl(on: RawFd, number: u32, argument: *mut c_void) -> Result<i32, Errno> {
    // SAFETY: the command passed `commands::judge`, or `direct` laid it out. Its argument is nothing, a number, a
    // string with its NUL, or a struct of which the kernel touches no more than the bytes there, borrowed for the call;
    // every pointer in it is the address of a buffer of at least the length the struct claims, borrowed likewise, or of
    // memory whose owner vouched for it; descriptors are held open.
    let result = unsafe { libc::ioctl(on, number as libc::Ioctl, argument) };
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

#[cold]
fn last_error() -> Errno {
    io::Error::last_os_error().into()
}

/// A mapping of a file, unmapped when it is dropped.
struct Mapped {
    /// Only ever read. Atomic because a raw pointer could not be shared between threads.
    base: AtomicPtr<c_void>,
    len: NonZeroUsize,
}

impl Mapped {
    fn new(file: &File, offset: u64, len: NonZeroUsize, access: Access) -> Result<Self, Errno> {
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let access = protection(access);
        // SAFETY: with a null hint and without MAP_FIXED the kernel picks addresses nothing else uses.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), len.get(), access, libc::MAP_SHARED, file.as_raw_fd(), offset) };
        if base == libc::MAP_FAILED { Err(last_error()) } else { Ok(Self { base: AtomicPtr::new(base), len }) }
    }

    /// The mapping as memory that keeps it alive.
    fn into_memory(mut self) -> Option<HostMemory> {
        let base = NonNull::new(self.base.get_mut().cast::<u8>())?;
        let len = self.len;
        // SAFETY: the span is `self`'s mapping, which lasts until `self` is dropped, and nothing else knows its
        // address.
        unsafe { HostMemory::held_by(base, len, Arc::new(self)) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let base = *self.base.get_mut();
        // SAFETY: the span is the mapping made in `new`. Pointers into it are only in `HostMemory`s that hold `self`:
        // none is left.
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

// SAFETY: each command goes to this process's kernel as it is, and its answer is returned; numbers are places in a list
// that only grows; `commands::judge` refuses memory that is not there, and what makes memory or devices known without a
// lease or an attach point.
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

    #[inline]
    fn map_directly(&self, on: &OwnedHandle, map: &DirectMap<'_>) -> Option<Result<i32, Errno>> {
        direct::map(on, map)
    }

    #[inline]
    fn unmap_directly(&self, on: &OwnedHandle, unmap: &mut DirectUnmap) -> Option<Result<i32, Errno>> {
        direct::unmap(on, unmap)
    }

    fn ioctl_opening(&self, on: Handle, command: &mut Command<'_>, kind: HandleKind) -> Result<Handle, Errno> {
        let descriptor = self.make(on, command, Some(kind))?;
        // SAFETY: the kernel just made this descriptor for us (the rule says that its result is one), so nothing else
        // owns it.
        let file = unsafe { File::from_raw_fd(descriptor) };
        Ok(self.keep(file, kind))
    }

    fn descriptor(&self, on: Handle) -> Result<Descriptor, Errno> {
        self.file(on).map(Descriptor::new)
    }

    fn pread(&self, on: Handle, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        Ok(self.file(on)?.read_at(into, offset)?)
    }

    fn pwrite(&self, on: Handle, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        Ok(self.file(on)?.write_at(from, offset)?)
    }

    fn read(&self, on: Handle, into: &mut [u8]) -> Result<usize, Errno> {
        Ok((&*self.file(on)?).read(into)?)
    }

    fn write(&self, on: Handle, from: &[u8]) -> Result<usize, Errno> {
        Ok((&*self.file(on)?).write(from)?)
    }

    /// Maps a part of a file. A part of a device becomes [`HostMemory::device_memory`].
    ///
    /// The kernel keeps a device open for as long as a part of it is mapped, even after its handle is closed. Reading a
    /// BAR while the device's memory is disabled returns all ones or raises SIGBUS, depending on the kernel.
    fn mmap(&self, on: Handle, offset: u64, len: NonZeroU64, access: Access) -> Result<HostMemory, Errno> {
        // The kernel would map the range without any access, which is no memory.
        if access.is_empty() {
            return Err(Errno::EINVAL);
        }
        let len = NonZeroUsize::try_from(len).map_err(|_| Errno::EOVERFLOW)?;
        let mapped = Mapped::new(&*self.file(on)?, offset, len, access)?;
        let mut memory = mapped.into_memory().ok_or(Errno::EFAULT)?;
        if !access.contains(Access::WRITE) {
            memory = memory.host_read_only();
        }
        if on.kind() == HandleKind::Device {
            memory = memory.device_memory();
        }
        Ok(memory)
    }

    fn close(&self, handle: Handle) -> Result<(), Errno> {
        self.file(handle)?;
        let index = usize::try_from(handle.id()).map_err(|_| Errno::EBADF)?;
        let closed = self.open.write().get_mut(index).and_then(Option::take);
        // Dropped without the lock: closing a device resets it, which can take seconds.
        if closed.is_some() { Ok(()) } else { Err(Errno::EBADF) }
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

impl Default for LinuxDoor {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for LinuxDoor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.open.read().iter().flatten().count();
        write!(f, "LinuxDoor({open} open)")
    }
}

#[cfg(test)]
pub(crate) mod tests;
