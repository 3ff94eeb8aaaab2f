//! The steps of a course as people read them: each by itself, but a long run of steps that are like some before as one.

use std::collections::{BTreeMap, BTreeSet};

use super::{TableRow, calls, folded_table, shown_name};
use crate::program::counting::Calls;
use crate::program::folding;
use crate::program::outcome::{Outcome, StepOutcome};
use crate::program::units::bytes;

/// Runs longer than this are told as one.
const LONGEST_RUN: usize = 64;
/// As many steps of one shape are told before.
const SHOWN: usize = 4;

/// A step with its number and its lines.
struct ToldStep<'a> {
    number: usize,
    lines: (usize, usize),
    step: &'a StepOutcome,
    failed_there: bool,
}

/// Each step: its cost, and the pieces that went and came.
pub(super) fn of(outcome: &Outcome) -> Option<String> {
    let told = outcome.input.course.as_ref().filter(|told| !told.lines.is_empty())?;
    let mut text = String::new();
    let mut shapes: BTreeMap<String, usize> = BTreeMap::new();
    let mut run = Vec::new();
    for ((number, step), lines) in (1..).zip(outcome.steps.iter().flatten()).zip(&told.lines) {
        let failed_there = told.failed_there.binary_search(&number).is_ok();
        let step = ToldStep { number, lines: *lines, step, failed_there };
        let times = shapes.entry(step.shape()).or_insert(0);
        *times += 1;
        if *times <= SHOWN {
            close(&run, &mut text);
            run.clear();
            text += &one_step(&step);
        } else {
            run.push(step);
        }
    }
    close(&run, &mut text);
    Some(text)
}

/// Tells a run of steps that are like some before.
fn close(run: &[ToldStep<'_>], text: &mut String) {
    match run {
        [first, .., last] if run.len() > LONGEST_RUN => *text += &summary(first, last, run),
        steps => text.extend(steps.iter().map(one_step)),
    }
}

fn summary(first: &ToldStep<'_>, last: &ToldStep<'_>, run: &[ToldStep<'_>]) -> String {
    let heading = format!(
        "  {} to {}: lines {} to {}; each is like one of the steps above\n",
        first.number, last.number, first.lines.0, last.lines.1
    );
    let all = run.iter().map(|told| told.step.calls).fold(Calls::default(), Calls::and);
    let pinned = run.iter().map(|told| u128::from(told.step.bytes.pinned)).sum();
    let disturbed = run.iter().map(|told| u128::from(told.step.bytes.disturbed)).sum();
    heading + &cost(&all, pinned, disturbed)
}

fn cost(made: &Calls, pinned: u128, disturbed: u128) -> String {
    format!("     {}; pinned {}, disturbed {}\n", calls(made), bytes(pinned), bytes(disturbed))
}

impl ToldStep<'_> {
    /// The end of the step, in words.
    fn end(&self) -> &'static str {
        match (self.step.ok, self.failed_there) {
            (true, false) => "",
            (true, true) => "; failed where it was recorded, so it was taken back here",
            (false, false) => "; refused, none of it is in force",
            (false, true) => "; refused, as where it was recorded, none of it is in force",
        }
    }

    /// Everything about the step but addresses and amounts.
    fn shape(&self) -> String {
        let gone = self.step.removed.iter().map(|gone| format!("- {} {}", gone.kind, gone.name));
        let come = self.step.added.iter().map(|judged| {
            let reason = folding::shared(&judged.reason);
            format!("+ {} {} {} {reason}", judged.kind, judged.name, judged.fate)
        });
        let pieces: BTreeSet<String> = gone.chain(come).collect();
        pieces.into_iter().fold(self.end().to_owned(), |shape, piece| shape + "\n" + &piece)
    }
}

fn one_step(told: &ToldStep<'_>) -> String {
    let ToldStep { number, lines: (first, last), step, .. } = told;
    let lines = if first == last { format!("line {first}") } else { format!("lines {first} to {last}") };
    let ended = told.end();
    let heading = format!("  {number}: {lines}{ended}\n");
    let spent = cost(&step.calls, step.bytes.pinned.into(), step.bytes.disturbed.into());
    let gone = step.removed.iter().map(|gone| {
        let (first, last) = (gone.first.to_string(), gone.last.to_string());
        TableRow {
            cells: ["-".to_owned(), first, last, gone.kind.to_string(), shown_name(&gone.name), String::new()],
            reason: "",
        }
    });
    let come = step.added.iter().map(|judged| {
        let (first, last) = (judged.first.to_string(), judged.last.to_string());
        let cells =
            ["+".to_owned(), first, last, judged.kind.to_string(), shown_name(&judged.name), judged.fate.to_string()];
        TableRow { cells, reason: if step.ok { "" } else { judged.reason.as_str() } }
    });
    let pieces = folded_table("   ", None, gone.chain(come).collect(), [0, 3, 5]);
    heading + &spent + &pieces.concat()
}
