//! Updating the addresses of mappings for a live update: VFIO_UPDATE_VADDR, since Linux 5.12.
//!
//! The kernel keeps page tables and pins (linux: drivers/vfio/vfio_iommu_type1.c, vfio_dma_do_unmap, vfio_dma_do_map,
//! vfio_change_dma_owner). It does not check a new address against the pinned memory. The process that updates an
//! address is charged instead of the one that mapped, except for another device's memory. The dirty log stays with the
//! mapping.

use dmaspace_abi::vfio::{CHECK_EXTENSION, Extension};
use dmaspace_abi::{type1, vfio};
use dmaspace_core::IovaRange;
use dmaspace_core::backend::VaddrCalls;
use dmaspace_core::door::{Cause, Command, Errno, Failure, Lease};
use dmaspace_core::retry::Undone;
use zerocopy::IntoBytes;

use crate::{Type1, unmap_of};

impl VaddrCalls for Type1 {
    /// A mediated device pins by addresses while it is open, and the kernel does not report the extension meanwhile
    /// (linux: vfio_iommu_type1_check_extension).
    fn obstacle(&self) -> Result<Option<&'static str>, Failure> {
        let extension = Extension::UPDATE_VADDR;
        let has = self.container.ask(Command::with_value(CHECK_EXTENSION, extension.0))? > 0;
        let why = "the kernel updates no addresses of this container (VFIO_UPDATE_VADDR): it is older than 5.12, or a \
                   mediated device is attached; detach that, or let the guest give its devices back";
        Ok((!has).then_some(why))
    }

    /// The kernel answers `EINVAL` where an address is invalidated already (linux: vfio_dma_do_unmap).
    fn invalidate(&self, range: IovaRange) -> Result<Undone<Option<u64>>, Failure> {
        let mut unmap = unmap_of(range);
        unmap.flags |= type1::UNMAP_VADDR;
        let called = self.container.call(Command::with_bytes(vfio::UNMAP_DMA, unmap.as_mut_bytes()));
        Undone::unless_absent(called.map(|()| Some(unmap.size)), &[Errno::EINVAL])
    }

    fn update(&self, range: IovaRange, memory: &Lease<'_>) -> Result<(), Failure> {
        // `EINVAL` for a mapping that is not there, or whose address was not invalidated (linux:
        // drivers/vfio/vfio_iommu_type1.c, vfio_dma_do_map).
        let moved = vfio::map_with_flags(&self.container, type1::MAP_VADDR, range.first(), memory);
        moved.map_err(|failure| match failure.errno() {
            Some(Errno::EINVAL) => failure.caused_by(Cause::NotThere),
            _ => failure,
        })
    }
}
