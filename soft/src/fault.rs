//! Calls that are made to fail.

use dmaspace_core::door::Errno;

/// One call to be spoilt, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultPlan {
    /// Which call: 1 is the next one. Opening and every ioctl count, closing does not.
    pub at: u64,
    /// Count calls of this name only.
    pub call: Option<&'static str>,
    /// How.
    pub mode: FaultMode,
    /// What the call answers, where it fails.
    pub errno: Errno,
}

/// How a call is spoilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultMode {
    /// It fails, and nothing happened: out of memory, interrupted, an old kernel.
    FailBefore,
    /// It happens, and then fails, as when the answer cannot be copied out. Nothing is written back. A descriptor it
    /// opened is closed again.
    FailAfter,
    /// Nothing happens, and the result is this positive number.
    Positive(i32),
    /// It happens, and the size it writes back is one page short. Only unmapping writes a size back: other calls happen
    /// unspoilt.
    ShortSize,
    /// Nothing happens, and the result is 0.
    ZeroWithoutEffect,
    /// It happens in part, and then fails: of an unmap the first mapping, or half the entries, are gone; a map on type1
    /// has left half its entries in the hardware, where no later map replaces them, and on sPAPR eaten half the entries
    /// it was to replace; a window's charge is leaked. Calls that kernels do wholly or not at all fail before.
    PartialEffect,
}

impl FaultPlan {
    /// Spoils the `at`th call from now; where the call fails, with `EIO`.
    pub const fn nth(at: u64, mode: FaultMode) -> Self {
        Self { at, call: None, mode, errno: Errno::EIO }
    }

    /// Counts calls of this name only.
    #[must_use]
    pub const fn of(self, call: &'static str) -> Self {
        Self { call: Some(call), ..self }
    }

    /// Fails with `errno`.
    #[must_use]
    pub const fn with(self, errno: Errno) -> Self {
        Self { errno, ..self }
    }
}

/// The plans that wait for their calls.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    waiting: Vec<Waiting>,
    fired: usize,
}

#[derive(Debug)]
struct Waiting {
    plan: FaultPlan,
    seen: u64,
}

impl Faults {
    /// Forgets what was planned, and plans this.
    pub(crate) fn plan(&mut self, plans: &[FaultPlan]) {
        let waiting = plans.iter().map(|plan| Waiting { plan: *plan, seen: 0 });
        *self = Self { waiting: waiting.collect(), fired: 0 };
    }

    /// A call is being made: the plan for it, if there is one.
    pub(crate) fn next(&mut self, call: &str) -> Option<FaultPlan> {
        let meant = |waiting: &&mut Waiting| waiting.plan.call.is_none_or(|only| only == call);
        for waiting in self.waiting.iter_mut().filter(meant) {
            waiting.seen += 1;
        }
        let due =
            |waiting: &Waiting| waiting.seen == waiting.plan.at && waiting.plan.call.is_none_or(|only| only == call);
        let due = self.waiting.iter().position(due)?;
        Some(self.waiting.swap_remove(due).plan)
    }

    /// A plan did what it was meant to.
    pub(crate) fn note_fired(&mut self) {
        self.fired += 1;
    }

    pub(crate) fn fired(&self) -> usize {
        self.fired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_waits_for_its_call_and_comes_once() {
        let mut faults = Faults::default();
        let second = FaultPlan::nth(2, FaultMode::FailBefore);
        faults.plan(&[second, second.of("map")]);
        assert_eq!(faults.next("open"), None);
        assert_eq!(faults.next("map"), Some(second));
        assert_eq!(faults.next("open"), None);
        assert_eq!(faults.next("map"), Some(second.of("map")));
        assert_eq!(faults.next("map"), None);
    }
}
