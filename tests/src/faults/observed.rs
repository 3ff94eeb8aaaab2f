//! What can be seen of a world from outside: by asking the library, the host, and a device.

use std::collections::BTreeSet;

use dmaspace_core::contract::{Mapping, Unit};
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PciAddressSpace, Window};
use dmaspace_soft::{Ledger, SoftDevice};

use super::world::World;

/// Everything that must be as it was, or as it is to be. The same in two worlds that are in the same state: memory is known by the
/// region it is in, not by its address.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Observed {
    pub(super) spaces: Vec<Space>,
    /// The sections and the target memory in force.
    pub(super) view: Vec<String>,
    /// What the host holds, without what it once held.
    pub(super) held: Ledger,
}

/// What a space says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Space {
    pub(super) mappings: Vec<Seen>,
    pub(super) windows: Vec<Window>,
    registered: Vec<Place>,
}

/// A mapping.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Seen {
    pub(super) range: IovaRange,
    pub(super) place: Place,
    pub(super) access: Access,
    unit: Unit,
}

/// A piece of the guest's memory: region, offset, length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) region: usize,
    pub(super) offset: u64,
    len: u64,
}

/// What a device finds at a bus address: the first bytes of a page, and whether it may write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) stamp: u64,
    writable: bool,
}

impl World {
    pub(super) fn observe(&self) -> Observed {
        let sections = self.listener.sections().map(ToString::to_string);
        Observed {
            spaces: self.opened.iter().map(|opened| self.observe_space(opened.space.space().as_ref())).collect(),
            view: sections.chain(self.listener.targets().map(ToString::to_string)).collect(),
            held: held(&self.soft.ledger()),
        }
    }

    fn observe_space(&self, space: &dyn PciAddressSpace) -> Space {
        let registered = space.registration().map(|registration| registration.registered()).unwrap_or_default();
        Space {
            mappings: space.mappings(IovaRange::all()).iter().map(|mapping| self.seen(mapping)).collect(),
            windows: space.windows().windows.iter().copied().collect(),
            registered: registered.iter().map(|memory| self.place_of(memory)).collect(),
        }
    }

    fn seen(&self, mapping: &Mapping) -> Seen {
        let Mapping { range, memory, access, unit } = mapping;
        Seen { range: *range, place: self.place_of(memory), access: *access, unit: *unit }
    }

    fn place_of(&self, memory: &HostMemory) -> Place {
        let mut regions = (0..).zip(&self.regions);
        let holds = |region: &HostMemory| region.address() <= memory.address() && memory.last() <= region.last();
        let (region, found) = regions.find(|(_, region)| holds(&region.memory)).expect("the guest's memory");
        Place { region, offset: memory.address() - found.memory.address(), len: memory.len().get() }
    }

    /// What a device is to find at `at`, if that is the mapping there.
    pub(super) fn expected_of(&self, seen: &Seen, at: Iova) -> Found {
        let memory = &self.regions[seen.place.region].memory;
        let stamp = stamp(memory, seen.place.offset + seen.range.offset_of(at));
        Found { stamp, writable: seen.access.contains(Access::WRITE) }
    }

    /// Where a device finds something else than the space says, fenced ranges excepted.
    pub(super) fn lie(&self, space: usize, points: &BTreeSet<Iova>, fences: &[IovaRange]) -> Option<String> {
        let device = self.device_of(space)?;
        let says = self.space(space);
        let unfenced = points.iter().filter(|at| !fences.iter().any(|fence| fence.contains(**at)));
        unfenced.into_iter().find_map(|at| {
            let said = says.lookup(*at).map(|mapping| self.expected_of(&self.seen(&mapping), *at));
            let found = finds(&device, *at);
            (said != found).then(|| format!("at {at} a device finds {found:x?}, the space says {said:x?}"))
        })
    }
}

fn stamp(memory: &HostMemory, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    memory.read(offset, &mut bytes).expect("inside the region");
    u64::from_ne_bytes(bytes)
}

/// What a device reads at `at`; writing the same back tells whether it may.
pub(super) fn finds(device: &SoftDevice, at: Iova) -> Option<Found> {
    let mut bytes = [0; 8];
    device.dma_read(at, &mut bytes).ok()?;
    Some(Found { stamp: u64::from_ne_bytes(bytes), writable: device.dma_write(at, &bytes).is_ok() })
}

/// A ledger without its history, and without what the kernel leaked.
pub(super) fn held(ledger: &Ledger) -> Ledger {
    Ledger {
        locked: ledger.locked - ledger.leaked,
        peak_locked: 0,
        peak_pinned: 0,
        leaked: 0,
        ever_pinned: 0,
        ever_tables: 0,
        ..ledger.clone()
    }
}

impl Space {
    /// Bus addresses worth a look: the first, a middle and the last page of everything, and the pages around it.
    pub(super) fn points(&self) -> impl Iterator<Item = Iova> {
        const PAGE: u64 = 0x1000;
        let mappings = self.mappings.iter().map(|seen| seen.range);
        mappings.chain(self.windows.iter().map(|window| window.range)).flat_map(|range| {
            let (first, last) = (range.first().get(), range.last().get());
            let middle = first + (last - first) / 2;
            let inside = [first, middle & !(PAGE - 1), last & !(PAGE - 1)].map(Some);
            let around = [first.checked_sub(PAGE), last.checked_add(1)];
            inside.into_iter().chain(around).flatten().map(Iova::new)
        })
    }

    fn without(&self, exempt: &[IovaRange]) -> Self {
        let untouched = |window: &&Window| !exempt.iter().any(|range| range.overlaps(window.range));
        Self {
            mappings: self.mappings.iter().flat_map(|seen| seen.without(exempt)).collect(),
            windows: self.windows.iter().filter(untouched).copied().collect(),
            // What leans on memory behind a fence cannot be seen from here.
            registered: if exempt.is_empty() { self.registered.clone() } else { Vec::new() },
        }
    }
}

impl Seen {
    /// The parts outside `exempt`.
    fn without(&self, exempt: &[IovaRange]) -> Vec<Self> {
        let outside = |parts: Vec<IovaRange>, hole: &IovaRange| -> Vec<IovaRange> {
            parts.into_iter().flat_map(|part| <[_; 2]>::from(part.without(*hole)).into_iter().flatten()).collect()
        };
        let parts = exempt.iter().fold(vec![self.range], outside);
        let part = |range: IovaRange| {
            let offset = self.place.offset + self.range.offset_of(range.first());
            let len = range.len().map_or(0, std::num::NonZeroU64::get);
            Self { range, place: Place { offset, len, ..self.place }, ..*self }
        };
        parts.into_iter().map(part).collect()
    }
}

impl Observed {
    /// The first difference to what was expected, outside the ranges that are exempt in each space.
    pub(super) fn differs_from(&self, expected: &Self, exempt: &[Vec<IovaRange>]) -> Option<String> {
        let exempt_in = exempt.iter().map(Vec::as_slice).chain(std::iter::repeat(&[][..]));
        let mut spaces = self.spaces.iter().zip(&expected.spaces).zip(exempt_in).enumerate();
        let different = |(n, ((seen, expected), exempt)): (usize, ((&Space, &Space), &[IovaRange]))| {
            let (seen, expected) = (seen.without(exempt), expected.without(exempt));
            (seen != expected).then(|| format!("space {n} has {seen:x?}, not {expected:x?}"))
        };
        if self.spaces.len() != expected.spaces.len() {
            return Some(format!("{} spaces are open, not {}", self.spaces.len(), expected.spaces.len()));
        }
        let count = if exempt.iter().all(Vec::is_empty) {
            (self.held != expected.held).then(|| format!("the host holds {:?}, not {:?}", self.held, expected.held))
        } else {
            self.miscounted(exempt)
        };
        let view =
            (self.view != expected.view).then(|| format!("in force is {:?}, not {:?}", self.view, expected.view));
        spaces.find_map(different).or(count).or(view)
    }

    /// What the host counts as mapped beside what is known to be, if that is more than fits behind the fences.
    fn miscounted(&self, fences: &[Vec<IovaRange>]) -> Option<String> {
        let known: u64 = self.spaces.iter().flat_map(|space| &space.mappings).map(|seen| seen.place.len).sum();
        let fenced: u128 = fences.iter().flatten().map(|fence| fence.bytes()).sum();
        let mapped = self.held.mapped;
        let fits = known <= mapped && u128::from(mapped - known) <= fenced;
        (!fits).then(|| {
            format!("the host has {mapped:#x} bytes mapped, the spaces know {known:#x}, {fenced:#x} are fenced")
        })
    }
}
