use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use dmaspace_core::PageSize;
use dmaspace_core::door::{Errno, HandleKind, OwnedHandle};

use super::*;
use crate::backend_kind::BackendKind;
use crate::choose::OpenRequest;
use crate::facts::{Facts, IOMMUFD_NODE, IommuGroup, IommuTypes, Limits, Nodes, PciDevice, Platform, VfioDevice};
use crate::pci::PciAddress;
use crate::scripted::{self, Scripted, ScriptedRegistry};

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
    let door = scripted::door();
    let opened = host(&door).open(&both(BackendKind::Type1)).expect("nothing fails");
    assert_eq!(
        door.texts(),
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
        door.texts(),
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
    let door = scripted::door();
    let opened = host(&door).open(&OpenRequest::device(address("00:03.0"))).expect("nothing fails");
    let calls = door.texts();
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
        door.texts(),
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
            let door = scripted::door();
            let opened = host(&door).open(&both(backend)).expect("nothing fails");
            drop(opened);
            door.texts().len()
        };
        for n in 0..calls {
            let door = scripted::door_failing_at(n);
            drop(host(&door).open(&both(backend)));
            assert_eq!(
                door.open_names(),
                Vec::<String>::new(),
                "{backend}: call {n} of {calls} failed: {:?}",
                door.texts()
            );
        }
    }
}

#[test]
fn a_device_outlives_the_space_it_was_opened_into() {
    let door = scripted::door();
    let Opened { mut devices, space, .. } = host(&door).open(&both(BackendKind::Type1)).expect("nothing fails");
    drop(space);
    devices.pop();
    assert!(door.open_names().contains(&"/dev/vfio/vfio".to_owned()));
    drop(devices);
    assert_eq!(door.open_names(), Vec::<String>::new());
}

#[test]
fn the_last_device_of_a_group_takes_it_along() {
    let door = scripted::door();
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
    let door = scripted::door();
    let Opened { mut devices, mut space, .. } = host(&door).open(&both(BackendKind::Iommufd)).expect("nothing fails");
    let second = devices.pop().expect("the second");
    assert!(space.remove(second).expect("nothing fails").is_some());
    assert!(!door.open_names().contains(&"/dev/vfio/devices/vfio1".to_owned()));
}

#[test]
fn an_impossible_request_is_refused_before_anything_is_opened() {
    let door = scripted::door();
    let error = host(&door).open(&OpenRequest::device(address("00:04.0"))).expect_err("there is no such device");
    assert!(error.to_string().contains("there is no device 0000:00:04.0"), "{error}");
    assert_eq!(door.texts(), Vec::<String>::new());
}

#[test]
fn errors_end_with_a_remedy() {
    let message = |call: &str, errno, backend| {
        let door = scripted::door();
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
    let door = scripted::door();
    let iommufd = OwnedHandle::open(door.clone(), Path::new(IOMMUFD_NODE), HandleKind::Iommufd).expect("opens");
    let group = OwnedHandle::open(door.clone(), Path::new("/dev/vfio/7"), HandleKind::Group).expect("opens");
    let mut space = OpenSpace::of(BackendKind::Iommufd, iommufd).expect("nothing fails");
    let error = space.add_group(group, "group 7").expect_err("it has no containers");
    assert!(matches!(error, OpenError::Attach { .. }), "{error}");
    assert_eq!(door.open_names(), [IOMMUFD_NODE]);
}

#[test]
fn a_space_of_another_crate_has_its_name_and_opens_no_devices() {
    let door = scripted::door();
    let ours = host(&door).open_space(BackendKind::Iommufd).expect("nothing fails");
    let mut space = OpenSpace::around(ours.space().clone(), "iotlb");
    assert_eq!((space.backend(), space.backend().to_string()), (BackendKind::Other("iotlb"), "iotlb".to_owned()));
    assert_eq!(space.handle(), None);
    let error = space.add(&host(&door), address("00:03.0")).expect_err("its crate opens devices");
    assert!(error.to_string().contains("not iotlb: iotlb is a backend of another crate; fix: open it"), "{error}");
    let group = OwnedHandle::open(door.clone(), Path::new("/dev/vfio/7"), HandleKind::Group).expect("opens");
    let error = space.add_group(group, "group 7").expect_err("its crate opens groups");
    assert!(matches!(error, OpenError::ForeignBackend { name: "iotlb" }), "{error}");
    assert!(!door.open_names().contains(&"/dev/vfio/7".to_owned()), "it is closed");
}

#[test]
fn the_text_of_an_error_has_its_cause_once_and_its_source_is_none() {
    let door = scripted::door();
    door.refuse("VFIO_GROUP_SET_CONTAINER", Errno::EBUSY);
    let error = host(&door).open(&both(BackendKind::Type1)).expect_err("refused");
    let text = error.to_string();
    assert_eq!(text.matches("VFIO_GROUP_SET_CONTAINER: EBUSY").count(), 1, "{text}");
    assert!(text.ends_with("; give the group a container of its own: one of spapr-v1 takes no second group"), "{text}");
    assert!(std::error::Error::source(&error).is_none());
    assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::ResourceBusy);
}
