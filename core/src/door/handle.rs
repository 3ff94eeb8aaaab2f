//! Handles: the names of open descriptors, and the values that own them.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use crate::door::{Attached, Attachment, Command, Descriptor, DirectMap, DirectUnmap, Door, Errno, Failure, Kernel};

/// The type of an open descriptor. VFIO's ioctl numbers mean different things on different kinds (linux:
/// include/uapi/linux/vfio.h: 0x3b71 is MAP_DMA on a container and PCI_HOT_RESET on a device), so a handle always has a
/// kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HandleKind {
    /// `/dev/vfio/vfio`.
    Container,
    /// `/dev/vfio/<group>`.
    Group,
    /// A VFIO device, opened through its group or as `/dev/vfio/devices/vfio<n>`.
    Device,
    /// `/dev/iommu`.
    Iommufd,
    /// A part of a BAR that its device exported, as a dma-buf.
    Export,
    /// The state of a device during a migration, as a stream of bytes.
    Migration,
}

/// The name of an open descriptor: the number that its door gave it. A door never uses a number twice.
///
/// A name owns nothing and grants nothing: a call that makes memory reachable needs a [`Lease`](crate::door::Lease), a
/// call that lets a group join a container needs an [`AttachPoint`](crate::contract::AttachPoint), and a backend or a
/// device takes an [`OwnedHandle`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle {
    id: u64,
    kind: HandleKind,
}

impl Handle {
    /// The handle with the number `id`, for implementations of [`Door`].
    pub const fn new(id: u64, kind: HandleKind) -> Self {
        Self { id, kind }
    }

    /// The number.
    pub const fn id(self) -> u64 {
        self.id
    }

    /// The type of the descriptor.
    pub const fn kind(self) -> HandleKind {
        self.kind
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}#{}", self.kind, self.id)
    }
}

/// An open descriptor with its door: closed when it is dropped.
///
/// There is one owner of each handle, hence one space on each container: the type is not `Clone`, and a backend takes
/// it by value.
pub struct OwnedHandle {
    door: Arc<dyn Door>,
    handle: Handle,
    /// The handle's descriptor, where the door has one: direct calls need no look-up.
    descriptor: Option<Descriptor>,
}

impl OwnedHandle {
    fn new(door: Arc<dyn Door>, handle: Handle) -> Self {
        let descriptor = door.descriptor(handle).ok();
        Self { door, handle, descriptor }
    }

    /// Opens a node read-write and close-on-exec.
    ///
    /// # Errors
    /// The errno of open(2).
    pub fn open(door: Arc<dyn Door>, path: &Path, kind: HandleKind) -> Result<Self, Errno> {
        let handle = door.open(path, kind)?;
        Ok(Self::new(door, handle))
    }

    /// Makes an ioctl whose result is a new descriptor.
    ///
    /// # Errors
    /// The errors of [`Door::ioctl_opening`].
    pub fn opened_by(
        door: Arc<dyn Door>,
        on: Handle,
        command: &mut Command<'_>,
        kind: HandleKind,
    ) -> Result<Self, Errno> {
        let handle = door.ioctl_opening(on, command, kind)?;
        Ok(Self::new(door, handle))
    }

    /// Makes an ioctl that may return a new descriptor in the 32-bit field at `offset` of its argument, which the
    /// command leaves zero. `None` if the kernel opened none.
    ///
    /// # Errors
    /// As [`OwnedHandle::call`].
    pub fn opened_in_field(
        door: Arc<dyn Door>,
        on: Handle,
        command: Command<'_>,
        offset: usize,
        kind: HandleKind,
    ) -> Result<Option<Self>, Failure> {
        let Command { request, argument, .. } = command;
        let mut opened = None;
        let mut field = [Attachment { offset, what: Attached::Opened { kind, handle: &mut opened } }];
        let made = door.call(on, Command { request, argument, attachments: &mut field });
        let opened = opened.map(|handle| Self::new(door, handle));
        made.map(|()| opened)
    }

    /// Takes over a descriptor that was opened elsewhere: a VMM in a jail receives its descriptors, and so does the
    /// successor in a live update.
    ///
    /// # Errors
    /// The errors of [`Door::adopt`].
    ///
    /// # Safety
    /// The descriptor is of `kind`. From now on only the result is used to map memory or to attach devices: no
    /// duplicate of the descriptor is used for that, in this process or in another. Groups that are in a container
    /// already are attached to the space that is made of it ([`Space::inherited`](crate::Space::inherited)).
    #[expect(
        unsafe_code,
        reason = "UNSAFETY: a duplicate of the descriptor could attach devices that the space does not know"
    )]
    pub unsafe fn adopt(door: Arc<dyn Door>, descriptor: OwnedFd, kind: HandleKind) -> Result<Self, Errno> {
        let handle = door.adopt(descriptor, kind)?;
        Ok(Self::new(door, handle))
    }

    /// Takes over an open handle of `door`.
    ///
    /// # Safety
    /// No other `OwnedHandle` has this handle, and the promises of [`OwnedHandle::adopt`] hold.
    #[expect(
        unsafe_code,
        reason = "UNSAFETY: a second owner of a container could attach devices that the space does not know"
    )]
    pub unsafe fn claim(door: Arc<dyn Door>, handle: Handle) -> Self {
        Self::new(door, handle)
    }

    /// Takes over an open handle of a door in software. `None` for a real door, whose handles are opened, adopted or
    /// claimed.
    pub fn simulated(door: Arc<dyn Door>, handle: Handle) -> Option<Self> {
        (!door.is_real()).then(|| Self::new(door, handle))
    }

    /// Makes an ioctl for which zero is the only success.
    ///
    /// # Errors
    /// [`Failure`] with the errno or the positive result.
    pub fn call(&self, command: Command<'_>) -> Result<(), Failure> {
        self.door.call(self.handle, command)
    }

    /// Makes an ioctl whose positive result is data.
    ///
    /// # Errors
    /// [`Failure`] with the errno.
    pub fn ask(&self, command: Command<'_>) -> Result<i32, Failure> {
        self.door.ask(self.handle, command)
    }

    /// Makes a map call for which zero is the only success. `None` where the door needs the [`Command`], or a signal
    /// interrupted the call: nothing was done then.
    ///
    /// # Errors
    /// [`Failure`] of `call` with the errno or the positive result.
    #[inline]
    pub fn map_directly(&self, call: &'static str, map: &DirectMap<'_>) -> Option<Result<(), Failure>> {
        judged(call, self.door.map_directly(self, map))
    }

    /// Makes an unmap call, as [`OwnedHandle::map_directly`] makes a map call.
    ///
    /// # Errors
    /// [`Failure`] of `call` with the errno or the positive result.
    #[inline]
    pub fn unmap_directly(&self, call: &'static str, unmap: &mut DirectUnmap) -> Option<Result<(), Failure>> {
        judged(call, self.door.unmap_directly(self, unmap))
    }

    /// The descriptor, for the door's own calls. `None` behind a door without descriptors.
    #[inline]
    pub fn descriptor_held(&self) -> Option<&Descriptor> {
        self.descriptor.as_ref()
    }

    /// The descriptor, for calls that this library does not make.
    ///
    /// # Errors
    /// `EBADF` from a door behind which there are no descriptors.
    pub fn descriptor(&self) -> Result<Descriptor, Errno> {
        self.door.descriptor(self.handle)
    }

    /// The name of the handle.
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// The type of the descriptor.
    pub fn kind(&self) -> HandleKind {
        self.handle.kind
    }

    /// The door of the handle.
    pub fn door(&self) -> &Arc<dyn Door> {
        &self.door
    }
}

/// The outcome of a direct call. `None` for an interrupted one, which is made again as a command.
#[inline]
fn judged(call: &'static str, result: Option<Result<i32, Errno>>) -> Option<Result<(), Failure>> {
    if result == Some(Ok(0)) { Some(Ok(())) } else { refused(call, result?).map(Err) }
}

#[cold]
fn refused(call: &'static str, result: Result<i32, Errno>) -> Option<Failure> {
    match result {
        Ok(positive) => Some(Failure::positive(call, positive)),
        Err(Errno::EINTR) => None,
        Err(errno) => Some(Failure::from_errno(call, errno)),
    }
}

impl Drop for OwnedHandle {
    fn drop(&mut self) {
        // Closed in any case.
        if let Err(errno) = self.door.close(self.handle) {
            log::debug!("closing {:?}: {errno}", self.handle);
        }
    }
}

impl fmt::Debug for OwnedHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_the_only_success_of_a_direct_call_and_an_interrupted_one_is_made_as_a_command() {
        const CALL: &str = "a call";
        for (result, outcome) in [
            (None, None),
            (Some(Ok(0)), Some(Ok(()))),
            (Some(Ok(1)), Some(Err(Failure::positive(CALL, 1)))),
            (Some(Err(Errno::EINTR)), None),
            (Some(Err(Errno::ENOMEM)), Some(Err(Failure::from_errno(CALL, Errno::ENOMEM)))),
        ] {
            assert_eq!(judged(CALL, result), outcome);
        }
    }
}
