//! Replaying step by step: a course of updates, each a commit of its own.
//!
//! A step that is refused leaves everything as it was, and the replay goes on: later steps then remove the pieces
//! they find of those they would remove, and the pieces in the way of those they add. A step that failed where the
//! course was recorded is tried all the same; if it is provided here, it is taken back, since everything afterwards
//! was said as if it had never been.

use std::collections::BTreeMap;

use dmaspace::address::{Address, AddressRange};
use dmaspace::listener::{Fate, SpaceReport, Update, Verdict};
use dmaspace::section::TargetMemory;
use dmaspace::{FrontEnd, Section};

use crate::program::answer::{Causes, answer};
use crate::program::commit::Ended;
use crate::program::course::{Course, Step};
use crate::program::failure::Failure;
use crate::program::finding::Finding;
use crate::program::outcome::{AddressesOf, Input, Judged, Outcome, StepOutcome, Told};
use crate::program::progress::Progress;
use crate::program::replay::{Replay, add_causes, cures, front_end, locked_by};
use crate::program::stage::{Setting, Stage};

/// Replays `course`, which `file` tells.
///
/// # Errors
/// When it does not come to a commit.
pub(crate) fn replay(file: &str, course: &Course, findings: &[Finding], setting: &Setting) -> Result<Replay, Failure> {
    let mut run = Run::new(Stage::new(setting, front(course, setting.hints))?);
    let progress = Progress::of(format!("replaying {file}"), course.steps.len() as u64);
    let mut steps = Vec::new();
    for (step, number) in course.steps.iter().zip(1..) {
        steps.push(run.take(number, step));
        progress.step();
    }
    drop(progress);
    add_causes(run.in_force.values().map(|(judged, _)| judged), &run.stage, &mut run.causes);
    let findings = answer(findings, setting, &mut run.causes)?;
    let outcome = Outcome {
        ok: run.errors.is_empty() && !findings.iter().any(|answer| answer.is_refused),
        input: Input {
            file: file.to_owned(),
            address_space: "pci".to_owned(),
            space: course.space.clone(),
            passed_over: 0,
            course: Some(Told::of(course)),
        },
        backend: run.stage.backend(),
        windows: run.stage.windows(),
        sections: run.in_force.into_values().map(|(judged, _)| judged).collect(),
        calls: run.stage.spent().calls,
        bytes: run.stage.bytes(run.disturbed),
        steps: Some(steps),
        findings,
        cures: cures(run.causes, run.locked_at_most, &run.stage),
        notes: Vec::new(),
    };
    let claims = run.stage.claims();
    run.stage.close()?;
    Ok(Replay { outcome, host: setting.place.name(), claims, warnings: run.warnings, errors: run.errors })
}

/// The front end that was recorded, or else QEMU's.
fn front(course: &Course, hints: bool) -> FrontEnd {
    match course.front.clone() {
        None => front_end(hints),
        Some(front) if hints => front,
        Some(mut front) => {
            (front.cuts, front.chunk) = (Vec::new(), None);
            front
        }
    }
}

struct Run {
    stage: Stage,
    /// The pieces in force, with their fates.
    in_force: BTreeMap<(AddressesOf, u64), (Judged, Piece)>,
    /// The bytes they lock, and the most that any step would have locked.
    locked: u64,
    locked_at_most: u64,
    causes: Causes,
    /// `true` once a step was refused here, and not there.
    has_strayed: bool,
    disturbed: u64,
    warnings: Vec<String>,
    errors: Vec<String>,
}

impl Run {
    fn new(stage: Stage) -> Self {
        Self {
            stage,
            in_force: BTreeMap::new(),
            locked: 0,
            locked_at_most: 0,
            causes: Causes::default(),
            has_strayed: false,
            disturbed: 0,
            warnings: Vec::new(),
            errors: Vec::new(),
        }
    }

    fn take(&mut self, number: usize, step: &Step) -> StepOutcome {
        let update = match self.has_strayed {
            true => self.as_far_as_it_goes(&step.update),
            false => step.update.clone(),
        };
        let (before, staying) = (self.stage.spent(), self.locked.saturating_sub(self.locked_by_removed(&update)));
        let mut ended = self.commit(number, &update);
        let mut disturbed = ended.report.disturbed;
        let added = judged(&update, &ended);
        self.locked_at_most = self.locked_at_most.max(staying.saturating_add(added.iter().map(locked_by).sum()));
        if !ended.errors.is_empty() {
            add_causes(&added, &self.stage, &mut self.causes);
        }
        match (ended.errors.is_empty(), step.failed_there.is_some()) {
            (true, true) => {
                let back = self.commit(number, &update.clone().reversed());
                disturbed = disturbed.saturating_add(back.report.disturbed);
                self.has_strayed |= !back.errors.is_empty();
                ended.errors = back.errors;
            }
            (false, false) => self.has_strayed = true,
            (true, false) | (false, true) => {}
        }
        self.disturbed = self.disturbed.saturating_add(disturbed);
        StepOutcome::new(&update, added, self.stage.spent().since(before), disturbed, ended.errors)
    }

    fn commit(&mut self, number: usize, update: &Update) -> Ended {
        let ended = self.stage.commit(update.clone());
        self.errors.extend(ended.errors.iter().map(|text| of_step(number, text)));
        if ended.errors.is_empty() {
            self.follow(update, &ended.report);
            self.warnings.extend(ended.report.warnings.iter().map(|warning| of_step(number, &warning.text)));
        }
        ended
    }

    /// An update is in force.
    fn follow(&mut self, update: &Update, report: &SpaceReport) {
        for place in places_removed(update) {
            if let Some((judged, _)) = self.in_force.remove(&place) {
                self.locked = self.locked.saturating_sub(locked_by(&judged));
            }
        }
        for (judged, piece) in judged_in(report) {
            self.locked = self.locked.saturating_add(locked_by(&judged));
            if let Some((before, _)) = self.in_force.insert(judged.place(), (judged, piece)) {
                self.locked = self.locked.saturating_sub(locked_by(&before));
            }
        }
    }

    /// The bytes that the pieces an update removes lock.
    fn locked_by_removed(&self, update: &Update) -> u64 {
        let removed = places_removed(update).filter_map(|place| self.in_force.get(&place));
        removed.map(|(judged, _)| locked_by(judged)).sum()
    }

    /// `update` where not everything is in force that should be, or something is that should not.
    fn as_far_as_it_goes(&self, update: &Update) -> Update {
        let sections = update.removed().iter().chain(update.added()).map(|section| ends_of(section.range()));
        let targets =
            update.removed_targets().iter().chain(update.added_targets()).map(|target| ends_of(target.range()));
        let in_the_way =
            self.overlapping(AddressesOf::Pci, sections).chain(self.overlapping(AddressesOf::Memory, targets));
        let mut changed = Update::new();
        for piece in in_the_way {
            changed = match piece {
                Piece::Section(section) => changed.removing(section.clone()),
                Piece::Target(target) => changed.removing_target(target.clone()),
            };
        }
        let changed = update.added().iter().cloned().fold(changed, Update::adding);
        update.added_targets().iter().cloned().fold(changed, Update::adding_target)
    }

    /// The pieces in force that share an address with one of `ranges`, each once.
    fn overlapping(
        &self,
        space: AddressesOf,
        ranges: impl Iterator<Item = (u64, u64)>,
    ) -> impl Iterator<Item = &Piece> {
        let mut found: BTreeMap<u64, &Piece> = BTreeMap::new();
        for (first, last) in ranges {
            let before = self.in_force.range((space, 0)..(space, first)).next_back();
            let below = before.filter(|(_, (judged, _))| judged.last.0 >= first);
            let inside = self.in_force.range((space, first)..=(space, last));
            found.extend(below.into_iter().chain(inside).map(|((_, at), (_, piece))| (*at, piece)));
        }
        found.into_values()
    }
}

fn of_step(number: usize, text: &str) -> String {
    format!("step {number}: {text}")
}

/// A piece in force, as it has to be removed.
enum Piece {
    Section(Section),
    Target(TargetMemory),
}

fn places_removed(update: &Update) -> impl Iterator<Item = (AddressesOf, u64)> {
    let sections = update.removed().iter().map(|section| (AddressesOf::Pci, section.range().first().get()));
    let targets = update.removed_targets().iter().map(|target| (AddressesOf::Memory, target.range().first().get()));
    sections.chain(targets)
}

fn ends_of<A: Address>(range: AddressRange<A>) -> (u64, u64) {
    (range.first().get(), range.last().get())
}

/// The fates of the pieces that came.
fn judged(update: &Update, ended: &Ended) -> Vec<Judged> {
    let mut judged: BTreeMap<_, _> = judged_in(&ended.report).map(|(judged, _)| (judged.place(), judged)).collect();
    // A piece that is not judged was not asked for: the update makes no sense.
    let reason = ended.errors.first().map_or("", String::as_str);
    let sections = update.added().iter().map(|section| Judged::of_section(section, Fate::Refused, reason));
    let targets = update.added_targets().iter().map(|target| Judged::of_target(target, Fate::Refused, reason));
    sections.chain(targets).map(|unjudged| judged.remove(&unjudged.place()).unwrap_or(unjudged)).collect()
}

fn judged_in(report: &SpaceReport) -> impl Iterator<Item = (Judged, Piece)> + '_ {
    let of_section =
        |verdict: &Verdict<Section>| (Judged::of_section_verdict(verdict), Piece::Section(verdict.piece.clone()));
    let of_target =
        |verdict: &Verdict<TargetMemory>| (Judged::of_target_verdict(verdict), Piece::Target(verdict.piece.clone()));
    report.sections.iter().map(of_section).chain(report.targets.iter().map(of_target))
}

#[cfg(test)]
mod tests {
    use dmaspace::Listener;
    use dmaspace::choose::BackendKind;
    use dmaspace::recording::JsonLines;
    use proptest::prelude::*;
    use std::num::NonZeroU32;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::program::host::Place;
    use crate::program::surroundings::Text;
    use crate::program::trace;
    use crate::program::trace::tests::{PSERIES, Q35, damaged};

    const HOSTS: [(&str, Option<BackendKind>); 4] =
        [("vtd", None), ("vtd", Some(BackendKind::Type1)), ("powernv9", None), ("pseries", None)];

    fn on(host: &str, backend: Option<BackendKind>) -> Setting {
        Setting {
            place: Place::named(host).expect("a preset"),
            backend,
            spaces: NonZeroU32::MIN,
            hints: true,
            record: None,
        }
    }

    /// The ranges that are said to be mapped at the end are mapped, and steps add up.
    fn check(course: &Course, setting: &Setting) -> Result<(), TestCaseError> {
        let outcome = replay("course", course, &[], setting).expect("a soft host").outcome;
        let mapped = outcome.sections.iter().filter(|judged| judged.fate == Fate::Mapped);
        let reached = |judged: &Judged| {
            let lost = u128::from(judged.lost_head) + u128::from(judged.lost_tail);
            u128::from(judged.last.0 - judged.first.0) + 1 - lost
        };
        prop_assert_eq!(u128::from(outcome.bytes.mapped), mapped.map(reached).sum());
        let steps = outcome.steps.expect("a course has steps");
        prop_assert_eq!(steps.len(), course.steps.len());
        prop_assert_eq!(outcome.ok, steps.iter().all(|step| step.ok));
        prop_assert!(
            steps.iter().map(|step| u128::from(step.bytes.pinned)).sum::<u128>() >= outcome.bytes.pinned.into()
        );
        Ok(())
    }

    /// A trace as a recording.
    fn recorded(text: &str) -> String {
        let lines = Arc::new(Mutex::new(JsonLines::new(Vec::new())));
        let mut listener = Listener::new(FrontEnd::pc());
        listener.record_to(Box::new(lines.clone()));
        for step in trace::parse(&Text::of(text.as_bytes()), None).expect("a good trace").courses.remove(0).steps {
            listener.commit(step.update).expect("no host can refuse");
        }
        let lines = lines.lock().expect("no panic under the lock");
        String::from_utf8(lines.get_ref().clone()).expect("text")
    }

    /// A recording with a few numbers and bytes changed, and lines left out.
    fn damaged_recording() -> impl Strategy<Value = Vec<u8>> {
        let numbers = prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..3);
        let bytes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2);
        let left_out = prop::collection::vec(any::<prop::sample::Index>(), 0..2);
        let failed = prop::collection::vec(any::<prop::sample::Index>(), 0..2);
        let texts = prop::sample::select(vec![recorded(Q35), recorded(PSERIES)]);
        (texts, numbers, left_out, failed, bytes).prop_map(|(mut text, numbers, left_out, failed, bytes)| {
            for (place, number) in numbers {
                let places: Vec<_> = text.match_indices("\"0x").map(|(at, _)| at + 1).collect();
                let at = places[place.index(places.len())];
                let end = at + text[at..].find('"').expect("a string ends");
                text.replace_range(at..end, &format!("{number:#x}"));
            }
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            for place in failed {
                let line = place.index(lines.len());
                lines[line] = lines[line].replace("\"result\":\"ok\"", "\"result\":\"refused\"");
            }
            for place in left_out {
                // An update and how it ended.
                let at = place.index(lines.len()) / 2 * 2 + 1;
                lines.drain(at.min(lines.len())..(at + 2).min(lines.len()));
            }
            let mut text = lines.join("\n").into_bytes();
            for (place, byte) in bytes {
                let place = place.index(text.len());
                text[place] = byte;
            }
            text
        })
    }

    /// A trace of `changes` changes, beside as many quarters of sections: one goes, then one comes, again and again.
    fn long_trace(changes: usize) -> String {
        let place = |n: usize| (0x1000_0000 + n * 0x20_0000, 0x1000_0000 + n * 0x20_0000 + 0xf_ffff);
        let live = changes / 4;
        let mut text = String::new();
        for n in 0..live + changes * 3 / 8 {
            let (first, last) = place(n);
            if n >= live {
                let (first, last) = place(n - live);
                text += &format!("vfio_listener_region_del region_del {first:#x} - {last:#x}\n");
            }
            let at = 0x7e00_0000_0000_usize + first;
            text += &format!("vfio_listener_region_add_ram region_add [ram] {first:#x} - {last:#x} [{at:#x}]\n");
        }
        text
    }

    /// The bytes that a replay of so many changes allocates.
    fn allocated_by(changes: usize, setting: &Setting) -> u64 {
        let trace = long_trace(changes);
        let course = trace::parse(&Text::of(trace.as_bytes()), None).expect("a good trace").courses.remove(0);
        let counted = allocation_counter::measure(|| {
            let replay = replay("trace", &course, &[], setting).expect("a soft host");
            assert_eq!((replay.errors.len(), course.steps.len()), (0, changes * 3 / 8 + 1));
        });
        counted.bytes_total
    }

    #[test]
    fn the_cost_of_a_replay_is_proportional_to_its_changes() {
        for backend in [BackendKind::Type1, BackendKind::Iommufd] {
            let setting = on("vtd", Some(backend));
            let (few, many) = (allocated_by(500, &setting), allocated_by(2_000, &setting));
            // Four times as many changes; lists double as they grow. A cost of the square would be 16 times as much.
            assert!(many < 5 * few, "{backend}: {many} bytes instead of four times {few}");
        }
    }

    proptest! {
        #[test]
        fn damaged_traces_are_replayed_or_refused(
            text in damaged(),
            (host, backend) in prop::sample::select(&HOSTS[..]),
        ) {
            let Ok(traced) = trace::parse(&Text::of(&text), None) else { return Ok(()) };
            for course in traced.courses {
                check(&course, &on(host, backend))?;
            }
        }

        #[test]
        fn damaged_recordings_are_replayed_or_refused(
            text in damaged_recording(),
            (host, backend) in prop::sample::select(&HOSTS[..]),
        ) {
            let Ok(course) = Course::recorded(&text) else { return Ok(()) };
            check(&course, &on(host, backend))?;
        }
    }
}
