//! iommufd's own behaviour: ranges that narrow and widen, pins that wait for a device, copies, ids.

use crate::setting::{GIB, MIB, Opened, PAGE, RW, device, memory, open, open_node, unbacked};
use dmaspace_abi::IovaSpan;
use dmaspace_abi::iommufd::{self, IoasAlloc, IoasIovaRanges, IoasMap};
use dmaspace_core::door::{Attached, Attachment, Command, Door, Errno, Handle, HandleKind, Lease};
use dmaspace_core::{HostMemory, Iova, MemoryFile};
use dmaspace_soft::conformance::Dialect;
use dmaspace_soft::conformance::raw::{self, Context};
use dmaspace_soft::profile::{KernelVersion, ProcessLimits, Reason, ReservedProfile};
use dmaspace_soft::{DmaError, Profile, SoftHost};
use std::mem::offset_of;
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

/// An answer to IOAS_IOVA_RANGES: the errno, the filled ranges, their total number, and the alignment.
type Ranges = (Result<i32, Errno>, Vec<(u64, u64)>, u32, u64);

/// An iommufd with an address space and no device.
struct Bare {
    host: Arc<SoftHost>,
    iommufd: Handle,
    id: u32,
}

impl Bare {
    fn new(profile: Profile) -> Self {
        let host = SoftHost::new(profile).expect("sound");
        let iommufd = open(&host, "/dev/iommu", HandleKind::Iommufd);
        let id = raw::alloc_ioas(&*host, iommufd).expect("an address space");
        Self { host, iommufd, id }
    }

    fn context(&self) -> Context {
        Context::Ioas { iommufd: self.iommufd, id: self.id }
    }

    fn map(&self, at: u64, memory: &HostMemory) -> Result<i32, Errno> {
        raw::map(&*self.host, self.context(), at, memory.len().get(), Some(memory), RW)
    }

    /// Binds a device's node and attaches it.
    fn attach(&self, node: u32, to: u32) -> Result<(Handle, u32), Errno> {
        let device = open_node(&self.host, node);
        raw::bind(&*self.host, device, self.iommufd).expect("bound");
        raw::attach(&*self.host, device, to).map(|page_table| (device, page_table))
    }

    /// The usable ranges, with room for this many.
    fn ranges(&self, room: u32) -> Ranges {
        let mut array = vec![0; room as usize * size_of::<IovaSpan>()];
        let mut ranges =
            IoasIovaRanges { size: IoasIovaRanges::SIZE, ioas_id: self.id, num_iovas: room, ..Default::default() };
        let result = {
            let offset = offset_of!(IoasIovaRanges, allowed_iovas);
            let mut attached = [Attachment { offset, what: Attached::Buffer(&mut array) }];
            let command = Command::with_bytes(iommufd::IOAS_IOVA_RANGES, ranges.as_mut_bytes());
            self.host.ioctl(self.iommufd, &mut command.attaching(&mut attached))
        };
        let spans = array.chunks(16).map(|span| IovaSpan::read_from_bytes(span).expect("16 bytes"));
        let filled = spans.map(|span| (span.start, span.last)).filter(|span| *span != (0, 0)).collect();
        (result, filled, ranges.num_iovas, ranges.out_iova_alignment)
    }
}

const LOW: (u64, u64) = (0, 0xfedf_ffff);
const UPPER: (u64, u64) = (0xfef0_0000, 0xffff_ffff_ffff);

#[test]
fn an_address_space_covers_everything_until_a_device_narrows_it() {
    let bare = Bare::new(Profile::vtd());
    assert_eq!(bare.ranges(2), (Ok(0), vec![(0, u64::MAX)], 1, 1));
    let (device, page_table) = bare.attach(0, bare.id).expect("attached");
    assert_eq!(bare.ranges(2), (Ok(0), vec![LOW, UPPER], 2, PAGE));
    raw::detach(&*bare.host, device).expect("detached");
    assert_eq!(bare.ranges(2), (Ok(0), vec![(0, u64::MAX)], 1, 1));
    assert_eq!(raw::destroy(&*bare.host, bare.iommufd, page_table), Err(Errno::ENOENT), "gone with the device");
}

#[test]
fn a_short_array_is_filled_and_the_number_of_ranges_reported() {
    let bare = Bare::new(Profile::vtd());
    let _attached = bare.attach(0, bare.id).expect("attached");
    assert_eq!(bare.ranges(0), (Err(Errno::EMSGSIZE), vec![], 2, PAGE));
    assert_eq!(bare.ranges(1), (Err(Errno::EMSGSIZE), vec![LOW], 2, PAGE));
    assert_eq!(bare.ranges(9), (Ok(0), vec![LOW, UPPER], 2, PAGE));
}

#[test]
fn attach_is_refused_over_a_mapping_that_the_device_cannot_have() {
    let bare = Bare::new(Profile::vtd());
    let ram = memory(PAGE);
    bare.map(0xfee0_0000, &ram).expect("nothing is reserved yet");
    assert_eq!(bare.attach(0, bare.id).map(|_| ()), Err(Errno::EADDRINUSE), "the MSI range");
    raw::unmap(&*bare.host, bare.context(), 0xfee0_0000, PAGE).expect("mapped");
    bare.map(1 << 48, &ram).expect("nothing is too high yet");
    assert_eq!(bare.attach(1, bare.id).map(|_| ()), Err(Errno::EADDRINUSE), "beyond the page table");
    raw::unmap(&*bare.host, bare.context(), 1 << 48, PAGE).expect("mapped");
    let odd = ram.slice(0x10, 0x20).expect("part of it");
    bare.map(MIB + 0x10, &odd).expect("nothing is misaligned yet");
    assert_eq!(bare.attach(2, bare.id).map(|_| ()), Err(Errno::EADDRINUSE), "less than a page");
    assert_eq!(bare.ranges(1), (Ok(0), vec![(0, u64::MAX)], 1, 1), "nothing is left of it");
}

#[test]
fn a_devices_reservations_last_while_it_is_attached() {
    let mut profile = Profile::vtd();
    profile.groups[1].reserved.push(ReservedProfile {
        first: 0x8000_0000,
        last: 0x8fff_ffff,
        reason: Reason::Reserved,
    });
    let bare = Bare::new(profile);
    let (_, shared) = bare.attach(0, bare.id).expect("attached");
    let (second, page_table) = bare.attach(1, bare.id).expect("attached");
    assert_eq!(page_table, shared, "one page table for both");
    assert_eq!(bare.ranges(4).1, [(0, 0x7fff_ffff), (0x9000_0000, LOW.1), UPPER]);
    bare.host.close(second).expect("open");
    assert_eq!(bare.ranges(4).1, [LOW, UPPER]);
}

#[test]
fn memory_is_pinned_by_the_first_attach_which_fails_for_absent_memory() {
    let bare = Bare::new(Profile::vtd());
    let (host, ram) = (&*bare.host, memory(2 * PAGE));
    bare.map(MIB, &ram).expect("mapped");
    raw::map(host, bare.context(), 2 * MIB, PAGE, None, RW).expect("there is nothing there, and no device");
    assert_eq!((host.ledger().pinned, host.ledger().mappings), (0, 2));
    assert_eq!(bare.attach(0, bare.id).map(|_| ()), Err(Errno::EFAULT));
    assert_eq!((host.ledger().pinned, host.ledger().objects), (0, 1));
    raw::unmap(host, bare.context(), 2 * MIB, PAGE).expect("mapped");
    let (device, _) = bare.attach(1, bare.id).expect("attached");
    assert_eq!((host.ledger().pinned, host.ledger().locked), (2 * PAGE, 0));
    raw::detach(host, device).expect("detached");
    assert_eq!((host.ledger().pinned, host.ledger().peak_pinned), (0, 2 * PAGE));
    raw::attach(host, device, bare.id).expect("attached again");
    assert_eq!(host.ledger().ever_pinned, 4 * PAGE, "pinned twice");
}

#[test]
fn the_limit_is_checked_when_memory_is_pinned() {
    let limits = ProcessLimits::new(Some(PAGE), 1);
    let bare = Bare::new(Profile::vtd().with_limits(limits));
    bare.map(MIB, &memory(2 * PAGE)).expect("not pinned yet");
    assert_eq!(bare.attach(0, bare.id).map(|_| ()), Err(Errno::ENOMEM));
    raw::unmap_all(&*bare.host, bare.context()).expect("mapped");
    bare.attach(1, bare.id).expect("attached");
    assert_eq!(bare.map(MIB, &memory(2 * PAGE)), Err(Errno::ENOMEM));
    assert_eq!(bare.map(MIB, &memory(PAGE)), Ok(0));
}

#[expect(unsafe_code, reason = "UNSAFETY: the door is not real")]
fn copy(host: &SoftHost, iommufd: Handle, from: (u32, u64), to: (u32, u64), size: u64) -> Result<i32, Errno> {
    // SAFETY: the door is not real.
    unsafe { raw::copy(host, iommufd, from, to, size, RW) }
}

#[test]
fn a_page_mapped_by_copies_is_pinned_once() {
    let opened = Opened::new(Profile::vtd(), Dialect::Ioas);
    let (host, iommufd, ram) = (&*opened.host, opened.handle(), memory(4 * PAGE));
    let source = raw::alloc_ioas(host, iommufd).expect("an address space without a device");
    let aside = Context::Ioas { iommufd, id: source };
    raw::map(host, aside, 0, 4 * PAGE, Some(&ram), RW).expect("mapped");
    assert_eq!(host.ledger().pinned, 0);
    let Context::Ioas { id, .. } = opened.context else { unreachable!("it is one") };
    assert_eq!(copy(host, iommufd, (source, PAGE), (id, MIB), PAGE), Ok(0));
    assert_eq!(copy(host, iommufd, (source, PAGE), (id, 2 * MIB), 2 * PAGE), Ok(0));
    assert_eq!(host.ledger().pinned, 2 * PAGE, "each page once");
    raw::unmap_all(host, aside).expect("the copies stay");
    opened.device().dma_write(Iova::new(2 * MIB + PAGE), &[7]).expect("mapped");
    let mut byte = [0];
    ram.read(2 * PAGE, &mut byte).expect("there");
    assert_eq!(byte, [7]);
    raw::unmap(host, opened.context, 2 * MIB, 2 * PAGE).expect("one copy");
    assert_eq!(host.ledger().pinned, PAGE);
    raw::unmap(host, opened.context, MIB, PAGE).expect("the other");
    assert_eq!((host.ledger().pinned, host.ledger().mappings), (0, 0));
}

#[test]
fn a_copy_over_two_mappings_makes_two_mappings() {
    let opened = Opened::new(Profile::vtd(), Dialect::Ioas);
    let (host, ram) = (&*opened.host, memory(2 * PAGE));
    let Context::Ioas { iommufd, id } = opened.context else { unreachable!("it is one") };
    raw::map(host, opened.context, 0, PAGE, ram.slice(PAGE, PAGE).as_ref(), RW).expect("mapped");
    raw::map(host, opened.context, PAGE, PAGE, ram.slice(0, PAGE).as_ref(), RW).expect("mapped");
    assert_eq!(copy(host, iommufd, (id, 0), (id, MIB), 2 * PAGE), Ok(0));
    assert_eq!(host.ledger().mappings, 4);
    assert_eq!(raw::unmap(host, opened.context, MIB, PAGE), Ok((0, PAGE)));
}

#[test]
fn another_devices_memory_and_reserved_flags_are_refused() {
    let opened = Opened::new(Profile::vtd(), Dialect::Ioas);
    let (host, context) = (&*opened.host, opened.context);
    let bar = memory(PAGE).device_memory();
    assert_eq!(raw::map(host, context, MIB, PAGE, Some(&bar), RW), Err(Errno::EFAULT));
    let Context::Ioas { iommufd, id } = context else { unreachable!("it is one") };
    let ask = |map: IoasMap| raw::ask(host, iommufd, iommufd::IOAS_MAP, &mut { map });
    let map =
        IoasMap { size: IoasMap::SIZE, flags: iommufd::MAP_READABLE, ioas_id: id, length: PAGE, ..Default::default() };
    assert_eq!(ask(IoasMap { flags: 1 << 7, ..map }), Err(Errno::EOPNOTSUPP));
    assert_eq!(ask(IoasMap { reserved: 1, ..map }), Err(Errno::EOPNOTSUPP));
    assert_eq!(ask(IoasMap { ioas_id: 77, ..map }), Err(Errno::ENOENT));
    assert_eq!(ask(IoasMap { size: IoasMap::SIZE - 1, ..map }), Err(Errno::EINVAL));
    assert_eq!(ask(IoasMap { iova: u64::MAX, ..map }), Err(Errno::EOVERFLOW));
}

#[test]
fn a_longer_struct_is_accepted_if_its_tail_is_zero() {
    let bare = Bare::new(Profile::vtd());
    for (last, answer) in [(0, Ok(0)), (1, Err(Errno::E2BIG))] {
        let mut bytes = [IoasAlloc { size: 16, ..Default::default() }.as_bytes(), &[0, 0, 0, last]].concat();
        let mut command = Command::with_bytes(iommufd::IOAS_ALLOC, &mut bytes);
        assert_eq!(bare.host.ioctl(bare.iommufd, &mut command), answer);
    }
}

/// Maps memory of this length where the kernel chooses; returns the address.
fn map_anywhere(opened: &Opened, length: u64) -> Result<u64, Errno> {
    let Context::Ioas { iommufd, id } = opened.context else { unreachable!("it is one") };
    let mut map =
        IoasMap { size: IoasMap::SIZE, flags: iommufd::MAP_READABLE, ioas_id: id, length, ..Default::default() };
    let memory = unbacked(GIB, length);
    let lease = Lease::of_unbacked(&memory).expect("there is no memory behind it");
    let mut attached = [Attachment { offset: offset_of!(IoasMap, user_va), what: Attached::Memory(&lease) }];
    let mut command = Command::with_bytes(iommufd::IOAS_MAP, map.as_mut_bytes()).attaching(&mut attached);
    let result = opened.host.ioctl(iommufd, &mut command);
    result.map(|_| map.iova)
}

#[test]
fn a_map_without_an_address_is_placed_by_the_kernel() {
    let opened = Opened::new(Profile::vtd(), Dialect::Ioas);
    assert_eq!(map_anywhere(&opened, PAGE), Ok(PAGE), "never 0");
    assert_eq!(map_anywhere(&opened, 2 * PAGE), Ok(2 * PAGE));
    assert_eq!(map_anywhere(&opened, 3 * PAGE), Ok(4 * PAGE), "aligned as the memory, up to its size");
    assert_eq!(map_anywhere(&opened, 1 << 48), Err(Errno::ENOSPC));
}

#[test]
fn a_map_beyond_the_end_of_its_file_fails_the_attach() {
    let bare = Bare::new(Profile::vtd().with_kernel(KernelVersion::V7_2));
    let file = memory(PAGE).in_file(MemoryFile::unbacked(1), MIB);
    let (host, context) = (&*bare.host, bare.context());
    raw::map_file(host, context, 0, PAGE, Some(&file), RW).expect("nothing is wrong with it");
    raw::map_file(host, context, MIB, 2 * PAGE, Some(&file), RW).expect("the kernel does not look yet");
    assert_eq!(bare.attach(0, bare.id).map(|_| ()), Err(Errno::EINVAL));
    assert_eq!(bare.host.ledger().pinned, 0);
    raw::unmap(&*bare.host, bare.context(), MIB, 2 * PAGE).expect("mapped");
    bare.attach(1, bare.id).expect("all of it is there");
    assert_eq!(bare.host.ledger().pinned, PAGE);
}

#[test]
fn exported_device_memory_is_mapped_and_pins_nothing() {
    let opened = Opened::new(Profile::vtd().with_kernel(KernelVersion::V7_2), Dialect::Ioas);
    let bar = memory(2 * PAGE).device_memory();
    let exported = bar.clone().in_file(MemoryFile::unbacked(1), 0);
    let (host, context) = (&*opened.host, opened.context);
    assert_eq!(raw::map_file(host, context, MIB, 3 * PAGE, Some(&exported), RW), Err(Errno::EINVAL), "past its end");
    assert_eq!(raw::map(host, context, MIB, PAGE, Some(&bar), RW), Err(Errno::EFAULT), "no pages");
    assert_eq!(raw::map_file(host, context, MIB, 2 * PAGE, Some(&exported), RW), Ok(0));
    assert_eq!(opened.host.ledger().pinned, 0);
    opened.device().dma_write(Iova::new(MIB + PAGE), b"peer to peer").expect("mapped");
    let mut found = [0; 12];
    bar.read(PAGE, &mut found).expect("inside");
    assert_eq!(&found, b"peer to peer");
}

#[test]
fn ids_are_used_again_and_objects_in_use_stay() {
    let bare = Bare::new(Profile::vtd());
    let host = &*bare.host;
    assert_eq!(bare.id, 1);
    assert_eq!(raw::alloc_ioas(host, bare.iommufd), Ok(2));
    assert_eq!(raw::destroy(host, bare.iommufd, bare.id), Ok(0));
    assert_eq!(raw::destroy(host, bare.iommufd, bare.id), Err(Errno::ENOENT));
    assert_eq!(raw::alloc_ioas(host, bare.iommufd), Ok(1));

    let (_, page_table) = bare.attach(0, 1).expect("attached");
    for (id, what) in [(1, "address space"), (3, "device"), (page_table, "page table")] {
        assert_eq!(raw::destroy(host, bare.iommufd, id), Err(Errno::EBUSY), "{what}");
    }
    assert_eq!(raw::destroy(host, bare.iommufd, 2), Ok(0));
}

#[test]
fn destroying_an_address_space_removes_its_mappings() {
    let bare = Bare::new(Profile::vtd());
    bare.map(MIB, &memory(PAGE)).expect("mapped");
    assert_eq!(raw::destroy(&*bare.host, bare.iommufd, bare.id), Ok(0));
    assert_eq!(bare.host.ledger().mappings, 0);
}

/// Lets the device read a byte.
fn read_at(opened: &Opened, at: u64) -> Result<(), DmaError> {
    opened.device().dma_read(Iova::new(at), &mut [0]).map_err(|fault| fault.why)
}

#[test]
fn a_second_attach_moves_the_device() {
    let opened = Opened::new(Profile::vtd(), Dialect::Ioas);
    let (host, iommufd, node) = (&*opened.host, opened.handle(), opened.members[0]);
    let other = raw::alloc_ioas(host, iommufd).expect("another address space");
    let elsewhere = Context::Ioas { iommufd, id: other };
    let (here, there) = (memory(PAGE), memory(PAGE));
    raw::map(host, opened.context, MIB, PAGE, Some(&here), RW).expect("mapped");
    raw::map(host, elsewhere, 2 * MIB, PAGE, Some(&there), RW).expect("mapped");
    assert_eq!(host.ledger().pinned, PAGE);

    let page_table = raw::attach(host, node, other).expect("moved");
    assert_eq!(host.ledger().pinned, PAGE, "the old one is unpinned, the new one pinned");
    let reached = opened.device().reached().expect("it is attached");
    let [only] = reached.as_slice() else { panic!("one mapping: {reached:?}") };
    assert_eq!((only.range.first(), only.memory.address(), only.access), (Iova::new(2 * MIB), there.address(), RW));
    assert_eq!((read_at(&opened, MIB), read_at(&opened, 2 * MIB)), (Err(DmaError::NotMapped), Ok(())));
    assert_eq!(raw::attach(host, node, page_table), Ok(page_table), "where it is already");
    assert_eq!(raw::attach(host, node, 77), Err(Errno::ENOENT));

    raw::map(host, opened.context, 0xfee0_0000, PAGE, Some(&here), RW).expect("no device reserves it any more");
    let Context::Ioas { id, .. } = opened.context else { unreachable!("it is one") };
    assert_eq!(raw::attach(host, node, id), Err(Errno::EADDRINUSE));
    assert_eq!(read_at(&opened, 2 * MIB), Ok(()), "it stayed where it was");
    assert_eq!(host.ledger().objects, 3, "two address spaces and a page table");
    opened.close();
    assert!(host.ledger().is_clear());
}

#[test]
fn detaching_a_bound_device_that_is_not_attached_succeeds() {
    let bare = Bare::new(Profile::vtd());
    let node = open_node(&bare.host, 0);
    assert_eq!(raw::detach(&*bare.host, node), Err(Errno::EINVAL), "not even bound");
    raw::bind(&*bare.host, node, bare.iommufd).expect("bound");
    assert_eq!(raw::detach(&*bare.host, node), Ok(0));
    assert_eq!(
        device(&bare.host, 0).dma_read(Iova::new(0), &mut [0]).map_err(|fault| fault.why),
        Err(DmaError::NotAttached)
    );
    assert_eq!(device(&bare.host, 0).reached(), None);
}

#[test]
fn many_copies_of_a_guests_pages_cost_their_number_not_its_square() {
    let opened = Opened::new(Profile::vtd(), Dialect::Ioas);
    let host = &*opened.host;
    let Context::Ioas { iommufd, id } = opened.context else { unreachable!("it is one") };
    let source = raw::alloc_ioas(host, iommufd).expect("an address space");
    let ram = unbacked(1 << 44, 64 * GIB);
    raw::map(host, Context::Ioas { iommufd, id: source }, 0, 64 * GIB, Some(&ram), RW).expect("mapped");
    for page in 0..20_000 {
        copy(host, iommufd, (source, page * 3 * PAGE), (id, 4 * GIB + page * PAGE), PAGE).expect("copied");
    }
    assert_eq!(host.ledger().pinned, 20_000 * PAGE);
    assert_eq!(raw::unmap_all(host, opened.context), Ok((0, 20_000 * PAGE)));
    assert_eq!(host.ledger().pinned, 0);
}
