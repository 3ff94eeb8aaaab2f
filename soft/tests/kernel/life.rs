//! Opening, joining and leaving in every order, and the state after it.

use crate::setting::{HIGH, MIB, Opened, PAGE, RW, device, memory, open, open_group, open_node};
use dmaspace_abi::device;
use dmaspace_abi::vfio::{self, Extension, IommuType};
use dmaspace_core::Iova;
use dmaspace_core::door::{Command, Door, Errno, Handle, HandleKind, Request};
use dmaspace_soft::conformance::Dialect;
use dmaspace_soft::conformance::raw::{self, Context};
use dmaspace_soft::profile::KernelInterface;
use dmaspace_soft::{DmaError, Profile, SoftHost};

fn vtd() -> std::sync::Arc<SoftHost> {
    SoftHost::new(Profile::vtd()).expect("sound")
}

fn opens(profile: Profile, path: &str) -> Result<(), Errno> {
    SoftHost::new(profile).expect("sound").open(path.as_ref(), HandleKind::Container).map(|_| ())
}

#[test]
fn only_the_profiles_nodes_can_be_opened() {
    for path in ["/dev/vfio/vfio", "/dev/iommu", "/dev/vfio/3", "/dev/vfio/devices/vfio0"] {
        assert_eq!(opens(Profile::vtd(), path), Ok(()), "{path}");
    }
    for path in ["/dev/vfio/7", "/dev/vfio/devices/vfio9", "/dev/vfio/", "/dev/null", "relative"] {
        assert_eq!(opens(Profile::vtd(), path), Err(Errno::ENOENT), "{path}");
    }
    assert_eq!(opens(Profile::powernv9(), "/dev/iommu"), Err(Errno::ENOENT));
    let lean = Profile::vtd().with_backends(vec![KernelInterface::Iommufd]);
    assert_eq!(opens(lean, "/dev/vfio/vfio"), Err(Errno::ENOENT));
}

#[test]
fn a_group_is_opened_once_and_joins_one_container() {
    let host = vtd();
    let (container, other) =
        (open(&host, "/dev/vfio/vfio", HandleKind::Container), open(&host, "/dev/vfio/vfio", HandleKind::Container));
    let group = open_group(&host, 3);
    assert_eq!(host.open("/dev/vfio/3".as_ref(), HandleKind::Group), Err(Errno::EBUSY));
    assert_eq!(raw::group_status(&*host, group), Ok(vfio::GROUP_VIABLE));
    assert_eq!(raw::unset_container(&*host, group), Err(Errno::EINVAL));
    assert_eq!(raw::set_container(&*host, group, group), Err(Errno::EBADFD));
    assert_eq!(raw::set_container(&*host, group, container), Ok(0));
    assert_eq!(raw::group_status(&*host, group), Ok(vfio::GROUP_VIABLE | vfio::GROUP_CONTAINER_SET));
    assert_eq!(raw::set_container(&*host, group, other), Err(Errno::EINVAL));
    host.close(other).expect("open");
    assert_eq!(raw::set_container(&*host, open_group(&host, 4), other), Err(Errno::EBADF));
}

#[test]
fn a_group_a_kernel_driver_holds_is_not_viable() {
    let mut profile = Profile::vtd();
    profile.groups[0].held_by_kernel = true;
    let host = SoftHost::new(profile).expect("sound");
    let container = open(&host, "/dev/vfio/vfio", HandleKind::Container);
    let group = open_group(&host, 3);
    assert_eq!(raw::group_status(&*host, group), Ok(0));
    assert_eq!(raw::set_container(&*host, group, container), Err(Errno::EPERM));
}

#[test]
fn an_iommu_is_chosen_once_and_needs_a_group() {
    let host = vtd();
    let container = open(&host, "/dev/vfio/vfio", HandleKind::Container);
    assert_eq!(raw::set_iommu(&*host, container, IommuType::TYPE1_V2), Err(Errno::EINVAL));
    let group = open_group(&host, 3);
    raw::set_container(&*host, group, container).expect("joins");
    assert_eq!(raw::unmap(&*host, Context::Type1(container), 0, PAGE), Err(Errno::EINVAL), "no driver yet");
    assert_eq!(raw::open_device(&*host, group, "0000:00:03.0"), Err(Errno::EINVAL));
    assert_eq!(raw::set_iommu(&*host, container, IommuType::SPAPR_TCE_V2), Err(Errno::ENODEV));
    assert_eq!(raw::set_iommu(&*host, container, IommuType(6)), Err(Errno::EINVAL), "nesting: known, and refused");
    assert_eq!(raw::set_iommu(&*host, container, IommuType::TYPE1_V2), Ok(0));
    assert_eq!(raw::set_iommu(&*host, container, IommuType::TYPE1_V2), Err(Errno::EINVAL));
}

/// The numbers of the extensions that a container without a driver has.
fn extensions_of(profile: Profile) -> Vec<u64> {
    let host = SoftHost::new(profile).expect("sound");
    let container = open(&host, "/dev/vfio/vfio", HandleKind::Container);
    (0..12).filter(|number| raw::check_extension(&*host, container, Extension(*number)) == Ok(1)).collect()
}

#[test]
fn each_driver_reports_its_own_extensions() {
    assert_eq!(extensions_of(Profile::vtd()), [1, 3, 6, 9]);
    assert_eq!(extensions_of(Profile::powernv9()), [2, 5, 7]);
    assert_eq!(extensions_of(Profile::pseries()), [2, 7]);
}

#[test]
fn a_device_keeps_its_group_and_the_group_its_container() {
    let opened = Opened::new(Profile::vtd(), Dialect::Type1);
    let (host, group, ram) = (&*opened.host, opened.members[0], memory(PAGE));
    assert_eq!(raw::open_device(host, group, "0000:00:04.0"), Err(Errno::ENODEV), "another group's");
    let device = raw::open_device(host, group, "0000:00:03.0").expect("opens");
    raw::map(host, opened.context, MIB, PAGE, Some(&ram), RW).expect("mapped");
    assert_eq!(raw::unset_container(host, group), Err(Errno::EBUSY));

    host.close(group).expect("open");
    host.close(opened.handle()).expect("open");
    assert_eq!(host.ledger().mappings, 1, "held by the device");
    assert_eq!(host.open("/dev/vfio/3".as_ref(), HandleKind::Group), Err(Errno::EBUSY));
    assert!(opened.device().dma_read(Iova::new(MIB), &mut [0]).is_ok());

    host.close(device).expect("open");
    assert!(host.ledger().is_clear());
    assert_eq!(host.close(device), Err(Errno::EBADF));
    open_group(host, 3);
}

#[test]
fn the_container_forgets_everything_with_its_last_group() {
    let host = vtd();
    let opened = Opened::on(host.clone(), Dialect::Type1, 2);
    let (ram, [first, second]) = (memory(PAGE), [opened.members[0], opened.members[1]]);
    raw::map(&*host, opened.context, MIB, PAGE, Some(&ram), RW).expect("mapped");
    raw::unset_container(&*host, first).expect("leaves");
    assert_eq!(host.ledger().mappings, 1);
    assert_eq!(
        device(&host, 0).dma_read(Iova::new(MIB), &mut [0]).map_err(|fault| fault.why),
        Err(DmaError::NotAttached)
    );
    assert!(device(&host, 1).dma_read(Iova::new(MIB), &mut [0]).is_ok());

    raw::unset_container(&*host, second).expect("leaves");
    assert_eq!((host.ledger().mappings, host.ledger().locked), (0, 0));
    assert_eq!(raw::map(&*host, opened.context, MIB, PAGE, Some(&ram), RW), Err(Errno::EINVAL), "no driver any more");
    raw::set_container(&*host, first, opened.handle()).expect("joins again");
    raw::set_iommu(&*host, opened.handle(), IommuType::TYPE1).expect("another type even");
    opened.close();
    assert!(host.ledger().is_clear());
}

#[test]
fn everything_can_be_closed_in_any_order() {
    for profile in [Profile::vtd(), Profile::powernv9(), Profile::pseries()] {
        for dialect in crate::setting::dialects(&profile) {
            for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
                let opened = Opened::new(profile.clone(), dialect);
                let mut handles = vec![opened.handle()];
                handles.extend(&opened.members);
                if !matches!(dialect, Dialect::Ioas | Dialect::Compat | Dialect::CompatV1) {
                    handles.push(
                        raw::open_device(&*opened.host, opened.members[0], opened.device().address()).expect("opens"),
                    );
                }
                for handle in order.iter().filter_map(|n| handles.get(*n)) {
                    opened.host.close(*handle).expect("open");
                }
                assert!(opened.host.ledger().is_clear(), "{dialect:?}: {order:?}");
            }
        }
    }
}

#[test]
fn an_open_group_and_a_bound_device_node_exclude_each_other() {
    let host = vtd();
    let iommufd = open(&host, "/dev/iommu", HandleKind::Iommufd);
    let node = open_node(&host, 0);
    let group = open_group(&host, 3);
    assert_eq!(raw::bind(&*host, node, iommufd), Err(Errno::EBUSY), "its group is open");
    host.close(group).expect("open");
    raw::bind(&*host, node, iommufd).expect("now it is not");
    assert_eq!(host.open("/dev/vfio/3".as_ref(), HandleKind::Group), Err(Errno::EBUSY));
    host.close(node).expect("open");
    open_group(&host, 3);
}

#[test]
fn a_node_is_bound_once_and_to_an_iommufd() {
    let host = vtd();
    let (iommufd, container) =
        (open(&host, "/dev/iommu", HandleKind::Iommufd), open(&host, "/dev/vfio/vfio", HandleKind::Container));
    let (node, again) = (open_node(&host, 0), open_node(&host, 0));
    assert_eq!(raw::attach(&*host, node, 1), Err(Errno::EINVAL), "nothing but binding before it is bound");
    assert_eq!(raw::bind(&*host, node, container), Err(Errno::EBADFD));
    assert_eq!(raw::bind(&*host, node, iommufd), Ok(1));
    assert_eq!(raw::bind(&*host, node, iommufd), Err(Errno::EINVAL));
    assert_eq!(raw::bind(&*host, again, iommufd), Err(Errno::EINVAL), "open elsewhere");
    host.close(container).expect("open");
    assert_eq!(raw::bind(&*host, open_node(&host, 1), container), Err(Errno::EBADF));
}

#[test]
fn devices_of_one_group_belong_to_one_iommufd() {
    let mut profile = Profile::vtd();
    let second = profile.groups.remove(1).devices;
    profile.groups[0].devices.extend(second);
    let host = SoftHost::new(profile).expect("sound");
    let (ours, theirs) =
        (open(&host, "/dev/iommu", HandleKind::Iommufd), open(&host, "/dev/iommu", HandleKind::Iommufd));
    let (first, second) = (open_node(&host, 0), open_node(&host, 1));
    raw::bind(&*host, first, ours).expect("bound");
    assert_eq!(raw::bind(&*host, second, theirs), Err(Errno::EPERM));
    raw::bind(&*host, second, ours).expect("bound");
    host.close(first).expect("open");
    host.close(second).expect("open");
    raw::bind(&*host, open_node(&host, 1), theirs).expect("free again");
}

#[test]
fn a_forked_childs_map_and_remove_are_refused_on_spapr() {
    let opened = Opened::new(Profile::powernv9(), Dialect::Spapr);
    let ram = memory(PAGE);
    raw::register(&*opened.host, opened.handle(), Some(&ram), PAGE).expect("registered");
    let child = opened.host.fork();
    assert_eq!(raw::map(&*child, opened.context, MIB, PAGE, Some(&ram), RW), Err(Errno::EPERM));
    assert_eq!(raw::remove(&*child, opened.handle(), HIGH), Err(Errno::EPERM));
    assert_eq!(raw::check_extension(&*child, opened.handle(), Extension(7)), Ok(1));
    opened.close();
    assert!(opened.host.ledger().registrations == 1, "the child still holds the group");
    drop(child);
    assert!(opened.host.ledger().is_clear());
}

#[test]
fn the_end_of_a_process_closes_its_files_and_ends_its_leaks() {
    let host = SoftHost::new(Profile::powernv9()).expect("sound");
    let child = host.fork();
    let opened = Opened::on(child, Dialect::Spapr, 1);
    let ram = memory(PAGE);
    raw::register(&*opened.host, opened.handle(), Some(&ram), PAGE).expect("registered");
    raw::map(&*opened.host, opened.context, MIB, PAGE, Some(&ram), RW).expect("mapped");
    raw::unregister(&*opened.host, opened.handle(), Some(&ram), PAGE).expect("says the kernel");
    drop(opened);
    assert!(host.ledger().is_clear());
}

fn ask(host: &SoftHost, on: Handle, request: Request) -> Result<i32, Errno> {
    host.ioctl(on, &mut Command::bare(request))
}

#[test]
fn requests_are_known_on_their_own_kind_of_descriptor() {
    let opened = Opened::new(Profile::vtd(), Dialect::Type1);
    let (host, group) = (&*opened.host, opened.members[0]);
    assert_eq!(ask(host, opened.handle(), vfio::GROUP_UNSET_CONTAINER), Err(Errno::ENOTTY));
    assert_eq!(ask(host, group, vfio::GET_API_VERSION), Err(Errno::ENOTTY));
    assert_eq!(ask(host, opened.handle(), vfio::GET_API_VERSION), Ok(0));
    let device = raw::open_device(host, group, "0000:00:03.0").expect("opens");
    assert_eq!(ask(host, device, device::DEVICE_RESET), Ok(0));
    assert_eq!(ask(host, device, dmaspace_abi::device::DEVICE_BIND_IOMMUFD), Err(Errno::EINVAL));
    assert_eq!(host.pread(device, 0, &mut [0]), Err(Errno::EIO), "the memory of its BAR is disabled");
    assert_eq!(host.pread(device, 1 << 40, &mut [0]), Err(Errno::EINVAL), "it has no BAR 1");
}

#[test]
fn a_device_opened_by_a_plain_ioctl_is_closed_again() {
    let opened = Opened::new(Profile::vtd(), Dialect::Type1);
    let (host, group) = (&*opened.host, opened.members[0]);
    let mut name = *b"0000:00:03.0\0";
    assert_eq!(host.ioctl(group, &mut Command::with_bytes(vfio::GROUP_GET_DEVICE_FD, &mut name)), Err(Errno::EINVAL));
    assert_eq!(host.ledger().devices, 0);
    assert_eq!(raw::unset_container(host, group), Ok(0), "no device is open");
}
