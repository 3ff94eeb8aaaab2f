//! Calls that are made to fail.

use dmaspace_core::door::Errno;

/// A fault to inject into one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultPlan {
    /// The number of the call: 1 is the next one. Opening and every ioctl count, closing does not.
    pub at: u64,
    /// The name of the calls to count; `None` counts all.
    pub call: Option<&'static str>,
    /// The effect of the fault.
    pub mode: FaultMode,
    /// The errno of the call, if the fault makes it fail.
    pub errno: Errno,
}

/// The effect of a fault on its call.
///
/// Exhaustive: a sweep over all faults must try each effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultMode {
    /// The call fails without an effect: out of memory, interrupted, an old kernel.
    FailBefore,
    /// The call takes effect and then fails, as when the answer cannot be copied out. Nothing is written back. A
    /// descriptor that it opened is closed again.
    FailAfter,
    /// The call has no effect, and its result is this positive number.
    Positive(i32),
    /// The call takes effect, and the size it writes back is one page short. Only unmaps write a size back: other calls
    /// are left alone.
    ShortSize,
    /// The call has no effect, and its result is 0.
    ZeroWithoutEffect,
    /// The call takes effect in part and then fails. An unmap removes the first mapping, or half the entries. A map on
    /// type1 leaves half its entries in the hardware, where no later map replaces them; on sPAPR it clears half the
    /// entries it was to replace. The charge of a window leaks. Calls that kernels make wholly or not at all fail
    /// without an effect.
    PartialEffect,
}

impl FaultPlan {
    /// Injects a fault into the `at`th call from now; where the call fails, it fails with `EIO`.
    pub const fn nth(at: u64, mode: FaultMode) -> Self {
        Self { at, call: None, mode, errno: Errno::EIO }
    }

    /// Counts calls of this name only.
    #[must_use]
    pub const fn of(self, call: &'static str) -> Self {
        Self { call: Some(call), ..self }
    }

    /// Comes `calls` calls later.
    #[must_use]
    pub const fn later(self, calls: u64) -> Self {
        Self { at: self.at.saturating_add(calls), ..self }
    }

    /// Makes the call fail with `errno`.
    #[must_use]
    pub const fn with(self, errno: Errno) -> Self {
        Self { errno, ..self }
    }
}

/// The plans whose calls have not come yet.
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

impl Waiting {
    fn counts(&self, call: &str) -> bool {
        self.plan.call.is_none_or(|only| only == call)
    }
}

impl Faults {
    /// Replaces all plans.
    pub(crate) fn plan(&mut self, plans: &[FaultPlan]) {
        let waiting = plans.iter().map(|plan| Waiting { plan: *plan, seen: 0 });
        *self = Self { waiting: waiting.collect(), fired: 0 };
    }

    /// Counts a call, and returns the plan for it, if there is one.
    pub(crate) fn next(&mut self, call: &str) -> Option<FaultPlan> {
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.counts(call)) {
            waiting.seen += 1;
        }
        let due = self.waiting.iter().position(|waiting| waiting.counts(call) && waiting.seen == waiting.plan.at)?;
        Some(self.waiting.swap_remove(due).plan)
    }

    /// Notes that the fault of a plan was injected.
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
    fn a_plan_fires_once_at_its_call() {
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
