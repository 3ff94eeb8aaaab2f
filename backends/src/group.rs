//! VFIO groups: the way devices get into a container.
//!
//! The unit of attachment is the group, not the device: devices of one group can reach each other without passing the
//! IOMMU. A group joins a container ([`Attachable::attach_to`]), and the first group gives the container an IOMMU
//! driver. Devices are opened through their group ([`Device::open`](crate::Device::open)) and must be closed before
//! the group leaves. When the last group has left, the container has no driver any more, and the next group gives it
//! one again.
//!
//! An iommufd in place of a container differs (linux: drivers/vfio/group.c, vfio_df_group_open): there a device is
//! attached when it is first opened and detached when it is last closed, and its group may leave before that. A group
//! therefore has an anchor device: it opens the device when it joins, keeps it open
//! until it leaves, and does not leave while another descriptor of one of its devices is open. A part of a device that
//! is still mapped keeps the device attached nevertheless, and no call reports that.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dmaspace_abi::type1::{GET_INFO, Info};
use dmaspace_abi::vfio::{
    GROUP_CONTAINER_SET, GROUP_GET_DEVICE_FD, GROUP_GET_STATUS, GROUP_SET_CONTAINER, GROUP_UNSET_CONTAINER,
    GROUP_VIABLE, GroupStatus, IommuType, SET_IOMMU, SetContainer,
};
use dmaspace_core::contract::{AttachPlace, AttachPoint, Attachable};
use dmaspace_core::door::{
    Attached, Attachment, Command, Descriptor, Door, Errno, Failure, Handle, HandleKind, Kernel, OwnedHandle, Request,
};
use dmaspace_core::retry::Undone;
use dmaspace_core::sync::{Mutex, Rank};
use dmaspace_core::words::reserved::Reserved;
use zerocopy::IntoBytes;

use crate::backend_kind::BackendKind;
use crate::registry::{Entry, Registry};

#[cfg(test)]
mod tests;

/// An open VFIO group.
pub struct VfioGroup {
    handle: OwnedHandle,
    name: String,
    /// The IOMMU drivers that a container may be given, in the order of preference.
    drivers: &'static [IommuType],
    /// The ranges where its devices do not reach memory.
    reserved: Vec<Reserved>,
    anchor: Mutex<AnchorDevice>,
    /// The number of its open devices, without the anchor device.
    open_devices: AtomicUsize,
    /// The entry in a registry, if there is one. `None` while the group is being closed.
    entry: Option<Entry>,
}

/// The device that a group opens when it joins an iommufd.
#[derive(Debug, Default)]
struct AnchorDevice {
    /// The name in sysfs. Empty for a group without an anchor device.
    name: String,
    /// `Some` while the group is attached.
    handle: Option<OwnedHandle>,
}

/// The number of attempts to leave a container that the group must not stay in.
const ATTEMPTS: usize = 3;

/// The IOMMU drivers that fit a backend. The first version of type1 fits as well: this library only ever unmaps whole
/// mappings.
const fn drivers(backend: BackendKind) -> &'static [IommuType] {
    match backend {
        BackendKind::Type1 => &[IommuType::TYPE1_V2, IommuType::TYPE1],
        BackendKind::Type1OnIommufd => &[IommuType::TYPE1_V2],
        BackendKind::Spapr => &[IommuType::SPAPR_TCE_V2],
        BackendKind::SpaprV1 => &[IommuType::SPAPR_TCE],
        // No containers.
        BackendKind::Iommufd | BackendKind::Other(_) => &[],
    }
}

impl VfioGroup {
    /// Takes ownership of `handle`, an open group for containers of `backend`. `name` stands for the group in errors.
    /// The group is closed when this value is dropped.
    ///
    /// A group's node can be open once: a second open(2) fails with `EBUSY` (linux: drivers/vfio/group.c,
    /// vfio_group_fops_open).
    pub fn new(handle: OwnedHandle, name: impl Into<String>, backend: BackendKind) -> Self {
        Self {
            handle,
            name: name.into(),
            drivers: drivers(backend),
            reserved: Vec::new(),
            anchor: Mutex::new(Rank::Device, AnchorDevice::default()),
            open_devices: AtomicUsize::new(0),
            entry: None,
        }
    }

    /// Adds the group to a registry, until it is closed.
    ///
    /// # Errors
    /// The registry's answer; the group is closed then.
    pub(crate) fn with_registry(mut self, registry: Arc<dyn Registry>) -> Result<Self, Errno> {
        self.entry = Some(Entry::new(registry, self.handle.handle())?);
        Ok(self)
    }

    /// Sets the ranges where the devices of the group do not reach memory.
    #[must_use]
    pub(crate) fn with_reserved(mut self, reserved: Vec<Reserved>) -> Self {
        self.reserved = reserved;
        self
    }

    /// Sets the anchor device: the device that is opened when the group joins an iommufd in place of a container.
    /// Without one the group joins, but nothing is attached until one of its devices is opened.
    pub(crate) fn open_on_attach(&self, device: &str) {
        device.clone_into(&mut self.anchor.lock().name);
    }

    /// The descriptor of the group, for calls that this library does not make.
    ///
    /// # Errors
    /// `EBADF` on a soft host, which has no descriptors.
    pub fn descriptor(&self) -> Result<Descriptor, Errno> {
        self.handle.descriptor()
    }

    /// The door that the group is open at.
    pub(crate) fn door(&self) -> &Arc<dyn Door> {
        self.handle.door()
    }

    /// The handle of the group.
    pub fn handle(&self) -> Handle {
        self.handle.handle()
    }

    /// Returns `true` if the group can be used: if no driver of the host uses the DMA of one of its devices. A group
    /// in a container is always viable.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn is_viable(&self) -> Result<bool, Failure> {
        Ok(self.status()? & (GROUP_VIABLE | GROUP_CONTAINER_SET) != 0)
    }

    /// Returns `true` if the group is in a container.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn is_in_a_container(&self) -> Result<bool, Failure> {
        Ok(self.status()? & GROUP_CONTAINER_SET != 0)
    }

    /// Returns `true` if a device of the group is open, apart from the anchor device.
    pub(crate) fn has_open_devices(&self) -> bool {
        self.open_devices.load(Ordering::Relaxed) > 0
    }

    /// Counts a device of the group that was opened.
    pub(crate) fn note_opened(&self) {
        self.open_devices.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a device of the group that was closed.
    pub(crate) fn note_closed(&self) {
        let before = self.open_devices.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "{} closed a device that was not open", self.name);
    }

    /// Opens a device of the group and returns its descriptor.
    pub(crate) fn open_descriptor(&self, name: &str) -> Result<OwnedHandle, Failure> {
        let mut text = [name.as_bytes(), b"\0"].concat();
        let mut command = Command::with_bytes(GROUP_GET_DEVICE_FD, &mut text);
        let door = self.handle.door().clone();
        let opened = OwnedHandle::opened_by(door, self.handle(), &mut command, HandleKind::Device);
        opened.map_err(|errno| refusal(GROUP_GET_DEVICE_FD, errno))
    }

    fn status(&self) -> Result<u32, Failure> {
        let mut status = GroupStatus { argsz: GroupStatus::SIZE, flags: 0 };
        self.handle.call(Command::with_bytes(GROUP_GET_STATUS, status.as_mut_bytes()))?;
        Ok(status.flags)
    }

    fn join(&self, container: AttachPoint<'_>) -> Result<(), Failure> {
        let mut field = SetContainer::default();
        let mut descriptor = [Attachment {
            offset: std::mem::offset_of!(SetContainer, container),
            what: Attached::Container(container),
        }];
        let command = Command::with_bytes(GROUP_SET_CONTAINER, field.as_mut_bytes()).attaching(&mut descriptor);
        self.handle.call(command)
    }

    /// Leaves the container. `EINVAL` means that the group is in none, perhaps because an earlier call took effect and
    /// reported a failure. `ENODEV` means that the group has no device any more, and so reaches no memory.
    fn leave(&self) -> Result<Undone, Failure> {
        let left = self.handle.call(Command::bare(GROUP_UNSET_CONTAINER));
        Undone::unless_absent(left, &[Errno::EINVAL, Errno::ENODEV])
    }

    /// Returns `true` if the container has an IOMMU driver. The kernel is asked each time, because other processes may
    /// attach and detach groups too. A container without a driver cannot answer GET_INFO (linux:
    /// drivers/vfio/container.c, vfio_fops_unl_ioctl).
    fn has_driver(&self, container: Handle) -> bool {
        let mut info = Info { argsz: Info::SIZE, ..Info::default() };
        let answer = self.handle.door().call(container, Command::with_bytes(GET_INFO, info.as_mut_bytes()));
        !answer.is_err_and(|failure| failure.errno() == Some(Errno::EINVAL))
    }

    /// Makes the container or iommufd, which the group has just joined, ready for its devices.
    fn set_up(&self, container: Handle) -> Result<(), Failure> {
        match container.kind() {
            HandleKind::Iommufd => self.open_anchor(container),
            _ if self.has_driver(container) => Ok(()),
            _ => self.set_driver(container),
        }
    }

    /// Attaches the anchor device.
    fn open_anchor(&self, iommufd: Handle) -> Result<(), Failure> {
        self.set_driver(iommufd)?;
        let mut anchor = self.anchor.lock();
        if !anchor.name.is_empty() {
            anchor.handle = Some(self.open_descriptor(&anchor.name)?);
        }
        Ok(())
    }

    fn close_anchor(&self) {
        // Closed without the lock: closing a device resets it, which can take seconds.
        let device = self.anchor.lock().handle.take();
        drop(device);
    }

    /// Leaves an iommufd, which would release the group even while devices are open.
    fn leave_iommufd(&self) -> Result<Undone, Failure> {
        if self.has_open_devices() {
            return Err(refusal(GROUP_UNSET_CONTAINER, Errno::EBUSY));
        }
        let left = self.leave()?;
        self.close_anchor();
        Ok(left)
    }

    /// Gives the container the first driver that the kernel has. The kernel answers `ENODEV` for a driver that it
    /// lacks.
    fn set_driver(&self, container: Handle) -> Result<(), Failure> {
        let mut answer = Err(refusal(SET_IOMMU, Errno::ENODEV));
        for driver in self.drivers {
            answer = self.handle.door().call(container, Command::with_value(SET_IOMMU, driver.0));
            if !answer.is_err_and(|failure| failure.errno() == Some(Errno::ENODEV)) {
                break;
            }
        }
        answer
    }

    /// Leaves the container after a failed join. A call that failed may have taken effect all the same, and on POWER a
    /// group that leaves later removes the entries of other groups: it must be gone when this returns, not only when
    /// the group is closed. Returns `false` if it may be there: the kernel answered neither that the group has left
    /// nor, each time, that it is in no container.
    fn undo_join(&self) -> bool {
        let mut was_there = false;
        for _ in 0..ATTEMPTS {
            match self.leave() {
                Ok(Undone::Done(())) => return true,
                Ok(Undone::WasNotThere) => {}
                Err(_) => was_there = true,
            }
        }
        !was_there
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: reports the kernel's answers")]
// SAFETY: the kernel's answers are returned as they are. A group whose attach failed is made to leave until the kernel
// says that it has left, or several times that it is in no container; otherwise the failure says that it may be there.
unsafe impl Attachable for VfioGroup {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn reserved(&self) -> Vec<Reserved> {
        self.reserved.clone()
    }

    fn group(&self) -> Option<Handle> {
        Some(self.handle.handle())
    }

    /// Joins the container. The first group there gives the container an IOMMU driver; in an iommufd in place of a
    /// container the anchor device is attached, which fails with `EADDRINUSE` over a live mapping.
    /// VFIO_GROUP_SET_CONTAINER answers `EPERM` for a group that is not viable ([`VfioGroup::is_viable`]). A group that
    /// is in a container already stays there: `EINVAL`.
    fn attach_to(&self, point: AttachPoint<'_>) -> Result<(), Failure> {
        let container = container_of(point, GROUP_SET_CONTAINER)?;
        if self.status()? & GROUP_CONTAINER_SET != 0 {
            return Err(refusal(GROUP_SET_CONTAINER, Errno::EINVAL));
        }
        let Err(failure) = self.join(point).and_then(|()| self.set_up(container)) else { return Ok(()) };
        Err(if self.undo_join() { failure } else { failure.not_undone() })
    }

    /// Leaves the container. `EBUSY` means that one of its devices is still open, perhaps because a part of it is still
    /// mapped.
    fn detach_from(&self, point: AttachPoint<'_>) -> Result<Undone, Failure> {
        match container_of(point, GROUP_UNSET_CONTAINER)?.kind() {
            HandleKind::Iommufd => self.leave_iommufd(),
            _ => self.leave(),
        }
    }
}

impl Drop for VfioGroup {
    fn drop(&mut self) {
        self.close_anchor();
        // The registry must drop its reference while the descriptor still exists.
        self.entry = None;
    }
}

impl fmt::Debug for VfioGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VfioGroup({}, {:?})", self.name, self.handle)
    }
}

/// The container to join. An address space of an iommufd is none: `EBADFD`, as the kernel answers for a descriptor of
/// another kind.
fn container_of(point: AttachPoint<'_>, request: Request) -> Result<Handle, Failure> {
    match point.place() {
        AttachPlace::Container(container) => Ok(container),
        _ => Err(refusal(request, Errno::EBADFD)),
    }
}

fn refusal(request: Request, errno: Errno) -> Failure {
    Failure::from_errno(request.name, errno)
}
