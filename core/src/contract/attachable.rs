//! Devices that can be attached to a space, and the places where they are attached.

use std::fmt;
use std::marker::PhantomData;

use crate::door::{Failure, Handle};
use crate::retry::Undone;
use crate::words::reserved::Reserved;

/// The id of an address space or a page table in an iommufd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectId(u32);

impl ObjectId {
    /// The id that the kernel gave the object.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number, for the kernel.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// The id of a device that is bound to an iommufd. It names no object that memory can be mapped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId(u32);

impl DeviceId {
    /// The id that the kernel gave the device when it was bound.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number, for the kernel.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// A place at which a backend attaches devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttachPlace {
    /// The backend itself, for backends whose devices need to know no more.
    ThisBackend,
    /// A VFIO container, or an iommufd in its place.
    Container(Handle),
    /// An I/O address space of an iommufd.
    Ioas {
        /// `/dev/iommu`.
        iommufd: Handle,
        /// The address space's id in it.
        ioas: ObjectId,
    },
    /// A page table of an iommufd that shows an address space.
    PageTable {
        /// `/dev/iommu`.
        iommufd: Handle,
        /// The page table's id in it.
        hwpt: ObjectId,
    },
}

/// A place and the right to attach and detach a device there.
///
/// A [`Space`](crate::Space) makes one for the length of one call, so it knows of each device that is attached. Safe
/// code cannot attach or detach a device past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachPoint<'a> {
    place: AttachPlace,
    lent: PhantomData<&'a ()>,
}

impl AttachPoint<'_> {
    pub(crate) fn of_space(place: AttachPlace) -> Self {
        Self { place, lent: PhantomData }
    }

    /// A point for calls that no space makes.
    ///
    /// # Safety
    /// No space uses the container at `place`, or its memory outlives the attachment.
    #[expect(unsafe_code, reason = "UNSAFETY: a device that a space does not know stays when the space frees memory")]
    pub unsafe fn beside_spaces(place: AttachPlace) -> Self {
        Self { place, lent: PhantomData }
    }

    /// The place.
    pub fn place(&self) -> AttachPlace {
        self.place
    }

    /// The same right at another place of the same backend: iommufd has a page table for each kind of device.
    #[must_use]
    pub fn moved_to(self, place: AttachPlace) -> Self {
        Self { place, ..self }
    }
}

/// A device or a group of devices that can be attached to a space: a VFIO group, a VFIO device with a node of its own.
///
/// # Safety
/// A space frees the memory of a mapping when the last device has left a backend that
/// [forgets its mappings](crate::Backend::forgets_with_the_last_device) then. So an error of
/// [`Attachable::attach_to`] must say so while the device may be attached ([`Failure::not_undone`]), and
/// [`Attachable::detach_from`] must return success, [`Undone::WasNotThere`] included, only when the device is not
/// attached there any more.
#[expect(unsafe_code, reason = "UNSAFETY: a space frees memory when the last device says that it is detached")]
pub unsafe trait Attachable: Send + Sync + fmt::Debug {
    /// The name of the device in errors.
    fn name(&self) -> String;

    /// The ranges in which the device does not reach memory, as far as they are known.
    fn reserved(&self) -> Vec<Reserved> {
        Vec::new()
    }

    /// The VFIO group handle, which KVM needs to link TCE tables. `None` for devices without a group.
    fn group(&self) -> Option<Handle> {
        None
    }

    /// Binds the device to an iommufd, where that comes before attaching, and returns its device id there. Makes no
    /// call if it is bound already. Returns `None` for VFIO groups, which are not bound.
    ///
    /// # Errors
    /// The failure of the kernel's call.
    fn bind_to(&self, _iommufd: Handle) -> Result<Option<DeviceId>, Failure> {
        Ok(None)
    }

    /// Makes the kernel's attach call.
    ///
    /// # Errors
    /// The failure of the kernel's call. The device is not attached then, unless the failure
    /// [may have an effect](Failure::may_have_effect): the space then tries to detach it, and lists it if that fails.
    fn attach_to(&self, point: AttachPoint<'_>) -> Result<(), Failure>;

    /// Makes the kernel's detach call. A device that is not attached there, or that is gone altogether (`ENODEV`), is
    /// [`Undone::WasNotThere`].
    ///
    /// # Errors
    /// The kernel's answer; the device is still attached then.
    fn detach_from(&self, point: AttachPoint<'_>) -> Result<Undone, Failure>;
}

/// A group or device that another owner attached to a space's container, and detaches from it: a process that passed
/// the container on, another library in this process.
///
/// A container shows its windows once it has a device, so its space must know of one: attach this to it.
pub struct AttachedElsewhere {
    name: String,
    group: Option<Handle>,
    detach: Box<dyn Fn() -> Result<Undone, Failure> + Send + Sync>,
}

impl AttachedElsewhere {
    /// A group or device of this name. `detach` has its owner detach it, or returns why it is still attached.
    ///
    /// # Safety
    /// It is attached to the container or address space of the space that it is attached to next, until `detach`
    /// returns success, and is not attached there any more after that. While it is attached when the space is dropped,
    /// memory that was mapped is not reused.
    #[expect(unsafe_code, reason = "UNSAFETY: a space frees memory when the last device says that it is detached")]
    pub unsafe fn new(
        name: impl Into<String>,
        detach: impl Fn() -> Result<Undone, Failure> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), group: None, detach: Box::new(detach) }
    }

    /// Sets the handle of the group, which KVM needs to link TCE tables.
    #[must_use]
    pub fn with_group(mut self, group: Handle) -> Self {
        self.group = Some(group);
        self
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: repeats a promise")]
// SAFETY: the promise of `new`.
unsafe impl Attachable for AttachedElsewhere {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn group(&self) -> Option<Handle> {
        self.group
    }

    fn attach_to(&self, _point: AttachPoint<'_>) -> Result<(), Failure> {
        Ok(())
    }

    fn detach_from(&self, _point: AttachPoint<'_>) -> Result<Undone, Failure> {
        (self.detach)()
    }
}

impl fmt::Debug for AttachedElsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AttachedElsewhere({})", self.name)
    }
}
