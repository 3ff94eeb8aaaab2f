//! Replaying: a guest's map, in one commit, through the listener and a real backend, onto a host.

use dmaspace::FrontEnd;
use dmaspace::listener::Fate;
use dmaspace::{Iova, IovaRange};

use crate::program::answer::{Causes, Cure};
use crate::program::cause::Cause;
use crate::program::commit::Ended;
use crate::program::failure::{Failure, Status};
use crate::program::guest::{Guest, Meaning};
use crate::program::mtree::What;
use crate::program::outcome::{self, AddressesOf, Input, Judged, Outcome};
use crate::program::sections::{self, NoMemory};
use crate::program::stage::{Claims, Setting, Stage};

/// A replay that came to its end, whether that went well or not.
#[derive(Clone, Debug)]
pub(crate) struct Replay {
    /// The result.
    pub(crate) outcome: Outcome,
    /// The host, in words.
    pub(crate) host: String,
    /// The claims on the host's limits at the end.
    pub(crate) claims: Claims,
    /// Warnings, although it may have gone well.
    pub(crate) warnings: Vec<String>,
    /// Errors.
    pub(crate) errors: Vec<String>,
}

impl Replay {
    /// The status of the run, as far as this replay is concerned.
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
    let mut stage = Stage::new(setting, front_end_of(guest, setting.hints))?;
    let Ended { report, errors } = stage.commit(told.update);
    let sections = outcome::judge(guest, &told.reasons, &report);
    let warnings = report.warnings.iter().map(ToString::to_string).collect();
    let mut causes = Causes::default();
    add_causes(&sections, &stage, &mut causes);
    let needed = sections.iter().map(locked_by).sum();
    let outcome = Outcome {
        ok: errors.is_empty(),
        input: Input {
            file: file.to_owned(),
            address_space: guest.address_space.to_owned(),
            space: None,
            passed_over: guest.passed_over,
            course: None,
        },
        backend: stage.backend(),
        windows: stage.windows(),
        sections,
        calls: stage.spent().calls,
        bytes: stage.bytes(report.disturbed),
        steps: None,
        findings: Vec::new(),
        cures: cures(causes, needed, &stage),
        notes: guest.notes.clone(),
    };
    let claims = stage.claims();
    stage.close()?;
    Ok(Replay { outcome, host: setting.place.name(), claims, warnings, errors })
}

/// The bytes a section locks, or would if nothing were in the way.
pub(crate) fn locked_by(judged: &Judged) -> u64 {
    let is_memory = matches!(judged.kind.what, What::Ram | What::Rom);
    let is_locked = matches!(judged.fate, Fate::Mapped | Fate::Registered | Fate::Refused);
    let len = (judged.last.0 - judged.first.0).saturating_add(1);
    if is_memory && is_locked { len.saturating_sub(judged.lost_head.saturating_add(judged.lost_tail)) } else { 0 }
}

/// Adds the causes for which sections that should be mapped are not.
pub(crate) fn add_causes<'a>(sections: impl IntoIterator<Item = &'a Judged>, stage: &Stage, causes: &mut Causes) {
    let view = stage.view();
    for judged in sections.into_iter().filter(|judged| judged.space == AddressesOf::Pci) {
        let is_device = judged.kind.what == What::RamDevice;
        let is_missing = judged.fate == Fate::Refused || (judged.fate == Fate::Skipped && is_device);
        let Ok(range) = IovaRange::new(Iova::new(judged.first.0), Iova::new(judged.last.0)) else { continue };
        if !is_missing {
            continue;
        }
        let of_memory = if is_device { view.of_device_memory() } else { of_mappings(&judged.reason) };
        for cause in view.of_addresses(range).into_iter().chain(of_memory) {
            causes.add(cause);
        }
    }
}

/// The listener's own words for more mappings than the kernel takes.
fn of_mappings(reason: &str) -> Option<Cause> {
    let (needed, rest) = reason.split_once(" more mappings are needed, the kernel has ")?;
    let left = rest.strip_suffix(" left")?;
    Some(Cause::Mappings { needed: needed.parse().ok()?, left: left.parse().ok()? })
}

/// One cure for each cause, and one more where a guest that locks `needed` bytes in total meets a lower limit.
pub(crate) fn cures(mut causes: Causes, needed: u64, stage: &Stage) -> Vec<Cure> {
    if let Some(limit) = stage.lockable().filter(|limit| *limit < needed) {
        causes.add(Cause::LockedMemory { needed, limit });
    }
    causes.cures()
}

/// The front end of a guest. One whose RAM goes on in a graphics card's hole has no card that could switch it.
fn front_end_of(guest: &Guest<'_>, hints: bool) -> FrontEnd {
    let mut front = front_end(hints);
    if let Some(hole) = FrontEnd::vga_hole().filter(|hole| has_ram_all_over(guest, hole.range)) {
        front.cuts.retain(|cuts| *cuts != hole);
    }
    front
}

/// Returns whether one range of the guest's memory covers all of `place`.
fn has_ram_all_over(guest: &Guest<'_>, place: IovaRange) -> bool {
    let mut memory = guest.pci.iter().filter(|(_, meaning)| matches!(meaning, Meaning::Memory(_)));
    memory.any(|(range, _)| range.first <= place.first().get() && place.last().get() <= range.last)
}

/// QEMU maps what loses bytes at its ends, shrunk; so does a replay of what QEMU had.
pub(crate) fn front_end(hints: bool) -> FrontEnd {
    if hints { FrontEnd::pc() } else { FrontEnd::default() }.reporting_shrinks()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;
    use dmaspace::choose::BackendKind;

    use crate::program::host::Place;
    use crate::program::mtree::parse;
    use crate::program::mtree::tests::damaged;
    use crate::program::surroundings::Text;

    const HOSTS: [(&str, Option<BackendKind>); 4] =
        [("vtd", None), ("vtd", Some(BackendKind::Type1)), ("powernv9", None), ("pseries", None)];

    proptest! {
        /// There is an answer to every text; and a range that is said to be mapped is mapped.
        #[test]
        fn damaged_texts_are_replayed_or_refused(
            text in damaged(),
            (host, backend) in prop::sample::select(&HOSTS[..]),
        ) {
            let Ok(views) = parse(&Text::of(&text)) else { return Ok(()) };
            let Ok(guest) = Guest::of(&views, None, None) else { return Ok(()) };
            let place = Place::named(host).expect("a preset");
            let setting = Setting { place, backend, spaces: NonZeroU32::MIN, hints: true, record: None };
            let Ok(replay) = replay("text", &guest, &setting) else { return Ok(()) };
            let outcome = replay.outcome;
            prop_assert_eq!(outcome.sections.len(), guest.pci.len() + guest.targets.len());
            prop_assert_eq!(outcome.ok, !outcome.sections.iter().any(|judged| judged.fate == Fate::Refused));
            let mapped = |judged: &&Judged| outcome.ok && judged.fate == Fate::Mapped;
            let reached = |judged: &Judged| {
                let len = u128::from(judged.last.0 - judged.first.0) + 1;
                len - u128::from(judged.lost_head + judged.lost_tail)
            };
            let sum: u128 = outcome.sections.iter().filter(mapped).map(reached).sum();
            prop_assert_eq!(u128::from(outcome.bytes.mapped), sum);
        }
    }
}
