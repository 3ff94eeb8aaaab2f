//! The ranges of an address space that can be mapped: spans in, windows out, no descriptor in sight.
//!
//! The caller brings an array; if it is too small the kernel answers `EMSGSIZE` and the number of spans, and the call
//! is made again. Each device that is attached may make the list longer, so the second array may be too small as well.
//!
//! The kernel reports an alignment of bus addresses and no set of page sizes: it uses large pages where it can and does
//! not tell. The alignment can be as small as 1, on an address space without a device; a window's granule is never
//! below the host's page all the same, since memory is pinned in those, and the end of one mapping would share a page
//! with the start of the next.

use dmaspace_abi::iommufd::{self, IoasIovaRanges};
use dmaspace_abi::{IovaSpan, LARGEST_HOST_PAGE};
use dmaspace_core::door::{Errno, Failure};
use dmaspace_core::{Iova, IovaRange, PageSize, PageSizes, Windows};

/// The length of the first array: no common machine has more reserved ranges.
const FIRST_COUNT: u32 = 16;
/// The length of the longest array, which has a megabyte. No list is longer.
const LARGEST_COUNT: u32 = 1 << 16;
/// The number of calls after which a list that keeps growing is given up.
const ATTEMPTS: usize = 8;

/// Makes the call with growing arrays until all spans fit. `call` makes it once, with the struct and the array it is
/// given; the struct holds the array's length already.
///
/// # Errors
/// The failure of `call`; a reply that no correct kernel gives; a host page that no kernel has, since the dirty log's
/// buffers are as large as one.
pub(crate) fn gather(
    host_page: PageSize,
    mut call: impl FnMut(&mut IoasIovaRanges, &mut [IovaSpan]) -> Result<(), Failure>,
) -> Result<Windows, Failure> {
    if host_page > LARGEST_HOST_PAGE {
        return Err(malformed("the host's page is larger than that of any kernel"));
    }
    let mut count = FIRST_COUNT;
    for _ in 0..ATTEMPTS {
        let mut spans = vec![IovaSpan::default(); count as usize];
        let mut reply = IoasIovaRanges { size: IoasIovaRanges::SIZE, num_iovas: count, ..IoasIovaRanges::default() };
        match call(&mut reply, &mut spans) {
            Ok(()) => return windows(&reply, &spans, host_page).map_err(malformed),
            Err(failure) if failure.errno() == Some(Errno::EMSGSIZE) => {
                count = more_than(count, reply.num_iovas).map_err(malformed)?;
            }
            Err(failure) => return Err(failure),
        }
    }
    Err(malformed("it wants a larger array every time"))
}

fn malformed(why: &'static str) -> Failure {
    Failure::malformed(iommufd::IOAS_IOVA_RANGES.name, why)
}

fn more_than(count: u32, wanted: u32) -> Result<u32, &'static str> {
    if wanted <= count {
        Err("an array that it calls too small would do")
    } else if wanted > LARGEST_COUNT {
        Err("it wants an absurdly large array")
    } else {
        Ok(wanted)
    }
}

fn windows(reply: &IoasIovaRanges, spans: &[IovaSpan], host_page: PageSize) -> Result<Windows, &'static str> {
    let filled = spans.get(..reply.num_iovas as usize).ok_or("it has more ranges than it was given room for")?;
    let mut ranges = Vec::with_capacity(filled.len());
    for span in filled {
        let range = IovaRange::new(Iova::new(span.start), Iova::new(span.last));
        ranges.push(range.map_err(|_| "one of its ranges ends before it begins")?);
    }
    let alignment = PageSize::from_bytes(reply.out_iova_alignment).ok_or("its alignment is no power of two")?;
    if alignment > LARGEST_HOST_PAGE {
        return Err("its alignment is larger than the page of any kernel");
    }
    Ok(Windows::uniform(ranges, PageSizes::only(alignment.max(host_page))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VTD: [(u64, u64); 2] = [(0, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff_ffff)];

    fn refusal(errno: Errno) -> Failure {
        Failure::from_errno("IOMMU_IOAS_IOVA_RANGES", errno)
    }

    /// A kernel with these spans: it fills as many as the array has room for.
    fn kernel_with(spans: &[(u64, u64)], reply: &mut IoasIovaRanges, room: &mut [IovaSpan]) -> Result<(), Failure> {
        assert_eq!(reply.num_iovas as usize, room.len());
        for (place, &(start, last)) in room.iter_mut().zip(spans) {
            *place = IovaSpan { start, last };
        }
        reply.num_iovas = u32::try_from(spans.len()).expect("not many");
        reply.out_iova_alignment = 0x1000;
        if spans.len() > room.len() { Err(refusal(Errno::EMSGSIZE)) } else { Ok(()) }
    }

    fn many(count: u64) -> Vec<(u64, u64)> {
        (0..count).map(|n| (n << 20, (n << 20) + 0xffff)).collect()
    }

    fn reply_of(spans: &[(u64, u64)], alignment: u64, host_page: PageSize) -> Result<Windows, Failure> {
        gather(host_page, |reply, room| {
            kernel_with(spans, reply, room)?;
            reply.out_iova_alignment = alignment;
            Ok(())
        })
    }

    fn bounds(windows: &Windows) -> Vec<(u64, u64)> {
        windows.iter().map(|window| (window.range.first().get(), window.range.last().get())).collect()
    }

    #[test]
    fn allowed_ranges_become_windows() {
        let windows = reply_of(&VTD, 0x1000, PageSize::K4).expect("a host as it is");
        assert_eq!(bounds(&windows), VTD);
        assert!(windows.iter().all(|window| window.page_sizes == PageSizes::only(PageSize::K4)));
    }

    #[test]
    fn the_granule_is_never_below_the_hosts_page() {
        for (alignment, host_page, granule) in [
            (1, PageSize::K4, PageSize::K4),
            (0x1000, PageSize::K64, PageSize::K64),
            (0x1_0000, PageSize::K4, PageSize::K64),
        ] {
            let windows = reply_of(&[(0, u64::MAX)], alignment, host_page).expect("a fresh address space");
            assert_eq!(bounds(&windows), [(0, u64::MAX)]);
            assert!(windows.iter().all(|window| window.page_sizes == PageSizes::only(granule)));
        }
    }

    #[test]
    fn without_a_range_there_is_no_window() {
        assert_eq!(reply_of(&[], 1, PageSize::K4), Ok(Windows::default()));
    }

    #[test]
    fn a_list_that_does_not_fit_is_asked_for_again() {
        let longest = if cfg!(miri) { 100 } else { 65_536 };
        for (spans, expected) in [(16, 1), (17, 2), (longest, 2)] {
            let mut calls = 0;
            let windows = gather(PageSize::K4, |reply, room| {
                calls += 1;
                kernel_with(&many(spans), reply, room)
            });
            assert_eq!(windows.expect("an honest kernel").iter().len() as u64, spans);
            assert_eq!(calls, expected);
        }
    }

    #[test]
    fn a_list_that_grows_between_two_calls_is_asked_for_until_it_stops() {
        let mut spans = 0;
        let windows = gather(PageSize::K4, |reply, room| {
            spans += 20;
            kernel_with(&many(spans.min(100)), reply, room)
        });
        assert_eq!(windows.expect("it stops growing").iter().len(), 100);
    }

    #[test]
    fn a_list_that_never_stops_growing_is_given_up() {
        let mut spans = 16;
        let windows = gather(PageSize::K4, |reply, room| {
            spans += 1;
            kernel_with(&many(spans), reply, room)
        });
        assert_eq!(windows, Err(malformed("it wants a larger array every time")));
    }

    #[test]
    fn sizes_that_no_kernel_asks_for_are_refused() {
        for (wanted, why) in [
            (0, "an array that it calls too small would do"),
            (16, "an array that it calls too small would do"),
            (u32::MAX, "it wants an absurdly large array"),
        ] {
            let windows = gather(PageSize::K4, |reply, _| {
                reply.num_iovas = wanted;
                Err(refusal(Errno::EMSGSIZE))
            });
            assert_eq!(windows, Err(malformed(why)));
        }
    }

    #[test]
    fn replies_that_no_kernel_gives_are_refused() {
        let full = [(0, 0xffff); 1];
        assert_eq!(reply_of(&full, 0, PageSize::K4), Err(malformed("its alignment is no power of two")));
        assert_eq!(reply_of(&full, 0x3000, PageSize::K4), Err(malformed("its alignment is no power of two")));
        let huge = reply_of(&full, 1 << 40, PageSize::K4);
        assert_eq!(huge, Err(malformed("its alignment is larger than the page of any kernel")));
        let backwards = [(0x1000, 0xfff)];
        assert_eq!(reply_of(&backwards, 1, PageSize::K4), Err(malformed("one of its ranges ends before it begins")));
        let boast = gather(PageSize::K4, |reply, room| {
            reply.num_iovas = u32::try_from(room.len()).expect("not many") + 1;
            Ok(())
        });
        assert_eq!(boast, Err(malformed("it has more ranges than it was given room for")));
    }

    #[test]
    fn a_host_page_that_no_kernel_has_is_refused_before_any_call() {
        let page = PageSize::from_shift(40).expect("below 64");
        let windows = gather(page, |_, _| panic!("a call"));
        assert_eq!(windows, Err(malformed("the host's page is larger than that of any kernel")));
    }

    #[test]
    fn errnos_other_than_emsgsize_are_returned() {
        assert_eq!(gather(PageSize::K4, |_, _| Err(refusal(Errno::ENOENT))), Err(refusal(Errno::ENOENT)));
    }
}
