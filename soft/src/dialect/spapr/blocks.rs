//! Registering memory: pins, charges, and the answers when not all of it can be pinned (linux:
//! arch/powerpc/mm/book3s64/iommu_api.c).

use std::mem::offset_of;

use dmaspace_abi::spapr::RegisterMemory;
use dmaspace_core::door::Errno;
use dmaspace_core::{HostMemory, PageSize};

use crate::dialect::call::{Call, UserMemory};
use crate::dialect::{Pid, Process, System, require};

/// The number of pages that one round pins: as many pointers as the largest block of the page allocator holds, 16 MiB
/// with 4 KiB pages and with 64 KiB ones (linux: arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_do_alloc).
const PIN_ROUND: u64 = (16 << 20) / 8;

/// The outcome of a registration.
pub(super) enum Pinned {
    /// Everything was pinned; the number is the block's.
    All(u64),
    /// Not every page of the last round was pinned; the number is the result of the call.
    Some(i32),
}

/// mm_iommu_do_alloc: charges, then pins for writing, and only then checks for an overlap with another block.
pub(super) fn new_block(system: &mut System, by: Pid, memory: &UserMemory, size: u64) -> Result<Pinned, Errno> {
    let (page, has_huge_pages) = (system.page(), system.has_huge_pages);
    let Process { account, registry } = system.process(by);
    account.lock(size)?;
    let pinned = pin_block(memory, size, page).and_then(|pinned| match pinned {
        Ok(memory) if registry.overlaps(memory.address().get(), size) => Err(Errno::EINVAL),
        other => Ok(other),
    });
    match pinned {
        Ok(Ok(memory)) => {
            account.note_pins(size);
            let largest = if has_huge_pages { largest_page(&memory, page) } else { page };
            Ok(Pinned::All(registry.add(memory, largest)))
        }
        Ok(Err(pages)) => {
            account.unlock(size);
            Ok(Pinned::Some(pages))
        }
        Err(errno) => {
            account.unlock(size);
            Err(errno)
        }
    }
}

/// Pins a block in rounds. A round that pins only some of its pages is the last, and their number becomes the result,
/// `Ok(Err(_))`; a round that pins none is `EFAULT`.
fn pin_block(memory: &UserMemory, size: u64, page: PageSize) -> Result<Result<HostMemory, i32>, Errno> {
    require(size > 0, Errno::ENOMEM)?;
    require(!memory.is_device_memory(), Errno::EFAULT)?;
    if let Some(memory) = memory.pinnable(size, true) {
        return Ok(Ok(memory));
    }
    let of_the_last_round = memory.pinnable_pages(size, true, page) % PIN_ROUND;
    require(of_the_last_round > 0, Errno::EFAULT)?;
    i32::try_from(of_the_last_round).map(Err).map_err(|_| Errno::EFAULT)
}

/// The largest page of a TCE that can point into the block: hugetlb pages count, all other memory has the host's page.
fn largest_page(memory: &HostMemory, page: PageSize) -> PageSize {
    let natural = PageSize::largest_dividing(&[memory.address().get(), memory.len().get()]).unwrap_or(page);
    natural.min(memory.backing_page().unwrap_or(page).max(page))
}

/// The argument of REGISTER_MEMORY and UNREGISTER_MEMORY.
pub(super) fn read_block(system: &System, call: &Call<'_, '_>) -> Result<(UserMemory, u64), Errno> {
    let block: RegisterMemory = call.read()?;
    require(block.argsz >= RegisterMemory::SIZE && block.flags == 0, Errno::EINVAL)?;
    let memory = call.memory(offset_of!(RegisterMemory, vaddr), block.vaddr);
    require(system.page().divides(memory.address | block.size), Errno::EINVAL)?;
    require(memory.address.checked_add(block.size).is_some(), Errno::EINVAL)?;
    Ok((memory, block.size))
}
