//! BARs in a trace. QEMU's listener calls a BAR RAM, as it does with all memory; the areas of BARs that QEMU mapped
//! or exported before help to tell BARs from RAM.
//!
//! An area says its place in its BAR and no address. Firmware puts a BAR at a multiple of its size, so memory may be
//! an area's when it begins or ends where the area would in a BAR so placed. That alone is no proof: other memory may
//! have the same size. It is one when the area was exported, which is only done for the sake of DMA; when two pieces
//! of one area continue each other in the host around a hole, as an MSI-X table leaves it; or when another area of
//! the device was found so.

use std::collections::BTreeSet;

use dmaspace::{HostMemory, IovaRange};

/// The areas of BARs that are mapped into QEMU.
#[derive(Debug, Default)]
pub(super) struct Bars {
    areas: Vec<Area>,
    /// The devices of which an area was found.
    found: BTreeSet<String>,
}

/// Memory that is a BAR's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The name of the area.
    pub(super) name: String,
    /// A piece that came before, and was not known for one.
    pub(super) earlier: Option<IovaRange>,
}

#[derive(Debug)]
struct Area {
    name: String,
    /// The first byte in its BAR, and the last.
    first: u64,
    last: u64,
    is_exported: bool,
    placed: Option<Placed>,
    /// A piece that may be of this area, and where the area is then.
    candidate: Option<(Placed, IovaRange)>,
}

/// The addresses at which the guest sees an area.
#[derive(Clone, Copy, Debug)]
struct Placed {
    first: u64,
    last: u64,
    /// The difference between host and bus addresses.
    shift: u64,
}

impl Placed {
    fn covers(&self, at: IovaRange, shift: u64) -> bool {
        self.shift == shift && self.first <= at.first().get() && at.last().get() <= self.last
    }

    fn is(&self, at: IovaRange) -> bool {
        (self.first, self.last) == (at.first().get(), at.last().get())
    }

    fn overlaps(&self, at: IovaRange) -> bool {
        self.first <= at.last().get() && at.first().get() <= self.last
    }
}

impl Bars {
    /// An area is mapped into QEMU.
    pub(super) fn add(&mut self, name: String, first: u64, last: u64) {
        /// A machine with more devices than this is none.
        const MOST_AREAS: usize = 4096;
        if self.areas.len() < MOST_AREAS && !self.areas.iter().any(|area| area.is(&name, first, last)) {
            self.areas.push(Area { name, first, last, is_exported: false, placed: None, candidate: None });
        }
    }

    /// An area is exported, under the name of its region.
    pub(super) fn export(&mut self, name: String, first: u64, last: u64) {
        self.add(name.clone(), first, last);
        for area in self.areas.iter_mut().filter(|area| area.is(&name, first, last)) {
            area.is_exported = true;
        }
    }

    /// The area that memory at `at` belongs to, if that is known.
    pub(super) fn find(&mut self, at: IovaRange, memory: &HostMemory) -> Option<Found> {
        let shift = memory.address().get().wrapping_sub(at.first().get());
        if let Some(area) = self.areas.iter().find(|area| area.placed.is_some_and(|placed| placed.covers(at, shift))) {
            return Some(Found { name: area.name.clone(), earlier: None });
        }
        self.find_second(at, shift).or_else(|| self.find_first(at, shift))
    }

    /// The second piece of an area, which proves the first.
    fn find_second(&mut self, at: IovaRange, shift: u64) -> Option<Found> {
        let area =
            self.areas.iter_mut().find(|area| area.candidate.is_some_and(|(place, _)| place.covers(at, shift)))?;
        let (place, earlier) = area.candidate.take()?;
        area.placed = Some(place);
        self.found.insert(area.device().to_owned());
        Some(Found { name: area.name.clone(), earlier: Some(earlier) })
    }

    /// The first piece of an area.
    fn find_first(&mut self, at: IovaRange, shift: u64) -> Option<Found> {
        let free = self.areas.iter_mut().filter(|area| area.placed.is_none());
        let fitting = free.filter_map(|area| Some((area.place_for(at, shift)?, area)));
        let (place, area) = fitting.min_by_key(|(place, _)| place.last - place.first)?;
        if area.is_exported || (place.is(at) && self.found.contains(area.device())) {
            area.placed = Some(place);
            self.found.insert(area.device().to_owned());
            return Some(Found { name: area.name.clone(), earlier: None });
        }
        area.candidate = (!place.is(at)).then_some((place, at));
        None
    }

    /// The memory in a range is gone: BARs move.
    pub(super) fn forget(&mut self, at: IovaRange) {
        for area in &mut self.areas {
            area.placed = area.placed.filter(|placed| !placed.overlaps(at));
            area.candidate = area.candidate.filter(|(place, _)| !place.overlaps(at));
        }
    }
}

impl Area {
    /// Returns whether it is the area of that name: a region's name stands before that of its mapping.
    fn is(&self, name: &str, first: u64, last: u64) -> bool {
        (self.first, self.last) == (first, last) && self.name.starts_with(name)
    }

    /// The device in its name, `0000:84:00.0 BAR 0 mmaps[0]`.
    fn device(&self) -> &str {
        self.name.split(" BAR").next().unwrap_or(&self.name)
    }

    /// The place of this area, if memory at `at` begins or ends where it does.
    fn place_for(&self, at: IovaRange, shift: u64) -> Option<Placed> {
        /// No firmware puts a BAR below the first MiB.
        const LOWEST: u64 = 1 << 20;
        let size = self.last.checked_add(1)?.checked_next_power_of_two()?;
        let bar = at.first().get() & !(size - 1);
        let place = Placed { first: bar.checked_add(self.first)?, last: bar.checked_add(self.last)?, shift };
        let touches = at.first().get() == place.first || at.last().get() == place.last;
        (bar >= LOWEST && place.covers(at, shift) && touches).then_some(place)
    }
}
