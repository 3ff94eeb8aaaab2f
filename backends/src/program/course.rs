//! A course of updates, as a trace or a recording tells it: what a guest's devices saw, step by step.

use dmaspace::FrontEnd;
use dmaspace::listener::Update;
use dmaspace::recording::{Asked, BadRecording, Ending, Event, Reader};
use dmaspace::section::Backing;

use crate::program::guest::tce_table;

/// What happened to a guest's PCI address space.
#[derive(Clone, Debug)]
pub(crate) struct Course {
    /// Which kind of text told it.
    pub(crate) told_by: &'static str,
    /// What the front end said of the guest's bus, if that is told.
    pub(crate) front: Option<FrontEnd>,
    /// The steps, in order.
    pub(crate) steps: Vec<Step>,
    /// Lines that were passed over.
    pub(crate) ignored: usize,
    /// The bytes that were pinned there, each as often as they were, if that is told.
    pub(crate) pinned_there: Option<u64>,
    /// Whether the host there was a POWER host.
    pub(crate) was_on_power: bool,
}

/// A transaction.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Its first line and its last.
    pub(crate) lines: (usize, usize),
    /// What goes and comes.
    pub(crate) update: Update,
    /// How it failed there, if it did: what is said afterwards is said as if it had never been.
    pub(crate) failed_there: Option<String>,
}

impl Course {
    /// Whether its windows are POWER's.
    pub(crate) fn has_tce_windows(&self) -> bool {
        let sections = self.steps.iter().flat_map(|step| step.update.added());
        let mut translated = sections.filter(|section| matches!(section.backing(), Backing::Translated { .. }));
        self.was_on_power || translated.any(|section| tce_table(section.name()).is_some())
    }

    /// Reads a recording.
    ///
    /// # Errors
    /// The first line that is not what it has to be.
    pub(crate) fn recorded(text: &[u8]) -> Result<Self, BadRecording> {
        let mut course = Self {
            told_by: "recording",
            front: None,
            steps: Vec::new(),
            ignored: 0,
            pinned_there: None,
            was_on_power: false,
        };
        for event in Reader::new(text, Asked::unbacked) {
            let event = event?;
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
                self.ignored += 1;
            }
            Event::Leaves { .. } => self.ignored += 1,
        }
    }
}
