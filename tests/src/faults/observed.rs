//! The state of a host as seen from outside: through the library, the host's ledger, and a device.

use std::collections::BTreeSet;

use dmaspace_core::contract::{Mapping, Unit};
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PciAddressSpace, Window};
use dmaspace_soft::{Ledger, SoftDevice};

use super::world::{Region, SweptHost};

/// Everything that must be as it was, or as it is to be. The same in two worlds that are in the same state: memory is
/// known by the region it is in, not by its address.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Observed {
    pub(super) spaces: Vec<Space>,
    /// The sections and the target memory in force, and the populated blocks.
    pub(super) view: Vec<String>,
    /// The host's ledger, without its history.
    pub(super) held: Ledger,
    leeway: Leeway,
}

/// The parts that may differ from the expected state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Leeway {
    /// The kernel had no memory for a window's table and was asked for one in smaller blocks, which takes more in all.
    tables: bool,
    /// The kernel would not register, or unregister, however often it was asked. No device sees the difference, and the
    /// next commit makes up for it.
    registrations: bool,
    /// The kernel refused to unmap, and memory that no space shares any more may still be mapped in a pool. No device
    /// is attached to that, and the next who needs its place has it unmapped.
    pool: bool,
    /// The kernel would not destroy an address space, or made one and did not tell which, and a pool keeps its iommufd
    /// open.
    objects: bool,
    /// The kernel would not tell its windows after a device had left, or they did not change. They are no smaller than
    /// they were.
    windows: bool,
    /// The kernel would not detach a device however often it was asked, and may have done it all the same: then there
    /// is no page table and nothing pinned, and no device to miss them.
    pins: bool,
    /// The kernel would not destroy a page table, however often it was asked, or made one and said that it had not: it
    /// goes with the iommufd, and until then keeps the mapped pages pinned and the windows narrow.
    leftovers: bool,
    /// The kernel said that a device does not fit a page table, or that there is none that logs for it: it has one of
    /// its own.
    own_tables: bool,
    /// The kernel would not let a group go however often it was asked: it stays, as the error says.
    groups: bool,
}

/// The lists of a space.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Space {
    pub(super) mappings: Vec<Seen>,
    pub(super) windows: Vec<Window>,
    registered: Vec<Place>,
    held: Vec<Place>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) region: usize,
    pub(super) offset: u64,
    len: u64,
    /// Set when the bytes lie where the memory is mapped a second time.
    is_elsewhere: bool,
}

/// The first bytes of a page that a device finds at a bus address, and whether it may write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) stamp: u64,
    writable: bool,
}

impl SweptHost {
    pub(super) fn observe(&self) -> Observed {
        let sections = self.listener.sections().map(ToString::to_string);
        let handles = self.listener.sections().filter_map(|section| self.listener.discardable(section.range().first()));
        let populated = handles.map(|handle| format!("{:?} populated", handle.populated()));
        let windows = self.bridge.iter().flat_map(|bridge| {
            bridge.windows().iter().map(|window| format!("{window:?}: {:?}", bridge.tables().live(window.liobn)))
        });
        Observed {
            spaces: self.opened.iter().map(|opened| self.observe_space(opened.space.space().as_ref())).collect(),
            view: sections
                .chain(self.listener.targets().map(ToString::to_string))
                .chain(populated)
                .chain(windows)
                .collect(),
            held: held(&self.soft.ledger()),
            leeway: self.leeway(),
        }
    }

    fn leeway(&self) -> Leeway {
        let calls = self.soft.calls();
        let failed = |call: &str| calls.iter().find(|(name, _)| *name == call).map_or(0, |(_, count)| count.failed);
        let refused = |call: &str| failed(call) > 2;
        let leftovers = refused("IOMMU_DESTROY") || failed("IOMMU_HWPT_ALLOC") > 0;
        Leeway {
            tables: failed("VFIO_IOMMU_SPAPR_TCE_CREATE") > 0,
            registrations: refused("VFIO_IOMMU_SPAPR_REGISTER_MEMORY") || refused("VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY"),
            pool: self.pool.strong_count() > 0 && refused("IOMMU_IOAS_UNMAP"),
            objects: self.pool.strong_count() > 0 && (failed("IOMMU_IOAS_ALLOC") > 0 || refused("IOMMU_DESTROY")),
            windows: refused("IOMMU_IOAS_IOVA_RANGES") || refused("VFIO_IOMMU_GET_INFO") || leftovers,
            pins: refused("VFIO_DEVICE_DETACH_IOMMUFD_PT"),
            leftovers,
            own_tables: ["IOMMU_GET_HW_INFO", "VFIO_DEVICE_ATTACH_IOMMUFD_PT"].iter().any(|call| failed(call) > 0),
            groups: refused("VFIO_GROUP_UNSET_CONTAINER"),
        }
    }

    fn observe_space(&self, space: &dyn PciAddressSpace) -> Space {
        let places = |memory: Vec<HostMemory>| {
            let mut places: Vec<_> = memory.iter().map(|memory| self.place_of(memory)).collect();
            places.sort();
            places
        };
        Space {
            mappings: space.mappings(IovaRange::all()).iter().map(|mapping| self.seen(mapping)).collect(),
            windows: space.windows().windows.iter().copied().collect(),
            registered: places(space.powers().registration.map(|it| it.registered()).unwrap_or_default()),
            held: places(space.powers().pin_sharing.map(|it| it.shared()).unwrap_or_default()),
        }
    }

    fn seen(&self, mapping: &Mapping) -> Seen {
        let Mapping { range, memory, access, unit, .. } = mapping;
        Seen { range: *range, place: self.place_of(memory), access: *access, unit: *unit }
    }

    fn place_of(&self, memory: &HostMemory) -> Place {
        let once = |regions, is_elsewhere| (0..).zip(regions).map(move |(n, region)| (n, region, is_elsewhere));
        let mut regions = once(&self.regions, false).chain(once(&self.elsewhere, true));
        let holds =
            |region: &Region| region.memory.address() <= memory.address() && memory.last() <= region.memory.last();
        let (region, found, is_elsewhere) = regions.find(|(_, region, _)| holds(region)).expect("the guest's memory");
        Place {
            region,
            offset: memory.address().get() - found.memory.address().get(),
            len: memory.len().get(),
            is_elsewhere,
        }
    }

    /// The bytes that a device must find at `at`, if that is the mapping there.
    pub(super) fn expected_of(&self, seen: &Seen, at: Iova) -> Found {
        let memory = &self.regions[seen.place.region].memory;
        let stamp = stamp(memory, seen.place.offset + seen.range.offset_of(at));
        Found { stamp, writable: seen.access.contains(Access::WRITE) }
    }

    /// The first address at which a device finds other memory than the space lists, fenced ranges excepted.
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

/// The bytes that a device reads at `at`; it writes them back to learn whether it may write.
pub(super) fn finds(device: &SoftDevice, at: Iova) -> Option<Found> {
    let mut bytes = [0; 8];
    device.dma_read(at, &mut bytes).ok()?;
    Some(Found { stamp: u64::from_ne_bytes(bytes), writable: device.dma_write(at, &bytes).is_ok() })
}

/// A ledger without its history and without the charges that the kernel leaked.
pub(super) fn held(ledger: &Ledger) -> Ledger {
    let mut held = ledger.clone();
    held.locked -= ledger.leaked;
    (held.peak_locked, held.peak_pinned, held.leaked) = (0, 0, 0);
    (held.ever_pinned, held.ever_tables) = (0, 0);
    held
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

    fn differs_from(&self, expected: &Self) -> Option<String> {
        fn not<T: PartialEq + std::fmt::Debug>(seen: &T, expected: &T) -> Option<String> {
            (seen != expected).then(|| format!("{seen:x?}, not {expected:x?}"))
        }
        let mappings = not(&self.mappings, &expected.mappings).map(|difference| format!("mapped {difference}"));
        let windows = not(&self.windows, &expected.windows).map(|difference| format!("the windows {difference}"));
        let registered =
            not(&self.registered, &expected.registered).map(|difference| format!("registered {difference}"));
        let held = not(&self.held, &expected.held).map(|difference| format!("held {difference}"));
        mappings.or(windows).or(registered).or(held)
    }

    fn without(&self, exempt: &[IovaRange]) -> Self {
        Self {
            mappings: self.mappings.iter().flat_map(|seen| seen.without(exempt)).collect(),
            windows: self
                .windows
                .iter()
                .filter(|window: &&Window| !exempt.iter().any(|range| range.overlaps(window.range)))
                .copied()
                .collect(),
            // What leans on memory behind a fence cannot be seen from here.
            registered: if exempt.is_empty() { self.registered.clone() } else { Vec::new() },
            held: if exempt.is_empty() { self.held.clone() } else { Vec::new() },
        }
    }
}

/// The parts of a range outside others.
pub(super) fn outside(range: IovaRange, others: &[IovaRange]) -> Vec<IovaRange> {
    others.iter().fold(vec![range], |parts, other| {
        parts.into_iter().flat_map(|part| <[_; 2]>::from(part.without(*other)).into_iter().flatten()).collect()
    })
}

impl Seen {
    /// The parts outside `exempt`.
    fn without(&self, exempt: &[IovaRange]) -> Vec<Self> {
        let part = |range: IovaRange| {
            let offset = self.place.offset + self.range.offset_of(range.first());
            let len = range.len().map_or(0, std::num::NonZeroU64::get);
            Self { range, place: Place { offset, len, ..self.place }, ..*self }
        };
        outside(self.range, exempt).into_iter().map(part).collect()
    }
}

impl Observed {
    /// The first difference to the expected state, outside the ranges that are exempt in each space.
    pub(super) fn differs_from(&self, expected: &Self, exempt: &[Vec<IovaRange>]) -> Option<String> {
        let exempt_in = exempt.iter().map(Vec::as_slice).chain(std::iter::repeat(&[][..]));
        let mut spaces = self.spaces.iter().zip(&expected.spaces).zip(exempt_in).enumerate();
        let different = |(n, ((seen, expected), exempt)): (usize, ((&Space, &Space), &[IovaRange]))| {
            let (mut seen, expected) = (seen.without(exempt), expected.without(exempt));
            if self.leeway.registrations {
                seen.registered.clone_from(&expected.registered);
            }
            if self.leeway.windows {
                seen.windows.clone_from(&expected.windows);
            }
            seen.differs_from(&expected).map(|difference| format!("space {n} has {difference}"))
        };
        if self.spaces.len() != expected.spaces.len() {
            return Some(format!("{} spaces are open, not {}", self.spaces.len(), expected.spaces.len()));
        }
        let count = if exempt.iter().all(Vec::is_empty) {
            difference_of(&self.held_within_leeway(&expected.held), &expected.held)
        } else {
            self.miscounted(exempt)
        };
        let view =
            (self.view != expected.view).then(|| format!("in force is {:?}, not {:?}", self.view, expected.view));
        spaces.find_map(different).or(count).or(view)
    }

    /// The ledger, with expected numbers where they may differ.
    fn held_within_leeway(&self, expected: &Ledger) -> Ledger {
        let mut held = self.held.clone();
        if self.leeway.tables || self.leeway.registrations {
            held.locked = expected.locked;
        }
        if self.leeway.registrations {
            held.registrations = expected.registrations;
        }
        if self.leeway.pins || self.leeway.leftovers {
            held.pinned = expected.pinned;
            held.objects = expected.objects;
        }
        if self.leeway.pool {
            held.mapped = expected.mapped;
            held.mappings = expected.mappings;
        }
        if self.leeway.objects {
            held.objects = expected.objects;
        }
        if self.leeway.own_tables && held.objects == expected.objects + 1 {
            held.objects = expected.objects;
        }
        if self.leeway.groups {
            held.groups = expected.groups;
            // To an iommufd in a container's place it came with one.
            held.devices = expected.devices;
        }
        held
    }

    /// The bytes that the host counts as mapped beyond the known mappings, if they are more than fit behind the fences.
    fn miscounted(&self, fences: &[Vec<IovaRange>]) -> Option<String> {
        let seen: u64 = self.spaces.iter().flat_map(|space| &space.mappings).map(|seen| seen.place.len).sum();
        let held: BTreeSet<_> = self.spaces.iter().flat_map(|space| &space.held).collect();
        let known = seen + held.into_iter().map(|place| place.len).sum::<u64>();
        let fenced: u128 = fences.iter().flatten().map(|fence| fence.bytes()).sum();
        let mapped = self.held.mapped;
        let fits = known <= mapped && (u128::from(mapped - known) <= fenced || self.leeway.pool);
        (!fits).then(|| {
            format!("the host has {mapped:#x} bytes mapped, the spaces know {known:#x}, {fenced:#x} are fenced")
        })
    }
}

/// The first count that is another than expected.
fn difference_of(held: &Ledger, expected: &Ledger) -> Option<String> {
    let counts = |ledger: &Ledger| {
        let &Ledger { containers, groups, devices, iommufds, objects, windows, registrations, .. } = ledger;
        [
            ("locked bytes", ledger.locked),
            ("pinned bytes", ledger.pinned),
            ("mapped bytes", ledger.mapped),
            ("mappings", ledger.mappings),
            ("containers", containers as u64),
            ("groups", groups as u64),
            ("devices", devices as u64),
            ("iommufds", iommufds as u64),
            ("objects", objects as u64),
            ("windows", windows as u64),
            ("registrations", registrations as u64),
        ]
    };
    let different = counts(held).into_iter().zip(counts(expected)).find(|(held, expected)| held != expected);
    different.map(|((what, held), (_, expected))| format!("the host holds {held} {what}, not {expected}"))
}
