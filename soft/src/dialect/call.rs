//! The argument of one call, as the kernel reads and writes it.
//!
//! Structs are read from and written to the argument's bytes; attachments, which stand for pointers and descriptors,
//! are found by the offset of their field. An address in a field without an attachment points to nothing: this host has
//! no memory but that of attachments.

use std::os::fd::BorrowedFd;

use dmaspace_core::contract::AttachPlace;
use dmaspace_core::door::{Argument, Attached, Command, Errno, Handle};
use dmaspace_core::{HostMemory, PageSize};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::dialect::Pid;

/// One call: the calling process, and the command.
pub(crate) struct Call<'c, 'a> {
    /// The calling process.
    pub(crate) by: Pid,
    command: &'c mut Command<'a>,
}

impl<'c, 'a> Call<'c, 'a> {
    pub(crate) fn new(by: Pid, command: &'c mut Command<'a>) -> Self {
        Self { by, command }
    }

    /// The request's number.
    pub(crate) fn number(&self) -> u32 {
        self.command.request.number
    }

    /// The argument that is a value itself.
    pub(crate) fn value(&self) -> Result<u64, Errno> {
        match self.command.argument {
            Argument::Value(value) => Ok(value),
            Argument::None | Argument::Bytes(_) => Err(Errno::EINVAL),
        }
    }

    /// The argument's bytes.
    pub(crate) fn bytes(&self) -> Result<&[u8], Errno> {
        match &self.command.argument {
            Argument::Bytes(bytes) => Ok(bytes),
            Argument::None | Argument::Value(_) => Err(Errno::EINVAL),
        }
    }

    /// The struct the argument begins with; all of it must be there.
    pub(crate) fn read<T: FromBytes + IntoBytes + Immutable>(&self) -> Result<T, Errno> {
        self.read_prefix(size_of::<T>())
    }

    /// The struct the argument begins with, of which at least `least` bytes must be there; the rest reads as zero.
    pub(crate) fn read_prefix<T: FromBytes + IntoBytes + Immutable>(&self, least: usize) -> Result<T, Errno> {
        let bytes = self.bytes()?;
        if bytes.len() < least {
            return Err(Errno::EINVAL);
        }
        let mut value = T::new_zeroed();
        for (to, from) in value.as_mut_bytes().iter_mut().zip(bytes) {
            *to = *from;
        }
        Ok(value)
    }

    /// Writes the first `most` bytes of a struct to the front of the argument, as far as it reaches.
    pub(crate) fn write_prefix<T: IntoBytes + Immutable>(&mut self, value: &T, most: usize) {
        let bytes = value.as_bytes();
        debug_assert!(most <= bytes.len(), "a struct of {} bytes has no first {most} bytes", bytes.len());
        self.write_at(0, bytes.get(..most).unwrap_or(bytes));
    }

    /// Writes a struct to the front of the argument.
    pub(crate) fn write<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.write_at(0, value.as_bytes());
    }

    /// Writes bytes at `offset` of the argument, as far as it reaches.
    pub(crate) fn write_at(&mut self, offset: usize, from: &[u8]) {
        if let Argument::Bytes(bytes) = &mut self.command.argument {
            for (to, from) in bytes.iter_mut().skip(offset).zip(from) {
                *to = *from;
            }
        }
    }

    /// The memory that a field at `offset` points to; `raw` is the value of the field.
    pub(crate) fn memory(&self, offset: usize, raw: u64) -> UserMemory {
        let attached = self.command.attachments.iter().find(|attachment| attachment.offset == offset);
        match attached.map(|attachment| &attachment.what) {
            Some(Attached::Memory(memory)) => {
                UserMemory { address: memory.address().get(), memory: Some(HostMemory::clone(memory)) }
            }
            _ => UserMemory { address: raw, memory: None },
        }
    }

    /// The memory that is mapped from the file in the field at `offset`.
    pub(crate) fn file_of(&self, offset: usize) -> Option<HostMemory> {
        let attached = self.command.attachments.iter().find(|attachment| attachment.offset == offset)?;
        match attached.what {
            Attached::FileOf(memory) => Some(HostMemory::clone(memory)),
            _ => None,
        }
    }

    /// The memory that the call maps once more, whose length is in the field at `offset`.
    pub(crate) fn copied(&self, offset: usize) -> Option<HostMemory> {
        let attached = self.command.attachments.iter().find(|attachment| attachment.offset == offset)?;
        match attached.what {
            Attached::Copied(memory) => Some(HostMemory::clone(memory)),
            _ => None,
        }
    }

    /// The descriptor in the field at `offset`.
    pub(crate) fn handle(&self, offset: usize) -> Option<Handle> {
        let attached = self.command.attachments.iter().find(|attachment| attachment.offset == offset)?;
        match attached.what {
            Attached::Handle(handle) => Some(handle),
            Attached::Container(point) => match point.place() {
                AttachPlace::Container(container) => Some(container),
                _ => None,
            },
            _ => None,
        }
    }

    /// The descriptors in the array at `offset`.
    pub(crate) fn handles(&self, offset: usize) -> &[Handle] {
        let attached = self.command.attachments.iter().find(|attachment| attachment.offset == offset);
        match attached.map(|attachment| &attachment.what) {
            Some(Attached::Handles(handles)) => handles,
            _ => &[],
        }
    }

    /// The eventfds in the array at `offset`.
    pub(crate) fn eventfds(&self, offset: usize) -> &[Option<BorrowedFd<'_>>] {
        let attached = self.command.attachments.iter().find(|attachment| attachment.offset == offset);
        match attached.map(|attachment| &attachment.what) {
            Some(Attached::Eventfds(eventfds)) => eventfds,
            _ => &[],
        }
    }

    /// Returns a descriptor in the field at `offset`.
    pub(crate) fn opened(&mut self, offset: usize, id: u64) {
        for attachment in self.command.attachments.iter_mut().filter(|attachment| attachment.offset == offset) {
            if let Attached::Opened { kind, handle } = &mut attachment.what {
                **handle = Some(Handle::new(id, *kind));
            }
        }
    }

    /// The buffer that the field at `offset` points to.
    pub(crate) fn buffer(&mut self, offset: usize) -> Option<&mut [u8]> {
        let attached = self.command.attachments.iter_mut().find(|attachment| attachment.offset == offset)?;
        match &mut attached.what {
            Attached::Buffer(buffer) => Some(buffer),
            _ => None,
        }
    }
}

/// Memory of the caller, as far as it exists.
#[derive(Clone, Debug)]
pub(crate) struct UserMemory {
    /// The first address, whether or not memory exists there.
    pub(crate) address: u64,
    memory: Option<HostMemory>,
}

impl From<HostMemory> for UserMemory {
    fn from(memory: HostMemory) -> Self {
        Self { address: memory.address().get(), memory: Some(memory) }
    }
}

impl UserMemory {
    /// The first `size` bytes, if all of them exist and the process may access them so.
    pub(crate) fn pinnable(&self, size: u64, write: bool) -> Option<HostMemory> {
        self.usable(write)?.slice(0, size)
    }

    /// The number of whole pages of the first `size` bytes that can be pinned before the first that cannot.
    pub(crate) fn pinnable_pages(&self, size: u64, write: bool, page: PageSize) -> u64 {
        self.pinnable_bytes(size, write) >> page.shift()
    }

    /// The number of the first `size` bytes that exist.
    pub(crate) fn pinnable_bytes(&self, size: u64, write: bool) -> u64 {
        self.usable(write).map_or(0, |memory| memory.len().get().min(size))
    }

    /// The memory from a byte on, for writing.
    pub(crate) fn rest(&self, offset: u64) -> Option<HostMemory> {
        let memory = self.usable(true)?;
        memory.slice(offset, memory.len().get().checked_sub(offset)?)
    }

    /// Returns whether the memory is another device's.
    pub(crate) fn is_device_memory(&self) -> bool {
        self.memory.as_ref().is_some_and(HostMemory::is_device_memory)
    }

    fn usable(&self, write: bool) -> Option<&HostMemory> {
        self.memory.as_ref().filter(|memory| !(write && memory.is_host_read_only()))
    }
}
