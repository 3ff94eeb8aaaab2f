//! Logging the writes of devices (linux: drivers/vfio/vfio_iommu_type1.c, vfio_iommu_type1_dirty_pages).
//!
//! The kernel reports whole mappings, with or without gaps between them, in its smallest page only. As soon as one
//! group is attached whose device does not report its writes to the kernel, which nearly no device does, everything
//! that is mapped reads as written. Bits of unmapped pages mean nothing: from the second query on some are set behind
//! mappings that begin inside a word (update_user_bitmap shifts a mapping's bitmap, vfio_iova_dirty_bitmap clears it by
//! the mapping's length; seen on Linux 6.12).

use std::mem::offset_of;

use dmaspace_abi::type1::{self, Bitmap, DirtyBitmap, UnmapDirty};
use dmaspace_abi::vfio;
use dmaspace_core::backend::{DirtyCalls, DirtyReach};
use dmaspace_core::door::{Attached, Attachment, Command, Errno, Failure};
use dmaspace_core::retry::Undone;
use dmaspace_core::{IovaRange, PageSize};
use zerocopy::IntoBytes;

use crate::{Type1, unmap_of};

/// The limits of a container's dirty log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirtyLimits {
    /// The page size of the log.
    pub(crate) page: PageSize,
    /// The largest bitmap one call fills, in bytes.
    pub(crate) longest_bitmap: u64,
}

impl Type1 {
    fn switch(&self, flags: u32) -> Result<(), Failure> {
        // The kernel reads the head only.
        let mut command = DirtyBitmap { argsz: type1::DIRTY_BITMAP_HEAD, flags, ..DirtyBitmap::default() };
        self.container.call(Command::with_bytes(type1::DIRTY_PAGES, command.as_mut_bytes()))
    }

    /// The field for a bitmap, with no more room than the kernel accepts.
    fn field(&self, bitmap: &[u64]) -> Bitmap {
        let (pgsize, longest) =
            self.dirty_limits().map_or((0, 0), |limits| (limits.page.bytes(), limits.longest_bitmap));
        Bitmap { pgsize, size: longest.min(size_of_val(bitmap) as u64), data: 0 }
    }
}

impl DirtyCalls for Type1 {
    /// A container has a driver while it has a group, and the driver is what logs.
    fn needs_a_device(&self) -> bool {
        true
    }

    fn page(&self) -> Option<PageSize> {
        self.dirty_limits().map(|limits| limits.page)
    }

    fn start(&self) -> Result<(), Failure> {
        self.switch(type1::DIRTY_START)
    }

    fn stop(&self) -> Result<(), Failure> {
        self.switch(type1::DIRTY_STOP)
    }

    fn reach(&self) -> DirtyReach {
        let longest = self.dirty_limits().map_or(0, |limits| limits.longest_bitmap);
        let longest_bitmap = usize::try_from(longest).unwrap_or(usize::MAX);
        DirtyReach::of_whole_mappings(longest_bitmap).with_gaps()
    }

    fn fetch(&self, range: IovaRange, bitmap: &mut [u64]) -> Result<(), Failure> {
        let mut command = DirtyBitmap {
            argsz: DirtyBitmap::SIZE,
            flags: type1::DIRTY_GET_BITMAP,
            iova: range.first().get(),
            // All 2^64 bytes fit neither the field nor a bitmap; the kernel refuses a size of 0 with `EINVAL`.
            size: range.len().map_or(0, std::num::NonZeroU64::get),
            bitmap: self.field(bitmap),
        };
        let data = offset_of!(DirtyBitmap, bitmap) + offset_of!(Bitmap, data);
        let mut data = [Attachment { offset: data, what: Attached::Buffer(bitmap.as_mut_bytes()) }];
        let command = Command::with_bytes(type1::DIRTY_PAGES, command.as_mut_bytes());
        self.container.call(command.attaching(&mut data))
    }

    fn unmap(&self, range: IovaRange, bitmap: &mut [u64]) -> Option<Result<Undone<Option<u64>>, Failure>> {
        let mut unmap = UnmapDirty { unmap: unmap_of(range), bitmap: self.field(bitmap) };
        // An unmap of everything has no bitmap.
        range.len()?;
        unmap.unmap.argsz = UnmapDirty::SIZE;
        unmap.unmap.flags |= type1::UNMAP_GET_DIRTY;
        let data = offset_of!(UnmapDirty, bitmap) + offset_of!(Bitmap, data);
        let mut data = [Attachment { offset: data, what: Attached::Buffer(bitmap.as_mut_bytes()) }];
        let command = Command::with_bytes(vfio::UNMAP_DMA, unmap.as_mut_bytes());
        let result = self.container.call(command.attaching(&mut data));
        Some(Undone::unless_absent(result.map(|()| Some(unmap.unmap.size)), &[Errno::ENOENT]))
    }
}
