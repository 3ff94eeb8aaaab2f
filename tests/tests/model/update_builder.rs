//! Updates from drawn changes, made to fit the sections in force.

use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::Section;
use dmaspace_listener::Update;
use dmaspace_listener::section::{Backing, TargetMemory};
use dmaspace_tests::model::{Change, Guest, page_of_entries};

use crate::bus::{GuestMemory, Kind, LOWER, range};
use crate::setting::Setting;
use crate::step::{Content, Op, SectionCandidate};

/// The change these ops make of the guest.
pub(crate) fn build(ops: &[Op], setting: &Setting, memory_of_guest: &GuestMemory, guest: &Guest) -> Change {
    let (sections, targets) = (guest.sections.clone(), guest.targets.clone());
    let mut builder = UpdateBuilder { setting, memory_of_guest, sections, targets, change: Change::default() };
    for op in ops {
        // One that has nothing to work on does nothing.
        let _ = builder.apply(op);
    }
    builder.change
}

/// The change as an update of the listener's.
pub(crate) fn update(change: &Change) -> Update {
    let update = change.removed.iter().cloned().fold(Update::new(), Update::removing);
    let update = change.added.iter().cloned().fold(update, Update::adding);
    let update = change.removed_targets.iter().cloned().fold(update, Update::removing_target);
    change.added_targets.iter().cloned().fold(update, Update::adding_target)
}

/// The change without sections that are removed and added unchanged, as a comparison of lists finds it.
pub(crate) fn without_the_parts_that_stay(change: &Change) -> Change {
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

struct UpdateBuilder<'a> {
    setting: &'a Setting,
    memory_of_guest: &'a GuestMemory,
    /// The sections after the change.
    sections: Vec<Section>,
    targets: Vec<TargetMemory>,
    change: Change,
}

impl UpdateBuilder<'_> {
    fn apply(&mut self, op: &Op) -> Option<()> {
        match op {
            Op::Add { candidate, insists } => {
                let (first, last) = self.bounds(candidate);
                let last = if *insists { last.max(first) } else { self.room(first, last)? };
                self.put(self.section(candidate, first, last)?);
            }
            Op::Remove { which, almost: false } => drop(self.take(self.place(*which)?)),
            Op::Remove { which, almost: true } => {
                let section = &self.sections[self.place(*which)?];
                let (less, _) = section.range().split_before(section.range().last())?;
                self.change.removed.push(part(section, less)?);
            }
            Op::Punch(candidate) => {
                let (first, last) = self.bounds(candidate);
                let hole = IovaRange::new(Iova::new(first), Iova::new(last)).ok()?;
                let candidate = self.section(candidate, first, last)?;
                while let Some(place) = self.sections.iter().position(|section| section.range().overlaps(hole)) {
                    let section = self.take(place);
                    // A window that is cut is removed: its rest would be two windows.
                    let rest = <[_; 2]>::from(section.range().without(hole)).into_iter().flatten();
                    for part in rest.filter_map(|rest| part(&section, rest)) {
                        self.put(part);
                    }
                }
                self.put(candidate);
            }
            Op::Move(which, candidate) => {
                let section = self.take(self.place(*which)?);
                let (memory, access) = section.direct()?;
                let first = self.bounds(candidate).0;
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
            Op::AddTarget { candidate, insists } => {
                let bus = self.setting.bus;
                let first = candidate.at * bus.unit.bytes() + bus.odd(candidate.head);
                let len = (candidate.len * bus.unit.bytes())
                    .checked_sub(bus.odd(candidate.head) + bus.odd(candidate.tail))?;
                let memory = self.memory(Kind::Plain, first + candidate.shift * bus.unit.bytes(), len)?;
                let target = TargetMemory::new("target", SystemAddress::new(first), memory).ok()?;
                (*insists || !self.targets.iter().any(|other: &TargetMemory| other.range().overlaps(target.range())))
                    .then_some(())?;
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

    /// Takes a section out: out of the additions, where it is not in force yet.
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

    /// The last address that a section from `first` on can reach, up to `last`, before it meets another section.
    fn room(&self, first: u64, last: u64) -> Option<u64> {
        let ranges = || self.sections.iter().map(Section::range);
        if ranges().any(|range| range.contains(Iova::new(first))) {
            return None;
        }
        let next = ranges().map(|range| range.first().get()).filter(|next| *next > first).min();
        Some(next.map_or(last, |next| last.min(next - 1))).filter(|last| *last >= first)
    }

    /// The bounds of the candidate as it asks for them: windows begin with their bank and are as long as a power of
    /// two.
    fn bounds(&self, candidate: &SectionCandidate) -> (u64, u64) {
        let bus = self.setting.bus;
        if self.content_of(candidate) == Content::Translated && candidate.head == 0 {
            let bank = if candidate.at < LOWER { 0 } else { LOWER };
            return (bus.first(bank), bus.last(bank, 1 << (candidate.len % 4)));
        }
        (
            bus.first(candidate.at) + bus.odd(candidate.head),
            bus.last(candidate.at, candidate.len) - bus.odd(candidate.tail),
        )
    }

    /// Guests whose RAM is behind windows have windows and little RAM on the bus.
    fn content_of(&self, candidate: &SectionCandidate) -> Content {
        let rarely = candidate.len == 5;
        let behind_windows = self.setting.is_translated || (self.setting.is_power() && candidate.at >= LOWER);
        match candidate.content {
            Content::Ram if behind_windows && !rarely => Content::Translated,
            Content::Translated if !behind_windows && !rarely => Content::Ram,
            content => content,
        }
    }

    /// The candidate as a section over `first..=last`.
    fn section(&self, candidate: &SectionCandidate, first: u64, last: u64) -> Option<Section> {
        let bus = self.setting.bus;
        let memory = || {
            let offset = bus.offset(first) + candidate.shift * bus.unit.bytes() + bus.odd(candidate.skew);
            self.memory(candidate.kind, offset, last.checked_sub(first)? + 1)
        };
        match self.content_of(candidate) {
            Content::Ram | Content::DeviceMemory => direct(memory()?, first, candidate.access),
            Content::Translated => {
                let page = [bus.unit, PageSize::K4, PageSize::K64, bus.unit][candidate.len as usize % 4].min(bus.unit);
                let range = range(first, last);
                range.is_aligned_to(page).then(|| Section::translated("window", range, page))
            }
            Content::Msi => Some(Section::msi("msi", range(first, last))),
            Content::Nothing => Some(Section::nothing("hole", range(first, last))),
        }
    }

    fn memory(&self, kind: Kind, offset: u64, len: u64) -> Option<HostMemory> {
        self.memory_of_guest.memory(self.setting.bus.unit, kind, offset, len)
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
