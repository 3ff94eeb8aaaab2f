//! Replaying step by step: a course of updates, each a commit of its own.
//!
//! A step that is refused leaves everything as it was, and the replay goes on: later steps then remove what they find of what they would
//! remove, and what is in the way of what they add. A step that failed where the course was recorded is tried all the same; if it is
//! provided here, it is taken back, since everything afterwards was said as if it had never been.

use std::collections::BTreeMap;

use dmaspace::address::{Address, AddressRange};
use dmaspace::listener::{Fate, SpaceReport, Update};
use dmaspace::section::TargetMemory;
use dmaspace::{FrontEnd, Listener, Section};

use crate::program::commit::Ended;
use crate::program::course::{Course, Step};
use crate::program::failure::Failure;
use crate::program::outcome::{AddressesOf, Input, Judged, Outcome, StepOutcome, Told};
use crate::program::replay::{Replay, front_end};
use crate::program::stage::{Setting, Stage};

/// Replays `course`, which `file` tells.
///
/// # Errors
/// When it does not come to a commit.
pub(crate) fn replay(file: &str, course: &Course, setting: &Setting) -> Result<Replay, Failure> {
    let mut run = Run::new(Stage::new(setting, front(course, setting.hints))?);
    let steps = course.steps.iter().enumerate().map(|(n, step)| run.take(n + 1, step)).collect();
    let outcome = Outcome {
        ok: run.errors.is_empty(),
        input: Input { file: file.to_owned(), address_space: "pci".to_owned(), course: Some(Told::of(course)) },
        backend: run.stage.backend(),
        windows: run.stage.windows(),
        sections: run.in_force.into_values().collect(),
        calls: run.stage.spent().calls,
        bytes: run.stage.bytes(run.disturbed),
        steps: Some(steps),
    };
    run.stage.close()?;
    Ok(Replay { outcome, host: setting.place.name(), warnings: run.warnings, errors: run.errors })
}

/// The front end that was recorded, or else QEMU's.
fn front(course: &Course, hints: bool) -> FrontEnd {
    match course.front.clone() {
        None => front_end(hints),
        Some(front) if hints => front,
        Some(front) => FrontEnd { cuts: Vec::new(), chunk: None, ..front },
    }
}

struct Run {
    stage: Stage,
    /// What is in force and what became of it.
    in_force: BTreeMap<(AddressesOf, u64), Judged>,
    /// Whether a step was refused here that was not refused there.
    has_strayed: bool,
    disturbed: u64,
    warnings: Vec<String>,
    errors: Vec<String>,
}

impl Run {
    fn new(stage: Stage) -> Self {
        let (warnings, errors) = (Vec::new(), Vec::new());
        Self { stage, in_force: BTreeMap::new(), has_strayed: false, disturbed: 0, warnings, errors }
    }

    fn take(&mut self, number: usize, step: &Step) -> StepOutcome {
        let update = match self.has_strayed {
            true => as_far_as_it_goes(&step.update, self.stage.listener()),
            false => step.update.clone(),
        };
        let before = self.stage.spent();
        let mut ended = self.commit(number, &update);
        let mut disturbed = ended.report.disturbed;
        let added = judged(&update, &ended);
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
        let say = |text: &String| format!("step {number}: {text}");
        self.errors.extend(ended.errors.iter().map(say));
        if ended.errors.is_empty() {
            self.follow(update, &ended.report);
            self.warnings.extend(ended.report.warnings.iter().map(|warning| say(&warning.text)));
        }
        ended
    }

    /// What is in force now.
    fn follow(&mut self, update: &Update, report: &SpaceReport) {
        for section in update.removed() {
            self.in_force.remove(&(AddressesOf::Pci, section.range().first().get()));
        }
        for target in update.removed_targets() {
            self.in_force.remove(&(AddressesOf::Memory, target.range().first().get()));
        }
        self.in_force.extend(judged_in(report).map(|judged| (judged.place(), judged)));
    }
}

/// What became of what came.
fn judged(update: &Update, ended: &Ended) -> Vec<Judged> {
    let mut judged: BTreeMap<_, _> = judged_in(&ended.report).map(|judged| (judged.place(), judged)).collect();
    // What is not judged was not asked for: the update makes no sense.
    let reason = ended.errors.first().map_or("", String::as_str);
    let sections = update.added().iter().map(|section| Judged::of_section(section, Fate::Refused, reason));
    let targets = update.added_targets().iter().map(|target| Judged::of_target(target, Fate::Refused, reason));
    sections.chain(targets).map(|unjudged| judged.remove(&unjudged.place()).unwrap_or(unjudged)).collect()
}

fn judged_in(report: &SpaceReport) -> impl Iterator<Item = Judged> + '_ {
    let sections = report.sections.iter().map(Judged::of_section_verdict);
    sections.chain(report.targets.iter().map(Judged::of_target_verdict))
}

/// `update` where not everything is in force that should be, or something is that should not.
fn as_far_as_it_goes(update: &Update, listener: &Listener) -> Update {
    let sections = update.removed().iter().chain(update.added()).map(Section::range).collect();
    let targets = update.removed_targets().iter().chain(update.added_targets()).map(TargetMemory::range).collect();
    let (sections, targets) = (sorted(sections), sorted(targets));
    let removed = listener.sections().filter(|section| overlaps(&sections, section.range())).cloned();
    let changed = removed.fold(Update::new(), Update::removing);
    let removed = listener.targets().filter(|target| overlaps(&targets, target.range())).cloned();
    let changed = removed.fold(changed, Update::removing_target);
    let changed = update.added().iter().cloned().fold(changed, Update::adding);
    update.added_targets().iter().cloned().fold(changed, Update::adding_target)
}

/// Ascending, without those that another covers: then their last addresses ascend, too.
fn sorted<A: Address>(mut ranges: Vec<AddressRange<A>>) -> Vec<AddressRange<A>> {
    ranges.sort_by_key(|range| (range.first(), std::cmp::Reverse(range.last())));
    let mut reach = None;
    ranges.retain(|range| {
        let is_covered = reach.is_some_and(|reach| range.last() <= reach);
        reach = reach.max(Some(range.last()));
        !is_covered
    });
    ranges
}

fn overlaps<A: Address>(ranges: &[AddressRange<A>], range: AddressRange<A>) -> bool {
    let next = ranges.partition_point(|other| other.last() < range.first());
    ranges.get(next).is_some_and(|other| other.overlaps(range))
}

#[cfg(test)]
mod tests {
    use dmaspace::choose::BackendKind;
    use dmaspace::recording::JsonLines;
    use proptest::prelude::*;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::program::host::Place;
    use crate::program::trace;
    use crate::program::trace::tests::{PSERIES, Q35, damaged};

    const HOSTS: [(&str, Option<BackendKind>); 4] =
        [("vtd", None), ("vtd", Some(BackendKind::Type1)), ("powernv9", None), ("pseries", None)];

    fn on(host: &str, backend: Option<BackendKind>) -> Setting {
        Setting { place: Place::named(host).expect("a preset"), backend, hints: true, record: None }
    }

    /// What is said to be mapped at the end is mapped, and steps add up.
    fn check(course: &Course, setting: &Setting) -> Result<(), TestCaseError> {
        let outcome = replay("course", course, setting).expect("a soft host").outcome;
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
        for step in trace::parse(text.as_bytes(), None).expect("a good trace").steps {
            listener.commit(step.update).expect("no host can refuse");
        }
        let lines = lines.lock().expect("nobody panicked");
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

    proptest! {
        #[test]
        fn damaged_traces_are_replayed_or_refused(text in damaged(), (host, backend) in prop::sample::select(&HOSTS[..])) {
            let Ok(course) = trace::parse(&text, None) else { return Ok(()) };
            check(&course, &on(host, backend))?;
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
