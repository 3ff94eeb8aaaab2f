//! The promises of a space, checked against the kernel in software behind it.

use dmaspace::open::Opened;
use dmaspace_core::{IovaRange, PciAddressSpace};
use dmaspace_soft::{ReachedMemory, SoftHost};

use crate::model::{Reached, Stretch};

/// The memory that a device reaches, as the kernel has it.
pub(super) fn in_kernel(reached: &[ReachedMemory]) -> Reached {
    let stretch = |it: &ReachedMemory| Stretch { range: it.range, host: it.memory.address().get(), access: it.access };
    reached.iter().map(stretch).collect()
}

/// The memory that a space lists, and its fences.
pub(super) struct Listed {
    index: Reached,
    fences: Vec<IovaRange>,
}

impl Listed {
    pub(super) fn by(space: &dyn PciAddressSpace) -> Self {
        let fences = space.describe().fences.iter().map(|fence| fence.range).collect();
        let mappings = space.mappings(IovaRange::all());
        // Units that continue each other are one stretch, in the index and in the kernel.
        let index = Reached::of(&mappings).0.into_iter().collect();
        Self { index, fences }
    }

    /// Returns why the space does not keep all memory that a device reaches: each byte must be in the index, or behind
    /// a fence that keeps it.
    pub(super) fn lacks(&self, space: &dyn PciAddressSpace, reached: &[ReachedMemory]) -> Option<String> {
        let kernel = in_kernel(reached).outside(&self.fences);
        let known = kernel.shared_with(&self.index);
        if known.bytes() != kernel.bytes() {
            return Some(format!("a device reaches {kernel:x?}, and the space lists {:x?} there", self.index));
        }
        let behind = reached.iter().filter(|it| self.fences.iter().any(|fence| fence.overlaps(it.range)));
        let freed = behind.into_iter().find(|it| !self.keeps_behind_a_fence(space, it));
        freed.map(|it| format!("a device reaches {:x?} behind a fence that does not keep it", it))
    }

    /// The part of a fenced mapping outside the fences is in the index.
    fn keeps_behind_a_fence(&self, space: &dyn PciAddressSpace, it: &ReachedMemory) -> bool {
        let inside = self.fences.iter().filter_map(|fence| fence.intersection(it.range));
        inside.into_iter().all(|part| {
            let memory = part.len().and_then(|len| it.memory.slice(it.range.offset_of(part.first()), len.get()));
            memory.is_none_or(|memory| space.fence_onto(&memory).is_some() || space.mapping_onto(&memory).is_some())
        })
    }

    /// Returns the difference between the index and the kernel, outside fences.
    pub(super) fn differs_from(&self, reached: &[ReachedMemory]) -> Option<String> {
        let (kernel, index) = (in_kernel(reached).outside(&self.fences), self.index.outside(&self.fences));
        (kernel != index).then(|| format!("the kernel maps {kernel:x?}, and the space lists {index:x?}"))
    }
}

/// All that a device reaches is kept by one of the spaces.
pub(super) fn assert_reach_is_kept(soft: &SoftHost, opened: &[Opened]) {
    let listed: Vec<_> = opened.iter().map(|opened| (opened, Listed::by(&**opened.space.space()))).collect();
    for group in &soft.profile().groups {
        let device = soft.device(&group.devices[0].address).expect("it is there");
        let Some(reached) = device.reached().filter(|reached| !reached.is_empty()) else { continue };
        let lacks = listed.iter().map(|(opened, listed)| listed.lacks(&**opened.space.space(), &reached));
        let faults: Vec<_> = lacks.map_while(|lacks| lacks).collect();
        assert!(faults.len() < listed.len(), "{}: {faults:?}", device.address());
    }
}
