//! Opening: from PCI addresses to a space with its devices attached.
//!
//! [`Host::open`] goes all the way: facts, choice, nodes, attachment. [`OpenSpace`] can also be made of descriptors that somebody
//! else opened (a VMM in a jail is handed its descriptors): adopt them at the door and pass the handles.
//!
//! # Order
//! A group: open its node, tell the registry (KVM), look whether it is viable, let it join the container, open its device. A device
//! with a node of its own: open it, tell the registry, bind and attach it. Everything is owned by what was made of it, so a failure
//! half-way closes what was opened in reverse order, and so does dropping: devices, then the space with its groups and its container.
//! A [`Device`] holds on to its space, hence the order in which a user drops the two does not matter.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dmaspace_abi::vfio::{API_VERSION, GET_API_VERSION, SET_IOMMU};
use dmaspace_core::contract::{Attachable, WindowChange};
use dmaspace_core::door::{Answer, Command, Door, Errno, Failure, Handle, HandleKind, Kernel, OwnedHandle};
use dmaspace_core::error::Kind;
use dmaspace_core::words::reserved::Reserved;
use dmaspace_core::{Backend, Error, PciAddressSpace, Space};
use dmaspace_iommufd::{Cdev, Ioas};
use dmaspace_spapr::{Spapr, SpaprV1};
use dmaspace_type1::Type1;

use crate::choose::{BackendKind, Choice, OpenRequest};
use crate::device::Device;
use crate::facts::{CONTAINER_NODE, Facts, FactsError, IOMMUFD_NODE};
use crate::group::VfioGroup;
use crate::linux::LinuxDoor;
use crate::options::OpenOptions;
use crate::pci::PciAddress;
use crate::registry::{Entry, Registry};

/// A host: its door, what is known about it, and who wants to know what is opened.
#[derive(Clone, Debug)]
pub struct Host {
    door: Arc<dyn Door>,
    facts: Facts,
    registry: Option<Arc<dyn Registry>>,
    options: OpenOptions,
}

impl Host {
    /// The host this process runs on.
    ///
    /// Whoever needs descriptors, for KVM or interrupts, makes the door first and keeps it: [`Host::new`].
    ///
    /// # Errors
    /// [`OpenError::Facts`].
    pub fn this() -> Result<Self, OpenError> {
        let door = Arc::new(LinuxDoor::new());
        let facts = Facts::of_this_host(&*door)?;
        Ok(Self::new(door, facts))
    }

    /// A host behind any door.
    pub fn new(door: Arc<dyn Door>, facts: Facts) -> Self {
        Self { door, facts, registry: None, options: OpenOptions::default() }
    }

    /// The same host after a new look, when devices were plugged or bound to other drivers.
    #[must_use]
    pub fn with_facts(mut self, facts: Facts) -> Self {
        self.facts = facts;
        self
    }

    /// Opens spaces like that from now on.
    #[must_use]
    pub fn with_options(mut self, options: OpenOptions) -> Self {
        self.options = options;
        self
    }

    /// Tells `registry` about every group and device before it is used.
    #[must_use]
    pub fn with_registry(mut self, registry: Arc<dyn Registry>) -> Self {
        self.registry = Some(registry);
        self
    }

    /// Who is told about groups and devices.
    pub(crate) fn registry(&self) -> Option<&Arc<dyn Registry>> {
        self.registry.as_ref()
    }

    /// How it opens spaces.
    pub(crate) fn options(&self) -> &OpenOptions {
        &self.options
    }

    /// The door.
    pub fn door(&self) -> &Arc<dyn Door> {
        &self.door
    }

    /// What is known about it.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Which backend would be opened for `request`, and why not the others.
    pub fn choose(&self, request: &OpenRequest) -> Choice {
        Choice::of(&self.facts, request)
    }

    /// Opens a space for the devices of `request` on the backend that [`Host::choose`] finds best, and attaches them.
    ///
    /// sPAPR's second version is advertised by every kernel that has the module, and refused on platforms that cannot create windows: then
    /// the first version is opened, unless the request names a backend. [`Opened::choice`] says so.
    ///
    /// # Errors
    /// [`OpenError::NoBackend`] before anything is opened; otherwise what went wrong, after everything is closed again.
    pub fn open(&self, request: &OpenRequest) -> Result<Opened, OpenError> {
        let choice = self.choose(request);
        let first = choice.chosen;
        self.open_chosen(request, choice).or_else(|error| {
            let Some(second) = self.second_choice(request, first, &error) else { return Err(error) };
            log::warn!("{error}; taking {second}");
            self.open_chosen(request, second)
        })
    }

    /// What to take after `error`, if that says that the kernel has not what it advertises: `EINVAL` (linux:
    /// drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_attach_group), and `EPERM` in older kernels.
    fn second_choice(&self, request: &OpenRequest, first: Option<BackendKind>, error: &OpenError) -> Option<Choice> {
        let OpenError::Attach { error } = error else { return None };
        let failure = error.failure.filter(|failure| failure.call == SET_IOMMU.name)?;
        let is_refused = matches!(failure.errno(), Some(Errno::EINVAL | Errno::EPERM));
        let backend = first.filter(|backend| *backend == BackendKind::Spapr && is_refused)?;
        Some(Choice::after_refusal(&self.facts, request, backend, failure)).filter(|choice| choice.chosen.is_some())
    }

    fn open_chosen(&self, request: &OpenRequest, choice: Choice) -> Result<Opened, OpenError> {
        let Some(backend) = choice.chosen else { return Err(OpenError::NoBackend(choice)) };
        self.fill(self.open_space(backend)?, &request.devices, choice)
    }

    /// Attaches devices to a space; if one cannot be, all is closed again.
    pub(crate) fn fill(&self, space: OpenSpace, devices: &[PciAddress], choice: Choice) -> Result<Opened, OpenError> {
        let mut opened = Opened { devices: Vec::new(), space, choice };
        for address in devices {
            match opened.space.add(self, *address) {
                Ok(device) => opened.devices.push(device),
                Err(error) => {
                    // Last come, first gone.
                    while opened.devices.pop().is_some() {}
                    return Err(error);
                }
            }
        }
        Ok(opened)
    }

    /// Opens a space without a device.
    ///
    /// # Errors
    /// [`OpenError::NoChoice`], [`OpenError::Node`], [`OpenError::Version`], [`OpenError::Refused`].
    pub fn open_space(&self, backend: BackendKind) -> Result<OpenSpace, OpenError> {
        let (node, kind) = match backend {
            BackendKind::Type1 | BackendKind::Spapr | BackendKind::SpaprV1 => (CONTAINER_NODE, HandleKind::Container),
            BackendKind::Iommufd | BackendKind::Type1OnIommufd => (IOMMUFD_NODE, HandleKind::Iommufd),
        };
        self.options.check(backend)?;
        let handle = open_node(&self.door, Path::new(node), kind)?;
        Ok(self.telling(OpenSpace::opened(backend, handle, &self.options)?))
    }

    /// The same space, telling this host's registry about its devices.
    pub(crate) fn telling(&self, space: OpenSpace) -> OpenSpace {
        OpenSpace { registry: self.registry.clone(), ..space }
    }
}

/// Devices and the space they are attached to.
#[derive(Debug)]
pub struct Opened {
    /// The devices, in the order they were wished for.
    pub devices: Vec<Device>,
    /// The space.
    pub space: OpenSpace,
    /// Why it is on this backend.
    pub choice: Choice,
}

/// A space, and the ways devices get into it.
#[derive(Debug)]
pub struct OpenSpace {
    door: Arc<dyn Door>,
    registry: Option<Arc<dyn Registry>>,
    backend: BackendKind,
    space: Arc<dyn PciAddressSpace>,
    groups: Vec<Arc<VfioGroup>>,
    /// The container or the iommufd. The backend owns it.
    handle: Handle,
}

impl OpenSpace {
    /// Makes a space of `handle`, an open container or iommufd, which is closed with it or on failure. An iommufd that is to be a
    /// container of type1 takes the place of one: [`BackendKind::Type1OnIommufd`].
    ///
    /// # Errors
    /// [`OpenError::Version`], [`OpenError::Refused`].
    pub fn of(backend: BackendKind, handle: OwnedHandle) -> Result<Self, OpenError> {
        Self::opened(backend, handle, &OpenOptions::default())
    }

    fn opened(backend: BackendKind, handle: OwnedHandle, options: &OpenOptions) -> Result<Self, OpenError> {
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
        };
        Ok(Self::around(door, backend, space, name))
    }

    pub(crate) fn around(
        door: Arc<dyn Door>,
        backend: BackendKind,
        space: Arc<dyn PciAddressSpace>,
        handle: Handle,
    ) -> Self {
        Self { door, registry: None, backend, space, groups: Vec::new(), handle }
    }

    pub(crate) fn with_groups(self, groups: Vec<Arc<VfioGroup>>) -> Self {
        Self { groups, ..self }
    }

    /// Its container or iommufd. Who takes the space over needs the descriptor ([`crate::inherited`]).
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// Its groups, in the order they came, where devices are attached by groups.
    pub fn groups(&self) -> &[Arc<VfioGroup>] {
        &self.groups
    }

    /// The space.
    pub fn space(&self) -> &Arc<dyn PciAddressSpace> {
        &self.space
    }

    /// The way it reaches the host's IOMMU.
    pub fn backend(&self) -> BackendKind {
        self.backend
    }

    /// Opens a device by its node or its group's, as the backend wants it, and attaches it. The space's windows may change.
    ///
    /// # Errors
    /// [`OpenError`]; nothing of the device is open then.
    pub fn add(&mut self, host: &Host, address: PciAddress) -> Result<Device, OpenError> {
        let choice = Choice::of(&host.facts, &OpenRequest::device(address).with_backend(self.backend));
        let device = host.facts.devices.get(&address);
        let (Some(device), Some(_)) = (device, choice.chosen) else { return Err(OpenError::NoBackend(choice)) };
        let name = address.to_string();
        match (self.backend, &device.vfio, device.group.and_then(|number| host.facts.groups.get(&number))) {
            (BackendKind::Iommufd, Some(vfio), _) => {
                let node = open_node(&self.door, &vfio.path(), HandleKind::Device)?;
                let reserved = device.group.map(|group| host.facts.reserved(group, &name));
                self.add_node(node, &name, reserved.unwrap_or_default())
            }
            (
                BackendKind::Type1 | BackendKind::Type1OnIommufd | BackendKind::Spapr | BackendKind::SpaprV1,
                _,
                Some(group),
            ) => {
                let group_name = format!("group {}", group.number);
                if let Some(member) = self.group(&group_name) {
                    return self.open_device(&member, &name);
                }
                let node = open_node(&self.door, &group.path(), HandleKind::Group)?;
                let member = self.join(node, &group_name, host.facts.reserved(group.number, &group_name))?;
                self.open_device(&member, &name).map_err(|error| self.give_up(&member, error))
            }
            // The choice saw to it that there is one.
            _ => Err(OpenError::NoBackend(choice)),
        }
    }

    /// Attaches an open group, which is closed with the space or on failure. `name` stands for it in errors. To an iommufd in a
    /// container's place it is attached with its first device.
    ///
    /// # Errors
    /// [`OpenError::Registry`], [`OpenError::NotViable`], [`OpenError::Attach`].
    pub fn add_group(&mut self, group: OwnedHandle, name: &str) -> Result<Arc<VfioGroup>, OpenError> {
        self.join(group, name, Vec::new())
    }

    fn join(&mut self, group: OwnedHandle, name: &str, reserved: Vec<Reserved>) -> Result<Arc<VfioGroup>, OpenError> {
        let mut member = VfioGroup::new(group, name, self.backend).reserving(reserved);
        if let Some(registry) = &self.registry {
            let registered = member.registered_in(registry.clone());
            member = registered.map_err(|errno| OpenError::Registry { subject: name.to_owned(), errno })?;
        }
        if !member.is_viable().map_err(|failure| OpenError::refused(name, failure))? {
            return Err(OpenError::NotViable { group: name.to_owned() });
        }
        let member = Arc::new(member);
        if self.backend != BackendKind::Type1OnIommufd {
            self.space.attach(member.clone())?;
        }
        self.groups.push(member.clone());
        Ok(member)
    }

    /// Opens a device of an attached group, by the name sysfs has for it.
    ///
    /// # Errors
    /// [`OpenError::Refused`]; where an iommufd is in the container's place, [`OpenError::Attach`].
    pub fn open_device(&self, group: &Arc<VfioGroup>, name: &str) -> Result<Device, OpenError> {
        if self.backend == BackendKind::Type1OnIommufd && !self.is_attached(group) {
            group.come_with(name);
            self.space.attach(group.clone())?;
        }
        let device = group.open_device(name).map_err(|failure| OpenError::refused(name, failure))?;
        Ok(device.holding(self.space.clone()))
    }

    /// Attaches an open device with a node of its own, which is closed with the space or on failure. `name` stands for it in errors.
    ///
    /// # Errors
    /// [`OpenError::Registry`], [`OpenError::Attach`].
    pub fn add_device(&mut self, device: OwnedHandle, name: &str) -> Result<Device, OpenError> {
        self.add_node(device, name, Vec::new())
    }

    fn add_node(&mut self, device: OwnedHandle, name: &str, reserved: Vec<Reserved>) -> Result<Device, OpenError> {
        let cdev = Arc::new(Cdev::new(device, name).reserving(reserved));
        let entry = self.registry.clone().map(|registry| Entry::new(registry, cdev.device())).transpose();
        let entry = entry.map_err(|errno| OpenError::Registry { subject: name.to_owned(), errno })?;
        let device = Device::of_node(self.door.clone(), name, cdev.clone(), entry);
        self.space.attach(cdev)?;
        Ok(device.holding(self.space.clone()))
    }

    /// Detaches a device and closes it, and its group with it if no other device of the group is open. Says how that changed the
    /// windows; `None` when the group had to stay, because another device of it, or a mapped part of this one, is still open.
    ///
    /// # Errors
    /// [`OpenError::Attach`] with what the space or the kernel says to the detach; what is still attached goes with the space then.
    pub fn remove(&mut self, device: Device) -> Result<Option<WindowChange>, OpenError> {
        if let Some(cdev) = device.cdev() {
            let attached: Arc<dyn Attachable> = cdev.clone();
            return Ok(Some(self.space.detach(&attached)?));
        }
        let Some(group) = device.group().cloned() else { return Ok(None) };
        drop(device);
        let attached: Arc<dyn Attachable> = group.clone();
        match self.space.detach(&attached) {
            // The kernel knows best what is open.
            Err(error) if error.errno() == Some(Errno::EBUSY) => Ok(None),
            Err(error) => Err(error.into()),
            Ok(change) => {
                self.groups.retain(|member| !Arc::ptr_eq(member, &group));
                Ok(Some(change))
            }
        }
    }

    fn group(&self, name: &str) -> Option<Arc<VfioGroup>> {
        self.groups.iter().find(|group| group.name() == name).cloned()
    }

    fn is_attached(&self, group: &VfioGroup) -> bool {
        self.space.devices().contains(&group.name())
    }

    /// Detaches a group whose device could not be opened for `cause`.
    fn give_up(&mut self, group: &Arc<VfioGroup>, cause: OpenError) -> OpenError {
        if !self.is_attached(group) {
            self.groups.retain(|member| !Arc::ptr_eq(member, group));
            return cause;
        }
        let attached: Arc<dyn Attachable> = group.clone();
        let detached = self.space.detach(&attached);
        if !self.is_attached(group) {
            self.groups.retain(|member| !Arc::ptr_eq(member, group));
        }
        match detached {
            Ok(_) => cause,
            Err(undoing) => OpenError::NotUndone { cause: Box::new(cause), undoing },
        }
    }
}

/// A space on a container, if it speaks our version of VFIO. `backend` owns the container.
fn container_space<B: Backend>(door: &dyn Door, container: Handle, backend: B) -> Result<Arc<Space<B>>, OpenError> {
    let version = door.ask(container, Command::bare(GET_API_VERSION));
    match version.map_err(|failure| OpenError::refused(CONTAINER_NODE, failure))? {
        API_VERSION => Ok(Arc::new(Space::new(backend)?)),
        other => Err(OpenError::Version(other)),
    }
}

pub(crate) fn open_node(door: &Arc<dyn Door>, path: &Path, kind: HandleKind) -> Result<OwnedHandle, OpenError> {
    OwnedHandle::open(door.clone(), path, kind).map_err(|errno| OpenError::Node { path: path.to_owned(), errno })
}

/// Something could not be opened or attached. Everything that had been opened for it is closed again, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host could not be looked at.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// No backend will do; the choice says why not, and what to do.
    #[error("{0}")]
    NoBackend(Choice),
    /// The backend does not do what the options ask for, and leaves no choice.
    #[error("{backend} {why}")]
    NoChoice {
        /// The backend.
        backend: BackendKind,
        /// What it does instead.
        why: &'static str,
    },
    /// A node could not be opened.
    #[error("open {path}: {errno}{fix}", path = .path.display(), fix = Fix(node_advice(*.errno)))]
    Node {
        /// The node.
        path: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },
    /// The kernel speaks another version of VFIO.
    #[error("{CONTAINER_NODE} speaks version {0} of VFIO, and this library {API_VERSION}")]
    Version(i32),
    /// A driver of the host holds on to the DMA of the group.
    #[error("{group} is not viable: a driver of the host is bound to one of its devices; bind all of them to vfio-pci")]
    NotViable {
        /// The group.
        group: String,
    },
    /// The group is in no container: nothing was handed over with it.
    #[error("{group} is in no container; pass on the descriptor of the process that has it in one")]
    NotInherited {
        /// The group.
        group: String,
    },
    /// The registry refused a group or device.
    #[error("{subject} could not be registered: {errno}")]
    Registry {
        /// The group or device.
        subject: String,
        /// What the registry said.
        errno: Errno,
    },
    /// The kernel refused a call.
    #[error("{subject}: {failure}{fix}", fix = Fix(call_advice(.failure)))]
    Refused {
        /// What the call was about.
        subject: String,
        /// What the kernel said.
        failure: Failure,
    },
    /// A device or group could not be attached or detached.
    #[error("{error}{fix}", fix = Fix(attach_advice(.error)))]
    Attach {
        /// What the space said.
        #[from]
        error: Error,
    },
    /// Something failed, and the group that had been attached for it could not be detached again without loss: it stays, and goes with the
    /// space, unless the error names what was lost when it went.
    #[error("{cause}; and then: {undoing}")]
    NotUndone {
        /// What failed first.
        cause: Box<OpenError>,
        /// What the space said to the detach.
        undoing: Error,
    },
}

impl OpenError {
    pub(crate) fn refused(subject: impl Into<String>, failure: Failure) -> Self {
        Self::Refused { subject: subject.into(), failure }
    }
}

/// Advice at the end of a message, when there is some.
struct Fix(Option<&'static str>);

impl std::fmt::Display for Fix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

fn node_advice(errno: Errno) -> Option<&'static str> {
    Some(match errno {
        Errno::ENOENT => "bind the device to vfio-pci, which makes the node; /dev/iommu comes with the module iommufd",
        Errno::ENODEV | Errno::ENXIO => "the module behind the node is not loaded",
        Errno::EACCES | Errno::EPERM => "give this user the node, with chown or a udev rule",
        Errno::EBUSY => "another process, or another space of this one, has it open",
        Errno::EMFILE => "raise RLIMIT_NOFILE",
        _ => return None,
    })
}

/// What the space could not know: why the kernel refuses to attach.
fn attach_advice(error: &Error) -> Option<&'static str> {
    if error.kind == Kind::Refused { call_advice(error.failure.as_ref()?) } else { None }
}

fn call_advice(failure: &Failure) -> Option<&'static str> {
    let Answer::Errno(errno) = failure.answer else { return None };
    Some(match (failure.call, errno) {
        ("VFIO_GROUP_SET_CONTAINER" | "VFIO_GROUP_GET_DEVICE_FD", Errno::EPERM) => {
            "bind all devices of the group to vfio-pci"
        }
        ("VFIO_GROUP_SET_CONTAINER", Errno::EBUSY) => {
            "give the group a container of its own: one of spapr-v1 takes no second"
        }
        ("VFIO_SET_IOMMU", Errno::ENODEV) => "modprobe vfio_iommu_type1, or on POWER vfio_iommu_spapr_tce",
        ("VFIO_SET_IOMMU", Errno::EPERM) => {
            "interrupts are not isolated here; if you trust the guest, load vfio_iommu_type1 with allow_unsafe_interrupts=1"
        }
        ("VFIO_DEVICE_BIND_IOMMUFD", Errno::EPERM) => {
            "bind all devices of the group to vfio-pci; if interrupts are not isolated here and you trust the guest, load iommufd \
             with allow_unsafe_interrupts=1"
        }
        ("VFIO_DEVICE_BIND_IOMMUFD", Errno::EBUSY) => "somebody has the device's group open",
        ("VFIO_DEVICE_BIND_IOMMUFD", Errno::EINVAL) => {
            "another process, or another space of this one, has the device open"
        }
        ("VFIO_DEVICE_ATTACH_IOMMUFD_PT" | "VFIO_GROUP_GET_DEVICE_FD", Errno::EADDRINUSE) => {
            "unmap what lies in the device's reserved regions first, and promise none of them"
        }
        ("IOMMU_OPTION", Errno::EPERM) => "grant CAP_SYS_RESOURCE, or let the user be charged",
        ("IOMMU_OPTION", Errno::EBUSY) => "who is charged is settled with the first object: ask right after opening",
        ("IOMMU_OPTION", Errno::EOPNOTSUPP) => "this kernel's iommufd has no such option",
        ("IOMMU_IOAS_ALLOW_IOVAS", Errno::EINVAL) => "promise ranges that share no byte and are longer than one",
        ("IOMMU_IOAS_ALLOW_IOVAS", Errno::EADDRINUSE) => {
            "a device that is attached does not reach all of it: promise less"
        }
        ("VFIO_GROUP_GET_DEVICE_FD", Errno::ENODEV) => "look whether the device is still bound to vfio-pci",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use dmaspace_core::PageSize;

    use super::*;
    use crate::facts::{IommuGroup, IommuTypes, Limits, Nodes, PciDevice, Platform, VfioDevice};
    use crate::scripted::{Scripted, ScriptedRegistry};

    fn address(text: &str) -> PciAddress {
        text.parse().expect("an address of the test")
    }

    /// Devices 3.0 and 3.1 in group 7, bound to vfio-pci.
    fn facts() -> Facts {
        let device = |text: &str, name: &str| PciDevice {
            address: address(text),
            vendor: 0x1234,
            device: 0x11e8,
            class: 0xff00,
            driver: Some("vfio-pci".to_owned()),
            group: Some(7),
            vfio: Some(VfioDevice { name: name.to_owned(), node: true }),
        };
        let devices = [device("00:03.0", "vfio0"), device("00:03.1", "vfio1")];
        let members = devices.iter().map(|device| device.address.to_string()).collect();
        let group = IommuGroup { number: 7, noiommu: false, node: true, members, reserved: Vec::new() };
        Facts {
            platform: Platform::X86_64,
            kernel: String::new(),
            host_page: PageSize::K4,
            limits: Limits::default(),
            nodes: Nodes { container: true, iommufd: true, kvm: true },
            modules: BTreeSet::new(),
            iommu_types: Some(IommuTypes { type1: true, ..IommuTypes::default() }),
            groups: BTreeMap::from([(7, group)]),
            devices: devices.into_iter().map(|device| (device.address, device)).collect(),
        }
    }

    fn host(door: &Arc<Scripted>) -> Host {
        Host::new(door.clone(), facts()).with_registry(Arc::new(ScriptedRegistry(door.clone())))
    }

    fn both(backend: BackendKind) -> OpenRequest {
        OpenRequest::device(address("00:03.0")).with_device(address("00:03.1")).with_backend(backend)
    }

    #[test]
    fn a_group_goes_from_node_to_device_and_back() {
        let door = Scripted::new();
        let opened = host(&door).open(&both(BackendKind::Type1)).expect("nothing fails");
        assert_eq!(
            door.calls(),
            [
                "open /dev/vfio/vfio",
                "VFIO_GET_API_VERSION",
                "open /dev/vfio/7",
                "register /dev/vfio/7",
                "VFIO_GROUP_GET_STATUS",
                "VFIO_GROUP_GET_STATUS",
                "VFIO_GROUP_SET_CONTAINER",
                "VFIO_IOMMU_GET_INFO",
                "VFIO_SET_IOMMU 3",
                "VFIO_IOMMU_GET_INFO",
                "VFIO_GROUP_GET_DEVICE_FD 0000:00:03.0",
                "VFIO_GROUP_GET_DEVICE_FD 0000:00:03.1",
            ]
        );
        drop(opened);
        assert_eq!(
            door.calls(),
            [
                "close 0000:00:03.0",
                "close 0000:00:03.1",
                "VFIO_GROUP_UNSET_CONTAINER",
                "close /dev/vfio/vfio",
                "unregister /dev/vfio/7",
                "close /dev/vfio/7",
            ]
        );
    }

    #[test]
    fn a_device_with_a_node_goes_from_node_to_address_space_and_back() {
        let door = Scripted::new();
        let opened = host(&door).open(&OpenRequest::device(address("00:03.0"))).expect("nothing fails");
        let calls = door.calls();
        let device: Vec<_> = calls.iter().skip_while(|call| !call.contains("vfio0")).map(String::as_str).collect();
        assert_eq!(
            device[..5],
            [
                "open /dev/vfio/devices/vfio0",
                "register /dev/vfio/devices/vfio0",
                "VFIO_DEVICE_BIND_IOMMUFD",
                "IOMMU_GET_HW_INFO",
                "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
            ]
        );
        drop(opened);
        assert_eq!(
            door.calls(),
            [
                "unregister /dev/vfio/devices/vfio0",
                "VFIO_DEVICE_DETACH_IOMMUFD_PT",
                "close /dev/vfio/devices/vfio0",
                "IOMMU_DESTROY",
                "close /dev/iommu",
            ]
        );
    }

    #[test]
    fn whatever_fails_nothing_stays_open() {
        for backend in [BackendKind::Type1, BackendKind::Iommufd] {
            let calls = {
                let door = Scripted::new();
                let opened = host(&door).open(&both(backend)).expect("nothing fails");
                drop(opened);
                door.calls().len()
            };
            for n in 0..calls {
                let door = Scripted::failing_at(n);
                drop(host(&door).open(&both(backend)));
                assert_eq!(
                    door.open_names(),
                    Vec::<String>::new(),
                    "{backend}: call {n} of {calls} failed: {:?}",
                    door.calls()
                );
            }
        }
    }

    #[test]
    fn a_device_outlives_the_space_it_was_opened_into() {
        let door = Scripted::new();
        let Opened { mut devices, space, .. } = host(&door).open(&both(BackendKind::Type1)).expect("nothing fails");
        drop(space);
        devices.pop();
        assert!(door.open_names().contains(&"/dev/vfio/vfio".to_owned()));
        drop(devices);
        assert_eq!(door.open_names(), Vec::<String>::new());
    }

    #[test]
    fn the_last_device_of_a_group_takes_it_along() {
        let door = Scripted::new();
        let Opened { mut devices, mut space, .. } = host(&door).open(&both(BackendKind::Type1)).expect("nothing fails");
        let (second, first) = (devices.pop().expect("the second"), devices.pop().expect("the first"));
        assert_eq!(space.remove(first).expect("nothing fails"), None);
        let change = space.remove(second).expect("nothing fails").expect("the group left");
        assert!(change.after.windows.is_empty());
        assert_eq!(door.open_names(), ["/dev/vfio/vfio"]);
        space.add(&host(&door), address("00:03.0")).expect("and can come back");
    }

    #[test]
    fn a_device_with_a_node_is_detached_and_closed() {
        let door = Scripted::new();
        let Opened { mut devices, mut space, .. } =
            host(&door).open(&both(BackendKind::Iommufd)).expect("nothing fails");
        let second = devices.pop().expect("the second");
        assert!(space.remove(second).expect("nothing fails").is_some());
        assert!(!door.open_names().contains(&"/dev/vfio/devices/vfio1".to_owned()));
    }

    #[test]
    fn what_will_not_do_is_refused_before_anything_is_opened() {
        let door = Scripted::new();
        let error = host(&door).open(&OpenRequest::device(address("00:04.0"))).expect_err("there is no such device");
        assert!(error.to_string().contains("there is no device 0000:00:04.0"), "{error}");
        assert_eq!(door.calls(), Vec::<String>::new());
    }

    #[test]
    fn errors_say_what_to_do() {
        let message = |call: &str, errno, backend| {
            let door = Scripted::new();
            door.refuse(call, errno);
            host(&door).open(&both(backend)).expect_err("refused").to_string()
        };
        let busy = message("open /dev/vfio/7", Errno::EBUSY, BackendKind::Type1);
        assert_eq!(busy, "open /dev/vfio/7: EBUSY; another process, or another space of this one, has it open");
        let interrupts = message("VFIO_DEVICE_BIND_IOMMUFD", Errno::EPERM, BackendKind::Iommufd);
        assert!(
            interrupts.starts_with("attach 0000:00:03.0: ") && interrupts.contains("allow_unsafe_interrupts"),
            "{interrupts}"
        );
        let registry = message("register /dev/vfio/7", Errno::ENOMEM, BackendKind::Type1);
        assert_eq!(registry, "group 7 could not be registered: ENOMEM");
    }

    #[test]
    fn a_type1_group_given_to_iommufd_is_refused_by_its_space() {
        let door = Scripted::new();
        let open = |path, kind| OwnedHandle::open(door.clone(), Path::new(path), kind).expect("opens");
        let (iommufd, group) = (open(IOMMUFD_NODE, HandleKind::Iommufd), open("/dev/vfio/7", HandleKind::Group));
        let mut space = OpenSpace::of(BackendKind::Iommufd, iommufd).expect("nothing fails");
        let error = space.add_group(group, "group 7").expect_err("it has no containers");
        assert!(matches!(error, OpenError::Attach { .. }), "{error}");
        assert_eq!(door.open_names(), [IOMMUFD_NODE]);
    }
}
