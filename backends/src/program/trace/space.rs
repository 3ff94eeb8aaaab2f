//! One address space of a trace: its sections, and the steps in which they came and went.
//!
//! A trace has no transactions, but it has their shape: QEMU's memory core tells a listener first what goes and then
//! what comes (qemu: system/memory.c, address_space_set_flatview), so a step ends where something goes after
//! something came. Two transactions that only add become one that way, and so do one that only removes and one after
//! it that only adds; the state after each step is one that was.

use dmaspace::listener::Update;
use dmaspace::section::TargetMemory;
use dmaspace::{Iova, IovaRange, Section, SystemAddress, SystemRange};

use super::placed::Placed;
use super::said::Ioas;
use crate::program::course::Step;

/// One address space.
#[derive(Default)]
pub(super) struct Space {
    /// The address space of `/dev/iommu` that it is, once that is known.
    pub(super) ioas: Option<Ioas>,
    sections: Placed<Iova, Section>,
    targets: Placed<SystemAddress, TargetMemory>,
    steps: Vec<Step>,
    open: Option<Open>,
    /// The bytes of RAM that were mapped, each as often as it was.
    mapped: u64,
    registered: Option<u64>,
}

/// A step that may not be over.
#[derive(Default)]
struct Open {
    first: usize,
    last: usize,
    removed: Vec<Section>,
    added: Vec<Section>,
    removed_targets: Vec<TargetMemory>,
    added_targets: Vec<TargetMemory>,
}

impl Open {
    fn has_added(&self) -> bool {
        !self.added.is_empty() || !self.added_targets.is_empty()
    }

    fn is_empty(&self) -> bool {
        !self.has_added() && self.removed.is_empty() && self.removed_targets.is_empty()
    }

    fn close(self) -> Step {
        let update = self.removed.into_iter().fold(Update::new(), Update::removing);
        let update = self.removed_targets.into_iter().fold(update, Update::removing_target);
        let update = self.added.into_iter().fold(update, Update::adding);
        let update = self.added_targets.into_iter().fold(update, Update::adding_target);
        Step { lines: (self.first, self.last), update, failed_there: None }
    }
}

/// An event that qualifies another comes soon after it: as many are looked through.
const LOOK_BACK: usize = 64;

/// The bytes a section pins.
fn pinned_by(section: &Section) -> u64 {
    section.direct().filter(|(memory, _)| !memory.is_device_memory()).map_or(0, |(memory, _)| memory.len().get())
}

impl Space {
    /// Returns whether exactly this section is in force.
    pub(super) fn has(&self, section: &Section) -> bool {
        self.sections.at(section.range()).is_some_and(|there| {
            there.range() == section.range()
                && there.memory().map(|memory| memory.address()) == section.memory().map(|memory| memory.address())
        })
    }

    /// The section that lies exactly in a range.
    pub(super) fn section_at(&self, range: IovaRange) -> Option<&Section> {
        self.sections.at(range).filter(|section| section.range() == range)
    }

    /// A section comes.
    ///
    /// # Errors
    /// The expected form, in words, when another lies there.
    pub(super) fn add(&mut self, line: usize, section: Section) -> Result<(), String> {
        self.sections.put(section.range(), section.clone(), line)?;
        self.mapped = self.mapped.saturating_add(pinned_by(&section));
        self.open(line, false).added.push(section);
        Ok(())
    }

    /// Removes the sections in a range. Returns false when there are none.
    ///
    /// # Errors
    /// The expected form, in words, when something would be cut.
    pub(super) fn remove(&mut self, line: usize, range: IovaRange) -> Result<bool, String> {
        let gone = self.sections.take(range)?;
        let is_any = !gone.is_empty();
        if is_any {
            self.open(line, true).removed.extend(gone);
        }
        Ok(is_any)
    }

    /// The section that came last at `at` never came: its call failed.
    pub(super) fn retract(&mut self, at: IovaRange) -> Option<Section> {
        let open = self.open.as_mut()?;
        let first = open.added.len().saturating_sub(LOOK_BACK);
        let place = first + open.added.get(first..)?.iter().rposition(|section| section.range() == at)?;
        let section = open.added.remove(place);
        if open.is_empty() {
            self.open = None;
        }
        self.mapped = self.mapped.saturating_sub(pinned_by(&section));
        // It was put there as a whole, so nothing is cut.
        let taken = self.sections.take(at);
        debug_assert!(taken.is_ok(), "{taken:?}");
        Some(section)
    }

    /// The section that came last in `at` is a device's memory: whole pages of it, or the part of them that was left.
    pub(super) fn make_device(&mut self, at: IovaRange, name: &str) {
        let added = self.open.iter_mut().flat_map(|open| open.added.iter_mut().rev().take(LOOK_BACK));
        let Some(section) = added.into_iter().find(|section| at.covers(section.range())) else { return };
        let Some((memory, access)) = section.direct() else { return };
        let pinned = pinned_by(section);
        let Ok(device) = Section::device_memory(name, section.range().first(), memory.clone(), access) else { return };
        *section = device.clone();
        self.sections.exchange(device.range().first(), device);
        self.mapped = self.mapped.saturating_sub(pinned);
    }

    /// Target memory comes.
    ///
    /// # Errors
    /// The expected form, in words, when other lies there.
    pub(super) fn add_target(&mut self, line: usize, target: TargetMemory) -> Result<(), String> {
        let registered = self.registered.get_or_insert(0);
        *registered = registered.saturating_add(target.memory().len().get());
        self.targets.put(target.range(), target.clone(), line)?;
        self.open(line, false).added_targets.push(target);
        Ok(())
    }

    /// Target memory goes. Returns false when none does.
    ///
    /// # Errors
    /// The expected form, in words, when some would be cut.
    pub(super) fn remove_target(&mut self, line: usize, range: SystemRange) -> Result<bool, String> {
        let gone = self.targets.take(range)?;
        let is_any = !gone.is_empty();
        if is_any {
            self.open(line, true).removed_targets.extend(gone);
        }
        Ok(is_any)
    }

    /// The step that a line belongs to.
    fn open(&mut self, line: usize, removes: bool) -> &mut Open {
        if removes && self.open.as_ref().is_some_and(Open::has_added) {
            self.close();
        }
        let open = self.open.get_or_insert_with(|| Open { first: line, ..Open::default() });
        open.last = line;
        open
    }

    fn close(&mut self) {
        self.steps.extend(self.open.take().map(Open::close));
    }

    /// The steps, the bytes that were pinned there, and whether memory was registered.
    pub(super) fn finish(mut self) -> (Vec<Step>, u64, bool) {
        self.close();
        (self.steps, self.registered.unwrap_or(self.mapped), self.registered.is_some())
    }
}
