//! type1's own behaviour: its info, its limits, and the effect of attaching on both.

use crate::setting::{GIB, MIB, Opened, PAGE, RW, device, memory, open, open_group, unbacked};
use dmaspace_abi::type1::{self, Info, IovaRanges};
use dmaspace_abi::vfio::{self, IommuType, MapDma, UnmapDma};
use dmaspace_abi::{IovaSpan, chain};
use dmaspace_core::Iova;
use dmaspace_core::door::{Command, Door, Errno, HandleKind};
use dmaspace_soft::conformance::Dialect;
use dmaspace_soft::conformance::raw::{self, Context};
use dmaspace_soft::profile::{KernelVersion, ProcessLimits, Reason, ReservedProfile};
use dmaspace_soft::{Profile, SoftHost};
use zerocopy::{FromBytes, IntoBytes};

/// GET_INFO with room for `room` bytes: the struct, and the bytes after it.
fn info(opened: &Opened, room: usize) -> (Info, Vec<u8>) {
    let mut bytes = vec![0; room];
    let argsz = u32::try_from(room).expect("a size of the test");
    bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
    opened.host.ioctl(opened.handle(), &mut Command::with_bytes(type1::GET_INFO, &mut bytes)).expect("always succeeds");
    let mut padded = bytes.clone();
    padded.resize(padded.len().max(size_of::<Info>()), 0);
    let (info, rest) = Info::read_from_prefix(&padded).expect("large enough");
    (info, rest.to_vec())
}

/// The usable ranges.
fn ranges(opened: &Opened) -> Vec<(u64, u64)> {
    let mut reply = vec![0; 4096];
    Info { argsz: 4096, ..Info::default() }.write_to_prefix(&mut reply).expect("room for the struct");
    opened.host.ioctl(opened.handle(), &mut Command::with_bytes(type1::GET_INFO, &mut reply)).expect("always succeeds");
    let (info, _) = Info::read_from_prefix(&reply).expect("large enough");
    let capabilities = chain::capabilities(&reply, size_of::<Info>(), info.cap_offset).expect("a sound chain");
    let capability = capabilities.iter().find(|capability| capability.header.id == type1::CAP_IOVA_RANGE);
    let (head, rest) = IovaRanges::read_from_prefix(capability.expect("it lists ranges").bytes).expect("large enough");
    let (spans, _) = <[IovaSpan]>::ref_from_prefix_with_elems(rest, head.nr_iovas as usize).expect("all of them");
    spans.iter().map(|span| (span.start, span.last)).collect()
}

fn reserving(mut profile: Profile, group: usize, first: u64, last: u64, reason: Reason) -> Profile {
    profile.groups[group].reserved.push(ReservedProfile { first, last, reason });
    profile
}

#[test]
fn info_without_room_for_the_capabilities_says_how_much_they_need() {
    let opened = Opened::new(Profile::vtd(), Dialect::Type1);
    let (old, _) = info(&opened, 16);
    assert_eq!((old.flags, old.cap_offset), (type1::INFO_PAGE_SIZES | type1::INFO_CAPABILITIES, 0));
    assert_eq!(old.iova_pgsizes, 0x4020_1000);
    // MIGRATION 32, DMA_AVAIL 12 padded to 16, IOVA_RANGE 16 and two spans of 16.
    assert_eq!(old.argsz, 24 + 32 + 16 + 48);
    let (short, rest) = info(&opened, old.argsz as usize - 1);
    assert_eq!((short.argsz, short.cap_offset), (old.argsz, 0));
    assert!(rest.iter().all(|byte| *byte == 0), "nothing is written behind the struct");
    assert_eq!(info(&opened, old.argsz as usize).0.cap_offset, 24);
}

#[test]
fn the_chain_links_its_capabilities_in_the_kernels_order() {
    let opened = Opened::new(Profile::vtd(), Dialect::Type1);
    let (info, chain) = info(&opened, 256);
    let mut ids = Vec::new();
    let mut at = info.cap_offset as usize;
    while at != 0 {
        let header = &chain[at - size_of::<Info>()..];
        ids.push(u16::from_ne_bytes([header[0], header[1]]));
        at = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]) as usize;
    }
    assert_eq!(ids, [type1::CAP_MIGRATION, type1::CAP_DMA_AVAIL, type1::CAP_IOVA_RANGE]);
    assert_eq!(ranges(&opened), [(0, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff_ffff)]);
}

#[test]
fn structs_that_are_too_small_are_refused() {
    let opened = Opened::new(Profile::vtd(), Dialect::Type1);
    let mut info = Info { argsz: 15, ..Info::default() };
    assert_eq!(raw::ask(&*opened.host, opened.handle(), type1::GET_INFO, &mut info), Err(Errno::EINVAL));
    let mut map = MapDma { argsz: 31, flags: vfio::MAP_READ, size: PAGE, ..MapDma::default() };
    assert_eq!(raw::ask(&*opened.host, opened.handle(), vfio::MAP_DMA, &mut map), Err(Errno::EINVAL));
    let mut unmap = UnmapDma { argsz: 24, flags: 1 << 3, size: PAGE, ..UnmapDma::default() };
    assert_eq!(raw::ask(&*opened.host, opened.handle(), vfio::UNMAP_DMA, &mut unmap), Err(Errno::EINVAL));
    let bare = opened.host.ioctl(opened.handle(), &mut Command::bare(vfio::MAP_DMA));
    assert_eq!(bare, Err(Errno::EINVAL), "no argument at all");
}

#[test]
fn a_map_beyond_the_mapping_limit_is_refused() {
    let limits = ProcessLimits::new(None, 3);
    let opened = Opened::new(Profile::vtd().with_limits(limits), Dialect::Type1);
    let ram = memory(PAGE);
    for page in 0..3 {
        assert_eq!(opened.map(MIB + page * PAGE, &ram), Ok(0));
    }
    assert_eq!(opened.map(MIB, &ram), Err(Errno::EEXIST), "found before the count is looked at");
    assert_eq!(opened.map(MIB + 3 * PAGE, &ram), Err(Errno::ENOSPC));
    raw::unmap(&*opened.host, opened.context, MIB, PAGE).expect("one of them");
    assert_eq!(opened.map(MIB + 3 * PAGE, &ram), Ok(0));
}

#[test]
fn locked_memory_is_charged_for_every_mapping_and_refused_over_the_limit() {
    let limits = ProcessLimits::new(Some(3 * PAGE), 0xffff);
    let opened = Opened::new(Profile::vtd().with_limits(limits), Dialect::Type1);
    let (host, context, ram) = (&*opened.host, opened.context, memory(4 * PAGE));
    assert_eq!(raw::map(host, context, MIB, 2 * PAGE, Some(&ram), RW), Ok(0));
    assert_eq!(raw::map(host, context, 2 * MIB, 2 * PAGE, Some(&ram), RW), Err(Errno::ENOMEM));
    assert_eq!(raw::map(host, context, 2 * MIB, PAGE, Some(&ram), RW), Ok(0), "the same page again");
    assert_eq!(host.ledger().locked, 3 * PAGE);
    let bar = memory(16 * PAGE).device_memory();
    assert_eq!(raw::map(host, context, 3 * MIB, 16 * PAGE, Some(&bar), RW), Ok(0), "another device's is free");
    let ledger = host.ledger();
    assert_eq!((ledger.locked, ledger.peak_locked, ledger.ever_pinned), (3 * PAGE, 3 * PAGE, 3 * PAGE));
    host.set_memlock(None);
    assert_eq!(raw::map(host, context, 4 * MIB, 4 * PAGE, Some(&ram), RW), Ok(0));
}

/// Maps eight pages, of which the last four do not exist, with room to lock `pages`.
fn map_with_hole(pages: u64) -> Result<i32, Errno> {
    let limits = ProcessLimits::new(Some(pages * PAGE), 1);
    let opened = Opened::new(Profile::vtd().with_limits(limits), Dialect::Type1);
    let result = raw::map(&*opened.host, opened.context, 0, 8 * PAGE, Some(&unbacked(GIB, 4 * PAGE)), RW);
    assert_eq!(opened.host.ledger().locked, 0);
    result
}

#[test]
fn a_map_fails_at_the_limit_or_the_hole_whichever_is_first() {
    assert_eq!(map_with_hole(3), Err(Errno::ENOMEM));
    assert_eq!(map_with_hole(4), Err(Errno::EFAULT));
}

#[test]
fn a_group_with_reservations_narrows_the_windows_while_it_is_attached() {
    let profile = reserving(Profile::vtd(), 1, 0x8000_0000, 0x8fff_ffff, Reason::Reserved);
    let opened = Opened::new(profile, Dialect::Type1);
    let host = &*opened.host;
    let all = [(0, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff_ffff)];
    assert_eq!(ranges(&opened), all);

    let group = open_group(host, 4);
    raw::set_container(host, group, opened.handle()).expect("joins");
    assert_eq!(ranges(&opened), [(0, 0x7fff_ffff), (0x9000_0000, 0xfedf_ffff), all[1]]);
    let ram = memory(PAGE);
    let result = raw::map(host, opened.context, 0x8000_0000, PAGE, Some(&ram), RW);
    assert_eq!(result, Err(Errno::EINVAL));
    raw::unset_container(host, group).expect("leaves");
    assert_eq!(ranges(&opened), all);
}

#[test]
fn a_group_whose_reservation_is_mapped_cannot_join() {
    let profile = reserving(Profile::vtd(), 1, 0x8000_0000, 0x8fff_ffff, Reason::Reserved);
    let opened = Opened::new(profile, Dialect::Type1);
    let (host, ram) = (&*opened.host, memory(PAGE));
    raw::map(host, opened.context, 0x8fff_f000, PAGE, Some(&ram), RW).expect("free so far");
    let group = open_group(host, 4);
    assert_eq!(raw::set_container(host, group, opened.handle()), Err(Errno::EINVAL));
    assert_eq!(raw::group_status(host, group), Ok(1), "viable still");
    raw::unmap(host, opened.context, 0x8fff_f000, PAGE).expect("mapped");
    assert_eq!(raw::set_container(host, group, opened.handle()), Ok(0));
}

#[test]
fn relaxable_reservations_can_be_mapped() {
    let profile = reserving(Profile::vtd(), 0, 0x8000_0000, 0x8fff_ffff, Reason::DirectRelaxable);
    assert_eq!(ranges(&Opened::new(profile, Dialect::Type1)).len(), 2);
}

#[test]
fn page_sizes_below_the_hosts_become_the_hosts() {
    let profile = Profile::vtd().with_host_page(0x1_0000);
    let opened = Opened::new(profile, Dialect::Type1);
    assert_eq!(info(&opened, 16).0.iova_pgsizes, 0x4021_0000);
    let ram = memory(0x2_0000);
    assert_eq!(raw::map(&*opened.host, opened.context, 0x1000, 0x1_0000, Some(&ram), RW), Err(Errno::EINVAL));
    assert_eq!(raw::map(&*opened.host, opened.context, 0x1_0000, 0x1_0000, Some(&ram), RW), Ok(0));
}

/// Maps and unmaps the last page below 2^64; returns the answer to the unmap.
fn unmap_the_last_page(kernel: KernelVersion) -> Result<(i32, u64), Errno> {
    let mut profile = Profile::vtd().with_kernel(kernel);
    profile.fixed.as_mut().expect("it has one").last = u64::MAX;
    let opened = Opened::new(profile, Dialect::Type1);
    let last = PAGE.wrapping_neg();
    opened.map(last, &memory(PAGE)).expect("the IOMMU reaches it");
    raw::unmap(&*opened.host, opened.context, last, PAGE)
}

#[test]
fn a_range_that_ends_at_the_top_unmaps_nothing_before_7_2() {
    assert_eq!(unmap_the_last_page(KernelVersion::V6_12), Ok((0, 0)));
    assert_eq!(unmap_the_last_page(KernelVersion::V7_2), Ok((0, PAGE)));
}

#[test]
fn six_tebibytes_are_mapped_and_unmapped_by_one_call_each() {
    let opened = Opened::new(Profile::vtd(), Dialect::Type1);
    let size = 6 << 40;
    let ram = unbacked(1 << 44, size);
    assert_eq!(raw::map(&*opened.host, opened.context, 4 * GIB, size, Some(&ram), RW), Ok(0));
    assert_eq!(opened.host.ledger().locked, size);
    assert_eq!(raw::unmap_all(&*opened.host, opened.context), Ok((0, size)));
    assert_eq!(opened.host.ledger().locked, 0);
}

#[test]
fn threads_share_a_host() {
    let opened = Opened::new(Profile::vtd(), Dialect::Type1);
    let (host, context) = (&*opened.host, opened.context);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let device = opened.device();
            scope.spawn(move || {
                let ram = memory(PAGE);
                for page in 0..64 {
                    let at = GIB * thread + page * PAGE;
                    raw::map(host, context, at, PAGE, Some(&ram), RW).expect("mapped");
                    device.dma_write(Iova::new(at), &[7; 64]).expect("mapped");
                    assert_eq!(raw::unmap(host, context, at, PAGE), Ok((0, PAGE)));
                    assert!(device.dma_write(Iova::new(at), &[8; 64]).is_err());
                }
            });
        }
    });
    assert_eq!((host.ledger().mappings, host.calls().of("VFIO_IOMMU_MAP_DMA")), (0, 256));
}

#[test]
fn devices_reach_only_the_mappings_of_their_own_container() {
    let host = SoftHost::new(Profile::vtd()).expect("sound");
    let first = Opened::on(host.clone(), Dialect::Type1, 1);
    let container = open(&host, "/dev/vfio/vfio", HandleKind::Container);
    let group = open_group(&host, 5);
    raw::set_container(&*host, group, container).expect("joins");
    raw::set_iommu(&*host, container, IommuType::TYPE1_V2).expect("given");
    let (ours, theirs) = (memory(PAGE), memory(PAGE));
    raw::map(&*host, first.context, MIB, PAGE, Some(&ours), RW).expect("mapped");
    raw::map(&*host, Context::Type1(container), MIB, PAGE, Some(&theirs), RW).expect("mapped");
    device(&host, 0).dma_write(Iova::new(MIB), &[1]).expect("ours");
    device(&host, 2).dma_write(Iova::new(MIB), &[2]).expect("theirs");
    let mut bytes = [0; 2];
    ours.read(0, &mut bytes[..1]).expect("there");
    theirs.read(0, &mut bytes[1..]).expect("there");
    assert_eq!(bytes, [1, 2]);
}

/// The number of free mappings that GET_INFO reports.
fn free_mappings(opened: &Opened) -> u32 {
    let (_, chain) = info(opened, 256);
    // Behind MIGRATION's 32 bytes, behind the header's 8.
    u32::from_ne_bytes(chain[40..44].try_into().expect("four"))
}

#[test]
fn info_reports_the_number_of_free_mappings() {
    let opened = Opened::new(Profile::vtd(), Dialect::Type1);
    assert_eq!(free_mappings(&opened), 0xffff);
    opened.map(MIB, &memory(PAGE)).expect("mapped");
    assert_eq!(free_mappings(&opened), 0xfffe);
    raw::unmap_all(&*opened.host, opened.context).expect("unmapped");
    assert_eq!(free_mappings(&opened), 0xffff);
}
