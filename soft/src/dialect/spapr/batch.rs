//! The entries that one map call writes: their memory, and the first entry that cannot be written.

use dmaspace_core::door::Errno;
use dmaspace_core::{Access, HostMemory, Iova};

use super::tce_of;
use super::windows::TceWindow;
use crate::dialect::call::UserMemory;
use crate::dialect::{Pid, System};
use crate::engine::Run;
use crate::profile::TceManager;

/// The errno for H_PARAMETER, the hypervisor's answer to an unknown table index, which the kernel passes on (linux:
/// arch/powerpc/platforms/pseries/iommu.c, tce_exchange_pseries).
const H_PARAMETER: Errno = Errno::EINTR;

/// Entries to write.
pub(super) struct Batch {
    pub(super) window: TceWindow,
    pub(super) at: Iova,
    pub(super) entries: u64,
    pub(super) access: Access,
}

/// The entries of a batch that can be written, up to the first that cannot.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) runs: Vec<Run>,
    pub(super) failure: Option<Errno>,
}

impl Batch {
    /// tce_iommu_build_v2: every entry must lie wholly in one registered block, on pages that are large enough.
    pub(super) fn show(&self, system: &mut System, by: Pid, memory: &UserMemory) -> Result<Plan, Errno> {
        let page = self.window.page;
        let platform = tce_of(system)?.platform;
        let registry = &system.process(by).registry;
        Ok(self.plan(platform, Errno::EINVAL, |offset| {
            let address = memory.address.checked_add(offset)?;
            let block = registry.holding(address, page.bytes()).filter(|block| block.page >= page)?;
            let inside = address - block.memory.address().get();
            let room = page.round_down(block.memory.len().get() - inside);
            // The caller's memory, not the block: the block may be rounded to whole pages, and its owner vouches for a
            // part.
            let mapped =
                memory.rest(offset).and_then(|rest| rest.slice(0, room.min(page.round_down(rest.len().get()))));
            let shown = if mapped.is_some() { mapped } else { block.memory.slice(inside, room) };
            Some((shown?, block.id))
        }))
    }

    /// tce_iommu_build: pinned page by page, always for writing, without a charge.
    pub(super) fn pin(&self, system: &mut System, by: Pid, memory: &UserMemory) -> Result<Plan, Errno> {
        let page = self.window.page;
        let platform = tce_of(system)?.platform;
        let plan = self.plan(platform, Errno::EFAULT, |offset| {
            let rest = memory.rest(offset).filter(|rest| !rest.is_device_memory())?;
            Some((rest.slice(0, page.round_down(rest.len().get()))?, 0))
        });
        system.account(by).note_pins(plan.runs.iter().map(Run::bytes).sum());
        Ok(plan)
    }

    /// Walks through the entries in stretches. `source` returns the memory from a byte of the request on, and its
    /// number; `refusal` is the answer where there is no memory.
    fn plan(&self, platform: TceManager, refusal: Errno, source: impl Fn(u64) -> Option<(HostMemory, u64)>) -> Plan {
        let page = self.window.page;
        let wanted = self.entries << page.shift();
        let mut plan = Plan::default();
        let mut done = 0;
        while done < wanted && plan.failure.is_none() {
            let run = source(done).ok_or(refusal).and_then(|(memory, id)| {
                let (at, room) = self.window.place(platform, self.at, done).ok_or(H_PARAMETER)?;
                let part = memory.slice(0, memory.len().get().min(wanted - done).min(room)).ok_or(refusal)?;
                Run::new(at, part, self.access, id).ok_or(Errno::EINVAL)
            });
            match run {
                Ok(run) => {
                    done += run.bytes();
                    plan.runs.push(run);
                }
                Err(errno) => plan.failure = Some(errno),
            }
        }
        plan
    }
}
