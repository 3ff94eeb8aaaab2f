use std::collections::{BTreeMap, BTreeSet};

use dmaspace_core::PageSize;
use dmaspace_core::door::Errno;

use super::*;
use crate::facts::{IommuTypes, Limits, Nodes, VfioDevice};

/// A change of the facts that removes something from the host.
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

fn each_group(facts: &mut Facts, change: fn(&mut IommuGroup)) {
    for group in facts.groups.values_mut() {
        change(group);
    }
}

fn each(facts: &mut Facts, change: fn(&mut PciDevice)) {
    for device in facts.devices.values_mut() {
        change(device);
    }
}

#[test]
fn the_requested_backend_is_chosen_or_none() {
    let choice = Choice::of(&pc(), &request().with_backend(BackendKind::Type1));
    assert_eq!((choice.chosen, choice.reason()), (Some(BackendKind::Type1), Some("it was requested by name")));
    assert_eq!(against(&choice, BackendKind::Iommufd), ["type1 was requested"]);
    let choice = Choice::of(&pc(), &request().with_backend(BackendKind::Spapr));
    assert_eq!(choice.chosen, None);
    assert_eq!(against(&choice, BackendKind::Spapr), ["x86_64 machines have none"]);
}

#[test]
fn every_obstacle_is_named() {
    let cases: [(Change, BackendKind, &[&str]); 10] = [
        (|facts| facts.devices.clear(), BackendKind::Type1, &["there is no device 0000:00:03.0"]),
        (|facts| each(facts, |device| device.group = None), BackendKind::Type1, &["0000:00:03.0 is in no IOMMU group"]),
        (
            |facts| each_group(facts, |group| group.noiommu = true),
            BackendKind::Iommufd,
            &["0000:00:03.0 is behind no IOMMU, only in a group without one"],
        ),
        (|facts| each(facts, unbind), BackendKind::Type1, &["0000:00:03.0 is bound to no driver"]),
        (
            |facts| each(facts, |device| bind(device, "e1000e")),
            BackendKind::Iommufd,
            &["0000:00:03.0 is bound to e1000e"],
        ),
        (|facts| each_group(facts, |group| group.node = false), BackendKind::Type1, &["/dev/vfio/7 is missing"]),
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
    each_group(&mut facts, |group| group.node = false);
    let expected = ["/dev/iommu is missing", "/dev/vfio/7 is missing"];
    assert_eq!(against(&Choice::of(&facts, &asked), BackendKind::Type1OnIommufd), expected);
    assert!(Choice::of(&facts, &request()).rejected.iter().all(|(backend, _)| *backend != asked.backend.expect("set")));
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
    let why = ["an address space takes one group, and the devices are in groups [7, 8]"];
    assert_eq!(against(&choice, BackendKind::SpaprV1), why);
}

#[test]
fn a_backend_that_the_kernel_refused_is_not_chosen_again_and_the_choice_has_the_reason() {
    let failure = Failure::from_errno("VFIO_SET_IOMMU", Errno::EINVAL);
    let choice = Choice::after_refusal(&powernv(), &request(), BackendKind::Spapr, failure);
    assert_eq!(choice.chosen, Some(BackendKind::SpaprV1));
    assert_eq!(
        choice.to_string().lines().take(2).collect::<Vec<_>>(),
        [
            "spapr-v1: the kernel refused a better one",
            "not spapr: the kernel advertises it, and refused it: VFIO_SET_IOMMU: EINVAL; \
             fix: use a kernel that can create DMA windows on this machine",
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
         echo vfio-pci > /sys/bus/pci/devices/0000:00:03.0/driver_override; \
         echo 0000:00:03.0 > /sys/bus/pci/drivers_probe"
    );
}

#[test]
fn the_choice_reads_as_lines() {
    let mut facts = pc();
    facts.nodes.iommufd = false;
    assert_eq!(
        Choice::of(&facts, &request()).to_string(),
        "type1: it is the one this host can use\n\
         not spapr: x86_64 machines have none; fix: none: use another backend\n\
         not spapr-v1: x86_64 machines have none; fix: none: use another backend\n\
         not iommufd: /dev/iommu is missing; \
         fix: modprobe iommufd; if there is no such module, use a kernel that has it"
    );
    facts.nodes.container = false;
    assert!(Choice::of(&facts, &request()).to_string().starts_with("no backend fits\n"));
}
