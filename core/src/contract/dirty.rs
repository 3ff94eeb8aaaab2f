//! Dirty tracking: what devices may have written, told to a VMM's own bitmap.
//!
//! Who tracks hands over a [`DirtySink`] and from then on is told everything that a device may have written, in host memory: when it
//! asks ([`DirtyTracking::sync`]), and by itself when a mapping goes, since what the host knows about it goes along. A host
//! that logs tells pages; a host that cannot (sPAPR, a container without the capability, a device whose IOMMU sets no dirty bits) has
//! everything told that devices were allowed to write, each time. A page that was written is never missing: where a call fails, what it
//! was about counts as written.
//!
//! Host memory, because that is what a page is known by whatever maps it: RAM that lies on the bus, RAM behind a translated
//! window, RAM mapped twice.

use std::fmt;
use std::sync::Arc;

use crate::error::Error;
use crate::words::address::IovaRange;
use crate::words::memory::HostMemory;
use crate::words::page::PageSize;

/// Bytes that a device may have written: `len` of `memory`, from `offset` on.
#[derive(Clone, Copy, Debug)]
pub struct Dirtied<'a> {
    /// The memory of a mapping.
    pub memory: &'a HostMemory,
    /// How far into the memory the bytes begin.
    pub offset: u64,
    /// How many bytes, never zero.
    pub len: u64,
}

impl Dirtied<'_> {
    /// The first byte, in this process.
    pub fn address(&self) -> u64 {
        self.memory.address().saturating_add(self.offset)
    }
}

/// A VMM's bitmap, or what leads to it.
///
/// Told from whichever thread asks or unmaps, while locks of the space are held: an implementation marks and returns, and calls nothing of
/// the space. It rounds to its own pages, outwards: the host's may be smaller or larger.
pub trait DirtySink: Send + Sync {
    /// Devices may have written these bytes since they were told last.
    fn mark(&self, dirtied: Dirtied<'_>);
}

impl fmt::Debug for dyn DirtySink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a dirty sink")
    }
}

/// How exactly a host tells what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// It logs, in pages of this size. Some hosts say more than was written: type1's kernel says everything mapped as soon as one
    /// device is attached that does not report by itself (linux: drivers/vfio/vfio_iommu_type1.c, update_user_bitmap).
    Pages(PageSize),
    /// It cannot: everything that devices may write counts, each time.
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

/// What one question came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    /// How exact it was.
    pub precision: Precision,
    /// How many bytes were marked.
    pub bytes: u64,
}

/// Tracking what devices write, on any host.
pub trait DirtyTracking: Send + Sync {
    /// Begins: what is mapped now counts as clean. Mappings that come later are tracked from their first moment, devices that come
    /// later as well.
    ///
    /// # Errors
    /// [`Kind::Tracking`](crate::error::Kind::Tracking) when it has begun already, or what the kernel says; nothing is tracked then.
    fn start(&self, sink: Arc<dyn DirtySink>) -> Result<Precision, Error>;

    /// Tells the sink what devices may have written in `range` since they were told last, and perhaps more: a host that answers whole
    /// mappings only is asked for those that reach into the range. Gaps in the range are fine. Allocates nothing, unless a mapping
    /// has come that is larger than any before.
    ///
    /// # Errors
    /// [`Kind::NotTracking`](crate::error::Kind::NotTracking), or what the kernel said; all it was asked about was marked then.
    fn sync(&self, range: IovaRange) -> Result<Synced, Error>;

    /// Ends: from now on nothing is told. Whoever wants the rest asks first.
    ///
    /// # Errors
    /// [`Kind::NotTracking`](crate::error::Kind::NotTracking). A kernel that will not stop logging is left to it.
    fn stop(&self) -> Result<(), Error>;
}
