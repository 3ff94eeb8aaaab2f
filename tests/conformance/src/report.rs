//! Running all cases, and the result.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::ability::Abilities;
use crate::bench::UnderTest;
use crate::cases::CASES;

/// The result of a run.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RunReport {
    /// The names of the cases that passed.
    pub passed: Vec<&'static str>,
    /// The cases that failed, by name, with the message of the panic.
    pub failed: Vec<(&'static str, String)>,
    /// The cases that do not apply to the space, by name, with the reason.
    pub not_applicable: Vec<(&'static str, String)>,
}

impl RunReport {
    /// Panics with the whole report if a case failed.
    ///
    /// # Panics
    /// When a case failed.
    pub fn assert_passed(&self) {
        assert!(self.failed.is_empty(), "the contract is not kept:\n{self}");
    }
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.passed {
            writeln!(f, "passed         {name}")?;
        }
        for (name, reason) in &self.not_applicable {
            writeln!(f, "not applicable {name}: {reason}")?;
        }
        for (name, message) in &self.failed {
            writeln!(f, "FAILED         {name}: {message}")?;
        }
        let counts = [self.passed.len(), self.not_applicable.len(), self.failed.len()];
        write!(f, "{} passed, {} not applicable, {} failed", counts[0], counts[1], counts[2])
    }
}

/// Runs all cases, one after the other, each on a bench of its own.
///
/// # Panics
/// When no bench can be opened.
pub fn run(subject: &dyn UnderTest) -> RunReport {
    let abilities = Abilities::of(subject);
    let mut report = RunReport::default();
    for case in CASES {
        if let Some(reason) = abilities.reason_against(case.needs) {
            report.not_applicable.push((case.name, reason));
            continue;
        }
        match catch_unwind(AssertUnwindSafe(|| case.run(subject))) {
            Ok(()) => report.passed.push(case.name),
            Err(payload) => report.failed.push((case.name, message_of(&*payload))),
        }
    }
    report
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    if let Some(message) = payload.downcast_ref::<String>() {
        return message.clone();
    }
    payload.downcast_ref::<&str>().map_or_else(|| "a panic without a message".to_owned(), |text| (*text).to_owned())
}
