//! An update in the making: drawn changes, made to fit what is there.

use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::Section;
use dmaspace_listener::Update;
use dmaspace_listener::section::{Backing, TargetMemory};
use dmaspace_tests::model::{Change, Guest, page_of_entries};

use crate::bus::{Arena, Kind, LOWER, range};
use crate::setting::Setting;
use crate::step::{Lot, Op, What};

/// The change these ops make of the guest.
pub(crate) fn draft(ops: &[Op], setting: &Setting, arena: &Arena, guest: &Guest) -> Change {
    let (sections, targets) = (guest.sections.clone(), guest.targets.clone());
    let mut draft = Draft { setting, arena, sections, targets, change: Change::default() };
    for op in ops {
        // One that has nothing to work on does nothing.
        let _ = draft.apply(op);
    }
    draft.change
}

/// The same, as the listener wants it.
pub(crate) fn update(change: &Change) -> Update {
    let update = change.removed.iter().cloned().fold(Update::new(), Update::removing);
    let update = change.added.iter().cloned().fold(update, Update::adding);
    let update = change.removed_targets.iter().cloned().fold(update, Update::removing_target);
    change.added_targets.iter().cloned().fold(update, Update::adding_target)
}

/// The same, without what goes and comes just as it was: what a comparison of lists finds.
pub(crate) fn without_what_stays(change: &Change) -> Change {
    fn missing<T: PartialEq + Clone>(from: &[T], other: &[T]) -> Vec<T> {
        from.iter().filter(|piece| !other.contains(piece)).cloned().collect()
    }
    Change {
        removed: missing(&change.removed, &change.added),
        added: missing(&change.added, &change.removed),
        removed_targets: missing(&change.removed_targets, &change.added_targets),
        added_targets: missing(&change.added_targets, &change.removed_targets),
    }
}

struct Draft<'a> {
    setting: &'a Setting,
    arena: &'a Arena,
    /// What would be there afterwards.
    sections: Vec<Section>,
    targets: Vec<TargetMemory>,
    change: Change,
}

impl Draft<'_> {
    fn apply(&mut self, op: &Op) -> Option<()> {
        match op {
            Op::Add { lot, insists } => {
                let (first, last) = self.bounds(lot);
                let last = if *insists { last.max(first) } else { self.room(first, last)? };
                self.put(self.section(lot, first, last)?);
            }
            Op::Remove { which, almost: false } => drop(self.take(self.place(*which)?)),
            Op::Remove { which, almost: true } => {
                let section = &self.sections[self.place(*which)?];
                let (less, _) = section.range().split_before(section.range().last())?;
                self.change.removed.push(part(section, less)?);
            }
            Op::Punch(lot) => {
                let (first, last) = self.bounds(lot);
                let hole = IovaRange::new(Iova::new(first), Iova::new(last)).ok()?;
                let lot = self.section(lot, first, last)?;
                while let Some(place) = self.sections.iter().position(|section| section.range().overlaps(hole)) {
                    let section = self.take(place);
                    // A window that is cut goes: what is left of it would be two.
                    let rest = <[_; 2]>::from(section.range().without(hole)).into_iter().flatten();
                    rest.filter_map(|rest| part(&section, rest)).for_each(|part| self.put(part));
                }
                self.put(lot);
            }
            Op::Move(which, lot) => {
                let section = self.take(self.place(*which)?);
                let (memory, access) = section.direct()?;
                let first = self.bounds(lot).0;
                let last = first.checked_add(memory.len().get() - 1)?;
                (self.room(first, last)? == last).then_some(())?;
                self.put(direct(memory.clone(), first, access)?);
            }
            Op::Merge(which) => {
                let place = self.place(*which)?;
                let section = &self.sections[place];
                let next = self.sections.iter().position(|next| section.range().touches(next.range()))?;
                let (memory, access) = section.direct()?;
                let memory = memory.joined_with(self.sections[next].direct()?.0)?;
                let merged = direct(memory, section.range().first().get(), access)?;
                self.take(place.max(next));
                self.take(place.min(next));
                self.put(merged);
            }
            Op::AddTarget { lot, insists } => {
                let bus = self.setting.bus;
                let first = lot.at * bus.unit.bytes() + bus.odd(lot.head);
                let len = (lot.len * bus.unit.bytes()).checked_sub(bus.odd(lot.head) + bus.odd(lot.tail))?;
                let memory = self.memory(Kind::Plain, first + lot.shift * bus.unit.bytes(), len)?;
                let target = TargetMemory::new("target", SystemAddress::new(first), memory).ok()?;
                let is_in_the_way = |other: &TargetMemory| other.range().overlaps(target.range());
                (*insists || !self.targets.iter().any(is_in_the_way)).then_some(())?;
                self.targets.push(target.clone());
                self.change.added_targets.push(target);
            }
            Op::RemoveTarget(which) => {
                let target = self.targets.remove(which.checked_rem(self.targets.len())?);
                let added = &mut self.change.added_targets;
                match added.iter().position(|added| *added == target) {
                    Some(place) => drop(added.remove(place)),
                    None => self.change.removed_targets.push(target),
                }
            }
        }
        Some(())
    }

    fn place(&self, which: usize) -> Option<usize> {
        which.checked_rem(self.sections.len())
    }

    /// Takes a section out: out of what is added, where it is not in force yet.
    fn take(&mut self, place: usize) -> Section {
        let section = self.sections.remove(place);
        match self.change.added.iter().position(|added| *added == section) {
            Some(place) => drop(self.change.added.remove(place)),
            None => self.change.removed.push(section.clone()),
        }
        section
    }

    fn put(&mut self, section: Section) {
        self.sections.push(section.clone());
        self.change.added.push(section);
    }

    /// How far something can reach from `first` on, up to `last`, before it meets what is there.
    fn room(&self, first: u64, last: u64) -> Option<u64> {
        let ranges = || self.sections.iter().map(Section::range);
        if ranges().any(|range| range.contains(Iova::new(first))) {
            return None;
        }
        let next = ranges().map(|range| range.first().get()).filter(|next| *next > first).min();
        Some(next.map_or(last, |next| last.min(next - 1))).filter(|last| *last >= first)
    }

    /// Where the lot lies if it has its way: windows begin with their bank and are as long as a power of two.
    fn bounds(&self, lot: &Lot) -> (u64, u64) {
        let bus = self.setting.bus;
        if self.what(lot) == What::Translated && lot.head == 0 {
            let bank = if lot.at < LOWER { 0 } else { LOWER };
            return (bus.first(bank), bus.last(bank, 1 << (lot.len % 4)));
        }
        (bus.first(lot.at) + bus.odd(lot.head), bus.last(lot.at, lot.len) - bus.odd(lot.tail))
    }

    /// Where RAM is behind windows, there are windows, and hardly RAM.
    fn what(&self, lot: &Lot) -> What {
        let rarely = lot.len == 5;
        let behind_windows = self.setting.is_translated || (self.setting.is_power() && lot.at >= LOWER);
        match lot.what {
            What::Ram if behind_windows && !rarely => What::Translated,
            What::Translated if !behind_windows && !rarely => What::Ram,
            what => what,
        }
    }

    /// The lot as a section over `first..=last`.
    fn section(&self, lot: &Lot, first: u64, last: u64) -> Option<Section> {
        let bus = self.setting.bus;
        let memory = || {
            let offset = bus.offset(first) + lot.shift * bus.unit.bytes() + bus.odd(lot.skew);
            self.memory(lot.kind, offset, last.checked_sub(first)? + 1)
        };
        match self.what(lot) {
            What::Ram | What::DeviceMemory => direct(memory()?, first, lot.access),
            What::Translated => {
                let page = [bus.unit, PageSize::K4, PageSize::K64, bus.unit][lot.len as usize % 4].min(bus.unit);
                let range = range(first, last);
                range.is_aligned_to(page).then(|| Section::translated("window", range, page))
            }
            What::Msi => Some(Section::msi("msi", range(first, last))),
            What::Nothing => Some(Section::nothing("hole", range(first, last))),
        }
    }

    fn memory(&self, kind: Kind, offset: u64, len: u64) -> Option<HostMemory> {
        self.arena.memory(self.setting.bus.unit, kind, offset, len)
    }
}

/// A section of what can be mapped by itself.
fn direct(memory: HostMemory, first: u64, access: Access) -> Option<Section> {
    let at = Iova::new(first);
    match memory.is_device_memory() {
        true => Section::device_memory("bar", at, memory, access).ok(),
        false => Section::ram("ram", at, memory, access).ok(),
    }
}

/// The part of a section inside `range`, but of windows.
fn part(section: &Section, range: IovaRange) -> Option<Section> {
    if page_of_entries(section).is_some() {
        return None;
    }
    match section.direct() {
        Some((memory, access)) => {
            let memory = memory.slice(section.range().offset_of(range.first()), range.len()?.get())?;
            direct(memory, range.first().get(), access)
        }
        None if *section.backing() == Backing::Msi => Some(Section::msi("msi", range)),
        None => Some(Section::nothing("hole", range)),
    }
}
