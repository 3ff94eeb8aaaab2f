//! A trace of QEMU's VFIO events, or a log with its error lines: what its memory listener was told and what came of
//! it, as a course of updates, and what failed, as findings.
//!
//! QEMU's log backends write a line for each event, `<pid>@<time>:<name> <what happened>`, among lines of other
//! events and of QEMU's own; a line that [`events`] and [`messages`] do not know is counted and passed over, and so
//! is an event in an unknown form whose content is not needed. An event whose content is needed is refused then: half
//! a trace replays to a state that never was.
//!
//! - An event acts only if it succeeded there. One that failed becomes a [`Finding`]: what, where, which error.
//! - `vfio_listener_region_add_ram` is RAM, read-write: a trace does not tell ROM from RAM. A BAR is told from RAM by
//!   events that QEMU prints before it ([`bars`]) or after it (`…_no_dma_map`, `…_skip_dma_map`), and by what an
//!   error line says.
//! - `vfio_listener_region_add_iommu` is a translated window. Its page is that of the host window QEMU made there, if
//!   it made one.
//! - `vfio_listener_region_skip` is nothing to devices.
//! - `vfio_prereg_register` is target memory. The trace does not tell where the guest sees it: its host address
//!   stands in for that.
//! - `iommufd_backend_map_dma` and its like are the calls behind the listener's events, and say what came of them.
//!   Where the listener said nothing, a call is memory by itself: a confidential guest's pages are mapped when they
//!   become shared.
//! - What goes without ever having come is passed over: QEMU's listener is also told of ranges that it could not map,
//!   and a trace may begin in the middle.
//! - The listener of each container prints the same events, one after another. An event that repeats another exactly
//!   is another container's, and a call names its address space: each is a course of its own.

mod bars;
mod events;
mod form;
mod line;
mod messages;
mod placed;
pub(crate) mod said;
mod space;

use std::collections::BTreeMap;

use dmaspace::section::TargetMemory;
use dmaspace::{Access, HostMemory, Iova, IovaRange, PageSize, Section, SystemAddress, SystemRange};

use crate::program::course::Course;
use crate::program::finding::{Finding, Findings};
use crate::program::guest::is_where_pcs_take_interrupts;
use crate::program::mtree::BadLine;
use crate::program::surroundings::{Line, PassedOver, Text};
use crate::program::translating::page_of_translated;
use bars::{Bars, Found};
use line::Read;
use said::{Call, Failed, Ioas, Said};
use space::Space;

pub(crate) use line::is_known;

/// The content of a trace or a log.
#[derive(Debug)]
pub(crate) struct Traced {
    /// A course for each address space, never none.
    pub(crate) courses: Vec<Course>,
    /// The calls that failed there, and what else the log says of failures.
    pub(crate) findings: Vec<Finding>,
}

/// Reads a trace. `guest_page`, if given, is the page of every translated window.
///
/// # Errors
/// The first line that does not have the expected form.
pub(crate) fn parse(text: &Text<'_>, guest_page: Option<PageSize>) -> Result<Traced, BadLine> {
    let mut tracer = Tracer { guest_page, ..Tracer::default() };
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if !line.may_be_known() {
            tracer.passed_over.pass(&line);
            continue;
        }
        match line::read(&line, &mut lines).map_err(|expected| bad(&line, expected))? {
            Read::Unknown => tracer.passed_over.pass(&line),
            Read::Said(said, continued) => {
                let is_taken = tracer.follow(line.number, said).map_err(|expected| bad(&line, expected))?;
                tracer.note(&line, is_taken);
                for _ in 0..continued {
                    tracer.passed_over.extend_taken(lines.next());
                }
            }
        }
    }
    Ok(tracer.finish())
}

fn bad(line: &Line<'_>, expected: String) -> BadLine {
    BadLine { line: line.number, expected, found: Some(line.beginning()) }
}

/// The course followed so far.
#[derive(Default)]
struct Tracer {
    guest_page: Option<PageSize>,
    /// The address spaces, in the order in which they came up.
    spaces: Vec<Space>,
    /// The space that the last event was of.
    last: usize,
    bars: Bars,
    /// The pages of the windows that QEMU made, by first address.
    pages: BTreeMap<Iova, PageSize>,
    findings: Findings,
    /// `true` if the next call that fails is for a BAR.
    is_of_a_bar: bool,
    /// The lines that were followed since the last call that failed.
    since_failure: usize,
    passed_over: PassedOver,
    has_events: bool,
}

/// A machine with more containers than this is none.
const MOST_SPACES: usize = 64;

impl Tracer {
    /// Follows a line. Returns false where nothing came of it.
    fn follow(&mut self, line: usize, said: Said) -> Result<bool, String> {
        self.since_failure += 1;
        self.has_events |= !matches!(said, Said::Failed(_) | Said::OfABar | Said::Message(_) | Said::Irrelevant);
        match said {
            Said::Memory { at, memory } => {
                let section = self.section_of(at, memory, Access::READ_WRITE)?;
                self.add(line, section)?;
            }
            Said::Translated { at, name } => {
                let made = self.pages.get(&at.first()).copied();
                let page = self.guest_page.or(made).or(page_of_translated(&name)).unwrap_or(PageSize::K4);
                self.add(line, Section::translated(&name, at, page))?;
            }
            Said::Nothing { at } if is_where_pcs_take_interrupts(at) => self.add(line, Section::msi("msi", at))?,
            Said::Nothing { at } => self.add(line, Section::nothing("i/o", at))?,
            Said::Gone { at } => return self.remove(line, at),
            Said::NotMapped { at, name } => {
                if let Some(space) = self.spaces.get_mut(self.last) {
                    space.make_device(at, &name);
                }
            }
            Said::BarArea { name, first, last, is_exported: true } => self.bars.export(name, first, last),
            Said::BarArea { name, first, last, .. } => self.bars.add(name, first, last),
            Said::Map { ioas, at, memory, access, errno } => self.map(line, ioas, at, memory, access, errno)?,
            Said::Unmap { ioas, at, errno } => self.unmap(line, ioas, at, errno)?,
            Said::Target { memory, errno } => self.register(line, memory, errno)?,
            Said::TargetGone { memory, errno } => return self.unregister(line, &memory, errno),
            Said::Window { first, page } => {
                self.pages.insert(first, page);
            }
            Said::Failed(failed) => self.fail(line, failed),
            Said::OfABar => self.note_bar(line),
            Said::Message(message) => self.findings.add_message(line, message),
            Said::Irrelevant => {}
        }
        Ok(true)
    }

    fn note(&mut self, line: &Line<'_>, is_taken: bool) {
        if is_taken { self.passed_over.take(line) } else { self.passed_over.pass(line) }
    }

    /// Memory, as a BAR's or as RAM.
    fn section_of(&mut self, at: IovaRange, memory: HostMemory, access: Access) -> Result<Section, String> {
        let section = match self.bars.find(at, &memory) {
            Some(Found { name, earlier }) => {
                if let Some((earlier, space)) = earlier.zip(self.spaces.get_mut(self.last)) {
                    space.make_device(earlier, &name);
                }
                Section::device_memory(&name, at.first(), memory, access)
            }
            None => Section::ram("ram", at.first(), memory, access),
        };
        section.map_err(|error| format!("a range, but {error}"))
    }

    /// A section comes, to the first space that has not got it yet.
    fn add(&mut self, line: usize, section: Section) -> Result<(), String> {
        let place = self.spaces.iter().position(|space| !space.has(&section)).unwrap_or(self.spaces.len());
        self.space(place)?.add(line, section)
    }

    /// Removes the sections in a range from the first space that has one there.
    fn remove(&mut self, line: usize, at: IovaRange) -> Result<bool, String> {
        self.bars.forget(at);
        for (place, space) in self.spaces.iter_mut().enumerate() {
            if space.remove(line, at)? {
                self.last = place;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A call of iommufd's: what came of an event of the listener's, or memory by itself.
    fn map(
        &mut self,
        line: usize,
        ioas: Ioas,
        at: IovaRange,
        memory: HostMemory,
        access: Access,
        errno: u32,
    ) -> Result<(), String> {
        let place = self.place_of(ioas, at);
        let is_told = self.spaces.get(place).is_some_and(|space| space.section_at(at).is_some());
        self.space(place)?.ioas = Some(ioas);
        match (errno, is_told) {
            (0, true) => Ok(()),
            (0, false) => {
                let section = self.section_of(at, memory, access)?;
                self.space(place)?.add(line, section)
            }
            (errno, _) => {
                self.fail(line, Failed { call: Call::Map, at, errno, name: None });
                Ok(())
            }
        }
    }

    /// A call of iommufd's. The event of the listener's before it has removed the section already.
    fn unmap(&mut self, line: usize, ioas: Ioas, at: IovaRange, errno: u32) -> Result<(), String> {
        /// Nothing was mapped there.
        const ENOENT: u32 = 2;
        let place = self.place_of(ioas, at);
        match self.spaces.get_mut(place) {
            Some(space) if errno == 0 => {
                space.remove(line, at)?;
                self.last = place;
            }
            _ if errno != 0 && errno != ENOENT => {
                self.findings.add(line, Failed { call: Call::Unmap, at, errno, name: None }, false);
            }
            _ => {}
        }
        Ok(())
    }

    /// The space of an IOAS: the one that is known as it, or one without a name that was told of this range, or a new
    /// one.
    fn place_of(&self, ioas: Ioas, at: IovaRange) -> usize {
        let known = self.spaces.iter().position(|space| space.ioas == Some(ioas));
        known.or_else(|| self.place_of_nameless(at)).unwrap_or(self.spaces.len())
    }

    /// The space without a name that was told of this range.
    fn place_of_nameless(&self, at: IovaRange) -> Option<usize> {
        self.spaces.iter().position(|space| space.ioas.is_none() && space.section_at(at).is_some())
    }

    /// The space in that place, or a new one.
    fn space(&mut self, place: usize) -> Result<&mut Space, String> {
        if place >= MOST_SPACES {
            return Err(format!("no more than {MOST_SPACES} containers in one trace"));
        }
        if place >= self.spaces.len() {
            self.spaces.resize_with(place + 1, Space::default);
        }
        self.last = place;
        self.spaces.get_mut(place).ok_or_else(|| "a container".to_owned())
    }

    /// Follows a failed call: its mapping is not in force.
    fn fail(&mut self, line: usize, mut failed: Failed) {
        self.since_failure = 0;
        let mut retracted = None;
        for space in &mut self.spaces {
            retracted = retracted.or_else(|| space.retract(failed.at));
        }
        let was_device = retracted.as_ref().and_then(Section::memory).is_some_and(HostMemory::is_device_memory);
        let is_device = was_device || std::mem::take(&mut self.is_of_a_bar);
        if failed.name.is_none() && is_device {
            failed.name = retracted.map(|section| section.name().to_owned());
        }
        self.findings.add(line, failed, is_device);
    }

    /// The failure beside this line was a BAR's.
    fn note_bar(&mut self, line: usize) {
        /// QEMU prints both lines at once.
        const NEAR: usize = 4;
        /// A log may have a line for each field of an entry.
        const NEAR_IN_FIELDS: usize = 64;
        let near = if self.since_failure == 1 { NEAR_IN_FIELDS } else { NEAR };
        self.is_of_a_bar = !self.findings.make_last_device(line.saturating_sub(near));
    }

    fn register(&mut self, line: usize, memory: HostMemory, errno: u32) -> Result<(), String> {
        let made = TargetMemory::new("ram", SystemAddress::new(memory.address().get()), memory);
        let target = made.map_err(|error| format!("a range, but {error}"))?;
        if errno != 0 {
            self.findings.add_target(line, &target, errno);
            return Ok(());
        }
        self.space(0)?.add_target(line, target)
    }

    fn unregister(&mut self, line: usize, memory: &HostMemory, errno: u32) -> Result<bool, String> {
        let told = SystemRange::with_len(SystemAddress::new(memory.address().get()), memory.len().get());
        let range = told.map_err(|error| format!("a range, but {error}"))?;
        match self.spaces.first_mut() {
            Some(space) if errno == 0 => space.remove_target(line, range),
            _ => Ok(false),
        }
    }

    fn finish(mut self) -> Traced {
        if self.spaces.is_empty() {
            self.spaces.push(Space::default());
        }
        let several = self.spaces.len() > 1;
        let (passed_over, told_by) = (self.passed_over.count(), if self.has_events { "trace" } else { "log" });
        let courses = self.spaces.into_iter().enumerate().map(|(place, space)| {
            let ioas = space.ioas.map(|ioas| format!("ioas {} of iommufd {}", ioas.id, ioas.iommufd));
            let label = ioas.unwrap_or_else(|| format!("container {}", place + 1));
            let (steps, pinned, was_on_power) = space.finish();
            Course {
                told_by,
                front: None,
                steps,
                passed_over,
                pinned_there: self.has_events.then_some(pinned),
                was_on_power,
                space: several.then_some(label),
            }
        });
        Traced { courses: courses.collect(), findings: self.findings.finish() }
    }
}

#[cfg(test)]
pub(crate) mod tests;
