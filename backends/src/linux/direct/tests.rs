use std::path::Path;
use std::sync::Arc;

use dmaspace_core::door::{Door, Lease};
use dmaspace_core::{Access, HostAddress, HostMemory, Iova};
use zerocopy::IntoBytes as _;

use super::*;
use crate::LinuxDoor;
use crate::linux::tests::{anonymous_memory, lease};

const IOAS: u32 = 7;

fn null(kind: HandleKind) -> OwnedHandle {
    OwnedHandle::open(Arc::new(LinuxDoor::new()), Path::new("/dev/null"), kind).expect("every user may open it")
}

fn map_of<'a>(memory: &'a Lease<'a>, ioas: Option<u32>) -> DirectMap<'a> {
    DirectMap { ioas, at: Iova::new(0x4000), memory, access: Access::READ }
}

fn unmap_of(ioas: Option<u32>) -> DirectUnmap {
    DirectUnmap { ioas, first: Iova::new(0x4000), length: 0x2000 }
}

#[test]
fn the_structs_are_those_of_the_commands_with_the_address_filled_in() {
    let memory = anonymous_memory(0x2000);
    let (lease, vaddr) = (lease(&memory), memory.address().get());
    let dma = MapDma { argsz: 32, flags: 1, vaddr, iova: 0x4000, size: 0x2000 };
    assert_eq!(dma_map(&map_of(&lease, None)), dma);
    let in_ioas = IoasMap { size: 40, flags: 5, ioas_id: 7, reserved: 0, user_va: vaddr, length: 0x2000, iova: 0x4000 };
    assert_eq!(ioas_map(&map_of(&lease, Some(IOAS)), IOAS).as_bytes(), in_ioas.as_bytes());
}

#[test]
fn the_calls_reach_the_kernel_on_the_kinds_that_have_them() {
    let memory = anonymous_memory(0x2000);
    let lease = lease(&memory);
    let made = Some(Err(Errno::ENOTTY));
    for (kind, in_container, in_ioas) in [
        (HandleKind::Container, made, None),
        (HandleKind::Iommufd, made, made),
        (HandleKind::Group, None, None),
        (HandleKind::Device, None, None),
    ] {
        let on = null(kind);
        for (ioas, expected) in [(None, in_container), (Some(IOAS), in_ioas)] {
            assert_eq!(on.door().map_directly(&on, &map_of(&lease, ioas)), expected, "{kind:?}, {ioas:?}");
            let mut unmap = unmap_of(ioas);
            assert_eq!(on.door().unmap_directly(&on, &mut unmap), expected, "{kind:?}, {ioas:?}");
            assert_eq!(unmap, unmap_of(ioas), "the kernel wrote nothing back");
        }
    }
}

#[test]
fn memory_that_is_not_there_is_not_mapped() {
    let memory = HostMemory::unbacked(HostAddress::new(0x7000_0000), 0x1000.try_into().expect("not zero"));
    let memory = memory.expect("no wrap");
    let lease = Lease::of_unbacked(&memory).expect("there is no memory");
    let container = null(HandleKind::Container);
    let mapped = container.door().map_directly(&container, &map_of(&lease, None));
    assert_eq!(mapped, Some(Err(Errno::EFAULT)));
}

#[test]
fn a_handle_of_a_door_without_descriptors_needs_commands() {
    let soft = dmaspace_soft::SoftHost::new(dmaspace_soft::Profile::vtd()).expect("a preset");
    let container = soft.open(Path::new("/dev/vfio/vfio"), HandleKind::Container).expect("a preset has it");
    let container = OwnedHandle::simulated(soft, container).expect("no real door");
    let door = LinuxDoor::new();
    assert_eq!(door.unmap_directly(&container, &mut unmap_of(None)), None);
}

#[test]
fn an_owned_handle_keeps_its_descriptor_until_it_is_dropped() {
    let door = Arc::new(LinuxDoor::new());
    let owned = OwnedHandle::open(door.clone(), Path::new("/dev/null"), HandleKind::Container).expect("opens");
    door.close(owned.handle()).expect("it is open");
    assert_eq!(door.unmap_directly(&owned, &mut unmap_of(None)), Some(Err(Errno::ENOTTY)));
    let descriptor = owned.descriptor_held().expect("a file").as_raw_fd();
    drop(owned);
    let left = std::fs::read_link(format!("/proc/self/fd/{descriptor}")).ok();
    assert_ne!(left.as_deref(), Some(Path::new("/dev/null")), "the last owner has closed it");
}
