//! Dirty tracking: reports of the memory that devices may have written, to a bitmap of the VMM.
//!
//! While tracking is on, the [`DirtySink`] receives all memory that a device may have written: at each
//! [`DirtyTracking::sync`], and when a mapping is unmapped, since the kernel's log of it is lost with it. A host that
//! logs reports pages. A host that cannot log (sPAPR, a container without the capability, a device whose IOMMU sets no
//! dirty bits) reports all memory that devices were allowed to write, each time. No written page is ever missing: where
//! a call fails, its whole range is reported.
//!
//! Reports are of host memory, because a page may be mapped at several bus addresses: RAM on the bus, RAM behind a
//! translated window, RAM that is mapped twice.

use std::fmt;
use std::sync::Arc;

use crate::error::Error;
use crate::words::address::{HostAddress, IovaRange};
use crate::words::memory::HostMemory;
use crate::words::ones::ones;
use crate::words::page::PageSize;

/// Bytes that a device may have written: `len` of `memory`, from `offset` on.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Dirtied<'a> {
    /// The memory of a mapping.
    pub memory: &'a HostMemory,
    /// The number of bytes before the first reported byte.
    pub offset: u64,
    /// The number of bytes, never zero.
    pub len: u64,
}

impl<'a> Dirtied<'a> {
    /// The `len` bytes of `memory` from `offset` on.
    pub const fn new(memory: &'a HostMemory, offset: u64, len: u64) -> Self {
        Self { memory, offset, len }
    }

    /// The address of the first byte in this process.
    pub fn address(&self) -> HostAddress {
        HostAddress::new(self.memory.address().get().saturating_add(self.offset))
    }
}

/// Pages that a device may have written, as a kernel's log has them: one bit for each page.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct DirtiedPages<'a> {
    /// The memory of a mapping.
    pub memory: &'a HostMemory,
    /// The number of bytes before the page of bit 0 of the first word.
    pub offset: u64,
    /// The page size of the log.
    pub page: PageSize,
    /// Bit n % 64 of word n / 64 is set if page n may have been written. A word without a bit may stand between others.
    pub words: &'a [u64],
}

impl<'a> DirtiedPages<'a> {
    /// Pages of `memory`, of which the first bit of `words` is at `offset`.
    pub fn new(memory: &'a HostMemory, offset: u64, page: PageSize, words: &'a [u64]) -> Self {
        Self { memory, offset, page, words }
    }

    /// The runs of pages, ascending.
    pub fn runs(&self) -> impl Iterator<Item = Dirtied<'a>> {
        let Self { memory, offset, page, words } = *self;
        ones(words, 0..words.len() as u64 * 64).map(move |run| Dirtied {
            memory,
            offset: offset + (run.start << page.shift()),
            len: (run.end - run.start) << page.shift(),
        })
    }
}

/// A VMM's bitmap, or the way to it.
///
/// Called from the thread that syncs or unmaps. The call must not call the space. It rounds to its own pages, outwards:
/// the host's may be smaller or larger.
pub trait DirtySink: Send + Sync {
    /// Marks bytes that devices may have written since the last report.
    fn mark(&self, dirtied: Dirtied<'_>);

    /// Marks pages that are dirty here and there. A sink with a bitmap of its own can take word by word; by default
    /// each run of pages is marked.
    fn mark_pages(&self, pages: DirtiedPages<'_>) {
        for run in pages.runs() {
            self.mark(run);
        }
    }
}

impl fmt::Debug for dyn DirtySink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a dirty sink")
    }
}

/// The precision of a host's reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Precision {
    /// Pages of this size, from a log. Some hosts report more than devices wrote: type1's kernel reports everything
    /// mapped as soon as one device is attached that does not report by itself (linux: drivers/vfio/vfio_iommu_type1.c,
    /// update_user_bitmap).
    Pages(PageSize),
    /// Not supported: every writable mapping is reported at each sync.
    Everything,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pages(page) => write!(f, "pages of {page}"),
            Self::Everything => f.write_str("everything that devices may write"),
        }
    }
}

/// The result of one sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Synced {
    /// The precision of the reports.
    pub precision: Precision,
    /// The number of reported bytes.
    pub bytes: u64,
}

/// Tracking the memory that devices write, on any host.
pub trait DirtyTracking: Send + Sync {
    /// Starts tracking: all live mappings count as clean. Later mappings, and devices that are attached later, are
    /// tracked from the start.
    ///
    /// # Errors
    /// [`Kind::Tracking`](crate::error::Kind::Tracking) when it has started already, or the kernel's failure; nothing
    /// is tracked then.
    fn start(&self, sink: Arc<dyn DirtySink>) -> Result<Precision, Error>;

    /// Reports the memory that devices may have written in `range` since the last report, and perhaps more: a host that
    /// answers for whole mappings only is queried for the mappings that reach into the range. The range may have gaps.
    /// Allocates nothing, unless a mapping is larger than any before.
    ///
    /// # Errors
    /// [`Kind::NotTracking`](crate::error::Kind::NotTracking), or the kernel's failure; the whole of a failed query was
    /// reported then.
    fn sync(&self, range: IovaRange) -> Result<Synced, Error>;

    /// Stops tracking. Pages dirtied since the last sync are lost: call [`DirtyTracking::sync`] first.
    ///
    /// # Errors
    /// [`Kind::NotTracking`](crate::error::Kind::NotTracking). A kernel that does not stop its log goes on with it.
    fn stop(&self) -> Result<(), Error>;
}
