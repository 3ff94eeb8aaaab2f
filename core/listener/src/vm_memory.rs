//! Sections straight from a vm-memory map, without `unsafe`: a mapping keeps its region alive, so that safe code cannot
//! unmap host memory under a device.
//!
//! A VMM that plugs memory passes the whole map again, or a snapshot of its `GuestMemoryAtomic`; the listener computes
//! the difference, and touches nothing else:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use dmaspace_listener::{FrontEnd, Listener, vm_memory};
//! use ::vm_memory::{GuestAddress, GuestMemoryAtomic, GuestAddressSpace, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
//!
//! let map = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)])?;
//! let memory = GuestMemoryAtomic::new(map);
//! let mut listener = Listener::new(FrontEnd::pc());
//! listener.commit(listener.update_to(&vm_memory::sections(&*memory.memory())?, &[]))?;
//!
//! // A DIMM is plugged.
//! let dimm = GuestRegionMmap::new(MmapRegion::new(0x20_0000)?, GuestAddress(1 << 32)).ok_or("it wraps")?;
//! let plugged = memory.memory().insert_region(dimm.into())?;
//! memory.lock().map_err(|_| "poisoned")?.replace(plugged);
//! listener.commit(listener.update_to(&vm_memory::sections(&*memory.memory())?, &[]))?;
//! assert_eq!(listener.sections().count(), 2);
//! # Ok(())
//! # }
//! ```

mod bitmaps;

pub use bitmaps::RegionBitmaps;
// For a VMM that depends on no other crate: this version is the one of the functions here.
use vm_memory::mmap::NewBitmap;
#[doc(no_inline)]
pub use vm_memory::{self, GuestAddress, GuestMemoryMmap};
use vm_memory::{Address as _, GuestMemoryBackend, GuestMemoryRegion};

use crate::section::{Section, TargetMemory};
use dmaspace_core::words::access::Access;
use dmaspace_core::words::address::{BadRange, Iova, SystemAddress};
use dmaspace_core::words::memory::HostMemory;

/// The regions as RAM of the PCI address space, at bus addresses equal to their system addresses: a PC without a
/// vIOMMU. Regions this process may only read become read-only RAM.
///
/// # Errors
/// [`BadRange`] for a region that is empty or ends past 2^64-1, which vm-memory does not make.
pub fn sections<B: NewBitmap + Send + Sync + 'static>(memory: &GuestMemoryMmap<B>) -> Result<Vec<Section>, BadRange> {
    each(memory, |name, at, memory| {
        let access = if memory.is_host_read_only() { Access::READ } else { Access::READ_WRITE };
        Section::ram(name, Iova::new(at), memory, access)
    })
}

/// The regions as target memory: RAM that devices reach only through translated windows, as on sPAPR or behind a
/// vIOMMU.
///
/// # Errors
/// As [`sections`].
pub fn targets<B: NewBitmap + Send + Sync + 'static>(
    memory: &GuestMemoryMmap<B>,
) -> Result<Vec<TargetMemory>, BadRange> {
    each(memory, |name, at, memory| TargetMemory::new(name, SystemAddress::new(at), memory))
}

fn each<B: NewBitmap + Send + Sync + 'static, T>(
    memory: &GuestMemoryMmap<B>,
    make: impl Fn(&str, u64, HostMemory) -> Result<T, BadRange>,
) -> Result<Vec<T>, BadRange> {
    // By address, not by number: a region keeps its name when another one comes or goes.
    let mut all = Vec::new();
    for region in memory.iter() {
        let at = region.start_addr().raw_value();
        all.push(make(&format!("ram at {at:#x}"), at, HostMemory::of_region(region).ok_or(BadRange::Empty)?)?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn a_section_keeps_its_region_alive_and_shows_its_bytes() {
        let ranges = [(GuestAddress(0), 0x1_0000), (GuestAddress(0x10_0000), 0x2_0000)];
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("memory for the test");
        memory.write_obj(0x1234_5678_u32, GuestAddress(0x10_0010)).expect("inside");
        let sections = sections(&memory).expect("proper ranges");
        drop(memory);
        let (bytes, access) = sections[1].direct().expect("RAM");
        let mut word = [0; 4];
        bytes.read(0x10, &mut word).expect("inside");
        assert_eq!((u32::from_ne_bytes(word), access), (0x1234_5678, Access::READ_WRITE));
        assert_eq!(sections[1].range().first(), Iova::new(0x10_0000));
    }

    #[test]
    fn regions_are_units_of_their_own_even_when_the_same_one_is_asked_twice() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)]);
        let memory = memory.expect("memory for the test");
        let (once, again) = (sections(&memory).expect("proper"), sections(&memory).expect("proper"));
        assert_eq!(once, again);
        let (low, high) = (once[0].direct().expect("RAM").0, once[1].direct().expect("RAM").0);
        assert!(!low.is_of_a_kind(high));
    }
}
