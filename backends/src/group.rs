//! VFIO groups: how devices get into a container.
//!
//! The unit of attachment is the group, not the device: devices of one group can reach each other behind the IOMMU's back. A group
//! joins a container ([`Attachable::attach_to`]), which the first group there gives to an IOMMU driver; its devices are opened through
//! it ([`VfioGroup::open_device`]) and must be closed before it leaves. When the last group has left, the container has no driver
//! any more, and the next one gives it away again.
//!
//! An iommufd in a container's place is another matter (linux: drivers/vfio/group.c, vfio_df_group_open): there a device is attached
//! when it is first opened, detached when it is last closed, and its group may leave before that. So a group comes with one of its devices
//! ([`VfioGroup::come_with`]), keeps it open until it leaves, and does not leave while others have devices of it open. What of a device is
//! still mapped keeps it attached even so, and no call tells.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dmaspace_abi::type1::{GET_INFO, Info};
use dmaspace_abi::vfio::{
    GROUP_CONTAINER_SET, GROUP_GET_DEVICE_FD, GROUP_GET_STATUS, GROUP_SET_CONTAINER, GROUP_UNSET_CONTAINER,
    GROUP_VIABLE, GroupStatus, IommuType, SET_IOMMU, SetContainer,
};
use dmaspace_core::contract::{AttachPlace, AttachPoint, Attachable};
use dmaspace_core::door::{
    Answer, Attached, Attachment, Command, Errno, Failure, Handle, HandleKind, Kernel, OwnedHandle, Request,
};
use dmaspace_core::retry::Undone;
use dmaspace_core::words::reserved::Reserved;
use zerocopy::IntoBytes;

use crate::choose::BackendKind;
use crate::device::Device;
use crate::registry::{Entry, Registry};

/// An open VFIO group.
pub struct VfioGroup {
    handle: OwnedHandle,
    name: String,
    /// The IOMMU drivers a container is given to, best first.
    drivers: &'static [IommuType],
    /// Where its devices do not reach memory.
    reserved: Vec<Reserved>,
    /// The device it comes with.
    companion: Mutex<Companion>,
    /// How many of its devices are open, the companion not counted.
    open_devices: AtomicUsize,
    /// `Some` until the group is closed, if anybody wanted to know of it.
    entry: Option<Entry>,
}

/// The device a group comes to an iommufd with.
#[derive(Debug, Default)]
struct Companion {
    name: String,
    /// `Some` while the group is there.
    handle: Option<OwnedHandle>,
}

/// How often a group is told to leave a container it should not be in.
const ATTEMPTS: usize = 3;

/// The drivers that will do for a backend. type1's first version does too: whole mappings are all that is ever unmapped.
const fn drivers(backend: BackendKind) -> &'static [IommuType] {
    match backend {
        BackendKind::Type1 => &[IommuType::TYPE1_V2, IommuType::TYPE1],
        BackendKind::Type1OnIommufd => &[IommuType::TYPE1_V2],
        BackendKind::Spapr => &[IommuType::SPAPR_TCE_V2],
        BackendKind::SpaprV1 => &[IommuType::SPAPR_TCE],
        // Has no containers.
        BackendKind::Iommufd => &[],
    }
}

impl VfioGroup {
    /// Takes over `handle`, an open group that `name` stands for in errors. It is to join containers of `backend`, and is closed when
    /// this is dropped.
    ///
    /// A node is opened once: a second opener gets `EBUSY` (linux: drivers/vfio/group.c, vfio_group_fops_open).
    pub fn new(handle: OwnedHandle, name: impl Into<String>, backend: BackendKind) -> Self {
        Self {
            handle,
            name: name.into(),
            drivers: drivers(backend),
            reserved: Vec::new(),
            companion: Mutex::default(),
            open_devices: AtomicUsize::new(0),
            entry: None,
        }
    }

    /// Adds the group to a registry, until it is closed.
    ///
    /// # Errors
    /// What the registry says; the group is closed then.
    pub fn registered_in(mut self, registry: Arc<dyn Registry>) -> Result<Self, Errno> {
        self.entry = Some(Entry::new(registry, self.handle.handle())?);
        Ok(self)
    }

    /// The same, knowing where its devices do not reach memory.
    #[must_use]
    pub fn reserving(mut self, reserved: Vec<Reserved>) -> Self {
        self.reserved = reserved;
        self
    }

    /// Says which of its devices is opened when the group joins an iommufd that is in a container's place. Without one the group joins,
    /// but nothing of it is attached until somebody opens a device.
    pub fn come_with(&self, device: &str) {
        device.clone_into(&mut self.companion().name);
    }

    fn companion(&self) -> MutexGuard<'_, Companion> {
        self.companion.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group's handle.
    pub fn handle(&self) -> Handle {
        self.handle.handle()
    }

    /// Whether it can be used: that no driver of the host holds on to the DMA of one of its devices. A group in a container always can.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn is_viable(&self) -> Result<bool, Failure> {
        Ok(self.status()? & (GROUP_VIABLE | GROUP_CONTAINER_SET) != 0)
    }

    /// Opens one of its devices, by the name sysfs has for it: `0000:00:03.0`. A virtual function whose physical function is owned by
    /// another VFIO user wants its token behind the name (linux: drivers/vfio/pci/vfio_pci_core.c, vfio_pci_core_match).
    ///
    /// # Errors
    /// What the kernel says: `EINVAL` for a group that is in no container, `ENODEV` for a name that is not in the group.
    pub fn open_device(self: &Arc<Self>, name: &str) -> Result<Device, Failure> {
        let handle = self.opened(name)?;
        self.open_devices.fetch_add(1, Ordering::Relaxed);
        Ok(Device::of_group(handle, name, self.clone()))
    }

    /// Whether it is in a container.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn is_in_a_container(&self) -> Result<bool, Failure> {
        Ok(self.status()? & GROUP_CONTAINER_SET != 0)
    }

    /// Takes over a device of the group that another process has opened and handed over. `name` is the one sysfs has for it.
    pub fn inherit_device(self: &Arc<Self>, device: OwnedHandle, name: &str) -> Device {
        self.open_devices.fetch_add(1, Ordering::Relaxed);
        Device::of_group(device, name, self.clone())
    }

    /// A device of the group was closed.
    pub(crate) fn note_closed(&self) {
        self.open_devices.fetch_sub(1, Ordering::Relaxed);
    }

    fn opened(&self, name: &str) -> Result<OwnedHandle, Failure> {
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

    /// Leaves the container. `EINVAL`: the group is in none, perhaps because an earlier call that failed did its work. `ENODEV`: the
    /// group has no device any more, and reaches no memory.
    fn leave(&self) -> Result<Undone, Failure> {
        let left = self.handle.call(Command::bare(GROUP_UNSET_CONTAINER));
        Undone::unless_absent(left, &[Errno::EINVAL, Errno::ENODEV])
    }

    /// Whether the container has an IOMMU driver. Asked rather than remembered, since groups come and go in other hands too: a
    /// container without one has nobody to answer (linux: drivers/vfio/container.c, vfio_fops_unl_ioctl).
    fn has_driver(&self, container: Handle) -> bool {
        let mut info = Info { argsz: Info::SIZE, ..Info::default() };
        let answer = self.handle.door().call(container, Command::with_bytes(GET_INFO, info.as_mut_bytes()));
        !matches!(answer, Err(Failure { answer: Answer::Errno(Errno::EINVAL), .. }))
    }

    /// Attaches the device the group comes with.
    fn open_companion(&self, iommufd: Handle) -> Result<(), Failure> {
        self.give_driver(iommufd)?;
        let mut companion = self.companion();
        if !companion.name.is_empty() {
            companion.handle = Some(self.opened(&companion.name)?);
        }
        Ok(())
    }

    fn close_companion(&self) {
        let device = self.companion().handle.take();
        drop(device);
    }

    /// Leaves an iommufd, which would release the group with devices open.
    fn leave_iommufd(&self) -> Result<Undone, Failure> {
        if self.open_devices.load(Ordering::Relaxed) > 0 {
            return Err(refusal(GROUP_UNSET_CONTAINER, Errno::EBUSY));
        }
        let left = self.leave()?;
        self.close_companion();
        Ok(left)
    }

    /// Gives the container to the best driver the kernel has. One it does not have is `ENODEV`.
    fn give_driver(&self, container: Handle) -> Result<(), Failure> {
        let mut answer = Err(refusal(SET_IOMMU, Errno::ENODEV));
        for driver in self.drivers {
            answer = self.handle.door().call(container, Command::with_value(SET_IOMMU, driver.0));
            if !matches!(answer, Err(Failure { answer: Answer::Errno(Errno::ENODEV), .. })) {
                break;
            }
        }
        answer
    }
}

// SAFETY: the kernel's answers are returned as they are. A group whose attach failed is told to leave until the kernel says that it has, or
// several times that it is in no container.
#[expect(unsafe_code, reason = "UNSAFETY: reports what the kernel reports")]
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

    /// Joins the container and, as the first group there, gives it to an IOMMU driver; in an iommufd that takes a container's place it has
    /// the device it comes with attached, which is `EADDRINUSE` over a live mapping. From VFIO_GROUP_SET_CONTAINER: `EPERM`, the group
    /// is not viable ([`VfioGroup::is_viable`]); `EINVAL`, it is in a container already, and stays there.
    fn attach_to(&self, point: AttachPoint<'_>) -> Result<(), Failure> {
        let container = container_of(point, GROUP_SET_CONTAINER)?;
        if self.status()? & GROUP_CONTAINER_SET != 0 {
            return Err(refusal(GROUP_SET_CONTAINER, Errno::EINVAL));
        }
        let joined = self.join(point).and_then(|()| match container.kind() {
            HandleKind::Iommufd => self.open_companion(container),
            _ if self.has_driver(container) => Ok(()),
            _ => self.give_driver(container),
        });
        // A call that failed may have done its work all the same. On POWER a group that leaves takes the entries of others along: it must
        // be gone when this returns, not only when it is closed, however often the kernel says that it is in no container.
        joined.inspect_err(|_| {
            let _has_left = (0..ATTEMPTS).any(|_| matches!(self.leave(), Ok(Undone::Done(()))));
        })
    }

    /// Leaves the container. `EBUSY`: one of its devices is still open, perhaps because a part of it is still mapped.
    fn detach_from(&self, point: AttachPoint<'_>) -> Result<Undone, Failure> {
        match container_of(point, GROUP_UNSET_CONTAINER)?.kind() {
            HandleKind::Iommufd => self.leave_iommufd(),
            _ => self.leave(),
        }
    }
}

impl Drop for VfioGroup {
    fn drop(&mut self) {
        self.close_companion();
        // Out of the registry while the descriptor still exists.
        self.entry = None;
    }
}

impl fmt::Debug for VfioGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VfioGroup({}, {:?})", self.name, self.handle)
    }
}

/// The container to join. What an iommufd has is none: `EBADFD`, as the kernel says to a descriptor of another kind.
fn container_of(point: AttachPoint<'_>, request: Request) -> Result<Handle, Failure> {
    match point.place() {
        AttachPlace::Container(container) => Ok(container),
        _ => Err(refusal(request, Errno::EBADFD)),
    }
}

fn refusal(request: Request, errno: Errno) -> Failure {
    Failure { call: request.name, answer: Answer::Errno(errno) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use dmaspace_core::door::Door;

    use super::*;
    use crate::scripted::Scripted;

    struct Stage {
        door: Arc<Scripted>,
        container: Handle,
        group: Arc<VfioGroup>,
    }

    /// A point for calls that no space makes.
    #[expect(unsafe_code, reason = "UNSAFETY: no device is behind a scripted door")]
    fn at(place: AttachPlace) -> AttachPoint<'static> {
        // SAFETY: no space uses the place.
        unsafe { AttachPoint::beside_spaces(place) }
    }

    /// A container and a group, nothing called yet.
    fn stage(backend: BackendKind) -> Stage {
        let door = Scripted::new();
        let container = door.open(Path::new("/dev/vfio/vfio"), HandleKind::Container).expect("opens");
        let group = OwnedHandle::open(door.clone(), Path::new("/dev/vfio/7"), HandleKind::Group).expect("opens");
        door.calls();
        let group = Arc::new(VfioGroup::new(group, "group 7", backend));
        Stage { door, container, group }
    }

    impl Stage {
        fn attach(&self) -> Result<(), Failure> {
            self.group.attach_to(at(AttachPlace::Container(self.container)))
        }

        fn detach(&self) -> Result<Undone, Failure> {
            self.group.detach_from(at(AttachPlace::Container(self.container)))
        }
    }

    #[test]
    fn the_first_group_gives_the_container_to_a_driver_and_so_does_the_next_first() {
        let stage = stage(BackendKind::Type1);
        let first = ["VFIO_GROUP_GET_STATUS", "VFIO_GROUP_SET_CONTAINER", "VFIO_IOMMU_GET_INFO", "VFIO_SET_IOMMU 3"];
        stage.attach().expect("nothing refuses");
        assert_eq!(stage.door.calls(), first);
        assert_eq!(stage.detach(), Ok(Undone::Done(())));
        assert_eq!(stage.door.calls(), ["VFIO_GROUP_UNSET_CONTAINER"]);
        stage.attach().expect("nothing refuses");
        assert_eq!(stage.door.calls(), first);
    }

    #[test]
    fn a_container_with_a_driver_keeps_it() {
        let stage = stage(BackendKind::Type1);
        stage.attach().expect("nothing refuses");
        stage.door.calls();
        stage.attach().expect("the door counts groups, not which");
        let calls = ["VFIO_GROUP_GET_STATUS", "VFIO_GROUP_SET_CONTAINER", "VFIO_IOMMU_GET_INFO"];
        assert_eq!(stage.door.calls(), calls);
    }

    #[test]
    fn an_older_type1_will_do_but_an_older_spapr_is_asked_for_by_name() {
        let stage_of = |backend, driver: &str| {
            let stage = stage(backend);
            stage.door.refuse(driver, Errno::ENODEV);
            (stage.attach().is_ok(), stage.door.calls().pop())
        };
        assert_eq!(stage_of(BackendKind::Type1, "VFIO_SET_IOMMU 3"), (true, Some("VFIO_SET_IOMMU 1".to_owned())));
        let left = Some("VFIO_GROUP_UNSET_CONTAINER".to_owned());
        assert_eq!(stage_of(BackendKind::Spapr, "VFIO_SET_IOMMU 7"), (false, left));
        assert_eq!(stage_of(BackendKind::SpaprV1, "VFIO_SET_IOMMU 7"), (true, Some("VFIO_SET_IOMMU 2".to_owned())));
    }

    #[test]
    fn to_an_iommufd_a_group_comes_with_a_device_and_leaves_only_when_no_other_is_open() {
        let door = Scripted::new();
        let iommufd = door.open(Path::new("/dev/iommu"), HandleKind::Iommufd).expect("opens");
        let handle = OwnedHandle::open(door.clone(), Path::new("/dev/vfio/7"), HandleKind::Group).expect("opens");
        let group = Arc::new(VfioGroup::new(handle, "group 7", BackendKind::Type1OnIommufd));
        group.come_with("0000:00:03.0");
        door.calls();
        let point = at(AttachPlace::Container(iommufd));
        group.attach_to(point).expect("nothing refuses");
        let calls = [
            "VFIO_GROUP_GET_STATUS",
            "VFIO_GROUP_SET_CONTAINER",
            "VFIO_SET_IOMMU 3",
            "VFIO_GROUP_GET_DEVICE_FD 0000:00:03.0",
        ];
        assert_eq!(door.calls(), calls);
        let device = group.open_device("0000:00:03.0").expect("opens");
        door.calls();
        assert_eq!(group.detach_from(point).expect_err("a device is open").errno(), Some(Errno::EBUSY));
        assert_eq!(door.calls(), Vec::<String>::new(), "the kernel would say yes");
        drop(device);
        door.calls();
        group.detach_from(point).expect("nothing is open any more");
        assert_eq!(door.calls(), ["VFIO_GROUP_UNSET_CONTAINER", "close 0000:00:03.0"]);
    }

    #[test]
    fn a_group_its_driver_refuses_tries_no_other_and_leaves_again() {
        let stage = stage(BackendKind::Type1);
        stage.door.refuse("VFIO_SET_IOMMU 3", Errno::EPERM);
        assert_eq!(stage.attach().expect_err("refused").to_string(), "VFIO_SET_IOMMU: EPERM");
        assert_eq!(stage.door.calls()[3..], ["VFIO_SET_IOMMU 3", "VFIO_GROUP_UNSET_CONTAINER"]);
    }

    #[test]
    fn a_group_that_cannot_join_makes_sure_that_it_did_not() {
        let stage = stage(BackendKind::Type1);
        stage.door.refuse("VFIO_GROUP_SET_CONTAINER", Errno::EPERM);
        assert_eq!(stage.attach().expect_err("refused").errno(), Some(Errno::EPERM));
        let left = ["VFIO_GROUP_UNSET_CONTAINER"; ATTEMPTS];
        assert_eq!(stage.door.calls(), [&["VFIO_GROUP_GET_STATUS", "VFIO_GROUP_SET_CONTAINER"], &left[..]].concat());
    }

    #[test]
    fn an_address_space_of_an_iommufd_is_no_container() {
        let stage = stage(BackendKind::Type1);
        let point = at(AttachPlace::Ioas { iommufd: stage.container, ioas: 1 });
        assert_eq!(stage.group.attach_to(point).expect_err("refused").errno(), Some(Errno::EBADFD));
        assert_eq!(stage.group.detach_from(point).expect_err("refused").errno(), Some(Errno::EBADFD));
        assert_eq!(stage.door.calls(), Vec::<String>::new());
    }

    #[test]
    fn an_open_device_keeps_its_group_open_and_attached() {
        let stage = stage(BackendKind::Type1);
        stage.attach().expect("nothing refuses");
        let device = stage.group.open_device("0000:00:03.0").expect("opens");
        assert_eq!(stage.detach().expect_err("a device is open").errno(), Some(Errno::EBUSY));
        let Stage { door, container, group } = stage;
        drop(group);
        door.close(container).expect("it was open");
        assert_eq!(door.open_names(), ["/dev/vfio/7", "0000:00:03.0"]);
        door.calls();
        drop(device);
        assert_eq!(door.calls(), ["close 0000:00:03.0", "close /dev/vfio/7"]);
    }
}
