//! Dirty tracking of a type1 container. No device of this host reports by itself what it writes, and so, as in the kernel, all that is
//! mapped reads as written (linux: drivers/vfio/vfio_iommu_type1.c, update_user_bitmap).

use std::mem::offset_of;

use dmaspace_core::door::Errno;
use dmaspace_core::{Iova, IovaRange};
use dmaspace_type1::abi::{self, Bitmap, DirtyBitmap};
use dmaspace_type1::vfio::IommuType;

use crate::dialect::call::Call;
use crate::dialect::type1::{DIRTY_BITMAP_SIZE_MAX, Type1, cuts_a_run, granule};
use crate::dialect::{World, require};

const KNOWN: u32 = abi::DIRTY_START | abi::DIRTY_STOP | abi::DIRTY_GET_BITMAP;

impl Type1 {
    /// vfio_iommu_type1_dirty_pages.
    pub(super) fn dirty_pages(&mut self, world: &World, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        require(self.version == IommuType::TYPE1_V2, Errno::EACCES)?;
        let request: DirtyBitmap = call.read_prefix(abi::DIRTY_BITMAP_HEAD as usize)?;
        require(request.argsz >= abi::DIRTY_BITMAP_HEAD && request.flags & !KNOWN == 0, Errno::EINVAL)?;
        match request.flags {
            abi::DIRTY_START => self.logs = true,
            abi::DIRTY_STOP => self.logs = false,
            abi::DIRTY_GET_BITMAP => self.get_bitmap(world, call, &request)?,
            _ => return Err(Errno::EINVAL),
        }
        Ok(0)
    }

    /// vfio_iova_dirty_bitmap, and the checks before it.
    fn get_bitmap(&self, world: &World, call: &mut Call<'_, '_>, request: &DirtyBitmap) -> Result<(), Errno> {
        require(request.argsz >= DirtyBitmap::SIZE, Errno::EINVAL)?;
        let page = granule(world);
        // A range that ends at 2^64 wraps to zero, and is refused with those that wrap further.
        let range = IovaRange::with_len(Iova::new(request.iova), request.size).map_err(|_| Errno::EINVAL)?;
        require(range.end().is_some() && range.is_aligned_to(page), Errno::EINVAL)?;
        self.check_bitmap(world, request.size, &request.bitmap)?;
        require(!cuts_a_run(&self.table, range), Errno::EINVAL)?;
        self.fill(world, call, offset_of!(DirtyBitmap, bitmap) + offset_of!(Bitmap, data), range)
    }

    /// verify_bitmap_size, and that anything is logged at all.
    pub(super) fn check_bitmap(&self, world: &World, size: u64, bitmap: &Bitmap) -> Result<(), Errno> {
        let page = granule(world);
        let needed = (size >> page.shift()).div_ceil(64) * 8;
        let holds = needed > 0 && bitmap.size >= needed && bitmap.size <= DIRTY_BITMAP_SIZE_MAX;
        require(holds && bitmap.pgsize == page.bytes() && self.logs, Errno::EINVAL)
    }

    /// Sets the bit of every page of `range` that is mapped.
    pub(super) fn fill(
        &self,
        world: &World,
        call: &mut Call<'_, '_>,
        data: usize,
        range: IovaRange,
    ) -> Result<(), Errno> {
        let shift = granule(world).shift();
        let bitmap = call.buffer(data).ok_or(Errno::EFAULT)?;
        for run in self.table.overlapping(range) {
            let first = range.offset_of(run.range.first()) >> shift;
            for page in first..first + (run.bytes() >> shift) {
                let byte = usize::try_from(page / 8).ok().and_then(|byte| bitmap.get_mut(byte));
                *byte.ok_or(Errno::EFAULT)? |= 1 << (page % 8);
            }
        }
        Ok(())
    }
}
