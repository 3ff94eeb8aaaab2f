//! A commit of a replay, and the fate of everything in it, whether it went well or not.

use dmaspace::error::Subject;
use dmaspace::listener::{CommitError, Fate, Report, SpaceReport, Update};
use dmaspace::section::Need;
use dmaspace::{HostMemory, IovaRange, Listener};

use crate::program::folding;

/// The end of a commit.
pub(crate) struct Ended {
    /// The fate of each section.
    pub(crate) report: SpaceReport,
    /// The errors, each cause in a few lines.
    pub(crate) errors: Vec<String>,
}

/// Commits `update`.
pub(crate) fn commit(listener: &mut Listener, update: Update) -> Ended {
    let (report, errors) = match listener.commit(update.clone()) {
        Ok(report) => (only(report), Vec::new()),
        Err(CommitError::Refused(report)) => {
            let report = only(report);
            let errors = refusals(&report);
            (report, errors)
        }
        Err(error) => {
            // Everything is as it was before, so the same plan tells again which piece the failed call served.
            let foreseen = listener.explain(&update).map(only).unwrap_or_default();
            (taken_back(foreseen, &error), vec![error.to_string()])
        }
    };
    Ended { report, errors }
}

/// One space was attached, so there is one report.
fn only(report: Report) -> SpaceReport {
    report.spaces.into_iter().next().unwrap_or_default()
}

fn refusals(report: &SpaceReport) -> Vec<String> {
    let sections = report.sections.iter().filter(|verdict| verdict.fate == Fate::Refused);
    let targets = report.targets.iter().filter(|verdict| verdict.fate == Fate::Refused);
    let of_sections = sections.map(|verdict| (verdict.reason.to_string(), verdict.to_string()));
    let of_targets = targets.map(|verdict| (verdict.reason.to_string(), verdict.to_string()));
    folding::told(of_sections.chain(of_targets))
}

/// The report of a plan that a kernel did not let come true.
fn taken_back(mut report: SpaceReport, error: &CommitError) -> SpaceReport {
    let failed = Failed::of(error);
    for verdict in report.sections.iter_mut().filter(|verdict| was_promised(verdict.fate)) {
        let required = verdict.piece.need() == Some(Need::Required);
        verdict.fate = if required { Fate::Refused } else { Fate::Skipped };
        verdict.reason = failed.reason(Some(verdict.piece.range()), verdict.piece.memory()).into();
    }
    for verdict in report.targets.iter_mut().filter(|verdict| was_promised(verdict.fate)) {
        verdict.fate = Fate::Refused;
        verdict.reason = failed.reason(None, Some(verdict.piece.memory())).into();
    }
    report
}

fn was_promised(fate: Fate) -> bool {
    matches!(fate, Fate::Mapped | Fate::Discardable | Fate::Registered | Fate::PinsShared | Fate::Window)
}

/// The call that failed, and the range or memory it was for.
struct Failed<'a> {
    subject: Option<&'a Subject>,
    words: String,
}

impl<'a> Failed<'a> {
    fn of(error: &'a CommitError) -> Self {
        let subject = match error {
            CommitError::Step { error, .. } => Some(error.subject()),
            _ => None,
        };
        Self { subject, words: error.to_string() }
    }

    /// The reason for which something at `range`, made of `memory`, did not come true: the whole story where it
    /// happened, and a hint elsewhere.
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
