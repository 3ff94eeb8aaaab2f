use std::num::NonZeroU64;

use dmaspace_abi::device::{
    REGION_CAP_SPARSE_MMAP, REGION_HAS_CAPABILITIES, REGION_MMAP, REGION_READ, REGION_WRITE, RegionInfo, SparseArea,
    SparseMmap,
};
use dmaspace_abi::vfio::CapabilityHeader;
use dmaspace_core::door::HandleKind;

use super::region::{Reply, parse};
use super::*;
use crate::scripted::{self, Scripted};

fn device() -> (Arc<Scripted>, Device) {
    let door = scripted::door();
    let path = std::path::Path::new("/dev/vfio/devices/vfio0");
    let node = OwnedHandle::open(door.clone(), path, HandleKind::Device).expect("opens");
    let cdev = Arc::new(Cdev::new(node, "0000:00:03.0"));
    let device = Device::of_node(door.clone(), "0000:00:03.0", cdev, None);
    door.texts();
    (door, device)
}

/// A description with a sparse list of `areas`, whose head claims `claimed` of them.
fn sparse(size: u64, areas: &[(u64, u64)], claimed: u32) -> Vec<u8> {
    let flags = REGION_READ | REGION_WRITE | REGION_MMAP | REGION_HAS_CAPABILITIES;
    let info = RegionInfo { argsz: 4096, flags, index: 2, cap_offset: RegionInfo::SIZE, size, offset: 2 << 40 };
    let header = CapabilityHeader { id: REGION_CAP_SPARSE_MMAP, version: 1, next: 0 };
    let head = SparseMmap { header, nr_areas: claimed, reserved: 0 };
    let areas = areas.iter().flat_map(|&(offset, size)| SparseArea { offset, size }.as_bytes().to_vec());
    [info.as_bytes().to_vec(), head.as_bytes().to_vec(), areas.collect()].concat()
}

fn region(reply: &[u8]) -> Result<Region, &'static str> {
    match parse(reply)? {
        Reply::Complete(region) => Ok(region),
        Reply::Needs(_) => Err("more room"),
    }
}

fn mappable(reply: &[u8]) -> Result<Vec<(u64, u64)>, &'static str> {
    Ok(region(reply)?.mappable.iter().map(|area| (area.offset, area.len.get())).collect())
}

#[test]
fn enabling_sets_two_bits_and_keeps_the_others() {
    let (door, device) = device();
    let config = device.region(REGION_CONFIG).expect("described");
    device.write(&config, PCI_COMMAND, &[0x40, 0x05]).expect("written");
    door.texts();
    device.enable().expect("nothing refuses");
    assert_eq!(door.texts(), ["VFIO_DEVICE_GET_REGION_INFO", "pread 0x70000000004", "pwrite 0x70000000004 [46, 5]"]);
}

#[test]
fn nothing_outside_a_region_is_reached() {
    let (door, device) = device();
    let bar = device.region(0).expect("described");
    door.texts();
    for (offset, len) in [(0x1000, 1), (0xfff, 2), (u64::MAX, 1)] {
        let error = device.read(&bar, offset, &mut vec![0; len]).expect_err("outside");
        assert_eq!(error.problem, DeviceProblem::Outside { offset, len: len as u64, size: 0x1000 });
    }
    let error = device.write(&bar, 0x1000, &[0]).expect_err("outside");
    assert_eq!(error.to_string(), "0000:00:03.0: write BAR 0: 1 bytes at 0x1000 do not lie inside its 0x1000");
    let beyond = RegionArea { offset: 0, len: NonZeroU64::new(0x1001).expect("not zero") };
    assert!(device.map(&bar, beyond).is_err());
    assert_eq!(door.texts(), Vec::<String>::new());
}

#[test]
fn a_read_that_stops_early_is_an_error() {
    let (_door, device) = device();
    let bar = device.region(0).expect("described");
    let error = device.read(&bar, 60, &mut [0; 8]).expect_err("the door has 64 bytes");
    assert_eq!(error.problem, DeviceProblem::Short(4));
}

#[test]
fn a_whole_bar_is_mapped_with_its_own_access() {
    let (door, device) = device();
    let bar = device.region(1).expect("described");
    assert_eq!(bar.mappable.len(), 1);
    door.texts();
    device.map(&bar, bar.mappable[0]).expect("nothing refuses");
    assert_eq!(door.texts(), ["mmap 0x1000 at 0x10000000000 read-write"]);
}

#[test]
fn a_bar_is_exported_with_its_mapping_and_the_export_is_closed_with_the_memory() {
    let (door, device) = device();
    let bar = device.region(1).expect("described");
    door.texts();
    let memory = device.map_exported(&bar, bar.mappable[0]).expect("nothing refuses");
    assert_eq!(
        memory.file().map(|(file, offset)| (file.handle().map(Handle::kind), offset)),
        Some((Some(HandleKind::Export), 0))
    );
    let calls = door.texts();
    assert_eq!(calls.iter().map(|call| &call[..4]).collect::<Vec<_>>(), ["mmap", "VFIO"]);
    assert_eq!(door.open_names().len(), 2);
    drop(memory);
    assert_eq!(door.open_names(), ["/dev/vfio/devices/vfio0"]);
}

#[test]
fn a_bar_that_cannot_be_exported_is_mapped_all_the_same() {
    for errno in [Errno::ENOTTY, Errno::EOPNOTSUPP] {
        let (door, device) = device();
        let bar = device.region(1).expect("described");
        scripted::refuse_to_open(&door, errno);
        assert_eq!(device.map_exported(&bar, bar.mappable[0]).expect("by address").file(), None);
    }
    let (door, device) = device();
    let bar = device.region(1).expect("described");
    scripted::refuse_to_open(&door, Errno::EMFILE);
    let error = device.map_exported(&bar, bar.mappable[0]).expect_err("refused").to_string();
    assert_eq!(error, "0000:00:03.0: export BAR 1: VFIO_DEVICE_FEATURE: EMFILE");
    let beyond = RegionArea { offset: 0x1000, len: NonZeroU64::new(1).expect("not zero") };
    assert_eq!(device.export(&bar, beyond).expect_err("outside").action, Action::Export(1));
}

#[test]
fn an_error_of_the_kernel_names_device_and_action() {
    let (door, device) = device();
    door.refuse("VFIO_DEVICE_RESET", Errno::EINVAL);
    assert_eq!(device.reset().expect_err("refused").to_string(), "0000:00:03.0: reset: VFIO_DEVICE_RESET: EINVAL");
    door.refuse("VFIO_DEVICE_GET_REGION_INFO", Errno::EINVAL);
    let error = device.region(REGION_CONFIG).expect_err("refused").to_string();
    assert_eq!(error, "0000:00:03.0: describe configuration space: VFIO_DEVICE_GET_REGION_INFO: EINVAL");
}

#[test]
fn only_the_areas_of_a_sparse_region_can_be_mapped_in_order() {
    assert_eq!(mappable(&sparse(0x8000, &[(0x4000, 0x4000), (0, 0x2000)], 2)), Ok(vec![(0, 0x2000), (0x4000, 0x4000)]));
    assert_eq!(mappable(&sparse(0x8000, &[(0, 0), (0, 0x8000)], 2)), Ok(vec![(0, 0x8000)]));
    assert_eq!(mappable(&sparse(0x8000, &[], 0)), Ok(vec![]));
}

#[test]
fn sparse_lists_that_cannot_be_true_are_refused() {
    assert_eq!(mappable(&sparse(0x8000, &[(0, 0x1000)], 2)), Err("its list of areas is cut off"));
    assert_eq!(mappable(&sparse(0x8000, &[(0, 0x1000)], u32::MAX)), Err("its list of areas is cut off"));
    assert_eq!(mappable(&sparse(0x8000, &[(0x7000, 0x1001)], 1)), Err("an area reaches past its region"));
    assert_eq!(mappable(&sparse(0x8000, &[(u64::MAX, 2)], 1)), Err("an area reaches past its region"));
}

#[test]
fn a_region_that_is_not_mappable_has_no_areas_whatever_its_list_says() {
    let mut reply = sparse(0x8000, &[(0, 0x8000)], 1);
    reply[4] &= !u8::try_from(REGION_MMAP).expect("a low bit");
    assert_eq!(mappable(&reply), Ok(vec![]));
}

#[test]
fn capabilities_without_a_place_want_more_room_or_cannot_be_true() {
    let mut reply = sparse(0x8000, &[], 0);
    reply[12..16].fill(0);
    assert!(matches!(parse(&reply), Ok(Reply::Needs(4096))));
    reply[..4].copy_from_slice(&RegionInfo::SIZE.to_ne_bytes());
    assert_eq!(region(&reply), Err("its capabilities are nowhere"));
    assert_eq!(region(&reply[..31]), Err("it is shorter than its struct"));
}
