//! The steps of a plan, and the plan for one space.

use std::fmt;

use crate::plan::scope::Scope;
use crate::report::{Fate, SpaceReport, Verdict, Warning};
use crate::section::{Need, Section, TargetMemory};
use crate::update::View;
use dmaspace_core::contract::{Mapping, PciAddressSpace, WindowRequest};
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::memory::HostMemory;

/// One change of a space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Unmap a range that holds nothing that stays.
    Unmap(IovaRange),
    /// Remove a window with everything in it.
    RemoveWindow(IovaRange),
    /// Register memory.
    Register(HostMemory),
    /// Share the pins of memory with other spaces.
    SharePins(HostMemory),
    /// Create a window.
    CreateWindow(WindowRequest),
    /// Map memory; a failure of a best-effort mapping is reported and passed over.
    Map(Mapping, Need),
    /// Unregister memory that no mapping uses.
    Unregister(HostMemory),
    /// Stop sharing the pins of memory that no mapping uses.
    StopSharing(HostMemory),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unmap(range) => write!(f, "unmap {range}"),
            Self::RemoveWindow(range) => write!(f, "remove the window {range}"),
            Self::Register(memory) => write!(f, "register {memory}"),
            Self::SharePins(memory) => write!(f, "share the pins of {memory}"),
            Self::CreateWindow(request) => write!(f, "create a window {} of {} pages", request.range, request.page),
            Self::Map(mapping, _) => write!(f, "map {} at {}, {}", mapping.memory, mapping.range, mapping.access),
            Self::Unregister(memory) => write!(f, "unregister {memory}"),
            Self::StopSharing(memory) => write!(f, "stop sharing the pins of {memory}"),
        }
    }
}

/// The steps that an update takes in one space, and the fate of its sections there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) sections: Vec<Verdict<Section>>,
    pub(crate) targets: Vec<Verdict<TargetMemory>>,
    pub(crate) disturbed: u64,
    pub(crate) warnings: Vec<Warning>,
    /// Entries of translated windows that other spaces have and this one lacks. They are put last.
    pub(crate) entries: Vec<Mapping>,
    /// The number of mappings it takes beyond those it frees.
    pub(super) more_mappings: u64,
}

impl Plan {
    /// These steps, and nothing to report.
    pub(crate) fn of(steps: Vec<Step>) -> Self {
        Self { steps, ..Self::default() }
    }

    /// The plan for a space without a device, or for no space.
    pub(crate) fn without_device(view: &View, scope: &Scope) -> Self {
        const WHY: &str = "no device is attached yet";
        let mut plan = Self::default();
        for range in &scope.touched {
            for section in view.sections.within(*range) {
                let fate = if section.need() == Some(Need::Required) { Fate::Pending } else { Fate::Skipped };
                plan.sections.push(Verdict::new(section.clone(), fate, WHY));
            }
        }
        for target in &scope.targets {
            plan.targets.push(Verdict::new(target.clone(), Fate::Skipped, WHY));
        }
        plan
    }

    /// Returns whether a required section cannot be provided.
    pub(crate) fn is_refused(&self) -> bool {
        self.sections.iter().any(|verdict| verdict.fate == Fate::Refused)
            || self.targets.iter().any(|verdict| verdict.fate == Fate::Refused)
    }

    /// The report of the plan before it is applied. A plan pins nothing.
    pub(crate) fn into_report(self, space: &dyn PciAddressSpace) -> SpaceReport {
        let Self { sections, targets, disturbed, warnings, .. } = self;
        SpaceReport { backend: space.describe().backend, sections, targets, pinned: 0, shared: 0, disturbed, warnings }
    }

    /// Refuses all sections that take mappings, for a kernel that cannot hold all of them.
    pub(super) fn refuse_all(&mut self, reason: &str) {
        for verdict in &mut self.sections {
            if matches!(verdict.fate, Fate::Mapped | Fate::Discardable) {
                verdict.fate = Fate::Refused;
                verdict.reason = reason.to_string().into();
            }
        }
    }
}
