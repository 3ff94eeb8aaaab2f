//! All unsafe code: the functions that take the place of libc's, the client's memory and its descriptors.
//!
//! A call that this library makes itself ([`Inside`]) goes to the kernel, whatever its descriptor.
#![expect(unsafe_code, reason = "UNSAFETY: functions of C's interface, and pointers and descriptors of a client in C")]

use std::cell::Cell;
use std::ffi::{c_int, c_ulong, c_void};
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use dmaspace::HostMemory;
use dmaspace::door::{Door, Errno, HandleKind, OwnedHandle};

use crate::argument::Argument;
use crate::table;

/// Takes the place of libc's `ioctl`, whose third argument is passed as that of a function with three parameters on
/// x86_64 and ppc64le.
// SAFETY: the name is libc's, and the function does what libc's does. The tests have it under another name.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn ioctl(descriptor: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // The kernel compares 32 bits.
    #[expect(clippy::cast_possible_truncation, reason = "as above")]
    let number = request as u32;
    let answer = match Inside::enter() {
        Some(_inside) => table::answer(descriptor, number, Argument::new(ClientMemory::at(argument))),
        None => None,
    };
    match answer {
        Some(Ok(result)) => result,
        Some(Err(errno)) => failing_with(errno),
        None => kernel_ioctl(descriptor, request, argument),
    }
}

/// Takes the place of libc's `close`: a container or a group that the client closes is closed here too.
// SAFETY: the name is libc's, and the function does what libc's does. The tests have it under another name.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn close(descriptor: c_int) -> c_int {
    if let Some(_inside) = Inside::enter() {
        table::close(descriptor);
    }
    // SAFETY: the client's own call, unchanged.
    let result = unsafe { libc::syscall(libc::SYS_close, descriptor) };
    if result == 0 { 0 } else { -1 }
}

fn failing_with(errno: Errno) -> c_int {
    // SAFETY: takes no arguments, and returns a valid pointer in every thread.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: the place is this thread's own.
    unsafe { *place = errno.0 };
    -1
}

fn kernel_ioctl(descriptor: RawFd, request: c_ulong, argument: *mut c_void) -> c_int {
    // SAFETY: the client's own call, unchanged.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, descriptor, request, argument) };
    // The kernel's results are of this type.
    c_int::try_from(result).unwrap_or(-1)
}

/// Makes a call of the client's and returns its answer, for a caller that looks at it.
pub(crate) fn ask_kernel(descriptor: RawFd, request: u32, argument: ClientMemory<'_>) -> Result<c_int, Errno> {
    let result = kernel_ioctl(descriptor, c_ulong::from(request), argument.base.cast());
    if result < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(result) }
}

/// The time in which a thread runs code of this library: its calls of `ioctl` and `close` are not a client's.
#[derive(Debug)]
pub(crate) struct Inside(());

thread_local! {
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Inside {
    /// `None` if the thread is inside already, or ends.
    pub(crate) fn enter() -> Option<Self> {
        match IS_INSIDE.try_with(|inside| inside.replace(true)) {
            Ok(false) => Some(Self(())),
            _ => None,
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // A thread that ends makes no more calls.
        let _ = IS_INSIDE.try_with(|inside| inside.set(false));
    }
}

/// The argument of a client's ioctl.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientMemory<'a> {
    base: *mut u8,
    client: PhantomData<&'a mut [u8]>,
}

impl ClientMemory<'_> {
    fn at(address: *mut c_void) -> Self {
        Self { base: address.cast(), client: PhantomData }
    }

    /// The argument as a number.
    pub(crate) fn address(self) -> usize {
        self.base.addr()
    }

    /// Copies bytes of the client's.
    ///
    /// # Errors
    /// `EFAULT` for a null pointer.
    pub(crate) fn copy_out(self, offset: usize, into: &mut [u8]) -> Result<(), Errno> {
        let from = self.place(offset)?;
        // SAFETY: the client says by the number of its call, and by `argsz`, that these bytes are there, as it says it
        // to the kernel. `into` is no memory of the client's.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Writes bytes of the client's.
    ///
    /// # Errors
    /// `EFAULT` for a null pointer.
    pub(crate) fn copy_in(self, offset: usize, from: &[u8]) -> Result<(), Errno> {
        let into = self.place(offset)?;
        // SAFETY: as in `copy_out`.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
        Ok(())
    }

    fn place(self, offset: usize) -> Result<*mut u8, Errno> {
        if self.base.is_null() { Err(Errno::EFAULT) } else { Ok(self.base.wrapping_add(offset)) }
    }
}

#[cfg(test)]
impl<'a> ClientMemory<'a> {
    /// The bytes of a test.
    pub(crate) fn of(bytes: &'a mut [u8]) -> Self {
        Self { base: bytes.as_mut_ptr(), client: PhantomData }
    }
}

/// The memory that a client maps or registers. `None` if it is empty or wraps.
pub(crate) fn memory(address: u64, len: u64) -> Option<HostMemory> {
    let base = NonNull::new(ptr::with_exposed_provenance_mut(usize::try_from(address).ok()?))?;
    let len = NonZeroUsize::new(usize::try_from(len).ok()?)?;
    // SAFETY: the client promises the kernel the same of memory that it maps: it stays until it is unmapped. No Rust
    // code of this process refers to it, and this library copies nothing through it.
    unsafe { HostMemory::vouch_for(base, len) }
}

/// A handle of a duplicate of a container or a group of the client's.
///
/// # Errors
/// `EBADF` if it is no open descriptor.
pub(crate) fn handle(door: &Arc<dyn Door>, descriptor: RawFd, kind: HandleKind) -> Result<OwnedHandle, Errno> {
    let duplicate = duplicate(descriptor)?;
    // SAFETY: the client's own descriptor is not used to map memory or to attach groups: those calls of the client are
    // answered by this library.
    unsafe { OwnedHandle::adopt(door.clone(), duplicate, kind) }
}

fn duplicate(descriptor: RawFd) -> Result<OwnedFd, Errno> {
    if descriptor < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: the descriptor is not -1. The client does not close it during the call that names it.
    let client = unsafe { BorrowedFd::borrow_raw(descriptor) };
    Ok(client.try_clone_to_owned()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd as _, IntoRawFd as _};

    use dmaspace_abi::vfio::{GET_API_VERSION, GROUP_SET_CONTAINER, GROUP_UNSET_CONTAINER};

    fn asked(descriptor: RawFd, request: dmaspace::door::Request, argument: &mut i32) -> (c_int, Errno) {
        let result = ioctl(descriptor, c_ulong::from(request.number), ptr::from_mut(argument).cast());
        (result, std::io::Error::last_os_error().into())
    }

    #[test]
    fn calls_on_other_files_are_the_kernels() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let null = file.as_raw_fd();
        let mut container = null;
        for request in [GET_API_VERSION, GROUP_SET_CONTAINER, GROUP_UNSET_CONTAINER] {
            assert_eq!(asked(null, request, &mut container), (-1, Errno::ENOTTY), "{request:?}");
        }
        // qemu-user, in which the tests for POWER run, refuses the number before it looks at the descriptor.
        let refused = if cfg!(target_arch = "x86_64") { Errno::EBADF } else { Errno::ENOTTY };
        assert_eq!(asked(-1, GET_API_VERSION, &mut container), (-1, refused));
    }

    #[test]
    fn a_file_is_closed_by_the_kernel() {
        let null = std::fs::File::open("/dev/null").unwrap().into_raw_fd();
        assert_eq!(close(null), 0);
        // Another test may open a file there at any time, so that only a number without a file is sure.
        assert_eq!(close(-1), -1);
    }

    #[test]
    fn calls_of_this_library_are_not_a_clients() {
        let inside = Inside::enter();
        assert!(inside.is_some());
        assert!(Inside::enter().is_none());
        drop(inside);
        assert!(Inside::enter().is_some());
    }

    #[test]
    fn memory_that_wraps_or_is_empty_is_none() {
        assert!(memory(u64::MAX - 0xfff, 0x2000).is_none());
        assert!(memory(0x1000, 0).is_none());
        assert!(memory(0, 0x1000).is_none());
    }
}
