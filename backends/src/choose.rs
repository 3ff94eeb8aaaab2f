//! The choice of a backend: a pure function of the facts of a host and a request.
//!
//! A [`Choice`] gives the reason for the chosen backend. For every other backend it lists the obstacles, each with its
//! remedy, so that a user whose device does not pass through need not guess.
//!
//! # Preference
//! On POWER there is sPAPR TCE and nothing else (linux: drivers/vfio/Kconfig, VFIO_DEVICE_CDEV depends on
//! !SPAPR_TCE_IOMMU): its second version or, where the kernel refuses that, the first, which has one window below
//! 4 GiB.
//!
//! Elsewhere iommufd comes first, if the kernel has it and every device has a node of its own: it pins a page once
//! however often it is mapped, unmaps exactly the ranges that were mapped, and is the interface that the kernel
//! develops further. type1 comes next; every kernel has it. It can map another device's BAR on any kernel, which
//! iommufd can only since Linux 6.19, so a VMM whose devices must reach each other may have to ask for it by name.
//! iommufd in place of a container comes last, for a kernel that has neither containers nor nodes for devices.

use std::fmt;

use dmaspace_core::door::Failure;
use dmaspace_core::words::reserved::Why;

use crate::facts::{CONTAINER_NODE, Facts, IOMMUFD_NODE, IommuGroup, PciDevice, Platform};
use crate::pci::PciAddress;

mod obstacle;
#[cfg(test)]
mod tests;

pub use crate::backend_kind::BackendKind;
pub use obstacle::Obstacle;

/// The devices to open into one space, and the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenRequest {
    /// The devices that are to share one address space.
    pub devices: Vec<PciAddress>,
    /// The backend. `None` leaves it to the preference.
    pub backend: Option<BackendKind>,
}

impl OpenRequest {
    /// Requests one device, on the preferred backend.
    pub fn device(address: PciAddress) -> Self {
        Self::devices([address])
    }

    /// Requests several devices in one address space, on the preferred backend.
    pub fn devices(devices: impl IntoIterator<Item = PciAddress>) -> Self {
        Self { devices: devices.into_iter().collect(), backend: None }
    }

    /// Adds a device in the same address space.
    #[must_use]
    pub fn with_device(mut self, address: PciAddress) -> Self {
        self.devices.push(address);
        self
    }

    /// Requests one backend and no other.
    #[must_use]
    pub fn with_backend(mut self, backend: BackendKind) -> Self {
        self.backend = Some(backend);
        self
    }
}

/// The chosen backend, and the obstacles of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Choice {
    /// The chosen backend, if one fits.
    pub chosen: Option<BackendKind>,
    /// The other backends in the order of preference, each with all of its obstacles. [`BackendKind::Type1OnIommufd`]
    /// is listed only if it was requested: its obstacles are those of the other backends.
    pub rejected: Vec<(BackendKind, Vec<Obstacle>)>,
}

/// A backend that the kernel refused, with its answer.
type Refusal = (BackendKind, Failure);

impl Choice {
    /// Chooses a backend for `request`.
    pub fn of(facts: &Facts, request: &OpenRequest) -> Self {
        Self::of_remaining(facts, request, None)
    }

    /// Chooses again after the kernel refused `backend`, which had been chosen.
    pub(crate) fn after_refusal(facts: &Facts, request: &OpenRequest, backend: BackendKind, failure: Failure) -> Self {
        Self::of_remaining(facts, request, Some((backend, failure)))
    }

    fn of_remaining(facts: &Facts, request: &OpenRequest, refused: Option<Refusal>) -> Self {
        let candidates = BackendKind::ALL.map(|backend| (backend, all_obstacles(backend, facts, request, refused)));
        let eligible =
            candidates.iter().find(|(backend, obstacles)| is_wanted(*backend, request) && obstacles.is_empty());
        let chosen = eligible.map(|(backend, _)| *backend);
        let mut rejected = Vec::new();
        for (backend, obstacles) in candidates {
            if Some(backend) != chosen && is_listed(backend, request) {
                rejected.push((backend, or_unwanted(obstacles, request, chosen)));
            }
        }
        if let Some(BackendKind::Other(name)) = request.backend {
            rejected.push((BackendKind::Other(name), vec![Obstacle::Foreign(name)]));
        }
        Self { chosen, rejected }
    }

    /// The reason for the chosen backend.
    pub fn reason(&self) -> Option<&'static str> {
        Some(match self.chosen? {
            _ if self.has(|obstacle| matches!(obstacle, Obstacle::AskedForAnother(_))) => "it was requested by name",
            _ if self.has(|obstacle| matches!(obstacle, Obstacle::Refused(_))) => "the kernel refused a better one",
            BackendKind::Spapr => "POWER's IOMMU is driven through it alone",
            BackendKind::Iommufd => "it pins each page once, and the kernel has it",
            BackendKind::SpaprV1 | BackendKind::Type1 => "it is the one this host can use",
            BackendKind::Type1OnIommufd => "the kernel has no containers, and devices have no nodes of their own",
            BackendKind::Other(_) => return None,
        })
    }

    fn has(&self, is: fn(&Obstacle) -> bool) -> bool {
        self.rejected.iter().flat_map(|(_, obstacles)| obstacles).any(is)
    }
}

fn is_wanted(backend: BackendKind, request: &OpenRequest) -> bool {
    request.backend.is_none_or(|asked| asked == backend)
}

fn is_listed(backend: BackendKind, request: &OpenRequest) -> bool {
    backend != BackendKind::Type1OnIommufd || request.backend == Some(backend)
}

/// The obstacles of a backend that was not chosen. A backend without any was not wanted.
fn or_unwanted(obstacles: Vec<Obstacle>, request: &OpenRequest, chosen: Option<BackendKind>) -> Vec<Obstacle> {
    match (request.backend, chosen) {
        _ if !obstacles.is_empty() => obstacles,
        (Some(asked), _) => vec![Obstacle::AskedForAnother(asked)],
        (None, Some(better)) => vec![Obstacle::Better(better)],
        (None, None) => {
            debug_assert!(false, "a backend without obstacles was not chosen");
            obstacles
        }
    }
}

fn all_obstacles(
    backend: BackendKind,
    facts: &Facts,
    request: &OpenRequest,
    refused: Option<Refusal>,
) -> Vec<Obstacle> {
    let mut found = obstacles(backend, facts, request);
    match refused {
        Some((refused, failure)) if refused == backend => found.push(Obstacle::Refused(failure)),
        _ => {}
    }
    found
}

/// The obstacles in the facts.
fn obstacles(backend: BackendKind, facts: &Facts, request: &OpenRequest) -> Vec<Obstacle> {
    if facts.platform.is_power() != backend.is_of_power() {
        return vec![Obstacle::Platform(facts.platform.clone())];
    }
    let mut found = obstacles_of_kernel(backend, facts);
    for address in &request.devices {
        for obstacle in obstacles_of_device(backend, facts, *address) {
            // Devices of one group have their neighbours in common.
            if !found.contains(&obstacle) {
                found.push(obstacle);
            }
        }
    }
    found.extend(obstacle_of_groups(backend, facts, request));
    found
}

/// The nodes and IOMMU drivers that the kernel lacks.
fn obstacles_of_kernel(backend: BackendKind, facts: &Facts) -> Vec<Obstacle> {
    let (driver, answers) = match backend {
        BackendKind::Iommufd | BackendKind::Type1OnIommufd => {
            let missing = Obstacle::NoNode { path: IOMMUFD_NODE, module: "iommufd" };
            return if facts.nodes.iommufd { Vec::new() } else { vec![missing] };
        }
        BackendKind::Type1 => ("vfio_iommu_type1", facts.iommu_types.map(|types| types.type1)),
        BackendKind::Spapr => ("vfio_iommu_spapr_tce", facts.iommu_types.map(|types| types.spapr_v2)),
        BackendKind::SpaprV1 => ("vfio_iommu_spapr_tce", facts.iommu_types.map(|types| types.spapr)),
        BackendKind::Other(name) => return vec![Obstacle::Foreign(name)],
    };
    match (facts.nodes.container, answers) {
        (false, _) => vec![Obstacle::NoNode { path: CONTAINER_NODE, module: "vfio-pci" }],
        (true, Some(false)) => vec![Obstacle::NoDriver(driver)],
        // The container could not be opened to ask it. Opening the space will report the cause.
        (true, Some(true) | None) => Vec::new(),
    }
}

fn obstacles_of_device(backend: BackendKind, facts: &Facts, address: PciAddress) -> Vec<Obstacle> {
    let Some(device) = facts.devices.get(&address) else { return vec![Obstacle::NoDevice(address)] };
    let Some(group) = device.group.and_then(|number| facts.groups.get(&number)) else {
        return vec![Obstacle::NoGroup(address, facts.platform.clone())];
    };
    if group.noiommu {
        return vec![Obstacle::NoIommu(address)];
    }
    let mut found = neighbours(facts, group, device);
    found.extend(direct_regions(group));
    found.extend(missing_node(backend, group, device));
    found
}

/// The regions of a group that the firmware needs. Relaxable ones are no obstacle.
fn direct_regions(group: &IommuGroup) -> impl Iterator<Item = Obstacle> + '_ {
    let direct = group.reserved.iter().filter(|region| Why::of(&region.kind) == Why::Direct);
    direct.map(|region| Obstacle::Firmware { group: group.number, range: region.range })
}

/// The missing node, if the device cannot be opened the way the backend needs.
fn missing_node(backend: BackendKind, group: &IommuGroup, device: &PciDevice) -> Option<Obstacle> {
    if !device.is_with_vfio() {
        return Some(Obstacle::Unbound(device.address, device.driver.clone()));
    }
    let has_node = device.vfio.as_ref().is_some_and(|vfio| vfio.node);
    match backend {
        BackendKind::Iommufd if !has_node => Some(Obstacle::NoDeviceNode(device.address)),
        BackendKind::Iommufd => None,
        _ if !group.node => Some(Obstacle::NoGroupNode(group.number)),
        _ => None,
    }
}

/// The other devices of a group whose drivers use its DMA.
fn neighbours(facts: &Facts, group: &IommuGroup, device: &PciDevice) -> Vec<Obstacle> {
    let mut found = Vec::new();
    for name in &group.members {
        // Members that are no PCI functions, or that the facts do not have, do no DMA of their own.
        let Some(other) = name.parse().ok().and_then(|address| facts.devices.get(&address)) else { continue };
        if other.address == device.address || other.is_with_vfio() || other.is_bridge() {
            continue;
        }
        match &other.driver {
            Some(driver) if driver != HARMLESS => {
                found.push(Obstacle::Neighbour { group: group.number, device: other.address, driver: driver.clone() })
            }
            _ => {}
        }
    }
    found
}

/// The driver that does nothing, DMA included (linux: drivers/pci/pci-stub.c, driver_managed_dma).
const HARMLESS: &str = "pci-stub";

/// The obstacle of several groups, where an address space takes one.
fn obstacle_of_groups(backend: BackendKind, facts: &Facts, request: &OpenRequest) -> Option<Obstacle> {
    let devices = request.devices.iter().filter_map(|address| facts.devices.get(address));
    let mut groups: Vec<_> = devices.filter_map(|device| device.group).collect();
    groups.sort_unstable();
    groups.dedup();
    let takes_one = facts.platform == Platform::Pseries || backend == BackendKind::SpaprV1;
    if takes_one && groups.len() > 1 { Some(Obstacle::SeveralGroups(groups)) } else { None }
}

/// The choice in lines for people: the backend and its reason, then the obstacles of the others.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.chosen, self.reason()) {
            (Some(chosen), Some(reason)) => write!(f, "{chosen}: {reason}")?,
            _ => write!(f, "no backend fits")?,
        }
        for (backend, obstacles) in &self.rejected {
            for obstacle in obstacles {
                write!(f, "\nnot {backend}: {obstacle}; fix: {}", obstacle.fix())?;
            }
        }
        Ok(())
    }
}
