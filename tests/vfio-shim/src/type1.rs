//! The dialect of type1 containers (linux: drivers/vfio/vfio_iommu_type1.c).

use std::mem::offset_of;

use dmaspace::contract::MapRequest;
use dmaspace::door::Errno;
use dmaspace::{Access, Iova, IovaRange, PciAddressSpace};
use dmaspace_abi::IovaSpan;
use dmaspace_abi::type1::{
    CAP_DMA_AVAIL, CAP_IOVA_RANGE, DmaAvailable, GET_INFO, INFO_CAPABILITIES, INFO_PAGE_SIZES, Info, IovaRanges,
    UNMAP_ALL,
};
use dmaspace_abi::vfio::{CapabilityHeader, MAP_DMA, MAP_READ, MAP_WRITE, MapDma, UNMAP_DMA, UnmapDma};
use zerocopy::IntoBytes as _;

use crate::answers::{Answer, answer, errno_of};
use crate::argument::Argument;
use crate::door;
use crate::settings::Settings;
use crate::status::Status;

/// The answer to a call on a container with a type1 driver.
pub(crate) fn call(space: &dyn PciAddressSpace, status: &Status, request: u32, argument: Argument<'_>) -> Answer {
    if request == MAP_DMA.number {
        map(space, status, argument)
    } else if request == UNMAP_DMA.number {
        unmap(space, status, argument)
    } else if request == GET_INFO.number {
        answer(info(space, argument))
    } else {
        Some(Err(Errno::ENOTTY))
    }
}

/// The access that the flags of a map ask for.
///
/// # Errors
/// `EINVAL` for a flag that asks for more.
pub(crate) fn access(flags: u32) -> Result<Access, Errno> {
    let mut access = Access::empty();
    access.set(Access::READ, flags & MAP_READ != 0);
    access.set(Access::WRITE, flags & MAP_WRITE != 0);
    if flags & !(MAP_READ | MAP_WRITE) != 0 || access.is_empty() { Err(Errno::EINVAL) } else { Ok(access) }
}

fn map(space: &dyn PciAddressSpace, status: &Status, argument: Argument<'_>) -> Answer {
    let (asked, access) = match argument.sized::<MapDma>().and_then(|asked| Ok((asked, access(asked.flags)?))) {
        Ok(known) => known,
        Err(errno) => return Some(Err(errno)),
    };
    if asked.size == 0 {
        return Some(Err(Errno::EINVAL));
    }
    // Every kernel refuses a range that wraps, but not with one errno: EINVAL, and later EOVERFLOW.
    IovaRange::with_len(Iova::new(asked.iova), asked.size).ok()?;
    let memory = door::memory(asked.vaddr, asked.size)?;
    if Settings::of_process().swallows(asked.size) {
        status.swallowed.add(1);
        return Some(Ok(0));
    }
    let mapped = space.map(MapRequest::new(Iova::new(asked.iova), &memory, access));
    if mapped.is_ok() {
        status.maps.add(1);
        status.mapped_bytes.add(asked.size);
    }
    answer(mapped.map_err(|error| errno_of(&error)))
}

fn unmap(space: &dyn PciAddressSpace, status: &Status, argument: Argument<'_>) -> Answer {
    let asked: UnmapDma = match argument.sized() {
        Ok(asked) => asked,
        Err(errno) => return Some(Err(errno)),
    };
    let range = match (asked.flags, asked.iova, asked.size) {
        (UNMAP_ALL, 0, 0) => IovaRange::all(),
        (0, _, 1..) => IovaRange::with_len(Iova::new(asked.iova), asked.size).ok()?,
        _ => return Some(Err(Errno::EINVAL)),
    };
    answer(unmap_range(space, status, range).and_then(|size| argument.write(&UnmapDma { size, ..asked })))
}

/// Unmaps a range and returns the number of bytes that were mapped there.
///
/// # Errors
/// `EINVAL` for a range that is not made of whole pages, as the kernel answers, even where nothing is mapped.
fn unmap_range(space: &dyn PciAddressSpace, status: &Status, range: IovaRange) -> Result<u64, Errno> {
    let windows = space.windows().windows;
    let page = windows.iter().map(|window| window.granule()).min();
    if page.is_some_and(|page| !range.is_aligned_to(page)) {
        return Err(Errno::EINVAL);
    }
    let bytes = space.unmap(range).map_err(|error| errno_of(&error))?;
    status.unmaps.add(1);
    status.mapped_bytes.subtract(bytes);
    Ok(bytes)
}

/// Fills an [`Info`] and the capabilities behind it, if the client has room for them.
fn info(space: &dyn PciAddressSpace, argument: Argument<'_>) -> Result<(), Errno> {
    let mut info: Info = argument.with_head(offset_of!(Info, cap_offset))?;
    let capabilities = capabilities(space);
    let room = info.argsz as usize;
    let needed = size_of::<Info>() + capabilities.len();

    let windows = space.windows().windows;
    info.flags = INFO_PAGE_SIZES | INFO_CAPABILITIES;
    info.iova_pgsizes = windows.iter().next().map_or(0, |window| window.page_sizes.mask());
    info.cap_offset = 0;
    if room < needed {
        info.argsz = u32::try_from(needed).map_err(|_| Errno::E2BIG)?;
    } else {
        info.cap_offset = Info::SIZE;
        argument.write_at(size_of::<Info>(), &capabilities)?;
    }
    let bytes = info.as_bytes();
    argument.write_at(0, bytes.get(..room).unwrap_or(bytes))
}

/// The chain of capabilities: the mappings left, and the ranges that can be mapped.
fn capabilities(space: &dyn PciAddressSpace) -> Vec<u8> {
    let mut chain = Vec::new();
    if let Some(left) = space.powers().mappings_left() {
        let avail = u32::try_from(left).unwrap_or(u32::MAX);
        let header = CapabilityHeader { id: CAP_DMA_AVAIL, version: 1, next: 0 };
        append(&mut chain, DmaAvailable { header, avail }.as_bytes());
    }
    let windows = space.windows().windows;
    let nr_iovas = u32::try_from(windows.iter().len()).unwrap_or(u32::MAX);
    let header = CapabilityHeader { id: CAP_IOVA_RANGE, version: 1, next: 0 };
    let mut ranges = IovaRanges { header, nr_iovas, reserved: 0 }.as_bytes().to_vec();
    for window in windows.iter() {
        let span = IovaSpan { start: window.range.first().get(), last: window.range.last().get() };
        ranges.extend_from_slice(span.as_bytes());
    }
    append(&mut chain, &ranges);
    chain
}

/// Appends a capability to a chain, at a multiple of 8, and lets the one before it point there.
fn append(chain: &mut Vec<u8>, capability: &[u8]) {
    let at = chain.len().next_multiple_of(8);
    let offset = u32::try_from(size_of::<Info>() + at).unwrap_or_default();
    let next = offset_of!(CapabilityHeader, next);
    if let Some(link) = last_of(chain).and_then(|last| chain.get_mut(last + next..last + next + 4)) {
        link.copy_from_slice(&offset.to_ne_bytes());
    }
    chain.resize(at, 0);
    chain.extend_from_slice(capability);
}

/// The place of the last capability: there are two at most, so it is the first. `None` in an empty chain.
fn last_of(chain: &[u8]) -> Option<usize> {
    (!chain.is_empty()).then_some(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, with};
    use dmaspace::BackendKind;
    use dmaspace::soft::Profile;
    use dmaspace_abi::chain;
    use zerocopy::FromBytes as _;

    struct Client {
        fixture: Fixture,
        status: Status,
    }

    impl Client {
        fn new() -> Self {
            Self { fixture: Fixture::new(Profile::vtd(), BackendKind::Type1), status: Status::default() }
        }

        fn call(&self, request: u32, argument: Argument<'_>) -> Answer {
            call(self.fixture.space(), &self.status, request, argument)
        }

        fn map(&self, iova: u64, size: u64) -> Answer {
            let asked = MapDma { argsz: MapDma::SIZE, flags: 3, vaddr: self.fixture.vaddr(), iova, size };
            with(asked, |argument| self.call(MAP_DMA.number, argument)).0
        }

        /// The answer, and the number of bytes in it.
        fn unmap(&self, flags: u32, iova: u64, size: u64) -> (Answer, u64) {
            let asked = UnmapDma { argsz: UnmapDma::SIZE, flags, iova, size };
            let (answer, told) = with(asked, |argument| self.call(UNMAP_DMA.number, argument));
            (answer, told.size)
        }
    }

    #[test]
    fn an_unmap_tells_the_bytes_that_were_mapped() {
        let client = Client::new();
        assert_eq!(client.map(0x1_0000, 0x2000), Some(Ok(0)));
        assert_eq!(client.map(0x2_0000, 0x1000), Some(Ok(0)));
        assert_eq!(client.status.mapped_bytes.get(), 0x3000);
        assert_eq!(client.unmap(0, 0x1_0000, 0x8000), (Some(Ok(0)), 0x2000));
        assert_eq!(client.unmap(UNMAP_ALL, 0, 0), (Some(Ok(0)), 0x1000));
        assert_eq!(client.unmap(0, 0, 0x10_0000), (Some(Ok(0)), 0));
        assert_eq!(client.status.mapped_bytes.get(), 0);
    }

    #[test]
    fn refusals_have_the_errnos_of_type1() {
        let client = Client::new();
        assert_eq!(client.map(0x1_0000, 0x2000), Some(Ok(0)));
        assert_eq!(client.map(0x1_1000, 0x1000), Some(Err(Errno::EEXIST)), "overlap");
        assert_eq!(client.map(0x3_0800, 0x1000), Some(Err(Errno::EINVAL)), "misaligned");
        assert_eq!(client.map(0x3_0000, 0), Some(Err(Errno::EINVAL)), "empty");
        assert_eq!(client.unmap(0, 0x1_1000, 0x1000).0, Some(Err(Errno::EINVAL)), "cuts a mapping");
        assert_eq!(client.unmap(0, 0x5_0800, 0x1000).0, Some(Err(Errno::EINVAL)), "misaligned, nothing mapped");
        assert_eq!(client.unmap(UNMAP_ALL, 0x1000, 0).0, Some(Err(Errno::EINVAL)), "all, and a range");
        assert_eq!(client.unmap(1, 0, 0x1000).0, Some(Err(Errno::EINVAL)), "a dirty bitmap");
    }

    #[test]
    fn a_range_that_wraps_is_left_to_the_kernel() {
        let client = Client::new();
        assert_eq!(client.map(u64::MAX - 0xfff, 0x2000), None);
        assert_eq!(client.unmap(0, u64::MAX - 0xfff, 0x2000).0, None);
    }

    #[test]
    fn a_struct_that_is_too_small_is_refused() {
        let client = Client::new();
        let asked = MapDma { argsz: MapDma::SIZE - 1, flags: 3, ..MapDma::default() };
        assert_eq!(with(asked, |argument| client.call(MAP_DMA.number, argument)).0, Some(Err(Errno::EINVAL)));
    }

    #[test]
    fn the_info_names_the_room_it_needs_and_then_lists_the_windows() {
        let client = Client::new();
        let ask = |argument: Argument<'_>| client.call(GET_INFO.number, argument);
        let (answer, short) = with(Info { argsz: Info::SIZE, ..Info::default() }, ask);
        assert_eq!((answer, short.cap_offset, short.flags), (Some(Ok(0)), 0, 3));

        let mut whole = [0_u8; 256];
        whole[..4].copy_from_slice(&short.argsz.to_ne_bytes());
        let (answer, whole) = with(whole, ask);
        assert_eq!(answer, Some(Ok(0)));
        let info = Info::read_from_prefix(&whole).unwrap().0;
        let reply = &whole[..info.argsz as usize];
        let found = chain::capabilities(reply, size_of::<Info>(), info.cap_offset).unwrap();
        assert_eq!(found.iter().map(|found| found.header.id).collect::<Vec<_>>(), [CAP_DMA_AVAIL, CAP_IOVA_RANGE]);
        let ranges = IovaRanges::read_from_prefix(found[1].bytes).unwrap().0;
        let first = IovaSpan::read_from_prefix(&found[1].bytes[size_of::<IovaRanges>()..]).unwrap().0;
        let windows = client.fixture.space().windows().windows;
        let expected = windows.iter().next().map(|window| (window.range.first().get(), window.range.last().get()));
        assert_eq!((ranges.nr_iovas as usize, Some((first.start, first.last))), (windows.iter().len(), expected));
    }

    #[test]
    fn a_dirty_log_is_not_answered() {
        let client = Client::new();
        let number = dmaspace_abi::type1::DIRTY_PAGES.number;
        assert_eq!(with(0_u64, |argument| client.call(number, argument)).0, Some(Err(Errno::ENOTTY)));
    }
}
