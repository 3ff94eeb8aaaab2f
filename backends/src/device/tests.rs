use std::num::NonZeroU64;

use dmaspace_abi::device::{
    DeviceInfo, REGION_CAP_SPARSE_MMAP, REGION_HAS_CAPABILITIES, REGION_MMAP, REGION_READ, REGION_WRITE, RegionInfo,
    SparseArea, SparseMmap,
};
use dmaspace_abi::vfio::CapabilityHeader;
use dmaspace_core::door::HandleKind;

use super::region::parse;
use super::reply::Reply;
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
    let error = device.reset().expect_err("refused").to_string();
    let advice = "the device cannot be reset alone: use Device::hot_reset";
    assert_eq!(error, format!("0000:00:03.0: reset: VFIO_DEVICE_RESET: EINVAL; {advice}"));
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

/// A description whose capabilities are these bodies, each behind a header with its id.
fn with_capabilities(head: &[u8], bodies: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut reply = head.to_vec();
    for (n, (id, body)) in bodies.iter().enumerate() {
        let end = reply.len() + size_of::<CapabilityHeader>() + body.len();
        let next = if n + 1 < bodies.len() { u32::try_from(end).expect("small") } else { 0 };
        reply.extend(CapabilityHeader { id: *id, version: 1, next }.as_bytes());
        reply.extend(body);
    }
    reply
}

fn words(words: &[u32]) -> Vec<u8> {
    words.as_bytes().to_vec()
}

#[test]
fn every_capability_of_a_region_is_told() {
    let flags = REGION_READ | REGION_MMAP | REGION_HAS_CAPABILITIES;
    let info = RegionInfo { argsz: 4096, flags, index: 2, cap_offset: RegionInfo::SIZE, size: 0x8000, offset: 2 << 40 };
    let bodies = [
        (2, words(&[0x8000_8086, 7])),
        (3, Vec::new()),
        (4, 0x1_0000_0000_u64.to_ne_bytes().to_vec()),
        (5, words(&[25, 0])),
        (9, Vec::new()),
    ];
    let region = region(&with_capabilities(info.as_bytes(), &bodies)).expect("it is true");
    let expected = [
        RegionCapability::Type { kind: 0x8000_8086, subtype: 7 },
        RegionCapability::MsixMappable,
        RegionCapability::Nvlink2Ssatgt { target: 0x1_0000_0000 },
        RegionCapability::Nvlink2LinkSpeed { speed: 25 },
        RegionCapability::Unknown { id: 9, version: 1 },
    ];
    assert_eq!((region.capabilities.as_slice(), region.flags, region.offset), (&expected[..], flags, 2 << 40));
    assert_eq!(region.mappable.len(), 1, "all of it");
    let cut = with_capabilities(info.as_bytes(), &[(2, words(&[1]))]);
    assert_eq!(self::region(&cut), Err("a capability is cut off"));
}

#[test]
fn a_device_tells_its_kind_and_capabilities() {
    let describe = |flags, bodies: &[(u16, Vec<u8>)]| {
        let (cap_offset, argsz) = (DeviceInfo::SIZE, 4096);
        let info = DeviceInfo { argsz, flags, num_regions: 1, num_irqs: 3, cap_offset, pad: 0 };
        match properties::parse(&with_capabilities(info.as_bytes(), bodies)) {
            Ok(Reply::Complete(properties)) => Ok(properties),
            Ok(Reply::Needs(_)) => Err("more room"),
            Err(why) => Err(why),
        }
    };
    let kinds = [1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 8, 1 << 20]
        .map(|flag| describe(flag, &[]).map(|properties| properties.kind));
    let expected = [
        DeviceKind::Pci,
        DeviceKind::Platform,
        DeviceKind::Amba,
        DeviceKind::Ccw,
        DeviceKind::Ap,
        DeviceKind::FslMc,
        DeviceKind::Cdx,
        DeviceKind::Unknown,
    ];
    assert_eq!(kinds, expected.map(Ok));
    let properties = describe(0x83, &[(5, words(&[6, 0])), (1, Vec::new())]).expect("it is true");
    let atomic = DeviceCapability::AtomicCompletion { of_32_bits: false, of_64_bits: true, of_128_bits: true };
    assert_eq!(properties.capabilities, [atomic, DeviceCapability::Unknown { id: 1, version: 1 }]);
    assert!(properties.can_reset);
    assert_eq!(describe(0x82, &[(5, words(&[6]))]), Err("a capability is cut off"));
}

#[test]
fn affected_devices_are_told_by_address_and_owner() {
    let reply = |flags: u32, count: u32, devices: &[[u8; 8]]| [words(&[4096, flags, count]), devices.concat()].concat();
    let device = |owner: u32, devfn| {
        let [a, b, c, d] = owner.to_ne_bytes();
        let [low, high] = 0x12_u16.to_ne_bytes();
        [a, b, c, d, low, high, 5, devfn]
    };
    let affected = hot_reset::parse(&reply(0, 1, &[device(7, 0x1a)])).expect("it is true");
    assert_eq!((affected.devices[0].owner, affected.all_owned), (AffectedOwner::Group(7), None));
    assert_eq!(affected.devices[0].address.to_string(), "0012:05:03.2");
    let devices = [device(0, 0), device(u32::MAX, 1), device(3, 2)];
    let affected = hot_reset::parse(&reply(1, 3, &devices)).expect("it is true");
    let owners: Vec<_> = affected.devices.iter().map(|device| device.owner).collect();
    let id = dmaspace_core::contract::DeviceId::new(3);
    assert_eq!(owners, [AffectedOwner::OfBoundGroup, AffectedOwner::Other, AffectedOwner::Bound(id)]);
    assert_eq!(affected.all_owned, Some(false));
    assert_eq!(hot_reset::parse(&reply(0, 2, &[device(7, 0)])), Err("its list of devices is cut off"));
    assert_eq!(hot_reset::parse(&reply(0, u32::MAX, &[])), Err("its list of devices is cut off"));
    assert_eq!(hot_reset::parse(&[0; 11]), Err("it is shorter than its struct"));
}
