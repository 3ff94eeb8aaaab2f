//! Uncoordinated discards: a balloon drops memory without telling anybody, so it has to ask first.

use crate::Listener;
use crate::section::{Section, TargetMemory};
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::memory::HostMemory;

/// Why memory must not be dropped: a device would go on with the pages it has, and this process would get others (QEMU inhibits balloons
/// altogether once a device is assigned; qemu: hw/vfio/container.c, vfio_ram_block_discard_disable).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InUse {
    /// Devices reach it, or may do so behind a fence.
    #[error("devices reach it through {backend} at {range} ({section})")]
    Mapped {
        /// Which backend.
        backend: &'static str,
        /// Where on the bus.
        range: IovaRange,
        /// The section that is there.
        section: String,
    },
    /// It is registered, and thereby pinned as a whole.
    #[error("{memory} is registered with {backend} ({owner})")]
    Registered {
        /// Which backend.
        backend: &'static str,
        /// All of the registration.
        memory: HostMemory,
        /// The section or target memory it was registered for.
        owner: String,
    },
    /// A guest can put entries that point to it at any moment.
    #[error("entries of a translated window can be put at any moment that point to {target}")]
    Target {
        /// The target memory.
        target: String,
    },
}

impl Listener {
    /// Whether `memory` may be dropped without further ado (a balloon's `MADV_DONTNEED`, a hole punched into a file): `Ok` when no space
    /// served maps it, has it registered or can be given entries that point to it. The answer holds until the next commit, and for
    /// blocks of discardable sections until they are populated.
    ///
    /// Cost proportional to what is live.
    ///
    /// # Errors
    /// [`InUse`]: who keeps it.
    pub fn may_discard(&self, memory: &HostMemory) -> Result<(), InUse> {
        for space in self.spaces() {
            let backend = space.describe().backend;
            if let Some(range) = space.fence_onto(memory).or_else(|| space.mapping_onto(memory)) {
                let section = self.view.sections.within(range).next();
                return Err(InUse::Mapped { backend, range, section: named(section.map(Section::name)) });
            }
            let registered =
                space.powers().registration.map(|registration| registration.registered()).unwrap_or_default();
            if let Some(known) = registered.into_iter().find(|known| known.overlaps(memory)) {
                let owner = named(self.owner_of(&known));
                return Err(InUse::Registered { backend, memory: known, owner });
            }
        }
        let within_reach = !self.members.is_empty() && !self.windows.is_empty();
        match self.view.targets.iter().find(|target| within_reach && target.memory().overlaps(memory)) {
            Some(target) => Err(InUse::Target { target: target.to_string() }),
            None => Ok(()),
        }
    }

    fn owner_of(&self, memory: &HostMemory) -> Option<&str> {
        let shows = |section: &&Section| section.memory().is_some_and(|shown| shown.overlaps(memory));
        let section = || self.view.sections.iter().find(shows).map(Section::name);
        let target = self.view.targets.iter().find(|target| target.memory().overlaps(memory));
        target.map(TargetMemory::name).or_else(section)
    }
}

fn named(owner: Option<&str>) -> String {
    owner.unwrap_or("nothing of this listener's").to_owned()
}
