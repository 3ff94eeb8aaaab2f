//! Parsing of a type1 container's description of itself: bytes in, facts out, no descriptor in sight.
//!
//! The call is made with a buffer, and made again with a larger one while the kernel reports that its capabilities do
//! not fit: attaching a device between two calls makes them grow. A reply is not trusted: impossible content is an
//! error; the order and the overlaps of ranges are corrected.

use dmaspace_abi::chain::{self, Capability, ChainError};
use dmaspace_abi::type1::{self, DmaAvailable, Info, IovaRanges, LONGEST_BITMAP, Migration};
use dmaspace_abi::{IovaSpan, LARGEST_HOST_PAGE};
use dmaspace_core::door::Failure;
use dmaspace_core::{Iova, IovaRange, PageSize, PageSizes, Windows};
use zerocopy::{FromBytes, IntoBytes};

use crate::dirty::DirtyLimits;

/// The offer of a container at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The ranges that can be mapped, with their page sizes.
    pub(crate) windows: Windows,
    /// The number of mappings the kernel has room for, if it reports one.
    pub(crate) mappings_left: Option<u64>,
    /// The limits of the dirty log, if the kernel has a usable one.
    pub(crate) dirty: Option<DirtyLimits>,
}

/// A parsed reply.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reply {
    /// The reply has every capability.
    Complete(Offer),
    /// The capabilities did not fit: the call must be made again with this many bytes.
    Needs(usize),
}

/// The bytes of the first buffer: room for a dozen ranges.
const FIRST_SIZE: usize = 320;
/// The most bytes of a buffer: room for 65,536 ranges. No list is that long.
const LARGEST_SIZE: usize = 1 << 20;
/// The number of calls after which a list that keeps growing is given up.
const ATTEMPTS: usize = 8;

/// The least of [`Info`] that every kernel fills: kernels without capabilities end there.
const OLDEST_INFO: usize = std::mem::offset_of!(Info, cap_offset);

/// Makes the call with growing buffers until everything fits. `call` makes it once, with the buffer it is given.
///
/// # Errors
/// The failure of `call`; a reply that no correct kernel gives; a host page that no kernel has, since the dirty log's
/// buffers are as large as one.
pub(crate) fn gather(
    host_page: PageSize,
    mut call: impl FnMut(&mut [u8]) -> Result<(), Failure>,
) -> Result<Offer, Failure> {
    if host_page > LARGEST_HOST_PAGE {
        return Err(malformed("the host's page is larger than that of any kernel"));
    }
    let mut size = FIRST_SIZE;
    for _ in 0..ATTEMPTS {
        let mut reply = empty_reply(size);
        call(&mut reply)?;
        match parse(&reply).map_err(malformed)? {
            Reply::Complete(offer) => return Ok(offer),
            Reply::Needs(more) if more > LARGEST_SIZE => return Err(malformed("it wants an absurdly large buffer")),
            Reply::Needs(more) => size = more,
        }
    }
    Err(malformed("it wants a larger buffer every time"))
}

fn malformed(why: &'static str) -> Failure {
    Failure::malformed(type1::GET_INFO.name, why)
}

/// Returns a buffer of `size` bytes, whose head holds its size.
fn empty_reply(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let argsz = u32::try_from(size);
    debug_assert!(argsz.is_ok(), "the size of a reply is one that the kernel named in 32 bits");
    let info = Info { argsz: argsz.unwrap_or(u32::MAX), ..Info::default() };
    let written = info.write_to_prefix(&mut bytes);
    debug_assert!(written.is_ok(), "a buffer of {size} bytes is smaller than its head");
    bytes
}

/// Parses a reply: the whole buffer, as the kernel left it. The error is a reason for
/// [`Answer::Malformed`](dmaspace_core::door::Answer::Malformed).
fn parse(reply: &[u8]) -> Result<Reply, &'static str> {
    let (info, _) = Info::read_from_prefix(reply).map_err(|_| "it is shorter than its own struct")?;
    let claimed = usize::try_from(info.argsz).unwrap_or(usize::MAX);
    if claimed < OLDEST_INFO {
        return Err("it claims to be shorter than its own struct");
    }
    // A kernel for which everything fits leaves `argsz` alone, or writes the size it used.
    let Some(used) = reply.get(..claimed) else { return Ok(Reply::Needs(claimed)) };
    offer(&info, used).map(Reply::Complete)
}

fn offer(info: &Info, used: &[u8]) -> Result<Offer, &'static str> {
    let capabilities = if info.flags & type1::INFO_CAPABILITIES == 0 {
        Vec::new()
    } else if info.cap_offset == 0 {
        return Err("it has capabilities and room for them, but does not say where they are");
    } else {
        chain::capabilities(used, size_of::<Info>(), info.cap_offset).map_err(ChainError::reason)?
    };
    let mask = if info.flags & type1::INFO_PAGE_SIZES == 0 { 0 } else { info.iova_pgsizes };
    let page_sizes = PageSizes::from_mask(mask).ok_or("it names no page size")?;
    let ranges = match find(&capabilities, type1::CAP_IOVA_RANGE) {
        Some(capability) => ranges(capability)?,
        // Only emulated devices are attached, or the kernel does not report ranges: any range can be tried.
        None => vec![IovaRange::all()],
    };
    let mappings_left = match find(&capabilities, type1::CAP_DMA_AVAIL) {
        Some(capability) => mappings_left(capability)?,
        None => None,
    };
    let dirty = match find(&capabilities, type1::CAP_MIGRATION) {
        Some(capability) => dirty_limits(capability, page_sizes.smallest())?,
        None => None,
    };
    let usable = ranges.into_iter().filter_map(|range| without_last_page(range, page_sizes.smallest())).collect();
    Ok(Offer { windows: Windows::uniform(usable, page_sizes), mappings_left, dirty })
}

/// The range without the last page of 2^64, which kernels before 7.2 map and then never find again to unmap it (linux:
/// drivers/vfio/vfio_iommu_type1.c, vfio_dma_do_unmap: `iova + size` wraps to zero).
fn without_last_page(range: IovaRange, page: PageSize) -> Option<IovaRange> {
    if range.last().get() < u64::MAX {
        return Some(range);
    }
    IovaRange::new(range.first(), Iova::new(u64::MAX - page.bytes())).ok()
}

fn find<'c, 'a>(capabilities: &'c [Capability<'a>], id: u16) -> Option<&'c Capability<'a>> {
    capabilities.iter().find(|capability| capability.header.id == id)
}

fn ranges(capability: &Capability<'_>) -> Result<Vec<IovaRange>, &'static str> {
    const CUT: &str = "its list of ranges is cut off";
    let (head, mut rest) = IovaRanges::read_from_prefix(capability.bytes).map_err(|_| CUT)?;
    let count = usize::try_from(head.nr_iovas).unwrap_or(usize::MAX);
    if count == 0 {
        return Err("its list of ranges is empty");
    }
    if count > rest.len() / size_of::<IovaSpan>() {
        return Err(CUT);
    }
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let (span, after) = IovaSpan::read_from_prefix(rest).map_err(|_| CUT)?;
        let range = IovaRange::new(Iova::new(span.start), Iova::new(span.last));
        ranges.push(range.map_err(|_| "one of its ranges ends before it begins")?);
        rest = after;
    }
    Ok(ranges)
}

/// The number of mappings that the container has room for. `None` if only memory limits it, which an iommufd in a
/// container's place reports as 2^32-1 (linux: drivers/iommu/iommufd/vfio_compat.c, iommufd_fill_cap_dma_avail).
fn mappings_left(capability: &Capability<'_>) -> Result<Option<u64>, &'static str> {
    let (available, _) =
        DmaAvailable::read_from_prefix(capability.bytes).map_err(|_| "its number of free mappings is cut off")?;
    Ok(Some(available.avail).filter(|left| *left != u32::MAX).map(u64::from))
}

/// The limits of the dirty log. `None` if the log cannot be used: everything then counts as written, always.
///
/// The kernel logs in the smallest page of the container (linux: drivers/vfio/vfio_iommu_type1.c,
/// vfio_iommu_migration_build_caps). A larger page would lose the dirt of mappings that are smaller, and a page of one
/// byte would take an eighth of a mapping for its bitmap, so that another page is not trusted.
fn dirty_limits(capability: &Capability<'_>, smallest: PageSize) -> Result<Option<DirtyLimits>, &'static str> {
    let (migration, _) =
        Migration::read_from_prefix(capability.bytes).map_err(|_| "its limits on dirty tracking are cut off")?;
    let page = PageSizes::from_mask(migration.pgsize_bitmap).map(PageSizes::smallest);
    let longest_bitmap = migration.max_dirty_bitmap_size.min(LONGEST_BITMAP);
    let is_usable = page == Some(smallest) && longest_bitmap > 0;
    Ok(is_usable.then_some(DirtyLimits { page: smallest, longest_bitmap }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmaspace_abi::type1::{INFO_CAPABILITIES, INFO_PAGE_SIZES};
    use dmaspace_abi::vfio::CapabilityHeader;
    use dmaspace_core::PageSize;
    use dmaspace_core::door::Errno;

    /// 4K 2M 1G.
    const PAGES: u64 = 0x4020_1000;
    /// The ranges of Intel's IOMMU: 48 bits of addresses without the interrupt range.
    const VTD: [(u64, u64); 2] = [(0, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff_ffff)];

    fn header(id: u16) -> CapabilityHeader {
        CapabilityHeader { id, version: 1, next: 0 }
    }

    fn iova_ranges(count: u32, spans: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = IovaRanges { header: header(1), nr_iovas: count, reserved: 0 }.as_bytes().to_vec();
        for &(start, end) in spans {
            bytes.extend_from_slice(IovaSpan { start, last: end }.as_bytes());
        }
        bytes
    }

    fn vtd() -> Vec<u8> {
        iova_ranges(2, &VTD)
    }

    fn dma_available(avail: u32) -> Vec<u8> {
        DmaAvailable { header: header(3), avail }.as_bytes().to_vec()
    }

    fn migration() -> Vec<u8> {
        let limits = Migration {
            header: header(2),
            pgsize_bitmap: 0x1000,
            max_dirty_bitmap_size: 1 << 28,
            ..Migration::default()
        };
        limits.as_bytes().to_vec()
    }

    /// A reply as the kernel lays it out: the struct, then capabilities that each hold the offset of the next. There is
    /// no padding between them, which is the harder case.
    fn reply(capabilities: &[Vec<u8>]) -> Vec<u8> {
        let mut info = Info { flags: INFO_PAGE_SIZES, iova_pgsizes: PAGES, ..Info::default() };
        if !capabilities.is_empty() {
            info.flags |= INFO_CAPABILITIES;
            info.cap_offset = Info::SIZE;
        }
        let mut bytes = info.as_bytes().to_vec();
        for (n, capability) in capabilities.iter().enumerate() {
            let at = bytes.len();
            bytes.extend_from_slice(capability);
            let next = if n + 1 < capabilities.len() { bytes.len() } else { 0 };
            bytes[at + 4..at + 8].copy_from_slice(&u32::try_from(next).expect("small").to_ne_bytes());
        }
        let size = u32::try_from(bytes.len()).expect("small");
        patched(bytes, |info| info.argsz = size)
    }

    fn patched(mut reply: Vec<u8>, change: impl FnOnce(&mut Info)) -> Vec<u8> {
        let (mut info, _) = Info::read_from_prefix(&reply).expect("a whole struct");
        change(&mut info);
        info.write_to_prefix(&mut reply).expect("a whole struct");
        reply
    }

    fn complete(reply: &[u8]) -> Offer {
        match parse(reply) {
            Ok(Reply::Complete(offer)) => offer,
            other => panic!("{other:?}"),
        }
    }

    fn spans(offer: &Offer) -> Vec<(u64, u64)> {
        offer.windows.iter().map(|window| (window.range.first().get(), window.range.last().get())).collect()
    }

    #[test]
    fn the_largest_number_of_mappings_means_no_limit() {
        assert_eq!(complete(&reply(&[dma_available(u32::MAX), vtd()])).mappings_left, None);
        assert_eq!(complete(&reply(&[dma_available(u32::MAX - 1), vtd()])).mappings_left, Some(0xffff_fffe));
    }

    #[test]
    fn capabilities_are_read_with_and_without_padding() {
        for padding in [0, 4] {
            let mut available = dma_available(65_535);
            available.resize(available.len() + padding, 0);
            let offer = complete(&reply(&[migration(), available, vtd()]));
            assert_eq!(spans(&offer), VTD);
            assert_eq!(offer.mappings_left, Some(65_535));
            assert_eq!(offer.dirty, Some(DirtyLimits { page: PageSize::K4, longest_bitmap: 1 << 28 }));
            assert!(offer.windows.iter().all(|window| window.page_sizes.mask() == PAGES));
        }
    }

    /// The last address that is offered: the last page of 2^64 cannot be unmapped.
    const LAST: u64 = u64::MAX - 0x1000;

    #[test]
    fn without_capabilities_everything_is_one_window() {
        let offer = complete(&reply(&[]));
        assert_eq!(spans(&offer), [(0, LAST)]);
        assert_eq!((offer.mappings_left, offer.dirty), (None, None));
        assert_eq!(spans(&complete(&reply(&[migration()]))), [(0, LAST)]);
    }

    #[test]
    fn a_reply_with_the_oldest_struct_is_parsed() {
        let old = patched(reply(&[]), |info| info.argsz = 16);
        assert_eq!(spans(&complete(&old)), [(0, LAST)]);
    }

    #[test]
    fn ranges_are_sorted_and_united() {
        let untidy = iova_ranges(4, &[(0x8000, 0xffff), (0, 0xfff), (0x800, 0x1fff), (0x3000, u64::MAX)]);
        assert_eq!(spans(&complete(&reply(&[untidy]))), [(0, 0x1fff), (0x3000, LAST)]);
    }

    #[test]
    fn a_reply_larger_than_the_buffer_names_the_needed_size() {
        let short = patched(reply(&[]), |info| {
            info.flags |= INFO_CAPABILITIES;
            info.argsz = 72;
        });
        assert_eq!(parse(&short), Ok(Reply::Needs(72)));
    }

    fn patched_vtd(change: fn(&mut Info)) -> Vec<u8> {
        patched(reply(&[vtd()]), change)
    }

    #[test]
    fn inconsistent_replies_are_refused_with_the_reason() {
        let table = [
            (Vec::new(), "it is shorter than its own struct"),
            (reply(&[])[..23].to_vec(), "it is shorter than its own struct"),
            (patched_vtd(|info| info.argsz = 15), "it claims to be shorter than its own struct"),
            (patched_vtd(|info| info.argsz = 0), "it claims to be shorter than its own struct"),
            (patched_vtd(|info| info.iova_pgsizes = 0), "it names no page size"),
            (patched_vtd(|info| info.flags = INFO_CAPABILITIES), "it names no page size"),
            (
                patched_vtd(|info| info.cap_offset = 0),
                "it has capabilities and room for them, but does not say where they are",
            ),
            (patched_vtd(|info| info.cap_offset = 8), "a capability overlaps the struct it belongs to"),
            (patched_vtd(|info| info.cap_offset = 26), "the offset of a capability is not aligned"),
            (patched_vtd(|info| info.cap_offset = 72), "a capability lies outside the reply"),
            (patched_vtd(|info| info.cap_offset = u32::MAX - 3), "a capability lies outside the reply"),
            (patched_vtd(|info| info.argsz -= 4), "its list of ranges is cut off"),
            (patched_vtd(|info| info.argsz = 36), "its list of ranges is cut off"),
            (reply(&[iova_ranges(3, &VTD)]), "its list of ranges is cut off"),
            (reply(&[iova_ranges(u32::MAX, &VTD)]), "its list of ranges is cut off"),
            (reply(&[iova_ranges(0, &[])]), "its list of ranges is empty"),
            (reply(&[iova_ranges(1, &[(0x1000, 0xfff)])]), "one of its ranges ends before it begins"),
            (reply(&[dma_available(1)[..8].to_vec()]), "its number of free mappings is cut off"),
            (reply(&[migration()[..24].to_vec()]), "its limits on dirty tracking are cut off"),
        ];
        for (reply, why) in table {
            assert_eq!(parse(&reply), Err(why), "{reply:x?}");
        }
    }

    #[test]
    fn a_dirty_log_that_cannot_be_used_is_none() {
        // No page, no room, a page larger than the smallest, one page of a byte.
        for (pgsize_bitmap, max_dirty_bitmap_size) in [(0, 1 << 28), (0x1000, 0), (0x20_0000, 1 << 28), (1, 1 << 28)] {
            let limits = Migration { header: header(2), pgsize_bitmap, max_dirty_bitmap_size, ..Migration::default() };
            assert_eq!(complete(&reply(&[limits.as_bytes().to_vec()])).dirty, None, "{pgsize_bitmap:#x}");
        }
    }

    #[test]
    fn no_bitmap_is_longer_than_the_longest_that_a_kernel_accepts() {
        let limits = Migration {
            header: header(2),
            pgsize_bitmap: 0x1000,
            max_dirty_bitmap_size: u64::MAX,
            ..Migration::default()
        };
        let dirty = complete(&reply(&[limits.as_bytes().to_vec()])).dirty;
        assert_eq!(dirty, Some(DirtyLimits { page: PageSize::K4, longest_bitmap: 1 << 28 }));
    }

    #[test]
    fn a_ring_of_capabilities_is_refused() {
        let mut ring = reply(&[migration(), vtd()]);
        let (first, second) = (24, 56);
        ring[second + 4] = first;
        assert_eq!(parse(&ring), Err("its chain of capabilities does not end"));
    }

    /// A kernel with this to say, however much room it is given.
    fn kernel_with(full: &[u8], buffer: &mut [u8]) -> Result<(), Failure> {
        match buffer.get_mut(..full.len()) {
            Some(room) => room.copy_from_slice(full),
            None => {
                let need = u32::try_from(full.len()).expect("small");
                let info = Info {
                    argsz: need,
                    flags: INFO_PAGE_SIZES | INFO_CAPABILITIES,
                    iova_pgsizes: PAGES,
                    ..Info::default()
                };
                info.write_to_prefix(buffer).expect("room for the struct");
            }
        }
        Ok(())
    }

    fn many_ranges(count: u32) -> Vec<u8> {
        let spans: Vec<_> = (0..u64::from(count)).map(|n| (n << 20, (n << 20) + 0xffff)).collect();
        reply(&[iova_ranges(count, &spans)])
    }

    #[test]
    fn usual_replies_take_one_call_and_long_ones_two() {
        let long = if cfg!(miri) { 100 } else { 1000 };
        for (ranges, expected) in [(2, 1), (12, 1), (long, 2)] {
            let full = many_ranges(ranges);
            let mut calls = 0;
            let offer = gather(PageSize::K4, |buffer| {
                calls += 1;
                kernel_with(&full, buffer)
            });
            assert_eq!(offer.expect("an honest kernel").windows.iter().len(), ranges as usize);
            assert_eq!(calls, expected);
        }
    }

    #[test]
    fn a_list_that_grows_between_two_calls_is_asked_for_again() {
        let mut ranges = 50;
        let offer = gather(PageSize::K4, |buffer| {
            ranges += 50;
            kernel_with(&many_ranges(ranges.min(200)), buffer)
        });
        assert_eq!(offer.expect("it stops growing").windows.iter().len(), 200);
    }

    #[test]
    fn a_list_that_never_stops_growing_is_given_up() {
        let mut ranges = if cfg!(miri) { 10 } else { 50 };
        let offer = gather(PageSize::K4, |buffer| {
            ranges *= 2;
            kernel_with(&many_ranges(ranges), buffer)
        });
        assert_eq!(offer, Err(Failure::malformed("VFIO_IOMMU_GET_INFO", "it wants a larger buffer every time")));
    }

    #[test]
    fn no_buffer_of_absurd_size_is_made() {
        let offer = gather(PageSize::K4, |buffer| {
            Info { argsz: u32::MAX, ..Info::default() }.write_to_prefix(buffer).expect("room for the struct");
            Ok(())
        });
        assert_eq!(offer, Err(Failure::malformed("VFIO_IOMMU_GET_INFO", "it wants an absurdly large buffer")));
    }

    #[test]
    fn a_host_page_that_no_kernel_has_is_refused_before_any_call() {
        let page = PageSize::from_shift(40).expect("below 64");
        let offer = gather(page, |_| panic!("a call"));
        let why = "the host's page is larger than that of any kernel";
        assert_eq!(offer, Err(Failure::malformed("VFIO_IOMMU_GET_INFO", why)));
    }

    #[test]
    fn a_refusal_is_passed_on() {
        let refusal = Failure::from_errno("VFIO_IOMMU_GET_INFO", Errno::EINVAL);
        assert_eq!(gather(PageSize::K4, |_| Err(refusal)), Err(refusal));
    }
}
