//! The door: the one place through which every kernel call goes.
//!
//! Linux is one implementation, in the façade crate; the soft host is another. The backends know only this trait. So
//! every call they make can be counted, every call can be made to fail, and one set of tests runs on both.
//!
//! A command is a number, the argument's bytes and their *attachments*: where a kernel's struct holds a pointer or a
//! descriptor, the command leaves the field zero and names its offset. Only the Linux door writes an address or a
//! descriptor, just before the call; a host in software gets the memory itself.
//!
//! The map and unmap calls that a guest makes by the million have a second form, [`DirectMap`] and [`DirectUnmap`], of
//! which the Linux door makes a struct of its own. A door that has no use for it gets the command.
//!
//! # Memory safety
//! Safe code that has a door cannot make memory or devices known to a kernel past a space: a command that maps or
//! registers memory takes a [`Lease`], a command that puts a group into a container takes an [`AttachPoint`], and only
//! a [`Space`](crate::Space) makes them.

mod descriptor;
mod direct;
mod exported;
mod failure;
mod handle;
mod lease;
pub mod registrations;

use std::fmt;
use std::num::NonZeroU64;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

pub use descriptor::Descriptor;
pub use direct::{DirectMap, DirectUnmap};
pub use failure::{Answer, Cause, Errno, Failure};
pub use handle::{Handle, HandleKind, OwnedHandle};
pub use lease::Lease;

use crate::contract::AttachPoint;
use crate::door::registrations::ProcessRegistrations;
use crate::words::access::Access;
use crate::words::locked::LockedMemory;
use crate::words::memory::HostMemory;
use crate::words::page::PageSize;

/// An ioctl: its number, right for the architecture this was compiled for, and its name.
///
/// Exhaustive: the kernel knows an ioctl by its number alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The number as the kernel compares it: all 32 bits.
    pub number: u32,
    /// The kernel's name, for errors and counts.
    pub name: &'static str,
}

impl Request {
    /// An `_IO(';', nr)` number, which all of VFIO's and iommufd's are. On POWER `_IOC_NONE` is not zero, so the number
    /// differs (linux: arch/powerpc/include/uapi/asm/ioctl.h); libc knows.
    pub const fn vfio(nr: u8, name: &'static str) -> Self {
        // 32 bits are all the kernel looks at.
        #[allow(clippy::cast_possible_truncation)]
        let number = libc::_IO(b';' as u32, nr as u32) as u32;
        Self { number, name }
    }

    /// Returns `true` if this is `other` or `other + 0x2000_0000`: a literal from x86's headers, turned into this
    /// architecture's. For compile-time checks of the number table.
    pub const fn is(self, on_x86_64: u32) -> bool {
        let none = if cfg!(target_arch = "powerpc64") { 0x2000_0000 } else { 0 };
        self.number == on_x86_64 + none
    }
}

/// The argument of an ioctl.
///
/// Exhaustive: a door must pass each form on.
#[derive(Debug)]
pub enum Argument<'a> {
    /// No argument.
    None,
    /// The value itself (CHECK_EXTENSION, SET_IOMMU).
    Value(u64),
    /// A struct, read and perhaps written by the kernel.
    Bytes(&'a mut [u8]),
}

/// The content of a field of the argument that holds a pointer or a descriptor.
///
/// Exhaustive: a door must fill in the content at the offset.
#[derive(Debug)]
pub struct Attachment<'a> {
    /// The offset of the field in the argument's bytes.
    pub offset: usize,
    /// The content.
    pub what: Attached<'a>,
}

/// The content of a field that holds a pointer or a descriptor.
///
/// Exhaustive: a door must fill in each form.
#[derive(Debug)]
pub enum Attached<'a> {
    /// A buffer of the caller's that the kernel fills during the call; the field is its 64-bit address.
    Buffer(&'a mut [u8]),
    /// Memory that outlives the call; the field is its 64-bit address.
    Memory(&'a Lease<'a>),
    /// Another handle of the same door; the field is its 32-bit descriptor.
    Handle(Handle),
    /// Other handles of the same door; the field is an array of their 32-bit descriptors.
    Handles(&'a [Handle]),
    /// Eventfds of the caller's, which the kernel keeps; the field is an array of their 32-bit descriptors, -1 for
    /// `None`.
    Eventfds(&'a [Option<BorrowedFd<'a>>]),
    /// The descriptor that the kernel opens during the call and returns in a 32-bit field, which the door keeps; `None`
    /// where the kernel returns -1.
    Opened {
        /// The type of the descriptor.
        kind: HandleKind,
        /// The handle that the door gave it.
        handle: &'a mut Option<Handle>,
    },
    /// The container that a group joins; the field is its 32-bit descriptor.
    Container(AttachPoint<'a>),
    /// The file this memory is mapped from ([`HostMemory::file`]); the field is the file's 32-bit descriptor. Both
    /// outlive the call.
    FileOf(&'a Lease<'a>),
    /// Memory that is mapped elsewhere and that the call maps once more; the field is its 64-bit length, which the
    /// caller fills in.
    Copied(&'a Lease<'a>),
}

/// One ioctl to make.
#[derive(Debug)]
#[non_exhaustive]
pub struct Command<'a> {
    /// The request.
    pub request: Request,
    /// The argument, with pointers and descriptors left zero.
    pub argument: Argument<'a>,
    /// The pointers and descriptors.
    pub attachments: &'a mut [Attachment<'a>],
}

impl<'a> Command<'a> {
    /// A command without an argument.
    pub fn bare(request: Request) -> Self {
        Self { request, argument: Argument::None, attachments: &mut [] }
    }

    /// A command that takes a value.
    pub fn with_value(request: Request, value: u64) -> Self {
        Self { request, argument: Argument::Value(value), attachments: &mut [] }
    }

    /// A command that takes a struct.
    pub fn with_bytes(request: Request, bytes: &'a mut [u8]) -> Self {
        Self { request, argument: Argument::Bytes(bytes), attachments: &mut [] }
    }

    /// Adds pointers or descriptors in the struct.
    #[must_use]
    pub fn attaching(mut self, attachments: &'a mut [Attachment<'a>]) -> Self {
        self.attachments = attachments;
        self
    }
}

/// The destination of kernel calls.
///
/// Implementations are shared between threads and lock for themselves. None of the methods retries: [`Kernel`] does.
///
/// # Safety
/// A space keeps the memory of a mapping until the door has reported that the mapping is gone. So an implementation
/// must pass each command and each direct call to one kernel, unchanged, and return that kernel's answer; it must never
/// give a number to two handles; [`Door::is_real`] must be true if a device can reach memory through it; and such a
/// door must refuse [`HostMemory::unbacked`] memory and each command that makes memory or devices known to the kernel
/// without the [`Lease`] or the [`AttachPoint`] for it.
#[expect(unsafe_code, reason = "UNSAFETY: a space frees memory when a door says that its mapping is gone")]
pub unsafe trait Door: Send + Sync + fmt::Debug {
    /// Opens a node read-write and close-on-exec.
    ///
    /// # Errors
    /// The errno of open(2).
    fn open(&self, path: &Path, kind: HandleKind) -> Result<Handle, Errno>;

    /// Takes over a descriptor that was opened elsewhere (a VMM in a jail is handed its descriptors).
    ///
    /// # Errors
    /// `EBADF` from a door behind which there are no descriptors.
    fn adopt(&self, descriptor: OwnedFd, kind: HandleKind) -> Result<Handle, Errno>;

    /// Makes an ioctl and returns the kernel's result, zero or positive.
    ///
    /// # Errors
    /// The errno of ioctl(2); `EBADF` for a closed handle, own or attached; `ENOTTY` for a command the door does not
    /// know on this kind of handle; `EINVAL` for one whose argument is not shaped as the command's.
    fn ioctl(&self, on: Handle, command: &mut Command<'_>) -> Result<i32, Errno>;

    /// Makes the map call of a container or an iommufd, and returns the kernel's result. `None` from a door that needs
    /// the [`Command`]: nothing was done then.
    ///
    /// # Errors
    /// As [`Door::ioctl`].
    fn map_directly(&self, _on: &OwnedHandle, _map: &DirectMap<'_>) -> Option<Result<i32, Errno>> {
        None
    }

    /// Makes the unmap call of a container or an iommufd, and returns the kernel's result. `None` as from
    /// [`Door::map_directly`].
    ///
    /// # Errors
    /// As [`Door::ioctl`].
    fn unmap_directly(&self, _on: &OwnedHandle, _unmap: &mut DirectUnmap) -> Option<Result<i32, Errno>> {
        None
    }

    /// Makes an ioctl whose result is a new descriptor.
    ///
    /// # Errors
    /// As [`Door::ioctl`].
    fn ioctl_opening(&self, on: Handle, command: &mut Command<'_>, kind: HandleKind) -> Result<Handle, Errno>;

    /// Reads at `offset` and returns the number of bytes.
    ///
    /// # Errors
    /// The errno of pread(2).
    fn pread(&self, on: Handle, offset: u64, into: &mut [u8]) -> Result<usize, Errno>;

    /// Writes at `offset` and returns the number of bytes.
    ///
    /// # Errors
    /// The errno of pwrite(2).
    fn pwrite(&self, on: Handle, offset: u64, from: &[u8]) -> Result<usize, Errno>;

    /// Reads the next bytes of a stream and returns their number; 0 at its end.
    ///
    /// # Errors
    /// The errno of read(2); `EBADF` from a door behind which there are no streams.
    fn read(&self, _on: Handle, _into: &mut [u8]) -> Result<usize, Errno> {
        Err(Errno::EBADF)
    }

    /// Writes the next bytes of a stream and returns their number.
    ///
    /// # Errors
    /// The errno of write(2); `EBADF` from a door behind which there are no streams.
    fn write(&self, _on: Handle, _from: &[u8]) -> Result<usize, Errno> {
        Err(Errno::EBADF)
    }

    /// Maps `len` bytes at `offset`, shared. The mapping lives as long as the result and its clones.
    ///
    /// # Errors
    /// The errno of mmap(2).
    fn mmap(&self, on: Handle, offset: u64, len: NonZeroU64, access: Access) -> Result<HostMemory, Errno>;

    /// The descriptor behind a handle, for a VMM's own calls.
    ///
    /// # Errors
    /// `EBADF` for a handle that is not open, and from a door behind which there are no descriptors.
    fn descriptor(&self, _on: Handle) -> Result<Descriptor, Errno> {
        Err(Errno::EBADF)
    }

    /// Closes a handle.
    ///
    /// # Errors
    /// `EBADF` when it is not open; it is closed in any case.
    fn close(&self, handle: Handle) -> Result<(), Errno>;

    /// The page size of the host's memory.
    fn host_page(&self) -> PageSize;

    /// The limit on locked memory and the locked bytes of this process, or `None` where the door cannot read them.
    /// Called after a call has failed, to tell a limit from a kernel that is out of memory, since both are `ENOMEM`;
    /// and before a window is created.
    fn locked_memory(&self) -> Option<LockedMemory> {
        None
    }

    /// The registrations of this process, for all spaces behind this door: spaces on POWER agree by it on the memory
    /// they register. A process has one list in the kernel, and should have one door.
    fn runs(&self) -> &ProcessRegistrations;

    /// Returns `true` if devices reach real memory behind this door, so that [`HostMemory::unbacked`] must be refused.
    fn is_real(&self) -> bool;
}

/// How often an interrupted call is made again before `EINTR` is passed on.
const INTERRUPTIONS: u32 = 16;

/// The calls every backend makes, on top of any door: results judged, interruptions retried.
pub trait Kernel: Door {
    /// An ioctl for which zero is the only success.
    ///
    /// # Errors
    /// [`Failure`] with the errno or the positive result.
    fn call(&self, on: Handle, command: Command<'_>) -> Result<(), Failure> {
        let call = command.request.name;
        match self.ask(on, command)? {
            0 => Ok(()),
            positive => Err(Failure::positive(call, positive)),
        }
    }

    /// An ioctl whose positive result is data.
    ///
    /// # Errors
    /// [`Failure`] with the errno.
    fn ask(&self, on: Handle, mut command: Command<'_>) -> Result<i32, Failure> {
        let call = command.request.name;
        for _ in 0..INTERRUPTIONS {
            match self.ioctl(on, &mut command) {
                Err(Errno::EINTR) => {}
                result => return result.map_err(|errno| Failure::from_errno(call, errno)),
            }
        }
        Err(Failure::from_errno(call, Errno::EINTR))
    }
}

impl<D: Door + ?Sized> Kernel for D {}
