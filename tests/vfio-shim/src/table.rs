//! The client's descriptors, and the calls on them that are answered here.

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dmaspace_abi::vfio::{CHECK_EXTENSION, GET_API_VERSION, GROUP_SET_CONTAINER, GROUP_UNSET_CONTAINER, SET_IOMMU};
use zerocopy::{FromBytes, IntoBytes};

use crate::answers::Answer;
use crate::argument::Argument;
use crate::container::Container;
use crate::settings::Settings;

/// The device number of `/dev/vfio/vfio` (linux: include/linux/miscdevice.h, VFIO_MINOR).
const CONTAINER_NODE: u64 = libc::makedev(10, 196);

/// `KVM_CHECK_EXTENSION` and `KVM_SET_DEVICE_ATTR`: type and number alone, since the other bits differ between
/// processors (linux: include/uapi/linux/kvm.h).
const KVM_CHECK_EXTENSION: u32 = 0xae03;
const KVM_SET_DEVICE_ATTR: u32 = 0xaee1;
const KVM_CAP_SPAPR_TCE_VFIO: u64 = 142;
const KVM_DEV_VFIO_GROUP: u32 = 1;
const KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE: u64 = 3;

/// The containers that were seen, and the groups in them, by the client's descriptors.
#[derive(Debug)]
struct Table {
    containers: BTreeMap<RawFd, Arc<Container>>,
    groups: BTreeMap<RawFd, Arc<Container>>,
}

static TABLE: Mutex<Table> = Mutex::new(Table { containers: BTreeMap::new(), groups: BTreeMap::new() });

/// The table. It is locked for look-ups and changes alone: no call is made and no container is dropped meanwhile.
fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The answer to a call of the client's; `None` if it is the kernel's to answer.
pub(crate) fn answer(descriptor: RawFd, request: u32, argument: Argument<'_>) -> Answer {
    match request & 0xffff {
        KVM_CHECK_EXTENSION => hidden(argument),
        KVM_SET_DEVICE_ATTR => told_to_kvm(descriptor, request, argument),
        number if number >> 8 == u32::from(b';') => answer_vfio(descriptor, request, argument),
        _ => None,
    }
}

fn answer_vfio(descriptor: RawFd, request: u32, argument: Argument<'_>) -> Answer {
    if request == GROUP_SET_CONTAINER.number {
        return join(descriptor, argument);
    }
    if request == GROUP_UNSET_CONTAINER.number {
        return leave(descriptor);
    }
    let known = table().containers.get(&descriptor).cloned();
    // Numbers that no other kind of descriptor has. Each client makes the last of them.
    let first = [GET_API_VERSION.number, CHECK_EXTENSION.number, SET_IOMMU.number].contains(&request);
    let container = match known {
        None if first => container(descriptor),
        known => known,
    };
    container?.answer(request, argument)
}

/// The container at a descriptor, which becomes known if it was not. `None` if it is no container.
fn container(descriptor: RawFd) -> Option<Arc<Container>> {
    if let Some(known) = table().containers.get(&descriptor) {
        return Some(known.clone());
    }
    let node = std::fs::metadata(format!("/proc/self/fd/{descriptor}")).ok()?;
    if node.rdev() != CONTAINER_NODE {
        return None;
    }
    let new = Arc::new(Container::new(descriptor));
    Some(table().containers.entry(descriptor).or_insert(new).clone())
}

fn join(group: RawFd, argument: Argument<'_>) -> Answer {
    let descriptor = match argument.read::<i32>() {
        Ok(descriptor) => descriptor,
        Err(errno) => return Some(Err(errno)),
    };
    // Another kind of container, an iommufd, is the kernel's.
    let container = container(descriptor)?;
    let joined = container.join(group);
    if joined.is_ok() {
        table().groups.insert(group, container);
    }
    Some(joined.map(|()| 0))
}

fn leave(group: RawFd) -> Answer {
    let container = table().groups.get(&group).cloned()?;
    let left = container.leave(group);
    if left.is_ok() {
        table().groups.remove(&group);
    }
    Some(left.map(|()| 0))
}

/// Forgets a descriptor that the client closes. A group that is closed leaves its container; the groups of a container
/// that is closed stay open, as the client's.
pub(crate) fn close(descriptor: RawFd) {
    let (container, container_of_group) = {
        let mut table = table();
        let container = table.containers.remove(&descriptor);
        if let Some(container) = &container {
            table.groups.retain(|_, of| !Arc::ptr_eq(of, container));
        }
        (container, table.groups.remove(&descriptor))
    };
    if let Some(container) = container_of_group {
        if let Err(errno) = container.leave(descriptor) {
            eprintln!("dmaspace-vfio-shim: the group at {descriptor} was closed and did not leave: {errno}");
        }
    }
    drop(container);
}

fn hidden(argument: Argument<'_>) -> Answer {
    let hides = Settings::of_process().hides_kvm_tables && argument.value() == KVM_CAP_SPAPR_TCE_VFIO;
    hides.then_some(Ok(0))
}

/// The argument of `KVM_SET_DEVICE_ATTR` (linux: include/uapi/linux/kvm.h, kvm_device_attr).
#[repr(C)]
#[derive(FromBytes, IntoBytes)]
struct DeviceAttribute {
    flags: u32,
    group: u32,
    attribute: u64,
    address: u64,
}

/// Passes a call on, and notes that KVM writes entries of a container from now on.
fn told_to_kvm(descriptor: RawFd, request: u32, argument: Argument<'_>) -> Answer {
    let told: DeviceAttribute = argument.read().ok()?;
    if (told.group, told.attribute) != (KVM_DEV_VFIO_GROUP, KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE) {
        return None;
    }
    let answer = argument.ask_kernel(descriptor, request);
    if answer.is_ok() {
        note_kvm_tables();
    }
    Some(answer)
}

/// The call names one group; that KVM may write the entries of another container too costs one call more for each
/// unmap there.
fn note_kvm_tables() {
    let containers: Vec<_> = table().containers.values().cloned().collect();
    for container in containers {
        container.note_kvm_tables();
    }
}
