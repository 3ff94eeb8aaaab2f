//! Addresses of a type1 container's mappings that are invalidated and updated, for a live update of the process. The
//! pins, and the memory that devices reach, stay as they are, whatever the address.

use dmaspace_core::IovaRange;
use dmaspace_core::door::Errno;

use crate::dialect::type1::{Type1, charged_for};
use crate::dialect::{Pid, System, require};

impl Type1 {
    /// The number of mappings without a valid address.
    pub(crate) fn count_without_address(&self) -> usize {
        self.without_address.len()
    }

    /// vfio_dma_do_unmap with VFIO_DMA_UNMAP_FLAG_VADDR: all addresses or none. Returns the bytes of the mappings.
    pub(super) fn invalidate_vaddrs(&mut self, range: IovaRange) -> Result<u64, Errno> {
        let mut firsts = Vec::new();
        let mut bytes = 0;
        for run in self.table.overlapping(range) {
            require(!self.without_address.contains(&run.range.first()), Errno::EINVAL)?;
            firsts.push(run.range.first());
            bytes += run.bytes();
        }
        self.without_address.extend(firsts);
        Ok(bytes)
    }

    /// vfio_dma_do_map with VFIO_DMA_MAP_FLAG_VADDR: `range` must be exactly that of a mapping whose address is
    /// invalid.
    pub(super) fn update_vaddr(&mut self, system: &mut System, by: Pid, range: IovaRange) -> Result<i32, Errno> {
        let first = self.table.overlapping(range).map(|run| run.range).next().ok_or(Errno::ENOENT)?;
        require(first == range && self.without_address.contains(&range.first()), Errno::EINVAL)?;
        self.change_owner(system, by, range)?;
        self.without_address.remove(&range.first());
        Ok(0)
    }

    /// vfio_change_dma_owner: the new process is charged before the old one, which may have ended, is uncharged.
    fn change_owner(&mut self, system: &mut System, by: Pid, range: IovaRange) -> Result<(), Errno> {
        let run = self.table.at(range.first()).filter(|run| run.source != by.0).cloned();
        let Some(mut run) = run else { return Ok(()) };
        let charged = charged_for(&run);
        system.account(by).lock(charged)?;
        system.give_back(Pid(run.source), |account| account.unlock(charged));
        run.source = by.0;
        self.table.remove(range.first());
        self.table.insert(run);
        Ok(())
    }
}
