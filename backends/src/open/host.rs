//! Hosts, and opening devices on them.

use std::path::Path;
use std::sync::Arc;

use dmaspace_abi::vfio::SET_IOMMU;
use dmaspace_core::door::{Door, Errno, HandleKind};

use crate::backend_kind::BackendKind;
use crate::choose::{Choice, OpenRequest};
use crate::device::Device;
use crate::facts::{CONTAINER_NODE, Facts, IOMMUFD_NODE};
use crate::linux::LinuxDoor;
use crate::open::{OpenError, OpenSpace, open_node};
use crate::options::OpenOptions;
use crate::pci::PciAddress;
use crate::registry::Registry;

/// A host: its door, its facts, the options for opening spaces, and the registry that is told of groups and devices.
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
    /// A VMM that needs descriptors, for KVM or for interrupts, makes the door first, keeps it and calls
    /// [`Host::new`].
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

    /// Replaces the facts, after devices were plugged or bound to other drivers.
    #[must_use]
    pub fn with_facts(mut self, facts: Facts) -> Self {
        self.facts = facts;
        self
    }

    /// Opens spaces with `options` from now on.
    #[must_use]
    pub fn with_options(mut self, options: OpenOptions) -> Self {
        self.options = options;
        self
    }

    /// Reports every group and device to `registry`, before it is used.
    #[must_use]
    pub fn with_registry(mut self, registry: Arc<dyn Registry>) -> Self {
        self.registry = Some(registry);
        self
    }

    /// The registry that is told of groups and devices.
    pub(crate) fn registry(&self) -> Option<&Arc<dyn Registry>> {
        self.registry.as_ref()
    }

    /// The options for opening spaces.
    pub(crate) fn options(&self) -> &OpenOptions {
        &self.options
    }

    /// The door.
    pub fn door(&self) -> &Arc<dyn Door> {
        &self.door
    }

    /// The facts.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The backend that [`Host::open`] would open for `request`, and why not the others.
    pub fn choose(&self, request: &OpenRequest) -> Choice {
        Choice::of(&self.facts, request)
    }

    /// Opens a space for the devices of `request`, on the backend that [`Host::choose`] prefers, and attaches them.
    ///
    /// Every kernel with the sPAPR module advertises its second version, and refuses it on a platform that cannot
    /// create windows. Unless the request names a backend, the first version is opened then; [`Opened::choice`] says
    /// so.
    ///
    /// # Errors
    /// [`OpenError::NoBackend`] before anything is opened; otherwise the cause, after everything is closed again.
    pub fn open(&self, request: &OpenRequest) -> Result<Opened, OpenError> {
        let choice = self.choose(request);
        let first = choice.chosen;
        match self.open_chosen(request, choice) {
            Ok(opened) => Ok(opened),
            Err(error) => match self.second_choice(request, first, &error) {
                Some(second) => {
                    log::warn!("{error}; trying {second}");
                    self.open_chosen(request, second)
                }
                None => Err(error),
            },
        }
    }

    /// The choice after `error`, if the error says that the kernel lacks an IOMMU driver that it advertises: `EINVAL`
    /// (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_attach_group), or `EPERM` from older kernels.
    fn second_choice(&self, request: &OpenRequest, first: Option<BackendKind>, error: &OpenError) -> Option<Choice> {
        let OpenError::Attach { error } = error else { return None };
        let failure = error.failure()?;
        let is_refused = matches!(failure.errno(), Some(Errno::EINVAL | Errno::EPERM));
        if first != Some(BackendKind::Spapr) || failure.call() != SET_IOMMU.name || !is_refused {
            return None;
        }
        let choice = Choice::after_refusal(&self.facts, request, BackendKind::Spapr, failure);
        if choice.chosen.is_some() { Some(choice) } else { None }
    }

    fn open_chosen(&self, request: &OpenRequest, choice: Choice) -> Result<Opened, OpenError> {
        let Some(backend) = choice.chosen else { return Err(OpenError::NoBackend(choice)) };
        self.fill(self.open_space(backend)?, &request.devices, choice)
    }

    /// Attaches devices to a space. If one of them fails, everything is closed again.
    pub(crate) fn fill(&self, space: OpenSpace, devices: &[PciAddress], choice: Choice) -> Result<Opened, OpenError> {
        let mut opened = Opened { devices: Vec::new(), space, choice };
        for address in devices {
            match opened.space.add(self, *address) {
                Ok(device) => opened.devices.push(device),
                Err(error) => {
                    // The reverse of the order in which they were opened.
                    while opened.devices.pop().is_some() {}
                    return Err(error);
                }
            }
        }
        Ok(opened)
    }

    /// Opens a space without devices.
    ///
    /// # Errors
    /// [`OpenError::NoChoice`], [`OpenError::Node`], [`OpenError::Version`], [`OpenError::Refused`];
    /// [`OpenError::ForeignBackend`] for [`BackendKind::Other`].
    pub fn open_space(&self, backend: BackendKind) -> Result<OpenSpace, OpenError> {
        let (node, kind) = match backend {
            BackendKind::Type1 | BackendKind::Spapr | BackendKind::SpaprV1 => (CONTAINER_NODE, HandleKind::Container),
            BackendKind::Iommufd | BackendKind::Type1OnIommufd => (IOMMUFD_NODE, HandleKind::Iommufd),
            BackendKind::Other(name) => return Err(OpenError::ForeignBackend { name }),
        };
        self.options.check(backend)?;
        let handle = open_node(&self.door, Path::new(node), kind)?;
        let space = OpenSpace::with_options(backend, handle, &self.options)?;
        Ok(self.share_registry(space))
    }

    /// Gives `space` the registry of this host.
    pub(crate) fn share_registry(&self, space: OpenSpace) -> OpenSpace {
        match &self.registry {
            Some(registry) => space.with_registry(registry.clone()),
            None => space,
        }
    }
}

/// Devices, and the space they are attached to.
#[derive(Debug)]
#[non_exhaustive]
pub struct Opened {
    /// The devices, in the order of the request.
    pub devices: Vec<Device>,
    /// The space.
    pub space: OpenSpace,
    /// The reason for its backend.
    pub choice: Choice,
}
