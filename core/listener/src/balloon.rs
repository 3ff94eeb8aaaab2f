//! Uncoordinated discards: a balloon driver discards memory without naming a section, so the VMM must ask first.

use dmaspace_core::contract::PciAddressSpace;
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::memory::HostMemory;

use crate::in_force::InForce;
use crate::section::{Section, TargetMemory};
use crate::update::View;

/// The reason why memory must not be discarded: a device would go on with the old pages while this process gets new
/// ones (QEMU inhibits balloons altogether once a device is assigned; qemu: hw/vfio/container.c,
/// vfio_ram_block_discard_disable).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InUse {
    /// Devices reach the memory, or may reach it behind a fence.
    #[error("devices reach it through {backend} at {range} ({section})")]
    Mapped {
        /// The backend's name.
        backend: &'static str,
        /// The bus addresses.
        range: IovaRange,
        /// The section there.
        section: String,
    },
    /// The memory is registered, and thereby pinned as a whole.
    #[error("{memory} is registered with {backend} ({owner})")]
    Registered {
        /// The backend's name.
        backend: &'static str,
        /// All of the registration.
        memory: HostMemory,
        /// The section or target memory it was registered for.
        owner: String,
    },
    /// The guest can put entries that point to the memory at any moment.
    #[error("entries of a translated window can be put at any moment that point to {target}")]
    Target {
        /// The target memory.
        target: String,
    },
}

/// Checks that no space served uses `memory`, and that no entry can be put that points to it.
pub(crate) fn may_discard(all: &InForce, memory: &HostMemory) -> Result<(), InUse> {
    for space in all.spaces() {
        check_space(space.as_ref(), &all.view, memory)?;
    }
    if all.served.is_empty() || all.windows.is_empty() {
        return Ok(());
    }
    match all.view.targets.iter().find(|target| target.memory().overlaps(memory)) {
        Some(target) => Err(InUse::Target { target: target.to_string() }),
        None => Ok(()),
    }
}

fn check_space(space: &dyn PciAddressSpace, view: &View, memory: &HostMemory) -> Result<(), InUse> {
    let backend = space.describe().backend;
    if let Some(range) = space.fence_onto(memory).or_else(|| space.mapping_onto(memory)) {
        let section = view.sections.within(range).next();
        return Err(InUse::Mapped { backend, range, section: named(section.map(Section::name)) });
    }
    let registered = space.powers().registration.map(|registration| registration.registered()).unwrap_or_default();
    match registered.into_iter().find(|known| known.overlaps(memory)) {
        Some(known) => {
            let owner = named(owner_of(view, &known));
            Err(InUse::Registered { backend, memory: known, owner })
        }
        None => Ok(()),
    }
}

/// The name of the target memory or section that shows bytes of `memory`.
fn owner_of<'a>(view: &'a View, memory: &HostMemory) -> Option<&'a str> {
    if let Some(target) = view.targets.iter().find(|target| target.memory().overlaps(memory)) {
        return Some(TargetMemory::name(target));
    }
    let mut sections = view.sections.iter();
    sections.find(|section| section.memory().is_some_and(|shown| shown.overlaps(memory))).map(Section::name)
}

fn named(owner: Option<&str>) -> String {
    owner.unwrap_or("nothing of this listener's").to_owned()
}
