//! The size of this process's pages.
#![expect(unsafe_code, reason = "UNSAFETY: sysconf(3) has no safe form in std")]

use std::sync::OnceLock;

use dmaspace_core::PageSize;

/// The size of the pages that this process's memory is made of.
pub(crate) fn host_page() -> PageSize {
    static PAGE: OnceLock<PageSize> = OnceLock::new();
    *PAGE.get_or_init(ask)
}

fn ask() -> PageSize {
    // SAFETY: takes a number and touches no memory.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).ok().and_then(PageSize::from_bytes).unwrap_or(PageSize::K4)
}
