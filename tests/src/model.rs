//! The listener's promises, worked out in the simplest way: page by page, from nothing but a list of sections.
//!
//! Written from the promises and independently of the listener: no index, no plan, no steps, nothing remembered but the
//! guest's sections. A page is reached if and only if it lies inside one window and one stretch of memory of a kind,
//! with one access, is behind all of its bytes. [`Guest::objections`] says whom a host cannot serve; a commit over no
//! objection must succeed, and after it devices must reach [`Guest::reached_on`], no byte more and none less.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

use dmaspace_core::contract::{Capabilities, Mapping, PciAddressSpace, WindowOffer, WindowPlace};
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, PageSizes, SystemAddress, Window};
use dmaspace_listener::Section;
use dmaspace_listener::section::{Backing, Shrink, TargetMemory};

/// Bus addresses, the host address behind the first of them, and what devices may do there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The range on the bus.
    pub range: IovaRange,
    /// The host address behind the first byte.
    pub host: u64,
    /// The access of devices.
    pub access: Access,
}

impl Stretch {
    /// The part inside `range`.
    fn within(self, range: IovaRange) -> Option<Self> {
        let shared = self.range.intersection(range)?;
        Some(Self { range: shared, host: self.host + self.range.offset_of(shared.first()), ..self })
    }

    fn continues(self, before: Self) -> bool {
        let len = self.range.first().get().wrapping_sub(before.range.first().get());
        before.range.touches(self.range) && before.access == self.access && before.host.wrapping_add(len) == self.host
    }
}

/// The memory that devices reach: ascending, and stretches that continue each other are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached(pub Vec<Stretch>);

impl FromIterator<Stretch> for Reached {
    fn from_iter<T: IntoIterator<Item = Stretch>>(stretches: T) -> Self {
        let mut stretches: Vec<_> = stretches.into_iter().collect();
        stretches.sort_by_key(|stretch| stretch.range);
        let mut joined: Vec<Stretch> = Vec::new();
        for stretch in stretches {
            match joined.last_mut() {
                Some(last) if stretch.continues(*last) => last.range = last.range.hull(stretch.range),
                _ => joined.push(stretch),
            }
        }
        Self(joined)
    }
}

impl Reached {
    /// The live mappings of a space.
    pub fn of(mappings: &[Mapping]) -> Self {
        mappings
            .iter()
            .map(|it: &Mapping| Stretch { range: it.range, host: it.memory.address().get(), access: it.access })
            .collect()
    }

    /// The number of bytes.
    pub fn bytes(&self) -> u128 {
        self.0.iter().map(|stretch| stretch.range.bytes()).sum()
    }

    /// The part inside `range`.
    pub fn within(&self, range: IovaRange) -> Self {
        self.0.iter().filter_map(|stretch| stretch.within(range)).collect()
    }

    /// The part outside all of `holes`.
    pub fn outside(&self, holes: &[IovaRange]) -> Self {
        holes.iter().fold(self.clone(), |rest, hole| {
            let sides = rest.0.iter().flat_map(|stretch| {
                let (below, above) = stretch.range.without(*hole);
                [below, above].into_iter().flatten().filter_map(|side| stretch.within(side))
            });
            sides.collect()
        })
    }

    /// The part that is the same in both: same bus address, same host address, same access.
    pub fn shared_with(&self, other: &Self) -> Self {
        let same = |a: &Stretch, b: &Stretch| {
            a.within(b.range).filter(|part| b.within(a.range).is_some_and(|twin| twin == *part))
        };
        self.0.iter().flat_map(|a| other.0.iter().filter_map(move |b| same(a, b))).collect()
    }
}

/// The facts of a host that the model needs.
pub struct ModelHost {
    /// The windows in force.
    pub windows: Vec<Window>,
    /// The windows it creates, if it creates any.
    pub offer: Option<WindowOffer>,
    /// The memory it maps.
    pub powers: Capabilities,
    /// The ranges that cannot be used any more.
    pub fences: Vec<IovaRange>,
}

impl ModelHost {
    /// The host behind a space, now.
    pub fn of(space: &dyn PciAddressSpace) -> Self {
        Self {
            windows: space.windows().windows.iter().copied().collect(),
            offer: space.powers().window_control.and_then(|control| control.offer()),
            powers: space.describe().capabilities,
            fences: space.describe().fences.iter().map(|fence| fence.range).collect(),
        }
    }

    fn could_map(&self, memory: &HostMemory, access: Access) -> bool {
        // POWER pins for writing, whatever devices may do with the memory.
        let writes = access.contains(Access::WRITE) || !self.powers.maps_host_read_only;
        let kind_is_fine = self.powers.maps_device_memory || !memory.is_device_memory();
        kind_is_fine && !access.is_empty() && !(memory.is_host_read_only() && writes)
    }

    fn is_fenced(&self, range: IovaRange) -> bool {
        self.fences.iter().any(|fence| fence.overlaps(range))
    }
}

/// The removals and additions of one update.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Sections that go, as they were.
    pub removed: Vec<Section>,
    /// Sections that come.
    pub added: Vec<Section>,
    /// Target memory that goes, as it was.
    pub removed_targets: Vec<TargetMemory>,
    /// Target memory that comes.
    pub added_targets: Vec<TargetMemory>,
}

/// Everything a guest said.
#[derive(Clone, Debug, Default)]
pub struct Guest {
    /// The policy for RAM that would lose bytes.
    pub shrink: Shrink,
    /// The sections in force, ascending.
    pub sections: Vec<Section>,
    /// The target memory in force, ascending.
    pub targets: Vec<TargetMemory>,
    /// The live entries of its translated windows, by bus address.
    pub entries: BTreeMap<Iova, Stretch>,
}

impl Guest {
    /// The guest after a change, or nothing when the change makes no sense.
    pub fn after(&self, change: &Change) -> Option<Self> {
        let mut after = self.clone();
        for gone in &change.removed {
            after.sections.remove(after.sections.iter().position(|section| section == gone)?);
            // A window goes with its entries.
            after.entries.retain(|at, _| !gone.range().contains(*at));
        }
        for gone in &change.removed_targets {
            after.targets.remove(after.targets.iter().position(|target| target == gone)?);
        }
        for come in &change.added {
            after.sections.iter().all(|section| !section.range().overlaps(come.range())).then_some(())?;
            after.sections.push(come.clone());
        }
        for come in &change.added_targets {
            after.targets.iter().all(|target| !target.range().overlaps(come.range())).then_some(())?;
            after.targets.push(come.clone());
        }
        after.sections.sort_by_key(Section::range);
        after.targets.sort_by_key(TargetMemory::range);
        Some(after)
    }

    /// The windows devices reach memory through: the host's, or those it creates. Of these there is one for each
    /// translated section, as long as that, and one over all RAM; each begins where the platform has a place, and no
    /// place has two.
    pub fn windows_on(&self, host: &ModelHost) -> Vec<Window> {
        let Some(offer) = &host.offer else { return host.windows.clone() };
        let ends = offer.places.iter().skip(1).map(|next| next.first.get() - 1).chain([u64::MAX]);
        offer.places.iter().zip(ends).filter_map(|(place, end)| self.window_at(place, end)).collect()
    }

    fn window_at(&self, place: &WindowPlace, end: u64) -> Option<Window> {
        let reach = IovaRange::new(place.first, Iova::new(end)).ok()?;
        let mut translated = self.sections.iter().filter(|section| page_of_entries(section).is_some());
        let translated = translated.find(|section| section.range().overlaps(reach));
        let (len, most) = match translated {
            Some(window) if window.range().first() == place.first => {
                (window.range().len()?.get(), page_of_entries(window)?)
            }
            Some(_) => return None,
            None => {
                let ram = self.sections.iter().filter(|section| matches!(section.backing(), Backing::Ram { .. }));
                let last = ram.filter_map(|ram| ram.range().intersection(reach)).map(IovaRange::last).max()?;
                let bytes = last.get() - place.first.get() + 1;
                (bytes.checked_next_power_of_two()?.max(place.page_sizes.smallest().bytes()), PageSize::G1)
            }
        };
        let page_sizes = place.page_sizes.up_to(most).map(|sizes| PageSizes::only(sizes.smallest()))?;
        let fits = len.is_power_of_two() && place.holds(len) && len >= page_sizes.smallest().bytes();
        Some(Window::new(IovaRange::with_len(place.first, len).ok().filter(|_| fits)?, page_sizes))
    }

    /// The memory that devices reach through these windows of a host.
    pub fn reached_through(&self, windows: &[Window], host: &ModelHost) -> Reached {
        let mut reached = Vec::new();
        for window in windows {
            let granule = window.granule();
            let direct = self.sections.iter().filter(|section| section.direct().is_some());
            let direct = direct.filter_map(|section| section.range().intersection(window.range));
            let first = |range: IovaRange| granule.round_down(range.first().get());
            let pages = |range| (first(range)..=range.last().get()).step_by(granule.bytes() as usize);
            let pages: BTreeSet<u64> = direct.flat_map(pages).collect();
            let pages = pages.into_iter().filter_map(|at| IovaRange::with_len(Iova::new(at), granule.bytes()).ok());
            let usable = pages.filter(|page| window.range.covers(*page) && !host.is_fenced(*page));
            reached.extend(usable.filter_map(|page| self.behind(page, windows, host)));
        }
        reached.into_iter().chain(self.entries.values().copied()).collect()
    }

    /// The memory that devices reach on a host.
    pub fn reached_on(&self, host: &ModelHost) -> Reached {
        self.reached_through(&self.windows_on(host), host)
    }

    /// The memory behind a page: none, unless its bytes continue each other.
    fn behind(&self, page: IovaRange, windows: &[Window], host: &ModelHost) -> Option<Stretch> {
        let mut found: Option<(&HostMemory, u64, Access)> = None;
        let mut at = Some(page.first());
        while let Some(next) = at.filter(|at| page.contains(*at)) {
            let section = self.sections.iter().find(|section| section.range().contains(next))?;
            let (memory, access) = section.direct().filter(|(memory, access)| host.could_map(memory, *access))?;
            let shift = memory.address().get().wrapping_sub(section.range().first().get());
            // Another device's memory is mapped where a window holds all of it, or not at all.
            let whole = windows.iter().any(|window| window.range.covers(section.range()));
            (found.is_none_or(|(kin, same, with): (&HostMemory, _, _)| {
                kin.is_of_a_kind(memory) && (same, with) == (shift, access)
            }) && (whole || !memory.is_device_memory()))
            .then_some(())?;
            found = Some((memory, shift, access));
            at = section.range().end();
        }
        let (_, shift, access) = found?;
        let host = page.first().get().wrapping_add(shift);
        (host % page.bytes() as u64 == 0).then_some(Stretch { range: page, host, access })
    }

    /// The required sections that `host` cannot provide, and why.
    pub fn objections(&self, host: &ModelHost) -> Vec<(Section, &'static str)> {
        let windows = self.windows_on(host);
        let reached = self.reached_through(&windows, host);
        let objection = |section: &Section| match section.backing() {
            Backing::Ram { memory, access } => {
                let window = windows.iter().find(|window| window.range.covers(section.range()));
                let Some(granule) = window.map(Window::granule) else { return Some("it lies not inside one window") };
                let is_whole = self.shrink == Shrink::Refuse;
                let differs = !granule.divides(memory.address().get().wrapping_sub(section.range().first().get()));
                let incongruent = differs && is_whole;
                let lost = section.range().bytes() - reached.within(section.range()).bytes();
                let shrunk = lost > 0 && is_whole;
                let reasons = [
                    (!host.could_map(memory, *access), "its memory cannot be mapped so"),
                    (host.is_fenced(section.range()), "it touches a fence"),
                    (incongruent, "bus and host address differ within a page"),
                    (shrunk, "it would lose bytes"),
                ];
                reasons.into_iter().find(|(applies, _)| *applies).map(|(_, why)| why)
            }
            Backing::Translated { page } => {
                let usable = |window: &Window| {
                    let shared = window.range.intersection(section.range());
                    window.granule() <= *page && shared.is_some_and(|range| range.trimmed_to(*page).is_some())
                };
                (!windows.iter().any(usable)).then_some("no entry could be put")
            }
            // The model has no memory whose pages change by themselves.
            _ => None,
        };
        self.sections.iter().filter_map(|section| objection(section).map(|why| (section.clone(), why))).collect()
    }

    /// The host address of the page of system memory at `target`, if that is RAM of one piece.
    pub fn resolve(&self, target: SystemAddress, page: PageSize) -> Option<u64> {
        let holding = self.targets.iter().find(|piece| piece.range().contains(target))?;
        let memory = holding.memory().slice(holding.range().offset_of(target), NonZeroU64::new(page.bytes())?.get());
        memory.map(|memory| memory.address().get())
    }
}

/// The page of a translated section's entries.
pub fn page_of_entries(section: &Section) -> Option<PageSize> {
    match section.backing() {
        Backing::Translated { page } => Some(*page),
        _ => None,
    }
}
