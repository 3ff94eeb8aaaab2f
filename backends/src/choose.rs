//! Which backend: a pure function of what the host offers and what somebody wishes.
//!
//! The answer says why, and for every backend that was not chosen why not and what to do about it, so that a user with a device that
//! does not pass through need not guess.
//!
//! # What is preferred
//! On POWER there is sPAPR TCE and nothing else (linux: drivers/vfio/Kconfig, VFIO_DEVICE_CDEV depends on !SPAPR_TCE_IOMMU): its second
//! version, and where that cannot be had the first, which has one window below 4 GiB. Elsewhere iommufd, when the kernel has it and
//! every device has a node of its own: it pins a page once however often it is mapped, unmaps exactly what was mapped, and is where the
//! kernel's development goes. Else type1, which is everywhere, and which those ask for by name who want devices to reach each other's
//! BARs: iommufd pins what it maps, and a BAR cannot be pinned. Last, for the kernel that has neither containers nor nodes for devices,
//! iommufd in a container's place.

use std::fmt;

use dmaspace_core::door::Failure;

use crate::facts::{CONTAINER_NODE, Facts, IOMMUFD_NODE, IommuGroup, PciDevice, Platform};
use crate::pci::PciAddress;

/// A way to a host's IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendKind {
    /// POWER's TCE tables, through a VFIO container ([`dmaspace_spapr`]).
    Spapr,
    /// The older way to them, with one window that is there already ([`dmaspace_spapr::SpaprV1`]).
    SpaprV1,
    /// An address space of `/dev/iommu` ([`dmaspace_iommufd`]).
    Iommufd,
    /// A VFIO container of type1 ([`dmaspace_type1`]).
    Type1,
    /// `/dev/iommu` in the place of such a container: type1's calls, iommufd's way of pinning. For kernels that have neither containers nor
    /// nodes for devices, and for VMMs that are handed such a descriptor.
    Type1OnIommufd,
}

impl BackendKind {
    /// All there are, best first.
    pub const ALL: [Self; 5] = [Self::Spapr, Self::SpaprV1, Self::Iommufd, Self::Type1, Self::Type1OnIommufd];

    /// Whether it is one of POWER's.
    pub fn is_of_power(self) -> bool {
        matches!(self, Self::Spapr | Self::SpaprV1)
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spapr => "spapr",
            Self::SpaprV1 => "spapr-v1",
            Self::Iommufd => "iommufd",
            Self::Type1 => "type1",
            Self::Type1OnIommufd => "type1-on-iommufd",
        })
    }
}

/// What somebody wishes for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRequest {
    /// The devices that are to share one address space.
    pub devices: Vec<PciAddress>,
    /// The backend; `None`: the best one.
    pub backend: Option<BackendKind>,
}

impl OpenRequest {
    /// One device, on the best backend.
    pub fn device(address: PciAddress) -> Self {
        Self { devices: vec![address], backend: None }
    }

    /// Another device in the same address space.
    #[must_use]
    pub fn with_device(mut self, address: PciAddress) -> Self {
        self.devices.push(address);
        self
    }

    /// That backend and no other.
    #[must_use]
    pub fn with_backend(mut self, backend: BackendKind) -> Self {
        self.backend = Some(backend);
        self
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The backend, if one will do.
    pub chosen: Option<BackendKind>,
    /// Those that were not chosen, best first, with everything that stood against each. iommufd in a container's place is a word only to
    /// whoever asked for it: what stands against it stands against others.
    pub rejected: Vec<(BackendKind, Vec<Obstacle>)>,
}

/// Why a backend was not chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It would do; another was asked for.
    AskedForAnother(BackendKind),
    /// It would do; this one does better.
    Better(BackendKind),
    /// It is not made for this kind of machine.
    Platform(Platform),
    /// A node is missing that the module, as `modprobe` knows it, would bring.
    NoNode {
        /// The node.
        path: &'static str,
        /// The module.
        module: &'static str,
    },
    /// No container can be given to this IOMMU driver: the module is missing.
    NoDriver(&'static str),
    /// There is no such device.
    NoDevice(PciAddress),
    /// The device is behind no IOMMU, or none is in use.
    NoGroup(PciAddress, Platform),
    /// The device's group is one of VFIO's that have no IOMMU.
    NoIommu(PciAddress),
    /// The device is bound to no VFIO driver, but to this one or none.
    Unbound(PciAddress, Option<String>),
    /// Another device of the group is bound to a driver that may do DMA.
    Neighbour {
        /// The group.
        group: u32,
        /// The device.
        device: PciAddress,
        /// Its driver.
        driver: String,
    },
    /// The group has no node, although its device is bound to a VFIO driver.
    NoGroupNode(u32),
    /// The device has no node of its own.
    NoDeviceNode(PciAddress),
    /// The devices are in several groups, and there is one address space a group: on a pseries host, and with sPAPR's first version.
    SeveralGroups(Vec<u32>),
    /// The kernel says it has it, and refused it when it was tried.
    Refused(Failure),
}

impl Choice {
    /// Chooses.
    pub fn of(facts: &Facts, request: &OpenRequest) -> Self {
        Self::of_remaining(facts, request, None)
    }

    /// Chooses again after the kernel refused `backend`, which had been chosen.
    pub fn after_refusal(facts: &Facts, request: &OpenRequest, backend: BackendKind, failure: Failure) -> Self {
        Self::of_remaining(facts, request, Some((backend, failure)))
    }

    fn of_remaining(facts: &Facts, request: &OpenRequest, refused: Option<(BackendKind, Failure)>) -> Self {
        let against = BackendKind::ALL.map(|backend| {
            let refused = refused.filter(|(refused, _)| *refused == backend).map(|(_, why)| Obstacle::Refused(why));
            (backend, obstacles(backend, facts, request).into_iter().chain(refused).collect::<Vec<_>>())
        });
        let asked_for = |backend| request.backend.is_none_or(|asked| asked == backend);
        let fit = |(backend, obstacles): &&(BackendKind, Vec<_>)| asked_for(*backend) && obstacles.is_empty();
        let chosen = against.iter().find(fit).map(|(backend, _)| *backend);
        let of_interest = |backend| backend != BackendKind::Type1OnIommufd || request.backend == Some(backend);
        let others = against.into_iter().filter(|(backend, _)| Some(*backend) != chosen && of_interest(*backend));
        let rejected = others.map(|(backend, obstacles)| (backend, or_unwanted(obstacles, request, chosen))).collect();
        Self { chosen, rejected }
    }

    /// Why the chosen backend was.
    pub fn reason(&self) -> Option<&'static str> {
        let any = |is: fn(&Obstacle) -> bool| self.rejected.iter().flat_map(|(_, obstacles)| obstacles).any(is);
        Some(match self.chosen? {
            _ if any(|obstacle| matches!(obstacle, Obstacle::AskedForAnother(_))) => "it was asked for",
            _ if any(|obstacle| matches!(obstacle, Obstacle::Refused(_))) => "the kernel refused a better one",
            BackendKind::Spapr => "POWER's IOMMU is driven through it alone",
            BackendKind::Iommufd => "it pins each page once, and the kernel has it",
            BackendKind::SpaprV1 | BackendKind::Type1 => "it is the one this host can use",
            BackendKind::Type1OnIommufd => "the kernel has no containers, and devices no nodes of their own",
        })
    }
}

/// What stood against a backend that was not chosen: if nothing, then that it was not wanted.
fn or_unwanted(obstacles: Vec<Obstacle>, request: &OpenRequest, chosen: Option<BackendKind>) -> Vec<Obstacle> {
    match (request.backend, chosen) {
        _ if !obstacles.is_empty() => obstacles,
        (Some(asked), _) => vec![Obstacle::AskedForAnother(asked)],
        (None, Some(better)) => vec![Obstacle::Better(better)],
        (None, None) => obstacles,
    }
}

/// Everything that stands against a backend.
fn obstacles(backend: BackendKind, facts: &Facts, request: &OpenRequest) -> Vec<Obstacle> {
    if facts.platform.is_power() != backend.is_of_power() {
        return vec![Obstacle::Platform(facts.platform.clone())];
    }
    let mut found = of_the_kernel(backend, facts);
    for address in &request.devices {
        for obstacle in of_a_device(backend, facts, *address) {
            // Devices of one group have their neighbours in common.
            if !found.contains(&obstacle) {
                found.push(obstacle);
            }
        }
    }
    found.extend(of_the_groups(backend, facts, request));
    found
}

/// What the kernel lacks.
fn of_the_kernel(backend: BackendKind, facts: &Facts) -> Vec<Obstacle> {
    let (driver, answers) = match backend {
        BackendKind::Iommufd | BackendKind::Type1OnIommufd => {
            let missing = Obstacle::NoNode { path: IOMMUFD_NODE, module: "iommufd" };
            return if facts.nodes.iommufd { Vec::new() } else { vec![missing] };
        }
        BackendKind::Type1 => ("vfio_iommu_type1", facts.iommu_types.map(|types| types.type1)),
        BackendKind::Spapr => ("vfio_iommu_spapr_tce", facts.iommu_types.map(|types| types.spapr_v2)),
        BackendKind::SpaprV1 => ("vfio_iommu_spapr_tce", facts.iommu_types.map(|types| types.spapr)),
    };
    match (facts.nodes.container, answers) {
        (false, _) => vec![Obstacle::NoNode { path: CONTAINER_NODE, module: "vfio-pci" }],
        (true, Some(false)) => vec![Obstacle::NoDriver(driver)],
        // A container that could not be opened says nothing; opening it will say why.
        (true, Some(true) | None) => Vec::new(),
    }
}

/// What stands against a device.
fn of_a_device(backend: BackendKind, facts: &Facts, address: PciAddress) -> Vec<Obstacle> {
    let Some(device) = facts.devices.get(&address) else { return vec![Obstacle::NoDevice(address)] };
    let Some(group) = device.group.and_then(|number| facts.groups.get(&number)) else {
        return vec![Obstacle::NoGroup(address, facts.platform.clone())];
    };
    if group.noiommu {
        return vec![Obstacle::NoIommu(address)];
    }
    let mut found = neighbours(facts, group, device);
    found.extend(missing_node(backend, group, device));
    found
}

/// The way the device is opened, when it is missing.
fn missing_node(backend: BackendKind, group: &IommuGroup, device: &PciDevice) -> Option<Obstacle> {
    if !device.is_with_vfio() {
        return Some(Obstacle::Unbound(device.address, device.driver.clone()));
    }
    let (present, missing) = match backend {
        BackendKind::Iommufd => {
            (device.vfio.as_ref().is_some_and(|vfio| vfio.node), Obstacle::NoDeviceNode(device.address))
        }
        BackendKind::Type1 | BackendKind::Type1OnIommufd | BackendKind::Spapr | BackendKind::SpaprV1 => {
            (group.node, Obstacle::NoGroupNode(group.number))
        }
    };
    (!present).then_some(missing)
}

/// The other devices of a group whose drivers hold on to its DMA.
fn neighbours(facts: &Facts, group: &IommuGroup, device: &PciDevice) -> Vec<Obstacle> {
    let others = group.members.iter().filter_map(|name| facts.devices.get(&name.parse().ok()?));
    let others = others.filter(|other| other.address != device.address && !other.is_with_vfio() && !other.is_bridge());
    let holding = others.filter_map(|other| {
        let driver = other.driver.clone().filter(|driver| driver != HARMLESS)?;
        Some(Obstacle::Neighbour { group: group.number, device: other.address, driver })
    });
    holding.collect()
}

/// The driver that does nothing, DMA included (linux: drivers/pci/pci-stub.c, driver_managed_dma).
const HARMLESS: &str = "pci-stub";

/// What stands against the devices' groups as a whole.
fn of_the_groups(backend: BackendKind, facts: &Facts, request: &OpenRequest) -> Option<Obstacle> {
    let devices = request.devices.iter().filter_map(|address| facts.devices.get(address));
    let mut groups: Vec<_> = devices.filter_map(|device| device.group).collect();
    groups.sort_unstable();
    groups.dedup();
    let takes_one = facts.platform == Platform::Pseries || backend == BackendKind::SpaprV1;
    (takes_one && groups.len() > 1).then_some(Obstacle::SeveralGroups(groups))
}

impl Obstacle {
    /// What the user can do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::AskedForAnother(_) | Self::Better(_) => "ask for it by name".to_owned(),
            Self::Platform(_) => "nothing: take another backend".to_owned(),
            Self::NoNode { module, .. } => {
                format!("modprobe {module}; if there is no such module, take a kernel that has it")
            }
            Self::NoDriver(module) => format!("modprobe {module}"),
            Self::NoDevice(_) => "look for it with lspci -D; a hot-plugged one may need a rescan".to_owned(),
            Self::NoGroup(_, Platform::X86_64) => {
                "turn the IOMMU on in the firmware, and in the kernel with intel_iommu=on or amd_iommu=on".to_owned()
            }
            Self::NoGroup(..) => "take a kernel with an IOMMU driver for this machine".to_owned(),
            Self::NoIommu(_) => "turn the IOMMU on; without one a device can reach all of the host".to_owned(),
            Self::Unbound(address, driver) => bind_to_vfio(*address, driver.as_deref()),
            Self::Neighbour { device, driver, .. } => bind_to_vfio(*device, Some(driver)),
            Self::NoGroupNode(number) => {
                format!("take a kernel with CONFIG_VFIO_GROUP, or have /dev/vfio/{number} made")
            }
            Self::NoDeviceNode(_) => {
                "take a kernel with CONFIG_VFIO_DEVICE_CDEV, or have /dev/vfio/devices made".to_owned()
            }
            Self::SeveralGroups(_) => "give each group an address space of its own".to_owned(),
            Self::Refused(_) => "take a kernel that can create DMA windows on this machine".to_owned(),
        }
    }
}

/// The commands that bind a device to vfio-pci.
fn bind_to_vfio(address: PciAddress, driver: Option<&str>) -> String {
    let device = format!("/sys/bus/pci/devices/{address}");
    let unbind = driver.map(|_| format!("echo {address} > {device}/driver/unbind; ")).unwrap_or_default();
    format!(
        "modprobe vfio-pci; {unbind}echo vfio-pci > {device}/driver_override; echo {address} > /sys/bus/pci/drivers_probe"
    )
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AskedForAnother(other) => write!(f, "{other} was asked for"),
            Self::Better(other) => write!(f, "{other} does better here"),
            Self::Platform(platform) => write!(f, "{platform} machines have none"),
            Self::NoNode { path, .. } => write!(f, "{path} is missing"),
            Self::NoDriver(module) => write!(f, "{CONTAINER_NODE} knows no {module}"),
            Self::NoDevice(address) => write!(f, "there is no device {address}"),
            Self::NoGroup(address, _) => write!(f, "{address} is in no IOMMU group"),
            Self::NoIommu(address) => write!(f, "{address} is behind no IOMMU, only in a group without one"),
            Self::Unbound(address, None) => write!(f, "{address} is bound to no driver"),
            Self::Unbound(address, Some(driver)) => write!(f, "{address} is bound to {driver}"),
            Self::Neighbour { group, device, driver } => {
                write!(f, "group {group} is shared with {device}, which is bound to {driver}")
            }
            Self::NoGroupNode(number) => write!(f, "/dev/vfio/{number} is missing"),
            Self::NoDeviceNode(address) => write!(f, "{address} has no node in /dev/vfio/devices"),
            Self::SeveralGroups(groups) => {
                write!(f, "there is one address space a group, and the devices are in groups {groups:?}")
            }
            Self::Refused(failure) => write!(f, "the kernel says it has it, and refuses it: {failure}"),
        }
    }
}

/// The choice in lines for people: the backend and its reason, then what stood against each of the others.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.chosen, self.reason()) {
            (Some(chosen), Some(reason)) => write!(f, "{chosen}: {reason}")?,
            _ => write!(f, "no backend will do")?,
        }
        for (backend, obstacles) in &self.rejected {
            for obstacle in obstacles {
                write!(f, "\nnot {backend}: {obstacle}; fix: {}", obstacle.fix())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use dmaspace_core::PageSize;
    use dmaspace_core::door::{Answer, Errno};

    use super::*;
    use crate::facts::{IommuTypes, Limits, Nodes, VfioDevice};

    /// What makes a host a poorer one.
    type Change = fn(&mut Facts);

    fn address(text: &str) -> PciAddress {
        text.parse().expect("an address of the test")
    }

    /// A function in a group, bound to vfio-pci.
    fn device(text: &str, group: u32) -> PciDevice {
        PciDevice {
            address: address(text),
            vendor: 0x1234,
            device: 0x11e8,
            class: 0xff00,
            driver: Some("vfio-pci".to_owned()),
            group: Some(group),
            vfio: Some(VfioDevice { name: format!("vfio{group}"), node: true }),
        }
    }

    fn host(platform: Platform, devices: &[PciDevice]) -> Facts {
        let power = platform.is_power();
        let group = |number: u32| {
            let members = devices.iter().filter(|device| device.group == Some(number));
            IommuGroup {
                number,
                noiommu: false,
                node: true,
                members: members.map(|device| device.address.to_string()).collect(),
                reserved: Vec::new(),
            }
        };
        Facts {
            platform,
            kernel: "6.12.95".to_owned(),
            host_page: PageSize::K4,
            limits: Limits::default(),
            nodes: Nodes { container: true, iommufd: !power, kvm: true },
            modules: BTreeSet::new(),
            iommu_types: Some(IommuTypes { type1: !power, spapr: power, spapr_v2: power }),
            groups: devices.iter().filter_map(|device| device.group).map(|number| (number, group(number))).collect(),
            devices: devices.iter().map(|device| (device.address, device.clone())).collect::<BTreeMap<_, _>>(),
        }
    }

    /// A PC that can do everything, with one device.
    fn pc() -> Facts {
        host(Platform::X86_64, &[device("00:03.0", 7)])
    }

    fn powernv() -> Facts {
        host(Platform::Powernv, &[device("00:03.0", 7)])
    }

    fn request() -> OpenRequest {
        OpenRequest::device(address("00:03.0"))
    }

    fn against(choice: &Choice, backend: BackendKind) -> Vec<String> {
        let rejected = choice.rejected.iter().find(|(rejected, _)| *rejected == backend);
        rejected.map(|(_, obstacles)| obstacles.iter().map(ToString::to_string).collect()).unwrap_or_default()
    }

    #[test]
    fn the_best_is_taken_where_it_is_there() {
        use BackendKind::{Iommufd, Spapr, SpaprV1, Type1, Type1OnIommufd};
        let cases: [(&str, Facts, Change, Option<BackendKind>); 11] = [
            ("a PC with everything", pc(), |_| {}, Some(Iommufd)),
            ("without iommufd", pc(), |facts| facts.nodes.iommufd = false, Some(Type1)),
            ("without device nodes", pc(), |facts| each(facts, |device| device.vfio = None), Some(Type1)),
            ("without containers", pc(), |facts| facts.nodes.container = false, Some(Iommufd)),
            (
                "with neither containers nor device nodes",
                pc(),
                |facts| {
                    facts.nodes.container = false;
                    each(facts, |device| device.vfio = None);
                },
                Some(Type1OnIommufd),
            ),
            ("with neither", pc(), |facts| facts.nodes = Nodes::default(), None),
            ("POWER", powernv(), |_| {}, Some(Spapr)),
            ("POWER without its module", powernv(), |facts| facts.iommu_types = Some(IommuTypes::default()), None),
            (
                "POWER with an old module",
                powernv(),
                |facts| facts.iommu_types = Some(IommuTypes { spapr: true, ..IommuTypes::default() }),
                Some(SpaprV1),
            ),
            ("POWER, container not opened", powernv(), |facts| facts.iommu_types = None, Some(Spapr)),
            (
                "another machine with type1",
                host(Platform::Other("aarch64".into()), &[device("00:03.0", 7)]),
                |facts| {
                    facts.nodes.iommufd = false;
                },
                Some(Type1),
            ),
        ];
        for (name, mut facts, change, expected) in cases {
            change(&mut facts);
            assert_eq!(Choice::of(&facts, &request()).chosen, expected, "{name}");
        }
    }

    fn each(facts: &mut Facts, change: fn(&mut PciDevice)) {
        facts.devices.values_mut().for_each(change);
    }

    #[test]
    fn what_was_asked_for_is_taken_or_nothing() {
        let choice = Choice::of(&pc(), &request().with_backend(BackendKind::Type1));
        assert_eq!((choice.chosen, choice.reason()), (Some(BackendKind::Type1), Some("it was asked for")));
        assert_eq!(against(&choice, BackendKind::Iommufd), ["type1 was asked for"]);
        let choice = Choice::of(&pc(), &request().with_backend(BackendKind::Spapr));
        assert_eq!(choice.chosen, None);
        assert_eq!(against(&choice, BackendKind::Spapr), ["x86_64 machines have none"]);
    }

    #[test]
    fn every_obstacle_is_named() {
        let cases: [(Change, BackendKind, &[&str]); 10] = [
            (|facts| facts.devices.clear(), BackendKind::Type1, &["there is no device 0000:00:03.0"]),
            (
                |facts| each(facts, |device| device.group = None),
                BackendKind::Type1,
                &["0000:00:03.0 is in no IOMMU group"],
            ),
            (
                |facts| facts.groups.values_mut().for_each(|group| group.noiommu = true),
                BackendKind::Iommufd,
                &["0000:00:03.0 is behind no IOMMU, only in a group without one"],
            ),
            (|facts| each(facts, unbind), BackendKind::Type1, &["0000:00:03.0 is bound to no driver"]),
            (
                |facts| each(facts, |device| bind(device, "e1000e")),
                BackendKind::Iommufd,
                &["0000:00:03.0 is bound to e1000e"],
            ),
            (
                |facts| facts.groups.values_mut().for_each(|group| group.node = false),
                BackendKind::Type1,
                &["/dev/vfio/7 is missing"],
            ),
            (
                |facts| each(facts, |device| device.vfio = None),
                BackendKind::Iommufd,
                &["0000:00:03.0 has no node in /dev/vfio/devices"],
            ),
            (|facts| facts.nodes.iommufd = false, BackendKind::Iommufd, &["/dev/iommu is missing"]),
            (
                |facts| facts.iommu_types = Some(IommuTypes::default()),
                BackendKind::Type1,
                &["/dev/vfio/vfio knows no vfio_iommu_type1"],
            ),
            (
                |facts| {
                    facts.nodes = Nodes::default();
                    facts.devices.clear();
                },
                BackendKind::Type1,
                &["/dev/vfio/vfio is missing", "there is no device 0000:00:03.0"],
            ),
        ];
        for (change, backend, expected) in cases {
            let mut facts = pc();
            change(&mut facts);
            assert_eq!(against(&Choice::of(&facts, &request().with_backend(backend)), backend), expected);
        }
    }

    #[test]
    fn iommufd_in_a_containers_place_is_taken_when_asked_for_and_explained_then_only() {
        let asked = request().with_backend(BackendKind::Type1OnIommufd);
        assert_eq!(Choice::of(&pc(), &asked).chosen, Some(BackendKind::Type1OnIommufd));
        let mut facts = pc();
        facts.nodes.iommufd = false;
        facts.groups.values_mut().for_each(|group| group.node = false);
        let expected = ["/dev/iommu is missing", "/dev/vfio/7 is missing"];
        assert_eq!(against(&Choice::of(&facts, &asked), BackendKind::Type1OnIommufd), expected);
        assert!(
            Choice::of(&facts, &request()).rejected.iter().all(|(backend, _)| *backend != asked.backend.expect("set"))
        );
    }

    fn unbind(device: &mut PciDevice) {
        (device.driver, device.vfio) = (None, None);
    }

    fn bind(device: &mut PciDevice, driver: &str) {
        (device.driver, device.vfio) = (Some(driver.to_owned()), None);
    }

    #[test]
    fn only_a_neighbour_that_may_do_dma_is_in_the_way() {
        let mut nic = device("00:03.1", 7);
        bind(&mut nic, "e1000e");
        let mut stub = device("00:03.2", 7);
        bind(&mut stub, "pci-stub");
        let mut port = device("00:1c.0", 7);
        bind(&mut port, "pcieport");
        port.class = 0x06_0400;
        let mut idle = device("00:03.3", 7);
        unbind(&mut idle);
        let facts = host(Platform::X86_64, &[device("00:03.0", 7), nic, stub, port, idle, device("00:03.4", 7)]);
        let choice = Choice::of(&facts, &request());
        let expected = ["group 7 is shared with 0000:00:03.1, which is bound to e1000e"];
        assert_eq!(against(&choice, BackendKind::Iommufd), expected);
        assert_eq!(against(&choice, BackendKind::Type1), expected);
    }

    #[test]
    fn devices_of_one_group_name_their_neighbour_once() {
        let mut nic = device("00:03.2", 7);
        bind(&mut nic, "e1000e");
        let facts = host(Platform::X86_64, &[device("00:03.0", 7), device("00:03.1", 7), nic]);
        let choice = Choice::of(&facts, &request().with_device(address("00:03.1")));
        assert_eq!(against(&choice, BackendKind::Type1).len(), 1);
    }

    #[test]
    fn a_pseries_host_has_one_address_space_a_group() {
        let devices = [device("00:03.0", 7), device("00:04.0", 8)];
        let both = request().with_device(address("00:04.0"));
        assert_eq!(Choice::of(&host(Platform::Powernv, &devices), &both).chosen, Some(BackendKind::Spapr));
        let choice = Choice::of(&host(Platform::Pseries, &devices), &both);
        assert_eq!(choice.chosen, None);
        assert!(against(&choice, BackendKind::Spapr)[0].ends_with("the devices are in groups [7, 8]"));
    }

    #[test]
    fn the_first_version_of_spapr_has_one_address_space_a_group_everywhere() {
        let facts = host(Platform::Powernv, &[device("00:03.0", 7), device("00:04.0", 8)]);
        let both = request().with_device(address("00:04.0")).with_backend(BackendKind::SpaprV1);
        let choice = Choice::of(&facts, &both);
        assert_eq!(choice.chosen, None);
        let why = ["there is one address space a group, and the devices are in groups [7, 8]"];
        assert_eq!(against(&choice, BackendKind::SpaprV1), why);
    }

    #[test]
    fn what_the_kernel_refused_is_not_chosen_again_and_the_choice_says_why() {
        let failure = Failure { call: "VFIO_SET_IOMMU", answer: Answer::Errno(Errno::EINVAL) };
        let choice = Choice::after_refusal(&powernv(), &request(), BackendKind::Spapr, failure);
        assert_eq!(choice.chosen, Some(BackendKind::SpaprV1));
        assert_eq!(
            choice.to_string().lines().take(2).collect::<Vec<_>>(),
            [
                "spapr-v1: the kernel refused a better one",
                "not spapr: the kernel says it has it, and refuses it: VFIO_SET_IOMMU: EINVAL; \
                 fix: take a kernel that can create DMA windows on this machine",
            ]
        );
        let by_name =
            Choice::after_refusal(&powernv(), &request().with_backend(BackendKind::Spapr), BackendKind::Spapr, failure);
        assert_eq!(by_name.chosen, None);
    }

    #[test]
    fn a_fix_can_be_pasted() {
        let obstacle = Obstacle::Unbound(address("00:03.0"), Some("e1000e".to_owned()));
        assert_eq!(
            obstacle.fix(),
            "modprobe vfio-pci; echo 0000:00:03.0 > /sys/bus/pci/devices/0000:00:03.0/driver/unbind; \
             echo vfio-pci > /sys/bus/pci/devices/0000:00:03.0/driver_override; echo 0000:00:03.0 > /sys/bus/pci/drivers_probe"
        );
    }

    #[test]
    fn the_choice_reads_as_lines() {
        let mut facts = pc();
        facts.nodes.iommufd = false;
        assert_eq!(
            Choice::of(&facts, &request()).to_string(),
            "type1: it is the one this host can use\n\
             not spapr: x86_64 machines have none; fix: nothing: take another backend\n\
             not spapr-v1: x86_64 machines have none; fix: nothing: take another backend\n\
             not iommufd: /dev/iommu is missing; fix: modprobe iommufd; if there is no such module, take a kernel that has it"
        );
        facts.nodes.container = false;
        assert!(Choice::of(&facts, &request()).to_string().starts_with("no backend will do\n"));
    }
}
