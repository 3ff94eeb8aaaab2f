//! Making memory present.
#![expect(unsafe_code, reason = "UNSAFETY: madvise(2) has no safe form in std")]

use std::ptr;

use dmaspace_core::HostMemory;
use dmaspace_core::door::Errno;

use crate::host_page::host_page;

/// Interrupted calls are made again so many times.
const TRIES: usize = 64;

/// The calls by which a prefault makes memory present. A test has others.
pub(crate) trait Populate: Sync {
    /// Returns whether the kernel knows the calls: Linux 5.14 is the first.
    fn is_known(&self) -> bool;

    /// Makes all pages of `memory` present, for writing or for reading alone. No byte changes.
    ///
    /// # Errors
    /// The errno; some pages may be present then.
    fn populate(&self, memory: &HostMemory, writes: bool) -> Result<(), Errno>;
}

/// The kernel that this process runs on.
pub(crate) struct ThisKernel;

impl Populate for ThisKernel {
    fn is_known(&self) -> bool {
        // SAFETY: no byte lies in a span of length 0. The kernel checks the advice first (linux: mm/madvise.c,
        // madvise_behavior_valid).
        let result = unsafe { libc::madvise(ptr::null_mut(), 0, libc::MADV_POPULATE_WRITE) };
        result == 0
    }

    fn populate(&self, memory: &HostMemory, writes: bool) -> Result<(), Errno> {
        let page = host_page();
        let first = page.round_down(memory.address().get());
        let bytes = (memory.last().get() - first).saturating_add(1);
        let (Ok(first), Ok(bytes)) = (usize::try_from(first), usize::try_from(bytes)) else {
            return Err(Errno::EOVERFLOW);
        };
        let advice = if writes { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
        let mut last = Errno::EAGAIN;
        for _ in 0..TRIES {
            // SAFETY: the memory's owner keeps it mapped as long as `memory` lives. The call faults its pages in, and
            // those that hold its first and last byte, as an access would, and changes no byte (linux: mm/madvise.c,
            // madvise_populate). A fault that would be a signal is an error instead.
            let result = unsafe { libc::madvise(ptr::without_provenance_mut(first), bytes, advice) };
            if result == 0 {
                return Ok(());
            }
            last = std::io::Error::last_os_error().into();
            if !matches!(last, Errno::EINTR | Errno::EAGAIN) {
                break;
            }
        }
        Err(last)
    }
}
