use std::path::Path;

use dmaspace_core::contract::ObjectId;
use dmaspace_core::door::Door;

use super::*;
use crate::device::Device;
use crate::scripted::{self, Scripted};

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

/// A container and a group, before any call.
fn group_on(backend: BackendKind) -> Stage {
    let door = scripted::door();
    let container = door.open(Path::new("/dev/vfio/vfio"), HandleKind::Container).expect("opens");
    let group = OwnedHandle::open(door.clone(), Path::new("/dev/vfio/7"), HandleKind::Group).expect("opens");
    door.texts();
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
    let stage = group_on(BackendKind::Type1);
    let first = ["VFIO_GROUP_GET_STATUS", "VFIO_GROUP_SET_CONTAINER", "VFIO_IOMMU_GET_INFO", "VFIO_SET_IOMMU 3"];
    stage.attach().expect("nothing refuses");
    assert_eq!(stage.door.texts(), first);
    assert_eq!(stage.detach(), Ok(Undone::Done(())));
    assert_eq!(stage.door.texts(), ["VFIO_GROUP_UNSET_CONTAINER"]);
    stage.attach().expect("nothing refuses");
    assert_eq!(stage.door.texts(), first);
}

#[test]
fn a_container_with_a_driver_keeps_it() {
    let stage = group_on(BackendKind::Type1);
    stage.attach().expect("nothing refuses");
    stage.door.texts();
    stage.attach().expect("the door counts groups, not which");
    let calls = ["VFIO_GROUP_GET_STATUS", "VFIO_GROUP_SET_CONTAINER", "VFIO_IOMMU_GET_INFO"];
    assert_eq!(stage.door.texts(), calls);
}

#[test]
fn an_older_type1_will_do_but_an_older_spapr_is_asked_for_by_name() {
    let stage_of = |backend, driver: &str| {
        let stage = group_on(backend);
        stage.door.refuse(driver, Errno::ENODEV);
        (stage.attach().is_ok(), stage.door.texts().pop())
    };
    assert_eq!(stage_of(BackendKind::Type1, "VFIO_SET_IOMMU 3"), (true, Some("VFIO_SET_IOMMU 1".to_owned())));
    let left = Some("VFIO_GROUP_UNSET_CONTAINER".to_owned());
    assert_eq!(stage_of(BackendKind::Spapr, "VFIO_SET_IOMMU 7"), (false, left));
    assert_eq!(stage_of(BackendKind::SpaprV1, "VFIO_SET_IOMMU 7"), (true, Some("VFIO_SET_IOMMU 2".to_owned())));
}

#[test]
fn to_an_iommufd_a_group_comes_with_a_device_and_leaves_only_when_no_other_is_open() {
    let door = scripted::door();
    let iommufd = door.open(Path::new("/dev/iommu"), HandleKind::Iommufd).expect("opens");
    let handle = OwnedHandle::open(door.clone(), Path::new("/dev/vfio/7"), HandleKind::Group).expect("opens");
    let group = Arc::new(VfioGroup::new(handle, "group 7", BackendKind::Type1OnIommufd));
    group.open_on_attach("0000:00:03.0");
    door.texts();
    let point = at(AttachPlace::Container(iommufd));
    group.attach_to(point).expect("nothing refuses");
    let calls = [
        "VFIO_GROUP_GET_STATUS",
        "VFIO_GROUP_SET_CONTAINER",
        "VFIO_SET_IOMMU 3",
        "VFIO_GROUP_GET_DEVICE_FD 0000:00:03.0",
    ];
    assert_eq!(door.texts(), calls);
    let device = Device::open(&group, "0000:00:03.0").expect("opens");
    door.texts();
    assert_eq!(group.detach_from(point).expect_err("a device is open").errno(), Some(Errno::EBUSY));
    assert_eq!(door.texts(), Vec::<String>::new(), "the kernel would say yes");
    drop(device);
    door.texts();
    group.detach_from(point).expect("nothing is open any more");
    assert_eq!(door.texts(), ["VFIO_GROUP_UNSET_CONTAINER", "close 0000:00:03.0"]);
}

#[test]
fn a_group_its_driver_refuses_tries_no_other_and_leaves_again() {
    let stage = group_on(BackendKind::Type1);
    stage.door.refuse("VFIO_SET_IOMMU 3", Errno::EPERM);
    assert_eq!(stage.attach().expect_err("refused").to_string(), "VFIO_SET_IOMMU: EPERM");
    assert_eq!(stage.door.texts()[3..], ["VFIO_SET_IOMMU 3", "VFIO_GROUP_UNSET_CONTAINER"]);
}

#[test]
fn a_group_that_cannot_join_makes_sure_that_it_did_not() {
    let stage = group_on(BackendKind::Type1);
    stage.door.refuse("VFIO_GROUP_SET_CONTAINER", Errno::EPERM);
    assert_eq!(stage.attach().expect_err("refused").errno(), Some(Errno::EPERM));
    let left = ["VFIO_GROUP_UNSET_CONTAINER"; ATTEMPTS];
    assert_eq!(stage.door.texts(), [&["VFIO_GROUP_GET_STATUS", "VFIO_GROUP_SET_CONTAINER"], &left[..]].concat());
}

#[test]
fn an_address_space_of_an_iommufd_is_no_container() {
    let stage = group_on(BackendKind::Type1);
    let point = at(AttachPlace::Ioas { iommufd: stage.container, ioas: ObjectId::new(1) });
    assert_eq!(stage.group.attach_to(point).expect_err("refused").errno(), Some(Errno::EBADFD));
    assert_eq!(stage.group.detach_from(point).expect_err("refused").errno(), Some(Errno::EBADFD));
    assert_eq!(stage.door.texts(), Vec::<String>::new());
}

#[test]
fn an_open_device_keeps_its_group_open_and_attached() {
    let stage = group_on(BackendKind::Type1);
    stage.attach().expect("nothing refuses");
    let device = Device::open(&stage.group, "0000:00:03.0").expect("opens");
    assert_eq!(stage.detach().expect_err("a device is open").errno(), Some(Errno::EBUSY));
    let Stage { door, container, group } = stage;
    drop(group);
    door.close(container).expect("it was open");
    assert_eq!(door.open_names(), ["/dev/vfio/7", "0000:00:03.0"]);
    door.texts();
    drop(device);
    assert_eq!(door.texts(), ["close 0000:00:03.0", "close /dev/vfio/7"]);
}
