//! Dirty tracking of a type1 container. No device of this host reports its writes to the kernel, so that everything
//! that is mapped reads as written (linux: drivers/vfio/vfio_iommu_type1.c, update_user_bitmap).

use std::mem::offset_of;

use dmaspace_abi::type1::{self, Bitmap, DirtyBitmap};
use dmaspace_abi::vfio::IommuType;
use dmaspace_core::door::Errno;
use dmaspace_core::{Iova, IovaRange};

use crate::dialect::call::Call;
use crate::dialect::type1::{DIRTY_BITMAP_SIZE_MAX, Type1, cuts_a_run, granule_of};
use crate::dialect::{System, require};

const KNOWN: u32 = type1::DIRTY_START | type1::DIRTY_STOP | type1::DIRTY_GET_BITMAP;

impl Type1 {
    /// vfio_iommu_type1_dirty_pages.
    pub(super) fn dirty_pages(&mut self, system: &System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        require(self.version == IommuType::TYPE1_V2, Errno::EACCES)?;
        let request: DirtyBitmap = call.read_prefix(type1::DIRTY_BITMAP_HEAD as usize)?;
        require(request.argsz >= type1::DIRTY_BITMAP_HEAD && request.flags & !KNOWN == 0, Errno::EINVAL)?;
        match request.flags {
            type1::DIRTY_START => self.is_logging = true,
            type1::DIRTY_STOP => {
                self.is_logging = false;
                self.logs.clear();
            }
            type1::DIRTY_GET_BITMAP => self.get_bitmap(system, call, &request)?,
            _ => return Err(Errno::EINVAL),
        }
        Ok(0)
    }

    /// vfio_iova_dirty_bitmap, and the checks before it.
    fn get_bitmap(&mut self, system: &System, call: &mut Call<'_, '_>, request: &DirtyBitmap) -> Result<(), Errno> {
        require(request.argsz >= DirtyBitmap::SIZE, Errno::EINVAL)?;
        let page = granule_of(system);
        require(request.size > 0, Errno::EINVAL)?;
        let range = IovaRange::with_len(Iova::new(request.iova), request.size).map_err(|_| system.facts.wrap())?;
        // Before 7.2 a range that ends at 2^64 wraps to zero, and is refused like those that wrap further.
        require(range.end().is_some() || system.facts.is_modern(), Errno::EINVAL)?;
        require(range.is_aligned_to(page), Errno::EINVAL)?;
        self.check_bitmap(system, request.size, &request.bitmap)?;
        require(!cuts_a_run(&self.table, range), Errno::EINVAL)?;
        self.fill(system, call, offset_of!(DirtyBitmap, bitmap) + offset_of!(Bitmap, data), range)
    }

    /// verify_bitmap_size, and the check that the container logs.
    pub(super) fn check_bitmap(&self, system: &System, size: u64, bitmap: &Bitmap) -> Result<(), Errno> {
        let page = granule_of(system);
        let needed = (size >> page.shift()).div_ceil(64) * 8;
        let holds = needed > 0 && bitmap.size >= needed && bitmap.size <= DIRTY_BITMAP_SIZE_MAX;
        require(holds && bitmap.pgsize == page.bytes() && self.is_logging, Errno::EINVAL)
    }

    /// Reports the pages of `range` that are mapped.
    pub(super) fn fill(
        &mut self,
        system: &System,
        call: &mut Call<'_, '_>,
        data: usize,
        range: IovaRange,
    ) -> Result<(), Errno> {
        let page = granule_of(system);
        let bitmap = call.buffer(data).ok_or(Errno::EFAULT)?;
        for run in self.table.overlapping(range) {
            let (first, pages) = (range.offset_of(run.range.first()) >> page.shift(), run.bytes() >> page.shift());
            let log = self.logs.entry(run.range.first()).or_default();
            log.tell(bitmap, first, pages).ok_or(Errno::EFAULT)?;
        }
        Ok(())
    }
}

/// A mapping's own bitmap. The kernel shifts it to the place of the mapping's first bit in a word of the answer, and
/// clears it by the mapping's length only: bits that were shifted beyond are reported again the next time, further on.
/// The answer has too many bits, never too few.
#[derive(Debug, Default)]
pub(super) struct Log {
    words: Vec<u64>,
}

impl Log {
    /// update_user_bitmap for a mapping all of which is dirty, and the bitmap_clear after it. `None` if the answer has
    /// no room.
    fn tell(&mut self, answer: &mut [u8], first: u64, pages: u64) -> Option<()> {
        let (word, shift) = (usize::try_from(first / 64).ok()?, first % 64);
        let count = usize::try_from((pages + shift).div_ceil(64)).ok()?;
        self.words.resize(self.words.len().max(count), 0);
        set(&mut self.words, pages, u64::MAX);
        let told = answer.get_mut(word.checked_mul(8)?..word.checked_add(count)?.checked_mul(8)?)?;
        if shift > 0 {
            let mut below = 0;
            for word in self.words.iter_mut().take(count) {
                (*word, below) = ((*word << shift) | below, *word >> (64 - shift));
            }
            *self.words.first_mut()? |= u64::from_ne_bytes(*told.first_chunk()?);
        }
        for (to, from) in told.chunks_exact_mut(8).zip(&self.words) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        set(&mut self.words, pages, 0);
        Some(())
    }
}

/// Sets the first `bits` bits to those of `value`.
fn set(words: &mut [u64], bits: u64, value: u64) {
    let mut left = bits;
    for word in words {
        let mask = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
        *word = (*word & !mask) | (value & mask);
        left = left.saturating_sub(64);
    }
}
