//! The argument of a client's ioctl, read and written as the kernel would: the struct's known head, checked by `argsz`.

use std::os::fd::RawFd;

use dmaspace::door::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::door::{self, ClientMemory};

/// The argument of an ioctl: a number, or the address of a struct of the client's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Argument<'a>(ClientMemory<'a>);

impl<'a> Argument<'a> {
    pub(crate) fn new(memory: ClientMemory<'a>) -> Self {
        Self(memory)
    }

    /// The argument as a number.
    pub(crate) fn value(self) -> u64 {
        self.0.address() as u64
    }

    /// Lets the kernel answer the call.
    ///
    /// # Errors
    /// The errno of the kernel.
    pub(crate) fn ask_kernel(self, descriptor: RawFd, request: u32) -> Result<i32, Errno> {
        door::ask_kernel(descriptor, request, self.0)
    }

    /// Reads a struct without `argsz`.
    ///
    /// # Errors
    /// `EFAULT` for a null pointer.
    pub(crate) fn read<T: FromBytes + IntoBytes>(self) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.0.copy_out(0, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Reads a struct that begins with `argsz`.
    ///
    /// # Errors
    /// `EINVAL` if the client says that the struct is smaller, as the kernel answers.
    pub(crate) fn sized<T: FromBytes + IntoBytes>(self) -> Result<T, Errno> {
        self.with_head(size_of::<T>())
    }

    /// Reads as much of a struct as the client says it has, at least `head` bytes; the rest is zero.
    ///
    /// # Errors
    /// `EINVAL` if the client says that the struct is smaller.
    pub(crate) fn with_head<T: FromBytes + IntoBytes>(self, head: usize) -> Result<T, Errno> {
        let argsz = self.read::<u32>()? as usize;
        if argsz < head {
            return Err(Errno::EINVAL);
        }
        let mut value = T::new_zeroed();
        let bytes = value.as_mut_bytes();
        let len = argsz.min(bytes.len());
        self.0.copy_out(0, bytes.get_mut(..len).unwrap_or_default())?;
        Ok(value)
    }

    /// Writes bytes from an offset on, into a struct that has them.
    ///
    /// # Errors
    /// `EFAULT` for a null pointer.
    pub(crate) fn write_at(self, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
        self.0.copy_in(offset, bytes)
    }

    /// Writes a struct.
    ///
    /// # Errors
    /// `EFAULT` for a null pointer.
    pub(crate) fn write(self, value: &(impl IntoBytes + Immutable)) -> Result<(), Errno> {
        self.write_at(0, value.as_bytes())
    }
}
