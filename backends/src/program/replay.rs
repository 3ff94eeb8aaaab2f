//! Replaying: a guest's map, in one commit, through the listener and a real backend, onto a host.

use dmaspace::choose::BackendKind;
use dmaspace::contract::PciAddressSpace;
use dmaspace::error::Subject;
use dmaspace::listener::{CommitError, Fate, Report, SpaceReport, Update};
use dmaspace::section::Need;
use dmaspace::{FrontEnd, HostMemory, IovaRange, Listener};

use crate::program::counting::CountingDoor;
use crate::program::failure::{Failure, Status};
use crate::program::guest::Guest;
use crate::program::host::{Place, Ready};
use crate::program::outcome::{self, Bytes, Input, Outcome};
use crate::program::sections::{self, NoMemory};

/// How to replay.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// On which host.
    pub(crate) place: Place,
    /// Through which backend; `None`: the best the host has.
    pub(crate) backend: Option<BackendKind>,
    /// Whether mappings are cut where a PC's firmware will change them.
    pub(crate) hints: bool,
}

/// A replay that came to a commit, whether that went well or not.
#[derive(Clone, Debug)]
pub(crate) struct Replay {
    /// What it found.
    pub(crate) outcome: Outcome,
    /// The host, in words.
    pub(crate) host: String,
    /// What the user should know although it may have gone well.
    pub(crate) warnings: Vec<String>,
    /// What went wrong.
    pub(crate) errors: Vec<String>,
}

impl Replay {
    /// How the run ends, as far as this replay is concerned.
    pub(crate) fn status(&self) -> Status {
        if self.outcome.ok { Status::Good } else { Status::Refused }
    }
}

/// Replays `guest`, which `file` describes.
///
/// # Errors
/// When it does not come to a commit.
pub(crate) fn replay(file: &str, guest: &Guest<'_>, setting: &Setting) -> Result<Replay, Failure> {
    let told = sections::tell(guest, setting.place.source()).map_err(|error| match error {
        NoMemory::TooLarge { line } => Failure::input(file, line, &error),
        NoMemory::TooLittle { .. } => Failure::host(&format_args!("{file}: {error}")),
    })?;
    let Ready { opened, counter } = setting.place.open(setting.backend)?;
    let space = opened.space.space();
    let mut listener = Listener::new(front_end(setting.hints));
    listener.attach(space.clone()).map_err(|error| Failure::host(&error))?;

    let Ended { report, errors } = commit(&mut listener, told.update);
    let sections = outcome::judge(guest, &told.reasons, &report);
    let warnings = report.warnings.iter().map(ToString::to_string).collect();
    let outcome = Outcome {
        ok: errors.is_empty(),
        input: Input { file: file.to_owned(), address_space: guest.address_space.to_owned() },
        backend: space.backend(),
        windows: outcome::windows(space.as_ref()),
        sections,
        calls: counter.calls(),
        bytes: Bytes::of(space.as_ref(), pinned(space.as_ref(), &counter), report.disturbed),
    };
    Ok(Replay { outcome, host: setting.place.name(), warnings, errors })
}

/// QEMU maps what loses bytes at its ends, shrunk; so does a replay of what QEMU had.
fn front_end(hints: bool) -> FrontEnd {
    if hints { FrontEnd::pc() } else { FrontEnd::default() }.reporting_shrinks()
}

/// How a commit ended.
struct Ended {
    report: SpaceReport,
    errors: Vec<String>,
}

fn commit(listener: &mut Listener, update: Update) -> Ended {
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
        verdict.reason = failed.reason(Some(verdict.piece.range()), verdict.piece.direct().map(|(memory, _)| memory));
    }
    for verdict in report.targets.iter_mut().filter(|verdict| was_promised(verdict.fate)) {
        verdict.fate = Fate::Refused;
        verdict.reason = failed.reason(None, Some(verdict.piece.memory()));
    }
    report
}

fn was_promised(fate: Fate) -> bool {
    matches!(fate, Fate::Mapped | Fate::Registered | Fate::Window)
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

/// A host that wants memory registered pins it then; others pin what they map.
fn pinned(space: &dyn PciAddressSpace, counter: &CountingDoor) -> u64 {
    if space.registration().is_some() { counter.registered_bytes() } else { counter.mapped_bytes() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::program::mtree::parse;
    use crate::program::mtree::tests::damaged;
    use crate::program::outcome::Judged;

    const HOSTS: [(&str, Option<BackendKind>); 4] =
        [("vtd", None), ("vtd", Some(BackendKind::Type1)), ("powernv9", None), ("pseries", None)];

    proptest! {
        /// Whatever the text says, there is an answer; and what is said to be mapped is mapped.
        #[test]
        fn damaged_texts_are_replayed_or_refused(text in damaged(), (host, backend) in prop::sample::select(&HOSTS[..])) {
            let Ok(views) = parse(&text) else { return Ok(()) };
            let Ok(guest) = Guest::of(&views, None, None) else { return Ok(()) };
            let setting = Setting { place: Place::named(host).expect("a preset"), backend, hints: true };
            let Ok(replay) = replay("text", &guest, &setting) else { return Ok(()) };
            let outcome = replay.outcome;
            prop_assert_eq!(outcome.sections.len(), guest.pci.len() + guest.targets.len());
            prop_assert_eq!(outcome.ok, !outcome.sections.iter().any(|judged| judged.fate == Fate::Refused));
            let mapped = |judged: &&Judged| outcome.ok && judged.fate == Fate::Mapped;
            let reached = |judged: &Judged| u128::from(judged.last.0 - judged.first.0) + 1 - u128::from(judged.lost_head + judged.lost_tail);
            let sum: u128 = outcome.sections.iter().filter(mapped).map(reached).sum();
            prop_assert_eq!(u128::from(outcome.bytes.mapped), sum);
        }
    }
}
