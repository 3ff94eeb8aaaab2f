//! Objects that another user of a container or an iommufd made, adopted on the soft host.
#![expect(unsafe_code, reason = "UNSAFETY: the tests promise for the other user, which they are")]

use std::mem::offset_of;
use std::path::Path;
use std::sync::Arc;

use dmaspace::choose::BackendKind;
use dmaspace::facts::{Directory, Facts, SysfsDevice};
use dmaspace::group::VfioGroup;
use dmaspace::iommufd::Iommufd;
use dmaspace::open::{Host, OpenError, OpenSpace};
use dmaspace_abi::device::{BindIommufd, DEVICE_BIND_IOMMUFD};
use dmaspace_abi::iommufd::{IOAS_ALLOC, IoasAlloc};
use dmaspace_core::contract::{AttachPlace, Attachable, AttachedElsewhere, DeviceId, MapRequest, ObjectId};
use dmaspace_core::door::{Attached, Attachment, Command, Door, Errno, HandleKind, OwnedHandle};
use dmaspace_core::{Access, Iova};
use dmaspace_soft::SoftHost;
use dmaspace_tests::owned::{beside_spaces, opened};
use dmaspace_tests::ram::Ram;
use dmaspace_tests::soft::{host, memory, range};
use zerocopy::IntoBytes;

const MIB: u64 = 1 << 20;

/// An iommufd in which another user has made an address space, and the id of that.
fn with_an_ioas(soft: &Arc<SoftHost>) -> (Arc<Iommufd>, ObjectId) {
    let door: Arc<dyn Door> = soft.clone();
    let iommufd = opened(&door, Path::new("/dev/iommu"), HandleKind::Iommufd);
    let mut alloc = IoasAlloc { size: IoasAlloc::SIZE, ..IoasAlloc::default() };
    iommufd.call(Command::with_bytes(IOAS_ALLOC, alloc.as_mut_bytes())).expect("allocated");
    (Iommufd::new(iommufd), ObjectId::new(alloc.out_ioas_id))
}

/// The node of the first device, bound to `iommufd`, and its id there.
fn bound(soft: &Arc<SoftHost>, iommufd: &Iommufd) -> (OwnedHandle, DeviceId) {
    let door: Arc<dyn Door> = soft.clone();
    let number = soft.profile().groups[0].devices[0].node.expect("it has a node");
    let path = format!("/dev/vfio/devices/vfio{number}");
    let node = opened(&door, Path::new(&path), HandleKind::Device);
    let mut bind = BindIommufd { argsz: BindIommufd::SIZE, ..BindIommufd::default() };
    let what = Attached::Handle(iommufd.handle());
    let mut descriptor = [Attachment { offset: offset_of!(BindIommufd, iommufd), what }];
    let command = Command::with_bytes(DEVICE_BIND_IOMMUFD, bind.as_mut_bytes());
    node.call(command.attaching(&mut descriptor)).expect("bound");
    (node, DeviceId::new(bind.out_devid))
}

#[test]
fn a_device_that_is_bound_already_reaches_memory_in_an_adopted_address_space() {
    let soft = host("vtd");
    let (iommufd, ioas) = with_an_ioas(&soft);
    let (node, id) = bound(&soft, &iommufd);
    let name = soft.profile().groups[0].devices[0].address.clone();
    // SAFETY: nothing is mapped there, and nothing else maps there.
    let mut space = unsafe { OpenSpace::of_ioas(iommufd, ioas) }.expect("it has windows");
    // SAFETY: it was bound above, and is attached nowhere.
    let device = unsafe { space.add_bound_device(node, &name, id) }.expect("attached");
    let ram = Ram::new(1 << 20);
    ram.slice(0x1000, 4).write(0, b"DMA!").expect("it is there");
    space.space().map(MapRequest::new(Iova::new(0), ram.all(), Access::READ_WRITE)).expect("it fits");
    assert_eq!((soft.ledger().mapped, soft.calls().of("VFIO_DEVICE_BIND_IOMMUFD")), (MIB, 1));
    let mut read = [0; 4];
    soft.device(&name).expect("it is there").dma_read(Iova::new(0x1000), &mut read).expect("it reaches memory");
    assert_eq!(&read, b"DMA!");
    space.remove(device).expect("it can go").expect("it is the last");
    drop(space);
    assert!(soft.ledger().is_clear(), "{:?}", soft.ledger());
}

#[test]
fn a_bound_device_is_refused_by_a_container_and_closed() {
    let soft = host("vtd");
    let (iommufd, _) = with_an_ioas(&soft);
    let (node, id) = bound(&soft, &iommufd);
    let at = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
    let mut space = at.open_space(BackendKind::Type1).expect("it opens");
    // SAFETY: as said, but for another iommufd.
    let refused = unsafe { space.add_bound_device(node, "0000:00:03.0", id) };
    assert!(matches!(refused, Err(OpenError::Attach { .. })), "{refused:?}");
    assert_eq!(soft.ledger().devices, 0);
}

#[test]
fn a_group_that_is_attached_by_another_owner_shows_the_windows_until_it_is_detached() {
    let soft = host("vtd");
    let door: Arc<dyn Door> = soft.clone();
    let container = opened(&door, Path::new("/dev/vfio/vfio"), HandleKind::Container);
    let number = soft.profile().groups[0].number;
    let node = opened(&door, Path::new(&format!("/dev/vfio/{number}")), HandleKind::Group);
    let group = Arc::new(VfioGroup::new(node, "theirs", BackendKind::Type1));
    let point = beside_spaces(AttachPlace::Container(container.handle()));
    group.attach_to(point).expect("it joins");
    let space = OpenSpace::of(BackendKind::Type1, container).expect("it opens");
    let theirs = group.clone();
    // SAFETY: it is in the container until the closure has it leave.
    let attached = unsafe { AttachedElsewhere::new("theirs", move || theirs.detach_from(point)) };
    let attached: Arc<dyn Attachable> = Arc::new(attached.with_group(group.handle()));
    space.attach(attached.clone()).expect("no call is made");
    let ram = memory(1 << 45, MIB);
    space.space().map(MapRequest::new(Iova::new(0), &ram, Access::READ_WRITE)).expect("it fits");
    assert_eq!(space.space().describe().devices, ["theirs"]);
    space.detach(&attached).expect("it leaves");
    assert!(space.space().mappings(range(0, MIB)).is_empty(), "the container forgot them");
    drop((space, attached, group));
    assert!(soft.ledger().is_clear(), "{:?}", soft.ledger());
}

#[test]
fn a_device_of_another_bus_is_opened_by_its_name() {
    let soft = host("vtd");
    let at = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
    // The soft host knows devices by their names, as the kernel does, whatever their bus.
    let name = soft.profile().groups[0].devices[0].address.clone();
    let node = soft.profile().groups[0].devices[0].node.expect("it has a node");
    let root = tempfile::tempdir().expect("a directory");
    let place = root.path().join("sys/bus/mdev/devices").join(&name);
    std::fs::create_dir_all(place.join(format!("vfio-dev/vfio{node}"))).expect("made");
    let group = format!("../../../../kernel/iommu_groups/{}", soft.profile().groups[0].number);
    std::os::unix::fs::symlink(group, place.join("iommu_group")).expect("linked");
    let files = Directory::new(root.path());
    let device = SysfsDevice::of_files(&files, &Path::new("/sys/bus/mdev/devices").join(&name)).expect("read");
    for backend in [BackendKind::Type1, BackendKind::Iommufd] {
        let mut space = at.open_space(backend).expect("it opens");
        let opened = space.add_at(&at, &device).expect("it is there");
        assert_eq!(opened.name(), name);
        space.remove(opened).expect("it can go");
        drop(space);
        assert!(soft.ledger().is_clear(), "{:?}", soft.ledger());
    }
    let mut space = at.open_space(BackendKind::Type1).expect("it opens");
    let absent = SysfsDevice::of_files(&files, Path::new("/sys/bus/mdev/devices/none")).expect("nothing is there");
    let error = space.add_at(&at, &absent).expect_err("it has no group");
    assert_eq!((error.as_errno(), error.errno()), (Errno::ENODEV, None));
    assert!(error.to_string().starts_with("none has no node that type1 could open; bind it"), "{error}");
}
