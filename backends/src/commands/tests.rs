use dmaspace_core::HostAddress;
use dmaspace_core::door::Handle;
use zerocopy::IntoBytes;

use super::*;
use crate::linux::tests::{anonymous_memory, lease as lease_of, point};

const KINDS: [HandleKind; 6] = [
    HandleKind::Container,
    HandleKind::Group,
    HandleKind::Device,
    HandleKind::Iommufd,
    HandleKind::Export,
    HandleKind::Migration,
];

fn map_dma(size: u64) -> vfio::MapDma {
    vfio::MapDma { argsz: vfio::MapDma::SIZE, flags: vfio::MAP_READ, size, ..Default::default() }
}

fn ranges(num_iovas: u32) -> iommufd::IoasIovaRanges {
    iommufd::IoasIovaRanges { size: iommufd::IoasIovaRanges::SIZE, num_iovas, ..Default::default() }
}

/// The refusal of `request` with `bytes` and `attachments`.
fn refusal<'a>(
    kind: HandleKind,
    request: Request,
    bytes: &'a mut [u8],
    attachments: &'a mut [Attachment<'a>],
) -> Option<Errno> {
    judge(kind, &Command::with_bytes(request, bytes).attaching(attachments)).err()
}

/// The refusal of `request` with one attachment.
fn refusal_of_one(
    kind: HandleKind,
    request: Request,
    bytes: &mut [u8],
    offset: usize,
    what: Attached<'_>,
) -> Option<Errno> {
    refusal(kind, request, bytes, &mut [Attachment { offset, what }])
}

#[test]
fn no_number_is_listed_twice_with_one_size_for_a_kind() {
    for kind in KINDS {
        let mut listed: Vec<_> = rules(kind).iter().map(|rule| (rule.request.number, distinction(rule))).collect();
        listed.sort_unstable();
        listed.dedup();
        assert_eq!(listed.len(), rules(kind).len(), "{kind:?}");
    }
}

/// The flags of a feature and the size of a struct, by which commands of one number differ. A command with two
/// attachments differs by them.
fn distinction(rule: &Rule) -> (u32, u32) {
    match &rule.shape {
        Shape::Struct(layout) => (0, layout.least),
        Shape::Feature(flags, layout) => (*flags, layout.least),
        _ => (0, 0),
    }
}

/// The struct of a rule, if it has one.
fn layout_of(rule: &Rule) -> Option<&Layout> {
    match &rule.shape {
        Shape::Struct(layout) | Shape::Two(layout, _) | Shape::Feature(_, layout) => Some(layout),
        _ => None,
    }
}

/// The size of a field.
fn width(holds: &Holds) -> usize {
    match holds {
        Holds::Descriptor(_)
        | Holds::Descriptors { .. }
        | Holds::Eventfds { .. }
        | Holds::Opens(_)
        | Holds::Zero
        | Holds::File { .. }
        | Holds::OneRangeToExport => 4,
        _ => 8,
    }
}

#[test]
fn a_bitmap_must_have_the_bytes_its_struct_claims() {
    let get = |size| type1::DirtyBitmap {
        argsz: type1::DirtyBitmap::SIZE,
        flags: type1::DIRTY_GET_BITMAP,
        bitmap: type1::Bitmap { size, ..Default::default() },
        ..Default::default()
    };
    let at = offset_of!(type1::DirtyBitmap, bitmap) + offset_of!(type1::Bitmap, data);
    for (size, refused) in [(8, None), (16, None), (24, Some(Errno::EINVAL)), (u64::MAX, Some(Errno::EINVAL))] {
        let (mut get, mut bits) = (get(size), [0_u64; 2]);
        let bits = Attached::Buffer(bits.as_mut_bytes());
        let said = refusal_of_one(HandleKind::Container, type1::DIRTY_PAGES, get.as_mut_bytes(), at, bits);
        assert_eq!(said, refused, "{size}");
    }
    let mut start = [type1::DIRTY_BITMAP_HEAD, type1::DIRTY_START];
    assert_eq!(refusal(HandleKind::Container, type1::DIRTY_PAGES, start.as_mut_bytes(), &mut []), None);
    let unattached = refusal(HandleKind::Container, type1::DIRTY_PAGES, get(8).as_mut_bytes(), &mut []);
    assert_eq!(unattached, Some(Errno::EINVAL));
}

#[test]
fn a_log_must_have_the_whole_page_it_ends_in() {
    let page = usize::try_from(host_page().bytes()).expect("small");
    let at = offset_of!(iommufd::HwptGetDirtyBitmap, data);
    let mut bits = vec![0_u8; 3 * page];
    let begin = bits.as_ptr().align_offset(page);
    // Bits for as many host pages as a page has bits.
    let length = (page * page * 8) as u64;
    for (bytes, length, refused) in [
        (page, length, None),
        (page, length - 1, None),
        (page, 1, None),
        (page - 1, 1, Some(Errno::EINVAL)),
        (page, length + 1, Some(Errno::EINVAL)),
        (2 * page, length + 1, None),
        (page, u64::MAX, Some(Errno::EINVAL)),
    ] {
        let size = iommufd::HwptGetDirtyBitmap::SIZE;
        let mut get = iommufd::HwptGetDirtyBitmap { size, length, page_size: page as u64, ..Default::default() };
        let bits = Attached::Buffer(&mut bits[begin..begin + bytes]);
        let request = iommufd::HWPT_GET_DIRTY_BITMAP;
        let said = refusal_of_one(HandleKind::Iommufd, request, get.as_mut_bytes(), at, bits);
        assert_eq!(said, refused, "{bytes} {length}");
    }
}

#[test]
fn no_driver_of_an_iommu_writes_where_a_caller_says() {
    let size = iommufd::HwInfo::SIZE;
    for (data_len, data_uptr) in [(8, 0), (0, 0x1000), (8, 0x1000)] {
        let mut info = iommufd::HwInfo { size, data_len, data_uptr, ..Default::default() };
        let said = refusal(HandleKind::Iommufd, iommufd::GET_HW_INFO, info.as_mut_bytes(), &mut []);
        assert_eq!(said, Some(Errno::EINVAL));
    }
}

#[test]
fn every_field_lies_inside_its_struct_at_its_least() {
    for rule in KINDS.into_iter().flat_map(rules) {
        let Some(layout) = layout_of(rule) else { continue };
        let second = if let Shape::Two(_, second) = &rule.shape { Some(second) } else { None };
        for field in layout.field.iter().chain(second) {
            assert!(field.at + width(&field.holds) <= layout.least as usize, "{}", rule.request.name);
        }
    }
}

#[test]
fn a_number_is_known_on_its_own_kind_of_handle_only() {
    for (kind, request) in [
        (HandleKind::Group, vfio::MAP_DMA),
        (HandleKind::Device, vfio::UNMAP_DMA),
        (HandleKind::Container, iommufd::IOAS_MAP),
        (HandleKind::Iommufd, spapr::ENABLE),
        (
            HandleKind::Container,
            Request { number: vfio::MAP_DMA.number ^ 0x2000_0000, name: "the other architecture's" },
        ),
    ] {
        assert_eq!(judge(kind, &Command::bare(request)).err(), Some(Errno::ENOTTY), "{kind:?} {request:?}");
    }
}

#[test]
fn an_argument_of_another_kind_is_refused() {
    let mut bytes = [0; 64];
    assert_eq!(judge(HandleKind::Container, &Command::bare(vfio::MAP_DMA)).err(), Some(Errno::EINVAL));
    assert_eq!(judge(HandleKind::Container, &Command::with_value(vfio::MAP_DMA, 0)).err(), Some(Errno::EINVAL));
    assert_eq!(judge(HandleKind::Container, &Command::bare(vfio::CHECK_EXTENSION)).err(), Some(Errno::EINVAL));
    assert_eq!(refusal(HandleKind::Container, vfio::SET_IOMMU, &mut bytes, &mut []), Some(Errno::EINVAL));
    assert!(judge(HandleKind::Container, &Command::with_value(vfio::SET_IOMMU, 3)).is_ok());
    assert!(judge(HandleKind::Group, &Command::bare(vfio::GROUP_UNSET_CONTAINER)).is_ok());
}

#[test]
fn the_size_a_struct_claims_must_be_there_and_be_the_kernels() {
    let cases = [
        // argsz, bytes given, refused
        (24, 24, None),
        (24, 64, None),
        (24, 23, Some(Errno::EINVAL)),
        (23, 24, Some(Errno::EINVAL)),
        (25, 64, Some(Errno::EINVAL)),
        (0, 24, Some(Errno::EINVAL)),
        (24, 3, Some(Errno::EINVAL)),
    ];
    for (argsz, given, expected) in cases {
        let unmap = vfio::UnmapDma { argsz, ..Default::default() };
        let mut bytes = [0; 64];
        bytes[..24].copy_from_slice(unmap.as_bytes());
        let refused = refusal(HandleKind::Container, vfio::UNMAP_DMA, &mut bytes[..given], &mut []);
        assert_eq!(refused, expected, "argsz {argsz} in {given} bytes");
    }
}

#[test]
fn a_reply_may_have_any_room_that_is_there() {
    for (argsz, given, expected) in
        [(16u32, 16, None), (4096, 4096, None), (4097, 4096, Some(Errno::EINVAL)), (15, 4096, Some(Errno::EINVAL))]
    {
        let mut bytes = vec![0xff; given];
        bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
        assert_eq!(refusal(HandleKind::Container, type1::GET_INFO, &mut bytes, &mut []), expected, "argsz {argsz}");
    }
}

#[test]
fn flags_that_bring_a_pointer_are_refused() {
    let unknown_flag = 1 << 3;
    let memory = anonymous_memory(0x1000);
    let mut map = map_dma(0x1000);
    map.flags |= unknown_flag;
    let lease = lease_of(&memory);
    let attached = Attached::Memory(&lease);
    assert_eq!(
        refusal_of_one(HandleKind::Container, vfio::MAP_DMA, map.as_mut_bytes(), 8, attached),
        Some(Errno::EINVAL)
    );

    let bitmap_flag = 1;
    let mut unmap = vfio::UnmapDma { argsz: vfio::UnmapDma::SIZE, flags: bitmap_flag, ..Default::default() };
    assert_eq!(refusal(HandleKind::Container, vfio::UNMAP_DMA, unmap.as_mut_bytes(), &mut []), Some(Errno::EINVAL));
}

#[test]
fn memory_must_be_attached_to_its_field_once_and_be_as_long_as_the_mapping() {
    let memory = anonymous_memory(0x2000);
    let refused = |size, offset| {
        let lease = lease_of(&memory);
        let attached = Attached::Memory(&lease);
        refusal_of_one(HandleKind::Container, vfio::MAP_DMA, map_dma(size).as_mut_bytes(), offset, attached)
    };
    assert_eq!(refused(0x2000, 8), None);
    assert_eq!(refused(0x2001, 8), Some(Errno::EINVAL));
    assert_eq!(refused(u64::MAX, 8), Some(Errno::EINVAL));
    assert_eq!(refused(0x2000, 16), Some(Errno::EINVAL));
    assert_eq!(refused(0x2000, usize::MAX), Some(Errno::EINVAL));

    let mut map = map_dma(0x1000);
    assert_eq!(refusal(HandleKind::Container, vfio::MAP_DMA, map.as_mut_bytes(), &mut []), Some(Errno::EINVAL));
    let lease = lease_of(&memory);
    let mut twice = [8, 8].map(|offset| Attachment { offset, what: Attached::Memory(&lease) });
    assert_eq!(refusal(HandleKind::Container, vfio::MAP_DMA, map.as_mut_bytes(), &mut twice), Some(Errno::EINVAL));
}

#[test]
fn a_file_is_mapped_no_further_than_the_memory_it_is_attached_for() {
    let file = dmaspace_core::MemoryFile::unbacked(1);
    let memory = anonymous_memory(0x2000);
    let known = memory.clone().in_file(file.clone(), 0x8000);
    let unbacked = std::num::NonZeroU64::new(0x2000)
        .and_then(|len| dmaspace_core::HostMemory::unbacked(HostAddress::new(0x1000), len));
    let unbacked = unbacked.expect("no wrap").in_file(file, 0x8000);
    let refused = |memory: &dmaspace_core::HostMemory, start, length, fd, flags| {
        let mut map = iommufd::IoasMapFile { size: 40, flags, fd, start, length, ..Default::default() };
        let lease = lease_of(memory);
        let attached = Attached::FileOf(&lease);
        refusal_of_one(HandleKind::Iommufd, iommufd::IOAS_MAP_FILE, map.as_mut_bytes(), 12, attached)
    };
    assert_eq!(refused(&known, 0x8000, 0x2000, 0, 7), None);
    assert_eq!(refused(&known, 0x8000, 0x2001, 0, 7), Some(Errno::EINVAL));
    assert_eq!(refused(&known, 0x8001, 0x1000, 0, 7), Some(Errno::EINVAL));
    assert_eq!(refused(&known, 0x8000, 0x1000, 3, 7), Some(Errno::EINVAL), "a descriptor the caller wrote");
    assert_eq!(refused(&known, 0x8000, 0x1000, 0, 8), Some(Errno::EINVAL), "a flag of tomorrow");
    assert_eq!(refused(&memory, 0, 0x1000, 0, 7), Some(Errno::EINVAL), "no file");
    assert_eq!(refused(&unbacked, 0x8000, 0x1000, 0, 7), Some(Errno::EFAULT));
}

#[test]
fn an_iommufd_changes_process_by_a_request_or_is_asked_by_half_of_one() {
    let refused = |size, reserved| {
        let mut change = iommufd::IoasChangeProcess { size, reserved };
        refusal(HandleKind::Iommufd, iommufd::IOAS_CHANGE_PROCESS, change.as_mut_bytes(), &mut [])
    };
    assert_eq!([refused(8, 0), refused(4, 0)], [None, None]);
    assert_eq!(refused(3, 0), Some(Errno::EINVAL));
    assert_eq!(refused(9, 0), Some(Errno::EINVAL), "there are no more bytes");
    assert_eq!(refused(8, 1), Some(Errno::EINVAL), "a later kernel may give it a meaning");
}

#[test]
fn of_exports_only_the_one_of_one_range_is_asked_for() {
    let refused = |change: fn(&mut device::ExportRange)| {
        let (argsz, flags) = (device::ExportRange::SIZE, device::FEATURE_EXPORT);
        let mut export = device::ExportRange { argsz, flags, nr_ranges: 1, length: 0x1000, ..Default::default() };
        change(&mut export);
        refusal(HandleKind::Device, device::DEVICE_FEATURE, export.as_mut_bytes(), &mut [])
    };
    assert_eq!(refused(|_| {}), None);
    assert_eq!(refused(|export| export.nr_ranges = 2), Some(Errno::EINVAL), "they are not there");
    assert_eq!(refused(|export| export.flags = (1 << 16) | 8), Some(Errno::EINVAL), "that one holds a pointer");
    assert_eq!(refused(|export| export.flags = 11), Some(Errno::EINVAL));
    assert_eq!(refused(|export| export.argsz = 41), Some(Errno::EINVAL));
}

#[test]
fn an_address_the_caller_wrote_is_refused() {
    let memory = anonymous_memory(0x1000);
    let mut map = map_dma(0x1000);
    map.vaddr = 1;
    let lease = lease_of(&memory);
    let attached = Attached::Memory(&lease);
    assert_eq!(
        refusal_of_one(HandleKind::Container, vfio::MAP_DMA, map.as_mut_bytes(), 8, attached),
        Some(Errno::EINVAL)
    );
}

#[test]
fn memory_that_is_not_there_is_a_bad_address() {
    let page = std::num::NonZeroU64::new(0x1000).expect("not zero");
    let nothing = dmaspace_core::HostMemory::unbacked(HostAddress::new(0x1000), page).expect("no wrap");
    let mut map = map_dma(0x1000);
    let lease = lease_of(&nothing);
    let attached = Attached::Memory(&lease);
    assert_eq!(
        refusal_of_one(HandleKind::Container, vfio::MAP_DMA, map.as_mut_bytes(), 8, attached),
        Some(Errno::EFAULT)
    );
}

#[test]
fn something_else_than_the_field_holds_is_refused() {
    let container = Handle::new(1, HandleKind::Container);
    let mut map = map_dma(0x1000);
    for attached in [Attached::Handle(container), Attached::Buffer(&mut [0; 0x1000])] {
        let refused = refusal_of_one(HandleKind::Container, vfio::MAP_DMA, map.as_mut_bytes(), 8, attached);
        assert_eq!(refused, Some(Errno::EINVAL));
    }
}

#[test]
fn an_array_must_hold_as_many_elements_as_the_count_says() {
    let refused = |count, mut buffer: Vec<u8>| {
        let attached = Attached::Buffer(&mut buffer);
        refusal_of_one(HandleKind::Iommufd, iommufd::IOAS_IOVA_RANGES, ranges(count).as_mut_bytes(), 16, attached)
    };
    assert_eq!(refused(2, vec![0; 32]), None);
    assert_eq!(refused(2, vec![0; 31]), Some(Errno::EINVAL));
    assert_eq!(refused(u32::MAX, vec![0; 32]), Some(Errno::EINVAL));
    let mut none = ranges(0);
    assert_eq!(refusal(HandleKind::Iommufd, iommufd::IOAS_IOVA_RANGES, none.as_mut_bytes(), &mut []), None);
    let mut one = ranges(1);
    let refused = refusal(HandleKind::Iommufd, iommufd::IOAS_IOVA_RANGES, one.as_mut_bytes(), &mut []);
    assert_eq!(refused, Some(Errno::EINVAL));
}

#[test]
fn a_group_joins_only_containers_and_an_iommufd_in_their_place() {
    for (kind, expected) in [
        (HandleKind::Container, None),
        (HandleKind::Iommufd, None),
        (HandleKind::Group, Some(Errno::EINVAL)),
        (HandleKind::Device, Some(Errno::EINVAL)),
    ] {
        let attached = Attached::Container(point(Handle::new(1, kind)));
        let refused = refusal_of_one(HandleKind::Group, vfio::GROUP_SET_CONTAINER, &mut [0; 4], 0, attached);
        assert_eq!(refused, expected, "{kind:?}");
    }
    let refused = refusal(HandleKind::Group, vfio::GROUP_SET_CONTAINER, &mut [0; 4], &mut []);
    assert_eq!(refused, Some(Errno::EINVAL));
}

#[test]
fn a_group_joins_a_container_that_a_space_names_and_not_by_its_handle_alone() {
    let attached = Attached::Handle(Handle::new(1, HandleKind::Container));
    let refused = refusal_of_one(HandleKind::Group, vfio::GROUP_SET_CONTAINER, &mut [0; 4], 0, attached);
    assert_eq!(refused, Some(Errno::EINVAL));
}

#[test]
fn a_copy_needs_a_lease_of_memory_as_long_as_it() {
    let mut copy = iommufd::IoasCopy { size: iommufd::IoasCopy::SIZE, length: 0x1000, ..Default::default() };
    let at = offset_of!(iommufd::IoasCopy, length);
    let refused = refusal(HandleKind::Iommufd, iommufd::IOAS_COPY, copy.as_mut_bytes(), &mut []);
    assert_eq!(refused, Some(Errno::EINVAL));
    for (len, expected) in [(0x1000, None), (0x800, Some(Errno::EINVAL))] {
        let memory = anonymous_memory(len);
        let lease = lease_of(&memory);
        let attached = Attached::Copied(&lease);
        let refused = refusal_of_one(HandleKind::Iommufd, iommufd::IOAS_COPY, copy.as_mut_bytes(), at, attached);
        assert_eq!(refused, expected, "{len:#x}");
    }
}

#[test]
fn a_name_must_end() {
    let mut endless = *b"0000:00:03.0";
    let refused = refusal(HandleKind::Group, vfio::GROUP_GET_DEVICE_FD, &mut endless, &mut []);
    assert_eq!(refused, Some(Errno::EINVAL));
    let mut name = *b"0000:00:03.0\0";
    assert_eq!(refusal(HandleKind::Group, vfio::GROUP_GET_DEVICE_FD, &mut name, &mut []), None);
}

#[test]
fn only_opening_a_device_and_exporting_a_bar_opens_anything() {
    let openers = KINDS.into_iter().flat_map(rules).filter_map(|rule| Some((rule.request, rule.opens()?)));
    let expected = [(vfio::GROUP_GET_DEVICE_FD, HandleKind::Device), (device::DEVICE_FEATURE, HandleKind::Export)];
    assert_eq!(openers.collect::<Vec<_>>(), expected);
}

/// A SET_IRQS of `count` interrupts with `data` behind the head.
fn set_irqs(argsz: u32, flags: u32, count: u32, data: usize) -> Vec<u8> {
    let head = device::IrqSet { argsz, flags, index: 2, start: 0, count };
    let mut bytes = head.as_bytes().to_vec();
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn eventfds_are_as_many_as_the_struct_claims() {
    let null = std::fs::File::open("/dev/null").expect("it is there");
    let eventfd = Some(std::os::fd::AsFd::as_fd(&null));
    let flags = device::IRQ_DATA_EVENTFD | device::IRQ_TRIGGER;
    let refused = |argsz, flags, count, data, eventfds: &[Option<std::os::fd::BorrowedFd<'_>>]| {
        let attached = Attached::Eventfds(eventfds);
        let mut bytes = set_irqs(argsz, flags, count, data);
        refusal_of_one(HandleKind::Device, device::DEVICE_SET_IRQS, &mut bytes, 20, attached)
    };
    assert_eq!(refused(28, flags, 2, 8, &[eventfd, None]), None);
    assert_eq!(refused(28, flags, 2, 8, &[eventfd]), Some(Errno::EINVAL));
    assert_eq!(refused(28, flags, 1, 8, &[eventfd]), Some(Errno::EINVAL), "argsz says 2");
    assert_eq!(refused(28, flags, 2, 4, &[eventfd, None]), Some(Errno::EINVAL), "no room");
    assert_eq!(refused(20, flags, 0, 0, &[]), Some(Errno::EINVAL), "no eventfd");
    let not_of_eventfds = device::IRQ_DATA_BOOL | device::IRQ_TRIGGER;
    assert_eq!(refused(28, not_of_eventfds, 2, 8, &[eventfd, None]), Some(Errno::EINVAL));
    let mut unattached = set_irqs(24, flags, 1, 4);
    assert_eq!(
        refusal(HandleKind::Device, device::DEVICE_SET_IRQS, &mut unattached, &mut []),
        Some(Errno::EINVAL),
        "a descriptor that the caller wrote"
    );
}

#[test]
fn interrupts_are_set_without_eventfds_and_within_argsz() {
    let refused = |argsz, flags, data| {
        let mut bytes = set_irqs(argsz, flags, 3, data);
        refusal(HandleKind::Device, device::DEVICE_SET_IRQS, &mut bytes, &mut [])
    };
    assert_eq!(refused(20, device::IRQ_DATA_NONE | device::IRQ_TRIGGER, 0), None);
    assert_eq!(refused(23, device::IRQ_DATA_BOOL | device::IRQ_MASK, 3), None);
    assert_eq!(refused(24, device::IRQ_DATA_BOOL | device::IRQ_MASK, 3), Some(Errno::EINVAL));
    assert_eq!(refused(19, device::IRQ_DATA_NONE | device::IRQ_MASK, 3), Some(Errno::EINVAL));
    assert_eq!(refused(20, 1 << 6, 0), Some(Errno::EINVAL), "a later kernel may give it a meaning");
}

#[test]
fn a_hot_reset_names_groups_as_handles_or_none() {
    let reset = |argsz, count, data: usize| {
        let head = device::HotReset { argsz, flags: 0, count };
        let mut bytes = head.as_bytes().to_vec();
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let request = device::DEVICE_PCI_HOT_RESET;
    let group = Handle::new(1, HandleKind::Group);
    for (argsz, count, handles, refused) in [
        (16, 1, &[group][..], None),
        (20, 2, &[group, group], None),
        (16, 2, &[group, group], Some(Errno::EINVAL)),
        (20, 1, &[group], Some(Errno::EINVAL)),
        (16, 1, &[Handle::new(1, HandleKind::Device)], Some(Errno::EINVAL)),
    ] {
        let attached = Attached::Handles(handles);
        let said = refusal_of_one(HandleKind::Device, request, &mut reset(argsz, count, 8), 12, attached);
        assert_eq!(said, refused, "{argsz} {count}");
    }
    assert_eq!(refusal(HandleKind::Device, request, &mut reset(12, 0, 0), &mut []), None);
    assert_eq!(refusal(HandleKind::Device, request, &mut reset(12, 1, 8), &mut []), Some(Errno::EINVAL));
    assert_eq!(refusal(HandleKind::Device, request, &mut reset(16, 1, 4), &mut []), Some(Errno::EINVAL));
}

#[test]
fn a_feature_is_read_or_set_with_its_own_struct() {
    let refused = |flags, size: u32| {
        let mut bytes = vec![0; size as usize];
        bytes[..4].copy_from_slice(&size.to_ne_bytes());
        bytes[4..8].copy_from_slice(&flags_of(flags));
        refusal(HandleKind::Device, device::DEVICE_FEATURE, &mut bytes, &mut [])
    };
    assert_eq!(refused(GET | device::FEATURE_MIGRATION, 16), None);
    assert_eq!(refused(GET | device::FEATURE_MIG_STATE, 16), None);
    assert_eq!(refused(GET | device::FEATURE_MIG_DATA_SIZE, 16), None);
    assert_eq!(refused(SET | device::FEATURE_LOGGING_STOP, 8), None);
    assert_eq!(refused(SET | device::FEATURE_VF_TOKEN, 24), None);
    assert_eq!(refused(SET | device::FEATURE_MIG_STATE, 16), Some(Errno::EINVAL), "it would leak a descriptor");
    assert_eq!(refused(SET | device::FEATURE_LOGGING_START, 32), None, "no range, hence no pointer");
    assert_eq!(refused(GET | device::FEATURE_LOGGING_REPORT, 40), Some(Errno::EINVAL), "it holds a pointer");
    assert_eq!(refused(GET | device::FEATURE_MIGRATION, 24), Some(Errno::EINVAL));
    assert_eq!(refused(GET | 200, 16), Some(Errno::EINVAL), "a feature of tomorrow");
}

fn flags_of(flags: u32) -> [u8; 4] {
    flags.to_ne_bytes()
}

#[test]
fn a_migration_opens_a_stream_and_nothing_else() {
    let refused = |kind, flags| {
        let head = device::FeatureHead { argsz: device::FeatureMigState::SIZE, flags };
        let mut state = device::FeatureMigState { head, ..Default::default() };
        let mut opened = None;
        let attached = Attached::Opened { kind, handle: &mut opened };
        refusal_of_one(HandleKind::Device, device::DEVICE_FEATURE, state.as_mut_bytes(), 12, attached)
    };
    assert_eq!(refused(HandleKind::Migration, SET | device::FEATURE_MIG_STATE), None);
    assert_eq!(refused(HandleKind::Container, SET | device::FEATURE_MIG_STATE), Some(Errno::EINVAL));
    assert_eq!(refused(HandleKind::Migration, GET | device::FEATURE_MIG_STATE), Some(Errno::EINVAL));
}

#[test]
fn a_device_is_bound_with_a_token_if_both_are_attached() {
    let iommufd = Handle::new(1, HandleKind::Iommufd);
    let refused = |flags, token: &mut [u8]| {
        let mut bind = device::BindIommufd { argsz: device::BindIommufd::SIZE, flags, ..Default::default() };
        let mut attached = [
            Attachment { offset: 8, what: Attached::Handle(iommufd) },
            Attachment { offset: 16, what: Attached::Buffer(token) },
        ];
        judge(
            HandleKind::Device,
            &Command::with_bytes(device::DEVICE_BIND_IOMMUFD, bind.as_mut_bytes()).attaching(&mut attached),
        )
        .err()
    };
    assert_eq!(refused(device::BIND_TOKEN, &mut [0; 16]), None);
    assert_eq!(refused(device::BIND_TOKEN, &mut [0; 15]), Some(Errno::EINVAL));
    let size = device::BindIommufd::SIZE;
    let mut bind = device::BindIommufd { argsz: size, flags: device::BIND_TOKEN, ..Default::default() };
    let attached = Attached::Handle(iommufd);
    let said = refusal_of_one(HandleKind::Device, device::DEVICE_BIND_IOMMUFD, bind.as_mut_bytes(), 8, attached);
    assert_eq!(said, Some(Errno::EINVAL), "a token that is not there");
}
