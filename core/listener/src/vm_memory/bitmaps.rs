//! The bitmaps of a vm-memory map as a sink for what devices write.

use dmaspace_core::HostAddress;
use std::collections::BTreeMap;

use vm_memory::bitmap::Bitmap;
use vm_memory::mmap::NewBitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use dmaspace_core::contract::dirty::{Dirtied, DirtiedPages, DirtySink};

/// The regions' own bitmaps, marked directly. A snapshot: after memory is plugged, a VMM must track with a new one.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use ::vm_memory::bitmap::AtomicBitmap;
/// use ::vm_memory::{GuestAddress, GuestMemoryMmap};
/// use dmaspace_listener::{FrontEnd, Listener, vm_memory};
///
/// let memory = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&[(GuestAddress(0), 0x10_0000)])?;
/// let mut listener = Listener::new(FrontEnd::pc());
/// listener.commit(listener.update_to(&vm_memory::sections(&memory)?, &[]))?;
/// listener.track_dirty(Arc::new(vm_memory::RegionBitmaps::of(&memory)))?;
/// # Ok(())
/// # }
/// ```
pub struct RegionBitmaps<B: NewBitmap> {
    memory: GuestMemoryMmap<B>,
    /// The first byte of each region, in this process and in the guest.
    regions: BTreeMap<HostAddress, GuestAddress>,
}

impl<B: NewBitmap> RegionBitmaps<B> {
    /// The bitmaps of `memory` as it is now.
    pub fn of(memory: &GuestMemoryMmap<B>) -> Self {
        let regions =
            memory.iter().map(|region| (HostAddress::new(region.as_ptr() as u64), region.start_addr())).collect();
        Self { memory: memory.clone(), regions }
    }
}

impl<B: NewBitmap> RegionBitmaps<B> {
    /// The region that has the byte at `address` of this process, and the region's first byte there.
    fn region_of(&self, address: HostAddress) -> Option<(u64, &GuestRegionMmap<B>)> {
        let (begin, at) = self.regions.range(..=address).next_back()?;
        let region = self.memory.find_region(*at)?;
        if address.get() - begin.get() < region.len() { Some((begin.get(), region)) } else { None }
    }
}

fn mark_in<B: NewBitmap>(region: &GuestRegionMmap<B>, begin: u64, dirtied: Dirtied<'_>) {
    let offset = usize::try_from(dirtied.address().get() - begin).unwrap_or(usize::MAX);
    region.bitmap().mark_dirty(offset, usize::try_from(dirtied.len).unwrap_or(usize::MAX));
}

impl<B: NewBitmap + Send + Sync> DirtySink for RegionBitmaps<B> {
    /// Marks nothing for memory outside the regions.
    fn mark(&self, dirtied: Dirtied<'_>) {
        if let Some((begin, region)) = self.region_of(dirtied.address()) {
            mark_in(region, begin, dirtied);
        }
    }

    /// Looks the region up once for all pages, if the memory of the mapping lies in one. Marks run by run: vm-memory's
    /// bitmaps take ranges of bytes only (vm-memory: `Bitmap::mark_dirty`).
    fn mark_pages(&self, pages: DirtiedPages<'_>) {
        let region = self.region_of(pages.memory.address());
        let whole = region.filter(|(begin, region)| pages.memory.last().get() - begin < region.len());
        for run in pages.runs() {
            match whole {
                Some((begin, region)) => mark_in(region, begin, run),
                None => self.mark(run),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::bitmap::AtomicBitmap;

    use super::*;
    use dmaspace_core::HostMemory;

    #[test]
    fn bytes_are_marked_in_the_region_they_lie_in_and_nowhere_else() {
        let ranges = [(GuestAddress(0), 0x1_0000), (GuestAddress(0x10_0000), 0x1_0000)];
        let memory = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&ranges).expect("memory for the test");
        let sink = RegionBitmaps::of(&memory);
        let second = memory.find_region(GuestAddress(0x10_0000)).expect("the second region");
        let behind = HostMemory::of_region(second).expect("not empty");
        sink.mark(Dirtied::new(&behind, 0x2800, 0x1000));
        let dirty = |region: &vm_memory::GuestRegionMmap<AtomicBitmap>| {
            (0..0x1_0000_usize).step_by(0x1000).filter(|at| region.bitmap().dirty_at(*at)).collect::<Vec<_>>()
        };
        assert_eq!(dirty(second), [0x2000, 0x3000]);
        assert_eq!(dirty(memory.find_region(GuestAddress(0)).expect("the first region")), [0_usize; 0]);
    }

    #[test]
    fn memory_of_others_is_left_alone() {
        let memory = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&[(GuestAddress(0), 0x1000)]);
        let sink = RegionBitmaps::of(&memory.expect("memory for the test"));
        for address in [0x1000, u64::MAX - 0xffff] {
            let len = std::num::NonZeroU64::new(0x1000).expect("not zero");
            let elsewhere = HostMemory::unbacked(HostAddress::new(address), len).expect("no wrap");
            sink.mark(Dirtied::new(&elsewhere, 0, 0x1000));
        }
    }
}
