//! A kernel that answers at once: this program's own ioctl(2), below the Linux door.

use dmaspace_abi::IovaSpan;
use dmaspace_abi::iommufd::{IOAS_ALLOC, IOAS_IOVA_RANGES, IoasAlloc, IoasIovaRanges};
use dmaspace_abi::spapr::{self, DdwInfo, TceInfo};
use dmaspace_abi::type1::{GET_INFO, INFO_PAGE_SIZES, Info};
use dmaspace_core::PageSize;
use zerocopy::FromBytes;

/// The length of the windows.
pub(crate) const WINDOW: u64 = 1 << 36;

/// Fills in an answer about the host.
pub(crate) fn answer(number: u32, argument: &mut [u8], buffer: Option<&mut [u8]>) {
    if number == IOAS_ALLOC.number {
        IoasAlloc::mut_from_bytes(argument).expect("the struct").out_ioas_id = 1;
    } else if number == IOAS_IOVA_RANGES.number {
        let reply = IoasIovaRanges::mut_from_bytes(argument).expect("the struct");
        (reply.num_iovas, reply.out_iova_alignment) = (1, PageSize::K4.bytes());
        let (span, _) = IovaSpan::mut_from_prefix(buffer.expect("an array")).expect("room for a span");
        (span.start, span.last) = (0, WINDOW - 1);
    } else if number == GET_INFO.number {
        describe(argument);
    }
}

/// The answer to GET_INFO: type1 and sPAPR have the same number for it, and structs of different lengths.
fn describe(argument: &mut [u8]) {
    if let Ok(info) = TceInfo::mut_from_bytes(argument) {
        (info.flags, info.dma32_window_size) = (spapr::INFO_DDW, 0x8000_0000);
        info.ddw = DdwInfo { pgsizes: 0x1000, max_dynamic_windows_supported: 2, levels: 5 };
    } else {
        let (info, _) = Info::mut_from_prefix(argument).expect("the struct");
        (info.flags, info.iova_pgsizes) = (INFO_PAGE_SIZES, PageSize::K4.bytes());
    }
}

/// Takes the place of libc's function in this program.
#[expect(unsafe_code, reason = "UNSAFETY: the symbol by which the Linux door calls the kernel")]
mod symbol {
    use std::ffi::{c_int, c_ulong};
    use std::hint::black_box;

    use dmaspace_abi::iommufd::{IOAS_ALLOC, IOAS_IOVA_RANGES, IoasIovaRanges};
    use dmaspace_abi::type1::GET_INFO;

    /// Every call succeeds. An unmap leaves the length in the argument: all of it was mapped.
    // SAFETY: the Linux door calls it as it calls libc's, with the argument of the request; nothing else in this
    // program makes ioctls. On this architecture variable arguments are passed as others are.
    #[unsafe(no_mangle)]
    #[inline(never)]
    extern "C" fn ioctl(_: c_int, number: c_ulong, argument: *mut u8) -> c_int {
        let number = black_box(number) as u32;
        if [IOAS_ALLOC.number, IOAS_IOVA_RANGES.number, GET_INFO.number].contains(&number) {
            answer(number, argument);
        }
        0
    }

    #[cold]
    fn answer(number: u32, argument: *mut u8) {
        // SAFETY: the first word of these structs is their length, and the door has checked it.
        let argument = unsafe { std::slice::from_raw_parts_mut(argument, argument.cast::<u32>().read() as usize) };
        let array = <IoasIovaRanges as zerocopy::FromBytes>::read_from_prefix(argument).ok();
        let buffer = array.filter(|_| number == IOAS_IOVA_RANGES.number).map(|(ranges, _)| {
            let len = ranges.num_iovas as usize * size_of::<dmaspace_abi::IovaSpan>();
            // SAFETY: the door has filled in the address of an array of that length.
            unsafe {
                std::slice::from_raw_parts_mut(
                    std::ptr::with_exposed_provenance_mut(ranges.allowed_iovas as usize),
                    len,
                )
            }
        });
        super::answer(number, argument, buffer);
    }
}
