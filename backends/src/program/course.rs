//! A course of updates, as a trace or a recording tells it: the sections that a guest's devices saw, step by step.

use dmaspace::listener::Update;
use dmaspace::recording::{Asked, BadRecording, Ending, Event, Reader};
use dmaspace::section::Backing;
use dmaspace::{FrontEnd, Section};

use crate::program::translating::EmulatedIommu;

/// The changes of a guest's PCI address space.
#[derive(Clone, Debug)]
pub(crate) struct Course {
    /// The kind of text that told it.
    pub(crate) told_by: &'static str,
    /// The front end's description of the guest's bus, if that is told.
    pub(crate) front: Option<FrontEnd>,
    /// The steps, in order.
    pub(crate) steps: Vec<Step>,
    /// The number of lines that were passed over.
    pub(crate) passed_over: usize,
    /// The bytes that were pinned there, each as often as they were, if that is told.
    pub(crate) pinned_there: Option<u64>,
    /// `true` if the host there was a POWER host.
    pub(crate) was_on_power: bool,
    /// The name of the address space, where the text tells of several.
    pub(crate) space: Option<String>,
}

/// A transaction.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Its first line and its last.
    pub(crate) lines: (usize, usize),
    /// The sections that go and come.
    pub(crate) update: Update,
    /// The error it failed with there, if it did: later lines are written as if the step had never been made.
    pub(crate) failed_there: Option<String>,
}

impl Course {
    /// Returns whether its windows are POWER's.
    pub(crate) fn has_tce_windows(&self) -> bool {
        let sections = self.steps.iter().flat_map(|step| step.update.added());
        let mut translated = sections.filter(|section| matches!(section.backing(), Backing::Translated { .. }));
        let is_of_power =
            |section: &Section| EmulatedIommu::of_region(section.name()).is_some_and(|iommu| iommu.is_of_power);
        self.was_on_power || translated.any(is_of_power)
    }

    /// Reads a recording.
    ///
    /// # Errors
    /// The first line that does not have the expected form.
    pub(crate) fn recorded(text: &[u8]) -> Result<Self, BadRecording> {
        let mut course = Self {
            told_by: "recording",
            front: None,
            steps: Vec::new(),
            passed_over: 0,
            pinned_there: None,
            was_on_power: false,
            space: None,
        };
        for read in Reader::new(text, Asked::unbacked) {
            let event = read?;
            course.follow(event.line, event.event);
        }
        Ok(course)
    }

    fn follow(&mut self, line: usize, event: Event) {
        match event {
            Event::Begins { front, in_force, spaces } => {
                self.front = Some(front);
                self.was_on_power = spaces.iter().any(|space| space.backend.starts_with("spapr"));
                if !in_force.is_empty() {
                    self.steps.push(Step { lines: (line, line), update: in_force, failed_there: None });
                }
            }
            Event::Commits { update, outcome } => {
                let last = outcome.as_ref().map_or(line, |outcome| outcome.line);
                let failed = outcome.filter(|outcome| outcome.result != Ending::Ok);
                self.steps.push(Step { lines: (line, last), update, failed_there: failed.map(|failed| failed.text) });
            }
            // One space is served, from the beginning to the end.
            Event::Joins { space, .. } => {
                self.was_on_power |= space.backend.starts_with("spapr");
                self.passed_over += 1;
            }
            Event::Leaves { .. } => self.passed_over += 1,
        }
    }
}
