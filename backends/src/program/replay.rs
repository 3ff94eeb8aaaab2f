//! Replaying: a guest's map, in one commit, through the listener and a real backend, onto a host.

use dmaspace::FrontEnd;

use crate::program::commit::Ended;
use crate::program::failure::{Failure, Status};
use crate::program::guest::Guest;
use crate::program::outcome::{self, Input, Outcome};
use crate::program::sections::{self, NoMemory};
use crate::program::stage::{Setting, Stage};

/// A replay that came to its end, whether that went well or not.
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
    let mut stage = Stage::new(setting, front_end(setting.hints))?;
    let Ended { report, errors } = stage.commit(told.update);
    let sections = outcome::judge(guest, &told.reasons, &report);
    let warnings = report.warnings.iter().map(ToString::to_string).collect();
    let outcome = Outcome {
        ok: errors.is_empty(),
        input: Input { file: file.to_owned(), address_space: guest.address_space.to_owned(), course: None },
        backend: stage.backend(),
        windows: stage.windows(),
        sections,
        calls: stage.spent().calls,
        bytes: stage.bytes(report.disturbed),
        steps: None,
    };
    stage.close()?;
    Ok(Replay { outcome, host: setting.place.name(), warnings, errors })
}

/// QEMU maps what loses bytes at its ends, shrunk; so does a replay of what QEMU had.
pub(crate) fn front_end(hints: bool) -> FrontEnd {
    if hints { FrontEnd::pc() } else { FrontEnd::default() }.reporting_shrinks()
}

#[cfg(test)]
mod tests {
    use dmaspace::listener::Fate;
    use proptest::prelude::*;

    use super::*;
    use dmaspace::choose::BackendKind;

    use crate::program::host::Place;
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
            let setting = Setting { place: Place::named(host).expect("a preset"), backend, hints: true, record: None };
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
