//! A space, and the ways in which devices are opened into it.

use std::sync::Arc;

use dmaspace_abi::vfio::{API_VERSION, GET_API_VERSION};
use dmaspace_core::contract::{Attachable, DeviceId, ObjectId, WindowChange};
use dmaspace_core::door::{Command, Descriptor, Door, Errno, Handle, HandleKind, Kernel, OwnedHandle};
use dmaspace_core::words::reserved::Reserved;
use dmaspace_core::{Backend, Error, PciAddressSpace, Space};
use dmaspace_iommufd::{Cdev, Ioas, Iommufd};
use dmaspace_spapr::{Spapr, SpaprV1};
use dmaspace_type1::Type1;

use crate::backend_kind::BackendKind;
use crate::device::Device;
use crate::facts::CONTAINER_NODE;
use crate::group::VfioGroup;
use crate::open::OpenError;
use crate::options::OpenOptions;
use crate::registry::{Entry, Registry};

/// A space, and the ways in which devices are opened into it.
///
/// The promises of the caller differ:
///
/// - By PCI address ([`Host::open`], [`OpenSpace::add`]): none. This library opens every node itself.
/// - By descriptors that another process opened ([`OpenSpace::of`], [`OpenSpace::add_group`],
///   [`OpenSpace::add_device`]): those of [`OwnedHandle::adopt`]. No duplicate of a descriptor maps memory or attaches
///   devices.
/// - By descriptors of a VMM that is being replaced ([`Host::inherit`]): those of [`OwnedHandle::adopt`], and that the
///   memory is that of the old VMM ([`crate::inherited`]).
/// - By an address space, or a bound device, of an iommufd that has other users ([`OpenSpace::of_ioas`],
///   [`OpenSpace::add_bound_device`]): those of [`Ioas::adopted`] and [`Cdev::bound`].
/// - By a backend and devices of another crate ([`OpenSpace::around`], [`OpenSpace::attach`]): those that this crate
///   asks for.
///
/// [`Host::open`]: crate::Host::open
/// [`Host::inherit`]: crate::Host::inherit
#[derive(Debug)]
pub struct OpenSpace {
    /// The container or iommufd. `None` for a backend of another crate.
    opened: Option<OpenedAt>,
    registry: Option<Arc<dyn Registry>>,
    backend: BackendKind,
    space: Arc<dyn PciAddressSpace>,
    groups: Vec<Arc<VfioGroup>>,
    /// The devices and groups that may be attached although attaching them failed.
    left_attached: Vec<Arc<dyn Attachable>>,
}

/// A container or iommufd at a door. The backend owns the handle.
#[derive(Clone, Debug)]
struct OpenedAt {
    door: Arc<dyn Door>,
    handle: Handle,
}

impl OpenSpace {
    /// Makes a space of `handle`, an open container or iommufd, which is closed with the space or on failure.
    ///
    /// A space of [`BackendKind::Type1`] on an iommufd becomes one of [`BackendKind::Type1OnIommufd`].
    ///
    /// # Errors
    /// [`OpenError::Version`], [`OpenError::Refused`]; [`OpenError::ForeignBackend`] for [`BackendKind::Other`].
    pub fn of(backend: BackendKind, handle: OwnedHandle) -> Result<Self, OpenError> {
        Self::with_options(backend, handle, &OpenOptions::default())
    }

    pub(super) fn with_options(
        backend: BackendKind,
        handle: OwnedHandle,
        options: &OpenOptions,
    ) -> Result<Self, OpenError> {
        let (door, name) = (handle.door().clone(), handle.handle());
        let backend = match (backend, handle.kind()) {
            (BackendKind::Type1, HandleKind::Iommufd) => BackendKind::Type1OnIommufd,
            _ => backend,
        };
        let space: Arc<dyn PciAddressSpace> = match backend {
            BackendKind::Type1 | BackendKind::Type1OnIommufd => container_space(&*door, name, Type1::new(handle))?,
            BackendKind::Spapr => container_space(&*door, name, Spapr::new(handle))?,
            BackendKind::SpaprV1 => container_space(&*door, name, SpaprV1::new(handle))?,
            BackendKind::Iommufd => {
                let iommufd = options.iommufd(handle)?;
                Arc::new(Space::new(options.prepare(Ioas::within(iommufd))?)?)
            }
            BackendKind::Other(name) => return Err(OpenError::ForeignBackend { name }),
        };
        Ok(Self::at(door, backend, space, name))
    }

    /// Makes a space of an address space that another user of `iommufd` created, by its id.
    ///
    /// # Errors
    /// [`OpenError::Attach`] if the address space cannot tell its windows.
    ///
    /// # Safety
    /// The promises of [`Ioas::adopted`].
    #[expect(unsafe_code, reason = "UNSAFETY: the index of a space must have every mapping of its address space")]
    pub unsafe fn of_ioas(iommufd: Arc<Iommufd>, ioas: ObjectId) -> Result<Self, OpenError> {
        let (door, handle) = (iommufd.door().clone(), iommufd.handle());
        // SAFETY: the caller promises the same.
        let ioas = unsafe { Ioas::adopted(iommufd, ioas) };
        Ok(Self::at(door, BackendKind::Iommufd, Arc::new(Space::new(ioas)?), handle))
    }

    pub(crate) fn at(
        door: Arc<dyn Door>,
        backend: BackendKind,
        space: Arc<dyn PciAddressSpace>,
        handle: Handle,
    ) -> Self {
        Self {
            opened: Some(OpenedAt { door, handle }),
            registry: None,
            backend,
            space,
            groups: Vec::new(),
            left_attached: Vec::new(),
        }
    }

    /// Wraps a space whose backend is another crate's. `name` stands for the backend in errors and logs:
    /// [`OpenSpace::backend`] returns [`BackendKind::Other`] with it.
    ///
    /// That crate opens the devices too; [`OpenSpace::attach`] attaches them.
    pub fn around(space: Arc<dyn PciAddressSpace>, name: &'static str) -> Self {
        Self {
            opened: None,
            registry: None,
            backend: BackendKind::Other(name),
            space,
            groups: Vec::new(),
            left_attached: Vec::new(),
        }
    }

    /// Reports every group and device that is opened into this space to `registry`, before it is used.
    #[must_use]
    pub fn with_registry(mut self, registry: Arc<dyn Registry>) -> Self {
        self.registry = Some(registry);
        self
    }

    pub(crate) fn with_groups(mut self, groups: Vec<Arc<VfioGroup>>) -> Self {
        self.groups = groups;
        self
    }

    /// The container or iommufd, for a process that inherits the space ([`crate::inherited`]). `None` for a backend of
    /// another crate.
    pub fn handle(&self) -> Option<Handle> {
        self.opened.as_ref().map(|opened| opened.handle)
    }

    /// The descriptor of the container or iommufd, for calls that this library does not make.
    ///
    /// # Errors
    /// `EBADF` on a soft host, which has no descriptors, and for a backend of another crate.
    pub fn descriptor(&self) -> Result<Descriptor, Errno> {
        let opened = self.opened.as_ref().ok_or(Errno::EBADF)?;
        opened.door.descriptor(opened.handle)
    }

    /// The attached groups, in the order in which they were attached. Empty for backends that attach devices by their
    /// own nodes.
    pub fn groups(&self) -> &[Arc<VfioGroup>] {
        &self.groups
    }

    /// The devices and groups that stay attached although adding them failed, or although their last device was
    /// [removed](OpenSpace::remove), because the kernel refused to detach them. Each reaches what is mapped until it is
    /// detached ([`OpenSpace::detach`]), at the latest with the space.
    pub fn left_attached(&self) -> Vec<Arc<dyn Attachable>> {
        let attached = self.space.describe().devices;
        self.left_attached.iter().filter(|device| attached.contains(&device.name())).cloned().collect()
    }

    /// The space, as a listener or a VMM uses it.
    pub fn space(&self) -> &Arc<dyn PciAddressSpace> {
        &self.space
    }

    /// The kind of the backend.
    pub fn backend(&self) -> BackendKind {
        self.backend
    }

    /// Attaches an open group, which is closed with the space or on failure. `name` stands for it in errors. With
    /// [`BackendKind::Type1OnIommufd`] the group is attached together with its first device
    /// ([`OpenSpace::open_device`]).
    ///
    /// # Errors
    /// [`OpenError::Registry`], [`OpenError::NotViable`], [`OpenError::Attach`].
    pub fn add_group(&mut self, group: OwnedHandle, name: &str) -> Result<Arc<VfioGroup>, OpenError> {
        self.add_group_with_reserved(group, name, Vec::new())
    }

    /// Attaches an open group as [`OpenSpace::add_group`] does. `reserved` lists the ranges where its devices do not
    /// reach memory ([`Facts::reserved`](crate::Facts::reserved)), for reports and errors.
    ///
    /// # Errors
    /// As [`OpenSpace::add_group`].
    pub fn add_group_with_reserved(
        &mut self,
        group: OwnedHandle,
        name: &str,
        reserved: Vec<Reserved>,
    ) -> Result<Arc<VfioGroup>, OpenError> {
        self.door()?;
        let mut group = VfioGroup::new(group, name, self.backend).with_reserved(reserved);
        if let Some(registry) = &self.registry {
            let registered = group.with_registry(registry.clone());
            group = registered.map_err(|errno| OpenError::Registry { subject: name.to_owned(), errno })?;
        }
        if !group.is_viable().map_err(|failure| OpenError::refused(name, failure))? {
            return Err(OpenError::NotViable { group: name.to_owned() });
        }
        let group = Arc::new(group);
        if self.backend != BackendKind::Type1OnIommufd {
            self.attach_added(group.clone())?;
        }
        self.groups.push(group.clone());
        Ok(group)
    }

    /// Opens a device of a group of this space, by its name in sysfs.
    ///
    /// # Errors
    /// [`OpenError::Refused`]; with [`BackendKind::Type1OnIommufd`] also [`OpenError::Attach`].
    pub fn open_device(&self, group: &Arc<VfioGroup>, name: &str) -> Result<Device, OpenError> {
        if self.backend == BackendKind::Type1OnIommufd && !self.is_attached(group) {
            group.open_on_attach(name);
            self.space.attach(group.clone())?;
        }
        let device = Device::open(group, name).map_err(|failure| OpenError::refused(name, failure))?;
        Ok(device.with_space(self.space.clone()))
    }

    /// Attaches an open device with a node of its own, which is closed with the space or on failure. `name` stands for
    /// it in errors.
    ///
    /// # Errors
    /// [`OpenError::Registry`], [`OpenError::Attach`].
    pub fn add_device(&mut self, device: OwnedHandle, name: &str) -> Result<Device, OpenError> {
        self.add_device_with_reserved(device, name, Vec::new())
    }

    /// Attaches an open device as [`OpenSpace::add_device`] does. `reserved` lists the ranges where it does not reach
    /// memory ([`Facts::reserved`](crate::Facts::reserved)), for reports and errors.
    ///
    /// # Errors
    /// As [`OpenSpace::add_device`].
    pub fn add_device_with_reserved(
        &mut self,
        device: OwnedHandle,
        name: &str,
        reserved: Vec<Reserved>,
    ) -> Result<Device, OpenError> {
        self.door()?;
        self.add_cdev(Arc::new(Cdev::new(device, name).reserving(reserved)))
    }

    fn add_cdev(&mut self, cdev: Arc<Cdev>) -> Result<Device, OpenError> {
        let (door, name) = (self.door()?.clone(), cdev.name());
        let entry = match &self.registry {
            Some(registry) => {
                let entry = Entry::new(registry.clone(), cdev.device());
                Some(entry.map_err(|errno| OpenError::Registry { subject: name.clone(), errno })?)
            }
            None => None,
        };
        let device = Device::of_node(door, &name, cdev.clone(), entry);
        self.attach_added(cdev)?;
        Ok(device.with_space(self.space.clone()))
    }

    /// Attaches an open device that is bound to this space's iommufd already, as the device `id`; it is closed with the
    /// space or on failure. `name` stands for it in errors. The registry of the space, if there
    /// is one, is told of the device.
    ///
    /// # Errors
    /// [`OpenError::ForeignBackend`], [`OpenError::Registry`], [`OpenError::Attach`].
    ///
    /// # Safety
    /// The promises of [`Cdev::bound`].
    #[expect(unsafe_code, reason = "UNSAFETY: ids of another iommufd name other address spaces")]
    pub unsafe fn add_bound_device(
        &mut self,
        device: OwnedHandle,
        name: &str,
        id: DeviceId,
    ) -> Result<Device, OpenError> {
        let iommufd = self.handle().ok_or(OpenError::ForeignBackend { name: self.backend.name() })?;
        // SAFETY: the caller promises the same.
        let cdev = unsafe { Cdev::bound(device, name, iommufd, id) };
        self.add_cdev(Arc::new(cdev))
    }

    /// Attaches a device that another crate opened, or a group that is attached already
    /// ([`AttachedElsewhere`](dmaspace_core::contract::AttachedElsewhere)), and returns the change of the windows.
    ///
    /// # Errors
    /// [`OpenError::Attach`].
    pub fn attach(&self, device: Arc<dyn Attachable>) -> Result<WindowChange, OpenError> {
        Ok(self.space.attach(device)?)
    }

    /// Detaches a device that [`OpenSpace::attach`] attached, or that was [left attached](OpenSpace::left_attached),
    /// and returns the change of the windows.
    ///
    /// # Errors
    /// [`OpenError::Attach`].
    pub fn detach(&self, device: &Arc<dyn Attachable>) -> Result<WindowChange, OpenError> {
        Ok(self.space.detach(device)?)
    }

    /// Detaches a device and closes it, and its group with it unless another device of the group is open. Returns the
    /// change of the windows; `None` when the group had to stay because another device of it, or a mapped part of this
    /// one, is still open.
    ///
    /// # Errors
    /// [`OpenError::Attach`]. A device or group that is still attached then is closed as far as possible, and [left
    /// attached](OpenSpace::left_attached).
    pub fn remove(&mut self, device: Device) -> Result<Option<WindowChange>, OpenError> {
        if let Some(cdev) = device.cdev() {
            let attached: Arc<dyn Attachable> = cdev.clone();
            return match self.space.detach(&attached) {
                Ok(change) => Ok(Some(change)),
                Err(error) => Err(self.keep_attached(attached, error)),
            };
        }
        let Some(group) = device.group().cloned() else { return Ok(None) };
        drop(device);
        let attached: Arc<dyn Attachable> = group.clone();
        match self.space.detach(&attached) {
            // Only the kernel knows everything that is open.
            Err(error) if error.errno() == Some(Errno::EBUSY) => {
                if !group.has_open_devices() {
                    self.keep_attached(attached, error);
                }
                Ok(None)
            }
            Err(error) => Err(self.keep_attached(attached, error)),
            Ok(change) => {
                self.forget(&group);
                Ok(Some(change))
            }
        }
    }

    /// Tries again to detach the devices and groups that are [left attached](OpenSpace::left_attached).
    ///
    /// # Errors
    /// [`OpenError::Attach`] with the first failure, after all were tried.
    pub fn detach_left(&mut self) -> Result<(), OpenError> {
        let mut detached = Ok(());
        for device in self.left_attached() {
            match self.space.detach(&device) {
                Ok(_) => self.groups.retain(|group| group.name() != device.name()),
                Err(error) => detached = detached.and(Err(error)),
            }
        }
        self.left_attached = self.left_attached();
        Ok(detached?)
    }

    /// Attaches a device that this process opened, and keeps it if it stays attached although that failed.
    fn attach_added(&mut self, device: Arc<dyn Attachable>) -> Result<(), OpenError> {
        match self.space.attach(device.clone()) {
            Ok(_) => Ok(()),
            Err(error) => Err(self.keep_attached(device, error)),
        }
    }

    /// Keeps a device that an error may have left attached.
    fn keep_attached(&mut self, device: Arc<dyn Attachable>, error: Error) -> OpenError {
        self.left_attached.push(device);
        self.left_attached = self.left_attached();
        error.into()
    }

    /// Notes that a group that was left attached has a device again.
    pub(super) fn keep_no_longer(&mut self, name: &str) {
        self.left_attached.retain(|device| device.name() != name);
    }

    pub(super) fn door(&self) -> Result<&Arc<dyn Door>, OpenError> {
        match (&self.opened, self.backend) {
            (Some(opened), _) => Ok(&opened.door),
            (None, backend) => Err(OpenError::ForeignBackend { name: backend.name() }),
        }
    }

    pub(super) fn group(&self, name: &str) -> Option<Arc<VfioGroup>> {
        self.groups.iter().find(|group| group.name() == name).cloned()
    }

    fn is_attached(&self, group: &VfioGroup) -> bool {
        self.space.describe().devices.contains(&group.name())
    }

    fn forget(&mut self, group: &Arc<VfioGroup>) {
        self.groups.retain(|known| !Arc::ptr_eq(known, group));
    }

    /// Detaches a group whose device could not be opened because of `cause`.
    pub(super) fn give_up(&mut self, group: &Arc<VfioGroup>, cause: OpenError) -> OpenError {
        if !self.is_attached(group) {
            self.forget(group);
            return cause;
        }
        let attached: Arc<dyn Attachable> = group.clone();
        let detached = self.space.detach(&attached);
        if !self.is_attached(group) {
            self.forget(group);
        }
        match detached {
            Ok(_) => cause,
            Err(undoing) => OpenError::NotUndone { cause: Box::new(cause), undoing },
        }
    }
}

/// A space on a container that speaks this library's version of VFIO. `backend` owns the container.
fn container_space<B: Backend>(door: &dyn Door, container: Handle, backend: B) -> Result<Arc<Space<B>>, OpenError> {
    let version = door.ask(container, Command::bare(GET_API_VERSION));
    match version.map_err(|failure| OpenError::refused(CONTAINER_NODE, failure))? {
        API_VERSION => Ok(Arc::new(Space::new(backend)?)),
        other => Err(OpenError::Version(other)),
    }
}
