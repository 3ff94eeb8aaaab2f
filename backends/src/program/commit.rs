//! A commit of a replay, and what became of everything in it, whether it went well or not.

use dmaspace::error::Subject;
use dmaspace::listener::{CommitError, Fate, Report, SpaceReport, Update};
use dmaspace::section::Need;
use dmaspace::{HostMemory, IovaRange, Listener};

/// How a commit ended.
pub(crate) struct Ended {
    /// What became of what.
    pub(crate) report: SpaceReport,
    /// What went wrong.
    pub(crate) errors: Vec<String>,
}

/// Commits `update`.
pub(crate) fn commit(listener: &mut Listener, update: Update) -> Ended {
    // If a call fails, this is what it was all about; afterwards nobody could tell any more.
    let foreseen = listener.explain(&update).map(only).unwrap_or_default();
    let (report, errors) = match listener.commit(update) {
        Ok(report) => (only(report), Vec::new()),
        Err(CommitError::Refused(report)) => {
            let report = only(report);
            let errors = refusals(&report);
            (report, errors)
        }
        Err(error) => (taken_back(foreseen, &error), vec![error.to_string()]),
    };
    Ended { report, errors }
}

/// One space was attached, so there is one report.
fn only(report: Report) -> SpaceReport {
    report.spaces.into_iter().next().unwrap_or_default()
}

fn refusals(report: &SpaceReport) -> Vec<String> {
    let sections = report.sections.iter().filter(|verdict| verdict.fate == Fate::Refused).map(ToString::to_string);
    let targets = report.targets.iter().filter(|verdict| verdict.fate == Fate::Refused).map(ToString::to_string);
    sections.chain(targets).collect()
}

/// What a plan promised and a kernel did not let come true.
fn taken_back(mut report: SpaceReport, error: &CommitError) -> SpaceReport {
    let failed = Failed::of(error);
    for verdict in report.sections.iter_mut().filter(|verdict| was_promised(verdict.fate)) {
        let required = verdict.piece.need() == Some(Need::Required);
        verdict.fate = if required { Fate::Refused } else { Fate::Skipped };
        verdict.reason = failed.reason(Some(verdict.piece.range()), verdict.piece.memory());
    }
    for verdict in report.targets.iter_mut().filter(|verdict| was_promised(verdict.fate)) {
        verdict.fate = Fate::Refused;
        verdict.reason = failed.reason(None, Some(verdict.piece.memory()));
    }
    report
}

fn was_promised(fate: Fate) -> bool {
    matches!(fate, Fate::Mapped | Fate::Discardable | Fate::Registered | Fate::PinsShared | Fate::Window)
}

/// What failed, and of what.
struct Failed<'a> {
    subject: Option<&'a Subject>,
    words: String,
}

impl<'a> Failed<'a> {
    fn of(error: &'a CommitError) -> Self {
        let subject = match error {
            CommitError::Step { error, .. } => Some(&error.subject),
            _ => None,
        };
        Self { subject, words: error.to_string() }
    }

    /// Why something at `range`, made of `memory`, did not come true: the whole story where it happened, and a hint elsewhere.
    fn reason(&self, range: Option<IovaRange>, memory: Option<&HostMemory>) -> String {
        let happened_here = match self.subject {
            Some(Subject::Range(failed)) => range.is_some_and(|range| range.overlaps(*failed)),
            Some(Subject::Memory(failed)) => memory.is_some_and(|memory| overlap(memory, failed)),
            _ => true,
        };
        match self.subject {
            Some(subject) if !happened_here => format!("taken back, since {subject} failed"),
            _ => self.words.clone(),
        }
    }
}

fn overlap(a: &HostMemory, b: &HostMemory) -> bool {
    a.address() <= b.last() && b.address() <= a.last()
}
